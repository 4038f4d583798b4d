"""From two models to a verdict, through the gate into a registry, and into the nightly job."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bertray
from bertray.cli import run
from bertray.execution.executor import THIS_PROCESS
from bertray.io import faults
from bertray.model.bundle import read_info
from bertray.runs.explained import ScoredBy
from bertray.trust.registry import Registry, current
from tests.corpus import sentences, train_argv
from tests.nightly import without_ray

HOSTILE = [
    "<script>alert(1)</script> the film was {}",
    "<img src=x onerror=alert(1)> the film was {}",
    '"><svg onload=alert(1)> the film was {}',
    "</blockquote></li><h1>the film was {}",
    "{{{{ 7 * 7 }}}} the film was {}",
    "javascript:alert(1) the film was {}",
    "=cmd|' /C calc'!A0 the film was {}",
    "@SUM(1+1) the film was {}",
    "+1 the film was {}",
    "\u202ethe film was {} \u0007",
]


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    without_ray(monkeypatch)


@pytest.fixture(scope="module")
def judge(tmp_path_factory, corpus) -> Path:
    """600 labelled reviews that stand in no training data, in two shops."""
    seen = set(pq.read_table(corpus / "train.parquet")["text"].to_pylist())
    texts, labels = sentences(900, 3)
    rows = [(t, y) for t, y in zip(texts, labels, strict=True) if t not in seen][:600]
    table = {
        "id": [f"j{i}" for i in range(600)],
        "text": [text for text, _ in rows],
        "label": [label for _, label in rows],
        "shop": ["north" if i % 3 else "south" for i in range(600)],
    }
    path = tmp_path_factory.mktemp("judge") / "judge.parquet"
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="module")
def weak(tmp_path_factory, tiny_encoder, corpus) -> Path:
    """A model trained for one epoch on 40 reviews, of which four in ten have the wrong label."""
    folder = tmp_path_factory.mktemp("weak")
    table = pq.read_table(corpus / "train.parquet").slice(0, 40)
    wrong_N = np.random.default_rng(0).random(40) < 0.4
    labels = [
        ("neg" if y == "pos" else "pos") if wrong else y
        for y, wrong in zip(table["label"].to_pylist(), wrong_N, strict=True)
    ]
    pq.write_table(
        table.set_column(table.column_names.index("label"), "label", pa.array(labels)), folder / "few.parquet"
    )
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        few = f"data.train={folder / 'few.parquet'}"
        assert run([*train_argv(tiny_encoder, corpus, folder / "run"), few, "training.epochs=1"]) == 0
    return folder / "run" / "model"


@pytest.fixture(scope="module")
def good(trained_alone) -> Path:
    return trained_alone / "model"


def test_compare_says_which_model_is_better_and_lists_the_flips(weak, good, judge, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["compare", f"a={weak}", f"b={good}", f"input={judge}", f"output={output}", "report.slices=[shop]"]
    assert run(words) == 0
    said = capsys.readouterr().out
    assert "B is better than A on 600 labelled rows" in said
    assert "With these 600 rows a gain of one point would be found in " in said
    found = json.loads((output / "comparison.json").read_text())
    assert (found["schema_version"], found["rows"], found["verdict"]) == (1, 600, "better")
    assert found["difference"]["accuracy"]["low"] > 0.2
    assert found["difference"]["log_loss"]["high"] < 0
    assert set(found["slices"]) == {"length", "script", "shop"}
    assert set(found["per_class"]["pos"]) == {"precision", "recall", "f1"}
    flips = pq.read_table(output / "flips.parquet")
    own = ["id", "label", "label_a", "label_b", "score_a", "score_b"]
    assert flips.column_names == [*own, "words_a", "words_b"]
    for name in ("words_a", "words_b"):
        explained = flips[name].to_pylist()
        assert all(words is not None for words in explained[:20])
        assert explained[20:] == [None] * (flips.num_rows - 20)
    page = (output / "report.html").read_text()
    assert "Marked words move the score" in page or "No single word moves the score by as much as 0.001." in page
    given, labels_b = flips["label"].to_pylist(), flips["label_b"].to_pylist()
    assert sum(x == y for x, y in zip(given, labels_b, strict=True)) == found["flips"]["b_right"] > 100
    sure = [a + b for a, b in zip(flips["score_a"].to_pylist(), flips["score_b"].to_pylist(), strict=True)]
    assert (np.diff(sure) < 1e-6).all()  # sums of float32
    assert run(words) == 0
    assert "already compared" in capsys.readouterr().out
    assert run([*words, "seed=1"]) == 4


@pytest.mark.parametrize("settings", [{}, {"precision": "fp16"}], ids=["here", "scored on another machine"])
def test_words_of_a_bundle_are_those_without_which_its_classifier_says_something_else(good, settings):
    text = "the film was great and story plot"
    (found,) = ScoredBy.of(str(good), read_info(good), settings).explain([(text, None)], ["pos"], THIS_PROCESS)
    classifier = bertray.Classifier.load(good, device="cpu")
    without = [text[: word.start] + text[word.end :] for word in found]
    probs_NC = classifier.predict_proba([text, *without])[:, classifier.labels.index("pos")]
    assert found
    for word, prob in zip(found, probs_NC[1:].tolist(), strict=True):
        assert word.change == pytest.approx(float(probs_NC[0]) - prob, abs=0.01)  # bf16, where the machine has it


def test_errors_and_the_words_that_decided_them_are_a_table(weak, judge, tmp_path):
    words = ["evaluate", f"model={weak}", f"input={judge}", f"output={tmp_path / 'out'}"]
    assert run([*words, "report.num_mistakes=6", "report.explain=4"]) == 0
    mistakes = pq.read_table(tmp_path / "out" / "mistakes.parquet")
    predictions = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert mistakes.column_names == ["id", "label", "prediction", "score", "words"]
    wrong = [row for row in predictions if row["label"] != row["prediction"]]
    wrong.sort(key=lambda row: -max(row["prob_neg"], row["prob_pos"]))
    assert mistakes["id"].to_pylist() == [row["id"] for row in wrong[:6]]
    assert [found is None for found in mistakes["words"].to_pylist()] == [False] * 4 + [True] * 2
    assert run([*words, "report.explain=0", f"output={tmp_path / 'none'}"]) == 0
    assert pq.read_table(tmp_path / "none" / "mistakes.parquet")["words"].null_count == 20
    assert "Marked words" not in (tmp_path / "none" / "report.html").read_text()


def test_a_model_beside_itself_cannot_be_told_apart(good, judge, tmp_path):
    assert run(["compare", f"a={good}", f"b={good}", f"input={judge}", f"output={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (found["verdict"], found["flips"]["rows"], found["mcnemar_p"]) == ("undecided", 0, 1.0)


def test_copies_among_the_rows_are_told(weak, good, judge, tmp_path):
    table = pq.read_table(judge).slice(0, 100)
    texts = pa.array([f"{text} {number}" for number, text in enumerate(table["text"].to_pylist())])
    table = table.set_column(1, "text", texts)
    for copies, told in ((1, False), (2, True)):
        path = tmp_path / f"{copies}.parquet"
        pq.write_table(pa.concat_tables([table] * copies), path)
        out = tmp_path / f"out{copies}"
        assert run(["compare", f"a={weak}", f"b={good}", f"input={path}", f"output={out}", "report.explain=0"]) == 0
        page = (out / "report.html").read_text().replace("\u00a0", " ")
        assert ("100 of 200 rows repeat the text of another one (50 %)" in page) is told


def test_ordered_classes_get_figures_by_distance(weak, good, judge, tmp_path):
    words = ["compare", f"a={weak}", f"b={good}", f"input={judge}", f"output={tmp_path / 'out'}", "labels_ordered=true"]
    assert run(words) == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["difference"]["mean_absolute_error"]["high"] < 0
    assert found["b"]["metrics"]["quadratic_weighted_kappa"]["value"] > 0.9
    assert "quadratic weighted kappa" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_outputs_are_joined_by_id(weak, good, judge, tmp_path, capsys):
    for name, model in (("a", weak), ("b", good)):
        assert run(["evaluate", f"model={model}", f"input={judge}", f"output={tmp_path / name}"]) == 0
    assert run(["compare", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", f"output={tmp_path / 'evaluated'}"]) == 0
    evaluated = json.loads((tmp_path / "evaluated" / "comparison.json").read_text())
    assert run(["compare", f"a={weak}", f"b={good}", f"input={judge}", f"output={tmp_path / 'models'}"]) == 0
    models = json.loads((tmp_path / "models" / "comparison.json").read_text())
    assert evaluated["difference"] == models["difference"]
    unlabelled = tmp_path / "unlabelled.parquet"
    pq.write_table(pq.read_table(judge, columns=["id", "text"]), unlabelled)
    for name, model in (("sa", weak), ("sb", good)):
        assert run(["score", f"model={model}", f"input={unlabelled}", f"output={tmp_path / name}"]) == 0
    scored = ["compare", f"a={tmp_path / 'sa'}", f"b={tmp_path / 'sb'}"]
    assert run([*scored, f"output={tmp_path / 'without'}"]) == 0
    without = json.loads((tmp_path / "without" / "comparison.json").read_text())
    assert (without["verdict"], without["rows"]) == ("no labels", 600)
    assert without["flips"]["rows"] == models["flips"]["rows"]
    assert run([*scored, f"input={judge}", f"output={tmp_path / 'with'}"]) == 0
    assert json.loads((tmp_path / "with" / "comparison.json").read_text())["difference"] == models["difference"]
    assert run(["compare", f"a={tmp_path / 'sa'}", f"b={good}", f"output={tmp_path / 'mixed'}"]) == 2
    assert "found an output as a and a model as b" in capsys.readouterr().err


@pytest.mark.slow
def test_answers_judge_by_the_rows_that_were_drawn_at_random(weak, good, judge, tmp_path):
    table = pq.read_table(judge)
    drawn = [0.5 if n % 3 else None for n in range(600)]
    columns = {"probability": drawn, "drawn": [400] * 600, "drawn_from": [800] * 600, "slot": ["s"] * 600}
    for name, values in {**columns, "queue": ["q"] * 600}.items():
        table = table.append_column(name, pa.array(values))
    answers = tmp_path / "answers.parquet"
    pq.write_table(table, answers)
    registry = str(tmp_path / "registry")
    bertray.promote("reviews", str(weak), str(answers), registry=registry, force=True, reason="first")
    found = bertray.promote("reviews", str(good), str(answers), registry=registry)
    assert any(note.startswith("400 answers of 600 judge the models") for note in found.notes)
    with pytest.raises(bertray.ConfigError, match="expected answers alone or other labelled reviews alone"):
        bertray.promote("other", str(good), [str(answers), str(judge)], registry=registry)


def test_outputs_without_a_common_id_are_refused(good, judge, tmp_path, capsys):
    for name, first in (("a", 0), ("b", 300)):
        part = tmp_path / f"{name}.parquet"
        pq.write_table(pq.read_table(judge).slice(first, 300), part)
        assert run(["evaluate", f"model={good}", f"input={part}", f"output={tmp_path / name}"]) == 0
    assert run(["compare", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", f"output={tmp_path / 'out'}"]) == 6
    assert "expected common ids, found none in 300 and 300 rows" in capsys.readouterr().err


def test_disagreements_become_a_queue_that_a_spreadsheet_opens_safely(weak, good, tmp_path, capsys):
    texts = [text.format(word) for text in HOSTILE for word in ("great", "awful", "lovely", "bad")]
    inbox = tmp_path / "inbox.parquet"
    pq.write_table(pa.table({"id": [f"=<script>{i}</script>" for i in range(len(texts))], "text": texts}), inbox)
    output = tmp_path / "out"
    words = ["compare", f"a={weak}", f"b={good}", f"input={inbox}", f"output={output}", "rows=disagreements"]
    assert run([*words, "budget=5"]) == 0
    said = capsys.readouterr().out
    assert "macro F1 cannot be had from them" in said
    rows = list(csv.DictReader(io.StringIO((output / "queue.csv").read_text("utf-8-sig"))))
    disagreements = json.loads((output / "comparison.json").read_text())["flips"]["rows"]
    assert len(rows) == 5 < disagreements
    assert {float(row["probability"]) for row in rows} == {5 / disagreements}
    assert all(row["label_a"] != row["label_b"] and not row["label"] for row in rows)
    for name in ("words_a", "words_b"):
        explained = pq.read_table(output / "queue.parquet")[name].to_pylist()
        told = [row[name].removeprefix("'").split("; ") if row[name] else [] for row in rows]
        assert [len(words) for words in told] == [len(words) for words in explained]  # as text in the spreadsheet
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    page = (output / "report.html").read_text()
    assert not [
        alive for alive in ("<script", "<img", "<svg onload", "</blockquote></li><h1>", "49 the") if alive in page
    ]
    assert "=&lt;script&gt;" in page


def answered(queue: Path, label_of: dict[str, str], target: Path, delimiter: str = ",") -> Path:
    """The queue as a person fills it in, saved by a spreadsheet."""
    rows = list(csv.DictReader(io.StringIO(queue.read_text("utf-8-sig"))))
    with target.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows({**row, "label": label_of[row["id"]]} for row in rows)
    return target


@pytest.mark.slow
def test_answers_to_disagreements_give_the_gain_on_all_reviews(weak, good, judge, tmp_path, capsys):
    table = pq.read_table(judge)
    unlabelled = tmp_path / "unlabelled.parquet"
    pq.write_table(table.select(["id", "text"]), unlabelled)
    assert run(["compare", f"a={weak}", f"b={good}", f"input={judge}", f"output={tmp_path / 'all'}"]) == 0
    of_all = json.loads((tmp_path / "all" / "comparison.json").read_text())
    words = ["compare", f"a={weak}", f"b={good}", f"input={unlabelled}", "rows=disagreements"]
    assert run([*words, f"output={tmp_path / 'queue'}", "budget=1000"]) == 0
    label_of = dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
    everything = answered(tmp_path / "queue" / "queue.csv", label_of, tmp_path / "everything.csv", delimiter=";")
    capsys.readouterr()
    assert run([*words, f"output={tmp_path / 'answered'}", f"answers={everything}"]) == 0
    said = capsys.readouterr().out
    assert "B is better than A on 600 reviews" in said
    found = json.loads((tmp_path / "answered" / "comparison.json").read_text())
    assert found["difference"]["accuracy"]["value"] == pytest.approx(of_all["difference"]["accuracy"]["value"])
    assert found["mcnemar_p"] == of_all["mcnemar_p"]
    assert set(found["difference"]) == {"accuracy"}
    assert found["answers"]["answers"] == found["answers"]["disagreements"] == of_all["flips"]["rows"]
    assert "macro F1 cannot be had" in " ".join(found["notes"])
    page = (tmp_path / "answered" / "report.html").read_text()
    assert "B is right" in page
    assert not (tmp_path / "answered" / "queue.csv").exists()
    assert run([*words, f"output={tmp_path / 'some'}", "budget=40", "seed=1"]) == 0
    sample = answered(tmp_path / "some" / "queue.csv", label_of, tmp_path / "sample.csv")
    assert run([*words, f"output={tmp_path / 'sampled'}", "budget=40", f"answers={sample}"]) == 0
    few = json.loads((tmp_path / "sampled" / "comparison.json").read_text())
    gain = few["difference"]["accuracy"]
    assert few["answers"]["answers"] == 40
    assert gain["low"] <= of_all["difference"]["accuracy"]["value"] <= gain["high"]


@pytest.mark.slow
def test_answers_that_cannot_be_used_are_told(weak, good, judge, tmp_path, capsys):
    unlabelled = tmp_path / "unlabelled.parquet"
    pq.write_table(pq.read_table(judge, columns=["id", "text"]).slice(0, 200), unlabelled)
    words = ["compare", f"a={weak}", f"b={good}", f"input={unlabelled}", "rows=disagreements"]
    assert run([*words, f"output={tmp_path / 'queue'}"]) == 0
    queue = tmp_path / "queue" / "queue.csv"
    ids = [row["id"] for row in csv.DictReader(io.StringIO(queue.read_text("utf-8-sig")))]
    other = ["compare", f"a={good}", f"b={good}", f"input={unlabelled}", "rows=disagreements"]
    whole = answered(queue, dict.fromkeys(ids, "pos"), tmp_path / "whole.csv")
    (tmp_path / "empty").mkdir()
    cases = [
        (words, answered(queue, dict.fromkeys(ids, ""), tmp_path / "empty.csv"), 6, "expected labels, found"),
        (words, answered(queue, dict.fromkeys(ids, "posi"), tmp_path / "typo.csv"), 6, "expected labels of neg, pos"),
        (words, tmp_path / "missing.csv", 2, "expected a file, folder or glob, found nothing there"),
        (words, tmp_path / "empty", 2, "no file there"),
        (words, tmp_path / "queue", 6, "expected labels, found"),  # its queue.csv, not filled in
        (words, unlabelled, 6, "the column input_path is missing"),
        (other, whole, 6, "on which A and B differ"),
        ([*words[:-1], "rows=all"], whole, 2, "add rows=disagreements"),
    ]
    for number, (argv, path, code, said) in enumerate(cases):
        capsys.readouterr()
        assert run([*argv, f"answers={path}", f"output={tmp_path / f'out{number}'}"]) == code, said
        assert said in " ".join(capsys.readouterr().err.split())


def test_the_gate_refuses_forces_promotes_and_rolls_back(weak, good, judge, tmp_path, capsys):
    registry = tmp_path / "registry"
    base = [f"input={judge}", f"registry={registry}"]
    assert run(["promote", "reviews", f"model={weak}", *base]) == 8
    assert "Refused: accuracy" in (said := capsys.readouterr().err)
    assert "over the majority class" in said
    assert "reviews stands for no model yet" in said
    assert run(["promote", "reviews", f"model={weak}", *base, "force=true"]) == 2
    assert "force=true needs reason" in capsys.readouterr().err
    assert run(["promote", "reviews", f"model={weak}", *base, "force=true", "reason=to begin with"]) == 0
    first = current(Registry(str(registry)).history("reviews"))
    assert (first.forced, first.reason, first.rows) == (True, "to begin with", 600)
    assert run(["promote", "reviews", f"model={good}", *base, "protect=[shop]"]) == 0
    history = Registry(str(registry)).history("reviews")
    assert [entry.kind for entry in history] == ["refuse", "promote", "promote"]
    assert [entry.gate["use"] for entry in history] == [1, 2, 3]
    assert {slice_["value"] for slice_ in history[-1].gate["protected"]} == {"north", "south"}
    version = registry / "reviews" / "versions" / history[-1].version
    assert json.loads((version / "comparison" / "comparison.json").read_text())["gate"]["passed"] is True
    assert (version / "comparison" / "report.html").is_file()
    capsys.readouterr()
    assert run(["promote", "reviews", f"model={good}", *base]) == 0
    assert "already" in capsys.readouterr().out
    assert run(["promote", "reviews", f"model={weak}", *base]) == 8
    assert f"reviews stays on {history[-1].version}" in (said := capsys.readouterr().err)
    assert "Use 4 of this test set for this name" in said
    assert run(["registry", f"registry={registry}"]) == 0
    assert "to begin with" in " ".join(capsys.readouterr().out.split())
    assert run(["rollback", "reviews", f"registry={registry}"]) == 0
    assert current(Registry(str(registry)).history("reviews")).version == first.version
    assert run(["rollback", "reviews", f"registry={registry}"]) == 4
    assert "the pointer stays" in capsys.readouterr().err
    assert run(["rollback", "reviews", f"registry={registry}", f"to={history[-1].version}"]) == 0
    assert not list((registry / "reviews").glob("control/**/*.parquet"))


@pytest.fixture
def named_model(judge, tmp_path) -> tuple[Path, Path, list[str], list[str]]:
    """A registry, an inbox, and the words that promote to a name in the first and score the second with it."""
    registry, inbox = tmp_path / "registry", tmp_path / "inbox"
    inbox.mkdir()
    promote = ["promote", "reviews", f"input={judge}", f"registry={registry}"]
    score = ["score", "model=registry:reviews", f"registry={registry}", f"input={inbox}", f"output={tmp_path}/scored"]
    return registry, inbox, promote, score


@pytest.mark.slow
def test_each_night_keeps_the_version_that_the_name_stood_for(named_model, weak, good, judge, tmp_path, capsys):
    registry, inbox, promote, score = named_model
    assert run(score) == 2
    assert "registry" in capsys.readouterr().err
    assert run([*promote, f"model={weak}", "force=true", "reason=first"]) == 0
    versions = []
    for night in (1, 2):
        table = pq.read_table(judge, columns=["id", "text"]).slice(night * 50, 50)
        pq.write_table(table, inbox / f"night-{night}.parquet")
        assert run([*score, f"slot=night={night}"]) == 0
        rows = pq.read_table(tmp_path / "scored" / "data" / f"night={night}" / "run=1")
        versions.append(set(rows["model_version"].to_pylist()))
        if night == 1:
            assert run([*promote, f"model={good}"]) == 0
    history = Registry(str(registry)).history("reviews")
    assert versions == [{history[0].version}, {history[1].version}]


@pytest.mark.slow
def test_a_resumed_night_keeps_the_version_that_it_was_planned_with(named_model, weak, good, judge, tmp_path):
    registry, inbox, promote, score = named_model
    assert run([*promote, f"model={weak}", "force=true", "reason=first"]) == 0
    pq.write_table(pq.read_table(judge, columns=["id", "text"]).slice(0, 40), inbox / "a.parquet")
    faults.arm("verify.before:1:raise")
    try:
        assert run([*score, "slot=night=1"]) == 7
    finally:
        faults.arm("")
    assert run([*promote, f"model={good}"]) == 0
    assert run([*score, "slot=night=1"]) == 0
    pq.write_table(pq.read_table(judge, columns=["id", "text"]).slice(40, 40), inbox / "b.parquet")
    assert run([*score, "slot=night=2"]) == 0
    first, second = (entry.version for entry in Registry(str(registry)).history("reviews"))
    for night, version in ((1, first), (2, second)):
        rows = pq.read_table(tmp_path / "scored" / "data" / f"night={night}" / "run=1")
        assert set(rows["model_version"].to_pylist()) == {version}
        assert rows.num_rows == 40


def test_rows_that_a_model_was_trained_on_do_not_judge_it(weak, good, corpus, tmp_path, capsys):
    train = corpus / "train.parquet"
    assert run(["promote", "reviews", f"model={good}", f"input={train}", f"registry={tmp_path / 'registry'}"]) == 6
    assert "found 100.0 % that were" in capsys.readouterr().err
    assert Registry(str(tmp_path / "registry")).history("reviews") == []
    assert run(["compare", f"a={weak}", f"b={good}", f"input={train}", f"output={tmp_path / 'out'}"]) == 0
    assert "B: 240 of 240 rows were seen in training" in (tmp_path / "out" / "report.html").read_text().replace(
        "\u00a0", " "
    )


@pytest.mark.slow
def test_rows_seen_in_training_are_known_by_what_their_own_model_reads(good, tiny_encoder, corpus, tmp_path, capsys):
    """The candidate cleans otherwise than the model in use: `wide` is `ｗｉｄｅ` to that one."""
    (tmp_path / "data").mkdir()
    for name, first in (("train", 0), ("test", 60)):
        table = pq.read_table(corpus / "train.parquet").slice(first, 60)
        wide = pa.array([f"ｗｉｄｅ {text}" for text in table["text"].to_pylist()])
        table = table.set_column(table.column_names.index("text"), "text", wide)
        pq.write_table(table, tmp_path / "data" / f"{name}.parquet")
    nfkc = ["cleaning={normalize: NFKC}", "training.epochs=1"]
    assert run([*train_argv(tiny_encoder, tmp_path / "data", tmp_path / "run"), *nfkc]) == 0
    base = [f"registry={tmp_path / 'registry'}", f"input={tmp_path / 'data' / 'train.parquet'}"]
    assert run(["promote", "reviews", f"model={good}", *base, "force=true", "reason=first"]) == 0
    capsys.readouterr()
    assert run(["promote", "reviews", f"model={tmp_path / 'run' / 'model'}", *base]) == 6
    assert "found 100.0 % that were" in capsys.readouterr().err


@pytest.mark.slow
def test_every_value_of_a_protected_column_is_judged(good, weak, judge, tmp_path, capsys):
    table = pq.read_table(judge)
    branches = pa.array([f"b{i % 40:02d}" if i < 200 else "b40" for i in range(table.num_rows)])
    pq.write_table(table.append_column("branch", branches), tmp_path / "judge.parquet")
    base = [f"input={tmp_path / 'judge.parquet'}", f"registry={tmp_path / 'registry'}", "protect=[branch]"]
    assert run(["promote", "reviews", f"model={good}", *base]) == 0
    assert run(["promote", "reviews", f"model={weak}", *base]) == 8
    said = " ".join(capsys.readouterr().err.split())
    assert "Worse on branch=b40" in said
    refusal = Registry(str(tmp_path / "registry")).history("reviews")[-1]
    assert sorted(judged["value"] for judged in refusal.gate["protected"]) == [f"b{i:02d}" for i in range(41)]


@pytest.mark.parametrize("verb", ["compare", "promote"])
def test_a_test_set_of_one_class_or_none_is_refused(verb, weak, good, judge, tmp_path, capsys):
    table = pq.read_table(judge)
    one = tmp_path / "one.parquet"
    pq.write_table(table.filter(pa.compute.equal(table["label"], "pos")), one)
    empty = tmp_path / "empty.parquet"
    pq.write_table(table.slice(0, 0), empty)
    words = {
        "compare": ["compare", f"a={weak}", f"b={good}", f"output={tmp_path / 'out'}"],
        "promote": ["promote", "reviews", f"model={good}", f"registry={tmp_path / 'registry'}"],
    }[verb]
    assert run([*words, f"input={one}"]) == 6
    assert "two classes" in capsys.readouterr().err
    assert run([*words, f"input={empty}"]) == 6
    assert "no row" in capsys.readouterr().err


def test_a_name_with_a_slash_and_a_registry_that_is_not_there_are_told(good, judge, tmp_path, capsys):
    base = [f"model={good}", f"input={judge}"]
    assert run(["promote", "a/b", *base, f"registry={tmp_path / 'registry'}"]) == 2
    assert "expected 1 to 64 letters" in capsys.readouterr().err
    assert run(["promote", "reviews", *base, f"registry={tmp_path / 'no' / 'where'}"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert run(["rollback", "reviews", f"registry={tmp_path / 'where'}"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert run(["rollback", "reviews", f"registry={tmp_path}"]) == 2
    assert "no model was promoted as 'reviews'" in capsys.readouterr().err


@pytest.mark.slow
def test_models_of_other_classes_are_told(good, judge, tmp_path, capsys, tiny_encoder, corpus, monkeypatch):
    other = tmp_path / "other"
    assert run([*train_argv(tiny_encoder, corpus, other), "labels={neg: bad, pos: fine}", "training.epochs=1"]) == 0
    words = ["compare", f"a={good}", f"b={other / 'model'}", f"input={judge}", f"output={tmp_path / 'out'}"]
    assert run(words) == 2
    assert "expected two models of the same classes, found neg, pos" in capsys.readouterr().err


def test_evaluate_reports_errors_by_distance_where_classes_have_an_order(good, judge, tmp_path):
    words = ["evaluate", f"model={good}", f"input={judge}", f"output={tmp_path / 'out'}", "labels_ordered=true"]
    assert run(words) == 0
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert figures["mean_absolute_error"]["value"] == pytest.approx(1 - figures["accuracy"]["value"])
    assert figures["off_by_more_than_one"]["value"] == 0
    assert "quadratic weighted kappa" in (tmp_path / "out" / "report.html").read_text()
