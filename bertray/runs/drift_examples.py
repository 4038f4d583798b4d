"""Reviews that drive an alarm: rows of a sample of the night that lie furthest in the direction of a shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bertray import schema as s
from bertray.execution.executor import Executor, Progress, Task
from bertray.io.store import Store
from bertray.io.tables import one_chunk
from bertray.model.bundle import resolve_model
from bertray.outputs.committed_rows import read_rows
from bertray.outputs.control_files import LedgerEntry
from bertray.reports.plain import excerpt
from bertray.reviews.corpus import Inputs
from bertray.reviews.ngrams import Characters, mean_weights, read_seen_ngrams
from bertray.reviews.reader import read_shard
from bertray.reviews.rows import ROWS_PER_SHARD, Shard
from bertray.reviews.split import group_hash
from bertray.reviews.text_statistics import most_repeated, statistics, unseen_statistics
from bertray.reviews.writing_system import OTHER
from bertray.scoring.profiled import CONFIDENCE, LOW_CONFIDENCE, PREDICTED_OF, PROBABILITY_OF
from bertray.trust.nights import FOREIGN, NEW_VALUES, SHARE_OF
from bertray.trust.reference import JudgedNight

NUM_EXAMPLES = 5
_SHOWN_ALARMS = 4  # with examples, the first
_SAMPLED_SHARDS = 8
_MAX_CHARS = 240  # of an example on the page


def examples_of(
    tonight: JudgedNight, entry: LedgerEntry, store: Store, inputs: Inputs, executor: Executor
) -> dict[str, list[str]]:
    """Texts for each of the first alarms by its name, masked and cut; of a value of a column any rows that hold it.

    Args:
        tonight: night with alarms.
        entry: of it.
        store: the output.
        inputs: files behind the entry.
        executor: reads a sample of them.
    """
    shards = inputs.shards(ROWS_PER_SHARD)
    sample = shards[:: max(1, -(-len(shards) // _SAMPLED_SHARDS))]
    progress = Progress("reading examples", "shard", lambda shard: shard.file.path)
    stages = [Task(_ReadShard(inputs))]
    found = list(executor.for_rows(sum(shard.hi - shard.lo for shard in sample)).run(sample, stages, progress))
    rows = pa.concat_tables(found, promote_options="permissive") if found else None
    if rows is None or not rows.num_rows:
        return {}
    scored = read_rows(store, entry, [s.ID, s.LABEL, *map(s.prob_column, entry.labels)], max_parts=4 * _SAMPLED_SHARDS)
    values = _values_of(rows, scored, tonight, entry)
    texts = one_chunk(rows[s.TEXT])
    return {
        name: [excerpt(texts[int(at)].as_py(), _MAX_CHARS) for at in _furthest(values_N, texts)]
        for name, values_N in values.items()
    }


class _ReadShard:
    def __init__(self, inputs: Inputs) -> None:
        self._spec = inputs.spec

    def __call__(self, shard: Shard) -> pa.Table:
        return read_shard(shard, self._spec).kept


def _furthest(values_N: NDArray[np.float64], texts: pa.Array) -> list[int]:
    """Rows with the largest values above 0, of each text one."""
    order = np.argsort(-values_N, kind="stable")
    chosen: dict[str, int] = {}
    for at in order[: 50 * NUM_EXAMPLES]:
        if not values_N[at] > 0 or len(chosen) == NUM_EXAMPLES:
            break
        chosen.setdefault(texts[int(at)].as_py(), int(at))
    return list(chosen.values())


def _values_of(
    rows: pa.Table, scored: pa.Table, tonight: JudgedNight, entry: LedgerEntry
) -> dict[str, NDArray[np.float64]]:
    """By the name of an alarm, how far each row lies in its direction, float64 [N]; 0 or less: not at all."""
    texts = one_chunk(rows[s.TEXT])
    characters = Characters.of(texts.to_pylist())
    of_rows = statistics(texts, characters)
    seen = read_seen_ngrams(resolve_model(entry.model))
    if seen is not None:
        of_rows |= unseen_statistics(characters, seen)
    if tonight.reference is not None:
        scripts = [*tonight.reference.scripts, OTHER]
        of_rows[FOREIGN] = (~np.isin(np.array(rows[s.SCRIPT].to_pylist()), scripts)).astype(float)
        ratios_B = tonight.reference.ngram_log_ratios(tonight.night)
        if ratios_B is not None:
            of_rows["ngrams"] = np.maximum(mean_weights(characters, ratios_B), 0.0)
    of_rows |= _of_model(rows, scored, entry.labels)
    of_rows |= _of_copies(texts)
    found: dict[str, NDArray[np.float64]] = {}
    for shift in tonight.drift.alarms[:_SHOWN_ALARMS]:
        if shift.name.startswith(SHARE_OF):
            column, _, value = shift.name.removeprefix(SHARE_OF).partition("=")
            if s.KEEP_PREFIX + column in rows.column_names:
                held = pc.fill_null(one_chunk(rows[s.KEEP_PREFIX + column]).cast(pa.string()), "")
                known = tonight.reference.known_values(column) if tonight.reference else ()
                is_new = pc.invert(pc.is_in(held, value_set=pa.array(known, pa.string())))
                found[shift.name] = np.asarray(is_new if value == NEW_VALUES else pc.equal(held, value), float)
        elif shift.name in of_rows:
            values_N = of_rows[shift.name]
            found[shift.name] = values_N if shift.size > 0 else values_N.max() - values_N
    return found


def _of_copies(texts: pa.Array) -> dict[str, NDArray[np.float64]]:
    hash_N = group_hash(texts)
    top = most_repeated(hash_N, pc.utf8_length(texts).to_numpy(zero_copy_only=False), 1)
    return {"most_frequent_text": np.isin(hash_N, np.array([*top], np.uint64)).astype(float)}


def _of_model(rows: pa.Table, scored: pa.Table, labels: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Statistics of the model for the rows that were found again among the scored ones; 0 of the others."""
    place = {id_: at for at, id_ in enumerate(scored[s.ID].to_pylist())}
    at_N = np.array([place.get(id_, -1) for id_ in rows[s.ID].to_pylist()])
    known_N = at_N >= 0
    found: Mapping[str, NDArray[np.float64]] = {}
    if not known_N.any():
        return {}
    probs_NC = np.zeros((len(at_N), len(labels)))
    scored_MC = np.column_stack([scored[s.prob_column(label)].to_numpy() for label in labels])
    probs_NC[known_N] = scored_MC[at_N[known_N]]
    best_N, most_N = probs_NC.argmax(axis=1), probs_NC.max(axis=1)
    found = {
        CONFIDENCE: most_N,
        LOW_CONFIDENCE: np.where(known_N, 1 - most_N, 0.0),
        **{f"{PROBABILITY_OF}{label}": probs_NC[:, c] for c, label in enumerate(labels)},
        **{f"{PREDICTED_OF}{label}": np.where(best_N == c, probs_NC[:, c], 0.0) for c, label in enumerate(labels)},
    }
    return dict(found)
