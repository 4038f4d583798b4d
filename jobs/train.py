"""`bertray train` as a Ray job: `ray job submit --working-dir . -- python jobs/train.py ...`, with the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
