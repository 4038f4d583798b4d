"""Help in groups with examples, completion of commands, keys and values, and settings that a shell has split."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from bertray.cli import SUMMARIES, app, run
from bertray.commands.overview import EXAMPLES, GROUPS
from bertray.config import guess_verb, load_config
from bertray.errors import ConfigError
from tests.config_files import TRAIN

VERBS = {*(command.name or "" for command in app.registered_commands), "config"}


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert run(list(argv)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["train"], ["config"]])
def test_help_is_a_word_too(capsys, words):
    assert shown(capsys, "help", *words) == shown(capsys, *words, "--help")


def test_a_mistyped_command_ends_with_one_mark(capsys):
    assert run(["trian"]) == 2
    assert capsys.readouterr().err == (
        "bertray trian: No such command 'trian'. Did you mean 'train', 'pretrain'?\n"
        "bertray: exit 2 (configuration): `bertray --help` lists the commands.\n"
    )


def test_every_command_stands_in_one_group_and_has_an_example():
    assert sorted(verb for verbs in GROUPS.values() for verb in verbs) == sorted(VERBS)
    assert EXAMPLES.keys() == VERBS


def test_help_shows_commands_in_groups_init_and_plan_first(capsys):
    lines = shown(capsys, "--help").splitlines()
    titles = [line.removesuffix(":") for line in lines if re.fullmatch(r"[A-Z][\w ,]+:", line)]
    assert titles[-len(GROUPS) :] == list(GROUPS)
    shown_below = lines[lines.index("Start here:") :]
    verbs = [found[1] for line in shown_below if (found := re.match(r"  ([a-z]+)  ", line))]
    assert verbs == [verb for group in GROUPS.values() for verb in group]
    assert verbs[:2] == ["init", "plan"]


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_short_flag_of_help_shows_the_examples(verb, capsys):
    text = shown(capsys, verb, "-h")
    assert text == shown(capsys, verb, "--help")
    for example in EXAMPLES[verb]:
        assert f"  bertray {example}\n" in text


@pytest.mark.parametrize("example", [line for lines in EXAMPLES.values() for line in lines])
def test_the_settings_of_an_example_are_those_of_its_command(example):
    verb, *words = shlex.split(example)
    settings = [word for word in words if re.match(r"[a-z_.]+=", word) and verb != "predict"]
    if verb == "config":
        return
    if verb == "plan":
        settings += ["data.train=x"] if "input" not in " ".join(settings) else []
        verb = guess_verb([], settings)
    bare = {
        "init": "data=x",
        "audit": "data.train=x",
        "predict": "model=x",
        "fetch": "model=x",
        "promote": "name=x",
        "rollback": "name=x",
    }
    from_file = ["data.train=x"] if "-c train.yaml" in example else []
    texts = ["texts=[x]"] if verb == "predict" else []
    load_config(verb, [], [*([bare[verb]] if verb in bare else []), *texts, *from_file, *settings])


def completions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Words that bash offers for the last one, which may be empty."""
    monkeypatch.setenv("COMP_WORDS", shlex.join(["bertray", *words[:-1]]) + f" {words[-1]}")
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    monkeypatch.setenv("_BERTRAY_COMPLETE", "complete_bash")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        app([], prog_name="bertray", standalone_mode=False)
    return capsys.readouterr().out.split()


def test_commands_keys_and_values_are_completed(monkeypatch, capsys):
    def offered(*words: str) -> list[str]:
        return completions(monkeypatch, capsys, *words)

    assert offered("pr") == ["predict", "pretrain", "promote"]
    assert offered("train", "training.warm") == ["training.warmup_ratio="]
    assert offered("score", "output=o", "needs") == ["needs_review_below="]
    assert offered("score", "training.") == []
    # As bash splits `training.method=fi`, and as zsh and fish leave it.
    assert offered("train", "training.method", "=", "fi") == ["finetune"]
    assert offered("train", "training.method=fi") == ["training.method=finetune"]
    assert offered("score", "allow_empty", "=", "") == ["true", "false"]
    assert offered("plan", "data.tr") == ["data.train="]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Runs a script in a shell in which `bertray` is this package."""
    program = tmp_path / "bertray"
    start = "import sys; sys.argv[0] = 'bertray'; from bertray.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{start}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def lines(name: str, script: str) -> list[str]:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        options = ["--norc", "--noprofile"] if name == "bash" else ["-f"]
        done = subprocess.run([name, *options, "-c", script], capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return lines


def test_bash_puts_no_space_behind_a_key_and_one_behind_a_value(shell):
    script = """
    compopt() { echo "compopt $1 $2"; }
    eval "$(_BERTRAY_COMPLETE=source_bash bertray)"
    offer() { COMP_WORDS=(bertray "$@"); COMP_CWORD=$#; _bertray_completion bertray; echo "${COMPREPLY[@]}"; }
    offer train training.warm; offer train training.method = fi; offer pret
    """
    assert shell("bash", script) == ["compopt -o nospace", "training.warmup_ratio=", "finetune", "pretrain"]


def test_zsh_puts_no_space_behind_a_key_and_one_behind_a_value(shell):
    script = """
    autoload -Uz compinit && compinit -D && eval "$(_BERTRAY_COMPLETE=source_zsh bertray)"
    echo $_comps[bertray]
    compadd() { print -r -- compadd "${(qq)@}"; }
    _describe() { print -r -- others "${(P)2[@]}"; }
    _files() { print files; }
    offer() { words=(bertray "$@"); CURRENT=$#words; _bertray_completion; }
    offer train training.warm; offer train training.method=fi; offer gc; offer train nothing-like-it
    """
    assert shell("zsh", script) == [
        "_bertray_completion",
        "compadd '-S' '' '--' 'training.warmup_ratio='",
        "others training.method=finetune",
        f"others gc:{SUMMARIES['gc']}",
        "files",
    ]


def test_fish_has_the_script_of_the_parser(monkeypatch, capsys):
    monkeypatch.setenv("_BERTRAY_COMPLETE", "source_fish")
    with pytest.raises(SystemExit) as ended:
        app([], prog_name="bertray", standalone_mode=False)
    assert ended.value.code == 0
    assert "_BERTRAY_COMPLETE=complete_fish" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "quoted"),
    [
        ("labels={0: negative, 1: positive}", "'labels={0: negative, 1: positive}'"),
        ("labels=[negative, positive]", "'labels=[negative, positive]'"),
        ("keep_columns=[a, b]", "'keep_columns=[a, b]'"),
        ("input=[a.csv, b.csv]", "'input=[a.csv, b.csv]'"),
    ],
)
def test_a_setting_that_the_shell_split_is_shown_in_quotes(typed, quoted):
    verb, words = ("train", TRAIN) if "labels" in typed else ("score", ["input=in", "output=out"])
    with pytest.raises(ConfigError) as caught:
        load_config(verb, [], [*words, *typed.split(" ")])
    assert caught.value.remedy == f"Put it in quotes: `{quoted}`."
    assert load_config(verb, [], [*words, *shlex.split(quoted)])
    if verb == "train":  # `plan` looks at the words first
        with pytest.raises(ConfigError, match="split at its spaces"):
            guess_verb([], [*words, *typed.split(" ")])


def test_a_bracket_that_belongs_to_a_path_is_left_alone():
    config = load_config("score", [], ["input=[a", "output=b]"])
    assert (config.model_dump()["input"], config.model_dump()["output"]) == (("[a",), "b]")
