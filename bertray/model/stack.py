"""A stack: one logistic regression on the TF-IDF terms of the whole text and the encoder's normalised mean vector.

Its logits are a sum of two parts. A task that reads and tokenizes computes that of the terms, a number a class and
review, so that no text travels to the actors; the engine adds that of the encoder.

Legend: N reviews, F terms, D hidden, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bertray.errors import ConfigError
from bertray.model.bundle import HEAD_FILE, INFO_FILE, head_form
from bertray.model.heads import LinearHead, fit_linear
from bertray.model.pretrained.files import read_json, reading
from bertray.model.terms import NoTerms, Terms
from bertray.reviews.pairs import as_one_text
from bertray.schema import TERM_LOGITS

TERMS_FILE = "terms.json"
TERM_WEIGHT, IDF = "term_weight", "idf"  # tensors of `head.safetensors`, beside those of a linear head
SCHEMA_VERSION = 1
STRENGTH = 4.0  # inverse regularisation
CUT_WEIGHT = 0.5  # of the encoder part where most reviews are cut


@dataclass(frozen=True)
class TermScorer:
    """The part of a stack's logits that comes from terms.

    Args:
        terms: F of them.
        weight_FC: float32.
    """

    terms: Terms
    weight_FC: NDArray[np.float32]

    def logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [N, C]; a row depends on no other, to the bit."""
        sums_NC: NDArray[np.float64] = self.terms.features(texts) @ self.weight_FC.astype(np.float64)
        return sums_NC.astype(np.float32)

    def appended_to(self, tokens: pa.Table, texts: pa.Array, pairs: pa.Array | None) -> pa.Table:
        """Tokenized reviews with the column `term_logits`, a list of C float32.

        Args:
            tokens: N rows.
            texts: that they were made of, cleaned; `pairs`: the second texts, or None.
        """
        logits_NC = self.logits(as_one_text(texts, pairs))
        offsets = pa.array(np.arange(len(logits_NC) + 1, dtype=np.int32) * logits_NC.shape[1])
        return tokens.append_column(TERM_LOGITS, pa.ListArray.from_arrays(offsets, pa.array(logits_NC.ravel())))


def term_logits_of(table: pa.Table) -> NDArray[np.float32] | None:
    """The column `term_logits` of tokenized reviews, float32 [N, C]; None where there is none."""
    if TERM_LOGITS not in table.column_names:
        return None
    flat = table[TERM_LOGITS].combine_chunks().flatten().to_numpy()
    logits_NC: NDArray[np.float32] = (
        flat.reshape(table.num_rows, -1) if table.num_rows else np.empty((0, 0), flat.dtype)
    )
    return logits_NC


@dataclass(frozen=True)
class Stack:
    """A fitted stack.

    Args:
        term_scorer: with the part of the terms.
        head: applied to the normalised mean of the encoder; its bias is that of the whole.
    """

    term_scorer: TermScorer
    head: LinearHead

    def logits(self, texts: Sequence[str], means_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [N, C].

        Args:
            texts: whole ones, cleaned.
            means_ND: normalised means of the encoder; of width 0 where it is left out.
        """
        return self.term_scorer.logits(texts) + self.head.logits(means_ND)

    def files(self) -> dict[str, bytes]:
        """`head.safetensors` and `terms.json` of a bundle."""
        terms, scorer = self.term_scorer.terms, self.term_scorer
        content = {"schema_version": SCHEMA_VERSION, "unit": terms.unit, "terms": terms.terms}
        head = self.head.to_tensors({TERM_WEIGHT: scorer.weight_FC, IDF: terms.idf_F})
        return {HEAD_FILE: head, TERMS_FILE: (json.dumps(content, ensure_ascii=False) + "\n").encode()}


def terms_of(texts: Sequence[str]) -> Terms:
    """Terms of some whole, cleaned texts; empty where they have none."""
    try:
        return Terms.fit(texts)
    except NoTerms:
        return Terms("word", [], np.empty(0, np.float32))


def fit_stack(
    terms: Terms,
    texts: Sequence[str],
    means_ND: NDArray[np.float32],
    label_ids_N: NDArray[Any],
    num_classes: int,
    *,
    encoder_weight: float = 1.0,
    balanced: bool = False,
    seed: int = 0,
) -> Stack:
    """Learn the weights of some rows; nothing is chosen.

    Args:
        terms: of these texts.
        texts: whole ones, cleaned, N of them.
        means_ND: normalised means of the encoder; of width 0 where it is left out.
        label_ids_N: in 0..C-1, each class at least once.
        encoder_weight: by which `means_ND` is multiplied.
        balanced: rare classes weigh more.

    Raises:
        ValueError: a class has no row.
    """
    from scipy.sparse import csr_matrix, hstack

    encoder_part = csr_matrix(means_ND * np.float32(encoder_weight))
    features = hstack([terms.features(texts), encoder_part], "csr", np.float32)
    head = fit_linear(features, label_ids_N, num_classes, STRENGTH, balanced=balanced, seed=seed)
    term_weight_FC = np.ascontiguousarray(head.weight_CD[:, : len(terms)].T)
    weight_CD = head.weight_CD[:, len(terms) :] * np.float32(encoder_weight)
    return Stack(TermScorer(terms, term_weight_FC), LinearHead(weight_CD, head.bias_C, head.strength, {}))


def encoder_weight_for(cut_share: float) -> float:
    """Weight of the encoder part: CUT_WEIGHT where `max_length` cuts more than half of the reviews, else 1.

    Of what is cut the encoder sees less than the terms do.
    """
    return CUT_WEIGHT if cut_share > 0.5 else 1.0


def read_term_scorer(folder: Path) -> TermScorer | None:
    """Term part of the stack in a model folder; None for any other model.

    Raises:
        ConfigError: its files are damaged, or of a later version.
    """
    from safetensors.numpy import load_file

    if not (folder / INFO_FILE).is_file():
        return None
    form = head_form(read_json(folder / INFO_FILE, str(folder)), str(folder))
    if form is None or not form.with_terms:
        return None
    content = read_json(folder / TERMS_FILE, str(folder))
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"{folder / TERMS_FILE}: expected schema_version {SCHEMA_VERSION}, found "
            f"{content.get('schema_version')!r}.",
            "Score with the bertray version that trained the model, or train again.",
        )
    with reading(folder / HEAD_FILE):
        tensors = load_file(folder / HEAD_FILE)
        return TermScorer(Terms(content["unit"], content["terms"], tensors[IDF]), tensors[TERM_WEIGHT])
