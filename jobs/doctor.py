"""`bertray doctor` for `ray job submit --working-dir . -- python jobs/doctor.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
