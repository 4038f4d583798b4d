"""Answers to a queue of disagreements: the file that a person filled in → given labels of the reviews."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa

from bertray import schema as s
from bertray.errors import DataRefused
from bertray.evaluation.answered import AnsweredDisagreements
from bertray.reviews.corpus import Inputs
from bertray.reviews.labels import LabelMap
from bertray.runs.filled_queues import UNREADABLE, filled_in, rows_as_text
from bertray.runs.release.pair import Pair
from bertray.wording import counted

WANTED = (s.INPUT_PATH, s.ROW_NO, s.LABEL)
REMEDY = "Fill in the column `label` of queue.csv or queue.parquet, and leave the other columns as they were written."
Answers = dict[tuple[str, int], str]
"""(input path, row number) -> label as it was typed."""


def read_answers(path: str) -> Answers:
    """Labels that were filled in.

    Raises:
        ConfigError: no such file.
        DataRefused: it is no queue, or no label was filled in.
    """
    rows = [row for file, content in filled_in([path]).items() for row in _rows_of(file, content)]
    try:
        found = {(row[s.INPUT_PATH], int(row[s.ROW_NO])): row[s.LABEL].strip() for row in rows if row[s.LABEL].strip()}
    except ValueError as error:
        raise DataRefused(f"answers={path}: cannot be read as a queue ({error}).", REMEDY) from error
    if not found:
        raise DataRefused(f"answers={path}: expected labels, found {counted(len(rows), 'row')} without one.", REMEDY)
    return found


def _rows_of(path: str, content: bytes) -> list[dict[str, str]]:
    try:
        rows = rows_as_text(content)
    except UNREADABLE as error:
        raise DataRefused(f"answers={path}: cannot be read as a queue ({error}).", REMEDY) from error
    missing = [name for name in WANTED if rows and name not in rows[0]]
    if missing:
        raise DataRefused(f"answers={path}: cannot be read as a queue (the column {missing[0]} is missing).", REMEDY)
    return rows


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
