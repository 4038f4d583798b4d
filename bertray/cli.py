"""The command line: `bertray VERB ...` and `python jobs/VERB.py ...` are the same parser and the same code."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from textwrap import fill
from typing import Annotated, Any

import typer

import bertray
from bertray import config as configs
from bertray import runtime
from bertray.commands.overview import GroupedCommands, completed, completion_script, with_examples
from bertray.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, ConfigError, did_you_mean
from bertray.wording import visible

CODE_NAMES = {
    0: "done",
    1: "a bug",
    2: "configuration",
    4: "conflict",
    6: "data refused",
    7: "infrastructure: run the same command again",
    8: "release gate refused, or drift",
    130: "interrupted",
}
SUMMARIES = {
    "train": "Train a classifier on labelled reviews, and report on it.",
    "pretrain": "Train an encoder on unlabelled reviews (masked language model).",
    "tune": "Search hyperparameters of train; write the best as a config.",
    "evaluate": "Evaluate a model on labelled reviews: report and metrics.",
    "score": "Label review files: committed rows, quarantine, report.",
    "embed": "Embed review files: committed vectors, by score's commit.",
    "topics": "Find topics of reviews, with words, sentiment and a map.",
    "audit": "Find duplicates, leakage, wrong labels and broken rows.",
    "plan": "Forecast a train or score run; writes nothing.",
    "config": "Show a resolved config, or its JSON schema.",
    "compare": "Model B beside model A on the same reviews: paired tests, flips, what the rows could have found.",
    "promote": "A candidate becomes the model that a name stands for, if it passes the release gate.",
    "rollback": "A name stands for an earlier version again.",
    "registry": "Names of a registry, their versions, who let them in, and when.",
    "shares": "Share of each label per group, corrected for the model's errors.",
    "queue": "The reviews worth a person's minutes, as a spreadsheet.",
    "answers": "Take a filled-in queue back: agreement, conflicts, versions.",
    "files": "List the committed part files of an output, for exact readers.",
    "fetch": "Copy a model with its tokenizer into a folder that needs no network.",
    "predict": "Label texts typed on the command line, with probabilities.",
    "gc": "List what an output no longer needs; delete=true removes it.",
    "demo": "Run the whole path on bundled reviews, without network.",
    "benchmark": "Measure throughput here, beside what people use instead.",
    "doctor": "Check this machine: one line per check, with the remedy.",
    "init": "Inspect data and write a config of train or score for it.",
}

# What the parser raises for an unknown verb or flag; typer names only its subclass in public.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    cls=GroupedCommands,
    help="Reviews in, sentiment labels out: BERT-family models on Ray.",
    epilog="`bertray VERB -h` shows examples and keys. Settings are written key=value; flags are -c, -v, -h and "
    '--version alone. Completion in bash: eval "$(_BERTRAY_COMPLETE=source_bash bertray)"; in zsh and fish likewise.',
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(
    help=with_examples("config", SUMMARIES["config"]),
    short_help=SUMMARIES["config"],
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(config_app, name="config")

Files = Annotated[
    list[str] | None, typer.Option("-c", metavar="FILE.yaml", help="Config file; repeatable, later wins.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides: key.sub=value.", autocompletion=completed),
]
Verbose = Annotated[bool, typer.Option("-v", help="Debug messages, and the traceback of an error.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"bertray {bertray.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Reviews in, sentiment labels out: BERT-family models on Ray."""


def _key_help(verb: str) -> str:
    """Keys of a verb with defaults and descriptions, as one preformatted block for `--help`."""
    rows = configs.key_help(configs.CONFIGS[verb])
    lines = [
        f"  {key} = {default}\n{fill(description, 96, initial_indent=' ' * 6, subsequent_indent=' ' * 6)}"
        for key, default, description in rows
    ]
    return "\b\nKeys (key = default):\n" + "\n".join(lines)


def _register(verb: str, **settings: Any) -> Callable[[Any], Any]:
    """Decorator that makes a function a command, with summary, examples and keys as its help."""
    keys = _key_help(verb) if verb in configs.CONFIGS else None
    summary = SUMMARIES[verb]
    return app.command(verb, short_help=summary, help=with_examples(verb, summary), epilog=keys, **settings)


def _runner(verb: str) -> Callable[[Any], int]:
    """The function behind a verb; imported only when it runs, so that `--help` is quick."""
    from importlib import import_module

    runner: Callable[[Any], int] = getattr(import_module(f"bertray.commands.{verb}"), f"run_{verb}")
    return lambda loaded: runner(_pinned(loaded))


def _pinned(loaded: Any) -> Any:
    """The config with `registry:NAME` as the version that the name stands for now, for the whole of the run."""
    models = [getattr(loaded, key, None) for key in ("model", "a", "b")]
    models.append(getattr(getattr(loaded, "training", None), "teacher", None))
    if not any(isinstance(model, str) and model.startswith("registry:") for model in models):
        return loaded
    from bertray.trust.pinning import pinned

    return pinned(loaded)


