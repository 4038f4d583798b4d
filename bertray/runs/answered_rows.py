"""Answers of people as other commands read them: from `answers.parquet`, or a file with the same columns."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from bertray import schema as s
from bertray.errors import ConfigError, DataRefused
from bertray.io.store import OBJECT_STORE_SCHEMES, open_store
from bertray.paths import is_uri, local_path
from bertray.reports.plain import short
from bertray.runs.filled_queues import UNREADABLE, rows_as_text
from bertray.trust.shares import Stratum
from bertray.wording import counted

ANSWERS, ANSWERS_CSV = "answers.parquet", "answers.csv"
NEEDED = (s.ID, s.LABEL, s.SLOT, s.QUEUE, s.PROBABILITY, s.DRAWN, s.DRAWN_FROM)


class Answer(NamedTuple):
    """One answer whose chance of being asked for is known.

    Args:
        stratum: rows of one queue that were drawn with one probability.
    """

    label: str
    stratum: int


class DrawnStratum(NamedTuple):
    """Rows of a queue that were drawn with one probability, answered or not."""

    queue: str
    probability: float
    drawn: int


class AskedQueue(NamedTuple):
    """A queue with answers.

    Args:
        rows: of the slot when it was drawn.
    """

    slot: str
    rows: int


@dataclass(frozen=True)
class UsableAnswers:
    """Answers that estimates may rest on.

    Args:
        by_slot: slot -> id -> answers, of each queue one.
        strata: by number.
        queues: by their key.
        left_out: answers without a probability, such as those of the uncertain half of a queue.
    """

    by_slot: Mapping[str, Mapping[str, Sequence[Answer]]]
    strata: Sequence[DrawnStratum]
    queues: Mapping[str, AskedQueue]
    left_out: int

    @property
    def count(self) -> int:
        return sum(len(found) for of_slot in self.by_slot.values() for found in of_slot.values())

    def covering(self, slot: str, rows_of_runs: Sequence[int]) -> tuple[int, dict[str, Sequence[Answer]]]:
        """Rows of the first runs of a slot that could be drawn from, and the answers to queues of so many; 0: none.

        A run that was committed after a queue was drawn is not among what it tells of. Of queues of several sizes, the
        largest that the slot still has counts.

        Args:
            rows_of_runs: scored rows of the current runs of the slot.
        """
        totals = set(accumulate(rows_of_runs))
        usable = [asked.rows for asked in self.queues.values() if asked.slot == slot and asked.rows in totals]
        if not usable:
            return 0, {}
        kept = {key for key, asked in self.queues.items() if (asked.slot, asked.rows) == (slot, max(usable))}
        found: dict[str, Sequence[Answer]] = {
            id_: of_kept
            for id_, answers in self.by_slot.get(slot, {}).items()
            if (of_kept := [answer for answer in answers if self.strata[answer.stratum].queue in kept])
        }
        return max(usable), found

    def answered(self, stratum_of_answers: Sequence[int]) -> tuple[dict[int, int], tuple[Stratum, ...]]:
        """Strata as estimates take them: position of each by its number, and their rows and answers.

        A stratum of a queue without an answer is spread over the others of the queue.

        Args:
            stratum_of_answers: number of the stratum of each answer to a row that was found.
        """
        counts: dict[int, int] = {}
        for number in stratum_of_answers:
            counts[number] = counts.get(number, 0) + 1
        keys = {key: number for number, key in enumerate(self.queues)}
        rows_of = {number: self.strata[number].drawn / self.strata[number].probability for number in counts}
        seen: dict[str, float] = {}
        for number, rows in rows_of.items():
            queue = self.strata[number].queue
            seen[queue] = seen.get(queue, 0.0) + rows
        slots = {slot: number for number, slot in enumerate(self.by_slot)}
        found = [
            Stratum(
                slots[self.queues[self.strata[number].queue].slot],
                keys[self.strata[number].queue],
                rows_of[number] * self.queues[self.strata[number].queue].rows / seen[self.strata[number].queue],
                count,
            )
            for number, count in counts.items()
        ]
        return {number: at for at, number in enumerate(counts)}, tuple(found)


def is_answers(path: str) -> bool:
    """Whether a path is an output of `bertray answers`, or the table of answers in it."""
    name = posixpath.basename(path.rstrip("/"))
    if name in (ANSWERS, ANSWERS_CSV):
        return set(NEEDED) <= {column for row in _rows_at(path)[:1] for column in row}
    if not is_uri(path):
        return (local_path(path) / ANSWERS).is_file()
    return path.partition("://")[0].lower() in OBJECT_STORE_SCHEMES and open_store(path).exists(ANSWERS)


def read_usable(path: str, labels: Sequence[str]) -> UsableAnswers:
    """Answers with known probabilities.

    Args:
        path: output of `bertray answers`, or a Parquet or CSV file like its `answers.parquet`.
        labels: of the scored rows.

    Raises:
        ConfigError: no such file.
        DataRefused: a column is missing, a label is none of these, a number is none, or no answer has a probability.
    """
    rows = _read(path)
    unknown = sorted({row[s.LABEL] for row in rows if row[s.LABEL]} - set(labels))
    if unknown:
        raise DataRefused(
            f"answers={path}: expected labels of {', '.join(labels)}, found {', '.join(map(short, unknown[:5]))}.",
            "Answer with classes of the model.",
        )
    answered = [row for row in rows if row[s.LABEL]]
    drawn = [(row, _drawn(path, row)) for row in answered if row[s.PROBABILITY]]
    if not drawn:
        raise DataRefused(
            f"answers={path}: none of {counted(len(answered), 'answer')} has a probability of being drawn; shares from "
            "rows chosen for being uncertain are off by tens of points.",
            "Answer the rows of a queue whose `why` is random, too.",
        )
    numbers: dict[DrawnStratum, int] = {}
    queues: dict[str, AskedQueue] = {}
    by_slot: dict[str, dict[str, dict[str, Answer]]] = {}
    for row, (stratum, asked) in drawn:
        number = numbers.setdefault(stratum, len(numbers))
        queues.setdefault(stratum.queue, asked)
        answers = by_slot.setdefault(asked.slot, {}).setdefault(row[s.ID], {})
        answers[stratum.queue] = Answer(row[s.LABEL], number)
    found = {slot: {id_: tuple(of.values()) for id_, of in ids.items()} for slot, ids in by_slot.items()}
    return UsableAnswers(found, tuple(numbers), queues, len(answered) - len(drawn))


def _drawn(path: str, row: Mapping[str, str]) -> tuple[DrawnStratum, AskedQueue]:
    """Stratum and queue of an answer.

    Raises:
        DataRefused: its numbers are none that a draw can have.
    """
    try:
        probability, drawn, rows = float(row[s.PROBABILITY]), int(row[s.DRAWN]), int(row[s.DRAWN_FROM])
    except ValueError:
        probability, drawn, rows = 0.0, 0, 0
    if not (0 < probability <= 1 and 0 < drawn <= rows):
        given = ", ".join(f"{name}={short(row[name])}" for name in (s.PROBABILITY, s.DRAWN, s.DRAWN_FROM))
        raise DataRefused(
            f"answers={path}: {short(row[s.ID])}: expected a probability above 0 and at most 1, of rows of a slot, "
            f"found {given}.",
            "Give an output of `bertray answers` as it was written.",
        )
    return DrawnStratum(row[s.QUEUE], probability, drawn), AskedQueue(row[s.SLOT], rows)


def _read(path: str) -> list[dict[str, str]]:
    """Rows with the needed columns as text; empty: null."""
    rows = _rows_at(path)
    missing = [name for name in NEEDED if rows and name not in rows[0]]
    if missing or not rows:
        raise DataRefused(
            f"answers={path}: expected the columns {', '.join(NEEDED)}; missing {', '.join(missing) or 'all rows'}.",
            "Give an output of `bertray answers`: only rows drawn with a known probability tell of the others.",
        )
    return rows


def _rows_at(path: str) -> list[dict[str, str]]:
    folder, name = posixpath.split(path.rstrip("/"))
    is_file = name.endswith((".parquet", ".csv"))
    store, key = (open_store(folder or "."), name) if is_file else (open_store(path), ANSWERS)
    try:
        content = store.get(key)
    except FileNotFoundError as error:
        raise ConfigError(f"answers={path}: no such file ({key}).", "Give an output of `bertray answers`.") from error
    try:
        return rows_as_text(content)
    except UNREADABLE as error:
        raise DataRefused(f"answers={path}: cannot be read ({error}).", "Give Parquet or CSV in UTF-8.") from error
