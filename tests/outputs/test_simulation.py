"""Two writers, a rewriter, gc and a reader on one store, in any order of their single requests, some of which fail.

Each run is a thread that may do one store request at a time, when the scheduler lets it; a request may fail before it
is done, or its reply may be lost after it. Orders are drawn by Hypothesis.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertray.errors import BertrayError, ConflictError, InfrastructureError
from bertray.io.object_store import publish_by_copy
from bertray.io.store_protocol import SUCCESS, Runs, StoredFile
from bertray.outputs import ledger, publish, snapshots
from bertray.outputs.commit import commit, make_entry
from bertray.outputs.control_files import FileRecord, Plan, Receipt, StagedFile
from bertray.outputs.garbage import find_garbage, remove
from bertray.outputs.receipts import adopt, staging_folder, verify_cover, whole_receipts, without_overlap
from bertray.scoring import plan as planning
from tests import plans
from tests.properties import examples

OLD = datetime(2000, 1, 1, tzinfo=UTC)


class MemStore:
    """An object store in memory: single requests are atomic, nothing else is."""

    root = "mem://"
    put_new_is_atomic = True
    num_threads = 1  # a thread of a pool would not wait for its turn

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.request: Callable[[Callable[[], Any]], Any] = lambda act: act()

    def uri(self, key: str) -> str:
        return key

    def put(self, key: str, value: bytes) -> str:
        self.request(lambda: self.values.__setitem__(key, value))
        return hashlib.md5(value).hexdigest()

    def put_new(self, key: str, value: bytes) -> bool:
        # As an object store's client: after a lost reply it looks at what stands there.
        def create() -> bool:
            return self.values.setdefault(key, value) is value

        if self.request(create):
            return True
        with contextlib.suppress(FileNotFoundError):  # removed since
            return self.get(key) == value
        return False

    def get(self, key: str) -> bytes:
        def read() -> bytes:
            if key not in self.values:
                raise FileNotFoundError(key)
            return self.values[key]

        return bytes(self.request(read))

    def digest(self, key: str) -> str:
        return hashlib.sha256(self.get(key)).hexdigest()

    def exists(self, key: str) -> bool:
        return bool(self.request(lambda: key in self.values))

    def keys(self, prefix: str, *, after: str = "") -> list[str]:
        return [file.key for file in self.listing(prefix) if file.key > after]

    def listing(self, prefix: str) -> list[StoredFile]:
        def listed() -> list[StoredFile]:
            found = sorted((key, value) for key, value in self.values.items() if key.startswith(f"{prefix}/"))
            return [StoredFile(key, len(value), OLD, hashlib.md5(value).hexdigest()) for key, value in found]

        return list(self.request(listed))

    def delete(self, key: str) -> None:
        self.request(lambda: self.values.pop(key, None))

    def copy(self, source: str, target: str) -> None:
        def copied() -> None:
            if source not in self.values:
                raise FileNotFoundError(source)
            self.values[target] = self.values[source]

        self.request(copied)

    def publish(
        self, folder: str, runs: Runs, *, settled: Collection[str] = (), obsolete: Collection[str] = ()
    ) -> bool:
        return publish_by_copy(self, folder, runs, settled=settled, obsolete=obsolete)


class Scheduler:
    """Lets one of several threads do one request at a time, in a drawn order, with drawn faults."""

    def __init__(self, store: MemStore, seed: int, fault_rate: float) -> None:
        self._chance = random.Random(seed)
        self._fault_rate = fault_rate
        self._turn = threading.Condition()
        self._waiting: dict[int, str | None] = {}
        self._running: set[int] = set()
        store.request = self._request

    def run(self, *runs: Callable[[], None]) -> list[BertrayError | None]:
        ended: list[BertrayError | None] = [None] * len(runs)

        def body(number: int) -> None:
            self._me.number = number
            try:
                runs[number]()
            except BertrayError as error:
                ended[number] = error
            finally:
                with self._turn:
                    self._running.discard(number)
                    self._turn.notify_all()

        self._me = threading.local()
        self._running = set(range(len(runs)))
        threads = [threading.Thread(target=body, args=(n,), daemon=True) for n in self._running]
        for thread in threads:
            thread.start()
        while True:
            with self._turn:
                assert self._turn.wait_for(lambda: set(self._waiting) == self._running, timeout=20)
                if not self._running:
                    return ended
                chosen = self._chance.choice(sorted(self._waiting))
                faulty = self._chance.random() < self._fault_rate
                self._waiting[chosen] = self._chance.choice(["fail", "lost"]) if faulty else "ok"
                self._turn.notify_all()
                assert self._turn.wait_for(partial(self._has_gone, chosen), timeout=20)

    def _has_gone(self, number: int) -> bool:
        return self._waiting.get(number) is None

    def _request(self, act: Callable[[], Any]) -> Any:
        number = getattr(getattr(self, "_me", None), "number", None)
        if number is None:
            return act()
        with self._turn:
            self._waiting[number] = None
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self._waiting[number] is not None, timeout=20)
            fault = self._waiting.pop(number)
            try:
                if fault == "fail":
                    raise InfrastructureError("the request failed", "again")
                result = act()
                if fault == "lost":
                    raise InfrastructureError("the reply was lost", "again")
                return result
            finally:
                self._turn.notify_all()


def record(path: str, rows: int, modified: str = "1") -> FileRecord:
    return plans.file(path, size=rows, modified=modified, digest=f"{path}{modified}", rows=rows)


def stage(store: MemStore, plan: Plan, attempt: str, file_no: int, lo: int, hi: int) -> Receipt:
    rows = [f"{plan.files[file_no].path}{plan.files[file_no].modified}:{row}" for row in range(lo, hi)]
    content = "\n".join(rows).encode()
    key = f"{staging_folder(plan)}/{attempt}/part-{file_no}-{lo}"
    etag = store.put(key, content)
    digest = hashlib.sha256(content).hexdigest()
    part = StagedFile(key=key, rows=hi - lo, bytes=len(content), sha256=digest, etag=etag)
    receipt = plans.receipt(file_no, lo, hi).model_copy(update={"part": part})
    store.put_new(f"{key}.receipt.json", receipt.to_bytes())
    return receipt


def night(
    store: MemStore, files: Sequence[FileRecord], slot: str, attempt: str, *, rewrite: bool = False, dies: bool = False
) -> None:
    """One run: publish what is committed, pin, adopt, stage, verify, commit, publish; or die before it publishes.

    Snapshots of the ledger are written where a real night writes them, and reports are marked without being written.
    """
    entries = ledger.read_ledger(store)
    markers, num_earlier = publish.read_markers(store, entries), len(entries)
    entries = publish.publish_all(store, entries, markers)
    unmarked = [run for run in ledger.current(entries) if run.seq <= num_earlier and not markers.is_reported(run)]
    publish.mark_reported(store, unmarked, markers)
    entries = ledger.write_due_snapshot(store, entries, num_earlier)
    decisions = planning.decide_files(files, entries)
    changed = [d for d in decisions if d.verdict == "changed"]
    new = [d.file for d in decisions if d.verdict == "score"]
    version, beside = planning.versions(entries).get(slot, 1), True
    if rewrite and changed:
        slot, beside = changed[0].slot, False
        version = planning.versions(entries)[slot] + 1
        mine = {path for path, (_, entry) in planning.owners(entries).items() if entry.slot == slot}
        new = [file for file in files if file.path in mine]
    if not new:
        return
    key = planning.plan_key(new, "m", {}, version=version)
    plan = planning.pin_plan(
        store,
        Plan(
            plan_key=key,
            slot=slot,
            version=version,
            beside=beside,
            seq=len(entries) + 1,
            run_id=attempt * 8,
            created_at=attempt,
            model="m",
            model_version="m",
            labels=["x", "y"],
            settings={},
            files=new,
            rows_per_shard=2,
        ),
    ).plan
    shards = [(n, lo, min(lo + 2, f.num_rows)) for n, f in enumerate(plan.files) for lo in range(0, f.num_rows, 2)]
    stored = whole_receipts(store, staging_folder(plan))
    adopted = adopt([(shard,) for shard in shards], stored)
    done = {receipt.intervals for receipt in adopted}
    staged = [stage(store, plan, attempt, *shard) for shard in shards if (shard,) not in done]
    receipts = without_overlap([*adopted, *staged])
    verify_cover(plan, receipts)
    entry = make_entry(plan, entries, receipts, [], adopted=len(adopted), seconds=0.0, compute_seconds=0.0)
    entry, entries = commit(store, entries, entry, beside=plan.beside)
    if not dies:
        entries = publish.publish(store, entries, entry.slot, markers)
        publish.mark_reported(store, [entry], markers)
        ledger.write_due_snapshot(store, entries, num_earlier)


def clear_up(store: MemStore) -> None:
    """Gc a few times in a row, so that one meets every stage of the others."""
    for _ in range(5):
        with contextlib.suppress(InfrastructureError):
            remove(store, find_garbage(store, ledger.read_ledger(store), OLD + timedelta(days=3), timedelta(7)))


def rows_of(files: Sequence[FileRecord]) -> Counter[str]:
    return Counter(f"{file.path}{file.modified}:{row}" for file in files for row in range(file.num_rows or 0))


def visible(store: MemStore) -> Counter[str]:
    keys = [key for key in store.values if key.startswith("data/") and not key.endswith(SUCCESS)]
    return Counter(row for key in keys for row in store.values[key].decode().splitlines())


# Files of each run before, and whether the last of them died before it published.
EARLIER = {
    "nothing": ([], False),
    "one run": ([["a", "b"]], False),
    "one run that is not published": ([["a", "b"]], True),
    "three runs": ([["a"], ["b"], ["d"]], False),
    "three runs, the last not published": ([["a"], ["b"], ["d"]], True),
}


@pytest.fixture(autouse=True)
def _snapshots_as_often_as_can_be(monkeypatch):
    monkeypatch.setattr(snapshots, "EVERY", 2)


@pytest.mark.timeout(240)
@settings(max_examples=examples(300), suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.01, 0.05]),
    st.sampled_from(sorted(EARLIER)),
    st.sampled_from(["s", "t"]),
    st.sampled_from(["nothing", "for both", "for one"]),
    st.sampled_from([False, True]),
)
def test_whatever_the_order_and_the_faults_every_row_is_committed_once(
    seed, fault_rate, earlier, other_slot, changes, apart
):
    """Two runs on one slot or on two, with the same new file or one each, and maybe a file that changed."""
    store = MemStore()
    runs_before, dies = EARLIER[earlier]
    known: list[FileRecord] = []
    for number, paths in enumerate(runs_before):
        known += [record(path, {"a": 4, "b": 3, "d": 2}[path]) for path in paths]
        night(store, known, "s", f"z{number}", dies=dies and number == len(runs_before) - 1)
    rewrite = changes != "nothing" and bool(known)
    after = [record("a", 5, "2") if rewrite and file.path == "a" else file for file in known]
    ours, theirs = [*after, record("c", 3)], [*after, record("e" if apart else "c", 3)]
    runs = [
        lambda: night(store, ours, "s", "x", rewrite=rewrite),
        lambda: night(store, theirs, other_slot, "y", rewrite=rewrite and changes == "for both"),
        lambda: clear_up(store),
    ]
    ended = Scheduler(store, seed, fault_rate).run(*runs)
    assert all(error is None or isinstance(error, InfrastructureError | ConflictError) for error in ended)
    # The ledger alone, as `bertray files` reads it, is exact at any time.
    entries = ledger.read_ledger(store)
    exact = Counter(
        row for key in publish.committed_files(store, entries) for row in store.get(key).decode().splitlines()
    )
    held = [file for entry in ledger.current(entries) for file in entry.files]
    assert exact == Counter(f"{f.path}{f.digest[len(f.path) :]}:{row}" for f in held for row in range(f.rows_in))
    assert max(exact.values(), default=1) == 1
    # And the same commands again, undisturbed, bring everything to its end.
    everything = [*ours, *(file for file in theirs if file not in ours)]
    for attempt in ("u", "v", "w"):
        night(store, everything, "s", attempt, rewrite=rewrite)
    assert visible(store) == rows_of(everything)
    current = ledger.current(ledger.read_ledger(store))
    assert {key for key in store.values if key.endswith(SUCCESS)} == {
        f"data/{entry.folder}/{SUCCESS}" for entry in current
    }
    for slot in {entry.slot for entry in current}:
        runs_of_slot = [entry.run for entry in current if entry.slot == slot]
        assert runs_of_slot == list(range(1, len(runs_of_slot) + 1))
