"""Pages of the documentation site that are made of the code."""

from __future__ import annotations

import re

import pytest

from bertray.cli import SUMMARIES, app

docs_site = pytest.importorskip("tools.docs_site", reason="the extra `docs` is not installed", exc_type=ImportError)


def test_every_command_has_a_page_in_the_reference_and_a_line_on_the_overview():
    commands = {*(command.name for command in app.registered_commands), "config"}
    assert set(docs_site.VERBS) == commands == set(SUMMARIES)
    assert re.findall(r"\[`(\w+)`\]\((\w+)\.md\)", docs_site._commands_page()) == [(v, v) for v in docs_site.VERBS]
    pages = {verb: docs_site._command_page(verb) for verb in docs_site.VERBS}
    assert [verb for verb, page in pages.items() if f"# {verb}\n\n{SUMMARIES[verb]}\n\n```console\n" not in page] == []
    assert [verb for verb, page in pages.items() if "\n:   " not in page] == ["plan", "config"]  # no keys of their own
