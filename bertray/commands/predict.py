"""`bertray predict MODEL TEXT ...`: labels and probabilities of texts typed on the command line."""

from __future__ import annotations

from bertray.api.classifier import Classifier
from bertray.config import PredictConfig
from bertray.console import table
from bertray.reports.plain import excerpt

MOST_CLASSES = 8  # whose probabilities stand in a column each


def run_predict(config: PredictConfig) -> int:
    """Print a row a text: its label, then the probability of each class, or of the likeliest of many."""
    classifier = Classifier.load(config.model)
    probs_NC = classifier.predict_proba(list(config.texts))
    labels, many = classifier.labels, len(classifier.labels) > MOST_CLASSES
    rows = []
    for text, probs_C in zip(config.texts, probs_NC, strict=True):
        likely = probs_C.argsort(kind="stable")[::-1]
        told = [f"{labels[c]} {probs_C[c]:.3f}" for c in likely[:3]] if many else [f"{p:.3f}" for p in probs_C]
        rows.append([excerpt(text), labels[int(probs_C.argmax())], *told])
    table("", ["text", "label", *(["1st", "2nd", "3rd"] if many else labels)], rows)
    return 0
