"""A commented config for the data that was inspected."""

from __future__ import annotations

import io
import shlex
from typing import Any

from bertray.autoconfig.inspection import DataSummary
from bertray.config import TextFormat
from bertray.reviews.labels import sorted_values
from bertray.wording import config_word, counted

# With a tokenizer.json: no encoder of Japanese alone has one that works without further packages.
_ENCODERS = {
    "han": "bert-base-chinese",
    "hangul": "klue/bert-base",
}


def render_config(data: DataSummary, verb: str, file: str) -> str:
    """Commented YAML that `bertray train -c FILE output=FOLDER` accepts as it is, or `bertray score`.

    Args:
        data: the summary of the data.
        verb: `train` or `score`.
        file: name that the config will have, for the commands in its comments.
    """
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
        _write_splits(data, write)
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
        _write_training(data, write)
    else:
        write()
        write("model: runs/first/model", "of a training run, or a hub id")
        if data.other_columns:
            write(comment=f"keep_columns: {config_word(list(data.other_columns))}")
    return out.getvalue()


def _write_splits(data: DataSummary, write: Any) -> None:
    write("data:")
    for split, paths in data.splits.items():
        write(f"  {split}: {config_word(list(paths) if len(paths) > 1 else paths[0])}")
    if "validation" not in data.splits:
        write(comment="no data.validation: 10 % of train is held out, identical texts on one side")
    if "test" not in data.splits:
        write(comment="no data.test: the report is on the validation split")


def _write_training(data: DataSummary, write: Any) -> None:
    _write_labels(data, write)
    write()
    if data.script in _ENCODERS:
        write(comment=f"the texts are mostly {data.script}, and the bundled encoder is English: with network, or a")
        write(comment=f"downloaded folder, use `model: {_ENCODERS[data.script]}` instead")
    elif data.script not in ("latin", "other"):
        write(comment=f"the texts are mostly {data.script}, and the bundled encoder is English: use a multilingual")
        write(comment="encoder, for example `model: bert-base-multilingual-cased`")
    write("model: bundled", "or a hub id, or a folder")
    longer = "; 512 sees more and is slower" if data.max_length == 256 else ""
    lengths = f"median text {data.median_chars} characters, 90 % below {data.p90_chars}"
    write(f"max_length: {data.max_length}", f"tokens; {lengths}{longer}")
    write("training:")
    write("  epochs: 3")
    write("  learning_rate: 5.0e-5")
    write("  batch_size: 32")


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
