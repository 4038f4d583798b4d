"""What is printed is what was said: a path is never taken for markup."""

import pytest

from bertray.console import say, table


@pytest.mark.parametrize("text", ["report   y[red]z/report.html", "q[/b]", ":smile: 3.14 'x'", "a\\[b]", "x" * 300])
def test_say_prints_the_text_as_it_is_on_one_line(capsys, text):
    say(text)
    assert capsys.readouterr().out == text + "\n"


def test_a_table_prints_cells_headers_and_title_as_they_are(capsys):
    table("slot [b]=x[/c]", ["path [i]", "why"], [["y[red]z.csv", "q[/b]"], [":smile:", "\\[x]"]])
    printed = capsys.readouterr().out
    for text in ("slot [b]=x[/c]", "path [i]", "y[red]z.csv", "q[/b]", ":smile:", "\\[x]"):
        assert text in printed
