"""Packs of sequences for one forward pass: longest first, under a token budget, in few distinct shapes.

Legend: S sequences, B sequences of one pack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EQUAL_RUN = 4  # this many sequences of one length are a group of their own: no mask, nothing gathered
_MAX_WASTE = 8  # a group's shortest sequence lacks at most an eighth of its width ...
_MIN_WASTE = 8  # ... or this many tokens


@dataclass(frozen=True)
class Group:
    """Sequences [first, stop) of a pack that are attended together, at most `width` tokens long."""

    first: int
    stop: int
    width: int


@dataclass(frozen=True)
class Pack:
    """Sequences of one forward pass.

    Args:
        sequences_B: their indices, longest first.
        lens_B: their lengths.
        num_slots: rows of the packed input, at least the sum of the lengths; the rest is padding.
        groups: the pack cut into runs of near-equal length.
    """

    sequences_B: NDArray[np.int64]
    lens_B: NDArray[np.int64]
    num_slots: int
    groups: tuple[Group, ...]


def plan_packs(
    lens_S: NDArray[Any],
    *,
    max_tokens_per_pack: int,
    padded: bool = False,
    equal_lengths: bool = False,
    width_multiple: int = 1,
    slots_multiple: int = 1,
) -> list[Pack]:
    """Cut sequences into packs; every sequence is in exactly one.

    Args:
        lens_S: length of each sequence, at least 1.
        max_tokens_per_pack: tokens of a pack at most, unless one sequence alone is longer.
        padded: count every sequence as long as the longest of its pack, and make one group of each pack.
        equal_lengths: a pack holds sequences of one length, so that padding them adds nothing.
        width_multiple: groups are this or a multiple of it wide, so that few shapes occur.
        slots_multiple: likewise for the rows of the packed input.
    """
    lens_S = np.asarray(lens_S, np.int64)
    order_S = np.argsort(-lens_S, kind="stable")
    sorted_S = lens_S[order_S]
    ends_S = np.cumsum(sorted_S)
    packs = []
    start = 0
    while start < len(lens_S):
        width = round_up(int(sorted_S[start]), width_multiple)
        if padded:
            stop = start + max_tokens_per_pack // width
        else:
            before = int(ends_S[start] - sorted_S[start])
            stop = int(np.searchsorted(ends_S, before + max_tokens_per_pack, side="right"))
        if equal_lengths:
            stop = min(stop, int(np.searchsorted(-sorted_S, -sorted_S[start], side="right")))
        stop = min(max(stop, start + 1), len(lens_S))
        lens_B = sorted_S[start:stop]
        packs.append(
            Pack(
                sequences_B=order_S[start:stop],
                lens_B=lens_B,
                num_slots=round_up(int(lens_B.sum()), slots_multiple),
                groups=(Group(0, len(lens_B), width),) if padded else tuple(_groups(lens_B, width_multiple)),
            )
        )
        start = stop
    return packs


def _groups(lens_B: NDArray[np.int64], width_multiple: int) -> list[Group]:
    """Runs of near-equal length of a pack that is sorted longest first."""
    groups = []
    first = 0
    while first < len(lens_B):
        longest = int(lens_B[first])
        # The array descends, so its negative ascends, as searchsorted wants.
        stop = int(np.searchsorted(-lens_B, -longest, side="right"))
        if stop - first < _EQUAL_RUN:
            shortest = longest - max(_MIN_WASTE, longest // _MAX_WASTE)
            stop = int(np.searchsorted(-lens_B, -shortest, side="right"))
        groups.append(Group(first, stop, round_up(longest, width_multiple)))
        first = stop
    return groups


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple
