"""Texts in memory become the vectors that `bertray embed` writes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import bertray
from bertray.cli import run

TEXTS = ["the film was great", "<b>awful</b> plot", "lovely " * 40, "a"]


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
def test_encode_gives_what_embed_writes(tiny_encoder, tmp_path, pooling, normalize):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": list("abcd"), "text": TEXTS}), tmp_path / "in" / "a.parquet")
    keys = [f"pooling={pooling}", f"normalize={str(normalize).lower()}", "max_length=24"]
    argv = ["embed", f"model={tiny_encoder}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", *keys]
    assert run(argv) == 0
    rows = ds.dataset(tmp_path / "out" / "data", partitioning="hive").to_table().sort_by("id")
    embedder = bertray.Embedder.load(tiny_encoder, pooling=pooling, normalize=normalize, max_length=24)
    vectors_ND = embedder.encode(TEXTS)
    assert vectors_ND.shape == (4, embedder.width)
    np.testing.assert_array_equal(vectors_ND, np.stack(rows["embedding"].to_numpy()))


def test_texts_without_content_have_no_vector(tiny_encoder):
    embedder = bertray.Embedder(tiny_encoder, max_length=24)
    with pytest.raises(bertray.DataRefused, match=r"1 of 2 texts cannot be read by the model, at position 1"):
        embedder.encode(["a", ""])
    vectors_ND = embedder.encode(["a", ""], on_refused="null")
    assert np.isnan(vectors_ND).all(axis=1).tolist() == [False, True]
    table = embedder(pa.table({"text": ["a", ""], "embedding": [1, 2]}))
    assert table.column_names == ["text", "input_embedding", "embedding"]
    assert table["embedding"].is_null().to_pylist() == [False, True]
    assert table["embedding"][0].as_py() == vectors_ND[0].tolist()


def test_a_vector_for_each_token_is_written_not_held(tiny_encoder):
    with pytest.raises(bertray.ConfigError, match=r"bertray\.embed"):
        bertray.Embedder(tiny_encoder, pooling="tokens", max_length=24)
