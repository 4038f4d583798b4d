"""`bertray init` as a Ray job: `ray job submit --working-dir . -- python jobs/init.py ...`, with the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["init", *sys.argv[1:]])
