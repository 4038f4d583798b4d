"""`bertray compare` for `ray job submit --working-dir . -- python jobs/compare.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
