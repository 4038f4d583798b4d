"""`bertray registry` for `ray job submit --working-dir . -- python jobs/registry.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["registry", *sys.argv[1:]])
