"""`bertray fetch` for `ray job submit --working-dir . -- python jobs/fetch.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["fetch", *sys.argv[1:]])
