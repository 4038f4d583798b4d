"""Labels of full precision at the speed of int8: reviews whose decision is close are computed again.

The margin of a review is the difference of its two best probabilities. int8 changes a label only where it moves some
difference of two probabilities by more than the margin, so that reviews of a small margin are computed in full
precision, too. How small is measured for each bundle, on rows that it was not trained on.

Legend: N reviews, S sequences, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bertray.model.calibration import probs_of_rows
from bertray.model.engine import Engine
from bertray.model.pooling import LinearReadout, readout_of
from bertray.model.tokenization import Sequences

DEFAULT_BOUND = 0.3  # of models without one of their own: twice what int8 moved any probability of 2,000 tweets
MEASURED_TOKENS = 16_384  # some seconds of a training
LEAST_MEASURED = 60  # rows; of fewer the largest change says little


def margins(probs_NC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Difference of the two best probabilities, [N]; NaN where one is not finite."""
    best_N2 = np.partition(probs_NC, -2, axis=1)[:, -2:]
    margin_N: NDArray[np.float32] = best_N2[:, 1] - best_N2[:, 0]
    return margin_N


def measure_bound(
    folder: Path, seqs: Sequences, temperature: float, term_logits_SC: NDArray[np.float32] | None = None
) -> float | None:
    """The margin from which on int8 is taken to leave a label as it is.

    Args:
        folder: of a bundle.
        seqs: of reviews that it was not trained on; those beyond MEASURED_TOKENS are left out.
        temperature: of the bundle.
        term_logits_SC: of a stack, the part of their logits that comes from terms.

    Returns:
        Twice the largest difference of a probability in int8 and in full precision, as the two best may move towards
        each other. None where the rows are too few, the model cannot be computed in int8, or is a stack that leaves the
        encoder out.
    """
    readout = readout_of(folder)
    if isinstance(readout, LinearReadout) and readout.constant_C is not None:
        return None
    seqs = _first(seqs)
    if len(seqs.lens_S) < LEAST_MEASURED:
        return None
    in_int8 = Engine(folder, precision="int8", emulated=True, readout=readout)
    if not in_int8.quantized:
        return None
    full = Engine(folder, readout=readout)
    of_terms = 0 if term_logits_SC is None else term_logits_SC[: len(seqs.lens_S)]
    probs_NC, others_NC = (probs_of_rows((engine.logits(seqs) + of_terms) / temperature) for engine in (in_int8, full))
    bound = 2 * float(np.abs(probs_NC - others_NC).max())
    return bound if np.isfinite(bound) else None


def _first(seqs: Sequences) -> Sequences:
    """The first sequences, as many as there are tokens to spend."""
    num = int(np.searchsorted(np.cumsum(seqs.lens_S), MEASURED_TOKENS, side="right"))
    lens_S = seqs.lens_S[:num]
    rows_S = np.arange(num)
    return Sequences(seqs.ids_T[: int(lens_S.sum())], lens_S, seqs.second_lens_S[:num], rows_S, num)
