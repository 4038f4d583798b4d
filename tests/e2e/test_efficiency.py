"""What is computed, prepared and sent for a review, counted: speed that no noisy clock has to tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import TextFormat
from bertray.execution.executor import Task
from bertray.execution.resources import Resources
from bertray.io.tables import ipc_buffer
from bertray.model.packing import plan_packs
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards, work_units
from bertray.reviews.rows import InputFile, ReadSpec
from bertray.scoring.read_unit import ReadAndTokenize, ReadSettings
from tests.scanning import inspect

ROWS = 4096
LENGTHS = {  # (mean of the logarithm, its spread, longest): like the reviews of IMDB, and like tweets
    "reviews": (5.4, 0.6, 512),
    "short": (3.1, 0.5, 128),
}


def lens_of(kind: str) -> np.ndarray:
    mean, spread, longest = LENGTHS[kind]
    lens = np.random.default_rng(0).lognormal(mean, spread, ROWS).astype(np.int64)
    return np.clip(lens, 3, longest)


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize(("multiples", "most"), [((1, 1), 1.0), ((16, 64), 1.02)], ids=["exact", "few shapes"])
def test_linear_layers_compute_next_to_nothing_but_real_tokens(kind, multiples, most):
    lens = lens_of(kind)
    packs = plan_packs(lens, max_tokens_per_pack=2048, width_multiple=multiples[0], slots_multiple=multiples[1])
    assert sum(pack.num_slots for pack in packs) <= most * lens.sum()


@pytest.mark.parametrize(
    ("kind", "multiple", "most"),
    [("reviews", 1, 1.01), ("reviews", 16, 1.05), ("short", 1, 1.03), ("short", 16, 1.65)],
)
def test_attention_pads_little(kind, multiple, most):
    """Products of query and key: computed over needed. Few widths cost short texts most, where attention is least."""
    lens = lens_of(kind)
    packs = plan_packs(lens, max_tokens_per_pack=2048, width_multiple=multiple)
    computed = sum((group.stop - group.first) * group.width**2 for pack in packs for group in pack.groups)
    assert computed <= most * np.square(lens).sum()


def test_padding_in_order_of_arrival_would_compute_half_as_much_again():
    """The yardstick: what the tests above save."""
    lens = lens_of("reviews")
    arrival = sum(32 * batch.max() for batch in lens.reshape(-1, 32))
    assert arrival > 1.5 * lens.sum()


def test_few_shapes_are_few():
    lens = lens_of("reviews")
    packs = plan_packs(lens, max_tokens_per_pack=2048, width_multiple=16, slots_multiple=64)
    assert len({pack.num_slots for pack in packs}) <= 12
    assert len({group.width for pack in packs for group in pack.groups}) <= 32


def test_a_review_goes_through_the_object_store_as_its_token_ids_and_little_else(tiny_encoder, tmp_path):
    words = np.array(["great", "good", "bad", "film", "plot", "the", "was"])
    texts = [" ".join(row) for row in words[np.random.default_rng(0).integers(len(words), size=(1000, 120))]]
    pq.write_table(pa.table({"id": [f"r{i}" for i in range(1000)], "text": texts}), tmp_path / "reviews.parquet")
    (entry,) = list_inputs([str(tmp_path)], TextFormat())
    file = inspect(entry, TextFormat())
    assert isinstance(file, InputFile)
    work = work_units(plan_shards([file], ROWS), ROWS)
    settings = ReadSettings(ReadSpec(), str(tiny_encoder), 128, "head")
    (table,) = map(ReadAndTokenize(settings), work)
    tokens = 1000 * 122
    assert table.num_rows == 1000
    assert (ipc_buffer(table).size - 2 * tokens) / 1000 < 140 + len(str(tmp_path / "reviews.parquet"))


def second_after(path: Path) -> Callable[[int], int]:
    """A function that gives item 0 at once, and item 1 when `path` is there."""

    def give(item: int) -> int:
        deadline = time.monotonic() + 30
        while item == 1 and not path.exists():
            assert time.monotonic() < deadline, "nobody was told of the first item"
            time.sleep(0.05)
        return item

    return give


@pytest.mark.ray
def test_an_item_is_told_of_before_the_next_one_is_made(ray_cluster, tmp_path):
    from bertray.execution.ray_data import RayData

    told = tmp_path / "told"
    executor = RayData(Resources(num_workers=1, threads=1, cpus_per_worker=1.0, gpus_per_worker=0))
    for item in executor.run([0, 1], [Task(second_after(told))]):
        told.write_text(str(item))
    assert told.read_text() == "1"
