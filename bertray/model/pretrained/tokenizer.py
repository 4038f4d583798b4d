"""Tokenizer of a model folder, which every library must read as training did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bertray.errors import ConfigError
from bertray.model.pretrained.files import (
    NO_CODE,
    SAFE,
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    matching,
    quiet_transformers,
    read_json,
    reading,
)
from bertray.model.pretrained.weights import load_config

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
            tokenizer = AutoTokenizer.from_pretrained(folder, **SAFE)
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


def check_token_types(folder: Path, model: str) -> None:
    """Refuse an encoder without token types, or a tokenizer that gives none.

    Raises:
        ConfigError: as said.
    """
    types = load_tokenizer(folder).encode("a", "a").type_ids
    if getattr(load_config(folder), "type_vocab_size", 0) < 2 or not any(types):
        raise ConfigError(
            f"head=attention: {model} has no token types, by which a review and its aspect are told apart.",
            "Give an encoder such as BERT, ELECTRA or ALBERT, or leave `head` out.",
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
        raise ConfigError(f"{folder}: needs Python code that lies in the folder (tokenizer_class {name!r}).", NO_CODE)


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
