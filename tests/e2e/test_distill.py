"""`training.method=distill`: a student with fewer layers learns a teacher's probabilities on unlabelled reviews."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bertray.cli import run
from bertray.errors import ConfigError
from bertray.io.store import LocalStore
from bertray.io.tables import to_ipc
from bertray.model.new_encoder import check_shallow, write_shallow
from bertray.schema import FEATURES
from bertray.training.examples import Examples, LoopSettings, TrainingSettings
from bertray.training.loop import run_loop
from bertray.training.objectives import Distillation
from bertray.training.tokenized_data import TokenizedData
from tests.refusals import assert_refused
from tests.training.test_loop import examples

LOOP = LoopSettings(
    labels=("bad", "good"),
    training=TrainingSettings(epochs=10, batch_size=8, learning_rate=3e-3, warmup_ratio=0.1),
    seed=3,
    run_key="student",
    threads=1,
)


def taught(tmp_path, num_rows: int = 160) -> Examples:
    """A teacher that is fairly sure of the right label."""
    data = examples(tmp_path, num_rows)
    soft_NC = np.zeros((num_rows, 2), np.float32)
    soft_NC[np.arange(num_rows), data.label_ids_N] = 2.0
    return Examples(data.shards, data.label_ids_N, data.train, data.validation, soft_NC)


def test_the_loss_is_the_softened_divergence_from_the_teacher(tmp_path, tiny_encoder):
    data = taught(tmp_path)
    one = Distillation(data, tiny_encoder, 0, LOOP, "cpu")
    one.net.eval()
    batch = data.train[:6]
    count = one.begin_step(batch, 0)
    loss = one.loss(one.net, one.inputs(batch)).item() / count
    with torch.inference_mode():
        logits_BC = one.logits(one.net, batch).double().numpy()

    def softened(logits: np.ndarray) -> np.ndarray:
        exponents = np.exp(logits / 2.0)
        return exponents / exponents.sum(axis=1, keepdims=True)

    wanted, found = softened(data.soft_NC[batch].astype(np.float64)), softened(logits_BC)
    assert loss == pytest.approx(4.0 * (wanted * np.log(wanted / found)).sum(axis=1).mean(), rel=1e-4)


@pytest.mark.slow
def test_a_student_comes_to_give_its_teachers_probabilities(tmp_path, tiny_encoder):
    data = taught(tmp_path)
    outcome = run_loop(data, tiny_encoder, 0, LOOP, LocalStore(tmp_path / "run"), objective=Distillation)
    evals = [row for row in outcome.history if row["kind"] == "eval"]
    assert evals[-1]["loss"] < 0.01 < evals[0]["loss"]  # 0: the teacher itself
    assert evals[-1]["accuracy"] > 0.9  # of the teacher's labels


@pytest.mark.parametrize(("family", "kept"), [("bert", [0, 2, 3]), ("distilbert", [0, 2, 3])])
def test_layers_are_kept_evenly_spread(family, kept, tmp_path, tiny_encoder):
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    if family == "distilbert":
        sizes = {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 16}
    config = AutoConfig.for_model(family, vocab_size=60, max_position_embeddings=32, **sizes)
    teacher = AutoModelForSequenceClassification.from_config(config)
    teacher.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "teacher")
    write_shallow(tmp_path / "teacher", tmp_path / "student", 3, seed=0)
    student, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "student", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]

    def layers(model):
        return (model.bert.encoder if family == "bert" else model.distilbert.transformer).layer

    assert student.config.num_hidden_layers == len(layers(student)) == 3
    for mine, number in zip(layers(student), kept, strict=True):
        for name, weight in mine.state_dict().items():
            torch.testing.assert_close(weight, layers(teacher)[number].state_dict()[name])
    check_shallow(tmp_path / "teacher", 3)
    with pytest.raises(ConfigError, match="keep_layers=4: the model has 4"):
        check_shallow(tmp_path / "teacher", 4)


def test_the_head_of_a_shallow_encoder_is_drawn_by_the_seed(tmp_path, tiny_encoder):
    from safetensors.torch import load_file

    heads = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_shallow(tiny_encoder, tmp_path / name, 1, seed=seed)
        heads.append(load_file(tmp_path / name / "model.safetensors")["classifier.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_an_architecture_whose_layers_are_one_is_refused(tmp_path):
    from transformers import AlbertConfig

    AlbertConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="not for a model of type albert"):
        check_shallow(tmp_path, 2)


def test_a_review_of_which_the_teacher_knows_nothing_is_not_learned_from(tmp_path):
    examples(tmp_path, 20)  # writes its token shards
    keys = sorted(path.name for path in tmp_path.glob("tokens-*.arrow"))
    soft_NC = np.ones((20, 2), np.float32)
    soft_NC[[3, 11], 1] = np.nan, np.inf
    column = pa.FixedSizeListArray.from_arrays(pa.array(soft_NC.ravel()), 2)
    (tmp_path / "soft.arrow").write_bytes(to_ipc(pa.table({FEATURES: column})))
    tokenized = TokenizedData(str(tmp_path), keys, None, None, 0.2, 0, teacher_keys=["soft.arrow"])
    found = tokenized.examples()
    assert np.flatnonzero(found.label_ids_N < 0).tolist() == [3, 11]
    assert not np.isin([3, 11], np.concatenate([found.train, found.validation])).any()
    assert len(found.train) + len(found.validation) == 18


@pytest.mark.slow
def test_a_student_of_a_trained_bundle(trained_alone, corpus, tmp_path, capsys):
    texts = pq.read_table(corpus / "train.parquet").drop_columns(["label"])
    pq.write_table(texts, tmp_path / "unlabelled.parquet")
    words = [
        "train",
        "training.method=distill",
        f"training.teacher={trained_alone / 'model'}",
        f"model={trained_alone / 'model'}",
        "training.keep_layers=1",
        f"data.train={tmp_path / 'unlabelled.parquet'}",
        f"data.test={corpus / 'test.parquet'}",
        f"output={tmp_path / 'student'}",
        "training.epochs=2",
        "training.learning_rate=1e-3",
        "max_length=24",
    ]
    assert run(words) == 0
    capsys.readouterr()
    teacher = json.loads((trained_alone / "metrics.json").read_text())
    student = json.loads((tmp_path / "student" / "metrics.json").read_text())
    assert set(student["baselines"]) == {"majority", "tfidf_logreg", "teacher"}
    assert student["baselines"]["tfidf_logreg"]["accuracy"]["value"] > 0.8  # of labels that the teacher gave
    for name in ("accuracy", "mcc", "log_loss"):
        assert student["baselines"]["teacher"][name]["value"] == pytest.approx(teacher["metrics"][name]["value"])
    assert student["metrics"]["accuracy"]["value"] > 0.8
    config = json.loads((tmp_path / "student" / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert student["student"]["rows_per_s"] > 0
    assert student["student"]["weights"] < student["teacher"]["weights"]
    card = (tmp_path / "student" / "model" / "README.md").read_text()
    assert f"Distilled from `{trained_alone / 'model'}`" in card
    info, of_teacher = (
        json.loads((folder / "model" / "bertray.json").read_text()) for folder in (tmp_path / "student", trained_alone)
    )
    assert info["labels"] == of_teacher["labels"]
    assert info["temperature"] == 1.0
    page = (tmp_path / "student" / "report.html").read_text()
    assert "times as fast" in page
    assert "no label of them was read" in page
    assert "The teacher reads" not in page  # as long as the student does
    assert not (tmp_path / "student" / "control" / "student").exists()
    assert run(words) == 0
    assert capsys.readouterr().out.startswith("already trained")


def test_plan_counts_the_teacher_and_the_layers_that_are_kept(trained_alone, corpus, tmp_path, monkeypatch, capsys):
    from bertray.runs import forecast as plan
    from bertray.training import loading, objectives

    scored, depths = [], []
    load = loading.load_classifier

    def loaded(folder, *rest, **keys):
        model = load(folder, *rest, **keys)
        depths.append(model.config.num_hidden_layers)
        return model

    monkeypatch.setattr(objectives, "load_classifier", loaded)
    monkeypatch.setattr(plan, "_scoring_rate", lambda folder, _: scored.append(folder) or 1e9)
    model = f"{trained_alone / 'model'}"
    data = [f"data.train={corpus / 'train.parquet'}", f"data.test={corpus / 'test.parquet'}", "max_length=24"]
    words = ["training.method=distill", f"training.teacher={model}", f"model={model}", "training.keep_layers=1"]
    assert run(["plan", *words, *data, f"output={tmp_path / 'out'}"]) == 0
    assert (scored, depths) == ([trained_alone / "model"], [1])
    assert "optimizer steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["training.teacher=null"], 2, "training.teacher is missing"),
        (["training.teacher=/no/such"], 2, "training.teacher: model=/no/such: no such folder"),
        (["training.teacher=bundled"], 2, "training.teacher: model=bundled: expected a trained classifier"),
        (["training.keep_layers=99"], 2, "the model has 2"),
        (["training.class_weights=balanced"], 2, "reads no labels to weigh"),
        (["data.test=null"], 2, "data.test is missing"),
        (["data.validation={corpus}/test.parquet"], 2, "holds out a share of data.train"),
        (["labels=[happy, sad]"], 2, "expected classes of the model"),
        (["cleaning.lowercase=true"], 2, "cleaning"),
        (["max_chars=5000"], 2, "reads reviews otherwise"),
        (["columns.text=body"], 2, "expected column 'body'"),
        (["data.test={other}"], 6, "happy"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(words, code, said, trained_alone, corpus, tmp_path, capsys):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["a film", "a story"], "label": ["happy", "sad"]}), other)
    given = [
        f"training.teacher={trained_alone / 'model'}",
        f"model={trained_alone / 'model'}",
        "training.method=distill",
    ]
    data = [f"data.train={corpus / 'train.parquet'}", f"data.test={corpus / 'test.parquet'}"]
    output = [f"output={tmp_path / 'out'}", "max_length=24"]
    assert run(["train", *given, *data, *output, *(word.format(corpus=corpus, other=other) for word in words)]) == code
    assert_refused(capsys, said, tmp_path / "out")
