"""Records found in bytes are those that the exact rules find, on files of every kind of disorder."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertray.config import TextFormat
from bertray.reviews.formats import delimited, dialects, text_records
from bertray.reviews.formats.byte_window import open_window
from bertray.reviews.rows import Dialect
from tests.properties import examples

PIECES = [
    '"',
    '""',
    ",",
    "\n",
    "\r\n",
    "\r",
    "a",
    "7",
    " ",
    "id",
    "ID",
    "text",
    "é",
    "\ufeff",
    "\\",
    ";",
    '"\n"',
    '",\n',
]
RECORDS = [
    "1,a\n",
    '2,"b, c"\n',
    '3,"d ""e"""\r\n',
    '4,"f\ng"\n',
    "id,text\n",
    "\n",
    "5\n",
    '6,"h\r\ni"\n',
    '7,"8\n9,k\n"\n',
]


class Seen:
    """A visitor that keeps the values of all columns."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, tuple[object, ...]]] = []

    def wanted(self, columns):
        return list(columns or ())

    def visit(self, rows) -> None:
        values = [column.to_pylist() for column in rows.columns.values()]
        values = [[v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in one] for one in values]
        self.rows += zip(rows.row_nos.tolist(), zip(*values, strict=True), strict=True)


def counted(path, dialect, positions, reader, *, exactly):
    seen = Seen()
    counter = delimited._Counter(dialect, reader.encoding, positions, seen)
    if exactly:
        counter.count_exactly(delimited._rows_and_headers(str(path), reader, dialect))
    else:
        with open_window(str(path), reader.encoding) as window:
            counter.count(window, has_header=reader.header)
    return counter.num_rows, counter.num_headers, counter.offsets, seen.rows


def both_ways(path, reader, dialect=None):
    decided = dialects.decide(str(path), reader, text_records.read_head(str(path)))
    if decided.first is None or decided.first.fields is None:
        return None
    dialect = dialect or decided.dialect
    names = delimited._column_names(decided.first.fields[: dialect.width], reader.header)
    positions = {name: at for at, name in enumerate(names)}
    exact = counted(path, dialect, positions, reader, exactly=True)
    assert counted(path, dialect, positions, reader, exactly=False) == exact
    return exact


def both(folder, content, reader):
    path = folder / "f.csv"
    path.write_bytes(content)
    both_ways(path, reader)


READERS = [
    TextFormat(),
    TextFormat(header=False),
    TextFormat(quoting=False),
    TextFormat(escape="\\"),
    TextFormat(delimiter=";"),
    TextFormat(encoding="cp1252"),
    TextFormat(skip_lines=1),
]


@pytest.mark.parametrize("reader", READERS, ids=str)
@settings(max_examples=examples(400))
@given(st.lists(st.sampled_from([*PIECES, *RECORDS]), max_size=40), st.lists(st.sampled_from(RECORDS), max_size=30))
@example(["id,text\n"], ['4,"f\ng"\n'] * 3)
@example([",text\n"], ["1,a\n", ",text\n", '" ",b\n'])
@example(['"a,b",text\n'], ["1,a\n", '"a,b",text\n'])
@example(["straße,text\n"], ["1,a\n", "STRASSE,TEXT\n"])
@example(["id,text\n"], ['1,"never closed\n', "2,b\n"])
def test_records_in_bytes_are_those_of_the_exact_rules(tmp_path_factory, reader, disorder, order):
    content = "".join([*order, *disorder, *order]).encode(reader.encoding, "replace")
    both(tmp_path_factory.mktemp("csv"), content, reader)
    both(tmp_path_factory.mktemp("csv"), "".join([*disorder, *order]).encode(reader.encoding, "replace"), reader)


@pytest.mark.parametrize("sizes", [(64, 256), (1024, 4096)])
def test_blocks_may_end_anywhere(tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(delimited, "_FIRST_BLOCK", sizes[0])
    monkeypatch.setattr(delimited, "_LARGEST_BLOCK", sizes[1])
    random = np.random.default_rng(0)
    pieces = np.array([*RECORDS, '8,"' + "long " * 100 + '"\n', '9,5" screen\n', 'x,"y\n'], object)
    for number in range(30):
        content = "id,text\n" + "".join(pieces[random.integers(len(pieces), size=200)])
        path = tmp_path / f"{number}.csv"
        path.write_bytes(content.encode())
        found = both_ways(path, TextFormat())
        assert found is not None
        assert found[0] > 100


def test_rows_far_into_a_file_have_their_offsets(tmp_path):
    lines = [
        f'{row},"text {row}, with ""quotes""\nand lines"\n' if row % 3 else f"{row},plain\n" for row in range(20_000)
    ]
    path = tmp_path / "f.csv"
    path.write_text("id,text\n" + "".join(lines))
    rows, _, offsets, _ = both_ways(path, TextFormat())
    assert rows == 20_000
    content = path.read_bytes()
    assert [content[at:].split(b",")[0] for at in offsets] == [b"0", b"4096", b"8192", b"12288", b"16384"]


def test_rows_inside_quotes_are_told_from_lines_of_a_text(tmp_path):
    """A stray quote around rows that are rows of their own costs one row, found in bytes as well."""
    rows = [f"{row},good film,pos\n" for row in range(100)]
    rows[50] = '50,"stray,pos\n'
    rows[60] = '60,quote",pos\n'
    path = tmp_path / "f.csv"
    path.write_text("id,text,label\n" + "".join(rows))
    found = both_ways(path, TextFormat())
    assert found is not None
    assert found[0] == 100


def test_dialect_with_a_delimiter_of_several_bytes_is_left_to_the_exact_rules(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text("id§text\n1§a\n2§b\n")
    found = both_ways(path, TextFormat(delimiter="§"))
    assert found is not None
    assert [row for _, row in found[3]] == [(b"1", b"a"), (b"2", b"b")]


def test_window_gives_blocks_and_lines_from_the_same_place(tmp_path):
    path = tmp_path / "f.csv"
    path.write_bytes(b"one\ntwo\nthree")
    with open_window(str(path), "utf-8") as window:
        assert window.block(5) == (b"one\nt", False)
        ends: dict[int, int] = {}
        assert [line.text for line in islice(window.lines(ends), 2)] == ["one\n", "two\n"]
        assert ends == {0: 4, 4: 8}
        window.advance(8)
        assert window.block(100) == (b"three", True)
        assert [(line.offset, line.text) for line in window.lines(ends)] == [(8, "three")]


def test_escapes_are_never_by_the_book():
    from bertray.reviews.formats.plain_csv import PlainCsv

    plain = PlainCsv(Dialect(escape="\\", width=2), "utf-8")
    found = plain.records(b"1,a\n2,b\\\n3,c\n", is_last=True)
    assert (found.starts_R.tolist(), found.stopped) == ([0], True)
