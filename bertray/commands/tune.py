"""`bertray tune`."""

from bertray.runs.tuning import run_tune as run_tune
