"""Training checkpoints without pickles: safetensors and JSON, complete or not there, checked by digest when read.

A checkpoint exists when its `checkpoint.json`, written last, names every file with its digest. One that is cut short
or damaged is passed over for the one before it, and that is said.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bertray.errors import ConflictError
from bertray.io.store import Store
from bertray.training.loss_scale import FIRST

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
MANIFEST = "checkpoint.json"
SCHEMA_VERSION = 1


@dataclass
class Progress:
    """Progress of a run: enough to repeat exactly the steps that follow."""

    step: int = 0  # optimizer steps done, over all epochs
    epoch: int = 0  # epoch of the next step
    step_in_epoch: int = 0  # steps of that epoch already done
    best_step: int | None = None  # checkpoint with the best validation figure
    best_value: float | None = None
    epochs_without_gain: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0  # of the epoch under way, summed over steps
    window_loss: float = 0.0  # since the last row of history
    window_steps: int = 0
    tokens: int = 0
    loss_scale: float = FIRST  # of fp16
    scaled_steps: int = 0  # since it changed
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    progress: Progress
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    run_key: str


def save_checkpoint(store: Store, checkpoint: Checkpoint) -> str:
    """Write a checkpoint; returns its folder below the store's root."""
    from safetensors.torch import save

    folder = f"{FOLDER}/step-{checkpoint.progress.step:08d}"
    files = {
        "model.safetensors": save(checkpoint.model),
        "optimizer.safetensors": save(checkpoint.optimizer),
        "progress.json": json.dumps(checkpoint.progress.__dict__).encode(),
    }
    for name, content in files.items():
        store.put(f"{folder}/{name}", content)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "run_key": checkpoint.run_key,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    store.put(f"{folder}/{MANIFEST}", json.dumps(manifest).encode())
    return folder


def load_latest(store: Store, run_key: str) -> Checkpoint | None:
    """The newest whole checkpoint of this run, or None."""
    for folder in reversed(checkpoint_folders(store)):
        checkpoint = _load(store, folder, run_key)
        if checkpoint is not None:
            return checkpoint
    return None


def load_step(store: Store, step: int, run_key: str) -> Checkpoint | None:
    return _load(store, f"{FOLDER}/step-{step:08d}", run_key)


def load_best(store: Store, step: int, run_key: str) -> Checkpoint:
    """The checkpoint of the best epoch.

    Raises:
        ConflictError: it is damaged.
    """
    checkpoint = load_step(store, step, run_key)
    if checkpoint is None:
        raise ConflictError(f"training: the best checkpoint (step {step}) is damaged.", "Train again in a new output.")
    return checkpoint


def checkpoint_folders(store: Store) -> list[str]:
    """Folders that hold a manifest, oldest first."""
    return sorted(key.rpartition("/")[0] for key in store.keys(FOLDER) if key.endswith(f"/{MANIFEST}"))


def _load(store: Store, folder: str, run_key: str) -> Checkpoint | None:
    from safetensors.torch import load

    try:
        manifest = json.loads(store.get(f"{folder}/{MANIFEST}"))
        if manifest.get("run_key") != run_key or manifest.get("schema_version") != SCHEMA_VERSION:
            log.warning("checkpoint %s belongs to another run or version; not used", folder)
            return None
        files = {}
        for name, digest in manifest["sha256"].items():
            files[name] = store.get(f"{folder}/{name}")
            if hashlib.sha256(files[name]).hexdigest() != digest:
                log.warning("checkpoint %s: %s is damaged; falling back to the checkpoint before it", folder, name)
                return None
    except (FileNotFoundError, ValueError, KeyError) as error:
        log.warning("checkpoint %s cannot be read (%s); falling back to the checkpoint before it", folder, error)
        return None
    return Checkpoint(
        progress=Progress(**json.loads(files["progress.json"])),
        model=load(files["model.safetensors"]),
        optimizer=load(files["optimizer.safetensors"]),
        run_key=run_key,
    )


def forget_after(store: Store, step: int) -> None:
    """Delete checkpoints beyond a step: none of them could be read, and each would count as one of the latest."""
    for folder in checkpoint_folders(store):
        if _step_of(folder) > step:
            _remove(store, folder)


def prune(store: Store, keep_steps: set[int]) -> None:
    """Delete checkpoints beyond the latest two and those in `keep_steps`; manifest first, so none is left half."""
    folders = checkpoint_folders(store)
    for folder in folders[:-2]:
        if _step_of(folder) not in keep_steps:
            _remove(store, folder)


def _step_of(folder: str) -> int:
    return int(folder.rpartition("-")[2])


def _remove(store: Store, folder: str) -> None:
    store.delete(f"{folder}/{MANIFEST}")
    for key in store.keys(folder):
        store.delete(key)


def model_tensors(model: torch.nn.Module, *, copied: bool = False) -> dict[str, torch.Tensor]:
    """Weights by name on the CPU; one that stands under several names, as tied ones do, is kept under the first.

    Args:
        copied: none of them is a weight itself, which would change with the next step.
    """
    state, shared = model.state_dict(), _shared_names(model)
    return {name: _on_host(tensor, copied) for name, tensor in state.items() if name not in shared}


def _on_host(tensor: torch.Tensor, copied: bool) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=copied).contiguous()


def load_model_tensors(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Inverse of `model_tensors`."""
    again = {name: tensors[first] for name, first in _shared_names(model).items()}
    model.load_state_dict(tensors | again)


def _shared_names(model: torch.nn.Module) -> dict[str, str]:
    """Further names of a weight: the first it stands under."""
    first: dict[tuple[int, torch.Size], str] = {}
    shared = {}
    for name, tensor in model.state_dict().items():
        known = first.setdefault((tensor.data_ptr(), tensor.shape), name)
        if known != name and tensor.numel():
            shared[name] = known
    return shared


def optimizer_tensors(optimizer: torch.optim.Optimizer, *, copied: bool = False) -> dict[str, torch.Tensor]:
    """State of an optimizer as flat tensors `<parameter number>.<name>` on the CPU; `copied` as of `model_tensors`."""
    import torch

    return {
        f"{number}.{name}": _on_host(torch.as_tensor(value), copied)
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Inverse of `optimizer_tensors`, into an optimizer over the same parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
