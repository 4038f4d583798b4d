"""The profile of a part: what tasks find in texts and what actors find in probabilities."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bertray import schema as s
from bertray.outputs.night_profile import Moments, unpacked
from bertray.reviews.split import group_hash
from bertray.scoring.profiled import column_of, ngram_share, profile_of, scored_profile, text_profile

TEXTS = pa.array(["a good film", "a bad film", "a good film", "영화가 좋다"])
PROBS = np.array([[0.9, 0.1], [0.2, 0.8], [0.55, 0.45], [0.4, 0.6]], np.float32)


def test_probabilities_give_shares_scores_and_groups():
    shops = pa.array(["north", "south", "north", None])
    profile = scored_profile(PROBS, ["neg", "pos"], {"shop": shops})
    means = {name: round(moments.mean, 6) for name, moments in profile.moments.items()}
    assert profile.rows == 4
    assert means == {
        "confidence": pytest.approx(0.7125),
        "low_confidence": 0.5,  # below 0.65 of two classes
        "predicted:neg": 0.5,
        "predicted:pos": 0.5,
        "probability:neg": pytest.approx(0.5125),
        "probability:pos": pytest.approx(0.4875),
    }
    groups = profile.groups["shop"]
    assert {name: group.rows for name, group in groups.items()} == {"north": 2, "south": 1, "": 1}
    assert groups["north"].labels == {"neg": 2, "pos": 0}
    assert groups["north"].probabilities == pytest.approx({"neg": 1.45, "pos": 0.55})


def test_texts_give_statistics_of_all_rows_and_ngrams_of_a_sample():
    hashes = group_hash(TEXTS)
    whole, none = (text_profile(TEXTS, hashes, share, None) for share in (1.0, 0.0))
    assert whole.moments["log_length"].rows == none.moments["log_length"].rows == 4
    assert sum(whole.ngram_rows) == 4
    assert unpacked(whole.ngrams).sum() == pytest.approx(4, abs=1e-4)
    assert (none.ngrams, none.ngram_rows) == ("", (0, 0))
    assert whole.repeated == {f"{hashes[0]:016x}": 2}
    assert "unseen_trigrams" not in whole.moments  # of a model that does not know its training texts


def test_copies_of_a_text_stand_in_one_fold():
    texts = pa.array(["a good film"] * 5)
    assert sorted(text_profile(texts, group_hash(texts), 1.0, None).ngram_rows) == [0, 5]


def test_a_part_counts_the_rows_that_were_scored():
    kept = pa.table({s.TEXT_PROFILE: column_of(text_profile(TEXTS, group_hash(TEXTS), 1.0, None), 4)})
    probs = PROBS.copy()
    probs[1] = np.nan
    profile = profile_of(kept, probs, ["neg", "pos"], [])
    assert profile.rows == 3
    assert profile.moments["log_length"].rows == 4
    assert profile.moments["predicted:neg"] == Moments(3, 2.0, 2.0)
    assert profile_of(pa.table({"id": ["1"]}), PROBS[:1], ["neg", "pos"], []) is None


def test_large_runs_are_sampled():
    assert [ngram_share(rows) for rows in (0, 20_000, 80_000)] == [1.0, 1.0, 0.25]
