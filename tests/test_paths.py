"""Local paths as people write them, the same for inputs, models, outputs and configs."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any

import pytest

from bertray.cli import run
from bertray.config import load_config
from bertray.errors import ConfigError
from bertray.io.store import open_store
from bertray.model.bundle import resolve_model
from bertray.paths import is_uri, local_path
from bertray.reviews.file_access import full_path

ME = pwd.getpwuid(0)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~", "{home}"),
        ("~/out", "{home}/out"),
        (f"~{ME.pw_name}/out", f"{ME.pw_dir}/out"),
        ("out", "{here}/out"),
        ("./~", "{here}/~"),
        ("a~b/~", "{here}/a~b/~"),
        ("a%20b", "{here}/a%20b"),
        ("file:///a%20b/c", "/a b/c"),
        ("FILE:///a/%7Euser", "/a/~user"),
        ("file://localhost/a", "/a"),
        ("file:/a%20b", "/a b"),
        ("file:///a?b#c", "/a?b#c"),
        ("file://~/out", "{home}/out"),
        ("~$lock.xlsx", "{here}/~$lock.xlsx"),
    ],
)
def test_a_path_is_taken_as_a_shell_or_the_standard_takes_it(written, meant, tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    (here / "~$lock.xlsx").touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    expected = Path(meant.format(home=home, here=here))
    assert local_path(written) == expected
    assert open_store(written).root == str(expected)
    assert full_path(written) == str(expected)
    assert not is_uri(written)


@pytest.mark.parametrize("path", ["~nobody-has-this-name/out", "file://elsewhere/out"])
def test_a_path_that_means_nothing_here_is_a_config_error(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for opened in (local_path, open_store, full_path, resolve_model):
        with pytest.raises(ConfigError, match="found"):
            opened(path)
    assert not any(tmp_path.iterdir())


def test_models_and_configs_are_found_below_home_too(tiny_encoder, tmp_path, monkeypatch):
    (tmp_path / "my model").symlink_to(tiny_encoder)
    (tmp_path / "n.yaml").write_text("model: ~/my model\ninput: ~/in\noutput: ~/out\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    for model in ("~/my model", f"file://{tmp_path}/my%20model"):
        assert resolve_model(model) == tmp_path / "my model"
    config: Any = load_config("score", ["~/n.yaml"])
    assert open_store(config.output).root == str(tmp_path / "out")


def test_files_reads_an_output_below_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["files", "output=~/out"]) == 2
    assert f"{tmp_path}/out: no committed slot" in capsys.readouterr().err
