"""The dominant script of a text."""

from __future__ import annotations

import pyarrow as pa

from bertray.reviews.writing_system import dominant_script


def test_the_script_with_most_letters_wins():
    expected = {
        "A good film": "latin",
        "Größe, année": "latin",
        "정말 재밌다 CGV": "hangul",
        "ㅋㅋㅋ": "hangul",
        "很好的平板 iPad": "han",
        "とても良い映画でした": "kana",
        "Отличный": "cyrillic",
        "فيلم رائع": "arabic",
        "ดีมาก": "thai",
        "12345 !!!": "other",
        "👍👍": "other",
        "": "other",
    }
    texts = pa.array([*expected, None], pa.string())
    assert dominant_script(texts).to_pylist() == [*expected.values(), None]


def test_no_texts_give_no_scripts():
    assert dominant_script(pa.array([], pa.string())).to_pylist() == []
