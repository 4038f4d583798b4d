"""Recipes that learn from labels: IMDB, CoLA, emotion, tweets, aspects, frozen features, embeddings, search."""

from __future__ import annotations

from collections import Counter
from statistics import mean, stdev

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray.reports.search import shown
from tests.recipes.recipe import EVERYTHING, Recipe, Result, Rows, Run, config, in_points

IMDB = {"data.train": Rows("imdb/train.parquet", 300), "data.test": Rows("imdb/test.parquet", 500)}
# The config is made for 25,000 reviews; a few hundred need more steps.
STEPS = ("training.epochs=2", "training.batch_size=16", "training.learning_rate=2e-4")
IMDB_WORDS = (*config("imdb"), *STEPS, "report.baselines=true")


def imdb(max_length: int, long_text: str) -> Run:
    name = f"imdb-{max_length}-{long_text}"
    settings = f"{max_length} tokens, `{long_text}`"
    published = "0.928 DistilBERT, 0.935 BERT-base, both of 25,000 rows and 512 tokens" if max_length == 512 else ""
    if long_text == "windows":  # training sees the first window, so it is the same model, read otherwise
        evaluated = (
            f"model={{imdb-{max_length}-head}}/model",
            "long_text=windows",
            "labels={0: negative, 1: positive}",
        )
        data = {"input": IMDB["data.test"]}
        return Run(
            name,
            "evaluate",
            evaluated,
            data,
            "accuracy",
            f"{settings}, by the `head` model",
            learned=IMDB["data.train"],
        )
    words = (*IMDB_WORDS, f"max_length={max_length}", f"long_text={long_text}")
    return Run(name, "train", words, IMDB, "accuracy", settings, published)


def cola(seed: int) -> Run:
    files = {"train": "train", "validation": "out_of_domain_dev", "test": "dev"}
    data = {f"data.{split}": Rows(f"cola/{name}.parquet") for split, name in files.items()}
    published = "0.521 BERT-base, 0.472 DistilBERT-cased, 0.0 BERT-Mini (GLUE test)" if not seed else ""
    return Run(f"cola-{seed}", "train", (*config("cola"), f"seed={seed}"), data, "mcc", f"seed {seed}", published)


EMOTION = {f"data.{split}": Rows(f"emotion/{split}.parquet") for split in ("train", "validation", "test")}


def emotion() -> Run:
    return Run("emotion", "train", config("emotion"), EMOTION, "macro_f1", "", "accuracy 0.930 DistilBERT")


def weighed(weights: str) -> Run:
    """On a sample: where rows are few, the rare classes have next to none."""
    data = EMOTION | {"data.train": Rows("emotion/train.parquet", 1500)}
    words = (*config("emotion"), f"training.class_weights={weights}", "training.epochs=2")
    return Run(f"emotion-{weights}", "train", words, data, "macro_f1", f"2 epochs, class weights {weights}")


def features(head: str, pooling: str) -> Run:
    words = (*config("features"), f"training.head={head}", f"training.pooling={pooling}")
    kind = {"logreg": "logistic regression", "svm": "linear SVM"}[head]
    data = EMOTION | {"data.train": Rows("emotion/train.parquet", 4000)}
    return Run(f"features-{head}-{pooling}", "train", words, data, "macro_f1", f"{kind} on `{pooling}`")


def aspects(pair: bool, head: str = "") -> Run:
    files = {"train": ("train", 2000), "validation": ("val", EVERYTHING), "test": ("test", EVERYTHING)}
    data = {f"data.{key}": Rows(f"mams_absa/term_{name}.parquet", rows) for key, (name, rows) in files.items()}
    name, settings = ("pairs", "(sentence, aspect)") if pair else ("sentence", "the sentence alone")
    words = (*config("aspects"), *(() if pair else ("columns.text_pair=null",)))
    published = "0.822 BERT, 0.834 CapsNet-BERT" if pair and not head else ""
    if head:
        name, settings, words = f"{name}-{head}", f"{settings}, `head={head}`", (*words, f"head={head}")
    return Run(f"aspects-{name}", "train", words, data, "accuracy", settings, published)


SENTENCES_A_REVIEW = 6


