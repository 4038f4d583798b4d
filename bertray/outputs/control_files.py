"""Control files as typed records: the plan of a run, the receipt of a part, an entry of the ledger. All are JSON."""

from __future__ import annotations

import hashlib
import json
import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bertray.errors import ConflictError
from bertray.model.profile import Profile, Reading, add_readings, percentiles_at_least, shares
from bertray.outputs.night_profile import NightProfile

SCHEMA_VERSION = 1
LEDGER_SCHEMA_VERSION = 2  # of plans and ledger entries; 1 had one folder for each slot, without runs
DIGEST = (
    "record_sha256"  # of a control file's own content: a ledger decides what is scored, so a flipped bit has to show
)
RUNS = "control/runs"  # staged parts and receipts of plans
PLANS = "control/plans"
RUN_PREFIX = "run="  # readers find a number
SCORE_BINS = 20  # equal bins of `score_histogram` over [0, 1]
TOKEN_BANDS = (16, 32, 64, 128, 256, 512)  # upper ends of the bins of `token_histogram`; the last bin is open
RecordT = TypeVar("RecordT", bound="Record")


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = SCHEMA_VERSION

    def to_bytes(self) -> bytes:
        """Content of the control file."""
        return self.to_json(indent=1).encode()

    def to_json(self, *, indent: int | None = None) -> str:
        """The fields and the digest of them."""
        fields = self.model_dump(mode="json")
        return json.dumps({**fields, DIGEST: _digest(fields)}, indent=indent, ensure_ascii=False)

    @classmethod
    def from_bytes(cls: type[RecordT], content: bytes, where: str) -> RecordT:
        """Read a control file.

        Args:
            content: of the file.
            where: its path or URI, for messages.

        Raises:
            ConflictError: another version wrote it, or it is damaged.
        """
        try:
            fields = json.loads(content)
        except ValueError:
            fields = None
        version = fields.get("schema_version") if isinstance(fields, dict) else None
        expected = cls.model_fields["schema_version"].default
        if isinstance(version, int) and version != expected:
            raise ConflictError(
                f"{where}: expected schema_version {expected}, found {version}.",
                "Choose a new `output`, or use the bertray version that wrote this one.",
            )
        if not isinstance(fields, dict) or fields.pop(DIGEST, None) != _digest(fields):
            raise ConflictError(
                f"{where}: damaged or edited: it does not have the digest that it was written with.",
                "Restore it from a copy, or use another `output`; a file under control/plans may be removed, the run "
                "then starts anew.",
            )
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ConflictError(
                f"{where}: not a control file of this bertray version ({error.error_count()} fields are off).",
                "Use the version that wrote the output, or another `output`.",
            ) from error


def _digest(fields: Mapping[str, Any]) -> str:
    """Digest of every field but itself."""
    rest = {name: value for name, value in fields.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class FileRecord(Record):
    """One input file as the plan pinned it."""

    path: str
    relative_path: str
    format: str
    size_bytes: int
    modified: str
    num_rows: int | None  # None: a bad file whose row count is unknown
    digest: str | None  # of the whole content; None: not made, since no other file has the fingerprint
    fingerprint: str | None = None  # of first and last 64 KiB; None: a bad file, or an earlier version wrote this
    reason: str | None = None  # why the whole file is quarantined
    detail: str | None = None

    @property
    def identity(self) -> tuple[str, int, str, int, str, str]:
        """Identity of the file, another one after a change."""
        rows = -1 if self.num_rows is None else self.num_rows
        content = self.fingerprint or self.digest or ""
        return self.path, self.size_bytes, self.modified, rows, content, self.reason or ""


class Plan(Record):
    """Plan of one run, pinned before any work: a second run with the same plan joins it."""

    schema_version: int = LEDGER_SCHEMA_VERSION
    plan_key: str
    slot: str
    version: int  # of the slot; a higher one takes the place of all runs of the versions before it
    beside: bool = False  # other runs may stand beside it in its slot, as those of a day do
    seq: int
    run_id: str
    created_at: str
    model: str
    model_version: str
    labels: list[str]
    settings: dict[str, Any]  # the part of the config that decides what is written
    files: list[FileRecord]
    rows_per_shard: int


class StagedFile(Record):
    """One file written aside.

    Args:
        etag: the store's tag of the content that it took; a listing that shows the same one spares reading the file.
    """

    key: str
    rows: int
    bytes: int
    sha256: str
    etag: str | None = None


class Span(BaseModel):
    """Rows [lo, hi) of one input file, and what became of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file_no: int
    lo: int
    hi: int
    rows_scored: int
    rows_quarantined: int

    @property
    def interval(self) -> tuple[int, int, int]:
        return self.file_no, self.lo, self.hi


class Agreement(BaseModel):
    """Agreement of int8 with fp32 on reviews computed in both; at least one."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int
    same_label: int
    largest_difference: float  # of a probability

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            rows=self.rows + other.rows,
            same_label=self.same_label + other.same_label,
            largest_difference=max(self.largest_difference, other.largest_difference),
        )


