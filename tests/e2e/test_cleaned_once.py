"""Work on the texts of a run: each is read once after the scan and cleaned once, whatever the run needs it for."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.config import CompareConfig, load_config
from bertray.execution.executor import DEFAULT
from bertray.execution.on_demand import Always
from bertray.execution.resources import Resources
from bertray.model.bundle import INFO_FILE, content_version, read_info
from bertray.reviews import kept_scans, reader, scan
from bertray.reviews.clean import Cleaning, clean_texts
from bertray.reviews.fetch import ShardRows, row_keys, wanted_rows
from bertray.reviews.reader import read_shard
from bertray.reviews.rows import ROWS_PER_SHARD
from bertray.runs.evaluated import EvaluatedRows, evaluate_model
from bertray.runs.fit import training
from bertray.runs.release.model_comparison import compare
from bertray.scoring.read_unit import cleaned_rows
from tests.corpus import sentences, write
from tests.nightly import without_ray


@dataclass
class Work:
    """Texts that were cleaned, files that were scanned, and (file, row) that were read after it."""

    cleaned: Counter[str] = field(default_factory=Counter)
    scanned: Counter[str] = field(default_factory=Counter)
    read: Counter[tuple[str, int]] = field(default_factory=Counter)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    found = Work()
    scan_file, read_rows = scan.scan_file, reader.read_rows

    def cleaning(texts, settings):
        found.cleaned.update(texts.to_pylist())
        return clean_texts(texts, settings)

    def scanning(entry, settings):
        found.scanned[entry.relative_path] += 1
        return scan_file(entry, settings)

    def reading(shard, *how):
        found.read.update((shard.file.relative_path, row) for row in range(shard.lo, shard.hi))
        return read_rows(shard, *how)

    monkeypatch.setattr("bertray.reviews.screening.clean_texts", cleaning)
    monkeypatch.setattr(scan, "scan_file", scanning)
    monkeypatch.setattr(reader, "read_rows", reading)
    without_ray(monkeypatch)
    return found


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of different texts, one text a row."""
    folder = tmp_path_factory.mktemp("reviews")
    for number, (name, rows) in enumerate({"train/a": 120, "train/b": 90, "validation": 50, "test": 40}.items()):
        path = write(folder / f"{name}.parquet", rows, number, name)
        table = pq.read_table(path)
        texts = [f"{text} {name} {row}" for row, text in enumerate(table["text"].to_pylist())]
        days = [f"2026-11-{1 + row % 28:02d}" for row in range(rows)]
        pq.write_table(table.set_column(1, "text", [texts]).append_column("day", [days]), path)
    return folder


def argv(encoder: Path, reviews: Path, output: Path, *words: str) -> list[str]:
    quick = ["max_length=24", "training.epochs=1", "training.learning_rate=3e-3", "report.slices=[shop]"]
    return ["train", f"model={encoder}", f"data.train={reviews / 'train'}", f"output={output}", *quick, *words]


