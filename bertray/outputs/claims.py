"""Claims: one output folder holds one run, or one sequence of scored slots, and says so."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bertray.errors import ConfigError, ConflictError, DataRefused, InfrastructureError
from bertray.io.store import LocalStore, Store
from bertray.outputs.control_files import SCHEMA_VERSION, Record
from bertray.outputs.heartbeat import Heartbeat, live_attempt
from bertray.outputs.ledger import COMMITS
from bertray.wording import command

RUN_FILE = "control/run.json"
FINISHED_FILE = "control/finished.json"
ALIVE = "control/alive"  # of runs that are at work right now
NIGHTS = ("score", "embed")  # verbs whose outputs grow, so that one config does not describe them
MIN_FREE_BYTES = 64 << 20
PROBE = "control/probe"  # that put-if-absent is tried on


class Claim(Record):
    """The run that an output is for."""

    verb: str
    run_key: str
    by: str = ""  # differs between processes: on an object store equal bytes would tell both that they wrote them


@contextlib.contextmanager
def claimed_output(
    store: Store, verb: str, run_key: str, config_yaml: str, work: str = "", *, replace: bool = False
) -> Iterator[None]:
    """Hold an output for a run, alone; one that was taken for it and then refused is free again.

    Whoever follows the remedy of a refusal has another config, and so another run. What has been worked out below the
    folder `work` is never thrown away: from there the same command goes on. What the data is refused for it is refused
    for by any run, so that it is free then whoever took it.

    Args:
        replace: another run of this verb may be there, which gives way unless it is at work.

    Raises:
        ConfigError: the output cannot be written.
        ConflictError: it holds another run, or a run is at work on it.
    """
    _refuse_beside_a_live_run(store)
    if replace:
        replace_claim(store, verb, run_key, config_yaml)
    taken = claim_output(store, verb, run_key, config_yaml)
    try:
        with Heartbeat(store, f"{ALIVE}/{uuid.uuid4().hex[:8]}", run_key) as mine:
            _refuse_beside_a_live_run(store)
            if store.exists(FINISHED_FILE):
                raise ConflictError(
                    f"{store.root}: this run has just been finished.", "Run the same command again: it says where."
                )
            for key in store.keys(ALIVE):
                if key != mine.key:
                    store.delete(key)  # of a run that was killed
            yield
    except (ConfigError, DataRefused) as error:
        if (taken or isinstance(error, DataRefused)) and not (work and store.keys(work)):
            remove_folder(store, "control")
            store.delete("config.yaml")
        raise


def _refuse_beside_a_live_run(store: Store) -> None:
    if holder := live_attempt(store, ALIVE):
        raise ConflictError(
            f"{store.root}: a run is at work on it ({holder}).",
            "Wait for it. One on a machine that was lost counts as ended after three minutes.",
        )


def claim_output(store: Store, verb: str, run_key: str, config_yaml: str) -> bool:
    """Take an output for a run, or join the same run again; returns whether it was free.

    Raises:
        ConfigError: the output cannot be written.
        ConflictError: it holds another run.
    """
    if check_claim(store, verb, run_key):
        return False
    if store.put_new(RUN_FILE, Claim(verb=verb, run_key=run_key, by=uuid.uuid4().hex[:8]).to_bytes()):
        if verb not in NIGHTS:
            store.put("config.yaml", config_yaml.encode())
        return True
    check_claim(store, verb, run_key)  # another run was faster
    return False


def replace_claim(store: Store, verb: str, run_key: str, config_yaml: str) -> None:
    """Make an output that of another run of the same verb; what it has cached stays, what it has finished does not.

    Raises:
        ConflictError: it holds something else.
    """
    held = _holder(store)
    if held is None:
        claim_output(store, verb, run_key, config_yaml)
        return
    check_claim(store, verb, held.run_key)
    store.delete(FINISHED_FILE)
    store.put(RUN_FILE, Claim(verb=verb, run_key=run_key).to_bytes())
    store.put("config.yaml", config_yaml.encode())


def check_claim(store: Store, verb: str, run_key: str) -> bool:
    """Find out whether this run could take the output; writes nothing.

    Returns:
        True when it holds the output already, False when the output is free.

    Raises:
        ConflictError: it holds another run, or something else.
    """
    if verb not in NIGHTS and store.keys(COMMITS):
        raise ConflictError(f"{store.root}: holds slots of reviews, not a {verb} run.", "Choose another `output`.")
    held = _holder(store)
    if held is None:
        # Looked at again after that: a run beside us may be claiming the output right now.
        if not _in_use(store):
            return False
        held = _holder(store)
    if held is None:
        raise ConflictError(
            f"{store.root}: not empty, and not an output of bertray.", "Choose an empty or new folder as `output`."
        )
    if held.verb != verb:
        raise ConflictError(
            f"{store.root}: holds the output of `{held.verb}`, not of `{verb}`.", "Choose another `output`."
        )
    if held.run_key != run_key:
        raise ConflictError(
            f"{store.root}: holds a {verb} run with other data or settings (its config.yaml says which).",
            "Choose another `output`, or remove this one"
            + (", or add `replace=true`, which keeps its vectors." if verb == "topics" else "."),
        )
    return True


def _holder(store: Store) -> Claim | None:
    """The claim of the run that holds the output; None when none does."""
    try:
        return Claim.from_bytes(store.get(RUN_FILE), store.uri(RUN_FILE))
    except FileNotFoundError:
        return None


def finished_run(store: Store, verb: str, run_key: str) -> bool:
    """Whether this very run is already whole."""
    held = _holder(store)
    return held is not None and (held.verb, held.run_key) == (verb, run_key) and store.exists(FINISHED_FILE)


def mark_finished(store: Store, told: Mapping[str, Any] | None = None) -> None:
    """The last write of a run: everything else is in place.

    Args:
        told: what its result says beside the files, for whoever asks for the same run again.
    """
    content = {"schema_version": SCHEMA_VERSION, **({"told": dict(told)} if told else {})}
    store.put(FINISHED_FILE, json.dumps(content, ensure_ascii=False).encode())


def told_when_finished(store: Store) -> dict[str, Any]:
    """Facts that a finished run recorded; empty for one that an earlier version finished."""
    found: dict[str, Any] = json.loads(store.get(FINISHED_FILE)).get("told", {})
    return found


def put_folder(store: Store, folder: Path, key: str) -> None:
    """A model's files, the config last: without it there is no model."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.json"):
        store.put(f"{key}/{path.name}", path.read_bytes())