class Counts(BaseModel):
    """Counts of scored and refused rows; those of several parts add up to those of a run, and the report shows them.

    Args:
        reasons: reason -> quarantined rows, and files that could not be read.
        label_counts: predicted label -> rows.
        score_histogram: rows in SCORE_BINS equal bins of the score over [0, 1].
        token_histogram: rows in the bins of TOKEN_BANDS.
        tokens: of the scored rows, before truncation.
        truncated: rows longer than the model reads.
        repeated: rows that the model had met before in this run, so that it computed nothing for them.
        needs_review: rows with a score below the threshold.
        scripts: dominant script -> scored rows.
        reading: letters that the tokenizer can read, of a sample.
        int8: rows computed in fp32 as well; None: none.
        precisions: number format of the model's layers -> scored rows; none of what an earlier version wrote.
        recomputed: rows computed in int8 and, as their decision was close, again in full precision.
        night_profile: statistics of the scored rows, for drift; None: of vectors, or an earlier version wrote this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    reasons: dict[str, int] = {}
    label_counts: dict[str, int] = {}
    score_histogram: list[int] = [0] * SCORE_BINS
    token_histogram: list[int] = [0] * (len(TOKEN_BANDS) + 1)
    tokens: int = 0
    truncated: int = 0
    repeated: int = 0
    needs_review: int = 0
    scripts: dict[str, int] = {}
    reading: Reading = Reading()
    int8: Agreement | None = None
    precisions: dict[str, int] = {}
    recomputed: int = 0
    night_profile: NightProfile | None = None

    def __add__(self, other: Counts) -> Counts:
        return Counts.model_construct(  # of values that were checked: a plan may have 20,000 receipts
            reasons=add_counts([self.reasons, other.reasons]),
            label_counts=add_counts([self.label_counts, other.label_counts]),
            score_histogram=_added(self.score_histogram, other.score_histogram),
            token_histogram=_added(self.token_histogram, other.token_histogram),
            tokens=self.tokens + other.tokens,
            truncated=self.truncated + other.truncated,
            repeated=self.repeated + other.repeated,
            needs_review=self.needs_review + other.needs_review,
            scripts=add_counts([self.scripts, other.scripts]),
            reading=add_readings([self.reading, other.reading]),
            int8=self.int8 + other.int8 if self.int8 and other.int8 else self.int8 or other.int8,
            precisions=add_counts([self.precisions, other.precisions]),
            recomputed=self.recomputed + other.recomputed,
            night_profile=(
                self.night_profile + other.night_profile
                if self.night_profile and other.night_profile
                else self.night_profile or other.night_profile
            ),
        )

    @property
    def counts(self) -> Counts:
        """These counts alone."""
        return Counts(**{name: getattr(self, name) for name in Counts.model_fields})

    def profile(self, rows_scored: int) -> Profile:
        """Profile of the scored rows, as the model reads them."""
        scores = self.score_histogram
        middles = [(n + 0.5) / SCORE_BINS for n in range(SCORE_BINS)]
        return Profile(
            rows=rows_scored,
            predicted=shares(self.label_counts),
            mean_score=sum(map(operator.mul, middles, scores)) / sum(scores) if any(scores) else None,
            truncated=self.truncated / max(rows_scored, 1),
            scripts=shares(self.scripts),
            n_tokens=percentiles_at_least(self.token_histogram, TOKEN_BANDS),
            reading=self.reading,
        )


class Receipt(Counts, Record):
    """Proof that some rows are staged whole; written after everything it names.

    They are the rows of one span, or of several small files together, ascending by file.
    """

    spans: list[Span]
    seconds: float
    part: StagedFile | None
    quarantine: StagedFile | None
    evaluation: StagedFile | None  # labels, probabilities and slices of labelled rows, for the report only

    @property
    def intervals(self) -> tuple[tuple[int, int, int], ...]:
        """(file_no, lo, hi) of every span; tells which piece of work this is the receipt of."""
        return tuple(span.interval for span in self.spans)

    @property
    def rows_in(self) -> int:
        return sum(span.hi - span.lo for span in self.spans)

    @property
    def rows_scored(self) -> int:
        return sum(span.rows_scored for span in self.spans)

    @property
    def rows_quarantined(self) -> int:
        return sum(span.rows_quarantined for span in self.spans)


class FileCount(Record):
    """Counts of one input file."""

    path: str
    relative_path: str
    format: str
    size_bytes: int
    modified: str
    digest: str | None
    fingerprint: str | None = None
    rows_in: int | None
    rows_scored: int
    rows_quarantined: int
    reason: str | None = None
    seconds: float | None = None  # with the model at work; None: an earlier version wrote this


class CommittedPart(Record):
    """One file of a run, as staged and as published."""

    name: str  # see part_name
    key: str  # where it was staged
    rows: int
    bytes: int
    sha256: str


def part_name(number: int, run_id: str) -> str:
    """File name of a run's part below `data/<slot>/run=<n>/`, and of its quarantine."""
    return f"part-{number:05d}-{run_id[:8]}.parquet"