SPLITS = {
    "held out": ([], ["a.parquet", "b.parquet"]),
    "windows": (["long_text=windows"], ["a.parquet", "b.parquet"]),
    "features": (["training.method=features"], ["a.parquet", "b.parquet"]),
    "validation": (["data.validation={0}/validation.parquet"], ["a.parquet", "b.parquet", "validation.parquet"]),
    "test": (["data.test={0}/test.parquet"], ["a.parquet", "b.parquet", "test.parquet"]),
    "later test": (["data.time=day", "data.test_from=2026-11-20"], ["a.parquet", "b.parquet"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("splits", SPLITS)
def test_each_text_is_cleaned_once_and_read_once_after_the_scan(tmp_path, tiny_encoder, reviews, work, splits):
    words, files = SPLITS[splits]
    words = [word.format(reviews) for word in words]
    assert run(argv(tiny_encoder, reviews, tmp_path / "run", "report.num_mistakes=0", *words)) == 0
    assert work.scanned == dict.fromkeys(files, 1)
    rows = {name: pq.read_metadata(next(reviews.rglob(name))).num_rows for name in files}
    assert work.read == {(name, row): 1 for name, count in rows.items() for row in range(count)}
    assert len(work.cleaned) == sum(rows.values())
    assert set(work.cleaned.values()) == {1}


@pytest.mark.slow
def test_texts_of_mistakes_are_read_again_and_no_others(tmp_path, tiny_encoder, reviews, work):
    assert run(argv(tiny_encoder, reviews, tmp_path / "run", "report.num_mistakes=3")) == 0
    assert Counter(work.cleaned.values()) == {1: 207, 2: 3}


@pytest.mark.slow
def test_teacher_and_student_read_what_was_cleaned_once(tmp_path, tiny_encoder, reviews, work):
    test = f"data.test={reviews}/test.parquet"
    assert run(argv(tiny_encoder, reviews, tmp_path / "teacher", test)) == 0
    work.cleaned.clear()
    words = ["training.method=distill", f"training.teacher={tmp_path}/teacher/model", "report.num_mistakes=0", test]
    assert run([word for word in argv(tiny_encoder, reviews, tmp_path / "run", *words) if "slices" not in word]) == 0
    assert len(work.cleaned) == 250
    assert set(work.cleaned.values()) == {1}


@pytest.mark.slow
def test_nothing_of_the_texts_is_left_in_the_output(tmp_path, tiny_encoder, reviews, work):
    assert run(argv(tiny_encoder, reviews, tmp_path / "run")) == 0
    assert not list((tmp_path / "run" / "control").rglob("*.arrow"))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "evaluate", "audit"])
def test_the_same_command_again_scans_nothing(tmp_path, tiny_encoder, trained_alone, reviews, work, monkeypatch, verb):
    monkeypatch.setattr(kept_scans, "KEPT_ABOVE_BYTES", 0)
    test, output = f"{reviews}/test.parquet", f"output={tmp_path / 'run'}"
    parts = ["near_duplicates.find=false", "label_errors.find=false"]
    words = {
        "train": argv(tiny_encoder, reviews, tmp_path / "run", f"data.test={test}")[1:],
        "evaluate": [f"model={trained_alone}/model", f"input={test}", output],
        "audit": [test, f"model={tiny_encoder}", "max_length=24", output, *parts],
    }[verb]
    assert run([verb, *words]) == 0
    assert work.scanned
    work.scanned.clear()
    (tmp_path / "run" / "control" / "finished.json").unlink()  # as if it had died before its last write
    assert run([verb, *words]) == 0
    assert run([verb, *words]) == 0
    assert work.scanned == {}


# Changes of a bundle's bertray.json, and how often a text is cleaned for a bundle with them beside one without.
OTHERWISE: dict[str, tuple[dict[str, Any], int]] = {
    "alike": ({"temperature": 3.0}, 1),
    "longer": ({"max_length": 12, "long_text": "tail"}, 1),
    "cut": ({"max_chars": 20}, 2),
    "normalized": ({"cleaning": Cleaning(normalize="NFKC", strip_html=False)}, 2),
}


CASES = ["cut", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERWISE if name != "cut")]


def bundle_with(bundle: Path, target: Path, **changes: Any) -> Path:
    """A copy of a bundle that reads or computes otherwise."""
    shutil.copytree(bundle, target)
    info = replace(read_info(target), **changes)
    info = replace(info, model_version=content_version(target, info))
    (target / INFO_FILE).write_text(json.dumps(info.to_json(), ensure_ascii=False))
    return target


@pytest.fixture(scope="module")
def judged(tmp_path_factory, corpus) -> Path:
    """Labelled reviews of different texts that no model has seen, with line breaks of HTML and wide letters."""
    texts, labels = sentences(80, 5)
    rows = {
        "id": [str(number) for number in range(80)],
        "text": [f"{text}<br/>ｗｉｄｅ {number}" for number, text in enumerate(texts)],
        "label": labels,
    }
    path = tmp_path_factory.mktemp("judged") / "judged.parquet"
    pq.write_table(pa.table(rows), path)
    return path


@pytest.mark.parametrize("verb", ["compare", pytest.param("promote", marks=pytest.mark.slow), "promote the first"])
@pytest.mark.parametrize("otherwise", CASES)
def test_two_models_read_each_review_once_together(tmp_path, trained_alone, judged, work, verb, otherwise):
    changes, times = OTHERWISE[otherwise]
    a, b = trained_alone / "model", bundle_with(trained_alone / "model", tmp_path / "b", **changes)
    shown = [f"input={judged}", "report.num_mistakes=0", "report.explain=0"]
    force = [f"registry={tmp_path / 'registry'}", "force=true", "reason=a test"]
    if verb == "compare":
        assert run(["compare", f"a={a}", f"b={b}", f"output={tmp_path / 'out'}", *shown]) == 0
    elif verb == "promote":
        assert run(["promote", "reviews", f"model={a}", *force, *shown]) == 0
        work.scanned.clear(), work.read.clear(), work.cleaned.clear()
        assert run(["promote", "reviews", f"model={b}", *force, *shown]) == 0
    else:  # beside the majority class and TF-IDF, which learns from the texts
        assert run(["promote", "reviews", f"model={b}", *force, *shown]) == 0
        times = 1
    assert work.scanned == {judged.name: 1}
    assert work.read == {(judged.name, row): 1 for row in range(80)}
    assert Counter(work.cleaned.values()) == {times: 80}
    assert not list((tmp_path / "registry").glob("**/staging/*/*"))


