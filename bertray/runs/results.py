"""Results of runs: figures, paths and notes. Frozen, short in a console, a table in a notebook."""

from __future__ import annotations

import html
import json
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bertray.evaluation.intervals import Estimate
from bertray.evaluation.metrics import FIGURES
from bertray.io.store import Store
from bertray.outputs.claims import told_when_finished
from bertray.paths import is_uri
from bertray.reports.evaluation import EvaluationReport
from bertray.runs.evaluation_page import in_words
from bertray.wording import counted, duration, percent

if TYPE_CHECKING:
    import bertray

PAGE = "report.html"
METRICS = "metrics.json"


class Report:
    """An HTML page of a run: `open()` shows it in a browser, a notebook shows it in place.

    Args:
        location: path or URI; also `str(report)`.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    def __str__(self) -> str:
        return self.location

    def __repr__(self) -> str:
        return f"Report({self.location})"

    def __fspath__(self) -> str:
        return self.location

    def open(self) -> None:
        """Open the page in the browser of this machine."""
        webbrowser.open(self.location if is_uri(self.location) else Path(self.location).absolute().as_uri())

    def _repr_html_(self) -> str:
        if is_uri(self.location):
            return f"<code>{html.escape(self.location)}</code>"
        page = html.escape(Path(self.location).read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 1px solid #ccc"></iframe>'


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        output: folder or URI of everything that the run wrote.
        notes: sentences that a reader of the figures should know.
    """

    output: str
    notes: tuple[str, ...] = ()
    kept: Any = field(default=None, repr=False, compare=False, kw_only=True)
    """Owner of a temporary output, which is removed with the last result that refers to it."""

    def path(self, name: str) -> str:
        """Path or URI of a file below the output."""
        return f"{self.output}/{name}"

    @property
    def headline(self) -> str:
        """The most important figures in one line."""
        return ""

    @property
    def rows_of_table(self) -> list[tuple[str, str]]:
        """Names and values of the table that a notebook shows."""
        return []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(part for part in (self.headline, self.output) if part)})"

    def _repr_html_(self) -> str:
        rows = [*self.rows_of_table, *(("note", note) for note in self.notes), ("output", self.output)]
        cells = "".join(
            f'<tr><th style="text-align: left">{html.escape(name)}</th>'
            f'<td style="text-align: left">{html.escape(value)}</td></tr>'
            for name, value in rows
        )
        return f"<b>{type(self).__name__}</b> {html.escape(self.headline)}<table>{cells}</table>"


@dataclass(frozen=True, repr=False)
class ResultWithPage(Result):
    @property
    def report(self) -> Report:
        """The page of the run."""
        return Report(self.path(PAGE))


