"""Quality of a night in words and numbers: estimated, void, or measured by labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertray.evaluation.intervals import Estimate
from bertray.trust.quality import FAR_APART, LEAST_HALF_WIDTH, MIN_LABELLED_NIGHTS, QualityEstimate
from bertray.wording import counted, percent, points

MEASURED, END_MEASURED = "<!-- measured later -->", "<!-- end -->"  # place on the page


@dataclass(frozen=True)
class LabelledNight:
    """A night with labels: its true accuracy, and whether the interval that its page showed held it.

    Args:
        held: None where no interval was shown.
    """

    title: str
    rows: int
    accuracy: float
    held: bool | None


@dataclass(frozen=True)
class QualityReport:
    """Quality of a night as its page shows it.

    Args:
        estimate: without labels; None: the model does not know what its probabilities were calibrated on.
        void: the night drifts, so that the estimate does not hold.
        measured: accuracy of labelled rows of this night, and their number.
        labelled: earlier labelled nights, oldest first.
    """

    estimate: QualityEstimate | None
    void: bool = False
    measured: tuple[Estimate, int] | None = None
    labelled: Sequence[LabelledNight] = ()

    @property
    def held(self) -> tuple[int, int]:
        """Labelled nights whose shown interval held the truth, and all that showed one."""
        shown = [night.held for night in self.labelled if night.held is not None]
        return sum(shown), len(shown)

    @property
    def sentences(self) -> list[str]:
        """Knowledge of the accuracy in sentences, the most certain first."""
        told = []
        if self.measured is not None:
            value, rows = self.measured
            told.append(f"Measured on {counted(rows, 'labelled row')}: accuracy {in_percent(value)}.")
        if self.void:
            told.append("No estimate without labels: the night drifts, and an estimate holds for ordinary nights only.")
            if self.labelled:
                last = self.labelled[-1]
                told.append(f"Last measured: {percent(last.accuracy)} on {counted(last.rows, 'row')} of {last.title}.")
        elif self.estimate is not None:
            told += self._estimated(self.estimate)
        else:
            told.append("No estimate without labels: the model does not know which rows it was calibrated on.")
        held, shown = self.held
        if shown:
            nights = counted(shown, "labelled night")
            told.append(
                f"Checked: of {nights} the interval held the true accuracy in {held} ({percent(held / shown)})."
            )
        return told

    @staticmethod
    def _estimated(estimate: QualityEstimate) -> list[str]:
        told = [
            f"Estimated without labels: accuracy {in_percent(estimate.accuracy)}, macro F1 "
            f"{in_percent(estimate.macro_f1)}; valid only for a night like those of the reference."
        ]
        if estimate.labelled_nights < MIN_LABELLED_NIGHTS:
            told.append(
                f"The intervals rest on a stated minimum of {points(LEAST_HALF_WIDTH).lstrip('+')} points on either "
                f"side: {counted(estimate.labelled_nights, 'labelled night')} of the {MIN_LABELLED_NIGHTS} that "
                "measured ones need."
            )
        if abs(estimate.apart) > FAR_APART:
            told.append(
                f"If only the mix of labels has moved, accuracy is {points(estimate.apart)} points from that: a "
                "hundred labels of this night would tell."
            )
        return told

    def to_json(self) -> dict[str, Any]:
        """Content of `quality` in report.json."""
        held, shown = self.held
        return {
            "void": self.void,
            "accuracy": self.estimate and self.estimate.accuracy.to_json(),
            "macro_f1": self.estimate and self.estimate.macro_f1.to_json(),
            "labelled_nights": self.estimate.labelled_nights if self.estimate else 0,
            "measured": self.measured and {**self.measured[0].to_json(), "rows": self.measured[1]},
            "intervals_that_held": held,
            "intervals_shown": shown,
        }


def in_percent(estimate: Estimate) -> str:
    """`81.2 % (78.0 % to 84.1 %)`."""
    return f"{percent(estimate.value)} ({percent(estimate.low)} to {percent(estimate.high)})"
