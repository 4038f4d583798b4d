"""What of a model is learned: adapters that are merged, frozen layers, and rates that fall with depth."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from bertray.errors import ConfigError
from bertray.io.store import LocalStore
from bertray.training.adapters import adapt, has_adapters, merge_adapters, num_layers, parameter_groups
from bertray.training.checkpoint import load_best, load_model_tensors
from bertray.training.examples import LoraSettings, TrainingSettings
from bertray.training.loading import load_classifier
from bertray.training.loop import run_loop
from tests.config_files import TRAIN, load_config
from tests.training.test_loop import SETTINGS, examples, settings

LABELS = SETTINGS.labels
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 30,
}


@pytest.fixture
def model(tiny_encoder):
    return load_classifier(tiny_encoder, LABELS)


def training(**keys: Any) -> TrainingSettings:
    return TrainingSettings(epochs=2, learning_rate=1e-3, batch_size=8, warmup_ratio=0.1, **keys)


def learned(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_frozen_layers_and_the_embeddings_are_not_learned(model):
    adapt(model, training(freeze_layers=1))
    names = learned(model)
    assert not [name for name in names if "embeddings" in name or "layer.0." in name]
    assert {name.split(".")[3] for name in names if ".layer." in name} == {"1"}
    assert {"classifier.weight", "classifier.bias"} <= names
    assert num_layers(model) == 2
    with pytest.raises(ConfigError, match=r"training\.freeze_layers=3: expected at most 2"):
        adapt(model, training(freeze_layers=3))


def test_rates_fall_from_the_head_to_the_embeddings(model):
    scales = {
        id(parameter): (group["rate_scale"], group["weight_decay"])
        for group in parameter_groups(model, 0.01, 0.5)
        for parameter in group["params"]
    }
    of = {name: scales[id(parameter)] for name, parameter in model.named_parameters()}
    assert of["classifier.weight"] == (1.0, 0.01)
    assert of["bert.pooler.dense.bias"] == (1.0, 0.0)
    assert of["bert.encoder.layer.1.attention.self.query.weight"] == (0.5, 0.01)
    assert of["bert.encoder.layer.0.attention.self.query.bias"] == (0.25, 0.0)
    assert of["bert.embeddings.word_embeddings.weight"] == (0.125, 0.01)
    assert len(of) == len(scales)


def test_without_decay_there_are_two_groups_as_there_always_were(model):
    matrices, vectors = parameter_groups(model, 0.01)
    assert [p.ndim for p in matrices["params"]] == [p.ndim for p in model.parameters() if p.ndim >= 2]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.01, 0.0)
    assert (matrices["rate_scale"], vectors["rate_scale"]) == (1.0, 1.0)


def test_a_decayed_run_moves_lower_layers_less_and_frozen_ones_not_at_all(tmp_path, tiny_encoder):
    def moved(name: str, **training) -> dict[str, float]:
        store = LocalStore(tmp_path / name)
        outcome = run_loop(examples(tmp_path), tiny_encoder, 0, settings(best_metric="loss", **training), store)
        before = load_classifier(tiny_encoder, LABELS).state_dict()
        after = load_best(store, outcome.best_step, "run").model
        return {key: float((after[key] - before[key]).abs().mean()) for key in after if key.endswith("query.weight")}

    first, second = (
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.1.attention.self.query.weight",
    )
    decayed, frozen = moved("decayed", layer_decay=0.1), moved("frozen", freeze_layers=1)
    assert 0 < decayed[first] < 0.3 * decayed[second]
    assert frozen[first] == 0 < frozen[second]


def test_adapters_change_nothing_at_first_and_are_merged_without_a_trace(model):
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    ids = torch.tensor([[2, 12, 5, 3]])
    model.eval()
    before = model(input_ids=ids).logits
    names = {name for name, _ in model.named_parameters()}
    adapt(model, training(lora=LoraSettings(rank=4)))
    assert has_adapters(model)
    assert {name.split(".")[-3] for name in learned(model) if "lora_" in name} == {"lora_A", "lora_B"}
    assert not [name for name in learned(model) if "embeddings" in name or name.endswith("key.weight")]
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= learned(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    changed = model(input_ids=ids).logits
    assert not torch.allclose(changed, before, rtol=0, atol=1e-4)  # ten times what merging may differ by
    merge_adapters(model)
    assert {name for name, _ in model.named_parameters()} == names
    assert not has_adapters(model)
    torch.testing.assert_close(model(input_ids=ids).logits, changed, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_adapters_learn_what_the_labels_follow_packed_and_resume(tmp_path, tiny_encoder):
    """Packed passes have to call the adapters: what computes a layer by its weights alone would learn nothing."""
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    lora = settings(epochs=12, learning_rate=2e-2, lora=LoraSettings(rank=8), best_metric="loss")
    store = LocalStore(tmp_path / "lora")
    outcome = run_loop(examples(tmp_path, 160), tiny_encoder, 0, lora, store)
    assert max(row["accuracy"] for row in outcome.history if row["kind"] == "eval") > 0.9
    checkpoint = load_best(store, outcome.best_step, "run")
    merged = load_classifier(tiny_encoder, LABELS)
    assert isinstance(lora.training, TrainingSettings)
    adapt(merged, lora.training)
    load_model_tensors(merged, checkpoint.model)
    assert max(float(w.detach().abs().max()) for n, w in merged.named_parameters() if "lora_B" in n) > 1e-3
    merge_adapters(merged)
    merged.save_pretrained(tmp_path / "bundle")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bundle").eval()
    data = examples(tmp_path, 160)
    for place, row in enumerate(data.validation[:5]):
        ids = torch.from_numpy(data.shards.sequences(np.array([row]))[0].astype(np.int64))[None]
        found = again(input_ids=ids).logits.detach().numpy()[0]
        np.testing.assert_allclose(found, outcome.validation_VK[place], rtol=1e-3, atol=1e-4)


def test_the_names_of_other_families_are_found_and_a_wrong_target_is_refused(model):
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    config = DistilBertConfig(dim=16, hidden_dim=32, n_heads=2, n_layers=1, vocab_size=30)
    distilbert = DistilBertForSequenceClassification(config)
    adapt(distilbert, training(lora=LoraSettings(rank=2)))
    assert {name.split(".")[-4] for name in learned(distilbert) if "lora_A" in name} == {"q_lin", "v_lin"}
    assert "pre_classifier.weight" in learned(distilbert)
    with pytest.raises(
        ConfigError, match=r"training\.lora\.targets: expected names of linear layers of the encoder, found querry"
    ):
        adapt(model, training(lora=LoraSettings(rank=2, targets=("querry",))))


def test_targets_are_layers_of_the_encoder_and_the_head_is_learned_whole():
    """A head of RoBERTa has a layer `dense`, too: random, and frozen beneath an adapter it would stay so."""
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    config = RobertaConfig(**SMALL)
    roberta = RobertaForSequenceClassification(config)
    adapt(roberta, training(lora=LoraSettings(rank=2, targets=("dense",))))
    with_adapters = {name.partition(".lora_A")[0] for name in learned(roberta) if "lora_A" in name}
    assert with_adapters == {
        f"roberta.encoder.layer.{layer}.{name}.dense"
        for layer in (0, 1)
        for name in ("attention.output", "intermediate", "output")
    }
    assert {name for name in learned(roberta) if "lora_" not in name} == {
        f"classifier.{name}.{kind}" for name in ("dense", "out_proj") for kind in ("weight", "bias")
    }


def test_what_the_words_of_other_families_pass_through_is_an_embedding():
    """ALBERT widens its embeddings, DeBERTa has some of distances: frozen with the words, and slowed as they are."""
    albert = AlbertForSequenceClassification(AlbertConfig(embedding_size=8, **SMALL))
    adapt(albert, training(freeze_layers=1))
    assert {name.split(".")[1] for name in learned(albert) if name.startswith("albert.")} == {"pooler"}
    deberta = DebertaV2ForSequenceClassification(DebertaV2Config(relative_attention=True, **SMALL))
    groups = parameter_groups(deberta, 0.01, 0.5)
    scales = {id(parameter): group["rate_scale"] for group in groups for parameter in group["params"]}
    assert scales[id(deberta.deberta.encoder.rel_embeddings.weight)] == 0.125
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    adapt(deberta, training(lora=LoraSettings(rank=2)))
    assert {name.split(".")[-4] for name in learned(deberta) if "lora_A" in name} == {"query_proj", "value_proj"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training.lora.alpha=8"], "lora.alpha and lora.targets need lora.rank"),
        (["training.lora.rank=8", "training.freeze_layers=2"], "training.lora freezes every layer"),
        (["training.lora.rank=8", "training.method=features"], "training.lora applies to training.method="),
        (["training.layer_decay=0.9", "training.method=stack"], "training.layer_decay applies to training.method="),
        (["training.lora.rank=8", "head=attention", "aspects=[a, b]"], "training.lora: head=attention learns all"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        load_config("train", [], [*TRAIN, *words])


def test_settings_reach_the_library_as_plain_values():
    from bertray.settings import settings_of

    config = load_config("train", [], [*TRAIN, "training.lora.rank=8", "training.epochs=2"]).training
    numbers = config.model_copy(update={"learning_rate": 1e-4, "batch_size": 16, "warmup_ratio": 0.1})
    plain = settings_of(TrainingSettings, numbers)
    assert plain.lora == LoraSettings(rank=8)
    assert dataclasses.is_dataclass(plain.lora)