# --- labelled rows ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """The content of a `metrics.json`: how good a model is on some labelled rows.

    Attributes:
        split: what the rows are: `test`, `validation`, `input`.
        rows: labelled rows that were evaluated.
        labels: class names in id order.
        metrics: `accuracy`, `macro_f1`, `mcc`, `log_loss`, `ece` …, each with its 95 % interval.
        per_class: class name → `precision`, `recall`, `f1`, and `support`, a whole number.
        confusion_matrix: rows by class; a line of the matrix is a given label, a column a predicted one.
        slices: column → value → figures of the rows with that value.
        baselines: `majority`, `tfidf_logreg` → the same metrics on the same rows.
    """

    split: str
    rows: int
    labels: tuple[str, ...]
    metrics: Mapping[str, Estimate]
    per_class: Mapping[str, Mapping[str, Estimate | int]]
    confusion_matrix: tuple[tuple[int, ...], ...]
    slices: Mapping[str, Mapping[str, Mapping[str, Any]]]
    baselines: Mapping[str, Mapping[str, Estimate]]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Figures:
        """Figures of the content of a `metrics.json`."""
        return cls(
            split=content["split"],
            rows=content["rows"],
            labels=tuple(content["labels"]),
            metrics=_estimates(content["metrics"]),
            per_class=_estimates(content["per_class"]),
            confusion_matrix=tuple(map(tuple, content["confusion_matrix"])),
            slices=_estimates(content["slices"]),
            baselines=_estimates(content["baselines"]),
        )


def _estimates(content: Any) -> Any:
    """JSON with every `{value, low, high}` of numbers as an `Estimate`."""
    if not isinstance(content, Mapping):
        return content
    if content.keys() == {"value", "low", "high"} and not any(isinstance(v, Mapping) for v in content.values()):
        return Estimate(**content)
    return {key: _estimates(value) for key, value in content.items()}


@dataclass(frozen=True, repr=False, kw_only=True)
class EvaluationResult(ResultWithPage):
    """Figures of a model on labelled rows.

    Attributes:
        figures: the content of `metrics.json`; its most used parts are attributes of the result, too.
        summary: lines that the command prints: main metrics, then verdicts, the worst first.
        already_done: the same run had been finished before; nothing was computed.
    """

    figures: Figures
    summary: tuple[str, ...] = ()
    already_done: bool = False

    @property
    def findings(self) -> tuple[str, ...]:
        """Verdicts in sentences, the worst first: `bad: …`, `warning: …`, `note: …`, `good: …`."""
        return self.summary[1:]

    @property
    def told(self) -> dict[str, Any]:
        """The part of the result that no other file of the output holds."""
        return {"notes": self.notes, "summary": self.summary}

    @property
    def metrics(self) -> Mapping[str, Estimate]:
        """`accuracy`, `macro_f1`, `mcc` …, each with `value`, `low` and `high` (95 %)."""
        return self.figures.metrics

    @property
    def per_class(self) -> Mapping[str, Mapping[str, Estimate | int]]:
        """Precision, recall, F1 and support of each class."""
        return self.figures.per_class

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in id order."""
        return self.figures.labels

    @property
    def rows(self) -> int:
        """Labelled rows that were evaluated."""
        return self.figures.rows

    @property
    def split(self) -> str:
        """Name of the rows: `test`, `validation`, or `input`."""
        return self.figures.split

    @property
    def predictions(self) -> str:
        """Path of `predictions.parquet`: `id`, `label`, `prediction`, `prob_*`."""
        return self.path("predictions.parquet")

    @property
    def headline(self) -> str:
        return f"accuracy {self.metrics['accuracy']}, {counted(self.rows, 'row')} of {self.split}"

    @property
    def rows_of_table(self) -> list[tuple[str, str]]:
        shown = [(words, str(self.metrics[name])) for name, words in FIGURES.items()]
        beside = [(f"accuracy of {name}", str(of["accuracy"])) for name, of in self.figures.baselines.items()]
        return [*shown, *beside, *(("finding", finding) for finding in self.findings)]


@dataclass(frozen=True, repr=False, kw_only=True)
class TrainResult(EvaluationResult):
    """A trained model and its figures on test rows; without a test on validation rows, or by cross-validation."""

    @property
    def model(self) -> str:
        """Folder or URI of the bundle, for `model=` of other calls."""
        return self.path("model")

    @property
    def history(self) -> str:
        """Path of `history.parquet`: loss, learning rate and validation metrics by step."""
        return self.path("history.parquet")

    @property
    def classifier(self) -> bertray.Classifier:
        """The trained model, loaded to label texts in this process."""
        import bertray

        return bertray.Classifier.load(self)


# --- other runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False, kw_only=True)
class _RunOnce(ResultWithPage):
    """A run that is done once: the same run again gives back what it had found.

    Attributes:
        sentence: what was found, in one line.
        already_done: the same run had been finished before; nothing was computed.
    """

    sentence: str
    already_done: bool = False

    @property
    def headline(self) -> str:
        return self.sentence


@dataclass(frozen=True, repr=False, kw_only=True)
class PretrainResult(_RunOnce):
    """An encoder that has been pretrained on reviews.

    Attributes:
        metrics: the content of `metrics.json`: figures `before` and `after`, `held_out_tokens`.
    """

    metrics: Mapping[str, Any]

    @property
    def model(self) -> str:
        """Folder or URI of the encoder, for `model=` of other calls."""
        return self.path("model")


@dataclass(frozen=True, repr=False, kw_only=True)
class TuneResult(_RunOnce):
    """A search over settings of `train`.

    Attributes:
        trials: rows of `trials.parquet`, the best first and those that failed last: `trial`, the keys that were varied,
            `status`, `epochs`, `seconds`, metrics with `<metric>_low` and `<metric>_high`.
        metric: on validation rows, which decided.
        keys: of the config that were varied.
    """

    trials: tuple[Mapping[str, Any], ...]
    metric: str
    keys: tuple[str, ...]

    def interval(self, trial: Mapping[str, Any]) -> str:
        """The metric of a trial with its 95 % interval; empty where the trial failed."""
        value, low, high = (trial[f"{self.metric}{end}"] for end in ("", "_low", "_high"))
        return "" if value is None else str(Estimate(value, low, high))

    @property
    def best(self) -> Mapping[str, Any]:
        """The best trial."""
        return self.trials[0]

    @property
    def best_config(self) -> str:
        """Path of `best.yaml`, for `config=` of `train`."""
        return self.path("best.yaml")


