"""The page of shares: a line for each group and label, with point, interval, what counting would say, and the trend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bertray.evaluation.intervals import Estimate
from bertray.reports.html import render
from bertray.reports.plain import value_told
from bertray.wording import counted, percent

TIMES = ("slot", "day", "week", "month")  # groups by the date of a slot, where rows have no such column
MAX_LINES = 500  # on the page; the tables hold all
_TREND_WIDTH, _TREND_HEIGHT = 96, 22


@dataclass(frozen=True)
class GroupLine:
    """Share of one label in one group.

    Args:
        group: a value for each column of `by`; None: the row has none.
        counted: share of predicted labels.
        labels: labelled rows that the share rests on.
    """

    group: tuple[str | None, ...]
    label: str
    rows: int
    counted: float
    share: Estimate
    method: str
    labels: int


@dataclass(frozen=True)
class SharesReport:
    """Shares as plain data.

    Args:
        runs: of the slots that were read.
    """

    by: Sequence[str]
    labels: Sequence[str]
    lines: Sequence[GroupLine]
    notes: Sequence[str] = ()
    runs: int = 0
    config: str = ""
    created: str = ""

    @property
    def facts(self) -> dict[str, str]:
        """Run and data, in the order to show."""
        return {"runs of score": f"{self.runs:,}"}

    @property
    def headline(self) -> str:
        """Rows, groups and the label whose correction is largest."""
        rows = sum(line.rows for line in self.lines) // max(len(self.labels), 1)
        groups = len({line.group for line in self.lines})
        worst = max(self.lines, key=lambda line: abs(line.share.value - line.counted))
        where = f" of {name_of(worst.group)}" if worst.group else ""
        of_groups = f" in {counted(groups, 'group')}" if self.by else ""
        share = worst.share
        return (
            f"{counted(rows, 'row')}{of_groups}. Furthest from counting: {worst.label}{where}, {percent(share.value)} "
            f"({percent(share.low)} to {percent(share.high)}) where {percent(worst.counted)} are predicted."
        )

    def trend(self, line: GroupLine) -> str:
        """Points of a polyline through the shares of a label over time, the last column of `by`; empty of one point."""
        if not self.by or self.by[-1] not in TIMES:
            return ""
        same = [one for one in self.lines if one.label == line.label and one.group[:-1] == line.group[:-1]]
        if len(same) < 2:
            return ""
        step = _TREND_WIDTH / (len(same) - 1)
        heights = [(1 - one.share.value) * (_TREND_HEIGHT - 2) + 1 for one in same]
        return " ".join(f"{at * step:.1f},{height:.1f}" for at, height in enumerate(heights))

    def to_html(self) -> str:
        """A page that needs nothing but itself."""
        return render(
            "shares.html.j2",
            report=self,
            title=f"Shares of labels{' by ' + ', '.join(self.by) if self.by else ''}",
            intervals=True,
            shown=self.lines[:MAX_LINES],
            name_of=name_of,
            width=_TREND_WIDTH,
            height=_TREND_HEIGHT,
        )


def name_of(group: tuple[str | None, ...]) -> str:
    """A group in a few words: its values, with a dash for none."""
    return " · ".join(map(value_told, group)) or "all rows"
