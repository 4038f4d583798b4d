"""Reviews of several aspects through every command: one row for each, learned, scored once, reported apart."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import bertray
from bertray.cli import run
from bertray.model.bundle import read_info
from bertray.outputs import ledger
from tests.corpus import BAD, GOOD
from tests.nightly import without_ray

ASPECTS = ["plot", "actor"]
WORDS = ["max_length=24", "report.baselines=false", "workers.in_process_rows=100000"]


def reviews(num_rows: int, seed: int, *, labelled: bool = True) -> pa.Table:
    """`the plot was good and the actor was bad`, with a column for the label of each aspect; a fifth is empty."""
    random = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {"id": [], "text": [], "shop": [], **{name: [] for name in ASPECTS}}
    for number in range(num_rows):
        is_good = random.integers(2, size=2).astype(bool)
        said = [
            f"the {name} was {random.choice(GOOD if good else BAD)}"
            for name, good in zip(ASPECTS, is_good, strict=True)
        ]
        columns["id"].append(f"s{seed}-{number}")
        columns["text"].append(" and ".join(said))
        columns["shop"].append("north" if number % 3 else "south")
        for name, good in zip(ASPECTS, is_good, strict=True):
            columns[name].append(None if random.integers(5) == 0 else "pos" if good else "neg")
    return pa.table({name: columns[name] for name in columns if labelled or name not in ASPECTS})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aspects")
    pq.write_table(reviews(150, 1), folder / "train.parquet")
    pq.write_table(reviews(40, 2), folder / "test.parquet")
    (folder / "in").mkdir()
    pq.write_table(reviews(30, 3, labelled=False), folder / "in" / "first.parquet")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path, tiny_encoder: Path) -> Path:
    out = folder / "run"
    argv = ["train", f"model={tiny_encoder}", f"data.train={folder}/train.parquet", f"data.test={folder}/test.parquet"]
    argv += [f"output={out}", "aspects=[plot, actor]", "training.epochs=2", "training.learning_rate=3e-3", *WORDS]
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        assert run(argv) == 0
    return out


def labelled_rows(table: pa.Table) -> list[tuple[str, str]]:
    """(id, label) of each row with a label, review after review."""
    return [(f"{row['id']}#{name}", row[name]) for row in table.to_pylist() for name in ASPECTS if row[name]]


def scored(folder: Path) -> pa.Table:
    return ds.dataset(folder / "data", partitioning="hive").to_table().sort_by("id")


def test_training_reports_a_row_for_each_label_and_each_aspect_as_a_slice(trained, folder):
    predictions = pq.read_table(trained / "predictions.parquet")
    expected = labelled_rows(pq.read_table(folder / "test.parquet"))
    assert list(zip(predictions["id"].to_pylist(), predictions["label"].to_pylist(), strict=True)) == expected
    metrics = json.loads((trained / "metrics.json").read_text())
    rows = {name: sum(key.endswith(f"#{name}") for key, _ in expected) for name in ASPECTS}
    assert {name: figures["rows"] for name, figures in metrics["slices"]["aspect"].items()} == rows
    info = read_info(trained / "model")
    assert (info.text_pair, info.aspects) == (True, {"plot": "plot", "actor": "actor"})


@pytest.mark.slow
def test_a_night_needs_no_key_and_has_a_row_for_each_review_and_aspect(trained, folder, tmp_path):
    argv = ["score", f"model={trained}/model", f"input={folder}/in", f"output={tmp_path}", "keep_columns=[shop]"]
    assert run(argv) == 0
    rows = scored(tmp_path)
    assert rows.column_names[:3] == ["id", "aspect", "label"]
    first = pq.read_table(folder / "in" / "first.parquet")
    expected = sorted(
        (f"{key}#{name}", name, shop)
        for key, shop in zip(*(first[n].to_pylist() for n in ("id", "shop")), strict=True)
        for name in ASPECTS
    )
    assert list(zip(*(rows[name].to_pylist() for name in ("id", "aspect", "shop")), strict=True)) == expected
    (entry,) = ledger.committed_entries(bertray.io.store.open_store(str(tmp_path)), None)
    assert (entry.rows_in, entry.rows_scored, entry.rows_quarantined) == (60, 60, 0)
    assert [file.rows_in for file in entry.files] == [60]


def test_a_second_night_scores_new_files_alone_and_other_aspects_may_be_given(trained, folder, tmp_path):
    """Also in Ray's absence of labels for some of them: the page says which ones the model does not know."""
    inbox = tmp_path / "in"
    inbox.mkdir()
    argv = ["score", f"model={trained}/model", f"input={inbox}", f"output={tmp_path}/out", "rows_per_shard=7"]
    pq.write_table(reviews(9, 4), inbox / "a.parquet")
    assert run([*argv, "slot=dt=1"]) == 0
    pq.write_table(reviews(5, 5), inbox / "b.parquet")
    assert run([*argv, "slot=dt=2", "aspects=[plot, story]"]) == 0
    assert run(argv) == 0  # nothing new
    entries = ledger.committed_entries(bertray.io.store.open_store(f"{tmp_path}/out"), None)
    assert [(entry.slot, entry.rows_in) for entry in entries] == [("dt=1", 18), ("dt=2", 10)]
    reports = tmp_path / "out" / "reports"
    metrics = json.loads((reports / "dt=1" / "run=1" / "metrics.json").read_text())
    assert metrics["slices"]["aspect"].keys() == {"plot", "actor"}
    page = (reports / "dt=2" / "run=1" / "report.html").read_text()
    assert "The model was trained for plot, actor, not for story" in page


