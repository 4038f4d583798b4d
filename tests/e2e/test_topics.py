"""`bertray topics`: what a run writes, from raw reviews and from scored ones, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.outputs.claims import FINISHED_FILE
from bertray.scoring.stage_part import stage_parts
from bertray.topic_models import discovery as topics_found
from bertray.topic_models import rows as topic_rows
from bertray.topic_models import source as topics_source
from tests.nightly import without_ray
from tests.refusals import assert_refused

THEMES = {"good": ["great", "lovely", "fine"], "bad": ["awful", "poor", "boring"], "film": ["plot", "actor", "story"]}
SIZES = {"good": 50, "bad": 40, "film": 60}
OPTIONS = ["max_length=24", "topics.min_topic_size=10", "topics.num_neighbors=8", "topics.words=5"]


def write_reviews(folder: Path, name: str = "a.parquet", *, seed: int = 0, **columns: list[Any]) -> Path:
    """150 reviews on three themes, in no order; every fiftieth has no text."""
    random = np.random.default_rng(seed)
    themes = random.permutation([theme for theme, count in SIZES.items() for _ in range(count)]).tolist()
    texts = [" ".join(random.choice(THEMES[theme], size=int(random.integers(5, 12)))) for theme in themes]
    rows = {
        "id": [f"{name}-{n}" for n in range(150)],
        "text": [None if n % 50 == 49 else text for n, text in enumerate(texts)],
        "label": [int(theme == "good") for theme in themes],
        "theme": themes,
        "shop": ["north" if n % 3 else "south" for n in range(150)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**rows, **columns}), folder / name)
    return folder / name


@pytest.fixture
def in_process(monkeypatch):
    """In this process, where Ray is at hand too, and several parts."""
    without_ray(monkeypatch)
    monkeypatch.setattr(topic_rows, "ROWS_PER_SHARD", 64)
    monkeypatch.setattr(topics_source, "ROWS_PER_SHARD", 64)


@pytest.fixture
def topics(tmp_path, tiny_encoder, in_process):
    """A function that runs the verb on a folder of reviews, in this process."""
    write_reviews(tmp_path / "in")

    def call(*words: str) -> int:
        given = {word.partition("=")[0] for word in words}
        paths = {"input": tmp_path / "in", "output": tmp_path / "out"}
        if "scored" in given:
            del paths["input"]
        rest = [f"{key}={path}" for key, path in paths.items() if key not in given]
        return run(["topics", f"model={tiny_encoder}", *OPTIONS, *rest, *words])

    return call


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


@pytest.mark.slow
def test_a_run_writes_topics_assignments_and_the_page_and_the_same_command_is_one_line(topics, tmp_path, capsys):
    words = ["topics.compare_with=theme", "keep_columns=[shop, label]", "labels={0: other, 1: good}"]
    words += ["topics.sample_rows=100", "topics.num_topics=3"]
    assert topics(*words) == 0
    out = tmp_path / "out"
    given = {row["id"]: row for row in rows_of(tmp_path / "in" / "a.parquet") if row["text"]}
    rows = rows_of(out / "assignments.parquet")
    assert [row["id"] for row in rows] == list(given)
    names = ["id", "topic", "nearest_topic", "similarity", "sampled", "x", "y", "label", "shop", "input_label"]
    assert list(rows[0]) == names
    for row in rows:
        assert row["label"] == ("good" if given[row["id"]]["label"] else "other")
        assert (row["shop"], row["input_label"]) == (given[row["id"]]["shop"], given[row["id"]]["label"])
        assert (row["x"] is None) == (row["y"] is None) == (not row["sampled"])
        assert row["topic"] in (-1, 0, 1, 2)
        assert row["nearest_topic"] in (0, 1, 2)
    assert sum(row["sampled"] for row in rows) == 100
    # A topic is a theme, also for reviews that took no part in finding it.
    found = rows_of(out / "topics.parquet")
    assert [row["topic"] for row in found] == [0, 1, 2, -1]
    sizes = [row["size"] for row in found[:3]]
    assert sizes == sorted(sizes, reverse=True)
    theme_of = {}
    for row in found[:3]:
        themes = [given[r["id"]]["theme"] for r in rows if r["topic"] == row["topic"]]
        theme_of[row["topic"]] = max(set(themes), key=themes.count)
        assert {word["word"] for word in row["words"][:3]} == set(THEMES[theme_of[row["topic"]]])
        assert all(word in row["name"] for word in (row["words"][0]["word"],))
        assert len(row["representative_ids"]) == 3
        assert {given[i]["theme"] for i in row["representative_ids"]} == {theme_of[row["topic"]]}
    assert set(theme_of.values()) == set(THEMES)
    new = [row for row in rows if not row["sampled"] and row["topic"] >= 0]
    right = [theme_of[row["topic"]] == given[row["id"]]["theme"] for row in new]
    assert len(new) > 30
    assert np.mean(right) > 0.95
    # Sizes, shares and sentiment are those of the assignments.
    for row in found:
        mine = [r for r in rows if r["topic"] == row["topic"]]
        assert row["size"] == len(mine)
        assert row["share"] == pytest.approx(len(mine) / 147)
        if mine:
            good = np.mean([r["label"] == "good" for r in mine])
            assert (row["share_good"], row["share_other"]) == pytest.approx((good, 1 - good))
    report = json.loads((out / "report.json").read_text())
    assert (report["rows"], report["rows_refused"], report["sampled"]) == (147, 3, 100)
    [everything, *_] = report["comparisons"]
    assert (everything["column"], everything["agreement"]["rows"]) == ("theme", 100)
    assert everything["agreement"]["figures"]["nmi"]["value"] > 0.6
    assert report["agreement"] > 0.8
    page = (out / "report.html").read_text()
    assert "147 reviews have 3 topics" in page
    assert 'id="labels"' in page
    assert not list(out.rglob("*.pkl")) + list(out.rglob("*.joblib"))
    told = capsys.readouterr().out
    assert "of TF-IDF + k-means" in told
    before = (out / "assignments.parquet").stat().st_mtime_ns
    assert topics(*words) == 0
    assert capsys.readouterr().out == f"already found: {out / 'report.html'}\n"
    assert topics(*words, "topics.words=3") == 4
    assert (out / "assignments.parquet").stat().st_mtime_ns == before


@pytest.mark.slow
def test_other_settings_use_the_vectors_that_are_there_and_the_same_seed_gives_the_same(topics, tmp_path, monkeypatch):
    assert topics("seed=5", "topics.map_rows=0") == 0
    out = tmp_path / "out"
    assert json.loads((out / "report.json").read_text())["comparisons"] == []  # labels of sentiment are no topics
    first = pq.read_table(out / "assignments.parquet")
    assert first["x"].null_count == first.num_rows
    monkeypatch.setattr(topic_rows, "stage_parts", lambda *_, **__: pytest.fail("embedded again"))
    assert topics("seed=5", "topics.map_rows=50", "topics.words=2", "replace=true") == 0
    second = pq.read_table(out / "assignments.parquet")
    same = ["id", "topic", "nearest_topic", "similarity", "sampled"]
    assert second.select(same).equals(first.select(same))
    assert second["x"].null_count == 0
    assert {len(row["words"]) for row in rows_of(out / "topics.parquet")[:-1]} == {2}
    assert "words: 2" in (out / "config.yaml").read_text()
    # A run that died after its vectors: nothing is embedded again, and the outcome is the same to the byte.
    (out / FINISHED_FILE).unlink()
    before = (out / "assignments.parquet").read_bytes()
    assert topics("seed=5", "topics.map_rows=50", "topics.words=2") == 0
    assert (out / "assignments.parquet").read_bytes() == before


@pytest.mark.slow
def test_a_run_that_died_while_embedding_goes_on_with_the_parts_it_has(topics, tmp_path, monkeypatch):
    embedded: list[int] = []

    def die_after_two(work, *rest, **keys):
        for (receipt,) in stage_parts(work, *rest, **keys):
            embedded.append(receipt.rows_in)
            yield [receipt]
            if len(embedded) == 2:
                raise RuntimeError("died")

    monkeypatch.setattr(topic_rows, "stage_parts", die_after_two)
    assert topics() == 1
    assert topics() == 0
    assert embedded == [64, 64, 22]
    # Changed reviews are embedded anew, into the same output when asked; the old vectors go.
    write_reviews(tmp_path / "in", seed=1)
    assert topics() == 4
    monkeypatch.setattr(topic_rows, "stage_parts", stage_parts)
    assert topics("replace=true") == 0
    assert len(list((tmp_path / "out" / "control" / "embeddings").iterdir())) == 1


@pytest.fixture
def scored(topics, tmp_path, trained_alone):
    """A function that scores the reviews, in this process."""

    def call(*words: str) -> Path:
        paths = [f"input={tmp_path / 'in'}", f"output={tmp_path / 'scored'}"]
        assert run(["score", f"model={trained_alone / 'model'}", *paths, "columns.label=none", *words]) == 0
        return tmp_path / "scored"

    return call


@pytest.mark.slow
@pytest.mark.slow
def test_scored_rows_say_the_sentiment_with_their_own_texts_and_beside_raw_ones(scored, topics, tmp_path, capsys):
    folder = scored("keep_columns=[text, theme]")
    kept = {row["id"]: row for row in rows_of(folder / "data")}
    words = ["topics.compare_with=theme", "topics.map_rows=0"]
    assert topics(f"scored={folder}", f"output={tmp_path / 'a'}", *words) == 0
    assert topics(f"scored={folder}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'b'}", *words) == 0
    a, b = (rows_of(tmp_path / name / "assignments.parquet") for name in "ab")
    assert a == b
    assert {row["id"]: (row["label"], row["score"]) for row in a} == {
        i: (row["label"], row["score"]) for i, row in kept.items()
    }
    for topic in rows_of(tmp_path / "a" / "topics.parquet")[:-1]:
        mine = [row for row in a if row["topic"] == topic["topic"]]
        assert topic["mean_score"] == pytest.approx(np.mean([row["score"] for row in mine]), abs=1e-5)
        assert topic["share_pos"] == pytest.approx(np.mean([row["label"] == "pos" for row in mine]))
    assert "predicted labels" in (tmp_path / "a" / "report.html").read_text()


@pytest.mark.slow
def test_scored_rows_without_text_or_of_other_reviews_are_told(scored, topics, tmp_path, capsys):
    folder = scored()
    assert topics(f"scored={folder}") == 2
    error = capsys.readouterr().err
    assert "hold no column 'text'" in error
    assert "`'keep_columns=[text]'`" in error
    assert topics(f"scored={folder}", "slot=dt=2001-01-01") == 2
    assert "slot=dt=2001-01-01: not committed" in capsys.readouterr().err
    write_reviews(tmp_path / "other", "b.parquet")
    assert topics(f"scored={folder}", f"input={tmp_path / 'other'}") == 6
    assert "none of its ids stands in the rows of" in capsys.readouterr().err
    assert topics(f"scored={tmp_path / 'in'}") == 2
    assert "no committed slot" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["columns.text=txt"], 2, "expected column 'txt'"),
        (["columns.label=labl"], 2, "Did you mean 'label'"),
        (["keep_columns=[shp]"], 2, "Did you mean 'shop'"),
        (["topics.compare_with=them"], 2, "Did you mean 'theme'"),
        (["topics.num_topics=16"], 2, "make at most 15"),
        (["topics.num_topics=1"], 2, "topics.num_topics"),
        (["topics.min_topic_size=60"], 6, "expected at least 180 reviews for topics of 60 and more, found 150"),
        (["topics.sample_rows=40"], 6, "expected at least 50 sampled reviews"),
        (["topics.stop_words=french"], 2, "topics.stop_words"),
        (["pooling=max"], 2, "pooling"),
        (["labels={0: a, 2: b}"], 6, "found 50 rows with others: 1 (50)"),
        (["labels={0: a, 1: b}", "scored=x"], 2, "scored rows have those of their model"),
        (["slot=x"], 2, "names a slot of `scored`"),
        (["max_length=999"], 2, "sees at most 64 tokens"),
        (["input=nowhere.parquet"], 2, "nowhere.parquet"),
    ],
)
def test_wrong_input_is_told_before_anything_is_written(topics, tmp_path, capsys, words, code, said):
    assert topics(*words) == code
    assert_refused(capsys, said, tmp_path / "out")


def test_groups_to_compare_with_have_to_be_values_that_can_name_a_group(topics, tmp_path, capsys):
    path = tmp_path / "in" / "a.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.append_column("when", pa.array([0] * 150, pa.timestamp("us"))), path)
    assert topics("topics.compare_with=when") == 2
    assert "in the column 'when', found timestamp[us] in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_whoever_follows_the_remedy_of_a_refusal_uses_the_same_vectors(topics, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(topics_found, "find_topics", lambda *_: None)
        assert topics() == 6
    assert topics("topics.min_topic_size=9") == 4
    assert "add `replace=true`, which keeps its vectors" in capsys.readouterr().err
    monkeypatch.setattr(topic_rows, "stage_parts", lambda *_, **__: pytest.fail("embedded again"))
    assert topics("topics.min_topic_size=9", "replace=true") == 0


def test_reviews_or_scored_rows_have_to_be_given(tiny_encoder, tmp_path, capsys):
    assert run(["topics", f"model={tiny_encoder}", f"output={tmp_path / 'out'}"]) == 2
    assert "input or scored is missing" in capsys.readouterr().err


def test_too_few_usable_reviews_are_told_after_they_were_read(topics, tmp_path, capsys):
    texts = [None] * 110 + ["the film was fine"] * 40
    write_reviews(tmp_path / "in", text=texts)
    assert topics() == 6
    assert "expected at least 50 reviews for topics of 10 and more, found 40" in capsys.readouterr().err
    write_reviews(tmp_path / "in", text=[None] * 150)
    assert topics("replace=true") == 6
    assert "none of 150 rows is usable" in capsys.readouterr().err


@pytest.mark.slow
def test_reviews_without_a_word_or_without_a_group_are_told(topics, tmp_path, capsys, monkeypatch):
    write_reviews(tmp_path / "in", text=[f"{n} + {n}" for n in range(150)])
    assert topics() == 6
    assert "no word in 150 reviews" in capsys.readouterr().err
    monkeypatch.setattr(topics_found, "find_topics", lambda *_: None)
    assert topics() == 6
    assert "none found; no 10 of 150 reviews stand out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bertopic", "umap", "hdbscan"])
def test_a_missing_extra_names_the_install_command(topics, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    assert topics() == 2
    assert "pip install 'bertray[topics]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_column_with_too_many_values_is_no_label(topics, tmp_path, capsys):
    write_reviews(tmp_path / "in", label=[f"u{n}" for n in range(150)])
    assert topics("topics.map_rows=0") == 0
    assert "label" not in pq.read_schema(tmp_path / "out" / "assignments.parquet").names
    page = (tmp_path / "out" / "report.html").read_text()
    assert "150 different values, too many for labels" in page
    assert 'id="groups"' not in page


@pytest.mark.ray
@pytest.mark.soak
def test_topics_on_ray_are_those_of_one_process(topics, tiny_encoder, tmp_path, ray_cluster, monkeypatch):
    words = ["topics.map_rows=0", "topics.sample_rows=100"]
    assert topics(*words) == 0
    monkeypatch.undo()
    monkeypatch.setattr(topic_rows, "ROWS_PER_SHARD", 64)
    paths = [f"input={tmp_path / 'in'}", f"output={tmp_path / 'ray'}"]
    assert run(["topics", f"model={tiny_encoder}", *OPTIONS, *paths, *words]) == 0
    a, b = (rows_of(tmp_path / name / "assignments.parquet") for name in ("out", "ray"))
    assert [(row["id"], row["topic"]) for row in a] == [(row["id"], row["topic"]) for row in b]
