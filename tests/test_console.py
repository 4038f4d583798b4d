"""What is printed is what was said: a path is never taken for markup."""

import logging
import os
import subprocess
import sys

import pytest
from rich.console import Console

from bertray import console
from bertray.console import Ticker, heading, log_handler, say, stderr_without, table


@pytest.mark.parametrize("text", ["report   y[red]z/report.html", "q[/b]", ":smile: 3.14 'x'", "a\\[b]", "x" * 300])
def test_say_prints_the_text_as_it_is_on_one_line(capsys, text):
    say(text)
    assert capsys.readouterr().out == text + "\n"


def test_a_table_prints_cells_headers_and_title_as_they_are(capsys):
    table("slot [b]=x[/c]", ["path [i]", "why"], [["y[red]z.csv", "q[/b]"], [":smile:", "\\[x]"]])
    printed = capsys.readouterr().out
    for text in ("slot [b]=x[/c]", "path [i]", "y[red]z.csv", "q[/b]", ":smile:", "\\[x]"):
        assert text in printed


HIDDEN = "\x1b[2J\x9b31m\u202eevil\u2066\u061c\x07"


def test_nothing_that_a_terminal_obeys_is_printed_and_a_cell_is_one_line(capsys):
    say(HIDDEN)
    heading(HIDDEN, HIDDEN)
    table(HIDDEN, [f"{HIDDEN}\nb"], [[f"{HIDDEN}\na"]])
    said, head, *printed = capsys.readouterr().out.splitlines()
    assert (said, head) == ("[2J31mevil", "[2J31mevil: [2J31mevil")
    assert [line.strip(" ┃│") for line in printed if "evil" in line] == ["[2J31mevil", "[2J31mevil b", "[2J31mevil a"]


def test_a_log_line_holds_nothing_that_a_terminal_obeys(capsys):
    kept = logging.getLogger("bertray.kept")
    kept.addHandler(log_handler())
    kept.warning("class %s", HIDDEN)
    assert capsys.readouterr().err.partition(" ")[2] == "class [2J31mevil\n"


def test_a_heading_is_plain_text_where_there_is_no_terminal(capsys):
    heading("1. [b]train[/b]", "on labelled [red]reviews")
    assert capsys.readouterr().out == "1. [b]train[/b]: on labelled [red]reviews\n"


def test_one_line_is_dropped_from_stderr_and_the_others_come_through_in_order(capfd):
    with stderr_without("noise"):
        print("first", file=sys.stderr)
        os.write(2, b"native noise\n")
        subprocess.run(["sh", "-c", "echo from a child >&2"], check=True)
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "first\nfrom a child\nafter\n"


@pytest.mark.parametrize(("widgets", "has_bar"), [(None, False), (object(), True)])
def test_a_notebook_has_a_bar_where_it_can_show_one(monkeypatch, widgets, has_bar):
    monkeypatch.setattr(console, "err", Console(force_jupyter=True))
    monkeypatch.setattr(console, "find_spec", lambda name: widgets)
    assert (Ticker("scoring", 10, "reviews")._bar is not None) == has_bar
