"""Which files the named paths mean."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.exceptions import PermissionDeniedError

from bertray.config import TextFormat
from bertray.errors import ConfigError, DataRefused
from bertray.io.failures import storage_errors
from bertray.reviews.file_access import bucket_of, check_uri
from bertray.reviews.listing import list_inputs, sidecar_remedy
from bertray.reviews.rows import BadFile
from tests.scanning import inspect

AUTO = TextFormat()


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def relative(path: Path | str, reader: TextFormat = AUTO) -> list[str]:
    return [entry.relative_path for entry in list_inputs([str(path)], reader)]


def test_folder_gives_files_of_known_formats_at_any_depth_in_order(tmp_path):
    touch(tmp_path, "b.parquet", "a/c.csv.gz", "a/D.PARQUET", "e.jsonl", "f.tsv", "readme.md", "notes.txt")
    assert relative(tmp_path) == ["a/D.PARQUET", "a/c.csv.gz", "b.parquet", "e.jsonl", "f.tsv"]
    assert [entry.format for entry in list_inputs([str(tmp_path)], AUTO)] == [
        "parquet",
        "csv",
        "parquet",
        "jsonl",
        "csv",
    ]


def test_hidden_and_underscore_names_are_ignored_below_the_root_only(tmp_path):
    root = touch(tmp_path / "_root", "a.parquet", ".b.parquet", "_SUCCESS", "_tmp/c.parquet", ".git/d.parquet")
    assert relative(root) == ["a.parquet"]
    assert relative(f"{root}/_tmp/*.parquet") == ["c.parquet"]  # named by the user
    assert relative(f"{root}/*/*.parquet") == []  # matched by a star


def test_an_entry_says_where_how_large_and_when(tmp_path):
    touch(tmp_path, "a.parquet")
    os.utime(tmp_path / "a.parquet", ns=(5, 1_700_000_000_000_000_001))
    [entry] = list_inputs([str(tmp_path)], AUTO)
    assert entry.path == str(tmp_path / "a.parquet")
    assert (entry.size_bytes, entry.modified) == (1, "1700000000000000001")
    assert list_inputs([f"file://{tmp_path}/a.parquet"], AUTO) == [entry]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet"]),
        ("**/*.parquet", ["a.parquet", "dt=1/b.parquet", "dt=1/x/c.parquet", "dt=2/d.parquet"]),
        ("dt=*/*.parquet", ["dt=1/b.parquet", "dt=2/d.parquet"]),
        ("dt=*", ["dt=1/b.parquet", "dt=1/x/c.parquet", "dt=2/d.parquet"]),  # a folder that matches gives its files
        ("dt=[!2]/?.parquet", ["dt=1/b.parquet"]),
        ("dt=1/**", ["b.parquet", "x/c.parquet"]),
        ("none*", []),
    ],
)
def test_globs_match_as_in_a_shell(tmp_path, pattern, expected):
    touch(tmp_path, "a.parquet", "dt=1/b.parquet", "dt=1/x/c.parquet", "dt=2/d.parquet")
    assert relative(f"{tmp_path}/{pattern}") == expected


def test_a_name_with_glob_characters_is_taken_literally_when_it_exists(tmp_path):
    touch(tmp_path, "a[1].parquet", "a1.parquet")
    assert relative(tmp_path / "a[1].parquet") == ["a[1].parquet"]


def test_a_file_named_twice_stands_once_and_equal_names_become_distinct(tmp_path):
    touch(tmp_path, "x/a.parquet", "y/a.parquet")
    paths = [str(tmp_path / "x"), str(tmp_path / "x/a.parquet"), str(tmp_path / "y")]
    assert [entry.relative_path for entry in list_inputs(paths, AUTO)] == ["x/a.parquet", "y/a.parquet"]


def test_a_missing_path_is_named_with_the_nearest_name(tmp_path):
    touch(tmp_path, "reviews.parquet")
    with pytest.raises(ConfigError, match=r"revews\.parquet: expected a file, folder or glob, found nothing") as caught:
        list_inputs([str(tmp_path / "revews.parquet")], AUTO)
    assert "Did you mean 'reviews.parquet'?" in str(caught.value)
    with pytest.raises(ConfigError, match="found nothing there"):
        list_inputs([str(tmp_path / "nowhere/*.parquet")], AUTO)


def test_an_empty_folder_gives_no_entry_and_unknown_formats_are_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    assert list_inputs([str(tmp_path / "empty")], AUTO) == []
    touch(tmp_path / "other", "a.xml", "b.review")
    with pytest.raises(ConfigError, match=r"found 2 of others \(.review, .xml\)"):
        list_inputs([str(tmp_path / "other")], AUTO)


def test_a_single_file_may_have_any_name_when_the_format_is_given(tmp_path):
    touch(tmp_path, "train.head20.txt")
    [entry] = list_inputs([str(tmp_path / "train.head20.txt")], TextFormat(format="csv"))
    assert entry.format == "csv"
    assert relative(tmp_path, TextFormat(format="tsv")) == ["train.head20.txt"]
    with pytest.raises(ConfigError, match=r"Set `reader\.format`"):
        list_inputs([str(tmp_path / "train.head20.txt")], AUTO)


def test_an_explicit_format_leaves_files_of_others_out(tmp_path):
    touch(tmp_path, "a.parquet", "b.csv")
    assert relative(tmp_path, TextFormat(format="parquet")) == ["a.parquet"]


@pytest.mark.parametrize(
    "path",
    [
        "http://example.com/a.parquet",
        "https://user:secret@example.com/a",
        "ftp://host/a",
        "hdfs://host/a",
        "s3://key:secret@bucket/a",
        "s3://bucket/a?endpoint_override=evil.example",
        "gs://bucket/a?x=1",
        "s3:///a",
    ],
)
def test_other_addresses_are_refused_without_repeating_secrets(path):
    with pytest.raises(ConfigError) as caught:
        list_inputs([path], AUTO)
    assert "secret" not in str(caught.value)
    assert "evil" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "account"),
    [
        ("reviews@lake.dfs.core.windows.net", "lake"),
        ("reviews@lake.blob.core.windows.net", "lake"),
        ("Sales_2026@onelake.dfs.fabric.microsoft.com", "onelake"),
        ("sales@westus-onelake.dfs.fabric.microsoft.com", "westus-onelake"),
    ],
)
def test_accounts_of_azure_may_stand_in_an_address(host, account):
    for scheme in ("abfss", "abfs"):
        check_uri(f"{scheme}://{host}/incoming/*.parquet")
        bucket, key = bucket_of(f"{scheme}://{host}/incoming/a.parquet")
        assert (bucket._store.config["account_name"], key) == (account, "incoming/a.parquet")


@pytest.mark.parametrize("kind", ["dfs", "blob"])
def test_an_azure_host_that_the_client_does_not_know_is_named_with_the_way_in(kind):
    with pytest.raises(ConfigError) as caught:
        check_uri(f"abfss://reviews@lake.{kind}.core.chinacloudapi.cn/in")
    assert str(caught.value) == (
        "abfss://: expected a host of Azure below core.windows.net or fabric.microsoft.com, found "
        "core.chinacloudapi.cn. Write az://reviews/folder, and set AZURE_STORAGE_ACCOUNT_NAME=lake and "
        "AZURE_STORAGE_ENDPOINT=https://lake.blob.core.chinacloudapi.cn."
    )
    with pytest.raises(ConfigError, match="expected no credentials in the address"):
        check_uri("abfss://user:password@lake.dfs.core.windows.net/in")


@pytest.mark.parametrize(("scheme", "said"), [("s3", "AWS_ENDPOINT_URL"), ("az", "AZURE_STORAGE_ENDPOINT")])
def test_options_in_an_address_are_refused_with_the_variable_of_its_provider(scheme, said):
    with pytest.raises(ConfigError, match=said):
        check_uri(f"{scheme}://bucket/in?endpoint=http://x")


def test_links_inside_the_root_count_once_and_links_out_of_it_are_refused(tmp_path):
    outside = touch(tmp_path / "outside", "far.parquet")
    root = touch(tmp_path / "root", "real.parquet")
    (root / "latest.parquet").symlink_to(root / "real.parquet")
    (root / "away.parquet").symlink_to(outside / "far.parquet")
    (root / "folder").symlink_to(outside)
    entries = list_inputs([str(root)], AUTO)
    assert [entry.relative_path for entry in entries] == ["away.parquet", "folder", "real.parquet"]
    results = [inspect(entry, AUTO) for entry in entries[:2]]
    assert [(type(result), result.reason) for result in results] == [(BadFile, "path_refused")] * 2


def test_a_link_counts_where_the_file_it_leads_to_is_not_matched_itself(tmp_path):
    touch(tmp_path, "sub/real.parquet")
    (tmp_path / "latest.parquet").symlink_to(tmp_path / "sub" / "real.parquet")
    assert relative(f"{tmp_path}/*.parquet") == ["latest.parquet"]
    assert relative(tmp_path) == ["sub/real.parquet"]


def test_a_file_whose_name_is_not_utf8_is_refused_alone_and_can_be_shown(tmp_path):
    for name in (b"caf\xe9.parquet", b"dossier\xe9/b.csv"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    acl_imdb(Path(os.fsdecode(os.fsencode(tmp_path) + b"/imdb\xff")))
    touch(tmp_path, "caf\u00e9.csv")
    entries = list_inputs([str(tmp_path)], AUTO)
    refused = {entry.relative_path: entry.refused for entry in entries if entry.refused}
    assert {r"caf\xe9.parquet", r"dossier\xe9/b.csv", r"imdb\xff/pos/0_9.txt"} <= set(refused)
    assert set(refused.values()) == {"its name is not UTF-8: rename it"}
    assert [entry.relative_path for entry in entries if not entry.refused] == ["caf\u00e9.csv"]
    for entry in entries:
        entry.path.encode("utf-8")
        if entry.refused:
            found = inspect(entry, AUTO)
            assert isinstance(found, BadFile)
            assert (found.reason, found.detail) == ("path_refused", "its name is not UTF-8: rename it")


def test_pipes_and_links_to_nothing_are_refused_and_never_opened(tmp_path):
    touch(tmp_path, "a.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "was-here.csv")
    (tmp_path / "pipe-link.csv").symlink_to(tmp_path / "pipe.csv")
    assert [(entry.relative_path, entry.refused) for entry in list_inputs([str(tmp_path)], AUTO)] == [
        ("a.csv", ""),
        ("gone.csv", "a link to a file that is not there"),
        ("pipe.csv", "a pipe, socket or device, not a file"),
    ]


def test_files_that_differ_by_format_or_compression_alone_are_named(tmp_path, caplog):
    touch(tmp_path, "a.csv", "a.csv.gz", "b.parquet", "c/b.parquet", "d.jsonl", "d.CSV", "e.csv")
    with caplog.at_level("WARNING"):
        list_inputs([str(tmp_path)], AUTO)
    [record] = caplog.records
    assert "2 files differ from another by format or compression alone, such as" in record.getMessage()


@pytest.mark.parametrize(
    ("names", "path", "remedy"),
    [
        (["a.parquet", "dataset_infos.json"], "dataset_infos.json", "set reader.format=parquet"),
        (["x/a.csv.gz", "x/schema.json"], "x/schema.json", "set reader.format=csv"),
        (["a.jsonl", "schema.json"], "schema.json", r"name them by a glob, **/*.jsonl"),
        (["a.json", "b.json"], "b.json", ""),  # nothing else is there: they are the reviews
        (["a.parquet", "b.json"], "a.parquet", ""),
    ],
)
def test_a_json_file_beside_others_is_taken_for_their_description(names, path, remedy):
    found = sidecar_remedy(path, names)
    assert remedy in found
    assert bool(found) == bool(remedy)


def test_a_root_that_is_itself_a_link_is_followed(tmp_path):
    touch(tmp_path / "real", "a.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert relative(tmp_path / "link") == ["a.parquet"]


def acl_imdb(root: Path) -> Path:
    return touch(root, "pos/0_9.txt", "neg/0_1.txt", "unsup/0_0.txt", "urls_pos.txt")


def test_acl_imdb_is_known_by_its_folders_and_unsup_is_never_read(tmp_path):
    acl_imdb(tmp_path / "aclImdb/train")
    for path in (tmp_path / "aclImdb/train", f"{tmp_path}/aclImdb/tr*"):
        assert [entry.relative_path.split("/")[-1] for entry in list_inputs([str(path)], AUTO)] == ["neg", "pos"]
    assert relative(tmp_path / "aclImdb") == ["train/neg", "train/pos"]


def test_acl_imdb_with_train_and_test_asks_which_one(tmp_path):
    acl_imdb(tmp_path / "train")
    acl_imdb(tmp_path / "test")
    with pytest.raises(ConfigError, match=r"one pair of folders pos/ and neg/, found 2 \(in test, train\)"):
        list_inputs([str(tmp_path)], AUTO)
    both = list_inputs([str(tmp_path / "train"), str(tmp_path / "test")], AUTO)
    assert [entry.relative_path for entry in both] == ["test/neg", "test/pos", "train/neg", "train/pos"]


def test_s3_files_folders_and_globs(s3_bucket, read_all):
    s3_bucket.put_object(Bucket="reviews", Key="in/a b%20#.parquet", Body=_parquet("s3 says hello"))
    s3_bucket.put_object(Bucket="reviews", Key="in/dt=1/b.csv", Body=b"text\nfrom csv\n")
    s3_bucket.put_object(Bucket="reviews", Key="in/_tmp/c.parquet", Body=b"x")
    assert relative("s3://reviews/in") == ["a b%20#.parquet", "dt=1/b.csv"]
    assert relative("s3://reviews/in/dt=*/*.csv") == ["dt=1/b.csv"]
    assert read_all("s3://reviews/in").kept["text"].to_pylist() == ["s3 says hello", "from csv"]
    assert read_all("s3://reviews/in/a b%20#.parquet").kept["text"].to_pylist() == ["s3 says hello"]
    with pytest.raises(ConfigError, match="found nothing there"):
        relative("s3://reviews/nowhere")


def _parquet(text: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [text]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def s3_bucket(monkeypatch):
    """An S3 server on loopback with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="reviews")
    yield client
    server.stop()


