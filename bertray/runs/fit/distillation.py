"""`training.method=distill`: a teacher's probabilities for unlabelled reviews, and a student that learns them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bertray.errors import DataRefused
from bertray.evaluation.baselines import TEACHER
from bertray.execution.executor import Executor
from bertray.io.store import Store
from bertray.model.bundle import resolve_model
from bertray.model.new_encoder import write_shallow
from bertray.outputs.claims import put_folder
from bertray.reports.html import model_title
from bertray.reviews.kept_rows import KeptRows
from bertray.runs.evaluated import EvaluatedModel, EvaluatedRows, evaluate_model
from bertray.runs.fit.cleaned_rows import kept_rows
from bertray.runs.fit.finetuning import Finetune
from bertray.runs.fit.labelled_data import LabelledData, Teacher, token_shards
from bertray.runs.fit.methods import Beside, Trained
from bertray.scoring.read_unit import ReadSettings
from bertray.training.examples import Examples
from bertray.training.features import FrozenEncoder, compute_rows
from bertray.training.objectives import Distillation
from bertray.training.token_shards import TokenShards
from bertray.training.tokenized_data import TokenizedData

log = logging.getLogger(__name__)

STUDENT = "control/student"


class Distill(Finetune):
    """A student learns its teacher's probabilities of reviews; no label of these is read."""

    objective = Distillation
    reads_labels = False

    @property
    def teacher(self) -> Teacher:
        teacher = self.run.data.teacher
        assert teacher is not None
        return teacher

    @property
    def title(self) -> str:
        config = self.run.config
        return f"Distillation of {model_title(config.training.teacher or '')} into {model_title(config.model)}"

    def start(self) -> tuple[str, Path]:
        """The model, or some of its layers, which are kept in the output until the run is done."""
        config, store = self.run.config, self.run.store
        if config.training.keep_layers is None:
            return super().start()
        if not store.exists(f"{STUDENT}/config.json"):
            with tempfile.TemporaryDirectory() as name:
                write_shallow(self.run.model_folder, Path(name), config.training.keep_layers, seed=config.seed)
                put_folder(store, Path(name), STUDENT)
        return store.uri(STUDENT), resolve_model(store.uri(STUDENT))

    def tokenized(self) -> tuple[TokenizedData, Examples]:
        tokenized, examples = super().tokenized()
        tokenized = taught(self.run.data, tokenized, examples, self.run.store, self.run.executor)
        return tokenized, tokenized.examples()  # now with logits of the teacher in place of labels

    def fit_calibration(self, logits_VC: np.ndarray, label_ids_V: np.ndarray) -> tuple[np.ndarray, float]:
        """None: its teacher's probabilities are what it has learned to give."""
        return np.zeros(logits_VC.shape[1]), 1.0

    def notes(self, examples: Examples) -> list[str]:
        config, read = self.run.config, self.teacher.info
        notes = [
            f"The student learned what its teacher says of {len(examples.train):,} reviews; no label of them was read. "
            "Its figures by epoch tell how near it came to the teacher, not how right it is."
        ]
        unread = int((examples.label_ids_N < 0).sum())
        if unread:
            notes.append(f"The teacher gave no finite numbers for {unread:,} reviews; nothing was learned from these.")
        if config.report.baselines:
            notes.append("The baselines, too, learned the teacher's labels of these reviews.")
        if read.long_text == "windows":
            notes.append(
                "The teacher averages over the windows of a long review; it taught by the first, and is judged by all."
            )
        if (read.max_length, read.long_text) != (config.max_length, config.long_text):
            notes.append(
                f"The teacher reads {read.max_length} tokens of a review (`{read.long_text}`), the student "
                f"{config.max_length} (`{config.long_text}`); that is part of the difference in figures and speed."
            )
        return notes

    def evaluate_teacher(self, judged: KeptRows) -> EvaluatedRows:
        run, teacher = self.run, self.teacher
        assert run.data.test is not None
        return evaluate_model(
            run.data.test,
            EvaluatedModel(teacher.model, teacher.info),
            run.data.labels,
            run.store,
            run.executor,
            run.config.report.slices,
            kept=judged,
        )

    def beside(self, of_teacher: EvaluatedRows | None, rows: EvaluatedRows, trained: Trained) -> Beside:
        assert of_teacher is not None
        probs_NC = teacher_probs(of_teacher, self.teacher, rows, trained.info.labels)
        notes = []
        if probs_NC is None:
            notes.append("Teacher and student do not give numbers for the same test rows; they are not compared.")
        sizes = num_weights(resolve_model(self.teacher.model)), num_weights(resolve_model(trained.bundle))
        found = speeds(of_teacher, rows, sizes)
        probs = {} if probs_NC is None else {TEACHER: probs_NC}
        return Beside(probs, in_words(self.teacher, found), found, speedup(found), notes)


