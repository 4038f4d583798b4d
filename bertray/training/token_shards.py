"""Token shards: tokenized, labelled reviews as Arrow IPC files that any rank reads by arithmetic, memory-mapped.

Shape letters: N examples, B examples of a batch, L padded length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.io.store import Store, open_store
from bertray.io.tables import from_ipc, to_ipc
from bertray.model.profile import Reading
from bertray.model.tokenization import Sequences

_READING = (s.LETTERS, s.LETTERS_UNREAD, s.LATIN_WORDS, s.LATIN_TOKENS)
COLUMNS = (
    s.ID,
    s.LABEL,
    s.TEXT_HASH,
    s.INPUT_HASH,
    s.GROUP_HASH,
    s.INPUT_IDS,
    s.SECOND_LEN,
    s.N_TOKENS,
    s.SCRIPT,
    *_READING,
    s.ROW_NO,
    s.FILE_NO,
)


@dataclass(frozen=True)
class TokenShardSummary:
    """Token shard of one work unit, and what became of its rows.

    Args:
        key: of the token shard; None: no row of it was fit for use.
        rows: that were read.
        reasons: rows that cannot be used, by `Reason`.
    """

    key: str | None
    rows: int
    reasons: dict[str, int]


@dataclass(frozen=True)
class WriteTokenShard:
    """Tokenized reviews of a work unit to one token shard in the output."""

    output: str
    folder: str

    def __call__(self, table: pa.Table) -> TokenShardSummary:
        """Write the reviews that are fit for use, kept and refused ones given together."""
        if s.LABEL not in table.column_names:
            table = table.append_column(s.LABEL, pa.nulls(table.num_rows, pa.string()))
        refused = pc.is_valid(table[s.REASON])
        names = [*COLUMNS, *({s.TERM_LOGITS} & set(table.column_names))]  # of a teacher that is a stack
        examples = table.filter(pc.invert(refused)).select(names)
        key = None
        if examples.num_rows:
            first = examples.slice(0, 1).to_pylist()[0]
            key = f"{self.folder}/tokens-{first[s.FILE_NO]:05d}-{first[s.ROW_NO]:012d}.arrow"
            open_store(self.output).put(key, to_ipc(examples))
        counts = pc.value_counts(table[s.REASON].filter(refused)).to_pylist()
        return TokenShardSummary(key, table.num_rows, {count["values"]: count["counts"] for count in counts})


def load_rows(store: Store, keys: Sequence[str], wanted_W: np.ndarray | None = None) -> np.ndarray:
    """Stored rows (embeddings, logits) of examples, float32 [W, D]: of all, or of some numbers, ascending."""
    parts, first = [], 0
    for key in keys:
        column = from_ipc(store.get(key))[s.FEATURES].combine_chunks()
        rows_ND = column.flatten().to_numpy().reshape(len(column), -1)
        if wanted_W is not None:
            inside = wanted_W[np.searchsorted(wanted_W, first) : np.searchsorted(wanted_W, first + len(column))]
            rows_ND = rows_ND[inside - first]
        parts.append(rows_ND)
        first += len(column)
    return np.concatenate(parts)


def write_examples(path: Path, tokens: pa.Table, labels: Sequence[str]) -> None:
    """A token shard of tokenized texts and their labels, for examples that come from nowhere in particular."""
    rows = np.arange(tokens.num_rows)
    columns = {
        s.ID: pa.array(rows).cast(pa.string()),
        s.LABEL: pa.array(labels, pa.string()),
        s.TEXT_HASH: pa.array(rows.astype(np.uint64)),
        s.INPUT_HASH: pa.array(rows.astype(np.uint64)),
        s.SCRIPT: pa.nulls(len(rows), pa.string()),
        **{name: pa.nulls(len(rows), pa.int32()) for name in _READING},
        s.GROUP_HASH: pa.array(rows.astype(np.uint64)),
        s.ROW_NO: pa.array(rows),
        s.FILE_NO: pa.array(np.zeros(len(rows), np.int32)),
    }
    columns |= {name: tokens[name] for name in (s.INPUT_IDS, s.SECOND_LEN, s.N_TOKENS)}
    path.write_bytes(to_ipc(pa.table({name: columns[name] for name in COLUMNS})))


def reading_of(rows: pa.Table) -> Reading:
    """Letters of the sampled ones among tokenized rows."""
    sampled = rows.select(_READING).drop_null()
    return Reading.of_rows(*(sampled[name].to_numpy() for name in _READING))


class TokenShards:
    """Random access to the examples of a list of token shards, in the order of the list.

    Args:
        paths: local Arrow IPC files with the columns `COLUMNS`.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]
        if not tables:
            raise ValueError("no token shards")
        self._ids: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        for table in tables:
            # A table of one IPC file may have several chunks; flat arrays per chunk keep the memory map.
            for chunk in table[s.INPUT_IDS].chunks:
                self._ids.append(chunk.values.to_numpy())
                self._offsets.append(chunk.offsets.to_numpy().astype(np.int64))
        chunk_sizes = [len(offsets) - 1 for offsets in self._offsets]
        self._first = np.concatenate([[0], np.cumsum(chunk_sizes)])
        rows = pa.concat_tables([table.select([c for c in COLUMNS if c != s.INPUT_IDS]) for table in tables])
        self.lens_N = np.concatenate([np.diff(offsets) for offsets in self._offsets])
        self.n_tokens_N: np.ndarray = rows[s.N_TOKENS].to_numpy()
        self.second_lens_N: np.ndarray = rows[s.SECOND_LEN].to_numpy()
        self.text_hash_N: np.ndarray = rows[s.TEXT_HASH].to_numpy()
        self.input_hash_N: np.ndarray = rows[s.INPUT_HASH].to_numpy()
        self.scripts: pa.ChunkedArray = rows[s.SCRIPT]
        self._readings = rows.select(_READING)
        self.group_hash_N: np.ndarray = rows[s.GROUP_HASH].to_numpy()
        self.row_no_N: np.ndarray = rows[s.ROW_NO].to_numpy()
        self.file_no_N: np.ndarray = rows[s.FILE_NO].to_numpy()
        self.labels: pa.ChunkedArray = rows[s.LABEL]

    def __len__(self) -> int:
        return len(self.lens_N)

    def reading(self, examples_M: np.ndarray) -> Reading:
        """Letters of the sampled ones among some examples."""
        return reading_of(self._readings.take(examples_M))

    def padded(self, examples_B: np.ndarray, pad_id: int) -> dict[str, np.ndarray]:
        """Padded model inputs of some examples.

        Returns:
            `input_ids`, `attention_mask`, `token_type_ids`: int64 [B, L]. The mask comes from the lengths, never from
            `ids != pad`: a text may hold the pad token.
        """
        return padded(self.sequences(examples_B), self.second_lens_N[examples_B], pad_id)

    def sequences(self, examples_B: np.ndarray) -> list[np.ndarray]:
        """Token ids of some examples."""
        return [self._example(int(example)) for example in examples_B]

    def end_to_end(self, examples_B: np.ndarray) -> Sequences:
        """Some examples as input of an engine, each a row."""
        ids = self.sequences(examples_B)
        lens_B = np.array([len(tokens) for tokens in ids], np.int64)
        ids_T = np.concatenate([*ids, np.empty(0, np.int32)])
        rows_B = np.arange(len(ids))
        return Sequences(ids_T, lens_B, self.second_lens_N[examples_B].astype(np.int32), rows_B, len(ids))

    def _example(self, example: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._first, example, side="right")) - 1
        offsets = self._offsets[chunk]
        row = example - int(self._first[chunk])
        return self._ids[chunk][offsets[row] : offsets[row + 1]]


def padded(ids: Sequence[np.ndarray], second_lens_B: np.ndarray, pad_id: int) -> dict[str, np.ndarray]:
    """Sequences as padded model inputs; `TokenShards.padded` says which."""
    shape = (len(ids), max([1, *map(len, ids)]))
    input_ids = np.full(shape, pad_id, np.int64)
    mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, (tokens, second) in enumerate(zip(ids, second_lens_B, strict=True)):
        input_ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        types[row, len(tokens) - int(second) : len(tokens)] = 1
    return {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}
