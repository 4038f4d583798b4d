"""Verdicts on a model: findings that its figures allow, each with a severity, the worst first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from bertray.evaluation.baselines import MAJORITY, TEACHER, TFIDF_LOGREG
from bertray.evaluation.comparison import Comparison, capital
from bertray.evaluation.intervals import Estimate
from bertray.evaluation.metrics import FIGURES
from bertray.wording import decimal

Severity = Literal["bad", "warning", "note", "good"]
PageKind = Literal["training", "evaluation", "night"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # the worst first

GOOD_MCC = 0.5  # an interval that reaches from chance to here is of too few rows, not of a bad model
MIN_KEPT = 0.9  # share of the teacher's figure below which a student lost much
MIN_SPEEDUP = 1.1
TOO_OFTEN = 0.30  # above its share, from which a label is said far too often
SHARE_TO_BE_SAID, ROWS_TO_BE_SAID = 0.05, 5  # of a label that should be said of some row
ROWS_TO_TELL = 20
ADVICE: dict[PageKind, str] = {
    "training": "More labelled reviews, more epochs or another learning rate may help.",
    "evaluation": "Check `labels`, and that these reviews are of the kind and language that the model was trained on.",
    "night": "Check `labels`, and that these reviews are of the kind and language that the model was trained on.",
}
INSTEAD = "training.method=stack holds TF-IDF, and with training.encoder_weight=0 nothing else: use it here."
_SEVERITY_OF: dict[str, Severity] = {"better": "good", "undecided": "warning", "mixed": "warning", "worse": "bad"}


@dataclass(frozen=True)
class Finding:
    """One sentence about a model or its rows, and how bad that is."""

    severity: Severity
    sentence: str


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """The findings by severity; those of one severity keep their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def worst(findings: Iterable[Finding]) -> Severity | None:
    """The severity that a page takes its colour from; None without findings."""
    return min((finding.severity for finding in findings), key=SEVERITIES.index, default=None)


def judge(
    metrics: Mapping[str, Estimate],
    comparisons: Mapping[str, Comparison],
    *,
    given: Mapping[str, int],
    predicted: Mapping[str, int],
    kind: PageKind,
    name: str = "the model",
    speedup: float | None = None,
) -> list[Finding]:
    """Findings on a model, the worst first; of one severity the sign that is the most reliable.

    A model whose MCC does not differ from 0 has no good finding, even if it beats a baseline.

    Args:
        metrics: figures of the model with intervals; `mcc` is read.
        comparisons: the model beside baselines and teacher, on the same rows (keys of `baselines.TITLES`).
        given: rows by given label.
        predicted: rows by predicted label.
        kind: page that the findings are for; it decides the advice.
        name: of the model in the sentences.
        speedup: rows per second of the model, those of its teacher being 1.
    """
    only_label = _only(given)
    findings = (
        [_one_label(only_label, given[only_label])] if only_label is not None else _labels_said(given, predicted, name)
    )
    only_said = None if findings else _only(predicted)  # else it has been told
    at_chance = None if only_label is not None else _chance(metrics["mcc"], only_said, kind, name)
    for other, comparison in comparisons.items():
        if other == TEACHER:
            findings.append(_beside_teacher(comparison))
        elif only_label is None or other != MAJORITY:
            way_out = f" {INSTEAD}" if (other, comparison.verdict, kind) == (TFIDF_LOGREG, "worse", "training") else ""
            findings.append(Finding(_SEVERITY_OF[comparison.verdict], comparison.sentence + way_out))
    if speedup is not None and speedup < MIN_SPEEDUP:
        findings.append(
            Finding("warning", f"{capital(name)} is no faster than its teacher: {speedup:.2f} times its speed.")
        )
    if at_chance is not None:
        findings = [Finding("note", f.sentence) if f.severity == "good" else f for f in findings]
        findings.append(at_chance)
    return worst_first(findings)


def kept_sentence(comparison: Comparison, speedup: float | None) -> str:
    """The headline of a distilled student: the share of its teacher's figure that it keeps, and at what speed."""
    figure = comparison.judged_by[0]
    student, teacher = comparison.differences[figure].a, comparison.differences[figure].b
    kept = f"{100 * student / teacher:.1f} % of" if teacher > 0 else "nothing to speak of:"
    speed = "" if speedup is None else f" at {speedup:.1f} times the speed"
    return (
        f"{capital(comparison.name_a)} keeps {kept} the teacher's {FIGURES[figure]} "
        f"({student:.3f} of {teacher:.3f}){speed}."
    )


def _only(rows_by_label: Mapping[str, int]) -> str | None:
    """The label of all rows, or None where there are several."""
    found = [label for label, rows in rows_by_label.items() if rows]
    return found[0] if len(found) == 1 else None


def _one_label(label: str, rows: int) -> Finding:
    return Finding(
        "warning",
        f"All rows ({rows:,}) carry the label {label}: the figures do not show whether the model tells classes apart.",
    )


def _labels_said(given: Mapping[str, int], predicted: Mapping[str, int], name: str) -> list[Finding]:
    """Finding on a label that is said far more often than it occurs, or never."""
    rows = sum(given.values())
    if rows < ROWS_TO_TELL:
        return []
    most = max(predicted, key=lambda label: predicted[label] - given[label])
    said, true = predicted[most] / rows, given[most] / rows
    if said > true + TOO_OFTEN:
        told = f"{capital(name)} says {most} of {100 * said:.0f} % of the rows; {100 * true:.0f} % have that label."
        return [Finding("bad", told)]
    enough = max(SHARE_TO_BE_SAID * rows, ROWS_TO_BE_SAID)
    never = [label for label, count in given.items() if count >= enough and not predicted[label]]
    if not never:
        return []
    rest = sum(given[label] for label in never) / rows
    return [
        Finding(
            "warning", f"{capital(name)} never says {', '.join(never)}, the label of {100 * rest:.0f} % of the rows."
        )
    ]


def _chance(mcc: Estimate, only: str | None, kind: PageKind, name: str) -> Finding | None:
    """Finding on a model no better than guessing, or on too few rows to decide.

    Args:
        only: the label that it gives to every row.
    """
    if mcc.low > 0:
        return None
    told = f"MCC {decimal(mcc.value)}, 95 % interval {decimal(mcc.low)} to {decimal(mcc.high)}"
    if mcc.high < 0:
        said = f"{capital(name)} is worse than guessing ({told}): are labels mixed up? {ADVICE[kind]}"
        return Finding("bad", said)
    if mcc.high >= GOOD_MCC:
        return Finding("warning", f"Too few rows to tell {name} from guessing ({told}).")
    always = f" It predicts {only} for every row." if only is not None else ""
    return Finding("bad", f"{capital(name)} cannot be told apart from guessing ({told}).{always} {ADVICE[kind]}")


def _beside_teacher(comparison: Comparison) -> Finding:
    student, numbers = capital(comparison.name_a), comparison.numbers
    if comparison.verdict == "better":
        return Finding("good", f"{student} is ahead of its teacher ({numbers}).")
    if comparison.verdict == "undecided":
        return Finding("good", f"{student} cannot be told apart from its teacher ({numbers}).")
    judged = [comparison.differences[figure] for figure in comparison.judged_by]
    lost_much = any(one.b > 0 and one.a / one.b < MIN_KEPT for one in judged)
    behind = "is behind its teacher" if comparison.verdict == "worse" else "is ahead of its teacher and behind it"
    return Finding("warning" if lost_much else "note", f"{student} {behind} ({numbers}).")
