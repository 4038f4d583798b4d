"""`make recipes`: every recipe on real data, and the table of docs/recipes.md made of what came out.

Each run is a command that a user could type, in a process of its own. Runs that are done are not done again: the
folder of a run carries a digest of its command and configs, not of the code: remove `recipes-run` to begin anew. The
samples that stand in for a whole data set are drawn once, by a fixed seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from tests.recipe import Recipe, Result, Rows, Run
from tests.recipes_labelled import LABELLED
from tests.recipes_unlabelled import UNLABELLED

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- made by `make recipes`: begin -->\n", "<!-- made by `make recipes`: end -->\n"
RECIPES = (*LABELLED, *UNLABELLED)


# --- running ---------------------------------------------------------------------------------------------------------


class Kitchen:
    """Runs commands in a folder that remembers what is done."""

    def __init__(self, data: Path, folder: Path) -> None:
        self._data, self._folder = data, folder
        self._times = folder / "minutes.json"
        self._outputs: dict[str, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def cook(self, run: Run) -> Result:
        """Do a run, or find it done."""
        words = [with_outputs(word, self._outputs) for word in run.words]
        words += data_words(run, self._file)
        digest = hashlib.sha256(json.dumps([run.verb, words, self._config_texts(words)]).encode()).hexdigest()[:8]
        output = self._outputs[run.name] = self._folder / f"{run.name}-{digest}"
        minutes = self._minutes()
        if output.name not in minutes:
            started = time.monotonic()
            self._bertray(run.verb, *words, f"output={output}")
            minutes[output.name] = (time.monotonic() - started) / 60
            self._times.write_text(json.dumps(minutes, indent=1) + "\n", encoding="utf-8")
        metrics_file = output / "metrics.json"
        metrics = json.loads(metrics_file.read_text(encoding="utf-8")) if metrics_file.is_file() else {}
        return Result(run, output, minutes[output.name], self._train_rows(run), metrics)

    def _bertray(self, *words: str) -> None:
        print(f"\n$ bertray {' '.join(words)}", flush=True)
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, "-m", "bertray.cli", *words], cwd=ROOT, env=environment)
        if done.returncode:
            sys.exit(f"recipes: the command above ended with {done.returncode}; the same `make recipes` goes on here")

    def _minutes(self) -> dict[str, float]:
        if not self._times.is_file():
            return {}
        found: dict[str, float] = json.loads(self._times.read_text(encoding="utf-8"))
        return found

    def _config_texts(self, words: Sequence[str]) -> list[Any]:
        """What the config files say, comments apart: a changed one is another run."""
        files = [ROOT / word for before, word in pairwise(words) if before == "-c"]
        return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in files]

    def _file(self, wanted: Rows) -> Path:
        source = self._data / wanted.path
        if not wanted.rows:
            return source
        target = self._folder / "samples" / f"{Path(wanted.path).with_suffix('')}-{wanted.rows}.parquet"
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            table = pq.read_table(source)
            chosen = np.sort(np.random.default_rng(0).permutation(table.num_rows)[: wanted.rows])
            pq.write_table(table.take(chosen), target.with_suffix(".partial"))
            target.with_suffix(".partial").rename(target)
        return target

    def _train_rows(self, run: Run) -> int:
        rows = run.learned or run.data.get("data.train") or run.data["input"]
        files = rows if isinstance(rows, tuple) else (rows,)
        return sum(int(pq.read_metadata(self._file(one)).num_rows) for one in files)


def data_words(run: Run, path: Callable[[Rows], object]) -> list[str]:
    """`key=file` for what a run reads, `key=[file, file]` where that is several."""
    words = []
    for key, rows in run.data.items():
        files = [str(path(one)) for one in (rows if isinstance(rows, tuple) else (rows,))]
        words.append(f"{key}={files[0] if len(files) == 1 else '[' + ', '.join(files) + ']'}")
    return words


def with_outputs(word: str, outputs: Mapping[str, object]) -> str:
    """`{name}` becomes the output of the run of that name; other braces are YAML's."""
    for name, output in outputs.items():
        word = word.replace(f"{{{name}}}", str(output))
    return word


# --- telling ---------------------------------------------------------------------------------------------------------


def table(recipes: Sequence[tuple[Recipe, list[Result]]]) -> str:
    """The tables of the page, one a recipe."""
    parts = []
    for recipe, results in recipes:
        lines = [f"### {recipe.title}\n"]
        given = [rows for result in results for rows in result.run.data.values()]
        files = [one for rows in given for one in (rows if isinstance(rows, tuple) else (rows,))]
        names = sorted({one.path.partition("/")[0] for one in files})
        lines += [f"Data: {', '.join(f'`{name}`' for name in names)}. Model: {recipe.model}.\n"]
        if told := [_line(result) for result in results if result.run.metric]:
            lines += [
                "| settings | rows given | tested on | metric | value [95 %] | TF-IDF | published | minutes |",
                "|---|---|---|---|---|---|---|---|",
                *told,
            ]
        if recipe.remark is not None:
            lines += ["", recipe.remark(results)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(result: Result) -> str:
    metric = result.run.metric
    score = result.value(metric)
    baselines = result.metrics.get("baselines") or {}
    tfidf = f"{result.value(metric, 'tfidf_logreg')['value']:.3f}" if "tfidf_logreg" in baselines else ""
    cells = [
        result.run.settings or "as the config says",
        f"{result.train_rows:,}",
        f"{result.metrics['rows']:,}",
        metric.replace("_", " "),
        f"**{score['value']:.3f}** [{score['low']:.3f}, {score['high']:.3f}]",
        tfidf,
        result.run.published,
        f"{result.minutes:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def write_page(text: str, seconds: float) -> None:
    """Put the tables between the markers of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    print(f"\n{PAGE.relative_to(ROOT)} written; this call took {seconds / 60:.0f} minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with imdb/, cola/, emotion/ and so on")
    parser.add_argument("--folder", type=Path, default=ROOT / "recipes-run", help="what is done lies here")
    parser.add_argument("--only", default="", help="recipes whose title holds this, and no page")
    wanted = parser.parse_args()
    if not wanted.data.is_dir():
        sys.exit(f"recipes: no folder {wanted.data}; give the one that holds imdb/, cola/, emotion/")
    started = time.monotonic()
    kitchen = Kitchen(wanted.data.resolve(), wanted.folder.resolve())
    chosen = [recipe for recipe in RECIPES if wanted.only.lower() in recipe.title.lower()]
    text = table([(recipe, [kitchen.cook(run) for run in recipe.runs]) for recipe in chosen])
    print(f"\n{text}")
    if not wanted.only:
        write_page(text, time.monotonic() - started)


if __name__ == "__main__":
    main()
