"""Tiny models and tokenizers of every family, built on the spot with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

MAX_LENGTH = 40
VOCAB_SIZE = 60
PAIR_WORDS = ["the", "film", "was", "good", "bad", "##ly", "a", "real", "not", ",", "!", "##s", "##t", *"bcdefghi"]
PIECES = ["\u2581the", "\u2581film", "\u2581was", "\u2581good", "\u2581bad", "\u2581", *"abcdefghilmnorstuy,!"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


def _configs() -> dict[str, tuple[Any, dict[str, Any]]]:
    import transformers as t

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    offset = {**sizes, "max_position_embeddings": MAX_LENGTH + 2, "type_vocab_size": 1, "pad_token_id": 1}
    plain = {**sizes, "max_position_embeddings": MAX_LENGTH, "type_vocab_size": 2, "pad_token_id": 0}
    distil = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": MAX_LENGTH}
    modern = {**sizes, "max_position_embeddings": MAX_LENGTH, "pad_token_id": 0, "local_attention": 8}
    modern |= {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    return {
        "bert": (t.BertConfig, plain),
        "roberta": (t.RobertaConfig, offset),
        "xlm-roberta": (t.XLMRobertaConfig, offset),
        "camembert": (t.CamembertConfig, offset),
        "distilbert": (t.DistilBertConfig, distil),
        "electra": (t.ElectraConfig, {**plain, "embedding_size": 16}),
        "albert": (
            t.AlbertConfig,
            {**plain, "num_hidden_layers": 4, "embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 2},
        ),
        "deberta-v2": (t.DebertaV2Config, {**plain, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
        "modernbert": (t.ModernBertConfig, modern),
        "xlnet": (t.XLNetConfig, {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48, "pad_token_id": 0}),
    }


@pytest.fixture(scope="session")
def make_classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the folder of a tiny classifier: `make_classifier(family, num_labels, **config)`."""
    made: dict[str, Path] = {}

    def make(family: str, num_labels: int = 3, **overrides: Any) -> Path:
        from transformers import AutoModelForSequenceClassification

        key = json.dumps([family, num_labels, overrides], sort_keys=True)
        if key not in made:
            config_class, kwargs = _configs()[family]
            config = config_class(num_labels=num_labels, **{"vocab_size": VOCAB_SIZE, **kwargs, **overrides})
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_config(config)
            # Far from the usual initialisation, where biases are 0, norms are 1 and every row gets the same logits.
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.3 * torch.randn_like(parameter)
            made[key] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each family of tokenizers, written by `transformers`."""
    import transformers as t
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: i for i, word in enumerate([*special, *PAIR_WORDS])}
    scores = [(piece, -float(i + 1)) for i, piece in enumerate(PIECES)]

    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.train_from_iterator(
        ["the film was good and the film was bad"] * 3,
        trainers.BpeTrainer(
            vocab_size=280,
            show_progress=False,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    byte_model = json.loads(bytes_.to_str())["model"]

    modern = Tokenizer(models.BPE())
    modern.normalizer = normalizers.NFC()
    modern.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    modern.train_from_iterator(
        ["the film was good"] * 3,
        trainers.BpeTrainer(
            vocab_size=280,
            show_progress=False,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    modern.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )

    made = {
        "bert": t.BertTokenizer(vocab=words),
        "roberta": t.RobertaTokenizer(
            vocab=byte_model["vocab"], merges=[tuple(merge) for merge in byte_model["merges"]]
        ),
        "distilbert": t.DistilBertTokenizer(vocab=words),
        "electra": t.ElectraTokenizer(vocab=words),
        "albert": t.AlbertTokenizer(
            vocab=[(name, 0.0) for name in ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")] + scores
        ),
        "deberta-v2": t.DebertaV2Tokenizer(vocab=[(name, 0.0) for name in special] + scores),
        "modernbert": t.PreTrainedTokenizerFast(
            tokenizer_object=modern,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
            model_input_names=["input_ids", "attention_mask"],
        ),
    }
    folders = {}
    for family, tokenizer in made.items():
        folders[family] = tmp_path_factory.mktemp(f"tokenizer-{family}")
        tokenizer.save_pretrained(folders[family])
    return folders


@pytest.fixture
def plain_classifier(
    make_classifier: Callable[..., Path], tokenizer_folders: dict[str, Path], tmp_path: Path
) -> Callable[[int], Path]:
    """Makes a BERT classifier of so many classes with its tokenizer, as it comes from the hub."""

    def make(num_labels: int) -> Path:
        target = tmp_path / "plain"
        shutil.copytree(make_classifier("bert", num_labels), target)
        shutil.copytree(tokenizer_folders["bert"], target, dirs_exist_ok=True)
        return target

    return make
