"""Nights of an output in order, each judged by the reference of its time.

The reference is made of the first accepted nights of a model and then stays: one that moves with the nights swallows
slow drift. A person moves it, by a record that names the nights and a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bertray.errors import ConfigError, did_you_mean
from bertray.outputs import ledger
from bertray.outputs.control_files import LedgerRun
from bertray.outputs.decisions import Acceptance
from bertray.trust.drift import MAX_NIGHTS, MIN_NIGHTS, Drift, Reference
from bertray.trust.nights import Night
from bertray.trust.slow_drift import slow_shifts

RANGE_SIGN = ".."


@dataclass(frozen=True)
class JudgedNight:
    """A night, and what the rule says of it.

    Args:
        reference: that it was compared with.
    """

    night: Night
    drift: Drift
    reference: Reference | None = None


@dataclass
class _Accepted:
    """Accepted nights of one model version, and the nights that came after each change of them."""

    nights: list[Night] = field(default_factory=list)
    since: list[Night] = field(default_factory=list)
    reference: Reference | None = None

    def changed(self, nights: Sequence[Night]) -> None:
        self.nights, self.reference = list(nights), None

    def current(self, *, of_texts: bool = False) -> Reference | None:
        """The reference; None of too few nights."""
        if len(self.nights) < MIN_NIGHTS:
            return None
        if self.reference is None or self.reference.of_texts != of_texts:
            self.reference = Reference(self.nights, of_texts=of_texts)
        return self.reference


def judge_nights(runs: Sequence[LedgerRun], acceptances: Sequence[Acceptance]) -> list[JudgedNight]:
    """Every current run of an output with its verdict, in the order of slots and runs.

    Args:
        runs: the ledger.
        acceptances: oldest first.
    """
    nights = [Night.of(run) for run in ledger.current(runs)]
    accepted: dict[str, _Accepted] = {}
    newest = ""  # model version of the night before
    waiting = list(acceptances)
    judged = []
    for night in nights:
        while waiting and waiting[0].after_seq < night.seq:
            _accept(accepted, nights, waiting.pop(0))
        mine = accepted.setdefault(night.model_version, _Accepted())
        before = accepted.get(newest, mine)
        reference = mine.current() or before.current(of_texts=mine is not before)
        drift = _judge(night, mine, reference)
        if night.is_comparable:
            mine.since.append(night)
            if drift.state in ("ordinary", "no_baseline") and len(mine.nights) < MAX_NIGHTS:
                mine.changed([*mine.nights, night])
                mine.since.clear()
            if len(mine.nights) >= MIN_NIGHTS or len(before.nights) < MIN_NIGHTS:
                newest = night.model_version
        judged.append(JudgedNight(night, drift, reference))
    return judged


def _judge(night: Night, mine: _Accepted, reference: Reference | None) -> Drift:
    """Verdict by nights of the same model, or else by the texts of nights of the model before."""
    if night.profile is None:
        return Drift("no_profile")
    if not night.is_comparable:
        return Drift("too_few_rows")
    if reference is None:
        return Drift("no_baseline", reference=tuple(one.title for one in mine.nights))
    slow = slow_shifts(reference, [*mine.since, night]) if reference is mine.reference else []
    shifts = tuple(sorted([*slow, *reference.judge(night)], key=lambda shift: not shift.is_alarm))
    titles = tuple(one.title for one in reference.nights)
    return Drift("alarm" if shifts[0].is_alarm else "ordinary", shifts, titles, reference.of_texts)


def _accept(accepted: dict[str, _Accepted], nights: Sequence[Night], acceptance: Acceptance) -> None:
    """Nights that a person named: enough of them are a new reference, fewer join the one there is."""
    named = [night for night in nights if night.slot in acceptance.slots and night.is_comparable]
    for version in dict.fromkeys(night.model_version for night in named):
        mine = accepted.setdefault(version, _Accepted())
        of_version = [night for night in named if night.model_version == version]
        kept = [] if len(of_version) >= MIN_NIGHTS else [one for one in mine.nights if one not in of_version]
        mine.changed([*kept, *of_version])
        mine.since.clear()


def slots_of(runs: Sequence[LedgerRun], wanted: str) -> list[str]:
    """Slots that `drift.accept` names: one, or those from one to another, in the order of the output.

    Args:
        wanted: `dt=2026-11-20`, or `dt=2026-11-01..dt=2026-11-20`.

    Raises:
        ConfigError: there is no such slot, or the range is empty.
    """
    slots = list(dict.fromkeys(run.slot for run in ledger.current(runs)))
    ends = wanted.split(RANGE_SIGN) if RANGE_SIGN in wanted else [wanted, wanted]
    for end in ends:
        if end not in slots:
            raise ConfigError(
                f"drift.accept={wanted}: no committed slot {end!r}.{did_you_mean(end, slots)}",
                f"Slots: {', '.join(slots[-10:]) or 'none'}.",
            )
    first, last = slots.index(ends[0]), slots.index(ends[-1])
    if len(ends) != 2 or first > last:
        raise ConfigError(
            f"drift.accept={wanted}: expected SLOT or FIRST{RANGE_SIGN}LAST, the first committed before the last.",
            "Name one slot, or two with two dots between.",
        )
    return slots[first : last + 1]
