"""What `make recipes` remembers: a block of the page for each recipe, by what its runs were."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.model.new_encoder import VocabularySettings, learn_vocabulary
from tests.recipes import run as recipes
from tests.recipes.labelled import long_reviews
from tests.recipes.recipe import Recipe, Result, Rows, Run

COLA, EMOTION = recipes.RECIPES[:2]


def page_at(path, text=""):
    if text or not path.is_file():
        path.write_text(text or f"before\n{recipes.BEGIN}{recipes.END}after\n", encoding="utf-8")
    return recipes.Page(path)


def test_the_page_keeps_what_recipes_came_to_in_their_order_and_nothing_else_changes(tmp_path):
    path = tmp_path / "page.md"
    page = page_at(path)
    assert not page.knows(COLA)
    page.put(EMOTION, "### emotion\n\nthree words\n")
    page.put(COLA, "### CoLA\n\n0.4\n")
    again = page_at(path)
    assert again.knows(COLA)
    assert again.knows(EMOTION)
    assert not again.knows(recipes.RECIPES[2])
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n" + recipes.BEGIN)
    assert text.endswith(recipes.END + "after\n")
    assert text.index("### CoLA\n\n0.4\n") < text.index("### emotion\n\nthree words\n")
    again.put(COLA, "### CoLA\n\n0.5\n")
    assert path.read_text(encoding="utf-8") == text.replace("0.4", "0.5")


def test_other_rows_words_or_earlier_runs_make_another_recipe():
    digest = recipes.digest_of_runs(COLA.runs)
    first, *others = COLA.runs
    fewer = dataclasses.replace(first, data={**first.data, "data.train": Rows("cola/train.parquet", 10)})
    slower = dataclasses.replace(first, words=(*first.words, "training.epochs=9"))
    reworded = dataclasses.replace(first, settings="the first seed", published="nothing")
    changed = [recipes.digest_of_runs((run, *others)) for run in (fewer, slower, reworded)]
    assert [found == digest for found in changed] == [False, False, True]


def test_a_run_that_reads_another_ones_output_changes_with_it(monkeypatch):
    (reads,) = (run for run in recipes.RUNS.values() if any("{search}/best.yaml" in word for word in run.words))
    before = recipes.digest_of_runs([reads])
    search = recipes.RUNS["search"]
    monkeypatch.setitem(recipes.RUNS, "search", dataclasses.replace(search, words=(*search.words, "search.trials=2")))
    assert recipes.digest_of_runs([reads]) != before


def test_blocks_of_runs_that_nobody_asks_for_go(tmp_path):
    stale = "<!-- recipe 00000000 -->\n### gone\n"
    page = page_at(tmp_path / "page.md", f"{recipes.BEGIN}\n{stale}\n{recipes.END}")
    page.put(COLA, "### CoLA\n")
    assert "gone" not in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_the_page_of_the_project_can_be_read():
    page = recipes.Page(recipes.PAGE)
    assert [recipe.title for recipe in recipes.RECIPES if not page.knows(recipe)] == []


# --- the kitchen -----------------------------------------------------------------------------------------------------


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    """One whose commands only note that they ran; `bad` fails."""
    pq.write_table(pa.table({"id": [str(n) for n in range(20)], "text": [f"t{n}" for n in range(20)]}), tmp_path / "a")
    made: Any = recipes.Kitchen(tmp_path, tmp_path / "run")
    made.ran = []

    def bertray(verb, *words):
        made.ran.append(verb)
        if verb == "bad":
            raise recipes.Spoilt("bad ended with 6")
        (output,) = (word.removeprefix("output=") for word in words if word.startswith("output="))
        (Path(output)).mkdir(parents=True)

    monkeypatch.setattr(made, "_bertray", bertray)
    return made


def dish(name: str, *words: str) -> Recipe:
    run = Run(name, name, words, {"input": Rows("a", 5)}, "", "")
    recipes.RUNS[name] = run
    return Recipe(name, (run,), lambda results: f"{len(results)} told")


@pytest.fixture(autouse=True)
def runs_as_they_were(monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", dict(recipes.RUNS))


def test_what_is_done_is_done_once_until_it_is_to_be_forgotten(kitchen):
    good, after = dish("good"), dish("after", "model={good}/model")
    assert not kitchen.has(after.runs[0])
    kitchen.cook(after.runs[0])
    kitchen.cook(good.runs[0])
    assert kitchen.ran == ["good", "after"]
    assert kitchen.has(good.runs[0])
    assert kitchen.has(after.runs[0])
    kitchen.forget(after.runs[0])
    result = kitchen.cook(after.runs[0])
    assert kitchen.ran == ["good", "after", "after"]
    assert result.train_rows == 5


def test_a_recipe_that_fails_is_told_and_stops_no_other(kitchen, tmp_path, monkeypatch):
    bad, good = dish("bad"), dish("good")
    monkeypatch.setattr(recipes, "RECIPES", (bad, good))
    page = page_at(tmp_path / "page.md")
    failures = [failure for recipe in (bad, good) for failure in recipes.make(recipe, kitchen, page)]
    assert failures == ["bad: bad ended with 6"]
    assert page_at(tmp_path / "page.md").knows(good)
    assert not page.knows(bad)
    page.drop(good)
    assert not page_at(tmp_path / "page.md").knows(good)


def test_a_figure_below_its_floor_is_a_failure_and_is_told_all_the_same(kitchen, tmp_path, monkeypatch):
    low = dataclasses.replace(dish("low"), floors=lambda _: [("MCC", 0.35, 0.356), ("accuracy", 0.93, 0.924)])
    monkeypatch.setattr(recipes, "RECIPES", (low,))
    page = page_at(tmp_path / "page.md")
    assert recipes.make(low, kitchen, page) == ["low: MCC 0.350, less than 0.356"]
    assert page.knows(low)


def test_what_is_done_here_is_told_again_and_what_was_done_elsewhere_is_left_alone(kitchen, tmp_path, monkeypatch):
    good = dish("good")
    monkeypatch.setattr(recipes, "RECIPES", (good,))
    page = page_at(tmp_path / "page.md")
    page.put(good, "### of another machine\n")
    assert recipes.make(good, kitchen, page) == []
    assert kitchen.ran == []
    kitchen.cook(good.runs[0])
    recipes.make(dataclasses.replace(good, remark=lambda _: "other words"), kitchen, page)
    assert kitchen.ran == ["good"]
    assert "other words" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_two_samples_of_a_file_share_no_row_and_the_file_is_made_over_first():
    table = pa.table({"id": [str(n) for n in range(20)]})
    first = recipes.sampled(table, Rows("a", 8))["id"].to_pylist()
    second = recipes.sampled(table, Rows("a", 8, after=8))["id"].to_pylist()
    assert len(first) == len(second) == 8
    assert not set(first) & set(second)

    def last_ten(table: pa.Table) -> pa.Table:
        return table.slice(10)

    made = Rows("a", made=last_ten)
    assert recipes.sampled(table, made)["id"].to_pylist() == [str(n) for n in range(10, 20)]
    assert len({rows.name for rows in (Rows("a", 8), Rows("a", 8, after=8), Rows("a", 8, made=last_ten), made)}) == 4


def test_long_reviews_keep_the_aspects_of_a_single_sentence():
    told = [("s1", "Good soup.", "soup", "positive"), ("s1", "Good soup.", "Bread", "neutral")]
    told += [("s2", "Bad bread.", "bread", "negative"), ("s2", "Bad bread.", "waiter", "neutral")]
    keys = ("sentence_id", "text", "aspect", "label")
    sentences = pa.Table.from_pylist(
        [{**dict(zip(keys, one, strict=True)), "id": str(n)} for n, one in enumerate(told)]
    )
    found = long_reviews(sentences).to_pylist()
    texts = {row["text"] for row in found}
    assert texts in ({"Good soup. Bad bread."}, {"Bad bread. Good soup."})
    assert {(row["id"], row["aspect"], row["label"]) for row in found} == {
        ("0", "soup", "positive"),
        ("3", "waiter", "neutral"),
    }


def test_a_difference_on_the_same_rows_has_the_interval_of_the_paired_bootstrap(tmp_path):
    def result(name: str, right: int) -> Result:
        output = tmp_path / name
        output.mkdir()
        said = ["pos" if number < right else "neg" for number in range(100)]
        ids = [f"{number:03}" for number in range(100)]
        pq.write_table(
            pa.table({"id": ids, "label": ["pos"] * 100, "prediction": said}), output / "predictions.parquet"
        )
        return Result(Run(name, "train", (), {}, "accuracy", ""), output, 1.0, 1)

    found = result("a", 90).against(result("b", 80))
    assert found.value == pytest.approx(0.1)
    assert 0.03 < found.low < 0.08 < 0.12 < found.high < 0.18  # ten rows of a hundred: a binomial's ends


@pytest.mark.slow
@pytest.mark.parametrize("run", [run for run in recipes.RUNS.values() if run.name.endswith("-encoder")], ids=str)
def test_the_sample_of_a_new_encoder_holds_as_many_pieces_as_it_asks_for(run, real_data):
    table = pq.read_table(real_data / run.samples[0].path)
    (size,) = (int(word.partition("=")[2]) for word in run.words if word.startswith("vocabulary.size="))
    texts = [text for text in recipes.sampled(table, run.samples[0])["text"].to_pylist() if text]
    wanted = VocabularySettings(size=size, lowercase=True, strip_accents=False)
    assert 0.9 * size < len(learn_vocabulary(texts, wanted)) <= size


def test_the_majority_is_that_of_the_test_rows():
    from tests.recipes.unlabelled import language_in_words

    ends = {"value": 40.0, "low": 36.0, "high": 44.0}
    pretrained = {"before": {"perplexity": ends, "accuracy": 0.0}, "after": {"perplexity": ends, "accuracy": 0.2}}
    figure = {"value": 0.6, "low": 0.5, "high": 0.7}
    metrics = {
        "labels": ["negative", "neutral", "positive"],
        "confusion_matrix": [[10, 5, 0], [5, 10, 15], [5, 10, 40]],
        "metrics": {"accuracy": figure},
        "baselines": {"tfidf_logreg": {"accuracy": figure}},
    }
    run = Run("x", "train", (), {}, "accuracy", "")
    path = Path("nowhere")
    told = language_in_words([Result(run, path, 1.0, 9, pretrained), Result(run, path, 1.0, 9, metrics)])
    assert "0.550 would be right who always said positive" in told
