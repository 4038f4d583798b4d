"""`bertray evaluate` for `ray job submit --working-dir . -- python jobs/evaluate.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
