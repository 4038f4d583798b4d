"""Counts of one night and of one training are the same wherever they are told."""

from __future__ import annotations

import html
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run

LABELS = "labels={neg: neg, pos: pos}"


def reviews(name: str, rows: int) -> dict[str, list[str | None]]:
    return {
        "id": [f"{name}{row}" for row in range(rows)],
        "text": [f"a good film {name} {row}" for row in range(rows)],
        "label": [("neg", "pos")[row % 2] for row in range(rows)],
    }


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    table = reviews("a", 30)
    table["text"][3], table["text"][4], table["id"][6] = None, "  ", "a5"
    pq.write_table(pa.table(table), folder / "a.parquet")
    rows = zip(*reviews("b", 10).values(), strict=True)
    lines = "".join(",".join(map(str, row)) + "\n" for row in rows)
    (folder / "b.csv").write_text("id,text,label\n" + lines + "x,too,many,fields\n")
    (folder / "c.parquet").write_bytes(b"PAR1 and no more PAR1")
    (folder / "empty.csv").write_bytes(b"")
    (folder / ".hidden.csv").write_text("id,text\n1,x\n")
    (folder / "notes.docx").write_text("x")
    return folder


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


def test_a_night_counts_alike_in_plan_summary_ledger_report_page_and_files(trained_alone, inbox, tmp_path, capsys):
    out = tmp_path / "out"
    words = [f"model={trained_alone / 'model'}", f"input={inbox}", f"output={out}", "on_bad_file=quarantine", LABELS]
    assert run(["plan", *words]) == 0
    planned = capsys.readouterr().out
    assert "slot dt=" in planned
    assert "4 new files" in planned
    assert "of 41 sampled rows 3 would be quarantined (7.3 %), without those of repeated ids" in planned

    assert run(["score", *words, "slot=night"]) == 0
    printed = capsys.readouterr().out
    [row] = [line for line in printed.splitlines() if "4 files" in line]
    assert numbers(row)[:4] == [4, 41, 37, 4]
    quarantined = re.findall(r"quarantined (\d+) (row|file)s?: (\w+)", printed)
    by_row = {reason: int(count) for count, noun, reason in quarantined if noun == "row"}
    by_file = {reason: int(count) for count, noun, reason in quarantined if noun == "file"}
    assert by_row == {"id_duplicate": 1, "row_malformed": 1, "text_empty": 1, "text_null": 1}
    assert by_file == {"file_corrupt": 1, "file_empty": 1}

    entry = json.loads((out / "control" / "commits" / "00000001.json").read_text())
    report = json.loads((out / "reports" / "night" / "run=1" / "report.json").read_text())
    for told in (entry, report):
        assert (len(told["files"]), told["rows_in"], told["rows_scored"], told["rows_quarantined"]) == (4, 41, 37, 4)
    assert report["quarantined"] == by_row
    assert report["files_quarantined"] == by_file
    assert sum(report["label_counts"].values()) == 37

    page = html.unescape((out / "reports" / "night" / "run=1" / "report.html").read_text())
    assert "41 reviews came in with 4 files: 37 scored, 4 quarantined." in page
    assert "41 rows in = 37 scored + 4 quarantined" in page
    assert re.findall(r"<td>(\d+ (?:row|file)s?)</td>", page) == [*["1 row"] * 4, *["1 file"] * 2]

    scored = sum(pq.read_table(part).num_rows for part in (out / "data").rglob("*.parquet"))
    kept_out = [pq.read_table(part) for part in (out / "quarantine").rglob("*.parquet")]
    row_nos = pa.concat_tables(kept_out)["row_no"]
    assert scored == 37
    assert (len(row_nos) - row_nos.null_count, row_nos.null_count) == (4, 2)
    metrics = json.loads((out / "reports" / "night" / "run=1" / "metrics.json").read_text())
    assert metrics["rows"] == sum(map(sum, metrics["confusion_matrix"])) == 37


def test_a_training_counts_alike_in_plan_log_page_and_files(tiny_encoder, tmp_path, capsys):
    table = reviews("t", 60)
    table["text"][3], table["label"][7], table["label"][9] = None, None, None
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    pq.write_table(pa.table(reviews("e", 20)), tmp_path / "test.parquet")
    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    words = [f"model={tiny_encoder}", f"data.train={train}", f"data.test={test}", f"output={tmp_path / 'run'}"]
    words += ["max_length=16", "training.epochs=1", "training.batch_size=8"]
    assert run(["plan", *words]) == 0
    planned = capsys.readouterr().out
    assert [numbers(line) for line in planned.splitlines() if line.startswith("│")] == [[1, 60], [1, 20]]

    assert run(["train", *words]) == 0
    captured = capsys.readouterr()
    assert "data.train: 1 of 60 rows cannot be used: 1 because the text is missing" in captured.err
    [log] = re.findall(r"training on (\d+) examples, validating on (\d+)", captured.err)
    num_train, num_validation = map(int, log)
    assert num_train + num_validation == 60 - 1 - 2
    assert captured.out.startswith("20 rows of test: ")

    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["rows"] == pq.read_table(tmp_path / "run" / "predictions.parquet").num_rows == 20
    assert sum(of_class["support"] for of_class in metrics["per_class"].values()) == 20
    page = re.sub(r"<[^>]*>", " ", html.unescape((tmp_path / "run" / "report.html").read_text()))
    told = dict(re.findall(r"(rows read|train examples|validation examples) +(\d+)", page))
    assert told == {"rows read": "60", "train examples": str(num_train), "validation examples": str(num_validation)}
    assert "1 of 60 rows could not be used; the log says why." in page
    assert "2 rows have no label; not used." in page
    assert "On 20 test reviews" in page
