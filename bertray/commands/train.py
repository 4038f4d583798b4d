"""`bertray train`."""

from bertray.runs.training import run_train as run_train
