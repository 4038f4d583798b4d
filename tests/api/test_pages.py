"""The Python of README, docs/python.md and the notebook runs as it stands; the reference names everything public."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bertray
from bertray.commands import demo
from bertray.runs import night_results, results, trust_results
from bertray.runs.release import model_comparison, promotion

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


RESULTS = {  # what functions return
    name: kind
    for module in (results, night_results, trust_results, model_comparison, promotion)
    for name, kind in vars(module).items()
    if name.endswith("Result") and not name.startswith("_") and kind is not results.Result
}


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def demo_run(tmp_path: Path) -> Path:
    """A folder with what the demo leaves of reviews."""
    import shutil

    root = demo._fresh_folder(tmp_path / "demo-run")
    shutil.copytree(demo.REVIEWS / "night-1", root / "reviews" / "incoming")
    return tmp_path


def run_in(folder: Path, code: str) -> str:
    """Output of some code in a fresh interpreter, which prints nothing else."""
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


@pytest.mark.slow
def test_the_readme_trains_and_labels_in_three_lines(demo_run):
    (block,) = blocks_of(ROOT / "README.md")
    calls = [line for line in block.splitlines() if line and not line.startswith("import")]
    assert len(calls) == 3
    assert "['positive'" in run_in(demo_run, block)


@pytest.mark.slow
def test_the_python_of_the_first_hour_runs(demo_run):
    (block,) = blocks_of(ROOT / "docs" / "first-hour.md")
    assert "report.html" in run_in(demo_run, block)


def test_the_readme_is_one_screen():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 70
    assert [line for line in lines if line.startswith("$ ")] == [line for line in lines if line.startswith("$ make ")]


@pytest.mark.slow
def test_the_examples_of_the_reference_run_one_after_the_other(demo_run):
    blocks = [block for block in blocks_of(PAGE) if "import ray" not in block]
    assert len(blocks) >= 4
    printed = run_in(demo_run, "\n".join(blocks))
    assert "None]" in printed


@pytest.mark.soak
def test_the_example_of_ray_data_runs(demo_run):
    blocks = [blocks_of(PAGE)[0], *(block for block in blocks_of(PAGE) if "import ray" in block)]
    found = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=demo_run, capture_output=True, text=True, check=True
    )
    assert "prob_positive" in found.stdout


def test_every_public_name_and_result_is_in_the_reference():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in bertray.__all__ if f"`bertray.{name}" not in text] == []
    assert [name for name in RESULTS if f"`{name}`" not in text] == []


def test_the_reference_names_no_attribute_that_a_result_lacks():
    rows = re.findall(
        r"^\| (`\w+Result`(?:, `\w+Result`)*) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) == 8
    for names, attributes in rows:
        kinds = [RESULTS[name] for name in re.findall(r"`(\w+)`", names)]
        words = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", attributes)))
        fields = {word for kind in kinds for word in (*dir(kind), *kind.__dataclass_fields__)}
        assert words - fields == set(), names


@pytest.mark.slow
def test_the_notebook_runs_as_it_stands(demo_run):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(demo_run)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    assert any("TrainResult" in str(output.get("data", {}).get("text/html")) for output in outputs)


def test_the_notebook_is_kept_without_outputs():
    import json

    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
