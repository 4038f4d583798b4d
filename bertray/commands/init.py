"""`bertray init DATA`: inspect data and write a commented config that works on it."""

from __future__ import annotations

import posixpath

from bertray.autoconfig import inspect_data, render_config
from bertray.config import InitConfig
from bertray.console import say
from bertray.errors import ConflictError
from bertray.io.store import open_store


def run_init(config: InitConfig) -> int:
    """Print the config, or write it to a file that is not there yet."""
    data = inspect_data(config.data, config.reader)
    verb = config.verb or ("train" if data.label_counts else "score")
    proposal = None
    if verb == "train":
        from bertray.runs.fit.proposal import propose  # torch: not for a path that is wrong, or a config to score

        proposal = propose(data)
    text = render_config(data, verb, config.output or f"{verb}.yaml", proposal)
    if config.output is None:
        print(text, end="")
        return 0
    folder, name = posixpath.split(config.output)
    store = open_store(folder or ".")
    if not store.put_new(name, text.encode()) and store.get(name) != text.encode():
        raise ConflictError(
            f"{config.output}: a file is there, and holds something else.", "Choose another `output`, or remove it."
        )
    say(f"config   {store.uri(name)}")
    return 0
