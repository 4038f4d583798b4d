"""`bertray audit`."""

from bertray.runs.data_audit import run_audit as run_audit
