"""Reviews held out for validation: whole groups, by a stable hash, stratified by label."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def group_hash(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """uint64 [N]: the same for equal texts or group keys, today and on every machine; nulls are one group."""
    hashes = bytearray()
    for value in values.to_pylist():
        text = "\0null" if value is None else value if isinstance(value, str) else str(value)
        hashes += blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.frombuffer(bytes(hashes), dtype="<u8").astype(np.uint64)


def input_hash(text_hash_N: np.ndarray, texts: pa.Array, pairs: pa.Array | None) -> np.ndarray:
    """uint64 [N]: the same for rows that a model reads alike: equal texts with equal second texts.

    Args:
        text_hash_N: `group_hash` of the texts, which is that of rows without a second one.
        texts: string [N].
        pairs: the second texts, string [N]; a null stands for a row without one.
    """
    if pairs is None:
        return text_hash_N
    hashes_N = text_hash_N.copy()
    has_pair_N = pairs.is_valid().to_numpy(zero_copy_only=False)
    mask = pa.array(has_pair_N)
    hashes_N[has_pair_N] = group_hash(pc.binary_join_element_wise(texts.filter(mask), pairs.filter(mask), "\0"))
    return hashes_N


def group_or_text_hash(groups: pa.Array | pa.ChunkedArray, texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """uint64 [N]: the hash of the group key, or of the row's text where it has none (null, NaN or blank).

    Otherwise all rows without a key would be one giant group.
    """
    hashes_N = group_hash(groups)
    has_none_N = np.array([_is_blank(value) for value in groups.to_pylist()], dtype=bool)
    if has_none_N.any():
        hashes_N[has_none_N] = group_hash(texts.filter(pa.array(has_none_N)))
    return hashes_N


def _is_blank(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def joined_groups(text_hash_N: np.ndarray, group_hash_N: np.ndarray) -> np.ndarray:
    """Groups that keep equal texts together as well as equal group keys, however long the chain of rows.

    Args:
        text_hash_N: uint64 [N], `group_hash` of the texts.
        group_hash_N: uint64 [N], `group_or_text_hash` of the group column.

    Returns:
        uint64 [N]: the smallest text hash among the rows that are linked; it does not depend on their order.

    Raises:
        ValueError: lengths differ.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(text_hash_N) != len(group_hash_N):
        raise ValueError(f"expected as many texts as groups, found {len(text_hash_N)} and {len(group_hash_N)}")
    texts_T, text_of_N = np.unique(text_hash_N, return_inverse=True)
    groups_G, group_of_N = np.unique(group_hash_N, return_inverse=True)
    # Texts and groups are the nodes, rows the edges between them.
    num_nodes = len(texts_T) + len(groups_G)
    if not num_nodes:
        return np.empty(0, np.uint64)
    edges = (np.ones(len(text_of_N)), (text_of_N, len(texts_T) + group_of_N))
    _, part_of = connected_components(coo_array(edges, shape=(num_nodes, num_nodes)), directed=False)
    # Texts are in ascending order, so the first of each component is its smallest.
    _, first_P = np.unique(part_of[: len(texts_T)], return_index=True)
    joined_N: np.ndarray = texts_T[first_P][part_of[text_of_N]]
    return joined_N


