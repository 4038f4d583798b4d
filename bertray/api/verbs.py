"""One function a verb: the same keys as the commands, nested as dicts, tables in memory, results instead of lines.

Every function takes `config`, a YAML file or several (later ones win, keywords last). Those that may take long take
`verbose`, too, which shows log lines on stderr. Without `output` a run goes to a temporary folder that lives as long as
its result; `fetch`, `files`, `gc`, `promote`, `rollback` and `registry` make up none.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from bertray.api.calls import call, plain
from bertray.api.classifier import Classifier
from bertray.api.embedder import Embedder
from bertray.api.tables import as_files, is_table
from bertray.config import build_config, guess_verb, load_values
from bertray.errors import ConfigError
from bertray.execution.session import has_other_machines
from bertray.runs import (
    data_audit,
    embedding,
    fetched,
    forecast,
    label_shares,
    model_evaluation,
    night,
    night_results,
    results,
    review_queue,
    stored,
    taken_answers,
    topic_search,
    trust_results,
)
from bertray.runs.fit import pretraining, training, tuning
from bertray.runs.release import model_comparison, promotion, registered
from bertray.trust.pinning import pinned

ConfigFiles = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
# Verbs that read an output or write to a registry, so that there is none to make up.
WITHOUT_OUTPUT = ("fetch", "files", "gc", "promote", "rollback", "registry")
ResultT = TypeVar("ResultT")


def train(
    data: Any = None,
    *,
    validation: Any = None,
    test: Any = None,
    config: ConfigFiles = None,
    verbose: bool = False,
    **keys: Any,
) -> results.TrainResult:
    """Train a classifier on labelled reviews, and evaluate it.

    Args:
        data: labelled reviews: path, list of paths, or table with the columns `text` and `label`; or all keys of
            `data` as a dict.
        validation: chooses the best epoch; by default a tenth of `data`.
        test: for the figures; by default they are on validation rows, and say so.
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray train`, such as `model="bert-base-uncased"`, `training={"epochs": 2}`, `output="runs/first"`.

    Returns:
        `TrainResult`: figures, findings, the model and the page.

    Raises:
        ConfigError, ConflictError, DataRefused, InfrastructureError: as the command's exit codes 2, 4, 6 and 7.
    """
    return _call("train", training.train, _joined("data", _with_splits(data, validation, test), keys), config, verbose)


def evaluate(
    model: Any = None, data: Any = None, *, config: ConfigFiles = None, verbose: bool = False, **keys: Any
) -> results.EvaluationResult:
    """Evaluate a model on labelled reviews.

    Args:
        model: folder, hub id, `Classifier`, or the result of another call.
        data: labelled reviews: path, list of paths, or table.
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray evaluate`.

    Returns:
        `EvaluationResult`: figures, findings, predictions and the page.
    """
    given = _joined("model", model, _joined("input", data, keys))
    return _call("evaluate", model_evaluation.evaluate, given, config, verbose)


def score(*, config: ConfigFiles = None, verbose: bool = False, **keys: Any) -> night_results.ScoreResult:
    """Label new review files, and commit the rows to an output, each row once.

    Tables in memory are for `Classifier`: the ledger of an output remembers which files it holds.

    Args:
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray score`: `model`, `input` (path or list of paths), `output`, `slot` ….

    Returns:
        `ScoreResult`: the runs that were committed, with their rows, reasons and pages.
    """
    return _call("score", night.score, keys, config, verbose)


def embed(
    data: Any = None, *, config: ConfigFiles = None, verbose: bool = False, **keys: Any
) -> night_results.EmbedResult:
    """Embed new reviews, and commit the vectors to an output as scored rows are.

    Args:
        data: reviews: path, list of paths, or table.
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray embed`.

    Returns:
        `EmbedResult`: the runs that were committed, with their rows and reasons.
    """
    return _call("embed", embedding.embed, _joined("input", data, keys), config, verbose)


def pretrain(
    data: Any = None, *, config: ConfigFiles = None, verbose: bool = False, **keys: Any
) -> results.PretrainResult:
    """Adapt an encoder to reviews without labels, or learn a new one.

    Args:
        data: reviews: path, list of paths, or table.
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray pretrain`.

    Returns:
        `PretrainResult`: the encoder and its metrics.
    """
    return _call("pretrain", pretraining.pretrain, _joined("input", data, keys), config, verbose)


def tune(
    data: Any = None,
    *,
    validation: Any = None,
    test: Any = None,
    config: ConfigFiles = None,
    verbose: bool = False,
    **keys: Any,
) -> results.TuneResult:
    """Search over settings of `train`; needs the extra `tune`.

    Args:
        data: as for `train`.
        validation: as for `train`.
        test: as for `train`.
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray tune`, such as `search={"trials": 8}`.

    Returns:
        `TuneResult`: the best settings, as a config, and all trials.
    """
    return _call("tune", tuning.tune, _joined("data", _with_splits(data, validation, test), keys), config, verbose)


def audit(
    data: Any = None,
    *,
    validation: Any = None,
    test: Any = None,
    config: ConfigFiles = None,
    verbose: bool = False,
    **keys: Any,
) -> results.AuditResult:
    """Look for duplicates, leaks, conflicting and doubtful labels and broken rows; needs the extra `audit`.

    Args:
        data: the train split: path, list of paths, or table.
        validation: another split, likewise.
        test: another split, likewise.
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray audit`.

    Returns:
        `AuditResult`: findings, each with the table of its rows.
    """
    given = _joined("data", _with_splits(data, validation, test), keys)
    return _call("audit", data_audit.audit, given, config, verbose)


def topics(data: Any = None, *, config: ConfigFiles = None, verbose: bool = False, **keys: Any) -> results.TopicsResult:
    """Find topics of reviews; needs the extra `topics`.

    Args:
        data: raw reviews: path, list of paths, or table; not needed beside `scored`, where that holds the text.
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray topics`.

    Returns:
        `TopicsResult`: topics, and the topic of each review.
    """
    return _call("topics", topic_search.search_topics, _joined("input", data, keys), config, verbose)


def compare(
    a: Any = None, b: Any = None, data: Any = None, *, config: ConfigFiles = None, verbose: bool = False, **keys: Any
) -> model_comparison.ComparisonResult:
    """Compare model B with model A on the same labelled reviews, or two outputs by id; gains are B minus A.

    Args:
        a: model (folder, hub id, `Classifier`, result of `train`), or output of `score`, `evaluate` or `train`.
        b: another, likewise.
        data: labelled reviews: path, list of paths, or table; not needed beside two outputs.
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray compare`, such as `rows="disagreements"`.

    Returns:
        `ComparisonResult`: figures, sentences, and the queue of disagreements.
    """
    given = _joined("a", a, _joined("b", b, _joined("input", data, keys)))
    return _call("compare", model_comparison.compare, given, config, verbose)


def promote(
    name: str | None = None,
    model: Any = None,
    data: Any = None,
    *,
    config: ConfigFiles = None,
    verbose: bool = False,
    **keys: Any,
) -> promotion.PromotionResult:
    """Make a candidate the model that a name of a registry stands for, if it passes the release gate.

    Args:
        name: in the registry.
        model: candidate: folder, `Classifier`, or the result of `train`.
        data: labelled reviews: path, list of paths, or table.
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray promote`, such as `registry="models"`, `protect=["language"]`.

    Returns:
        `PromotionResult`: the name, its new version and the one before.

    Raises:
        GateRefused: the gate said no.
    """
    given = _joined("name", name, _joined("model", model, _joined("input", data, keys)))
    return _call("promote", promotion.promote, given, config, verbose)


def rollback(name: str | None = None, *, config: ConfigFiles = None, **keys: Any) -> registered.RegisteredName:
    """Let a name of a registry stand for an earlier version again.

    Args:
        name: in the registry.
        config: YAML file of keys, or several; keywords win.
        keys: of `bertray rollback`: `registry`, `to`, `reason`.

    Returns:
        `RegisteredName`: the name with its versions and history.
    """
    return _call("rollback", registered.roll_back, _joined("name", name, keys), config)


def registry(
    registry: Any = None, name: str | None = None, *, config: ConfigFiles = None, **keys: Any
) -> list[registered.RegisteredName]:
    """Names of a registry with their versions and history.

    Args:
        registry: folder, or `s3://`, `gs://` or `az://` prefix.
        name: only this one.
        config: YAML file of keys, or several; keywords win.
        keys: of `bertray registry`.

    Returns:
        A list of `RegisteredName`.
    """
    given = _joined("registry", registry, _joined("name", name, keys))
    return _call("registry", registered.list_names, given, config)


def shares(
    scored: Any = None,
    by: Sequence[str] | None = None,
    *,
    config: ConfigFiles = None,
    verbose: bool = False,
    **keys: Any,
) -> trust_results.SharesResult:
    """Share of each label per group, corrected for the errors of the model, with intervals.

    Args:
        scored: output of `score`, or its result.
        by: columns whose values are groups.
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray shares`, such as `answers="answers/"`.

    Returns:
        `SharesResult`: a line for each group and label, and the table.
    """
    given = _joined("scored", scored, _joined("by", by, keys))
    return _call("shares", label_shares.shares, given, config, verbose)


def queue(
    scored: Any = None, *, config: ConfigFiles = None, verbose: bool = False, **keys: Any
) -> trust_results.QueueResult:
    """Draw the reviews that are worth a person's minutes, as a spreadsheet.

    Args:
        scored: output of `score`, or its result.
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray queue`: `budget`, `slot`.

    Returns:
        `QueueResult`: paths of the spreadsheet, and how many reviews were drawn in which way.
    """
    return _call("queue", review_queue.queue_reviews, _joined("scored", scored, keys), config, verbose)


def answers(
    answers: Any = None, queue: Any = None, *, config: ConfigFiles = None, **keys: Any
) -> trust_results.AnswersResult:
    """Take filled-in queues back: one label a review, versioned.

    Args:
        answers: path or list of paths of the filled-in files.
        queue: output of `queue`, or its result.
        config: YAML file of keys, or several; keywords win.
        keys: of `bertray answers`: `who`, `labels`.

    Returns:
        `AnswersResult`: what was taken, and what was in conflict.
    """
    given = _joined("answers", answers, _joined("queue", queue, keys))
    return _call("answers", taken_answers.take_answers, given, config)


def plan(*, config: ConfigFiles = None, verbose: bool = False, **keys: Any) -> results.PlanResult:
    """Files, rows, token lengths and time that `train` or `score` would take; nothing is written.

    Args:
        config: YAML file of keys, or several; keywords win.
        verbose: show the log on stderr.
        keys: of `bertray train`, where `data` or `training` is among them or in `config`, else of `bertray score`.
            `data` is a table or path, or all keys of `data` as a dict.

    Returns:
        `PlanResult`: files, rows, seconds and price.
    """
    with call():  # a wrong file is told as an error of the package
        verb = guess_verb(_files_of(config), [f"{key}=" for key in keys])
    if "data" in keys:
        keys["data"] = _with_splits(keys["data"], None, None)
    return _call(verb, forecast.plan, keys, config, verbose)


def files(output: Any = None, slot: str | None = None, *, config: ConfigFiles = None, **keys: Any) -> list[str]:
    """Paths or URIs of the committed part files of an output, for exact readers.

    Args:
        output: of `score` or `embed`, or their result.
        slot: only this one.
        config: YAML file of keys, or several; keywords win.
        keys: of `bertray files`.

    Returns:
        Paths or URIs, as text.
    """
    given = _joined("slot", slot, _joined("output", output, keys))
    return _call("files", stored.list_files, given, config)


def gc(output: Any = None, *, config: ConfigFiles = None, **keys: Any) -> results.GarbageResult:
    """Show what an output no longer needs; `delete=True` removes it.

    Args:
        output: of `score` or `embed`, or their result.
        config: YAML file of keys, or several; keywords win.
        keys: of `bertray gc`: `delete`, `grace_days`.

    Returns:
        `GarbageResult`: files and bytes, and whether they were removed.
    """
    return _call("gc", stored.collect_garbage, _joined("output", output, keys), config)


def fetch(model: Any = None, *, config: ConfigFiles = None, **keys: Any) -> fetched.FetchResult:
    """A model with its tokenizer into a folder that another machine can use without network.

    Args:
        model: hub id, folder or prefix.
        config: YAML file of keys, or several; keywords win.
        keys: of `bertray fetch`: `output`.

    Returns:
        `FetchResult`: where the model is now.
    """
    return _call("fetch", fetched.fetch_model, _joined("model", model, keys), config)


# --- from arguments to a config --------------------------------------------------------------------------------------


class _TemporaryFolder:
    """A folder that is removed with the last reference to this object."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="bertray-")
        self._removal = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _call(
    verb: str, run: Callable[[Any], ResultT], keys: Mapping[str, Any], config: ConfigFiles, verbose: bool = False
) -> ResultT:
    """A run of a verb: its config, tables written out, third parties quiet, errors of the package alone."""
    with call(verbose=verbose), as_files(_places(keys), verb, is_whole=config is None) as files:
        values = load_values(verb, _files_of(config), values=plain(files))
        if "output" in values or verb in WITHOUT_OUTPUT:
            return run(pinned(build_config(verb, values)))
        if has_other_machines():
            raise ConfigError(
                "output: missing, and other machines of the cluster would not see a temporary folder of this one.",
                "Give an `output` that every machine sees.",
            )
        folder = _TemporaryFolder()
        result: Any = run(pinned(build_config(verb, {**values, "output": f"{folder.path}/{verb}"})))
        kept: ResultT = replace(result, kept=folder)  # which lives as long as the result
        return kept


