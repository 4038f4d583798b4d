"""`bertray audit`: planted faults of every kind are found, row by row; wrong input is told before any cluster work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from tests.corpus import sentences, write
from tests.nightly import without_ray
from tests.refusals import assert_refused

TABLES = {"broken", "conflicts", "damaged", "duplicates", "label_errors", "near_duplicates", "repeated_ids"}
KEYS = ["max_length=24", "label_errors.folds=4"]
WRONG = range(70, 80)  # rows with the other label
LONG = "this is the story of a man who wanted to see the sea and never came home again before the winter"

ALIKE = LONG.replace("before the winter", "until summer")


def rows_of(output: Path, table: str, *columns: str) -> list[tuple]:
    found = pq.read_table(output / f"{table}.parquet")
    return list(zip(*(found[name].to_pylist() for name in columns), strict=True)) if found.num_rows else []


def report_of(output: Path) -> dict:
    return json.loads((output / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory, tiny_encoder) -> tuple[Path, Path]:
    """(folder of the data, output): 200 rows and a test split of 24 with one fault of each kind."""
    folder = tmp_path_factory.mktemp("planted")
    texts, labels = sentences(200, 1)
    # Twelve random words make every other row unlike the others.
    random = np.random.default_rng(5)
    letters = np.array(list("bcdfghjklmnpqrstvwxz"))
    texts = [f"{text} {' '.join(''.join(random.choice(letters, 6)) for _ in range(12))}" for text in texts]
    ids = [f"r{number}" for number in range(200)]
    texts[10] = texts[3]
    labels[10] = labels[3]
    texts[11] = f"{texts[3]} <br />"  # the same after cleaning
    labels[11] = labels[3]
    texts[20], texts[21] = LONG, LONG.replace("the sea", "a sea").upper()
    labels[20], labels[21] = "neg", "pos"
    texts[22] = ALIKE  # a candidate, but below the threshold
    texts[30] = texts[31]
    labels[30], labels[31] = "neg", "pos"
    texts[40], texts[41] = "", None
    texts[42] = "<br />"
    ids[51] = "r50"
    texts[60] += "\x07"
    texts[61] += "\ufffd"
    for number in WRONG:
        labels[number] = "pos" if labels[number] == "neg" else "neg"
    pq.write_table(pa.table({"id": ids, "text": texts, "label": labels}), folder / "train.parquet")
    more, more_labels = sentences(24, 2)
    more = [f"{text} {' '.join(''.join(random.choice(letters, 6)) for _ in range(12))}" for text in more]
    more[0], more_labels[0] = texts[5], labels[5]
    more[1], more_labels[1] = LONG + " came", "pos"
    lines = [
        json.dumps({"id": f"t{number}", "text": text, "label": label})
        for number, (text, label) in enumerate(zip(more, more_labels, strict=True))
    ]
    (folder / "test.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n", encoding="utf-8")
    output = folder / "out"
    argv = ["audit", str(folder / "train.parquet"), f"data.test={folder / 'test.jsonl'}", f"model={tiny_encoder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertray.runs.data_audit.ROWS_PER_SHARD", 32)  # seven shards of train
        without_ray(patch)
        assert run([*argv, f"output={output}", *KEYS]) == 0
    return folder, output


def test_every_planted_fault_is_found_where_it_is(planted):
    folder, output = planted
    assert {path.name for path in output.iterdir()} == {
        "config.yaml",
        "control",
        "report.html",
        "report.json",
        *(f"{name}.parquet" for name in TABLES | {"leakage", "leaking"}),
    }
    place = ("split", "row_no", "id")
    assert rows_of(output, "duplicates", "group", *place, "as_stored") == [
        (0, "train", 3, "r3", True),
        (0, "train", 10, "r10", True),
        (0, "train", 11, "r11", False),
        (1, "train", 30, "r30", True),
        (1, "train", 31, "r31", True),
    ]
    near = rows_of(output, "near_duplicates", "group", *place, "label")
    assert near == [(0, "train", 20, "r20", "neg"), (0, "train", 21, "r21", "pos")]
    similarity = pq.read_table(output / "near_duplicates.parquet")["similarity"].to_pylist()
    bare = [text.replace(" ", "") for text in (LONG, LONG.replace("the sea", "a sea"), ALIKE)]
    first, second, third = ({text[at : at + 5] for at in range(len(text) - 4)} for text in bare)
    assert similarity == [len(first & second) / len(first | second)] * 2
    assert 0.6 < len(first & third) / len(first | third) < 0.8
    assert rows_of(output, "conflicts", "group", *place, "label") == [
        (0, "train", 30, "r30", "neg"),
        (0, "train", 31, "r31", "pos"),
    ]
    assert rows_of(output, "repeated_ids", "group", *place) == [(0, "train", 50, "r50"), (0, "train", 51, "r50")]
    assert rows_of(output, "leakage", "kind", *place, "earlier_split", "earlier_row_no", "earlier_id") == [
        ("exact", "test", 0, "t0", "train", 5, "r5"),
        ("near", "test", 1, "t1", "train", 20, "r20"),
    ]
    assert rows_of(output, "leaking", *place) == [("train", 5, "r5"), ("train", 20, "r20"), ("train", 21, "r21")]
    assert rows_of(output, "broken", "split", "row_no", "reason") == [
        ("train", 40, "text_empty"),
        ("train", 41, "text_null"),
        ("train", 42, "text_empty"),
        ("test", 24, "row_malformed"),
    ]
    assert rows_of(output, "damaged", *place, "control_characters", "replacement_character") == [
        ("train", 60, "r60", True, False),
        ("train", 61, "r61", False, True),
    ]
    paths = pq.read_table(output / "leakage.parquet")
    assert set(paths["input_path"].to_pylist()) == {str(folder / "test.jsonl")}
    assert set(paths["earlier_input_path"].to_pylist()) == {str(folder / "train.parquet")}


def test_the_wrong_label_is_in_doubt_and_the_page_tells_the_counts(planted):
    _, output = planted
    doubted = rows_of(output, "label_errors", "id", "label", "suggested_label")
    assert len({f"r{number}" for number in WRONG} & {row[0] for row in doubted}) >= 6
    assert all(given != suggested for _, given, suggested in doubted)
    report = report_of(output)
    assert report["label_errors"]["judged"] == 221
    assert report["label_errors"]["suspected"] == len(doubted) <= 20
    assert report["rows_in"] == 225
    assert report["rows"] == 221
    assert report["broken"] == {"train": {"text_empty": 2, "text_null": 1}, "test": {"row_malformed": 1}}
    assert sum(report["labels"]["train"].values()) == 197
    assert report["scripts"] == {"train": {"latin": 197}, "test": {"latin": 24}}
    assert report["marks"]["train"]["html_tags"] == 1
    page = (output / "report.html").read_text(encoding="utf-8")
    for sentence in (
        "1 of 24 test rows (1 text) stands in train word for word, 1 more nearly so",
        "2 texts more than once, in 5 rows; 3 beyond the first, 2 of these the same before cleaning too",
        "1 id in 2 rows more than once in one split; ",
    ):
        assert sentence in page
    assert page.count("never came home") >= 2


def test_the_same_command_says_that_it_is_done_and_another_one_is_refused(planted, tiny_encoder, capsys):
    folder, output = planted
    argv = ["audit", str(folder / "train.parquet"), f"data.test={folder / 'test.jsonl'}", f"model={tiny_encoder}"]
    argv += [f"output={output}", *KEYS]
    capsys.readouterr()
    assert run(argv) == 0
    assert "already audited" in capsys.readouterr().out
    assert run([*argv, "near_duplicates.threshold=0.9"]) == 4


@pytest.mark.ray
def test_an_audit_on_ray_finds_what_one_process_finds(planted, tiny_encoder, tmp_path, ray_cluster, monkeypatch):
    folder, output = planted
    argv = ["audit", str(folder / "train.parquet"), f"data.test={folder / 'test.jsonl'}", f"model={tiny_encoder}"]
    monkeypatch.setattr("bertray.runs.data_audit.ROWS_PER_SHARD", 32)
    assert run([*argv, f"output={tmp_path / 'ray'}", *KEYS]) == 0
    tables = sorted(path.name for path in output.glob("*.parquet"))
    assert len(tables) >= 5
    for name in tables:
        assert pq.read_table(tmp_path / "ray" / name).equals(pq.read_table(output / name)), name


def test_pairs_are_compared_as_pairs_and_data_without_labels_or_ids_is_audited(tmp_path, tiny_encoder):
    table = pa.table({"sentence": ["good food"] * 3 + ["the story"], "aspect": ["food", "plot", "food", "plot"]})
    pq.write_table(table, tmp_path / "a.parquet")
    columns = "columns={text: sentence, text_pair: aspect}"
    argv = ["audit", str(tmp_path / "a.parquet"), columns, f"model={tiny_encoder}", "max_length=24"]
    assert run([*argv, f"output={tmp_path / 'out'}", "near_duplicates.find=false"]) == 0
    assert rows_of(tmp_path / "out", "duplicates", "row_no", "id") == [(0, "a.parquet:0"), (2, "a.parquet:2")]
    report = report_of(tmp_path / "out")
    assert {finding["name"] for finding in report["findings"]} == {"broken", "duplicates", "length", "marks"}
    assert report["near_duplicates"] is report["repeated_ids"] is report["conflicts"] is None
    assert not (tmp_path / "out" / "label_errors.parquet").exists()


def test_a_damaged_file_is_a_finding_and_one_class_skips_label_errors(tmp_path, tiny_encoder):
    folder = tmp_path / "in"
    write(folder / "a.parquet", 30, 1, "a")
    (folder / "b.parquet").write_bytes(b"PAR1 not really PAR1")
    argv = ["audit", str(folder), f"output={tmp_path / 'out'}", f"model={tiny_encoder}", "max_length=24"]
    assert run([*argv, "labels={pos: x, neg: y}", "label_errors.find=false"]) == 0
    assert [
        (row[0].rpartition("/")[2], row[1]) for row in rows_of(tmp_path / "out", "broken", "input_path", "row_no")
    ] == [("b.parquet", None)]
    broken = next(each for each in report_of(tmp_path / "out")["findings"] if each["name"] == "broken")
    assert (broken["weight"], broken["sentences"]) == ("serious", ["1 file cannot be read at all."])
    single = pq.read_table(folder / "a.parquet")
    pq.write_table(single.set_column(2, "label", pa.array(["pos"] * 30)), tmp_path / "one.parquet")
    argv = ["audit", str(tmp_path / "one.parquet"), f"output={tmp_path / 'one'}", f"model={tiny_encoder}"]
    assert run([*argv, "max_length=24"]) == 0
    doubt = report_of(tmp_path / "one")["label_errors"]
    assert (
        doubt["skipped"]
        == "Label errors need two classes with 5 different texts at least, and there is 1: nobody looked."
    )


@pytest.mark.slow
def test_embeddings_judge_labels_and_leave_nothing_behind(tmp_path, tiny_encoder):
    write(tmp_path / "a.parquet", 300, 1, "a")
    table = pq.read_table(tmp_path / "a.parquet")
    labels = table["label"].to_pylist()
    labels[7] = "pos" if labels[7] == "neg" else "neg"
    pq.write_table(table.set_column(2, "label", pa.array(labels)), tmp_path / "a.parquet")
    argv = ["audit", str(tmp_path / "a.parquet"), f"output={tmp_path / 'out'}", f"model={tiny_encoder}"]
    assert run([*argv, "max_length=24", "label_errors.by=embeddings", "label_errors.max_rows=250"]) == 0
    report = report_of(tmp_path / "out")
    assert report["label_errors"]["judged"] == 250
    assert report["label_errors"]["means"].startswith("logistic regression on embeddings of")
    assert report["label_errors"]["accuracy"] > 0.75
    assert not (tmp_path / "out" / "control" / "tokens").exists()
    assert not (tmp_path / "out" / "control" / "features").exists()


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "no data given"),
        (["{tmp}/nowhere.csv"], 2, "nowhere.csv"),
        (["{tmp}/a.parquet", "data.train={tmp}/a.parquet"], 2, "both name the reviews"),
        (["{tmp}/a.parquet", "columns.text=body"], 2, "expected column 'body'"),
        (["{tmp}/a.parquet", "columns.label=stars"], 2, "expected column 'stars'"),
        (["{tmp}/a.parquet", "columns.id=number"], 2, "expected column 'number'"),
        (["{tmp}/a.parquet", "data.test={tmp}/nowhere"], 2, "nowhere"),
        (["{tmp}/empty.parquet"], 6, "data.train: expected reviews, found 1 file and no row"),
        (
            ["{tmp}/a.parquet", "data.test={tmp}/empty.parquet"],
            6,
            "data.test: expected reviews, found 1 file and",
        ),
        (["{tmp}/folder"], 6, "data.train: none of 0 files can be read"),
        (["{tmp}/bad.parquet"], 6, "none of 1 file can be read"),
        (["{tmp}/a.parquet", "labels=[pos, negative]"], 6, "expected label values pos, negative, found"),
        (["{tmp}/a.parquet", "labels=[pos]"], 2, "at least two class names"),
        (["{tmp}/a.parquet", "near_duplicates.threshold=1.2"], 2, "near_duplicates.threshold"),
        (["{tmp}/a.parquet", "near_duplicates.threshold=0.2"], 2, "expected 0.5 or more, found 0.2"),
        (["{tmp}/a.parquet", "label_errors.by=bert"], 2, "label_errors.by"),
        (["{tmp}/a.parquet", "label_errors.folds=1"], 2, "label_errors.folds"),
        (["{tmp}/a.parquet", "near_duplicates.treshold=0.9"], 2, "Did you mean 'near_duplicates.threshold'"),
        (["{tmp}/a.parquet", "max_length=9999"], 2, "sees at most 64 tokens"),
        (["{tmp}/a.parquet", "model=/no/such/model"], 2, "no such folder"),
    ],
)
def test_wrong_input_is_told_and_nothing_is_written(tmp_path, tiny_encoder, no_work, capsys, words, code, said):
    write(tmp_path / "a.parquet", 30, 1, "a")
    pq.write_table(pq.read_table(tmp_path / "a.parquet").slice(0, 0), tmp_path / "empty.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really PAR1")
    (tmp_path / "folder").mkdir()
    argv = ["audit", f"model={tiny_encoder}", "max_length=24", f"output={tmp_path / 'out'}"]
    assert run([*argv, *(word.format(tmp=tmp_path) for word in words)]) == code
    assert_refused(capsys, said, tmp_path / "out")


@pytest.mark.parametrize(("package", "words"), [("rensa", []), ("cleanlab", ["near_duplicates.find=false"])])
def test_a_missing_extra_names_the_install_command(tmp_path, tiny_encoder, monkeypatch, capsys, package, words):
    write(tmp_path / "a.parquet", 30, 1, "a")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    argv = ["audit", str(tmp_path / "a.parquet"), f"model={tiny_encoder}", f"output={tmp_path / 'out'}", *words]
    assert run(argv) == 2
    assert "pip install 'bertray[audit]'" in capsys.readouterr().err


@pytest.mark.slow
def test_other_verbs_do_not_import_what_audit_needs():
    import subprocess
    import sys

    code = (
        "import sys, bertray.cli, bertray.runs.data_audit, bertray.runs.fit.training; "
        "print(sorted({'cleanlab', 'rensa', 'sklearn'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_byte_that_is_no_utf8_among_thousands_of_rows_is_one_broken_row(tmp_path, tiny_encoder):
    rows = [f"{number},the film was good and number {number}" for number in range(2100)]
    rows[7] += " caf\u00e9"
    (tmp_path / "a.csv").write_bytes("\n".join(["id,text", *rows]).encode("latin-1"))
    argv = ["audit", str(tmp_path / "a.csv"), f"output={tmp_path / 'out'}", f"model={tiny_encoder}", "max_length=24"]
    assert run([*argv, "near_duplicates.find=false"]) == 0
    assert rows_of(tmp_path / "out", "broken", "row_no", "reason") == [(7, "text_encoding")]
