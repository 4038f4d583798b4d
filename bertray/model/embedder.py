"""Tokenized reviews in, vectors out: one of a review, or one of each of its tokens.

Legend: N reviews, S sequences, T tokens end to end, D hidden.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bertray.model.engine import Engine
from bertray.model.logit_cache import Repeats
from bertray.model.pooling import PooledReadout
from bertray.model.predictor import within_memory
from bertray.model.tokenization import Sequences, sequences
from bertray.settings import Pooling

_KNOWN_BYTES = 64 << 20  # of vectors that are remembered, so that a review that comes again is not computed again


class Embedder:
    """The encoder of a model, whatever head it was trained with.

    Args:
        pooling: the mean over the tokens of a review, or its first token.
        normalize: scale every vector to length 1.
        device, precision: as for `Engine`.
    """

    def __init__(
        self,
        path: Path,
        *,
        pooling: Pooling = "mean",
        normalize: bool = False,
        device: str = "cpu",
        precision: str = "auto",
    ) -> None:
        self.pooling, self.normalize = pooling, normalize
        self.engine = Engine(path, device=device, precision=precision, readout=PooledReadout(pooling))
        self.repeated_rows = 0
        """Reviews so far whose tokens had all been met before, so that nothing was computed for them."""
        self._repeats = Repeats(max_known=_KNOWN_BYTES // (4 * self.engine.width))

    @property
    def width(self) -> int:
        """D."""
        return self.engine.width

    @property
    def precision(self) -> str:
        """Number format of the model's layers, as `Engine.precision`."""
        return self.engine.precision

    def vectors(self, table: pa.Table) -> NDArray[np.float32]:
        """float32 [N, D]. Windows of a long review are averaged: by their tokens, or alike for `cls`.

        A review whose vector is not finite has NaN in its row.

        Args:
            table: has the columns that `ReviewTokenizer.encode` makes.

        Raises:
            InfrastructureError: not even one sequence at a time fits into memory.
        """
        seqs = sequences(table)
        if not seqs.num_rows:
            return np.empty((0, self.width), np.float32)
        vectors_SD, repeated_S = self._repeats.logits(seqs, self._computed)
        self.repeated_rows += seqs.num_rows - len(np.unique(seqs.rows_S[~repeated_S]))
        first_N = np.flatnonzero(np.diff(seqs.rows_S, prepend=-1))
        weights_S = seqs.lens_S if self.pooling == "mean" else np.ones_like(seqs.lens_S)
        sums_ND = np.add.reduceat(vectors_SD * weights_S[:, None].astype(np.float32), first_N, axis=0)
        counts_N = np.add.reduceat(weights_S, first_N).astype(np.float32)
        return self._finished((sums_ND / counts_N[:, None]).astype(np.float32))

    def token_vectors(self, table: pa.Table) -> NDArray[np.float32]:
        """float32 [T, D]: of every token, special ones included, in the order of `input_ids`.

        Args:
            table: has the columns that `ReviewTokenizer.encode` makes.

        Raises:
            InfrastructureError: not even one sequence at a time fits into memory.
        """
        return self._finished(within_memory(self.engine, self.engine.token_vectors, sequences(table)))

    def _computed(self, seqs: Sequences) -> NDArray[np.float32]:
        return within_memory(self.engine, self.engine.logits, seqs)

    def _finished(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        finite_N = np.isfinite(vectors_ND).all(axis=1, keepdims=True)
        vectors_ND = np.where(finite_N, vectors_ND, np.float32(np.nan))
        if self.normalize:
            lengths_N = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
            vectors_ND = vectors_ND / np.maximum(lengths_N, np.float32(1e-12))
        return vectors_ND