def remove_folder(store: Store, folder: str) -> None:
    """Remove everything below a folder of an output, and on a file system the folder."""
    for key in store.keys(folder):
        store.delete(key)
    if isinstance(store, LocalStore):
        shutil.rmtree(store.uri(folder), ignore_errors=True)


def check_free_space(store: Store, input_bytes: int) -> None:
    """Refuse to start on a disk that the output would fill.

    Raises:
        InfrastructureError: less is free than half of the input, or than 64 MiB.
    """
    if not isinstance(store, LocalStore):
        return
    folder = next(path for path in (Path(store.root), *Path(store.root).parents) if path.is_dir())
    free, needed = shutil.disk_usage(folder).free, max(input_bytes // 2, MIN_FREE_BYTES)
    if free < needed:
        raise InfrastructureError(
            f"{store.root}: {free >> 20} MiB are free, about {needed >> 20} MiB are needed.",
            f"Free some space ({command('gc', output=store.root)} shows what this output no longer needs), then run "
            "the same command again.",
        )


def check_publishing(store: Store, slot: str) -> None:
    """Refuse an output whose rows could be committed and not shown.

    Raises:
        ConfigError: `data/`, `quarantine/` or the slot is on another file system; there or in `reports/` nothing can be
            written.
    """
    if isinstance(store, LocalStore):
        for root in ("data", "quarantine"):
            store.check_rename(f"{root}/{slot}")
        store.check_folder(f"reports/{slot}")


def _in_use(store: Store) -> bool:
    if isinstance(store, LocalStore):
        root = Path(store.root)
        others = root.is_dir() and any(path.name != "control" for path in root.iterdir())
        return others or bool(store.keys("control"))  # what a claim that died left half-written does not count
    return any(store.keys(name) for name in ("data", "model", "quarantine", "reports", "control"))


def probe_put_if_absent(store: Store) -> None:
    """Refuse a store without put-if-absent, see `check_put_if_absent`; nothing stays there."""
    key = f"control/probe-{uuid.uuid4().hex[:8]}"
    try:
        check_put_if_absent(store, single_writer=False, key=key)
    finally:
        store.delete(key)


def check_put_if_absent(store: Store, *, single_writer: bool, key: str = PROBE) -> None:
    """Refuse a store on which two runs could both believe that they committed.

    Args:
        store: a claimed output.
        single_writer: the user says that there is one run at a time.
        key: that is written, and stays: the next run has to find that it cannot be written anew.

    Raises:
        ConfigError: the second of two put-if-absent of one key succeeded, or the store has no such thing.
    """
    was_absent = store.put_new(key, uuid.uuid4().bytes)
    taken_twice = was_absent and store.put_new(key, uuid.uuid4().bytes)
    if (taken_twice or not store.put_new_is_atomic) and not single_writer:
        raise ConfigError(
            f"{store.root}: put-if-absent does not hold there, so two runs could both commit.",
            "Use another store, or set `single_writer=true` if only one run ever writes.",
        )
