"""The check of a device runs where only torch, transformers, pyarrow and numpy are; numbers out of bounds end it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bertray.benchmark.check import correctness
from bertray.benchmark.check.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
FAST = "environment,varlen,training,out_of_memory"


def check_in_a_bare_process(output: Path, *words: str) -> dict[str, dict[str, object]]:
    """The check as on a lent machine, in a process in which the packages of the rest cannot be imported."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from import_blocker import block
block()
from bertray.benchmark.check.__main__ import main
sys.exit(main(["check", "device=cpu", "output={output}", *{words!r}]))
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=280)
    found: dict[str, dict[str, object]] = json.loads(output.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_numbers_are_right_on_cpu_with_the_reference_attention(tmp_path):
    found = check_in_a_bare_process(tmp_path / "check.json", f"sections={FAST}")
    assert list(found) == FAST.split(",")
    assert [found[name]["ok"] for name in FAST.split(",")[1:]] == [True] * 3
    assert found["training"]["equal_when_repeated"] is True


@pytest.mark.slow
def test_all_sections_run_on_cpu(tmp_path):
    found = check_in_a_bare_process(tmp_path / "check.json")
    assert [name for name, each in found.items() if "failed" in each or each.get("ok") is False] == []
    assert found["logits"]["bert fp32"]["same_label"] == 1.0  # type: ignore[index]
    assert len(found["ranks"]) == 3


def test_a_number_out_of_bounds_and_a_section_that_fails_are_told_and_end_with_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(correctness, "_VARLEN", 0.0)
    words = ["check", "device=cpu", f"output={tmp_path / 'check.json'}", "sections=varlen"]
    assert main(words) == 1
    assert capsys.readouterr().out.endswith("out of bounds or failed: varlen\n")
    assert json.loads((tmp_path / "check.json").read_text())["varlen"]["ok"] is False


def test_sections_beyond_the_time_are_left_out(capsys):
    assert main(["check", "device=cpu", "seconds=-1"]) == 0
    assert capsys.readouterr().out == "all within bounds\n"


@pytest.mark.parametrize(
    ("word", "said"), [("section=a", "no such key: section"), ("sections=a", "no such section: a")]
)
def test_a_typo_names_what_there_is(word, said):
    with pytest.raises(SystemExit, match=said):
        main(["check", word])
