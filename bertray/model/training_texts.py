"""Hashes of the texts that a model was trained on: a file of its bundle, to tell which rows it has seen.

Shape letters: N rows, T training texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa

from bertray.io.tables import from_ipc, read_if_there, to_ipc
from bertray.reviews.ngrams import SeenNgrams
from bertray.schema import INPUT_HASH

FILE = "training_texts.arrow"
MAX_TEXTS = 1_000_000  # 8 MB
_ALL = 1 << 64
_BELOW = b"held_below"


@dataclass(frozen=True)
class TrainingTexts:
    """Hashes below a bound of the texts that a model learned from or was chosen by; hashes are uniform.

    Args:
        hashes_T: uint64 [T], ascending, each once: `schema.INPUT_HASH` of the rows.
        below: bound of the hashes that are held; 2**64 holds all.
        ngrams: n-grams of a sample of these texts, a file of its own; None where they were not looked at.
    """

    hashes_T: np.ndarray
    below: int = _ALL
    ngrams: SeenNgrams | None = None

    @classmethod
    def of(cls, hash_N: np.ndarray, most: int = MAX_TEXTS) -> TrainingTexts:
        """Texts of rows in any order; of more texts than `most` those with the smallest hashes."""
        hashes_T = np.unique(hash_N.astype(np.uint64))
        if len(hashes_T) <= most:
            return cls(hashes_T)
        return cls(hashes_T[:most], int(hashes_T[most]))

    def covers(self, hash_N: np.ndarray) -> np.ndarray:
        """bool [N]: rows that can be looked up; the same for every row of one text."""
        if self.below == _ALL:
            return np.ones(len(hash_N), bool)
        covered_N: np.ndarray = hash_N < np.uint64(self.below)
        return covered_N

    def seen(self, hash_N: np.ndarray) -> np.ndarray:
        """bool [N]: rows whose text is held."""
        seen_N: np.ndarray = np.isin(hash_N, self.hashes_T)
        return seen_N

    def to_bytes(self) -> bytes:
        """An Arrow IPC file of one column; its schema's metadata names the bound."""
        table = pa.table({INPUT_HASH: pa.array(self.hashes_T, pa.uint64())})
        table = table.replace_schema_metadata({_BELOW: str(self.below).encode()})
        return to_ipc(table)

    @classmethod
    def from_bytes(cls, content: bytes) -> TrainingTexts:
        """Raises ValueError or KeyError when it is not such a file."""
        table = from_ipc(content)
        return cls(table[INPUT_HASH].to_numpy(), int((table.schema.metadata or {})[_BELOW]))


def joined(first: TrainingTexts, second: TrainingTexts, most: int = MAX_TEXTS) -> TrainingTexts:
    """Texts of both, as far as both hold them."""
    below = min(first.below, second.below)
    hashes_T = np.concatenate([first.hashes_T, second.hashes_T])
    both = TrainingTexts.of(hashes_T if below == _ALL else hashes_T[hashes_T < np.uint64(below)], most)
    return TrainingTexts(both.hashes_T, min(below, both.below))


def read_training_texts(folder: Path) -> TrainingTexts | None:
    """Training texts of a bundle; None of a model that has none stored.

    Raises:
        ConfigError: the file is damaged.
    """
    return read_if_there(folder / FILE, TrainingTexts.from_bytes, "hashes of training texts")


def with_earlier(texts: TrainingTexts, *folders: Path) -> TrainingTexts:
    """With those of the models that a model was made from, where they know them."""
    earlier = [found for folder in folders if (found := read_training_texts(folder)) is not None]
    return reduce(joined, earlier, texts)
