"""The page of a pretraining run: what was guessed before and after, epoch by epoch."""

from __future__ import annotations

from bertray.reports.pretraining import PretrainingReport


def judged(step: int, epoch: float, perplexity: float, accuracy: float, train_loss: float | None = None):
    ends = {"perplexity_low": perplexity * 0.9, "perplexity_high": perplexity * 1.1}
    figures = {"loss": 2.0, "accuracy": accuracy, "perplexity": perplexity, "train_loss": train_loss, **ends}
    return {"kind": "eval", "step": step, "epoch": epoch, **figures}


def test_the_page_says_what_was_guessed_before_and_after(safe_page):
    step = {"kind": "step", "step": 5, "epoch": 0.5, "loss": 4.0}
    history = [judged(0, 0.0, 31204.0, 0.001), step, judged(10, 1.0, 50.0, 0.3, 4.5), judged(20, 2.0, 40.0, 0.35, 3.5)]
    report = PretrainingReport(
        title="Pretraining <b>shops",
        before=history[0],
        after=history[-1],
        history=history,
        num_tokens=1000,
        notes=["The base model came without its head."],
        facts={"base model": "new: 4 layers"},
        config="output: out\n",
        created="2026-11-22 10:00 UTC",
    )
    assert report.figures["after"]["perplexity"] == {"value": 40.0, "low": 36.0, "high": 44.0}
    page = safe_page(report.to_html())
    text = " ".join(page.text.split())
    assert "Pseudo-perplexity of held-out text: 31,204 before, 40 after (95 % interval 36 to 44)." in text
    assert "Tokens guessed: 0.1 % before, 35.0 % after." in text
    for said in (
        "Pretraining <b>shops",
        "The base model came without its head.",
        "new: 4 layers",
        "2026-11-22 10:00 UTC",
    ):
        assert said in text
    assert text.index("4.5") < text.index("3.5")  # train loss by epoch
    assert page.elements["svg"] == 1
