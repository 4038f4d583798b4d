"""`bertray audit` for `ray job submit --working-dir . -- python jobs/audit.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["audit", *sys.argv[1:]])
