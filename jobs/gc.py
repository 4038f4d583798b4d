"""`bertray gc` for `ray job submit --working-dir . -- python jobs/gc.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["gc", *sys.argv[1:]])
