"""`bertray pretrain`: what it writes, that `train` takes it, that it stops where it was, and wrong input."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.errors import DataRefused
from bertray.model.new_encoder import EncoderShape, VocabularySettings, learn_vocabulary, write_new_encoder
from tests.refusals import assert_refused

KEYS = ["max_length=24", "training.epochs=2", "training.learning_rate=1e-3", "training.held_out_tokens=60"]


@pytest.mark.slow
def test_an_encoder_is_adapted_and_train_takes_it(tiny_encoder, corpus, tmp_path, capsys):
    from safetensors.torch import load_file
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

    output = tmp_path / "adapted"
    words = ["pretrain", f"model={tiny_encoder}", f"input={corpus / 'train.parquet'}", f"output={output}", *KEYS]
    assert run(words) == 0
    left = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    assert [name for name in left if not name.startswith("control/")] == [
        "config.yaml",
        "history.parquet",
        "metrics.json",
        "model/README.md",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "model/vocab.txt",
        "report.html",
    ]
    assert not [name for name in left if "checkpoints" in name or "control/base" in name]

    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["held_out_tokens"] == 60
    assert metrics["after"]["perplexity"]["value"] < metrics["before"]["perplexity"]["value"]
    history = pq.read_table(output / "history.parquet").to_pylist()
    evals = [row for row in history if row["kind"] == "eval"]
    assert [row["epoch"] for row in evals] == [0, 1, 2]
    assert evals[0]["perplexity"] == metrics["before"]["perplexity"]["value"]
    page = (output / "report.html").read_text()
    assert "came without the head that guesses tokens" in page
    assert "<table" in page

    model, loading = AutoModelForMaskedLM.from_pretrained(output / "model", output_loading_info=True)
    assert not loading["missing_keys"]
    # The pooler of the base is there as it was: pretraining has none.
    pooler = load_file(tiny_encoder / "model.safetensors")["pooler.dense.weight"]
    classifier = AutoModelForSequenceClassification.from_pretrained(output / "model")
    assert classifier.bert.pooler.dense.weight.equal(pooler)
    learned = model.bert.encoder.layer[0].output.dense.weight
    assert classifier.bert.encoder.layer[0].output.dense.weight.equal(learned)

    capsys.readouterr()
    assert run(words) == 0
    assert capsys.readouterr().out == f"already pretrained: {output}/report.html\n"
    assert run([*words[:-1], "training.held_out_tokens=61"]) == 4
    assert "holds a pretrain run with other data or settings" in capsys.readouterr().err


def test_a_new_encoder_with_its_own_word_pieces(corpus, tmp_path):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    output = tmp_path / "new"
    shape = ["encoder={num_layers: 1, hidden_size: 16, num_heads: 2}", "vocabulary.size=60"]
    words = [f"input={corpus / 'train.parquet'}", f"output={output}", "from_scratch=true", *shape, *KEYS]
    assert run(["pretrain", *words]) == 0
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert len(tokenizer) == 60
    text = pq.read_table(corpus / "train.parquet")["text"][0].as_py()
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize(text)) == text.lower()
    assert tokenizer(text)["input_ids"][0] == tokenizer.cls_token_id
    model = AutoModelForMaskedLM.from_pretrained(output / "model")
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.intermediate_size) == (1, 16, 64)
    assert "came without the head" not in (output / "report.html").read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_on_the_workers_of_ray_train_and_a_classifier_of_it(tiny_encoder, corpus, tmp_path, ray_cluster):
    from tests.corpus import train_argv

    output = tmp_path / "adapted"
    words = ["pretrain", f"model={tiny_encoder}", f"input={corpus / 'train.parquet'}", f"output={output}", *KEYS]
    assert run([*words, "workers.num_workers=2"]) == 0
    assert run(train_argv(output / "model", corpus, tmp_path / "classifier")) == 0
    assert json.loads((tmp_path / "classifier" / "metrics.json").read_text())["rows"] == 90


def test_word_pieces_of_korean_chinese_and_english_come_back_whole():
    texts = ["정말 재밌다 최고의 영화", "这家酒店非常好", "Good, really GOOD."] * 5
    tokenizer = learn_vocabulary(texts, VocabularySettings(size=64, lowercase=False, min_frequency=1))
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize("정말 재밌다")) == "정말 재밌다"
    assert tokenizer.tokenize("这家酒店") == ["这", "家", "酒", "店"]
    assert tokenizer.unk_token not in tokenizer.tokenize(" ".join(texts))


def test_transformers_cuts_a_long_text_to_what_a_new_encoder_sees(tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = learn_vocabulary(["영화 좋다", "정말 재밌다"] * 5, VocabularySettings(size=20, min_frequency=1))
    shape = EncoderShape(num_layers=1, hidden_size=16, num_heads=2)
    write_new_encoder(tmp_path, tokenizer, shape, max_length=64, seed=0)
    positions = AutoConfig.from_pretrained(tmp_path).max_position_embeddings
    ids = AutoTokenizer.from_pretrained(tmp_path)("영화 " * 3 * positions, truncation=True)["input_ids"]
    assert len(ids) == positions >= 64


def test_a_vocabulary_larger_than_the_corpus_allows_is_refused_with_the_size_that_fits():
    texts = ["a good film", "a bad film"]
    with pytest.raises(DataRefused, match="hold only") as error:
        learn_vocabulary(texts, VocabularySettings(size=30_000, min_frequency=1))
    allowed = int(re.findall(r"`vocabulary\.size=(\d+)`", error.value.remedy)[0])
    assert len(learn_vocabulary(texts, VocabularySettings(size=allowed, min_frequency=1))) == allowed


def test_the_size_that_is_told_fits_where_single_characters_are_most_of_it_too():
    texts = ["".join(chr(0x4E00 + 7 * row + column) for column in range(7)) for row in range(300)]
    with pytest.raises(DataRefused) as error:
        learn_vocabulary(texts, VocabularySettings(size=30_000, min_frequency=1))
    allowed = int(re.findall(r"`vocabulary\.size=(\d+)`", error.value.remedy)[0])
    assert allowed == 5 + 2100
    assert len(learn_vocabulary(texts, VocabularySettings(size=allowed, min_frequency=1))) == allowed


def test_a_small_vocabulary_is_not_larger_than_asked():
    texts = ["".join(chr(0x4E00 + 7 * row + column) for column in range(7)) for row in range(300)]
    wanted = VocabularySettings(size=40, min_frequency=1)
    assert len(learn_vocabulary([*texts, "abcdefghijklmnopqrstuvwxyz"], wanted)) <= 40


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["from_scratch=true"], 2, "leave one of the two out"),
        (["vocabulary.size=500"], 2, "from_scratch=true"),
        (["labels=[a, b]"], 2, "pretrain reads none"),
        (["columns.text_pair=aspect"], 2, "reads one text"),
        (["columns.text=review"], 2, "expected column 'review'"),
        (["max_length=65"], 2, "sees at most 64 tokens"),
        (["long_text=windows"], 2, "long_text"),
        (["training.mask_ratio=1.5"], 2, "mask_ratio"),
        (["training.epoch=2"], 2, "Did you mean"),
    ],
)
def test_a_mistake_is_told_before_ray_starts(words, code, said, tiny_encoder, corpus, tmp_path, capsys):
    given = [f"model={tiny_encoder}", f"input={corpus / 'train.parquet'}", f"output={tmp_path / 'out'}"]
    assert run(["pretrain", *given, "max_length=24", *words]) == code
    assert_refused(capsys, said, tmp_path / "out")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([""] * 4, "none of 4 rows is usable"),
        (["one and the same"] * 30, "equal texts stay together"),
        ([f"{'金' * (row + 1)}" for row in range(60)], "the tokenizer knows 0 tokens"),
    ],
)
def test_texts_that_leave_nothing_to_learn_or_to_judge_by(texts, said, tiny_encoder, tmp_path, capsys):
    pq.write_table(pa.table({"text": texts}), tmp_path / "texts.parquet")
    words = [f"model={tiny_encoder}", f"input={tmp_path / 'texts.parquet'}", f"output={tmp_path / 'out'}", *KEYS]
    assert run(["pretrain", *words]) == 6
    assert said in capsys.readouterr().err
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_whoever_follows_the_remedy_of_a_refusal_uses_the_same_output(corpus, tmp_path, capsys):
    shape = ["from_scratch=true", "encoder={num_layers: 1, hidden_size: 16, num_heads: 2}"]
    words = [f"input={corpus / 'train.parquet'}", f"output={tmp_path / 'out'}", *shape, *KEYS]
    assert run(["pretrain", *words]) == 6
    [setting] = re.findall(r"Set `(vocabulary\.size=\d+)`", capsys.readouterr().err)
    assert run(["pretrain", *words, setting]) == 0


def test_an_empty_corpus_is_refused(tiny_encoder, tmp_path, capsys):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    words = [f"model={tiny_encoder}", f"input={tmp_path / 'empty.parquet'}", f"output={tmp_path / 'out'}", *KEYS]
    assert run(["pretrain", *words]) == 6
    assert "no row" in capsys.readouterr().err
