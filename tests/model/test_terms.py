"""TF-IDF terms equal scikit-learn's, for words and for characters, whatever stands beside a text."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from bertray.model.terms import NoTerms, Terms

ODD = [
    "",
    "  ",
    "…!?",
    "Café CAFÉ  naïve\u00a0\u3000ﬁlm",
    "don't re-do it_now 3.5",
    "𝔸 😀 e\u0301",
    "a\n\nb\tc",
    "x x x y",
]
ENGLISH = ["the film was not good", "Not bad, not bad at all!", "the plot", "a good plot and a bad film", *ODD]
KOREAN = ["재밌어요 정말 재밌어요", "지루해요", "이 영화 별로", "质量很好 很好", "a 영화", *ODD]


def random_texts(words: list[str], num: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(words, int(random.integers(0, 12)))) for _ in range(num)]


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (ENGLISH, {"ngram_range": (1, 2), "token_pattern": r"\b\w+\b"}),
        (KOREAN, {"ngram_range": (1, 3), "analyzer": "char_wb"}),
    ],
    ids=["word", "character"],
)
def test_terms_have_the_values_that_scikit_learn_gives(texts, kind):
    train = texts + random_texts(texts[:4], 300)
    others = [*texts, *random_texts([*texts, "unseen", "未知"], 100), "good 재밌어요 unseen good"]
    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float64, **kind).fit(train)
    terms = Terms.fit(train)
    assert list(terms.terms) == vectorizer.get_feature_names_out().tolist()
    found = terms.features(others)
    np.testing.assert_allclose(found.toarray(), vectorizer.transform(others).toarray(), atol=1e-6)
    assert found.dtype == np.float32


def test_rare_terms_of_many_texts_are_left_out():
    terms = Terms.fit([f"the film {number}" for number in range(1000)])
    assert set(terms.terms) == {"the", "film", "the film"}


@pytest.mark.parametrize("texts", [ENGLISH, KOREAN], ids=["word", "character"])
def test_a_text_has_the_same_values_alone_and_among_others(texts):
    terms = Terms.fit(texts)
    together = terms.features(texts).toarray()
    alone = np.concatenate([terms.features([text]).toarray() for text in texts])
    assert (together == alone).all()
    assert terms.features([]).shape == (0, len(terms))


def test_texts_without_a_term_have_none():
    with pytest.raises(NoTerms):
        Terms.fit(["…", "!!"])
    nothing = Terms("word", [], np.empty(0, np.float32))
    assert nothing.features(["a word"]).shape == (1, 0)
