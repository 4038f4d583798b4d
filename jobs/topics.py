"""`bertray topics` for `ray job submit --working-dir . -- python jobs/topics.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["topics", *sys.argv[1:]])
