"""Two trainings with several seeds each: what each seed said of the rows of a comparison.

Shape letters: N rows, S seeds.
"""

from __future__ import annotations

import io
import logging
import re

import numpy as np
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.evaluation.seeds import SeededGain, seeded_gain
from bertray.io.store import open_store
from bertray.runs.release.pair import PREDICTIONS, Pair

log = logging.getLogger(__name__)

_OF_SEED = re.compile(rf"seeds/(\d+)/{re.escape(PREDICTIONS)}")


def seeded_gain_of(pair: Pair) -> SeededGain | None:
    """Gain of B over A beyond the luck of seeds; None unless both are trainings with two seeds at least.

    Args:
        pair: two outputs, joined by id, with labels.
    """
    if not pair.labelled or pair.num_rows < 2:
        return None
    right_a_SN, right_b_SN = (_right(side.model, pair) for side in (pair.a, pair.b))
    if right_a_SN is None or right_b_SN is None:
        return None
    return seeded_gain(right_a_SN, right_b_SN)


def _right(output: str, pair: Pair) -> np.ndarray | None:
    """Whether each seed is right on each row of the pair, bool [S, N]; None with fewer than two seeds."""
    store = open_store(output)
    keys = [key for key in store.keys("seeds") if _OF_SEED.fullmatch(key)]
    if len(keys) < 2:
        return None
    given = [pair.labels[label_id] for label_id in pair.label_ids_N.tolist()]
    rows = []
    for key in keys:
        table = pq.read_table(io.BytesIO(store.get(key)), columns=[s.ID, s.PREDICTION], page_checksum_verification=True)
        said = dict(zip(table[s.ID].to_pylist(), table[s.PREDICTION].to_pylist(), strict=True))
        ids = pair.ids.to_pylist()
        if not all(row_id in said for row_id in ids):
            log.warning("%s: its seeds were judged on other rows; their luck cannot be told.", output)
            return None
        rows.append([said[row_id] == label for row_id, label in zip(ids, given, strict=True)])
    return np.array(rows, bool)