def _files_of(config: ConfigFiles) -> list[str]:
    if config is None:
        return []
    given = [config] if isinstance(config, str | os.PathLike) else config
    if not isinstance(given, Sequence) or not all(isinstance(path, str | os.PathLike) for path in given):
        raise ConfigError(f"config: expected a path or a list of paths, found {type(config).__name__}.")
    return [os.fspath(path) for path in given]


def _with_splits(data: Any, validation: Any, test: Any) -> Any:
    """Keys of `data`: what stands in the place of `data.train`, or all of them as a dict, with the other splits."""
    given = dict(data) if isinstance(data, Mapping) and not is_table(data) else {"train": data}
    for name, split in (("validation", validation), ("test", test)):
        if split is not None:
            if given.get(name) is not None:
                raise ConfigError(f"data.{name}: given twice.", "Give it as a keyword or in the dict.")
            given[name] = split
    return {name: value for name, value in given.items() if value is not None} or None


def _joined(key: str, value: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords with an argument of a name of its own.

    Raises:
        ConfigError: the key is among the keywords, too.
    """
    if value is None:
        return dict(keys)
    if key in keys:
        raise ConfigError(f"{key}: given twice.", f"Leave out {key}= or the argument in its place.")
    return {**keys, key: value}


def _places(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with the path of its model, or of its output, in place of a loaded model or the result of another call."""
    return {
        key: _places(value) if isinstance(value, Mapping) and not is_table(value) else _place_of(key, value)
        for key, value in keys.items()
    }


def _place_of(key: str, value: Any) -> Any:
    has_model = isinstance(value, Classifier | Embedder | results.TrainResult | results.PretrainResult)
    if has_model and key not in ("output", "scored"):
        return value.model
    return value.output if isinstance(value, results.Result) else value
