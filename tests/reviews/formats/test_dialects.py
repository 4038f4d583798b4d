"""Dialects of delimited text: what any writer writes is read exactly, and what is damaged is counted row by row."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertray.config import TextFormat
from bertray.errors import ConfigError
from bertray.reviews import reader as sources
from bertray.reviews import rows as inputs
from bertray.reviews.formats import delimited, jsonl
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards
from bertray.reviews.rows import BadFile, InputFile, ReadSpec
from bertray.schema import Reason
from tests.properties import examples
from tests.scanning import inspect


def look_at(path: Path, **reader: Any) -> InputFile | BadFile:
    [entry] = list_inputs([str(path)], TextFormat(**reader))
    return inspect(entry, TextFormat(**reader))


def rows_of(path: Path, names: list[str], rows_per_shard: int = 4096, **reader: Any) -> list[tuple[Any, ...]]:
    """(row number, values) of the rows that are read, and (row number, reason) of those that are not."""
    file = look_at(path, **reader)
    assert isinstance(file, InputFile), file
    found: list[tuple[Any, ...]] = []
    for shard in plan_shards([file], rows_per_shard):
        for raw in sources.read_rows(shard, ReadSpec(reader=TextFormat(**reader)), names, []):
            columns = [raw.columns[name].to_pylist() for name in names]
            found += zip(raw.row_nos.tolist(), *columns, strict=True)
            found += [(fault.row_no, fault.reason) for fault in raw.faults]
    found.sort(key=lambda row: row[0])
    assert [row[0] for row in found] == list(range(file.num_rows))
    return [row[1:] for row in found]


BAD = (Reason.ROW_MALFORMED,)


# --- swallowed rows --------------------------------------------------------------------------------------------------

ROWS_12: list[tuple[str, ...]] = [(str(n), f"review number {n} was fine") for n in range(1, 13)]


def table(rows: list[tuple[str, ...]], header: str = "id\ttext", delimiter: str = "\t", end: str = "\n") -> str:
    return end.join([header.replace("\t", delimiter), *(delimiter.join(row) for row in rows)]) + end


def with_stray_quotes(rows: list[tuple[str, ...]], first: int, last: int, at: int = 1) -> list[tuple[str, ...]]:
    """One text begins and a later one ends with a quote."""
    rows = list(rows)
    for row, form in ((first, '"{}'), (last, '{}"')):
        rows[row] = tuple(form.format(value) if no == at else value for no, value in enumerate(rows[row]))
    return rows


@pytest.mark.parametrize("distance", [1, 2, 4, 9])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_stray_quotes_of_a_tsv_are_characters(tmp_path, distance, end):
    rows = with_stray_quotes(ROWS_12, 1, 1 + distance)
    (tmp_path / "a.tsv").write_bytes(table(rows, end=end).encode())
    assert rows_of(tmp_path / "a.tsv", ["id", "text"]) == rows


def test_the_smallest_tsv_of_stray_quotes_has_all_its_rows(tmp_path):
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"Great, but no\n2\tfine\n3\tnever again"\n4\tok\n')
    assert [row[1] for row in rows_of(tmp_path / "a.tsv", ["id", "text"])] == [
        '"Great, but no', "fine", 'never again"', "ok",
    ]  # fmt: skip


@pytest.mark.parametrize("distance", [1, 2, 5])
@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_stray_quotes_of_other_delimiters_cost_one_row_and_hide_none(tmp_path, distance, delimiter):
    rows = with_stray_quotes(ROWS_12, 1, 1 + distance)
    (tmp_path / "a.csv").write_text(table(rows, delimiter=delimiter))
    found = rows_of(tmp_path / "a.csv", ["id", "text"], delimiter=delimiter)
    assert found == [rows[0], BAD, *rows[2:]]


LABELLED: list[tuple[str, ...]] = [
    (f"review number {n} was fine", "pos" if n % 3 else "neg", f"P{n:05}") for n in range(1, 31)
]


@pytest.mark.parametrize("distance", [1, 2, 5])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_labels_and_codes_tell_rows_from_lines_where_numbers_do_not(tmp_path, distance, name):
    delimiter = "\t" if name == "a.tsv" else ","
    rows = with_stray_quotes(LABELLED, 7, 7 + distance, at=0)
    (tmp_path / name).write_text(table(rows, "text\tlabel\tproduct", delimiter))
    found = rows_of(tmp_path / name, ["text", "label", "product"])
    assert found == (rows if name == "a.tsv" else [*rows[:7], BAD, *rows[8:]])


@pytest.mark.parametrize("columns", [("id", "text"), ("text", "label"), ("label", "text"), ("id", "text", "label")])
@pytest.mark.parametrize(("first", "last"), [(0, 11), (0, 10), (1, 11), (2, 10)])
def test_stray_quotes_around_nearly_all_rows_cost_one_row_and_hide_none(tmp_path, columns, first, last):
    rows = [{"id": str(n), "text": f"number {n} was fine", "label": ("neg", "pos")[n % 2]} for n in range(12)]
    rows[first]["text"] = '"' + rows[first]["text"]
    rows[last]["text"] += '"'
    written = [tuple(row[name] for name in columns) for row in rows]
    (tmp_path / "a.csv").write_text(table(written, "\t".join(columns), ","))
    # A quote that ends its line without a partner is a character of the text.
    assert rows_of(tmp_path / "a.csv", list(columns)) == [BAD if no == first else row for no, row in enumerate(written)]


def test_a_file_of_one_review_of_several_lines_is_one_row(tmp_path):
    text = "good:\npicture, sound\nbad:\nbattery, price\nall in all, fine\nI would buy it again, yes"
    (tmp_path / "a.csv").write_text(f'id,text\nr1,"{text}"\n')
    assert rows_of(tmp_path / "a.csv", ["id", "text"]) == [("r1", text)]


def test_stray_quotes_far_below_the_first_rows_hide_none_wherever_reading_starts(tmp_path):
    rows: list[tuple[str, ...]] = [(str(n), f"review number {n} was fine") for n in range(9000)]
    rows = with_stray_quotes(with_stray_quotes(rows, 4094, 4099), 8500, 8501)
    (tmp_path / "a.csv").write_text(table(rows, delimiter=","))
    assert rows_of(tmp_path / "a.csv", ["id", "text"], 1000) == [
        BAD if no in (4094, 8500) else row for no, row in enumerate(rows)
    ]
    (tmp_path / "a.tsv").write_text(table(rows))
    assert rows_of(tmp_path / "a.tsv", ["id", "text"], 1000) == rows


@pytest.mark.parametrize("num_plain", [998, 1000, 2000, 40_000])  # within the first megabyte, and below it
def test_a_tsv_whose_first_quote_is_far_below_is_read_as_its_quotes_are_used(tmp_path, num_plain):
    plain = [(str(n), "a plain review of some words") for n in range(num_plain)]
    enclosed = [(str(num_plain + n), f'said "yes",\nthen\tno {n}') for n in range(50)]
    with (tmp_path / "a.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("id", "text"), *plain, *enclosed])
    assert rows_of(tmp_path / "a.tsv", ["id", "text"]) == [*plain, *enclosed]


def test_lines_above_a_long_tsv_are_told_by_their_number(tmp_path):
    rows = [(str(n), f'said ""no"" {n}') for n in range(1500)]
    lines = ['"Reviews of November"', "", '"id"\t"text"', *(f'"{n}"\t"{text}"' for n, text in rows)]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    file = look_at(tmp_path / "a.tsv")
    assert isinstance(file, InputFile)
    assert "is reader.skip_lines=2 right?" in file.notes[0]
    assert rows_of(tmp_path / "a.tsv", ["id", "text"], skip_lines=2) == [
        (n, text.replace('""', '"')) for n, text in rows
    ]


# --- escapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enclosed", [False, True])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_quotes_that_are_escaped_outside_enclosed_fields_lose_their_escapes(tmp_path, delimiter, enclosed):
    rows = [("1", 'said "no" twice'), ("2", "fine"), ("3", '"Quoted" first'), ("4", "a back\\slash")]
    rows += [("5", f"good{delimiter}bad")] * enclosed
    with (tmp_path / "a.csv").open("w", newline="") as file:  # as pandas' to_csv(doublequote=False, escapechar="\\")
        csv.writer(file, delimiter=delimiter, doublequote=False, escapechar="\\").writerows([("id", "text"), *rows])
    assert rows_of(tmp_path / "a.csv", ["id", "text"], delimiter=delimiter) == rows


ESCAPED = [
    (r'1,"he said \"no, never\" and left"', 'he said "no, never" and left'),
    (r'2,"ends with \""', 'ends with "'),
    (r'3,"\"Starts\" here"', '"Starts" here'),
    (r"4,C:\new\temp", r"C:\new\temp"),
    ("5,\"two\nlines, \\\"quoted\\\"\"", 'two\nlines, "quoted"'),
    (r'6,"a ""doubled"" one"', 'a "doubled" one'),
    (r'7,"a backslash \\"', "a backslash \\"),
    (r"8,\N", None),
    ("9,fine", "fine"),
]  # fmt: skip


def test_backslash_escapes_in_the_first_rows_are_understood(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f"{line}\n" for line, _ in ESCAPED))
    assert rows_of(tmp_path / "a.csv", ["text"]) == [(text,) for _, text in ESCAPED]


def test_a_backslash_before_a_quote_far_below_costs_its_row_and_names_the_key(tmp_path):
    rows = [(str(n), "fine") for n in range(3000)]
    lines = [",".join(row) for row in rows]
    lines[2000] = r'2000,"he said \"no, never\" and left"'
    lines[2500] = r'2500,"ends with \""'
    (tmp_path / "a.csv").write_text("id,text\n" + "\n".join(lines) + "\n")
    found = rows_of(tmp_path / "a.csv", ["id", "text"])
    assert found == [BAD if no in (2000, 2500) else row for no, row in enumerate(rows)]
    file = look_at(tmp_path / "a.csv")
    assert isinstance(file, InputFile)
    [raw] = sources.read_rows(sources.shard_of(file, 2000, 2001), ReadSpec(), ["text"], [])
    assert raw.faults[0].detail == "a quote behind a backslash: `reader.escape='\\'` reads such rows"
    rows[2000], rows[2500] = ("2000", 'he said "no, never" and left'), ("2500", 'ends with "')
    assert rows_of(tmp_path / "a.csv", ["id", "text"], escape="\\") == rows


def test_no_escape_is_taken_from_a_file_whose_texts_end_in_backslashes(tmp_path):
    rows = [(str(n), f'the folder "C:\\{n}\\", and\nmore\\') for n in range(20)]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("id", "text"), *rows])
    assert rows_of(tmp_path / "a.csv", ["id", "text"]) == rows


# --- lines that are no rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "again", ["id,text,label", "ID,Text,LABEL", " id , text,label ", '"id","text","label"', "\ufeffid,text,label"]
)
@pytest.mark.parametrize("rows_per_shard", [1, 100])
def test_a_header_that_stands_again_is_no_row(tmp_path, again, rows_per_shard):
    (tmp_path / "a.csv").write_text(f"id,text,label\n1,good,pos\n{again}\n2,bad,neg\n{again}\n")
    assert rows_of(tmp_path / "a.csv", ["id", "text", "label"], rows_per_shard) == [
        ("1", "good", "pos"), ("2", "bad", "neg"),
    ]  # fmt: skip
    file = look_at(tmp_path / "a.csv")
    assert isinstance(file, InputFile)
    assert file.notes == ("the header stands 3 times; below the first row it is no review",)


def test_a_review_like_the_name_of_the_only_column_is_a_row(tmp_path):
    (tmp_path / "a.csv").write_text("Review\ngood\nreview\nReview\nbad\n")
    assert rows_of(tmp_path / "a.csv", ["Review"]) == [("good",), ("review",), ("bad",)]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("header", [True, False])
def test_byte_order_marks_of_files_put_together_are_no_part_of_a_value(tmp_path, name, header):
    delimiter = "\t" if name == "a.tsv" else ","
    part = (f"id{delimiter}text\n" if header else "") + f"r06{delimiter}good\n"
    raw = 2 * ("\ufeff" + part).encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    names = ["id", "text"] if header else ["0", "1"]
    assert rows_of(tmp_path / name, names, 1, header=header) == [("r06", "good")] * 2


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;", "\ufeffsep=;"])
def test_a_line_that_states_the_delimiter_is_understood(tmp_path, line):
    (tmp_path / "a.csv").write_text(f"{line}\nid;text\n1;good, really\n2;bad\n")
    assert rows_of(tmp_path / "a.csv", ["id", "text"], 1) == [("1", "good, really"), ("2", "bad")]
    file = look_at(tmp_path / "a.csv")
    assert isinstance(file, InputFile)
    assert file.notes == ()


def test_lines_above_the_header_are_skipped_where_asked_for_and_named_where_not(tmp_path):
    (tmp_path / "a.csv").write_text('Report of reviews\n\n"November, 2026"\nid,text\n1,good\n2,bad\n3,fine\n')
    assert rows_of(tmp_path / "a.csv", ["id", "text"], 1, skip_lines=3) == [("1", "good"), ("2", "bad"), ("3", "fine")]
    file = look_at(tmp_path / "a.csv")
    assert isinstance(file, InputFile)
    assert file.notes == ("the first lines have other fields than the rest: is reader.skip_lines=3 right?",)


@pytest.mark.parametrize("extra", [",", ",,,"])
def test_delimiters_at_the_end_of_rows_are_read(tmp_path, extra):
    (tmp_path / "a.csv").write_text(f"id,text\n1,good{extra}\n2,bad{extra}\n3,fine\n4,too,many\n5,ok{extra}\n")
    assert rows_of(tmp_path / "a.csv", ["id", "text"]) == [
        ("1", "good"), ("2", "bad"), ("3", "fine"), BAD, ("5", "ok"),
    ]  # fmt: skip


def test_delimiters_at_the_end_of_the_header_alone_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("id,text,,\n1,good\n2,bad\n")
    assert rows_of(tmp_path / "a.csv", ["id", "text"]) == [("1", "good"), ("2", "bad")]


def test_a_row_of_one_more_empty_field_is_malformed_where_others_have_none(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,good\n2,bad,\n3,fine\n")
    assert rows_of(tmp_path / "a.csv", ["id", "text"]) == [("1", "good"), BAD, ("3", "fine")]


def test_spaces_before_quotes_are_no_part_of_a_field(tmp_path):
    (tmp_path / "a.csv").write_text('id, text, label\n1, "good, really", pos\n2, "two\nlines", neg\n3, plain, neg\n')
    found = rows_of(tmp_path / "a.csv", ["id", "text", "label"])
    assert found == [("1", "good, really", "pos"), ("2", "two\nlines", "neg"), ("3", "plain", "neg")]


# --- content that is not what the name says --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "zipped"), [("a.csv", True), ("a.jsonl", True), ("a.csv.gz", False)])
def test_gzip_is_known_by_its_content(tmp_path, name, zipped):
    raw = b'{"id": "1", "text": "good"}\n' if name == "a.jsonl" else b"id,text\n1,good\n"
    (tmp_path / name).write_bytes(gzip.compress(raw) if zipped else raw)
    assert rows_of(tmp_path / name, ["id", "text"]) == [("1", "good")]


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ("id\ttext\n1\tgood film\n".encode("utf-16"), "looks like UTF-16: set reader.encoding=utf-16"),
        ("id\ttext\n1\tgood film\n".encode("utf-16-le"), "looks like UTF-16: set reader.encoding=utf-16-le"),
        ("id\ttext\n1\tgood film\n".encode("utf-16-be"), "looks like UTF-16: set reader.encoding=utf-16-be"),
        ("id\ttext\n1\t很好推荐很好推荐\n".encode("utf-16-le"), "looks like UTF-16: set reader.encoding=utf-16-le"),
        (b"PK\x03\x04....", "a zip archive or Excel workbook"),
        (b"PAR1....", "Parquet content: name it .parquet"),
        ("id\ttext\n1\tgood film\n".encode("utf-32"), "looks like UTF-32: set reader.encoding=utf-32"),
        (gzip.compress(gzip.compress(b"text\ngood", mtime=0), mtime=0), "gzip content within gzip"),
        (b"BZh91AY", "bzip2 content"),
    ],
)
@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_other_content_is_named_with_the_way_out(tmp_path, name, content, detail):
    (tmp_path / name).write_bytes(content)
    file = look_at(tmp_path / name)
    assert isinstance(file, BadFile)
    assert (file.reason, file.detail[: len(detail)]) == (Reason.FILE_UNSUPPORTED, detail)
    if "reader.encoding=" in detail and name == "a.tsv":
        encoding = detail.partition("reader.encoding=")[2]
        expected = content.decode(encoding).split("\t")[-1].strip()
        assert rows_of(tmp_path / name, ["id", "text"], encoding=encoding) == [("1", expected)]


def test_a_null_as_databases_write_it_is_none(tmp_path):
    (tmp_path / "a.tsv").write_text("id\ttext\n1\t\\N\n2\tNo \\N here\n")
    assert rows_of(tmp_path / "a.tsv", ["id", "text"]) == [("1", None), ("2", "No \\N here")]


# --- any writer ------------------------------------------------------------------------------------------------------

WORDS = st.text(st.sampled_from(list("ab, \t;|\"'\n\\é.N")), max_size=12)
REVIEW = WORDS.filter(lambda text: text.strip() and text != "\\N" and "\r" not in text)
REVIEWS = st.lists(st.tuples(REVIEW, st.sampled_from(["pos", "neg"])), min_size=1, max_size=40)


def written_by_csv(rows: list[tuple[str, ...]], delimiter: str, quoting: Any) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows(rows)
    return out.getvalue()


def written_by_pandas(rows: list[tuple[str, ...]], delimiter: str, quoting: Any) -> str:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows[1:], columns=list(rows[0]))
    return str(frame.to_csv(None, sep=delimiter, index=False, quoting=quoting))


def written_by_polars(rows: list[tuple[str, ...]], delimiter: str, quoting: Any) -> str:
    polars = pytest.importorskip("polars")
    style = {csv.QUOTE_ALL: "always", csv.QUOTE_MINIMAL: "necessary", csv.QUOTE_NONNUMERIC: "non_numeric"}[quoting]
    frame = polars.DataFrame(rows[1:], schema=list(rows[0]), orient="row")
    return str(frame.write_csv(separator=delimiter, quote_style=style))


def written_by_arrow(rows: list[tuple[str, ...]], delimiter: str, quoting: Any) -> str:
    from pyarrow import csv as arrow_csv

    columns = {name: [row[at] for row in rows[1:]] for at, name in enumerate(rows[0])}
    out = pa.BufferOutputStream()
    style = "needed" if quoting == csv.QUOTE_MINIMAL else "all_valid"
    arrow_csv.write_csv(pa.table(columns), out, arrow_csv.WriteOptions(delimiter=delimiter, quoting_style=style))
    return out.getvalue().to_pybytes().decode()


@pytest.mark.parametrize("write", [written_by_csv, written_by_pandas, written_by_polars, written_by_arrow])
@settings(max_examples=examples(60))
@given(
    reviews=REVIEWS,
    delimiter=st.sampled_from([",", "\t", ";", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    order=st.permutations([0, 1, 2]),
    first=st.integers(0, 2000),
    rows_per_shard=st.integers(1, 12),
    every=st.integers(1, 5),
)
def test_what_a_writer_writes_is_read_exactly(
    tmp_path, monkeypatch, write, reviews, delimiter, quoting, order, first, rows_per_shard, every
):
    for module in (inputs, delimited, jsonl, sources):
        monkeypatch.setattr(module, "ROWS_PER_OFFSET", every)
    rows = [(str(first + no), text, label) for no, (text, label) in enumerate(reviews)]
    written = [tuple(row[at] for at in order) for row in [("id", "text", "label"), *rows]]
    content = write(written, delimiter, quoting)
    path = tmp_path / ("a.tsv" if delimiter == "\t" else "a.csv")
    path.write_bytes(content.encode())
    assert rows_of(path, ["id", "text", "label"], rows_per_shard, delimiter=delimiter) == rows


@settings(max_examples=examples(200))
@given(
    num_rows=st.integers(6, 60),
    strays=st.lists(st.tuples(st.integers(0, 59), st.sampled_from(['"{}', '{}"', '{}" x', 'x "{}'])), max_size=6),
    enclosed=st.sets(st.integers(0, 59), max_size=10),
    delimiter=st.sampled_from([",", "\t", ";"]),
    every=st.integers(1, 5),
    rows_per_shard=st.integers(1, 12),
)
def test_stray_quotes_never_hide_a_row(
    tmp_path, monkeypatch, num_rows, strays, enclosed, delimiter, every, rows_per_shard
):
    """Every line is a row here: as many rows come in, and each that is read has the id of its line."""
    for module in (inputs, delimited, jsonl, sources):
        monkeypatch.setattr(module, "ROWS_PER_OFFSET", every)
    texts = [f"review number {no} was fine" for no in range(num_rows)]
    for at, form in strays:
        texts[at % num_rows] = form.format(texts[at % num_rows])
    for at in enclosed - {at % num_rows for at, _ in strays}:
        if at < num_rows:
            texts[at] = f'"{texts[at]}{delimiter} ""really"""'
    path = tmp_path / ("a.tsv" if delimiter == "\t" else "a.csv")
    path.write_text(table([(str(100 + no), text) for no, text in enumerate(texts)], delimiter=delimiter))
    found = rows_of(path, ["id", "text"], rows_per_shard, delimiter=delimiter)
    assert len(found) == num_rows
    assert all(row in (BAD,) or row[0] == str(100 + no) for no, row in enumerate(found))
    assert sum(row == BAD for row in found) <= len(strays) + (len(enclosed) if delimiter == "\t" else 0)


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["", " ", "\n", "\r\n", "\n\n", ",\n", "\n\ufeff"])
@pytest.mark.parametrize("rows_per_shard", [1, 2, 100])
def test_objects_end_to_end_are_rows_wherever_reading_starts(tmp_path, monkeypatch, between, rows_per_shard):
    for module in (inputs, delimited, jsonl, sources):
        monkeypatch.setattr(module, "ROWS_PER_OFFSET", 2)
    texts = ["good", "a }{ in it", "é } { 좋아요", 'a "quoted" }', "bad"]
    objects = [json.dumps({"id": str(no), "text": text, "more": [{}, {"x": {}}]}) for no, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_bytes((between.join(objects) + "\n").encode())
    found = rows_of(tmp_path / "a.jsonl", ["id", "text"], rows_per_shard)
    assert found == [(str(no), text) for no, text in enumerate(texts)]


JSON_JUNK = st.text(st.sampled_from(list('{}[]",:a1 \n\\')), max_size=60)


@settings(max_examples=examples(150))
@given(content=JSON_JUNK, rows_per_shard=st.integers(1, 5))
def test_shards_of_broken_json_see_what_one_whole_read_sees(tmp_path, monkeypatch, content, rows_per_shard):
    for module in (inputs, delimited, jsonl, sources):
        monkeypatch.setattr(module, "ROWS_PER_OFFSET", 2)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + content + '{"text": "b"}')
    assert rows_of(path, ["text"], rows_per_shard) == rows_of(path, ["text"])


