"""`make recipes`: every recipe on real data, and the tables of docs/recipes.md made of what came out.

Each run is a command that a user could type, in a process of its own. Nothing that is done is done again: the page
remembers what each recipe came to, and `recipes-run` each command, by a digest of commands and configs, not of the
code; `--again` forgets what it is asked for. A recipe that fails does not stop the others. The samples that stand in
for a whole data set are drawn once, by a fixed seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from bertray.benchmark.measure import processor
from tests.recipes.labelled import LABELLED
from tests.recipes.recipe import Recipe, Result, Rows, Run
from tests.recipes.unlabelled import UNLABELLED

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- made by `make recipes`: begin -->\n", "<!-- made by `make recipes`: end -->\n"
BLOCK = re.compile(r"^<!-- recipe ([0-9a-f]{8}) -->\n", re.MULTILINE)
RECIPES = (*LABELLED, *UNLABELLED)
RUNS = {run.name: run for recipe in RECIPES for run in recipe.runs}


# --- running ---------------------------------------------------------------------------------------------------------


class Spoilt(Exception):
    """A command of a recipe failed."""


class Kitchen:
    """Runs commands in a folder that remembers what is done."""

    def __init__(self, data: Path, folder: Path) -> None:
        self._data, self._folder = data, folder
        self._times = folder / "minutes.json"
        folder.mkdir(parents=True, exist_ok=True)

    def cook(self, run: Run) -> Result:
        """Do a run, and first those whose output it reads; or find it done.

        Raises:
            Spoilt: the command failed.
        """
        for name in (name for word in run.words for name in needed(word)):
            self.cook(RUNS[name])
        words, output = self._command(run)
        minutes = self._minutes()
        for rows in run.samples:
            self._draw(rows)
        if output.name not in minutes:
            started = time.monotonic()
            self._bertray(run.verb, *words, f"output={output}")
            minutes[output.name] = (time.monotonic() - started) / 60
            self._times.write_text(json.dumps(minutes, indent=1) + "\n", encoding="utf-8")
        metrics_file = output / "metrics.json"
        metrics = json.loads(metrics_file.read_text(encoding="utf-8")) if metrics_file.is_file() else {}
        return Result(run, output, minutes[output.name], self._train_rows(run), metrics)

    def has(self, run: Run) -> bool:
        """Whether a run is done here."""
        return self._command(run)[1].name in self._minutes()

    def forget(self, run: Run) -> None:
        """Do a run again when it is asked for."""
        output = self._command(run)[1]
        minutes = self._minutes()
        minutes.pop(output.name, None)
        self._times.write_text(json.dumps(minutes, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(output, ignore_errors=True)

    def _command(self, run: Run) -> tuple[list[str], Path]:
        """Its words but for the output, and the output."""
        words = [with_outputs(word, lambda name: self._command(RUNS[name])[1]) for word in run.words]
        words += data_words(run, self._file)
        return words, self._folder / f"{run.name}-{digest_of([run.verb, words, config_texts(words)])}"

    def _bertray(self, *words: str) -> None:
        print(f"\n$ bertray {' '.join(words)}", flush=True)
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, "-m", "bertray.cli", *words], cwd=ROOT, env=environment)
        if done.returncode:
            raise Spoilt(f"bertray {words[0]} ended with {done.returncode}")

    def _minutes(self) -> dict[str, float]:
        if not self._times.is_file():
            return {}
        found: dict[str, float] = json.loads(self._times.read_text(encoding="utf-8"))
        return found

    def _file(self, wanted: Rows) -> Path:
        if wanted == Rows(wanted.path):
            return self._data / wanted.path
        return self._folder / "samples" / f"{wanted.name}.parquet"

    def _draw(self, wanted: Rows) -> None:
        """Write a sample, unless it is there."""
        target = self._file(wanted)
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(sampled(pq.read_table(self._data / wanted.path), wanted), target.with_suffix(".partial"))
            target.with_suffix(".partial").rename(target)

    def _train_rows(self, run: Run) -> int:
        rows = run.learned or run.data.get("data.train") or run.data["input"]
        files = rows if isinstance(rows, tuple) else (rows,)
        return sum(int(pq.read_metadata(self._file(one)).num_rows) for one in files)


def sampled(table: pa.Table, wanted: Rows) -> pa.Table:
    """Random rows, in their order, of what is made of a table."""
    table = wanted.made(table) if wanted.made else table
    first, last = wanted.after, wanted.after + wanted.rows if wanted.rows else table.num_rows
    return table.take(np.sort(np.random.default_rng(0).permutation(table.num_rows)[first:last]))


def data_words(run: Run, path: Callable[[Rows], object]) -> list[str]:
    """`key=file` for what a run reads, `key=[file, file]` where that is several."""
    words = []
    for key, rows in run.data.items():
        files = [str(path(one)) for one in (rows if isinstance(rows, tuple) else (rows,))]
        words.append(f"{key}={files[0] if len(files) == 1 else '[' + ', '.join(files) + ']'}")
    return words


def with_outputs(word: str, output_of: Callable[[str], object]) -> str:
    """`{name}` becomes the output of the run of that name; other braces are YAML's."""
    for name in needed(word):
        word = word.replace(f"{{{name}}}", str(output_of(name)))
    return word


def needed(word: str) -> list[str]:
    """Names of the runs whose output a word speaks of."""
    return [name for name in RUNS if f"{{{name}}}" in word]


def config_texts(words: Sequence[str]) -> list[Any]:
    """What the config files say, comments apart: a changed one is another run."""
    files = [ROOT / word for before, word in pairwise(words) if before == "-c"]
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in files if path.is_file()]


def digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:8]  # str: of a date in a config


