"""Logits that are known already: a review that comes again, word for word, goes through the model once.

Legend: S sequences, F fresh ones among them, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from bertray.model.tokenization import Sequences, some_of

MAX_KNOWN = 200_000  # sequences remembered at least; twice as many at most, some 40 MB


class Repeats:
    """Logits of one model for the sequences that it has seen lately.

    Equal are sequences of the same tokens and token types, so texts that differ only where the model does not look are
    equal too. Their keys are 128 bits of BLAKE2b.
    """

    def __init__(self, max_known: int = MAX_KNOWN) -> None:
        self._max_known = max_known
        # Two generations: dropping a whole one is cheap, dropping the oldest of a dict again and again is not.
        self._newer: dict[bytes, bytes] = {}
        self._older: dict[bytes, bytes] = {}

    def logits(
        self, seqs: Sequences, compute: Callable[[Sequences], NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Logits float32 [S, C], and bool [S]: which sequences were not computed.

        Args:
            seqs: at least one.
            compute: logits of the sequences that are not known, each once.
        """
        keys = _keys(seqs)
        known = [self._newer.get(key) or self._older.get(key) for key in keys]
        first: dict[bytes, int] = {}
        fresh_F: list[int] = []
        for number, (key, found) in enumerate(zip(keys, known, strict=True)):
            if found is None and key not in first:
                first[key] = len(fresh_F)
                fresh_F.append(number)
        repeated_S = np.ones(len(keys), bool)
        repeated_S[fresh_F] = False
        if len(fresh_F) == len(keys):
            logits_SC = compute(seqs)
            self._remember(keys, logits_SC)
            return logits_SC, repeated_S
        rows = known
        if fresh_F:
            logits_FC = compute(some_of(seqs, np.array(fresh_F)))
            self._remember([keys[number] for number in fresh_F], logits_FC)
            rows = [
                logits_FC[first[key]].tobytes() if row is None else row for key, row in zip(keys, known, strict=True)
            ]
        joined = b"".join(row for row in rows if row is not None)
        return np.frombuffer(joined, np.float32).reshape(len(keys), -1), repeated_S

    def _remember(self, keys: list[bytes], logits_FC: NDArray[np.float32]) -> None:
        if len(self._newer) >= self._max_known:
            self._older, self._newer = self._newer, {}
        self._newer.update(zip(keys, (row.tobytes() for row in logits_FC), strict=True))


def _keys(seqs: Sequences) -> list[bytes]:
    ends_S = np.cumsum(seqs.lens_S)
    tokens = np.ascontiguousarray(seqs.ids_T).data.cast("B")
    size = seqs.ids_T.itemsize
    bounds = zip(((ends_S - seqs.lens_S) * size).tolist(), (ends_S * size).tolist(), strict=True)
    return [
        blake2b(tokens[start:stop], digest_size=16, salt=second.to_bytes(4, "little")).digest()
        for (start, stop), second in zip(bounds, seqs.second_lens_S.tolist(), strict=True)
    ]
