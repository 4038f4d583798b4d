"""Bits flip and files are cut short, in what was read and in what was written: it is refused, or it changes nothing."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.io.store import open_store
from bertray.outputs import ledger
from tests.nightly import check_exact, night_config, run_night, visible, write_inbox

ROWS = {"a.parquet": 40, "b.parquet": 9}
KNOWN_CODES = {0, 4, 6, 7}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """With one bit flipped, or cut short."""
    at = chance.randrange(len(content))
    if chance.random() < 0.5:
        return content[:at]
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


@pytest.fixture
def finished(tmp_path, tiny_encoder):
    """(config of a night that is done, its output)."""
    write_inbox(tmp_path / "in", ROWS)
    config = night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"))
    assert run_night(config) == 0
    return config, tmp_path / "out"


def test_every_damage_of_a_published_part_shows(finished):
    """In the ledger's digest, and a reader that looks at page checksums never gets other values."""
    _, output = finished
    (entry,) = ledger.read_ledger(open_store(str(output)))
    digest_of = {part.name: part.sha256 for part in entry.parts}
    chance = random.Random(1)
    for path in sorted((output / "data" / entry.folder).glob("*.parquet")):
        content, rows = path.read_bytes(), pq.ParquetFile(path).read()
        assert hashlib.sha256(content).hexdigest() == digest_of[path.name]
        for _ in range(50):
            changed = damaged(content, chance)
            assert hashlib.sha256(changed).hexdigest() != digest_of[path.name]
            try:
                seen = pq.ParquetFile(pa.BufferReader(changed), page_checksum_verification=True).read()
            except (OSError, ValueError, pa.ArrowException):
                continue
            assert seen == rows or seen.schema != rows.schema  # a name or a type in the footer


def damage_control_files(config, output: Path, times: int, seed: int) -> Counter[str]:
    """Damage one control file, run the night again with a new file beside; what is visible stays right."""
    chance, outcomes = random.Random(seed), Counter[str]()
    before = visible(open_store(str(output)), "data")
    files = sorted(path for path in (output / "control").rglob("*.json"))
    for number in range(times):
        copy = output.parent / f"copy-{number}"
        shutil.copytree(output, copy)
        victim = copy / chance.choice(files).relative_to(output)
        content = victim.read_bytes()
        victim.write_bytes(damaged(content, chance))
        code = run_night(config.model_copy(update={"output": str(copy)}))
        assert code in KNOWN_CODES, victim
        store = open_store(str(copy))
        assert visible(store, "data") == before, victim
        if code == 0:
            check_exact(store, ROWS)
        else:
            victim.write_bytes(content)  # restored, as the message says
            assert run_night(config.model_copy(update={"output": str(copy)})) == 0
            check_exact(store, ROWS)
        outcomes[f"{victim.parent.name}: {code}"] += 1
        shutil.rmtree(copy)
    return outcomes


def damage_inputs(encoder: Path, folder: Path, times: int, seed: int) -> Counter[int]:
    """Damage one of two input files; the night is refused, or every row that was read is accounted for."""
    chance, codes = random.Random(seed), Counter[int]()
    for number in range(times):
        inbox = folder / f"in-{number}"
        write_inbox(inbox, ROWS)
        whole = {path.name: pq.read_table(path) for path in inbox.iterdir()}
        for name, table in whole.items():  # as bertray writes Parquet; without checksums a flipped bit may be a text
            pq.write_table(table, inbox / name, write_page_checksum=True)
        victim = inbox / "a.parquet"
        victim.write_bytes(damaged(victim.read_bytes(), chance))
        output = folder / f"out-{number}"
        code = run_night(night_config(encoder, inbox, str(output), on_bad_file="quarantine", max_quarantine_ratio=1))
        assert code in KNOWN_CODES
        codes[code] += 1
        store = open_store(str(output))
        if code == 0:
            (entry,) = ledger.read_ledger(store)
            counts = {file.relative_path: file for file in entry.files}
            assert counts["b.parquet"].rows_in == ROWS["b.parquet"]
            for file in entry.files:
                assert (file.rows_in or 0) == file.rows_scored + file.rows_quarantined or file.reason
            good = {i for i in whole["a.parquet"]["id"].to_pylist() if int(i.rpartition(":")[2]) % 7 != 6}
            scored = {i for i in sum(visible(store, "data").values(), Counter()) if i.startswith("a.parquet")}
            assert scored <= good
        else:
            assert visible(store, "data") == {}
        shutil.rmtree(inbox)
        shutil.rmtree(output, ignore_errors=True)
    return codes


@pytest.mark.slow
def test_a_damaged_control_file_is_refused_or_changes_nothing(finished):
    template, incoming = finished
    outcomes = damage_control_files(template, incoming, times=60, seed=2)
    assert sum(n for name, n in outcomes.items() if name.endswith("4")) > 10, outcomes


@pytest.mark.slow
def test_a_damaged_input_is_refused_or_costs_what_it_says(tiny_encoder, tmp_path):
    codes = damage_inputs(tiny_encoder, tmp_path, times=60, seed=3)
    assert codes.total() == 60
