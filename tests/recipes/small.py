"""First models by `init` and `train` as printed, on small sets, beside TF-IDF, a grid of settings and SetFit.

    python -m tests.recipes.small DATA --folder FOLDER                 # every run that FOLDER/runs.jsonl lacks
    python -m tests.recipes.small DATA --folder FOLDER --tell          # the table of docs/recipes.md, from these lines

A run is one line of JSON. The runs come in an order in which those that are done first are of use by themselves: the
default of all sets, then what is cheap of the grid, then fine-tuning at other rates and SetFit. Each is a process of
its own, forked from this one, which has imported what all of them need.

SetFit is no dependency: `pip install --no-deps --target LIB setfit accelerate evaluate`, then `--setfit LIB`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from math import sqrt
from pathlib import Path
from statistics import mean, variance
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- made by tests.recipes.small: begin -->\n", "<!-- made by tests.recipes.small: end -->\n"
TESTED = 500
SEEDS = (0, 1, 2)
RATES = ("5e-5", "1e-4", "3e-4")
# One thread, no Ray, and no words marked on the page: nothing that moves a figure.
FIXED = ("workers.in_process_rows=1000000", "workers.threads=1", "report.explain=0")
PRELOADED = (
    "torch",
    "transformers.modeling_utils",
    "sklearn.linear_model",
    "sklearn.feature_extraction.text",
    "matplotlib.figure",
    "bertray.commands.train",
    "bertray.commands.init",
)


# --- sets ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Small:
    """A labelled set to draw a few rows from.

    Args:
        train, test: Parquet files below the data folder, or one folder's files by a glob; where both are the same,
            test rows come first in a random order and train rows from the others.
        sizes: train rows of the main table.
        max_length: tokens.
        label: column.
        values: of the label that are kept; all where there are none.
        is_read: whether the bundled encoder can read the texts.
    """

    train: str
    test: str
    sizes: tuple[int, ...]
    max_length: int = 64
    label: str = "label"
    values: tuple[str, ...] = ()
    language: str = "English"
    pair: bool = False
    is_read: bool = True


SETS: dict[str, Small] = {
    "emotion": Small("emotion/train", "emotion/test", (64, 300, 1000, 4000)),
    "airline tweets": Small("airline_tweets/all", "airline_tweets/all", (150, 600)),
    "reasons of complaints": Small("airline_tweets/all", "airline_tweets/all", (300,), label="negative_reason"),
    "CoLA": Small("cola/train", "cola/dev", (300, 2000), max_length=32),
    "MAMS, categories": Small("mams_absa/category_train", "mams_absa/category_test", (500,), pair=True),
    "electronics": Small("amazon_multidomain/electronics", "amazon_multidomain/electronics", (300,), max_length=128),
    "books": Small("amazon_multidomain/books", "amazon_multidomain/books", (100,), max_length=128),
    "shop of a review": Small("amazon_multidomain/*", "amazon_multidomain/*", (200,), label="category"),
    "IMDB": Small("imdb/train", "imdb/test", (300,), max_length=128),
    "news groups": Small("newsgroups20/train", "newsgroups20/test", (400,), max_length=128),
    "Korean films": Small("naver_movies/train", "naver_movies/test", (1000,), language="Korean", is_read=False),
    "Korean films, no neutral ones": Small(
        "naver_movies/train",
        "naver_movies/test",
        (300,),
        values=("negative", "positive"),
        language="Korean",
        is_read=False,
    ),
    "Chinese shops": Small(
        "online_shopping_10_cats/train", "online_shopping_10_cats/test", (500,), language="Chinese", is_read=False
    ),
    "Chinese shops, kind of goods": Small(
        "online_shopping_10_cats/train",
        "online_shopping_10_cats/test",
        (300,),
        label="category_en",
        language="Chinese",
        is_read=False,
    ),
}
# Sets of the comparison with SetFit, and rows of each class.
FEW = ("emotion", "airline tweets", "electronics")
A_CLASS = (8, 32, 64)
MOST_AT_ONCE = 1000  # rows up to which a set is quick
MOST_PAIRS = 16 * 320  # of SetFit: 20 a row as published, but no more than these


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        rows: train rows; of each class where `balanced`.
        kind: `auto`, or what is stated instead.
    """

    name: str
    rows: int
    seed: int
    kind: str = "auto"
    balanced: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Overrides of the config that `init` prints."""
        method, _, rate = self.kind.partition(" ")
        stated = () if self.kind == "auto" else (f"training.method={method}",)
        return stated + ((f"training.learning_rate={rate}",) if rate else ())


def jobs() -> list[Job]:
    """Every run, the most useful first: of each kind the quick sets, and seed by seed."""

    def slowness(cell: tuple[str, int]) -> tuple[bool, bool, int]:
        name, rows = cell
        return SETS[name].is_read, rows > MOST_AT_ONCE, SETS[name].max_length

    cells = sorted(((name, rows) for name, small in SETS.items() for rows in small.sizes), key=slowness)
    found = [
        Job(name, rows, seed, kind)
        for seed in SEEDS
        for kinds in (("auto",), ("stack", "features"))
        for name, rows in cells
        for kind in kinds
    ]
    for seed in SEEDS:
        for name, rows in cells:
            rates = RATES if SETS[name].is_read else RATES[-1:]
            found += [Job(name, rows, seed, f"finetune {rate}") for rate in rates]
        for name, rows in ((name, rows) for rows in A_CLASS for name in FEW):
            found += [Job(name, rows, seed, kind, balanced=True) for kind in ("auto", "contrast", "setfit")]
    return found


# --- rows ------------------------------------------------------------------------------------------------------------


def read(data: Path, pattern: str) -> pa.Table:
    tables = [pq.read_table(path) for path in sorted(data.glob(f"{pattern}.parquet"))]
    shared = [name for name in tables[0].column_names if all(name in table.column_names for table in tables)]
    return pa.concat_tables([table.select(shared) for table in tables], promote_options="permissive")


def usable(table: pa.Table, small: Small) -> pa.Table:
    """Columns of a run, of the rows that have a label to learn."""
    columns = {"id": table["id"], "text": table["text"], "label": table[small.label]}
    columns |= {"aspect": table["aspect"]} if small.pair else {}
    table = pa.table(columns)
    table = table.filter(pc.is_valid(table["label"]))
    if small.values:
        table = table.filter(pc.is_in(table["label"], value_set=pa.array(small.values)))
    return table


def drawn(data: Path, job: Job) -> tuple[pa.Table, pa.Table]:
    """Train and test rows; the test is the same for all runs of a set."""
    small = SETS[job.name]
    pool, tested = (usable(read(data, path), small) for path in (small.train, small.test))
    first = np.random.default_rng(1000).permutation(tested.num_rows)
    test = tested.take(np.sort(first[:TESTED]))
    if small.train == small.test:
        pool = tested.take(np.sort(first[TESTED:]))
    order = np.random.default_rng(job.seed).permutation(pool.num_rows)
    labels = np.array(pool["label"].to_pylist())[order]
    # Rows of a class; `train` refuses a test with a label that it has not learned, so that two come of each anyway.
    of_classes = [order[labels == label][: job.rows if job.balanced else 2] for label in np.unique(labels)]
    chosen = np.concatenate(of_classes)
    if not job.balanced:
        chosen = np.concatenate([chosen, order[~np.isin(order, chosen)]])[: job.rows]
    return pool.take(np.sort(chosen)), test


# --- running ---------------------------------------------------------------------------------------------------------


class Round:
    """Runs, and the file that remembers them."""

    def __init__(self, data: Path, folder: Path, setfit: Path | None) -> None:
        self._data, self._folder, self._setfit = data, folder, setfit
        self._lines = folder / "runs.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def lines(self) -> list[dict[str, Any]]:
        """What is done."""
        if not self._lines.is_file():
            return []
        return [json.loads(line) for line in self._lines.read_text(encoding="utf-8").splitlines()]

    def is_done(self, job: Job) -> bool:
        wanted = asdict(job)
        return any(all(line[key] == value for key, value in wanted.items()) for line in self.lines())

    def run(self, job: Job) -> None:
        """One run, its line written when it is done."""
        folder = self._folder / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        train, test = drawn(self._data, job)
        pq.write_table(train, folder / "train.parquet")
        pq.write_table(test, folder / "test.parquet")
        started = time.monotonic()
        if job.kind == "setfit":
            assert self._setfit is not None, "such runs are left out"
            work = partial(fit_setfit, self._setfit, folder, job)
        else:
            work = partial(by_command, folder, job)
        cpu_s = forked(work, folder / "log")
        line = asdict(job) | result_of(folder, job, train, test)
        line |= {"seconds": round(time.monotonic() - started, 1), "cpu_s": round(cpu_s, 1)}
        with self._lines.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        told = {key: value for key, value in line.items() if not key.endswith("right")}
        print(json.dumps(told), flush=True)


def forked(work: Callable[[], None], log: Path) -> float:
    """Do some work in a process of its own; returns its CPU seconds.

    Raises:
        RuntimeError: it failed; what it said is in `log`.
    """
    process = os.fork()
    if not process:
        code = 1
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            work()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status, used = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"a run failed: {log.read_text(encoding='utf-8')[-1500:]}")
    return used.ru_utime + used.ru_stime


def by_command(folder: Path, job: Job) -> None:
    """`init`, then `train` with what it printed."""
    from bertray import cli

    config = folder / "train.yaml"
    printed = ["init", str(folder / "train.parquet"), f"output={config}"]
    words = ["train", "-c", str(config), f"data.test={folder / 'test.parquet'}", f"output={folder / 'out'}"]
    words += [f"max_length={SETS[job.name].max_length}", f"seed={job.seed}", *FIXED, *job.words]
    for argv in (printed, words):
        code = cli.run(argv)
        if code:
            raise RuntimeError(f"{argv[0]} ended with {code}")


def fit_setfit(library: Path, folder: Path, job: Job) -> None:
    """SetFit's own trainer with its defaults on the bundled encoder; predictions as `train` writes them."""
    sys.path.insert(0, str(library))
    datasets: Any = import_module("datasets")
    setfit: Any = import_module("setfit")
    sentences: Any = import_module("sentence_transformers")

    from bertray.model.bundle import bundled_model

    train, test = (pq.read_table(folder / f"{name}.parquet") for name in ("train", "test"))
    body = sentences.SentenceTransformer(str(bundled_model()), device="cpu")
    body.max_seq_length = SETS[job.name].max_length
    names = sorted({str(label) for label in train["label"].to_pylist()})
    rows = [
        {"text": text, "label": names.index(str(label))}
        for text, label in zip(train["text"].to_pylist(), train["label"].to_pylist(), strict=True)
    ]
    model = setfit.SetFitModel(model_body=body, model_head=import_module("sklearn.linear_model").LogisticRegression())
    pairs_a_row = max(1, min(20, MOST_PAIRS // (2 * len(rows))))
    arguments = setfit.TrainingArguments(
        output_dir=str(folder / "setfit"),
        batch_size=16,
        num_iterations=pairs_a_row,
        num_epochs=1,
        seed=job.seed,
        report_to="none",
        save_strategy="no",
    )
    trainer = setfit.Trainer(model=model, args=arguments, train_dataset=datasets.Dataset.from_list(rows))
    trainer.train()
    said = [names[int(number)] for number in model.predict(test["text"].to_pylist())]
    out = folder / "out"
    out.mkdir()
    given = [str(label) for label in test["label"].to_pylist()]
    pq.write_table(pa.table({"id": test["id"], "label": given, "prediction": said}), out / "predictions.parquet")


def result_of(folder: Path, job: Job, train: pa.Table, test: pa.Table) -> dict[str, Any]:
    """Figures of a run, and which test rows it had right, in the order of their ids."""
    from sklearn.metrics import f1_score

    table = pq.read_table(folder / "out" / "predictions.parquet").sort_by("id")
    given, said = table["label"].to_pylist(), table["prediction"].to_pylist()
    right_N = np.array([one == other for one, other in zip(given, said, strict=True)])
    line: dict[str, Any] = {
        "accuracy": float(right_N.mean()),
        "macro_f1": float(f1_score(given, said, average="macro")),
        "classes": len(set(train["label"].to_pylist())),
        "tested": len(right_N),
        "right": packed(right_N),
    }
    metrics_file = folder / "out" / "metrics.json"
    if not metrics_file.is_file():
        return line
    baselines = json.loads(metrics_file.read_text(encoding="utf-8"))["baselines"]
    line |= {
        f"{name}_{figure}": baselines[name][figure]["value"]
        for name in ("tfidf_logreg", "majority")
        for figure in ("accuracy", "macro_f1")
    }
    log = (folder / "log").read_text(encoding="utf-8")
    chosen = re.findall(r"training\.method=auto chose ([^:;,.]*)", log.replace("\n", " "))
    line["chosen"] = chosen[-1] if chosen else ""
    if job.kind == "auto":
        line["tfidf_right"] = packed(tfidf_right(train, test))
    return line


def tfidf_right(train: pa.Table, test: pa.Table) -> np.ndarray:
    """Test rows that the baseline has right, by id: for the width of intervals; its figure is that of the report."""
    from bertray.evaluation.baselines import fit_tfidf_logreg

    def texts(table: pa.Table) -> list[str]:
        seconds = table["aspect"].to_pylist() if "aspect" in table.column_names else [""] * table.num_rows
        pairs = zip(table["text"].to_pylist(), seconds, strict=True)
        return [f"{text or ''} {second}" for text, second in pairs]

    test = test.sort_by("id")
    names, ids_N = np.unique([str(label) for label in train["label"].to_pylist()], return_inverse=True)
    probs_NC = fit_tfidf_logreg(texts(train), ids_N, len(names), 0).probs(texts(test))
    said: np.ndarray = names[probs_NC.argmax(axis=1)]
    return said == np.array([str(label) for label in test["label"].to_pylist()])


def packed(right_N: np.ndarray) -> str:
    return np.packbits(right_N).tobytes().hex()


def unpacked(right: str, num_rows: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(right), np.uint8))[:num_rows].astype(float)


# --- telling ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of a difference in accuracy, in points, with a 95 % interval.

    The interval covers the draw of the test rows, which all seeds share, and that of the train rows.
    """

    value: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float], pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Difference:
        """Of one value a seed.

        Args:
            values: differences of accuracies.
            pairs: rows that either had right, a pair a seed, for the width.
        """
        gain_N = np.mean([one - other for one, other in pairs], axis=0) if pairs else np.zeros(2)
        of_rows = gain_N.var(ddof=1) / len(gain_N)
        of_seeds = variance(values) / len(values) if len(values) > 1 else 0.0
        return cls(100 * mean(values), 100 * 1.96 * sqrt(of_rows + of_seeds))

    def __str__(self) -> str:
        return f"{self.value:+.1f} ± {self.half:.1f}"


Lines = list[dict[str, Any]]


def by_kind(lines: Lines, name: str, rows: int, *, balanced: bool) -> dict[str, dict[int, dict[str, Any]]]:
    """Kind → seed → line, of one set and size."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for line in lines:
        if (line["name"], line["rows"], line["balanced"]) == (name, rows, balanced):
            found.setdefault(line["kind"], {})[line["seed"]] = line
    return found


def rights(line: dict[str, Any], key: str = "right") -> np.ndarray:
    return unpacked(line[key], line["tested"])


def against(mine: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]]) -> Difference:
    """On the seeds that both have."""
    seeds = sorted(mine.keys() & theirs.keys())
    values = [mine[seed]["accuracy"] - theirs[seed]["accuracy"] for seed in seeds]
    return Difference.of(values, [(rights(mine[seed]), rights(theirs[seed])) for seed in seeds])


