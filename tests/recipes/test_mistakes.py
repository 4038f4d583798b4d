"""Wrong input to the recipes: told before Ray starts, in words, with the exit code of its kind, and nothing written."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.config import load_config
from tests.e2e.test_example_configs import CONFIGS, write_sample
from tests.recipes import run as recipes
from tests.refusals import assert_refused


def call(verb: str, names: tuple[str, ...], encoder, folder, *words: str) -> int:
    configs = [word for name in names for word in ("-c", str(CONFIGS / f"{name}.yaml"))]
    return run([verb, *configs, f"model={encoder}", f"output={folder / 'out'}", "max_length=24", *words])


@pytest.mark.parametrize(
    ("names", "sample", "words", "code", "said"),
    [
        (("emotion",), "tweets", [], 6, "found 96 rows with others: negative (32), neutral (32), positive (32)"),
        (("imdb",), "emotion", [], 6, "expected label values 0, 1, found 96 rows with others"),
        (("emotion",), "emotion", ["labels=[sadness]"], 2, "at least two class names"),
        (("cola",), "cola", ["columns={text: 3, label: 1}"], 2, "expected column '3'"),
        (("cola",), "imdb", [], 2, "expected column 'source'"),
        (("aspects",), "tweets", [], 2, "`columns.text_pair`"),
        (("tweets",), "imdb", ["report.slices=[]", "labels={0: a, 1: b}"], 2, "`data.time`"),
        (("tweets",), "tweets", ["data.test_from=2016-01-01"], 6, "no row with date from 2016-01-01 on"),
        (("tweets",), "tweets", ["data.test_from=2015-01-01"], 6, "no row with date before 2015-01-01"),
        (("tweets",), "tweets", ["data.test_from=2015-2-23"], 2, "in ISO form"),
        (("tweets",), "tweets", ["data.time=airline"], 6, "expected 'airline' to hold times in ISO form"),
        (("tweets",), "tweets", ["data.test=x.parquet"], 2, "exclude each other"),
        (("emotion",), "emotion", ["data.test_from=2015-01-01"], 2, "need each other"),
        (("features",), "features", ["training.head=forest"], 2, "training.head"),
        (("features",), "features", ["training.pooling=max"], 2, "training.pooling"),
        (("imdb",), "imdb", ["long_text=middle"], 2, "long_text"),
    ],
)
def test_a_mistake_in_a_training_recipe(names, sample, words, code, said, tiny_encoder, tmp_path, capsys):
    train = write_sample(sample, tmp_path / "train.parquet", 96, 1)
    assert call("train", names, tiny_encoder, tmp_path, f"data.train={train}", *words) == code
    assert_refused(capsys, said, tmp_path / "out")


@pytest.mark.parametrize("verb", ["train", "tune", "embed", "topics"])
def test_an_empty_corpus(verb, tiny_encoder, tmp_path, capsys):
    empty = pa.table(
        {"id": pa.array([], pa.string()), "text": pa.array([], pa.string()), "label": pa.array([], pa.string())}
    )
    pq.write_table(empty, tmp_path / "empty.parquet")
    (tmp_path / "nothing").mkdir()
    names = {"train": ("emotion",), "tune": ("emotion", "tune"), "embed": ("embed",), "topics": ("topics",)}[verb]
    key = "input" if verb in ("embed", "topics") else "data.train"
    assert call(verb, names, tiny_encoder, tmp_path, f"{key}={tmp_path / 'nothing'}") == 6
    if verb != "embed":  # a night without a row is a night
        assert call(verb, names, tiny_encoder, tmp_path, f"{key}={tmp_path / 'empty.parquet'}") == 6
    assert not (tmp_path / "out").exists()


def test_a_search_space_with_a_typo(tiny_encoder, tmp_path, capsys):
    train = write_sample("emotion", tmp_path / "train.parquet", 96, 1)
    space = "search.space={training.learning_rat: [1e-4, 1e-3]}"
    assert call("tune", ("emotion", "tune"), tiny_encoder, tmp_path, f"data.train={train}", space) == 2
    assert "Did you mean 'training.learning_rate'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_word_of_the_recipes_can_be_filled_in_and_makes_a_config():
    """What `make recipes` runs, without running it."""
    names = [run.name for recipe in recipes.RECIPES for run in recipe.runs]
    assert len(names) == len(set(names))
    outputs: dict[str, str] = {}
    for recipe in recipes.RECIPES:
        for each in recipe.runs:
            words = [recipes.with_outputs(word, outputs.__getitem__) for word in each.words]
            assert not any(name in word for word in words for name in ("{search}", "{imdb"))
            files = [str(CONFIGS.parent.parent / file) for before, file in pairwise(words) if before == "-c"]
            rest = [word for before, word in pairwise(["", *words]) if "-c" not in (before, word)]
            data = recipes.data_words(each, lambda rows: f"data/{rows.path}")
            if not any("best.yaml" in file for file in files):  # which an earlier run writes
                load_config(each.verb, files, [*rest, *data, "output=out"])
            outputs[each.name] = "runs/" + each.name
