"""One output holds one run, and one process at a time works on it; a refused run leaves it free."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from bertray.errors import ConfigError, ConflictError, DataRefused
from bertray.io.store import LocalStore
from bertray.outputs.claims import RUN_FILE, claimed_output, mark_finished

TOKENS = "control/tokens/a"
RUN = ("train", "key", "seed: 0\n")


def hold(root: Path, claimed) -> None:
    with claimed_output(LocalStore(root), *RUN):
        claimed.set()
        multiprocessing.Event().wait()


@pytest.fixture
def at_work(tmp_path: Path):
    """A process that holds the output."""
    spawn = multiprocessing.get_context("spawn")
    claimed = spawn.Event()
    process = spawn.Process(target=hold, args=(tmp_path, claimed))
    process.start()
    assert claimed.wait(60)
    yield process
    process.kill()
    process.join()


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(("command", "replace"), [(RUN, False), (("train", "other", "seed: 1\n"), True)])
def test_a_run_beside_a_live_one_is_a_conflict_and_disturbs_nothing(tmp_path, at_work, command, replace):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with (
        pytest.raises(ConflictError, match=rf"a run is at work on it \(process {at_work.pid} on "),
        claimed_output(LocalStore(tmp_path), *command, replace=replace),
    ):
        pytest.fail("let in")
    assert {path: path.read_bytes() for path in before} == before


def kill(process) -> None:
    process.kill()
    process.join()


def test_a_killed_run_is_gone_on_with_at_once_and_leaves_no_sign_of_life(tmp_path, at_work):
    kill(at_work)
    with claimed_output(LocalStore(tmp_path), *RUN):
        assert len(LocalStore(tmp_path).keys("control/alive")) == 1
    assert files(tmp_path) == ["config.yaml", RUN_FILE]


def test_a_run_that_another_has_just_finished_is_not_done_again(tmp_path):
    with claimed_output(LocalStore(tmp_path), *RUN):
        mark_finished(LocalStore(tmp_path))
    with (
        pytest.raises(ConflictError, match="has just been finished"),
        claimed_output(LocalStore(tmp_path), *RUN),
    ):
        pytest.fail("let in")


REFUSED = DataRefused("no rows.", "Look at the file.")
IMPOSSIBLE = ConfigError("no GPU.", "Set workers.use_gpu=false.")


@pytest.mark.parametrize(
    ("error", "work", "left"),
    [
        (REFUSED, "checkpoints", []),
        (REFUSED, "control/tokens", ["config.yaml", RUN_FILE, TOKENS]),
        (IMPOSSIBLE, "checkpoints", ["config.yaml", RUN_FILE, TOKENS]),  # the same run is possible elsewhere
    ],
    ids=["data", "data, when work has begun", "config"],
)
def test_what_a_killed_run_held_is_free_where_no_run_can_use_it(tmp_path, at_work, error, work, left):
    kill(at_work)
    store = LocalStore(tmp_path)
    store.put(TOKENS, b"")
    with pytest.raises(type(error)), claimed_output(store, *RUN, work):
        raise error
    assert files(tmp_path) == left


def test_what_a_run_took_itself_is_free_again_when_it_is_refused(tmp_path):
    with pytest.raises(ConfigError), claimed_output(LocalStore(tmp_path), *RUN):
        raise IMPOSSIBLE
    assert files(tmp_path) == []
