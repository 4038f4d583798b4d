"""`bertray files` for `ray job submit --working-dir . -- python jobs/files.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["files", *sys.argv[1:]])
