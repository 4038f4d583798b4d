"""`bertray benchmark`: the whole job beside what people use instead, in turn, in one run → JSON and a table."""

from __future__ import annotations

import logging
import time

from bertray.benchmark import measure
from bertray.commands.demo import REVIEWS
from bertray.config import BenchmarkConfig
from bertray.console import say, table
from bertray.paths import local_path
from bertray.runs.benchmark_run import FIGURES, benchmark
from bertray.wording import duration

log = logging.getLogger(__name__)


def run_benchmark(config: BenchmarkConfig) -> int:
    """Measure, and print the table and its sentences."""
    started = time.monotonic()
    content = benchmark(config, config.input or [str(path) for path in sorted(REVIEWS.glob("**/*.jsonl"))])
    table(measure.title(content), measure.columns(content), measure.table_rows(content))
    for sentence in measure.sentences(content):
        say(sentence)
    say(f"figures  {local_path(config.output) / FIGURES}")
    log.info("measured in %s", duration(time.monotonic() - started))
    return 0
