"""An inbox with reviews, nights over it, and what they did with each row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bertray.io.store import Store, open_store
from bertray.outputs import ledger
from bertray.outputs.control_files import LedgerEntry
from tests.nightly import night_config, run_night, visible

NUM_GOOD = 20
GOOD_IDS = [f"good:{i}" for i in range(NUM_GOOD)]


def reviews(name: str, num_rows: int = 10) -> pa.Table:
    ids = [f"{name}:{i}" for i in range(num_rows)]
    return pa.table({"id": ids, "text": [f"the film was good and {name} {i}" for i in range(num_rows)]})


def parquet_file(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


@dataclass
class Night:
    """An inbox with one good file, and runs over it; every commit is checked against what readers find."""

    folder: Path
    encoder: Path
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def inbox(self) -> Path:
        return self.folder / "in"

    @property
    def store(self) -> Store:
        return open_store(str(self.folder / "out"))

    def add(self, name: str, content: bytes | pa.Table) -> Path:
        path = self.inbox / name
        path.write_bytes(parquet_file(content) if isinstance(content, pa.Table) else content)
        return path

    def run(self, **keys: Any) -> int:
        code = run_night(self.config(**keys), **self.keys)
        for entry in self.entries:
            check_accounts(self.store, entry)
        return code

    def config(self, **keys: Any) -> Any:
        return night_config(self.encoder, self.inbox, str(self.folder / keys.pop("output", "out")), **keys)

    @property
    def entries(self) -> list[LedgerEntry]:
        return ledger.with_parts(self.store, ledger.current(ledger.read_ledger(self.store)))

    @property
    def scored(self) -> list[str]:
        return sorted(sum(visible(self.store, "data").values(), Counter()).elements())

    def rows(self, root: str = "data") -> list[dict[str, Any]]:
        return _rows(self.store, root)

    def refused(self) -> list[tuple[str, int | None, str]]:
        """(file name, row, reason) of everything in quarantine."""
        rows = [(Path(r["input_path"]).name, r["row_no"], r["reason"]) for r in self.rows("quarantine")]
        return sorted(rows, key=lambda row: (row[0], -1 if row[1] is None else row[1]))

    def counts(self) -> dict[str, tuple[int | None, int, int]]:
        """File name -> (rows in, scored, quarantined)."""
        files = [file for entry in self.entries for file in entry.files]
        return {Path(f.path).name: (f.rows_in, f.rows_scored, f.rows_quarantined) for f in files}


def check_accounts(store: Store, entry: LedgerEntry) -> None:
    """What the ledger says is what lies there, and every row that came in stands on one side."""
    paths = Counter(
        row["input_path"] for row in _rows(store, f"quarantine/{entry.folder}") if row["row_no"] is not None
    )
    for file in entry.files:
        assert (file.rows_in or 0) == file.rows_scored + file.rows_quarantined, file.path
        if file.reason is None:
            assert paths[file.path] == file.rows_quarantined
    assert len(_rows(store, f"data/{entry.folder}")) == entry.rows_scored == sum(f.rows_scored for f in entry.files)
    assert entry.rows_in == entry.rows_scored + entry.rows_quarantined
    reasons = Counter(row["reason"] for row in _rows(store, f"quarantine/{entry.folder}"))
    assert dict(reasons) == entry.reasons


def _rows(store: Store, folder: str) -> list[dict[str, Any]]:
    keys = [key for key in store.keys(folder) if key.endswith(".parquet")]
    return [row for key in keys for row in pq.read_table(pa.BufferReader(store.get(key))).to_pylist()]


def with_one_good_file(folder: Path, encoder: Path) -> Night:
    (folder / "in").mkdir()
    night = Night(folder, encoder)
    night.add("good.parquet", reviews("good", NUM_GOOD))
    return night


def assert_nothing_committed(night: Night) -> None:
    assert night.entries == []
    assert night.store.keys("data") == []
    assert night.store.keys("quarantine") == []


def with_text(values: pa.Array) -> pa.Table:
    return pa.table({"id": [f"bad:{i}" for i in range(len(values))], "text": values})


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    def column(name: str) -> pa.Array:
        values = [row[name] for row in rows]
        raw = [v.encode("utf-8", "surrogatepass") if isinstance(v, str) else v for v in values]
        return pa.array(raw, pa.binary()).view(pa.string())  # as a writer without checks would do

    return parquet_file(pa.table({"id": column("id"), "text": column("text")}))


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    def line(row: dict[str, Any]) -> bytes:
        marks = {f"bytes of {name}": value for name, value in row.items() if isinstance(value, bytes)}
        named = {name: f"bytes of {name}" if isinstance(value, bytes) else value for name, value in row.items()}
        out = json.dumps(named).encode()
        for mark, value in marks.items():
            out = out.replace(mark.encode(), value)
        return out

    return b"".join(line(row) + b"\n" for row in rows)


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    def value(found: Any) -> bytes:
        raw = found if isinstance(found, bytes) else (found or "").encode("utf-8", "surrogatepass")
        return b'"' + raw.replace(b'"', b'""') + b'"'

    lines = [b",".join(value(found) for found in row.values()) for row in rows]
    return b"\n".join([",".join(rows[0]).encode(), *lines, b""])


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "parquet": as_parquet,
    "jsonl": as_jsonl,
    "csv": as_csv,
}