def validation_mask(group_hash_N: np.ndarray, label_ids_N: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows held out for validation.

    Whole groups go to one side. Each class's share is within one group of `fraction` where its rows stand in groups
    of one class; groups of several classes are dealt out greedily so that all shares come near. The result depends on
    the set of (group, label) rows and the seed, not on their order.

    Args:
        group_hash_N: uint64 [N].
        label_ids_N: int [N] in 0..C-1.
        fraction: share of the rows, between 0 and 1.
        seed: another seed holds out other groups.

    Returns:
        bool [N].

    Raises:
        ValueError: lengths differ, a label id is negative, or the fraction is not inside (0, 1).
    """
    if len(group_hash_N) != len(label_ids_N) or (len(label_ids_N) and label_ids_N.min() < 0):
        raise ValueError("expected one group and one label id (0 or more) for each row")
    if not 0 < fraction < 1:
        raise ValueError(f"expected a fraction between 0 and 1, found {fraction}")
    if not len(group_hash_N):
        return np.zeros(0, dtype=bool)
    groups_G, group_of_N = np.unique(group_hash_N, return_inverse=True)
    num_classes = int(label_ids_N.max()) + 1
    # Rows of each (group, class) that occurs.
    cells, rows_of_cell = np.unique(group_of_N * num_classes + label_ids_N, return_counts=True)
    cell_group, cell_class = cells // num_classes, cells % num_classes
    is_mixed_G = np.bincount(cell_group, minlength=len(groups_G)) > 1
    rank_G = mixed(groups_G, seed)
    is_held_out_G = np.zeros(len(groups_G), dtype=bool)

    total_C = np.bincount(label_ids_N, minlength=num_classes).astype(float)
    in_mixed = is_mixed_G[cell_group]
    mixed_total_C = np.bincount(cell_class[in_mixed], rows_of_cell[in_mixed], num_classes)
    taken_C = _deal_mixed(
        cell_group[in_mixed],
        cell_class[in_mixed],
        rows_of_cell[in_mixed],
        rank_G,
        fraction * mixed_total_C,
        is_held_out_G,
    )
    for label in range(num_classes):
        pure = ~in_mixed & (cell_class == label)
        order = np.lexsort((groups_G[cell_group[pure]], rank_G[cell_group[pure]]))
        sizes = rows_of_cell[pure][order]
        # The prefix whose rows come nearest to what is still missing; of two equally near ones the shorter.
        reached = np.concatenate([[0], np.cumsum(sizes)])
        missing = fraction * total_C[label] - taken_C[label]
        is_held_out_G[cell_group[pure][order[: int(np.argmin(np.abs(reached - missing)))]]] = True
    return is_held_out_G[group_of_N]


def folds_of(group_hash_N: np.ndarray, label_ids_N: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Folds of rows for cross-validation: whole groups, stratified by label as `validation_mask` does it.

    Args:
        group_hash_N: uint64 [N].
        label_ids_N: int [N] in 0..C-1.
        num_folds: at least 2.
        seed: another seed draws other folds.

    Returns:
        int [N]: the fold of each row; -1 for rows that are learned from in every fold, since without them a fold would
        have no row of a class.
    """
    fold_N = np.full(len(label_ids_N), -1)
    for fold in range(num_folds):
        left = np.flatnonzero(fold_N < 0)
        share = 1 / (num_folds - fold)
        taken = left if share == 1 else left[validation_mask(group_hash_N[left], label_ids_N[left], share, seed)]
        fold_N[taken] = fold
    for label in np.unique(label_ids_N):
        held = np.unique(fold_N[label_ids_N == label])
        if len(held) == 1:
            fold_N[np.isin(group_hash_N, group_hash_N[label_ids_N == label])] = -1
    return fold_N


def mixed(hashes_G: np.ndarray, seed: int) -> np.ndarray:
    """A random-looking order of groups for this seed (splitmix64's finish)."""
    with np.errstate(over="ignore"):
        x = hashes_G + np.uint64(seed & 0xFFFFFFFFFFFFFFFF) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _deal_mixed(
    cell_group: np.ndarray,
    cell_class: np.ndarray,
    rows_of_cell: np.ndarray,
    rank_G: np.ndarray,
    target_C: np.ndarray,
    is_held_out_G: np.ndarray,
) -> np.ndarray:
    """Hold out groups of several classes, in rank order, while that brings the classes nearer to their targets.

    Marks them in `is_held_out_G`; returns the rows taken by class.
    """
    taken_C = np.zeros(len(target_C))
    starts = np.flatnonzero(np.diff(cell_group, prepend=-1))
    ends = np.append(starts[1:], len(cell_group))
    weight_C = 1 / np.maximum(target_C, 1)  # each class counts alike, however rare
    for number in np.argsort(rank_G[cell_group[starts]], kind="stable"):
        cell = slice(starts[number], ends[number])
        classes, rows = cell_class[cell], rows_of_cell[cell]
        gap = target_C[classes] - taken_C[classes]
        gain = (np.abs(gap) - np.abs(gap - rows)) * weight_C[classes]
        if gain.sum() > 0:
            taken_C[classes] += rows
            is_held_out_G[cell_group[starts[number]]] = True
    return taken_C
