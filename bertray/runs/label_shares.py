"""`shares`: committed rows → shares of labels per group, corrected, with intervals.

Tasks read the columns that are needed of each part and add up; the driver holds one record a group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pyarrow as pa

from bertray import schema as s
from bertray.config import SharesConfig, identity_of, to_yaml
from bertray.errors import ConfigError, DataRefused, did_you_mean
from bertray.evaluation.intervals import Estimate
from bertray.execution.executor import Progress, Task
from bertray.execution.on_demand import Executors, executors_of
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import csv_bytes, holds_bytes, one_chunk, parquet_bytes
from bertray.outputs import ledger
from bertray.outputs.claims import claimed_output, finished_run, mark_finished
from bertray.outputs.committed_rows import part_keys, read_part, schema_of_part
from bertray.outputs.control_files import LedgerRun
from bertray.reports.html import created_now
from bertray.reports.shares import TIMES, GroupLine, SharesReport
from bertray.runs.answered_rows import Answer, UsableAnswers, read_usable
from bertray.runs.later_labels import in_words, of_several_rows, read_labels
from bertray.runs.trust_results import SharesResult
from bertray.trust.shares import Answers, GroupShares, GroupSums, Stratum, group_shares
from bertray.wording import counted

MAX_GROUPS = 1000
OTHERS = "(other groups)"
_DATE = re.compile(r"(\d{4}-\d{2}-\d{2})")
Group = tuple[str | None, ...]


@dataclass
class _Found:
    """Sums of one group, as tasks add them up.

    Args:
        covered, other: rows that could have been drawn for answers, and the others.
        source_CC: labelled rows by true and predicted class.
        answers: (true class, probabilities, number of the stratum) of each answer.
    """

    covered: GroupSums | None = None
    other: GroupSums | None = None
    source_CC: np.ndarray | None = None
    answers: list[tuple[int, list[float], int]] = field(default_factory=list)

    def add(self, more: _Found) -> None:
        for name in ("covered", "other"):
            mine, theirs = getattr(self, name), getattr(more, name)
            setattr(self, name, mine.plus(theirs) if mine and theirs else mine or theirs)
        if more.source_CC is not None:
            self.source_CC = more.source_CC if self.source_CC is None else self.source_CC + more.source_CC
        self.answers += more.answers

    @property
    def rows(self) -> int:
        return sum(sums.rows for sums in (self.covered, self.other) if sums)


@dataclass(frozen=True)
class _Part:
    """One part to read.

    Args:
        answers: by id, where its rows could have been drawn.
    """

    key: str
    slot: str
    answers: Mapping[str, Sequence[Answer]] | None


@dataclass(frozen=True)
class _AddUp:
    """A part to the sums of its groups."""

    output: str
    labels: tuple[str, ...]
    by: tuple[str, ...]
    truth: Mapping[str, str]
    with_ids: bool

    def __call__(self, part: _Part) -> dict[Group, _Found]:
        names = [*self.by, s.LABEL, *map(s.prob_column, self.labels), s.SCORED_AT]
        rows = read_part(open_store(self.output), part.key, [*names, *([s.ID] if self.with_ids else [])])
        probs_NC = np.column_stack([rows[s.prob_column(label)].to_numpy() for label in self.labels]).astype(float)
        place = {label: number for number, label in enumerate(self.labels)}
        said_N = np.array([place[label] for label in rows[s.LABEL].to_pylist()])
        groups = list(zip(*(self._values(rows, name, part.slot) for name in self.by), strict=True))
        groups = groups or [()] * rows.num_rows
        ids = rows[s.ID].to_pylist() if self.with_ids else []
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        which_N = np.array([numbers[group] for group in groups], np.int64)
        order_N = np.argsort(which_N, kind="stable")
        rows_of = np.split(order_N, np.cumsum(np.bincount(which_N, minlength=len(numbers)))[:-1])
        return {
            group: self._of_group(at, probs_NC, said_N, ids, place, part)
            for group, at in zip(numbers, rows_of, strict=False)
        }

    def _of_group(
        self,
        at: np.ndarray,
        probs_NC: np.ndarray,
        said_N: np.ndarray,
        ids: Sequence[str],
        place: Mapping[str, int],
        part: _Part,
    ) -> _Found:
        probs = probs_NC[at]
        num_classes = len(self.labels)
        counted_C = np.bincount(said_N[at], minlength=num_classes)
        sums = GroupSums(len(at), counted_C, probs.sum(axis=0), (probs * (1 - probs)).sum(axis=0))
        found = _Found(covered=sums) if part.answers is not None else _Found(other=sums)
        source_CC = np.zeros((num_classes, num_classes), np.int64)
        for row in at.tolist() if ids else ():
            label = self.truth.get(ids[row])
            if label is not None:
                source_CC[place[label], said_N[row]] += 1
            for answer in (part.answers or {}).get(ids[row], ()):
                found.answers.append((place[answer.label], probs_NC[row].tolist(), answer.stratum))
        found.source_CC = source_CC if source_CC.any() else None
        return found

    def _values(self, rows: pa.Table, name: str, slot: str) -> list[str | None]:
        if name in rows.column_names:
            values: list[str | None] = one_chunk(rows[name]).cast(pa.string()).to_pylist()
            return values
        if name == "slot":
            return [slot] * rows.num_rows
        day = _day_of(slot)
        days = [day] * rows.num_rows if day else [at.date() for at in rows[s.SCORED_AT].to_pylist()]
        return [_period(day, name) for day in days]


def _day_of(slot: str) -> date | None:
    """The date in the name of a slot; None where there is none, or none of a calendar (`dt=2026-02-30`)."""
    found = _DATE.search(slot)
    with suppress(ValueError):
        return date.fromisoformat(found[1]) if found else None
    return None


def _period(day: date, name: str) -> str:
    """`2026-11-30`, `2026-W49` or `2026-11`."""
    if name == "week":
        year, week, _ = day.isocalendar()
        return f"{year}-W{week:02d}"
    return day.isoformat() if name == "day" else f"{day:%Y-%m}"


def shares(config: SharesConfig, executors: Executors | None = None) -> SharesResult:
    """Shares of the labels of scored rows; the same run again gives back what it had found.

    Raises:
        ConfigError: nothing is committed, or there is no such column.
        DataRefused: slots of other classes, or answers that cannot be used.
    """
    scored, store = open_store(config.scored), open_store(config.output)
    runs = [run for run in ledger.current(ledger.committed_entries(scored, config.slot)) if run.rows_scored]
    labels = _check_runs(config, runs)
    _check_columns(config, scored, runs)
    answers = None if config.answers is None else read_usable(config.answers, list(labels))
    truth = read_labels(config, labels, config.labels)
    labelled = [list(truth.items()), answers]
    key = cache_key({"config": identity_of(config), "runs": [run.run_id for run in runs], "labels": str(labelled)})
    if finished_run(store, "shares", key):
        return SharesResult(store.root, already_done=True)
    with claimed_output(store, "shares", key, to_yaml(config)):
        notes: list[str] = []
        with executors_of(config.workers, executors, imports=("ray.data",)) as opened:
            truth = _without_ambiguous(scored, runs, truth, opened, notes)
            found = _add_up(config, scored, runs, labels, answers, truth, opened)
        found = _largest(found, len(config.by))
        numbers = [number for of_group in found.values() for _, _, number in of_group.answers]
        if answers is not None and not numbers:
            raise DataRefused(
                f"answers={config.answers}: none of {counted(answers.count, 'answer')} is of a row of {config.scored}.",
                "Give the answers to a queue of this output as it is now.",
            )
        place, strata = answers.answered(numbers) if answers is not None else ({}, ())
        lines = [
            line
            for group, of_group in sorted(found.items(), key=_order)
            for line in _lines(group, of_group, labels, place, strata)
        ]
        notes += _notes(config, answers, found, len(numbers))
        report = SharesReport(
            config.by, labels, lines, notes, runs=len(runs), config=to_yaml(config), created=created_now()
        )
        _write(store, report)
        mark_finished(store)
    return SharesResult(store.root, tuple(notes), lines=tuple(lines))


def _check_runs(config: SharesConfig, runs: Sequence[LedgerRun]) -> tuple[str, ...]:
    """Classes of the rows."""
    if not runs or any("pooling" in run.settings for run in runs):
        raise DataRefused(f"scored: {config.scored} holds no scored row.", "Give the output of a score run.")
    labels = tuple(runs[-1].labels)
    other = next((run for run in runs if set(run.labels) != set(labels)), None)
    if other is not None:
        raise DataRefused(
            f"scored: slot {other.slot} has the classes {', '.join(other.labels)}, slot {runs[-1].slot} "
            f"{', '.join(labels)}.",
            "Name one `slot`, or score the others again with one model (rescore=replace).",
        )
    return labels


def _check_columns(config: SharesConfig, scored: Store, runs: Sequence[LedgerRun]) -> None:
    for run in runs if set(config.by) - set(TIMES) else ():
        held = schema_of_part(scored, part_keys(run)[0])
        for name in config.by:
            if name not in held.names and name not in TIMES:
                raise ConfigError(
                    f"by: expected a column of the scored rows, found {name!r} in none of slot {run.slot}."
                    f"{did_you_mean(name, [*held.names, *TIMES])}",
                    f"Columns: {', '.join(held.names)}; or one of {', '.join(TIMES)}. Scoring keeps a column that "
                    "keep_columns names.",
                )
            kind = held.field(name).type if name in held.names else pa.null()
            if pa.types.is_nested(kind) or holds_bytes(kind):
                raise ConfigError(
                    f"by: expected a column of single values that are no bytes, found {name!r} of {kind}.",
                    "Group by another column.",
                )


@dataclass(frozen=True)
class _FindIds:
    """A part to its slot, and those of its ids that have a label."""

    output: str
    given: frozenset[str]

    def __call__(self, part: _Part) -> tuple[str, list[str]]:
        ids = read_part(open_store(self.output), part.key, [s.ID])[s.ID].to_pylist()
        return part.slot, [id_ for id_ in ids if id_ in self.given]


def _without_ambiguous(
    scored: Store, runs: Sequence[LedgerRun], truth: dict[str, str], executors: Executors, notes: list[str]
) -> dict[str, str]:
    """Labels of ids that a single row has."""
    if not truth:
        return truth
    parts = [_Part(key, run.slot, None) for run in runs for key in part_keys(run)]
    executor = executors.for_rows(sum(run.rows_scored for run in runs))
    task = Task(_FindIds(scored.root, frozenset(truth)))
    ambiguous = of_several_rows(executor.run(parts, [task], Progress("finding ids", "part", lambda part: part.key)))
    if ambiguous:
        notes.append(in_words(ambiguous))
    return {id_: label for id_, label in truth.items() if id_ not in ambiguous}


def _add_up(
    config: SharesConfig,
    scored: Store,
    runs: Sequence[LedgerRun],
    labels: tuple[str, ...],
    answers: UsableAnswers | None,
    truth: Mapping[str, str],
    executors: Executors,
) -> dict[Group, _Found]:
    parts = []
    for slot in dict.fromkeys(run.slot for run in runs):
        of_slot = [run for run in runs if run.slot == slot]
        rows_of = [run.rows_scored for run in of_slot]
        covered, by_id = answers.covering(slot, rows_of) if answers else (0, {})
        for run, rows in zip(of_slot, np.cumsum(rows_of).tolist(), strict=True):
            parts += [_Part(key, slot, by_id if rows <= covered else None) for key in part_keys(run)]
    task = _AddUp(scored.root, labels, config.by, truth, with_ids=answers is not None or bool(truth))
    found: dict[Group, _Found] = {}
    executor = executors.for_rows(sum(run.rows_scored for run in runs))
    for of_part in executor.run(parts, [Task(task)], Progress("adding up", "part", lambda part: part.key)):
        for group, more in of_part.items():
            found.setdefault(group, _Found()).add(more)
    return found


def _largest(found: Mapping[Group, _Found], num_columns: int) -> dict[Group, _Found]:
    """The largest groups, the others as one."""
    if len(found) <= MAX_GROUPS:
        return dict(found)
    others = (OTHERS,) * num_columns
    order = sorted(found.keys() - {others}, key=lambda group: (-found[group].rows, _name(group)))
    kept = {group: found[group] for group in order[: MAX_GROUPS - 1]}
    rest = _Found()
    for group in found.keys() - kept.keys():
        rest.add(found[group])
    return {**kept, others: rest}


def _order(item: tuple[Group, _Found]) -> tuple[bool, tuple[str, ...]]:
    return OTHERS in item[0], _name(item[0])


def _name(group: Group) -> tuple[str, ...]:
    return tuple(value or "" for value in group)


def _lines(
    group: Group, found: _Found, labels: Sequence[str], place: Mapping[int, int], strata: tuple[Stratum, ...]
) -> list[GroupLine]:
    shown = _estimates(found, place, strata)
    return [
        GroupLine(group, label, shown.rows, float(shown.counted_C[c]), shown.shares[c], shown.method, shown.labels)
        for c, label in enumerate(labels)
    ]


def _estimates(found: _Found, place: Mapping[int, int], strata: tuple[Stratum, ...]) -> GroupShares:
    """Shares of a group; where only some of its rows could have been drawn, those of either kind by their number.

    Args:
        place: number of a stratum -> its position in `strata`.
    """
    answers = None
    if found.answers:
        true, probs, number = zip(*found.answers, strict=True)
        answers = Answers(np.array(true), np.array(probs), np.array([place[one] for one in number]), strata)
    if found.covered is None or found.other is None:
        sums = found.covered or found.other
        assert sums is not None
        return group_shares(sums, found.source_CC, answers)
    one = group_shares(found.covered, found.source_CC, answers)
    two = group_shares(found.other, found.source_CC, None)
    first = one.rows / found.rows
    mixed = tuple(
        Estimate(*(first * getattr(a, end) + (1 - first) * getattr(b, end) for end in ("value", "low", "high")))
        for a, b in zip(one.shares, two.shares, strict=True)
    )
    counted_C = first * one.counted_C + (1 - first) * two.counted_C
    return GroupShares(found.rows, counted_C, mixed, one.method, one.labels)


def _notes(
    config: SharesConfig, answers: UsableAnswers | None, found: Mapping[Group, _Found], num_used: int
) -> list[str]:
    notes = []
    if answers is not None and num_used < answers.count:
        notes.append(
            f"{counted(answers.count - num_used, 'answer')} left out: of rows that their slot does not hold any more, "
            "of slots that were not asked for, or to a queue of another number of rows than the runs of its slot have."
        )
    if answers is not None and answers.left_out:
        notes.append(
            f"{counted(answers.left_out, 'answer')} without a probability of being drawn left out: rows chosen for "
            "being uncertain tell nothing of the others."
        )
    if any(OTHERS in group for group in found):
        notes.append(f"More than {MAX_GROUPS:,} groups: the smallest are one, {OTHERS}.")
    if config.by and answers is None:
        notes.append(
            "Mean probabilities hold where the model errs alike in each group, which nobody has checked: the intervals "
            "have a stated minimum. Answers to a queue of this output, or labels of 300 rows of a group, check it."
        )
    return notes


def _write(store: Store, report: SharesReport) -> None:
    """Tables first, the page last."""
    table = shares_table(report)
    store.put("shares.parquet", parquet_bytes(table))
    store.put("shares.csv", csv_bytes(table))
    store.put("report.html", report.to_html().encode())


def shares_table(report: SharesReport) -> pa.Table:
    """`shares.parquet`: a row for each group and label."""
    columns = {
        name: pa.array([line.group[at] for line in report.lines], pa.string()) for at, name in enumerate(report.by)
    }
    columns |= {
        s.LABEL: pa.array([line.label for line in report.lines], pa.string()),
        "rows": pa.array([line.rows for line in report.lines], pa.int64()),
        "counted": pa.array([line.counted for line in report.lines], pa.float64()),
        "share": pa.array([line.share.value for line in report.lines], pa.float64()),
        "low": pa.array([line.share.low for line in report.lines], pa.float64()),
        "high": pa.array([line.share.high for line in report.lines], pa.float64()),
        "method": pa.array([line.method for line in report.lines], pa.string()),
        "labelled_rows": pa.array([line.labels for line in report.lines], pa.int64()),
    }
    return pa.table(columns)
