"""Connections to buckets: the client of an `s3://`, `gs://`, `az://` or `abfs://` address, credentials and region.

The client sends a request, or one page of a listing, again after a server error, a lost connection or a time-out of a
read, by the defaults of obstore's `RetryConfig`. bertray itself repeats none.
"""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bertray.errors import ConfigError

OBJECT_STORE_SCHEMES = ("s3", "gs", "az", "abfs", "abfss")

AZURE_SCHEMES = OBJECT_STORE_SCHEMES[2:]

# With one of these set, obstore finds credentials of AWS by itself; else it asks the machine for its role.
_AWS_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_AWS_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_ENDPOINTS = (*_AWS_ENDPOINTS, "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_AWS = "https://s3.amazonaws.com"
_REGION_TIMEOUT_S = 5


def endpoint_variable(url: str) -> str:
    """Environment variable that names another endpoint for an address; empty where there is none."""
    scheme = url.partition("://")[0].lower()
    return "AWS_ENDPOINT_URL" if scheme == "s3" else "AZURE_STORAGE_ENDPOINT" if scheme in AZURE_SCHEMES else ""


def credentials_remedy(url: str) -> str:
    """Settings by which the store of an address is signed in to, as a sentence."""
    scheme = url.partition("://")[0].lower()
    if scheme == "s3":
        return "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket, AWS_SKIP_SIGNATURE=true."
    if scheme in AZURE_SCHEMES:
        return "Set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY, or AZURE_STORAGE_CLIENT_ID and its secret."
    return "Set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account."


def connect(url: str) -> Any:
    """obstore's client of a bucket or container, or of a prefix in it; no request to the store is made.

    Credentials come from the environment, a profile of AWS (with boto3), or the role of the machine.

    Raises:
        ConfigError: the address has no bucket, or the settings of its provider are incomplete.
    """
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    scheme, _, rest = url.partition("://")
    bucket = rest.partition("/")[0]
    remedy = f"Write it as {scheme}://bucket/folder."
    if not bucket:
        raise ConfigError(f"{url}: expected a bucket, found none.", remedy)
    settings = _of_s3(url, bucket) if scheme.lower() == "s3" else {}
    try:
        return from_url(url, client_options={"allow_http": True} if _is_plain() else None, **settings)
    except (BaseError, ValueError) as error:
        words = str(error).splitlines()[0]
        if "Account must be specified" in words:
            raise ConfigError(
                f"{url}: expected the storage account in AZURE_STORAGE_ACCOUNT_NAME, found none.",
                "Set it, and AZURE_STORAGE_ACCOUNT_KEY or another way to sign in.",
            ) from error
        raise ConfigError(f"{url}: {words}.", remedy) from error


def table_options(url: str) -> dict[str, str]:
    """Settings of `connect` as deltalake takes them; the rest it reads from the environment itself.

    Raises:
        ConfigError: the profile of AWS that the environment names cannot be used.
    """
    options = {"allow_http": "true"} if _is_plain() else {}
    scheme, _, rest = url.partition("://")
    if scheme.lower() != "s3":
        return options
    settings = _of_s3(url, rest.partition("/")[0])
    options |= {f"aws_{name}": value for name, value in settings.get("config", {}).items()}
    if (provider := settings.get("credential_provider")) is not None:
        credential = provider()
        ours = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        theirs = ("access_key_id", "secret_access_key", "token")
        found = zip(ours, map(credential.get, theirs), strict=True)
        options |= {name: value for name, value in found if value}
    return options


def _is_plain() -> bool:
    """Whether the user names a server without TLS."""
    return any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)


def _of_s3(url: str, bucket: str) -> dict[str, Any]:
    """Credentials of a profile and the region, where the environment does not say them."""
    provider = None if any(map(os.environ.get, _AWS_CREDENTIALS)) else _profile(url)
    settings: dict[str, Any] = {} if provider is None else {"credential_provider": provider}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and not any(map(os.environ.get, _AWS_ENDPOINTS)):
        region = _region_of(bucket)
    if region:  # else that of the profile
        settings["config"] = {"region": region}
    return settings


def _profile(url: str) -> Any:
    """Credentials of an AWS profile, also of one that signs in or takes a role; None where there is no profile."""
    named = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    files = [
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    ]
    if not named and not any(Path(file).expanduser().is_file() for file in files):
        return None
    if find_spec("boto3") is None:
        if not named:
            return None
        raise ConfigError(
            f"{url}: expected the package boto3 for AWS_PROFILE={named}, found none.",
            "Run `pip install 'bertray[aws]'`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(`aws configure export-credentials --format env` prints them).",
        )
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except BotoCoreError as error:
        raise ConfigError(
            f"{url}: expected credentials of AWS, found: {error}.", "Correct the profile, or sign in with it."
        ) from error
    except ValueError:  # profiles without credentials: the machine may have a role
        return None


def _region_of(bucket: str) -> str | None:
    """Region of a bucket of AWS; None where AWS cannot be reached, or does not know it: the next store asks again."""
    try:
        return _named_region(bucket, _AWS)
    except (OSError, LookupError):  # no network, a name that no bucket has
        return None


@functools.cache  # a run opens its stores anew in every task
def _named_region(bucket: str, aws: str) -> str:
    """Region that every answer of AWS on a bucket names, a refusal too.

    Raises:
        OSError: no answer.
        LookupError: an answer without a region.
    """
    import urllib.request
    from http.client import HTTPException
    from urllib.error import HTTPError

    request = urllib.request.Request(f"{_AWS}/{bucket}", method="HEAD")  # noqa: S310 - the scheme is ours
    try:
        with urllib.request.urlopen(request, timeout=_REGION_TIMEOUT_S) as reply:  # noqa: S310 - the same
            headers = reply.headers
    except HTTPError as error:
        headers = error.headers
    except HTTPException as error:
        raise OSError(str(error)) from error
    region: str | None = headers.get("x-amz-bucket-region")
    if region is None:
        raise LookupError(f"{bucket}: AWS names no region")
    return region
