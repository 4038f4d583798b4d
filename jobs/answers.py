"""`bertray answers` for `ray job submit --working-dir . -- python jobs/answers.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["answers", *sys.argv[1:]])
