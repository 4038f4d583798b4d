"""The commands on a tiny corpus with a tiny model, in one Ray session: what they write, and what a second run does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from bertray.cli import run
from bertray.errors import InfrastructureError
from bertray.schema import QUARANTINE_SCHEMA
from tests.corpus import sentences, train_argv, write
from tests.nightly import without_ray

pytestmark = pytest.mark.ray


def metrics_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(folder: Path) -> list[dict]:
    return pq.read_table(folder).to_pylist()


# --- train -----------------------------------------------------------------------------------------------------------


def test_train_writes_the_whole_run(trained):
    written = sorted(path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file())
    outside_control = [name for name in written if not name.startswith("control/")]
    assert [name for name in outside_control if not name.startswith("model/")] == [
        "config.yaml",
        "history.parquet",
        "metrics.json",
        "mistakes.parquet",
        "predictions.parquet",
        "report.html",
    ]
    assert {"bertray.json", "config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        name.removeprefix("model/") for name in outside_control
    }
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".pickle")) for name in written)


def test_metrics_equal_scikit_learns_on_the_predictions(trained):
    metrics = metrics_of(trained / "metrics.json")
    rows = rows_of(trained / "predictions.parquet")
    given, said = [row["label"] for row in rows], [row["prediction"] for row in rows]
    probs = [[row["prob_neg"], row["prob_pos"]] for row in rows]
    assert metrics["rows"] == len(rows) == 90
    assert metrics["split"] == "test"
    assert metrics["labels"] == ["neg", "pos"]
    values = {name: figure["value"] for name, figure in metrics["metrics"].items()}
    assert values["accuracy"] == pytest.approx(accuracy_score(given, said))
    assert values["macro_f1"] == pytest.approx(f1_score(given, said, average="macro"))
    assert values["log_loss"] == pytest.approx(log_loss(given, probs), rel=1e-4)  # float32 probabilities
    assert values["accuracy"] > 0.8
    assert set(metrics["slices"]) == {"length", "script", "shop"}
    assert sum(part["rows"] for part in metrics["slices"]["shop"].values()) == 90
    assert set(metrics["baselines"]) == {"majority", "tfidf_logreg"}


def test_the_bundle_loads_with_transformers_and_gives_the_same_probabilities(trained):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(trained / "model")
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    info = json.loads((trained / "model" / "bertray.json").read_text())
    assert model.config.id2label == {0: "neg", 1: "pos"}
    assert info["labels"] == ["neg", "pos"]
    row = rows_of(trained / "predictions.parquet")[0]
    text = sentences(90, 2)[0][int(row["id"].removeprefix("e"))]
    with torch.inference_mode():
        logits = model(**tokenizer(text, truncation=True, max_length=24, return_tensors="pt")).logits[0]
    probs = torch.softmax(logits / info["temperature"], dim=0).tolist()
    assert [row["prob_neg"], row["prob_pos"]] == pytest.approx(probs, abs=1e-4)


def test_history_holds_steps_and_epochs(trained):
    history = pq.read_table(trained / "history.parquet").to_pylist()
    evals = [row for row in history if row["kind"] == "eval"]
    assert [row["epoch"] for row in evals] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert all(row["learning_rate"] is not None for row in history if row["kind"] == "step")
    assert evals[-1]["loss"] < evals[0]["loss"]


def test_the_report_needs_nothing_from_outside(trained):
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "TF-IDF" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page


def test_the_same_command_again_says_that_it_is_done(trained, tiny_encoder, corpus, capsys):
    before = (trained / "metrics.json").stat().st_mtime_ns
    assert run(train_argv(tiny_encoder, corpus, trained)) == 0
    assert "already trained" in capsys.readouterr().out
    assert (trained / "metrics.json").stat().st_mtime_ns == before


def test_other_settings_on_a_finished_run_are_a_conflict(trained, tiny_encoder, corpus, capsys):
    assert run(train_argv(tiny_encoder, corpus, trained, "seed=9")) == 4
    assert "holds a train run with other data or settings" in capsys.readouterr().err


def test_what_only_a_resume_would_need_goes_when_a_run_is_whole(trained, tiny_encoder, corpus):
    left = {"control/run.json", "control/finished.json"}
    assert {path.relative_to(trained).as_posix() for path in (trained / "control").rglob("*.*")} == left
    (trained / "checkpoints").mkdir()  # as of a run that was killed after its last write
    assert run(train_argv(tiny_encoder, corpus, trained)) == 0
    assert not (trained / "checkpoints").exists()


def test_token_shards_hold_every_row_once(corpus, tiny_encoder, tmp_path, monkeypatch):
    kept: list[str] = []

    def look(job, *_):
        keys = [tmp_path / "run" / key for key in job.data.train_keys]
        kept.extend(row for path in keys for row in pa.ipc.open_file(path).read_all()["id"].to_pylist())
        raise InfrastructureError("seen enough.")

    monkeypatch.setattr("bertray.runs.fit.methods.run_workers", look)
    assert run(train_argv(tiny_encoder, corpus, tmp_path / "run")) == 7
    assert kept == [f"t{i}" for i in range(240)]


# --- evaluate --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluate_repeats_the_figures_of_training(trained, corpus, tmp_path):
    argv = ["evaluate", f"model={trained / 'model'}", f"input={corpus / 'test.parquet'}", f"output={tmp_path / 'e'}"]
    assert run(argv) == 0
    again, before = metrics_of(tmp_path / "e" / "metrics.json"), metrics_of(trained / "metrics.json")
    assert again["metrics"] == before["metrics"]
    assert again["confusion_matrix"] == before["confusion_matrix"]


def test_evaluate_refuses_labels_that_the_model_does_not_know(trained, tmp_path, capsys):
    path = tmp_path / "odd.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["fine"], "label": ["meh"]}), path)
    argv = ["evaluate", f"model={trained / 'model'}", f"input={path}", f"output={tmp_path / 'e'}"]
    assert run(argv) == 6
    assert "meh (1)" in capsys.readouterr().err


# --- score -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def night(night_on_ray, monkeypatch):
    """The same without Ray: what is told and written does not depend on it, and each run of it takes ten seconds."""
    without_ray(monkeypatch)
    return night_on_ray


@pytest.fixture
def night_on_ray(tmp_path, trained):
    """Folder of incoming files, its output, and a function that scores it."""
    incoming = tmp_path / "in"
    write(incoming / "a.parquet", 50, 3, "a")
    write(incoming / "b.parquet", 30, 4, "b")

    def score(*words: str) -> int:
        return run(["score", f"model={trained / 'model'}", f"input={incoming}", f"output={tmp_path / 'out'}", *words])

    return incoming, tmp_path / "out", score


def test_score_commits_every_row_once_with_its_columns(night_on_ray):
    _, out, score = night_on_ray
    assert score("slot=dt=2026-11-20", "keep_columns=[shop, label]", "rows_per_shard=16", "needs_review_below=0.9") == 0
    table = pq.read_table(out / "data" / "dt=2026-11-20", partitioning=None)
    assert table.column_names == [
        "id", "label", "score", "prob_neg", "prob_pos", "n_tokens", "truncated", "needs_review",
        "model_version", "run_id", "scored_at", "shop", "input_label",
    ]  # fmt: skip
    assert sorted(table["id"].to_pylist()) == sorted([f"a{i}" for i in range(50)] + [f"b{i}" for i in range(30)])
    rows = table.to_pylist()
    assert all(row["score"] == max(row["prob_neg"], row["prob_pos"]) for row in rows)
    assert all(row["needs_review"] == (row["score"] < 0.9) for row in rows)
    assert len({row["run_id"] for row in rows}) == len({row["model_version"] for row in rows}) == 1
    assert (
        sorted(path.suffix or path.name for path in (out / "data").rglob("*") if path.is_file()).count("_SUCCESS") == 1
    )
    assert {path.name for path in (out / "data").rglob("*") if path.suffix != ".parquet" and path.is_file()} == {
        "_SUCCESS"
    }


@pytest.mark.slow
def test_labelled_rows_give_the_same_figures_as_evaluate(night_on_ray, trained, corpus, tmp_path):
    incoming, out, score = night_on_ray
    shutil.rmtree(incoming)
    incoming.mkdir()
    shutil.copy(corpus / "test.parquet", incoming)
    assert score("slot=s", "report.slices=[shop]") == 0
    night_metrics = metrics_of(out / "reports" / "s" / "run=1" / "metrics.json")
    train_metrics = metrics_of(trained / "metrics.json")
    assert night_metrics["metrics"] == train_metrics["metrics"]
    assert night_metrics["slices"] == train_metrics["slices"]


def test_a_second_run_has_nothing_new_and_a_late_file_gets_a_run_of_its_own(night, capsys):
    incoming, out, score = night
    assert score() == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "data").rglob("*")}
    assert score() == 0
    assert "nothing new: 2 files listed, all in slots already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (out / "data").rglob("*")} == before
    write(incoming / "c.parquet", 10, 5, "c")
    assert score() == 0
    (slot,) = (out / "data").iterdir()
    assert sorted(path.name for path in slot.iterdir()) == ["run=1", "run=2"]
    assert sorted(row["id"] for row in rows_of(slot / "run=2")) == sorted(f"c{i}" for i in range(10))
    assert all((path.stat().st_mtime_ns == time) for path, time in before.items() if path != slot)


def test_an_explicit_slot_with_other_inputs_is_a_conflict(night, capsys):
    incoming, _, score = night
    assert score("slot=s") == 0
    assert score("slot=s") == 0
    write(incoming / "c.parquet", 10, 5, "c")
    assert score("slot=s") == 4
    assert "slot=s: committed from other inputs" in capsys.readouterr().err


def test_a_changed_file_is_refused_by_name(night, capsys):
    incoming, _, score = night
    assert score() == 0
    write(incoming / "a.parquet", 51, 9, "a")
    assert score() == 4
    assert "a.parquet (changed since it was scored" in capsys.readouterr().err


def test_the_same_content_under_another_name_is_not_scored(night, capsys):
    incoming, out, score = night
    assert score() == 0
    shutil.copy(incoming / "a.parquet", incoming / "copy.parquet")
    assert score() == 0
    assert "nothing new: 3 files" in capsys.readouterr().out
    assert len(list((out / "data").iterdir())) == 1


def test_broken_rows_are_quarantined_with_a_reason_and_the_counts_add_up(night):
    incoming, out, score = night
    ids = ["x0", "x1", None, "x3", "x3", "x5"]
    texts = ["good film", None, "fine", "   ", "bad <br /> plot", "<br />"]
    pq.write_table(pa.table({"id": ids, "text": texts, "shop": ["north"] * 6}), incoming / "x.parquet")
    assert score("slot=s") == 0
    quarantine = pq.read_table(out / "quarantine" / "s", partitioning=None)
    assert quarantine.schema.equals(QUARANTINE_SCHEMA)
    found = {(row["row_no"], row["id"], row["reason"]) for row in quarantine.to_pylist()}
    assert found == {
        (1, "x1", "text_null"),
        (2, None, "id_null"),
        (3, "x3", "text_empty"),
        (4, "x3", "id_duplicate"),
        (5, "x5", "text_empty"),
    }
    entry = json.loads((out / "control" / "commits" / "00000001.json").read_text())
    counts = {
        file["relative_path"]: (file["rows_in"], file["rows_scored"], file["rows_quarantined"])
        for file in entry["files"]
    }
    assert counts == {"a.parquet": (50, 50, 0), "b.parquet": (30, 30, 0), "x.parquet": (6, 1, 5)}
    report = metrics_of(out / "reports" / "s" / "run=1" / "report.json")
    assert (report["rows_in"], report["rows_scored"], report["rows_quarantined"]) == (86, 81, 5)


def test_a_bad_file_fails_the_run_by_default_and_is_quarantined_on_request(night, capsys):
    incoming, out, score = night
    (incoming / "z.parquet").write_bytes(b"not parquet")
    assert score("slot=s") == 6
    assert "z.parquet" in capsys.readouterr().err
    assert not (out / "data").exists()
    assert score("slot=s", "on_bad_file=quarantine") == 0
    rows = rows_of(out / "quarantine" / "s")
    assert [(Path(row["input_path"]).name, row["row_no"]) for row in rows] == [("z.parquet", None)]
    assert len(rows_of(out / "data" / "s")) == 80


def test_a_file_with_other_columns_is_named_before_work_and_quarantined_on_request(night, capsys):
    incoming, out, score = night
    pq.write_table(pa.table({"id": ["o1", "o2"], "body": ["x", "y"]}), incoming / "odd.parquet")
    assert score("slot=s") == 2
    assert "odd.parquet: expected column 'text'" in capsys.readouterr().err
    assert score("slot=s", "on_bad_file=quarantine") == 0
    rows = rows_of(out / "quarantine" / "s")
    assert [(Path(row["input_path"]).name, row["reason"]) for row in rows] == [("odd.parquet", "schema_missing_column")]
    report = metrics_of(out / "reports" / "s" / "run=1" / "report.json")
    assert (report["rows_in"], report["rows_scored"], report["rows_quarantined"]) == (82, 80, 2)


def test_an_empty_folder_is_refused_or_an_empty_slot_on_request(tmp_path, trained, capsys):
    (tmp_path / "in").mkdir()
    argv = ["score", f"model={trained / 'model'}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "slot=s"]
    assert run(argv) == 6
    assert "no review file in" in capsys.readouterr().err
    assert run([*argv, "allow_empty=true"]) == 0
    assert [path.name for path in (tmp_path / "out" / "data" / "s" / "run=1").iterdir()] == ["_SUCCESS"]
    assert run([*argv, "allow_empty=true"]) == 0
    assert "nothing new" in capsys.readouterr().out


def test_a_kept_column_named_as_the_slots_own_key_is_kept_under_another_name(night):
    _, out, score = night
    assert score("slot=shop=north", "keep_columns=[shop]") == 0
    rows = rows_of(out / "data")
    assert {(row["shop"], row["run"]) for row in rows} == {("north", 1)}
    assert {row["input_shop"] for row in rows} == {row["shop"] for row in rows_of(out.parent / "in")}


def test_too_many_quarantined_rows_refuse_the_commit(night, capsys):
    incoming, out, score = night
    ids = [f"n{i}" for i in range(200)]
    pq.write_table(
        pa.table({"id": ids, "text": pa.array([None] * 200, pa.string()), "shop": ids}), incoming / "n.parquet"
    )
    assert score("slot=s") == 6
    assert "200 of 280 rows (71.4 %) would be kept out" in capsys.readouterr().err
    assert not (out / "data").exists()
    assert score("slot=s", "max_quarantine_ratio=0.8") == 0


def test_a_run_that_died_before_its_commit_is_finished_by_the_same_command(night, monkeypatch):
    _, out, score = night
    from bertray.outputs import ledger

    def die(store, entry):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "append", die)
        assert score("slot=dt=2026-11-19", "rows_per_shard=16") == 1
    assert not (out / "data").exists()
    staged = {path for path in (out / "control" / "runs").rglob("*") if path.is_file()}
    # The next night asks for another slot; the unfinished one is finished under its own name, with nothing rescored.
    assert score("slot=dt=2026-11-20", "rows_per_shard=16") == 0
    assert [path.name for path in (out / "data").iterdir()] == ["dt=2026-11-19"]
    assert {path for path in (out / "control" / "runs").rglob("*") if path.is_file()} == staged
    assert len(rows_of(out / "data" / "dt=2026-11-19")) == 80


def test_a_run_that_died_before_publishing_is_published_by_the_same_command(night, monkeypatch):
    _, out, score = night
    from bertray.outputs import publish

    def die(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "publish", die)
        assert score("slot=s") == 1
    assert not (out / "data").exists()
    assert score("slot=s") == 0
    assert len(rows_of(out / "data" / "s")) == 80
    assert (out / "reports" / "s" / "run=1" / "report.html").is_file()


def test_every_text_format_gives_the_same_rows_as_parquet(night, trained, tmp_path):
    incoming, out, score = night
    table = pq.read_table(incoming / "a.parquet").to_pylist()
    lines = "".join(json.dumps(row) + "\n" for row in table)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.csv").write_text(
        "id,text,label\n" + "".join(f'{row["id"]},"{row["text"]}",{row["label"]}\n' for row in table), encoding="utf-8"
    )
    (tmp_path / "a.tsv").write_text("".join(f"{row['id']}\t{row['label']}\t{row['text']}\n" for row in table))
    assert score("slot=s") == 0
    expected = {row["id"]: row["prob_pos"] for row in rows_of(out / "data" / "s") if row["id"].startswith("a")}
    for name, words in {
        "a.jsonl": [],
        "a.csv": [],
        "a.tsv": ["reader.header=false", "reader.quoting=false", "columns={id: 0, label: 1, text: 2}"],
    }.items():
        target = tmp_path / f"out-{name}"
        argv = ["score", f"model={trained / 'model'}", f"input={tmp_path / name}", f"output={target}", "slot=s", *words]
        assert run(argv) == 0
        assert {row["id"]: row["prob_pos"] for row in rows_of(target / "data" / "s")} == pytest.approx(
            expected, abs=1e-5
        )


def test_windows_see_the_end_of_a_long_review(night, trained, tmp_path):
    path = tmp_path / "long.parquet"
    filling = ["plot", "actor", "story", "it"] * 13
    text = " ".join(["the film was great and", *filling, "the film was awful and"])
    pq.write_table(pa.table({"id": ["l"], "text": [text]}), path)
    found = {}
    for long_text in ("head", "tail", "windows"):
        out = tmp_path / long_text
        argv = [
            "score",
            f"model={trained / 'model'}",
            f"input={path}",
            f"output={out}",
            "slot=s",
            f"long_text={long_text}",
        ]
        assert run(argv) == 0
        found[long_text] = rows_of(out / "data" / "s")[0]
    assert all(row["n_tokens"] == 64 and row["truncated"] for name, row in found.items() if name != "windows")
    assert found["tail"]["prob_neg"] > found["head"]["prob_neg"]
    assert found["head"]["prob_neg"] < found["windows"]["prob_neg"] < found["tail"]["prob_neg"]


# --- plan, doctor, init ----------------------------------------------------------------------------------------------


def test_plan_says_which_files_are_in_and_writes_nothing(night, trained, capsys, tmp_path):
    incoming, out, score = night
    assert score() == 0
    write(incoming / "c.parquet", 10, 5, "c")
    before = sorted(out.rglob("*"))
    capsys.readouterr()
    assert run(["plan", f"model={trained / 'model'}", f"input={incoming}", f"output={out}", "price_per_hour=3.6"]) == 0
    text = capsys.readouterr().out
    assert "1 score, 2 scored" in text
    assert "scored in slot dt=" in text
    assert "tokens of 10 sampled reviews" in text
    assert "at 3.6 an hour" in text
    rate = float(re.search(r"([\d,]+) tokens/s measured here", text)[1].replace(",", ""))
    assert rate < 5e6  # computed, not looked up
    assert sorted(out.rglob("*")) == before


def test_plan_of_a_training_counts_rows_and_steps(tiny_encoder, corpus, tmp_path, capsys):
    assert run(["plan", *train_argv(tiny_encoder, corpus, tmp_path / "never")[1:]]) == 0
    text = capsys.readouterr().out
    assert "classes: neg, pos" in text
    assert "about 84 optimizer steps: 6 epochs of 216 rows, 16 rows a step; learning rate 3e-3" in text
    assert not (tmp_path / "never").exists()


def test_init_prints_a_config_that_train_accepts(corpus, tmp_path, capsys):
    assert run(["init", str(corpus / "train.parquet")]) == 0
    path = tmp_path / "train.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert run(["config", "show", "train", "-c", str(path), "output=x"]) == 0
    assert "text: text" in capsys.readouterr().out


def test_doctor_finds_this_machine_ready(capsys):
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "6 of 6 checks passed" in text
    assert "put-if-absent holds" in text
    assert run(["doctor", "model=/no/model"]) == 2
    assert "FAIL  model" in capsys.readouterr().out
