"""Texts in memory are labelled exactly as `bertray score` labels them from files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import bertray
from bertray.cli import run
from bertray.model.bundle import INFO_FILE, content_version, read_info
from tests.corpus import sentences

TEXTS = [
    "the film was great",
    "<b>the</b> film was &quot;awful&quot;<br />and boring",
    "the plot was lovely and " + "very " * 60,  # longer than max_length
    "the film was great",  # again
    "café naïve ﬁlm",
    "bad",
]
REFUSED = ["", "   ", "<br/>"]  # nothing left after cleaning


@pytest.fixture(scope="module")
def bundle(trained_alone: Path) -> str:
    return str(trained_alone / "model")


@pytest.fixture(scope="module")
def classifier(bundle: str) -> bertray.Classifier:
    return bertray.Classifier.load(bundle)


def scored(bundle: str, folder: Path, texts: list[str], *words: str) -> pd.DataFrame:
    """Rows that `bertray score` writes for some texts, in their order."""
    (folder / "in").mkdir(parents=True)
    pq.write_table(pa.table({"id": [str(n) for n in range(len(texts))], "text": texts}), folder / "in" / "a.parquet")
    argv = ["score", f"model={bundle}", f"input={folder / 'in'}", f"output={folder / 'out'}", *words]
    assert run(argv) == 0
    table = ds.dataset(folder / "out" / "data", partitioning="hive").to_table()
    return table.to_pandas().sort_values("id", key=lambda ids: ids.astype(int), ignore_index=True)


@pytest.mark.parametrize("long_text", ["head", "head_tail", "windows"])
def test_predict_gives_what_score_writes(bundle, tmp_path, long_text):
    texts = TEXTS + sentences(200, seed=5)[0]
    rows = scored(bundle, tmp_path, texts, f"long_text={long_text}", "max_length=16")
    classifier = bertray.Classifier.load(bundle, long_text=long_text, max_length=16)
    assert classifier.predict(texts) == rows["label"].tolist()
    probs_NC = classifier.predict_proba(texts)
    assert probs_NC.dtype == np.float32
    for number, label in enumerate(classifier.labels):
        np.testing.assert_array_equal(probs_NC[:, number], rows[f"prob_{label}"].to_numpy(np.float32))


def test_a_loaded_classifier_reads_as_its_bundle_does(classifier, bundle, tmp_path):
    rows = scored(bundle, tmp_path, TEXTS)
    assert classifier.predict(TEXTS) == rows["label"].tolist()
    assert classifier.model_version == rows["model_version"][0]


@pytest.mark.parametrize(
    "of",
    [
        tuple,
        np.array,
        pd.Series,
        lambda texts: pd.Series(texts, dtype="category"),
        lambda texts: pd.Series(texts, index=range(10, 10 + len(texts))),
        pa.array,
        lambda texts: pa.chunked_array([texts[:2], texts[2:]]),
        lambda texts: pa.array(texts, pa.large_string()),
        lambda texts: pa.array(texts, pa.string_view()),
        lambda texts: pa.array(texts).dictionary_encode(),
    ],
)
def test_every_kind_of_sequence_gives_the_same_probabilities(classifier, of):
    np.testing.assert_array_equal(classifier.predict_proba(of(TEXTS)), classifier.predict_proba(TEXTS))


def test_texts_without_content_are_refused_by_position_and_reason(classifier):
    with pytest.raises(bertray.DataRefused) as caught:
        classifier.predict(["good", *REFUSED, None])
    assert caught.value.message == (
        "texts: 4 of 5 texts cannot be read by the model, at position 1 (text_empty: nothing is left after cleaning), "
        "2 (text_empty: nothing is left after cleaning), 3 (text_empty: nothing is left after cleaning), 4 (text_null)."
    )


def test_refused_texts_become_none_when_asked_for(classifier):
    texts = ["good", *REFUSED, None, float("nan"), "bad", "\ud800"]
    labels = classifier.predict(texts, on_refused="null")
    assert [number for number, label in enumerate(labels) if label is None] == [1, 2, 3, 4, 5, 7]
    assert [labels[0], labels[6]] == classifier.predict(["good", "bad"])
    assert np.isnan(classifier.predict_proba(texts, on_refused="null")).all(axis=1).tolist() == [
        label is None for label in labels
    ]


def test_no_texts_give_no_labels(classifier):
    assert classifier.predict([]) == []
    assert classifier.predict_proba([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ("good", "one text"),
        (b"good", "one text"),
        (3, "int"),
        ([1, 2], "values of type int64"),
        ([["a"]], "list"),
        ({"a": "good"}, "dict"),
        ({"good", "bad"}, "set"),
        (pa.table({"text": ["good"], "label": ["pos"]}), "a table of text, label"),
        ([{"text": "good"}], "a table of text"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(classifier, texts, found):
    with pytest.raises(bertray.ConfigError, match=f"expected .*texts, found {found}|found values of type {found}"):
        classifier.predict(texts)


def test_a_table_keeps_its_rows_and_columns_and_gets_labels(classifier):
    table = pa.table({"shop": pa.array([1, 2, 3]), "text": ["good film", "", "awful plot"], "label": ["a", "b", "c"]})
    labelled = classifier(table)
    assert labelled.column_names == ["shop", "text", "input_label", "label", "score", "prob_neg", "prob_pos"]
    assert labelled["shop"].to_pylist() == [1, 2, 3]
    assert labelled["input_label"].to_pylist() == ["a", "b", "c"]
    good, bad = classifier.predict(["good film", "awful plot"])
    assert labelled["label"].to_pylist() == [good, None, bad]
    probs_NC = classifier.predict_proba(["good film", "awful plot"])
    assert [labelled[name][1].as_py() for name in ("score", "prob_neg", "prob_pos")] == [None, None, None]
    assert labelled["score"].to_pylist()[::2] == probs_NC.max(axis=1).tolist()
    assert labelled["prob_pos"].to_pylist()[::2] == probs_NC[:, 1].tolist()
    assert classifier(table.slice(0, 0)).schema == labelled.schema


def test_another_column_of_texts_is_named_once(bundle):
    classifier = bertray.Classifier(bundle, columns={"text": "body"})
    assert classifier(pa.table({"body": ["good"]})).column_names[:2] == ["body", "label"]
    with pytest.raises(bertray.ConfigError, match="expected one column 'body' of texts, found columns 'text'"):
        classifier(pa.table({"text": ["good"]}))
    with pytest.raises(bertray.ConfigError, match="batch_format='pyarrow'"):
        classifier({"body": ["good"]})


@pytest.fixture
def of_two_columns(bundle, tmp_path) -> str:
    """The bundle as one that was trained on titles and bodies."""
    folder = Path(shutil.copytree(bundle, tmp_path / "of two columns"))
    info = replace(read_info(folder), text_columns=("title", "body"))
    info = replace(info, model_version=content_version(folder, info))
    (folder / INFO_FILE).write_text(json.dumps(info.to_json()))
    return str(folder)


TWO_COLUMNS = {"title": ["a film", "a plot"], "body": ["good", "awful"], "text": ["bad", "lovely"]}


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        (None, ["a film\ngood", "a plot\nawful"]),
        ({"id": "key"}, ["a film\ngood", "a plot\nawful"]),
        ({"text": "body"}, ["good", "awful"]),
        ({"text": "text"}, ["bad", "lovely"]),
    ],
)
def test_a_stated_text_column_is_read_in_place_of_those_of_training(of_two_columns, columns, texts):
    labelled = bertray.Classifier(of_two_columns, columns=columns)(pa.table(TWO_COLUMNS))
    probs_NC = bertray.Classifier(of_two_columns).predict_proba(texts)
    assert labelled["prob_pos"].to_pylist() == probs_NC[:, 1].tolist()


def test_a_table_for_a_model_of_several_columns_is_for_the_call(of_two_columns):
    classifier = bertray.Classifier(of_two_columns)
    table = pa.table(TWO_COLUMNS).select(["title", "body"])
    for given in (table.to_pandas(), table):
        with pytest.raises(bertray.ConfigError, match=r"`classifier\(table\)`, with an Arrow table of title, body"):
            classifier.predict(given)


def test_evaluation_reads_the_stated_column_and_says_that_it_is_another(of_two_columns, tmp_path):
    frame = pa.table({**TWO_COLUMNS, "label": ["pos", "neg"]}).to_pandas()
    of_training = bertray.Classifier(of_two_columns).evaluate(frame, output=tmp_path / "all")
    assert [note for note in of_training.notes if "columns.text" in note] == []
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "test.parquet")
    config = tmp_path / "evaluate.yaml"
    for stated in ("text", "body"):
        config.write_text(f"columns: {{text: {stated}}}\n")
        for way in ({"config": config}, {"columns": {"text": stated}}):
            output = tmp_path / f"{stated}-{len(way)}-{next(iter(way))}"
            result = bertray.evaluate(of_two_columns, str(tmp_path / "test.parquet"), output=output, **way)
            assert [note for note in result.notes if "columns.text" in note] == [
                "The model was trained on the columns title, body read as one text, and columns.text states "
                f"{stated}: it saw less, or something else, than in training."
            ]


def test_an_evaluation_of_another_column_is_another_run(of_two_columns, tmp_path):
    pq.write_table(pa.table({**TWO_COLUMNS, "label": ["pos", "neg"]}), tmp_path / "test.parquet")
    argv = ["evaluate", f"model={of_two_columns}", f"input={tmp_path / 'test.parquet'}", f"output={tmp_path / 'out'}"]
    assert run(argv) == 0
    assert run([*argv, "columns.text=text"]) == 4
    assert run(argv) == 0


def test_pairs_are_for_models_of_pairs(classifier):
    with pytest.raises(bertray.ConfigError, match="was loaded for single texts"):
        classifier.predict(["good"], ["bad"])


def test_a_saved_classifier_is_the_same_one(classifier, tmp_path):
    folder = classifier.save(tmp_path / "copies" / "first")
    again = bertray.Classifier.load(folder)
    assert again.model_version == classifier.model_version
    assert again.predict(TEXTS) == classifier.predict(TEXTS)
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["first"]
    with pytest.raises(bertray.ConflictError, match="not empty"):
        classifier.save(folder)


def test_evaluation_of_a_classifier_is_that_of_the_command(classifier, bundle, corpus, tmp_path):
    argv = ["evaluate", f"model={bundle}", f"input={corpus / 'test.parquet'}", f"output={tmp_path / 'command'}"]
    assert run(argv) == 0
    result = classifier.evaluate(corpus / "test.parquet", output=tmp_path / "api")
    for name in ("metrics.json", "predictions.parquet"):
        assert (tmp_path / "api" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    assert result.rows == 90
    assert result.output == str(tmp_path / "api")


BOTH = (bertray.Classifier, bertray.Embedder)


@pytest.mark.parametrize(
    ("kinds", "keys", "message"),
    [
        (BOTH, {"model": None}, "model: expected text, found nothing"),
        (BOTH, {"columns": "body"}, "columns: expected keys below it, such as columns.id, found 'body'"),
        (BOTH, {"columns": {"txt": "body"}}, "columns.txt: no such key. Did you mean 'columns.text'?"),
        (BOTH[:1], {"aspects": "food"}, "aspects: expected a list of aspects"),
        (BOTH[:1], {"precision": "fp64"}, "precision: expected"),
        (BOTH[1:], {"cleaning": "none"}, "cleaning: expected keys below it"),
        (BOTH[1:], {"pooling": "max"}, "pooling: expected"),
    ],
)
def test_a_wrong_argument_is_told_as_a_wrong_key(bundle, kinds, keys, message):
    for kind in kinds:
        with pytest.raises(bertray.ConfigError) as caught:
            kind.load(**{"model": bundle, **keys})
        assert message in str(caught.value)


def test_another_word_for_refused_texts_is_told(classifier):
    for texts in (["good"], [""]):
        with pytest.raises(bertray.ConfigError, match="on_refused: expected raise or null, found 'skip'"):
            classifier.predict(texts, on_refused="skip")


def test_a_name_of_a_registry_is_told_as_by_score():
    with pytest.raises(bertray.ConfigError, match="model=registry:reviews: expected the key registry, found none"):
        bertray.Classifier.load("registry:reviews")


@pytest.mark.slow
@pytest.mark.ray
def test_actors_of_ray_data_label_a_data_set(bundle, classifier, ray_cluster):
    import ray

    table = pa.table({"text": ["good film", "awful plot", "", "lovely"], "n": [0, 1, 2, 3]})
    labelled = ray.data.from_arrow(table).map_batches(
        bertray.Classifier, fn_constructor_args=[bundle], batch_format="pyarrow", concurrency=1
    )
    rows = sorted(labelled.take_all(), key=lambda row: row["n"])
    assert [row["label"] for row in rows] == classifier.predict(table["text"], on_refused="null")