def digest_of_runs(runs: Sequence[Run]) -> str:
    """The same on every machine for the same commands and configs, those of needed runs included."""
    asked = []
    for run in runs:
        before = [RUNS[name] for word in run.words for name in needed(word)]
        data = data_words(run, sample_name)
        asked.append([run.verb, run.words, data, config_texts(run.words), digest_of_runs(before) if before else ""])
    return digest_of(asked)


def sample_name(rows: Rows) -> str:
    """What a sample is, in a digest; that of a plain one is what the page already has."""
    return f"{rows.path}:{rows.rows}" if rows == Rows(rows.path, rows.rows) else rows.name


# --- telling ---------------------------------------------------------------------------------------------------------


def told(recipe: Recipe, results: Sequence[Result]) -> str:
    """What a recipe came to, in Markdown."""
    lines = [f"### {recipe.title}\n"]
    names = sorted({rows.path.partition("/")[0] for result in results for rows in result.run.samples})
    lines += [f"Data: {', '.join(f'`{name}`' for name in names)}. Model: {recipe.model}.\n"]
    if rows := [_line(result) for result in results if result.run.metric]:
        lines += [
            "| settings | rows given | tested on | metric | value [95 %] | TF-IDF | published | minutes |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    if recipe.remark is not None:
        lines += [recipe.remark(list(results)), ""]
    minutes = sum(result.minutes for result in results)
    machine = f"{processor()}, {os.cpu_count()} cores"
    done = datetime.fromtimestamp(max(result.output.stat().st_mtime for result in results), UTC)
    lines += [f"*{minutes:.1f} minutes in all on {done:%Y-%m-%d}; {machine}.*"]
    return "\n".join(lines) + "\n"


def _line(result: Result) -> str:
    metric = result.run.metric
    score = result.value(metric)
    baselines = result.metrics.get("baselines") or {}
    tfidf = f"{result.value(metric, 'tfidf_logreg')['value']:.3f}" if "tfidf_logreg" in baselines else ""
    cells = [
        result.run.told_settings,
        f"{result.train_rows:,}",
        f"{result.metrics['rows']:,}",
        {"mcc": "MCC", "macro_f1": "macro F1"}.get(metric, metric),
        f"**{score['value']:.3f}** [{score['low']:.3f}, {score['high']:.3f}]",
        tfidf,
        result.run.published,
        f"{result.minutes:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


class Page:
    """docs/recipes.md: between its markers a block for each recipe, with the digest of its runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before, rest = path.read_text(encoding="utf-8").split(BEGIN)
        body, self._after = rest.split(END)
        _, *found = BLOCK.split(body)
        self._blocks = dict(zip(found[::2], (text.strip() + "\n" for text in found[1::2]), strict=True))

    def knows(self, recipe: Recipe) -> bool:
        """Whether it says what these very runs came to."""
        return digest_of_runs(recipe.runs) in self._blocks

    def drop(self, recipe: Recipe) -> None:
        """Take the block of a recipe out, if there is one."""
        if self._blocks.pop(digest_of_runs(recipe.runs), None) is not None:
            self._write()

    def put(self, recipe: Recipe, text: str) -> None:
        """Write a block; those of runs that nobody asks for any more go."""
        self._blocks[digest_of_runs(recipe.runs)] = text
        self._write()

    def _write(self) -> None:
        digests = [digest for recipe in RECIPES if (digest := digest_of_runs(recipe.runs)) in self._blocks]
        body = "\n".join(f"<!-- recipe {digest} -->\n{self._blocks[digest]}" for digest in digests)
        self._path.write_text(f"{self._before}{BEGIN}\n{body}\n{END}{self._after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with imdb/, cola/, emotion/ and so on")
    parser.add_argument("--folder", type=Path, default=ROOT / "recipes-run", help="what is done lies here")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="WORDS",
        help="recipes whose title holds one of these",
    )
    parser.add_argument("--again", action="store_true", help="do them again, whatever is done")
    wanted = parser.parse_args()
    if not wanted.data.is_dir():
        sys.exit(f"recipes: no folder {wanted.data}; give the one that holds imdb/, cola/, emotion/")
    kitchen, page = Kitchen(wanted.data.resolve(), wanted.folder.resolve()), Page(PAGE)
    chosen = []
    for words in wanted.only:
        found = [recipe for recipe in RECIPES if words.lower() in recipe.title.lower()]
        if not found:
            sys.exit(f"recipes: no title holds {words!r}; they are: {'; '.join(recipe.title for recipe in RECIPES)}")
        chosen += [recipe for recipe in found if recipe not in chosen]
    if wanted.again:
        for recipe in chosen:
            page.drop(recipe)
            for run in recipe.runs:
                kitchen.forget(run)
    failures = [failure for recipe in chosen for failure in make(recipe, kitchen, page)]
    if failures:
        sys.exit("recipes: " + "; ".join(failures) + "; the same command goes on here")


def make(recipe: Recipe, kitchen: Kitchen, page: Page) -> list[str]:
    """Do a recipe, or find it done, and tell it on the page; returns what went wrong."""
    done_here = all(kitchen.has(run) for run in recipe.runs)  # telling it again costs nothing
    if page.knows(recipe) and not done_here:
        print(f"recipes: {PAGE.name} has {recipe.title!r}; `--again` does it again", flush=True)
        return []
    try:
        results = [kitchen.cook(run) for run in recipe.runs]
    except Spoilt as error:
        return [f"{recipe.title}: {error}"]
    text = told(recipe, results)
    page.put(recipe, text)
    print(f"\n{text}", flush=True)
    floors = recipe.floors(results) if recipe.floors else []
    return [
        f"{recipe.title}: {name} {reached:.3f}, less than {least}" for name, reached, least in floors if reached < least
    ]


if __name__ == "__main__":
    main()
