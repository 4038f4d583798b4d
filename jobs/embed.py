"""`bertray embed` for `ray job submit --working-dir . -- python jobs/embed.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
