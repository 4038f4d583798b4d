"""What `make recipes` remembers: a block of the page for each recipe, by what its runs were."""

from __future__ import annotations

import dataclasses

from tests import recipes
from tests.recipe import Recipe, Rows

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
    fewer = dataclasses.replace(first, data=first.data | {"data.train": Rows("cola/train.parquet", 10)})
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
    assert all(isinstance(recipe, Recipe) for recipe in recipes.RECIPES if recipes.Page(recipes.PAGE).knows(recipe))
