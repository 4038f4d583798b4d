"""Selection of the sentences of a long review that concern its aspect, by the input embeddings of the encoder.

The task that tokenizes a review has no encoder at work. It has word vectors: the encoder's own input embeddings, made
smaller. A sentence counts by the tokens that are nearest to the tokens of the aspect; the same token is nearest of all.

Legend: T tokens of a review, A tokens of an aspect, S sentences, V vocabulary, D hidden, K numbers of a word vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertray.errors import ConfigError
from bertray.model.pretrained.files import reading
from bertray.model.pretrained.weights import input_embeddings

FILE = "word_vectors.safetensors"  # in a bundle that selects; without it they are made of the embeddings
_TENSOR = "words"
_SIZE = 192  # numbers of a word vector; on MAMS as good as all 384 of MiniLM
_COVARIANCE_ROWS = 20_000
_ENDS, _PAUSES = frozenset(".!?…。！？؟।"), frozenset(",;:，、；：،")
_SHORTEST_PIECE = 16  # tokens of a sentence that does not fit and is cut


def word_vectors(folder: Path) -> NDArray[np.int8]:
    """Word vectors of a model folder, int8 [V, K], of any length: those of a bundle, or made of its embeddings.

    Raises:
        ConfigError: the folder has no input embeddings under a name that is known.
    """
    from safetensors.numpy import load_file

    path = folder / FILE
    if path.is_file():
        with reading(path):
            stored: NDArray[np.int8] = load_file(path)[_TENSOR]
        return stored
    return _quantized(_embeddings(folder))


def vectors_file(folder: Path) -> bytes:
    """Content of the file that a bundle stores, made of the model that training starts from, or copied."""
    from safetensors.numpy import save

    if (folder / FILE).is_file():
        return (folder / FILE).read_bytes()
    content: bytes = save({_TENSOR: _quantized(_embeddings(folder))})
    return content


def _embeddings(folder: Path) -> NDArray[np.float32]:
    found_VD = input_embeddings(folder)
    if found_VD is None:
        raise ConfigError(
            f"long_text=select: {folder} has no word embeddings under a usual name.", "Set long_text=head_tail."
        )
    return found_VD


def _quantized(words_VD: NDArray[np.float32]) -> NDArray[np.int8]:
    """int8 [V, K]: without the mean and the strongest directions, which all words share; then the next K directions.

    Source: Mu and Viswanath 2018, "All-but-the-Top: Simple and Effective Postprocessing for Word Representations"
    (section 2), which removes D / 100 directions.
    """
    rows = np.random.default_rng(0).permutation(len(words_VD))[:_COVARIANCE_ROWS]
    mean_D = words_VD[rows].mean(axis=0)
    centred_RD = words_VD[rows] - mean_D
    _, directions_DD = np.linalg.eigh((centred_RD.T @ centred_RD).astype(np.float64))
    first = round(words_VD.shape[1] / 100)
    kept_DK = directions_DD[:, ::-1][:, first : first + _SIZE].astype(np.float32)
    vectors_VK = words_VD @ kept_DK - mean_D @ kept_DK
    largest_V1 = np.maximum(np.abs(vectors_VK).max(axis=1, keepdims=True), 1e-12)
    return np.asarray(np.round(vectors_VK / largest_V1 * 127), np.int8)


@dataclass(frozen=True)
class SentenceSelector:
    """Chooses the tokens of long reviews that their aspects are about.

    Attributes:
        vectors_VK: int8; their directions count.
        is_end_V: tokens that end a sentence.
        is_pause_V: tokens after which a long sentence may be cut.
    """

    vectors_VK: NDArray[np.int8]
    is_end_V: NDArray[np.bool_]
    is_pause_V: NDArray[np.bool_]

    @classmethod
    def of(cls, folder: Path, words: list[str | None]) -> SentenceSelector:
        """Selector of a model folder.

        Args:
            words: the vocabulary by id.
        """
        vectors_VK = word_vectors(folder)
        marks = [_mark(word) for word in words]
        if len(vectors_VK) < len(marks):
            raise ConfigError(
                f"long_text=select: {folder} has {len(vectors_VK)} word embeddings for {len(marks)} tokens.",
                "Save model and tokenizer again.",
            )
        is_end_V, is_pause_V = (
            np.array([bool(mark) and set(mark) <= signs for mark in marks]) for signs in (_ENDS, _PAUSES)
        )
        return cls(vectors_VK, is_end_V, is_pause_V)

    def kept(self, ids_T: NDArray[Any], aspect_A: NDArray[Any], room: int) -> NDArray[np.int64]:
        """Positions of the tokens that are kept of a review, ascending; at most `room`.

        Sentences go by the mean over the aspect's tokens of the largest cosine to a token of theirs; of equal ones the
        earlier goes first. Each is taken that still fits.
        """
        stops_S = self._stops(ids_T, room, max(_SHORTEST_PIECE, room // 2))
        starts_S = np.concatenate([[0], stops_S[:-1]])
        aspect_KA = (self.vectors_VK[aspect_A] * self._inverse_V1[aspect_A]).T
        cosines_TA = (self.vectors_VK[ids_T].astype(np.float32) @ aspect_KA) * self._inverse_V1[ids_T]
        score_S = np.maximum.reduceat(cosines_TA, starts_S, axis=0).mean(axis=1)
        kept_T = np.zeros(len(ids_T), bool)
        for sentence in np.argsort(-score_S.round(6), kind="stable").tolist():
            start, stop = int(starts_S[sentence]), int(stops_S[sentence])
            if stop - start <= room:
                kept_T[start:stop] = True
                room -= stop - start
        return np.flatnonzero(kept_T)

    @cached_property
    def _inverse_V1(self) -> NDArray[np.float32]:
        """One over the length of each vector, [V, 1]."""
        squares_V = np.einsum("vk,vk->v", self.vectors_VK, self.vectors_VK, dtype=np.float32)
        inverse_V: NDArray[np.float32] = 1 / np.maximum(np.sqrt(squares_V), np.float32(1e-6))
        return inverse_V[:, None]

    def _stops(self, ids_T: NDArray[Any], longest: int, piece: int) -> NDArray[np.int64]:
        """Ends of the sentences, int64 [S]; a longer one is cut into pieces, behind its pauses where it has some."""
        is_end_T = self.is_end_V[ids_T]
        ends = np.flatnonzero(is_end_T & ~np.append(is_end_T[1:], False)) + 1
        pauses = np.flatnonzero(self.is_pause_V[ids_T]) + 1
        stops: list[int] = []
        start = 0
        for end in np.unique(np.append(ends, len(ids_T))).tolist():
            is_cut = end - start > longest
            while is_cut and end - start > piece:
                inside = pauses[(pauses > start) & (pauses <= start + piece)]
                start = int(inside[-1]) if len(inside) else start + piece
                stops.append(start)
            start = end
            stops.append(end)
        return np.array(stops, np.int64)


def _mark(word: str | None) -> str:
    """A token without what tokenizers put before it."""
    return (word or "").removeprefix("##").lstrip("▁Ġ")
