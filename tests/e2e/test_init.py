"""`bertray init` writes a whole config for train or score, or none; what it leaves out is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.config import load_config

HEADER = "key,body,mood\n"
ROWS = [f"r{n},a film of words {n},{['bad', 'good'][n % 2]}\n" for n in range(60)]


@pytest.fixture
def reviews(tmp_path) -> Path:
    path = tmp_path / "reviews.csv"
    path.write_text(HEADER + "".join(ROWS))
    return path


def config_of(verb: str, path: Path, *words: str) -> dict:
    return load_config(verb, [str(path)], ["output=o", *words]).model_dump()


def test_the_file_is_written_whole_or_not_at_all(tmp_path, reviews, capsys):
    target = tmp_path / "deep er" / "it's.yaml"
    assert run(["init", str(reviews), f"output={target}"]) == 0
    assert config_of("train", target)["data"]["train"] == (str(reviews),)
    assert run(["init", str(reviews), f"output={target}"]) == 0  # the same again
    before = target.read_text()
    assert run(["init", str(reviews), f"output={target}", "verb=score"]) == 4
    assert target.read_text() == before
    assert run(["init", str(tmp_path / "nowhere"), f"output={tmp_path / 'none.yaml'}"]) == 2
    assert not (tmp_path / "none.yaml").exists()


@pytest.mark.parametrize("words", [["verb=score"], []])
def test_a_score_config_is_written_when_asked_for_and_without_labels(tmp_path, reviews, words):
    if not words:
        reviews.write_text("key,body\n" + "".join(row.rpartition(",")[0] + "\n" for row in ROWS))
    target = tmp_path / "c.yaml"
    assert run(["init", str(reviews), f"output={target}", *words]) == 0
    config = config_of("score", target)
    assert (config["input"], config["columns"]["text"], config["columns"]["id"]) == ((str(reviews),), "body", "key")


@pytest.mark.parametrize("same_columns", [True, False])
def test_several_formats_are_read_together_or_named(tmp_path, reviews, same_columns):
    folder = tmp_path / "in"
    folder.mkdir()
    reviews.rename(folder / "a.csv")
    table = pa_csv.read_csv(folder / "a.csv").slice(0, 20)
    pq.write_table(table if same_columns else table.rename_columns(["k", "b", "m"]), folder / "b.parquet")
    target = tmp_path / "c.yaml"
    assert run(["init", str(folder), f"output={target}"]) == 0
    text, train = target.read_text(), config_of("train", target)["data"]["train"]
    if same_columns:
        assert "2 formats with the same columns, read together: 1 csv file (60 rows), 1 parquet file (20 rows)" in text
        assert train == (str(folder),)
    else:
        assert "left out, other columns: 1 parquet file (20 rows) with 'k', 'b', 'm': b.parquet" in text
        assert train == (str(folder / "a.csv"),)


@pytest.mark.slow
@pytest.mark.parametrize("argv", [["init", "nowhere.csv"], ["files", "output=nowhere"], ["config", "show", "train"]])
@pytest.mark.parametrize(("how", "stays"), [(">", False), (">>", True)])
def test_a_failed_command_leaves_no_empty_file(tmp_path, argv, how, stays):
    line = f'"{sys.executable}" -c "from bertray.cli import main; main()" {" ".join(argv)} {how} f.yaml'
    found = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ
    )
    assert found.returncode == 2, found.stderr
    assert (tmp_path / "f.yaml").exists() == stays
    assert ("the empty " in found.stderr) != stays


@pytest.mark.slow
def test_a_file_with_two_names_or_with_content_stays(tmp_path):
    line = f'"{sys.executable}" -c "from bertray.cli import main; main()" init nowhere.csv'
    (tmp_path / "f").touch()
    os.link(tmp_path / "f", tmp_path / "g")
    subprocess.run(["sh", "-c", f"{line} > f; {line} > h 2>&1"], cwd=tmp_path, check=False, capture_output=True)
    assert (tmp_path / "f").exists()
    assert "nowhere.csv" in (tmp_path / "h").read_text()


def test_the_method_and_its_steps_stand_in_the_config(tmp_path, capsys):
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "".join(f"a film of words {n},{['bad', 'good'][n % 2]}\n" for n in range(320)))
    assert run(["init", str(path)]) == 0
    text = capsys.readouterr().out
    assert "# no data.test: figures by cross-validation, and all rows are learned from" in text
    assert "#  auto is here: fine-tuning (320 rows, 150 or more)" in text
    assert "#  about 160 optimizer steps: 8 epochs of 320 rows, 16 rows a step; learning rate 1e-4" in text
    (tmp_path / "train.yaml").write_text(text)
    training = config_of("train", tmp_path / "train.yaml")["training"]
    assert {name: training[name] for name in ("method", "epochs", "learning_rate", "batch_size")} == dict.fromkeys(
        ("method", "epochs", "learning_rate", "batch_size"), "auto"
    )


def test_an_encoder_that_cannot_read_is_told_with_the_ways_out(tmp_path, capsys):
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "".join(f"정말 재미있는 영화였다 {n},{n % 2}\n" for n in range(40)))
    assert run(["init", str(path)]) == 0
    text = " ".join(capsys.readouterr().out.replace("\n# ", " ").split())
    assert "the bundled encoder cannot read these texts (100% of their letters, hangul)" in text
    assert "bertray fetch NAME output=FOLDER on another one, copy the folder, model=FOLDER" in text
    assert "`model: klue/bert-base`" in text
    assert "auto is here: TF-IDF in a logistic regression" in text


@pytest.mark.parametrize(("rows", "max_length", "longer"), [(300, 128, 256), (1200, 256, 512)])
def test_long_texts_of_few_rows_are_cut_sooner(tmp_path, capsys, rows, max_length, longer):
    path = tmp_path / "reviews.csv"
    words = "a film of many words that go on and on " * 30
    path.write_text("text,label\n" + "".join(f"{words}{n},{n % 2}\n" for n in range(rows)))
    assert run(["init", str(path)]) == 0
    text = capsys.readouterr().out
    assert f"max_length: {max_length}  # tokens; " in text
    assert f"; {longer} sees more and is slower" in text
    assert ("auto is here: TF-IDF and encoder in one logistic regression" in text) == (rows < 1000)
