"""Findings on rows that a model cannot make sense of: unread letters, cut texts, other scripts, one label for all."""

from __future__ import annotations

from dataclasses import replace

from bertray.evaluation.verdicts import Finding
from bertray.model.coverage import UNREAD
from bertray.model.profile import Profile, Reading
from bertray.reviews.writing_system import OTHER
from bertray.wording import percent

MIXED_ROWS = 0.10  # share of rows with most letters unread
TRUNCATED = 0.50
MORE_TRUNCATED = 0.30  # above the share of validation rows
TRUNCATED_UNKNOWN = 0.90  # of a model without a profile
NEW_SCRIPT = 0.10
ONE_LABEL = 0.97
SEVERAL_LABELS = 0.80  # share of the label among validation rows below which it should not be that of nearly all rows
MIN_ROWS = 50  # below, one label or script for all is a matter of chance
MIN_VALIDATION_ROWS = 10
CHANCE = 0.001  # that validation rows miss a script by chance
TOKENS_PER_WORD = 1.5  # in Latin script; ordinary English has 1.0 to 1.25

WAYS_OUT = (
    "Give an encoder of their language as model=... (for a machine without network: bertray fetch NAME output=FOLDER "
    "on another one, copy the folder, model=FOLDER), or make one of your own texts: bertray pretrain from_scratch=true."
)


def judge_rows(rows: Profile, validation: Profile | None, *, left_out: bool = False) -> list[Finding]:
    """One finding where a model cannot make sense of rows, or none.

    Each sign alone is a warning. Letters that the tokenizer cannot read, or two signs, are bad.

    Args:
        rows: that were scored or embedded.
        validation: those that the model was validated on; None of a model that does not know them.
        left_out: the encoder is no part of the model: it does not matter what its tokenizer reads.
    """
    if not rows.rows:
        return []
    if left_out:
        rows = replace(rows, reading=Reading(), truncated=0.0)
    unread = rows.reading.unread > UNREAD
    signs = [*_truncation(rows, validation), *_scripts(rows, validation), *_one_label(rows, validation)]
    if unread:
        if validation is not None and validation.reading.unread > UNREAD and not signs:
            said = _unread(rows.reading, validation)
            return [Finding("warning", f"The model cannot read these texts, nor those it was trained on: {said}.")]
        signs.insert(0, _unread(rows.reading, validation))
        return [Finding("bad", f"The model cannot read these texts: {_and(signs)}.")]
    mostly = rows.reading.mostly_unread
    if mostly > MIXED_ROWS and (validation is None or mostly > validation.reading.mostly_unread + MIXED_ROWS):
        signs.insert(0, f"{percent(mostly)} of the rows are in a language that its tokenizer cannot read")
    if not signs:
        return []
    if len(signs) > 1:
        return [Finding("bad", f"What the model says of these rows cannot be trusted: {_and(signs)}.")]
    if validation is None and not mostly > MIXED_ROWS:
        return [Finding("warning", f"{signs[0][:1].upper()}{signs[0][1:]}.")]
    return [Finding("warning", f"These rows are unlike those that the model was validated on: {signs[0]}.")]


def judge_training_texts(reading: Reading, model: str, *, left_out: bool = False) -> list[Finding]:
    """One finding where an encoder cannot read the texts it is to learn from, or reads them badly.

    Args:
        left_out: nothing is learned from the encoder.
    """
    if reading.unread > UNREAD:
        said = f"The encoder ({model}) cannot read these texts: {_unread(reading, None)}."
        if left_out:
            return [Finding("warning", f"{said} It is left out: TF-IDF alone is learned from. {WAYS_OUT}")]
        return [Finding("bad", f"{said} {WAYS_OUT} Or leave the encoder out: training.method=auto does.")]
    if reading.mostly_unread > MIXED_ROWS:
        return [
            Finding(
                "warning",
                f"The encoder ({model}) cannot read {percent(reading.mostly_unread)} of the texts: most of their "
                "letters are unknown to its tokenizer. Give a multilingual one as model=..., or leave these rows out.",
            )
        ]
    if reading.tokens_per_word >= TOKENS_PER_WORD:
        return [
            Finding(
                "note",
                f"The encoder's tokenizer cuts a word of these texts into {reading.tokens_per_word:.1f} tokens on "
                "average (texts like those it was pretrained on: 1.0 to 1.3): another language, or many unusual words. "
                "An encoder of their language, as model=..., is likely to do better.",
            )
        ]
    return []


def _unread(reading: Reading, validation: Profile | None) -> str:
    share = percent(reading.unread)
    said = f"{share} of their letters are in words that its tokenizer does not know or cuts into letters"
    return said if validation is None else f"{said} (validation: {percent(validation.reading.unread)})"


def _truncation(rows: Profile, validation: Profile | None) -> list[str]:
    said = f"{percent(rows.truncated)} of the texts are longer than the model reads"
    if validation is None:
        return [said] if rows.predicted and rows.truncated > TRUNCATED_UNKNOWN else []
    if rows.truncated > max(TRUNCATED, validation.truncated + MORE_TRUNCATED):
        return [f"{said} (validation: {percent(validation.truncated)})"]
    median, longest = rows.n_tokens.get("p50", 0), validation.n_tokens.get("p99", 0)
    if longest and median > longest and validation.rows >= MIN_VALIDATION_ROWS:
        return [f"half of the texts are longer than 99 % of the validation rows ({longest:,} tokens)"]
    return []


def _scripts(rows: Profile, validation: Profile | None) -> list[str]:
    if validation is None or rows.rows < MIN_ROWS:
        return []
    new = {script: share for script, share in rows.scripts.items() if not validation.scripts.get(script)}
    total = sum(new.values())
    if total <= NEW_SCRIPT or (1 - total) ** validation.rows > CHANCE:
        return []
    script = max(new, key=lambda name: new[name])
    named = "hold no letters" if script == OTHER else f"are in a script ({script}) that no validation row has"
    return [f"{percent(new[script])} of the rows {named}"]


def _one_label(rows: Profile, validation: Profile | None) -> list[str]:
    if not rows.predicted or rows.rows < MIN_ROWS:
        return []
    label, share = max(rows.predicted.items(), key=lambda item: item[1])
    if validation is None or validation.rows < MIN_VALIDATION_ROWS or share <= ONE_LABEL:
        return []
    usual = max(validation.predicted.get(label, 0.0), validation.given.get(label, 0.0))
    if usual >= SEVERAL_LABELS:
        return []
    return [f"{percent(share)} are labelled {label} (validation: {percent(usual)})"]


def _and(signs: list[str]) -> str:
    return signs[0] if len(signs) == 1 else f"{', '.join(signs[:-1])}, and {signs[-1]}"
