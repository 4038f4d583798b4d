"""`bertray evaluate`."""

from bertray.runs.model_evaluation import run_evaluate as run_evaluate
