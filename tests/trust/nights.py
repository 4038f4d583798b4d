"""Nights made of numbers: profiles as the actors make them, of rows that a test draws."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from bertray.reviews.split import group_hash
from bertray.scoring.profiled import scored_profile, text_profile
from bertray.trust.nights import Night

WORDS = ("good", "bad", "film", "story", "actor", "plot", "music", "camera", "ending", "scene", "boring", "lovely")


def night_of(seq, probs_NC, texts, *, version="m1", scripts=None, groups=None, slot=None) -> Night:
    array = pa.array(texts)
    profile = text_profile(array, group_hash(array), 1.0, None)
    profile += scored_profile(np.asarray(probs_NC, np.float32), ["neg", "pos"], groups)
    return Night(
        seq,
        slot or f"dt={seq:03d}",
        slot or f"dt={seq:03d}",
        version,
        len(texts),
        scripts or {"latin": len(texts)},
        profile,
    )


def texts_of(rng, rows, words=WORDS, length=8):
    lengths = 2 + rng.poisson(length, rows)
    drawn = np.array(words)[rng.integers(0, len(words), (rows, lengths.max()))].tolist()
    numbers = rng.integers(0, 100, rows).tolist()
    return [" ".join(line[:n]) + f" {number}" for line, n, number in zip(drawn, lengths.tolist(), numbers, strict=True)]


def probs_of(rng, rows, positive):
    """Probabilities of a model that is fairly sure; `positive` is the share of rows on that side."""
    side = rng.random(rows) < positive
    sure = rng.beta(6, 2, rows) / 2 + 0.5
    p = np.where(side, sure, 1 - sure)
    return np.column_stack([1 - p, p])


def ordinary_night(seq, rows=400, *, positive=0.6, **keys) -> Night:
    """A night whose shares vary by more than sampling alone explains, as real ones do."""
    rng = np.random.default_rng(seq)
    share = np.clip(positive + rng.normal(0, 0.02), 0.02, 0.98)
    return night_of(seq, probs_of(rng, rows, share), texts_of(rng, rows, length=8 + rng.normal(0, 0.3)), **keys)
