"""Config, weights and tokenizer of a model folder: the one module in which `transformers` and `tokenizers` read them.

No code of a folder is ever run, weights are read as safetensors only, and nothing is fetched. What a library cannot
read is a `ConfigError` that names the file. Weights that a model needs and its folder lacks are refused: `transformers`
would draw them at random.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertray.errors import BertrayError, ConfigError, InfrastructureError, is_disk_full, is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
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
_COPY_AGAIN = "Copy the model again, or save it anew with `save_pretrained`."
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_NO_CODE = "bertray never runs code of a model folder: give a model of an architecture that `transformers` has."
# Types whose positions begin at 0, and after the padding token's id; others are asked on torch's meta device.
_POSITIONS_FROM_0 = ("bert", "distilbert", "electra", "albert", "deberta", "deberta-v2", "modernbert")
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")


# --- files -----------------------------------------------------------------------------------------------------------


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
def reading(path: Path, remedy: str = _COPY_AGAIN) -> Iterator[None]:
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
        return ConfigError(f"{path}: needs Python code that lies in the folder (auto_map).", _NO_CODE)
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


# --- config ----------------------------------------------------------------------------------------------------------


def load_config(folder: Path) -> Any:
    """The config of a model, of `transformers`' own class; an attention implementation that it names is not used.

    Raises:
        ConfigError: an architecture that `transformers` does not have, or fields that it does not take.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    file = folder / "config.json"
    given = read_json(file, str(folder))
    kind = given.get("model_type")
    if kind is not None and not (isinstance(kind, str) and kind in CONFIG_MAPPING):
        import transformers

        if given.get("auto_map"):
            raise ConfigError(f"{file}: needs Python code that lies in the folder (model_type {kind!r}).", _NO_CODE)
        raise ConfigError(
            f"{file}: transformers {transformers.__version__} has no architecture {kind!r} (model_type).",
            "Correct its spelling, give another model, or update transformers.",
        )
    with reading(file):
        config = AutoConfig.from_pretrained(folder, **_SAFE)
        config._attn_implementation = None
        if (getattr(config, "pad_token_id", None) or 0) < 0:  # as some old files say that there is none
            config.pad_token_id = None
        num_layers = getattr(config, "num_hidden_layers", 1)
    if num_layers < 1:
        raise ConfigError(f"{file}: expected at least one layer as num_hidden_layers, found {num_layers}.", _COPY_AGAIN)
    return config


def single_label_classes(config: Mapping[str, Any], model: str) -> tuple[str, ...]:
    """Class names of a classifier in id order, from the content of its `config.json`.

    Raises:
        ConfigError: it is no classifier of one label out of at least two, or its names are not one for each class.
    """
    where, remedy = f"model={model}: config.json", "Correct config.json, or train a classifier: `bertray train`."
    kind = config.get("problem_type")
    if kind not in (None, "single_label_classification"):
        raise ConfigError(
            f"{where}: expected a classifier that gives one label (softmax), found problem_type {kind!r}.",
            "Its scores would be wrong here. Train a classifier on it: `bertray train model=" + model + " ...`.",
        )
    function = config.get("function_to_apply")
    if function not in (None, "softmax"):
        raise ConfigError(
            f"{where}: expected a classifier with softmax, found function_to_apply {function!r}.",
            "Its scores would be wrong here. Train a classifier on it: `bertray train model=" + model + " ...`.",
        )
    given, number = config.get("id2label"), config.get("num_labels", config.get("_num_labels"))
    if given is None:
        given = {str(i): f"LABEL_{i}" for i in range(number if isinstance(number, int) else 2)}
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: expected an object as id2label, found a {type(given).__name__}.", remedy)
    try:
        names = {int(key): str(value) for key, value in given.items()}
    except ValueError as error:
        raise ConfigError(f"{where}: expected numbers as keys of id2label, found {list(given)[:5]}.", remedy) from error
    if len(names) < len(given):
        raise ConfigError(f"{where}: expected each id once in id2label, found {', '.join(map(str, given))}.", remedy)
    if len(names) < 2:
        raise ConfigError(
            f"{where}: expected a classifier of at least two classes, found {len(names)}, as a regression has.",
            "Train a classifier on it: `bertray train model=" + model + " ...`.",
        )
    if sorted(names) != list(range(len(names))):
        raise ConfigError(f"{where}: expected ids 0 to {len(names) - 1} in id2label, found {sorted(names)}.", remedy)
    if isinstance(number, int) and number != len(names):
        raise ConfigError(f"{where}: expected {number} names in id2label (num_labels), found {len(names)}.", remedy)
    classes = tuple(names[i] for i in range(len(names)))
    # Names of columns, which SQL compares without case.
    folded = [name.strip().casefold() for name in classes]
    repeated = [name for name, short in zip(classes, folded, strict=True) if folded.count(short) > 1 or not short]
    odd = [value for value in given.values() if not isinstance(value, str | int | float)]
    if repeated or odd:
        found = " and ".join(map(repr, repeated)) if repeated else json.dumps(odd[0])
        raise ConfigError(f"{where}: expected a name of its own for each class in id2label, found {found}.", remedy)
    ids = config.get("label2id")
    for number, name in enumerate(classes):
        other = ids.get(name, number) if isinstance(ids, dict) else number
        if other not in (number, str(number)):
            raise ConfigError(
                f"{where}: id2label and label2id do not agree: {name!r} is {number} in the first and {other!r} in the "
                "second.",
                remedy,
            )
    return classes


