"""Inputs that are no plain folder of reviews: the run's own output, earlier outputs, tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertray.config import TextFormat
from bertray.errors import ConfigError, DataRefused
from bertray.reviews import locations as places
from bertray.reviews.listing import list_inputs
from tests.reviews.test_listing import s3_bucket, touch  # noqa: F401 - one is a fixture

AUTO = TextFormat()


def names(paths: list[str], output: str | None = None) -> list[str]:
    return [Path(entry.path).name for entry in list_inputs(paths, AUTO, output=output)]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """in/ with two files, a link to it, and a home; the working folder is the root."""
    touch(tmp_path, "in/a.parquet", "in/day=1/b.parquet", "out/data/dt=1/part.parquet", "other/x.csv")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "out.link").symlink_to(tmp_path / "out")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("paths", "output"),
    [
        (["in"], "in"),
        (["in"], "in/scored"),
        (["in"], "in/.scored"),
        (["in/"], "./other/../in/scored"),
        (["link"], "in/scored"),
        (["in"], "link/scored"),
        (["~/in"], "in/scored"),
        (["in"], "~/in/scored"),
        (["file://ROOT/in"], "in/scored"),
        (["in"], "file://ROOT/in/scored"),
        (["other", "in"], "in/scored"),
        (["."], "scored"),
        (["in/*"], "in/scored"),
        (["in/**/*.parquet"], "in/scored"),
        (["in/*/*.parquet"], "in/scored"),
        (["in/day=?"], "in/day=1/scored"),
        (["i[n]"], "in/scored"),
        (["*"], "in/scored"),
        (["out/data"], "out"),
        (["out"], "out"),
        (["out.link/data"], "out"),
        (["out/data/**/*.parquet"], "out"),
        (["out/data/dt=1/part.parquet"], "out.link"),
        (["in/a.parquet", "out/data/dt=1/part.parquet"], "out"),
        (["in"], "."),
    ],
)
def test_an_input_and_an_output_of_which_one_holds_the_other_are_refused(root, paths, output):
    paths = [path.replace("ROOT", str(root)) for path in paths]
    with pytest.raises(ConfigError, match="input: expected an input apart from the output, found"):
        list_inputs(paths, AUTO, output=output.replace("ROOT", str(root)))


@pytest.mark.parametrize(
    ("paths", "output", "expected"),
    [
        (["in"], "in.scored", ["a.parquet", "b.parquet"]),  # a name that begins alike
        (["in/a.parquet"], "in/scored", ["a.parquet"]),
        (["in/*.parquet"], "in/scored", ["a.parquet"]),
        (["in/day=*"], "in/scored", ["b.parquet"]),
        (["in/day=*/*.parquet"], "in/scored", ["b.parquet"]),
        (["out/data"], "out2", ["part.parquet"]),  # committed rows of another output
        (["in"], "s3://in/scored", ["a.parquet", "b.parquet"]),
    ],
)
def test_an_input_beside_the_output_is_read(root, paths, output, expected):
    assert names(paths, output) == expected


def test_a_link_to_a_file_of_the_output_is_found_in_a_folder_and_a_glob(root):
    (root / "in" / "latest.parquet").symlink_to(root / "in" / "scored" / "part.parquet")
    touch(root, "in/scored/part.parquet")
    with pytest.raises(ConfigError, match=r"latest\.parquet in output=in/scored"):
        list_inputs(["in/*.parquet"], AUTO, output="in/scored")


def test_prefixes_of_a_bucket_are_compared_by_their_parts(s3_bucket):  # noqa: F811
    s3_bucket.create_bucket(Bucket="apart")
    for key in ("in/a.csv", "in/day=1/b.csv", "input/c.csv"):
        s3_bucket.put_object(Bucket="apart", Key=key, Body=b"text\nx\n")
    for paths, output in [
        (["s3://apart/in"], "s3://apart/in/scored"),
        (["s3://apart/in/"], "s3://apart/in/scored"),
        (["s3://apart/in"], "s3://apart//in"),
        (["s3://apart/in/day=1"], "s3://apart/in"),
        (["s3://apart/**/*.csv"], "s3://apart/scored"),
        (["s3://apart/in/*/*.csv"], "s3://apart/in/scored"),
        (["s3://apart/input", "s3://apart/in"], "s3://apart/in/scored"),
    ]:
        with pytest.raises(ConfigError, match="expected an input apart from the output"):
            list_inputs(paths, AUTO, output=output)
    assert names(["s3://apart/in"], "s3://apart/input") == ["a.csv", "b.csv"]
    assert names(["s3://apart/input"], "s3://apart/in") == ["c.csv"]
    assert names(["s3://apart/in/day=*/*.csv"], "s3://apart/in/scored") == ["b.csv"]


TABLES = {
    "a Delta Lake table": ["_delta_log/00000000000000000000.json", "part-0.parquet", "year=2026/part-1.parquet"],
    "an Apache Hudi table": [".hoodie/hoodie.properties", "part-0.parquet", "year=2026/part-1.parquet"],
    "an Apache Iceberg table": [
        "metadata/00001-12345678-1234-5678-1234-567812345678.metadata.json",
        "data/part-0.parquet",
        "data/year=2026/part-1.parquet",
    ],
}
INTO_TABLES = ["", "table", "table/", "*", "table/**/*.parquet", "**/part-1.parquet", "FILE", "FILE/..", "link.parquet"]


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("path", INTO_TABLES)
def test_a_table_is_refused_wherever_it_is_entered(tmp_path, kind, path):
    touch(tmp_path / "lake" / "table", *TABLES[kind])
    file = tmp_path / "lake" / "table" / TABLES[kind][-1]
    (tmp_path / "lake" / "link.parquet").symlink_to(file)
    named = path.replace("FILE", str(file.relative_to(tmp_path / "lake")))
    if named.endswith(".."):
        named = f"{Path(named).parent.parent}/"
    found = f"found {kind}: .*/lake/table\\."
    if kind == places.DELTA and named.rstrip("/") == "table":  # of a table that is named itself the log is read
        found = "found a log that cannot be read: .*/lake/table "
    with pytest.raises(DataRefused, match=found):
        list_inputs([f"{tmp_path}/lake/{named}"], AUTO)


@pytest.mark.parametrize(
    "name",
    [
        "v3.metadata.json",
        "v3.gz.metadata.json",
        "00001-01234567-89AB-CDEF-0123-456789ABCDEF.metadata.json",
        "1730000000-a_b.metadata.json",
        "version-hint.text",
        "snap-8123-1-0f3c.avro",
    ],
)
def test_an_iceberg_table_is_known_by_any_file_of_its_metadata(tmp_path, name):
    touch(tmp_path / "table", f"metadata/{name}", "data/part-0.parquet")
    for path in ("table", "table/data", "table/data/*.parquet"):
        with pytest.raises(DataRefused, match="found an Apache Iceberg table"):
            list_inputs([f"{tmp_path}/{path}"], AUTO)


@pytest.mark.parametrize("name", ["schema.metadata.json", "a.parquet", "snap-shot.parquet", "reviews.metadata.json"])
def test_a_folder_that_is_called_metadata_is_no_table(tmp_path, name):
    touch(tmp_path, f"metadata/{name}", "metadata/b.parquet")
    assert "b.parquet" in names([str(tmp_path)])


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_on_an_object_store_is_refused(s3_bucket, kind):  # noqa: F811
    lake = kind.split()[-2].lower()
    s3_bucket.create_bucket(Bucket=f"of-{lake}")
    for name in TABLES[kind]:
        s3_bucket.put_object(Bucket=f"of-{lake}", Key=f"lake/table/{name}", Body=b"x")
    for path in ("", "/table", "/*", "/table/**/*.parquet", f"/table/{TABLES[kind][-1]}"):
        logged = kind == places.DELTA and path == "/table"
        found = "found a log that cannot be read" if logged else f"found {kind}"
        with pytest.raises(DataRefused, match=f"{found}: s3://of-{lake}/lake/table"):
            list_inputs([f"s3://of-{lake}/lake{path}"], AUTO)


def test_files_beside_a_table_and_folders_of_like_names_are_read(tmp_path):
    touch(tmp_path, "lake/table/_delta_log/0.json", "lake/table/t.parquet", "lake/raw/a.parquet")
    touch(tmp_path, "plain/metadata/a.csv", "plain/control/b.csv", "plain/_delta_log.csv", "plain/data/c.csv")
    assert names([str(tmp_path / "lake" / "raw")]) == ["a.parquet"]
    assert names([f"{tmp_path}/lake/r*/*.parquet"]) == ["a.parquet"]
    assert names([str(tmp_path / "plain")]) == ["b.csv", "c.csv", "a.csv"]


def earlier_output(root: Path) -> Path:
    return touch(
        root,
        "control/run.json",
        "control/commits/00000001.json",
        "quarantine/dt=1/part-0.parquet",
        "reports/dt=1/report.json",
        "data/dt=1/part-1.parquet",
    )


def test_of_an_earlier_output_only_its_committed_rows_are_read(tmp_path):
    out = earlier_output(tmp_path / "base" / "scored")
    for path in ("base", "base/scored", "base/*", "base/scored/**/*.parquet"):
        with pytest.raises(ConfigError, match=r"found an output of bertray in .*: .*base/scored\.") as caught:
            list_inputs([str(tmp_path / path)], AUTO)
        assert f"{out}/data" in str(caught.value)
    for path in ("control", "control/commits", "quarantine", "quarantine/dt=1", "reports/*"):
        with pytest.raises(ConfigError, match="belongs to an output of bertray"):
            list_inputs([str(out / path)], AUTO)
    for path in ("data", "data/dt=1", "data/**/*.parquet", "data/dt=1/part-1.parquet"):
        assert names([str(out / path)], str(tmp_path / "other")) == ["part-1.parquet"]
    assert names([f"{tmp_path}/base/*/data/**/*.parquet"]) == ["part-1.parquet"]


def test_a_file_says_which_output_holds_it(tmp_path):
    out = earlier_output(tmp_path / "scored")
    assert places.output_that_holds(str(out / "control/commits/00000001.json")) == str(out)
    assert places.output_that_holds(str(out / "data/dt=1/part-1.parquet")) == str(out)
    assert places.output_that_holds(str(touch(tmp_path, "in/a.csv") / "in/a.csv")) is None
