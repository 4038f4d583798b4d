"""`bertray pretrain`."""

from bertray.runs.pretraining import run_pretrain as run_pretrain
