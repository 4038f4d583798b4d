"""Checks of a machine: versions, processor, memory, storage, model and Ray; each says what it found."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

from bertray.config import DoctorConfig, Workers
from bertray.errors import ConfigError, InfrastructureError
from bertray.execution.session import check_ray, ray_session
from bertray.io.store import open_store
from bertray.model.bundle import resolve_model
from bertray.model.pretrained.tokenizer import check_tokenizer
from bertray.model.pretrained.weights import load_encoder
from bertray.outputs.claims import probe_put_if_absent
from bertray.paths import is_uri
from bertray.runtime import num_cpus

PACKAGES = ("ray", "torch", "transformers", "pyarrow", "pandas", "scikit-learn")
MIN_SHARED_MEMORY = 256 << 20
MIN_FREE_DISK = 2 << 30


def machine_checks(config: DoctorConfig) -> dict[str, Callable[[], str]]:
    """Checks by name; each gives its finding, and raises where something is amiss."""
    return {
        "versions": _versions,
        "processor": _processor,
        "shared memory": _shared_memory,
        "storage": partial(_storage, config.output),
        "model": partial(_model, config.model),
        "ray": _ray,
    }


def _versions() -> str:
    if sys.version_info < (3, 11):
        raise ConfigError(f"Python {platform.python_version()}: expected 3.11 or later.", "Use a newer Python.")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)])


def _processor() -> str:
    import torch

    from bertray.model.engine import FORMATS, choose_dtype
    from bertray.model.kernels import kernels

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    dtype = choose_dtype("auto", torch.device("cpu"))
    precision = f"{FORMATS[dtype]} with {'PyTorch' if kernels(dtype) is None else 'bertray'}'s kernels"
    found = f"{num_cpus()} CPUs ({torch.backends.cpu.get_cpu_capability()}, scoring in {precision})"
    if gpus:
        found += f", {gpus} x {torch.cuda.get_device_name(0)}"
    return found + ("" if gpus else ", no GPU")


def _shared_memory() -> str:
    folder = Path("/dev/shm")  # noqa: S108 - Ray's object store lives there
    if not folder.is_dir():
        return "no /dev/shm on this system; Ray uses a file"
    size = shutil.disk_usage(folder).total
    if size < MIN_SHARED_MEMORY:
        raise InfrastructureError(
            f"{folder}: expected {MIN_SHARED_MEMORY >> 20} MB or more, found {size >> 20} MB.",
            "In a container, give --shm-size=2g.",
        )
    return f"{size / 2**30:.1f} GB"


def _storage(output: str | None) -> str:
    with _folder(output) as root:
        store = open_store(root)
        probe_put_if_absent(store)
        if is_uri(root):
            return f"{root}: writable, put-if-absent holds"
        free = shutil.disk_usage(store.root).free
        if free < MIN_FREE_DISK:
            raise InfrastructureError(f"{root}: {free >> 20} MB free.", "Free some space, or choose another disk.")
        return f"{root}: writable, put-if-absent holds, {free / 2**30:.0f} GB free"


@contextmanager
def _folder(output: str | None) -> Iterator[str]:
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="bertray-doctor-") as folder:
        yield folder


def _model(model: str) -> str:
    folder = resolve_model(model)
    check_tokenizer(folder, model)
    parameters = sum(p.numel() for p in load_encoder(folder).parameters())
    return f"{model}: {parameters / 1e6:.1f} M parameters"


def _ray() -> str:
    with ray_session(Workers()) as executor:
        total, resources = check_ray(), executor.resources
        return (
            f"started and ran a task; {total.get('CPU', 0):.0f} CPUs, {total.get('GPU', 0):.0f} GPUs, "
            f"{resources.num_workers} worker of {resources.threads} threads"
        )
