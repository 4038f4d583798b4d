"""A commented config for the data that was inspected."""

from __future__ import annotations

import io
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertray.autoconfig.inspection import DataSummary
from bertray.config import TextFormat
from bertray.reviews.labels import sorted_values
from bertray.wording import config_word, counted

# With a tokenizer.json: no encoder of Japanese alone has one that works without further packages.
_ENCODERS = {"han": "bert-base-chinese", "hangul": "klue/bert-base"}
_MULTILINGUAL = "bert-base-multilingual-cased"


@dataclass(frozen=True)
class Proposal:
    """Advice on training, beside what the data show.

    Args:
        on_encoder: sentences on an encoder that cannot read the texts; empty where it can; None: not known.
        on_training: sentences on the method and its steps.
        cross_validated: whether figures will come from a cross-validation.
    """

    on_encoder: tuple[str, ...] | None = None
    on_training: tuple[str, ...] = ()
    cross_validated: bool = False


def render_config(data: DataSummary, verb: str, file: str, proposal: Proposal | None = None) -> str:
    """Commented YAML that `bertray train -c FILE output=FOLDER` accepts as it is, or `bertray score`.

    Args:
        data: the summary of the data.
        verb: `train` or `score`.
        file: name that the config will have, for the commands in its comments.
        proposal: advice on training, for its comments.
    """
    proposal = proposal or Proposal()
    out = io.StringIO()

    def write(line: str = "", comment: str = "") -> None:
        out.write(f"{line}  # {comment}\n" if line and comment else f"# {comment}\n" if comment else f"{line}\n")

    write(comment=f"{counted(data.num_files, 'file')}, {counted(data.num_rows, 'row')}")
    for note in data.notes:
        write(comment=_one_line(note))
    words = f"-c {shlex.quote(file)} output={'runs/first' if verb == 'train' else 'scored'}"
    write(comment=f"{verb.capitalize()}: bertray {verb} {_one_line(words)}")
    write()
    if verb == "train":
        _write_splits(data, proposal, write)
    else:
        paths = [path for split in data.splits.values() for path in split]
        write(f"input: {config_word(paths if len(paths) > 1 else paths[0])}")
    _write_reader(data.reader, write)
    write()
    write("columns:")
    for name in ("id", "text", "text_pair", "label"):
        value = getattr(data.columns, name)
        is_there = name != "id" or data.has_ids
        if name == "label" and verb == "score" and data.label_counts:
            write(comment=f" label: {config_word(value)}  for the accuracy, where its values are classes of the model")
        elif value is not None and is_there and (name != "label" or data.label_counts):
            write(f"  {name}: {config_word(value)}")
    if verb == "train":
        _write_training(data, proposal, write)
    else:
        write()
        write("model: runs/first/model", "of a training run, or a hub id")
        if data.other_columns:
            write(comment=f"keep_columns: {config_word(list(data.other_columns))}")
    return out.getvalue()


def _write_splits(data: DataSummary, proposal: Proposal, write: Any) -> None:
    write("data:")
    for split, paths in data.splits.items():
        write(f"  {split}: {config_word(list(paths) if len(paths) > 1 else paths[0])}")
    if proposal.cross_validated:
        write(comment="no data.test: figures by cross-validation, and all rows are learned from")
        return
    if "validation" not in data.splits:
        write(comment="no data.validation: 10 % of train is held out, identical texts on one side")
    if "test" not in data.splits:
        write(comment="no data.test: the report is on the validation split")


def _write_training(data: DataSummary, proposal: Proposal, write: Any) -> None:
    _write_labels(data, write)
    write()
    told = proposal.on_encoder
    if told is None and data.script not in ("latin", "other"):
        told = (f"the texts are mostly {data.script}, and the bundled encoder is English",)
    for line in _wrapped(told or ()):
        write(comment=line)
    if told:
        name = _ENCODERS.get(data.script, _MULTILINGUAL)
        write(comment=f"an encoder of such texts, with network or from a folder: `model: {name}`")
    write("model: bundled", "or a hub id, or a folder")
    longer = f"; {2 * data.max_length} sees more and is slower" if data.is_cut else ""
    lengths = f"median text {data.median_chars} characters, 90 % below {data.p90_chars}"
    write(f"max_length: {data.max_length}", f"tokens; {lengths}{longer}")
    write("training:")
    write("  method: auto", "or finetune, features, ...; epochs, learning_rate and batch_size are auto, too")
    for line in _wrapped(proposal.on_training):
        write(comment=f" {line}")


def _wrapped(sentences: Sequence[str]) -> list[str]:
    return [line for sentence in sentences for line in textwrap.wrap(_one_line(sentence), 110)]


def _write_reader(reader: TextFormat, write: Any) -> None:
    default = TextFormat().model_dump()
    changed = {name: value for name, value in reader.model_dump().items() if value != default[name]}
    if changed:
        write()
        write("reader:")
        for name, value in changed.items():
            write(f"  {name}: {config_word(value)}")


def _write_labels(data: DataSummary, write: Any) -> None:
    if not data.label_counts:
        return
    values = sorted_values(data.label_counts)
    counted = ", ".join(f"{_one_line(value)} {data.label_counts[value]:,}" for value in values[:20])
    more = f" and {len(values) - 20} more" if len(values) > 20 else ""
    exact = "" if data.counts_are_exact else " (in a sample)"
    write()
    write(comment=f"label values{exact}: {counted}{more}")
    if values in (["0", "1"], ["neg", "pos"]):
        write("labels:", "value: name; the names are a guess, correct them")
        for value, name in zip(values, ("negative", "positive"), strict=True):
            write(f"  {value}: {name}")
    elif len(values) >= 3 and set(values) <= {"1", "2", "3", "4", "5"}:
        write(comment="stars as classes: labels: {1: negative, 2: negative, 3: neutral, 4: positive, 5: positive}")
    elif len(values) >= 2:
        write(comment="without `labels` the sorted values are the class names; `value: null` leaves one out")


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:500]
