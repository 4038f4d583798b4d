"""`bertray files`: the committed part files of an output, for readers that want exactly what was committed."""

from __future__ import annotations

from bertray.config import FilesConfig
from bertray.runs.stored import list_files


def run_files(config: FilesConfig) -> int:
    """Print one path or URI a line, in the order of slots, runs and parts."""
    for path in list_files(config):
        print(path)  # as it is, for machines
    return 0
