"""Training is killed with -9 at random moments, also while a checkpoint is written, and ends as if nothing had been."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from bertray.io.store import LocalStore
from bertray.training.loop import run_loop
from tests.processes import FORKSERVER
from tests.training.test_loop import examples, losses, settings

LOOP = settings(epochs=30, checkpoint_every_s=1e-9, warmup_ratio=0.1)  # 180 steps, a checkpoint after each


def _train(folder: Path, encoder: Path) -> None:
    outcome = run_loop(examples(folder), encoder, 0, LOOP, LocalStore(folder / "run"))
    (folder / "losses.json").write_text(json.dumps({"losses": losses(outcome), "resumed": outcome.resumed_from}))


def kill_training(folder: Path, encoder: Path, kills: int, seed: int) -> None:
    """Kill one training again and again; its losses must be those of a run that nobody touched."""
    chance = random.Random(seed)
    begun = time.monotonic()
    whole = losses(run_loop(examples(folder), encoder, 0, LOOP, LocalStore(folder / "whole")))
    whole_s = time.monotonic() - begun
    killed = 0
    while not (folder / "losses.json").exists():
        process = FORKSERVER.Process(target=_train, args=(folder, encoder))
        process.start()
        process.join(chance.random() * whole_s / 2 if killed < kills else 120)
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
        assert process.exitcode in (0, -9)
    assert killed >= min(kills, 1)
    told = json.loads((folder / "losses.json").read_text())
    assert told["losses"] == whole
    assert told["resumed"], "no kill came after a checkpoint"


@pytest.mark.slow
def test_killed_training_repeats_the_losses_of_a_whole_one(tmp_path, tiny_encoder):
    kill_training(tmp_path, tiny_encoder, kills=3, seed=1)
