"""`bertray gc`: files that an output no longer needs; removed with `delete=true`."""

from __future__ import annotations

from bertray.config import GcConfig
from bertray.console import say, table
from bertray.runs.stored import collect_garbage
from bertray.wording import counted


def run_gc(config: GcConfig) -> int:
    """Print numbers and sizes, and whether the files are gone."""
    result = collect_garbage(config)
    if not result.files:
        say(f"nothing to remove ({result.output})")
        return 0
    rows = [[why, f"{count:,}", f"{size / 1e6:,.1f}"] for why, (count, size) in result.files.items()]
    table("no longer needed", ["", "files", "MB"], rows)
    if result.removed:
        say(f"{counted(result.num_files, 'file')} removed")
    else:
        say("nothing was removed; `delete=true` removes them")
    return 0
