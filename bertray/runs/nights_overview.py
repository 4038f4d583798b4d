"""The index over all nights, and the way from one night to the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any
from urllib.parse import quote

from markupsafe import escape

from bertray.evaluation.verdicts import Finding
from bertray.io import faults
from bertray.io.store import Store
from bertray.outputs import ledger
from bertray.outputs.control_files import LedgerRun
from bertray.outputs.decisions import ACCEPTED, Acceptance, fullest, read_records, read_truths
from bertray.outputs.ledger import Ledger
from bertray.reports.drift import DriftReport
from bertray.reports.html import created_now
from bertray.reports.night import NEXT_NIGHT, NightBefore
from bertray.reports.nights_index import NightLine, NightsIndex
from bertray.reports.plain import json_bytes, visible
from bertray.trust.drift import Drift
from bertray.trust.reference import judge_nights

INDEX = "reports/index.html"


def write_index(
    store: Store,
    known: Ledger,
    expect_every_h: float | None = None,
    pages: Mapping[int, Mapping[str, Any]] | None = None,
) -> Ledger:
    """Write `reports/index.html` and `index.json` over the current runs; returns the ledger that they show.

    A run beside this one may commit and write them meanwhile; then they are written again, so that the last writer has
    seen every night.

    Args:
        pages: content of report.json by the number of its entry, where it was read already.
    """
    while True:
        runs, num_known = ledger.current(known), len(known)
        acceptances = read_records(store, ACCEPTED, Acceptance)
        verdicts = {one.night.seq: one.drift for one in judge_nights(known, acceptances)}
        accepted = {slot: one.after_seq for one in acceptances for slot in one.slots}
        measured = {truth.run_id: truth.accuracy for truth in fullest(read_truths(store))}
        last = max(runs, key=lambda run: run.committed_at)
        lines = [
            replace(
                _line(run, verdicts.get(run.seq), measured),
                finding=_worst_of_page(store, run, pages or {}) if run is last else None,
                is_accepted=run.seq <= accepted.get(run.slot, 0),
            )
            for run in reversed(runs)
        ]
        index = NightsIndex(store.root, lines, expect_every_h, created_now())
        store.put(INDEX, index.to_html().encode())
        store.put("reports/index.json", json_bytes(index.to_json()))
        faults.point("index.after_put")
        known = ledger.read_on(store, known)
        if len(known) == num_known:
            return known


def _worst_of_page(store: Store, run: LedgerRun, pages: Mapping[int, Mapping[str, Any]]) -> Finding | None:
    """The worst finding on the page of a night that asks somebody to act; drift has a rule of its own."""
    try:
        content = pages.get(run.seq) or json.loads(store.get(f"reports/{run.folder}/report.json"))
    except (FileNotFoundError, ValueError):
        return None
    drift = (content.get("drift") or {}).get("headline")
    found = [Finding(**one) for one in content["findings"] if one["sentence"] != drift]  # the worst stands first
    return next((finding for finding in found if finding.severity in ("bad", "warning")), None)


def _line(run: LedgerRun, drift: Drift | None, measured: Mapping[str, float]) -> NightLine:
    of_vectors = "pooling" in run.settings
    return NightLine(
        title=run.title,
        folder=run.folder,
        committed_at=run.committed_at,
        rows_in=run.rows_in,
        rows_scored=run.rows_scored,
        rows_quarantined=run.rows_quarantined,
        drift="" if of_vectors or drift is None else drift.state,
        told="" if of_vectors or drift is None else DriftReport(drift).headline,
        labels={label: run.label_counts.get(label, 0) for label in run.labels},
        needs_review=run.needs_review,
        model_version=run.model_version,
        measured=measured.get(run.run_id),
    )


def night_before(known: Ledger, run: LedgerRun) -> NightBefore | None:
    """The night before a run; None of the first."""
    runs = ledger.current(known)
    at = next((at for at, one in enumerate(runs) if one.seq == run.seq), 0)
    if at == 0:
        return None
    before = runs[at - 1]
    return NightBefore(
        before.title, _way(before), before.rows_scored, dict(before.label_counts), before.model_version, before.folder
    )


def link_to_next(store: Store, before: NightBefore, run: LedgerRun) -> None:
    """Put the link to a run into the page of the night before it, where that has none yet."""
    key = f"reports/{before.folder}/report.html"
    try:
        page = store.get(key).decode()
    except FileNotFoundError:
        return
    if NEXT_NIGHT in page:
        store.put(key, page.replace(NEXT_NIGHT, _link_to(run), 1).encode())


def linked_to_next(page: str, known: Ledger, run: LedgerRun) -> str:
    """The page of a run with the link to the night after it, where that is committed already."""
    runs = ledger.current(known)
    following = [after for one, after in pairwise(runs) if one.seq == run.seq]
    return page.replace(NEXT_NIGHT, _link_to(following[0]), 1) if following else page


def _link_to(run: LedgerRun) -> str:
    return f'<a href="{_way(run)}">Next night: {escape(visible(run.title))}</a>'


def _way(run: LedgerRun) -> str:
    """Relative address of a night's page from that of another."""
    return f"../../{quote(run.folder)}/report.html"
