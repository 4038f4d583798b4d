"""The page over all nights of an output: one line a night, trends, and whether anybody has to act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bertray.evaluation.verdicts import Finding, worst
from bertray.reports.html import render
from bertray.reports.plain import plain
from bertray.wording import counted, percent

INDEX_VERSION = 1  # of index.json
MAX_NIGHTS = 400  # on the page, the newest; index.json holds all
MAX_TRENDS = 6  # labels that have a trend line
RECENT = 8  # nights, tonight among them, of which one that drifted waits for a decision
MANY_KEPT_OUT = 0.01  # of the rows
_TREND_NIGHTS = 60
_WIDTH, _HEIGHT = 280, 56
STATE_WORDS = {
    "alarm": "drift",
    "ordinary": "ordinary",
    "no_baseline": "no baseline yet",
    "too_few_rows": "too few rows",
    "no_profile": "not compared",
}


@dataclass(frozen=True)
class NightLine:
    """One run of the output.

    Args:
        folder: of its page, below `reports/`.
        drift: state; empty of vectors.
        told: the verdict on it in a sentence.
        labels: predicted label -> rows.
        measured: accuracy of labelled rows; None: there are none.
        finding: the worst on its page, where that asks somebody to act; read of the newest night alone.
        is_accepted: whether a person has accepted it as ordinary.
    """

    title: str
    folder: str
    committed_at: str
    rows_in: int
    rows_scored: int
    rows_quarantined: int
    drift: str
    told: str
    labels: Mapping[str, int]
    needs_review: int
    model_version: str
    measured: float | None = None
    finding: Finding | None = None
    is_accepted: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it drifts and nobody has decided on it; one that was replaced is no line any more."""
        return self.drift == "alarm" and not self.is_accepted

    @property
    def drift_in_words(self) -> str:
        return STATE_WORDS.get(self.drift, "")


@dataclass(frozen=True)
class Trend:
    """Shares of one label over the last nights, as points of a polyline."""

    label: str
    points: str
    first: float
    last: float


@dataclass(frozen=True)
class NightsIndex:
    """All nights of an output as plain data, the newest first."""

    root: str
    nights: Sequence[NightLine]
    expect_every_h: float | None = None
    created: str = ""

    @property
    def newest(self) -> NightLine:
        """The night that was committed last; a slot that came late is not the first line."""
        return max(self.nights, key=lambda night: night.committed_at)

    @property
    def finding(self) -> Finding:
        """Whether anybody has to act, in one sentence."""
        newest = self.newest
        if newest.is_open:
            return Finding("bad", f"Look at {newest.title}. {newest.told}")
        if newest.finding is not None:
            return Finding(newest.finding.severity, f"Look at {newest.title}. {newest.finding.sentence}")
        if not newest.rows_scored:
            return Finding("warning", f"{newest.title}: no row was scored.")
        if newest.rows_quarantined > MANY_KEPT_OUT * newest.rows_in:
            share = percent(newest.rows_quarantined / newest.rows_in)
            return Finding("warning", f"{newest.title}: {share} of the rows were kept out; its page says why.")
        if still := next((night for night in self.nights[:RECENT] if night.is_open), None):
            return Finding("warning", f"{still.title} drifted, and nobody has accepted or replaced it. {still.told}")
        return Finding("good", f"Nothing to do: {newest.title}, {counted(newest.rows_scored, 'row')}. {newest.told}")

    @property
    def due(self) -> str:
        """When the next night is due; empty where nothing is expected."""
        if self.expect_every_h is None:
            return ""
        due = datetime.fromisoformat(self.newest.committed_at) + timedelta(hours=self.expect_every_h)
        return f"The next night is due by {due:%Y-%m-%d %H:%M} UTC. Later than that, it is missing."

    @property
    def trends(self) -> list[Trend]:
        """Shares of the most frequent labels over the last nights, oldest first."""
        nights = [night for night in reversed(self.nights[:_TREND_NIGHTS]) if night.rows_scored and night.labels]
        if len(nights) < 2:
            return []
        total: dict[str, int] = {}
        for night in nights:
            for label, rows in night.labels.items():
                total[label] = total.get(label, 0) + rows
        labels = sorted(total, key=lambda label: -total[label])[:MAX_TRENDS]
        return [_trend(label, [night.labels.get(label, 0) / night.rows_scored for night in nights]) for label in labels]

    def to_json(self) -> dict[str, Any]:
        """Content of `reports/index.json`."""
        content: dict[str, Any] = plain(
            {
                "schema_version": INDEX_VERSION,
                "kind": "nights",
                "created": self.created,
                "severity": self.finding.severity,
                "headline": self.finding.sentence,
                "due": self.due,
                "nights": self.nights,
            }
        )
        return content

    def to_html(self) -> str:
        """A page that needs nothing but itself and the pages of the nights."""
        shown = self.nights[:MAX_NIGHTS]
        return render(
            "nights_index.html.j2",
            report=self,
            title="Nights",
            intervals=False,
            severity=worst([self.finding]),
            shown=shown,
            # A column in which nothing stands is left out.
            any_measured=any(night.measured is not None for night in shown),
            any_review=any(night.needs_review for night in shown),
            width=_WIDTH,
            height=_HEIGHT,
        )


def _trend(label: str, shares: Sequence[float]) -> Trend:
    low, high = min(shares), max(shares)
    span = max(high - low, 0.02)
    step = _WIDTH / (len(shares) - 1)
    heights = [_HEIGHT - 4 - (share - low) / span * (_HEIGHT - 8) for share in shares]
    points = " ".join(f"{at * step:.1f},{height:.1f}" for at, height in enumerate(heights))
    return Trend(label, points, shares[0], shares[-1])
