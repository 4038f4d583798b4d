"""A packed classifier in training: the logits, the losses and the gradients of the padded one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bertray.training.loading import LoadSettings, load_classifier
from bertray.training.packed import PackedModel, pack

FAMILIES = ["bert", "roberta", "distilbert", "electra", "albert"]


def sequences(num: int = 12, words: int = 60) -> tuple[list[np.ndarray], np.ndarray]:
    random = np.random.default_rng(3)
    ids = [random.integers(5, words, size=int(size)).astype(np.uint16) for size in random.integers(2, 30, size=num)]
    return ids, np.array([len(row) // 3 if number % 4 == 0 else 0 for number, row in enumerate(ids)])


def classifier_of(folder, *, attention_dropout: bool = False):
    torch.manual_seed(0)
    return load_classifier(folder, ("a", "b", "c"), LoadSettings(attention_dropout))


def padded_logits(model, ids, second_lens) -> torch.Tensor:
    pad_id, width = model.config.pad_token_id, max(map(len, ids))
    input_ids = torch.full((len(ids), width), pad_id)
    mask, types = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for row, sequence in enumerate(ids):
        input_ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        mask[row, : len(sequence)] = 1
        types[row, len(sequence) - second_lens[row] : len(sequence)] = 1
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = types
    return model(**inputs).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_those_of_padded_batches(family, make_classifier):
    folder = make_classifier(family, 3)
    ids, second_lens = sequences()
    labels = torch.arange(len(ids)) % 3
    padded, other = classifier_of(folder), classifier_of(folder)
    padded.eval()
    expected = padded_logits(padded, ids, second_lens)
    torch.nn.functional.cross_entropy(expected, labels).backward()
    packed, why_not = PackedModel.of(other)
    assert packed is not None, why_not
    packed.eval()
    found = packed(pack(ids, second_lens, other.config))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.nn.functional.cross_entropy(found, labels).backward()
    gradients = dict(other.named_parameters())
    for name, parameter in padded.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        got = gradients[name].grad
        torch.testing.assert_close(torch.zeros_like(wanted) if got is None else got, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_behind_the_last_attention_only_first_tokens_are_computed(family, make_classifier):
    model = classifier_of(make_classifier(family, 3))
    packed, _ = PackedModel.of(model)
    ids, second_lens = sequences()
    num_tokens: list[int] = []
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, __, out: num_tokens.append(out.shape[1]))
    packed(pack(ids, second_lens, model.config))
    all_tokens = sum(map(len, ids))
    last_two = [all_tokens] * 2 if family == "albert" else [len(ids)] * 2  # ALBERT's layers are one module
    assert num_tokens == [all_tokens] * (len(num_tokens) - 2) + last_two


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_layers_that_run_again_in_the_backward_pass_have_the_same_gradients(family, make_classifier):
    folder, (ids, second_lens) = make_classifier(family, 3), sequences()
    gradients = []
    for again in (False, True):
        model = classifier_of(folder)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if again:
            model.activation_checkpointing_enable()
        packed, _ = PackedModel.of(model)
        packed.train()
        torch.nn.functional.cross_entropy(
            packed(pack(ids, second_lens, model.config)), torch.arange(len(ids)) % 3
        ).backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_works_on_every_part_also_the_head(family, make_classifier):
    """With everything else off, dropout of hidden states and of the head still makes two passes differ."""
    folder = make_classifier(family, 3)
    ids, second_lens = sequences()
    model = classifier_of(folder)
    packed, _ = PackedModel.of(model)
    batch = pack(ids, second_lens, model.config)
    packed.train()
    assert not torch.equal(packed(batch), packed(batch))
    for module in packed.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert torch.equal(packed(batch), packed(batch))
    heads = {"bert": "dropout", "distilbert": "dropout", "albert": "dropout", "roberta": "classifier.dropout"}
    model.get_submodule(heads.get(family, "classifier.dropout")).p = 0.5
    assert not torch.equal(packed(batch), packed(batch))


def test_attention_dropout_is_kept_where_it_is_asked_for(make_classifier):
    folder = make_classifier("bert", 3)
    ids, second_lens = sequences()
    for wanted in (True, False):
        model = classifier_of(folder, attention_dropout=wanted)
        packed, _ = PackedModel.of(model)
        packed.train()
        for name, module in packed.named_modules():
            if isinstance(module, torch.nn.Dropout) and not name.endswith("attention.self.dropout"):
                module.p = 0.0
        batch = pack(ids, second_lens, model.config)
        assert torch.equal(packed(batch), packed(batch)) != wanted


def test_no_token_sees_another_sequence(make_classifier):
    folder = make_classifier("bert", 3)
    ids, second_lens = sequences()
    model = classifier_of(folder)
    packed, _ = PackedModel.of(model)
    packed.eval()
    before = packed(pack(ids, second_lens, model.config))
    changed = [row.copy() for row in ids]
    changed[4][:] = 7
    after = packed(pack(changed, second_lens, model.config))
    assert (after != before).any(dim=1).tolist() == [number == 4 for number in range(len(ids))]


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2"])
def test_a_model_that_cannot_be_packed_says_why_and_stays_as_it_is(family, make_classifier):
    model = classifier_of(make_classifier(family, 3))
    before = model.config._attn_implementation
    packed, why_not = PackedModel.of(model)
    assert packed is None
    assert "has no packed forward pass" in why_not
    assert model.config._attn_implementation == before


def test_a_forward_pass_with_other_logits_is_not_used(make_classifier, monkeypatch):
    from bertray.training import packed as module

    model = classifier_of(make_classifier("bert", 3))
    before = model.config._attn_implementation
    head = vars(module)["classification_head"](model)
    monkeypatch.setattr(module, "classification_head", lambda classifier: lambda x: head(x) + 0.1)
    packed, why_not = PackedModel.of(model)
    assert packed is None
    assert "differ by" in why_not
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("family", FAMILIES)
def test_filling_changes_neither_logits_nor_gradients(family, make_classifier):
    folder = make_classifier(family, 3)
    ids, second_lens = sequences()
    found, gradients = [], []
    for multiple in (1, 64):
        model = classifier_of(folder)
        packed, why_not = PackedModel.of(model)
        assert packed is not None, why_not
        packed.eval()
        batch = pack(ids, second_lens, model.config, tokens_multiple=multiple)
        assert len(batch.ids_T) % multiple == 0
        found.append(packed(batch))
        torch.nn.functional.cross_entropy(found[-1], torch.arange(len(ids)) % 3).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=0, msg=name)


def test_attention_is_computed_in_fp32_under_autocast_too(make_classifier, monkeypatch):
    model = classifier_of(make_classifier("bert", 3))
    packed, why_not = PackedModel.of(model)
    assert packed is not None, why_not
    attention = torch.nn.functional.scaled_dot_product_attention
    seen = []

    def seen_attention(query, key, value, **kwargs):
        # What autocast does to its arguments, it does inside.
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return attention(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen_attention)
    ids, second_lens = sequences()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed(pack(ids, second_lens, model.config))
    assert set(seen) == {(torch.float32, False)}


@pytest.mark.parametrize("family", FAMILIES)
def test_query_key_and_value_are_one_product(family, make_classifier, monkeypatch):
    model = classifier_of(make_classifier(family, 3))
    packed, why_not = PackedModel.of(model)
    assert packed is not None, why_not
    hidden = model.config.hidden_size
    linear = torch.nn.functional.linear
    products = []

    def counted(x, weight, bias=None):
        products.append(tuple(weight.shape))
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    packed(pack(*sequences(), model.config))
    num_layers = model.config.num_hidden_layers * getattr(model.config, "inner_group_num", 1)
    assert products.count((3 * hidden, hidden)) == num_layers
    assert products.count((hidden, hidden)) <= num_layers + 2  # behind attention, and the head's
