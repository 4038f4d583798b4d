"""Encoders that are made: of nothing but word pieces learned from reviews, or of some layers of another one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertray.errors import ConfigError, DataRefused
from bertray.model.pretrained.files import read_json
from bertray.model.pretrained.tokenizer import save_tokenizer
from bertray.model.pretrained.weights import load_for_training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNK, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIN_POSITIONS = 512
SHALLOW_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a new encoder.

    Args:
        num_layers: transformer layers.
        hidden_size: width of a token's vector, a multiple of `num_heads`.
        num_heads: attention heads of a layer.
        feed_forward_size: width between the two linear layers of a feed forward; None: four times `hidden_size`.
    """

    num_layers: int = 4
    hidden_size: int = 256
    num_heads: int = 4
    feed_forward_size: int | None = None


@dataclass(frozen=True)
class VocabularySettings:
    """A WordPiece vocabulary to learn.

    Args:
        size: word pieces, special tokens included.
        lowercase: lowercase texts before they are cut into pieces.
        strip_accents: read é as e; never for Korean, whose syllables would fall apart.
        min_frequency: least count of a piece in the sample.
        sample_rows: most reviews that the pieces are learned from.
    """

    size: int = 16_000
    lowercase: bool = True
    strip_accents: bool = False
    min_frequency: int = 2
    sample_rows: int = 100_000


def learn_vocabulary(texts: Sequence[str], wanted: VocabularySettings) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer learned from texts, set up as BERT's are.

    Chinese characters stand alone, as in every BERT. Characters take half of the pieces at most where there are others
    to be had; the rarest beyond become `[UNK]`.

    Raises:
        DataRefused: the texts do not hold so many pieces.
    """
    room = wanted.size - len(SPECIAL)
    tokenizer = _learned(texts, wanted, room // 2)
    if tokenizer.get_vocab_size() < wanted.size:  # no more pieces of several characters: then more characters
        fuller = _learned(texts, wanted, room)
        if fuller.get_vocab_size() > wanted.size:  # some stand within words, too, and count twice
            return _finished(tokenizer)
        tokenizer = fuller
    found = tokenizer.get_vocab_size()
    if found < wanted.size:
        raise DataRefused(
            f"vocabulary.size={wanted.size}: the reviews hold only {found} pieces that occur "
            f"{wanted.min_frequency} times or more.",
            f"Set `vocabulary.size={found}` or less, or give more reviews.",
        )
    return _finished(tokenizer)


def _finished(tokenizer: Any) -> PreTrainedTokenizerFast:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(name, SPECIAL.index(name)) for name in (CLS, SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, cls_token=CLS, sep_token=SEP, mask_token=MASK
    )


def _learned(texts: Iterable[str], wanted: VocabularySettings, most_characters: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=wanted.strip_accents, lowercase=wanted.lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=wanted.size,
        min_frequency=wanted.min_frequency,
        limit_alphabet=most_characters,
        special_tokens=list(SPECIAL),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_new_encoder(
    folder: Path, tokenizer: PreTrainedTokenizerFast, shape: EncoderShape, *, max_length: int, seed: int
) -> None:
    """A masked language model with random weights, drawn by the seed, and its tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    positions = max(MIN_POSITIONS, max_length)
    tokenizer.model_max_length = positions  # so that `truncation=True` of transformers knows where to cut
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.feed_forward_size or 4 * shape.hidden_size,
        max_position_embeddings=positions,
        pad_token_id=SPECIAL.index(PAD),
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_shallow(source: Path, keep: int) -> None:
    """Raises:
    ConfigError: a model has no more layers than are to be kept, or is of a kind whose layers cannot be told apart.
    """
    config = read_json(source / "config.json", str(source))
    if config.get("model_type") not in SHALLOW_TYPES:
        raise ConfigError(
            f"training.keep_layers: not for a model of type {config.get('model_type')}.",
            f"Leave it out, or give one of type {', '.join(SHALLOW_TYPES)}.",
        )
    num_layers = int(config.get("num_hidden_layers") or config["n_layers"])
    if keep >= num_layers:
        raise ConfigError(f"training.keep_layers={keep}: the model has {num_layers}.", "Keep fewer, or leave it out.")


def write_shallow(source: Path, folder: Path, keep: int, *, seed: int) -> None:
    """A classifier with so many of its layers, evenly spread, and its tokenizer.

    Args:
        source: a classifier, or an encoder, which gets a head with random weights.
        keep: as `check_shallow` allows it.
        seed: of the head.

    Source: Sanh et al. 2019, "DistilBERT" (section 2: a student begins with every other layer of its teacher).
    """
    import numpy as np
    import torch

    torch.manual_seed(seed)
    model, _ = load_for_training("SequenceClassification", source)
    num_layers = model.config.num_hidden_layers
    (stack,) = [
        part for part in model.base_model.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == num_layers
    ]
    chosen = np.linspace(0, num_layers - 1, keep).round().astype(int).tolist()
    for depth in reversed(range(num_layers)):
        if depth not in chosen:
            del stack[depth]
    model.config.num_hidden_layers = keep
    model.save_pretrained(folder)
    save_tokenizer(source, folder)
