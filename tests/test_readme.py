"""The commands of the pages, typed from top to bottom by somebody who has the package and the demo's reviews."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from bertray.cli import run
from bertray.commands import demo
from bertray.config import load_config

DOCS = Path(__file__).resolve().parent.parent / "docs"
FIRST_HOUR = ("first-hour",)
HOW_TO = ("train", "score", "release", "topics", "performance")
TOO_LONG = ("topics", "benchmark")  # minutes; the tests of these commands run them
SMALL = ["max_length=32", "training.epochs=1"]  # what a test adds to a training; later settings win


def commands(*pages: str) -> list[list[str]]:
    """Words of every `bertray` command in the console blocks of some pages, in order."""
    texts = [(DOCS / f"{page}.md").read_text(encoding="utf-8") for page in pages]
    blocks = [block for text in texts for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("$ bertray ")]


def small(words: list[str], encoder: Path) -> list[str]:
    """Settings by which a training takes a moment."""
    if words[0] not in ("train", "plan"):
        return []
    of_method = any(word.startswith("training.method=") for word in words)
    return [f"model={encoder}", *(SMALL[:1] if of_method else SMALL)]


@pytest.fixture
def reviews(tmp_path, monkeypatch) -> Path:
    """The working folder, with what the demo leaves of reviews."""
    monkeypatch.chdir(tmp_path)
    root = demo._fresh_folder(Path("demo-run"))
    for night, _ in demo.NIGHTS:
        shutil.copytree(demo.REVIEWS / night, root / "reviews" / "incoming", dirs_exist_ok=True)
    return tmp_path


def type_all(pages: tuple[str, ...], encoder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run the commands of some pages; returns their verbs."""
    typed = [words for words in commands(*pages) if words[0] not in TOO_LONG]
    for words in typed:
        assert run([*words, *small(words, encoder)]) == 0, (words, capsys.readouterr().err)
    return [words[0] for words in typed]


@pytest.mark.slow
def test_the_first_hour_runs_as_it_is_typed(reviews, tiny_encoder, capsys):
    verbs = type_all(FIRST_HOUR, tiny_encoder, capsys)
    assert verbs == [
        *("init", "plan", "train", "evaluate", "predict", "score", "score", "files", "gc"),
        *("train", "compare", "promote", "score", "registry"),
    ]
    shown = capsys.readouterr().out
    assert "scored/data/dt=" in shown
    assert "Dry after three days of rain." in shown
    nights = {path.name for path in Path("scored/reports").iterdir() if path.is_dir()}
    assert {path.name for path in Path("scored/data").iterdir()} == nights
    assert len(nights) == 1  # the second run found nothing new


@pytest.mark.slow
def test_the_commands_of_the_how_to_pages_run_in_order(reviews, tiny_encoder, capsys):
    verbs = type_all(HOW_TO, tiny_encoder, capsys)
    assert {"init", "plan", "train", "evaluate", "score", "files", "gc", "shares", "queue"} <= {*verbs}
    assert {"compare", "promote", "registry"} <= {*verbs}


def test_the_commands_that_are_too_long_for_a_test_are_accepted():
    long = [words for words in commands(*HOW_TO) if words[0] in TOO_LONG]
    assert [words[0] for words in long] == list(TOO_LONG)
    for verb, *words in long:
        load_config(verb, [], words)