@pytest.mark.slow
@pytest.mark.ray
def test_tasks_and_actors_of_ray_give_the_same_rows(trained, folder, tmp_path, ray_cluster):
    argv = ["score", f"model={trained}/model", f"input={folder}/in", "slot=dt=1", "rows_per_shard=17"]
    for name, most in (("here", 1000), ("ray", 0)):
        assert run([*argv, f"output={tmp_path}/{name}", f"workers.in_process_rows={most}"]) == 0
    columns = ["id", "aspect", "label", "n_tokens"]
    assert scored(tmp_path / "ray").select(columns).equals(scored(tmp_path / "here").select(columns))


def test_a_list_of_aspects_is_scored_and_rows_without_any_are_quarantined(trained, tmp_path):
    lists = [["plot", "actor", "story"], [], ["plot"], ["actor", "actor"]]
    table = pa.table({"id": list("abcd"), "text": ["the plot was good"] * 4, "topics": lists})
    pq.write_table(table, tmp_path / "in.parquet")
    argv = ["score", f"model={trained}/model", f"input={tmp_path}/in.parquet", f"output={tmp_path}/out"]
    assert run([*argv, "columns.aspects=topics", "rows_per_shard=2"]) == 0
    assert scored(tmp_path / "out")["id"].to_pylist() == ["a#actor", "a#plot", "a#story", "c#plot", "d#actor"]
    refused = ds.dataset(tmp_path / "out" / "quarantine", partitioning="hive").to_table().sort_by("row_no")
    names = ("row_no", "id", "reason")
    assert list(zip(*(refused[name].to_pylist() for name in names), strict=True)) == [
        (1, "b", "aspect_none"),
        (3, "d#actor", "id_duplicate"),
    ]


