"""`bertray shares` for `ray job submit --working-dir . -- python jobs/shares.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["shares", *sys.argv[1:]])
