"""`bertray shares`: share of each label per group, corrected for the model's errors, with intervals."""

from __future__ import annotations

from bertray.config import SharesConfig
from bertray.console import say, table
from bertray.reports.shares import name_of
from bertray.runs.label_shares import shares
from bertray.wording import percent

SHOWN = 40


def run_shares(config: SharesConfig) -> int:
    """Estimate, and print the first lines of the table."""
    result = shares(config)
    if result.already_done:
        say(f"already estimated: {result.report}")
        return 0
    rows = [
        [
            name_of(line.group),
            line.label,
            f"{percent(line.share.value)} [{percent(line.share.low)}, {percent(line.share.high)}]",
            percent(line.counted),
            f"{line.rows:,}",
            line.method,
        ]
        for line in result.lines[:SHOWN]
    ]
    table("shares", ["group", "label", "share", "counted", "rows", "method"], rows)
    for note in result.notes:
        say(note)
    say(f"table    {result.path('shares.csv')}")
    say(f"report   {result.report}")
    return 0
