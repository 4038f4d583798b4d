"""The front door: column checks with their messages, shard plans, duplicate ids, and whole reads of real data."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import Columns, TextFormat
from bertray.errors import ConfigError, DataRefused
from bertray.reviews import reader as sources
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import (
    check_columns,
    column_fault,
    kept_schema,
    label_is_readable,
    plan_shards,
    read_shard,
    shard_of,
    work_units,
)
from bertray.reviews.rows import FileEntry, InputFile, Period, ReadSpec
from bertray.schema import Reason, embedded_schema, scored_schema
from tests.scanning import inspect, scanned

AUTO = TextFormat()


def inspected(entry: FileEntry) -> InputFile:
    file = inspect(entry, AUTO)
    assert isinstance(file, InputFile), file
    return file


def written(path: Path, **columns: pa.Array | list[object]) -> InputFile:
    pq.write_table(pa.table(columns), path)
    [entry] = list_inputs([str(path)], AUTO)
    file = inspect(entry, AUTO)
    assert isinstance(file, InputFile)
    return file


def test_a_missing_column_names_file_columns_guess_and_key(tmp_path):
    file = written(tmp_path / "a.parquet", id=["1"], txt=["t"], label=[1])
    with pytest.raises(ConfigError) as caught:
        check_columns([file], ReadSpec())
    assert str(caught.value) == (
        f"{tmp_path}/a.parquet: expected column 'text' (string), found columns 'id', 'txt', 'label'. "
        "Did you mean 'txt'? Set `columns.text` to the column that holds it."
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ReadSpec(columns=Columns(text="stars")), r"column 'stars' to be string, found int64.*`columns.text`"),
        (ReadSpec(columns=Columns(text="tags")), r"column 'tags' to be string, found list<"),
        (ReadSpec(columns=Columns(text_pair="aspekt")), r"expected column 'aspekt'.*`columns.text_pair`"),
        (ReadSpec(columns=Columns(id="review_id")), r"expected column 'review_id'.*`columns.id`"),
        (ReadSpec(columns=Columns(id="score")), r"'score' to be string, integer or UUID, found double"),
        (ReadSpec(wants_label=True), r"expected column 'label'.*`columns.label`"),
        (
            ReadSpec(columns=Columns(label="tags"), wants_label=True),
            r"'tags' to be string, number or boolean, found list<",
        ),
        (
            ReadSpec(keep_columns=("stars", "date")),
            r"expected column 'date'.*`keep_columns`, `report.slices`, `drift.by` or `data.group`.\.$",
        ),
    ],
)
def test_wrong_columns_are_config_errors_before_anything_is_read(tmp_path, spec, message):
    file = written(tmp_path / "a.parquet", text=["t"], stars=[5], tags=[["x"]], score=[0.5])
    with pytest.raises(ConfigError, match=message):
        check_columns([file], spec)


def test_missing_columns_of_a_csv_hint_at_header_and_delimiter(tmp_path):
    (tmp_path / "a.csv").write_text("good film;pos\nbad film;neg\n")
    [entry] = list_inputs([str(tmp_path)], AUTO)
    with pytest.raises(ConfigError, match=r"`reader.header=false`.*is `reader.delimiter` right\?$"):
        check_columns([inspected(entry)], ReadSpec())


def test_a_file_that_does_not_fit_can_be_taken_as_a_bad_file(tmp_path):
    file = written(tmp_path / "a.parquet", id=["1"], body=["t"])
    fault = column_fault(file, ReadSpec())
    assert fault is not None
    assert (fault.reason, fault.num_rows, fault.path) == (Reason.SCHEMA_MISSING_COLUMN, 1, file.path)
    assert column_fault(file, ReadSpec(columns=Columns(text="body"))) is None
    wrong = written(tmp_path / "b.parquet", id=[1.5], text=["t"])
    assert column_fault(wrong, ReadSpec()).reason == Reason.SCHEMA_ID_TYPE


def test_absent_ids_are_made_of_relative_path_and_row(tmp_path, read_all):
    (tmp_path / "sub").mkdir()
    written(tmp_path / "sub" / "a.parquet", text=["x", "y"])
    assert read_all(tmp_path, rows_per_shard=1).kept["id"].to_pylist() == ["sub/a.parquet:0", "sub/a.parquet:1"]


def test_types_of_an_empty_file_do_not_matter(tmp_path):
    file = written(tmp_path / "a.parquet", id=pa.array([], pa.null()), text=pa.array([], pa.int64()))
    check_columns([file], ReadSpec())


def test_kept_columns_have_one_type_over_all_files(tmp_path):
    one = written(tmp_path / "a.parquet", text=["t"], stars=[5], day=pa.array(["x"]).dictionary_encode())
    two = written(tmp_path / "b.parquet", text=["t"], stars=[5.0], day=["x"])
    spec = ReadSpec(keep_columns=("day", "stars"))
    assert kept_schema([one], spec) == pa.schema([("day", pa.string()), ("stars", pa.int64())])
    assert kept_schema([one, two], ReadSpec(keep_columns=("day",))) == pa.schema([("day", pa.string())])
    with pytest.raises(
        ConfigError, match=r"b.parquet: expected column 'stars' to be int64, as in .*a.parquet, found double"
    ):
        check_columns([one, two], spec)


def test_a_shard_without_kept_rows_has_the_same_schema(tmp_path):
    file = written(tmp_path / "a.parquet", id=["1", "2"], text=["t", ""], label=[1, 0], stars=[5, 1])
    spec = ReadSpec(wants_label=True, keep_columns=("stars",))
    full, empty = (read_shard(shard, spec).kept for shard in plan_shards([file], 1))
    assert (full.num_rows, empty.num_rows) == (1, 0)
    assert full.schema == empty.schema


def test_shards_cover_every_row_once_and_carry_their_duplicates(tmp_path):
    files = [written(tmp_path / f"{n}.parquet", text=["t"] * n) for n in (1, 5, 7)]
    shards = plan_shards(files, 3, {1: (2, 3, 4), 2: (0,)})
    assert [(s.file_no, s.lo, s.hi, s.duplicates) for s in shards] == [
        (0, 0, 1, ()),
        (1, 0, 3, (2,)),
        (1, 3, 5, (3, 4)),
        (2, 0, 3, (0,)),
        (2, 3, 6, ()),
        (2, 6, 7, ()),
    ]


def test_small_files_are_put_together_and_large_ones_stay_in_shards(tmp_path, monkeypatch):
    files = [written(tmp_path / f"{n}.parquet", text=["t"] * n) for n in (1, 5, 7)]

    def items(files: list[InputFile], rows_per_shard: int) -> list[list[tuple[int, int, int]]]:
        shards = plan_shards(files, rows_per_shard)
        return [[(s.file_no, s.lo, s.hi) for s in unit] for unit in work_units(shards, rows_per_shard)]

    assert items(files, 3) == [[(0, 0, 1)], [(1, 0, 3)], [(1, 3, 5)], [(2, 0, 3)], [(2, 3, 6)], [(2, 6, 7)]]
    assert items(files, 8) == [[(0, 0, 1), (1, 0, 5)], [(2, 0, 7)]]
    assert items(files, 13) == [[(0, 0, 1), (1, 0, 5), (2, 0, 7)]]
    # The last shard of a file may go with the next file, but never with another of its own.
    assert items([files[1], files[0]], 4) == [[(0, 0, 4)], [(0, 4, 5), (1, 0, 1)]]
    monkeypatch.setattr(sources, "MAX_FILES_TOGETHER", 2)
    assert items(files, 13) == [[(0, 0, 1), (1, 0, 5)], [(2, 0, 7)]]
    assert items([], 3) == []


def test_shards_and_specs_are_small_when_pickled(tmp_path):
    file = written(tmp_path / "a.parquet", text=["t"])
    large = InputFile(**{**vars(file), "format": "csv", "num_rows": 40_960_000, "row_offsets": tuple(range(10_000))})
    shards = plan_shards([large], 4096)
    assert max(len(pickle.dumps(shard)) for shard in shards[:3] + shards[-3:]) < 1000
    assert len(pickle.dumps(ReadSpec())) < 2000
    assert pickle.loads(pickle.dumps(ReadSpec(keep_columns=("a",)))) == ReadSpec(keep_columns=("a",))


def repeated(path: Path, **spec) -> tuple[int, ...]:
    [entry] = list_inputs([str(path)], AUTO)
    return scanned(entry, ReadSpec(**spec)).repeated_ids


def test_duplicate_ids_are_found_over_the_whole_file(tmp_path, read_all):
    ids = ["a", "b", None, "a", "", "c", "", None, "b", "a"]
    written(tmp_path / "a.parquet", id=ids, text=[f"t{i}" for i in range(10)])
    assert repeated(tmp_path / "a.parquet") == (3, 8, 9)
    assert repeated(tmp_path / "a.parquet", unique_ids=False) == ()
    batch = read_all(tmp_path / "a.parquet", rows_per_shard=2)
    assert batch.kept["id"].to_pylist() == ["a", "b", "c"]
    assert batch.refused["reason"].to_pylist().count("id_duplicate") == 3
    assert read_all(tmp_path / "a.parquet", unique_ids=False).kept["id"].to_pylist() == ["a", "b", "a", "c", "b", "a"]


def test_duplicate_integer_ids_are_found_in_csv_and_parquet(tmp_path):
    written(tmp_path / "a.parquet", id=[1, 2, 1], text=["t"] * 3)
    assert repeated(tmp_path / "a.parquet") == (2,)
    (tmp_path / "b.csv").write_text("id,text\n1,x\n2,y\n1,z\n")
    assert repeated(tmp_path / "b.csv") == (2,)


def test_reading_needs_neither_ray_nor_torch_nor_transformers():
    program = (
        "import sys, bertray.reviews.reader, bertray.reviews.split, bertray.autoconfig;"
        "print(sorted({'ray', 'torch', 'transformers', 'datasets', 'ftfy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_daily_files_of_naver_add_up_per_file(real_data: Path):
    entries = list_inputs([str(real_data / "naver_movies/incoming")], AUTO)
    files = [inspected(entry) for entry in entries]
    spec = ReadSpec(wants_label=True)
    check_columns(files, spec)
    batches = [read_shard(shard, spec) for shard in plan_shards(files, 4096)]
    assert (len(files), sum(batch.rows_in for batch in batches)) == (27, 23_894)
    assert sum(batch.kept.num_rows for batch in batches) == 23_893
    [refused] = [row for batch in batches for row in batch.refused.to_pylist()]
    assert (refused["reason"], refused["text_len"]) == ("text_empty", 0)


def test_imdb_is_read_and_cleaned_at_thousands_of_rows_a_second(real_data: Path):
    [entry] = list_inputs([str(real_data / "imdb/train.parquet")], AUTO)
    shard = plan_shards([inspected(entry)], 5000)[0]
    start = time.process_time()
    batch = read_shard(shard, ReadSpec(wants_label=True, keep_columns=("stars",)))
    seconds = time.process_time() - start
    assert batch.kept.num_rows == 5000
    assert 5000 / seconds > 1500  # about 10,000 on an idle core


def test_a_label_column_is_readable_when_its_type_can_be_a_label(tmp_path):
    columns = {"label": [["x"]], "part": [{"a": 1}], "stars": [5], "day": ["x"], "text": ["t"]}
    file = written(tmp_path / "a.parquet", **columns)
    readable = [name for name in (*columns, "absent") if label_is_readable(file, Columns(label=name))]
    assert readable == ["stars", "day", "text"]


def test_an_all_null_kept_column_takes_the_type_of_the_other_files(tmp_path):
    nulls = pa.array([None], pa.null())
    empty = written(tmp_path / "a.parquet", text=["t"], note=nulls, stars=nulls, tags=nulls)
    other = written(tmp_path / "b.parquet", text=["t"], note=["n"], stars=[5], tags=[["x"]])
    third = written(tmp_path / "c.parquet", text=["t"], note=[7], stars=nulls, tags=nulls)
    spec = ReadSpec(keep_columns=("note", "stars", "tags"))
    expected = pa.schema(
        [("note", pa.string()), ("stars", pa.int64()), ("tags", pa.list_(pa.field("element", pa.string())))]
    )
    for files in ([empty, other], [other, empty]):
        check_columns(files, spec)
        schema = kept_schema(files, spec)
        assert schema == expected
        kept = read_shard(plan_shards([empty], 9)[0], spec).kept
        table = pa.table([kept[f"keep:{name}"] for name in spec.keep_columns], schema=schema)
        assert table.schema == expected
        assert table.to_pylist() == [{"note": None, "stars": None, "tags": None}]
    with pytest.raises(
        ConfigError, match=r"c.parquet: expected column 'note' to be string, as in .*b.parquet, found int64"
    ):
        kept_schema([empty, other, third], spec)


def test_kept_columns_that_would_get_one_name_are_a_config_error():
    kept = pa.schema([("label", pa.string()), ("stars", pa.int64()), ("input_label", pa.string())])
    with pytest.raises(ConfigError, match="'label' and 'input_label' would both be written as 'input_label'"):
        scored_schema(["neg", "pos"], kept)
    assert scored_schema(["neg", "pos"], pa.schema(list(kept)[:2])).names[-2:] == ["input_label", "stars"]


def test_a_kept_column_that_differs_from_ours_by_case_alone_gets_a_name_of_its_own():
    kept = pa.schema([(name, pa.string()) for name in ("Score", "LABEL", "Prob_Neg", "Id", "Stars")])
    names = scored_schema(["neg", "pos"], kept).names
    assert names[-5:] == ["input_Score", "input_LABEL", "input_Prob_Neg", "input_Id", "Stars"]
    assert len({name.casefold() for name in names}) == len(names)
    assert embedded_schema([pa.list_(pa.float32())], pa.schema([("Embedding", pa.string())])).names[-1] == (
        "input_Embedding"
    )


@pytest.mark.parametrize("pair", [("Score", "score"), ("stars", "Stars"), ("Label", "input_LABEL")])
def test_kept_columns_that_differ_by_case_alone_are_a_config_error(pair):
    with pytest.raises(ConfigError, match="differ by case alone"):
        scored_schema(["neg", "pos"], pa.schema([(name, pa.string()) for name in pair]))


@pytest.mark.parametrize("kind", ["string", "date", "timestamp"])
def test_a_period_holds_rows_before_a_moment_or_from_it_on(tmp_path, kind):
    days = ["2026-10-30", "2026-11-01", None, "2026-11-02", "2026-10-31"]
    dates = pa.array([None if day is None else date.fromisoformat(day) for day in days])
    times = {"string": pa.array(days), "date": dates, "timestamp": dates.cast(pa.timestamp("us"))}[kind]
    texts = ["a", "b", "c", " ", "e"]  # the fourth is refused, and is of its period too
    file = written(tmp_path / "a.parquet", id=list("01234"), text=texts, label=[0, 1, 0, 1, 1], when=times)
    found = {}
    for after in (False, True):
        spec = ReadSpec(wants_label=True, period=Period("when", "2026-11-01", after=after))
        check_columns([file], spec)
        batch = read_shard(shard_of(file, 0, 5), spec)
        found[after] = (batch.kept["row_no"].to_pylist(), batch.refused["row_no"].to_pylist())
        [entry] = list_inputs([str(tmp_path / "a.parquet")], AUTO)
        scan = scanned(entry, spec)
        assert batch.rows_in == scan.of(spec.period).rows == sum(map(len, found[after]))
        assert scan.of(spec.period).labels == ({"0": 2, "1": 1} if not after else {"1": 2})
        assert scan.without_time == 1
    assert found == {False: ([0, 2, 4], []), True: ([1], [3])}


@pytest.mark.parametrize("written_as", ["2026-11-01T{}:00:00Z", "2026-11-01 {}:00:00"])
@pytest.mark.parametrize("moment", ["2026-11-01T12:00:00", "2026-11-01 12", "2026-11-01T12:00"])
def test_a_moment_of_the_day_is_the_same_with_t_or_blank(written_as, moment):
    times = pa.array([written_as.format(hour) for hour in ("09", "11", "12", "18")])
    assert Period("when", moment, after=True).mask(times).to_pylist() == [False, False, True, True]
    stamps = pa.array([datetime(2026, 11, 1, hour) for hour in (9, 11, 12, 18)])
    assert Period("when", moment, after=True).mask(stamps).to_pylist() == [False, False, True, True]


def test_times_of_another_form_are_refused():
    with pytest.raises(DataRefused, match=r"expected 'when' to hold times in ISO form.*found '24.12.2014'"):
        Period("when", "2015-02-23", after=True).mask(pa.array(["2015-01-01", "24.12.2014"]))


def test_a_period_needs_a_column_of_times(tmp_path):
    file = written(tmp_path / "a.parquet", id=["0"], text=["a"], stars=[3])
    with pytest.raises(ConfigError, match=r"column 'stars' to be string, date or timestamp, found int64.*`data.time`"):
        check_columns([file], ReadSpec(period=Period("stars", "2026", after=False)))