def longest_input(folder: Path) -> int | None:
    """Tokens the model of a folder can see at most, special tokens included; None where it has no limit of its own.

    Raises:
        ConfigError: its config says no usable number.
    """
    config = read_json(folder / "config.json", str(folder))
    kind, positions = config.get("model_type"), config.get("max_position_embeddings")
    if "max_position_embeddings" in config and (kind in _POSITIONS_FROM_0 or kind in OFFSET_POSITIONS):
        if not isinstance(positions, int) or positions < 1:
            raise ConfigError(
                f"{folder / 'config.json'}: expected the number of positions as max_position_embeddings, "
                f"found {json.dumps(positions)}.",
                "Set it to the number of rows of the position embeddings.",
            )
        pad_id = config.get("pad_token_id", 1)
        return positions - (int(pad_id or 0) + 1 if kind in OFFSET_POSITIONS else 0)
    from transformers import AutoModel

    return most_positions(_without_weights(AutoModel, folder))


def most_positions(model: Any) -> int | None:
    """Tokens of the longest sequence that a model can read, from its position embeddings; None: it has no limit.

    A table with a padding row counts positions from the row after it, as RoBERTa's and MPNet's do.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:  # -1 of XLNet
        return None
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.weight.shape[0]) - int(module.padding_idx) - 1
    return limit


# --- weights ---------------------------------------------------------------------------------------------------------


def load_encoder(folder: Path) -> Any:
    """The encoder of a model in fp32, for evaluation, whatever head the folder has.

    Raises:
        ConfigError: the folder lacks weights of it, or has them in other shapes. A pooler may be missing: it is not
            read, and left out.
    """
    from transformers import AutoModel

    def is_pooler(name: str) -> bool:
        return name.startswith("pooler.")

    model, missing = _load(AutoModel, folder, load_config(folder), lambda _: is_pooler)
    if any(is_pooler(name) for name in missing):
        model.pooler = None  # made up at random, never asked, and another one in every bundle that is saved
    return model.eval()


def load_classifier(folder: Path) -> Any:
    """A trained classifier in fp32, for evaluation.

    Raises:
        ConfigError: the folder lacks weights of it, or has them in other shapes, or holds no classifier.
    """
    from transformers import AutoModelForSequenceClassification

    model, _ = _load(AutoModelForSequenceClassification, folder, load_config(folder), lambda _: _nothing)
    return model.eval()


def load_for_training(
    kind: str, folder: Path, change: Callable[[Any], object] = lambda _: None, *, attention: str | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """A model to train in fp32, and the names of weights that are new: the folder need not have its head.

    Args:
        kind: `SequenceClassification` or `MaskedLM`.
        folder: of a model with this head, another or none.
        change: is given the config before the model is made.
        attention: `eager` or `sdpa`, where the architecture has it; by default what `transformers` chooses.

    Raises:
        ConfigError: the folder lacks weights of the encoder, or has them in other shapes, or with numbers that are not
            finite. A pooler may be missing: a masked language model has none.
    """
    auto_class = _auto_class(kind)
    config = load_config(folder)
    change(config)
    model_class = auto_class._model_mapping.get(type(config), None)
    if not getattr(model_class, "_supports_sdpa", True):  # DeBERTa-v2 has none, and refuses to load with it
        attention = "eager"

    def is_new(model: Any) -> Callable[[str], bool]:
        encoder = f"{model.base_model_prefix}."
        return lambda name: not name.startswith(encoder) or "pooler" in name

    model, new_weights = _load(auto_class, folder, config, is_new, attention)
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise ConfigError(
            f"model: {folder} has {len(broken)} weights that are not finite: {_some(broken)}.",
            "Give an earlier checkpoint of its training, or copy it again.",
        )
    return model, new_weights


def without_weights(kind: str, folder: Path) -> Any:
    """Names and shapes of a model with a head: `SequenceClassification` or `MaskedLM`; nothing is computed with it."""
    return _without_weights(_auto_class(kind), folder)


def has_masked_lm(folder: Path) -> bool:
    """Whether the architecture of a folder has a masked language model."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    model_class = MODEL_FOR_MASKED_LM_MAPPING.get(type(load_config(folder)), None)
    return model_class is not None and model_class.__name__.endswith("ForMaskedLM")


