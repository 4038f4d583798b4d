"""CSV, TSV and JSON Lines: rows one by one, exact counts, and shards that see what a whole read sees."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertray.config import Columns, TextFormat
from bertray.reviews import reader as sources
from bertray.reviews import rows as inputs
from bertray.reviews.file_identity import digest_file
from bertray.reviews.formats import delimited, jsonl
from bertray.reviews.formats import text_records as records
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards, read_shard
from bertray.reviews.rows import BadFile, FileEntry, ReadSpec
from bertray.schema import Reason
from tests.properties import examples
from tests.scanning import inspect

AUTO = TextFormat()


def look_at(path: Path, reader: TextFormat = AUTO) -> Any:
    [entry] = list_inputs([str(path)], reader)
    return inspect(entry, reader)


def put(path: Path, content: str | bytes) -> Path:
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


# --- delimited -------------------------------------------------------------------------------------------------------


def test_csv_with_header_quotes_newlines_and_crlf(tmp_path, read_all):
    path = put(
        tmp_path / "a.csv",
        'id,text,label\r\n1,"two\r\nlines, one comma",pos\r\n2,"a ""quoted"" word",neg\r\n\r\n3,plain,pos',
    )
    assert look_at(path).num_rows == 3
    kept = read_all(path, wants_label=True).kept
    assert kept["id"].to_pylist() == ["1", "2", "3"]
    assert kept["text"].to_pylist() == ["two lines, one comma", 'a "quoted" word', "plain"]
    assert kept["label"].to_pylist() == ["pos", "neg", "pos"]


def test_quotes_inside_a_field_are_characters(tmp_path, read_all):
    path = put(tmp_path / "a.csv", 'text\nhe said "no" twice\n5" screen\n')
    assert read_all(path).kept["text"].to_pylist() == ['he said "no" twice', '5" screen']


def test_tsv_without_header_and_with_quoting_off(tmp_path, read_all):
    path = put(tmp_path / "a.tsv", 'gj04\t1\t\t"Unpaired quote here.\ngj04\t0\t*\tMe "too."\n')
    reader = TextFormat(header=False, quoting=False)
    file = look_at(path, reader)
    assert (file.num_rows, list(file.columns)) == (2, ["0", "1", "2", "3"])
    kept = read_all(
        path, reader=reader, columns=Columns(text="3", label="1"), wants_label=True, keep_columns=("2",)
    ).kept
    assert kept["text"].to_pylist() == ['"Unpaired quote here.', 'Me "too."']
    assert kept["label"].to_pylist() == ["1", "0"]
    assert kept["keep:2"].to_pylist() == ["", "*"]
    assert kept["id"].to_pylist() == ["a.tsv:0", "a.tsv:1"]


def test_semicolons_by_configuration_and_tabs_by_extension(tmp_path, read_all):
    reader = TextFormat(format="csv", header=False, delimiter=";")
    path = put(tmp_path / "train.txt", "i feel humiliated, really;sadness\ni feel fine;joy\n")
    columns = Columns(text="0", label="1")
    assert read_all(path, reader=reader, columns=columns, wants_label=True).kept["label"].to_pylist() == [
        "sadness",
        "joy",
    ]
    assert list(look_at(put(tmp_path / "a.tab", "text\tlabel\n")).columns) == ["text", "label"]
    assert list(look_at(put(tmp_path / "a.dat", "text\tlabel\n"), TextFormat(format="tsv")).columns) == [
        "text",
        "label",
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, read_all, name):
    path = put(tmp_path / name, b"\xef\xbb\xbftext,label\ngood,1\n")
    assert list(look_at(path).columns) == ["text", "label"]
    assert read_all(path).kept["text"].to_pylist() == ["good"]
    only = put(tmp_path / "mark.csv", b"\xef\xbb\xbf")
    assert look_at(only).reason == Reason.FILE_EMPTY


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "gb18030", "utf-8-sig"])
def test_other_encodings(tmp_path, read_all, encoding):
    text = "很好，推荐" if encoding in ("gb18030", "utf-16") else "très bien, “oui”"
    path = put(tmp_path / "a.csv", f'text\n"{text}"\nabc\n'.encode(encoding))
    reader = TextFormat(encoding=encoding)
    assert read_all(path, rows_per_shard=1, reader=reader).kept["text"].to_pylist() == [text, "abc"]


def test_an_unknown_encoding_is_a_config_error(tmp_path):
    from bertray.errors import ConfigError

    with pytest.raises(ConfigError, match=r"reader.encoding: expected a text encoding, found 'utf-9'"):
        look_at(put(tmp_path / "a.csv", "text\nx\n"), TextFormat(encoding="utf-9"))


def test_ragged_rows_are_refused_one_by_one_with_a_digest(tmp_path, read_all):
    path = put(tmp_path / "a.csv", "id,text\n1,good\n2,too,many\n3\n4,fine\n")
    batch = read_all(path)
    assert batch.kept["id"].to_pylist() == ["1", "4"]
    assert batch.refused.to_pylist() == [
        {
            "input_path": str(path),
            "row_no": row,
            "id": None,
            "reason": "row_malformed",
            "detail": f"expected 2 fields, found {fields}",
            "text_sha256": hashlib.sha256(line.encode()).hexdigest(),
            "text_len": len(line),
        }
        for row, fields, line in [(1, 3, "2,too,many"), (2, 1, "3")]
    ]


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path, read_all):
    path = put(tmp_path / "a.csv", 'id,text\n1,good\n2,"never closed\n3,fine\n4,well\n')
    batch = read_all(path)
    assert batch.kept["id"].to_pylist() == ["1", "3", "4"]
    assert batch.refused["detail"].to_pylist() == ["a quote is opened and never closed"]
    assert batch.refused["row_no"].to_pylist() == [1]


def test_a_record_above_the_limit_costs_one_row(tmp_path, read_all, monkeypatch):
    monkeypatch.setattr(records, "MAX_RECORD_CHARS", 1000)
    long_line = "5," + "x" * 5000
    path = put(tmp_path / "a.csv", 'id,text\n1,"open ' + "\n2,fine" * 300 + '\n3,"closed"\n' + long_line + "\n6,last\n")
    batch = read_all(path, rows_per_shard=50)
    assert batch.kept["id"].to_pylist() == ["2"] * 1 + ["3", "6"]
    assert set(batch.refused["reason"].to_pylist()) == {"row_malformed", "id_duplicate"}
    assert batch.refused.num_rows == 2 + 299


def test_a_carriage_return_inside_a_field_costs_one_row(tmp_path, read_all):
    batch = read_all(put(tmp_path / "a.csv", "id,text\n1,bro\rken\n2,fine\n"))
    assert batch.kept["id"].to_pylist() == ["2"]
    assert batch.refused["detail"].to_pylist() == ["a carriage return outside quotes"]


def test_bytes_that_are_no_utf8_cost_one_row(tmp_path, read_all):
    batch = read_all(put(tmp_path / "a.csv", b"id,text\n1,caf\xe9\n2,fine\n"))
    assert batch.kept["id"].to_pylist() == ["2"]
    [row] = batch.refused.to_pylist()
    assert (row["id"], row["reason"], row["text_len"]) == ("1", "text_encoding", 4)
    assert row["text_sha256"] == hashlib.sha256(b"caf\xe9").hexdigest()


@pytest.mark.parametrize("broken", ["text", "product"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_byte_that_is_no_utf8_leaves_a_kept_column_of_several_batches_a_string(tmp_path, read_all, name, broken):
    """A broken text is refused and a broken product mended, and the rows read after it are of the same type."""
    rows = [{"id": str(i), "text": f"good {i}", "product": f"lamp {i}"} for i in range(2100)]
    rows[7][broken] = "caf\u00e9"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if name == "a.csv":
        lines = ["id,text,product", *(",".join(row.values()) for row in rows)]
    batch = read_all(put(tmp_path / name, "\n".join(lines).encode("latin-1")), keep_columns=("text", "product"))
    rows[7][broken] = "caf\ufffd"
    kept = [row for row in rows if "\ufffd" not in row["text"]]
    assert batch.kept.select(["id", "keep:text", "keep:product"]).to_pydict() == {
        "id": [row["id"] for row in kept],
        "keep:text": [row["text"] for row in kept],
        "keep:product": [row["product"] for row in kept],
    }
    refused = batch.refused.select(["row_no", "reason"]).to_pylist()
    assert refused == ([{"row_no": 7, "reason": "text_encoding"}] if broken == "text" else [])


def test_a_header_alone_has_no_rows_and_nothing_at_all_is_a_bad_file(tmp_path):
    assert look_at(put(tmp_path / "a.csv", "id,text\n")).num_rows == 0
    assert look_at(put(tmp_path / "b.csv", "\n\n")).reason == Reason.FILE_EMPTY
    assert look_at(put(tmp_path / "c.csv", "")).reason == Reason.FILE_EMPTY


def test_a_damaged_gzip_is_a_bad_file(tmp_path):
    whole = gzip.compress(b"text\n" + b"some words\n" * 1000)
    (tmp_path / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert look_at(tmp_path / "a.csv.gz").reason == Reason.FILE_CORRUPT
    (tmp_path / "a.csv.gz").write_bytes(whole[:3])
    assert look_at(tmp_path / "a.csv.gz").reason == Reason.FILE_CORRUPT


def test_a_repeated_header_name_keeps_positions_right(tmp_path, read_all):
    path = put(tmp_path / "a.csv", "x,x,text\n1,2,good\n")
    assert look_at(path).columns == {"x": "repeated", "x (column 1)": "string", "text": "string"}
    assert read_all(path, keep_columns=("x (column 1)",)).kept["keep:x (column 1)"].to_pylist() == ["2"]


FIELD = st.text(st.sampled_from(list("ab, \t;\"'\n\r한é")), max_size=6)


@settings(max_examples=examples(60))
@given(
    rows=st.lists(st.tuples(FIELD, FIELD), max_size=30),
    line_end=st.sampled_from(["\n", "\r\n"]),
    rows_per_shard=st.integers(1, 12),
    every=st.integers(1, 5),
    last_newline=st.booleans(),
    zipped=st.booleans(),
)
def test_shards_of_any_csv_give_exactly_the_rows_that_were_written(
    tmp_path, monkeypatch, rows, line_end, rows_per_shard, every, last_newline, zipped
):
    for module in (inputs, delimited, jsonl, sources):
        monkeypatch.setattr(module, "ROWS_PER_OFFSET", every)
    buffer = io.StringIO(newline="")
    # Unquoted, a carriage return at the end of a row would be part of the line end.
    quoting: Any = csv.QUOTE_ALL if any("\r" in field for row in rows for field in row) else csv.QUOTE_MINIMAL
    writer = csv.writer(buffer, lineterminator=line_end, quoting=quoting)
    writer.writerows([("no", "text", "note"), *((str(no), *row) for no, row in enumerate(rows))])
    content = buffer.getvalue() if last_newline else buffer.getvalue().removesuffix(line_end)
    path = put(tmp_path / ("a.csv.gz" if zipped else "a.csv"), content)
    file = look_at(path)
    assert file.num_rows == len(rows)
    assert len(file.row_offsets) == (0 if zipped else -(-len(rows) // every))
    found = [
        (number, *values)
        for shard in plan_shards([file], rows_per_shard)
        for raw in sources.read_rows(shard, ReadSpec(), ["text", "note"], [])
        for number, *values in zip(
            raw.row_nos.tolist(), *(raw.columns[n].to_pylist() for n in ("text", "note")), strict=True
        )
    ]
    assert found == [(no, *row) for no, row in enumerate(rows)]


JUNK = st.text(st.sampled_from(list('ab,"\n\r;')), max_size=80)


@settings(max_examples=examples(120))
@given(content=JUNK, rows_per_shard=st.integers(1, 5), header=st.booleans(), quoting=st.booleans())
def test_shards_of_a_broken_csv_see_what_one_whole_read_sees(
    tmp_path, monkeypatch, content, rows_per_shard, header, quoting
):
    for module in (inputs, delimited, jsonl, sources):
        monkeypatch.setattr(module, "ROWS_PER_OFFSET", 2)
    reader = TextFormat(header=header, quoting=quoting)
    path = put(tmp_path / "a.csv", content)
    file = look_at(path, reader)
    if isinstance(file, BadFile):
        return
    spec = ReadSpec(reader=reader, columns=Columns(text=next(iter(file.columns))))

    def rows_of(rows_per_shard: int) -> list[dict[str, object]]:
        batches = [read_shard(shard, spec) for shard in plan_shards([file], rows_per_shard)]
        return sorted(
            (row for batch in batches for table in (batch.kept, batch.refused) for row in table.to_pylist()),
            key=lambda row: row["row_no"],
        )

    whole = rows_of(1_000_000)
    assert [row["row_no"] for row in whole] == list(range(file.num_rows))
    assert rows_of(rows_per_shard) == whole


def test_a_shard_of_a_large_file_starts_at_its_offset(tmp_path):
    path = put(tmp_path / "a.csv", "text\n" + "".join(f'"row\n{no}"\n' for no in range(10_000)))
    file = look_at(path)
    assert file.num_rows == 10_000
    assert len(file.row_offsets) == 3
    assert path.read_bytes()[file.row_offsets[1] :].startswith(b'"row\n4096"\n')
    shard = plan_shards([file], 4096)[1]
    assert (shard.start_row, shard.start_byte, shard.file.row_offsets) == (4096, file.row_offsets[1], ())
    assert read_shard(shard, ReadSpec()).kept["text"][0].as_py() == "row 4096"


# --- JSON Lines ------------------------------------------------------------------------------------------------------


def test_jsonl_rows_types_and_absent_keys(tmp_path, read_all):
    rows = [
        {"id": 7, "text": "gut\u00e9 \ud83d\ude00", "label": 1, "tags": ["a", {"b": 1.5}]},
        {"id": "x", "text": "two\nlines", "label": 0.0, "extra": True},
        {"id": "y", "text": None},
        {"id": None, "text": "no id"},
    ]
    path = put(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n  \n")
    file = look_at(path)
    assert file.num_rows == 4
    assert file.columns == {
        "id": "int64|null|string",
        "text": "null|string",
        "label": "double|int64",
        "tags": "json",
        "extra": "bool",
    }
    batch = read_all(path, wants_label=True, keep_columns=("tags", "extra"))
    assert batch.kept.drop_columns(["script", "cut"]).to_pylist() == [
        {"row_no": 0, "id": "7", "text": "guté 😀", "label": "1", "keep:tags": '["a",{"b":1.5}]', "keep:extra": None},
        {"row_no": 1, "id": "x", "text": "two lines", "label": "0", "keep:tags": None, "keep:extra": "true"},
    ]
    assert batch.refused.select(["row_no", "id", "reason"]).to_pylist() == [
        {"row_no": 2, "id": "y", "reason": "text_null"},
        {"row_no": 3, "id": None, "reason": "id_null"},
    ]


def test_jsonl_lines_that_are_no_object_and_texts_that_are_no_string_are_refused(tmp_path, read_all):
    lines = ['{"text": "good"}', "not json", "[1]", '{"text": 5}', '{"text": "\\ud800"}', "[" * 5000, '{"text": "end"}']
    batch = read_all(put(tmp_path / "a.ndjson.gz", "\n".join(lines)), rows_per_shard=2)
    assert batch.kept["text"].to_pylist() == ["good", "end"]
    assert batch.refused["row_no"].to_pylist() == [1, 2, 3, 4, 5]
    assert batch.refused["reason"].to_pylist() == [*["row_malformed"] * 3, "text_encoding", "row_malformed"]
    details = batch.refused["detail"].to_pylist()
    assert details[0] == "not JSON: Expecting value at character 0"
    assert details[1] == "not a JSON object"
    assert details[2] == "expected a string under 'text', found int64"


def test_jsonl_shards_of_a_large_file_give_every_row_once(tmp_path, read_all):
    path = put(
        tmp_path / "a.jsonl", "".join(f'{{"id": {no}, "text": "row {no}"}}\n' + "\n" * (no % 3) for no in range(9000))
    )
    assert len(look_at(path).row_offsets) == 3
    kept = read_all(path, rows_per_shard=1000).kept
    assert kept["id"].to_pylist() == [str(no) for no in range(9000)]
    assert kept["row_no"].to_pylist() == list(range(9000))


@pytest.mark.parametrize(
    ("content", "reason"),
    [("[\n{}]", Reason.FILE_UNSUPPORTED), ("nothing\nhere\n", Reason.FILE_CORRUPT), ("\n \n", Reason.FILE_EMPTY)],
)
def test_json_that_is_no_json_lines_is_a_bad_file(tmp_path, content, reason):
    assert look_at(put(tmp_path / "a.json", content)).reason == reason


def test_digest_is_of_the_whole_content(tmp_path):
    path = put(tmp_path / "a.csv", "text\n" + "x" * 3_000_000 + "\n")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert look_at(path).digest == expected  # every byte passes by in the scan
    assert digest_file(look_at(path)) == expected


# --- aclImdb ---------------------------------------------------------------------------------------------------------


def test_acl_imdb_rows_are_sorted_by_number_with_id_label_and_stars(tmp_path, read_all):
    for name, text in [
        ("pos/10_7.txt", "ten"),
        ("pos/9_10.txt", "nine<br />!"),
        ("neg/0_1.txt", "zero"),
        ("unsup/1_0.txt", "no"),
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "pos" / "11_8.txt").write_bytes(b"bad \xff byte")
    batch = read_all(tmp_path, rows_per_shard=2, wants_label=True, keep_columns=("stars",))
    assert batch.kept.select(["id", "text", "label", "keep:stars"]).to_pylist() == [
        {"id": "neg/0_1", "text": "zero", "label": "neg", "keep:stars": 1},
        {"id": "pos/9_10", "text": "nine !", "label": "pos", "keep:stars": 10},
        {"id": "pos/10_7", "text": "ten", "label": "pos", "keep:stars": 7},
    ]
    assert batch.refused.select(["row_no", "id", "reason"]).to_pylist() == [
        {"row_no": 2, "id": "pos/11_8", "reason": "text_encoding"}
    ]


def test_acl_imdb_of_the_real_sample(real_data: Path, read_all):
    kept = read_all(real_data / "imdb/sample/aclImdb", wants_label=True, keep_columns=("stars",)).kept
    assert kept["id"].to_pylist() == ["neg/0_3", "neg/1_1", "neg/2_1", "pos/0_9", "pos/1_7", "pos/2_9"]
    assert kept["keep:stars"].to_pylist() == [3, 1, 1, 9, 7, 9]


def test_real_samples_in_their_original_formats(real_data: Path, read_all):
    reader = TextFormat(header=False, quoting=False)
    cola = read_all(real_data / "cola/sample/in_domain_train.head20.tsv", reader=reader, columns=Columns(text="3"))
    assert (cola.kept.num_rows, cola.refused.num_rows) == (20, 0)
    tweets = read_all(
        real_data / "airline_tweets/sample/Tweets.head20.csv",
        columns=Columns(id="tweet_id", label="airline_sentiment"),
        wants_label=True,
    )
    assert (tweets.kept.num_rows, tweets.refused.num_rows) == (20, 0)
    emotion = TextFormat(format="csv", header=False, delimiter=";")
    feelings = read_all(real_data / "emotion/sample/train.head20.txt", reader=emotion, columns=Columns(text="0"))
    assert (feelings.kept.num_rows, feelings.refused.num_rows) == (20, 0)


def test_inspecting_a_file_that_is_gone_is_no_data_fault(tmp_path):
    from bertray.errors import InfrastructureError

    for file_format in ("csv", "jsonl", "parquet"):
        entry = FileEntry(str(tmp_path / "gone"), "gone", file_format, 10, "0")
        with pytest.raises(InfrastructureError, match="cannot be read now"):
            inspect(entry, AUTO)
