"""Masked tokens of a text: a function of the tokens, the seed, the epoch and the example.

Shape letters: T tokens of a text, M masked ones, W words of the vocabulary, V tokens to score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertray.errors import ConfigError
from bertray.model.pretrained.tokenizer import load_transformers_tokenizer

MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # of what is to be guessed; the rest is left as it is


@dataclass(frozen=True)
class Vocabulary:
    """Properties of the tokens that masking needs."""

    mask_id: int
    special_W: np.ndarray  # bool: never masked and never put in place of another
    continues_W: np.ndarray  # bool: goes on with the word of the token before

    @classmethod
    def of(cls, folder: Path) -> Vocabulary:
        """Vocabulary of a tokenizer.

        Raises:
            ConfigError: it has no token to mask with.
        """
        tokenizer = load_transformers_tokenizer(folder)
        if tokenizer.mask_token_id is None:
            raise ConfigError(
                f"model: the tokenizer of {folder} has no mask token.", "Give a model that was made by masking."
            )
        known = tokenizer.get_vocab()  # its ids may have holes
        words = [""] * (max(known.values()) + 1)
        for word, number in known.items():
            words[number] = word
        special_W = np.array([not word for word in words])
        special_W[[number for number in tokenizer.all_special_ids if number < len(words)]] = True
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None and type(backend.model).__name__ == "WordPiece":
            continues = [word.startswith("##") for word in words]
        else:  # the others mark where a word begins, if they mark it at all
            begins = [word.startswith(("▁", "Ġ", " ")) for word in words]
            continues = [any(begins) and not begin for begin in begins]
        return cls(tokenizer.mask_token_id, special_W, np.array(continues) & ~special_W)


@dataclass(frozen=True)
class Masked:
    """A text with masked tokens."""

    ids_T: np.ndarray  # int64; with what stands in place of what is to be guessed
    places_M: np.ndarray  # ascending
    targets_M: np.ndarray  # int64; what stood there


class Masker:
    """Masks tokens, others in every epoch.

    Args:
        ratio: share of the ordinary tokens of a text that is masked; one at least.
        whole_words: all pieces of a word or none; single pieces where every word has more than are to be masked.

    Source: Devlin et al. 2019, "BERT" (section 3.1: 80 % masked, 10 % another token, 10 % as they are); Liu et al.
    2019, "RoBERTa" (section 4.1: drawn anew each time); whole words as in the README of google-research/bert.
    """

    def __init__(self, vocabulary: Vocabulary, *, ratio: float, whole_words: bool, seed: int) -> None:
        self._vocabulary, self._ratio, self._whole_words, self._seed = vocabulary, ratio, whole_words, seed
        self._ordinary = np.flatnonzero(~vocabulary.special_W)

    def mask(self, ids_T: np.ndarray, *, epoch: int, example: int) -> Masked:
        """One text with masked tokens; one without ordinary tokens has none."""
        random = np.random.default_rng([self._seed, epoch, example])
        ids_T = ids_T.astype(np.int64)
        candidates = np.flatnonzero(~self._vocabulary.special_W[ids_T])
        if not len(candidates):
            return Masked(ids_T, candidates, ids_T[candidates])
        wanted = max(1, round(self._ratio * len(candidates)))
        places_M = candidates[self._chosen(ids_T[candidates], wanted, random)]
        targets_M = ids_T[places_M]
        fate_M = random.random(len(places_M))
        others_M = random.choice(self._ordinary, len(places_M))
        ids_T[places_M] = np.where(
            fate_M < MASKED_SHARE,
            self._vocabulary.mask_id,
            np.where(fate_M < MASKED_SHARE + RANDOM_SHARE, others_M, targets_M),
        )
        return Masked(ids_T, places_M, targets_M)

    def _chosen(self, ids: np.ndarray, wanted: int, random: np.random.Generator) -> np.ndarray:
        """Ordinary tokens that are masked, ascending."""
        if not self._whole_words:
            return np.sort(random.permutation(len(ids))[:wanted])
        begins = ~self._vocabulary.continues_W[ids]
        begins[0] = True
        words = np.cumsum(begins) - 1
        sizes = np.bincount(words)
        chosen, left = [], wanted
        for word in random.permutation(len(sizes)):
            if sizes[word] <= left:  # one that is longer would hide more than was asked for, in the end the whole text
                chosen.append(word)
                left -= sizes[word]
            if not left:
                break
        places = np.flatnonzero(np.isin(words, chosen))
        return places if len(places) else np.sort(random.permutation(len(ids))[:wanted])


def places_to_score(
    texts: Sequence[np.ndarray], vocabulary: Vocabulary, *, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens to score one at a time: drawn from all ordinary tokens of some texts with equal chances.

    Returns:
        The number of the text and the place in it of each, int64 [V], V at most `most`, ascending.
    """
    counts = np.array([np.count_nonzero(~vocabulary.special_W[ids_T]) for ids_T in texts], np.int64)
    total, ends = int(counts.sum()), np.cumsum(counts)
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(most, total), replace=False, shuffle=False))
    texts_V = np.searchsorted(ends, chosen, side="right")
    number_V = chosen - (ends - counts)[texts_V]  # among the ordinary tokens of its text
    places = [
        np.flatnonzero(~vocabulary.special_W[texts[text]])[number_V[texts_V == text]] for text in np.unique(texts_V)
    ]
    return texts_V, np.concatenate([np.empty(0, np.int64), *places])
