"""Clients of buckets: their credentials and regions, and the words of what is missing."""

from __future__ import annotations

import http.server
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertray.errors import ConfigError
from bertray.io import connections
from bertray.io.connections import connect
from bertray.io.failures import storage_errors
from bertray.io.store import open_store

PROFILES = """
[default]
region = eu-north-1
[night]
aws_access_key_id = of-the-profile
aws_secret_access_key = secret
region = eu-west-3
"""


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of any provider, a home folder of its own, and no way to AWS."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(connections, "_AWS", "http://127.0.0.1:9")


def profiles(home: Path) -> None:
    (home / ".aws").mkdir()
    (home / ".aws/credentials").write_text(PROFILES)


AZURE_REMEDY = "Set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY, or AZURE_STORAGE_CLIENT_ID and its secret."


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("s3://b/in", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket, AWS_SKIP_SIGNATURE=true."),
        ("gs://b/in", "Set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account."),
        ("az://c/in", AZURE_REMEDY),
        ("abfss://c@account.dfs.core.windows.net/in", AZURE_REMEDY),
    ],
)
def test_credentials_that_are_missing_are_named_as_their_provider_calls_them(address, remedy):
    from obstore.exceptions import GenericError

    with pytest.raises(ConfigError) as caught, storage_errors(address):
        raise GenericError("error sending request for url (http://169.254.169.254/metadata)")
    assert caught.value.remedy == remedy


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3:///folder", "s3:///folder: expected a bucket, found none. Write it as s3://bucket/folder."),
        ("az://", "az://: expected a bucket, found none. Write it as az://bucket/folder."),
        (
            "az://reviews/in",
            "az://reviews/in: expected the storage account in AZURE_STORAGE_ACCOUNT_NAME, found none. Set it, and "
            "AZURE_STORAGE_ACCOUNT_KEY or another way to sign in.",
        ),
    ],
)
def test_an_incomplete_address_says_what_it_lacks(url, message):
    for opened in (connect, open_store):
        with pytest.raises(ConfigError) as caught:
            opened(url)
        assert str(caught.value) == message


def test_credentials_and_region_of_a_profile_are_used(tmp_path, monkeypatch):
    profiles(tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "night")
    store = connect("s3://bucket/folder")
    assert store.credential_provider()["access_key_id"] == "of-the-profile"
    assert store.config["region"] == "eu-west-3"


def test_the_environment_wins_over_a_profile(tmp_path, monkeypatch):
    profiles(tmp_path)
    for name, value in {"PROFILE": "night", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "r"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = connect("s3://bucket")
    assert store.credential_provider is None
    assert store.config["region"] == "r"


def test_a_file_of_profiles_without_credentials_leaves_them_to_the_machine(tmp_path, monkeypatch):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text("[default]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert connect("s3://bucket").credential_provider is None


def test_a_profile_that_is_not_there_is_a_config_error(tmp_path, monkeypatch):
    profiles(tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "day")
    with pytest.raises(ConfigError, match=r"s3://bucket: expected credentials of AWS, found: .*\(day\)"):
        connect("s3://bucket")


def test_a_profile_without_boto3_says_what_to_install(tmp_path, monkeypatch):
    profiles(tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "night")
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setattr(connections, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"the package boto3 for AWS_PROFILE=night, found none\. Run `pip install"):
        connect("s3://bucket")


class _Aws(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        known = self.path == "/bucket"
        self.send_response(403 if known else 404)  # as without credentials
        if known:
            self.send_header("x-amz-bucket-region", "ap-south-1")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def aws(monkeypatch) -> Iterator[None]:
    """A server that names the region of one bucket."""
    server = http.server.HTTPServer(("127.0.0.1", 0), _Aws)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(connections, "_AWS", f"http://127.0.0.1:{server.server_address[1]}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("aws")
def test_a_region_that_nothing_names_is_asked_of_the_bucket(tmp_path, monkeypatch):
    assert connect("s3://bucket").config["region"] == "ap-south-1"
    assert "region" not in connect("s3://nowhere").config
    profiles(tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "night")
    assert connect("s3://bucket").config["region"] == "ap-south-1"
    monkeypatch.setenv("AWS_REGION", "eu-south-1")
    assert connect("s3://bucket").config["region"] == "eu-south-1"


def test_a_bucket_without_an_answer_is_asked_again(aws, monkeypatch):
    answers = connections._AWS
    monkeypatch.setattr(connections, "_AWS", "http://127.0.0.1:9")  # nothing listens
    assert "region" not in connect("s3://bucket").config
    monkeypatch.setattr(connections, "_AWS", answers)
    assert connect("s3://bucket").config["region"] == "ap-south-1"
