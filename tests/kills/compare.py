"""The same kills for three ways to score a folder on Ray: what readers find after a kill, and after the rerun.

`make compare-kills` prints the table of docs/guarantees.md. One Ray cluster on this machine; a driver is killed with
-9, then the same command runs to its end. Every other kill comes as soon as a first file lies in the output, the rest
at a random moment between the first scored batch and the end of a run. And a night that ended well is run again, as
cron would. All three read the same files and write parts of the same rows with the same model.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.corpus import sentences
from tests.processes import wait_for

NUM_FILES, ROWS_PER_FILE = 16, 250
PLAIN, CHECKPOINTED, BERTRAY = "write_parquet", "write_parquet + Ray Data checkpointing", "bertray score"


@dataclass
class Tally:
    """What was seen over all kills of one contender."""

    whole_s: float = 0.0  # an uninterrupted run, with the start of its process
    kills: int = 0
    partial_views: int = 0  # a reader of the output directory found some of the rows, not none and not all
    unreadable_views: int = 0  # ... could not read it
    failed_reruns: int = 0
    lost_rows: int = 0
    doubled_rows: int = 0
    inexact_nights: int = 0
    doubled_by_rerun: int = 0  # rows doubled when a night that ended well is run again
    rerun_s: list[float] = field(default_factory=list)


def _has_parts(output: Path) -> bool:
    return any(output.rglob("*.parquet"))


def write_input(folder: Path) -> Counter[str]:
    folder.mkdir(parents=True)
    texts, _ = sentences(NUM_FILES * ROWS_PER_FILE, 3)
    ids = [f"r{i:05d}" for i in range(len(texts))]
    for number in range(NUM_FILES):
        rows = slice(number * ROWS_PER_FILE, (number + 1) * ROWS_PER_FILE)
        pq.write_table(pa.table({"id": ids[rows], "text": texts[rows]}), folder / f"{number:02d}.parquet")
    return Counter(ids)


def write_model(folder: Path) -> Path:
    """A BERT classifier with random weights, large enough that a run takes seconds."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, set_seed

    folder.mkdir(parents=True)
    words = sorted({word for text in sentences(500, 3)[0] for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=64, num_hidden_layers=6, hidden_size=384, num_attention_heads=6, intermediate_size=1536
    )
    config.id2label = {0: "neg", 1: "pos"}
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


class PlainScorer:
    """What people write into `map_batches`."""

    def __init__(self, model: str, marker: Path) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(1)
        self._marker = marker
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(model).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        tokens = self._tokenizer(list(batch["text"]), padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            label = self._model(**tokens).logits.argmax(-1).numpy()
        self._marker.touch()
        return {"id": batch["id"], "label": label}


def run_plain(model: Path, source: Path, output: Path, *, checkpointed: bool) -> None:
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.checkpoint import CheckpointConfig

    ray.init(log_to_driver=False)
    if checkpointed:
        DataContext.get_current().checkpoint_config = CheckpointConfig(
            id_column="id", checkpoint_path=f"{output}-checkpoints"
        )
    rows = ray.data.read_parquet(str(source), override_num_blocks=NUM_FILES)
    scored = rows.map_batches(
        PlainScorer,
        fn_constructor_args=(str(model), marker_of(output)),
        batch_size=ROWS_PER_FILE,
        compute=ActorPoolStrategy(size=1),
    )
    scored.write_parquet(str(output / "data"))


def command(contender: str, model: Path, source: Path, output: Path) -> list[str]:
    if contender == BERTRAY:
        keys = [f"model={model}", f"input={source}", f"output={output}", "slot=night", "max_length=64"]
        return [sys.executable, "-m", "bertray.cli", "score", *keys, f"rows_per_shard={ROWS_PER_FILE}"]
    return [sys.executable, "-m", "tests.kills.compare", "--run", contender, str(model), str(source), str(output)]


def seen(output: Path) -> Counter[str] | None:
    """The ids that a reader of the directory gets; None when it cannot be read."""
    found: Counter[str] = Counter()
    for path in sorted((output / "data").rglob("*.parquet")):
        try:
            found.update(pq.read_table(path, columns=["id"], partitioning=None)["id"].to_pylist())
        except (OSError, pa.ArrowException):
            return None
    return found


def marker_of(output: Path) -> Path:
    """Comes to be when a first batch has been scored."""
    return output.with_name(f"{output.name}-begun")


def has_begun(output: Path) -> bool:
    """Has a first batch been scored? bertray stages its part at once, where no reader looks."""
    return marker_of(output).exists() or any(output.rglob("*.parquet"))


def start(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def compare(contender: str, kills: int, seed: int, folder: Path, say: Callable[[str], None]) -> Tally:
    expected = write_input(folder / "in")
    model = write_model(folder / "model")
    chance, tally = random.Random(seed), Tally()

    begun = time.monotonic()
    whole = start(command(contender, model, folder / "in", folder / "whole"))
    wait_for(lambda: has_begun(folder / "whole"), seconds=300)
    first_file = time.monotonic()
    assert whole.wait() == 0
    tally.whole_s = time.monotonic() - begun
    writing_s = time.monotonic() - first_file
    assert seen(folder / "whole") == expected
    start(command(contender, model, folder / "in", folder / "whole")).wait()
    tally.doubled_by_rerun = ((seen(folder / "whole") or Counter()) - expected).total()

    for night in range(kills):
        output = folder / f"night-{night}"
        argv = command(contender, model, folder / "in", output)
        driver = start(argv)
        if night % 2:
            wait_for(partial(has_begun, output), seconds=300)
            time.sleep(chance.random() * writing_s)
        else:
            wait_for(partial(_has_parts, output), seconds=300)
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            tally.kills += 1
        driver.wait()
        time.sleep(1.0)  # what the cluster still does for a driver that is gone
        view = seen(output)
        tally.unreadable_views += view is None
        tally.partial_views += view is not None and view not in (Counter(), expected)
        begun = time.monotonic()
        tally.failed_reruns += start(argv).wait() != 0
        tally.rerun_s.append(time.monotonic() - begun)
        after = seen(output)
        if after is None:
            tally.unreadable_views += 1
        else:
            tally.lost_rows += (expected - after).total()
            tally.doubled_rows += (after - expected).total()
        tally.inexact_nights += after != expected
        say(f"{contender} {night + 1}/{kills}: {tally}")
        shutil.rmtree(output, ignore_errors=True)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", nargs=4, metavar=("CONTENDER", "MODEL", "INPUT", "OUTPUT"), help="be a driver")
    options = parser.parse_args()
    if options.run:
        contender, model, source, output = options.run
        run_plain(Path(model), Path(source), Path(output), checkpointed=contender == CHECKPOINTED)
        return

    import ray

    context = ray.init(address="local", include_dashboard=False, num_cpus=6, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = context.address_info["address"]
    print("| | nights killed | a reader found some of the rows | found a file it could not read | reruns failed "
          "| rows lost | rows doubled | nights not exact | rows doubled by running a good night again "
          "| whole run | rerun |\n|---|" + "---|" * 10)  # fmt: skip
    for contender in (PLAIN, CHECKPOINTED, BERTRAY):
        with tempfile.TemporaryDirectory() as folder:
            t = compare(contender, options.kills, options.seed, Path(folder), lambda line: print(line, file=sys.stderr))
        rerun_s = sum(t.rerun_s) / len(t.rerun_s)
        print(
            f"| {contender} | {t.kills} | {t.partial_views} | {t.unreadable_views} | {t.failed_reruns} | {t.lost_rows} "
            f"| {t.doubled_rows} | {t.inexact_nights} of {options.kills} | {t.doubled_by_rerun} | {t.whole_s:.1f} s "
            f"| {rerun_s:.1f} s |",
            flush=True,
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
