"""Labelled reviews, checked and tokenized once, and the examples that learning is done on: of `train` and `tune`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np

from bertray.config import TrainConfig
from bertray.console import Ticker
from bertray.errors import ConfigError, DataRefused
from bertray.execution.executor import Executor, Progress, Task, in_order
from bertray.execution.on_demand import ExecutorFor
from bertray.io.digests import cache_key
from bertray.io.store import Store
from bertray.model.bundle import BundleInfo, read_info, resolve_model
from bertray.outputs.control_files import add_counts
from bertray.reviews.clean import Cleaning
from bertray.reviews.corpus import Inputs, open_inputs, read_spec, scan_inputs, settings_for
from bertray.reviews.file_identity import with_digests_where_alike
from bertray.reviews.kept_rows import Keep, KeepRule, KeptRows
from bertray.reviews.labels import LabelMap, check_values, label_map
from bertray.reviews.reader import check_slices, plan_shards, read_rows
from bertray.reviews.rows import ROWS_PER_SHARD, InputFile, Period, ReadSpec
from bertray.schema import because
from bertray.scoring.read_unit import ReadAndKeep, ReadAndTokenize, ReadSettings, ReadUnit, name_of
from bertray.settings import settings_of
from bertray.training.examples import Examples
from bertray.training.token_shards import COLUMNS, TokenShardSummary, WriteTokenShard
from bertray.training.tokenized_data import TokenizedData
from bertray.wording import counted

log = logging.getLogger(__name__)

TOKENS = "control/tokens"
MANIFEST = "manifest.json"  # of a folder of token shards
LATER = "-later"  # ends the folder of kept rows of a later period of the same files
ROWS_COMPARED = 1000  # of files with as many rows, to tell whether they are copies
MOST_FILES_COMPARED = 100  # so; beyond, files with equal bytes are found alone


@dataclass(frozen=True)
class Teacher:
    """A bundle whose probabilities are learned instead of labels."""

    model: str
    info: BundleInfo

    @classmethod
    def of(cls, config: TrainConfig) -> Teacher | None:
        """Data of `training.method=distill`.

        Raises:
            ConfigError: there is no such bundle, or it reads other texts than the student is to read.
        """
        model = config.training.teacher
        if config.training.method != "distill" or model is None:
            return None
        try:
            info = read_info(resolve_model(model), model=model)
        except ConfigError as error:
            raise ConfigError(f"training.teacher: {error.message}", error.remedy) from error
        if info.text_pair:
            raise ConfigError(f"training.teacher: {model} was trained on pairs of texts.", "Give another teacher.")
        if (info.cleaning, info.max_chars) != (settings_of(Cleaning, config.cleaning), config.max_chars):
            raise ConfigError(
                f"cleaning, max_chars: the teacher {model} reads reviews otherwise.",
                "Set both as its bertray.json has them.",
            )
        return cls(model, info)


@dataclass(frozen=True)
class LabelledData:
    """The checked inputs of a run."""

    train: Inputs
    validation: Inputs | None
    test: Inputs | None
    labels: LabelMap
    fingerprint: str
    teacher: Teacher | None = None  # then `train` has no labels that anyone reads
    rare: tuple[str, ...] = ()  # a sentence for each class of few rows, and on aspects of none

    @property
    def num_learning_rows(self) -> int:
        """Rows of train and validation, before any is left out."""
        return self.train.num_rows + (self.validation.num_rows if self.validation else 0)

    @property
    def test_is_later(self) -> bool:
        """Whether the test split is a later period of the train files (`data.test_from`)."""
        return self.test is not None and self.test.spec.period is not None

    @property
    def num_rows(self) -> int:
        """Rows of all splits."""
        return sum(inputs.num_rows for inputs in (self.train, self.validation, self.test) if inputs)

    def keep_scans(self, store: Store) -> None:
        """Store the scans in the output of the run, which then need not scan again."""
        for inputs in (self.train, self.validation, self.test):
            if inputs:
                inputs.keep_scan(store)


def open_data(config: TrainConfig, executor_for: ExecutorFor) -> LabelledData:
    """The inputs of a run, scanned and checked.

    Raises:
        ConfigError, DataRefused: as `open_inputs`; labels that are unknown or too few.
    """
    teacher = Teacher.of(config)
    cleaning = settings_of(Cleaning, config.cleaning)
    rare: tuple[str, ...] = ()
    columns = [*config.report.slices]
    group = [config.data.group] if config.data.group else []
    label_spec = read_spec(
        config,
        cleaning,
        config.max_chars,
        wants_label=teacher is None,
        keep_columns=group if teacher else [*dict.fromkeys(columns + group)],
    )
    report_spec = read_spec(config, cleaning, config.max_chars, wants_label=True, keep_columns=columns)
    assert config.data.train is not None
    before, after = _periods(config)
    train_spec = replace(label_spec, period=before)
    settings = settings_for(train_spec, labels=teacher is None or after is not None)
    scanned = scan_inputs("data.train", config.data.train, config, settings, executor_for)
    scanned.refuse_bad()
    train = scanned.inputs(train_spec)
    validation = config.data.validation and open_inputs(
        "data.validation", config.data.validation, config, label_spec, executor_for
    )
    test_key, test = "data.test", None
    if after is not None:
        test_key = "data.test_from"
        test = replace(scanned, key=test_key).inputs(replace(report_spec, period=after))
    elif config.data.test:
        test = open_inputs(test_key, config.data.test, config, report_spec, executor_for)
    for inputs in (None if teacher else train, validation, test):
        if inputs:
            check_slices(inputs.files, inputs.spec, config.report.slices)
    if teacher:
        # In the order in which the teacher gives them.
        labels = replace(label_map(config.labels, teacher.info.label_map), names=teacher.info.labels)
    else:
        seen = train.label_counts
        if config.labels is None:
            rare = tuple(check_values(seen, config.columns.label, "data.train"))
        labels = LabelMap.from_config(config.labels, seen)
        labels.check(seen, "data.train")
        rare += tuple(_unlabelled_aspects(train))
    for sentence in rare:
        log.warning("%s", sentence)
    for key, inputs in (("data.validation", validation), (test_key, test)):
        if inputs:
            labels.check(inputs.label_counts, key, needs_all_classes=False)
    check_distinct({"data.train": train, "data.validation": validation or None, test_key: test}, executor_for)
    pinned = [inputs.identity if inputs else None for inputs in (train, validation, test)]
    identity = {"files": pinned} | ({"teacher": teacher.info.model_version} if teacher else {})
    return LabelledData(train, validation or None, test, labels, cache_key(identity), teacher, rare)


def _unlabelled_aspects(train: Inputs) -> list[str]:
    """A sentence on the aspects that no row has a label for."""
    aspects = train.spec.aspects
    known = train.counts.aspects if train.counts else {}
    missing = [repr(name) for name in (aspects.label_columns if aspects else ()) if not known.get(name)]
    if not missing:
        return []
    return [f"data.train: no row has a label for aspect {', '.join(missing)}; the model knows the words alone."]


def check_distinct(splits: Mapping[str, Inputs | None], executor_for: ExecutorFor) -> None:
    """Refuse a file that stands in two splits, under whatever name, compressed or in another format.

    Args:
        splits: inputs by config key; two periods of the same files are distinct.
        executor_for: where contents are compared.

    Raises:
        DataRefused: names the file.
    """
    given = [(key, inputs) for key, inputs in splits.items() if inputs is not None]
    for (key, inputs), (other_key, other) in combinations(given, 2):
        if inputs.spec.period is not None and other.spec.period is not None:
            continue
        found = _common_file(inputs, other, executor_for)
        if found is not None:
            as_what = "" if found[0].path == found[1].path else f" as {found[1].path}"
            raise DataRefused(
                f"{other_key}: expected other reviews than in {key}, found {found[0].path} in both{as_what}; figures "
                "on reviews that a model was trained on, or chosen by, say nothing about others.",
                "Name other files, or leave data.validation out (a share of data.train is then held out)."
                if "data.validation" in (key, other_key)
                else "Name other files.",
            )


def _common_file(inputs: Inputs, other: Inputs, executor_for: ExecutorFor) -> tuple[InputFile, InputFile] | None:
    """The first file of an input that the other one has too: with equal bytes, or equal first rows and as many."""
    known = with_digests_where_alike([*inputs.files, *other.files], executor_for)
    by_path = {file.path: file for file in other.files if file.num_rows}
    by_digest = {file.digest: file for file in known[len(inputs.files) :] if file.num_rows and file.digest}
    for file in known[: len(inputs.files)]:
        if file.path in by_path:
            return file, by_path[file.path]
        if file.digest in by_digest:
            return file, by_digest[file.digest]
    as_long = {file.num_rows for file in inputs.files} & {file.num_rows for file in other.files} - {0}
    these, those = ([file for file in one.files if file.num_rows in as_long] for one in (inputs, other))
    if not as_long or len(these) + len(those) > MOST_FILES_COMPARED:
        return None
    both = [(file, inputs.spec) for file in these] + [(file, other.spec) for file in those]
    executor = executor_for(sum(file.size_bytes for file, _ in both))
    first_rows = in_order(executor, both, _first_texts, Progress("comparing", "file", lambda one: str(one[0].path)))
    by_rows = dict(zip(first_rows[len(these) :], those, strict=True))
    found = zip(these, first_rows, strict=False)
    return next(((file, by_rows[rows]) for file, rows in found if rows in by_rows), None)


def _first_texts(one: tuple[InputFile, ReadSpec]) -> tuple[int, bytes]:
    """Number of rows of a file, and a digest of the words of the first ones."""
    file, spec = one
    names = [name for name in (*spec.columns.texts, spec.columns.text_pair) if name is not None]
    digest = hashlib.sha256()
    for rows in read_rows(plan_shards([file], ROWS_COMPARED)[0], spec, names, names):
        columns = [rows.columns[name].to_pylist() for name in names if name in rows.columns]
        for texts in zip(*columns, strict=True):
            digest.update(json.dumps([str(text).split() for text in texts]).encode())
    return file.num_rows, digest.digest()


def _periods(config: TrainConfig) -> tuple[Period | None, Period | None]:
    """Rows of data.train to learn from and rows of the test split, by data.test_from."""
    time, moment = config.data.time, config.data.test_from
    if time is None or moment is None:
        return None, None
    return Period(time, moment, after=False), Period(time, moment, after=True)


def check_splits(examples: Examples, data: LabelledData, *, held_out: bool = True) -> None:
    """Checks of the splits.

    Args:
        held_out: whether some rows are to be held out.

    Raises:
    DataRefused: nothing is held out, or a class has no example to learn from.
    """
    labels = data.labels
    if held_out and not len(examples.validation):
        raise DataRefused(
            f"data.train: {len(examples.train)} examples, of which none could be put aside for validation; identical "
            "texts stay in one split, and of each class one is learned from.",
            "Give more reviews of each class, with different texts, or name data.validation.",
        )
    if held_out and straddling_rows(examples) == len(examples.validation):
        raise DataRefused(
            f"data.validation: expected other reviews than in data.train, found all {len(examples.validation):,} in "
            "both.",
            "Name other files, or leave data.validation out (a share of data.train is then held out).",
        )
    counts = np.bincount(examples.label_ids_N[examples.train], minlength=len(labels.names))
    missing = [name for name, count in zip(labels.names, counts, strict=True) if count == 0]
    if missing and data.teacher is None:
        raise DataRefused(
            f"data.train: no example of {', '.join(missing)} in the train split ({int(counts.sum())} examples).",
            "Give more reviews of these classes, or leave them out of `labels`.",
        )


def straddling_rows(examples: Examples) -> int:
    """Validation rows of which the train split has the text, too."""
    input_hash_N = examples.shards.input_hash_N
    return int(np.isin(input_hash_N[examples.validation], input_hash_N[examples.train]).sum())


# --- token shards ----------------------------------------------------------------------------------------------------


def tokenize(
    config: TrainConfig,
    data: LabelledData,
    base: str,
    store: Store,
    executor: Executor,
    keep: Mapping[str, KeepRule] | None = None,
) -> TokenizedData:
    """Write the token shards of train and validation; those that are there and unchanged are used.

    Args:
        base: digest of the model that the tokenizer belongs to.
        keep: by split, the cleaned rows to keep beside them (`runs/fit/cleaned_rows.py`), of a test split that is a
            later period in the folder beside it; by default none.
    """
    # Training sees one window of a long review; scoring pools several.
    long_text = "head" if config.long_text == "windows" else config.long_text

    def keys_of(split: str, inputs: Inputs) -> list[str]:
        settings = ReadSettings(inputs.spec, config.model, config.max_length, long_text, config.data.group)
        rule = (keep or {}).get(split)
        later = data.test.spec if data.test and split == "train" and "test" in (keep or {}) else None
        return token_shards(inputs, settings, base, store, executor, f"data.{split}", keep=rule, later=later)

    train_keys = keys_of("train", data.train)
    validation_keys = keys_of("validation", data.validation) if data.validation else None
    return TokenizedData(
        store.root, train_keys, validation_keys, data.labels, config.data.validation_fraction, config.seed
    )


def token_shards(
    inputs: Inputs,
    settings: ReadSettings,
    base: str,
    store: Store,
    executor: Executor,
    split: str,
    *,
    keep: KeepRule | None = None,
    later: ReadSpec | None = None,
    kept: KeptRows | None = None,
) -> list[str]:
    """Keys of the token shards of an input, in the order of its rows; reused when nothing changed.

    Args:
        base: digest of the model that the tokenizer belongs to.
        split: what the input is, in messages.
        keep: cleaned rows to keep beside the shards.
        later: of the same files, a later period whose rows are kept, too, in the folder beside it.
        kept: all rows of the input, where they have been read and cleaned for other shards.
    """
    spec = settings.spec
    key = cache_key(
        {
            "files": inputs.identity,
            "columns": spec.columns.model_dump(),
            "cleaning": asdict(spec.cleaning),
            "max_chars": spec.max_chars,
            "model": base,
            "max_length": settings.max_length,
            "long_text": settings.long_text,
            "group": settings.group_column,
            "period": spec.period and asdict(spec.period),
            **({"aspects": asdict(spec.aspects)} if spec.aspects else {}),
            "kept": COLUMNS,
            "rows": None if keep is None else asdict(keep),
            "later": later and later.keep_columns,
            "with_terms": settings.with_terms,
        }
    )
    folder = f"{TOKENS}/{key}"
    manifest = f"{folder}/{MANIFEST}"
    if not store.exists(manifest):
        work = inputs.work_units(ROWS_PER_SHARD) if kept is None else kept.work
        beside = None if keep is None else Keep(store.root, folder, keep)
        others = None if later is None else ReadAndKeep(later, Keep(store.root, f"{folder}{LATER}"))
        read = ReadAndTokenize(settings, beside, others)
        summaries = []
        with Ticker(f"tokenizing {split}", inputs.num_rows, "reviews") as ticker:
            done = 0
            for summary in write_token_shards(work, read, store.root, folder, executor):
                summaries.append(summary)
                done += summary.rows
                ticker.update(done)
        keys = sorted(summary.key for summary in summaries if summary.key)
        reasons = add_counts(summary.reasons for summary in summaries)
        refused = sum(reasons.values())
        if not keys:
            raise DataRefused(f"{split}: none of {counted(inputs.num_rows, 'row')} is usable.", "Look at the file.")
        if refused:
            log.warning("%s: %d of %d rows cannot be used: %s", split, refused, done, because(reasons))
        store.put(manifest, json.dumps({"keys": keys, "rows": done, "refused": refused}).encode())
    keys = json.loads(store.get(manifest))["keys"]
    return [str(key) for key in keys]


def write_token_shards(
    work: Sequence[ReadUnit], read: ReadAndTokenize, output: str, folder: str, executor: Executor
) -> Iterator[TokenShardSummary]:
    """Tokenize reviews in tasks into token shards; one summary a work unit, in any order."""
    stages = [Task(read), Task(WriteTokenShard(output, folder))]
    return executor.run(work, stages, Progress("tokenizing", "shard", name_of))