def _auto_class(kind: str) -> Any:
    import transformers

    return getattr(transformers, f"AutoModelFor{kind}")


def _without_weights(auto_class: Any, folder: Path) -> Any:
    import torch

    config = load_config(folder)
    with reading(folder / "config.json"), torch.device("meta"):
        return auto_class.from_config(config, trust_remote_code=False)


def _nothing(_: str) -> bool:
    return False


def _load(
    auto_class: Any,
    folder: Path,
    config: Any,
    may_be_new: Callable[[Any], Callable[[str], bool]],
    attention: str | None = None,
) -> tuple[Any, list[str]]:
    """A model, and the names of its weights that the folder does not have in their shape.

    Args:
        may_be_new: gives for a model a function of the name of a weight: whether the folder may lack it.
    """
    import torch

    with quiet_transformers(), reading(folder):
        # fp32 first, whatever the file holds: the engine's self-check compares like with like.
        model, loading = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below
            output_loading_info=True,
            attn_implementation=attention,
            **_SAFE,
        )
    missing = [str(name) for name in loading["missing_keys"]]
    others = {name if isinstance(name, str) else name[0] for name in loading["mismatched_keys"]}
    allowed = may_be_new(model)
    prefix, unread = f"{model.base_model_prefix}.", sorted(map(str, loading["unexpected_keys"]))
    known = [name.removeprefix(prefix) for name in model.state_dict()]
    kinds, layers = {_NUMBER.sub("#", name) for name in known}, {_layer(name) for name in known} - {""}
    unread_in_layers = {name: name.removeprefix(prefix) for name in unread if _NUMBER.search(name)}
    beyond = [name for name, short in unread_in_layers.items() if _NUMBER.sub("#", short) in kinds]
    besides = [name for name, short in unread_in_layers.items() if _layer(short) in layers]
    for where, unused in (
        ("more layers than its config.json says", beyond),
        ("its layers that nothing reads", besides),
    ):
        if unused:
            raise ConfigError(
                f"model: {folder} has weights of {where}: {_some(unused)}.",
                "Give a model whose weights and config.json belong together; merge adapters into it; an architecture "
                "that transformers no longer has in full, as relative positions of BERT, cannot be used.",
            )
    for what, names in (("lacks", missing), ("has in another shape", others)):
        found = sorted(name for name in names if not allowed(name))
        if found:
            alike = next((name for name in unread if name.endswith(found[0].removeprefix(prefix))), "")
            raise ConfigError(
                f"model: {folder} {what} {len(found)} weights of {type(model).__name__}: {_some(found)}"
                f"{f'; nothing reads its {alike}' if alike else ''}.",
                "Give a model whose weights and config.json belong together; an encoder becomes a classifier by "
                "`bertray train`.",
            )
    return model, sorted({*missing, *others})


