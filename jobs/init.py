"""`bertray init` for `ray job submit --working-dir . -- python jobs/init.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["init", *sys.argv[1:]])
