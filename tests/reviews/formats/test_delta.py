"""Delta tables: rows as the log says, with deletes, later columns and partitions; what cannot be read so is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import TextFormat
from bertray.errors import ConflictError, DataRefused, InfrastructureError
from bertray.io.store import open_store
from bertray.outputs.control_files import FileCount
from bertray.reviews.formats import delta
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import check_columns, plan_shards, read_shard
from bertray.reviews.rows import ReadSpec
from bertray.scoring.plan import replaced_in_tables
from tests.nightly import night_config, run_night, visible
from tests.scanning import scanned

deltalake = pytest.importorskip("deltalake", reason="the extra `delta` is not installed")
AUTO = TextFormat()


def rows_of(root: Path, *keep: str) -> list[tuple[object, ...]]:
    """(id, text, kept columns) of every live row, sorted."""
    spec = ReadSpec(keep_columns=keep)
    files = [scanned(entry, spec).file for entry in list_inputs([str(root)], AUTO)]
    check_columns(files, spec)
    kept = [row for shard in plan_shards(files, 100) for row in read_shard(shard, spec).kept.to_pylist()]
    return sorted((row["id"], row["text"], *(row[f"keep:{name}"] for name in keep)) for row in kept)


@pytest.fixture
def table(tmp_path) -> Path:
    """Five reviews of two days in two versions; the second brought a column, and one row was deleted since."""
    root = tmp_path / "lake" / "reviews"
    first = pa.table({"id": ["1", "2", "3"], "text": ["one", "two", "three"], "day": ["d1", "d1", "d2"]})
    deltalake.write_deltalake(str(root), first, partition_by=["day"])
    later = pa.table({"id": ["4", "5"], "text": ["four", "five"], "day": ["d2", "d2"], "stars": [4, 5]})
    deltalake.write_deltalake(str(root), later, mode="append", schema_mode="merge")
    deltalake.DeltaTable(str(root)).delete("id = '2'")
    return root


def test_deleted_rows_are_gone_later_columns_null_before_and_partitions_are_columns(table):
    assert rows_of(table, "stars", "day") == [
        ("1", "one", None, "d1"),
        ("3", "three", None, "d2"),
        ("4", "four", 4, "d2"),
        ("5", "five", 5, "d2"),
    ]


def test_a_column_that_no_version_has_is_missing(table):
    with pytest.raises(Exception, match="expected column 'starz'"):
        rows_of(table, "starz")


def test_only_the_folder_of_the_table_itself_is_read(table):
    for inside in (table / "day=d1", table.parent, table / "**" / "*.parquet"):
        with pytest.raises(DataRefused, match=f"found a Delta Lake table: {table}") as caught:
            list_inputs([str(inside)], AUTO)
        assert caught.value.remedy.startswith("Name the folder of the table itself")


def test_without_the_extra_a_table_is_refused_with_the_extras_name(table, monkeypatch):
    monkeypatch.setattr(delta, "is_installed", lambda: False)
    with pytest.raises(DataRefused, match=r"pip install 'bertray\[delta\]'"):
        list_inputs([str(table)], AUTO)


@pytest.mark.parametrize(
    ("features", "configuration", "said"),
    [
        (["columnMapping"], {"delta.columnMapping.mode": "name"}, "delta.columnMapping.mode=name"),
        (["someNewFeature"], {}, "someNewFeature"),
    ],
)
def test_a_table_whose_files_do_not_hold_its_rows_as_they_are_is_refused(table, features, configuration, said):
    class Altered:
        def protocol(self):
            return type("P", (), {"reader_features": features})()

        def metadata(self):
            return type("M", (), {"configuration": configuration})()

    with pytest.raises(DataRefused, match=f"found {said}"):
        delta._check_features(str(table), "input", Altered())


def with_feature(root: Path, feature: str, **column: object) -> Path:
    """The table with a reader feature, and a column where one is given, in its first version."""
    path = root / "_delta_log/00000000000000000000.json"
    actions = [json.loads(line) for line in path.read_text().splitlines()]
    for action in actions:
        if "protocol" in action:
            names = {"readerFeatures": [feature], "writerFeatures": [feature]}
            action["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **names}
        if "metaData" in action and column:
            schema = json.loads(action["metaData"]["schemaString"])
            schema["fields"].append({"name": "more", "nullable": True, "metadata": {}, **column})
            action["metaData"]["schemaString"] = json.dumps(schema)
    path.write_text("".join(json.dumps(action) + "\n" for action in actions))
    return root


def test_a_table_that_may_have_deletion_vectors_and_has_none_is_read(tmp_path):
    """deltalake states `variantType` beside `deletionVectors`, whatever the columns are."""
    rows, options = pa.table({"id": ["1"], "text": ["one"]}), {"delta.enableDeletionVectors": "true"}
    deltalake.write_deltalake(str(tmp_path / "t"), rows, configuration=options)
    assert "deletionVectors" in deltalake.DeltaTable(str(tmp_path / "t")).protocol().reader_features
    assert rows_of(tmp_path / "t") == [("1", "one")]


@pytest.mark.parametrize("kind", ["variant", {"type": "array", "elementType": "variant", "containsNull": True}])
def test_a_table_with_a_column_of_variants_is_refused(tmp_path, kind):
    for name, column in (("without", {}), ("with", {"type": kind})):
        deltalake.write_deltalake(str(tmp_path / name), pa.table({"id": ["1"], "text": ["one"]}))
        with_feature(tmp_path / name, "variantType", **column)
    assert rows_of(tmp_path / "without") == [("1", "one")]
    with pytest.raises(DataRefused, match="found variantType: "):
        list_inputs([str(tmp_path / "with")], AUTO)


def test_a_log_with_a_gap_says_which_versions_are_missing(table):
    (table / "_delta_log/00000000000000000001.json").unlink()
    with pytest.raises(DataRefused) as caught:
        list_inputs([str(table)], AUTO)
    assert str(caught.value) == (
        f"input: expected a Delta table, found a log that cannot be read: {table} (versions between 0 and 2 are "
        "missing). Restore their files in _delta_log, or write its rows as Parquet."
    )


def test_rows_deleted_by_a_vector_are_never_read(table):
    """A file with a vector has its whole number of rows: reading it would bring deleted rows back."""
    vector = {"storageType": "u", "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^", "offset": 4, "sizeInBytes": 40}
    change_adds(table, lambda add: add.update(deletionVector={**vector, "cardinality": 1}))
    with pytest.raises(DataRefused, match="deletion vectors"):
        list_inputs([str(table)], AUTO)


def test_a_log_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "t/_delta_log").mkdir(parents=True)
    (tmp_path / "t/_delta_log/00000000000000000000.json").write_text("{")
    (tmp_path / "t/a.parquet").write_bytes(b"x")
    with pytest.raises(DataRefused, match="found a log that cannot be read"):
        list_inputs([str(tmp_path / "t")], AUTO)


def test_scored_files_that_the_log_replaced_are_found(table):
    entries = list_inputs([str(table)], AUTO)
    count = {"format": "parquet", "size_bytes": 1, "modified": "1", "rows_in": 1, "rows_scored": 1}
    scored = [
        FileCount(path=path, relative_path="a", digest=None, rows_quarantined=0, **count)
        for path in (entries[0].path, f"{table}/day=d1/gone.parquet", "/elsewhere/x.parquet")
    ]
    assert replaced_in_tables(entries, scored) == [f"{table}/day=d1/gone.parquet"]
    assert replaced_in_tables([], scored) == []


def test_a_night_scores_what_the_log_added_and_refuses_a_table_that_was_rewritten(
    table, tmp_path, tiny_encoder, capsys
):
    out = str(tmp_path / "out")

    def night(slot: str, **keys: Any) -> int:
        return run_night(night_config(tiny_encoder, table, out, slot=slot, **keys))

    def ids() -> dict[str, list[str]]:
        return {slot: sorted(found) for slot, found in visible(open_store(out), "data").items()}

    assert night("a") == 0
    more = pa.table({"id": ["6"], "text": ["six"], "day": ["d3"], "stars": [1]})
    deltalake.write_deltalake(str(table), more, mode="append")
    assert night("b") == 0
    assert ids() == {"a": ["1", "3", "4", "5"], "b": ["6"]}
    deltalake.DeltaTable(str(table)).delete("id = '4'")
    capsys.readouterr()
    assert night("c") == ConflictError.exit_code
    assert "of a Delta table were replaced by its log" in capsys.readouterr().err
    assert ids() == {"a": ["1", "3", "4", "5"], "b": ["6"]}
    assert night("a", replace=True) == 0  # all of the rows that were written again stood there
    assert ids() == {"a": ["1", "3", "5"], "b": ["6"]}
    more = pa.table({"id": ["7"], "text": ["seven"], "day": ["d3"], "stars": [2]})
    deltalake.write_deltalake(str(table), more, mode="append")
    deltalake.DeltaTable(str(table)).optimize.compact()  # 6, of slot b, and 7 are in one file now
    capsys.readouterr()
    assert night("a", replace=True) == ConflictError.exit_code
    assert "in slots a, b" in capsys.readouterr().err
    assert ids() == {"a": ["1", "3", "5"], "b": ["6"]}


def test_partition_values_are_text_as_the_log_writes_them(tmp_path):
    """Keys of every type; the second row has none: Delta takes an empty text for null, too."""
    root = tmp_path / "typed"
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    keys = {
        "whole": pa.array([7, None], pa.int64()),
        "yes": pa.array([True, None]),
        "day": pa.array([date(2026, 1, 2), None]),
        "at": pa.array([moment, None], pa.timestamp("us", "UTC")),
        "price": pa.array([Decimal("1.50"), None]),
        "name": pa.array(["a b:c%/é=?#", ""]),
    }
    rows = pa.table({"id": ["1", "2"], "text": ["one", "two"], **keys})
    deltalake.write_deltalake(str(root), rows, partition_by=[*keys])
    assert rows_of(root, *keys) == [
        ("1", "one", "7", "true", "2026-01-02", "2026-01-02 03:04:05+00:00", "1.50", "a b:c%/é=?#"),
        ("2", "two", *[None] * 6),
    ]


def test_a_table_is_read_from_its_checkpoint_when_older_entries_are_gone(table):
    expected = rows_of(table, "stars", "day")
    deltalake.DeltaTable(str(table)).create_checkpoint()
    for entry in (table / "_delta_log").glob("*.json"):
        entry.unlink()
    assert rows_of(table, "stars", "day") == expected


def change_adds(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every added file of the newest entry of a log."""
    entry = sorted((root / "_delta_log").glob("*.json"))[-1]
    actions = [json.loads(line) for line in entry.read_text().splitlines()]
    for action in actions:
        if "add" in action:
            change(action["add"])
    entry.write_text("".join(json.dumps(action) + "\n" for action in actions))