class Entry(Counts, Record):
    """One commit, without its lists of parts."""

    schema_version: int = LEDGER_SCHEMA_VERSION
    seq: int
    slot: str
    run: int  # 1, 2, ... of those of one slot and version, which stand side by side
    version: int  # of the slot; a higher one takes the place of all runs of the versions before it
    run_id: str
    plan_key: str
    committed_at: str
    model: str
    model_version: str
    labels: list[str]
    settings: dict[str, Any]
    files: list[FileCount]
    rows_in: int
    rows_scored: int
    rows_quarantined: int
    adopted_receipts: int
    seconds: float  # of this run up to the commit
    compute_seconds: float  # of it with the model at work, on all workers side by side

    @property
    def file_reasons(self) -> dict[str, int]:
        """Files that were quarantined whole, by reason."""
        return dict(Counter(file.reason for file in self.files if file.reason))

    @property
    def row_reasons(self) -> dict[str, int]:
        """Quarantined rows of files that could be read, by reason."""
        return dict(Counter(self.reasons) - Counter(self.file_reasons))

    @property
    def run_folder(self) -> str:
        """`run=<n>`, its folder below that of the slot."""
        return f"{RUN_PREFIX}{self.run}"

    @property
    def folder(self) -> str:
        """`<slot>/run=<n>`, below `data/`, `quarantine/` and `reports/`."""
        return f"{self.slot}/{self.run_folder}"

    @property
    def title(self) -> str:
        """The slot, with the run where it is not the first, as people read it."""
        return self.slot if self.run == 1 else f"{self.slot}, run {self.run}"


class LedgerEntry(Entry):
    """The commit: rows that it names are output, others are not."""

    parts: list[CommittedPart]
    quarantine_parts: list[CommittedPart]
    evaluation_parts: list[CommittedPart]

    @property
    def num_parts(self) -> int:
        return len(self.parts)

    @property
    def num_quarantine_parts(self) -> int:
        return len(self.quarantine_parts)

    @property
    def num_evaluation_parts(self) -> int:
        return len(self.evaluation_parts)


class EntrySummary(Entry):
    """A commit as a snapshot of the ledger holds it: its parts are counted, and their names follow from that.

    Where a later version has taken its place, it has no files either.
    """

    num_parts: int
    num_quarantine_parts: int
    num_evaluation_parts: int

    @classmethod
    def of(cls, entry: LedgerRun, *, with_files: bool) -> EntrySummary:
        """Summary of an entry; of a summary, the same."""
        fields = {name: getattr(entry, name) for name in EntrySummary.model_fields}
        return cls.model_construct(**fields if with_files else fields | {"files": []})


LedgerRun: TypeAlias = LedgerEntry | EntrySummary


def _added(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for key, value in count.items():
            total[key] = total.get(key, 0) + value
    return total
