"""Groups of commands, an example or two of each, and completion of keys: what `--help` and the Tab key show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup, TyperOption

from bertray import config as configs

GROUPS = {
    "Start here": ("init", "plan", "demo", "doctor"),
    "Train and evaluate": ("train", "evaluate", "predict", "tune", "pretrain", "fetch"),
    "Score every night": ("score", "embed", "files", "gc"),
    "Compare and release models": ("compare", "promote", "rollback", "registry"),
    "Trust a night": ("shares", "queue", "answers"),
    "Study reviews": ("audit", "topics"),
    "This machine, and configs": ("benchmark", "config"),
}
"""Commands by purpose; one that stands in no group is shown last."""

EXAMPLES = {
    "init": ("init reviews.csv output=train.yaml", "init incoming/ verb=score output=nightly.yaml"),
    "plan": ("plan -c train.yaml output=runs/first", "plan -c nightly.yaml input=incoming/ output=scored"),
    "demo": ("demo", "demo output=demo-of-today"),
    "doctor": ("doctor", "doctor output=s3://bucket/folder"),
    "train": (
        "train -c train.yaml output=runs/first",
        "train data.train=reviews.csv columns.text=body 'labels={0: negative, 1: positive}' output=runs/first",
    ),
    "evaluate": ("evaluate model=runs/first/model input=test.csv output=runs/first-on-test",),
    "predict": (
        'predict runs/first/model "Great tent!"',
        'predict runs/first/model -- "a=b is text here" "-v is, too"',
    ),
    "tune": ("tune -c train.yaml search.trials=20 output=runs/search",),
    "pretrain": ("pretrain input=reviews/ model=bert-base-uncased output=runs/adapted",),
    "fetch": ("fetch bert-base-chinese output=models/chinese",),
    "score": (
        "score -c nightly.yaml input=incoming/ output=scored",
        "score model=registry:reviews registry=models input=s3://bucket/incoming output=s3://bucket/scored",
    ),
    "embed": ("embed input=reviews/ output=vectors normalize=true dtype=float16",),
    "files": ("files output=scored slot=dt=2026-11-20",),
    "gc": ("gc output=scored", "gc output=scored delete=true"),
    "compare": ("compare a=runs/first/model b=runs/second/model input=test.csv output=runs/compared",),
    "promote": ("promote reviews model=runs/second/model input=test.csv registry=models",),
    "rollback": ("rollback reviews registry=models reason='wrong labels in October'",),
    "registry": ("registry registry=models",),
    "shares": ("shares scored=scored by='[product, week]' output=runs/shares",),
    "queue": ("queue scored=scored budget=50 output=runs/queue",),
    "answers": ("answers answers=runs/queue/queue.csv queue=runs/queue output=runs/answers",),
    "audit": ("audit reviews.csv output=runs/audit",),
    "topics": ("topics scored=scored input=incoming/ output=runs/topics",),
    "benchmark": ("benchmark input=reviews.csv max_length=256 output=runs/benchmark",),
    "config": ("config show train -c train.yaml output=runs/first", "config schema score"),
}
"""Command lines without the word `bertray`."""


def with_examples(verb: str, summary: str) -> str:
    """Summary of a command with its examples below, as click's help keeps their lines."""
    lines = "\n".join(f"  bertray {line}" for line in EXAMPLES.get(verb, ()))
    return f"{summary}\n\n\b\nExamples:\n{lines}" if lines else summary


class GroupedCommands(TyperGroup):
    """The commands of `bertray --help` under the headings of `GROUPS`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for option in self.params:  # typer's own, which writes to ~/.bashrc; the page on installation has the line
            if isinstance(option, TyperOption) and option.name in ("install_completion", "show_completion"):
                option.hidden = True

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the groups."""
        known = [verb for verbs in GROUPS.values() for verb in verbs]
        return [*(verb for verb in known if verb in self.commands), *(self.commands.keys() - set(known))]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for title, verbs in self._sections().items():
            with formatter.section(title):
                formatter.write_dl([(verb, self.commands[verb].get_short_help_str(width)) for verb in verbs])

    def _sections(self) -> dict[str, list[str]]:
        sections = {title: [verb for verb in verbs if verb in self.commands] for title, verbs in GROUPS.items()}
        grouped = {verb for verbs in sections.values() for verb in verbs}
        sections["More"] = [verb for verb in self.list_commands(None) if verb not in grouped]
        return {title: verbs for title, verbs in sections.items() if verbs}


def completed(ctx: typer.Context, incomplete: str) -> list[str]:
    """Words that may stand where a setting is typed: keys with their equals sign, or values of a key.

    bash splits words at the equals sign, other shells do not: `training.method=fi` comes in one word or in three.
    """
    config = configs.CONFIGS.get(ctx.info_name or "") or configs.TrainConfig
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={choice}" for choice in configs.choices(config, key) if choice.startswith(value)]
    before = _typed(ctx)
    if before[-1:] == ["="] and len(before) > 1:
        return [choice for choice in configs.choices(config, before[-2]) if choice.startswith(incomplete)]
    return [f"{name}=" for name in configs.keys(config) if name.startswith(incomplete)]


def _typed(ctx: typer.Context) -> Sequence[str]:
    """Settings that stand before the word that is completed."""
    given = (value for value in ctx.params.values() if isinstance(value, list | tuple))
    return [str(word) for word in next(given, ())]


# typer's own scripts put a space behind every word, so that `training.epochs=` could not be typed on. fish's does not.
_SCRIPTS = {
    "source_bash": r"""
_bertray_completion() {
    local IFS=$'\n'
    COMPREPLY=($(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _BERTRAY_COMPLETE=complete_bash "$1"))
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o default -F _bertray_completion bertray
""",
    "source_zsh": r"""
_bertray_completion() {
    local -a found=("${(@f)$(_TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _TYPER_COMPLETE_FISH_ACTION=get-args \
        _BERTRAY_COMPLETE=complete_fish "${words[1]}")}")
    local -a keys=("${(@M)found:#*=}") others=("${(@)${(@)found:#(*=|)}/$'\t'/:}")
    if (( $#keys )); then compadd -S '' -- "${keys[@]}"; fi
    if (( $#others )); then _describe bertray others; fi
    if (( ! $#keys && ! $#others )); then _files; fi
}
compdef _bertray_completion bertray
""",
}


def completion_script(wanted: str) -> str:
    """Script that a shell evaluates for completion, or nothing where the parser has one.

    Args:
        wanted: value of `_BERTRAY_COMPLETE`, such as `source_zsh`.
    """
    return _SCRIPTS.get(wanted, "")
