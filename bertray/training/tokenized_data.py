"""Token shards of a run as examples: opened, and the validation split drawn, by every process in the same way.

Shape letters: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bertray.errors import InfrastructureError
from bertray.io.local_copies import LocalCopies
from bertray.io.store import LocalStore, Store, open_store
from bertray.reviews.labels import NO_LABEL, LabelMap
from bertray.reviews.split import folds_of, joined_groups, validation_mask
from bertray.training.examples import Examples
from bertray.training.token_shards import TokenShards, load_rows

NUM_FOLDS = 5  # of a cross-validation


@dataclass(frozen=True)
class TokenizedData:
    """Places of token shards and the split of their rows: every process opens the same examples from it.

    Args:
        output: that holds them.
        train_keys: of the token shards, in the order of the rows.
        validation_keys: None: a share of train is held out.
        labels: label values of the input to class names; None: the texts are all there is.
        validation_fraction: of train, without `validation_keys`; 0: nothing is held out.
        seed: of the split.
        fold: of NUM_FOLDS, is held out instead; nothing where it is None.
        teacher_keys: of a teacher's logits for each token shard, in place of labels.
        teacher_temperature: by which they are divided.
    """

    output: str
    train_keys: list[str]
    validation_keys: list[str] | None
    labels: LabelMap | None
    validation_fraction: float
    seed: int
    fold: int | None = None
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
        """Token shards with labels and splits; copies of their files stay mapped when the files are removed."""
        store, validation_keys = open_store(self.output), self.validation_keys
        soft_NC = None
        if self.teacher_keys is not None:
            soft_NC = load_rows(store, self.teacher_keys) / np.float32(self.teacher_temperature)
        paths = _local_paths(store, self.keys)
        shards = TokenShards(paths)
        if soft_NC is not None:
            known_N = np.isfinite(soft_NC).all(axis=1)
            label_ids_N = np.where(known_N, soft_NC.argmax(axis=1), NO_LABEL).astype(np.int32)
        elif self.labels is not None:
            label_ids_N = self.labels.ids(shards.labels.combine_chunks())
        else:
            label_ids_N = np.zeros(len(shards), np.int32)
        num_train = None if validation_keys is None else len(TokenShards(paths[: len(self.train_keys)]))
        nothing = np.empty(0, np.int64)
        return self.split(Examples(shards, label_ids_N, nothing, nothing, soft_NC, num_train))

    def forget_copies(self) -> None:
        """Remove the copies of token shards on this machine, once every rank has opened them."""
        store = open_store(self.output)
        if not isinstance(store, LocalStore):
            _copies(store, self.keys).remove()

    def split(self, examples: Examples) -> Examples:
        """Opened examples, those with a usable label in two splits: files, or a share or a fold of the rows, apart."""
        usable_N = examples.label_ids_N >= 0
        num_rows, num_train = len(usable_N), examples.first_of_validation
        is_validation_N = np.arange(num_rows) >= (num_rows if num_train is None else num_train)
        if num_train is None:
            usable = np.flatnonzero(usable_N)
            groups = joined_groups(examples.shards.text_hash_N[usable], examples.shards.group_hash_N[usable])
            labels = examples.label_ids_N[usable]
            if self.fold is not None:
                is_validation_N[usable] = folds_of(groups, labels, NUM_FOLDS, self.seed) == self.fold
            elif self.validation_fraction:
                is_validation_N[usable] = validation_mask(groups, labels, self.validation_fraction, self.seed)
        train, validation = (np.flatnonzero(usable_N & side_N) for side_N in (~is_validation_N, is_validation_N))
        return replace(examples, train=train, validation=validation)


def _local_paths(store: Store, keys: Sequence[str]) -> list[Path]:
    """Local paths of token shards; those of an object store are fetched once a machine, not once a rank."""
    if isinstance(store, LocalStore):
        return [Path(store.uri(key)) for key in keys]
    try:
        folder = _copies(store, keys).folder()
    except OSError as error:
        raise InfrastructureError(
            f"training: token shards cannot be copied to this machine ({error}).",
            "Check the storage and this machine's cache (XDG_CACHE_HOME), then run the same command again.",
        ) from error
    return [folder / key for key in keys]


def _copies(store: Store, keys: Sequence[str]) -> LocalCopies:
    wanted = set(keys)
    folders = sorted({key.rpartition("/")[0] for key in wanted})
    files = [file for folder in folders for file in store.listing(folder) if file.key in wanted]
    return LocalCopies(store, files, "tokens")
