"""The masked-language objective: packed equals padded, ranks add up, a resume repeats, and something is learned."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bertray.io.store import LocalStore
from bertray.training import loop as loop_module
from bertray.training.examples import LoopSettings, PretrainingSettings
from bertray.training.loop import run_loop
from bertray.training.masked_language import MaskedLanguage, error_of_mean
from bertray.training.order import rank_share
from bertray.training.packed import PackedModel
from bertray.training.padded import PaddedLanguageModel
from tests.training.test_loop import examples

SETTINGS = LoopSettings(
    labels=(),
    training=PretrainingSettings(
        epochs=2, batch_size=8, learning_rate=2e-3, warmup_ratio=0.1, max_tokens_per_microbatch=64, held_out_tokens=40
    ),
    seed=3,
    run_key="words",
    threads=1,
)


def settings(**training) -> LoopSettings:
    return dataclasses.replace(SETTINGS, training=dataclasses.replace(SETTINGS.training, **training))


@pytest.fixture(params=["bert", "roberta", "distilbert", "electra", "albert"])
def language_model(request, tmp_path, tiny_encoder):
    """A tiny one of each family that packs, with the tokenizer of `tiny_encoder`."""
    import transformers
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    if request.param == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    config = AutoConfig.for_model(
        request.param, vocab_size=len(tokenizer), max_position_embeddings=70, pad_token_id=0, **sizes
    )
    transformers.set_seed(1)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def objective(folder, data) -> MaskedLanguage:
    return MaskedLanguage(data, folder, 0, SETTINGS, "cpu")


def test_the_packed_loss_and_gradients_equal_the_padded_ones(language_model, tmp_path, monkeypatch):
    data = examples(tmp_path)
    batch = data.train[:12]
    packed = objective(language_model, data)
    assert isinstance(packed.net, PackedModel)
    monkeypatch.setattr(PackedModel, "of", lambda model, kernels_in: (None, "not today"))
    padded = objective(language_model, data)
    assert isinstance(padded.net, PaddedLanguageModel)
    losses = []
    for one in (packed, padded):
        one.net.eval()
        assert one.begin_step(batch, epoch=0) > 12
        loss = one.loss(one.net, one.inputs(batch))
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    wanted = dict(padded.model.named_parameters())
    for name, parameter in packed.model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-4, rtol=1e-3, msg=name)
    with torch.inference_mode():
        results = [one.validate(np.arange(10)) for one in (packed, padded)]
    np.testing.assert_allclose(results[0], results[1], atol=1e-4)


def test_the_loss_is_that_of_transformers_own_masked_language_model(tiny_encoder, tmp_path):
    data = examples(tmp_path)
    one = objective(tiny_encoder, data)
    one.net.eval()
    number = int(data.train[0])
    count = one.begin_step(np.array([number]), epoch=0)
    found = one.loss(one.net, one.inputs(np.array([number]))).item() / count
    masked = one._step[number]
    labels = torch.full((1, len(masked.ids_T)), -100)
    labels[0, masked.places_M] = torch.from_numpy(masked.targets_M)
    one.model.set_attn_implementation("sdpa")
    expected = one.model(input_ids=torch.from_numpy(masked.ids_T)[None], labels=labels).loss.item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_shares_of_two_ranks_add_up_to_the_step(tiny_encoder, tmp_path):
    data = examples(tmp_path)
    step = data.train[:9]
    one = objective(tiny_encoder, data)
    one.net.eval()
    weight = one.begin_step(step, epoch=1)
    whole = one.loss(one.net, one.inputs(step)).item()
    other = objective(tiny_encoder, data)  # another process
    other.net.eval()
    assert other.begin_step(step, epoch=1) == weight
    shares = [
        other.loss(other.net, other.inputs(rank_share(step, rank=rank, world_size=2))).item() for rank in range(2)
    ]
    assert sum(shares) == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_it_learns_and_tells_where_it_stood_before(tiny_encoder, tmp_path):
    store = LocalStore(tmp_path / "run")
    outcome = run_loop(examples(tmp_path, 200), tiny_encoder, 0, settings(epochs=6), store, objective=MaskedLanguage)
    evals = [row for row in outcome.history if row["kind"] == "eval"]
    assert [row["epoch"] for row in evals] == [0, 1, 2, 3, 4, 5, 6]
    assert evals[0]["step"] == 0
    for row in evals:
        assert row["perplexity"] == pytest.approx(np.exp(row["loss"]))
        assert row["perplexity_low"] < row["perplexity"] < row["perplexity_high"]
    assert evals[-1]["perplexity"] < 0.6 * evals[0]["perplexity"]
    best = min(evals[1:], key=lambda row: row["loss"])
    assert outcome.best_step == best["step"]
    assert outcome.validation_VK.shape == (40, 2)
    assert outcome.validation_VK[:, 0].mean() == pytest.approx(best["loss"])
    assert outcome.validation_VK[:, 1].mean() == pytest.approx(best["accuracy"])


def test_validation_tokens_are_hidden_one_at_a_time(tiny_encoder, tmp_path, monkeypatch):
    one = objective(tiny_encoder, examples(tmp_path))
    seen = []
    inputs_of = one._inputs_of
    monkeypatch.setattr(one, "_inputs_of", lambda texts, places: seen.extend(texts) or inputs_of(texts, places))
    with torch.inference_mode():
        one.validate(np.arange(len(one.validation_lens_V)))
    assert len(seen) == 40
    for ids, example, place in zip(seen, one._validation_V, one._places_V, strict=True):
        whole = one.examples.shards._example(int(example)).astype(np.int64)
        assert np.flatnonzero(ids != whole).tolist() == [place]
        assert ids[place] == one.vocabulary.mask_id


def test_a_killed_run_goes_on_with_the_same_gaps_and_the_same_losses(tiny_encoder, tmp_path):
    data = examples(tmp_path)
    whole = run_loop(data, tiny_encoder, 0, SETTINGS, LocalStore(tmp_path / "whole"), objective=MaskedLanguage)

    class Dying(loop_module._Loop):
        def _step(self, members, learning_rate):
            if self.progress.step == 8:
                raise KeyboardInterrupt
            return super()._step(members, learning_rate)

    often, store = settings(checkpoint_every_s=1e-9), LocalStore(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        Dying(data, tiny_encoder, 0, often, store, "cpu", None, objective=MaskedLanguage).run()
    resumed = run_loop(data, tiny_encoder, 0, often, LocalStore(tmp_path / "killed"), objective=MaskedLanguage)
    assert resumed.resumed_from == 8
    told = [[(row["step"], row["loss"]) for row in outcome.history] for outcome in (whole, resumed)]
    assert told[0] == told[1]


def test_tokens_of_one_text_do_not_count_as_independent():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    plain = (14 / 3 / 4) ** 0.5  # deviations of -2, -1, 0 and 3 from the mean
    assert error_of_mean(values, np.arange(4)) == pytest.approx(plain)
    assert error_of_mean(np.repeat(values, 5), np.repeat([7, 1, 9, 4], 5)) == pytest.approx(plain)
    assert error_of_mean(values, np.zeros(4, int)) == float("inf")
