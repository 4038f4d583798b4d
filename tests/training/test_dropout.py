"""The CPU dropout drops as often as torch's, keeps the expectation, and repeats itself from a seed."""

import pytest
import torch
from torch import nn

from bertray.training.dropout import FastDropout, use_fast_dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_shares_and_scale(p):
    torch.manual_seed(0)
    x = torch.full((1000, 1001), 2.0)
    y = FastDropout(p)(x)
    kept = y != 0
    share = kept.float().mean().item()
    assert abs(share - (1 - p)) < 4 * (p * (1 - p) / x.numel()) ** 0.5 + 1 / 65536
    torch.testing.assert_close(y[kept].unique(), torch.tensor([2 / (1 - p)]), rtol=1e-3, atol=0)
    for dim in (0, 1):  # no row or column of the mask stands out, so elements that share a word do not either
        assert (kept.float().mean(dim) - (1 - p)).abs().max() < 6 * (p * (1 - p) / 1000) ** 0.5
    quarters = [kept.flatten()[place::4].float().mean().item() for place in range(4)]
    assert max(abs(quarter - (1 - p)) for quarter in quarters) < 0.005


def test_gradient_is_dropped_and_scaled_like_the_value():
    x = torch.randn(7, 13, requires_grad=True)
    y = FastDropout(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y != 0, y / x, torch.zeros(())).detach())
    assert (x.grad == 0).any()


def test_a_seed_repeats_the_mask_and_another_does_not():
    x, dropout = torch.ones(50, 50), FastDropout(0.5)
    torch.manual_seed(3)
    first = dropout(x)
    second = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_in_evaluation_or_with_zero_and_all_with_one():
    x = torch.randn(5, 5)
    assert FastDropout(0.5).eval()(x) is x
    assert FastDropout(0.0)(x) is x
    assert torch.equal(FastDropout(1.0)(x), torch.zeros(5, 5))


def test_every_dropout_of_a_model_is_replaced():
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    )
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout)]
    use_fast_dropout(model)
    modules = dict(model.named_modules())
    assert len(names) >= 7
    assert {type(modules[name]) for name in names} == {FastDropout}
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
