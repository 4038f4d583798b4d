"""A model with its tokenizer, whole and checked, in a folder of one's own."""

from __future__ import annotations

from dataclasses import dataclass

from bertray.config import FetchConfig
from bertray.errors import ConflictError
from bertray.io.store import open_store
from bertray.model.bundle import resolve_model
from bertray.model.pretrained.tokenizer import check_tokenizer
from bertray.runs.results import Result


@dataclass(frozen=True, kw_only=True)
class FetchResult(Result):
    """A fetched model; `output` is its place, for `model=` of other calls.

    Attributes:
        num_files: of the model.
        size: of these, in bytes.
        already_done: all of them had been there.
    """

    num_files: int
    size: int
    already_done: bool


def fetch_model(config: FetchConfig) -> FetchResult:
    """Copy a model; the same again finds it there.

    Raises:
        ConfigError, InfrastructureError: as `resolve_model` and `check_tokenizer`.
        ConflictError: the output holds something else.
    """
    folder = resolve_model(config.model)
    check_tokenizer(folder, config.model)
    store = open_store(config.output)
    # The config last: without it there is no model.
    paths = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name == "config.json")
    there = set(store.keys(""))
    wanted = {path.name for path in paths}
    same = {path.name for path in paths if path.name in there and store.get(path.name) == path.read_bytes()}
    other = sorted(there - same)
    if other:
        raise ConflictError(
            f"{config.output}: expected an empty folder or this model, found {', '.join(other[:3])}.",
            "Choose another `output`.",
        )
    for path in paths:
        if path.name not in same:
            store.put(path.name, path.read_bytes())
    size = sum(path.stat().st_size for path in paths)
    return FetchResult(store.root, num_files=len(paths), size=size, already_done=same == wanted)
