"""A model that gives no finite number for some rows: they are quarantined, the others are scored."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from bertray import schema as s
from bertray.io.store import open_store
from bertray.outputs import ledger
from tests import nightly
from tests.nightly import expected_ids, night_config, run_night, write_inbox

ROWS = {"a.parquet": 5, "b.parquet": 9, "c.parquet": 20}


@pytest.mark.parametrize("rows_per_shard", [4, 1000], ids=["shards", "files together"])
def test_rows_without_finite_probabilities_are_quarantined(rows_per_shard, tiny_encoder, tmp_path, monkeypatch):
    whole = nightly._HashPredictor.probs

    def poisoned(self, kept):
        probs_NC = whole(self, kept)
        ids = np.array(kept[s.ID].to_pylist(), str)
        probs_NC[np.isin(ids, ["b.parquet:0", "b.parquet:7"])] = [np.nan, 1.0]
        probs_NC[np.isin(ids, ["c.parquet:19"])] = [np.inf, 0.0]
        return probs_NC

    monkeypatch.setattr(nightly._HashPredictor, "probs", poisoned)
    write_inbox(tmp_path / "in", ROWS)
    config = night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), rows_per_shard=rows_per_shard)
    assert run_night(config) == 0
    nan = {"b.parquet:0", "b.parquet:7", "c.parquet:19"}
    scored, empty = expected_ids(ROWS)
    read = {name: pq.read_table(tmp_path / "out" / name) for name in ("data", "quarantine")}
    assert sorted(read["data"]["id"].to_pylist()) == sorted(set(scored) - nan)
    refused = read["quarantine"]
    reasons = dict(zip(refused["id"].to_pylist(), refused["reason"].to_pylist(), strict=True))
    assert reasons == dict.fromkeys(nan, "model_nan") | dict.fromkeys(empty, "text_null")
    paths = dict(zip(refused["id"].to_pylist(), refused["input_path"].to_pylist(), strict=True))
    assert {i: paths[i].rpartition("/")[2] for i in nan} == {i: i.partition(":")[0] for i in nan}
    (entry,) = ledger.read_ledger(open_store(str(tmp_path / "out")))
    assert entry.reasons["model_nan"] == 3
    counts = {file.relative_path: (file.rows_scored, file.rows_quarantined) for file in entry.files}
    assert counts == {"a.parquet": (5, 0), "b.parquet": (6, 3), "c.parquet": (17, 3)}
