"""Linear heads on frozen features: logistic regression, or a linear SVM with probabilities fitted on validation rows.

Legend: N train rows, V validation rows, D features, F terms, C classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertray.settings import HeadKind

_log = logging.getLogger(__name__)

STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # inverse regularisation, tried in this order
_MIN_SCALE = 1e-6  # a feature that never changes is left alone
_PULL = 1e-3  # towards scale 1 and bias 0 where validation rows are few


@dataclass(frozen=True)
class LinearHead:
    """`softmax(features @ weight.T + bias)`.

    Args:
        weight_CD: float32.
        bias_C: float32.
        strength: the inverse regularisation: fixed, or the one that was best on validation.
        losses: validation log loss of each strength that was tried.
    """

    weight_CD: NDArray[np.float32]
    bias_C: NDArray[np.float32]
    strength: float
    losses: dict[float, float]

    def logits(self, features_ND: NDArray[Any]) -> NDArray[np.float32]:
        """float32 [N, C]."""
        logits_NC: NDArray[np.float32] = (features_ND @ self.weight_CD.T + self.bias_C).astype(np.float32)
        return logits_NC

    def to_tensors(self, more: Mapping[str, NDArray[Any]] | None = None) -> bytes:
        """Content of `head.safetensors`.

        Args:
            more: further tensors, by name.
        """
        from safetensors.numpy import save

        # safetensors writes the memory as it lies; scikit-learn's coefficients of several classes lie column by column.
        tensors = {"weight": self.weight_CD, "bias": self.bias_C, **(more or {})}
        content: bytes = save({name: np.ascontiguousarray(values) for name, values in tensors.items()})
        return content


def fit_linear(
    features_NF: Any,
    label_ids_N: NDArray[Any],
    num_classes: int,
    strength: float,
    *,
    balanced: bool = False,
    seed: int = 0,
) -> LinearHead:
    """Logistic regression with a fixed strength on features as they are: of about length 1, say.

    Args:
        features_NF: dense or sparse.
        label_ids_N: in 0..C-1, each class at least once.
        strength: inverse regularisation.
        balanced: rare classes weigh more.

    Raises:
        ValueError: a class has no row.
    """
    _check_classes(label_ids_N, num_classes)
    weight_CD, bias_C = _fit("logreg", features_NF, label_ids_N, strength, balanced=balanced, seed=seed)
    return LinearHead(weight_CD.astype(np.float32), bias_C.astype(np.float32), strength, {})


def normalized(vectors_ND: NDArray[Any]) -> NDArray[np.float32]:
    """Vectors of length 1, as the engine scales them for a head on normalised embeddings."""
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    scaled_ND: NDArray[np.float32] = (vectors_ND / np.maximum(lengths_N1, 1e-12)).astype(np.float32)
    return scaled_ND


def fit_head(
    features_ND: NDArray[Any],
    label_ids_N: NDArray[Any],
    features_VD: NDArray[Any],
    label_ids_V: NDArray[Any],
    num_classes: int,
    kind: HeadKind = "logreg",
    *,
    balanced: bool = False,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearHead:
    """The head with the least log loss on the validation rows, over a few strengths of regularisation.

    Features are standardised for the fit; that is folded into the head, so it takes them as they are.

    Args:
        features_ND: of the train rows; label_ids_N in 0..C-1, each class at least once.
        features_VD: of the validation rows, which only choose the strength and, for an SVM, fit its probabilities.
        kind: `logreg`, or `svm`.
        balanced: rare classes weigh more, in the fit and in that loss.
        strengths: inverse regularisation to try.

    Raises:
        ValueError: a class has no train row.
    """
    from sklearn.utils.class_weight import compute_sample_weight

    _check_classes(label_ids_N, num_classes)
    mean_D = features_ND.mean(axis=0, dtype=np.float64)
    scale_D = np.maximum(features_ND.std(axis=0, dtype=np.float64), _MIN_SCALE)
    scaled_ND = ((features_ND - mean_D) / scale_D).astype(np.float32)
    scaled_VD = ((features_VD - mean_D) / scale_D).astype(np.float32)
    weights_V = compute_sample_weight("balanced" if balanced else None, label_ids_V)
    best: tuple[float, float, NDArray[np.float64], NDArray[np.float64]] | None = None
    losses = {}
    for strength in strengths:
        weight_CD, bias_C = _fit(kind, scaled_ND, label_ids_N, strength, balanced=balanced, seed=seed)
        if kind == "svm":
            weight_CD, bias_C = _with_probabilities(weight_CD, bias_C, scaled_VD, label_ids_V, weights_V)
        losses[strength] = _log_loss(scaled_VD @ weight_CD.T + bias_C, label_ids_V, weights_V)
        if best is None or losses[strength] < best[0]:
            best = losses[strength], strength, weight_CD, bias_C
    assert best is not None
    _, strength, weight_CD, bias_C = best
    unscaled_CD = weight_CD / scale_D
    return LinearHead(
        unscaled_CD.astype(np.float32), (bias_C - unscaled_CD @ mean_D).astype(np.float32), strength, losses
    )


def _check_classes(label_ids_N: NDArray[Any], num_classes: int) -> None:
    missing = sorted(set(range(num_classes)) - set(np.unique(label_ids_N).tolist()))
    if missing:
        raise ValueError(f"expected rows of every class, found none of {missing}")


def _fit(
    kind: HeadKind, features_ND: Any, label_ids_N: NDArray[Any], strength: float, *, balanced: bool, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    weights = "balanced" if balanced else None
    if kind == "logreg":
        model = LogisticRegression(C=strength, class_weight=weights, max_iter=300, random_state=seed)
    else:
        model = LinearSVC(C=strength / 100, class_weight=weights, max_iter=2000, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # validation judges what was reached
        model.fit(features_ND, label_ids_N)
    weight_CD, bias_C = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if len(weight_CD) == 1:  # of two classes scikit-learn keeps one
        weight_CD, bias_C = np.concatenate([-weight_CD, weight_CD]) / 2, np.concatenate([-bias_C, bias_C]) / 2
    return weight_CD, bias_C


def _with_probabilities(
    weight_CD: NDArray[np.float64],
    bias_C: NDArray[np.float64],
    features_VD: NDArray[Any],
    label_ids_V: NDArray[Any],
    weights_V: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Margins become logits: one scale and a bias a class with the least log loss (Platt's sigmoid for two classes)."""
    from scipy.optimize import minimize

    margins_VC = features_VD @ weight_CD.T + bias_C
    num_classes = len(bias_C)

    def loss(parameters: NDArray[np.float64]) -> float:
        logits_VC = np.exp(parameters[0]) * margins_VC + parameters[1:]
        return _log_loss(logits_VC, label_ids_V, weights_V) + _PULL * float(np.square(parameters).sum())

    found = minimize(loss, np.zeros(num_classes + 1), method="L-BFGS-B").x
    scale = np.exp(found[0])
    return scale * weight_CD, scale * bias_C + found[1:]


def _log_loss(logits_VC: NDArray[Any], label_ids_V: NDArray[Any], weights_V: NDArray[np.float64]) -> float:
    from scipy.special import log_softmax

    losses_V = -log_softmax(logits_VC, axis=1)[np.arange(len(label_ids_V)), label_ids_V]
    return float(np.average(losses_V, weights=weights_V))