@pytest.mark.parametrize("otherwise", CASES)
def test_two_models_together_say_what_each_says_alone(tmp_path, trained_alone, judged, work, otherwise):
    models = {
        "a": trained_alone / "model",
        "b": bundle_with(trained_alone / "model", tmp_path / "model", **OTHERWISE[otherwise][0]),
    }
    for name, model in models.items():
        assert run(["evaluate", f"model={model}", f"input={judged}", f"output={tmp_path / name}"]) == 0
    alone = [f"{name}={tmp_path / name}" for name in models]
    assert run(["compare", *alone, f"output={tmp_path / 'alone'}"]) == 0
    together = [f"{name}={model}" for name, model in models.items()]
    assert run(["compare", *together, f"input={judged}", f"output={tmp_path / 'together'}"]) == 0
    found, expected = (json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("together", "alone"))
    assert found["difference"] == expected["difference"]
    flips, expected_flips = (pq.read_table(tmp_path / name / "flips.parquet") for name in ("together", "alone"))
    assert flips.drop_columns(["words_a", "words_b"]) == expected_flips.drop_columns(["words_a", "words_b"])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("otherwise", [pytest.param("alike", marks=pytest.mark.soak), "cut"])
def test_on_ray_two_models_share_one_pass_too(tmp_path, trained_alone, judged, ray_cluster, otherwise):
    from bertray.execution.ray_data import RayData

    passes: list[list[int]] = []

    class Noting(RayData):
        def run(self, items, stages, progress=DEFAULT):
            units = list(items)
            if progress.doing == "evaluating":
                passes.append([row for unit in units for shard in unit for row in range(shard.lo, shard.hi)])
            return super().run(units, stages, progress)

    b = bundle_with(trained_alone / "model", tmp_path / "b", **OTHERWISE[otherwise][0])
    words = [f"a={trained_alone / 'model'}", f"b={b}", f"input={judged}", "report.num_mistakes=0", "report.explain=0"]
    assert run(["compare", *words, f"output={tmp_path / 'alone'}"]) == 0
    config = load_config("compare", [], [*words, f"output={tmp_path / 'ray'}"])
    assert isinstance(config, CompareConfig)
    found = compare(config, Always(Noting(Resources(2, 1, 0.5, 0, stall_timeout_s=60.0))))
    assert passes == [[*range(80)]]
    alone = json.loads((tmp_path / "alone" / "comparison.json").read_text())
    assert found.figures["difference"] == alone["difference"]
    assert found.figures["flips"] == alone["flips"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["long_text=windows"],
        ["long_text=tail"],
        ["data.validation={0}/validation.parquet"],
        ["data.time=day", "data.test_from=2026-11-20"],
    ],
)
def test_kept_rows_are_judged_as_those_of_the_input_read_again(
    tmp_path, tiny_encoder, reviews, work, monkeypatch, words
):
    judged: list[tuple[EvaluatedRows, EvaluatedRows]] = []

    def both(inputs, *given, kept, **settings):
        units = [ReadAgain(shard, inputs.spec) for shard in inputs.shards(ROWS_PER_SHARD)]
        keys = np.concatenate([row_keys(rows["file_no"].to_numpy(), rows["row_no"].to_numpy()) for rows in
                               (wanted.rows() for wanted in kept.work)])  # fmt: skip
        again = tuple(wanted for wanted, _, _ in wanted_rows(units, keys >> 40, keys & (1 << 40) - 1))
        rows = [evaluate_model(inputs, *given, kept=one, **settings) for one in (kept, replace(kept, work=again))]
        judged.append((rows[0], rows[1]))
        return rows[0]

    monkeypatch.setattr(training, "evaluate_model", both)
    train = f"data.train={reviews / 'train' / 'a.parquet'}"
    words = [word.format(reviews) for word in words]
    assert run([*argv(tiny_encoder, reviews, tmp_path / "run", "max_length=16", *words), train]) == 0
    [(kept, again)] = judged
    assert kept.num_rows > 10
    np.testing.assert_array_equal(kept.probs_NC, again.probs_NC)
    for name in ("ids", "label_ids_N", "n_tokens_N", "script", "slices", "row_no_N", "input_hash_N", "profile"):
        assert_equal(getattr(kept, name), getattr(again, name))


class ReadAgain(ShardRows):
    """Rows of an input file as those that are kept of it: with their file."""

    def rows(self, keys_W: np.ndarray | None) -> pa.Table:
        assert keys_W is not None
        return cleaned_rows([(self.shard, read_shard(self.shard, self.spec, keys_W & (1 << 40) - 1))])


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other
