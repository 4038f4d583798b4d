"""Verdicts: every rule by its whole sentence, and the worst first."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.evaluation.comparison import compare
from bertray.evaluation.intervals import Estimate
from bertray.evaluation.summary import evaluate_predictions
from bertray.evaluation.verdicts import INSTEAD, Finding, judge, kept_sentence, worst, worst_first

HALF = {"neg": 100, "pos": 100}
GOOD = Estimate(0.8, 0.7, 0.9)
CHECK = "Check `labels`, and that these reviews are of the kind and language that the model was trained on."
LEARN = "More labelled reviews, more epochs or another learning rate may help."


def beside(right_a, right_b, *, name_b="the TF-IDF baseline", name_a="the model", num_rows=400, best_metric="loss"):
    """Two models on two balanced classes; each is right on the first rows of both classes, as given by its share."""
    given_N = np.arange(num_rows) % 2

    def answers(right):
        return np.where(np.arange(num_rows) < right * num_rows, given_N, 1 - given_N)

    predicted = (answers(right_a), answers(right_b))
    return compare(given_N, *predicted, 2, name_a=name_a, name_b=name_b, seed=0, best_metric=best_metric)


def found(mcc=GOOD, comparisons=None, given=None, predicted=None, kind="evaluation", **options):
    return judge(
        {"mcc": mcc}, comparisons or {}, given=given or HALF, predicted=predicted or HALF, kind=kind, **options
    )


@pytest.mark.parametrize(
    ("mcc", "predicted", "kind", "finding"),
    [
        (Estimate(0.8, 0.7, 0.9), HALF, "training", None),
        (
            Estimate(0.05, -0.06, 0.16),
            HALF,
            "night",
            Finding(
                "bad",
                "The model cannot be told apart from guessing (MCC 0.050, 95 % interval −0.060 to 0.160). " + CHECK,
            ),
        ),
        (
            Estimate(-0.5, -0.6, -0.4),
            HALF,
            "evaluation",
            Finding(
                "bad",
                "The model is worse than guessing (MCC −0.500, 95 % interval −0.600 to −0.400): are labels mixed up? "
                + CHECK,
            ),
        ),
        (
            Estimate(0.4, -0.1, 0.9),
            HALF,
            "evaluation",
            Finding(
                "warning", "Too few rows to tell the model from guessing (MCC 0.400, 95 % interval −0.100 to 0.900)."
            ),
        ),
    ],
)
def test_a_model_whose_mcc_may_be_zero_is_never_good(mcc, predicted, kind, finding):
    better = {"majority": beside(0.9, 0.5)}
    assert better["majority"].verdict == "better"
    findings = found(mcc, better, predicted=predicted, kind=kind)
    if finding is None:
        assert findings == [Finding("good", better["majority"].sentence)]
    else:
        assert findings == [finding, Finding("note", better["majority"].sentence)]


def test_one_label_for_all_is_told_once():
    """Where it is said far too often that comes first; where it has most rows, too, guessing is told with it."""
    guessing = "The model cannot be told apart from guessing (MCC 0.000, 95 % interval 0.000 to 0.000)."
    findings = found(Estimate(0.0, 0.0, 0.0), predicted={"neg": 0, "pos": 200}, kind="training")
    assert findings == [
        Finding("bad", "The model says pos of 100 % of the rows; 50 % have that label."),
        Finding("bad", f"{guessing} {LEARN}"),
    ]
    given, predicted = {"neg": 4, "pos": 96}, {"neg": 0, "pos": 100}
    findings = found(Estimate(0.0, 0.0, 0.0), given=given, predicted=predicted, kind="training")
    assert findings == [Finding("bad", f"{guessing} It predicts pos for every row. {LEARN}")]


@pytest.mark.parametrize(("tfidf", "severity"), [(0.5, "good"), (0.795, "warning"), (0.8, "warning"), (0.95, "bad")])
def test_the_worst_verdict_comes_first_whatever_else_is_beaten(tfidf, severity):
    comparisons = {"majority": beside(0.8, 0.5, name_b="the majority baseline"), "tfidf_logreg": beside(0.8, tfidf)}
    findings = found(comparisons=comparisons, kind="training")
    sentences = {f.sentence: f.severity for f in findings}
    assert sentences == {
        comparisons["majority"].sentence: "good",
        f"{comparisons['tfidf_logreg'].sentence}{f' {INSTEAD}' if severity == 'bad' else ''}": severity,
    }
    assert worst(findings) == findings[0].severity == severity


def test_a_contradiction_is_a_warning():
    given_N = np.array([0] * 900 + [1] * 100)
    rare_found_N = np.array([1] * 200 + [0] * 700 + [1] * 100)
    mixed = compare(given_N, np.zeros(1000, int), rare_found_N, 2, name_a="the model", name_b="another", seed=0)
    assert mixed.verdict == "mixed"
    assert found(comparisons={"tfidf_logreg": mixed}) == [Finding("warning", mixed.sentence)]


@pytest.mark.parametrize("best_metric", ["accuracy", "macro_f1", "mcc", "loss"])
def test_the_figure_that_chose_the_epoch_decides(best_metric):
    # Of 1,000 rows A predicts the frequent class always; B finds all of the rare one at a price in accuracy.
    given_N = np.array([0] * 900 + [1] * 100)
    always_N, rare_found_N = np.zeros(1000, int), np.array([1] * 200 + [0] * 700 + [1] * 100)
    names = {"name_a": "the model", "name_b": "the TF-IDF baseline"}
    comparison = compare(given_N, always_N, rare_found_N, 2, seed=0, best_metric=best_metric, **names)
    expected = {"accuracy": "better", "macro_f1": "worse", "mcc": "worse", "loss": "mixed"}[best_metric]
    first = {"accuracy": "accuracy 0.900 against 0.800", "macro_f1": "macro F1 0.474 against 0.688"}
    first |= {"mcc": "MCC 0.000 against 0.509, difference −0.509", "loss": "accuracy 0.900 against 0.800"}
    assert comparison.verdict == expected
    assert comparison.numbers.startswith(first[best_metric])
    assert f"({comparison.numbers})." in comparison.sentence


@pytest.mark.parametrize(
    ("student", "teacher", "severity", "opening"),
    [
        (0.9, 0.9, "good", "The student cannot be told apart from its teacher (accuracy 0.900 against 0.900, "),
        (0.9, 0.8, "good", "The student is ahead of its teacher (accuracy 0.900 against 0.800, +10.0 points, "),
        (0.85, 0.9, "note", "The student is behind its teacher (accuracy 0.850 against 0.900, −5.0 points, "),
        (0.7, 0.9, "warning", "The student is behind its teacher (accuracy 0.700 against 0.900, −20.0 points, "),
    ],
)
def test_a_student_is_judged_by_what_it_keeps(student, teacher, severity, opening):
    comparison = beside(student, teacher, name_a="the student", name_b="its teacher")
    (finding,) = found(comparisons={"teacher": comparison}, kind="training", name="the student", speedup=2.0)
    assert finding.severity == severity
    assert finding.sentence == f"{opening.partition(' (')[0]} ({comparison.numbers})."
    assert finding.sentence.startswith(opening)


def test_a_student_that_is_no_faster_is_a_warning():
    comparison = beside(0.9, 0.9, name_a="the student", name_b="its teacher")
    findings = found(comparisons={"teacher": comparison}, name="the student", speedup=0.97)
    slow = Finding("warning", "The student is no faster than its teacher: 0.97 times its speed.")
    assert (findings[0], findings[1].severity) == (slow, "good")


@pytest.mark.parametrize(
    ("best_metric", "speedup", "sentence"),
    [
        (
            "loss",
            2.54,
            "The student keeps 94.4 % of the teacher's accuracy (0.850 of 0.900) at 2.5 times the speed.",
        ),
        ("mcc", 3.0, "The student keeps 87.5 % of the teacher's MCC (0.700 of 0.800) at 3.0 times the speed."),
        ("accuracy", None, "The student keeps 94.4 % of the teacher's accuracy (0.850 of 0.900)."),
    ],
)
def test_the_headline_of_a_student_says_what_it_keeps_and_how_fast(best_metric, speedup, sentence):
    comparison = beside(0.85, 0.9, name_a="the student", name_b="its teacher", best_metric=best_metric)
    assert kept_sentence(comparison, speedup) == sentence


def test_rows_of_one_label_say_nothing_about_the_others():
    majority = beside(0.8, 0.9, name_b="the majority baseline")
    findings = found(Estimate(0.0, 0.0, 0.0), {"majority": majority}, given={"neg": 0, "pos": 1200})
    assert findings == [
        Finding(
            "warning",
            "All rows (1,200) carry the label pos: the figures do not show whether the model tells classes apart.",
        )
    ]


def test_findings_are_ordered_by_severity_and_then_as_given():
    findings = [Finding("good", "a"), Finding("bad", "b"), Finding("note", "c"), Finding("warning", "d")]
    findings.append(Finding("bad", "e"))
    assert [f.sentence for f in worst_first(findings)] == ["b", "e", "d", "c", "a"]
    assert worst(findings) == "bad"
    assert worst([]) is None


def test_a_model_that_answers_at_random_is_bad_beside_the_majority_of_the_rows():
    rng = np.random.default_rng(0)
    given_N, probs_N = (rng.random(300) < 0.3).astype(int), rng.random(300)
    evaluation = evaluate_predictions(
        given_N, np.column_stack([1 - probs_N, probs_N]), ["no", "yes"], split="test", seed=0, kind="night"
    )
    assert [f.severity for f in evaluation.findings] == ["bad"]
    assert evaluation.findings[0].sentence.startswith("The model cannot be told apart from guessing (MCC ")
    assert evaluation.findings[0].sentence.endswith(CHECK)


@pytest.mark.parametrize(
    ("given", "predicted", "finding"),
    [
        ({"neg": 100, "pos": 100}, {"neg": 161, "pos": 39}, "says neg of 80 % of the rows; 50 % have that label."),
        ({"neg": 100, "pos": 100}, {"neg": 160, "pos": 40}, None),  # 30 points and no more
        ({"a": 60, "b": 31, "c": 9}, {"a": 62, "b": 38, "c": 0}, "never says c, the label of 9 % of the rows."),
        ({"a": 60, "b": 37, "c": 3}, {"a": 62, "b": 38, "c": 0}, None),  # below 5 %
        ({"a": 20, "b": 16, "c": 4}, {"a": 22, "b": 18, "c": 0}, None),  # too few of it
        ({"neg": 8, "pos": 8}, {"neg": 16, "pos": 0}, None),  # too few rows
    ],
)
def test_a_label_that_is_said_far_too_often_or_never_is_told_first(given, predicted, finding):
    findings = found(given=given, predicted=predicted)
    told = Finding("bad" if finding and "says neg" in finding else "warning", f"The model {finding}")
    assert findings == ([told] if finding else [])


def test_signs_come_in_the_order_of_what_they_catch():
    comparisons = {"tfidf_logreg": beside(0.5, 0.9)}
    predicted = {"neg": 0, "pos": 200}
    findings = found(Estimate(0.0, -0.1, 0.1), comparisons, predicted=predicted, kind="training")
    assert [finding.severity for finding in findings] == ["bad"] * 3
    first, second, third = (finding.sentence for finding in findings)
    assert first.startswith("The model says pos of 100 % of the rows")
    assert second == (f"{comparisons['tfidf_logreg'].sentence} {INSTEAD}")
    assert third.startswith("The model cannot be told apart from guessing")
