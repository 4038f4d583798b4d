"""Registry of models: names, their versions, and a history whose newest promotion or rollback is the pointer.

`<registry>/<name>/versions/<model_version>/` is a bundle with the comparison that let it in below `comparison/`;
`<registry>/<name>/history/<seq:08d>.json` is an entry, written only if absent, so that of two promotions at once one
wins. Nothing is ever rewritten or removed: a promotion killed at any point leaves the old pointer or the new one.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bertray.errors import ConfigError, ConflictError, did_you_mean
from bertray.io import faults
from bertray.io.store import open_store
from bertray.outputs.control_files import Record
from bertray.outputs.decisions import now, user
from bertray.paths import is_uri, local_path
from bertray.reviews.split import mixed

SCHEME = "registry:"
HISTORY, VERSIONS, COMPARISON = "history", "versions", "comparison"
CONFIG_FILE = "config.json"  # of a model; written last, so that a version without it is not whole
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_REFUSAL_RACES = 20
SKETCH_ROWS = 128  # the share of common rows is known to 4 points (standard error) at a half
SAME_SHARE = 0.5  # of the rows of two test sets that are in both, from which on they count as one
_ENTRY = re.compile(rf"(?P<name>[^/]+)/{HISTORY}/(?P<seq>\d{{8}})\.json")

Kind = Literal["promote", "refuse", "rollback"]


class HistoryEntry(Record):
    """An event of a name.

    Attributes:
        seq: place in the history, from 1.
        kind: `promote` and `rollback` move the pointer to `version`; `refuse` names a candidate that stays out.
        previous: version that the pointer stood on; None before the first promotion.
        source: where the candidate came from.
        at, by: UTC time, and user@machine.
        forced: let in against the gate, for `reason`.
        test_digest: of the rows that the candidate was judged on; "" of a rollback.
        test_sketch: `rows_sketch` of them.
        gate: the decision (see `gate.GateDecision.to_json`); None of a rollback.
        entry_id: differs between writers, so that equal content does not pass for one's own.
    """

    seq: int
    kind: Kind
    version: str
    previous: str | None
    source: str = ""
    at: str
    by: str
    forced: bool = False
    reason: str = ""
    test_digest: str = ""
    test_sketch: tuple[str, ...] = ()
    rows: int = 0
    gate: dict[str, Any] | None = None
    entry_id: str

    @property
    def moves_pointer(self) -> bool:
        return self.kind != "refuse"


def new_entry(kind: Kind, history: Sequence[HistoryEntry], version: str, **fields: Any) -> HistoryEntry:
    """Entry that follows a history, by this user, now."""
    pointer = current(history)
    return HistoryEntry(
        seq=len(history) + 1,
        kind=kind,
        version=version,
        previous=pointer.version if pointer else None,
        at=now(),
        by=user(),
        entry_id=uuid.uuid4().hex,
        **fields,
    )


def current(history: Sequence[HistoryEntry]) -> HistoryEntry | None:
    """The entry that the pointer comes from; None before the first promotion."""
    return next((entry for entry in reversed(history) if entry.moves_pointer), None)


def uses_of(history: Sequence[HistoryEntry], test_digest: str, test_sketch: Sequence[str] = ()) -> int:
    """Number of candidates that these rows, or mostly these, have judged."""
    judged = [entry for entry in history if entry.kind != "rollback"]
    return sum(entry.test_digest == test_digest or _mostly_same(entry.test_sketch, test_sketch) for entry in judged)


def rollback_target(name: str, history: Sequence[HistoryEntry], to: str | None = None) -> str:
    """Version that a rollback moves the pointer to: `to`, or the one before the current one.

    A second rollback goes one version further back, not forth again.

    Raises:
        ConfigError: `to` was never let in.
        ConflictError: there is no earlier version.
    """
    if to is not None:
        let_in = list(dict.fromkeys(entry.version for entry in history if entry.moves_pointer))
        if to not in let_in:
            raise ConfigError(
                f"to={to}: no such version of {name}.{did_you_mean(to, let_in)}",
                f"Versions that were let in: {', '.join(let_in) or 'none'}.",
            )
        return to
    line: list[str] = []  # versions before the current one, and it
    for entry in history:
        if entry.kind == "promote" or (entry.kind == "rollback" and entry.version not in line):
            line.append(entry.version)
        elif entry.kind == "rollback":
            del line[len(line) - line[::-1].index(entry.version) :]
    if len(line) < 2:
        raise ConflictError(
            f"{name}: no version before {line[0] if line else 'the first promotion'}; the pointer stays.",
            "`bertray registry` lists the versions; `to=VERSION` names one of them.",
        )
    return line[-2]


def rows_digest(input_hash_N: np.ndarray, label_ids_N: np.ndarray, labels: Sequence[str]) -> str:
    """Digest of labelled rows, whatever their order and the order of classes.

    Args:
        input_hash_N: uint64 [N], `schema.INPUT_HASH`.
        label_ids_N: int [N].
        labels: names by label id.
    """
    rows_N2 = np.column_stack([input_hash_N.astype(np.uint64), _name_hashes(labels)[label_ids_N]])
    ordered_N2 = rows_N2[np.lexsort((rows_N2[:, 1], rows_N2[:, 0]))]
    return hashlib.sha256(np.ascontiguousarray(ordered_N2).astype("<u8").tobytes()).hexdigest()[:16]


def rows_sketch(input_hash_N: np.ndarray, label_ids_N: np.ndarray, labels: Sequence[str]) -> tuple[str, ...]:
    """The smallest hashes of labelled rows: of test sets that share most rows, these are mostly the same.

    A row taken out, a label corrected or a model that cleans otherwise does not make a test set a fresh one.

    Args:
        input_hash_N, label_ids_N, labels: as for `rows_digest`.

    Source: Broder 1997, "On the resemblance and containment of documents" (one permutation, the smallest kept).
    """
    rows_N = mixed(mixed(input_hash_N.astype(np.uint64), 0) ^ _name_hashes(labels)[label_ids_N], 0)
    return tuple(f"{row:016x}" for row in np.unique(rows_N)[:SKETCH_ROWS].tolist())


def _mostly_same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two test sets share at least half of all their rows, by their sketches."""
    smallest = sorted({*one, *other})[:SKETCH_ROWS]
    return len({*one} & {*other} & {*smallest}) >= SAME_SHARE * len(smallest) > 0


