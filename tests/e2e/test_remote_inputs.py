"""Nights whose input lies with each provider of object stores."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from bertray.io.store import open_store
from tests.nightly import check_exact, night_config, run_night, write_inbox

ROWS = {"a.parquet": 20, "b.parquet": 9}


@pytest.fixture
def night(remote, tiny_encoder, tmp_path):
    """(server, config); one slot of the server's files is committed."""
    root, server = remote
    write_inbox(tmp_path / "in", ROWS)
    server.values |= {f"in/{name}": (tmp_path / "in" / name).read_bytes() for name in ROWS}

    def config(**keys):
        return night_config(tiny_encoder, tmp_path, str(tmp_path / "out"), input=[f"{root}/in/"], **keys)

    assert run_night(config(slot="dt=1")) == 0
    check_exact(open_store(str(tmp_path / "out")), ROWS)
    server.asked.clear()
    return server, config


def test_known_files_are_known_by_their_tag_and_not_read_again(night, tmp_path):
    server, config = night
    server.values["in/a.parquet"] = bytes(server.values["in/a.parquet"])
    server.written["in/a.parquet"] = server.began.replace(year=2050)
    assert run_night(config(slot="dt=2")) == 0
    assert {verb for verb, _ in server.asked} == {"LIST", "HEAD"}
    check_exact(open_store(str(tmp_path / "out")), ROWS)


def test_a_value_that_was_replaced_is_refused_and_a_new_one_is_read(night, tmp_path, capsys):
    server, config = night
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(pa.table({"id": ["c.csv:0"], "text": ["the film was good"]}), sink)
    server.values["in/c.csv"] = sink.getvalue().to_pybytes()
    assert run_night(config(slot="dt=2")) == 0
    check_exact(open_store(str(tmp_path / "out")), ROWS | {"c.csv": 1}, slots=2)
    server.values["in/a.parquet"] = server.values["in/b.parquet"]
    assert run_night(config(slot="dt=3")) == 4
    assert "in/a.parquet" in capsys.readouterr().err
