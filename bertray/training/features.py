"""`training.method=features`: embeddings of a frozen encoder, computed once, and a linear head on them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from bertray.config import TrainConfig
from bertray.console import Ticker
from bertray.execution.executor import Executor, Progress, actors
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import from_ipc, to_ipc
from bertray.model.bundle import resolve_model
from bertray.model.calibration import fit_temperature
from bertray.model.heads import LinearHead, fit_head
from bertray.model.tokenization import sequences
from bertray.schema import FEATURES, INPUT_IDS, SEQ_LENS
from bertray.settings import Pooling
from bertray.training.examples import Examples
from bertray.training.token_shards import load_rows

log = logging.getLogger(__name__)

FOLDER = "control/features"


@dataclass(frozen=True)
class FittedHead:
    """A linear head, and how it came about."""

    head: LinearHead
    temperature: float
    seconds: float
    train_rows: int
    held_out: np.ndarray  # examples of the validation split that chose it
    held_out_VC: np.ndarray  # their logits


def fit_on_features(
    config: TrainConfig, base: str, token_keys: Sequence[str], examples: Examples, store: Store, executor: Executor
) -> FittedHead:
    """Embed every example, then fit a head on the train split that is best on the validation split.

    Args:
        config: of the run.
        base: digest of the encoder's weights.
        token_keys: token shards, in the order in which `examples` has them.
        examples: splits and labels.
        store: the output; embeddings are kept in it, so a run that was killed does not compute them again.
        executor: how the work is laid out.
    """
    started = time.monotonic()
    training = config.training
    label_ids_N = examples.label_ids_N
    train = _sample(examples.train, label_ids_N, training.max_feature_rows, config.seed)
    held_out = _sample(examples.validation, label_ids_N, training.max_feature_rows, config.seed)
    wanted = np.sort(np.concatenate([train, held_out]))
    features_WD = embed_token_shards(config.model, base, training.pooling, token_keys, wanted, store, executor)
    features_ND, features_VD = (features_WD[np.searchsorted(wanted, members)] for members in (train, held_out))
    head = fit_head(
        features_ND,
        label_ids_N[train],
        features_VD,
        label_ids_N[held_out],
        int(label_ids_N.max()) + 1,
        training.head,
        balanced=training.class_weights == "balanced",
        seed=config.seed,
    )
    held_out_VC = head.logits(features_VD)
    temperature = fit_temperature(held_out_VC, label_ids_N[held_out])
    return FittedHead(head, temperature, time.monotonic() - started, len(train), held_out, held_out_VC)


def _sample(members: np.ndarray, label_ids_N: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of some examples, ascending; of each class that they have at least one."""
    if len(members) <= most:
        return members
    order = np.random.default_rng(seed).permutation(members)
    _, first_of_each = np.unique(label_ids_N[order], return_index=True)
    rest = np.delete(order, first_of_each)
    return np.sort(np.concatenate([order[first_of_each], rest[: max(most - len(first_of_each), 0)]]))


def embed_token_shards(
    model: str,
    base: str,
    pooling: Pooling,
    token_keys: Sequence[str],
    wanted_W: np.ndarray,
    store: Store,
    executor: Executor,
) -> np.ndarray:
    """Embeddings float32 [W, D] of some examples of some token shards; those of every example are kept in the output.

    Args:
        wanted_W: numbers of examples, ascending; they count through the shards in the order of `token_keys`.
    """
    return load_rows(store, compute_rows(model, base, pooling, token_keys, store, executor), wanted_W)


def compute_rows(
    model: str,
    base: str,
    pooling: Pooling | Literal["classes"],
    token_keys: Sequence[str],
    store: Store,
    executor: Executor,
) -> list[str]:
    """Model outputs for every example of some token shards, kept in the output; returns a key for each shard.

    Args:
        base: digest of the model's weights.
        pooling: of its last hidden states; `classes`: the logits of a bundle instead.
    """
    folder = f"{FOLDER}/{cache_key({'base': base, 'pooling': pooling, 'tokens': list(token_keys)})}"
    keys = [f"{folder}/{number:06d}.arrow" for number in range(len(token_keys))]
    there = set(store.keys(folder))
    missing = [number for number, key in enumerate(keys) if key not in there]
    if missing:
        work = [(token_keys[number], keys[number]) for number in missing]
        resources = executor.resources
        factory = partial(_EmbedTokenShard, model, pooling, store.root, resources.device, resources.threads)
        embed = actors(factory, resources)
        with Ticker("embedding", len(work), "shards") as ticker:
            for done, _ in enumerate(
                executor.run(work, [embed], Progress("embedding", "shard", itemgetter(0))), start=1
            ):
                ticker.update(done)
    return keys


class _EmbedTokenShard:
    """An actor that holds the encoder: (key of a token shard, key of its embeddings) in, the embeddings written."""

    def __init__(
        self, model: str, pooling: Pooling | Literal["classes"], output: str, device: str, threads: int
    ) -> None:
        import torch

        from bertray.model.engine import Engine
        from bertray.model.pooling import PooledReadout, readout_of

        if device == "cpu":
            torch.set_num_threads(threads)
        folder = resolve_model(model)
        readout = readout_of(folder) if pooling == "classes" else PooledReadout(pooling)
        self._engine = Engine(folder, device=device, readout=readout)
        self._store = open_store(output)

    def __call__(self, keys: tuple[str, str]) -> None:
        from bertray.model.predictor import within_memory

        source, target = keys
        tokens = from_ipc(self._store.get(source))
        vectors_ND = within_memory(self._engine, self._engine.logits, sequences(one_sequence_each(tokens)))
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1])
        self._store.put(target, to_ipc(pa.table({FEATURES: values})))


def one_sequence_each(tokens: pa.Table) -> pa.Table:
    """Token shards hold one sequence a review; the engine wants to be told."""
    lens = tokens[INPUT_IDS].combine_chunks().value_lengths()
    offsets = pa.array(np.arange(len(lens) + 1, dtype=np.int32))
    return tokens.append_column(SEQ_LENS, pa.ListArray.from_arrays(offsets, lens.cast(pa.int32())))


def in_words(fitted: FittedHead, kind: str, pooling: str) -> dict[str, Any]:
    """Facts for the report."""
    tried = ", ".join(f"{strength:g}: {loss:.4f}" for strength, loss in fitted.head.losses.items())
    name = "logistic regression" if kind == "logreg" else "linear SVM"
    return {
        "head": f"{name} on {'the mean of the tokens' if pooling == 'mean' else 'the first token'}, encoder frozen",
        "regularisation": f"{fitted.head.strength:g} was best of (validation log loss) {tried}",
        "rows of the fit": f"{fitted.train_rows:,}",
        "training time": f"{fitted.seconds:.0f} s, embeddings included",
    }


def to_tensors(head: LinearHead) -> bytes:
    """`head.safetensors`."""
    from safetensors.numpy import save

    # safetensors writes the memory as it lies, and scikit-learn's coefficients of several classes lie column by column.
    tensors = {"weight": head.weight_CD, "bias": head.bias_C}
    content: bytes = save({name: np.ascontiguousarray(values) for name, values in tensors.items()})
    return content