@dataclass(frozen=True, kw_only=True)
class AuditFinding:
    """One kind of trouble with reviews, found or not.

    Attributes:
        weight: how bad it is, in words.
        title: its name.
        sentences: what was found, the most important first.
        rows: path of the Parquet file with the rows, or None.
    """

    weight: str
    title: str
    sentences: tuple[str, ...]
    rows: str | None


@dataclass(frozen=True, repr=False, kw_only=True)
class AuditResult(_RunOnce):
    """Duplicates, leaks, conflicting and doubtful labels, broken rows of reviews.

    Attributes:
        findings: the worst first.
    """

    findings: tuple[AuditFinding, ...]

    @property
    def rows_of_table(self) -> list[tuple[str, str]]:
        return [(finding.title, " ".join(finding.sentences)) for finding in self.findings]


@dataclass(frozen=True, kw_only=True)
class TopicSummary:
    """One topic.

    Attributes:
        number: of the topic; -1: the outliers.
        words: that set it apart, with their weights.
        size, share: reviews, and their share of all.
    """

    number: int
    name: str
    words: tuple[tuple[str, float], ...]
    size: int
    share: float


@dataclass(frozen=True, repr=False, kw_only=True)
class TopicsResult(_RunOnce):
    """Topics of reviews.

    Attributes:
        topics: by size, without the outliers.
        comparisons: sentences on how topics agree with known groups.
    """

    topics: tuple[TopicSummary, ...]
    comparisons: tuple[str, ...] = ()

    @property
    def table(self) -> str:
        """Path of `topics.parquet`: a topic, its words, its sentiment."""
        return self.path("topics.parquet")

    @property
    def assignments(self) -> str:
        """Path of `assignments.parquet`: a review and its topic."""
        return self.path("assignments.parquet")

    @property
    def rows_of_table(self) -> list[tuple[str, str]]:
        return [(percent(topic.share), ", ".join(word for word, _ in topic.words[:6])) for topic in self.topics[:10]]


class Table(NamedTuple):
    """A small table as a person reads it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class PlannedFile(NamedTuple):
    """One listed file of a score config, and the decision on it."""

    path: str
    goes_in: bool
    num_rows: int | None  # None: unknown
    why: str


@dataclass(frozen=True, repr=False, kw_only=True)
class PlanResult(Result):
    """Forecast of `train` or `score`; nothing was written.

    Attributes:
        parts: lines and tables, as the command prints them.
        files: of a score config: which go in or stay out, and why.
        num_rows: rows to read.
        seconds: forecast, start-up included; None where there is none.
        price: of these at `price_per_hour`.
    """

    parts: tuple[str | Table, ...]
    files: tuple[PlannedFile, ...]
    num_rows: int
    seconds: float | None
    price: float | None

    @property
    def headline(self) -> str:
        time = "" if self.seconds is None else f", about {duration(self.seconds)}"
        return f"{counted(self.num_rows, 'row')}{time}"

    @property
    def rows_of_table(self) -> list[tuple[str, str]]:
        rows: list[tuple[str, str]] = []
        for part in self.parts:
            if isinstance(part, str):
                rows.append(("", part))
            else:
                rows += [(part.title, " · ".join(cells)) for cells in part.rows]
        return rows


@dataclass(frozen=True, repr=False, kw_only=True)
class GarbageResult(Result):
    """Files that an output no longer needs.

    Attributes:
        files: why → numbers and bytes of the files.
        removed: they are gone.
    """

    files: Mapping[str, tuple[int, int]]
    removed: bool

    @property
    def num_files(self) -> int:
        """Files that are no longer needed."""
        return sum(count for count, _ in self.files.values())

    @property
    def num_bytes(self) -> int:
        """Their size."""
        return sum(size for _, size in self.files.values())

    @property
    def headline(self) -> str:
        done = "removed" if self.removed else "no longer needed"
        return f"{counted(self.num_files, 'file')} {done}, {self.num_bytes / 1e6:,.1f} MB"


# --- from what a run has written ------------------------------------------------------------------------------------

EvaluationT = TypeVar("EvaluationT", bound=EvaluationResult)


def evaluation_result(kind: type[EvaluationT], store: Store, report: EvaluationReport) -> EvaluationT:
    """The result of a run that has just written its report."""
    evaluation = report.evaluation
    return kind(
        store.root,
        tuple(report.notes),
        figures=Figures.from_json(evaluation.to_json()),
        summary=tuple(in_words(evaluation).splitlines()),
    )


def finished_result(kind: type[EvaluationT], store: Store) -> EvaluationT:
    """The result of a run that had been finished before."""
    told = told_when_finished(store)
    return kind(
        store.root,
        tuple(told.get("notes", ())),
        figures=Figures.from_json(json.loads(store.get(METRICS))),
        summary=tuple(told.get("summary", ())),
        already_done=True,
    )
