"""Small plans, files, ledger entries and receipts for tests."""

from bertray.outputs.control_files import FileCount, FileRecord, LedgerEntry, Plan, Receipt, Span


def file(
    path: str, *, size: int = 10, modified: str = "1", digest: str | None = "d", rows: int | None = 10, reason=None
) -> FileRecord:
    return FileRecord(
        path=path,
        relative_path=path,
        format="parquet",
        size_bytes=size,
        modified=modified,
        num_rows=rows,
        digest=digest,
        reason=reason,
    )


def entry(slot: str, *files: FileRecord, seq: int = 1, key: str = "k", run: int = 1, version: int = 1) -> LedgerEntry:
    counts = [
        FileCount(
            **f.model_dump(include={"path", "relative_path", "format", "size_bytes", "modified", "digest"}),
            rows_in=f.num_rows,
            rows_scored=f.num_rows,
            rows_quarantined=0,
        )
        for f in files
    ]
    empty = dict.fromkeys(
        [
            "rows_in",
            "rows_scored",
            "rows_quarantined",
            "tokens",
            "truncated",
            "repeated",
            "needs_review",
            "adopted_receipts",
        ],
        0,
    )
    return LedgerEntry(
        seq=seq,
        slot=slot,
        run=run,
        version=version,
        run_id="r",
        plan_key=key,
        committed_at="t",
        model="m",
        model_version="v",
        labels=["a", "b"],
        settings={},
        files=counts,
        parts=[],
        quarantine_parts=[],
        evaluation_parts=[],
        reasons={},
        label_counts={},
        score_histogram=[],
        token_histogram=[],
        seconds=1.0,
        compute_seconds=1.0,
        **empty,
    )


def plan(*files: FileRecord, slot: str = "s", key: str = "k", created: str = "1", rows_per_shard: int = 4) -> Plan:
    return Plan(
        plan_key=key,
        slot=slot,
        version=1,
        seq=1,
        run_id="r",
        created_at=created,
        model="m",
        model_version="v",
        labels=["a", "b"],
        settings={},
        files=list(files),
        rows_per_shard=rows_per_shard,
    )


def receipt(file_no: int, lo: int, hi: int, *, quarantined: int = 0, scored: int | None = None) -> Receipt:
    scored = hi - lo - quarantined if scored is None else scored
    return Receipt(
        spans=[Span(file_no=file_no, lo=lo, hi=hi, rows_scored=scored, rows_quarantined=quarantined)],
        reasons={},
        label_counts={},
        score_histogram=[0] * 20,
        token_histogram=[0] * 7,
        tokens=0,
        truncated=0,
        repeated=0,
        needs_review=0,
        seconds=0.0,
        part=None,
        quarantine=None,
        evaluation=None,
    )
