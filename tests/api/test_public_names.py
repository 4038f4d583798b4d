"""The public surface: what is exported, at what price, and that no module of the package can take its place."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

import bertray

FUNCTIONS = (
    *("answers", "audit", "compare", "embed", "evaluate", "fetch", "files", "gc", "plan", "pretrain"),
    *("promote", "queue", "registry", "rollback", "score", "shares", "topics", "train", "tune"),
)
CLASSES = ("Classifier", "Embedder")
ERRORS = (
    "BertrayError",
    "ConfigError",
    "ConflictError",
    "DataRefused",
    "Diverged",
    "DriftFound",
    "GateRefused",
    "InfrastructureError",
)


def test_public_names_are_these():
    assert sorted(bertray.__all__) == sorted([*FUNCTIONS, *CLASSES, *ERRORS, "__version__", "errors"])
    assert set(bertray.__all__) <= set(dir(bertray))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_returns(name):
    kind = inspect.signature(getattr(bertray, name)).return_annotation
    _, found, returns = (inspect.getdoc(getattr(bertray, name)) or "").partition("\nReturns:\n")
    assert found
    assert kind == "list[str]" or f"`{kind.rpartition('.')[2].removesuffix(']')}`" in returns


def test_a_function_has_the_arguments_that_its_docstring_says():
    for name in FUNCTIONS:
        function = getattr(bertray, name)
        told = re.findall(r"^    (\w+): ", (inspect.getdoc(function) or "").partition("\nReturns:")[0], re.MULTILINE)
        assert set(told) == set(inspect.signature(function).parameters), name


def test_errors_are_those_of_the_module():
    for name in ERRORS:
        assert getattr(bertray, name) is getattr(bertray.errors, name)


def test_an_unknown_name_is_told():
    with pytest.raises(AttributeError, match="has no attribute 'predict'"):
        _ = bertray.predict


def test_importing_is_quick_and_light():
    """Measured in the process, without the start of Python; the best of three on a machine that others use."""
    code = (
        "import sys, time; start = time.perf_counter(); import bertray; taken = time.perf_counter() - start; "
        "print(taken, *sorted({'torch', 'ray', 'transformers', 'pyarrow', 'pydantic', 'pandas'} & set(sys.modules)))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert [run[1:] for run in runs] == [[], [], []]
    assert min(float(run[0]) for run in runs) <= 0.15


@pytest.mark.slow
def test_no_module_takes_the_place_of_a_public_name():
    """Importing a submodule sets it as an attribute of the package: `bertray.train` must stay a function."""
    code = """
import importlib, pkgutil, types
import bertray
for module in pkgutil.walk_packages(bertray.__path__, "bertray."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in bertray.__all__:
    value = getattr(bertray, name)
    assert name in ("errors", "__version__") or callable(value), name
    assert name == "errors" or not isinstance(value, types.ModuleType), name
for name in FUNCTIONS:
    try:
        getattr(bertray, name)(no_such_key=1)
    except bertray.ConfigError as error:
        print(name, type(error).__name__)
"""
    found = subprocess.run(
        [sys.executable, "-c", f"FUNCTIONS = {FUNCTIONS}\n{code}"], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [word for name in FUNCTIONS for word in (name, "ConfigError")]


def test_every_public_name_says_what_it_is_for():
    for name in set(bertray.__all__) - {"__version__"}:
        assert inspect.getdoc(getattr(bertray, name)), name


def test_modules_have_no_name_of_a_function():
    assert {module.name for module in pkgutil.iter_modules(bertray.__path__)}.isdisjoint(FUNCTIONS)
    assert importlib.import_module("bertray.api.verbs").train is bertray.train
