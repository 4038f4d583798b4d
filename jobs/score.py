"""`bertray score` as a Ray job: `ray job submit --working-dir . -- python jobs/score.py ...`, with the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
