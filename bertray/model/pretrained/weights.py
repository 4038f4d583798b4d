"""Config and weights of a model folder, as models of `transformers`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bertray.errors import ConfigError
from bertray.model.pretrained.files import (
    COPY_AGAIN,
    NO_CODE,
    SAFE,
    WEIGHT_FILES,
    matching,
    quiet_transformers,
    read_json,
    reading,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_EMBEDDINGS = re.compile(r"(^|\.)(word_embeddings?|tok_embeddings|embed_tokens)\.weight$")
# Types whose positions begin at 0, and after the padding token's id; others are asked on torch's meta device.
_POSITIONS_FROM_0 = ("bert", "distilbert", "electra", "albert", "deberta", "deberta-v2", "modernbert")
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")


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
            raise ConfigError(f"{file}: needs Python code that lies in the folder (model_type {kind!r}).", NO_CODE)
        raise ConfigError(
            f"{file}: transformers {transformers.__version__} has no architecture {kind!r} (model_type).",
            "Correct its spelling, give another model, or update transformers.",
        )
    with reading(file):
        config = AutoConfig.from_pretrained(folder, **SAFE)
        config._attn_implementation = None
        if (getattr(config, "pad_token_id", None) or 0) < 0:  # as some old files say that there is none
            config.pad_token_id = None
        num_layers = getattr(config, "num_hidden_layers", 1)
    if num_layers < 1:
        raise ConfigError(f"{file}: expected at least one layer as num_hidden_layers, found {num_layers}.", COPY_AGAIN)
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
    if "max_position_embeddings" in config and (kind in _POSITIONS_FROM_0 or kind in _POSITIONS_AFTER_PADDING):
        if not isinstance(positions, int) or positions < 1:
            raise ConfigError(
                f"{folder / 'config.json'}: expected the number of positions as max_position_embeddings, "
                f"found {json.dumps(positions)}.",
                "Set it to the number of rows of the position embeddings.",
            )
        return positions - (int(config.get("pad_token_id", 1) or 0) + 1 if kind in _POSITIONS_AFTER_PADDING else 0)
    from transformers import AutoModel

    return most_positions(_without_weights(AutoModel, folder))


def padding_of_positions(config: Any) -> int | None:
    """Id of padding, after which positions begin; None where they begin at 0."""
    pad_id: int | None = config.pad_token_id if config.model_type in _POSITIONS_AFTER_PADDING else None
    return pad_id


def hidden_size(folder: Path) -> int:
    """Numbers of a token's vector."""
    return int(load_config(folder).hidden_size)  # under whatever name its architecture has it


def input_embeddings(folder: Path) -> NDArray[np.float32] | None:
    """Input embeddings, float32 [V, D]; of the weights no other tensor is read. None: under no usual name."""
    from safetensors import safe_open

    for path in matching(folder, (WEIGHT_FILES,)):
        with reading(path), safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - safetensors' own method
                if _EMBEDDINGS.search(name):
                    found: NDArray[np.float32] = weights.get_tensor(name).float().numpy()
                    return found
    return None


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

    model, missing = _load(AutoModel, folder, load_config(folder), lambda _: _is_pooler)
    if missing:
        model.pooler = None  # made up at random, never asked, and another one in every bundle that is saved
    return model.eval()


def _is_pooler(name: str) -> bool:
    return name.startswith("pooler.")


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
        kind: `SequenceClassification` or `MaskedLM`; empty for the encoder alone.
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
        encoder = f"{model.base_model_prefix}." if kind else ""
        return lambda name: not name.startswith(encoder) or "pooler" in name

    model, new_weights = _load(auto_class, folder, config, is_new, attention)
    if not kind and new_weights:  # as `load_encoder`
        model.pooler = None
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

    return getattr(transformers, f"AutoModelFor{kind}" if kind else "AutoModel")


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
            **SAFE,
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
