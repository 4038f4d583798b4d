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
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from bertray.reports.search import shown

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "recipes.md"
CONFIGS = "jobs/configs"
BEGIN, END = "<!-- made by `make recipes`: begin -->\n", "<!-- made by `make recipes`: end -->\n"
EVERYTHING = 0  # rows of a sample that is the whole file


@dataclass(frozen=True)
class Rows:
    """A file of the data folder, or so many random rows of it."""

    path: str
    rows: int = EVERYTHING


@dataclass(frozen=True)
class Run:
    """One command of a recipe, and how its row of the table reads.

    Args:
        name: of its folder; unique.
        verb: of bertray.
        words: config files and overrides; `{name}` stands for the output of an earlier run.
        data: key -> file; more words.
        metric: of metrics.json; none: the run has no line of its own.
        settings: what sets it apart from the other runs of its recipe, in words.
        published: the figure that data/README.md gives, and of what.
        learned: what the model of an evaluation was trained on.
    """

    name: str
    verb: str
    words: tuple[str, ...]
    data: dict[str, Rows]
    metric: str
    settings: str
    published: str = ""
    learned: Rows | None = None


@dataclass(frozen=True)
class Recipe:
    """Runs that are told together."""

    title: str
    runs: tuple[Run, ...]
    remark: Callable[[list[Result]], str] | None = None


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    run: Run
    output: Path
    minutes: float
    train_rows: int
    metrics: dict[str, Any] = field(default_factory=dict)

    def value(self, metric: str, of: str = "") -> dict[str, float]:
        found: dict[str, Any] = self.metrics["baselines"][of] if of else self.metrics
        scores: dict[str, dict[str, float]] = found.get("metrics", found)
        return scores[metric]


def config(name: str) -> tuple[str, str]:
    return "-c", f"{CONFIGS}/{name}.yaml"


# --- the recipes -----------------------------------------------------------------------------------------------------

IMDB = {"data.train": Rows("imdb/train.parquet", 1000), "data.test": Rows("imdb/test.parquet", 600)}
IMDB_WORDS = (*config("imdb"), "training.learning_rate=1e-4", "report.baselines=true")


def imdb(max_length: int, long_text: str) -> Run:
    name = f"imdb-{max_length}-{long_text}"
    settings = f"{max_length} tokens, `{long_text}`"
    published = "0.928 DistilBERT, 0.935 BERT-base, both of 25,000 rows and 512 tokens" if max_length == 512 else ""
    if long_text == "windows":  # training sees the first window, so it is the same model, read otherwise
        words = (f"model={{imdb-{max_length}-head}}/model", "long_text=windows", "labels={0: negative, 1: positive}")
        data = {"input": IMDB["data.test"]}
        return Run(
            name, "evaluate", words, data, "accuracy", f"{settings}, by the `head` model", learned=IMDB["data.train"]
        )
    words = (*IMDB_WORDS, f"max_length={max_length}", f"long_text={long_text}")
    return Run(name, "train", words, IMDB, "accuracy", settings, published)


def cola(seed: int) -> Run:
    data = {"data.train": Rows("cola/train.parquet"), "data.test": Rows("cola/dev.parquet")}
    published = "0.521 BERT-base, 0.472 DistilBERT-cased, 0.0 BERT-Mini (GLUE test)" if not seed else ""
    return Run(f"cola-{seed}", "train", (*config("cola"), f"seed={seed}"), data, "mcc", f"seed {seed}", published)


EMOTION = {f"data.{split}": Rows(f"emotion/{split}.parquet") for split in ("train", "validation", "test")}


def emotion() -> Run:
    return Run("emotion", "train", config("emotion"), EMOTION, "macro_f1", "", "accuracy 0.930 DistilBERT")


def weighed(weights: str) -> Run:
    """On a sample: where rows are few, the rare classes have next to none."""
    data = EMOTION | {"data.train": Rows("emotion/train.parquet", 3000)}
    words = (*config("emotion"), f"training.class_weights={weights}", "training.epochs=3")
    return Run(f"emotion-{weights}", "train", words, data, "macro_f1", f"3 epochs, class weights {weights}")


def features(head: str, pooling: str) -> Run:
    words = (*config("features"), f"training.head={head}", f"training.pooling={pooling}")
    kind = {"logreg": "logistic regression", "svm": "linear SVM"}[head]
    return Run(f"features-{head}-{pooling}", "train", words, EMOTION, "macro_f1", f"{kind} on `{pooling}`")


def aspects(pair: bool) -> Run:
    files = {"train": ("train", 4000), "validation": ("val", EVERYTHING), "test": ("test", EVERYTHING)}
    data = {f"data.{key}": Rows(f"mams_absa/term_{name}.parquet", rows) for key, (name, rows) in files.items()}
    name, settings = ("pairs", "(sentence, aspect)") if pair else ("sentence", "the sentence alone")
    words = (*config("aspects"), *(() if pair else ("columns.text_pair=null",)))
    published = "0.822 BERT, 0.834 CapsNet-BERT" if pair else ""
    return Run(f"aspects-{name}", "train", words, data, "accuracy", settings, published)


SEARCH = {
    "data.train": Rows("emotion/train.parquet", 1000),
    "data.validation": Rows("emotion/validation.parquet", 500),
}


EMBEDDED = Rows("imdb/test.parquet", 2000)


