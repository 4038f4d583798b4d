"""`drift.accept`: a person declares nights ordinary, and the record of it."""

from __future__ import annotations

from collections import Counter

from bertray.config import ScoreConfig
from bertray.errors import ConfigError
from bertray.io.store import Store
from bertray.outputs import ledger
from bertray.outputs.decisions import ACCEPTED, Acceptance, append_record, now, read_records, user
from bertray.trust.drift import MIN_NIGHTS
from bertray.trust.nights import MIN_ROWS, Night
from bertray.trust.reference import slots_of
from bertray.wording import counted


def accept_nights(config: ScoreConfig, store: Store) -> str:
    """Record the nights that a config accepts, unless the newest record says so; returns what follows, in a sentence.

    Raises:
        ConfigError: nothing is committed, no such slot, or none that nights can be compared with.
    """
    assert config.drift.accept is not None
    assert config.drift.reason is not None
    runs = ledger.committed_entries(store, None)
    slots = slots_of(runs, config.drift.accept)
    named = f"{counted(len(slots), 'slot')} ({slots[0]} to {slots[-1]})" if len(slots) > 1 else f"slot {slots[0]}"
    before = read_records(store, ACCEPTED, Acceptance)
    if before and (before[-1].slots, before[-1].reason) == (slots, config.drift.reason):
        return f"{named}: accepted before, for the same reason."
    nights = [Night.of(run) for run in ledger.current(runs) if run.slot in slots]
    usable = [night for night in nights if night.is_comparable]
    if not usable:
        raise ConfigError(
            f"drift.accept={config.drift.accept}: none of its nights can be a reference: no profile, or fewer than "
            f"{MIN_ROWS} rows.",
            "Name nights that were scored by this version.",
        )
    record = Acceptance(after_seq=len(runs), slots=slots, reason=config.drift.reason, at=now(), by=user())
    append_record(store, ACCEPTED, record)
    of_versions = Counter(night.model_version for night in usable).values()
    does = f"{'are' if max(of_versions) >= MIN_NIGHTS else 'join'} the reference of later nights"
    unusable = len(nights) - len(usable)
    left_out = f" {counted(unusable, 'night')} without a profile or with few rows left out." if unusable else ""
    return f"{named} accepted: their nights {does}.{left_out}"
