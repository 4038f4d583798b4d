"""What does not belong into a text, counted as it is stored."""

import pyarrow as pa
import pytest

from bertray.auditing.text_marks import MARKS, marks_of


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("a plain text, 5 < 6 & 7 > 2", set()),
        ("tab\tis white space", set()),
        ("bell\x07", {"control_characters"}),
        ("smart\x92quote", {"control_characters"}),
        ("nul\x00", {"control_characters"}),
        ("ellipsis of 1252\x85", {"control_characters"}),
        ("lost\ufffdbyte", {"replacement_character"}),
        ("fine<br /><br />film", {"html_tags"}),
        ("I <3 it", set()),
        ("R&amp;B &#39;90", {"html_entities"}),
        ("AT&T; no", set()),
        ("see http://example.org", {"links"}),
        ("a href http www example", {"links"}),
        ("whttp is a word", set()),
        ("mail me@example.org", {"e_mail_addresses"}),
        ("@airline thanks", set()),
        ("two\nlines", {"line_breaks"}),
        (None, set()),
    ],
)
def test_marks_of_a_text(text, marks):
    found = int(marks_of(pa.array(["x", text], pa.string()))[1])
    assert {name for bit, name in enumerate(MARKS) if found >> bit & 1} == marks
