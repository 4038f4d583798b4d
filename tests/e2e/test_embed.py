"""`bertray embed`: committed vectors by the reader and the commit of `score`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.io import faults
from bertray.model.bundle import BundleInfo, write_bundle
from bertray.model.embedder import Embedder
from bertray.model.tokenization import ReviewTokenizer
from bertray.reviews.clean import Cleaning
from tests.corpus import write
from tests.nightly import without_ray


@pytest.fixture
def embed(tmp_path, tiny_encoder, monkeypatch):
    """A function that embeds a folder of incoming reviews, in this process."""
    without_ray(monkeypatch)
    write(tmp_path / "in" / "a.parquet", 30, 3, "a")

    def call(*words: str) -> int:
        paths = [f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
        return run(["embed", f"model={tiny_encoder}", "max_length=24", *paths, *words])

    return call


def make_bundle(encoder, folder, long_text: str = "head"):
    """A classifier with another encoder than `encoder`, as a bundle."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.01)
    values: dict[str, str | None] = {"neg": "neg", "pos": "pos"}
    info = BundleInfo(
        labels=("neg", "pos"), label_values=values, max_length=24, long_text=long_text, cleaning=Cleaning()
    )
    write_bundle(folder, model, encoder, info, "A card.\n")
    return folder


@pytest.fixture
def trained_bundle(tmp_path, tiny_encoder):
    return make_bundle(tiny_encoder, tmp_path / "bundle")


def vectors_of(column: pa.ChunkedArray) -> np.ndarray:
    values = column.combine_chunks()
    return values.flatten().to_numpy().reshape(len(values), -1)


def expected(tiny_encoder, texts: list[str], **keys: Any) -> np.ndarray:
    return Embedder(tiny_encoder, **keys).vectors(ReviewTokenizer(tiny_encoder, 24).encode(pa.array(texts)))


def test_every_review_has_its_vector_and_the_counts_add_up(embed, tmp_path, tiny_encoder):
    broken = pa.table(
        {"id": ["b0", "b1"], "text": [None, "the plot was fine"], "label": ["x", "y"], "shop": ["n", "s"]}
    )
    pq.write_table(broken, tmp_path / "in" / "b.parquet")
    assert embed("keep_columns=[shop]") == 0
    [slot] = (tmp_path / "out" / "data").iterdir()
    rows = pq.read_table(slot / "run=1", partitioning=None)
    assert rows.schema.names == [
        "id",
        "embedding",
        "n_tokens",
        "truncated",
        "model_version",
        "run_id",
        "embedded_at",
        "shop",
    ]
    assert rows.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    given = {row["id"]: row["text"] for row in pq.read_table(tmp_path / "in" / "a.parquet").to_pylist()}
    given["b1"] = "the plot was fine"
    assert sorted(rows["id"].to_pylist()) == sorted(given)
    texts = [given[i] for i in rows["id"].to_pylist()]
    np.testing.assert_allclose(vectors_of(rows["embedding"]), expected(tiny_encoder, texts), atol=1e-5)
    assert pq.read_table(tmp_path / "out" / "quarantine")["reason"].to_pylist() == ["text_null"]
    report = json.loads((tmp_path / "out" / "reports" / slot.name / "run=1" / "report.json").read_text())
    assert (report["kind"], report["rows_in"], report["adds_up"]) == ("embedded", 32, True)
    page = (tmp_path / "out" / "reports" / slot.name / "run=1" / "report.html").read_text()
    assert "31 embedded" in page
    assert "mean of the tokens, float32" in page
    assert 'id="labels"' not in page


def test_nothing_new_is_success_and_a_late_file_gets_a_run_of_its_own(embed, tmp_path, capsys):
    assert embed() == 0
    assert embed() == 0
    assert "nothing new" in capsys.readouterr().out
    write(tmp_path / "in" / "late.parquet", 5, 7, "late")
    assert embed() == 0
    (slot,) = (tmp_path / "out" / "data").iterdir()
    assert sorted(path.name for path in slot.iterdir()) == ["run=1", "run=2"]
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 35


def test_half_precision_of_length_one(embed, tmp_path, tiny_encoder):
    assert embed("dtype=float16", "normalize=true", "pooling=cls") == 0
    rows = pq.read_table(tmp_path / "out" / "data")
    assert rows.schema.field("embedding").type == pa.list_(pa.float16(), 32)
    found = vectors_of(rows["embedding"])
    np.testing.assert_allclose(np.linalg.norm(found.astype(np.float32), axis=1), 1.0, atol=1e-2)
    given = {row["id"]: row["text"] for row in pq.read_table(tmp_path / "in" / "a.parquet").to_pylist()}
    texts = [given[i] for i in rows["id"].to_pylist()]
    exact = expected(tiny_encoder, texts, pooling="cls", normalize=True)
    np.testing.assert_array_equal(found, exact.astype(np.float16))


