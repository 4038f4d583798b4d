"""`python -m bertray.benchmark.check [device=cuda] [output=check.json] [sections=a,b] [seconds=480]`.

For a machine that has torch, transformers, pyarrow, numpy, scipy and scikit-learn and is lent for minutes: each section
stands by itself, the most important come first, and one that would begin after `seconds` is left out. The exit code is
1 when a number is out of its bound or a section fails. `device=cpu` runs everything small, with a reference
implementation of the GPU's attention.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

KEYS = {"device": "cuda", "output": "", "sections": "", "seconds": "480"}


def main(argv: list[str]) -> int:
    """Run the sections, print and write what they found."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from bertray.benchmark.check import correctness, speed
    from bertray.benchmark.check.cases import Device
    from bertray.benchmark.check.reference import register_reference_flash

    sections = {
        section.__name__: section
        for section in (
            *(correctness.environment, correctness.heads, correctness.logits, correctness.varlen, correctness.training),
            *(speed.host_copies, speed.engine, speed.waits, speed.kernels),
            *(correctness.varlen_training, speed.training_loop, speed.fused),
            *(correctness.out_of_memory, correctness.ranks),
        )
    }
    given = dict(word.partition("=")[::2] for word in argv[1:])
    if unknown := given.keys() - KEYS:
        sys.exit(f"no such key: {', '.join(sorted(unknown))}; there are {', '.join(KEYS)}")
    keys = KEYS | given
    chosen = keys["sections"].split(",") if keys["sections"] else list(sections)
    if unknown := set(chosen) - sections.keys():
        sys.exit(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as root:
        device = Device(keys["device"], Path(root))
        library = None if device.is_gpu else register_reference_flash()
        for name in chosen:
            if time.monotonic() - device.started > float(keys["seconds"]):
                results[name] = {"left out": "no time"}
                continue
            try:
                results[name] = sections[name](device)
            except Exception as error:
                traceback.print_exc(limit=-6)
                results[name] = {"ok": False, "failed": f"{type(error).__name__}: {error}"}
            print(f"[{time.monotonic() - device.started:5.0f} s] {name}: {json.dumps(results[name])}", flush=True)
            if keys["output"]:
                Path(keys["output"]).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        del library
    bad = [name for name, found in results.items() if isinstance(found, dict) and found.get("ok") is False]
    print(f"out of bounds or failed: {', '.join(bad)}" if bad else "all within bounds")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
