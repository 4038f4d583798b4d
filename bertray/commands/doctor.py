"""`bertray doctor`: checks of this machine, one line per check, with the remedy."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from bertray.config import DoctorConfig, Workers
from bertray.console import say
from bertray.errors import BertrayError, ConfigError, InfrastructureError
from bertray.execution.session import check_ray, ray_session
from bertray.io.store import open_store
from bertray.model.bundle import resolve_model
from bertray.model.pretrained import check_tokenizer, load_encoder
from bertray.outputs.claims import probe_put_if_absent
from bertray.paths import is_uri

PACKAGES = ("ray", "torch", "transformers", "pyarrow", "pandas", "scikit-learn")
MIN_SHARED_MEMORY = 256 << 20
MIN_FREE_DISK = 2 << 30


def run_doctor(config: DoctorConfig) -> int:
    """Run every check, also after a failed one.

    Returns:
        0 when all checks pass, else the exit code of the first that fails.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", _versions),
        ("processor", _processor),
        ("shared memory", _shared_memory),
        ("storage", lambda: _storage(config.output)),
        ("model", lambda: _model(config.model)),
        ("ray", _ray),
    ]
    codes = [_check(name, check) for name, check in checks]
    failed = [code for code in codes if code]
    say(f"{len(codes) - len(failed)} of {len(codes)} checks passed")
    return failed[0] if failed else 0


def _check(name: str, check: Callable[[], str]) -> int:
    started = time.monotonic()
    try:
        found = check()
    except BertrayError as error:
        say(f"FAIL  {name:14} {error.message} {error.remedy}")
        return error.exit_code
    except Exception as error:  # whatever a check meets is its finding; the next checks still run
        say(f"FAIL  {name:14} {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return InfrastructureError.exit_code
    say(f"ok    {name:14} {found} ({time.monotonic() - started:.1f} s)")
    return 0


def _versions() -> str:
    if sys.version_info < (3, 11):
        raise ConfigError(f"Python {platform.python_version()}: expected 3.11 or later.", "Use a newer Python.")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)])


def _processor() -> str:
    import torch

    from bertray.model.engine import choose_dtype
    from bertray.model.kernels import kernels

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    precision = "bf16" if choose_dtype("auto", torch.device("cpu")) == torch.bfloat16 else "fp32"
    precision += f" with {'bertray' if precision == 'bf16' and kernels() is not None else 'PyTorch'}'s kernels"
    found = f"{os.cpu_count()} CPUs ({torch.backends.cpu.get_cpu_capability()}, scoring in {precision})"
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