def test_a_classifier_gives_what_score_writes(trained, folder, tmp_path):
    assert run(["score", f"model={trained}/model", f"input={folder}/in", f"output={tmp_path}"]) == 0
    rows = scored(tmp_path)
    of_night = dict(zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    classifier = bertray.Classifier.load(trained / "model")
    first = pq.read_table(folder / "in" / "first.parquet")
    assert classifier.aspects == ("plot", "actor")
    found = classifier.predict_aspects(first["text"])
    assert found == [{name: of_night[f"{key}#{name}"] for name in ASPECTS} for key in first["id"].to_pylist()]
    table = classifier(first)
    assert table.column_names == ["id", "text", "shop", "aspect", "label", "score", "prob_neg", "prob_pos"]
    told = zip(*(table[name].to_pylist() for name in ("id", "aspect", "label")), strict=True)
    assert {f"{key}#{name}": label for key, name, label in told} == of_night
    assert classifier.predict(first["text"], ["plot"] * 30) == [labels["plot"] for labels in found]
    with pytest.raises(bertray.ConfigError, match="Call `predict_aspects`"):
        classifier.predict(first["text"])
    with pytest.raises(bertray.DataRefused, match=r"1 of 2 texts .* at position 1 \(text_empty"):
        classifier.predict_aspects(["fine", " "])
    figures = classifier.evaluate(folder / "test.parquet").metrics["accuracy"].value
    assert figures == json.loads((trained / "metrics.json").read_text())["metrics"]["accuracy"]["value"]


def test_a_table_with_lists_of_aspects_is_labelled_row_by_row(trained):
    table = pa.table({"text": ["the plot was good", "fine", "bad"], "topics": [["plot", "story"], None, ["actor"]]})
    labelled = bertray.Classifier.load(trained / "model", columns={"aspects": "topics"})(table)
    assert labelled["aspect"].to_pylist() == ["plot", "story", None, "actor"]
    assert [label is None for label in labelled["label"].to_pylist()] == [False, False, True, False]


@pytest.mark.slow
def test_labels_in_a_list_beside_the_aspects_give_the_same_examples(
    folder, trained, tiny_encoder, tmp_path, monkeypatch
):
    without_ray(monkeypatch)  # as the model to compare with was trained
    """The same rows as with a column for each aspect, so the same model to the bit."""
    for name in ("train", "test"):
        rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
        lists = [[aspect for aspect in ASPECTS if row[aspect]] for row in rows]
        labels = [[row[aspect] for aspect in named] for row, named in zip(rows, lists, strict=True)]
        table = pq.read_table(folder / f"{name}.parquet", columns=["id", "text"])
        table = table.append_column("topics", pa.array(lists)).append_column("moods", pa.array(labels))
        pq.write_table(table, tmp_path / f"{name}.parquet")
    argv = [
        "train",
        f"model={tiny_encoder}",
        f"data.train={tmp_path}/train.parquet",
        f"data.test={tmp_path}/test.parquet",
    ]
    argv += ["columns={aspects: topics, label: moods}", "training.epochs=2", "training.learning_rate=3e-3", *WORDS]
    assert run([*argv, f"output={tmp_path}/run"]) == 0
    same = pq.read_table(trained / "predictions.parquet")
    assert pq.read_table(tmp_path / "run" / "predictions.parquet").equals(same)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["aspects=[plot, story]"], "expected column 'story'"),
        (["aspects=[plot, plot]"], "names an aspect twice: 'plot'"),
        (["aspects=[]"], "an empty list of aspects"),
        (["aspects=plot"], "expected a list of aspects"),
        (["aspects=[plot]", "columns.text_pair=shop"], "aspects and columns.text_pair exclude each other"),
        (["columns={text_pair: shop, aspects: topics}"], "aspects and text_pair exclude each other"),
        (["aspects=[plot]", "columns.label=actor"], "each aspect has a label column of its own"),
        (["columns.aspects=topics"], "expected column 'topics' (list of strings)"),
    ],
)
def test_what_cannot_be_read_by_aspect_is_refused(folder, tiny_encoder, tmp_path, capsys, words, message):
    argv = [
        "train",
        f"model={tiny_encoder}",
        f"data.train={folder}/train.parquet",
        f"output={tmp_path}",
        *WORDS,
        *words,
    ]
    assert run(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_aspect_that_no_row_has_a_label_for_is_told(folder, tiny_encoder, tmp_path, capsys):
    table = pq.read_table(folder / "train.parquet").append_column("story", pa.nulls(150, pa.string()))
    pq.write_table(table, tmp_path / "train.parquet")
    argv = ["train", f"model={tiny_encoder}", f"data.train={tmp_path}/train.parquet", f"output={tmp_path}/run", *WORDS]
    assert run([*argv, "aspects=[plot, story]", "training.epochs=1"]) == 0
    assert "no row has a label for aspect 'story'" in capsys.readouterr().err


def test_a_plan_counts_rows_of_aspects(trained, folder, tmp_path):
    plan = bertray.plan(model=str(trained / "model"), input=str(folder / "in"), output=str(tmp_path))
    assert plan.num_rows == 60


PAGE = Path(__file__).resolve().parents[2] / "docs" / "aspects.md"


def block(kind: str) -> str:
    """The code blocks of a kind on the page, one after the other."""
    return "".join(re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL))


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tiny_encoder, tmp_path, monkeypatch, capsys):
    """On its own rows, written down ten times with another text each."""
    monkeypatch.chdir(tmp_path)
    rows = list(csv.DictReader(io.StringIO(block("csv"))))
    many = [
        {**row, "id": f"{row['id']}-{n}", "text": f"{row['text']} {'very ' * n}"} for n in range(10) for row in rows
    ]
    listed = json.loads(block("json"))
    names = [name for name in rows[0] if name not in ("id", "text")]
    with Path("reviews.csv").open("w", newline="") as file, Path("listed.jsonl").open("w") as lists:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(many)
        for row in many:
            said = [name for name in names if row[name]]
            values = [row["id"], row["text"], said, [row[name] for name in said]]
            lists.write(json.dumps(dict(zip(listed, values, strict=True))) + "\n")
    Path("incoming").mkdir()
    shutil.copy("reviews.csv", "incoming")
    for line in re.findall(r"^\$ bertray (.*)$", block("console"), flags=re.MULTILINE):
        small = [f"model={tiny_encoder}", "max_length=48", "training.epochs=1"] if line.startswith("train") else []
        assert run([*shlex.split(line), *small]) == 0, capsys.readouterr().err
    exec(compile(block("python"), str(PAGE), "exec"), {})
    shown = capsys.readouterr().out
    assert f"{(*names,)}" in shown
    assert scored(tmp_path / "scored").num_rows == 3 * len(many)
    assert scored(tmp_path / "scored-listed").num_rows == sum(bool(row[name]) for row in many for name in names)