def _layer(name: str) -> str:
    """Name of the layer that a weight belongs to, `encoder.layer.0.`; empty where it belongs to none."""
    found = _NUMBER.search(name)
    return name[: found.end() + 1] if found else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


# --- tokenizer -------------------------------------------------------------------------------------------------------

_PROBES = (
    "",
    " ",
    "The film was GREAT, not bad at all!",
    "the film was great",
    "  two  spaces,\ttab\nnew line \xa0 no-break ",
    "Café naïve Über straße İstanbul café",
    "电影很好看。映画が好きカタカナ 영화가 좋아요",
    "Фильм хороший старый ёлки й",
    "فيلم جميل סרט हिन्दी ภาพยนตร์",
    "\U0001f600 \U0001f44d\U0001f3fd \u2764\ufe0f \U0001f468\u200d\U0001f469\u200d\U0001f467 \u263a",
    "1,000.50 $5 50% 3:30 2026-11-29 1st 1/2 ½ \u2460 \uff11\uff12",
    "don't can't O'Reilly's e-mail user@example.org https://example.org/a?b=c&d=e#f @user #tag",
    "<br /><b>bold</b> &amp; \u201cquoted\u201d \u2018so\u2019 \u2013 \u2014 \u2026 ... !!! ???",
    "[CLS] [SEP] [MASK] [UNK] [PAD] <s> </s> <unk> <mask> <pad> ##ing \u2581the Ġthe",
    "\x00 \x07 \u200b \ufeff \ufffd \xad soft",
    "snake_case camelCase ALLCAPS " + " ".join("x" * length for length in (20, 40, 80, 101, 120, 240)),
)


_ACCENTED = str.maketrans("aeiouAEIOUnc", "áéíóúÁÉÍÓÚñç")
_FULL_WIDTH = {code: code + 0xFEE0 for code in range(ord("!"), ord("~") + 1)}


def load_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a model folder: of its `tokenizer.json`, else as `transformers` converts it.

    Raises:
        ConfigError: it cannot be read, or is not one that the library `tokenizers` can run.
    """
    found = _from_file(folder)
    return _backend(folder) if found is None else found


def load_transformers_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder as `transformers` has it, for what only that knows: which tokens are special.

    Raises:
        ConfigError: as for `load_tokenizer`.
    """
    from transformers import AutoTokenizer

    if (folder / "config.json").is_file():
        load_config(folder)  # whose errors `AutoTokenizer` passes over
    _check_tokenizer_code(folder)
    try:
        with quiet_transformers(), reading(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder, **_SAFE)
    except ConfigError:
        if name := _python_only(folder):
            raise _refused_as_python(folder, name) from None
        if not matching(folder, VOCABULARY_FILES):
            raise ConfigError(
                f"{folder}: expected a tokenizer, found none that can be read.",
                "Save one with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`.",
            ) from None
        raise
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise _refused_as_python(folder, type(tokenizer).__name__)
    return tokenizer