def _name_hashes(labels: Sequence[str]) -> np.ndarray:
    """uint64 [C]: of the names of classes."""
    return np.array([int.from_bytes(hashlib.sha256(x.encode()).digest()[:8], "little") for x in labels], np.uint64)


def check_name(name: str) -> str:
    """The name, when it is one.

    Raises:
        ConfigError: a slash, a leading dot, or something else that is no name of one folder.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"name {name!r}: expected 1 to 64 letters, digits and . _ -, the first a letter or digit, found another.",
            "Name what the model is for, for example `reviews`.",
        )
    return name


class Registry:
    """Names and versions below a folder, or an `s3://`, `gs://` or `az://` prefix.

    Raises:
        ConfigError: a local folder that is not there; with `create`, one whose parent folder is not there.
    """

    def __init__(self, root: str, *, create: bool = False) -> None:
        if not is_uri(root):
            folder = local_path(root)
            if not folder.is_dir() and (folder.exists() or not (create and folder.parent.is_dir())):
                raise ConfigError(
                    f"registry={root}: {'expected a folder, found a file' if folder.exists() else 'no such folder'}.",
                    "Give the folder of the registry; `promote` creates it inside a folder that exists.",
                )
        self.store = open_store(root)
        self.root = self.store.root

    def check_writable(self, name: str) -> None:
        """Try a put-if-absent twice and remove it.

        Raises:
            ConfigError: nothing can be written, or both succeeded, so that two promotions could both win.
        """
        key = f"{name}/probe-{uuid.uuid4().hex[:8]}"
        try:
            first, second = self.store.put_new(key, b"1"), self.store.put_new(key, b"2")
            self.store.delete(key)
        except ConfigError as error:
            raise ConfigError(
                f"registry={self.root}: cannot be written ({error.message.rstrip('.')}).",
                "See to the rights, or name another registry.",
            ) from error
        if second or not first or not self.store.put_new_is_atomic:
            raise ConfigError(
                f"registry={self.root}: put-if-absent does not hold there, so two promotions could both win.",
                "Keep the registry on a file system with hard links, or on S3 or GCS.",
            )

    def names(self) -> list[str]:
        """Names with a history, sorted."""
        return sorted({match["name"] for key in self.store.keys("") if (match := _ENTRY.fullmatch(key))})

    def history(self, name: str) -> list[HistoryEntry]:
        """Every entry of a name in order; empty of a name that is not there.

        Raises:
            ConflictError: an entry is damaged, or missing in the middle.
        """
        keys = [key for key in self.store.keys(f"{check_name(name)}/{HISTORY}") if _ENTRY.fullmatch(key)]
        entries = [HistoryEntry.from_bytes(self.store.get(key), self.store.uri(key)) for key in keys]
        if [entry.seq for entry in entries] != list(range(1, len(entries) + 1)):
            raise ConflictError(
                f"{self.store.uri(f'{name}/{HISTORY}')}: entries are missing; found {len(entries)}, the last is "
                f"{entries[-1].seq}.",
                "Restore the folder from a copy.",
            )
        return entries

    def known(self, name: str) -> list[HistoryEntry]:
        """History of a name that has a pointer.

        Raises:
            ConfigError: there is no such name.
        """
        history = self.history(name)
        if current(history) is None:
            names = self.names()
            raise ConfigError(
                f"registry={self.root}: no model was promoted as {name!r}.{did_you_mean(name, names)}",
                f"Names there: {', '.join(names) or 'none'}.",
            )
        return history

    def version_path(self, name: str, version: str) -> str:
        """Path or URI of a version, as `model` takes it."""
        return self.store.uri(f"{name}/{VERSIONS}/{version}")

    def has_version(self, name: str, version: str) -> bool:
        return self.store.exists(f"{name}/{VERSIONS}/{version}/{CONFIG_FILE}")

    def put_version(self, name: str, version: str, bundle: Path, comparison: Mapping[str, bytes]) -> None:
        """Copy a bundle in, its config last, and the comparison that let it in; nothing points to it yet.

        Args:
            version: the bundle's `model_version`; one that is there already is the same, byte for byte.
            bundle: folder.
            comparison: file name -> content.
        """
        below = f"{name}/{VERSIONS}/{version}"
        if not self.has_version(name, version):
            files = sorted(path for path in bundle.iterdir() if path.is_file())
            for path in sorted(files, key=lambda path: path.name == CONFIG_FILE):
                self.store.put(f"{below}/{path.name}", path.read_bytes())
                faults.point("registry.version_half")
        for file_name, content in comparison.items():
            self.store.put(f"{below}/{COMPARISON}/{file_name}", content)

    def append(self, name: str, entry: HistoryEntry) -> None:
        """Write an entry at its place: for `promote` and `rollback` this moves the pointer.

        Raises:
            ConflictError: another entry is there.
        """
        faults.point("registry.before_put")
        won = self.store.put_new(f"{name}/{HISTORY}/{entry.seq:08d}.json", entry.to_bytes())
        faults.point("registry.after_put")
        if not won:
            raise ConflictError(
                f"{name}: another entry was written to its history meanwhile; the pointer is not moved by this run.",
                "Run the same command again: it compares with what the pointer stands on now.",
            )

    def append_refusal(self, name: str, entry: HistoryEntry) -> HistoryEntry:
        """Write a refusal behind the newest entry, whatever was written meanwhile: it moves nothing."""
        for _ in range(MAX_REFUSAL_RACES):
            try:
                self.append(name, entry)
                return entry
            except ConflictError:
                entry = entry.model_copy(update={"seq": len(self.history(name)) + 1})
        raise ConflictError(f"{name}: many entries are being written to its history.", "Run the same command again.")


def is_registered(model: str) -> bool:
    """True for `registry:NAME`."""
    return model.startswith(SCHEME)


def resolve_registered(model: str, registry: str | None) -> str:
    """Path of the version that `registry:NAME` points to now; any other `model` as it stands.

    Raises:
        ConfigError: no `registry`, no such name in it, or its version is gone.
    """
    if not is_registered(model):
        return model
    name = check_name(model.removeprefix(SCHEME))
    if registry is None:
        raise ConfigError(f"model={model}: expected the key registry, found none.", "Add `registry=FOLDER`.")
    opened = Registry(registry)
    pointer = current(opened.known(name))
    assert pointer is not None
    if not opened.has_version(name, pointer.version):
        raise ConfigError(
            f"{opened.version_path(name, pointer.version)}: the history of {name} points to it, and it is not there.",
            "Restore it from a copy, or roll back to another version.",
        )
    return opened.version_path(name, pointer.version)
