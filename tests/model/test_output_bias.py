"""What moves a decision is the bias that a classifier of any family adds last."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from bertray.errors import ConfigError
from bertray.model.families import output_bias

FAMILIES = [
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "electra",
    "albert",
    "deberta-v2",
    "modernbert",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_added_to_it_is_added_to_the_logits(make_classifier, family):
    model = AutoModelForSequenceClassification.from_pretrained(make_classifier(family, 3)).eval()
    ids, moved_C = torch.tensor([[3, 7, 9, 12, 5]]), torch.tensor([0.5, -2.0, 1.5])
    with torch.inference_mode():
        before_C = model(input_ids=ids).logits[0]
        output_bias(model).data += moved_C
        torch.testing.assert_close(model(input_ids=ids).logits[0], before_C + moved_C, rtol=1e-4, atol=1e-4)


def test_a_head_without_one_is_named(make_classifier):
    model = AutoModelForSequenceClassification.from_pretrained(make_classifier("bert", 3))
    model.classifier = torch.nn.Linear(32, 3, bias=False)
    with pytest.raises(ConfigError, match="expected a head that ends with a bias, found none in BertForSequence"):
        output_bias(model)
