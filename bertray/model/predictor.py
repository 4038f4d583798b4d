"""Tokenized reviews in, probabilities out: the engine, the temperature, and what to do when memory runs out.

Legend: N reviews, S sequences, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from bertray.errors import InfrastructureError, is_out_of_memory
from bertray.model.calibration import probs_of_reviews
from bertray.model.engine import Engine
from bertray.model.logit_cache import Repeats
from bertray.model.pooling import readout_of
from bertray.model.tokenization import Sequences, sequences

_log = logging.getLogger(__name__)


class Predictor:
    """A classifier that turns tokenized reviews into calibrated probabilities.

    Args:
        path: model folder.
        temperature: logits are divided by it before softmax; above 1 makes the model less sure.
        device, precision, max_tokens_per_pack: as for `Engine`.
    """

    def __init__(
        self,
        path: Path,
        *,
        temperature: float = 1.0,
        device: str = "cpu",
        precision: str = "auto",
        max_tokens_per_pack: int | None = None,
    ) -> None:
        self.engine = Engine(
            path,
            device=device,
            precision=precision,
            max_tokens_per_pack=max_tokens_per_pack,
            readout=readout_of(path),
        )
        self.path = path
        self.temperature = temperature
        self.repeated_rows = 0
        """Reviews so far whose tokens had all been met before, so that nothing was computed for them."""
        self._repeats = Repeats()

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in id order."""
        return self.engine.labels

    def probs(self, table: pa.Table) -> NDArray[np.float32]:
        """Probabilities float32 [N, C], the mean over the windows of a review; equal reviews are computed once.

        A review whose logits are not finite has NaN in its row; the caller quarantines it.

        Args:
            table: has the columns that `ReviewTokenizer.encode` makes.

        Raises:
            InfrastructureError: not even one sequence at a time fits into memory.
        """
        seqs = sequences(table)
        logits_SC, repeated_S = self._repeats.logits(seqs, self.logits)
        fresh_rows = np.unique(seqs.rows_S[~repeated_S])
        self.repeated_rows += seqs.num_rows - len(fresh_rows)
        return probs_of_reviews(logits_SC, seqs.rows_S, self.temperature).astype(np.float32)

    def logits(self, seqs: Sequences) -> NDArray[np.float32]:
        """Logits float32 [S, C]; a token budget that runs out of memory is halved for good."""
        return within_memory(self.engine, self.engine.logits, seqs)


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
