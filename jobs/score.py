"""`bertray score` for `ray job submit --working-dir . -- python jobs/score.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
