"""int8 gives the labels of full precision: close decisions are taken again, by a bound that held-out rows show."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from bertray.model import int8
from bertray.model.calibration import probs_of_rows
from bertray.model.engine import Engine
from bertray.model.int8 import margins, measure_bound
from bertray.model.predictor import Predictor
from bertray.model.tokenization import ReviewTokenizer, Sequences

TEXTS = [f"{a} {b} film {c}" for a in ("the", "not", "bad") for b in ("good", "real", "the") for c in ("was", "a", "")]
TEMPERATURE = 40.0  # these weights are wild: the probabilities of most reviews come near each other


@pytest.fixture
def reviews(tokenizer_folders):
    return ReviewTokenizer(tokenizer_folders["bert"], 16, "head").encode(pa.array(TEXTS))


def probs_in(precision: str, folder, table: pa.Table, **how) -> np.ndarray:
    return Predictor(folder, temperature=TEMPERATURE, precision=precision, **how).probs(table)


def test_margins_are_differences_of_the_two_best():
    probs_NC = np.array([[0.2, 0.5, 0.3], [0.5, 0.5, 0.0], [np.nan, 0.5, 0.5]], np.float32)
    np.testing.assert_allclose(margins(probs_NC), [0.2, 0.0, np.nan], atol=1e-7)


def test_reviews_that_are_close_get_the_numbers_of_full_precision(make_classifier, reviews):
    folder = make_classifier("bert", 3)
    in_int8 = probs_in("int8", folder, reviews, emulated=True, int8_bound=0)
    margin_N = np.sort(margins(in_int8))
    bound = float(margin_N[10] + margin_N[11]) / 2  # eleven are closer
    predictor = Predictor(folder, temperature=TEMPERATURE, precision="int8", emulated=True, int8_bound=bound)
    close_N = margins(in_int8) < bound
    expected = in_int8.copy()
    expected[close_N] = probs_in("auto", folder, reviews.filter(pa.array(close_N)))
    np.testing.assert_allclose(predictor.probs(reviews), expected, atol=1e-6)
    assert np.abs(in_int8 - expected).max() > 1e-4
    assert predictor.recomputed_rows == close_N.sum() == 11
    np.testing.assert_allclose(predictor.probs(reviews), expected, atol=1e-6)  # known by now, and close again
    assert (predictor.recomputed_rows, predictor.repeated_rows) == (22, len(TEXTS))


def test_a_review_whose_numbers_in_int8_are_not_finite_is_computed_again(make_classifier, reviews, monkeypatch):
    folder = make_classifier("bert", 3)
    predictor = Predictor(folder, temperature=TEMPERATURE, precision="int8", emulated=True, int8_bound=1e-9)
    computed = predictor.engine.logits

    def broken(seqs: Sequences) -> np.ndarray:
        logits_SC = computed(seqs)
        logits_SC[4] = np.nan
        return logits_SC

    monkeypatch.setattr(predictor.engine, "logits", broken)
    found = predictor.probs(reviews)
    np.testing.assert_allclose(found[4], probs_in("auto", folder, reviews.slice(4, 1))[0], atol=1e-6)
    assert predictor.recomputed_rows == 1


def test_the_bound_is_twice_the_largest_difference_of_the_measured_rows(make_classifier, monkeypatch):
    monkeypatch.setattr(int8, "LEAST_MEASURED", 3)
    monkeypatch.setattr(int8, "MEASURED_TOKENS", 40)
    folder, random = make_classifier("bert", 3), np.random.default_rng(0)
    lens_S = np.array([11, 9, 17, 12, 5])  # 37 of three sequences
    ids_T = random.integers(5, 60, lens_S.sum()).astype(np.int32)
    seqs = Sequences(ids_T, lens_S, np.zeros(5, np.int32), np.arange(5), 5)
    first = Sequences(ids_T[:37], lens_S[:3], np.zeros(3, np.int32), np.arange(3), 3)
    in_int8, full = (
        probs_of_rows(Engine(folder, precision=precision, emulated=True).logits(first) / TEMPERATURE)
        for precision in ("int8", "auto")
    )
    expected = 2 * np.abs(in_int8 - full).max()
    assert measure_bound(folder, seqs, TEMPERATURE) == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-4
    monkeypatch.setattr(int8, "LEAST_MEASURED", 4)
    assert measure_bound(folder, seqs, TEMPERATURE) is None  # too few rows
    monkeypatch.setattr(int8, "LEAST_MEASURED", 3)
    assert measure_bound(make_classifier("deberta-v2", 2), seqs, TEMPERATURE) is None  # computed padded, not in int8


def test_the_bound_of_a_stack_is_that_of_its_whole_logits(make_classifier, monkeypatch):
    monkeypatch.setattr(int8, "LEAST_MEASURED", 3)
    folder, random = make_classifier("bert", 3), np.random.default_rng(0)
    lens_S = np.array([11, 9, 17])
    seqs = Sequences(random.integers(5, 60, 37).astype(np.int32), lens_S, np.zeros(3, np.int32), np.arange(3), 3)
    terms_SC = np.array([[9.0, 0, 0]] * 4, np.float32) * TEMPERATURE  # which decide: the encoder hardly counts
    alone, whole = measure_bound(folder, seqs, TEMPERATURE), measure_bound(folder, seqs, TEMPERATURE, terms_SC)
    assert 0 < whole < 0.1 * alone


def test_fp32_is_computed_by_the_engine_of_close_reviews_where_that_is_fp32(make_classifier, reviews):
    folder = make_classifier("bert", 3)
    how: dict[str, Any] = {"temperature": TEMPERATURE, "precision": "int8", "emulated": True}
    predictor = Predictor(folder, int8_bound=1.0, **how)
    predictor._full = Engine(folder, precision="fp32")  # as `auto` has it on a CPU without bf16
    found = predictor.in_fp32()
    assert found.engine is predictor._full
    np.testing.assert_array_equal(found.probs(reviews), probs_in("fp32", folder, reviews))
    alone = Predictor(folder, int8_bound=0, **how).in_fp32()  # nothing is computed again
    np.testing.assert_array_equal(alone.probs(reviews), found.probs(reviews))
    predictor._full = cast(Engine, SimpleNamespace(dtype=torch.bfloat16))
    assert predictor.in_fp32().engine.dtype == torch.float32