def test_an_object_that_is_no_json_costs_itself_and_not_its_neighbours(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}{"text": bad}{"text": "fine"}\n{"text": "end"}\n')
    assert rows_of(tmp_path / "a.jsonl", ["text"]) == [("good",), BAD, ("fine",), ("end",)]


@pytest.mark.parametrize(
    ("value", "indent", "found"),
    [
        ({"id": {"0": "1", "1": "2"}, "text": {"0": "good", "1": "bad"}}, None, "one JSON object for all rows"),
        ({"0": {"text": "good"}, "1": {"text": "bad"}}, None, "one JSON object for all rows"),
        ({"columns": ["text"], "index": [0, 1], "data": [["good"], ["bad"]]}, None, "one JSON object for all rows"),
        ({"reviews": [{"text": "good"}, {"text": "bad"}]}, None, "one JSON object for all rows"),
        ({"text": "good"}, 2, "a JSON object over several lines"),
        ([{"text": "good"}, {"text": "bad"}], None, "a JSON array"),
        ([{"text": "good"}, {"text": "bad"}], 2, "a JSON array"),
        ([], None, "a JSON array"),
    ],
)
def test_json_in_another_form_is_named_with_the_way_out(tmp_path, value, indent, found):
    (tmp_path / "a.json").write_text(json.dumps(value, indent=indent))
    file = look_at(tmp_path / "a.json")
    assert isinstance(file, BadFile)
    assert file.reason == Reason.FILE_UNSUPPORTED
    assert file.detail.startswith(f"{found}")
    assert "orient='records', lines=True" in file.detail


