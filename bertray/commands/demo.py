"""`bertray demo`: train → evaluate → two nights of scoring → reports, on bundled reviews and the bundled model."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from bertray.commands.score import run_score
from bertray.commands.train import run_train
from bertray.config import DemoConfig, ScoreConfig, TrainConfig, build_config
from bertray.console import heading, say, table
from bertray.errors import ConflictError
from bertray.evaluation.intervals import Estimate
from bertray.paths import local_path
from bertray.wording import duration

log = logging.getLogger(__name__)

REVIEWS = Path(__file__).parent.parent / "demo" / "reviews"
MARKER = "demo.json"
NIGHTS = (("night-1", "dt=2026-11-19"), ("night-2", "dt=2026-11-20"))
SLICES = ["language", "product"]


def run_demo(config: DemoConfig) -> int:
    """Run the whole path; a former demo in the same folder is replaced."""
    started = time.monotonic()
    root = _fresh_folder(local_path(config.output))
    train = build_config("train", _train_settings(root, config.seed))
    assert isinstance(train, TrainConfig)
    incoming = root / "reviews" / "incoming"
    incoming.mkdir(parents=True)
    heading("1. train", "on labelled reviews, then evaluate on others")
    run_train(train)
    for number, (night, slot) in enumerate(NIGHTS, start=2):
        shutil.copytree(REVIEWS / night, incoming, dirs_exist_ok=True)
        heading(f"{number}. {night}", "score what came in")
        score = build_config("score", _score_settings(root, slot))
        assert isinstance(score, ScoreConfig)
        run_score(score)
    _print_summary(root, time.monotonic() - started)
    return 0


def _fresh_folder(root: Path) -> Path:
    if root.exists() and any(root.iterdir()):
        if not (root / MARKER).is_file():
            raise ConflictError(f"{root}: not empty, and not a former demo.", "Give another `output`.")
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).write_text('{"schema_version": 1}\n', encoding="utf-8")
    shutil.copytree(REVIEWS, root / "reviews", ignore=shutil.ignore_patterns("night-*"))
    return root


def _train_settings(root: Path, seed: int) -> dict[str, Any]:
    return {
        "model": "bundled",
        "output": str(root / "train"),
        "data": {"train": str(root / "reviews" / "train.jsonl"), "test": str(root / "reviews" / "test.jsonl")},
        "labels": ["negative", "neutral", "positive"],
        "max_length": 128,
        "long_text": "head_tail",
        "seed": seed,
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-4},
        "report": {"slices": SLICES},
    }


def _score_settings(root: Path, slot: str) -> dict[str, Any]:
    return {
        "model": str(root / "train" / "model"),
        "input": str(root / "reviews" / "incoming"),
        "output": str(root / "scored"),
        "slot": slot,
        "keep_columns": ["product", "date"],
        "needs_review_below": 0.5,
        "max_quarantine_ratio": 0.1,
        "report": {"slices": SLICES},
    }


def _print_summary(root: Path, seconds: float) -> None:
    rows = [["train", "", "", "", _accuracy(root / "train" / "metrics.json"), ""]]
    for night, slot in NIGHTS:
        folder = root / _report_folder(slot)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        rows.append(
            [
                night,
                f"{report['rows_in']:,}",
                f"{report['rows_scored']:,}",
                f"{report['rows_quarantined']:,}",
                _accuracy(folder / "metrics.json"),
                f"{report['rows_per_s']:,.1f}",
            ]
        )
    here = Path.cwd()
    shown = root.relative_to(here) if root.is_relative_to(here) else root
    table(f"demo in {duration(seconds)}", ["", "rows in", "scored", "quarantined", "accuracy", "rows/s"], rows)
    say(f"training report   {shown / 'train' / 'report.html'}")
    for night, slot in NIGHTS:
        say(f"{night} report    {shown / _report_folder(slot) / 'report.html'}")
    say(f"scored Parquet    {shown / 'scored' / 'data'}")


def _report_folder(slot: str) -> str:
    return f"scored/reports/{slot}/run=1"


def _accuracy(metrics: Path) -> str:
    found = json.loads(metrics.read_text(encoding="utf-8"))["metrics"]["accuracy"]
    return str(Estimate(**found))
