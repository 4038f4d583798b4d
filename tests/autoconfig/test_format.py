"""Encodings are recognised in short and long texts of many languages, wherever the first bytes of a file end."""

from __future__ import annotations

import pytest

from bertray.autoconfig.format import guess_encoding

REVIEWS = {
    "french": "Très bon film, j'ai adoré l'histoire et les acteurs. À voir absolument ! Une œuvre émouvante, déjà vue.",
    "german": "Schöner Film über die Größe der Gefühle, aber zu lang für müde Zuschauer. Köln läßt grüßen.",
    "spanish": "La película es muy buena, pero el final me pareció aburrido. ¡Qué lástima! El niño actúa mejor.",
    "english": "A good film, I’d say – “worth the money”, although the café scene was too long… and cost me 5 € more.",
    "russian": "Очень хороший фильм, сюжет захватывает, а актёры играют отлично. Жаль только, что конец скучный.",
    "greek": "Πολύ καλή ταινία, η ιστορία με συγκίνησε και οι ηθοποιοί έπαιξαν υπέροχα.",
    "hebrew": "סרט טוב מאוד, הסיפור ריגש אותי והשחקנים שיחקו נהדר. חבל שהסוף היה ארוך ומשעמם.",
    "arabic": "فيلم جيد جدا، القصة مؤثرة والممثلون رائعون. لكن النهاية كانت طويلة ومملة بعض الشيء.",
    "thai": "หนังดีมาก เรื่องราวน่าประทับใจ นักแสดงเล่นได้ยอดเยี่ยม แต่ตอนจบยาวไปหน่อย",
    "chinese": "这部电影非常好看,故事感人,演员的表演也很出色。只是结尾有点长,让人觉得无聊。总的来说值得一看。",
    "taiwanese": "這部電影非常好看,故事感人,演員的表演也很出色。只是結尾有點長,讓人覺得無聊。總的來說值得一看。",
    "japanese": "とても良い映画でした。物語に感動しましたし、俳優の演技も素晴らしかったです。ただ結末が退屈でした。",
    "korean": "정말 좋은 영화였습니다. 이야기가 감동적이고 배우들의 연기도 훌륭했습니다. 다만 결말이 지루했어요.",
}
CODECS = {
    **dict.fromkeys(("french", "german", "spanish"), ("cp1252", "latin-1")),
    "english": ("cp1252",),
    "russian": ("cp1251", "koi8_r"),
    "greek": ("cp1253", "iso8859_7"),
    "hebrew": ("cp1255",),
    "arabic": ("cp1256",),
    "thai": ("tis_620",),
    "chinese": ("gb18030", "gbk", "gb2312"),
    "taiwanese": ("big5",),
    "japanese": ("shift_jis", "cp932", "euc_jp"),
    "korean": ("euc_kr", "cp949"),
}


def csv_of(language: str, codec: str, rows: int) -> bytes:
    """Rows that begin at other words of the same review, with ids and labels in ASCII."""
    text = REVIEWS[language].encode(codec, "ignore").decode(codec)
    lines = [f"{number},{text[number % 20 :]},{number % 2}\n" for number in range(rows)]
    return ("id,text,label\n" + "".join(lines)).encode(codec)


@pytest.mark.parametrize("rows", [2, 10, 500])
@pytest.mark.parametrize(
    ("language", "codec"), [(language, codec) for language in CODECS for codec in CODECS[language]]
)
def test_text_is_read_as_it_was_written(language: str, codec: str, rows: int):
    raw, notes = csv_of(language, codec, rows), []
    found = guess_encoding(raw, notes)
    assert raw.decode(found) == raw.decode(codec)
    assert notes == [f"not UTF-8; reader.encoding={found} is a guess"]
    assert guess_encoding(raw, []) == found


@pytest.mark.parametrize("language", REVIEWS)
def test_utf_8_is_certain_wherever_the_first_bytes_end(language: str):
    raw = REVIEWS[language].encode()
    notes: list[str] = []
    assert {guess_encoding(raw[:end], notes) for end in range(len(raw) + 1)} == {"utf-8"}
    assert notes == []


@pytest.mark.parametrize("language", ["chinese", "japanese", "korean", "russian", "french"])
def test_the_first_bytes_may_end_within_a_character(language: str):
    raw = csv_of(language, CODECS[language][0], 40)
    assert len({guess_encoding(raw[: len(raw) - cut], []) for cut in range(6)}) == 1


@pytest.mark.parametrize("mark", [True, False], ids=["with a mark", "without"])
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_certain(codec: str, mark: bool):
    raw = (("\ufeff" if mark else "") + "id,text\n" + f"1,{REVIEWS['english']}\n" * 20).encode(codec)
    notes: list[str] = []
    assert guess_encoding(raw, notes) == ("utf-16" if mark else codec)
    assert notes == []
