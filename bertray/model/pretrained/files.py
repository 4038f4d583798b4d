"""Files of a model folder, checked before a library reads them, and what libraries raise over them."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bertray.errors import BertrayError, ConfigError, InfrastructureError, is_disk_full, is_out_of_memory

SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
# A tokenizer is one of these: of the library `tokenizers`, of WordPiece, of byte-level BPE, of SentencePiece.
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
WEIGHT_FILES = "model*.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_READ_AS_JSON = ("config.json", _INDEX_FILE, "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
_READ_SUFFIXES = (".json", ".safetensors", ".txt", ".model")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_QUANTIZED = re.compile(r"[IU]\d|F[468](_|$)|BOOL")  # dtypes of safetensors that hold no weights as they are
_STORAGE_FAULTS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)
_PACKAGE = re.compile(r"No module named '([\w.]+)'|pip install (?:'|\")?([\w.-]+)|requires the (\w+) library")
COPY_AGAIN = "Copy the model again, or save it anew with `save_pretrained`."
NO_CODE = "bertray never runs code of a model folder: give a model of an architecture that `transformers` has."


def matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Files of a folder whose name fits one of the patterns, by name, each once."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def read_json(path: Path, model: str) -> dict[str, Any]:
    """Raises ConfigError when the file is not a JSON object."""
    with reading(path):
        content = path.read_bytes()
    _check_no_pointer(path, content, model)
    try:
        found = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError
        raise ConfigError(
            f"model={model}: expected JSON in {path.name}, found something else ({error}).", "Copy the model again."
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"model={model}: expected a JSON object in {path.name}, found a {type(found).__name__}.",
            "Copy the model again.",
        )
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def check_links(folder: Path, model: str) -> None:
    """Raises ConfigError when a file of a model is a link to nothing, as in a cache that was cleared in part."""
    for path in sorted(folder.iterdir()):
        if path.suffix in _READ_SUFFIXES and path.is_symlink() and not path.exists():
            raise ConfigError(f"model={model}: {path.name} is a link to nothing.", "Copy the model again.")


def check_files(folder: Path, model: str) -> None:
    """Check the small files of a model folder, and the headers of its weights; no library is asked.

    Raises:
        ConfigError: a file is a Git LFS pointer, damaged or missing, the weights are quantized, or an adapter is to be
            added to them.
    """
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"model={model}: holds an adapter of PEFT (adapter_config.json) beside its weights or without them.",
            "Merge it: load it with peft, then `merge_and_unload()` and `save_pretrained`.",
        )
    for path in matching(folder, _READ_AS_JSON):
        read_json(path, model)
    for path in matching(folder, VOCABULARY_FILES):
        with reading(path), path.open("rb") as file:
            _check_no_pointer(path, file.read(len(_LFS_POINTER)), model)
    config = read_json(folder / "config.json", model)
    if named := config.get("transformers_weights"):  # which may be pickled, too
        raise ConfigError(
            f"model={model}: expected weights in model.safetensors, found transformers_weights {named!r} instead.",
            "Rename the weights to model.safetensors (or to its parts and their index), and remove that field.",
        )
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise ConfigError(
            f"model={model}: expected weights in full precision, found a quantization_config in config.json"
            f"{f' ({method})' if method else ''}.",
            "Give the model it was quantized from.",
        )
    if (folder / "model.safetensors").is_file():
        _check_weight_file(folder / "model.safetensors", model)
        return
    shards = read_json(folder / _INDEX_FILE, model).get("weight_map") if (folder / _INDEX_FILE).is_file() else None
    names = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
    missing = sorted(name for name in names or {_INDEX_FILE} if not (folder / name).is_file())
    if missing:
        found = ", ".join(path.name for path in matching(folder, (WEIGHT_FILES,)))
        raise ConfigError(
            f"model={model}: expected model.safetensors, or its parts and {_INDEX_FILE}, found {found}; "
            f"{missing[0]} is not there.",
            "Copy the model again.",
        )
    for name in sorted(names):
        _check_weight_file(folder / name, model)


def _check_no_pointer(path: Path, content: bytes, model: str) -> None:
    if content.startswith(_LFS_POINTER):
        raise ConfigError(
            f"model={model}: {path.name} is a pointer of Git LFS, not the file itself.",
            f"Fetch the files: `cd {shlex.quote(str(path.parent))} && git lfs pull`.",
        )


def _check_weight_file(path: Path, model: str) -> None:
    """Compare the size of a safetensors file with what its header says."""
    size = path.stat().st_size
    with reading(path), path.open("rb") as file:
        start = file.read(8)
        _check_no_pointer(path, start + file.read(len(_LFS_POINTER)), model)
        file.seek(8)
        header_size = int.from_bytes(start, "little")
        header = file.read(header_size) if header_size <= size - 8 else b""
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        ends = [tensor["data_offsets"][1] for tensor in tensors.values()]
        packed = [name for name, tensor in tensors.items() if _QUANTIZED.match(tensor["dtype"]) and "weight" in name]
        found = 8 + header_size + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ConfigError(
            f"model={model}: {path.name} is no whole safetensors file ({size:,} bytes).", "Copy the model again."
        ) from error
    if found != size:
        raise ConfigError(
            f"model={model}: expected {found:,} bytes in {path.name}, as its header says, found {size:,}.",
            "Copy the model again.",
        )
    if packed:
        raise ConfigError(
            f"model={model}: expected weights in full precision, found {tensors[packed[0]]['dtype']} for {packed[0]} "
            f"in {path.name}.",
            "Give the model it was quantized from.",
        )


# --- errors of libraries ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(path: Path, remedy: str = COPY_AGAIN) -> Iterator[None]:
    """Turn whatever a library raises over a file of a model into an error of bertray.

    Out of memory and a full disk stay what they are.

    Args:
        path: the file, or the folder where it may be any.
        remedy: what to do where the error does not tell.

    Raises:
        ConfigError: the file cannot be used.
        InfrastructureError: the storage failed.
    """
    try:
        yield
    except BertrayError:
        raise
    except BaseException as error:
        # A panic of Rust, as tokenizers has on odd files, is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if is_out_of_memory(error) or is_disk_full(error):
            raise
        if isinstance(error, OSError) and error.errno in _STORAGE_FAULTS:
            raise InfrastructureError(f"{path}: {error.strerror}.", "Check the storage and run again.") from error
        raise _as_config_error(path, error, remedy) from error


def _as_config_error(path: Path, error: BaseException, remedy: str) -> ConfigError:
    words = " ".join(str(error).split())
    if "custom code" in words or "trust_remote_code" in words:
        return ConfigError(f"{path}: needs Python code that lies in the folder (auto_map).", NO_CODE)
    if package := _missing_package(path, error, words):
        return ConfigError(
            f"{path}: needs the package {package}, which is not installed.",
            f"Run `pip install {package}`, or give a model whose folder has a `tokenizer.json`.",
        )
    return ConfigError(
        f"{path}: cannot be used ({type(error).__name__}: {words[:300]}).",
        remedy,
    )


def _missing_package(path: Path, error: BaseException, words: str) -> str:
    """Name of the package that a library asks for; empty where it asks for none."""
    if isinstance(error, ImportError):
        found = _PACKAGE.search(words)
        return next((name for name in found.groups() if name), "") if found else ""
    # Told of every tokenizer that cannot be read; true of those of SentencePiece alone.
    asked = path.is_dir() and bool(matching(path, ("*.model",))) and "sentencepiece" in words
    return "sentencepiece" if asked and find_spec("sentencepiece") is None else ""


def calling(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Turn what a model raises when it is first called into a ConfigError; some cannot be called as classifiers are."""
    return reading(folder, "Complete its config.json (pad_token_id, say), or give a model of another architecture.")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppresses warnings of a new head, where one is wanted, and progress bars."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
