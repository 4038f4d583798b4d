"""`bertray benchmark` for `ray job submit --working-dir . -- python jobs/benchmark.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
