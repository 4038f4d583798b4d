"""Quality of nights: estimates without labels, and labels that come with a night or later."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertray import schema as s
from bertray.config import ScoreConfig
from bertray.errors import ConfigError, DataRefused, InfrastructureError
from bertray.evaluation.intervals import Estimate, Z, wilson_estimate
from bertray.evaluation.metrics import confusion_matrix
from bertray.evaluation.summary import Evaluation
from bertray.io.store import Store
from bertray.model.bundle import BundleInfo, read_info, resolve_model
from bertray.outputs import ledger
from bertray.outputs.committed_rows import read_rows
from bertray.outputs.control_files import LedgerRun
from bertray.outputs.decisions import TRUTH, Truth, append_record, fullest, now, read_records
from bertray.reports.plain import json_bytes
from bertray.reports.quality import END_MEASURED, MEASURED, LabelledNight, in_percent
from bertray.runs.answered_rows import Answer, is_answers, read_usable
from bertray.runs.later_labels import in_words, of_several_rows, read_labels
from bertray.runs.nights_overview import write_index
from bertray.trust.quality import (
    MIN_LABELLED_ROWS,
    Figure,
    NightEstimate,
    PastError,
    estimate_night,
    macro_f1_of,
)
from bertray.trust.shares import MIN_ANSWERS, Answers, accuracy_by_answers
from bertray.wording import counted

log = logging.getLogger(__name__)

MOST_SEEN = 0.5  # share of labelled rows that the model knows, from which a night tells nothing of its estimates
MAX_PARTS = 50  # of a night whose probabilities are read, evenly spread: some 200,000 rows


def estimate_of(store: Store, run: LedgerRun, info: BundleInfo) -> NightEstimate | None:
    """Estimates of a night; None of a model whose calibration rows are not known, or of another one."""
    given = info.profile.given if info.profile is not None else {}
    if run.model_version != info.model_version or not given or not run.rows_scored:
        return None
    rows = read_rows(store, run, [s.prob_column(label) for label in run.labels], max_parts=MAX_PARTS)
    probs_NC = np.column_stack([rows[s.prob_column(label)].to_numpy() for label in run.labels])
    return estimate_night(probs_NC, [given.get(label, 0.0) for label in run.labels])


def past_errors(truths: Sequence[Truth], model_version: str, before: str) -> list[PastError]:
    """Labelled nights of a model, each by the record with most rows; without the run `before`, and without answers."""
    return [
        PastError(
            rows=truth.rows,
            accuracy=truth.accuracy,
            macro_f1=float(macro_f1_of(np.array(truth.confusion, np.float64))),
            estimate=estimate_from_json(truth.estimate),
        )
        for truth in fullest([truth for truth in truths if truth.measured is None])
        if truth.estimate and truth.model_version == model_version and truth.run_id != before
    ]


def labelled_nights(truths: Sequence[Truth], titles: Mapping[str, str]) -> list[LabelledNight]:
    """Labelled nights for a page; `titles` are those of the runs by their id."""
    return [
        LabelledNight(titles.get(truth.run_id, "a replaced run"), truth.rows, truth.accuracy, _held(truth))
        for truth in fullest(truths)
    ]


def _held(truth: Truth) -> bool | None:
    """Whether the shown interval held the accuracy of the labelled rows, which are some of the night's.

    The half of the interval on that side grows by the error of the labels; None where there was no interval, or too
    few labels to tell.
    """
    if truth.shown is None or not truth.estimate or (truth.measured is None and truth.rows < MIN_LABELLED_ROWS):
        return None
    value, accuracy = truth.estimate["accuracy"][0], truth.accuracy
    half = abs(truth.shown[int(accuracy > value)] - value)
    if truth.measured is not None:
        error = (truth.measured[2] - truth.measured[1]) / 2
    else:
        unlabelled = max(1 - truth.rows / max(truth.estimate["rows"], truth.rows), 0.0)
        error = Z * math.sqrt(accuracy * (1 - accuracy) / truth.rows * unlabelled)
    return bool(abs(accuracy - value) <= math.hypot(half, error))


def estimate_from_json(content: Mapping[str, Any]) -> NightEstimate:
    """`NightEstimate` as `asdict` and JSON leave it."""
    figures = {name: Figure(*value) for name, value in content.items() if name not in ("rows", "shares")}
    return NightEstimate(rows=content["rows"], shares=tuple(content["shares"]), **figures)


def record_labels_of_night(
    store: Store,
    run: LedgerRun,
    evaluation: Evaluation,
    estimate: NightEstimate,
    shown: tuple[float, float] | None,
    truths: Sequence[Truth],
) -> None:
    """Keep what the labels of a night's own input say, once.

    A night whose rows the model was trained or calibrated on does not count: there its estimates are right by design.
    """
    if evaluation.leakage is not None and evaluation.leakage.share >= MOST_SEEN:
        return
    if not any(truth.run_id == run.run_id for truth in truths):
        append_record(store, TRUTH, _labels_of(run, "columns.label", estimate, shown, evaluation.confusion_matrix))


def _labels_of(
    run: LedgerRun,
    source: str,
    estimate: NightEstimate | None,
    shown: tuple[float, float] | None,
    confusion: list[list[int]],
    measured: tuple[float, float, float] | None = None,
) -> Truth:
    return Truth(
        seq=run.seq,
        run_id=run.run_id,
        model_version=run.model_version,
        source=source,
        at=now(),
        labels=list(run.labels),
        confusion=confusion,
        estimate={} if estimate is None else asdict(estimate),
        shown=shown,
        measured=measured,
    )


def record_truth(config: ScoreConfig, store: Store) -> list[str]:
    """Compare labels that came later, by id, with the rows of every night; returns what was found, in sentences.

    Raises:
        ConfigError: nothing is committed, or a column is missing.
        DataRefused: labels that are no class, no id that was scored, or none that a single row has.
    """
    assert config.truth is not None
    known = ledger.committed_entries(store, None)
    runs, told = ledger.current(known), _ToldTruth(store, read_records(store, TRUTH, Truth))
    answers = [path for path in config.truth if is_answers(path)]
    for path in answers:
        _record_answers(told, runs, path)
    labelled = tuple(path for path in config.truth if path not in answers)
    if labelled:
        _record_labels(told, runs, config.model_copy(update={"truth": labelled}))
    write_index(store, ledger.read_ledger(store), config.expect_every)
    return told.sentences


@dataclass
class _ToldTruth:
    """Records of labels that came later, and what is said of them.

    Args:
        known: records so far.
    """

    store: Store
    known: list[Truth]
    sentences: list[str] = field(default_factory=list)
    infos: dict[str, BundleInfo | None] = field(default_factory=dict)

    def estimate(self, run: LedgerRun) -> NightEstimate | None:
        """Estimate of a night without labels; None of a model that cannot be read any more."""
        if run.model not in self.infos:
            self.infos[run.model] = _info_of(run.model)
        info = self.infos[run.model]
        return None if info is None else estimate_of(self.store, run, info)

    def add(
        self, run: LedgerRun, source: str, confusion: list[list[int]], measured: tuple[float, float, float] | None
    ) -> None:
        """Keep a record, once, and show it on the page of the night."""
        num_labels = sum(map(sum, confusion))
        record = _labels_of(run, source, self.estimate(run), _shown(self.store, run), confusion, measured)
        same = [one for one in self.known if (one.run_id, one.confusion) == (run.run_id, confusion)]
        if not any(one.measured == measured for one in same):
            append_record(self.store, TRUTH, record)
            self.known.append(record)
        found = (
            wilson_estimate(round(record.accuracy * num_labels), num_labels)
            if measured is None
            else Estimate(*measured)
        )
        labels = counted(num_labels, "label" if measured is None else "answer")
        show_measured(self.store, run, found, labels, num_labels)
        self.sentences.append(f"{run.title}: {labels}, accuracy {found}.")


def _record_labels(told: _ToldTruth, runs: Sequence[LedgerRun], config: ScoreConfig) -> None:
    """Labels by id; an id that stands in several slots counts where `slot` says which is meant."""
    assert config.truth is not None
    info = _info_of(runs[-1].model)
    given = read_labels(config, runs[-1].labels, config.labels or (None if info is None else dict(info.label_values)))
    named = [run for run in runs if config.slot is None or config.input or run.slot == config.slot]
    if not named:
        raise ConfigError(f"slot: nothing of {config.slot} is committed.", "Name a slot that `bertray files` lists.")
    labelled = [(run, _labelled_rows(told.store, run, given)) for run in named]
    ambiguous = of_several_rows((run.slot, [id_ for id_, _ in rows]) for run, rows in labelled)
    for run, rows in labelled:
        said = {id_: label for id_, label in rows if id_ not in ambiguous}
        if not said:
            continue
        place = {label: number for number, label in enumerate(run.labels)}
        true_N = np.array([place.get(given[id_], -1) for id_ in said])
        said_N = np.array([place[label] for label in said.values()])
        if not (true_N >= 0).any():
            told.sentences.append(
                f"{run.title}: {counted(len(said), 'label')}, none a class of its model; not counted."
            )
            continue
        confusion = confusion_matrix(true_N[true_N >= 0], said_N[true_N >= 0], len(run.labels)).tolist()
        told.add(run, ", ".join(config.truth), confusion, None)
    found = {id_ for _, rows in labelled for id_, _ in rows}
    if found and found <= ambiguous.keys():
        raise DataRefused(f"truth: {in_words(ambiguous)}", "Give each review an id of its own before it is scored.")
    if not found:
        raise DataRefused(
            f"truth: expected ids of scored rows, found none among {counted(len(given), 'label')}.",
            "Give labels of reviews that this output holds, with the column of ids that `columns.id` names.",
        )
    if ambiguous:
        told.sentences.append(in_words(ambiguous))
    if len(found) < len(given):
        told.sentences.append(
            f"{counted(len(given) - len(found), 'label')} of ids that were never scored; not counted."
        )


def _labelled_rows(store: Store, run: LedgerRun, given: Mapping[str, str]) -> list[tuple[str, str]]:
    """(id, predicted label) of the rows of a run that have a given one."""
    rows = read_rows(store, run, [s.ID, s.LABEL])
    if not rows.num_rows:
        return []
    pairs = zip(rows[s.ID].to_pylist(), rows[s.LABEL].to_pylist(), strict=True)
    return [(id_, label) for id_, label in pairs if id_ in given]


def _record_answers(told: _ToldTruth, runs: Sequence[LedgerRun], path: str) -> None:
    """Answers to queues: the accuracy of each run, weighted by the chance of having been drawn."""
    usable = read_usable(path, runs[-1].labels)
    for slot in usable.by_slot:
        of_slot = [run for run in runs if run.slot == slot and run.rows_scored]
        covered, by_id = usable.covering(slot, [run.rows_scored for run in of_slot])
        if not covered:
            told.sentences.append(f"{slot}: not measured; its rows are not those that the queue was drawn from.")
            continue
        seen, found = 0, []
        for run in of_slot:
            seen += run.rows_scored
            if seen <= covered:
                found.append((run, *_answered_rows(told.store, run, by_id)))
        place, strata = usable.answered([answer.stratum for _, _, answers in found for _, answer in answers])
        for run, probs_NC, answers in found:
            if len(answers) < MIN_ANSWERS:
                told.sentences.append(f"{run.title}: not measured; {counted(len(answers), 'answer')} of {MIN_ANSWERS}.")
                continue
            at = [row for row, _ in answers]
            true_M = np.array([run.labels.index(answer.label) for _, answer in answers])
            drawn = Answers(true_M, probs_NC[at], np.array([place[answer.stratum] for _, answer in answers]), strata)
            accuracy = accuracy_by_answers(probs_NC.max(axis=1), drawn)
            confusion = confusion_matrix(true_M, probs_NC[at].argmax(axis=1), len(run.labels)).tolist()
            told.add(run, path, confusion, (accuracy.value, accuracy.low, accuracy.high))
    if usable.left_out:
        told.sentences.append(f"{counted(usable.left_out, 'answer')} without a probability of being drawn left out.")


def _answered_rows(
    store: Store, run: LedgerRun, by_id: Mapping[str, Sequence[Answer]]
) -> tuple[NDArray[np.float64], list[tuple[int, Answer]]]:
    """Probabilities of the rows of a run, float64 [N, C], and its answers by row."""
    rows = read_rows(store, run, [s.ID, *[s.prob_column(label) for label in run.labels]])
    probs_NC = np.column_stack([rows[s.prob_column(label)].to_numpy() for label in run.labels]).astype(float)
    answers = [
        (at, answer)
        for at, id_ in enumerate(rows[s.ID].to_pylist())
        for answer in by_id.get(id_, ())
        if answer.label in run.labels
    ]
    return probs_NC, answers


def show_measured(store: Store, run: LedgerRun, accuracy: Estimate, labels: str, rows: int) -> None:
    """Put the accuracy that labels give later into the page of a night and its JSON, where these are there."""
    folder = f"reports/{run.folder}"
    try:
        page, content = store.get(f"{folder}/report.html").decode(), json.loads(store.get(f"{folder}/report.json"))
    except (FileNotFoundError, ValueError):
        return
    quality = content.get("quality")
    if quality is None or MEASURED not in page:
        return
    before, _, rest = page.partition(MEASURED)
    sentence = f"Measured later on {labels}: accuracy {in_percent(accuracy)}."
    page = f"{before}{MEASURED}<p>{sentence}</p>{END_MEASURED}{rest.partition(END_MEASURED)[2]}"
    quality["measured_later"] = {**accuracy.to_json(), "rows": rows}
    store.put(f"{folder}/report.html", page.encode())
    store.put(f"{folder}/report.json", json_bytes(content))


def _info_of(model: str) -> BundleInfo | None:
    """Info of the model of a run; None where it is gone, or was replaced by another one."""
    try:
        return read_info(resolve_model(model), model=model)
    except (ConfigError, InfrastructureError):
        return None


def _shown(store: Store, run: LedgerRun) -> tuple[float, float] | None:
    """The interval of the accuracy on the page of a night; None where it was void or there was none."""
    try:
        quality = json.loads(store.get(f"reports/{run.folder}/report.json")).get("quality")
    except (FileNotFoundError, ValueError):
        return None
    if not quality or quality["void"] or quality["accuracy"] is None:
        return None
    return quality["accuracy"]["low"], quality["accuracy"]["high"]
