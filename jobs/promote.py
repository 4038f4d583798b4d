"""`bertray promote` for `ray job submit --working-dir . -- python jobs/promote.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["promote", *sys.argv[1:]])
