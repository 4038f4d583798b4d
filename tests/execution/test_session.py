"""Start of Ray that fails, as an error of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import ray

from bertray.errors import BertrayError, ConfigError, InfrastructureError
from bertray.execution import session


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """As it was: connecting sets variables for the processes of Ray."""
    before = dict(os.environ)
    os.environ.pop("RAY_ADDRESS", None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        # As ray 2.60 does where the machine is too busy for its processes to come up.
        (Exception("The current node timed out during startup. This could happen because"), InfrastructureError),
        (RuntimeError("the head node is gone"), InfrastructureError),
        (RuntimeError("Version mismatch: the cluster was started with"), ConfigError),
        (PermissionError("/tmp"), ConfigError),
    ],
)
def test_ray_that_does_not_start_is_an_error_with_a_remedy(tmp_path, monkeypatch, raised, kind):
    def refuse(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(BertrayError, match=r"Ray: does not start or answer: \S") as found:
        session._connect(str(tmp_path))
    assert type(found.value) is kind


def test_a_bug_of_ours_stays_what_it_is(tmp_path, monkeypatch):
    def mistaken(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(ray, "init", mistaken)
    with pytest.raises(KeyError):
        session._connect(str(tmp_path))


def test_runs_of_several_threads_share_one_ray_and_the_last_one_ends_it(monkeypatch):
    done: list[str] = []
    monkeypatch.setattr(session, "_connect", lambda temporary: done.append("connected"))
    monkeypatch.setattr(ray, "shutdown", lambda: done.append("ended"))
    monkeypatch.setattr(ray, "is_initialized", lambda: done[-1:] == ["connected"])
    before = dict(os.environ)
    connection = session._Connection()
    assert (connection.open([]), connection.open([])) == (True, True)
    connection.close()
    assert done == ["connected"]
    connection.close()
    assert (done, dict(os.environ)) == (["connected", "ended"], before)
    assert connection.open([])
    connection.close()
    assert done == ["connected", "ended"] * 2


def test_a_ray_of_the_user_is_neither_opened_nor_ended(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    assert not session._Connection().open([])
