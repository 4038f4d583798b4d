"""Answers to a queue of disagreements: the file that a person filled in → given labels of the reviews."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.errors import ConfigError, DataRefused
from bertray.evaluation.answered import AnsweredDisagreements
from bertray.io.store import open_store
from bertray.io.tables import unguarded
from bertray.reviews.corpus import Inputs
from bertray.reviews.labels import LabelMap, canonical
from bertray.runs.release.pair import Pair
from bertray.wording import counted

WANTED = (s.INPUT_PATH, s.ROW_NO, s.LABEL)
DELIMITERS = ",;\t"
REMEDY = "Fill in the column `label` of queue.csv or queue.parquet, and leave the other columns as they were written."
Answers = dict[tuple[str, int], str]
"""(input path, row number) -> label as it was typed."""


def read_answers(path: str) -> Answers:
    """Labels that were filled in.

    Raises:
        ConfigError: no such file.
        DataRefused: it is no queue, or no label was filled in.
    """
    folder, name = posixpath.split(path)
    try:
        content = open_store(folder or ".").get(name)
    except FileNotFoundError as error:
        raise ConfigError(f"answers={path}: no such file.", "Give the queue.csv that was filled in.") from error
    try:
        rows = _parquet_rows(content) if content[:4] == b"PAR1" else _csv_rows(content)
    except (UnicodeDecodeError, csv.Error, pa.ArrowInvalid, ValueError) as error:
        raise DataRefused(f"answers={path}: cannot be read as a queue ({error}).", REMEDY) from error
    found = {(row[0], int(row[1])): row[2] for row in rows if row[2]}
    if not found:
        raise DataRefused(f"answers={path}: expected labels, found {counted(len(rows), 'row')} without one.", REMEDY)
    return found


def _parquet_rows(content: bytes) -> list[tuple[str, str, str]]:
    table = pq.read_table(io.BytesIO(content))
    _check_columns(table.column_names)
    labels = canonical(table[s.LABEL].combine_chunks()).to_pylist()
    return [
        (path, str(number), label or "")
        for path, number, label in zip(
            table[s.INPUT_PATH].to_pylist(), table[s.ROW_NO].to_pylist(), labels, strict=True
        )
    ]


def _csv_rows(content: bytes) -> list[tuple[str, str, str]]:
    """Rows of a CSV, which a spreadsheet may have saved with another delimiter, without the guard against formulas."""
    text = content.decode("utf-8-sig")
    header = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    _check_columns(reader.fieldnames or [])
    rows = list(reader)
    return [
        (unguarded(row[s.INPUT_PATH] or ""), row[s.ROW_NO] or "", unguarded((row[s.LABEL] or "").strip()))
        for row in rows
    ]


def _check_columns(found: Sequence[str]) -> None:
    missing = [name for name in WANTED if name not in found]
    if missing:
        raise ValueError(f"the column {missing[0]} is missing")


def with_answers(pair: Pair, answers: Answers, labels: LabelMap, inputs: Inputs) -> tuple[Pair, AnsweredDisagreements]:
    """The pair with the answers as given labels, and what they say of all its reviews.

    Args:
        labels: values that may be typed, to the classes of A.

    Raises:
        DataRefused: a label that is no class, or an answer to a review on which these two models agree, or to none.
    """
    typed = list(dict.fromkeys(answers.values()))
    ids = dict(zip(typed, labels.ids(pa.array(typed, pa.string())).tolist(), strict=True))
    unknown = sorted(value for value, label_id in ids.items() if label_id == -1)
    if unknown:
        raise DataRefused(
            f"answers: expected labels of {', '.join(pair.labels)}, found {', '.join(map(repr, unknown[:5]))}.",
            "Correct them in the file, or map them by `labels`.",
        )
    to_class = [pair.labels.index(name) for name in labels.names]
    path_of = paths_by_number(inputs)
    assert pair.place_N2 is not None
    row_of = {(path_of[int(file_no)], int(row_no)): n for n, (file_no, row_no) in enumerate(pair.place_N2.tolist())}
    differs_N = pair.probs_a_NC.argmax(axis=1) != pair.probs_b_NC.argmax(axis=1)
    placed = {row_of[place]: ids[label] for place, label in answers.items() if place in row_of}
    strangers = len(answers) - sum(bool(differs_N[row]) for row in placed)
    if strangers:
        raise DataRefused(
            f"answers: expected reviews of this input on which A and B differ, found {counted(strangers, 'other')}.",
            "Give the same `a`, `b` and `input` as when the queue was written.",
        )
    label_ids_N = np.full(pair.num_rows, -3, np.int32)
    for row, label_id in placed.items():
        label_ids_N[row] = to_class[label_id] if label_id >= 0 else label_id
    answered = np.flatnonzero(label_ids_N >= 0)
    if not len(answered):
        raise DataRefused("answers: every label is one that `labels` leaves out.", "Answer with classes of the models.")
    right_a = pair.probs_a_NC[answered].argmax(axis=1) == label_ids_N[answered]
    right_b = pair.probs_b_NC[answered].argmax(axis=1) == label_ids_N[answered]
    found = AnsweredDisagreements(
        rows=pair.num_rows,
        disagreements=int(differs_N.sum()),
        only_a=int(right_a.sum()),
        only_b=int(right_b.sum()),
        neither=int((~right_a & ~right_b).sum()),
    )
    return replace(pair, label_ids_N=label_ids_N), found


def paths_by_number(inputs: Inputs) -> Mapping[int, str]:
    """Path of each file by its number."""
    return dict(zip(inputs.file_nos or range(len(inputs.files)), (file.path for file in inputs.files), strict=True))
