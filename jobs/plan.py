"""`bertray plan` for `ray job submit --working-dir . -- python jobs/plan.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
