"""Every column name, Arrow schema and quarantine reason; no other file spells a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

import pyarrow as pa

from bertray.errors import ConfigError

SCHEMA_VERSION = 1

# --- reviews as they move through the pipeline ---------------------------------------------------------------------
ID = "id"
TEXT = "text"
TEXT_PAIR = "text_pair"
LABEL = "label"
STARS = "stars"  # the aclImdb folder layout carries it in the file name
ROW_NO = "row_no"  # 0-based position of the row in its input file
INPUT_ROW = "input_row"  # the same where a row of the file is several: ROW_NO then counts these
ASPECT = "aspect"  # that a row is about, where a review is a row for each of its aspects
CUT = "cut"  # the text was longer than `max_chars`
KEEP_PREFIX = "keep:"  # a kept input column travels as `keep:<name>`, so that it never meets one of ours
SCRIPT = "script"  # dominant writing system of the cleaned text: latin, hangul, han, ...

# --- tokenized reviews (list columns are built by hand: Ray never guesses their type) -------------------------------
INPUT_IDS = "input_ids"  # list<uint16|int32>: the sequences of one review, end to end, special tokens included
SEQ_LENS = "seq_lens"  # list<int32>: length of each of them; one entry unless long_text=windows
SECOND_LEN = "second_len"  # int32: trailing tokens that belong to the second segment (0: single text)
N_TOKENS = "n_tokens"  # int32: before truncation, special tokens included
TRUNCATED = "truncated"  # bool
# Occurrences of characters, tokens or words in one review, by the tokens of it that stand for each.
UNITS = "units"  # list<string>
UNIT_STARTS = "unit_starts"  # list<int32>: first token, counted from that of the review
UNIT_LENS = "unit_lens"  # list<int32>: tokens
TEXT_PROFILE = "text_profile"  # binary: in the first row of a work unit, statistics of its texts
TERM_LOGITS = "term_logits"  # list<float32>: of a stack, the part of its logits that comes from TF-IDF terms

# --- examples (token shards) ----------------------------------------------------------------------------------------
FILE_NO = "file_no"  # int32: number of the input file in its plan
FEATURES = "features"  # what a model gives for an example, a file for each token shard
TEXT_HASH = "text_hash"  # uint64: stable hash of the cleaned text; equal texts are never in two splits
INPUT_HASH = "input_hash"  # uint64: of all that the model reads; for a pair of texts, of both
# Of a sample of rows (null of the others), letters that the model's tokenizer can read: see `model.coverage`.
LETTERS = "letters"  # int32
LETTERS_UNREAD = "letters_unread"  # int32
LATIN_WORDS = "latin_words"  # int32
LATIN_TOKENS = "latin_tokens"  # int32: tokens of these words
GROUP_HASH = "group_hash"  # uint64: stable hash of the group key, or of the text where there is none

# --- scored rows ----------------------------------------------------------------------------------------------------
PREDICTION = "prediction"
SCORE = "score"
NEEDS_REVIEW = "needs_review"
MODEL_VERSION = "model_version"
RUN_ID = "run_id"
SCORED_AT = "scored_at"
EMBEDDING = "embedding"
TOKENS = "tokens"  # of a row that has a vector for each of them
EMBEDDED_AT = "embedded_at"
UNIT, COUNT = "unit", "count"  # a character, token or word; how often it occurs
SUM = "sum"  # of the vectors of its occurrences
INPUT_EMBEDDING = "input_embedding"  # of the encoder, mean over the pieces of the unit when it stands alone
NUM_PIECES, IS_KNOWN = "num_pieces", "is_known"
PROB_PREFIX = "prob_"
SLICE_PREFIX = "slice:"  # of a column that the evaluation reports apart
RUN = "run"  # readers find the number of a run and the slot's own key in the names of folders
INPUT_PREFIX = "input_"  # a kept column whose name is taken becomes input_<name>

# --- comparison of two models ---------------------------------------------------------------------------------------
LABEL_A, LABEL_B = "label_a", "label_b"
SCORE_A, SCORE_B = "score_a", "score_b"
PROBABILITY = "probability"  # of being drawn into a queue
# Words that move the probability of the label most when they are left out; null of a review that was not explained.
WORDS_OF_PREDICTION, WORDS_A, WORDS_B = "words", "words_a", "words_b"
WORD, CHANGE = "word", "change"  # fall of the probability without the word
WORDS = pa.list_(pa.struct([pa.field(WORD, pa.string()), pa.field(CHANGE, pa.float32())]))

# --- queue and answers ----------------------------------------------------------------------------------------------
SLOT = "slot"  # of the scored row
WHY = "why"  # it is in the queue: random, or uncertain
QUEUE = "queue"  # digest of the queue that a row was asked in
WHO, ANSWERED_AT = "who", "answered_at"
DRAWN = "drawn"  # rows of a queue that were drawn with the probability of this one
DRAWN_FROM = "drawn_from"  # rows of the slot when the queue was drawn

# --- topics ---------------------------------------------------------------------------------------------------------
TOPIC = "topic"  # -1: an outlier
SIMILARITY = "similarity"  # cosine to the centroid of the topic; of an outlier to the nearest one
NEAREST_TOPIC = "nearest_topic"  # with the nearest centroid, also of an outlier
SAMPLED = "sampled"  # the topic was found on this row, not assigned to it
MAP_X, MAP_Y = "x", "y"
SHARE_PREFIX = "share_"

# --- tables of an audit ---------------------------------------------------------------------------------------------
SPLIT = "split"
GROUP = "group"  # the same number for rows that belong together
KIND = "kind"
AS_STORED = "as_stored"  # equal before cleaning too
SUGGESTED = "suggested_label"
PROB_GIVEN = "prob_given"
PROB_SUGGESTED = "prob_suggested"
EARLIER_PREFIX = "earlier_"  # of the row in the earlier split that a later one repeats

TIMESTAMP = pa.timestamp("us", tz="UTC")


def prob_column(label: str) -> str:
    """Column that holds the probability of `label`."""
    return f"{PROB_PREFIX}{label}"


def partition_columns(slot: str) -> tuple[str, ...]:
    """Columns that readers find in the names of the folders of a slot: `dt` and `run` of `dt=2026-11-20`."""
    key, separator, _ = slot.partition("=")
    return (key, RUN) if separator else (RUN,)


def scored_schema(
    labels: list[str],
    kept: pa.Schema,
    *,
    needs_review: bool = False,
    aspect: bool = False,
    taken: Sequence[str] = (),
) -> pa.Schema:
    """Arrow schema of the scored rows of a model with these `labels` and these kept input columns.

    A kept column whose name is taken, without regard to case (SQL engines see no difference), becomes `input_<name>`.

    Args:
        labels: of the model, in id order.
        kept: name and type of the kept columns.
        needs_review, aspect: rows have that column.
        taken: further names, those of `partition_columns`.

    Raises:
        ConfigError: two kept columns would get the same name.
    """
    fields = [
        pa.field(ID, pa.string(), nullable=False),
        *([pa.field(ASPECT, pa.string(), nullable=False)] if aspect else []),
        pa.field(LABEL, pa.string(), nullable=False),
        pa.field(SCORE, pa.float32(), nullable=False),
        *(pa.field(prob_column(label), pa.float32(), nullable=False) for label in labels),
        pa.field(N_TOKENS, pa.int32(), nullable=False),
        pa.field(TRUNCATED, pa.bool_(), nullable=False),
        *([pa.field(NEEDS_REVIEW, pa.bool_(), nullable=False)] if needs_review else []),
        pa.field(MODEL_VERSION, pa.string(), nullable=False),
        pa.field(RUN_ID, pa.string(), nullable=False),
        pa.field(SCORED_AT, TIMESTAMP, nullable=False),
    ]
    return _with_kept(fields, kept, taken)


def embedded_schema(
    vectors: Sequence[pa.DataType], kept: pa.Schema, *, aspect: bool = False, taken: Sequence[str] = ()
) -> pa.Schema:
    """Arrow schema of embedded rows with these kept input columns.

    Args:
        vectors: type of `embedding`; before it that of `tokens`, where each token has a vector.
        kept, aspect, taken: as for `scored_schema`.

    Raises:
        ConfigError: as `scored_schema`.
    """
    names = (TOKENS, EMBEDDING)[-len(vectors) :]
    fields = [
        pa.field(ID, pa.string(), nullable=False),
        *([pa.field(ASPECT, pa.string(), nullable=False)] if aspect else []),
        *(pa.field(name, kind, nullable=False) for name, kind in zip(names, vectors, strict=True)),
        pa.field(N_TOKENS, pa.int32(), nullable=False),
        pa.field(TRUNCATED, pa.bool_(), nullable=False),
        pa.field(MODEL_VERSION, pa.string(), nullable=False),
        pa.field(RUN_ID, pa.string(), nullable=False),
        pa.field(EMBEDDED_AT, TIMESTAMP, nullable=False),
    ]
    return _with_kept(fields, kept, taken)


def unit_sums_schema(width: int) -> pa.Schema:
    """Arrow schema of a part of `embed` with `pooling=vocabulary`: sums of vectors of `width` numbers."""
    return pa.schema(
        [
            pa.field(UNIT, pa.string(), nullable=False),
            pa.field(COUNT, pa.int64(), nullable=False),
            pa.field(SUM, pa.list_(pa.float64(), width), nullable=False),
            pa.field(MODEL_VERSION, pa.string(), nullable=False),
            pa.field(RUN_ID, pa.string(), nullable=False),
            pa.field(EMBEDDED_AT, TIMESTAMP, nullable=False),
        ]
    )


def unit_vectors_schema(embedding: pa.DataType, input_embedding: pa.DataType) -> pa.Schema:
    """Arrow schema of `vectors.parquet`: a character, token or word and its vectors."""
    return pa.schema(
        [
            pa.field(UNIT, pa.string(), nullable=False),
            pa.field(COUNT, pa.int64(), nullable=False),
            pa.field(EMBEDDING, embedding, nullable=False),
            pa.field(INPUT_EMBEDDING, input_embedding),  # null: the encoder does not know all of its pieces
            pa.field(NUM_PIECES, pa.int32(), nullable=False),
            pa.field(IS_KNOWN, pa.bool_(), nullable=False),
        ]
    )


def _with_kept(fields: list[pa.Field], kept: pa.Schema, also_taken: Sequence[str] = ()) -> pa.Schema:
    """Fields with the kept columns behind them; most readers of Parquet do not tell names apart by case."""
    taken = {name.casefold() for name in (*(field.name for field in fields), *also_taken)}
    kept_as: dict[str, str] = {}
    for field in kept:
        name = f"{INPUT_PREFIX}{field.name}" if field.name.casefold() in taken else field.name
        other = kept_as.setdefault(name.casefold(), field.name)
        if other != field.name:
            raise ConfigError(
                f"keep_columns: {other!r} and {field.name!r} would both be written as {name!r}, for names that differ "
                "by case alone are one to most readers.",
                "Leave one of them out of `keep_columns`, or rename it in the data.",
            )
        fields.append(field.with_name(name).with_nullable(True))
    return pa.schema(fields)


def with_added(given: pa.Schema, added: pa.Schema) -> pa.Schema:
    """A table's own columns, then the added ones; an own column whose name is taken becomes `input_<name>`.

    Raises:
        ConfigError: two columns would get the same name.
    """
    fields = list(_with_kept(list(added), given))
    return pa.schema([*fields[len(added) :], *added])


def labelled_schema(given: pa.Schema, labels: list[str], *, aspect: bool = False) -> pa.Schema:
    """Arrow schema of a table that a classifier has labelled: its columns, `label`, `score`, `prob_<label>`.

    Args:
        aspect: a column of that name stands before the label.

    Raises:
        ConfigError: as `with_added`.
    """
    names = [SCORE, *map(prob_column, labels)]
    texts = [*([ASPECT] if aspect else []), LABEL]
    fields = [*(pa.field(name, pa.string()) for name in texts), *(pa.field(name, pa.float32()) for name in names)]
    return with_added(given, pa.schema(fields))


def predictions_schema(labels: list[str]) -> pa.Schema:
    """Arrow schema of `predictions.parquet`: one labelled review and what the model said of it."""
    return pa.schema(
        [
            pa.field(ID, pa.string(), nullable=False),
            pa.field(LABEL, pa.string(), nullable=False),
            pa.field(PREDICTION, pa.string(), nullable=False),
            *(pa.field(prob_column(label), pa.float32(), nullable=False) for label in labels),
        ]
    )


def mistakes_schema() -> pa.Schema:
    """Arrow schema of `mistakes.parquet`: the errors of a page, the most confident first."""
    return pa.schema(
        [
            pa.field(ID, pa.string(), nullable=False),
            pa.field(LABEL, pa.string(), nullable=False),
            pa.field(PREDICTION, pa.string(), nullable=False),
            pa.field(SCORE, pa.float32(), nullable=False),
            pa.field(WORDS_OF_PREDICTION, WORDS),
        ]
    )


def flips_schema() -> pa.Schema:
    """Arrow schema of `flips.parquet`: a review to which two models give different labels."""
    return pa.schema(
        [
            pa.field(ID, pa.string(), nullable=False),
            pa.field(LABEL, pa.string()),  # given; null where there is none
            pa.field(LABEL_A, pa.string(), nullable=False),
            pa.field(LABEL_B, pa.string(), nullable=False),
            pa.field(SCORE_A, pa.float32(), nullable=False),
            pa.field(SCORE_B, pa.float32(), nullable=False),
            pa.field(WORDS_A, WORDS),
            pa.field(WORDS_B, WORDS),
        ]
    )


def assignments_schema(kept: pa.Schema, *, with_label: bool, with_score: bool) -> pa.Schema:
    """Arrow schema of `assignments.parquet`: a review and its topic; kept columns as in `scored_schema`.

    Raises:
        ConfigError: two kept columns would get the same name.
    """
    fields = [
        pa.field(ID, pa.string(), nullable=False),
        pa.field(TOPIC, pa.int32(), nullable=False),
        pa.field(NEAREST_TOPIC, pa.int32(), nullable=False),
        pa.field(SIMILARITY, pa.float32(), nullable=False),
        pa.field(SAMPLED, pa.bool_(), nullable=False),
        pa.field(MAP_X, pa.float32()),
        pa.field(MAP_Y, pa.float32()),
        *([pa.field(LABEL, pa.string())] if with_label else []),
        *([pa.field(SCORE, pa.float32())] if with_score else []),
    ]
    return _with_kept(fields, kept)


def topics_schema(labels: Sequence[str], *, with_score: bool) -> pa.Schema:
    """Arrow schema of `topics.parquet`: a topic; `share_<label>` of its labelled rows."""
    words = pa.struct([pa.field("word", pa.string()), pa.field("weight", pa.float32())])
    return pa.schema(
        [
            pa.field(TOPIC, pa.int32(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("words", pa.list_(words), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("share", pa.float32(), nullable=False),
            *(pa.field(f"{SHARE_PREFIX}{label}", pa.float32()) for label in labels),
            *([pa.field("mean_score", pa.float32())] if with_score else []),
            pa.field("representative_ids", pa.list_(pa.string()), nullable=False),
        ]
    )


class Reason(StrEnum):
    """Why a row or a file was kept out of the scored rows: a closed list."""

    TEXT_NULL = "text_null"
    TEXT_EMPTY = "text_empty"  # nothing left after cleaning
    TEXT_ENCODING = "text_encoding"  # invalid UTF-8 or a lone surrogate
    TEXT_TOO_LONG = "text_too_long"
    ASPECT_NONE = "aspect_none"  # a review without an aspect to be read for
    ID_NULL = "id_null"
    ID_DUPLICATE = "id_duplicate"
    ROW_MALFORMED = "row_malformed"  # a CSV row with another number of fields, a line that is not JSON
    MODEL_NAN = "model_nan"
    FILE_CORRUPT = "file_corrupt"
    FILE_EMPTY = "file_empty"
    FILE_NOT_PARQUET = "file_not_parquet"
    FILE_UNSUPPORTED = "file_unsupported"  # encrypted, or a codec that is not built in
    FILE_BOMB = "file_bomb"
    PAGE_CHECKSUM = "page_checksum"
    SCHEMA_MISSING_COLUMN = "schema_missing_column"
    SCHEMA_TYPE = "schema_type"
    SCHEMA_ID_TYPE = "schema_id_type"
    ROW_GROUP_TOO_BIG = "row_group_too_big"
    PATH_REFUSED = "path_refused"


REASON_WORDS = {
    Reason.TEXT_NULL: "the text is missing",
    Reason.TEXT_EMPTY: "nothing is left of the text after cleaning",
    Reason.TEXT_ENCODING: "the text is not valid UTF-8",
    Reason.TEXT_TOO_LONG: "the text is beyond the size limit",
    Reason.ASPECT_NONE: "the row names no aspect",
    Reason.ID_NULL: "the id is missing",
    Reason.ID_DUPLICATE: "the id occurred before",
    Reason.ROW_MALFORMED: "the row does not have the form of its file",
    Reason.MODEL_NAN: "the model gave no finite number",
    Reason.FILE_CORRUPT: "the file is damaged",
    Reason.FILE_EMPTY: "the file is empty",
    Reason.FILE_NOT_PARQUET: "the file is not Parquet",
    Reason.FILE_UNSUPPORTED: "the file is encrypted or compressed in an unknown way",
    Reason.FILE_BOMB: "the file grows beyond measure when it is unpacked",
    Reason.PAGE_CHECKSUM: "a checksum in the file does not hold",
    Reason.SCHEMA_MISSING_COLUMN: "the file lacks a column",
    Reason.SCHEMA_TYPE: "a column has another type",
    Reason.SCHEMA_ID_TYPE: "the id column has another type",
    Reason.ROW_GROUP_TOO_BIG: "a row group of the file is too big",
    Reason.PATH_REFUSED: "the path is refused",
}


def because(reasons: Mapping[str, int]) -> str:
    """Rows by reason in words, the most frequent first: `3 because the text is missing, 1 because …`."""
    return ", ".join(
        f"{number:,} because {REASON_WORDS[Reason(reason)]}"
        for reason, number in sorted(reasons.items(), key=lambda item: -item[1])
    )


INPUT_PATH = "input_path"
REASON = "reason"
DETAIL = "detail"
TEXT_SHA256 = "text_sha256"
TEXT_LEN = "text_len"
QUARANTINED_AT = "quarantined_at"

# What the reader knows of a refused row; run_id and quarantined_at are added when it is written.
REFUSED_SCHEMA = pa.schema(
    [
        pa.field(INPUT_PATH, pa.string(), nullable=False),
        pa.field(ROW_NO, pa.int64()),  # null: the whole file
        pa.field(ID, pa.string()),
        pa.field(REASON, pa.string(), nullable=False),
        pa.field(DETAIL, pa.string()),
        pa.field(TEXT_SHA256, pa.string()),
        pa.field(TEXT_LEN, pa.int64()),
    ]
)
QUARANTINE_SCHEMA = REFUSED_SCHEMA.append(pa.field(RUN_ID, pa.string(), nullable=False)).append(
    pa.field(QUARANTINED_AT, TIMESTAMP, nullable=False)
)
