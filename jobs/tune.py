"""`bertray tune` for `ray job submit --working-dir . -- python jobs/tune.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
