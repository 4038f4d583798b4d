"""What a model reads of a review is decided once: pairs, cleaning and cuts are those of its training, whoever reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.config import Columns, EvaluateConfig
from bertray.console import Ticker
from bertray.errors import ConfigError
from bertray.execution.on_demand import in_this_process
from bertray.model.bundle import BundleInfo, write_bundle
from bertray.reviews.clean import Cleaning
from bertray.reviews.corpus import open_inputs
from bertray.reviews.rows import ReadSpec
from bertray.scoring.models import open_model
from bertray.scoring.read_unit import ReadAndTokenize, ReadSettings
from bertray.scoring.stage_part import stage_parts
from bertray.training.rank import train_rank
from tests.nightly import INFO, without_ray

TEXTS = [
    "<b>great</b> film",
    "bad plot &amp; poor actor, boring story " * 9,
    "caf\N{COMBINING ACUTE ACCENT}e is fine",
    "it was &lt;good&gt;",
]


def write(path: Path, **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_the_second_text_of_a_pair_reaches_the_model(tiny_encoder, tmp_path):
    from transformers import AutoTokenizer

    texts, aspects = ["the film was great", "the film was great", "a story"], ["plot", "the actor", "film"]
    path = write(tmp_path / "in.parquet", id=["0", "1", "2"], text=texts, aspect=aspects)
    columns = Columns(text_pair="aspect")
    config = EvaluateConfig(model=str(tiny_encoder), input=[str(path)], output=str(tmp_path / "out"), columns=columns)
    inputs = open_inputs("input", config.input, config, ReadSpec(columns=columns), in_this_process)
    read = ReadSettings(inputs.spec, str(tiny_encoder), 16, "head")
    [rows] = map(ReadAndTokenize(read), inputs.work_units(16))
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    assert rows["input_ids"].to_pylist() == tokenizer(texts, aspects)["input_ids"]
    assert rows["second_len"].to_pylist() == [2, 3, 2]  # with its [SEP]


@pytest.mark.parametrize(
    ("of_pairs", "column", "said"),
    [(True, None, "was trained on pairs of texts, and no second"), (False, "aspect", "was trained on single texts")],
)
def test_a_model_of_pairs_wants_pairs_and_another_does_not(of_pairs, column, said, tiny_encoder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder)
    info = BundleInfo(**{**INFO.__dict__, "text_pair": of_pairs})
    write_bundle(tmp_path / "model", model, tiny_encoder, info, "")

    def opened(text_pair: str | None) -> BundleInfo:
        columns = Columns(text_pair=text_pair)
        return open_model(EvaluateConfig(model=str(tmp_path / "model"), input=["x"], output="y", columns=columns))

    with pytest.raises(ConfigError, match=said):
        opened(column)
    assert opened("aspect" if of_pairs else None).text_pair is of_pairs
    (tmp_path / "model" / "bertray.json").unlink()  # of a model from elsewhere nobody knows
    assert opened("aspect").text_pair is False


def test_reviews_that_are_evaluated_add_up_to_those_that_were_announced(tiny_encoder, tmp_path, monkeypatch):
    """Held-out rows stand between others, in files of one label each."""
    seen: dict[str, list[float]] = {}

    class Noted(Ticker):
        def update(self, done: float, note: str = "") -> None:
            seen.setdefault(self._title, []).append(done / self.total)

    without_ray(monkeypatch)
    monkeypatch.setattr("bertray.scoring.stage_part.Ticker", Noted)
    for label in ("neg", "pos"):
        for part in range(3):
            texts = [f"{TEXTS[number % 4]} {label} {part} {number}" for number in range(60)]
            write(tmp_path / "in" / f"label={label}" / f"{part}.parquet", text=texts)
    words = [f"model={tiny_encoder}", f"data.train={tmp_path / 'in'}", "max_length=12", "data.validation_fraction=0.1"]
    words += ["training.method=finetune", "training.epochs=1", "report.baselines=false", "report.explain=0"]
    assert run(["train", *words, f"output={tmp_path / 'run'}"]) == 0
    assert seen["evaluating"] == sorted(seen["evaluating"])
    assert seen["evaluating"][-1] == 1


@pytest.mark.slow
def test_scored_and_evaluated_reviews_are_tokenized_as_they_were_for_training(tiny_encoder, tmp_path, monkeypatch):
    learned: list[list[int]] = []
    read: dict[str, list[list[int]]] = {}
    others: list[list[list[int]]] = []

    def ids(work, settings) -> list[list[int]]:
        read_unit = ReadAndTokenize(settings)
        return [row for item in work for row in read_unit(item)["input_ids"].to_pylist()]

    def rank(job, *rest):
        shards = job.data.examples().shards
        learned.extend(row.tolist() for row in shards.sequences(range(len(shards))))
        return train_rank(job, *rest)

    def spied(name: str):
        def staged(work, models, *rest, **only):
            [(settings, _)] = models
            read[name] = ids(work, settings)
            spec = settings.spec
            for other in (
                replace(settings, spec=replace(spec, cleaning=Cleaning())),
                replace(settings, spec=replace(spec, max_chars=20_000)),
                replace(settings, long_text="head"),
            ):
                others.append(ids(work, other))
            return stage_parts(work, models, *rest, **only)

        return staged

    without_ray(monkeypatch)
    monkeypatch.setattr("bertray.runs.fit.training_workers.train_rank", rank)
    monkeypatch.setattr("bertray.runs.evaluated.stage_parts", spied("evaluate"))
    monkeypatch.setattr("bertray.runs.night.stage_parts", spied("score"))
    path = write(
        tmp_path / "in" / "a.parquet",
        id=[str(number) for number in range(40)],
        text=[f"{TEXTS[number % 4]} {number}" for number in range(40)],
        label=["neg", "pos"] * 20,
    )
    reading = ["cleaning={strip_html: false, normalize: NFKC}", "max_length=12", "long_text=tail", "max_chars=200"]
    words = [f"model={tiny_encoder}", f"data.train={path}", "training.epochs=1", "report.baselines=false"]
    assert run(["train", *words, *reading, f"output={tmp_path / 'run'}"]) == 0
    model = f"model={tmp_path / 'run' / 'model'}"
    assert run(["evaluate", model, f"input={path}", f"output={tmp_path / 'evaluated'}"]) == 0
    assert run(["score", model, f"input={path.parent}", f"output={tmp_path / 'scored'}"]) == 0
    assert len(learned) == 40
    assert max(map(len, learned)) == 12
    assert read == {"evaluate": learned, "score": learned}
    assert all(other != learned for other in others)  # what is not the default tells
