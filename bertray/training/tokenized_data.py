"""Token shards of the splits of a run, opened as examples by every process in the same way.

Shape letters: N examples, C classes.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bertray.io.store import LocalStore, Store, open_store
from bertray.reviews.labels import NO_LABEL, LabelMap
from bertray.reviews.split import joined_groups, validation_mask
from bertray.training.examples import Examples
from bertray.training.token_shards import TokenShards, load_rows


@dataclass(frozen=True)
class TokenizedData:
    """Places of token shards and the split of their rows: every process opens the same examples from it.

    Args:
        output: that holds them.
        train_keys: of the token shards, in the order of the rows.
        validation_keys: None: a share of train is held out.
        labels: label values of the input to class names; None: the texts are all there is.
        validation_fraction: of train, without `validation_keys`.
        seed: of the split.
        teacher_keys: of a teacher's logits for each token shard, in place of labels.
        teacher_temperature: by which they are divided.
    """

    output: str
    train_keys: list[str]
    validation_keys: list[str] | None
    labels: LabelMap | None
    validation_fraction: float
    seed: int
    teacher_keys: list[str] | None = None
    teacher_temperature: float = 1.0

    @property
    def keys(self) -> list[str]:
        return [*self.train_keys, *(self.validation_keys or [])]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in id order."""
        return self.labels.names if self.labels else ()

    def examples(self) -> Examples:
        """Token shards with labels and splits; fetched copies of their files stay mapped when the files are removed."""
        store, held_out = open_store(self.output), self.validation_keys
        soft_NC = None
        if self.teacher_keys is not None:
            soft_NC = load_rows(store, self.teacher_keys) / np.float32(self.teacher_temperature)
        with _local_copies(store, self.train_keys) as train, _local_copies(store, held_out or []) as validation:
            shards = TokenShards([*train, *validation])
            if soft_NC is not None:
                known_N = np.isfinite(soft_NC).all(axis=1)
                label_ids_N = np.where(known_N, soft_NC.argmax(axis=1), NO_LABEL).astype(np.int32)
            elif self.labels is not None:
                label_ids_N = self.labels.ids(shards.labels.combine_chunks())
            else:
                label_ids_N = np.zeros(len(shards), np.int32)
            num_train = None if held_out is None else len(TokenShards(train))
        examples = _split(shards, label_ids_N, num_train, self.validation_fraction, self.seed)
        return replace(examples, soft_NC=soft_NC)


@contextlib.contextmanager
def _local_copies(store: Store, keys: Sequence[str]) -> Iterator[list[Path]]:
    """Local paths of token shards; those of an object store are fetched, and go when the block ends."""
    if isinstance(store, LocalStore):
        yield [Path(store.uri(key)) for key in keys]
        return
    with tempfile.TemporaryDirectory(prefix="bertray-tokens-") as folder:
        paths = [Path(folder) / key.rpartition("/")[2] for key in keys]
        for key, path in zip(keys, paths, strict=True):
            path.write_bytes(store.get(key))
        yield paths


def _split(
    shards: TokenShards, label_ids_N: np.ndarray, num_train: int | None, validation_fraction: float, seed: int
) -> Examples:
    """Rows with a usable label on two sides: the first `num_train` and the others, or a share of all held out."""
    usable_N = label_ids_N >= 0
    if num_train is None:
        held_out_N = np.zeros(len(shards), bool)
        usable = np.flatnonzero(usable_N)
        groups = joined_groups(shards.text_hash_N[usable], shards.group_hash_N[usable])
        mask = validation_mask(groups, label_ids_N[usable], validation_fraction, seed)
        held_out_N[usable[mask]] = True
    else:
        held_out_N = np.arange(len(shards)) >= num_train
    return Examples(
        shards,
        label_ids_N,
        train=np.flatnonzero(usable_N & ~held_out_N),
        validation=np.flatnonzero(usable_N & held_out_N),
    )
