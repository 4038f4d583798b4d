"""Language of the code: a docstring names the thing or says what it does, without a pronoun that floats before it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "bertray"
FLOATING = re.compile(r"(What|Which|Whose|How|Of|That|Who|Where)\b")


def floating_docstrings(path: Path) -> list[str]:
    """`name: first line` of each docstring of a file that begins with a floating pronoun."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            if FLOATING.match(docstring):
                found.append(f"{getattr(node, 'name', 'module')}: {docstring.splitlines()[0]}")
    return found


def test_docstrings_begin_with_a_noun_or_a_verb():
    files = {path.relative_to(PACKAGE).as_posix(): floating_docstrings(path) for path in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in files.items() if lines} == {}


def test_a_floating_docstring_is_found(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('"""What a night made."""\n\n\ndef f():\n    """Rows of a part."""\n')
    assert floating_docstrings(path) == ["module: What a night made."]
