"""`bertray init DATA`: look at data and print a commented config that works on it."""

from __future__ import annotations

from bertray.config import InitConfig
from bertray.reviews.sniff import look, render_config


def run_init(config: InitConfig) -> int:
    print(render_config(look(config.data, config.reader)), end="")
    return 0