def test_every_token_has_its_vector_and_its_word(embed, tmp_path, tiny_encoder):
    assert embed("pooling=tokens") == 0
    rows = pq.read_table(tmp_path / "out" / "data")
    assert rows.schema.field("embedding").type == pa.list_(pa.list_(pa.float32(), 32))
    given = {row["id"]: row["text"] for row in pq.read_table(tmp_path / "in" / "a.parquet").to_pylist()}
    for row in rows.to_pylist():
        tokens = ReviewTokenizer(tiny_encoder, 24).encode(pa.array([given[row["id"]]]))
        vectors = Embedder(tiny_encoder).token_vectors(tokens)
        np.testing.assert_allclose(np.array(row["embedding"]), vectors, atol=1e-5)
        words = given[row["id"]].split()[: len(vectors) - 2]
        assert row["tokens"] == ["[CLS]", *words, "[SEP]"]
        assert len(row["tokens"]) == len(vectors) == min(row["n_tokens"], 24)


def test_a_run_that_died_before_its_commit_is_finished_by_the_same_command(embed, tmp_path, monkeypatch):
    def die(name: str) -> None:
        if name == "verify.before":
            raise RuntimeError("died")

    with monkeypatch.context() as patch:
        patch.setattr(faults, "point", die)
        assert embed() == 1
    assert not (tmp_path / "out" / "data").exists()
    assert embed("takeover=true") == 0
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 30
    entry = json.loads((tmp_path / "out" / "control" / "commits" / "00000001.json").read_text())
    assert entry["adopted_receipts"] == 1


def test_vectors_that_are_not_finite_go_to_quarantine(embed, tmp_path, monkeypatch):
    for words, name, broken in (([], "vectors", 30), (["pooling=tokens"], "token_vectors", 1)):
        output = tmp_path / name
        compute = getattr(Embedder, name)

        def spoiled(self, table, compute=compute, broken=broken):
            vectors = compute(self, table).copy()
            vectors[3:4] = np.nan  # the fourth review, or the fourth token, which is of the first one
            return vectors

        with monkeypatch.context() as patch:
            patch.setattr(Embedder, name, spoiled)
            assert embed(f"output={output}", *words) == 0
        refused = pq.read_table(output / "quarantine").to_pylist()
        assert [(row["reason"], row["row_no"]) for row in refused] == [("model_nan", 3 if not words else 0)]
        assert pq.read_table(output / "data").num_rows == 29


def test_an_output_holds_vectors_that_can_be_compared(embed, tmp_path, trained_bundle, capsys):
    assert embed() == 0
    for word, said in (
        ("pooling=cls", "holds vectors with pooling=mean, not cls"),
        ("max_length=16", "holds vectors with max_length=24, not 16"),
        ("cleaning.strip_html=false", "holds vectors with cleaning="),
        (f"model={trained_bundle}", "vectors of two models cannot be compared"),
    ):
        assert embed(word) == 4
        assert said in capsys.readouterr().err
    assert embed("keep_columns=[shop]") == 0  # which says nothing of the vectors
    argv = ["score", f"model={trained_bundle}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    assert run(argv) == 4
    assert "holds the output of `embed`" in capsys.readouterr().err
    argv[-1] = f"output={tmp_path / 'scored'}"
    assert run(argv) == 0
    assert embed(f"output={tmp_path / 'scored'}") == 4
    assert "holds the output of `score`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("pooling=max", 2, "pooling"),
        ("labels=[a,b]", 2, "embed reads none"),
        ("columns.text=txt", 2, "expected column 'txt'"),
        ("max_length=999", 2, "sees at most 64 tokens"),
        ("model=nowhere/at-all", 7, "model=nowhere/at-all"),
        ("dtype=float8", 2, "dtype"),
        ("rescore=replace", 2, "rescore"),
    ],
)
def test_wrong_input_is_told_before_anything_is_written(embed, tmp_path, capsys, word, code, said):
    assert embed(word) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_of_token_vectors_has_fewer_rows(embed, tmp_path, monkeypatch):
    monkeypatch.setattr("bertray.scoring.decide.TOKENS_PER_PART", 10 * 24)
    assert embed("pooling=tokens") == 0
    parts = list((tmp_path / "out" / "data").rglob("*.parquet"))
    assert sorted(pq.read_metadata(part).num_rows for part in parts) == [10, 10, 10]


def test_tokens_in_windows_are_refused(embed, tiny_encoder, tmp_path, capsys):
    assert embed("pooling=tokens", "long_text=windows") == 2
    assert "long_text=windows would give a token that stands in several windows" in capsys.readouterr().err
    bundle = make_bundle(tiny_encoder, tmp_path / "bundle", "windows")
    assert embed(f"model={bundle}", "pooling=tokens") == 2
    assert "long_text=windows of " in capsys.readouterr().err


@pytest.mark.ray
def test_embed_on_ray_with_the_encoder_of_a_trained_bundle(trained, tmp_path, ray_cluster):
    write(tmp_path / "in" / "a.parquet", 30, 3, "a")
    argv = ["embed", f"model={trained / 'model'}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    assert run(argv) == 0
    rows = pq.read_table(tmp_path / "out" / "data")
    assert (rows.num_rows, rows.schema.field("embedding").type) == (30, pa.list_(pa.float32(), 32))
    info = json.loads((trained / "model" / "bertray.json").read_text())
    assert set(rows["model_version"].to_pylist()) == {info["model_version"]}
