"""A corpus that a bag of words can tell apart, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GOOD, BAD = ["great", "good", "fine", "lovely"], ["bad", "awful", "poor", "boring"]


def sentences(num_rows: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts and labels that a bag of words can tell apart."""
    random = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(num_rows):
        good = bool(random.integers(2))
        words = ["the", "film", "was", str(random.choice(GOOD if good else BAD)), "and"]
        words += random.choice(["very", "plot", "actor", "story", "it"], size=int(random.integers(1, 12))).tolist()
        texts.append(" ".join(words))
        labels.append("pos" if good else "neg")
    return texts, labels


def write(path: Path, num_rows: int, seed: int, prefix: str) -> Path:
    texts, labels = sentences(num_rows, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"{prefix}{i}" for i in range(num_rows)]
    shops = ["north" if i % 3 else "south" for i in range(num_rows)]
    pq.write_table(pa.table({"id": ids, "text": texts, "label": labels, "shop": shops}), path)
    return path


def train_argv(encoder: Path, folder: Path, output: Path, *words: str) -> list[str]:
    return [
        "train",
        f"model={encoder}",
        f"data.train={folder / 'train.parquet'}",
        f"data.test={folder / 'test.parquet'}",
        f"output={output}",
        "max_length=24",
        "training.epochs=6",
        "training.learning_rate=3e-3",
        "training.batch_size=16",
        "report.slices=[shop]",
        *words,
    ]
