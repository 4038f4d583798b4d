"""Reviews become sequences of token ids: whole texts are tokenized, then cut to `max_length` by a named strategy.

Legend: N reviews, S sequences (more than N where a long review becomes several windows), T tokens end to end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bertray.errors import ConfigError
from bertray.model.coverage import letters_read, unknown_ids
from bertray.model.fast_tokenizer import common, first_difference, open_fast_tokenizer
from bertray.model.pretrained.files import read_json, reading
from bertray.model.pretrained.tokenizer import load_tokenizer
from bertray.model.selection import SentenceSelector
from bertray.schema import INPUT_IDS, N_TOKENS, SECOND_LEN, SEQ_LENS, TRUNCATED
from bertray.settings import LongText

_log = logging.getLogger(__name__)

_REVIEWS_COMPARED = 64  # of the first reviews of a process, tokenized both ways
_REVIEWS_COVERED = 100  # of each unit of work: a share of letters, known to a point or two
_REVIEWS_PER_CALL = 512  # an encoding object is some hundred times its ids: bound how many live at once
_PAD_NAMES = ("[PAD]", "<pad>")


@dataclass(frozen=True)
class Sequences:
    """Input of a model: token ids end to end, with the length and the row of each sequence."""

    ids_T: NDArray[Any]
    """uint16 or int32 [T], special tokens included."""
    lens_S: NDArray[np.int64]
    second_lens_S: NDArray[np.int32]
    """Trailing tokens of the sequence that have token type 1; 0 for a single text."""
    rows_S: NDArray[np.int64]
    """The review each sequence belongs to, ascending; every review has at least one."""
    num_rows: int


class TokenPlaces(NamedTuple):
    """Characters behind the tokens of a table, in the order of its `input_ids`."""

    side_T: NDArray[Any]
    """0: of the text; 1: of the second text; -1: a special token."""
    spans_T2: NDArray[np.int64]
    """First character and the one after the last; (0, 0) of a special token."""


def sequences(table: pa.Table) -> Sequences:
    """The sequences of a tokenized table (or slice of one), in row order.

    Args:
        table: has the columns that `ReviewTokenizer.encode` makes; further columns are ignored.
    """
    ids = table[INPUT_IDS].combine_chunks()
    lens = table[SEQ_LENS].combine_chunks()
    sequences_per_row_N = lens.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    second_lens_N = table[SECOND_LEN].combine_chunks().to_numpy(zero_copy_only=False)
    return Sequences(
        ids_T=ids.flatten().to_numpy(zero_copy_only=False),
        lens_S=lens.flatten().to_numpy(zero_copy_only=False).astype(np.int64),
        second_lens_S=np.repeat(second_lens_N, sequences_per_row_N).astype(np.int32),
        rows_S=np.repeat(np.arange(table.num_rows), sequences_per_row_N),
        num_rows=table.num_rows,
    )


def some_of(seqs: Sequences, chosen_F: NDArray[np.int64]) -> Sequences:
    """Some of the sequences, in their order; they keep the reviews that they belong to."""
    starts_S = np.cumsum(seqs.lens_S) - seqs.lens_S
    lens_F = seqs.lens_S[chosen_F]
    return Sequences(
        ids_T=seqs.ids_T[ranges(starts_S[chosen_F], lens_F)],
        lens_S=lens_F,
        second_lens_S=seqs.second_lens_S[chosen_F],
        rows_S=seqs.rows_S[chosen_F],
        num_rows=seqs.num_rows,
    )


class ReviewTokenizer:
    """The tokenizer of a model folder, with one way of cutting long reviews.

    With `head`, ids equal `transformers`' own call with `truncation="only_first"`. Only `tokenizers` is imported where
    the folder has a `tokenizer.json` with its special tokens; else `transformers` converts what is there.

    Args:
        max_length: tokens of a sequence at most, special tokens included.
        long_text: which part of a longer review is kept. `head_tail`: half and half, the odd token to the head.
            `windows`: all of it, as sequences that overlap by half of their text part; the last ends where the text
            ends. `select`: the sentences that are nearest to the second text, in their order. A second text is kept
            whole up to half of the room, or more where the review leaves it.

    Raises:
        ConfigError: no tokenizer in the folder, one without special tokens, or `max_length` leaves no room for text.
    """

    def __init__(self, path: Path, max_length: int, long_text: str = "head") -> None:
        if long_text not in get_args(LongText):
            raise ConfigError(f"long_text: expected one of {list(get_args(LongText))}, found {long_text!r}.")
        self.max_length = max_length
        self.long_text = long_text
        self._tokenizer = load_tokenizer(Path(path))
        # The file's own settings would cut or fill the ids before they are counted.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        file = Path(path) / "tokenizer.json"
        self._fast = open_fast_tokenizer(file, self._tokenizer) if file.is_file() else None
        self._left_to_compare = _REVIEWS_COMPARED
        with reading(file):
            self._single = _frame(self._tokenizer, pair=False)
            self._pair = _frame(self._tokenizer, pair=True)
        if not self._single.num_special:
            raise ConfigError(
                f"{path}: expected a tokenizer that frames a text with special tokens, found none.",
                "Save the tokenizer again with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`.",
            )
        if max_length <= self._single.num_special:
            raise ConfigError(
                f"max_length: expected more than the {self._single.num_special} special tokens of a sequence, "
                f"found {max_length}.",
                "Raise `max_length`.",
            )
        self.vocab_size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.pad_id: int = _pad_id(self._tokenizer, Path(path))
        self._selector = SentenceSelector.of(Path(path), self.words.to_pylist()) if long_text == "select" else None

    @property
    def words(self) -> pa.Array:
        """The vocabulary as text by id, string [V]; null where no token has an id."""
        by_id: list[str | None] = [None] * self.vocab_size
        for word, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            by_id[number] = word
        return pa.array(by_id, pa.string())

    @property
    def id_type(self) -> pa.DataType:
        """Arrow type of one token id: the narrowest that holds every id of the vocabulary."""
        return pa.uint16() if self.vocab_size <= np.iinfo(np.uint16).max else pa.int32()

    def encode(self, texts: pa.Array, pairs: pa.Array | None = None) -> pa.Table:
        """Tokenize reviews.

        Args:
            texts: string [N] without nulls, `pa.Array` or `pa.ChunkedArray`.
            pairs: the second texts, string [N]; a null stands for a review without one.

        Returns:
            N rows with the columns `input_ids`, `seq_lens`, `second_len`, `n_tokens` (before truncation, special
            tokens included) and `truncated` (the model does not see all of it).

        Raises:
            ValueError: a text is null, or `pairs` has another length.
        """
        if texts.null_count:
            raise ValueError(f"texts: expected no nulls, found {texts.null_count}. Quarantine them before.")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"pairs: expected {len(texts)} rows, as in texts, found {len(pairs)}.")
        parts = [
            self._encode_part(
                texts.slice(start, _REVIEWS_PER_CALL),
                None if pairs is None else pairs.slice(start, _REVIEWS_PER_CALL),
            )[:-1]
            for start in range(0, max(len(texts), 1), _REVIEWS_PER_CALL)
        ]
        return self._table([np.concatenate(arrays) for arrays in zip(*parts, strict=True)])

    def _table(self, arrays: list[NDArray[Any]]) -> pa.Table:
        ids_T, lens_S, second_lens_N, n_tokens_N, truncated_N, num_sequences_N = arrays
        num_rows = len(num_sequences_N)
        tokens_N = np.add.reduceat(lens_S, _starts(num_sequences_N)) if num_rows else np.zeros(0, np.int64)
        return pa.table(
            {
                INPUT_IDS: _list_array(pa.array(ids_T, self.id_type), tokens_N),
                SEQ_LENS: _list_array(pa.array(lens_S, pa.int32()), num_sequences_N),
                SECOND_LEN: pa.array(second_lens_N, pa.int32()),
                N_TOKENS: pa.array(n_tokens_N, pa.int32()),
                TRUNCATED: pa.array(truncated_N, pa.bool_()),
            }
        )

    def encode_with_places(
        self, texts: list[str], pairs: list[str | None] | None = None
    ) -> tuple[pa.Table, TokenPlaces]:
        """Tokenize a few reviews as `encode` does, with the characters that each token stands for."""
        second = None if pairs is None else pa.array(pairs, pa.string())
        *arrays, places_T = self._encode_part(pa.array(texts, pa.string()), second, exact=True)
        tokens = [self._tokenizer.encode_batch(texts, add_special_tokens=False)]
        if pairs is not None:
            tokens.append(self._tokenizer.encode_batch([pair or "" for pair in pairs], add_special_tokens=False))
        spans_P2 = np.array(
            [span for side in tokens for encoding in side for span in encoding.offsets] or [(0, 0)], np.int64
        ).reshape(-1, 2)
        lens = [sum(map(len, side)) for side in tokens]
        side_T = np.where(places_T < lens[0], 0, np.where(places_T < sum(lens), 1, -1))
        spans_T2 = np.where((side_T >= 0)[:, None], spans_P2[np.minimum(places_T, len(spans_P2) - 1)], 0)
        return self._table(arrays), TokenPlaces(side_T, spans_T2)

    @property
    def folds_case(self) -> bool:
        """Whether capital letters are read as small ones."""
        return bool(self._reference_ids(["A"])[0].tolist() == self._reference_ids(["a"])[0].tolist())

    @property
    def unknown_ids(self) -> list[int]:
        """Ids of the token that stands for what the vocabulary does not have."""
        return unknown_ids(self._tokenizer)

    def pieces(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Tokens of texts that stand alone, without special ones: ids end to end, and how many each text has."""
        return self._reference_ids(texts)

    def coverage(self, texts: pa.Array) -> dict[str, pa.Array]:
        """Letters that the tokenizer can read, of a sample spread evenly over the texts; null of the others.

        Args:
            texts: string [N] without nulls.

        Returns:
            int32 [N] each: the columns `letters`, `letters_unread`, `latin_words`, `latin_tokens`.
        """
        sample_R = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), _REVIEWS_COVERED)).round().astype(np.int64))
        counts = letters_read(self._tokenizer, texts.take(pa.array(sample_R)).to_pylist())
        unsampled_N = np.ones(len(texts), bool)
        unsampled_N[sample_R] = False
        columns = {}
        for name, counts_R in counts.items():
            counts_N = np.zeros(len(texts), np.int32)
            counts_N[sample_R] = counts_R
            columns[name] = pa.array(counts_N, mask=unsampled_N)
        return columns

    def _encode_part(self, texts: pa.Array, pairs: pa.Array | None, *, exact: bool = False) -> tuple[NDArray[Any], ...]:
        """Columns of `encode` as arrays, and the place of each token among those of texts, pairs and frames."""
        text_ids, text_lens_N = self._tokenize(texts, exact)
        num_rows = len(text_lens_N)
        has_pair_N = np.zeros(num_rows, bool)
        pair_ids, pair_lens_N = np.zeros(0, np.int32), np.zeros(num_rows, np.int64)
        if pairs is not None:
            has_pair_N, pair_ids, pair_lens_N = self._tokenize_pairs(pairs, exact)

        num_special_N = np.where(has_pair_N, self._pair.num_special, self._single.num_special)
        n_tokens_N = text_lens_N + pair_lens_N + num_special_N
        room_N = self.max_length - num_special_N
        kept_pair_N = np.minimum(pair_lens_N, np.maximum(room_N // 2, room_N - text_lens_N))
        room_N -= kept_pair_N  # for the text, from here on
        is_longer_N = text_lens_N > room_N
        num_text_tokens, kept_K = len(text_ids), np.arange(len(text_ids))
        if self._selector is not None:
            chosen_N = is_longer_N & (pair_lens_N > 0)
            kept_K, text_lens_N = _selected(
                self._selector, text_ids, text_lens_N, pair_ids, pair_lens_N, np.where(chosen_N, room_N, -1)
            )
            text_ids = text_ids[kept_K]

        num_sequences_N, rows_S, begin_S, head_S, part_S = self._cut(text_lens_N, room_N)
        # Six pieces a sequence, each a range of one pool of ids; one gather lays them end to end.
        frames = (self._single, self._pair)
        pool = np.concatenate([text_ids, pair_ids, *(ids for frame in frames for ids in frame.pieces)])
        special_starts = len(text_ids) + len(pair_ids) + _starts([len(ids) for frame in frames for ids in frame.pieces])
        special_lens = np.array([len(ids) for frame in frames for ids in frame.pieces])
        frame_S = 3 * has_pair_N[rows_S]
        text_starts_S, text_lens_S = _starts(text_lens_N)[rows_S], text_lens_N[rows_S]
        starts_SP = np.stack(
            [
                special_starts[frame_S],
                text_starts_S + begin_S,
                text_starts_S + text_lens_S - (part_S - head_S),
                special_starts[frame_S + 1],
                len(text_ids) + _starts(pair_lens_N)[rows_S],
                special_starts[frame_S + 2],
            ],
            axis=1,
        )
        lens_SP = np.stack(
            [
                special_lens[frame_S],
                head_S,
                part_S - head_S,
                special_lens[frame_S + 1],
                kept_pair_N[rows_S],
                special_lens[frame_S + 2],
            ],
            axis=1,
        )
        places_T = ranges(starts_SP.ravel(), lens_SP.ravel())
        ids_T, is_text_T = pool[places_T], places_T < len(kept_K)
        places_T[~is_text_T] += num_text_tokens - len(kept_K)  # of all tokens, kept or not
        places_T[is_text_T] = kept_K[places_T[is_text_T]]
        return (
            ids_T,
            lens_SP.sum(axis=1),
            np.where(has_pair_N, kept_pair_N * self._pair.second_is_typed + self._pair.num_typed_special, 0),
            n_tokens_N,
            (kept_pair_N < pair_lens_N) | (is_longer_N & (self.long_text != "windows")),
            num_sequences_N,
            places_T,
        )

    def _tokenize_pairs(
        self, pairs: pa.Array, exact: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.int32], NDArray[np.int64]]:
        """Rows with a second text, the ids of these texts end to end, and how many each row has."""
        has_pair_N = pairs.is_valid().to_numpy(zero_copy_only=False)
        if has_pair_N.any() and self.max_length <= self._pair.num_special + 1:
            raise ConfigError(
                f"max_length: expected room for two texts beside {self._pair.num_special} special tokens, "
                f"found {self.max_length}.",
                "Raise `max_length`.",
            )
        return has_pair_N, *self._tokenize(pairs.fill_null(""), exact)

    def _cut(self, text_lens_N: NDArray[np.int64], room_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Tokens of each text that its sequences hold, by `long_text`; one sequence a text unless windows.

        Args:
            text_lens_N: tokens of each text.
            room_N: for a text, in each of its sequences.

        Returns:
            Sequences of each text; then of each sequence its text, its first token, how many tokens stand together from
            there on, and how many it holds in all, the others from the end of the text.
        """
        step_N = room_N - room_N // 2
        num_sequences_N = np.ones(len(text_lens_N), np.int64)
        if self.long_text == "windows":
            num_sequences_N += np.maximum(0, -(-(text_lens_N - room_N) // step_N))
        rows_S = np.repeat(np.arange(len(text_lens_N)), num_sequences_N)
        part_S = np.minimum(text_lens_N[rows_S], room_N[rows_S])
        rest_S = text_lens_N[rows_S] - part_S  # tokens of the text outside this sequence
        begin_S, head_S = np.zeros_like(part_S), part_S
        if self.long_text == "windows":
            number_S = np.arange(len(rows_S)) - np.repeat(_starts(num_sequences_N), num_sequences_N)
            begin_S = np.minimum(number_S * step_N[rows_S], rest_S)
        elif self.long_text == "tail":
            begin_S = rest_S
        elif self.long_text == "head_tail":
            head_S = np.where(rest_S > 0, part_S - part_S // 2, part_S)
        return num_sequences_N, rows_S, begin_S, head_S, part_S

    def _tokenize(self, texts: pa.Array, exact: bool) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids end to end, and how many each text has; by the fast tokenizer where that gives the same.

        Args:
            exact: not by the fast one, which knows no characters.
        """
        if exact or self._fast is None or not len(texts):
            return self._reference_ids(texts.to_pylist())
        common_N = common(texts)
        if common_N.all():
            return self._fast_ids(texts.to_pylist())
        ids_C, lens_C = self._fast_ids(texts.filter(pa.array(common_N)).to_pylist())
        ids_R, lens_R = self._reference_ids(texts.filter(pa.array(~common_N)).to_pylist())
        lens_N = np.empty(len(texts), np.int64)
        lens_N[common_N], lens_N[~common_N] = lens_C, lens_R
        starts_N = np.empty(len(texts), np.int64)
        starts_N[common_N], starts_N[~common_N] = _starts(lens_C), len(ids_C) + _starts(lens_R)
        return np.concatenate([ids_C, ids_R])[ranges(starts_N, lens_N)], lens_N

    def _fast_ids(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        assert self._fast is not None
        if self._left_to_compare:
            compared = texts[: self._left_to_compare]
            self._left_to_compare -= len(compared)
            if first_difference(self._fast, self._tokenizer, compared) is not None:
                _log.warning("The fast tokenizer differs from the model's own on these reviews; it is not used.")
                self._fast = None
                return self._reference_ids(texts)
        return self._fast.encode(texts)

    def _reference_ids(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lens_N = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids: Iterator[int] = chain.from_iterable(encoding.ids for encoding in encodings)
        return np.fromiter(ids, np.int32, int(lens_N.sum())), lens_N


def _selected(
    selector: SentenceSelector,
    text_ids: NDArray[np.int32],
    text_lens_N: NDArray[np.int64],
    pair_ids: NDArray[np.int32],
    pair_lens_N: NDArray[np.int64],
    room_N: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the tokens that are kept, and their number for each text.

    Of a text with a `room` of 0 or more these are selected sentences, of others all.
    """
    lens_N = text_lens_N.copy()
    kept_T = np.ones(len(text_ids), bool)
    starts_N, pair_starts_N = _starts(text_lens_N), _starts(pair_lens_N)
    for row in np.flatnonzero(room_N >= 0).tolist():
        inside = slice(starts_N[row], starts_N[row] + text_lens_N[row])
        aspect = pair_ids[pair_starts_N[row] : pair_starts_N[row] + pair_lens_N[row]]
        kept = selector.kept(text_ids[inside], aspect, int(room_N[row]))
        kept_T[inside] = False
        kept_T[starts_N[row] + kept] = True
        lens_N[row] = len(kept)
    return np.flatnonzero(kept_T), lens_N


def ranges(starts: NDArray[np.int64], lens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ranges [start, start + len), end to end: `ranges([5, 0], [2, 3])` is `[5, 6, 0, 1, 2]`."""
    return np.repeat(starts - _starts(lens), lens) + np.arange(int(lens.sum()))


def _starts(lens: Any) -> NDArray[np.int64]:
    """Offsets of pieces that are laid end to end."""
    ends: NDArray[np.int64] = np.cumsum(lens, dtype=np.int64)
    return ends - np.asarray(lens, np.int64)


def _list_array(values: pa.Array, lens_N: NDArray[np.int64]) -> pa.ListArray:
    offsets = np.zeros(len(lens_N) + 1, np.int32)
    np.cumsum(lens_N, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


@dataclass(frozen=True)
class _Frame:
    """The special tokens around one text or two: before, between and after, and which have token type 1."""

    pieces: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
    second_is_typed: bool
    num_typed_special: int

    @property
    def num_special(self) -> int:
        return sum(map(len, self.pieces))


def _frame(tokenizer: Any, *, pair: bool) -> _Frame:
    """Read the frame off the tokenizer by giving it a text that it knows."""
    for probe in ("a", "the", "e", "1", "\u7684", "\uac00"):
        if len(tokenizer.encode(probe, add_special_tokens=False)):
            break
    else:
        raise ConfigError(
            "tokenizer: expected at least one token for a letter, found none.", "Check `tokenizer.json` of the model."
        )
    framed = tokenizer.encode(probe, probe if pair else None)
    kinds = [-1 if kind is None else kind for kind in framed.sequence_ids]  # 0 first text, 1 second, -1 special
    first_at, last_at = kinds.index(0), len(kinds) - 1 - kinds[::-1].index(1 if pair else 0)
    between = [i for i in range(first_at, last_at) if kinds[i] == -1]
    pieces = [framed.ids[:first_at], [framed.ids[i] for i in between], framed.ids[last_at + 1 :]]
    typed = [i for i, type_id in enumerate(framed.type_ids) if type_id == 1]
    return _Frame(
        pieces=(np.array(pieces[0], np.int32), np.array(pieces[1], np.int32), np.array(pieces[2], np.int32)),
        second_is_typed=any(kinds[i] == 1 for i in typed),
        num_typed_special=sum(kinds[i] == -1 for i in typed),
    )


def _pad_id(tokenizer: Any, path: Path) -> int:
    """Id of the padding token: as `tokenizer_config.json` names it, else by its usual names, else 0."""
    file = path / "tokenizer_config.json"
    named = read_json(file, str(path)).get("pad_token") if file.is_file() else None
    content = named.get("content") if isinstance(named, dict) else named
    for name in (content, *_PAD_NAMES):
        token_id: int | None = None if name is None else tokenizer.token_to_id(name)
        if token_id is not None:
            return token_id
    return 0
