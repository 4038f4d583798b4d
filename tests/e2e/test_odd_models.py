"""Model folders as people have them: what each verb makes of a head, a tokenizer or code that is not what it seems."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from bertray.cli import run
from bertray.model.predictor import Predictor
from bertray.model.tokenization import ReviewTokenizer
from tests.corpus import train_argv

ACCENTED = "The film was GREAT, café!"
Verb = Callable[[Path, Path, Path], list[str]]


@pytest.fixture
def reviews(tmp_path) -> Path:
    path = tmp_path / "reviews.parquet"
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["the film was good", "a bad plot", ACCENTED]}), path)
    return path


@pytest.fixture
def encoder(tiny_encoder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_encoder, tmp_path / "encoder"))


@pytest.fixture
def classifier(tiny_encoder, tmp_path) -> Path:
    from transformers import BertForSequenceClassification

    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "classifier"))
    torch.manual_seed(0)
    labels = {0: "neg", 1: "pos"}
    BertForSequenceClassification.from_pretrained(tiny_encoder, id2label=labels).save_pretrained(folder)
    return folder


def edit(folder: Path, name: str, **fields: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **fields}), "utf-8")


def without_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def disagreeing(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")


def with_added_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<emoji>"])
    tokenizer.save_pretrained(folder)


def without_a_layer(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layer.1." not in name and "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def with_weights_that_nothing_reads(folder: Path) -> None:
    """As `position_embedding_type=relative_key` has them, which transformers no longer computes."""
    tensors = load_file(folder / "model.safetensors")
    prefix = next(name for name in tensors if "layer.1.attention" in name).partition("layer.1.")[0]
    tensors[f"{prefix}layer.1.attention.self.distance_embedding.weight"] = torch.ones(127, 8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def outcome(capsys: pytest.CaptureFixture[str], argv: list[str]) -> tuple[int, str]:
    code = run(argv)
    return code, capsys.readouterr().err


def night(verb: str) -> Verb:
    def argv(model: Path, data: Path, output: Path) -> list[str]:
        length = ["max_length=24"] if verb == "embed" else []
        return [verb, f"model={model}", f"input={data}", f"output={output}", *length]

    return argv


def training(*words: str) -> Verb:
    def argv(model: Path, data: Path, output: Path) -> list[str]:
        given = ["max_length=24", "report.baselines=false", *words]
        return ["train", f"model={model}", f"data.train={data}", f"output={output}", *given]

    return argv


def pretraining(model: Path, data: Path, output: Path) -> list[str]:
    return ["pretrain", f"model={model}", f"input={data}", f"output={output}", "max_length=24", "training.epochs=1"]


def audit(model: Path, data: Path, output: Path) -> list[str]:
    keys = ["max_length=24", "label_errors.by=embeddings"]
    return ["audit", f"model={model}", f"data.train={data}", f"output={output}", *keys]


VERBS: dict[str, Verb] = {
    "score": night("score"),
    "embed": night("embed"),
    "train": training("training.epochs=1"),
    "features": training("training.method=features"),
    "pretrain": pretraining,
    "audit": audit,
}
REFUSED = [
    (without_head, ("score",), "lacks 2 weights of BertForSequenceClassification: classifier.bias"),
    (without_a_layer, tuple(VERBS), "lacks 16 weights of Bert"),
    (disagreeing, tuple(VERBS), "do not agree: 'The film was GREAT"),
    (with_added_tokens, tuple(VERBS), "'<emoji>' is 78"),
    (lambda folder: edit(folder, "config.json", problem_type="multi_label_classification"), ("score",), "problem_type"),
    (lambda folder: edit(folder, "config.json", id2label={"0": "pos", "1": "pos"}), ("score",), "'pos' and 'pos'"),
    (lambda folder: edit(folder, "config.json", label2id={"neg": 1, "pos": 0}), ("score",), "do not agree: 'neg' is 0"),
    (with_weights_that_nothing_reads, tuple(VERBS), "its layers that nothing reads: "),
]


@pytest.mark.parametrize(
    ("verb", "change", "said"), [(verb, change, said) for change, verbs, said in REFUSED for verb in verbs]
)
def test_a_model_that_cannot_be_trusted_is_refused_by_every_verb(
    verb, change, said, classifier, corpus, reviews, tmp_path, capsys
):
    change(classifier)
    data = reviews if verb in ("score", "embed") else corpus / "train.parquet"
    for _ in range(2):  # the second run is no better
        code, text = outcome(capsys, VERBS[verb](classifier, data, tmp_path / "out"))
        assert code == 2, text
        assert said in text
    assert not list((tmp_path / "out").glob("data/**/*.parquet"))


def test_a_teacher_that_cannot_be_trusted_is_refused(classifier, tiny_encoder, corpus, tmp_path, capsys):
    edit(classifier, "config.json", problem_type="multi_label_classification")
    argv = training("training.method=distill", f"training.teacher={classifier}", f"data.test={corpus / 'test.parquet'}")
    code, text = outcome(capsys, argv(tiny_encoder, corpus / "train.parquet", tmp_path / "out"))
    assert code == 2, text
    assert "training.teacher: " in text
    assert "problem_type" in text


@pytest.mark.slow
def test_an_answer_to_the_question_of_a_library_runs_no_code(classifier, reviews, tmp_path):
    edit(classifier, "config.json", model_type="new", auto_map={"AutoConfig": "code.C", "AutoModel": "code.C"})
    (classifier / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    command = [sys.executable, "-c", "from bertray.cli import main; main()"]
    command += night("score")(classifier, reviews, tmp_path / "out")
    done = subprocess.run(command, input="y\n" * 9, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "needs Python code that lies in the folder" in done.stderr
    assert "custom code" not in done.stdout
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "problem_type", ["multi_label_classification", pytest.param("regression", marks=pytest.mark.slow)]
)
def test_a_head_of_another_kind_is_replaced_and_others_read_the_new_one_as_we_do(
    problem_type, classifier, corpus, tmp_path, capsys
):
    from transformers import pipeline

    edit(classifier, "config.json", problem_type=problem_type)
    if problem_type == "regression":
        tensors = load_file(classifier / "model.safetensors")
        tensors |= {"classifier.weight": torch.zeros(1, 32), "classifier.bias": torch.zeros(1)}
        save_file(tensors, classifier / "model.safetensors", metadata={"format": "pt"})
        edit(classifier, "config.json", id2label={"0": "score"}, label2id={"score": 0})
    assert run(train_argv(classifier, corpus, tmp_path / "run")) == 0
    model = tmp_path / "run" / "model"
    assert json.loads((model / "config.json").read_text())["problem_type"] == "single_label_classification"
    text = "the film was great"
    found = pipeline("text-classification", model=str(model), tokenizer=str(model), device="cpu", top_k=None)([text])[0]
    ours = Predictor(model, precision="fp32").probs(ReviewTokenizer(model, 24).encode(pa.array([text])))[0]
    theirs = {entry["label"]: entry["score"] for entry in found}
    np.testing.assert_allclose(ours, [theirs["neg"], theirs["pos"]], atol=1e-5)


def test_a_head_of_several_labels_is_no_start_for_one_of_the_same_classes(classifier):
    from bertray.training.loading import load_classifier

    def head() -> torch.Tensor:
        torch.manual_seed(1)
        model = load_classifier(classifier, ("neg", "pos"))
        return model.classifier.weight.detach()

    before = load_file(classifier / "model.safetensors")["classifier.weight"]
    torch.testing.assert_close(head(), before)
    edit(classifier, "config.json", problem_type="multi_label_classification")
    assert (head() - before).abs().max() > 1e-3
    torch.testing.assert_close(head(), head())


@pytest.mark.slow
@pytest.mark.parametrize("way", ["train", "features", "pretrain"])
def test_the_tokenizer_of_the_result_is_that_of_training_file_for_file(way, encoder, corpus, tmp_path):
    from transformers import AutoTokenizer

    files = sorted(path.name for path in encoder.glob("*") if "token" in path.name or path.name == "vocab.txt")
    assert "tokenizer.json" in files
    data = corpus / "train.parquet"
    assert run(VERBS[way](encoder, data, tmp_path / "run")) == 0
    model = tmp_path / "run" / "model"
    assert {name: (model / name).read_bytes() for name in files} == {
        name: (encoder / name).read_bytes() for name in files
    }
    used = ReviewTokenizer(encoder, 24).encode(pa.array([ACCENTED]))
    assert ReviewTokenizer(model, 24).encode(pa.array([ACCENTED])).equals(used)
    assert AutoTokenizer.from_pretrained(model)(ACCENTED)["input_ids"] == used["input_ids"][0].as_py()


@pytest.mark.slow
def test_a_skew_that_arises_while_training_runs_is_no_silent_one(encoder, corpus, tmp_path, monkeypatch, capsys):
    from bertray.runs.fit.finetuning import Finetune

    decide = Finetune.decide

    def decide_late(*given: Any) -> object:
        disagreeing(encoder)  # somebody works on the folder
        return decide(*given)

    monkeypatch.setattr(Finetune, "decide", decide_late)
    code, text = outcome(capsys, train_argv(encoder, corpus, tmp_path / "run"))
    assert code == 2, text
    assert "do not agree: 'The film was GREAT" in text
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mpnet", "roberta", "fnet", pytest.param("xlnet", marks=pytest.mark.slow)])
def test_long_reviews_fit_whatever_the_positions_of_a_family_begin_with(family, tiny_encoder, tmp_path, capsys):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    sizes |= {"max_position_embeddings": 66}
    if family == "fnet":
        del sizes["num_attention_heads"]
    if family == "xlnet":
        sizes = {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 8}
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / family))
    config = AutoConfig.for_model(family, vocab_size=78, id2label={0: "neg", 1: "pos"}, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    edit(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    path = tmp_path / "long.parquet"
    words = [text for one in "abcdefghijklmnopqrst" for text in (f"{one} film was good " * 200, f"bad {one}")]
    labels = ["pos", "neg"] * 20
    pq.write_table(pa.table({"id": [str(i) for i in range(40)], "text": words, "label": labels}), path)
    code, text = outcome(capsys, night("score")(folder, path, tmp_path / "scored"))
    assert code == 0, text
    if family in ("mpnet", "roberta"):
        code, text = outcome(capsys, [*VERBS["train"](folder, path, tmp_path / "run"), "max_length=65"])
        assert code == 2, text
        assert "sees at most 64 tokens" in text
    code, text = outcome(capsys, VERBS["train"](folder, path, tmp_path / "trained"))
    assert code == 0, text
