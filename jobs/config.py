"""`bertray config` as a Ray job: `ray job submit --working-dir . -- python jobs/config.py show train ...`."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["config", *sys.argv[1:]])