def check_tokenizer(folder: Path, model: str) -> None:
    """Refuse a tokenizer that may not be the one of training, or whose ids the model cannot read.

    Raises:
        ConfigError: `tokenizer.json` and what `transformers` makes of the folder give other ids for a text, or there
            are ids beyond the model's embeddings.
    """
    load_config(folder)
    _check_tokenizer_code(folder)
    found = _from_file(folder)
    if found is not None:
        _check_vocabulary(found, folder, model)
        _check_same(found, _backend(folder), folder, model)
    else:
        found = _backend(folder)
        with reading(folder):
            found.encode_batch(_PROBES)
    rows = read_json(folder / "config.json", model).get("vocab_size")
    known = found.get_vocab(with_added_tokens=True)
    beyond = {word: i for word, i in known.items() if isinstance(rows, int) and i >= rows}
    if beyond:
        word = min(beyond, key=beyond.__getitem__)
        raise ConfigError(
            f"model={model}: expected token ids below {rows}, the rows of the model's embeddings, found {len(beyond)} "
            f"beyond: {word!r} is {beyond[word]}.",
            "Use the tokenizer that belongs to the model, or save the model after "
            "`model.resize_token_embeddings(len(tokenizer))`.",
        )


def save_tokenizer(source: Path, target: Path) -> None:
    """Write the tokenizer that training used into the folder of a trained model, file for file where it can be.

    Raises:
        ConfigError: the files as written would be read otherwise than the ones of `source` were.
    """
    used = _from_file(source)
    if used is None:
        tokenizer = load_transformers_tokenizer(source)
        used = tokenizer.backend_tokenizer
        with reading(source):
            tokenizer.save_pretrained(target)
    else:
        for path in matching(source, TOKENIZER_FILES):
            shutil.copyfile(path, target / path.name)
    for read in (load_tokenizer, _backend):
        _check_same(used, read(target), source, str(source))


def _from_file(folder: Path) -> Any:
    """Tokenizer of `tokenizer.json`; None without one, or where it leaves the special tokens to `transformers`."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    with reading(file):
        tokenizer = Tokenizer.from_file(str(file))
    return None if tokenizer.post_processor is None else tokenizer


def _backend(folder: Path) -> Any:
    return load_transformers_tokenizer(folder).backend_tokenizer


def _check_tokenizer_code(folder: Path) -> None:
    """Refuse a tokenizer whose class lies in the folder; `transformers` would take the nearest of its own."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    maps = [settings.get("auto_map") for settings in _tokenizer_settings(folder)]
    code = any("AutoTokenizer" in found if isinstance(found, dict) else found for found in maps)
    name = _tokenizer_class(folder)
    if code and name and tokenizer_class_from_name(name) is None:
        raise ConfigError(f"{folder}: needs Python code that lies in the folder (tokenizer_class {name!r}).", _NO_CODE)


def _tokenizer_settings(folder: Path) -> list[dict[str, Any]]:
    """Content of the files that may name the tokenizer's class, the one that counts first."""
    files = [folder / name for name in ("tokenizer_config.json", "config.json")]
    return [read_json(file, str(folder)) for file in files if file.is_file()]


def _tokenizer_class(folder: Path) -> str:
    """Name of the tokenizer's class that the files give; empty where they give none."""
    names = [settings.get("tokenizer_class") for settings in _tokenizer_settings(folder)]
    return next((name for name in names if isinstance(name, str)), "")


