"""The model that a config names, checked against what the config asks of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bertray.config import Common, EmbedConfig, EvaluateConfig, NightConfig, TrainConfig, Workers
from bertray.errors import ConfigError
from bertray.execution.session import on_these_cpus
from bertray.model.bundle import (
    INFO_FILE,
    BundleInfo,
    read_info,
    resolve_model,
    weights_digest,
)
from bertray.model.pretrained.tokenizer import check_tokenizer
from bertray.model.pretrained.weights import longest_input
from bertray.reviews.clean import Cleaning
from bertray.reviews.rows import Aspects
from bertray.settings import settings_of


def open_model(config: EvaluateConfig | NightConfig) -> BundleInfo:
    """The bundle that a config names, checked against what the config asks of it.

    Raises:
        ConfigError: there is no such bundle, it sees fewer tokens than `max_length`, or it was trained on pairs of
            texts and `columns.text_pair` names none, or the other way about. What a classifier of the hub was trained
            on is not known.
    """
    folder = resolve_model(config.model)
    info = read_info(folder, model=config.model)
    if config.max_length:
        check_length(config.max_length, config.model, folder)
    aspects = Aspects.of(config, info.aspects)
    _check_select(config, aspects)
    if info.text_pair and config.columns.text_pair is None and aspects is None:
        raise ConfigError(
            f"columns.text_pair: {config.model} was trained on pairs of texts, and no second column is named.",
            "Set `columns.text_pair` to the column that holds the second text, or `aspects` to the aspects that each "
            "review is read for.",
        )
    given = [
        key
        for key, value in (
            (f"columns.text_pair={config.columns.text_pair}", config.columns.text_pair),
            (f"columns.aspects={config.columns.aspects}", config.columns.aspects),
            ("aspects", config.aspects),
        )
        if value is not None
    ]
    if given and not info.text_pair and (folder / INFO_FILE).is_file():
        raise ConfigError(
            f"{given[0]}: {config.model} was trained on single texts.",
            f"Leave `{given[0].partition('=')[0]}` out, or give a model that was trained on pairs.",
        )
    return info


def _check_select(config: EvaluateConfig | NightConfig, aspects: Aspects | None) -> None:
    """Raises ConfigError where sentences are to be selected by an aspect and there is none."""
    if config.long_text == "select" and config.columns.text_pair is None and aspects is None:
        raise ConfigError(
            "long_text=select: keeps the sentences that concern an aspect, and no aspect is named.",
            "Set `aspects` or `columns.text_pair`, or another `long_text`.",
        )


def open_encoder(config: EmbedConfig) -> BundleInfo:
    """The encoder that a config names: of a bundle, which says how its reviews are read, or as it was pretrained.

    Raises:
        ConfigError: there is no such model, it sees fewer tokens than `max_length`, vectors of tokens or of a
            vocabulary are asked for where reviews are read in windows, or the latter of a model of pairs.
    """
    folder = resolve_model(config.model)
    if (folder / INFO_FILE).is_file():
        if config.pooling == "vocabulary" and read_info(folder, model=config.model).text_pair:
            raise ConfigError(
                f"pooling=vocabulary: {config.model} was trained on pairs of texts, and each text is read alone.",
                "Give the encoder that it was trained from.",
            )
        info = open_model(config)
    else:
        defaults = TrainConfig.model_fields
        _check_select(config, Aspects.of(config))
        length = config.max_length or defaults["max_length"].default
        check_length(length, config.model, folder)
        check_tokenizer(folder, config.model)
        info = BundleInfo(
            labels=(),
            label_values={},
            max_length=length,
            long_text=config.long_text or defaults["long_text"].default,
            cleaning=Cleaning(),
            max_chars=defaults["max_chars"].default,
            model_version=weights_digest(folder),
        )
    if config.pooling in ("tokens", "vocabulary") and (config.long_text or info.long_text) == "windows":
        whose = "" if config.long_text else f" of {config.model}"
        raise ConfigError(
            f"pooling={config.pooling}: long_text=windows{whose} would give a token that stands in several windows "
            "several vectors.",
            "Set long_text=head, tail or head_tail.",
        )
    return replace(
        info,
        labels=(),
        label_values={},
        cleaning=settings_of(Cleaning, config.cleaning) if config.cleaning else info.cleaning,
        max_chars=config.max_chars or info.max_chars,
    )


def check_reads_once(config: Common, info: BundleInfo) -> None:
    """Refuse aspects, of a config or its model, where a review is read once.

    Raises:
        ConfigError: as said.
    """
    if Aspects.of(config, info.aspects) is not None:
        raise ConfigError(
            f"aspects: expected a review to be read once, found several aspects, by the config or of {config.model}.",
            "Set `columns.text_pair`, or give the encoder that the model was trained from.",
        )


def check_length(max_length: int, model: str, folder: Path) -> None:
    """Refuse a `max_length` beyond what a model sees.

    Raises:
        ConfigError: as said.
    """
    longest = longest_input(folder)
    if longest is not None and max_length > longest:
        raise ConfigError(
            f"max_length={max_length}: {model} sees at most {longest} tokens.",
            f"Set `max_length={longest}` or less; `long_text=head_tail` or `long_text=windows` reaches "
            "further into long reviews.",
        )


def check_precision(precision: str, workers: Workers) -> None:
    """Refuse a precision that this machine cannot compute in, if it is the one to compute.

    Actors of a cluster check their own machines.

    Raises:
        ConfigError: `int8` on a CPU that has nothing for it.
    """
    if precision == "int8" and on_these_cpus(workers):
        import torch

        from bertray.model.engine import choose_dtype

        choose_dtype(precision, torch.device("cpu"))
