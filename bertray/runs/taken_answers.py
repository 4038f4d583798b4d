"""`answers`: filled-in queues back → one label a review, versioned, with agreement and conflicts."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.config import AnswersConfig, to_yaml
from bertray.errors import ConfigError, DataRefused
from bertray.io.store import Store, open_store
from bertray.io.tables import csv_bytes, parquet_bytes
from bertray.outputs.claims import claim_output
from bertray.outputs.control_files import Record
from bertray.outputs.decisions import append_record, now, read_records, user
from bertray.reports.plain import short
from bertray.reviews.labels import LabelMap
from bertray.runs.answered_rows import ANSWERS, ANSWERS_CSV
from bertray.runs.filled_queues import QUEUE_PARQUET, UNREADABLE, filled_in, rows_as_text
from bertray.runs.review_queue import LABELS_KEY, ROWS_KEY, texts_of
from bertray.runs.trust_results import AnswersResult
from bertray.wording import counted, percent

TAKEN = "control/answers"
NEVER_ASKED = "never asked"
SET_ASIDE = "set_aside.parquet"
COLUMNS = pa.schema(
    [
        (s.ID, pa.string()),
        (s.INPUT_PATH, pa.string()),
        (s.TEXT, pa.string()),
        (s.TEXT_PAIR, pa.string()),
        (s.LABEL, pa.string()),
        (s.WHO, pa.string()),
        (s.ANSWERED_AT, pa.string()),
        (s.QUEUE, pa.string()),
        (s.PROBABILITY, pa.float64()),
        (s.SLOT, pa.string()),
        (s.PREDICTION, pa.string()),
        (s.DRAWN, pa.int64()),
        (s.DRAWN_FROM, pa.int64()),
    ]
)


class Taken(Record):
    """One taking of answers: every single answer, in the order of the files.

    Args:
        digests: of the content of the files.
        rows: `id`, `label`, `who`, `queue`, and the fields of the queue.
        set_aside: answers that do not count, each with `id`, `label`, `who`, `why`.
    """

    at: str
    by: str
    digests: list[str]
    rows: list[dict[str, Any]]
    set_aside: list[dict[str, Any]]


@dataclass(frozen=True)
class _Queue:
    """A queue that was written.

    Args:
        by_id, by_place: its rows by their id, and by the input file and row number as text.
        copies: its rows with one text, by text and second text.
        key: its digest.
        labels: classes of the model.
    """

    by_id: Mapping[str, Mapping[str, Any]]
    by_place: Mapping[tuple[str, str], Mapping[str, Any]]
    copies: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
    key: str
    labels: tuple[str, ...]

    def asked(self, row: Mapping[str, str]) -> Mapping[str, Any] | None:
        """The row of the queue that a filled-in one answers.

        Spreadsheets make 12 of the id 00012, and round long numbers; the place in the input stays.
        """
        place = (row.get(s.INPUT_PATH, ""), row.get(s.ROW_NO, ""))
        return self.by_place.get(place) or self.by_id.get(row[s.ID])


def take_answers(config: AnswersConfig) -> AnswersResult:
    """Take filled-in files back; files that were taken before, and whose answers still stand, change nothing.

    Raises:
        ConfigError: no such file or queue.
        DataRefused: files of another queue, or without a usable answer.
    """
    store, queue = open_store(config.output), _read_queue(config.queue)
    contents = filled_in(config.answers)
    claim_output(store, "answers", "answers", to_yaml(config))
    before = read_records(store, TAKEN, Taken)
    taken = _taken(config, queue, contents, before)
    if taken is not None:
        append_record(store, TAKEN, taken)
        before = [*before, taken]
    return _write(store, before, num_new=len(taken.rows) if taken is not None else 0)


def _read_queue(path: str) -> _Queue:
    try:
        table = pq.read_table(io.BytesIO(open_store(path).get(QUEUE_PARQUET)))
    except FileNotFoundError as error:
        raise ConfigError(
            f"queue={path}: no {QUEUE_PARQUET} there.", "Give the `output` of `bertray queue`."
        ) from error
    metadata = table.schema.metadata or {}
    if not {LABELS_KEY, ROWS_KEY} <= metadata.keys():
        raise ConfigError(f"queue={path}: not a queue of `bertray queue`.", "Give its `output`.")
    rows = table.to_pylist()
    drawn = Counter(row[s.PROBABILITY] for row in rows if row[s.PROBABILITY] is not None)
    drawn_from = int(metadata[ROWS_KEY])
    copies: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row, texts in zip(rows, texts_of(table), strict=True):
        copies.setdefault(texts, []).append(row)
        if row[s.PROBABILITY] is not None:
            row |= {s.DRAWN: drawn[row[s.PROBABILITY]], s.DRAWN_FROM: drawn_from}
    return _Queue(
        by_id={row[s.ID]: row for row in rows},
        by_place={(row[s.INPUT_PATH], str(row[s.ROW_NO])): row for row in rows},
        copies=copies,
        key=rows[0][s.QUEUE],
        labels=tuple(metadata[LABELS_KEY].decode().split("\n")),
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _rows_of(path: str, content: bytes) -> list[dict[str, str]]:
    """Rows of a file as text."""
    remedy = (
        "Fill in the column `label` of queue.csv or queue.parquet, leave the other columns as they are, and save CSV "
        "as UTF-8."
    )
    try:
        rows = rows_as_text(content)
    except UNREADABLE as error:
        raise DataRefused(f"answers={path}: cannot be read as a queue ({error}).", remedy) from error
    missing = [name for name in (s.ID, s.LABEL, s.QUEUE) if rows and name not in rows[0]]
    if missing or not rows:
        raise DataRefused(
            f"answers={path}: expected a filled-in queue, found no {', '.join(missing) or 'row'}.", remedy
        )
    return rows


def _taken(
    config: AnswersConfig, queue: _Queue, contents: Mapping[str, bytes], before: Sequence[Taken]
) -> Taken | None:
    """Answers that files add to those so far; None where they add nothing.

    Of a file that was taken before, only answers count that the same person has given otherwise since.
    """
    labels = (
        LabelMap.from_config(config.labels) if config.labels else LabelMap(queue.labels, {x: x for x in queue.labels})
    )
    known = {digest for taken in before for digest in taken.digests}
    found: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}  # by digest: answers, and those set aside
    for path, content in contents.items():
        filled = [row for row in _rows_of(path, content) if row[s.LABEL].strip()]
        strangers = {row[s.QUEUE] for row in filled} - {queue.key}
        if not strangers:
            found[_digest(content)] = _sorted_out(config, queue, labels, filled)
        elif _digest(content) not in known:
            raise DataRefused(
                f"answers={path}: of another queue ({', '.join(map(short, sorted(strangers)))}) than {config.queue} "
                f"({queue.key}).",
                "Give the `queue` that this file was made from.",
            )
    stands = {_word(row): row[s.LABEL] for taken in before for row in taken.rows}
    last = {_word(row): row[s.LABEL] for answers, _ in found.values() for row in answers}
    changed = {word for word, label in last.items() if stands.get(word, label) != label}
    rows: list[dict[str, Any]] = []
    aside: list[dict[str, Any]] = []
    digests = []
    for digest, (answers, set_aside) in found.items():
        if digest in known:
            answers = [row for row in answers if _word(row) in changed and row[s.LABEL] == last[_word(row)]]
            set_aside = []
        if answers or digest not in known:
            digests.append(digest)
        rows += answers
        aside += set_aside
    if not digests:
        return None
    if not rows:
        what = f"{counted(len(aside), 'answer')} set aside ({aside[0][s.WHY]})" if aside else "none"
        raise DataRefused(
            f"answers: expected labels of {', '.join(queue.labels)}, found {what}.",
            "A spreadsheet takes zeros and digits of ids away: import the column `id` as text, keep the columns "
            "`input_path` and `row_no`, or fill in queue.parquet."
            if {row[s.WHY] for row in aside} == {NEVER_ASKED}
            else "Fill in the column `label`, or map the values by `labels`.",
        )
    return Taken(at=now(), by=user(), digests=digests, rows=rows, set_aside=aside)


def _sorted_out(
    config: AnswersConfig, queue: _Queue, labels: LabelMap, filled: Sequence[Mapping[str, str]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Answers that count, with the fields of the queue, and those that do not, with the reason.

    An answer counts for every row of the queue with the same text, which the person has not answered otherwise.
    """
    rows: list[dict[str, Any]] = []
    of_copies: dict[tuple[str, str], dict[str, Any]] = {}
    aside: list[dict[str, Any]] = []
    ids = labels.ids(pa.array([row[s.LABEL].strip() for row in filled], pa.string())).tolist()
    for row, label_id in zip(filled, ids, strict=True):
        who = row.get(s.WHO, "").strip() or config.who or user().partition("@")[0]
        asked, label = queue.asked(row), labels.names[label_id] if label_id >= 0 else None
        why = NEVER_ASKED if asked is None else "left out by labels" if label_id == -2 else ""
        why = why or ("" if label in queue.labels else f"no class of the model: {short(row[s.LABEL], 40)}")
        if why:
            aside.append({s.ID: row[s.ID], s.LABEL: short(row[s.LABEL], 40), s.WHO: who, s.WHY: why})
            continue
        assert asked is not None
        answer = {s.LABEL: label, s.WHO: who, s.ANSWERED_AT: now()}
        rows.append(_fields(asked) | answer)
        for copy in queue.copies[asked[s.TEXT] or "", asked.get(s.TEXT_PAIR) or ""]:
            of_copies[copy[s.ID], who] = _fields(copy) | answer
    answered = {(row[s.ID], row[s.WHO]) for row in rows}
    return [*rows, *(row for word, row in of_copies.items() if word not in answered)], aside