def embeddings() -> Run:
    return Run("embed", "embed", (*config("embed"), "keep_columns=[label]"), {"input": EMBEDDED}, "", "")


def search() -> tuple[Run, ...]:
    """The search, then its best and the config as it stands on the same rows, tested."""
    tested = SEARCH | {"data.test": Rows("emotion/test.parquet")}
    words = ("training.epochs=3", "search.trials=6")
    return (
        Run("search", "tune", (*config("emotion"), *config("tune"), *words), SEARCH, "", ""),
        Run("searched", "train", ("-c", "{search}/best.yaml"), tested, "macro_f1", "the best of the search"),
        Run("unsearched", "train", (*config("emotion"), words[0]), tested, "macro_f1", "`emotion.yaml` as it stands"),
    )


def neighbours_in_words(results: list[Result]) -> str:
    """How well cosine neighbours agree in their label: a figure that needs no training at all."""
    rows = pq.read_table(results[0].output / "data")
    column = rows["embedding"].combine_chunks()
    vectors_ND = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)
    labels_N = np.array(rows["label"].to_pylist())
    cosine_NN = vectors_ND @ vectors_ND.T
    np.fill_diagonal(cosine_NN, -2)
    nearest_NK = np.argsort(-cosine_NN, axis=1)[:, :10]
    share_N = (labels_N[nearest_NK] == labels_N[:, None]).mean(axis=1)
    half = 1.96 * share_N.std(ddof=1) / len(share_N) ** 0.5
    size = sum(path.stat().st_size for path in (results[0].output / "data").rglob("*.parquet")) / 2**20
    return (
        f"{len(column):,} reviews to {vectors_ND.shape[1]} numbers each in {results[0].minutes:.1f} minutes, "
        f"{size:.1f} MiB. "
        f"Of the ten nearest reviews by cosine, {share_N.mean():.3f} [{share_N.mean() - half:.3f}, "
        f"{share_N.mean() + half:.3f}] have the same label (half would by chance): these vectors are of topics more "
        "than of opinions, which is why a head is trained on them."
    )


def search_in_words(results: list[Result]) -> str:
    trials = pq.read_table(results[0].output / "trials.parquet").to_pylist()
    best = max((row for row in trials if row["status"] != "failed"), key=lambda row: row["macro_f1"])
    stopped = sum(row["status"] == "stopped" for row in trials)
    point = {key.removeprefix("training."): value for key, value in best.items() if key.startswith("training.")}
    at = ", ".join(f"{key} {shown(value)}" for key, value in point.items())
    return (
        f"The search: {len(trials)} trials in {results[0].minutes:.1f} minutes, {stopped} of them ended early; "
        f"best: {at}, macro F1 {best['macro_f1']:.3f} on the validation rows that chose it."
    )


def seeds_in_words(results: list[Result]) -> str:
    values = [result.value("mcc")["value"] for result in results]
    return f"MCC over {len(values)} seeds: mean {mean(values):.3f}, standard deviation {stdev(values):.3f}."


def confusions_in_words(results: list[Result]) -> str:
    metrics = results[0].metrics
    labels, matrix = metrics["labels"], np.array(metrics["confusion_matrix"])
    shares = matrix / matrix.sum(axis=1, keepdims=True)
    np.fill_diagonal(shares, 0)
    worst = np.dstack(np.unravel_index(np.argsort(-shares, axis=None)[:3], shares.shape))[0]
    pairs = [
        f"{labels[given]} for {labels[said]} ({shares[given, said]:.0%} of {labels[given]})" for given, said in worst
    ]
    accuracies = [f"{result.value('accuracy')['value']:.3f} ({result.run.settings})" for result in results]
    return f"Taken most often: {', '.join(pairs)}. Accuracy {', '.join(accuracies)}."


RECIPES = (
    Recipe("CoLA: is the sentence acceptable?", tuple(map(cola, range(3))), seeds_in_words),
    Recipe(
        "emotion: six classes, unevenly spread", (emotion(), weighed("none"), weighed("balanced")), confusions_in_words
    ),
    Recipe(
        "Frozen features and a classic classifier (emotion)",
        (features("logreg", "mean"), features("svm", "mean"), features("logreg", "cls")),
    ),
    Recipe(
        "Tweets in three classes, tested on later days",
        (Run("tweets", "train", config("tweets"), {"data.train": Rows("airline_tweets/all.parquet")}, "macro_f1", ""),),
    ),
    Recipe("Aspects (MAMS, terms)", (aspects(pair=True), aspects(pair=False))),
    Recipe(
        "IMDB: how much of a long review to read",
        tuple(
            imdb(max_length, long_text)
            for max_length, long_texts in {
                128: ("head", "head_tail", "windows"),
                256: ("head", "head_tail", "windows"),
                512: ("head",),
            }.items()
            for long_text in long_texts
        ),
    ),
    Recipe("Embeddings (IMDB)", (embeddings(),), neighbours_in_words),
    Recipe("Search (emotion, 1,000 train rows)", search(), search_in_words),
)


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
        words += [f"{key}={self._file(rows)}" for key, rows in run.data.items()]
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
        return int(pq.read_metadata(self._file(rows)).num_rows)


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
        names = sorted({rows.path.partition("/")[0] for result in results for rows in result.run.data.values()})
        lines += [f"Data: {', '.join(f'`{name}`' for name in names)}. Model: `bundled`.\n"]
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
