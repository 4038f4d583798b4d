"""Configs of tests: smallest keys, and files with some text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertray.config import load_config as load_section

TRAIN = ["data.train=a.parquet", "output=run"]
SCORE = ["input=in", "output=out"]


def load_config(verb: str, *sources: Any) -> Any:
    """The config with the keys of its verb, whatever class that is."""
    return load_section(verb, *sources)


def file(tmp_path: Path, text: str, name: str = "a.yaml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)
