"""The pointer of a registry: moved by one put-if-absent, on a file system and on an S3 server, killed at any point."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from bertray.cli import run
from bertray.errors import ConfigError, ConflictError
from bertray.io import faults
from bertray.trust import registry as registries
from bertray.trust.registry import Registry, current, new_entry, resolve_registered, rollback_target
from tests.processes import FORKSERVER


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, monkeypatch) -> str:
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3_environment").items():
            monkeypatch.setenv(name, value)
        return f"s3://bertray/{tmp_path.name}-registry"
    return str(tmp_path / "registry")


def bundle(folder: Path, version: str) -> Path:
    path = folder / version
    path.mkdir()
    (path / "model.safetensors").write_bytes(version.encode() * 100)
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    return path


def promote(registry: Registry, name: str, path: Path) -> None:
    entry = new_entry("promote", registry.history(name), path.name, source=str(path))
    registry.put_version(name, path.name, path, {"comparison.json": b"{}"})
    registry.append(name, entry)


def test_promotions_and_rollbacks_move_the_pointer_and_stay_in_the_history(root, tmp_path):
    registry = Registry(root, create=True)
    registry.check_writable("reviews")
    for version in ("v1", "v2", "v3"):
        promote(registry, "reviews", bundle(tmp_path, version))
    assert resolve_registered("registry:reviews", root) == registry.version_path("reviews", "v3")
    for expected in ("v2", "v1"):
        history = registry.history("reviews")
        registry.append("reviews", new_entry("rollback", history, rollback_target("reviews", history)))
        assert resolve_registered("registry:reviews", root).endswith(f"/versions/{expected}")
    history = registry.history("reviews")
    with pytest.raises(ConflictError, match="no version before v1; the pointer stays"):
        rollback_target("reviews", history)
    assert rollback_target("reviews", history, "v3") == "v3"
    with pytest.raises(ConfigError, match="to=v4: no such version"):
        rollback_target("reviews", history, "v4")
    assert [(entry.seq, entry.kind, entry.version, entry.previous) for entry in history] == [
        (1, "promote", "v1", None),
        (2, "promote", "v2", "v1"),
        (3, "promote", "v3", "v2"),
        (4, "rollback", "v2", "v3"),
        (5, "rollback", "v1", "v2"),
    ]
    assert registry.names() == ["reviews"]
    assert registry.store.get("reviews/versions/v2/comparison/comparison.json") == b"{}"
    assert not [key for key in registry.store.keys("reviews") if "probe" in key]


def test_a_refusal_moves_nothing_and_counts_as_a_use_of_its_rows(root, tmp_path):
    registry = Registry(root, create=True)
    promote(registry, "reviews", bundle(tmp_path, "v1"))
    refusal = new_entry("refuse", registry.history("reviews"), "v2", test_digest="rows")
    promote(registry, "reviews", bundle(tmp_path, "v3"))  # meanwhile
    assert registry.append_refusal("reviews", refusal).seq == 3
    history = registry.history("reviews")
    assert current(history).version == "v3"
    assert (registries.uses_of(history, "rows"), registries.uses_of(history, "other rows")) == (1, 0)


def test_of_two_promotions_at_once_one_wins(root, tmp_path):
    registry = Registry(root, create=True)
    promote(registry, "reviews", bundle(tmp_path, "v1"))
    paths = [bundle(tmp_path, f"c{number}") for number in range(6)]
    entries = [new_entry("promote", registry.history("reviews"), path.name) for path in paths]
    barrier, outcomes = threading.Barrier(len(paths)), []

    def race(path: Path, entry: registries.HistoryEntry) -> None:
        mine = Registry(root)
        mine.put_version("reviews", path.name, path, {})
        barrier.wait()
        try:
            mine.append("reviews", entry)
            outcomes.append(path.name)
        except ConflictError:
            outcomes.append("")

    threads = [threading.Thread(target=race, args=pair) for pair in zip(paths, entries, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    winners = [name for name in outcomes if name]
    assert (len(outcomes), len(winners)) == (6, 1)
    assert current(registry.history("reviews")).version == winners[0]


def _promote_in_a_process(root: str, path: str, armed: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    faults.arm(armed)
    promote(Registry(root), "reviews", Path(path))


CRASHES = {
    "registry.version_half:1": "v1",
    "registry.version_half:3": "v1",
    "registry.before_put:1": "v1",
    "registry.after_put:1": "v2",
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_killed_promotion_leaves_the_old_pointer_or_the_new_one(crash, root, tmp_path):
    registry = Registry(root, create=True)
    promote(registry, "reviews", bundle(tmp_path, "v1"))
    second = bundle(tmp_path, "v2")
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    process = FORKSERVER.Process(target=_promote_in_a_process, args=(root, str(second), f"{crash}:kill", environment))
    process.start()
    process.join(60)
    assert process.exitcode == -9
    assert resolve_registered("registry:reviews", root).endswith(f"/versions/{CRASHES[crash]}")
    if CRASHES[crash] == "v1":
        promote(registry, "reviews", second)  # the same command again
    assert resolve_registered("registry:reviews", root).endswith("/versions/v2")
    for file in second.iterdir():
        assert registry.store.get(f"reviews/versions/v2/{file.name}") == file.read_bytes()


@pytest.mark.parametrize("name", ["a/b", "", ".hidden", "..", "a b", "x" * 65])
def test_a_name_is_that_of_one_folder(name, tmp_path):
    with pytest.raises(ConfigError, match="expected 1 to 64 letters, digits"):
        Registry(str(tmp_path)).history(name)


def test_a_registry_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="none: no such folder"):
        Registry(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no such folder"):
        Registry(str(tmp_path / "no" / "none"), create=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="expected a folder, found a file"):
        Registry(str(tmp_path / "file"), create=True)
    with pytest.raises(ConfigError, match="expected the key registry"):
        resolve_registered("registry:reviews", None)
    with pytest.raises(ConfigError, match="no model was promoted as 'reviews'"):
        resolve_registered("registry:reviews", str(tmp_path))
    assert resolve_registered("bundled", None) == "bundled"


def test_a_registry_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    registry = Registry(str(tmp_path))

    def refuse(*_: object) -> bool:
        raise ConfigError("there: expected a writable output, found Permission denied.")

    monkeypatch.setattr(registry.store, "put_new", refuse)
    with pytest.raises(ConfigError, match="cannot be written"):
        registry.check_writable("reviews")


def test_a_store_without_put_if_absent_is_refused(tmp_path, monkeypatch):
    registry = Registry(str(tmp_path))
    monkeypatch.setattr(registry.store, "put_new", lambda *_: True)
    with pytest.raises(ConfigError, match="two promotions could both win"):
        registry.check_writable("reviews")


def test_an_entry_that_is_gone_or_edited_is_told(tmp_path):
    registry = Registry(str(tmp_path))
    for version in ("v1", "v2", "v3"):
        promote(registry, "reviews", bundle(tmp_path, version))
    second = tmp_path / "reviews" / "history" / "00000002.json"
    content = second.read_text()
    second.write_text(content.replace('"v2"', '"v9"'))
    with pytest.raises(ConflictError, match="damaged or edited"):
        registry.history("reviews")
    second.unlink()
    with pytest.raises(ConflictError, match="entries are missing"):
        registry.history("reviews")


def test_a_version_that_is_gone_is_told_where_it_is_read(tmp_path):
    registry = Registry(str(tmp_path))
    promote(registry, "reviews", bundle(tmp_path, "v1"))
    (tmp_path / "reviews" / "versions" / "v1" / "config.json").unlink()
    with pytest.raises(ConfigError, match="points to it, and it is not there"):
        resolve_registered("registry:reviews", str(tmp_path))


def test_rows_are_known_whatever_their_order_and_the_order_of_classes():
    hashes_N, labels_N = np.array([5, 9, 7], np.uint64), np.array([0, 1, 1])
    digest = registries.rows_digest(hashes_N, labels_N, ["neg", "pos"])
    assert registries.rows_digest(hashes_N[::-1], labels_N[::-1], ["neg", "pos"]) == digest
    assert registries.rows_digest(hashes_N, 1 - labels_N, ["pos", "neg"]) == digest
    assert registries.rows_digest(hashes_N, 1 - labels_N, ["neg", "pos"]) != digest
    assert registries.rows_digest(hashes_N[:2], labels_N[:2], ["neg", "pos"]) != digest


def test_a_test_set_with_most_of_its_rows_is_known_again():
    random = np.random.default_rng(0)
    hashes_N, labels_N = random.integers(2**64, size=2000, dtype=np.uint64), random.integers(2, size=2000)

    def uses(rows: np.ndarray, labels: np.ndarray, names: list[str]) -> int:
        history = [new_entry("refuse", [], "v1", test_digest="another", test_sketch=before)]
        given = rows, labels, names
        return registries.uses_of(history, registries.rows_digest(*given), registries.rows_sketch(*given))

    before = registries.rows_sketch(hashes_N, labels_N, ["neg", "pos"])
    assert len(set(before)) == registries.SKETCH_ROWS
    assert uses(hashes_N[::-1], 1 - labels_N[::-1], ["pos", "neg"]) == 1
    assert uses(hashes_N[1:], labels_N[1:], ["neg", "pos"]) == 1
    assert uses(hashes_N[600:], labels_N[600:], ["neg", "pos"]) == 1
    assert uses(hashes_N[1400:], labels_N[1400:], ["neg", "pos"]) == 0
    assert uses(hashes_N, 1 - labels_N, ["neg", "pos"]) == 0
    fresh = random.integers(2**64, size=2000, dtype=np.uint64)
    assert uses(np.concatenate([hashes_N, fresh[:1000]]), np.resize(labels_N, 3000), ["neg", "pos"]) == 1
    assert uses(fresh, labels_N, ["neg", "pos"]) == 0
    assert len(registries.rows_sketch(hashes_N[:10], labels_N[:10], ["neg", "pos"])) == 10


def test_a_reason_is_one_line_without_what_a_terminal_obeys(tmp_path, capsys):
    registry = Registry(str(tmp_path))
    forged = "because\x1b[2J\n   2 2026-11-30T00:00:00Z promoted v2 by root"
    registry.append("reviews", new_entry("promote", [], "v1", forced=True, reason=forged))
    assert run(["registry", f"registry={tmp_path}"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "reviews → v1"
    assert second.endswith(", forced: because[2J 2 2026-11-30T00:00:00Z promoted v2 by root")