def taught(
    data: LabelledData, tokenized: TokenizedData, examples: Examples, store: Store, executor: Executor
) -> TokenizedData:
    """The same examples with what the teacher gives for each; that is computed once and kept in the output.

    Raises:
        DataRefused: teacher and student do not read the same rows.
    """
    assert data.teacher is not None
    model, info = data.teacher.model, data.teacher.info
    log.info("the teacher reads %d reviews", data.train.num_rows)
    long_text = "head" if info.long_text == "windows" else info.long_text
    settings = ReadSettings(data.train.spec, model, info.max_length, long_text, with_terms=True)
    kept = kept_rows(store, tokenized.train_keys)
    keys = token_shards(data.train, settings, info.model_version, store, executor, "data.train", kept=kept)
    of_teacher = replace(tokenized, train_keys=keys, labels=None).examples().shards
    if not _same_rows(of_teacher, examples.shards):
        raise DataRefused(
            "data.train: there are rows that only one of teacher and student can use.",
            "Take out texts that one of the two tokenizers makes nothing of.",
        )
    rows = compute_rows(FrozenEncoder(model, info.model_version, "classes"), keys, store, executor)
    return replace(tokenized, teacher_keys=rows, teacher_temperature=info.temperature)


def teacher_probs(of_teacher: EvaluatedRows, teacher: Teacher, rows: EvaluatedRows, classes: tuple[str, ...]) -> Any:
    """The teacher's probabilities on the student's test rows, in the student's order of classes: [N, C].

    None where one of the two gave no numbers for a row of the other: there is nothing to compare row by row.
    """
    if not _same_rows(of_teacher, rows):
        return None
    return of_teacher.probs_NC[:, [teacher.info.labels.index(name) for name in classes]]


def _same_rows(one: TokenShards | EvaluatedRows, other: TokenShards | EvaluatedRows) -> bool:
    return np.array_equal(one.file_no_N, other.file_no_N) and np.array_equal(one.row_no_N, other.row_no_N)


def speeds(of_teacher: EvaluatedRows, rows: EvaluatedRows, sizes: tuple[int, int]) -> dict[str, dict[str, float]]:
    """For metrics.json: test rows a second of one actor, its start left out, and numbers of weights.

    Args:
        sizes: numbers of weights of teacher and student.
    """
    return {
        name: {"rows_per_s": one.num_rows / max(one.seconds, 1e-9), "weights": size}
        for name, one, size in zip(("teacher", "student"), (of_teacher, rows), sizes, strict=True)
    }


def speedup(speeds: Mapping[str, Mapping[str, float]]) -> float:
    """Rows a second of the student, those of the teacher being 1."""
    return speeds["student"]["rows_per_s"] / speeds["teacher"]["rows_per_s"]


def in_words(teacher: Teacher, speeds: dict[str, dict[str, float]]) -> dict[str, str]:
    """Facts for the report."""
    told = {
        name: f"{of['weights'] / 1e6:,.1f} million weights, {of['rows_per_s']:,.1f} rows/s of one actor"
        for name, of in speeds.items()
    }
    return {
        "teacher": f"{teacher.model}, {told['teacher']}",
        "student": f"{told['student']}, {speedup(speeds):.2f} times as fast (one measurement)",
    }


def num_weights(folder: Path) -> int:
    """Numbers in the weights of a model."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            total += sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118 - it has no iterator
    return total
