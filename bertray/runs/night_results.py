"""Results of `score` and `embed`: the committed runs of a slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bertray.runs.results import Figures, Report, Result
from bertray.wording import counted


@dataclass(frozen=True, kw_only=True)
class CommittedRun:
    """One committed run of a slot: the rows of some files, each scored or in quarantine.

    Attributes:
        slot: partition of the output, such as `dt=2026-11-20`.
        run: 1, 2, … of those of the slot.
        title: slot, and run where it is not the first.
        done: `scored` or `embedded`.
        num_files: files that were read.
        rows_in: rows of these files; rows_done + rows_quarantined.
        row_reasons, file_reasons: quarantined rows and whole files by reason.
        label_counts: rows by predicted label.
        rows_per_s: while the model was at work.
        data: folder or URI of its Parquet files.
        report: its page.
        figures: metrics on its labelled rows; None where the input has no labels.
        summary: lines on these, as the command prints them.
        drift: `alarm`, `ordinary`, `no_baseline`, `too_few_rows` or `no_profile`; None of vectors.
        drift_told: the same in a sentence.
    """

    slot: str
    run: int
    title: str
    done: str
    num_files: int
    rows_in: int
    rows_done: int
    rows_quarantined: int
    row_reasons: Mapping[str, int]
    file_reasons: Mapping[str, int]
    label_counts: Mapping[str, int]
    rows_per_s: float
    data: str
    report: Report
    figures: Figures | None
    summary: tuple[str, ...]
    drift: str | None = None
    drift_told: str = ""


@dataclass(frozen=True, repr=False, kw_only=True)
class _NightResult(Result):
    """Committed runs of new files.

    Attributes:
        runs: what this call committed, in that order; none where nothing was new.
        num_listed: files of the input, whether new or in a slot already.
    """

    runs: tuple[CommittedRun, ...]
    num_listed: int

    @property
    def rows_in(self) -> int:
        """Rows of the new files."""
        return sum(run.rows_in for run in self.runs)

    @property
    def rows_quarantined(self) -> int:
        """Rows that were kept out, each with a reason."""
        return sum(run.rows_quarantined for run in self.runs)

    @property
    def report(self) -> Report | None:
        """The page of the last run; each run has its own."""
        return self.runs[-1].report if self.runs else None

    @property
    def headline(self) -> str:
        if not self.runs and not self.num_listed and self.notes:  # nothing was to be read
            return ""
        if not self.runs:
            return f"nothing new: {counted(self.num_listed, 'file')} listed, all in slots already"
        done = sum(run.rows_done for run in self.runs)
        return f"{counted(done, 'row')} {self.runs[0].done}, {self.rows_quarantined:,} quarantined"

    @property
    def rows_of_table(self) -> list[tuple[str, str]]:
        return [
            (run.title, f"{counted(run.rows_done, 'row')} {run.done}, {run.rows_quarantined:,} quarantined, {run.data}")
            for run in self.runs
        ]


class ScoreResult(_NightResult):
    """Scored rows, committed."""

    @property
    def rows_scored(self) -> int:
        """Rows that have a label now."""
        return sum(run.rows_done for run in self.runs)


@dataclass(frozen=True, repr=False, kw_only=True)
class EmbedResult(_NightResult):
    """Vectors, committed.

    Attributes:
        vectors: path of `vectors.parquet` of `pooling=vocabulary`.
    """

    vectors: str | None = None

    @property
    def rows_embedded(self) -> int:
        """Rows that have a vector now."""
        return sum(run.rows_done for run in self.runs)