def test_every_provider_lists_and_reads_files_folders_and_globs(remote, read_all):
    root, server = remote
    table = _parquet("of Parquet")
    server.values |= {"in/a b%20#.parquet": table, "in/dt=1/é.csv": b"text\nof CSV\n", "in/_x/c.csv": b"text\nhidden\n"}
    server.values["in/dt=1/z.jsonl.gz"] = gzip.compress(b'{"text": "of JSON"}\n')
    assert relative(f"{root}/in/") == ["a b%20#.parquet", "dt=1/z.jsonl.gz", "dt=1/é.csv"]
    assert relative(f"{root}/in/dt=*/*.csv") == ["dt=1/é.csv"]
    assert relative(f"{root}/in/a b%20#.parquet") == ["a b%20#.parquet"]
    assert read_all(f"{root}/in").kept["text"].to_pylist() == ["of Parquet", "of JSON", "of CSV"]
    assert relative(f"{root}/in/*.txt") == []
    for missing in ("nowhere", "nowhere/*.csv", "in/dt=1/é.csv/*"):
        with pytest.raises(ConfigError, match="found nothing there"):
            relative(f"{root}/{missing}")


def test_a_remote_file_is_known_by_its_tag(remote):
    root, server = remote
    server.values["in/a.csv"] = b"text\none\n"
    listed = [list_inputs([f"{root}/{path}"], AUTO)[0].modified for path in ("in", "in/*.csv", "in/a.csv")]
    assert set(listed) == {hashlib.md5(b"text\none\n").hexdigest()}


