"""Release gate: may a candidate B take the place of model A? A pure decision on paired counts.

B passes when the one-sided 95 % lower bound of its gain in accuracy lies above `-tolerance` and no protected slice is
worse (one-sided mid-p, Holm over all slices judged). The k-th use of one test set is judged at 1/k of the error: of
many candidates that are no better, one is ahead by luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bertray.evaluation.paired import (
    ONE_SIDED_ERROR,
    PairedCounts,
    SliceGain,
    holm,
    one_sided_low,
    p_in_words,
    power,
    worse_midp,
)
from bertray.wording import counted, points

MIN_SLICE_ROWS = 100  # below, a slice that is 10 points worse is missed in most cases
SLICE_ERROR = 0.05
MAX_NAMED = 10  # slices that a sentence names


@dataclass(frozen=True)
class JudgedSlice:
    """A protected slice.

    Args:
        column, value: of the slice.
        gain: of B on it.
        adjusted_p: Holm's p value for "B is worse here"; None with fewer than `MIN_SLICE_ROWS` rows.
    """

    column: str
    value: str
    gain: SliceGain
    adjusted_p: float | None

    @property
    def worse(self) -> bool:
        return self.adjusted_p is not None and self.adjusted_p < SLICE_ERROR

    @property
    def name(self) -> str:
        return f"{self.column}={self.value}"

    def to_json(self) -> dict[str, Any]:
        return {
            "column": self.column,
            "value": self.value,
            "rows": self.gain.rows,
            "difference": self.gain.gain.to_json(),
            "adjusted_p": self.adjusted_p,
            "worse": self.worse,
        }


@dataclass(frozen=True)
class GateDecision:
    """Outcome of the gate and the figures behind it.

    Args:
        gain: of B over A in accuracy.
        low: its one-sided lower bound at `error`.
        tolerance: fraction of accuracy that B may lose.
        error: of the one-sided bound: 5 % divided by `use`.
        use: number of times that this test set has judged a candidate for this name, this one included.
        slices: protected ones.
        first: there is no model A; B stands beside the majority class.
        finds: true gain -> share of such test sets on which the gate would let it pass.
    """

    gain: float
    low: float
    tolerance: float
    error: float
    use: int
    slices: tuple[JudgedSlice, ...]
    first: bool
    finds: Mapping[float, float]

    @property
    def passed(self) -> bool:
        return self.low > -self.tolerance and not self.worse_slices

    @property
    def worse_slices(self) -> list[JudgedSlice]:
        return [judged for judged in self.slices if judged.worse]

    @property
    def sentences(self) -> list[str]:
        """The decision and everything that bears on it, the decision first."""
        other = "the majority class" if self.first else "the model in use"
        bound = (
            f"accuracy {points(self.gain)} points over {other}, lower bound {points(self.low)} "
            f"(one-sided, {100 * (1 - self.error):.4g} %), needed above "
            f"{points(-self.tolerance) if self.tolerance else 0}"
        )
        said = [f"{'Passed' if self.passed else 'Refused'}: {bound}."]
        if self.tolerance:
            said.append(
                f"The tolerance lets a model that is worse by {100 * self.tolerance:g} points pass in "
                f"{100 * self.error:.2g} % of cases, and one that is worse by less more often."
            )
        for judged in self.worse_slices:
            said.append(
                f"Worse on {judged.name}: {points(judged.gain.gain.value)} points on "
                f"{counted(judged.gain.rows, 'row')} (adjusted p {p_in_words(judged.adjusted_p or 0.0)})."
            )
        few = [f"{judged.name} ({judged.gain.rows:,})" for judged in self.slices if judged.adjusted_p is None]
        if few:
            more = f" and {len(few) - MAX_NAMED:,} more" if len(few) > MAX_NAMED else ""
            said.append(f"Cannot be judged, with fewer than {MIN_SLICE_ROWS} rows: {', '.join(few[:MAX_NAMED])}{more}.")
        if self.use > 1:
            said.append(
                f"Use {self.use} of this test set for this name: judged at 1/{self.use} of the error. "
                "A fresh test set is judged at the whole of it."
            )
        found = " and ".join(f"{100 * gain:g} in {100 * share:.0f} %" for gain, share in self.finds.items())
        said.append(f"On such a test set the gate lets a true gain of so many points pass: {found} of cases.")
        return said

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "gain": self.gain,
            "low": self.low,
            "tolerance": self.tolerance,
            "error": self.error,
            "use": self.use,
            "first": self.first,
            "protected": [judged.to_json() for judged in self.slices],
            "sentences": self.sentences,
        }


def decide(
    counts: PairedCounts,
    slices: Mapping[str, Mapping[str, SliceGain]],
    *,
    tolerance: float = 0.0,
    use: int = 1,
    first: bool = False,
    seed: int = 0,
) -> GateDecision:
    """Judge a candidate B.

    Args:
        counts: rows by which of A and B is right.
        slices: protected column -> value -> gain.
        tolerance: fraction of accuracy that B may lose.
        use: as in `GateDecision`.
        first: A is the majority class of the rows.
        seed: of the simulated power.
    """
    error = ONE_SIDED_ERROR / use
    rows = counts.rows
    return GateDecision(
        gain=(counts.only_b - counts.only_a) / rows,
        low=float(one_sided_low(counts, error)),
        tolerance=tolerance,
        error=error,
        use=use,
        slices=judge_slices([(column, value, gain) for column, of in slices.items() for value, gain in of.items()]),
        first=first,
        finds={gain: power(counts, gain, error=error, tolerance=tolerance, seed=seed) for gain in (0.01, 0.02)},
    )


def judge_slices(slices: Sequence[tuple[str, str, SliceGain]]) -> tuple[JudgedSlice, ...]:
    """Test each slice of at least `MIN_SLICE_ROWS` rows for "B is worse here", Holm over all of them."""
    large = [number for number, (_, _, gain) in enumerate(slices) if gain.rows >= MIN_SLICE_ROWS]
    p_values = [float(worse_midp(slices[number][2].only_a, slices[number][2].only_b)) for number in large]
    adjusted = dict(zip(large, holm(p_values), strict=True))
    return tuple(
        JudgedSlice(column, value, gain, adjusted.get(number)) for number, (column, value, gain) in enumerate(slices)
    )
