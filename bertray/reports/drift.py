"""Drift of a night in words and numbers: for its page, its JSON, the log and the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bertray.evaluation.verdicts import Finding, Severity
from bertray.reports.plain import short, value_told
from bertray.reviews.text_statistics import (
    CHARACTERS_OF,
    LINKS,
    LOG_LENGTH,
    MIN_TEMPLATE_CHARS,
    MOSTLY_UNSEEN,
    SHORT,
    TEMPLATED,
    UNSEEN_TRIGRAMS,
    UNSEEN_WORDS,
)
from bertray.scoring.profiled import CONFIDENCE, LOW_CONFIDENCE, PREDICTED_OF, PROBABILITY_OF
from bertray.trust.drift import MIN_NIGHTS, Drift, Shift
from bertray.trust.nights import FOREIGN, MIN_ROWS, SHARE_OF
from bertray.wording import counted, decimal, percent

_TITLES = {
    CONFIDENCE: "mean score",
    LOW_CONFIDENCE: "rows with a low score",
    LOG_LENGTH: "text length",
    SHORT: "rows of at most two words",
    LINKS: "rows with a link or a long number",
    TEMPLATED: "rows that repeat a pattern",
    UNSEEN_TRIGRAMS: "letter sequences unknown from training",
    UNSEEN_WORDS: "words unknown from training",
    MOSTLY_UNSEEN: "rows mostly unlike the training texts",
    FOREIGN: "rows in another script",
    "ngrams": "letters and letter sequences as a whole (distance)",
    "most_frequent_text": f"rows with the most frequent text ({MIN_TEMPLATE_CHARS} characters or more)",
}
_CLASS_TITLES = {"han_kana": "Han and kana", "lower": "lower-case letters", "upper": "capitals", "digit": "digits"}
_KINDS = {
    "mean": "",
    "distribution": "distribution of the ",
    "slow": "over several nights: ",
    "texts": "",
    "copies": "",
}
MAX_ALARMS_TOLD = 3


def title_of(shift: Shift) -> str:
    """A statistic as people call it."""
    name = shift.name
    if name.startswith(PREDICTED_OF):
        told = f"rows labelled {short(name.removeprefix(PREDICTED_OF))}"
    elif name.startswith(PROBABILITY_OF):
        told = f"mean probability of {short(name.removeprefix(PROBABILITY_OF))}"
    elif name.startswith(CHARACTERS_OF):
        kind = name.removeprefix(CHARACTERS_OF)
        told = f"share of characters: {_CLASS_TITLES.get(kind, kind)}"
    elif name.startswith(SHARE_OF):
        column, _, value = name.removeprefix(SHARE_OF).partition("=")
        told = f"rows with {short(column)}={value_told(value)}"
    else:
        told = _TITLES.get(name, name)
    return f"{_KINDS[shift.kind]}{told}"


def value_in_words(shift: Shift, value: float) -> str:
    """A value of a statistic in its unit: a share, a number of characters, or a distance."""
    if shift.kind == "distribution":
        return decimal(value)
    if shift.kind == "texts":
        return f"{round(1000 * value, 1) + 0:.1f}"  # thousandths; no zero with a sign
    if shift.name == LOG_LENGTH:
        return f"{math.expm1(value):,.0f} characters"
    return percent(value)


def shift_in_words(shift: Shift) -> str:
    """`rows in another script 10.2 %, usually 0.1 % (earlier nights 0.0 % to 0.3 %)`."""
    tonight, usual, low, high = (
        value_in_words(shift, value) for value in (shift.tonight, shift.usual, shift.low, shift.high)
    )
    return f"{title_of(shift)} {tonight}, usually {usual} (earlier nights {low} to {high})"


@dataclass(frozen=True)
class DriftReport:
    """Verdict on a night as a page shows it.

    Args:
        examples: name of a shift -> texts that drive it, masked and cut.
        accept: command that declares the night ordinary.
    """

    drift: Drift
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    accept: str = ""

    @staticmethod
    def title_of(shift: Shift) -> str:
        """Heading of an alarm."""
        return title_of(shift)

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        drift = self.drift
        if drift.state == "alarm":
            told = "; ".join(shift_in_words(shift) for shift in drift.alarms[:MAX_ALARMS_TOLD])
            more = len(drift.alarms) - MAX_ALARMS_TOLD
            return f"Drift: {told}{f'; and {more} more' if more > 0 else ''}."
        nights = counted(len(drift.reference), "night")
        return {
            "no_profile": "Not compared with earlier nights: these rows have no profile.",
            "too_few_rows": f"Not compared with earlier nights: fewer than {MIN_ROWS} rows.",
            "no_baseline": f"No baseline yet: {nights} of the {MIN_NIGHTS} that a comparison needs.",
            "ordinary": f"Like the {nights} of the reference, by every statistic.",
        }[drift.state]

    @property
    def findings(self) -> list[Finding]:
        """An alarm as a bad finding, an ordinary night as a good one, and what either rests on as a note."""
        severities: dict[str, Severity] = {"alarm": "bad", "ordinary": "good"}
        state = self.drift.state
        found = [Finding(severities[state], self.headline)] if state in severities else []
        if self.drift.texts_alone:
            said = "Compared by texts alone: the reference was scored by another model."
            found.append(Finding("note", said))
        return found

    @property
    def examples_told(self) -> str:
        """For how many of the alarms reviews are shown, where it is not all of them."""
        num_shown = sum(bool(self.examples.get(shift.name)) for shift in self.drift.alarms)
        num_alarms = len(self.drift.alarms)
        return f"Reviews are shown for {num_shown} of {num_alarms} alarms." if 0 < num_shown < num_alarms else ""

    @property
    def rows(self) -> list[tuple[str, str, str, str, bool]]:
        """Statistic, tonight, usual, range of earlier nights, alarm: a line each."""
        told = []
        for shift in self.drift.shifts:
            low, high = (value_in_words(shift, value) for value in (shift.low, shift.high))
            values = (value_in_words(shift, shift.tonight), value_in_words(shift, shift.usual), f"{low} to {high}")
            told.append((title_of(shift), *values, shift.is_alarm))
        return told

    def to_json(self) -> dict[str, Any]:
        """Content of `drift` in report.json; no texts."""
        return {
            "state": self.drift.state,
            "headline": self.headline,
            "reference": self.drift.reference,
            "texts_alone": self.drift.texts_alone,
            "shifts": [
                {
                    "kind": shift.kind,
                    "name": shift.name,
                    "tonight": shift.tonight,
                    "usual": shift.usual,
                    "low": shift.low,
                    "high": shift.high,
                    "p": shift.p,
                    "alarm": shift.is_alarm,
                }
                for shift in self.drift.shifts
            ],
        }