@pytest.mark.parametrize("elsewhere", ["s3://other/t/", "file:///other/t/", "/other/t/"])
def test_a_shallow_clone_is_refused(table, elsewhere):
    """Its log names files of the table that it was cloned from by their whole address."""
    change_adds(table, lambda add: add.update(path=elsewhere + add["path"]))
    with pytest.raises(DataRefused, match=r"outside of its folder \(a shallow clone\)"):
        list_inputs([str(table)], AUTO)


def test_files_that_were_vacuumed_too_early_are_refused_not_tried_again(table):
    lost = next(table.glob("day=d2/*.parquet"))
    lost.unlink()
    with pytest.raises(DataRefused, match=r"found \d of \d gone, such as .*day=d2") as caught:
        list_inputs([str(table)], AUTO)
    assert "FSCK REPAIR TABLE" in caught.value.remedy


def test_a_store_that_does_not_answer_is_no_broken_log(monkeypatch):
    """The library raises OSError without a number, with colours in its message."""
    options = {"aws_endpoint": "http://127.0.0.1:9", "allow_http": "true", "max_retries": "0"}
    options |= {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_region": "r"}
    monkeypatch.setattr(delta, "table_options", lambda _root: options)
    with pytest.raises(
        InfrastructureError, match=r"^s3://lake/t: the log of the table cannot be read now \("
    ) as caught:
        delta.live_files("s3://lake/t", "input")
    assert "\x1b" not in str(caught.value)


def test_times_of_spark_are_in_utc_as_the_log_says(tmp_path, tiny_encoder):
    """Spark stores moments as INT96, without a zone; other writers of the same table with it."""
    root, out = tmp_path / "moments", tmp_path / "out"
    moments = [datetime(2026, 1, 2, hour, tzinfo=UTC) for hour in (1, 2)]
    rows = [pa.table({"id": [str(moment.hour)], "text": ["word"], "at": [moment]}) for moment in moments]
    for row in rows:
        deltalake.write_deltalake(str(root), row, mode="append")

    def as_spark_does(add: dict[str, Any]) -> None:
        pq.write_table(rows[1], root / add["path"], use_deprecated_int96_timestamps=True)
        add["size"] = (root / add["path"]).stat().st_size

    change_adds(root, as_spark_does)
    assert run_night(night_config(tiny_encoder, root, str(out), slot="a", keep_columns=["at"])) == 0
    scored = pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("data/a/run=1/*.parquet")))
    assert scored["at"].type == pa.timestamp("us", "UTC")
    assert dict(zip(scored["id"].to_pylist(), scored["at"].to_pylist(), strict=True)) == {
        "1": moments[0],
        "2": moments[1],
    }
