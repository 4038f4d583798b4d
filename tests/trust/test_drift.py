"""The drift rule: ordinary nights do not alarm, planted shifts do, and each by the statistic that shows it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from bertray.trust.drift import MIN_NIGHTS, Reference, divergence, floor_of
from bertray.trust.nights import Night
from tests.trust.nights import WORDS, night_of, ordinary_night, probs_of, texts_of

ROWS = 400


@pytest.fixture(scope="module")
def history() -> list[Night]:
    return [ordinary_night(seq, ROWS) for seq in range(1, 32)]


@pytest.fixture(scope="module")
def reference(history) -> Reference:
    return Reference(history)


def alarms_of(reference, night):
    return [(shift.kind, shift.name) for shift in reference.judge(night) if shift.is_alarm]


def planted(texts=None, probs=None, **keys):
    rng = np.random.default_rng(99)
    return night_of(900, probs_of(rng, ROWS, 0.6) if probs is None else probs, texts or texts_of(rng, ROWS), **keys)


def test_ordinary_nights_do_not_alarm(reference):
    nights = [ordinary_night(seq, ROWS) for seq in range(100, 140)]
    assert sum(bool(alarms_of(reference, night)) for night in nights) <= 1


def test_the_usual_value_and_both_variances_are_those_of_an_analysis_of_variance(history, reference):
    at = reference.names.index("predicted:pos")
    means = np.array([night.profile.moments["predicted:pos"].mean for night in history])
    assert reference.usual_S[at] == pytest.approx(means.mean())  # nights of one size
    within = np.mean([night.profile.moments["predicted:pos"].variance for night in history])
    assert reference.within_S[at] == pytest.approx(within)
    assert reference.between_S[at] == pytest.approx(max(means.var(ddof=1) - within / ROWS, 0))


def test_the_deviation_is_a_t_statistic_with_the_variance_between_nights(reference):
    night = ordinary_night(500, ROWS)
    at = reference.names.index("confidence")
    mean = night.profile.moments["confidence"].mean
    between, within = reference.between_S[at], reference.within_S[at]
    error = np.sqrt(between * (1 + 1 / 31) + within * (1 / ROWS + 1 / (31 * ROWS)) + 1 / ROWS**2)
    expected = (mean - reference.usual_S[at]) / error
    assert reference.deviations(night)[at] == pytest.approx(expected)
    shift = next(s for s in reference.mean_shifts(night) if s.name == "confidence")
    assert shift.p == pytest.approx(2 * stats.t.sf(abs(expected), 30))


def test_doubled_share_of_a_label_alarms(reference):
    rng = np.random.default_rng(7)
    found = alarms_of(reference, planted(probs=probs_of(rng, ROWS, 0.9)))
    assert ("mean", "predicted:pos") in found


def test_texts_cut_short_alarm_by_their_length(reference):
    rng = np.random.default_rng(7)
    found = alarms_of(reference, planted([" ".join(text.split()[:3]) for text in texts_of(rng, ROWS)]))
    assert {("mean", "log_length"), ("distribution", "log_length")} <= set(found)


def test_another_script_alarms(reference):
    rng = np.random.default_rng(7)
    texts = ["영화가 정말 좋았어요"] * 40 + texts_of(rng, ROWS - 40)
    found = alarms_of(reference, planted(texts, scripts={"latin": ROWS - 40, "hangul": 40}))
    assert ("mean", "foreign_script") in found
    assert ("mean", "characters:hangul") in found


def test_another_subject_in_the_same_letters_alarms_by_its_ngrams(reference):
    rng = np.random.default_rng(7)
    others = [word[::-1] + "x" for word in WORDS]
    found = alarms_of(reference, planted(texts_of(rng, ROWS, others)))
    assert ("texts", "ngrams") in found


@pytest.mark.parametrize(("copies", "is_alarm"), [(1, False), (2, False), (4, False), (5, True), (12, True)])
def test_a_few_copies_in_a_small_night_are_none(copies, is_alarm):
    """The reference has none at all, as nights of long reviews do."""

    def distinct(seq, copies=1):
        rng = np.random.default_rng(seq)
        texts = [f"{text} {seq} {row}" for row, text in enumerate(texts_of(rng, 120))]
        texts[:copies] = ["the very same review, sent again"] * copies
        return night_of(seq, probs_of(rng, 120, 0.6), texts)

    shift = Reference([distinct(seq) for seq in range(1, 13)]).copies_shift(distinct(20, copies))
    assert (shift.usual, shift.is_alarm) == (0.0, is_alarm)
    assert shift.tonight == pytest.approx(copies / 120 if copies > 1 else 0.0)


def test_one_text_in_many_rows_alarms_as_copies(reference):
    rng = np.random.default_rng(7)
    texts = ["the very same long review"] * 16 + texts_of(rng, ROWS - 16)
    assert ("copies", "most_frequent_text") in alarms_of(reference, planted(texts))


def test_a_certain_shift_below_the_floor_is_no_alarm(history):
    """More rows make any shift certain; what nobody would act on stays a number in the table."""
    calm = [night_of(seq, *_calm(seq)) for seq in range(1, 32)]
    reference = Reference(calm)
    at = reference.names.index("predicted:pos")
    probs, texts = _calm(77)
    probs[: int(0.009 * len(probs))] = [0.01, 0.99]
    shift = next(s for s in reference.mean_shifts(night_of(77, probs, texts)) if s.name == "predicted:pos")
    assert 0 < shift.size < floor_of("predicted:pos") / 3
    assert not shift.is_alarm
    assert reference.between_S[at] == pytest.approx(0, abs=1e-5)


def _calm(seq):
    rng = np.random.default_rng(seq)
    rows = 2000
    probs = np.tile([0.8, 0.2], (rows, 1))
    probs[: int(0.3 * rows)] = [0.2, 0.8]
    return probs[::-1].copy(), texts_of(rng, rows)


def test_values_of_a_column_are_compared_and_new_ones_are_found():
    def shops(seq, names):
        rng = np.random.default_rng(seq)
        groups = {"shop": pa.array(rng.choice(names, ROWS))}
        return night_of(seq, probs_of(rng, ROWS, 0.6), texts_of(rng, ROWS), groups=groups)

    reference = Reference([shops(seq, ["north", "south"]) for seq in range(1, 16)])
    assert alarms_of(reference, shops(50, ["north", "south"])) == []
    found = alarms_of(reference, shops(51, ["north", "south", "web", "west"]))
    assert ("mean", "share:shop=(new values)") in found


def test_a_model_that_knows_its_training_texts_adds_statistics_and_one_that_does_not_lacks_them(reference):
    assert not any(name.startswith("unseen") for name in reference.names)


def test_a_night_of_another_size_does_not_alarm(reference):
    """Distances of small samples are larger by chance; of large ones the variation between nights is what counts."""
    sizes = [100, 120, 200, 1000, 4000]
    found = {rows: alarms_of(reference, ordinary_night(600 + n, rows)) for n, rows in enumerate(sizes)}
    assert found == {rows: [] for rows in sizes}


def test_ten_nights_are_enough_to_judge_by(history):
    short = Reference(history[:MIN_NIGHTS])
    rng = np.random.default_rng(7)
    assert alarms_of(short, ordinary_night(700, ROWS)) == []
    assert alarms_of(short, planted([text.upper() for text in texts_of(rng, ROWS)]))


def test_the_divergence_of_equal_frequencies_is_nothing_on_average_and_grows_with_the_shift():
    rng = np.random.default_rng(0)
    base = rng.dirichlet(np.ones(50))

    def sample(p, rows):
        return np.stack([rng.multinomial(rows, p), rng.multinomial(rows, p)]) / rows

    null = [divergence(sample(base, 500), sample(base, 5000)) for _ in range(300)]
    assert abs(np.mean(null)) < 4 * np.std(null) / np.sqrt(300)
    moved = 0.7 * base + 0.3 * rng.dirichlet(np.ones(50))
    far = 0.3 * base + 0.7 * rng.dirichlet(np.ones(50))
    near_value, far_value = (divergence(sample(p, 5000), sample(base, 5000)) for p in (moved, far))
    assert max(null) < near_value < far_value
