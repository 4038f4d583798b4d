"""Recipes that learn without labels, or about the data: domain adaptation, new encoders, distillation, topics."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray.reports.pretraining import shown
from tests.recipes.labelled import IMDB
from tests.recipes.recipe import Recipe, Result, Rows, Run, config, in_points

# --- domain adaptation -----------------------------------------------------------------------------------------------

BOOKS = {
    "data.train": Rows("amazon_multidomain/books.parquet", 1000),
    "data.test": Rows("amazon_multidomain/electronics.parquet", 1000),
}
# What the classifier is tested on is not among it.
SHOPS = (
    Rows("amazon_multidomain/books.parquet", 1500),
    Rows("amazon_multidomain/electronics.parquet", 1000, after=1000),
)


def adapted() -> Run:
    return Run("adapted", "pretrain", config("pretrain"), {"input": SHOPS}, "", "")


def books(model: str, settings: str) -> Run:
    words = (*config("imdb"), f"model={model}", "training.epochs=2", "training.learning_rate=1e-4")
    return Run(f"books-{settings.split()[0]}", "train", words, BOOKS, "accuracy", settings)


def perplexity_in_words(result: Result) -> str:
    before, after = (result.metrics[name]["perplexity"] for name in ("before", "after"))
    return (
        f"{result.train_rows:,} texts in {result.minutes:.1f} minutes: pseudo-perplexity of held-out text "
        f"{shown(before['value'])} before, {shown(after['value'])} after "
        f"[{shown(after['low'])}, {shown(after['high'])}]; tokens guessed {result.metrics['before']['accuracy']:.1%} "
        f"before, {result.metrics['after']['accuracy']:.1%} after."
    )


def adaptation_in_words(results: list[Result]) -> str:
    pretrained, with_it, without = results
    history = pq.read_table(pretrained.output / "history.parquet").to_pylist()
    epochs = [shown(row["perplexity"]) for row in history if row["kind"] == "eval"]
    return (
        f"{perplexity_in_words(pretrained)} By epoch: {', then '.join(epochs)}; the base comes without the head that "
        "guesses tokens, so the first of these says little. A classifier of books, tested on electronics of which "
        f"neither step has seen any: {in_points(with_it.against(without))} of accuracy with the adapted encoder "
        "against the bundled one, one seed each."
    )


# --- a language without an encoder at hand ---------------------------------------------------------------------------


CHINESE = "labels={0: negative, 1: positive}"


def encoder(language: str, path: str, rows: int, size: int) -> Run:
    words = (*config("scratch"), f"vocabulary.size={size}", "training.epochs=3")
    return Run(f"{language}-encoder", "pretrain", words, {"input": Rows(path, rows)}, "", "")


def language_data(folder: str, rows: int) -> dict[str, Rows]:
    return {"data.train": Rows(f"{folder}/train.parquet", rows), "data.test": Rows(f"{folder}/test.parquet", 5000)}


def automatic(language: str, folder: str, rows: int, *words: str) -> Run:
    """What `init` prints: a bundled encoder that cannot read the language."""
    words = ("model=bundled", "max_length=64", "training.method=auto", *words)
    settings = f"{language}, `auto` on {rows:,}"
    return Run(f"{language.lower()}-auto", "train", words, language_data(folder, rows), "macro_f1", settings)


def fine_tuned(language: str, folder: str, rows: int) -> Run:
    data = language_data(folder, rows)
    words = (*config(language), f"model={{{language}-encoder}}/model", "max_length=64", "training.learning_rate=3e-4")
    settings = f"new encoder, fine-tuned on {rows:,}; TF-IDF is of characters"
    return Run(f"{language}-fine-tuned", "train", words, data, "macro_f1", settings)


def language_in_words(results: list[Result]) -> str:
    metrics = results[1].metrics
    rows_of_class = [sum(row) for row in metrics["confusion_matrix"]]
    largest = max(rows_of_class) / sum(rows_of_class)
    accuracy = results[1].value("accuracy")
    tfidf = results[1].value("accuracy", "tfidf_logreg")["value"]
    return (
        f"{perplexity_in_words(results[0])} Accuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, "
        f"{accuracy['high']:.3f}]; {largest:.3f} would be right who always said "
        f"{metrics['labels'][int(np.argmax(rows_of_class))]}, the most frequent class of the test; character TF-IDF "
        f"{tfidf:.3f}."
    )


def automatic_in_words(results: list[Result]) -> str:
    told = []
    for result in results:
        accuracy, tfidf = result.value("accuracy"), result.value("accuracy", "tfidf_logreg")
        told.append(
            f"{result.run.settings}: accuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}], "
            f"character TF-IDF {tfidf['value']:.3f}"
        )
    return f"The encoder reads none of it, so that `auto` takes TF-IDF alone. {'; '.join(told)}."


# --- distillation ----------------------------------------------------------------------------------------------------


def student(layers: int) -> Run:
    teacher = "{imdb-128-head}/model"
    words = (*config("distill"), f"training.teacher={teacher}", f"model={teacher}", f"training.keep_layers={layers}")
    data = {"data.train": Rows("imdb/train.parquet", 2000), "data.test": IMDB["data.test"]}
    kept = f"{layers} layers of 6" if layers > 1 else "1 layer of 6"
    return Run(f"student-{layers}", "train", (*words, "training.epochs=2"), data, "accuracy", kept)


def students_in_words(results: list[Result]) -> str:
    teacher = results[0].value("accuracy", "teacher")["value"]
    told = []
    for result in results:
        of_student, of_teacher = (result.metrics[name]["rows_per_s"] for name in ("student", "teacher"))
        told.append(f"{result.run.settings}: {of_student:,.0f} rows/s against {of_teacher:,.0f} of the teacher")
    return f"The teacher, all six layers of `imdb-128-head`: accuracy {teacher:.3f}. {'; '.join(told)}."


# --- topics ----------------------------------------------------------------------------------------------------------


def body_of_post(posts: pa.Table) -> pa.Table:
    """News posts without header, quotes and signature: those name the group, or repeat another post."""
    from sklearn.datasets import _twenty_newsgroups as news

    bodies = [
        news.strip_newsgroup_footer(news.strip_newsgroup_quoting(news.strip_newsgroup_header(text)))
        for text in posts["text"].to_pylist()
    ]
    return posts.set_column(posts.column_names.index("text"), "text", pa.array(bodies, pa.string()))


POSTS = Rows("newsgroups20/train.parquet", made=body_of_post)
AMAZON = tuple(Rows(f"amazon_multidomain/{name}.parquet") for name in ("books", "dvd", "electronics"))


def topics(name: str, data: Rows | tuple[Rows, ...], *words: str) -> Run:
    return Run(f"topics-{name}", "topics", (*config("topics"), *words), {"input": data}, "", name)


def topics_in_words(results: list[Result]) -> str:
    lines = []
    for result in results:
        report: dict[str, Any] = json.loads((result.output / "report.json").read_text(encoding="utf-8"))
        lines.append(
            f"- {result.run.settings}, {report['rows']:,} reviews of which {report['sampled']:,} are the sample, "
            f"{result.minutes:.1f} minutes: {report['headline']}"
        )
        for comparison in report["comparisons"]:
            found, tfidf = comparison["agreement"]["figures"], comparison["agreement"]["baseline"]
            figures = ", ".join(
                f"{figure.upper()} {found[figure]['value']:.3f} [{found[figure]['low']:.3f}, "
                f"{found[figure]['high']:.3f}] against {tfidf[figure]['value']:.3f} of TF-IDF + k-means"
                for figure in ("nmi", "ari")
            )
            which = {"all": "all reviews"}.get(comparison["rows"], comparison["rows"])
            lines.append(f"  - with `{comparison['column']}`, {which}: {figures}")
    return "\n".join(lines)


# --- audits ----------------------------------------------------------------------------------------------------------


def audit(name: str, *words: str, **splits: str) -> Run:
    """Labels are judged on a sample, as TF-IDF of all would take most of the time."""
    data = {f"data.{split}": Rows(f"{name}/{file}.parquet") for split, file in splits.items()}
    return Run(f"audit-{name}", "audit", (*config("audit"), "label_errors.max_rows=10000", *words), data, "", name)


def audits_in_words(results: list[Result]) -> str:
    """What stands in report.json, a line for each data set; nothing of it is looked up in data/README.md."""
    lines = [
        "| data | rows | repeats of a text | of nearly a text | in two splits | contradicting labels | labels in doubt "
        "| cannot be used | control characters | HTML | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        report: dict[str, Any] = json.loads((result.output / "report.json").read_text(encoding="utf-8"))
        marks, splits, doubtful = report["marks"], report["marks"].keys(), report["label_errors"]

        def total(key: str, name: str, report: dict[str, Any] = report) -> int:
            return sum(of_split[name] for split, of_split in report[key].items() if split != "all")

        repeats = [total(key, "rows") - total(key, "groups") for key in ("duplicates", "near_duplicates")]
        broken = sum(sum(reasons.values()) for reasons in report["broken"].values())
        cells = [
            f"`{result.run.settings}`",
            f"{report['rows_in']:,}",
            *(f"{number:,}" for number in repeats),
            f"{sum(leak['exact_rows'] for leak in report['leakage']):,} and "
            f"{sum(leak['near_rows'] for leak in report['leakage']):,} nearly",
            f"{report['conflicts']['all']['groups']:,}",
            "not judged" if doubtful["skipped"] else f"{doubtful['suspected']:,} of {doubtful['judged']:,} judged",
            f"{broken:,}",
            f"{sum(marks[split]['control_characters'] for split in splits):,}",
            f"{sum(marks[split]['html_tags'] for split in splits):,} tags, "
            f"{sum(marks[split]['html_entities'] for split in splits):,} entities",
            f"{result.minutes:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


UNLABELLED = (
    Recipe(
        "Domain adaptation (Amazon reviews)",
        (adapted(), books("{adapted}/model", "adapted encoder"), books("bundled", "bundled encoder")),
        adaptation_in_words,
    ),
    Recipe(
        "Korean film reviews without a Korean encoder",
        (encoder("korean", "naver_movies/train.parquet", 30_000, 8000), fine_tuned("korean", "naver_movies", 24_000)),
        language_in_words,
        model="a new one of four layers, 256 numbers a token",
    ),
    Recipe(
        "Chinese shop reviews without a Chinese encoder",
        (
            encoder("chinese", "online_shopping_10_cats/train.parquet", 12_000, 4000),
            fine_tuned("chinese", "online_shopping_10_cats", 5000),
        ),
        language_in_words,
        model="a new one of four layers, 256 numbers a token",
    ),
    Recipe(
        "Korean and Chinese reviews by `auto`",
        (
            automatic("Korean", "naver_movies", 24_000),
            automatic("Chinese", "online_shopping_10_cats", 5000, CHINESE),
        ),
        automatic_in_words,
    ),
    Recipe("A student of the IMDB model", (student(3), student(1)), students_in_words),
    Recipe(
        "Topics",
        (
            topics("newsgroups", POSTS, "max_length=128", "topics.sample_rows=4000", "topics.compare_with=label"),
            topics("amazon", AMAZON, "max_length=128", "topics.compare_with=category"),
        ),
        topics_in_words,
    ),
    Recipe(
        "Audits",
        (
            audit("airline_tweets", train="all"),
            audit("amazon_multidomain", train="books", validation="electronics", test="dvd"),
            audit("cola", train="train", validation="out_of_domain_dev", test="dev"),
            audit("emotion", train="train", validation="validation", test="test"),
            audit("imdb", train="train", test="test"),
            audit("mams_absa", "columns.text_pair=aspect", train="term_train", validation="term_val", test="term_test"),
            audit("naver_movies", train="train", test="test"),
            audit("newsgroups20", train="train", test="test"),
            audit("online_shopping_10_cats", train="train", test="test"),
        ),
        audits_in_words,
    ),
)
