"""The README's commands, typed from top to bottom by somebody who has nothing but the package."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from bertray.cli import run
from bertray.commands import demo
from bertray.config import load_config

README = Path(__file__).resolve().parent.parent / "README.md"
TOO_LONG = ("topics", "benchmark")  # minutes; the tests of these commands run them
SMALL = {"train": ["max_length=32", "training.epochs=1"]}  # what a test adds to a command; later settings win


def commands() -> list[list[str]]:
    """Words of every `bertray` command in the console blocks, in order."""
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("$ bertray ")]


def test_the_commands_run_in_order_on_what_the_demo_leaves(tmp_path, tiny_encoder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = demo._fresh_folder(Path("demo-run"))
    for night, _ in demo.NIGHTS:
        shutil.copytree(demo.REVIEWS / night, root / "reviews" / "incoming", dirs_exist_ok=True)
    typed = [words for words in commands() if words[0] not in TOO_LONG]
    assert [words[0] for words in typed] == [
        *("init", "plan", "train", "evaluate", "train", "score", "files", "gc"),
        *("compare", "promote", "score", "registry"),
    ]
    for words in typed:
        small = [f"model={tiny_encoder}", *SMALL["train"]] if words[0] in ("train", "plan") else []
        assert run([*words, *small]) == 0, capsys.readouterr().err
    assert {path.name for path in Path("scored/data").iterdir()} == {
        entry.name for entry in Path("scored/reports").iterdir()
    }
    shown = capsys.readouterr().out
    assert "scored/data/dt=" in shown


def test_the_commands_that_are_too_long_for_a_test_are_accepted():
    long = [words for words in commands() if words[0] in TOO_LONG]
    assert [words[0] for words in long] == list(TOO_LONG)
    for verb, *words in long:
        load_config(verb, [], words)
