"""A small evaluation, reports around it, text that tries to break out of a page, and a reader of pages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from bertray.evaluation.baselines import majority
from bertray.evaluation.slices import length_bands
from bertray.evaluation.summary import evaluate_predictions
from bertray.outputs.control_files import Counts
from bertray.reports.evaluation import EvaluationReport
from bertray.reports.night import FileRows, NightReport

HISTORY = (
    {"kind": "step", "step": 5, "epoch": 0.5, "loss": 0.69, "learning_rate": 1e-5, "tokens_per_s": 9.0, "seconds": 1.0},
    {
        "kind": "step",
        "step": 10,
        "epoch": 1.0,
        "loss": 0.51,
        "learning_rate": 1e-5,
        "tokens_per_s": 9.0,
        "seconds": 2.0,
    },
    {
        "kind": "eval",
        "step": 10,
        "epoch": 1.0,
        "loss": 0.45,
        "train_loss": 0.60,
        "accuracy": 0.8,
        "macro_f1": 0.79,
        "mcc": 0.6,
    },
    {
        "kind": "eval",
        "step": 20,
        "epoch": 2.0,
        "loss": 0.55,
        "train_loss": 0.30,
        "accuracy": 0.79,
        "macro_f1": 0.78,
        "mcc": 0.5,
    },
)


@pytest.fixture(scope="session")
def make_report():
    """Builds an evaluation report; every text in it can be replaced."""

    def make(
        labels=("negative", "neutral", "positive"), num_rows=120, text="fine", name="BERT", baselines=True, **options
    ):
        rng = np.random.default_rng(0)
        num_classes = len(labels)
        label_ids_N = rng.integers(0, num_classes, num_rows)
        logits_NC = rng.normal(size=(num_rows, num_classes)) + 3 * np.eye(num_classes)[label_ids_N]
        probs_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
        evaluation = evaluate_predictions(
            label_ids_N,
            probs_NC,
            labels,
            split="test",
            seed=0,
            slices={"length": length_bands(rng.integers(1, 700, num_rows)), text: [text] * num_rows},
            baselines={"majority": majority(label_ids_N, num_classes, num_rows)} if baselines else {},
            kind="training",
            model_name=name,
        )
        mistake = {"id": text, "text": text, "label": labels[0], "prediction": labels[1], "score": 0.987}
        defaults = {
            "title": f"Evaluation of {name}",
            "facts": {"model": name, "rows": 120},
            "config": f"model: {text}\n",
            "history": HISTORY,
            "mistakes": [mistake],
            "notes": [text],
            "created": "2026-11-20 04:00 UTC",
        }
        return EvaluationReport(evaluation=evaluation, **(defaults | options))

    return make


@pytest.fixture(scope="session")
def make_night():
    """Builds a scoring report of 100 + 21 rows in two files; every field and count can be replaced."""

    def make(**options):
        defaults: dict[str, Any] = {
            "slot": "dt=2026-11-20",
            "run_id": "r1",
            "model": "runs/imdb/model",
            "model_version": "abc123",
            "files": [
                FileRows("/in/reviews/a.parquet", 100, 98, 2),
                FileRows("/in/reviews/b.parquet", 21, 20, 1),
                FileRows("/in/reviews/c.parquet", None, 0, 0, "file_corrupt"),
            ],
            "token_bounds": (16, 64),
            "quarantined": {"text_empty": 2, "id_duplicate": 1},
            "seconds": 2.0,
            "rows_per_s": 150.0,
        }
        counted: dict[str, Any] = {
            "label_counts": {"negative": 30, "positive": 88},
            "score_histogram": [*[0] * 10, *[8] * 9, 46],
            "token_histogram": [59, 50, 9],
            "tokens": 2360,
            "truncated": 9,
        }
        counts = {name: options.pop(name) for name in Counts.model_fields if name in options}
        return NightReport(counts=Counts(**(counted | counts)), **(defaults | options))

    return make


PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}</style>",
    "</title><iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "javascript:alert(1)",
    "<a href=javascript:alert(1)>x</a>",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- --><base href=//evil.example>",
    "<math><mtext></p><style><!--</style><img title='--&gt;&lt;img src=x onerror=alert(1)&gt;'>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<form action=x><input name=y></form><object data=x><embed src=x><link rel=stylesheet href=x><meta name=x>",
    "\x00<scr\x00ipt>alert(1)</scr\x00ipt>",
)
VOID = {"meta", "br", "path", "use", "rect"}


@dataclass
class Page(HTMLParser):
    """What is in a page: elements, attributes, ids, text."""

    html: str
    elements: dict[str, int] = field(default_factory=dict)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)  # element, name, value
    text: str = ""
    open_elements: list[str] = field(default_factory=list)
    unclosed: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__(convert_charrefs=True)
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements[tag] = self.elements.get(tag, 0) + 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.text += " "
        if tag not in VOID:
            self.open_elements.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open_elements.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open_elements or self.open_elements.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data):
        self.text += data

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


def assert_safe_and_whole(html):
    """No active element, no handler, nothing fetched, every id once, every link inside the page leads somewhere."""
    page = Page(html)
    banned = {"script", "iframe", "object", "embed", "link", "base", "form", "input", "img", "math", "audio", "video"}
    assert not banned & set(page.elements)
    assert page.elements["style"] == page.elements["title"] == page.elements["h1"] == 1
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("src", "srcdoc", "srcset", "action")]
    links = [value for value in page.values("href") if not value.startswith("#")]
    assert all(re.fullmatch(r"(\.\./)*[\w%./=-]+\.html", link) for link in links)  # to other pages of the output
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html.replace("url(#", "")
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.values("href") if value not in links} <= set(ids)
    assert not page.unclosed
    assert not page.open_elements
    policy = [v for _, name, v in page.attributes if name == "content" and v.startswith("default-src")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    return page


@pytest.fixture(params=PAYLOADS)
def payload(request):
    """Text that would do harm if it were taken for markup."""
    return request.param


@pytest.fixture(scope="session")
def read_page():
    """What a browser would see in HTML."""
    return Page


@pytest.fixture(scope="session")
def safe_page():
    """The same, after checking that the page is safe and whole."""
    return assert_safe_and_whole
