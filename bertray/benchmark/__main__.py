"""`python -m bertray.benchmark reviews.parquet [key=value ...]`: the engine beside its rivals, without Ray.

For a machine that has torch and transformers but no Ray, such as one with a GPU that is lent for an hour. Keys: model,
max_length, rows, few_rows, device, rounds, beside, training, output; model=untrained-bert-base has random weights;
beside=pipeline,padded,openvino,int8 names the rivals, the last two on CPU. `bertray benchmark` measures the whole job
as well.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from bertray.benchmark import measure


def main(argv: list[str]) -> None:
    """Measure, print a table, and write the figures where `output=` says."""
    keys = {"model": "bundled", "max_length": "128", "rows": "2048", "few_rows": "256", "device": "cpu", "rounds": "3"}
    keys |= {"beside": "pipeline,padded", "training": "false", "output": "benchmark.json"}
    given = dict(word.split("=", 1) for word in argv[1:])
    if unknown := given.keys() - keys:
        sys.exit(f"no such key: {', '.join(sorted(unknown))}; there are {', '.join(keys)}")
    keys |= given
    beside = keys["beside"].split(",")
    if unknown := set(beside) - {"pipeline", "padded", "openvino", "int8"}:
        sys.exit(f"beside: no such way: {', '.join(sorted(unknown))}; there are pipeline, padded, openvino, int8")
    texts = pq.read_table(argv[0], columns=["text"])["text"].unique()
    order = np.random.default_rng(0).permutation(len(texts))[: int(keys["rows"])]
    with tempfile.TemporaryDirectory() as folder:
        trial = measure.open_trial(
            Path(folder),
            keys["model"],
            texts.take(order),
            max_length=int(keys["max_length"]),
            few_rows=int(keys["few_rows"]),
            device=keys["device"],
            environment=os.environ,
            seed=0,
        )
        names = ["engine", *beside, *(measure.TRAINING if keys["training"] == "true" else ())]
        rounds = int(keys["rounds"])
        measured = measure.in_turn(trial, dict.fromkeys(names), rounds, lambda name: print(name, file=sys.stderr))
        content = measure.to_json(trial, keys["model"], rounds, measured, None)
    Path(keys["output"]).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    rows = [measure.columns(content), *measure.table_rows(content)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(measure.title(content))
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(*measure.sentences(content), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
