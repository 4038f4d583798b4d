"""What holds for the package as a whole: cheap imports, one direction of imports, documents that are true."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertray.cli import app
from bertray.commands import demo
from bertray.config import CONFIGS, load_config
from bertray.runtime import THREADS_ENV

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bertray"
VERBS = sorted(command.name or "" for command in app.registered_commands)
# Ground, domain, faces: each room and each module beside the rooms may import the ones before it.
ORDER = [
    *(
        "errors",
        "schema",
        "yaml_text",
        "label_text",
        "wording",
        "paths",
        "console",
        "runtime",
        "settings",
        "config",
        "io",
        "execution",
    ),
    *("reviews", "autoconfig", "model", "training", "evaluation", "outputs", "scoring", "trust", "auditing"),
    *("topic_models", "benchmark", "reports", "runs", "api", "commands", "cli", "__main__"),
]
# Imports against the order that are still there, module by module: the list may only get shorter.
STILL_WRONG: dict[str, set[str]] = {}
# The recipe of Ray's documentation that the benchmark measures.
RECIPES_OF_RAY = {"runs/benchmark_run.py"}


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["score", "plan", "init", "audit"])
def test_the_environment_of_threads_is_set_before_torch_reads_it(verb):
    code = (
        "import sys, bertray.runtime as e; from bertray.cli import run; add = e.set_up_threads; "
        "e.set_up_threads = lambda: (add(), print(sorted({'torch', 'sklearn'} & set(sys.modules)), "
        "*([of.get(name) for name in e.THREADS_ENV] for of in (e.os.environ, e.environment_of_user())))); "
        f"run(['{verb}', 'nowhere'])"
    )
    env = {name: value for name, value in os.environ.items() if name not in THREADS_ENV}
    for given, told in (
        (env, "[] ['passive', '4000'] [None, None]"),
        # GOMP_SPINCOUNT of ours would overrule it.
        ({**env, "OMP_WAIT_POLICY": "active"}, "[] ['active', None] ['active', None]"),
    ):
        found = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
        assert found.stdout.splitlines() == [told]


@pytest.mark.parametrize(
    "module",
    ["bertray", "bertray.config", "bertray.schema", "bertray.cli", "bertray.reviews.reader", "bertray.api.verbs"],
)
def test_importing_is_cheap(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'ray', 'transformers'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_topics_are_imported_by_the_verb_that_finds_them_when_it_does():
    modules = "bertray.runs.topic_search, bertray.runs.night, bertray.topic_models.clustering"
    code = f"import sys, {modules}; print(sorted({{'bertopic', 'umap', 'hdbscan', 'numba'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_only_execution_imports_ray_lazily_or_not():
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name == "ray" or name.startswith("ray.") for name in imports_of(path))
    }
    assert users
    assert {user for user in users if not user.startswith("execution/")} == RECIPES_OF_RAY


def test_rooms_import_one_way():
    wrong: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path)
        if room == "__init__":
            continue
        before = ORDER[: ORDER.index(room) + 1]
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "bertray" and len(parts) > 1 and parts[1] in set(ORDER) - set(before):
                wrong.setdefault(path.relative_to(PACKAGE).as_posix(), set()).add(parts[1])
    assert wrong == STILL_WRONG


def module_name(path: Path) -> str:
    return ".".join(["bertray", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one cycle, or nothing."""
    done: set[str] = set()

    def visit(module: str, above: list[str]) -> list[str]:
        if module in above:
            return [*above[above.index(module) :], module]
        if module not in done:
            for name in sorted(graph[module]):
                if found := visit(name, [*above, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


def test_cycle_in_finds_a_cycle_and_nothing_in_a_diamond():
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle_in({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


def test_no_module_imports_one_that_imports_it():
    """Lazy imports and those for type checkers count, too."""
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    graph = {name: imports_of(path) & files.keys() - {name} for name, path in files.items()}
    graph["bertray"] = set()  # it names what it exports for type checkers, and imports it when it is used
    assert cycle_in(graph) == []


def free_of_config(path: Path) -> bool:
    """Files that a machine with torch, transformers, pyarrow and numpy alone imports."""
    return room_of(path) in ("model", "benchmark", "training")


def test_the_inner_rooms_import_neither_pydantic_nor_config_nor_ray():
    wrong = {
        path.relative_to(PACKAGE).as_posix(): bad
        for path in PACKAGE.rglob("*.py")
        if free_of_config(path)
        and (
            bad := {
                n
                for n in imports_of(path)
                if re.match(r"(pydantic|ray|bertray\.config)\b|bertray\.execution\.(?!executor\b)", n)
            }
        )
    }
    assert wrong == {}


@pytest.mark.slow
def test_the_inner_rooms_are_imported_where_only_torch_transformers_pyarrow_and_numpy_are():
    modules = sorted(module_name(path) for path in PACKAGE.rglob("*.py") if free_of_config(path))
    code = f"""
import importlib, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from import_blocker import block
block()
for name in {modules!r}:
    if not name.endswith("__main__"):
        importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_file_says_what_it_is_for():
    silent = [p.name for p in PACKAGE.rglob("*.py") if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert silent == []


def test_every_verb_has_a_job_file_and_stands_on_a_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for verb in VERBS:
        assert (ROOT / "jobs" / f"{verb}.py").is_file()
        assert f"bertray {verb}" in pages or f"make {verb}" in pages, verb


def test_job_files_show_the_help_of_their_verb():
    found = subprocess.run(
        [sys.executable, "jobs/score.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "max_quarantine_ratio" in found.stdout


def test_every_key_in_the_commands_of_the_pages_exists():
    names = ("train", "score", "release", "cluster", "own-machines", "first-hour", "zh", "ko")
    pages = [(ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").replace("\\\n", " ") for name in names]
    commands = [
        found
        for page in pages
        for found in re.findall(r"(?:bertray|python jobs/)\s?(train|evaluate|score)(?:\.py)? ([^\n#`>]*)", page)
    ]
    assert len(commands) >= 12
    for verb, words in commands:
        import shlex

        overrides = [word for word in shlex.split(words) if "=" in word]
        required = {
            "train": ["data.train=x", "output=x"],
            "evaluate": ["input=x", "output=x"],
            "score": ["input=x", "output=x"],
        }
        load_config(verb, [], [*required[verb], *overrides])


def test_the_readme_shows_what_the_demo_prints(tmp_path, monkeypatch, capsys):
    """The figures of the page, given back to what prints them, make the block of the page."""
    block = re.search(r"```text\n(demo in .*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    lines = [re.findall(r"[\w.\-]+", line) for line in block.splitlines() if line.startswith("│")]
    told = {name: figures for name, *figures in lines}

    def accuracy(cells: list[str]) -> dict[str, float]:
        return dict(zip(("value", "low", "high"), map(float, cells), strict=True))

    files: dict[str, Any] = {"train/metrics.json": {"metrics": {"accuracy": accuracy(told["train"])}}}
    for night, slot in demo.NIGHTS:
        counts: dict[str, float] = dict(
            zip(("rows_in", "rows_scored", "rows_quarantined"), map(int, told[night][:3]), strict=True)
        )
        files[f"scored/reports/{slot}/run=1/report.json"] = counts | {"rows_per_s": float(told[night][6])}
        files[f"scored/reports/{slot}/run=1/metrics.json"] = {"metrics": {"accuracy": accuracy(told[night][3:6])}}
    root = tmp_path / "demo-run"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    demo._print_summary(root, float(re.match(r"demo in (\d+) s\n", block)[1]))
    assert capsys.readouterr().out == block


def test_the_page_for_contributors_names_every_room_in_the_order_of_imports():
    layout = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where things are")[2]
    named = re.findall(r"^\| `(\w+)/` \|", layout, flags=re.MULTILINE)
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert named == [room for room in ORDER if room in rooms]


def test_every_config_class_is_documented():
    assert [verb for verb, config in CONFIGS.items() if not config.__doc__] == []


def test_the_project_names_no_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile("/wor" + "k/|/roo" + "t/|/farm" + "/")
    files = [ROOT / name for name in listed.stdout.splitlines()]
    texts = {path: path.read_text(encoding="utf-8", errors="ignore") for path in files if path.is_file()}
    assert [path.name for path, text in texts.items() if pattern.search(text)] == []


def test_tests_named_in_the_docs_exist():
    tests = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    for page in (ROOT / "docs").glob("*.md"):
        named = re.findall(r"`(?:[\w/]*/)?(test_\w+\.py)::(test_\w+)`", page.read_text(encoding="utf-8"))
        missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in tests.get(file, "")]
        assert missing == [], page.name
