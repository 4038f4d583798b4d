"""What a bundle remembers of its data, and what is said because of it: rows seen in training, nights without sense."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.model.bundle import read_info
from bertray.model.training_texts import read_training_texts
from tests.corpus import train_argv, write

KOREAN = ["이 영화 정말 재미있었어요", "배우들의 연기가 아쉽다", "다시 보고 싶은 영화", "시간이 아까웠다"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_encoder, corpus) -> Path:
    out = tmp_path_factory.mktemp("sense") / "run"
    assert run([*train_argv(tiny_encoder, corpus, out, "report.baselines=false"), "training.epochs=3"]) == 0
    return out / "model"


def evaluated(bundle, rows, tmp_path, *words: str) -> dict:
    out = tmp_path / "evaluated"
    assert run(["evaluate", f"model={bundle}", f"input={rows}", f"output={out}", *words]) == 0
    return json.loads((out / "metrics.json").read_text())


def scored(bundle, rows, tmp_path, *words: str) -> dict:
    out = tmp_path / "scored"
    assert run(["score", f"model={bundle}", f"input={rows}", f"output={out}", "slot=dt=2026-11-29", *words]) == 0
    (report,) = (out / "reports").rglob("report.json")
    return json.loads(report.read_text())


def page(path: Path) -> str:
    return path.read_text().replace("\u00a0", " ").replace("\u202f", " ")


@pytest.mark.slow
def test_a_bundle_remembers_validation_rows_and_training_texts(bundle, corpus):
    profile = read_info(bundle).profile
    assert 20 <= profile.rows <= 28
    assert sum(profile.predicted.values()) == pytest.approx(1)
    assert profile.given == pytest.approx({"neg": 0.5, "pos": 0.5}, abs=0.1)
    assert profile.scripts == {"latin": 1.0}
    assert profile.truncated == 0
    assert profile.reading.rows > 0
    assert profile.reading.unread == 0
    texts = pq.read_table(corpus / "train.parquet")["text"].to_pylist()
    assert len(read_training_texts(bundle).hashes_T) == len(set(texts))


def test_evaluate_on_the_training_file_says_so(bundle, corpus, tmp_path, capsys):
    found = evaluated(bundle, corpus / "train.parquet", tmp_path)
    log = capsys.readouterr().err
    assert (found["leakage"]["seen"], found["leakage"]["rows"]) == (240, 240)
    assert "240 of 240 rows were seen in training (100.0 %)" in log
    shown = page(tmp_path / "evaluated" / "report.html")
    assert "240 of 240 rows were seen in training" in shown
    assert "verdict bad" in shown


def test_figures_without_the_rows_that_were_seen(bundle, corpus, tmp_path):
    train = pq.read_table(corpus / "train.parquet")
    fresh = pq.read_table(write(tmp_path / "fresh.parquet", 300, 9, "f"))
    unseen = [text not in set(train["text"].to_pylist()) for text in fresh["text"].to_pylist()]
    pq.write_table(pa.concat_tables([train.slice(0, 30), fresh.filter(pa.array(unseen))]), tmp_path / "both.parquet")
    found = evaluated(bundle, tmp_path / "both.parquet", tmp_path)["leakage"]
    assert (found["seen"], found["rows"]) == (30, 30 + sum(unseen))
    assert 0 <= found["unseen_metrics"]["accuracy"]["value"] <= 1


def test_labelled_nights_say_it_too(bundle, corpus, tmp_path, capsys):
    report = scored(bundle, corpus / "train.parquet", tmp_path)
    log = capsys.readouterr().err
    assert "240 of 240 rows were seen in training" in json.dumps(report["evaluation"])
    assert report["facts"]["rows seen in training"] == "240 of 240"
    assert "slot dt=2026-11-29: 240 of 240 rows were seen in training" in log


def test_of_a_model_of_the_hub_it_is_not_known(bundle, corpus, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(bundle, plain, ignore=shutil.ignore_patterns("bertray.json", "training_texts.arrow"))
    assert "leakage" not in evaluated(plain, corpus / "train.parquet", tmp_path)
    assert "not known" in page(tmp_path / "evaluated" / "report.html")


@pytest.mark.slow
def test_texts_of_the_model_that_was_trained_further_count(bundle, corpus, tmp_path):
    write(tmp_path / "more" / "train.parquet", 120, 7, "m")
    shutil.copy(corpus / "test.parquet", tmp_path / "more" / "test.parquet")
    argv = train_argv(bundle, tmp_path / "more", tmp_path / "further", "report.baselines=false", "training.epochs=1")
    assert run(argv) == 0
    found = evaluated(tmp_path / "further" / "model", corpus / "train.parquet", tmp_path)
    assert found["leakage"]["seen"] == 240


@pytest.mark.slow
def test_of_pairs_both_texts_have_to_be_the_same(tiny_encoder, tmp_path):
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["film", "plot", "actor", "good", "bad"], size=9)) for _ in range(60)]

    def write_pairs(name: str, aspects: list[str]) -> Path:
        rows = [(text, aspect, "pos" if "good" in text else "neg") for text in texts for aspect in aspects]
        columns = dict(zip(("text", "aspect", "label"), map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(
            pa.table({"id": [f"{name}{i}" for i in range(len(rows))], **columns}), tmp_path / f"{name}.parquet"
        )
        return tmp_path / f"{name}.parquet"

    train, other = write_pairs("train", ["plot", "actor"]), write_pairs("other", ["actor", "story"])
    words = ["max_length=32", "columns.text_pair=aspect", "report.baselines=false", "training.epochs=1"]
    assert run(["train", f"model={tiny_encoder}", f"data.train={train}", f"output={tmp_path / 'run'}", *words]) == 0
    found = evaluated(tmp_path / "run" / "model", other, tmp_path, "columns.text_pair=aspect")["leakage"]
    assert (found["seen"], found["rows"]) == (60, 120)


# --- the same rows in two splits ---


def as_csv_gz(source: Path, target: Path) -> Path:
    pacsv.write_csv(pq.read_table(source), target.with_suffix(""))
    target.write_bytes(gzip.compress(target.with_suffix("").read_bytes()))
    target.with_suffix("").unlink()
    return target


def copies(kind: str, source: Path, folder: Path) -> str:
    if kind == "copy":
        return str(shutil.copy(source, folder / "other.parquet"))
    if kind == "recompressed":
        pq.write_table(pq.read_table(source), folder / "other.parquet", compression="gzip")
        return str(folder / "other.parquet")
    if kind == "csv.gz":
        return str(as_csv_gz(source, folder / "other.csv.gz"))
    if kind == "list":
        return f"[{write(folder / 'new.parquet', 50, 11, 'n')}, {source}]"
    return str(source)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("kind", ["same path", "copy", "recompressed", "csv.gz", "list"])
@pytest.mark.parametrize(
    ("splits", "key"),
    [
        (("data.train", "data.validation"), "data.validation"),
        (("data.validation", "data.test"), "data.test"),
        (("data.train", "data.test"), "data.test"),
    ],
)
def test_the_same_file_in_two_splits_is_refused(splits, key, kind, corpus, tiny_encoder, tmp_path, capsys):
    given = {"data.train": corpus / "train.parquet", "data.validation": None, "data.test": None}
    given[splits[0]] = corpus / ("train.parquet" if splits[0] == "data.train" else "test.parquet")
    given[splits[1]] = copies(kind, given[splits[0]], tmp_path)
    words = [f"{name}={path}" for name, path in given.items() if path is not None]
    assert run(["train", f"model={tiny_encoder}", f"output={tmp_path / 'out'}", "max_length=24", *words]) == 6
    said = capsys.readouterr().err
    assert f"{key}: expected other reviews than in {splits[0]}" in said
    assert "Name other files" in said


def test_a_shuffled_copy_as_validation_is_refused(corpus, tiny_encoder, tmp_path, capsys):
    table = pq.read_table(corpus / "train.parquet")
    order = np.random.default_rng(0).permutation(table.num_rows)[:100]
    pq.write_table(table.take(order), tmp_path / "validation.parquet")
    argv = train_argv(tiny_encoder, corpus, tmp_path / "out", f"data.validation={tmp_path / 'validation.parquet'}")
    assert run(argv) == 6
    assert "found all 100 in both" in capsys.readouterr().err


@pytest.mark.slow
def test_empty_files_are_no_copies_of_each_other(corpus, tiny_encoder, tmp_path):
    empty = pq.read_table(corpus / "train.parquet").slice(0, 0)
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        shutil.copy(corpus / f"{name}.parquet", tmp_path / name / "a.parquet")
        pq.write_table(empty, tmp_path / name / "b.parquet")
    words = [f"data.{name}={tmp_path / name}" for name in ("train", "test")]
    argv = [f"model={tiny_encoder}", f"output={tmp_path / 'out'}", "max_length=24", "training.epochs=1", *words]
    assert run(["train", "report.baselines=false", *argv]) == 0


# --- rows without sense ---


def korean(path: Path, num_rows: int) -> Path:
    texts = [KOREAN[i % 4] for i in range(num_rows)]
    labels = ["pos" if i % 2 else "neg" for i in range(num_rows)]
    pq.write_table(pa.table({"id": [str(i) for i in range(num_rows)], "text": texts, "label": labels}), path)
    return path


def test_a_night_in_another_language_is_loud(bundle, tmp_path, capsys):
    report = scored(bundle, korean(tmp_path / "in.parquet", 80), tmp_path)
    log = capsys.readouterr().err
    said = "The model cannot read these texts: 100.0 % of their letters"
    assert said in log
    assert report["findings"][0]["severity"] == "bad"
    assert said in report["findings"][0]["sentence"]
    assert said in page(next((tmp_path / "scored").rglob("report.html")))


def test_an_ordinary_night_says_nothing(bundle, tmp_path, capsys):
    rows = pq.read_table(write(tmp_path / "all.parquet", 200, 21, "n")).drop_columns(["label"])
    (tmp_path / "in").mkdir()
    pq.write_table(rows, tmp_path / "in" / "a.parquet")
    report = scored(bundle, tmp_path / "in", tmp_path)
    assert (report["notes"], report["findings"]) == ([], [])
    log = capsys.readouterr().err
    assert "texts" not in log
    assert "rows are" not in log


def test_evaluate_and_embed_say_it_too(bundle, tmp_path, capsys):
    rows = korean(tmp_path / "in.parquet", 80)
    evaluated(bundle, rows, tmp_path)
    assert capsys.readouterr().err.count("The model cannot read these texts") == 1
    argv = ["embed", f"model={bundle}", f"input={rows}", f"output={tmp_path / 'vectors'}"]
    assert run(argv) == 0
    assert capsys.readouterr().err.count("The model cannot read these texts") == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["finetune", "features"])
def test_training_on_what_the_encoder_cannot_read_says_so_before_the_first_step(method, tiny_encoder, tmp_path, capsys):
    rows = korean(tmp_path / "train.parquet", 80)
    table = pq.read_table(rows)  # texts that differ, so that some can be held out
    texts = [
        f"{text} {'가나다라마바사아'[i % 8]}{'하파타카'[i // 8 % 4]}"
        for i, text in enumerate(table["text"].to_pylist())
    ]
    pq.write_table(table.set_column(1, "text", pa.array(texts)), rows)
    words = [f"training.method={method}", "max_length=32", "report.baselines=false"]
    words += ["training.epochs=1"] if method == "finetune" else []
    assert run(["train", f"model={tiny_encoder}", f"data.train={rows}", f"output={tmp_path / 'run'}", *words]) == 0
    lines = capsys.readouterr().err.splitlines()
    said = [number for number, line in enumerate(lines) if "cannot read these texts: 100.0 %" in line]
    first = [number for number, line in enumerate(lines) if "epoch" in line]
    assert len(said) == 1
    assert not first or said[0] < first[0]
    assert "bertray pretrain from_scratch=true" in lines[said[0]]
    assert "cannot read these texts: 100.0 %" in page(tmp_path / "run" / "report.html")
    profile = read_info(tmp_path / "run" / "model").profile
    assert profile.reading.unread == 1
    assert profile.rows > 0
