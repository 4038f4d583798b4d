"""The model card of a bundle, `README.md` with the front matter of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import bertray
from bertray.config import TrainConfig
from bertray.evaluation.baselines import TITLES
from bertray.evaluation.metrics import FIGURES
from bertray.evaluation.summary import Evaluation
from bertray.model.bundle import CARD_FILE, CLASSIFIER, HEAD_FILE, LINEAR_HEADS, BundleInfo
from bertray.model.stack import TERMS_FILE
from bertray.reports.html import BUNDLED, data_title
from bertray.runs.evaluated import EvaluatedRows
from bertray.runs.fit.labelled_data import LabelledData
from bertray.wording import percent
from bertray.yaml_text import read_yaml, write_yaml

BUNDLED_ID = f"sentence-transformers/{BUNDLED}"
METRICS = ["accuracy", "f1", "matthews_correlation"]  # FIGURES, as the hub calls them
_INHERITED = ("license", "license_name", "license_link", "language")  # of the base model's own card


def model_card(
    config: TrainConfig,
    data: LabelledData,
    info: BundleInfo,
    how: str,
    base: Path,
    evaluation: Evaluation | None = None,
    rows: EvaluatedRows | None = None,
) -> str:
    """The card; `{model_version}` stays where the info has none yet.

    Args:
        data: what was learned from.
        info: of the bundle.
        how: what training did, in words.
        base: folder of the base model, whose card says its licence and language.
        evaluation: figures of the bundle; None before they are known.
        rows: those that were evaluated.
    """
    inherited = _front_matter(base)
    base_id = BUNDLED_ID if config.model == "bundled" else config.model.partition("@")[0]
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["bertray"],
        **{name: inherited[name] for name in _INHERITED if inherited.get(name)},
        **({"base_model": base_id} if _is_hub_id(base_id) else {}),
        **({"metrics": METRICS} if evaluation else {}),
    }
    training = config.training
    made = "A linear head, and the encoder of" if info.head in LINEAR_HEADS else "Fine-tuned from"
    source = f"{made} `{config.model}`" if info.reads_encoder else "A linear head on TF-IDF terms, made"
    if training.teacher is not None:
        source = f"Distilled from `{training.teacher}`, starting as `{config.model}`"
    labels = "\n".join(f"- `{name}`" for name in info.labels)
    return f"""---
{write_yaml(front)}---
# Review classifier

{source} with bertray {bertray.__version__}; model version `{info.model_version or "{model_version}"}`.

Classes, in id order:
{labels}

## Evaluation

{_figures(evaluation)}
## Training

- data: {data.train.num_rows:,} rows of `{data_title(config.data.train or ())}`, fingerprint `{data.fingerprint}`
- {how}; seed {(config.training.seeds or (config.seed,))[0]}
- reviews are cleaned as `bertray.json` says and cut to {config.max_length} tokens (`{config.long_text}`)

## Language and licence

- language: {_languages(inherited.get("language"), rows)}
- licence: {_licence(inherited, base_id)}

## Use

{_use(info)}

Meant for reviews like those it was trained on; on other text its scores are not calibrated.
"""


def _front_matter(base: Path) -> dict[str, Any]:
    """Metadata of the base model's card; empty without a card that can be read."""
    try:
        front = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*\n", (base / CARD_FILE).read_text(encoding="utf-8"), re.DOTALL)
        data = read_yaml(front[1]) if front else {}
    except (OSError, ValueError):  # other people's file, on which nothing depends
        return {}
    return data if isinstance(data, dict) else {}


def _is_hub_id(model: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model)) and not Path(model).exists()


def _figures(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "`report.html` and `metrics.json` beside this folder.\n"
    baselines = {TITLES.get(name, name): figures for name, figures in evaluation.baselines.items()}
    names = {evaluation.model_name: evaluation.metrics, **baselines}
    lines = [
        f"On {evaluation.rows:,} rows of the {evaluation.split} split, with 95 % confidence intervals:",
        "",
        f"| | {' | '.join(FIGURES.values())} |",
        f"|---|{'---|' * len(FIGURES)}",
        *(f"| {name} | {' | '.join(str(of[figure]) for figure in FIGURES)} |" for name, of in names.items()),
        "",
        *(f"- {finding.severity}: {finding.sentence}" for finding in evaluation.findings),
        "",
        "More in `report.html` and `metrics.json` beside this folder.",
        "",
    ]
    return "\n".join(lines)


def _languages(stated: str | Sequence[str] | None, rows: EvaluatedRows | None) -> str:
    """Scripts of the evaluated reviews, and the languages of the base model."""
    told = [] if rows is None else [f"reviews evaluated are written in {_scripts(rows.script)}"]
    if stated:
        told.append(f"the base model states {stated if isinstance(stated, str) else ', '.join(map(str, stated))}")
    return "; ".join(told) or "not stated by the base model"


def _scripts(script: pa.Array) -> str:
    counts = sorted(pc.value_counts(script).to_pylist(), key=lambda count: -count["counts"])[:3]
    return ", ".join(f"{count['values']} ({percent(count['counts'] / len(script))})" for count in counts)


def _licence(inherited: dict[str, Any], base_id: str) -> str:
    stated = inherited.get("license_name") or inherited.get("license")
    of_base = (
        f"`{stated}`, that of the base model `{base_id}`" if stated else f"not stated by the base model `{base_id}`"
    )
    return f"{of_base}; terms of the training data apply as well"


def _use(info: BundleInfo) -> str:
    form = LINEAR_HEADS.get(info.head)
    if info.head != CLASSIFIER:
        terms = f", the terms of its TF-IDF part in `{TERMS_FILE}`" if form is not None and form.with_terms else ""
        return (
            "`bertray score` reads it. Only the encoder loads with `transformers`; the head is in "
            f"`{HEAD_FILE}`{terms}."
        )
    return (
        "`bertray score` reads it. With `transformers`, `AutoModelForSequenceClassification` gives logits before "
        f"calibration: divide them by the temperature, {info.temperature:.4g} (`bertray.json`), before the softmax to "
        "get the scores that bertray writes. The predicted label is the same. Cleaning is not part of the tokenizer."
    )
