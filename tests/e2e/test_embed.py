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


def make_bundle(encoder, folder, long_text: str = "head", *, text_pair: bool = False):
    """A classifier with another encoder than `encoder`, as a bundle."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.01)
    values: dict[str, str | None] = {"neg": "neg", "pos": "pos"}
    info = BundleInfo(
        labels=("neg", "pos"),
        label_values=values,
        max_length=24,
        long_text=long_text,
        cleaning=Cleaning(),
        text_pair=text_pair,
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


@pytest.mark.slow
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
    monkeypatch.setattr("bertray.scoring.next_plan.TOKENS_PER_PART", 10 * 24)
    assert embed("pooling=tokens") == 0
    parts = list((tmp_path / "out" / "data").rglob("*.parquet"))
    assert sorted(pq.read_metadata(part).num_rows for part in parts) == [10, 10, 10]


def test_tokens_in_windows_are_refused(embed, tiny_encoder, tmp_path, capsys):
    assert embed("pooling=tokens", "long_text=windows") == 2
    assert "long_text=windows would give a token that stands in several windows" in capsys.readouterr().err
    bundle = make_bundle(tiny_encoder, tmp_path / "bundle", "windows")
    assert embed(f"model={bundle}", "pooling=tokens") == 2
    assert "long_text=windows of " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ray
def test_embed_on_ray_with_the_encoder_of_a_trained_bundle(trained, tmp_path, ray_cluster):
    write(tmp_path / "in" / "a.parquet", 30, 3, "a")
    argv = ["embed", f"model={trained / 'model'}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    assert run(argv) == 0
    rows = pq.read_table(tmp_path / "out" / "data")
    assert (rows.num_rows, rows.schema.field("embedding").type) == (30, pa.list_(pa.float32(), 32))
    info = json.loads((trained / "model" / "bertray.json").read_text())
    assert set(rows["model_version"].to_pylist()) == {info["model_version"]}


# --- one vector a character, token or word ---------------------------------------------------------------------------


def mean_vectors(encoder, texts: list[str]) -> dict[str, tuple[int, np.ndarray]]:
    """Token -> (count, mean of its vectors), a text at a time; words of the tiny encoder are tokens."""
    found: dict[str, list[np.ndarray]] = {}
    for text in texts:
        tokens = ReviewTokenizer(encoder, 24).encode(pa.array([text]))
        vectors = Embedder(encoder).token_vectors(tokens)[1:-1]
        for word, vector in zip(text.split(), vectors, strict=False):
            found.setdefault(word, []).append(vector)
    return {word: (len(vectors), np.mean(vectors, axis=0)) for word, vectors in found.items()}


def check_vectors(output, encoder, folder) -> pa.Table:
    """The vectors of an output are those of every text of a folder."""
    texts = [text for path in sorted(folder.iterdir()) for text in pq.read_table(path)["text"].to_pylist()]
    expected = mean_vectors(encoder, texts)
    table = pq.read_table(output / "vectors.parquet")
    counts = dict(zip(table["unit"].to_pylist(), table["count"].to_pylist(), strict=True))
    assert counts == {word: count for word, (count, _) in expected.items()}
    assert table["count"].to_pylist() == sorted(counts.values(), reverse=True)
    means = np.array([expected[word][1] for word in table["unit"].to_pylist()])
    np.testing.assert_allclose(vectors_of(table["embedding"]), means, atol=1e-5)
    return table


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["word", pytest.param("token", marks=pytest.mark.slow)])
def test_a_vocabulary_has_the_mean_vector_of_each_unit_over_all_runs(embed, tmp_path, tiny_encoder, unit, capsys):
    words = ["pooling=vocabulary", f"unit={unit}", "rows_per_shard=16"]
    assert embed(*words) == 0
    assert f"vectors  {tmp_path / 'out' / 'vectors.parquet'}" in capsys.readouterr().out
    first = check_vectors(tmp_path / "out", tiny_encoder, tmp_path / "in")
    assert first.schema.names == ["unit", "count", "embedding", "input_embedding", "num_pieces", "is_known"]
    assert set(first["num_pieces"].to_pylist()) == {1}
    assert all(first["is_known"].to_pylist())
    parts = list((tmp_path / "out" / "data").rglob("*.parquet"))
    assert len(parts) == 2
    assert sum(pq.read_table(part, partitioning=None)["count"].to_numpy().sum() for part in parts) == sum(
        first["count"].to_pylist()
    )
    write(tmp_path / "in" / "late.parquet", 9, 7, "late")
    assert embed(*words) == 0
    second = check_vectors(tmp_path / "out", tiny_encoder, tmp_path / "in")
    assert sum(second["count"].to_pylist()) > sum(first["count"].to_pylist())
    report = next((tmp_path / "out" / "reports").rglob("run=1/report.html")).read_text()
    assert f"every distinct {unit}, float32" in report


def test_characters_are_the_default_and_half_precision_has_length_one(embed, tmp_path):
    assert embed("pooling=vocabulary", "normalize=true", "dtype=float16") == 0
    table = pq.read_table(tmp_path / "out" / "vectors.parquet")
    letters = {letter for text in pq.read_table(tmp_path / "in" / "a.parquet")["text"].to_pylist() for letter in text}
    assert set(table["unit"].to_pylist()) == letters - {" "}
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 32)
    assert table.schema.metadata[b"unit"] == b"character"
    np.testing.assert_allclose(np.linalg.norm(vectors_of(table["embedding"]).astype(np.float32), axis=1), 1, atol=1e-2)


def test_word2vec_text_holds_the_vectors_of_the_parquet_file(embed, tmp_path):
    words = ["pooling=vocabulary", "unit=word"]
    assert embed(*words) == 0
    assert not (tmp_path / "out" / "vectors.txt").exists()
    assert embed(*words, "format=word2vec") == 0  # nothing new, and the file is missing
    table = pq.read_table(tmp_path / "out" / "vectors.parquet")
    head, *lines = (tmp_path / "out" / "vectors.txt").read_text(encoding="utf-8").splitlines()
    assert head == f"{table.num_rows} 32"
    assert [line.split(" ")[0] for line in lines] == table["unit"].to_pylist()
    numbers = np.array([line.split(" ")[1:] for line in lines], float)
    np.testing.assert_allclose(numbers, vectors_of(table["embedding"]), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        "commit.after_put",
        *(pytest.param(point, marks=pytest.mark.slow) for point in ("verify.before", "marker.after_put")),
    ],
)
def test_a_vocabulary_counts_each_review_once_wherever_a_run_dies(embed, tmp_path, tiny_encoder, monkeypatch, point):
    def die(name: str) -> None:
        if name == point:
            raise RuntimeError("died")

    words = ["pooling=vocabulary", "unit=word", "rows_per_shard=16"]
    with monkeypatch.context() as patch:
        patch.setattr(faults, "point", die)
        assert embed(*words) == 1
    assert not (tmp_path / "out" / "vectors.parquet").exists()
    assert embed(*words, "takeover=true") == 0
    check_vectors(tmp_path / "out", tiny_encoder, tmp_path / "in")


@pytest.mark.slow
def test_a_replaced_slot_leaves_the_vocabulary_without_its_old_rows(embed, tmp_path, tiny_encoder):
    words = ["pooling=vocabulary", "unit=word", "slot=dt=2026-11-20"]
    assert embed(*words) == 0
    write(tmp_path / "in" / "a.parquet", 12, 5, "a")
    assert embed(*words, "on_changed_file=replace") == 0
    check_vectors(tmp_path / "out", tiny_encoder, tmp_path / "in")


def test_a_review_that_is_not_finite_is_left_out_of_the_vocabulary(embed, tmp_path, monkeypatch):
    compute = Embedder.token_vectors

    def spoiled(self, table):
        vectors = compute(self, table).copy()
        vectors[3:4] = np.nan  # of the first review
        return vectors

    monkeypatch.setattr(Embedder, "token_vectors", spoiled)
    assert embed("pooling=vocabulary", "unit=word") == 0
    assert [row["row_no"] for row in pq.read_table(tmp_path / "out" / "quarantine").to_pylist()] == [0]
    table = pq.read_table(tmp_path / "out" / "vectors.parquet")
    assert np.isfinite(vectors_of(table["embedding"])).all()
    texts = pq.read_table(tmp_path / "in" / "a.parquet")["text"].to_pylist()
    assert sum(table["count"].to_pylist()) == sum(len(text.split()) for text in texts[1:])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["unit=word"], "unit: only for pooling=vocabulary"),
        (["pooling=tokens", "format=word2vec"], "format: only for pooling=vocabulary"),
        (["pooling=vocabulary", "unit=sentence"], "unit"),
        (["pooling=vocabulary", "keep_columns=[shop]"], "keep_columns: pooling=vocabulary writes no row of a review"),
        (
            ["pooling=vocabulary", "columns.text_pair=shop"],
            "columns.text_pair: pooling=vocabulary reads each text once",
        ),
        (["pooling=vocabulary", "columns.aspects=shop"], "columns.aspects: pooling=vocabulary reads each text once"),
        (["pooling=vocabulary", "aspects=[food]"], "aspects: pooling=vocabulary reads each text once"),
        (["pooling=vocabulary", "long_text=windows"], "long_text=windows: pooling=vocabulary counts each token once"),
        (["pooling=vocabulary", "long_text=select"], "long_text=select: pooling=vocabulary counts each token once"),
    ],
)
def test_what_a_vocabulary_has_no_use_for_is_refused(embed, tmp_path, capsys, words, said):
    assert embed(*words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_of_windows_and_of_pairs_make_no_vocabulary(embed, tiny_encoder, tmp_path, capsys):
    windows = make_bundle(tiny_encoder, tmp_path / "windows", "windows")
    assert embed(f"model={windows}", "pooling=vocabulary") == 2
    assert f"pooling=vocabulary: long_text=windows of {windows}" in capsys.readouterr().err
    pairs = make_bundle(tiny_encoder, tmp_path / "pairs", text_pair=True)
    assert embed(f"model={pairs}", "pooling=vocabulary") == 2
    assert "was trained on pairs of texts, and each text is read alone" in capsys.readouterr().err


def test_an_output_holds_vectors_of_one_unit(embed, tmp_path, capsys):
    assert embed("pooling=vocabulary") == 0
    assert embed("pooling=vocabulary", "unit=word") == 4
    assert "holds vectors with unit=character, not word" in capsys.readouterr().err
    assert embed() == 4
    assert "holds vectors with pooling=vocabulary, not mean" in capsys.readouterr().err


@pytest.mark.soak
@pytest.mark.ray
def test_a_vocabulary_on_ray_is_that_of_one_process(tiny_encoder, tmp_path, ray_cluster):
    for seed, name in enumerate(("a", "b")):
        write(tmp_path / "in" / f"{name}.parquet", 40, seed, name)
    argv = ["embed", f"model={tiny_encoder}", "max_length=24", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    argv += ["pooling=vocabulary", "unit=word", "rows_per_shard=16", "workers.in_process_rows=0"]
    assert run(argv) == 0
    check_vectors(tmp_path / "out", tiny_encoder, tmp_path / "in")
