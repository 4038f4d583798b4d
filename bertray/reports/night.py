"""The page of one night: what came in, what was scored, what was kept out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import commonprefix
from typing import Any

from bertray.evaluation.verdicts import Finding, worst, worst_first
from bertray.model.profile import bin_of
from bertray.outputs.control_files import TOKEN_BANDS, Counts
from bertray.reports.charts import Charts
from bertray.reports.drift import DriftReport
from bertray.reports.evaluation import EvaluationReport
from bertray.reports.html import data_title, model_title, render
from bertray.reports.plain import plain
from bertray.reports.quality import QualityReport
from bertray.schema import REASON_WORDS, SCHEMA_VERSION
from bertray.scoring.profiled import PREDICTED_OF
from bertray.trust.drift import Shift
from bertray.wording import counted, percent, points

FILES_SHOWN = 500  # in one table of the page
SLOWEST_SHOWN = 5
NEXT_NIGHT = "<!-- next night -->"  # gives way to a link when there is one


@dataclass(frozen=True)
class NightBefore:
    """The night before: title, relative address of its page, rows, labels, model, folder."""

    title: str
    address: str
    rows_scored: int
    labels: Mapping[str, int]
    model_version: str
    folder: str


@dataclass(frozen=True)
class FileRows:
    """Counts of one input file: rows in, scored, quarantined."""

    path: str
    rows_in: int | None  # None: the file could not be read
    rows_scored: int
    rows_quarantined: int
    reason: str | None = None  # why the whole file is quarantined
    seconds: float | None = None  # with the model at work, its share of units of several files; None: not known

    @property
    def adds_up(self) -> bool:
        return self.rows_in is None or self.rows_in == self.rows_scored + self.rows_quarantined

    @property
    def as_it_should(self) -> bool:
        """Nothing was kept out, nothing was lost."""
        return self.adds_up and not self.rows_quarantined and self.reason is None


@dataclass(frozen=True)
class NightReport:
    """One committed run of a slot as plain data, made from its ledger entry."""

    slot: str
    run_id: str
    model: str
    model_version: str
    files: Sequence[FileRows]
    counts: Counts  # labels in the order in which they are shown
    quarantined: Mapping[str, int]  # reason -> rows of files that could be read
    seconds: float  # of the run, start-up included
    rows_per_s: float  # while the model was at work
    token_bounds: Sequence[int] = TOKEN_BANDS  # upper ends of the bins of the token histogram; the last bin is open
    needs_review_below: float | None = None  # None: no threshold was set
    skipped: Sequence[Mapping[str, str]] = ()  # path, why
    facts: Mapping[str, object] = field(default_factory=dict)
    config: str = ""  # the resolved config as YAML
    notes: Sequence[str] = ()
    created: str = ""
    evaluation: EvaluationReport | None = None  # where the input has labels
    verb: str = "scored"  # what was done with the rows: scored, embedded
    verdicts: Sequence[Finding] = ()  # on the rows; those on a labelled slot's model are in `evaluation`
    vectors: str = ""  # of embedded rows: what was written, in words
    run: int = 1  # of the slot
    drift: DriftReport | None = None  # beside earlier nights; None of vectors
    quality: QualityReport | None = None  # None of vectors
    before: NightBefore | None = None  # None: the first night
    price: float | None = None  # of the run; None: no price_per_hour

    @property
    def rows_in(self) -> int:
        return sum(file.rows_in or 0 for file in self.files)

    @property
    def rows_scored(self) -> int:
        return sum(file.rows_scored for file in self.files)

    @property
    def rows_quarantined(self) -> int:
        return sum(file.rows_quarantined for file in self.files)

    @property
    def adds_up(self) -> bool:
        """Every row that came in was scored or quarantined, in each file, and labels count the scored rows."""
        counted = not self.counts.label_counts or sum(self.counts.label_counts.values()) == self.rows_scored
        return counted and all(file.adds_up for file in self.files)

    @property
    def files_quarantined(self) -> dict[str, int]:
        """Files that were quarantined whole, by reason."""
        return dict(Counter(file.reason for file in self.files if file.reason))

    @property
    def files_unknown(self) -> int:
        """Files whose rows could not be counted."""
        return sum(file.rows_in is None for file in self.files)

    @property
    def files_shown(self) -> list[FileRows]:
        """The files of the page, report.json has all: of very many, first those of which something was kept out."""
        if len(self.files) <= FILES_SHOWN:
            return list(self.files)
        return sorted(self.files, key=lambda file: file.as_it_should)[:FILES_SHOWN]

    @cached_property
    def common_folder(self) -> str:
        """Common beginning of several paths, up to a slash."""
        if len(self.files) < 2:
            return ""
        common = commonprefix([file.path for file in self.files])  # noqa: RUF071 - cut back to a slash below
        return common[: common.rfind("/") + 1]

    @property
    def headline(self) -> str:
        """Rows in, rows scored and the most frequent label, in one line."""
        came_in, scored, refused = self.rows_in, self.rows_scored, self.rows_quarantined
        files = counted(len(self.files), "file")
        said = f"{counted(came_in, 'review')} came in with {files}: {scored:,} {self.verb}"
        said += f", {refused:,} quarantined." if refused else ", none quarantined."
        if scored and self.counts.label_counts:
            label, rows = max(self.counts.label_counts.items(), key=lambda item: item[1])
            said += f" {percent(rows / scored)} of the scored ones are {label}."
        return said

    @property
    def title(self) -> str:
        """Data, model and slot."""
        paths = [file.path for file in self.files]
        if self.common_folder:
            data = f"{counted(len(paths), 'file')} of {data_title([self.common_folder])}"
        else:
            data = data_title(paths) if paths else "no file"
        run = f", run {self.run}" if self.run > 1 else ""
        return f"{self.verb.capitalize()} reviews: {data}, model {model_title(self.model)}, slot {self.slot}{run}"

    @property
    def findings(self) -> list[Finding]:
        """Verdicts on the rows and, where there are labels, on the model; the worst first."""
        found = list(self.verdicts)
        if not self.adds_up:
            found.append(
                Finding(
                    "bad",
                    f"It does not add up: {self.rows_in:,} rows in, {self.rows_scored:,} {self.verb}, "
                    f"{self.rows_quarantined:,} quarantined. Look at the table of files before you use these rows.",
                )
            )
        return worst_first([*found, *(self.evaluation.evaluation.findings if self.evaluation else [])])

    @property
    def slowest(self) -> list[FileRows]:
        """Files that took the model longest, of several."""
        timed = [file for file in self.files if file.seconds]
        return sorted(timed, key=lambda file: -(file.seconds or 0))[:SLOWEST_SHOWN] if len(timed) > 1 else []

    @property
    def bands(self) -> dict[str, Shift]:
        """Predicted label -> its share beside earlier nights."""
        shifts = self.drift.drift.shifts if self.drift else ()
        means = [shift for shift in shifts if shift.kind == "mean" and shift.name.startswith(PREDICTED_OF)]
        return {shift.name.removeprefix(PREDICTED_OF): shift for shift in means}

    @property
    def changes(self) -> list[str]:
        """Differences from the night before, in sentences; empty of the first night."""
        before = self.before
        if before is None or not before.rows_scored or not self.rows_scored:
            return []
        told = [f"{counted(self.rows_scored, 'row')} {self.verb}, {before.rows_scored:,} in {before.title}."]
        shares = {
            label: rows / self.rows_scored - before.labels.get(label, 0) / before.rows_scored
            for label, rows in self.counts.label_counts.items()
        }
        if shares:
            label, most = max(shares.items(), key=lambda item: abs(item[1]))
            told.append(f"Largest move of a label: {label}, {points(most)} points.")
        if before.model_version != self.model_version:
            told.append(f"Another model: {self.model_version}, {before.model_version} before.")
        return told

    @property
    def length_sentence(self) -> str:
        """Mean and percentiles of the lengths in tokens; percentiles beyond the last bound as the share above it."""
        words = {"p50": "half", "p90": "90 %", "p99": "99 %"}
        found = self.token_percentiles
        told = [(words[name], f"at most {bound:,}") for name, bound in found.items() if bound is not None]
        if len(told) < len(found):
            beyond = self.counts.token_histogram[-1] / sum(self.counts.token_histogram)
            told.append((percent(beyond), f"more than {self.token_bounds[-1]:,}"))
        mean = f"{self.counts.tokens / self.rows_scored:,.0f} tokens on average"
        if not told:
            return f"{mean}."
        (share, length), *others = told
        return f"{mean}; {share} of the reviews have {length}{''.join(f', {s} {t}' for s, t in others)}."

    @property
    def token_bands(self) -> list[tuple[str, int]]:
        """(`17-32`, rows) of each bin of the token histogram."""
        starts = [1, *(bound + 1 for bound in self.token_bounds)]
        names = [f"{low}–{high}" for low, high in zip(starts, self.token_bounds, strict=False)] + [f"{starts[-1]}+"]
        return list(zip(names, self.counts.token_histogram, strict=True))

    @property
    def token_percentiles(self) -> dict[str, int | None]:
        """Tokens that a share of the scored rows does not exceed, read off the bins; None: beyond the last bound."""
        histogram, bounds = self.counts.token_histogram, [*self.token_bounds, None]
        return {f"p{percent}": bounds[bin_of(percent, histogram)] for percent in (50, 90, 99) if any(histogram)}

    def to_json(self) -> dict[str, Any]:
        """Everything on the page as plain data: the content of report.json."""
        content: dict[str, Any] = plain(
            {
                "schema_version": SCHEMA_VERSION,
                "kind": "scoring" if self.verb == "scored" else self.verb,
                "slot": self.slot,
                "run": self.run,
                "run_id": self.run_id,
                "model": self.model,
                "model_version": self.model_version,
                "created": self.created,
                "headline": self.headline,
                "findings": self.findings,
                "notes": self.notes,
                "rows_in": self.rows_in,
                "rows_scored": self.rows_scored,
                "rows_quarantined": self.rows_quarantined,
                "adds_up": self.adds_up,
                "files": self.files,
                "skipped": self.skipped,
                "label_counts": self.counts.label_counts,
                "score_histogram": self.counts.score_histogram,
                "token_histogram": dict(self.token_bands),
                "token_percentiles": self.token_percentiles,
                "tokens": self.counts.tokens,
                "truncated": self.counts.truncated,
                "repeated": self.counts.repeated,
                "needs_review": None if self.needs_review_below is None else self.counts.needs_review,
                "needs_review_below": self.needs_review_below,
                "quarantined": self.quarantined,
                "files_quarantined": self.files_quarantined,
                "seconds": self.seconds,
                "rows_per_s": self.rows_per_s,
                "drift": self.drift and self.drift.to_json(),
                "quality": self.quality and self.quality.to_json(),
                "price": self.price,
                "before": self.before and self.before.title,
                "changes": self.changes,
                "facts": self.facts,
                "config": self.config,
            }
        )
        return content | {"evaluation": self.evaluation.to_json() if self.evaluation else None}

    def to_html(self) -> str:
        """A page that needs nothing but itself."""
        charts, counts = Charts(), self.counts
        labelled = self.rows_scored and counts.label_counts
        return render(
            "night.html.j2",
            report=self,
            title=self.title,
            intervals=self.evaluation is not None,
            severity=worst(self.findings),
            reason_words=REASON_WORDS,
            files_shown=FILES_SHOWN,
            scores_chart=charts.scores(counts.score_histogram, None) if labelled else None,
            part=self.evaluation.part(charts) if self.evaluation else None,
        )
