"""`python -m bertray.benchmark [reviews.parquet] [key=value ...]`: the engine beside its rivals, without Ray.

For a machine that has torch, transformers, pyarrow and numpy but no Ray, such as one with a GPU that is lent for an
hour; `bertray benchmark device=cuda` is this command there. Keys: input, model, max_length, rows, rival_rows, device,
rounds, beside, training, output. Without reviews texts, vocabulary and weights are made up, in the sizes of MiniLM and
bert-base: `model=untrained-minilm`, `model=untrained-bert-base`, by default both. The rivals are named as in
`beside=pipeline,padded,openvino,openvino_int8,onnx_int8,int8`, the last four on CPU. With Ray `bertray benchmark`
measures the whole job, too.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray.benchmark import made_up, measure

KEYS = {
    "input": "",
    "model": "",
    "max_length": "128",
    "rows": "2048",
    "rival_rows": "256",
    "device": "cpu",
    "rounds": "3",
    "beside": "pipeline,padded",
    "training": "false",
    "output": "benchmark.json",
}
RIVALS = frozenset({"pipeline", "padded", "openvino", "openvino_int8", "onnx_int8", "int8"})


def main(argv: list[str]) -> None:
    """Measure, print a table of each model, and write the figures where `output=` says."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    words = [word if "=" in word else f"input={word}" for word in argv]
    given = dict(word.split("=", 1) for word in words)
    if unknown := given.keys() - KEYS:
        sys.exit(f"no such key: {', '.join(sorted(unknown))}; there are {', '.join(KEYS)}")
    keys = KEYS | given
    beside = keys["beside"].strip("[]").replace(" ", "").split(",")
    if unknown := set(beside) - RIVALS:
        sys.exit(f"beside: no such way: {', '.join(sorted(unknown))}; there are {', '.join(sorted(RIVALS))}")
    models = keys["model"].strip("[]").replace(" ", "").split(",") if keys["model"] else list(made_up.SIZES)
    if not keys["input"] and (unknown := set(models) - made_up.SIZES.keys()):
        sys.exit(f"model={','.join(sorted(unknown))}: give reviews too, or one of {', '.join(made_up.SIZES)}")
    if keys["input"] and not keys["model"]:
        models = ["bundled"]
    for model in models:
        output = Path(keys["output"])
        if len(models) > 1:
            output = output.with_name(f"{output.stem}-{model}{output.suffix}")
        content = _measured(model, keys, beside)
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        _show(content)


def _measured(model: str, keys: dict[str, str], beside: list[str]) -> dict[str, Any]:
    """Figures of one model."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        tokenizer = None if keys["input"] else made_up.write_tokenizer(folder / "tokenizer")
        trial = measure.open_trial(
            folder,
            model,
            _texts(keys),
            max_length=int(keys["max_length"]),
            few_rows=int(keys["rival_rows"]),
            device=keys["device"],
            environment=os.environ,
            seed=0,
            tokenizer=tokenizer,
        )
        names = ["engine", *beside, *(measure.TRAINING if keys["training"] == "true" else ())]
        rounds = int(keys["rounds"])
        measured = measure.in_turn(trial, dict.fromkeys(names), rounds, lambda name: print(name, file=sys.stderr))
        return measure.to_json(trial, model, rounds, measured, None)


def _texts(keys: dict[str, str]) -> pa.Array:
    rows = int(keys["rows"])
    if not keys["input"]:
        return made_up.reviews(rows, int(keys["max_length"]))
    texts = pq.read_table(keys["input"], columns=["text"])["text"].unique()
    return texts.take(np.random.default_rng(0).permutation(len(texts))[:rows])


def _show(content: dict[str, Any]) -> None:
    rows = [measure.columns(content), *measure.table_rows(content)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(measure.title(content))
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(*measure.sentences(content), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
