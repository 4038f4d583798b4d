"""`bertray plan`."""

from bertray.runs.forecast import run_plan as run_plan