def against_tfidf(mine: dict[int, dict[str, Any]]) -> Difference:
    values = [line["accuracy"] - line["tfidf_logreg_accuracy"] for line in mine.values()]
    return Difference.of(values, [(rights(line), rights(line, "tfidf_right")) for line in mine.values()])


def in_percent(lines: Iterable[dict[str, Any]], key: str) -> str:
    return f"{100 * mean(line[key] for line in lines):.1f}"


def main_table(lines: Lines) -> str:
    """Default, TF-IDF and grid, a line for each set and size."""
    told = [
        "| set | language | classes | rows | draws | `auto` chose | accuracy | TF-IDF | difference | "
        "best of the grid | difference |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    gains, losses = [], []
    for name, small in SETS.items():
        for rows in small.sizes:
            kinds = by_kind(lines, name, rows, balanced=False)
            if "auto" not in kinds:
                continue
            mine = kinds.pop("auto")
            gains.append((against_tfidf(mine), f"{name}, {rows:,} rows"))
            # Of the same seeds: the mean of other draws of the train rows would be another figure.
            whole = {kind: of for kind, of in kinds.items() if mine.keys() <= of.keys()}
            part = whole or {kind: of for kind, of in kinds.items() if 0 in of}
            best = max(part, key=lambda kind: mean(line["accuracy"] for line in part[kind].values()), default="")
            cells = ["", ""]
            if best:
                losses.append((against(mine, part[best]), f"{name}, {rows:,} rows"))
                cells = [f"{in_percent(part[best].values(), 'accuracy')} {best}", str(losses[-1][0])]
            chosen = sorted({line["chosen"] or "fine-tuning" for line in mine.values()})
            first = next(iter(mine.values()))
            accuracy, tfidf = (in_percent(mine.values(), key) for key in ("accuracy", "tfidf_logreg_accuracy"))
            task = [name, small.language, str(first["classes"]), f"{rows:,}", str(len(mine)), " or ".join(chosen)]
            told.append(f"| {' | '.join([*task, accuracy, tfidf, str(gains[-1][0]), *cells])} |")
    told += ["", _summed(gains, "TF-IDF", 1.0)]
    if losses:
        told.append(_summed(losses, "the best of the grid", 1.5))
    return "\n".join(told) + "\n"


def _summed(differences: Sequence[tuple[Difference, str]], rival: str, most: float) -> str:
    worst, where = min(differences, key=lambda pair: pair[0].value)
    ahead = sum(difference.value > 0 for difference, _ in differences)
    behind = sum(difference.value < -most for difference, _ in differences)
    in_the_mean = mean(difference.value for difference, _ in differences)
    return (
        f"Against {rival}: better on {ahead} of {len(differences)}, more than {most:g} points behind on {behind}, "
        f"{worst} points at worst ({where}), {in_the_mean:+.1f} in the mean."
    )


def few_table(lines: Lines) -> str:
    """Default and contrast beside SetFit, by rows of each class."""
    told = [
        "| set | rows of each class | `auto` | `contrast` | SetFit | `auto` − SetFit | CPU seconds, `auto` / SetFit |",
        "|---|---|---|---|---|---|---|",
    ]
    gains = []
    for name in FEW:
        for rows in A_CLASS:
            kinds = by_kind(lines, name, rows, balanced=True)
            if not {"auto", "setfit"} <= kinds.keys():
                continue
            gains.append((against(kinds["auto"], kinds["setfit"]), f"{name}, {rows} a class"))
            figures = [
                in_percent(kinds[kind].values(), "accuracy") if kind in kinds else ""
                for kind in ("auto", "contrast", "setfit")
            ]
            seconds = " / ".join(
                f"{mean(line['cpu_s'] for line in kinds[kind].values()):.0f}" for kind in ("auto", "setfit")
            )
            told.append(f"| {name} | {rows} | {' | '.join(figures)} | {gains[-1][0]} | {seconds} |")
    return "\n".join([*told, "", _summed(gains, "SetFit", 1.0)]) + "\n" if gains else ""


def tell(lines: Lines, page: Path) -> None:
    """Write the tables into the page, between their markers."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    said = (
        f"Accuracy in %, mean over draws of the train rows; {TESTED} test rows, the same for all. ± is a 95 % interval "
        "over test rows and draws; of a single draw it covers the test rows alone.\n"
    )
    page.write_text(f"{before}{BEGIN}\n{said}\n{main_table(lines)}\n{few_table(lines)}{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with imdb/, cola/, emotion/ and so on")
    parser.add_argument("--folder", type=Path, default=ROOT / "recipes-run" / "small", help="runs.jsonl lies here")
    parser.add_argument("--setfit", type=Path, help="folder with SetFit; without it its runs are left out")
    parser.add_argument("--pause", type=Path, help="while this file exists no run is started")
    parser.add_argument("--tell", action="store_true", help="only write the tables")
    wanted = parser.parse_args()
    done = Round(wanted.data.resolve(), wanted.folder.resolve(), wanted.setfit)
    if wanted.tell:
        tell(done.lines(), PAGE)
        return
    for name in PRELOADED:
        import_module(name)
    for job in jobs():
        while wanted.pause is not None and wanted.pause.exists():
            time.sleep(5)
        if not done.is_done(job) and (job.kind != "setfit" or wanted.setfit is not None):
            try:
                done.run(job)
            except RuntimeError as error:  # the others go on; the same command tries it again
                print(f"{job}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
