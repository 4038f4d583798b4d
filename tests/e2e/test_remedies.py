"""Every printed remedy works when it is pasted into a shell: commands, settings and keys in backticks."""

from __future__ import annotations

import ast
import csv
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from bertray import config as configs
from bertray.cli import app, run

PACKAGE = Path(__file__).resolve().parents[2] / "bertray"
VERBS = {command.name for command in app.registered_commands} | {"config"}
SECTIONS = {key.split(".")[0] for config in configs.CONFIGS.values() for key in configs.keys(config) if "." in key}
KEYS = {key for config in configs.CONFIGS.values() for key in configs.keys(config)}
FILLED_IN = "\0"  # where an f-string has a value
NAMES = ["plain", "with space", "it's", 'say "so"', "#1", "a;b", "$HOME", "größe", "评论", "[ab]", "{x}", "&"]
CLASSES = [
    "yes",
    "null",
    "~",
    "1,0",
    "#1",
    "a: b",
    "it's",
    "größe",
    "{x}",
    "- a",
    "[b]",
    'say "so"',
    "true",
    "2026-01-01",
]


def messages() -> list[tuple[str, str]]:
    """(where, text) of every text of the package that is no docstring; values of f-strings are `FILLED_IN`."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped: set[ast.AST] = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else FILLED_IN for part in node.values]
                skipped.update(ast.walk(node))
                found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", "".join(map(str, parts))))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
                found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", node.value))
    return found


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def fault_of(span: str) -> str:
    """What is wrong with a command or setting, or an empty string."""
    words = shlex.split(span)
    if words[0] == "bertray":
        verb, *rest = [word for word in words[1:] if not word.startswith("-")] or ["--help"]
        if verb in ("VERB", "--help", FILLED_IN):
            return ""
        if verb not in VERBS:
            return f"no verb {verb}"
        known = set(configs.keys(configs.CONFIGS[verb])) if verb in configs.CONFIGS else KEYS
        words = [word for word in rest if "=" in word]
        return ", ".join(word for word in words if word.partition("=")[0] not in known)
    settings = [word for word in words if re.match(r"[a-z_.]+=", word)]
    if settings:
        return ", ".join(word for word in settings if word.partition("=")[0] not in KEYS)
    if re.fullmatch(r"[a-z_]+\.(?!html|json|yaml)[a-z_]+", span) and span.split(".")[0] in SECTIONS:
        return "" if span in KEYS or span in {key.rpartition(".")[0] for key in KEYS} else span
    return ""


@pytest.mark.slow
def test_commands_and_keys_in_messages_exist():
    spans = [(where, span) for where, text in messages() for span in in_backticks(text)]
    told = [(where, span) for where, span in spans if re.match(r"(bertray |'?[a-z_]+(\.[a-z_]+)*(=|$))", span)]
    assert len(told) > 80
    assert [(where, span, fault) for where, span in told if (fault := fault_of(span))] == []


@pytest.mark.parametrize(
    "span",
    ["bertray trian", "bertray train epochs=3", "training.epoch=3", "columns.body", "bertray score data=x"],
)
def test_what_does_not_exist_is_a_fault(span):
    assert fault_of(span)


def outcome(capsys: Any, *argv: str) -> tuple[int, str]:
    capsys.readouterr()
    code = run(list(argv))
    return code, capsys.readouterr().err


def settings_of(text: str) -> list[str]:
    """Words of the remedy in the last line, as a shell gives them."""
    [span] = in_backticks(text.splitlines()[-1])
    return shlex.split(span)


@pytest.mark.parametrize("name", CLASSES)
def test_labels_that_are_proposed_are_taken(tmp_path, tiny_encoder, capsys, name):
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [(f"r{n}", f"a film of words {n}", [name, "other"][n % 2]) for n in range(40)]
        csv.writer(file).writerows([("id", "text", "label"), *rows])
    argv = ["plan", f"data.train={path}", f"output={tmp_path / 'o'}", f"model={tiny_encoder}", "max_length=32"]
    code, text = outcome(capsys, *argv, "labels=[positive, negative]")
    assert code == 6, text
    code, text = outcome(capsys, *argv, *settings_of(text))
    assert code == 0, text


@pytest.mark.parametrize("name", NAMES)
def test_a_file_without_its_key_is_told_the_key(tmp_path, tiny_encoder, capsys, name):
    path = tmp_path / f"{name}.csv"
    path.write_text("id,text,label\n" + "".join(f"r{n},a film {n},{n % 2}\n" for n in range(40)))
    code, text = outcome(capsys, "train", str(path), f"output={tmp_path / 'o'}")
    assert code == 2, text
    config = configs.load_config("train", [], [*settings_of(text), "output=o"])
    assert config.model_dump()["data"]["train"] == (str(path),)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_given_as_a_model_is_told_where_the_model_is(tmp_path, tiny_encoder, capsys, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "model").symlink_to(tiny_encoder)
    path = tmp_path / "a.csv"
    path.write_text("id,text\nr1,a film\n")
    argv = [f"input={path}", f"output={tmp_path / 'o'}"]
    code, text = outcome(capsys, "score", f"model={tmp_path / name}", *argv)
    assert code == 2, text
    code, text = outcome(capsys, "score", *settings_of(text), *argv)
    assert "expected a trained classifier" in text  # the model was found
    verb, *words = settings_of(text)[1:]
    assert configs.load_config(verb, [], words).model_dump()["model"] == str(tmp_path / name / "model")


@pytest.mark.parametrize("name", NAMES)
def test_a_config_without_its_flag_is_told_the_flag(tmp_path, capsys, name):
    path = tmp_path / f"{name}.yaml"
    path.write_text("training: {epochs: 7}\n")
    code, text = outcome(capsys, "train", str(path), "data.train=x", "output=o")
    assert code == 2, text
    flag, file = settings_of(text)
    assert flag == "-c"
    assert configs.load_config("train", [file], ["data.train=x", "output=o"]).model_dump()["training"]["epochs"] == 7


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_full_names_the_output(tmp_path, monkeypatch, name):
    from bertray.errors import InfrastructureError
    from bertray.io.store import LocalStore
    from bertray.outputs import claims as runs

    monkeypatch.setattr(runs, "MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(InfrastructureError) as caught:
        runs.check_free_space(LocalStore(tmp_path / name), 0)
    [span] = in_backticks(caught.value.remedy)
    _, verb, *words = shlex.split(span)
    assert configs.load_config(verb, [], words).model_dump()["output"] == str(tmp_path / name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--epochs", "3"], "Did you mean 'training.epochs'?"),
        (["train", "--lr=3"], "Did you mean 'training.learning_rate'?"),
        (["score", "--needs-review-below", "1"], "Did you mean 'needs_review_below'?"),
        (["train", "max_length", "=", "64"], "Write `max_length=VALUE`, without spaces"),
        (["train", "-c", "{tmp}"], "expected a file, found a folder"),
        (["train", "-c", "{tmp}/trian.yaml"], "Did you mean 'train.yaml'?"),
        (["train", "-c", "{tmp}/a.csv"], "expected YAML of keys and values, found text"),
        (
            ["train", "data.train=x", "output=o", "training=3"],
            "expected keys below it, such as training.weight_decay",
        ),
        (["train", "data.train=x", "output=", "seed=x"], "output: expected a value, found nothing"),
        (["train", "data.train=x", "output=o", "labels=a,b"], "expected a list of class names"),
        (["score", "model={tmp}/a.csv", "input={tmp}/a.csv", "output={tmp}/o"], "expected a folder, found a file"),
        (["plan", "{tmp}/a.csv"], "Name the data by its key"),
    ],
)
def test_a_wrong_word_is_told_what_is_wrong_with_it(tmp_path, capsys, words, said):
    (tmp_path / "a.csv").write_text("id,text\nr1,a film\n")
    (tmp_path / "train.yaml").write_text("seed: 1\n")
    code, text = outcome(capsys, *(word.format(tmp=tmp_path) for word in words))
    assert code == 2, text
    assert said in text