def _set_up(verbose: bool) -> None:
    from bertray.console import set_up_logging

    set_up_logging(verbose=verbose)
    runtime.set_up_threads()
    for module, path in runtime.hidden_modules().items():
        raise ConfigError(
            f"{path}: hides Python's own module `{module}`, since its folder is in PYTHONPATH.",
            "Rename the file, or take the folder out of PYTHONPATH (`ray job submit --working-dir` puts it there).",
        )


def _add_verb(verb: str) -> None:
    def command(overrides: Overrides = None, files: Files = None, verbose: Verbose = False) -> None:
        _set_up(verbose)
        loaded = configs.load_config(verb, files or [], overrides or [])
        raise typer.Exit(_runner(verb)(loaded))

    _register(verb)(command)


VERBS = (
    "demo",
    "doctor",
    "train",
    "pretrain",
    "tune",
    "evaluate",
    "score",
    "embed",
    "topics",
    "compare",
    "shares",
    "queue",
    "answers",
    "files",
    "gc",
    "benchmark",
)
for _verb in VERBS:
    _add_verb(_verb)


@_register("audit")
def _audit(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA] [KEY=VALUE]...", help="File, folder or glob, then keys.", autocompletion=completed
        ),
    ] = None,
    files: Files = None,
    verbose: Verbose = False,
) -> None:
    _set_up(verbose)
    paths, keys = _paths_and_keys("audit", data or [])
    if paths and any(key.startswith("data.train=") for key in keys):
        raise ConfigError("audit: DATA and data.train both name the reviews to audit.", "Give one of them.")
    given = [f"data.train={_yaml_list(paths)}"] if paths else []
    loaded = configs.load_config("audit", files or [], [*given, *keys])
    raise typer.Exit(_runner("audit")(loaded))


def _add_named_verb(verb: str, key: str, shown: str, told: str) -> None:
    """A verb whose first word may be the bare value of a key."""
    given: Any = typer.Argument(None, metavar=f"{shown} [KEY=VALUE]...", help=told, autocompletion=completed)

    def command(words: list[str] | None = given, files: Files = None, verbose: Verbose = False) -> None:
        _set_up(verbose)
        loaded = configs.load_config(verb, files or [], _first_as(verb, key, words or []))
        raise typer.Exit(_runner(verb)(loaded))

    _register(verb)(command)


def _first_as(verb: str, key: str, words: list[str]) -> list[str]:
    """Overrides, of which the first may be the bare value of a key."""
    bare = next((at for at, word in enumerate(words) if "=" in word), len(words))
    if bare > 1:
        raise ConfigError(f"{verb}: expected one {key}, found {bare}: {', '.join(words[:bare])}.")
    return [*(f"{key}={word}" for word in words[:bare]), *words[bare:]]


for _verb in ("promote", "rollback", "registry"):
    _add_named_verb(_verb, "name", "[NAME]", "Name in the registry, then keys.")
_add_named_verb("fetch", "model", "MODEL", "Hub id or folder, then keys.")


# What follows the first word is taken as it stands, `--` among it: after that even `-v` and `a=b` are texts.
@_register("predict", context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]})
def _predict(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL [KEY=VALUE]... [--] TEXT...", help="Model, then texts.")
    ] = None,
    files: Files = None,
    verbose: Verbose = False,
) -> None:
    _set_up(verbose)
    model, rest = (words or [])[:1], (words or [])[1:]
    at = rest.index("--") if "--" in rest else len(rest)
    keys = [word for word in rest[:at] if _is_override("predict", word)]
    texts = [word for word in rest[:at] if word not in keys] + rest[at + 1 :]
    given = [*(f"model={name}" for name in model if not _is_override("predict", name)), *keys]
    given += [name for name in model if _is_override("predict", name)]
    values = configs.load_values("predict", files or [], given, {"texts": texts} if texts else {})
    if not values.get("texts"):
        named = shlex.quote(str(values.get("model", "runs/first/model")))
        raise ConfigError(
            "predict: expected a text to label, found none.", f'Add it: `bertray predict {named} "Great tent!"`.'
        )
    loaded = configs.build_config("predict", values)
    raise typer.Exit(_runner("predict")(loaded))


@_register("plan")
def _plan(overrides: Overrides = None, files: Files = None, verbose: Verbose = False) -> None:
    _set_up(verbose)
    verb = configs.guess_verb(files or [], overrides or [])
    raise typer.Exit(_runner("plan")(configs.load_config(verb, files or [], overrides or [])))