def long_reviews(sentences: pa.Table) -> pa.Table:
    """Reviews of several random sentences, a row for each aspect that one of their sentences alone speaks of."""
    texts = dict(zip(sentences["sentence_id"].to_pylist(), sentences["text"].to_pylist(), strict=True))
    order = np.random.default_rng(0).permutation(np.array(list(texts)))
    review_of = {name: number // SENTENCES_A_REVIEW for number, name in enumerate(order.tolist())}
    said = [
        " ".join(texts[name] for name in order[first : first + SENTENCES_A_REVIEW].tolist())
        for first in range(0, len(order), SENTENCES_A_REVIEW)
    ]
    rows = sentences.to_pylist()
    spoken = Counter((review_of[row["sentence_id"]], row["aspect"].lower()) for row in rows)
    kept = [row for row in rows if spoken[review_of[row["sentence_id"]], row["aspect"].lower()] == 1]
    return pa.table(
        {
            "id": [row["id"] for row in kept],
            "text": [said[review_of[row["sentence_id"]]] for row in kept],
            "aspect": [row["aspect"] for row in kept],
            "label": [row["label"] for row in kept],
        }
    )


def long_aspects(name: str, settings: str, *words: str) -> Run:
    files = {"train": ("train", 2000), "validation": ("val", 500), "test": ("test", EVERYTHING)}
    data = {
        f"data.{key}": Rows(f"mams_absa/term_{file}.parquet", rows, made=long_reviews)
        for key, (file, rows) in files.items()
    }
    return Run(f"aspects-{name}", "train", (*config("aspects"), *words), data, "accuracy", settings)


def selection_in_words(results: list[Result]) -> str:
    of = {result.run.name.removeprefix("aspects-long-"): result for result in results}
    pairs = (("select", "head"), ("select", "head_tail"), ("select", "whole"), ("attention", "select"))
    told = [f"{one} against {other}: {in_points(of[one].against(of[other]))}" for one, other in pairs]
    return (
        f"Reviews of {SENTENCES_A_REVIEW} random sentences, each with the aspects that a single one of them speaks of. "
        f"Accuracy, pair by pair on the same test rows: {'; '.join(told)}."
    )


def attention_in_words(results: list[Result]) -> str:
    pairs, attention, _ = results
    return f"`head=attention` against the pair, on the same test rows: {in_points(attention.against(pairs))}."


TWEETS = Rows("airline_tweets/all.parquet", 4000)

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
    words = ("training.epochs=2", "search.trials=4")
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
        f"best: {at}, macro F1 {best['macro_f1']:.3f} [{best['macro_f1_low']:.3f}, {best['macro_f1_high']:.3f}] on the "
        "validation rows that chose it."
    )


def lengths_in_words(results: list[Result]) -> str:
    """On the same test rows, so that differences have intervals far below those of the table."""
    of = {result.run.name.removeprefix("imdb-"): result for result in results}
    told = [
        f"{one} against {other}: {in_points(of[one].against(of[other]))}"
        for one, other in (
            ("256-head", "128-head"),
            ("512-head", "256-head"),
            ("128-head_tail", "128-head"),
            ("256-head_tail", "256-head"),
            ("128-windows", "128-head"),
            ("256-windows", "256-head"),
            ("512-windows", "512-head"),
        )
    ]
    return f"Accuracy, pair by pair on the same test rows: {'; '.join(told)}."


def floor_of_cola(results: list[Result]) -> list[tuple[str, float, float]]:
    """What a careful plain loop reaches with the bundled encoder in four epochs."""
    return [("mean MCC", mean(result.value("mcc")["value"] for result in results), 0.356)]


def floor_of_emotion(results: list[Result]) -> list[tuple[str, float, float]]:
    """As of CoLA."""
    return [
        (name, results[0].value(name)["value"], least) for name, least in (("accuracy", 0.924), ("macro_f1", 0.877))
    ]


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
        f"{labels[given]} as {labels[said]} ({shares[given, said]:.0%} of {labels[given]})" for given, said in worst
    ]
    accuracies = [f"{result.value('accuracy')['value']:.3f} ({result.run.told_settings})" for result in results]
    return f"Mistaken most often: {', '.join(pairs)}. Accuracy {', '.join(accuracies)}."


LABELLED = (
    Recipe("CoLA: is the sentence acceptable?", tuple(map(cola, range(3))), seeds_in_words, floors=floor_of_cola),
    Recipe(
        "emotion: six classes, unevenly spread",
        (emotion(), weighed("none"), weighed("balanced")),
        confusions_in_words,
        floors=floor_of_emotion,
    ),
    Recipe(
        "Frozen features and a classic classifier (emotion)",
        (features("logreg", "mean"), features("svm", "mean"), features("logreg", "cls")),
    ),
    Recipe(
        "Tweets in three classes, tested on later days",
        (Run("tweets", "train", config("tweets"), {"data.train": TWEETS}, "macro_f1", ""),),
    ),
    Recipe(
        "Aspects (MAMS, terms)",
        (aspects(pair=True), aspects(pair=True, head="attention"), aspects(pair=False)),
        attention_in_words,
    ),
    Recipe(
        "Aspects in long reviews (MAMS, terms)",
        (
            long_aspects("long-head", "64 tokens, `head`", "max_length=64", "long_text=head"),
            long_aspects("long-head_tail", "64 tokens, `head_tail`", "max_length=64", "long_text=head_tail"),
            long_aspects("long-whole", "256 tokens, which hold all of it", "max_length=256"),
            long_aspects("long-select", "64 tokens, `select`", "max_length=64", "long_text=select"),
            long_aspects(
                "long-attention",
                "64 tokens, `select`, `head=attention`",
                "max_length=64",
                "long_text=select",
                "head=attention",
            ),
        ),
        selection_in_words,
    ),
    Recipe(
        "IMDB: how much of a long review to read",
        tuple(
            imdb(max_length, long_text)
            for max_length, long_texts in {
                128: ("head", "head_tail", "windows"),
                256: ("head", "head_tail", "windows"),
                512: ("head", "windows"),
            }.items()
            for long_text in long_texts
        ),
        lengths_in_words,
    ),
    Recipe("Embeddings (IMDB)", (embeddings(),), neighbours_in_words),
    Recipe("Search (emotion, 1,000 train rows)", search(), search_in_words),
)
