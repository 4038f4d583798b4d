"""`bertray rollback` for `ray job submit --working-dir . -- python jobs/rollback.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["rollback", *sys.argv[1:]])
