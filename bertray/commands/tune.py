"""`bertray tune`: a search over settings of `train`."""

from __future__ import annotations

from bertray.config import TuneConfig
from bertray.console import say, table
from bertray.reports.search import shown
from bertray.runs.fit.tuning import tune
from bertray.runs.results import TuneResult


def run_tune(config: TuneConfig) -> int:
    """Search, and print every trial, the best first."""
    result = tune(config)
    if result.already_done:
        say(f"already searched: {result.report}")
        return 0
    show_trials(result)
    say(f"config   {result.best_config}")
    say(f"report   {result.report}")
    return 0


def show_trials(result: TuneResult) -> None:
    """The table of the report, on the console."""
    rows = [
        [
            f"{row['trial']}",
            *(shown(row[key]) for key in result.keys),
            result.interval(row),
            f"{row['epochs']}",
            row["status"],
        ]
        for row in result.trials
    ]
    names = [key.removeprefix("training.") for key in result.keys]
    table("trials, best first", ["", *names, result.metric, "epochs", ""], rows)
    settings = ", ".join(f"{name} {shown(result.best[key])}" for name, key in zip(names, result.keys, strict=True))
    say(f"best: {settings}; {result.metric} {result.interval(result.best)} on validation rows, which chose it")
