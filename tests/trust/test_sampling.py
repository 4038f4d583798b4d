"""Rows to ask about: probabilities that are true, and no text twice."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.trust.sampling import distinct, entropy, stratified_draw


def probs_of(rng, rows):
    p = rng.beta(0.5, 0.5, rows)
    return np.column_stack([p, 1 - p])


@pytest.mark.parametrize("budget", [2, 7, 50, 199])
def test_the_budget_is_met_and_the_probabilities_add_up_to_all_rows(budget):
    draw = stratified_draw(probs_of(np.random.default_rng(0), 200), budget, seed=1)
    assert len(draw.rows) == len(set(draw.rows.tolist())) == budget
    assert (1 / draw.probability).sum() == pytest.approx(200)


def test_all_rows_are_drawn_where_the_budget_allows():
    draw = stratified_draw(probs_of(np.random.default_rng(0), 20), 20, seed=1)
    assert draw.rows.tolist() == list(range(20))
    assert draw.probability.tolist() == [1.0] * 20


def test_each_row_is_drawn_as_often_as_its_probability_says():
    probs = probs_of(np.random.default_rng(0), 120)
    seen, said = np.zeros(120), np.zeros(120)
    for seed in range(800):
        draw = stratified_draw(probs, 30, seed)
        seen[draw.rows] += 1
        said[draw.rows] = draw.probability
    assert seen / 800 == pytest.approx(said, abs=0.08)


def test_uncertain_rows_are_drawn_more_often():
    probs = probs_of(np.random.default_rng(0), 400)
    draw = stratified_draw(probs, 100, seed=0)
    unsure = np.abs(probs[:, 0] - 0.5) < 0.2
    assert unsure[draw.rows].mean() > unsure.mean()


def test_entropy_is_largest_where_nothing_is_known():
    assert entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).tolist() == pytest.approx([np.log(2), 0], abs=1e-9)


def test_near_duplicates_are_asked_about_once():
    texts = ["The same review, really.", "the  same review, really!", "Something else entirely", "ab", "ab"]
    assert distinct(texts, [], 5) == [0, 2, 3]
    assert distinct(texts, ["Something else entirely."], 5) == [0, 3]
    assert distinct(texts, [], 1) == [0]
