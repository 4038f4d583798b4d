"""`bertray pretrain` for `ray job submit --working-dir . -- python jobs/pretrain.py ...`: the same arguments."""

import sys

from bertray.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
