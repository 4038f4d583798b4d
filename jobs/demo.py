"""`bertray demo` for `ray job submit --working-dir . -- python jobs/demo.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
