"""The page of an audit, made of what it found out: counts of each split, and examples with their texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from bertray import schema as s
from bertray.auditing.analysis import AuditRows, labels_differ
from bertray.auditing.duplicates import ALONE, Leaks, num_groups, repeats
from bertray.auditing.tables import Audited, first_of_group
from bertray.auditing.text_marks import MARKS, bits
from bertray.config import AuditConfig
from bertray.evaluation.label_errors import Suspects
from bertray.reports.audit import AuditReport, BrokenFile, Example, Leak, Repeats, SplitRows
from bertray.reports.html import data_title, model_title

# --- counts ----------------------------------------------------------------------------------------------------------


def audit_report(
    config: AuditConfig,
    audited: Audited,
    tables: Mapping[str, pa.Table],
    examples: Mapping[str, list[Example]],
    notes: list[str],
) -> AuditReport:
    """Everything but what only the run itself knows: when it was, and how long it took."""
    rows, found = audited.rows, audited.found
    in_split = {name: rows.of(number) for number, name in enumerate(audited.split_names)}
    broken, broken_files = _broken(audited, tables["broken"])
    near = None
    if found.near_N is not None:
        near = {name: _counted(found.near_N[at], rows.label_N[at]) for name, at in in_split.items()}
    conflicts = None
    if audited.labels is not None:
        conflicts = {"all": _counted(found.conflict_N)}
        conflicts |= {name: _counted(found.conflicts_in[number]) for number, name in enumerate(in_split)}
    is_pair = config.columns.text_pair is not None
    return AuditReport(
        title=f"Audit of {data_title([path for paths in config.splits.values() for path in paths])}",
        splits=_split_rows(audited, in_split),
        repeats={name: _duplicates(audited, at) for name, at in in_split.items()},
        near=near,
        threshold=config.near_duplicates.threshold,
        ids=None if found.id_N is None else _counted(repeats(rows.split_N, rows.id_N), rows.label_N),
        ids_in_two_splits=0 if found.id_N is None else len(labels_differ(found.id_N, rows.split_N)),
        leaks=list(_leaks(audited)),
        conflicts=conflicts,
        broken=broken,
        broken_files=broken_files,
        labels={name: _label_counts(audited, at) for name, at in in_split.items()},
        unlabelled={name: int((rows.label_N[at] < 0).sum()) for name, at in in_split.items()},
        doubt=audited.doubt,
        damaged=tables["damaged"].num_rows,
        marks={
            name: {mark: int((rows.marks_N[at] & bits([mark]) > 0).sum()) for mark in MARKS}
            for name, at in in_split.items()
        },
        scripts={name: dict(audited.scripts[number].most_common()) for number, name in enumerate(in_split)},
        max_length=config.max_length,
        tokenizer=model_title(config.model),
        examples=examples,
        notes=notes,
        facts={
            "compared by": "text and second text, after cleaning" if is_pair else "text after cleaning",
            "tokenizer": config.model,
            "rows read": f"{sum(split.inputs.num_rows for split in audited.splits):,}",
        },
    )


def _split_rows(audited: Audited, in_split: Mapping[str, np.ndarray]) -> list[SplitRows]:
    rows = audited.rows
    return [
        SplitRows(
            split.name,
            len(split.inputs.files) + len(split.bad),
            split.inputs.num_rows,
            len(at),
            _percentiles(rows.chars_N[at]),
            _percentiles(rows.tokens_N[at]),
            int(rows.truncated_N[at].sum()),
        )
        for split, at in zip(audited.splits, in_split.values(), strict=True)
    ]


def _broken(audited: Audited, table: pa.Table) -> tuple[dict[str, dict[str, int]], list[BrokenFile]]:
    """(rows that nobody can use, by split and reason; the files that have them)."""
    by_split = {name: Counter[str]() for name in audited.split_names}
    by_file: dict[tuple[str, str], Counter[str]] = {}
    counts = table.group_by([s.SPLIT, s.INPUT_PATH, s.REASON], use_threads=False).aggregate(
        [(s.ROW_NO, "count"), ([], "count_all")]
    )
    for row in counts.to_pylist():
        by_file.setdefault((row[s.SPLIT], row[s.INPUT_PATH]), Counter())[row[s.REASON]] += row["count_all"]
        if row[f"{s.ROW_NO}_count"]:  # 0: the whole file
            by_split[row[s.SPLIT]][row[s.REASON]] += row[f"{s.ROW_NO}_count"]
    num_rows = {file.path: file.num_rows for split in audited.splits for file in split.inputs.files}
    files = [BrokenFile(split, path, num_rows.get(path), dict(of)) for (split, path), of in by_file.items()]
    return {name: dict(of) for name, of in by_split.items()}, files


def _leaks(audited: Audited) -> Iterator[Leak]:
    rows, names = audited.rows, audited.split_names
    for (first, second), leak in audited.found.leaks.items():
        yield Leak(
            names[first],
            names[second],
            len(rows.of(second)),
            int(leak.exact.sum()),
            len(np.unique(rows.key_N[leak.later[leak.exact]])),
            int((~leak.exact).sum()),
            _other_labels(rows, rows.of(first), leak),
        )


def _other_labels(rows: AuditRows, earlier_rows: np.ndarray, leak: Leaks) -> int:
    """Leaked rows whose label no row of the same text on the other side has; rows without one do not count."""
    there = earlier_rows[rows.label_N[earlier_rows] >= 0]
    labels_of: dict[int, set[int]] = {}
    texts = np.isin(rows.key_N[there], rows.key_N[leak.earlier])
    for key, label in zip(rows.key_N[there[texts]].tolist(), rows.label_N[there[texts]].tolist(), strict=True):
        labels_of.setdefault(key, set()).add(label)
    found = zip(rows.label_N[leak.later].tolist(), rows.key_N[leak.earlier].tolist(), strict=True)
    return sum(label >= 0 and key in labels_of and label not in labels_of[key] for label, key in found)


def _duplicates(audited: Audited, at: np.ndarray) -> Repeats:
    rows, duplicate_N = audited.rows, audited.found.duplicate_N
    group_M, first_M = duplicate_N[at], first_of_group(duplicate_N)[at]
    beyond_M = (group_M != ALONE) & (first_M != at)
    same = int((rows.stored_N[at[beyond_M]] == rows.stored_N[first_M[beyond_M]]).sum())
    return replace(_counted(group_M, rows.label_N[at]), as_stored=same)


def _label_counts(audited: Audited, at: np.ndarray) -> dict[str, int]:
    labelled = audited.rows.label_N[at]
    labelled = labelled[labelled >= 0]
    if audited.labels is None or not len(labelled):
        return {}
    counts = np.bincount(labelled, minlength=len(audited.labels.names))
    return {name: int(number) for name, number in zip(audited.labels.names, counts, strict=True) if number}


def _counted(group_N: np.ndarray, label_N: np.ndarray | None = None) -> Repeats:
    members = group_N[group_N != ALONE]
    differing = 0 if label_N is None else len(labels_differ(group_N, label_N))
    return Repeats(len(np.unique(members)), len(members), other_labels=differing)


def _percentiles(values: np.ndarray) -> dict[str, int]:
    if not len(values):
        return {}
    found = np.percentile(values, [50, 90, 99, 100], method="inverted_cdf")
    return dict(zip(("p50", "p90", "p99", "max"), found.astype(int).tolist(), strict=True))


# --- examples --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picked:
    """An example before its texts are read: positions of one row or two, and what to know of them."""

    at: tuple[int, ...]
    facts: dict[str, str]


class Picker:
    """Chooses some of each finding to be shown.

    Args:
        audited: what was found.
        ids: of the rows that tables name, by position.
        most: of one finding.
    """

    def __init__(self, audited: Audited, ids: Mapping[int, str], most: int) -> None:
        self._audited, self._ids, self._most = audited, ids, most
        self._rows, self._found, self._names = audited.rows, audited.found, audited.split_names

    def pick(self) -> dict[str, list[Picked]]:
        """Finding -> examples, the largest groups and the strongest doubts first."""
        picked = {
            name: [self._group(name, at) for at in _largest(group_N, self._most)]
            for name, group_N in self._audited.groups().items()
        }
        for (first, second), leak in self._found.leaks.items():
            picked[f"leakage_{self._names[first]}_{self._names[second]}"] = self._leaked(leak)
        if self._audited.suspects is not None:
            picked["label_errors"] = self._doubted(self._audited.suspects)
        return picked

    def _group(self, name: str, at: np.ndarray) -> Picked:
        """Texts of a group of rows: one, or two where they differ."""
        rows, num_texts = self._rows, 2 if name in ("near_duplicates", "repeated_ids") else 1
        facts = {"rows": f"{len(at):,}"}
        if name == "near_duplicates":
            assert self._audited.near is not None
            shown = list(self._audited.near.nearest(rows.key_N, at))
            facts["alike"] = _alike(float(self._found.similarity_N[shown[0]]), *rows.folded_N[shown])
        else:
            _, first = np.unique(rows.key_N[at], return_index=True)
            shown = at[np.sort(first)[:num_texts]].tolist()
        if self._audited.labels is not None:
            counts = Counter(self._audited.label(number) or "none" for number in rows.label_N[at].tolist())
            facts["labels"] = ", ".join(f"{label} {number:,}" for label, number in counts.most_common(4))
        if len(self._names) > 1:
            facts["split"] = ", ".join(self._names[split] for split in np.unique(rows.split_N[at]))
        ids = [self._ids[position] for position in (shown if num_texts > 1 else at[:3].tolist())]
        facts["id"] = ", ".join(dict.fromkeys(ids)) + (", …" if len(at) > len(ids) and name != "repeated_ids" else "")
        return Picked(tuple(shown), facts)

    def _leaked(self, leak: Leaks) -> list[Picked]:
        """Near ones with the most alike first; where there are many of both kinds, half are exact."""
        exact, near = np.flatnonzero(leak.exact), np.flatnonzero(~leak.exact)
        near = near[np.argsort(-leak.similarity[near], kind="stable")]
        some = [*exact[: max(self._most - len(near), self._most // 2)], *near][: self._most]
        return [self._leaked_row(leak, number) for number in some]

    def _leaked_row(self, leak: Leaks, number: int) -> Picked:
        later, earlier, is_exact = int(leak.later[number]), int(leak.earlier[number]), bool(leak.exact[number])
        alike = "exactly" if is_exact else _alike(leak.similarity[number], *self._rows.folded_N[[later, earlier]])
        facts = {"alike": alike}
        for position in (later, earlier):
            label = self._audited.label(self._rows.label_N[position])
            named = self._ids[position] + (f" ({label})" if label is not None else "")
            facts[self._names[self._rows.split_N[position]]] = named
        return Picked((later,) if is_exact else (later, earlier), facts)

    def _doubted(self, suspects: Suspects) -> list[Picked]:
        some = zip(
            suspects.rows.tolist(),
            suspects.suggested.tolist(),
            suspects.given_probs.tolist(),
            suspects.suggested_probs.tolist(),
            strict=True,
        )
        picked = []
        for position, suggested, given_prob, prob in list(some)[: self._most]:
            facts = {
                "given": f"{self._audited.label(self._rows.label_N[position])} ({given_prob:.2f})",
                "suggested": f"{self._audited.label(suggested)} ({prob:.2f})",
                **({"split": self._names[self._rows.split_N[position]]} if len(self._names) > 1 else {}),
                "id": self._ids[position],
            }
            picked.append(Picked((position,), facts))
        return picked


def with_texts(picked: Mapping[str, list[Picked]], texts: Mapping[int, str]) -> dict[str, list[Example]]:
    """Examples that can be shown; texts by position."""
    return {
        name: [Example(tuple(texts[position] for position in one.at), one.facts) for one in some]
        for name, some in picked.items()
    }


def _alike(similarity: float, folded: int, other_folded: int) -> str:
    return "but for case, spaces and punctuation" if folded == other_folded else f"{math.floor(100 * similarity)} %"


def _largest(group_N: np.ndarray, most: int) -> list[np.ndarray]:
    """Rows of the groups with most rows, the largest first."""
    if not num_groups(group_N):
        return []
    sizes = np.bincount(group_N[group_N != ALONE])
    return [np.flatnonzero(group_N == group) for group in np.argsort(-sizes, kind="stable")[:most]]
