"""The `bertray` command: the command line, and on a machine without its packages `benchmark` alone."""

from __future__ import annotations

import sys

MEASURES = "benchmark"  # the verb that needs torch, transformers, pyarrow and numpy alone
COMMAND_LINE_PACKAGES = ("pydantic", "rich", "ruamel", "typer")


def main() -> None:
    """Run one command and leave the process with its exit code."""
    try:
        from bertray.cli import main as run
    except ModuleNotFoundError as error:
        if sys.argv[1:2] != [MEASURES] or (error.name or "").partition(".")[0] not in COMMAND_LINE_PACKAGES:
            raise
        from bertray.benchmark.__main__ import main as measure

        print(f"{error.name} is not installed: the engine is measured, without Ray", file=sys.stderr)
        measure(sys.argv[2:])
    else:
        run()


if __name__ == "__main__":
    main()