@pytest.mark.parametrize("form", ["[{}]", "[\n{}\n]\n", " [ {}\n]"])
@pytest.mark.parametrize("num_rows", [2, 3, 30])
def test_a_json_array_with_its_objects_on_lines_is_told_before_a_row_is_lost(tmp_path, form, num_rows):
    objects = ",\n".join(json.dumps({"id": str(no), "text": f"good film {no}"}) for no in range(num_rows))
    (tmp_path / "a.json").write_text(form.format(objects))
    file = look_at(tmp_path / "a.json")
    assert isinstance(file, BadFile)
    assert (file.reason, file.detail[:12]) == (Reason.FILE_UNSUPPORTED, "a JSON array")


@pytest.mark.parametrize("between", [",", ", ", " , "])
def test_objects_of_a_line_may_stand_between_commas(tmp_path, between):
    texts = ["good", "a },{ in it", "bad"]
    line = between.join(json.dumps({"text": text}) for text in texts)
    (tmp_path / "a.jsonl").write_text(f"{line}\n{line},\n")
    assert rows_of(tmp_path / "a.jsonl", ["text"]) == [(text,) for text in texts * 2]


@pytest.mark.parametrize("first_seen", [1, 999, 1000, 1100])
def test_an_optional_key_is_a_column_wherever_it_is_first_seen(tmp_path, read_all, first_seen):
    rows: list[dict[str, Any]] = [{"id": str(no), "text": f"good film {no}"} for no in range(1200)]
    rows[first_seen]["reply"] = "thanks"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text('{"id": "b", "text": "good film"}\n')
    kept = read_all(tmp_path, keep_columns=("reply",)).kept
    assert kept["keep:reply"].to_pylist() == [None] * first_seen + ["thanks"] + [None] * (1200 - first_seen)


def test_a_key_that_no_file_has_is_a_config_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good", "reply": "x"}\n')
    file = look_at(tmp_path / "a.jsonl")
    assert isinstance(file, InputFile)
    with pytest.raises(ConfigError, match=r"expected column 'repyl' .* Did you mean 'reply'"):
        sources.check_columns([file], ReadSpec(keep_columns=("repyl",)))
    assert sources.column_fault(file, ReadSpec(keep_columns=("repyl",))) is None
