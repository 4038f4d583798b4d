"""Data sets of the Hugging Face hub (extra `hub`): fetched once, exported to Parquet, then read like any file.

`hub://<name>[@revision][/<config>]/<split>`, where <name> is `imdb` or `namespace/imdb`. Three plain parts mean
namespace/name/split; a configuration of a name without namespace needs the revision: `hub://glue@main/cola/train`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertray.errors import ConfigError, InfrastructureError, did_you_mean
from bertray.io.cache import Cache
from bertray.reviews.rows import FileEntry

SCHEME = "hub://"


@dataclass(frozen=True)
class HubDataset:
    name: str
    revision: str | None
    config: str | None
    split: str


def parse(uri: str) -> HubDataset:
    """Take a `hub://` address apart.

    Raises:
        ConfigError: it does not name a data set and a split.
    """
    head, at, tail = uri.removeprefix(SCHEME).strip("/").partition("@")
    if at:
        name_parts, rest = head.split("/"), tail.split("/")
        revision, rest = rest[0], rest[1:]
    else:
        parts = head.split("/")
        num_name = 1 if len(parts) <= 2 else 2
        name_parts, rest, revision = parts[:num_name], parts[num_name:], ""
    usable = len(name_parts) <= 2 and len(rest) in (1, 2) and all([*name_parts, *rest]) and (revision or not at)
    if not usable:
        raise ConfigError(
            f"{uri}: expected hub://<name>[@revision][/<config>]/<split>, found another form.",
            "For example hub://stanfordnlp/imdb/train.",
        )
    config = rest[0] if len(rest) == 2 else None
    return HubDataset("/".join(name_parts), revision or None, config, rest[-1])


def to_parquet(uri: str) -> FileEntry:
    """The Parquet export of one split, made when it is not there yet.

    It lies in the cache of this machine: workers on other machines need a cache folder that they share (HF_HOME).

    Raises:
        ConfigError: the extra is not installed, or there is no such data set, configuration or split.
        InfrastructureError: the hub cannot be reached.
    """
    wanted = parse(uri)
    table = _load(uri, wanted)
    name = re.sub(r"[^A-Za-z0-9._-]", "--", "/".join(filter(None, (wanted.name, wanted.config, wanted.split))))
    # The fingerprint follows from the downloaded files: a new revision gets a file of its own.
    try:
        target = _cache().entry(f"{name}-{table._fingerprint}.parquet", lambda to: table.to_parquet(str(to)))
    except OSError as error:
        raise InfrastructureError(
            f"{uri}: cannot be kept in this machine's cache ({error}).",
            "Set HF_HOME or XDG_CACHE_HOME to another folder.",
        ) from error
    info = target.stat()
    return FileEntry(str(target), f"{name}.parquet", "parquet", info.st_size, str(info.st_mtime_ns))


def _cache() -> Cache:
    """This user's cache, or the folder that HF_HOME names, which machines and users may share."""
    if not (home := os.environ.get("HF_HOME")):
        return Cache.of("datasets")
    root = Path(home).expanduser().absolute() / "bertray"
    return Cache(root / "datasets", root, private=False)


def _load(uri: str, wanted: HubDataset) -> Any:
    try:
        import datasets
        from datasets.exceptions import DatasetNotFoundError
    except ImportError as error:
        raise ConfigError(
            f"{uri}: expected the extra `hub`, found that `datasets` is not installed.",
            "Run `pip install 'bertray[hub]'`.",
        ) from error
    try:
        return datasets.load_dataset(wanted.name, wanted.config, split=wanted.split, revision=wanted.revision)
    except DatasetNotFoundError as error:
        raise ConfigError(
            f"{uri}: expected a data set {wanted.name!r} on the hub, found none that this user may read.",
            "Correct the name, or log in with `hf auth login` when it is gated.",
        ) from error
    except ValueError as error:
        raise _not_offered(uri, wanted, str(error)) from error
    except Exception as error:  # the hub's client raises many kinds; none of them is the data's fault
        if not _is_network(error):
            raise
        raise InfrastructureError(
            f"{uri}: the hub cannot be reached ({' '.join(str(error).split())[:200]}).",
            "Run it once with network (and without HF_HUB_OFFLINE), or give a local copy of the data.",
        ) from error


def _not_offered(uri: str, wanted: HubDataset, message: str) -> ConfigError:
    """An unknown configuration or split, with the names that the library lists in its message."""
    offered = re.findall(r"'([^']+)'", message.partition("[")[2]) if "[" in message else []
    word = wanted.split if "split" in message.lower() else wanted.config or ""
    found = f"; there are {', '.join(offered[:12])}" if offered else ""
    return ConfigError(
        f"{uri}: expected a configuration and split of {wanted.name!r}, found neither of that name{found}."
        f"{did_you_mean(word, offered)}",
        "Correct the address.",
    )


def _is_network(error: BaseException | None) -> bool:
    while error is not None:
        kind = type(error)
        if isinstance(error, OSError) or kind.__module__.partition(".")[0] in ("huggingface_hub", "requests", "httpx"):
            return True
        error = error.__cause__ or error.__context__
    return False