def test_an_object_that_stands_for_an_empty_folder_is_no_file(remote):
    root, server = remote
    server.values |= {"in/": b"", "in/table.parquet/": b"", "in/table.parquet/p.parquet": _parquet("x")}
    server.values |= {"in/none.csv/": b"", "in/empty.csv": b""}
    assert relative(f"{root}/in") == ["empty.csv", "table.parquet/p.parquet"]


@pytest.mark.parametrize("key", ["in//a.csv", "in/./a.csv", "in/b/../a.csv", "in/a\x07.csv"])
def test_a_key_that_cannot_be_read_is_named(remote, key):
    root, server = remote
    server.values |= {key: b"text\nlost?\n", "in/ok/b.csv": b"text\nx\n"}
    with pytest.raises(DataRefused) as caught:
        relative(f"{root}/in")
    assert f"found the key {key!r}" in str(caught.value)
    assert relative(f"{root}/in/ok") == ["b.csv"]
    assert relative(f"{root}/in/ok/*.csv") == ["b.csv"]


def test_keys_that_differ_by_a_slash_alone_are_refused(remote):
    root, server = remote
    server.values |= {"in/a.csv": b"text\none\n", "in/a.csv/": b"text\nother\n"}
    with pytest.raises(DataRefused, match=r"in/a\.csv: expected one object of this name, found 2"):
        relative(f"{root}/in")


