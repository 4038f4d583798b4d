"""Settings and commands in messages do in a shell what they say; counts have the number of their noun."""

import shlex
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bertray.config import load_config
from bertray.wording import command, counted, duration, percent, setting

AWKWARD = [
    "plain", "with space", "it's", 'say "so"', "'quoted'", '"quoted"', "yes", "null", "~", "1,0", "1.0", "#1", "a: b",
    "a #b", "{x}", "[ab]*.csv", "[a, b]", "$HOME", "${HOME}", "`id`", "!x", "-x", "a\\b", "*", "größe", "评论", "👍",
    "a=b",
    "2026-11-01", "0x1", "@x", "%", "? a", "- a", "|", ">", "&a", "true", "é\u2028x", "&&", ";", "a\tb",
]  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: text == text.strip())
REQUIRED = ["output=o"]


def loaded(verb: str, *words: str):
    return load_config(verb, [], shlex.split(" ".join(words)))


@example("null")
@example("'a")
@given(TEXT)
def test_a_text_and_a_path_are_read_back(text):
    config = loaded("score", setting("input", text), setting("model", text), setting("columns.text", text), *REQUIRED)
    assert (config.input, config.model, config.columns.text) == ((text,), text, text)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_words_are_read_back_wherever_they_stand(text):
    words = [setting("input", [text, "b"]), setting("model", text), setting("keep_columns", [text]), *REQUIRED]
    config = loaded("score", *words, setting("labels", {text: "one", "two": None, "x": text + "x"}))
    assert (config.input, config.model, config.keep_columns) == ((text, "b"), text, (text,))
    assert config.labels == {"1" if text == "1.0" else text: "one", "two": None, "x": text + "x"}


@given(st.lists(TEXT, min_size=2, unique=True))
def test_lists_are_read_back(texts):
    config = loaded("score", setting("input", texts), setting("keep_columns", texts), *REQUIRED)
    assert (list(config.input), list(config.keep_columns)) == (texts, texts)


def test_a_real_shell_hands_over_what_was_meant():
    words = [setting("input", text) for text in AWKWARD]
    found = subprocess.run(
        ["bash", "-c", "printf '%s\\0' " + " ".join(words)], capture_output=True, text=True, check=True
    )
    assert found.stdout.split("\0")[:-1] == [shlex.split(word)[0] for word in words]


@pytest.mark.parametrize(
    ("value", "written"),
    [(True, "k=true"), (None, "k=null"), (3, "k=3"), (0.5, "k=0.5"), ("a", "k=a"), (["a", "b c"], "'k=[a, \"b c\"]'")],
)
def test_values_are_written_as_a_person_would(value, written):
    assert setting("k", value) == written


def test_commands_stand_in_backticks():
    assert command("gc", output="my runs", delete=True) == "`bertray gc 'output=my runs' delete=true`"


def test_counts_have_the_number_of_their_noun():
    found = [counted(0, "row"), counted(1, "row"), counted(1234, "row"), counted(2, "class", "classes")]
    assert found == ["0 rows", "1 row", "1,234 rows", "2 classes"]


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0.0 %"), (0.0004, "< 0.1 %"), (0.0005, "0.1 %"), (0.5, "50.0 %"), (0.99949, "99.9 %"), (0.9996, "> 99.9 %"),
     (1, "100.0 %")],
)  # fmt: skip
def test_a_share_is_never_rounded_to_all_or_nothing(share, shown):
    assert percent(share) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0 s"), (6.0, "6 s"), (8.24, "8.2 s"), (9.4, "9.4 s"), (9.6, "10 s"), (59.6, "1 min 00 s"),
     (200, "3 min 20 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)  # fmt: skip
def test_a_duration_is_rounded_before_it_is_split(seconds, shown):
    assert duration(seconds) == shown
