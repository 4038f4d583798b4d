"""Tokenized reviews in, probabilities out: the engine, the temperature, and what to do when memory runs out.

Legend: N reviews, S sequences, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from bertray.errors import InfrastructureError, is_out_of_memory
from bertray.model.calibration import probs_of_reviews
from bertray.model.engine import Engine
from bertray.model.int8 import DEFAULT_BOUND, margins
from bertray.model.logit_cache import Repeats
from bertray.model.pooling import LinearReadout, readout_of
from bertray.model.stack import read_term_scorer, term_logits_of
from bertray.model.tokenization import Sequences, sequences

_log = logging.getLogger(__name__)


class Predictor:
    """A classifier that turns tokenized reviews into calibrated probabilities.

    In int8, reviews whose two best probabilities are close are computed again in full precision (`auto`).

    Args:
        temperature: logits are divided by it before softmax; above 1 makes the model less sure.
        device, precision, max_tokens_per_pack, emulated: as for `Engine`.
        int8_bound: how close; by default DEFAULT_BOUND. 0: nothing is computed again.
        engine: of the same model, to use in place of one of its own.
    """

    def __init__(
        self,
        path: Path,
        *,
        temperature: float = 1.0,
        device: str = "cpu",
        precision: str = "auto",
        max_tokens_per_pack: int | None = None,
        int8_bound: float | None = None,
        emulated: bool = False,
        engine: Engine | None = None,
    ) -> None:
        readout = readout_of(path)
        self.engine = engine or Engine(
            path,
            device=device,
            precision=precision,
            max_tokens_per_pack=max_tokens_per_pack,
            readout=readout,
            emulated=emulated,
        )
        linear = readout if isinstance(readout, LinearReadout) else None
        self.term_scorer = read_term_scorer(path) if linear is not None and linear.form.with_terms else None
        """Scorer of the terms of a stack: it makes the column `term_logits` of the tables that `probs` takes."""
        self._constant_C = None if linear is None else linear.constant_C
        self.path = path
        self.temperature = temperature
        self.repeated_rows = 0
        """Reviews so far whose tokens had all been met before, so that nothing was computed for them."""
        self._repeats = Repeats()
        self.recomputed_rows = 0
        """Reviews so far that were computed in int8 and again in full precision."""
        self._bound = DEFAULT_BOUND if int8_bound is None else int8_bound
        self._full: Engine | None = None
        if self.engine.quantized and self._bound and self._constant_C is None:
            self._full = Engine(path, device=device, max_tokens_per_pack=max_tokens_per_pack, readout=readout)
            self._full_repeats = Repeats()

    def in_fp32(self) -> Predictor:
        """A predictor of the same model in fp32; it shares the engine of close reviews where that computes in it."""
        shared = self._full if self._full is not None and self._full.dtype == torch.float32 else None
        device = str(self.engine.device)
        return type(self)(self.path, temperature=self.temperature, device=device, precision="fp32", engine=shared)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in id order."""
        return self.engine.labels

    @property
    def precision(self) -> str:
        """Number format of the model's layers, as `Engine.precision`."""
        return self.engine.precision

    def probs(self, table: pa.Table) -> NDArray[np.float32]:
        """Probabilities float32 [N, C], the mean over the windows of a review; equal reviews are computed once.

        A review whose logits are not finite has NaN in its row; the caller quarantines it.

        Args:
            table: has the columns that `ReviewTokenizer.encode` makes; for a stack also that of `TermScorer`.

        Raises:
            InfrastructureError: not even one sequence at a time fits into memory.
            ValueError: the part of a stack's logits that comes from terms is missing.
        """
        seqs = sequences(table)
        logits_SC, repeated_S = self._repeats.logits(seqs, self.logits)
        fresh_rows = np.unique(seqs.rows_S[~repeated_S])
        self.repeated_rows += seqs.num_rows - len(fresh_rows)
        probs_NC = self._probs_of(logits_SC, seqs, table)
        return probs_NC if self._full is None else self._verified(self._full, probs_NC, table)

    def _probs_of(self, logits_SC: NDArray[np.float32], seqs: Sequences, table: pa.Table) -> NDArray[np.float32]:
        if self.term_scorer is not None and seqs.num_rows:
            logits_SC = plus_terms(logits_SC, seqs, table)
        return probs_of_reviews(logits_SC, seqs.rows_S, self.temperature).astype(np.float32)

    def _verified(self, full: Engine, probs_NC: NDArray[np.float32], table: pa.Table) -> NDArray[np.float32]:
        """Probabilities, of reviews that are close or not finite in int8 those of full precision."""
        close_M = np.flatnonzero(~(margins(probs_NC) >= self._bound))
        if len(close_M):
            rows = table.take(close_M)
            seqs = sequences(rows)
            compute = partial(within_memory, full, full.logits)
            logits_SC, _ = self._full_repeats.logits(seqs, compute)
            probs_NC[close_M] = self._probs_of(logits_SC, seqs, rows)
            self.recomputed_rows += len(close_M)
        return probs_NC

    def logits(self, seqs: Sequences) -> NDArray[np.float32]:
        """Logits float32 [S, C]; a token budget that runs out of memory is halved for good."""
        if self._constant_C is not None:
            return np.tile(self._constant_C.numpy(), (len(seqs.lens_S), 1))
        return within_memory(self.engine, self.engine.logits, seqs)


def plus_terms(logits_SC: NDArray[np.float32], seqs: Sequences, table: pa.Table) -> NDArray[np.float32]:
    """Logits of a stack, [S, C]: those of the encoder, and for each sequence those of the terms of its whole review.

    Args:
        logits_SC: of the encoder.
        seqs: of the reviews of `table`.
        table: has the column that `TermScorer` makes.

    Raises:
        ValueError: it has not.
    """
    terms_NC = term_logits_of(table)
    if terms_NC is None:
        raise ValueError("table: expected the column term_logits, which TermScorer makes, for a stack.")
    return logits_SC + terms_NC[seqs.rows_S]


def within_memory(
    engine: Engine, compute: Callable[[Sequences], NDArray[np.float32]], seqs: Sequences
) -> NDArray[np.float32]:
    """Results of an engine for some sequences; a token budget that runs out of memory is halved for good.

    Raises:
        InfrastructureError: not even one sequence at a time fits into memory.
    """
    while True:
        try:
            return compute(seqs)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            budget, longest = engine.max_tokens_per_pack, int(seqs.lens_S.max())
            message = (str(error) or type(error).__name__).splitlines()[0]
        # Outside the handler: the traceback holds the tensors that filled the memory.
        if budget <= longest:
            raise InfrastructureError(
                f"out of memory with a single sequence of {longest} tokens ({message}).",
                "Give each actor more memory, or lower `max_length`.",
            )
        # The first pack holds at most all tokens, so a larger budget changes nothing.
        engine.max_tokens_per_pack = max(min(budget, int(seqs.lens_S.sum())) // 2, 1)
        _log.warning("Out of memory with %d tokens per pack; going on with %d.", budget, engine.max_tokens_per_pack)
        if engine.device.type == "cuda":
            torch.cuda.empty_cache()