def _fields(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a row of a queue that its answer keeps."""
    return {name: asked[name] for name in COLUMNS.names if name in asked}


def _word(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """The review of a queue, and the person who answers it."""
    return row[s.QUEUE], row[s.ID], row[s.WHO]


def _write(store: Store, taken: Sequence[Taken], num_new: int) -> AnswersResult:
    """Tables of all answers so far: what counts, and what was set aside; older versions stay."""
    resolved, conflicts, agreement = _resolved([row for one in taken for row in one.rows])
    aside = [row for one in taken for row in one.set_aside] + conflicts
    table = pa.Table.from_pylist(resolved, schema=COLUMNS)
    if table[s.TEXT_PAIR].null_count == table.num_rows:
        table = table.drop_columns([s.TEXT_PAIR])
    content = parquet_bytes(table)
    store.put(f"versions/{len(taken):04d}/{ANSWERS}", content)
    aside_schema = pa.schema([(name, pa.string()) for name in (s.ID, s.LABEL, s.WHO, s.WHY)])
    store.put(SET_ASIDE, parquet_bytes(pa.Table.from_pylist(aside, schema=aside_schema)))
    store.put(ANSWERS_CSV, csv_bytes(table, exact=True))
    store.put(ANSWERS, content)
    right = sum(row[s.LABEL] == row[s.PREDICTION] for row in resolved)
    notes = [f"The model's label is that of people in {counted(right, 'review')} of {len(resolved):,}."]
    if agreement[1]:
        notes.append(
            f"Two people agree in {percent(agreement[0] / agreement[1])} of {agreement[1]:,} pairs of answers."
        )
    if aside:
        reasons = Counter(row[s.WHY].partition(":")[0] for row in aside)
        told = ", ".join(f"{count} {why}" for why, count in sorted(reasons.items()))
        notes.append(f"Set aside ({SET_ASIDE}): {told}.")
    return AnswersResult(store.root, tuple(notes), num_answers=len(resolved), num_new=num_new, version=len(taken))


def _resolved(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], tuple[int, int]]:
    """One row a review, those that people do not agree on, and (pairs of people that agree, all pairs)."""
    by_review: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    conflicts: list[dict[str, Any]] = []
    for row in rows:
        of_people = by_review.setdefault((row[s.QUEUE], row[s.ID]), {})
        earlier = of_people.get(row[s.WHO])
        if earlier is not None and earlier[s.LABEL] != row[s.LABEL]:
            conflicts.append(_aside(earlier, "answered again by the same person"))
        of_people[row[s.WHO]] = row  # the last word of a person counts
    resolved, agree, pairs = [], 0, 0
    for of_people in by_review.values():
        answers = list(of_people.values())
        votes = Counter(row[s.LABEL] for row in answers)
        pairs += len(answers) * (len(answers) - 1) // 2
        agree += sum(count * (count - 1) // 2 for count in votes.values())
        (label, most), *others = votes.most_common()
        if others and others[0][1] == most:
            conflicts += [_aside(row, "people disagree") for row in answers]
            continue
        conflicts += [_aside(row, "outvoted") for row in answers if row[s.LABEL] != label]
        who = ", ".join(sorted(of_people))
        resolved.append({**answers[-1], s.LABEL: label, s.WHO: who})
    return resolved, conflicts, (agree, pairs)


def _aside(row: Mapping[str, Any], why: str) -> dict[str, Any]:
    return {s.ID: row[s.ID], s.LABEL: row[s.LABEL], s.WHO: row[s.WHO], s.WHY: why}
