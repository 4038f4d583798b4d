"""One function a verb: the same keys as the commands, nested as dicts, tables in memory, results instead of lines.

Every function takes `config`, a YAML file or several (later ones win, keywords last), and `verbose`, which shows log
lines on stderr. Without `output` a run goes to a temporary folder that lives as long as its result.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from bertray.api.calls import call, plain
from bertray.api.classifier import Classifier
from bertray.api.embedder import Embedder
from bertray.api.tables import as_files, is_table
from bertray.config import build_config, guess_verb, load_values
from bertray.errors import ConfigError
from bertray.execution.session import has_other_machines
from bertray.runs.results import (
    AuditResult,
    EmbedResult,
    EvaluationResult,
    GarbageResult,
    PlanResult,
    PretrainResult,
    Result,
    ScoreResult,
    TopicsResult,
    TrainResult,
    TuneResult,
)
from bertray.trust.pinning import pinned

if TYPE_CHECKING:
    from bertray.runs.model_comparison import ComparisonResult
    from bertray.runs.promotion import PromotionResult
    from bertray.runs.registered import RegisteredName

ConfigFiles = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
# Verbs that read an output or write to a registry, so that there is none to make up.
WITHOUT_OUTPUT = ("files", "gc", "promote", "rollback", "registry")
ResultT = TypeVar("ResultT", bound=Result)


def train(
    data: Any = None,
    *,
    validation: Any = None,
    test: Any = None,
    config: ConfigFiles = None,
    verbose: bool = False,
    **keys: Any,
) -> TrainResult:
    """Train a classifier on labelled reviews, and evaluate it.

    Args:
        data: labelled reviews: path, list of paths, or table with the columns `text` and `label`; or all keys of
            `data` as a dict.
        validation: chooses the best epoch; by default a tenth of `data`.
        test: for the figures; by default they are on validation rows, and say so.
        config, verbose: see the module.
        keys: of `bertray train`, such as `model="bert-base-uncased"`, `training={"epochs": 2}`, `output="runs/first"`.

    Raises:
        ConfigError, ConflictError, DataRefused, InfrastructureError: as the command's exit codes 2, 4, 6 and 7.
    """
    given = _with_splits(data, validation, test)
    given = _joined("model", _model_of(keys.pop("model", None)), _joined("data", given, keys))
    with _opened("train", given, config, verbose) as opened:
        from bertray.runs.training import train as run

        return opened.finished(run(opened.config))


def evaluate(
    model: Any = None, data: Any = None, *, config: ConfigFiles = None, verbose: bool = False, **keys: Any
) -> EvaluationResult:
    """Evaluate a model on labelled reviews.

    Args:
        model: folder, hub id, `Classifier`, or the result of `train`.
        data: labelled reviews: path, list of paths, or table.
        config, verbose: see the module.
        keys: of `bertray evaluate`.
    """
    given = _joined("model", _model_of(model), _joined("input", data, keys))
    with _opened("evaluate", given, config, verbose) as opened:
        from bertray.runs.model_evaluation import evaluate as run

        return opened.finished(run(opened.config))


def score(*, config: ConfigFiles = None, verbose: bool = False, **keys: Any) -> ScoreResult:
    """Label new review files, and commit the rows to an output, each row once.

    Tables in memory are for `Classifier`: the ledger of an output remembers which files it holds.

    Args:
        config, verbose: see the module.
        keys: of `bertray score`: `model`, `input` (path or list of paths), `output`, `slot` ….
    """
    with _opened("score", _joined("model", _model_of(keys.pop("model", None)), keys), config, verbose) as opened:
        from bertray.runs.night import score as run

        return opened.finished(run(opened.config))


def embed(data: Any = None, *, config: ConfigFiles = None, verbose: bool = False, **keys: Any) -> EmbedResult:
    """Embed new reviews, and commit the vectors to an output as scored rows are.

    Args:
        data: reviews: path, list of paths, or table.
        config, verbose: see the module.
        keys: of `bertray embed`.
    """
    given = _joined("model", _model_of(keys.pop("model", None)), _joined("input", data, keys))
    with _opened("embed", given, config, verbose) as opened:
        from bertray.runs.embedding import embed as run

        return opened.finished(run(opened.config))


def pretrain(data: Any = None, *, config: ConfigFiles = None, verbose: bool = False, **keys: Any) -> PretrainResult:
    """Adapt an encoder to reviews without labels, or learn a new one.

    Args:
        data: reviews: path, list of paths, or table.
        config, verbose: see the module.
        keys: of `bertray pretrain`.
    """
    with _opened("pretrain", _joined("input", data, keys), config, verbose) as opened:
        from bertray.runs.pretraining import pretrain as run

        return opened.finished(run(opened.config))


def tune(
    data: Any = None,
    *,
    validation: Any = None,
    test: Any = None,
    config: ConfigFiles = None,
    verbose: bool = False,
    **keys: Any,
) -> TuneResult:
    """Search over settings of `train`; needs the extra `tune`.

    Args:
        data, validation, test: as for `train`.
        config, verbose: see the module.
        keys: of `bertray tune`, such as `search={"trials": 8}`.
    """
    with _opened("tune", _joined("data", _with_splits(data, validation, test), keys), config, verbose) as opened:
        from bertray.runs.tuning import tune as run

        return opened.finished(run(opened.config))


def audit(
    data: Any = None,
    *,
    validation: Any = None,
    test: Any = None,
    config: ConfigFiles = None,
    verbose: bool = False,
    **keys: Any,
) -> AuditResult:
    """Look for duplicates, leaks, conflicting and doubtful labels and broken rows; needs the extra `audit`.

    Args:
        data, validation, test: splits, each a path, a list of paths, or a table.
        config, verbose: see the module.
        keys: of `bertray audit`.
    """
    with _opened("audit", _joined("data", _with_splits(data, validation, test), keys), config, verbose) as opened:
        from bertray.runs.data_audit import audit as run

        return opened.finished(run(opened.config))


def topics(data: Any = None, *, config: ConfigFiles = None, verbose: bool = False, **keys: Any) -> TopicsResult:
    """Find topics of reviews; needs the extra `topics`.

    Args:
        data: raw reviews: path, list of paths, or table; not needed beside `scored`, where that holds the text.
        config, verbose: see the module.
        keys: of `bertray topics`.
    """
    given = _joined("model", _model_of(keys.pop("model", None)), _joined("input", data, keys))
    with _opened("topics", given, config, verbose) as opened:
        from bertray.runs.topic_search import search_topics as run

        return opened.finished(run(opened.config))


def compare(
    a: Any = None, b: Any = None, data: Any = None, *, config: ConfigFiles = None, verbose: bool = False, **keys: Any
) -> ComparisonResult:
    """Compare model B with model A on the same labelled reviews, or two outputs by id; gains are B minus A.

    Args:
        a, b: models (folder, hub id, `Classifier`, result of `train`), or outputs of `score`, `evaluate` or `train`.
        data: labelled reviews: path, list of paths, or table; not needed beside two outputs.
        config, verbose: see the module.
        keys: of `bertray compare`, such as `rows="disagreements"`.
    """
    given = _joined("a", _model_of(a), _joined("b", _model_of(b), _joined("input", data, keys)))
    with _opened("compare", given, config, verbose) as opened:
        from bertray.runs.model_comparison import compare as run

        return opened.finished(run(opened.config))


def promote(
    name: str | None = None,
    model: Any = None,
    data: Any = None,
    *,
    config: ConfigFiles = None,
    verbose: bool = False,
    **keys: Any,
) -> PromotionResult:
    """Make a candidate the model that a name of a registry stands for, if it passes the release gate.

    Args:
        name: in the registry.
        model: candidate: folder, `Classifier`, or the result of `train`.
        data: labelled reviews: path, list of paths, or table.
        config, verbose: see the module.
        keys: of `bertray promote`, such as `registry="models"`, `protect=["language"]`.

    Raises:
        GateRefused: the gate said no.
    """
    given = _joined("name", name, _joined("model", _model_of(model), _joined("input", data, keys)))
    with _opened("promote", given, config, verbose) as opened:
        from bertray.runs.promotion import promote as run

        return run(opened.config)


def rollback(name: str | None = None, *, config: ConfigFiles = None, **keys: Any) -> RegisteredName:
    """Let a name of a registry stand for an earlier version again.

    Args:
        name: in the registry.
        keys: of `bertray rollback`: `registry`, `to`, `reason`.
    """
    with _opened("rollback", _joined("name", name, keys), config, verbose=False) as opened:
        from bertray.runs.registered import roll_back as run

        return run(opened.config)


def registry(
    registry: Any = None, name: str | None = None, *, config: ConfigFiles = None, **keys: Any
) -> list[RegisteredName]:
    """Names of a registry with their versions and history.

    Args:
        registry: folder, or `s3://` or `gs://` prefix.
        name: only this one.
    """
    given = _joined("registry", registry, _joined("name", name, keys))
    with _opened("registry", given, config, verbose=False) as opened:
        from bertray.runs.registered import list_names as run

        return run(opened.config)


def plan(*, config: ConfigFiles = None, verbose: bool = False, **keys: Any) -> PlanResult:
    """Files, rows, token lengths and time that `train` or `score` would take; nothing is written.

    Args:
        config, verbose: see the module.
        keys: of `bertray train`, where `data` or `training` is among them or in `config`, else of `bertray score`.
            `data` is a table or path, or all keys of `data` as a dict.
    """
    with call():  # a wrong file is told as an error of the package
        verb = guess_verb(_files_of(config), [f"{key}=" for key in keys])
    if "data" in keys:
        keys["data"] = _with_splits(keys["data"], None, None)
    with _opened(verb, _joined("model", _model_of(keys.pop("model", None)), keys), config, verbose) as opened:
        from bertray.runs.forecast import plan as run

        return opened.finished(run(opened.config))


def files(output: Any = None, slot: str | None = None, *, config: ConfigFiles = None, **keys: Any) -> list[str]:
    """Paths or URIs of the committed part files of an output, for exact readers.

    Args:
        output: of `score` or `embed`, or their result.
        slot: only this one.
    """
    given = _joined("slot", slot, _joined("output", _output_of(output), keys))
    with _opened("files", given, config, verbose=False) as opened:
        from bertray.runs.stored import committed_files as run

        return run(opened.config)


def gc(output: Any = None, *, config: ConfigFiles = None, **keys: Any) -> GarbageResult:
    """Show what an output no longer needs; `delete=True` removes it.

    Args:
        output: of `score` or `embed`, or their result.
        keys: of `bertray gc`: `delete`, `grace_days`.
    """
    with _opened("gc", _joined("output", _output_of(output), keys), config, verbose=False) as opened:
        from bertray.runs.stored import collect_garbage as run

        return run(opened.config)


# --- from arguments to a config --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    """The config of a call, and the folder that keeps its output."""

    config: Any
    folder: _TemporaryFolder | None

    def finished(self, result: ResultT) -> ResultT:
        """The result, which owns the folder."""
        return result if self.folder is None else replace(result, kept=self.folder)


class _TemporaryFolder:
    """A folder that is removed with the last reference to this object."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="bertray-")
        self._removal = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@contextlib.contextmanager
def _opened(verb: str, keys: Mapping[str, Any], config: ConfigFiles, verbose: bool) -> Iterator[_Opened]:
    """A call of a verb: its config, tables written out, third parties quiet, errors of the package alone."""
    with call(verbose=verbose), as_files(keys, verb) as files:
        values = load_values(verb, _files_of(config), values=plain(files))
        folder = None
        if "output" not in values and verb not in WITHOUT_OUTPUT:
            if has_other_machines():
                raise ConfigError(
                    "output: missing, and other machines of the cluster would not see a temporary folder of this one.",
                    "Give an `output` that every machine sees.",
                )
            folder = _TemporaryFolder()
            values["output"] = f"{folder.path}/{verb}"
        yield _Opened(pinned(build_config(verb, values)), folder)


def _files_of(config: ConfigFiles) -> list[str]:
    if config is None:
        return []
    given = [config] if isinstance(config, str | os.PathLike) else config
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


def _output_of(output: Any) -> Any:
    return output.output if isinstance(output, Result) else output


def _model_of(model: Any) -> Any:
    """A `model` value of a path, of a loaded model, or of the result of `train` or `pretrain`."""
    return model.model if isinstance(model, Classifier | Embedder | TrainResult | PretrainResult) else model