@pytest.mark.slow
def test_long_reviews_are_cut_to_the_sentences_of_the_aspect_and_pooled_by_it(folder, tiny_encoder, tmp_path, capsys):
    """`long_text=select` and `head=attention` together: learned, stored, scored and loaded as one."""
    table = pq.read_table(folder / "train.parquet").slice(0, 90)
    filler = ". a film is a story" * 3
    texts = [text.replace(" and", f"{filler}. and") + filler for text in table["text"].to_pylist()]
    table = table.set_column(1, "text", pa.array(texts))
    pq.write_table(table, tmp_path / "train.parquet")
    argv = ["train", f"model={tiny_encoder}", f"data.train={tmp_path}/train.parquet", f"output={tmp_path}/run", *WORDS]
    words = ["aspects=[plot, actor]", "long_text=select", "head=attention", "max_length=16", "training.epochs=1"]
    assert run([*argv, *words]) == 0
    info = read_info(tmp_path / "run" / "model")
    assert (info.head, info.long_text) == ("aspect_attention", "select")
    assert {"head.safetensors", "word_vectors.safetensors"} <= {
        path.name for path in (tmp_path / "run" / "model").iterdir()
    }
    assert (
        run(["score", f"model={tmp_path}/run/model", f"input={tmp_path}/train.parquet", f"output={tmp_path}/out"]) == 0
    )
    rows = scored(tmp_path / "out")
    assert rows["truncated"].to_pylist() == [True] * 180
    # Validation rows: whole reviews, so that no text stands in two splits.
    validation = pq.read_table(tmp_path / "run" / "predictions.parquet")["id"].to_pylist()
    reviews_of = {key.partition("#")[0] for key in validation}
    assert validation == [key for key, _ in labelled_rows(table) if key.partition("#")[0] in reviews_of]
    classifier = bertray.Classifier.load(tmp_path / "run" / "model")
    found = [labels[name] for labels in classifier.predict_aspects(texts) for name in ASPECTS]
    by_id = dict(zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    assert found == [by_id[f"{key}#{name}"] for key in table["id"].to_pylist() for name in ASPECTS]
    mistakes = pq.read_table(tmp_path / "run" / "mistakes.parquet").to_pylist()
    assert {word["word"] for row in mistakes for word in row["words"]} <= {*" ".join(texts).split(), *ASPECTS}
    assert run([*argv, "aspects=[plot, actor]", "head=attention", "max_length=16"]) == 4  # another training


@pytest.fixture(scope="module")
def opposed(folder: Path, tiny_encoder: Path) -> dict[str, Path]:
    """Two models of aspects, the second one of turned labels."""
    found = {}
    for name in ("a", "b"):
        table = pq.read_table(folder / "train.parquet")
        for aspect in ASPECTS if name == "b" else []:
            other = pa.array([{"pos": "neg", "neg": "pos"}.get(label) for label in table[aspect].to_pylist()])
            table = table.set_column(table.column_names.index(aspect), aspect, other)
        pq.write_table(table, folder / f"{name}.parquet")
        argv = ["train", f"model={tiny_encoder}", f"data.train={folder}/{name}.parquet", "training.method=features"]
        argv += [f"data.test={folder}/test.parquet", f"output={folder}/{name}", "aspects=[plot, actor]", *WORDS]
        assert run(argv) == 0
        found[name] = folder / name / "model"
    return found


def check_words(model: Path, rows: list[dict[str, Any]], texts: dict[str, str], label: str, words: str) -> None:
    """Each word is one of the review or of its aspect, and its change that of the probability without it."""
    classifier = bertray.Classifier.load(model, device="cpu")
    assert rows
    for row in rows:
        key, _, aspect = row["id"].partition("#")
        number = classifier.labels.index(row[label])
        text = texts[key]
        prob = float(classifier.predict_proba([text], [aspect])[0, number])
        assert row[words], row
        for word in row[words]:
            places = re.finditer(re.escape(word["word"]), text)
            without = [(text[: place.start()] + text[place.end() :], aspect) for place in places]
            if word["word"] == aspect:  # maybe that of the second text, and no review is read without one
                continue
            changes = [prob - float(classifier.predict_proba([text], [of])[0, number]) for text, of in without]
            assert min(abs(change - word["change"]) for change in changes) < 0.01  # bf16, where the machine has it


@pytest.mark.slow
def test_words_that_decide_are_those_of_the_review_and_its_aspect(opposed, tmp_path):
    table = reviews(8, 6)
    texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    pq.write_table(table, tmp_path / "in.parquet")
    model, other = opposed.values()
    words = [f"input={tmp_path}/in.parquet", "report.explain=4", "report.num_mistakes=5", WORDS[-1]]
    assert run(["evaluate", f"model={other}", f"output={tmp_path}/evaluated", *words]) == 0
    mistakes = pq.read_table(tmp_path / "evaluated" / "mistakes.parquet").to_pylist()
    assert [row["words"] is None for row in mistakes] == [False] * 4 + [True]
    check_words(other, mistakes[:4], texts, "prediction", "words")
    assert run(["compare", f"a={model}", f"b={other}", f"output={tmp_path}/compared", *words]) == 0
    flips = pq.read_table(tmp_path / "compared" / "flips.parquet").to_pylist()
    assert len(flips) > 4
    for side, bundle in (("a", model), ("b", other)):
        check_words(bundle, flips[:4], texts, f"label_{side}", f"words_{side}")
    page = html.unescape((tmp_path / "compared" / "report.html").read_text())
    page = re.sub(r"</?mark[^>]*>", "", page)
    for flip in flips[:5]:
        key, _, aspect = flip["id"].partition("#")
        assert f"{texts[key]} · {aspect}" in page
    # Of reviews without labels, as a queue, too.
    assert run(["compare", f"a={model}", f"b={other}", f"output={tmp_path}/queue", *words, "rows=disagreements"]) == 0
    queue = pq.read_table(tmp_path / "queue" / "queue.parquet").to_pylist()
    assert len(queue) == sum(flip["label_a"] != flip["label_b"] for flip in queue) >= len(flips)
    check_words(model, queue[:4], texts, "label_a", "words_a")


def test_a_model_by_aspect_beside_one_of_whole_reviews_is_refused(trained, trained_alone, folder, tmp_path, capsys):
    models = [trained / "model", trained_alone / "model"]
    for a, b in (models, reversed(models)):
        words = ["compare", f"a={a}", f"b={b}", f"input={folder}/test.parquet", f"output={tmp_path}/out"]
        assert run(words) == 2
        assert "labels it for each aspect" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["long_text=select"], "long_text=select keeps the sentences that concern an aspect"),
        (["head=attention"], "head=attention pools by an aspect"),
        (["head=attention", "aspects=[plot]", "training.method=features"], "applies to training.method=finetune"),
    ],
)
def test_what_needs_an_aspect_says_so(folder, tiny_encoder, tmp_path, capsys, words, message):
    argv = ["train", f"model={tiny_encoder}", f"data.train={folder}/train.parquet", f"output={tmp_path}", *WORDS]
    assert run([*argv, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_model_of_single_texts_selects_no_sentences(trained_alone, corpus, tmp_path, capsys):
    argv = ["score", f"model={trained_alone}/model", f"input={corpus}/test.parquet", f"output={tmp_path}"]
    assert run([*argv, "long_text=select"]) == 2
    assert "no aspect is named" in capsys.readouterr().err
    assert run([*argv, "aspects=[plot]"]) == 2
    assert "was trained on single texts" in capsys.readouterr().err
