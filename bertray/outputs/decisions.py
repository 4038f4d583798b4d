"""Decisions of people on nights, and labels that came later: numbered records beside the ledger, put-if-absent."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from bertray.errors import InfrastructureError
from bertray.io.pool import in_pool
from bertray.io.store import Store
from bertray.outputs.control_files import Record

ACCEPTED = "control/accepted"
TRUTH = "control/truth"
MAX_RACES = 20
NEWEST = 62  # labelled nights that are looked back at
RecordT = TypeVar("RecordT", bound=Record)


class Acceptance(Record):
    """Nights that a person declared ordinary.

    Args:
        after_seq: newest ledger entry at that time; later nights are judged by it.
        slots: their names.
        by: user and machine.
    """

    after_seq: int
    slots: list[str]
    reason: str
    at: str
    by: str


class Truth(Record):
    """Labels of a night's rows that people gave, beside what was estimated without them.

    Args:
        seq, run_id: of the ledger entry.
        source: `columns.label`, or the files of `truth`.
        confusion: rows by true (row) and predicted class.
        estimate: `trust.quality.NightEstimate` as JSON; empty where there was none.
        shown: ends of the interval of the accuracy that the page of the night showed; None: none, or void.
        measured: accuracy of the night by answers to rows drawn with known probabilities, and the ends of its interval;
            None: the labels are of all rows, or of rows like the others.
    """

    seq: int
    run_id: str
    model_version: str
    source: str
    at: str
    labels: list[str]
    confusion: list[list[int]]
    estimate: dict[str, Any]
    shown: tuple[float, float] | None
    measured: tuple[float, float, float] | None = None

    @property
    def rows(self) -> int:
        return sum(map(sum, self.confusion))

    @property
    def accuracy(self) -> float:
        """Accuracy of the night as far as labels tell; there is at least one."""
        if self.measured is not None:
            return self.measured[0]
        return sum(row[at] for at, row in enumerate(self.confusion)) / self.rows


def read_records(store: Store, folder: str, kind: type[RecordT], *, newest: int | None = None) -> list[RecordT]:
    """Records of a folder, oldest first.

    Args:
        newest: read only so many of the last ones.

    Raises:
        ConflictError: one is damaged.
    """
    keys = store.keys(folder)
    keys = keys if newest is None else keys[-newest:]
    contents = in_pool(store.get, keys, store.num_threads)
    return [kind.from_bytes(content, store.uri(key)) for key, content in zip(keys, contents, strict=True)]


def read_truths(store: Store) -> list[Truth]:
    """The newest records of labelled nights."""
    return read_records(store, TRUTH, Truth, newest=NEWEST)


def fullest(truths: Sequence[Truth]) -> list[Truth]:
    """Records with most rows of each run, in the order of the runs."""
    best: dict[str, Truth] = {}
    for truth in truths:
        if truth.rows and (truth.run_id not in best or truth.rows >= best[truth.run_id].rows):
            best[truth.run_id] = truth
    return sorted(best.values(), key=lambda truth: truth.seq)


def append_record(store: Store, folder: str, record: Record) -> None:
    """Write a record behind the newest one of a folder.

    Raises:
        InfrastructureError: others went on writing in between.
    """
    for _ in range(MAX_RACES):
        if store.put_new(f"{folder}/{len(store.keys(folder)) + 1:08d}.json", record.to_bytes()):
            return
    raise InfrastructureError(f"{store.uri(folder)}: many records are being written.", "Run the same command again.")


def now() -> str:
    """This moment, for records."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def user(name: Callable[[], str] = getpass.getuser) -> str:
    """User and machine, for records."""
    try:
        return f"{name()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name, as in a container
        return f"unknown@{socket.gethostname()}"
