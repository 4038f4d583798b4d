"""Made-up reviews, a vocabulary of their words, and models of random weights: what they cost is that of real ones.

For a machine without network, data and models.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SIZES = {  # hidden size, layers, heads, feed-forward size
    "untrained-minilm": (384, 6, 12, 1536),
    "untrained-bert-base": (768, 12, 12, 3072),
}
VOCAB_SIZE = 30_522
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = 4  # of a word, as many as a word piece of English has


def config_of(model: str) -> Any:
    """Config of a classifier of two classes of one of SIZES."""
    from transformers import BertConfig

    hidden, layers, heads, feed_forward = SIZES[model]
    return BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
    )


def write_tokenizer(folder: Path) -> Path:
    """Write a WordPiece tokenizer whose vocabulary is the made-up words; returns the folder."""
    from transformers import BertTokenizer

    vocabulary = {word: number for number, word in enumerate((*_SPECIAL, *words()))}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def words() -> list[str]:
    """Made-up words: each is one token."""
    every = product(ascii_lowercase, repeat=_LETTERS)
    return ["".join(letters) for letters, _ in zip(every, range(VOCAB_SIZE - len(_SPECIAL)), strict=False)]


def reviews(num_rows: int, max_length: int, seed: int = 0) -> pa.Array:
    """Texts of random words, with lengths as those of IMDB: most are cut at 256 tokens."""
    random = np.random.default_rng(seed)
    known = np.array(words())
    lens_N = lengths("imdb", num_rows, most=max(2 * max_length, 3), seed=seed)
    texts = [" ".join(known[random.integers(len(known), size=length)]) for length in lens_N.tolist()]
    return pa.array(texts, pa.string())


def lengths(kind: str, count: int, *, most: int = 256, seed: int = 1) -> NDArray[np.int64]:
    """Tokens of reviews: `256` all cut, `imdb` most cut at 256, `short`; int64 [count]."""
    random = np.random.default_rng(seed)
    if kind == "256":
        return np.full(count, 256)
    center, spread, low, high = (5.4, 0.6, 12, most) if kind == "imdb" else (3.0, 0.5, 4, 128)
    return np.clip(random.lognormal(center, spread, count), low, high).astype(np.int64)
