"""`bertray score`: committed labels of new review files."""

from __future__ import annotations

from bertray.config import ScoreConfig
from bertray.console import say, table
from bertray.runs import night
from bertray.runs.night_results import CommittedRun, EmbedResult, ScoreResult
from bertray.wording import counted


def run_score(config: ScoreConfig) -> int:
    """Score what is new; each run of a slot is shown when it is committed."""
    show_end(night.score(config, show_run))
    return 0


def show_run(run: CommittedRun) -> None:
    """Rows of a run, what went to quarantine, and where all of it lies."""
    table(
        f"slot {run.title}",
        ["", "rows in", run.done, "quarantined", "rows/s"],
        [
            [
                counted(run.num_files, "file"),
                f"{run.rows_in:,}",
                f"{run.rows_done:,}",
                f"{run.rows_quarantined:,}",
                f"{run.rows_per_s:,.0f}",
            ]
        ],
    )
    for noun, reasons in (("row", run.row_reasons), ("file", run.file_reasons)):
        for reason, count in sorted(reasons.items()):
            say(f"  quarantined {counted(count, noun)}: {reason}")
    for line in (*run.summary, *([run.drift_told] if run.drift_told else [])):
        say(line)
    say(f"data     {run.data}")
    say(f"report   {run.report}")


def show_end(result: ScoreResult | EmbedResult) -> None:
    """Notes, and one line where nothing was new."""
    for note in result.notes:
        say(note)
    if not result.runs and result.headline:
        say(f"{result.headline} ({result.output})")
