"""Rows of JSON Lines counted by a strict parser are those of the exact rules."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertray.config import TextFormat
from bertray.reviews.formats import jsonl, text_records
from tests.properties import examples

LINES = [
    '{"id": 1, "text": "a"}\n', '{"id": "b", "text": null, "n": 1.5}\r\n', '{"a": {"b": [1]}}{"id": 2}\n', "\n", " \n",
    '[{"id": 1}, {"id": 2}]\n', '{"id": 3},\n', "null\n", '{"id": NaN}\n', '{"id": "\\ud800"}\n', '{"id": 1e999}\n',
    '{"id": 123456789012345678901234567890}\n', '{"id": "} {"}\n', '{"id": 1} {"id": 2},{"id": 3}\n', '{"id": \n',
    '\ufeff{"id": true}\n', '{"id": "é"}\n', '{"id": 01}\n', '{"id": "\x01"}\n', '{"id": 1}\u2028\n',
    '{"id":1,"id":2}\n',
]  # fmt: skip


class Seen:
    def __init__(self) -> None:
        self.rows: list[tuple[int, object]] = []

    def wanted(self, columns):
        assert columns is None
        return ["id"]

    def visit(self, rows) -> None:
        self.rows += zip(rows.row_nos.tolist(), rows.columns["id"].to_pylist(), strict=True)


def counted(path, encoding, *, exactly):
    from bertray.reviews.formats.byte_window import open_window

    seen = Seen()
    counter = jsonl._Counter(encoding, seen)
    if exactly:
        counter.add_lines(text_records.open_lines(str(path), encoding))
    else:
        with open_window(str(path), encoding) as window:
            counter.count(window)
    counter.show()
    rows = [(no, v.encode() if isinstance(v, str) else v) for no, v in seen.rows]
    return counter.num_rows, counter.columns(), counter.offsets, rows


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
@settings(max_examples=examples(200))
@given(st.lists(st.sampled_from(LINES), max_size=12), st.sampled_from(["", '{"id": 9}', "\r", '{"id": ']))
@example(LINES, "")
def test_strict_parsing_finds_the_rows_of_the_exact_rules(tmp_path_factory, encoding, lines, last):
    path = tmp_path_factory.mktemp("json") / "f.jsonl"
    path.write_bytes(("".join(lines) + last).encode(encoding, "replace") + b'{"id": "\xff"}')
    assert counted(path, encoding, exactly=False) == counted(path, encoding, exactly=True)


def test_lines_longer_than_a_block_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_FIRST_BLOCK", 16)
    monkeypatch.setattr(jsonl, "_LARGEST_BLOCK", 64)
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps({"id": row, "text": "x" * (row % 200)}) + "\n" for row in range(9000)))
    found = counted(path, "utf-8", exactly=False)
    assert found == counted(path, "utf-8", exactly=True)
    assert (found[0], len(found[2]), found[1]) == (9000, 3, {"id": "int64", "text": "string"})


def test_keys_and_kinds_are_those_of_all_rows(tmp_path):
    from bertray.reviews.listing import list_inputs
    from tests.scanning import inspect

    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "a"}\n' * 5000 + '{"text": null, "late": 1}\n{"late": 1.5}\n')
    [entry] = list_inputs([str(path)], TextFormat())
    assert inspect(entry, TextFormat()).columns == {"text": "null|string", "late": "double|int64"}
