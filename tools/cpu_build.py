"""Arguments for pip that make it take PyTorch's CPU build, where this machine has no NVIDIA driver: 0.2 GB, not 3.5.

PyTorch keeps that build in an index of its own. Whether it can be reached is asked once, for two seconds at most; where
it cannot, nothing is printed and pip installs what its own index has. Standard library alone.
"""

from __future__ import annotations

import os
import shutil
import threading
import urllib.request
from pathlib import Path

INDEX = "https://download.pytorch.org/whl/cpu"
LIMIT_S = 2.0
_DRIVER = Path("/proc/driver/nvidia/version")


def has_nvidia_driver() -> bool:
    """Whether programs here can use an NVIDIA GPU."""
    return _DRIVER.exists() or shutil.which("nvidia-smi") is not None


def is_reachable(index: str, limit_s: float = LIMIT_S) -> bool:
    """Whether an index has torch; False after `limit_s`, whatever name lookup or server is waited for."""
    found: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{index}/torch/", timeout=limit_s) as reply:  # noqa: S310 - an address of ours
                found.append(reply.status == 200)
        except (OSError, ValueError):
            found.append(False)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(limit_s)
    return bool(found and found[0])


def arguments(index: str = INDEX) -> list[str]:
    """Arguments for `pip install`; none where the build with CUDA is right, or the only one at hand."""
    return ["--extra-index-url", index] if not has_nvidia_driver() and is_reachable(index) else []


if __name__ == "__main__":
    print(*arguments(os.environ.get("PYTORCH_CPU_INDEX") or INDEX))
