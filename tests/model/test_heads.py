"""Linear heads find what is linear, choose on validation, and give probabilities that mean something."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from bertray.model.heads import fit_head


def rows(num_rows: int, num_classes: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Points around a centre for each class, far off the origin and of unlike scales."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(num_classes, 6)) * 2
    labels = random.integers(num_classes, size=num_rows)
    points = centres[labels] + spread * random.normal(size=(num_rows, 6))
    return (points * [1, 10, 100, 0.1, 1, 1] + 50).astype(np.float32), labels


@pytest.mark.parametrize("kind", ["logreg", "svm"])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_head_finds_classes_and_its_probabilities_are_right_as_often_as_they_say(kind, num_classes):
    head = fit_head(*rows(3000, num_classes, 0), *rows(1000, num_classes, 1), num_classes, kind)
    features, labels = rows(4000, num_classes, 2)
    probs = softmax(head.logits(features), axis=1)
    right = probs.argmax(axis=1) == labels
    assert right.mean() > 0.9
    assert abs(probs.max(axis=1).mean() - right.mean()) < 0.02
    assert head.weight_CD.shape == (num_classes, 6)
    assert head.weight_CD.dtype == head.bias_C.dtype == np.float32


def test_the_strength_with_the_least_validation_loss_is_taken():
    head = fit_head(*rows(60, 2, 0, spread=3.0), *rows(400, 2, 1, spread=3.0), 2, strengths=(1e-4, 0.01, 100.0))
    assert set(head.losses) == {1e-4, 0.01, 100.0}
    assert head.strength == min(head.losses, key=head.losses.__getitem__)
    features, labels = rows(400, 2, 1, spread=3.0)
    logits = head.logits(features).astype(np.float64)
    loss = -np.log(softmax(logits, axis=1)[np.arange(400), labels]).mean()
    assert loss == pytest.approx(head.losses[head.strength], rel=1e-3)


@pytest.mark.parametrize("kind", ["logreg", "svm"])
def test_balanced_weights_find_more_of_a_rare_class(kind):
    def rare(seed: int) -> tuple[np.ndarray, np.ndarray]:
        features, labels = rows(4000, 2, seed, spread=4.0)
        kept = (labels == 0) | (np.arange(4000) % 12 == 0)
        return features[kept], labels[kept]

    features, labels = rare(2)
    found = {}
    for balanced in (False, True):
        head = fit_head(*rare(0), *rare(1), 2, kind, balanced=balanced, strengths=(1.0,))
        found[balanced] = (head.logits(features).argmax(axis=1)[labels == 1] == 1).mean()
    assert found[True] > found[False] + 0.3


def test_a_feature_that_never_changes_and_one_seed_do_no_harm():
    features, labels = rows(300, 2, 0)
    features[:, 3] = 7.0
    first = fit_head(features, labels, features, labels, 2, seed=3)
    again = fit_head(features, labels, features, labels, 2, seed=3)
    assert np.isfinite(first.logits(features)).all()
    assert first.weight_CD.tobytes() == again.weight_CD.tobytes()


def test_a_class_without_rows_is_refused():
    features, labels = rows(50, 2, 0)
    with pytest.raises(ValueError, match=r"found none of \[2\]"):
        fit_head(features, labels, features, labels, 3)