@_register("init")
def _init(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA [KEY=VALUE]...", help="File, folder or glob, then keys.", autocompletion=completed
        ),
    ] = None,
    files: Files = None,
    verbose: Verbose = False,
) -> None:
    _set_up(verbose)
    from bertray.commands.init import run_init

    paths, keys = _paths_and_keys("init", data or [])
    if not paths and not files and not any(key.startswith("data=") for key in keys):
        raise ConfigError("init: expected data, found none.", "Name it: `bertray init reviews.csv output=train.yaml`.")
    given = [f"data={_yaml_list(paths)}"] if paths else []
    loaded = configs.load_config("init", files or [], [*given, *keys])
    assert isinstance(loaded, configs.InitConfig)
    raise typer.Exit(run_init(loaded))


def _paths_and_keys(verb: str, words: list[str]) -> tuple[list[str], list[str]]:
    """The words that name data, and the overrides."""
    keys = [word for word in words if _is_override(verb, word)]
    return [word for word in words if word not in keys], keys


def _is_override(verb: str, word: str) -> bool:
    key = word.partition("=")[0]
    return "=" in word and key.split(".")[0] in configs.CONFIGS[verb].model_fields


def _yaml_list(paths: list[str]) -> str:
    return "[" + ", ".join("'" + path.replace("'", "''") + "'" for path in paths) + "]"


VerbArgument = Annotated[str, typer.Argument(metavar="VERB", help=", ".join(configs.CONFIGS))]


def _known(verb: str) -> str:
    if verb not in configs.CONFIGS:
        raise ConfigError(
            f"{verb!r}: no such verb.{did_you_mean(verb, configs.CONFIGS)}", f"One of {', '.join(configs.CONFIGS)}."
        )
    return verb


@config_app.command("show", help="Print the fully resolved config of a verb as YAML that -c reads back.")
def _config_show(
    verb: VerbArgument, overrides: Overrides = None, files: Files = None, verbose: Verbose = False
) -> None:
    _set_up(verbose)
    typer.echo(configs.to_yaml(configs.load_config(_known(verb), files or [], overrides or [])), nl=False)


@config_app.command("schema", help="Print the JSON schema of a verb's config, for editors.")
def _config_schema(verb: VerbArgument, verbose: Verbose = False) -> None:
    import json

    _set_up(verbose)
    typer.echo(json.dumps(configs.json_schema(_known(verb)), indent=2))


def main(argv: list[str] | None = None) -> None:
    """Run one command and leave the process with its exit code."""
    runtime.set_up_streams()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` and cron say goodbye as Ctrl-C does
    words = sys.argv[1:] if argv is None else argv
    code = run(words)
    if code and words[0] in ("init", "files", "config"):
        from bertray.console import remove_empty_stdout

        remove_empty_stdout()
    runtime.close_streams()
    if code == EXIT_INTERRUPTED:
        # Threads of Ray and torch may be anywhere in native code; an orderly end of the interpreter can crash on them.
        # What had to be closed, Ray's processes among it, has been by now.
        os._exit(code)
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run one command; returns its exit code and never lets a user's error out as a traceback."""
    if script := completion_script(os.environ.get("_BERTRAY_COMPLETE", "")):
        print(script)
        return EXIT_OK
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    verbose = "-v" in argv
    name = f"bertray {argv[0]}" if argv and not argv[0].startswith("-") else "bertray"
    try:
        code = app(argv or ["--help"], standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # typer has turned Ctrl-C into a code
            raise KeyboardInterrupt
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except (KeyboardInterrupt, typer.Abort):
        return _leave(EXIT_INTERRUPTED, "run the same command again to go on")
    except Exception as error:
        from bertray.execution.remote_errors import known_error

        if isinstance(error, _UsageError):
            verb = argv[0] if argv and argv[0] in configs.CONFIGS else ""
            flag = getattr(error, "option_name", "")
            near = configs.flag_as_key(verb, flag) if verb and flag.startswith("--") else ""
            said = error.format_message().partition(" (Possible")[0].removesuffix(".")
            _say(f"{name}: {said}{'' if said.endswith('?') else '.'}{near}")
            remedy = f"Settings are written key=value; `bertray {verb} --help` lists the keys." if verb else ""
            return _leave(ConfigError.exit_code, remedy or "`bertray --help` lists the commands.")
        known = known_error(error)
        if verbose or known is None:
            logging.getLogger("bertray").error("traceback", exc_info=error)
        if known is None:
            _say(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return _leave(EXIT_BUG, "please report it with the traceback above")
        verb = argv[0] if argv else ""
        _say(f"{name}: {known.message.removeprefix(f'{verb} config: ').removeprefix(f'{verb}: ')}")
        return _leave(known.exit_code, known.remedy)


def _say(line: str) -> None:
    print(visible(line), file=sys.stderr)


def _leave(code: int, remedy: str) -> int:
    _say(f"bertray: exit {code} ({CODE_NAMES.get(code, 'failed')}){': ' + remedy if remedy else ''}")
    return code


if __name__ == "__main__":
    main()
