"""`bertray doctor` as a Ray job: `ray job submit --working-dir . -- python jobs/doctor.py ...`, with the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
