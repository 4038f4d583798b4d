"""The same estimates as packages that compute one of them; they are no dependency and are compared where installed."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.trust.quality import prior_corrected
from bertray.trust.shares import Answers, GroupSums, adjusted_count, corrected_by_answers
from tests.trust.test_shares import night, sums_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours


def test_a_simple_sample_is_estimated_as_by_prediction_powered_inference():
    ppi = pytest.importorskip("ppi_py", reason="ppi-python is not installed")
    rng = np.random.default_rng(0)
    probs, true = night(rng, 20_000, off=0.5)
    sample = rng.choice(20_000, 400, replace=False)
    found = corrected_by_answers(sums_of(probs), Answers.of_draw(true[sample], probs[sample], np.full(400, 0.02)))[0]
    rest = np.setdiff1d(np.arange(20_000), sample)
    low, high = ppi.ppi_mean_ci(
        (true[sample] == 0).astype(float), probs[sample, 0], probs[rest, 0], alpha=0.05, lam=1.0
    )
    # It takes the other rows as a sample, too, and a normal quantile; its interval is a little wider.
    assert found.value == pytest.approx(float(np.mean([low, high])), abs=1e-3)
    assert found.high - found.low == pytest.approx(float((high - low).item()), rel=0.05)


def test_prior_correction_is_that_of_quapy():
    em = pytest.importorskip("quapy.method.aggregative", reason="quapy is not installed")
    rng = np.random.default_rng(1)
    probs, _ = night(rng, 5_000)
    prior = np.array([0.25, 0.25, 0.5])
    shares, _ = prior_corrected(probs, prior)
    theirs, _ = em.EMQ.EM(prior, probs, epsilon=1e-6)
    assert shares == pytest.approx(theirs, abs=2e-3)


def test_adjusted_count_of_two_classes_is_that_of_quapy():
    functional = pytest.importorskip("quapy.functional", reason="quapy is not installed")
    for said in (300, 500, 700, 900):
        sums = GroupSums(1000, np.array([said, 1000 - said]), np.zeros(2), np.zeros(2))
        found = adjusted_count(sums, np.array([[80, 20], [30, 70]]))[0].value
        assert found == pytest.approx(functional.solve_adjustment_binary(said / 1000, tpr=0.8, fpr=0.3), abs=2e-3)
