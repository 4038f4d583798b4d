"""`bertray embed`."""

from bertray.runs.embedding import run_embed as run_embed