def test_folders_above_a_remote_input_are_looked_at_for_tables(remote):
    root, server = remote
    server.values |= {"lake/_delta_log/0.json": b"{}", "lake/dt=1/a.parquet": _parquet("deleted?")}
    for path in ("lake", "lake/dt=1", "lake/dt=1/a.parquet", "lake/*/*.parquet"):
        found = "a log that cannot be read" if path == "lake" else "a Delta Lake table"
        with pytest.raises(DataRefused, match=f"found {found}: {root}/lake"):
            relative(f"{root}/{path}")


def test_a_bucket_or_a_right_that_is_missing_is_a_config_error(s3_bucket, monkeypatch):
    with pytest.raises(ConfigError, match="expected a bucket, found none of this name"):
        relative("s3://nowhere/in")
    monkeypatch.setattr("bertray.io.object_store.ObjectStore.listing", _refused)
    with pytest.raises(ConfigError, match="expected to be allowed to read it, found: permission denied"):
        relative("s3://reviews/in")


def _refused(*_: object) -> None:
    with storage_errors("s3://reviews/in"):
        raise PermissionDeniedError("403 Forbidden")


def test_a_named_file_without_an_extension_is_parquet_where_it_begins_so(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "table")
    (tmp_path / "notes").write_text("text\na\n")
    for reader in (TextFormat(), TextFormat(format="csv")):  # the format of the files beside it
        (entry,) = list_inputs([str(tmp_path / "table")], reader)
        assert (entry.format, entry.relative_path) == ("parquet", "table")
    with pytest.raises(ConfigError, match="expected a file name that ends in"):
        list_inputs([str(tmp_path / "notes")], TextFormat())
    (entry,) = list_inputs([str(tmp_path / "notes")], TextFormat(format="csv"))
    assert entry.format == "csv"
