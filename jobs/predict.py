"""`bertray predict` for `ray job submit --working-dir . -- python jobs/predict.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
