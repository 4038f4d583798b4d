"""Snapshots of the ledger: every tenth entry has one of all entries up to it, so that a night does not read them all.

A snapshot follows from the entries and from the markers of published runs. It is written put-if-absent by whichever
run finds that one is due; a run that dies before leaves that to the next. It holds no lists of parts, and no files of
runs that a later version has replaced.
"""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Sequence

from bertray.errors import BertrayError, ConflictError
from bertray.io import faults
from bertray.io.store import Store
from bertray.outputs.control_files import LEDGER_SCHEMA_VERSION, EntrySummary, LedgerRun, Record

log = logging.getLogger(__name__)

SNAPSHOTS = "control/snapshots"
EVERY = 10  # entries
_NAME = re.compile(rf"{SNAPSHOTS}/(\d{{8,}})\.json\.gz")


class Snapshot(Record):
    """All entries of a ledger up to one of them.

    Args:
        finished: entries up to this one are published and have their report, or a later version has replaced them.
        entries: oldest first.
    """

    schema_version: int = LEDGER_SCHEMA_VERSION
    finished: int
    entries: list[EntrySummary]

    def to_bytes(self) -> bytes:
        return gzip.compress(self.to_json().encode(), compresslevel=6, mtime=0)

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Snapshot:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            content = b""
        return super().from_bytes(content, where)


def snapshot_key(seq: int) -> str:
    """Key of the snapshot of entries 1 to `seq`."""
    return f"{SNAPSHOTS}/{seq:08d}.json.gz"


def snapshot_seq(key: str) -> int | None:
    """Last entry of the snapshot under a key; None when it is no key of a snapshot."""
    found = _NAME.fullmatch(key)
    return int(found[1]) if found else None


def newest_snapshot(store: Store) -> tuple[Snapshot | None, set[int]]:
    """The newest snapshot that is whole, and the last entries of those newer ones that are damaged."""
    damaged: set[int] = set()
    for key in reversed(store.keys(SNAPSHOTS)):
        seq = snapshot_seq(key)
        if seq is None:
            continue
        try:
            snapshot = Snapshot.from_bytes(store.get(key), store.uri(key))
            if [entry.seq for entry in snapshot.entries] == list(range(1, seq + 1)):
                return snapshot, damaged
        except FileNotFoundError:
            continue  # cleared away by gc since it was listed
        except ConflictError:
            pass
        log.warning("%s: damaged; the ledger is read from an older snapshot or its entries", store.uri(key))
        damaged.add(seq)
    return None, damaged


def write_snapshot(store: Store, runs: Sequence[LedgerRun], finished: int, *, damaged: bool) -> bool:
    """Write the snapshot of some entries; what fails is logged, since the next run can do it.

    Args:
        runs: all entries up to a tenth one, oldest first.
        finished: see `Snapshot`.
        damaged: a damaged one stands there, which is overwritten.
    """
    newest = {run.slot: run.version for run in runs}
    entries = [EntrySummary.of(run, with_files=run.version == newest[run.slot]) for run in runs]
    key, content = snapshot_key(len(runs)), Snapshot(finished=finished, entries=entries).to_bytes()
    faults.point("snapshot.before_put")
    try:
        if damaged:
            store.put(key, content)
        else:
            store.put_new(key, content)
    except BertrayError as error:
        log.warning("snapshot of the ledger: %s", error)
        return False
    faults.point("snapshot.after_put")
    return True
