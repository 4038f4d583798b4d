"""`bertray train` for `ray job submit --working-dir . -- python jobs/train.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
