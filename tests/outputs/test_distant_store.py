"""Requests of a night to an object store: they do not grow with the nights before it, and go several at once."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from bertray.io.store import Store, open_store
from bertray.outputs import ledger, publish, snapshots
from bertray.outputs.control_files import Receipt, Span, StagedFile
from bertray.outputs.receipts import whole_receipts
from tests.nightly import night_config, run_night, write_inbox
from tests.s3_in_memory import BUCKET, InMemoryS3

MOST_REQUESTS = 30  # to commit a night, to judge it beside earlier ones, for its page and the index


@pytest.fixture
def server(monkeypatch):
    with InMemoryS3().serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def add_nights(server: InMemoryS3, output: str, nights: int) -> None:
    """Turn an output with one committed night into one with many: the same run under other slots and files."""
    store = open_store(output)
    first = ledger.with_parts(store, ledger.read_ledger(store)[:1])[0]
    root = output.removeprefix(f"s3://{BUCKET}/")
    for seq in range(2, nights + 1):
        files = [file.model_copy(update={"path": f"{file.path}.{seq}", "digest": f"{seq:x}"}) for file in first.files]
        others = {"seq": seq, "slot": f"dt={seq}", "plan_key": f"{seq:016x}", "run_id": f"{seq:032x}", "files": files}
        server.values[f"{root}/{ledger.entry_key(seq)}"] = first.model_copy(update=others).to_bytes()
        server.values[f"{root}/{publish.published_key(seq)}"] = b""
        server.values[f"{root}/{publish.published_key(seq)}.reported"] = b""


def requests_of_a_night(server: InMemoryS3, nights: int, encoder: Path, folder: Path) -> list[tuple[str, str]]:
    """Requests of a night after many, without those for its parts: staged, receipts, copies."""
    config = night_config(encoder, folder / "in", f"s3://{BUCKET}/{folder.name}")
    write_inbox(folder / "in", {"a.parquet": 6})
    assert run_night(config, day="2026-01-01") == 0
    add_nights(server, config.output, nights)
    write_inbox(folder / "in", {"b.parquet": 6})
    assert run_night(config, day="2026-01-02") == 0  # it writes the snapshot that is due
    server.asked.clear()
    write_inbox(folder / "in", {"c.parquet": 6})
    assert run_night(config, day="2026-01-03") == 0
    return [(verb, key) for verb, key in server.asked if not ("/part-" in key or key.endswith(".receipt.json"))]


@pytest.mark.slow
@pytest.mark.parametrize("nights", [10, 1000])
def test_a_night_costs_thirty_requests_besides_its_parts_and_the_entries_after_the_snapshot(
    nights, server, tiny_encoder, tmp_path
):
    asked = requests_of_a_night(server, nights, tiny_encoder, tmp_path)
    assert len(ledger.read_ledger(open_store(f"s3://{BUCKET}/{tmp_path.name}"))) == nights + 2
    entries_read = [key for verb, key in asked if verb == "GET" and "control/commits/" in key]
    assert len(entries_read) == 1
    assert len(asked) - len(entries_read) <= MOST_REQUESTS, asked


def test_without_a_snapshot_every_entry_is_read_and_it_is_said_when_one_is_damaged(
    server, tiny_encoder, tmp_path, caplog
):
    requests_of_a_night(server, 30, tiny_encoder, tmp_path)
    store = open_store(f"s3://{BUCKET}/{tmp_path.name}")
    expected = [(run.seq, run.slot, run.num_parts, run.files) for run in ledger.read_ledger(store)]
    (newest,) = store.keys(snapshots.SNAPSHOTS)
    store.put(newest, store.get(newest)[:-9])
    caplog.clear()
    known = ledger.read_ledger(store)
    assert [(run.seq, run.slot, run.num_parts, run.files) for run in known] == expected
    assert f"{newest}: damaged" in caplog.text
    assert (known.snapshot, known.damaged) == (0, {30})
    ledger.write_due_snapshot(store, known, 0)
    assert ledger.read_ledger(store).snapshot == 30


# --- parts -----------------------------------------------------------------------------------------------------------


def stage(store: Store, number: int) -> Receipt:
    """A part and its receipt below `control/runs/dt=1/k/`, as an actor leaves them."""
    content, key = f"rows of part {number}".encode(), f"control/runs/dt=1/k/part-{number:03d}.parquet"
    etag = store.put(key, content)
    digest = hashlib.sha256(content).hexdigest()
    receipt = Receipt(
        spans=[Span(file_no=0, lo=number, hi=number + 1, rows_scored=1, rows_quarantined=0)],
        seconds=0.0,
        part=StagedFile(key=key, rows=1, bytes=len(content), sha256=digest, etag=etag),
        quarantine=None,
        evaluation=None,
    )
    store.put(f"control/runs/dt=1/k/{number:03d}.receipt.json", receipt.to_bytes())
    return receipt


def test_a_resumed_run_reads_receipts_and_only_those_parts_that_the_store_tags_otherwise(server, caplog):
    store = open_store(f"s3://{BUCKET}/resumed")
    receipts = [stage(store, number) for number in range(40)]
    server.asked.clear()
    assert whole_receipts(store, "control/runs/dt=1/k") == receipts
    assert server.counted() == {"LIST": 1, "GET": 40}
    store.put(receipts[7].part.key, b"rows of qart 7")
    store.delete(receipts[9].part.key)
    server.asked.clear()
    assert whole_receipts(store, "control/runs/dt=1/k") == [r for r in receipts if r not in (receipts[7], receipts[9])]
    assert [key for verb, key in server.asked if verb == "GET" and "/part-" in key] == [
        f"resumed/{receipts[7].part.key}"
    ]
    assert "part-007.parquet: damaged" in caplog.text


def test_publishing_costs_a_request_a_part_and_goes_on_where_it_was(server):
    store = open_store(f"s3://{BUCKET}/published")
    for number in range(40):
        store.put(f"control/x/p{number}", b"%d" % number)
    runs = {"run=1": [(f"control/x/p{number}", f"part-{number}.parquet") for number in range(40)]}
    server.asked.clear()
    assert store.publish("data/dt=1", runs)
    assert server.counted() == Counter({"LIST": 1, "COPY": 40, "PUT": 1})
    for name in ("_SUCCESS", "part-3.parquet"):
        store.delete(f"data/dt=1/run=1/{name}")
    server.asked.clear()
    assert store.publish("data/dt=1", runs)
    assert server.counted() == Counter({"LIST": 1, "COPY": 1, "PUT": 1})
