"""`bertray fetch MODEL`: a model with its tokenizer into a folder that another machine can use without network."""

from __future__ import annotations

from bertray.config import FetchConfig
from bertray.console import say
from bertray.runs.fetched import fetch_model
from bertray.wording import counted


def run_fetch(config: FetchConfig) -> int:
    """Fetch, and print where the model is and how to use it."""
    result = fetch_model(config)
    there = (
        "already there" if result.already_done else f"{counted(result.num_files, 'file')}, {result.size / 1e6:,.1f} MB"
    )
    say(f"model    {result.output} ({there}); copy the folder, and name it as model=FOLDER")
    return 0