def _check_vocabulary(tokenizer: Any, folder: Path, model: str) -> None:
    """Compare `tokenizer.json` with a vocabulary or merges beside it, which other libraries read."""
    kind = type(tokenizer.model).__name__
    path = folder / {"WordPiece": "vocab.txt", "BPE": "vocab.json"}.get(kind, "")
    if not path.is_file():
        return
    if kind == "BPE":
        words = read_json(path, model)
    else:
        with reading(path):
            words = {line: number for number, line in enumerate(path.read_text("utf-8").split("\n")) if line}
    for word, number in words.items():
        if (found := tokenizer.token_to_id(word)) != number:
            raise _refused_vocabulary(path, model, word, found, number)
    merges = folder / "merges.txt"
    if kind == "BPE" and merges.is_file():
        with reading(merges):
            lines = [line for line in merges.read_text("utf-8").split("\n") if line and not line.startswith("#version")]
        used = [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
        for number, (mine, its) in enumerate(zip(used, lines, strict=False)):  # some readers drop the last line
            if mine != its:
                raise _refused_vocabulary(merges, model, f"merge {number}", mine, its)


def _refused_vocabulary(path: Path, model: str, what: str, used: object, other: object) -> ConfigError:
    return ConfigError(
        f"model={model}: tokenizer.json and {path.name} do not agree: {what!r} is {used} in the first and {other} in "
        "the second; the weights were trained with one of them.",
        f"Remove {path.name} if they were trained with tokenizer.json, else remove tokenizer.json.",
    )


def _python_only(folder: Path) -> str:
    """Name of the tokenizer's class where it is one in Python, which is slow and has no counterpart in `tokenizers`."""
    from transformers import TokenizersBackend
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    name = _tokenizer_class(folder)
    if not name and (folder / "config.json").is_file():
        name = TOKENIZER_MAPPING_NAMES.get(read_json(folder / "config.json", str(folder)).get("model_type")) or ""
    found = tokenizer_class_from_name(name)
    return name if isinstance(found, type) and not issubclass(found, TokenizersBackend) else ""


def _refused_as_python(folder: Path, name: str) -> ConfigError:
    return ConfigError(
        f"{folder}: expected a tokenizer that the library `tokenizers` can run, found a Python-only one ({name}).",
        "Use a model whose folder has a `tokenizer.json`.",
    )


def _check_same(used: Any, other: Any, folder: Path, model: str) -> None:
    with reading(folder):
        found = _first_difference(used, other, typed=_reads_token_types(folder))
    if found is not None:
        text, what, mine, its = found
        raise ConfigError(
            f"model={model}: tokenizer.json and the other tokenizer files do not agree: {text[:60]!r} has the {what} "
            f"{_start(mine)} by the first and {_start(its)} by `AutoTokenizer`; the weights were trained with one "
            "of them.",
            "Save that one over the others: `AutoTokenizer.from_pretrained(F).save_pretrained(F)` of that folder F, or "
            "for tokenizer.json the same with `PreTrainedTokenizerFast`.",
        )


def _reads_token_types(folder: Path) -> bool:
    file = folder / "config.json"
    types = read_json(file, str(folder)).get("type_vocab_size") if file.is_file() else None
    return isinstance(types, int) and types > 1


def _start(ids: list[int]) -> str:
    return str(ids[:12])[:-1] + (", ...]" if len(ids) > 12 else "]")


def _first_difference(one: Any, other: Any, *, typed: bool) -> tuple[str, str, list[int], list[int]] | None:
    """The first text of which two tokenizers make something else, alone or with a second text; then what, by each.

    Args:
        typed: the model reads token types, which are compared, too.
    """
    for tokenizer in (one, other):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    texts = [*_PROBES, *_special_words(one), *_special_words(other), *_random_texts(one)]
    pairs = [(text, text) for text in texts[: len(_PROBES)]]
    for batch in (texts, pairs):
        for text, mine, its in zip(batch, one.encode_batch(batch), other.encode_batch(batch), strict=True):
            first = text if isinstance(text, str) else text[0]
            if mine.ids != its.ids:
                return first, "ids", mine.ids, its.ids
            if typed and mine.type_ids != its.type_ids:
                return first, "token types", mine.type_ids, its.type_ids
    return None


def _special_words(tokenizer: Any) -> list[str]:
    """Texts with each added token at the start, alone, between words and in other case."""
    words = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return [f"{word} a {word} b{word}c {word.lower()} {word.upper()}" for word in words[:200]]


def _random_texts(tokenizer: Any) -> list[str]:
    """Texts of random pieces of the vocabulary, so that the languages of the model are among the probes."""
    ids = np.sort(np.fromiter(tokenizer.get_vocab(with_added_tokens=False).values(), np.int64))
    drawn = np.random.default_rng(0).choice(ids, size=(100, 12))
    texts = [str(tokenizer.decode(row.tolist())) for row in drawn]
    written = [text.upper() for text in texts[:20]]  # in other ways, which a normalizer may make equal or not
    written += [text.translate(_ACCENTED) for text in texts[20:40]]
    written += [text.translate(_FULL_WIDTH) for text in texts[40:60]]
    return [*texts, *written, *("  ".join(text.split()) for text in texts[60:80])]
