"""Profile of the rows of a part: texts where they are read, labels and probabilities where they are computed.

Shape letters: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bertray import schema as s
from bertray.io.tables import one_chunk
from bertray.model.bundle import kept_of_model
from bertray.outputs.night_profile import (
    MAX_GROUPS,
    MAX_REPEATED,
    NUM_BINS,
    NUM_FOLDS,
    OTHER_GROUPS,
    GroupProfile,
    Moments,
    NightProfile,
    packed,
)
from bertray.reviews.ngrams import Characters, SeenNgrams, frequencies, read_seen_ngrams
from bertray.reviews.text_statistics import (
    LOG_LENGTH,
    UNSEEN_TRIGRAMS,
    most_repeated,
    statistics,
    unseen_statistics,
)

NGRAM_ROWS = 20_000  # of a run whose n-grams are looked at: more do not help
CONFIDENCE, LOW_CONFIDENCE = "confidence", "low_confidence"
PREDICTED_OF, PROBABILITY_OF = "predicted:", "probability:"  # and the label
_LONGEST = 10.0  # log1p of the characters of a text, the upper end of its histogram
_ALL = 1 << 64


seen_ngrams = kept_of_model(read_seen_ngrams)
"""Table of a model, read once a process."""


def ngram_share(num_rows: int) -> float:
    """Share of the rows of a run whose n-grams are looked at."""
    return min(1.0, NGRAM_ROWS / max(num_rows, 1))


def text_profile(
    texts: pa.Array, text_hash_N: NDArray[np.uint64], share: float, seen: SeenNgrams | None
) -> NightProfile:
    """The part of a profile that follows from texts; `rows` is left to `scored_profile`.

    Args:
        texts: string [N], cleaned.
        text_hash_N: uint64 [N], `group_hash` of the texts; it draws the sample and the folds.
        share: of the rows whose n-grams are looked at.
        seen: n-grams of the training texts; None of a model that does not know them.
    """
    listed = texts.to_pylist()
    characters = Characters.of(listed)
    found = statistics(texts, characters)
    moments = {name: Moments.of(values_N) for name, values_N in found.items()}
    histograms = {LOG_LENGTH: _histogram(found[LOG_LENGTH], _LONGEST)}
    sampled_N = text_hash_N <= np.uint64(min(int(share * _ALL), _ALL - 1))
    if not sampled_N.all():
        listed = [text for text, is_sampled in zip(listed, sampled_N, strict=True) if is_sampled]
        characters = Characters.of(listed)
    if seen is not None:
        unseen = unseen_statistics(characters, seen)
        moments |= {name: Moments.of(values_N) for name, values_N in unseen.items()}
        histograms[UNSEEN_TRIGRAMS] = _histogram(unseen[UNSEEN_TRIGRAMS], 1.0)
    fold_N = (text_hash_N[sampled_N] % np.uint64(NUM_FOLDS)).astype(np.int64)
    sums_FB = frequencies(characters, fold_N, NUM_FOLDS)
    lengths_N = pc.utf8_length(texts).to_numpy(zero_copy_only=False)
    repeated = most_repeated(text_hash_N, lengths_N, MAX_REPEATED)
    return NightProfile(
        moments=moments,
        histograms=histograms,
        ngrams=packed(sums_FB) if len(listed) else "",
        ngram_rows=(int((fold_N == 0).sum()), int((fold_N == 1).sum())),
        repeated={f"{text_hash:016x}": rows for text_hash, rows in repeated.items()},
    )


def column_of(profile: NightProfile, num_rows: int) -> pa.Array:
    """A profile as it travels with rows: in the first of them, binary [N]."""
    return pa.array([profile.model_dump_json().encode(), *([None] * (num_rows - 1))], pa.binary())


def profile_of(
    kept: pa.Table, probs_NC: NDArray[np.float32], labels: Sequence[str], by: Sequence[str]
) -> NightProfile | None:
    """Profile of the rows of a part; None where their texts have none.

    Args:
        kept: rows as they were read, all of a work unit.
        probs_NC: float32 [N, C]; rows that are not finite are not counted.
        by: kept columns whose values are counted apart.
    """
    if s.TEXT_PROFILE not in kept.column_names:
        return None
    found = one_chunk(kept[s.TEXT_PROFILE]).drop_null().to_pylist()
    of_texts = sum((NightProfile.model_validate_json(value) for value in found), NightProfile())
    finite_N = np.isfinite(probs_NC).all(axis=1)
    groups = {name: one_chunk(kept[s.KEEP_PREFIX + name]).filter(pa.array(finite_N)) for name in by}
    return of_texts + scored_profile(probs_NC[finite_N], labels, groups)


def scored_profile(
    probs_NC: NDArray[np.float32], labels: Sequence[str], groups: dict[str, pa.Array] | None = None
) -> NightProfile:
    """The part of a profile that follows from probabilities, float32 [N, C]; `groups` are columns [N] to count by."""
    num_classes = len(labels)
    best_N = probs_NC.argmax(axis=1) if len(probs_NC) else np.zeros(0, np.int64)
    confidence_N = probs_NC.max(axis=1) if len(probs_NC) else np.zeros(0)
    low = float(np.clip(1.3 / num_classes, 0.45, 0.65))
    moments = {
        CONFIDENCE: Moments.of(confidence_N),
        LOW_CONFIDENCE: Moments.of(confidence_N < low),
        **{f"{PREDICTED_OF}{label}": Moments.of(best_N == number) for number, label in enumerate(labels)},
        **{f"{PROBABILITY_OF}{label}": Moments.of(probs_NC[:, number]) for number, label in enumerate(labels)},
    }
    return NightProfile(
        rows=len(probs_NC),
        moments=moments,
        histograms={CONFIDENCE: _histogram(confidence_N, 1.0)},
        groups={name: _groups(values, best_N, probs_NC, labels) for name, values in (groups or {}).items()},
    )


def _groups(
    values: pa.Array, best_N: NDArray[np.int64], probs_NC: NDArray[np.float32], labels: Sequence[str]
) -> dict[str, GroupProfile]:
    encoded = pc.fill_null(values.cast(pa.string()), "").dictionary_encode()
    which_N, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    if len(names) > MAX_GROUPS:  # the others are one before any of them becomes an object
        order = np.argsort(-np.bincount(which_N, minlength=len(names)), kind="stable")
        kept = [at for at in order.tolist() if names[at] != OTHER_GROUPS][: MAX_GROUPS - 1]
        place = np.full(len(names), len(kept))
        place[kept] = np.arange(len(kept))
        which_N, names = place[which_N], [*(names[at] for at in kept), OTHER_GROUPS]
    counts_GC = np.zeros((len(names), len(labels)), np.int64)
    np.add.at(counts_GC, (which_N, best_N), 1)
    sums_GC = np.stack([np.bincount(which_N, probs_NC[:, c], len(names)) for c in range(len(labels))], axis=1)
    return {
        name: GroupProfile(
            rows=int(counts_GC[at].sum()),
            labels=dict(zip(labels, counts_GC[at].tolist(), strict=True)),
            probabilities=dict(zip(labels, sums_GC[at].tolist(), strict=True)),
        )
        for at, name in enumerate(names)
    }


def _histogram(values_N: NDArray[np.float64], top: float) -> str:
    """Rows in equal bins over [0, top]; the last holds what is above it, too."""
    bins_N = np.minimum((values_N * (NUM_BINS / top)).astype(np.int64), NUM_BINS - 1)
    return packed(np.bincount(bins_N, minlength=NUM_BINS))
