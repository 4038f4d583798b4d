"""The page of topics: how large they are, what they are called, what they say, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bertray.evaluation.groups import TITLES, Agreement
from bertray.evaluation.intervals import Estimate, wilson_estimate
from bertray.reports.charts import MAX_TOPIC_COLOURS, topic_colour, topic_map
from bertray.reports.html import render
from bertray.reports.plain import excerpt, plain
from bertray.schema import SCHEMA_VERSION
from bertray.wording import counted, percent, signed

WORDS_IN_NAME = 3
TOPICS_SHOWN = 150  # of the page; topics.parquet and report.json have all
MAX_STACKED_LABELS = 6  # of more labels the most frequent ones of a topic are named
MAX_INTERVAL_LABELS = 3
# Of the colours s0 to s6, by number of labels: negative comes first in nearly all data, and is the warm one.
_COLOURS = {2: (2, 1), 3: (2, 0, 1)}


@dataclass(frozen=True)
class Topic:
    """One topic, or the outliers.

    Args:
        number: 0 is the largest; -1 are the outliers.
        name: of its heaviest words.
        words: (word, c-TF-IDF weight), the heaviest first.
        size: reviews.
        share: of all reviews.
        label_counts: reviews by label, of those that have one.
        mean_score: of the predicted labels.
        representatives: `id` and `text` of the reviews next to the centre.
    """

    number: int
    name: str
    words: Sequence[tuple[str, float]]
    size: int
    share: float
    label_counts: Mapping[str, int] = field(default_factory=dict)
    mean_score: float | None = None
    representatives: Sequence[Mapping[str, str]] = ()

    @property
    def labelled(self) -> int:
        return sum(self.label_counts.values())

    def label_share(self, label: str) -> float | None:
        """None where no review has a label."""
        return self.label_counts[label] / self.labelled if self.labelled else None

    def label_estimate(self, label: str) -> Estimate:
        return wilson_estimate(self.label_counts[label], self.labelled)

    @property
    def frequent_labels(self) -> list[tuple[str, float]]:
        """The three most frequent labels with their shares."""
        ranked = sorted(self.label_counts.items(), key=lambda item: -item[1])[:3]
        return [(label, count / self.labelled) for label, count in ranked if count]


@dataclass(frozen=True)
class GroupComparison:
    """Topics beside TF-IDF + k-means, against known groups.

    Args:
        column: that holds the groups.
        rows: `all`, where outliers count as one more topic, or `without outliers`.
        agreement: the figures, on the same rows.
    """

    column: str
    rows: str
    agreement: Agreement

    @property
    def sentence(self) -> str:
        """In words."""
        which = "outliers as one more topic" if self.rows == "all" else "outliers left out"
        agreement, told = self.agreement, []
        for name, title in TITLES.items():
            difference = agreement.differences[name]
            told.append(
                f"{title} {agreement.figures[name].value:.3f} against {agreement.baseline[name].value:.3f} of TF-IDF + "
                f"k-means (difference {signed(difference.value)}, 95 % interval {signed(difference.low)} to "
                f"{signed(difference.high)})"
            )
        return (
            f"{self.agreement.groups} groups of {self.column}, {self.agreement.rows:,} sampled reviews, {which}: "
            f"{'; '.join(told)}."
        )


@dataclass(frozen=True)
class TopicsReport:
    """Topics as plain data.

    Args:
        rows: reviews that have a topic or are outliers.
        rows_refused: that could not be read.
        sampled: reviews that topics were found on.
        topics: the largest first.
        outliers: the rest.
        labels: in their order.
        label_source: `given` or `predicted`.
        agreement: share of the sample of which the vote of its neighbours says what BERTopic says.
        comparisons: with known groups.
        points: (x, y, topic) of the map.
    """

    title: str
    rows: int
    rows_refused: int
    sampled: int
    topics: Sequence[Topic]
    outliers: Topic
    labels: tuple[str, ...]
    label_source: str
    agreement: float
    comparisons: Sequence[GroupComparison]
    points: Sequence[tuple[float, float, int]]
    facts: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()
    config: str = ""
    created: str = ""

    @property
    def headline(self) -> str:
        """Number of topics and the largest one, in one line."""
        largest = self.topics[0]
        topics = counted(len(self.topics), "topic")
        return (
            f"{self.rows:,} reviews have {topics}; {percent(self.outliers.share)} are outliers. The largest is "
            f"“{largest.name}” with {percent(largest.share)}."
        )

    @property
    def is_whole_sample(self) -> bool:
        """Topics were found on every review; none had to be assigned."""
        return self.sampled == self.rows

    @property
    def everyone(self) -> Topic:
        """All reviews together, for comparison."""
        parts = [*self.topics, self.outliers]
        counts = {label: sum(part.label_counts.get(label, 0) for part in parts) for label in self.labels}
        return Topic(-2, "all reviews", (), self.rows, 1.0, counts)

    def to_json(self) -> dict[str, Any]:
        """Everything on the page but the map, as plain data; texts masked and cut as they are there."""
        content: dict[str, Any] = plain(
            {
                "schema_version": SCHEMA_VERSION,
                "kind": "topics",
                "title": self.title,
                "created": self.created,
                "headline": self.headline,
                "notes": self.notes,
                "rows": self.rows,
                "rows_refused": self.rows_refused,
                "sampled": self.sampled,
                "agreement": self.agreement,
                "label_source": self.label_source if self.labels else None,
                "topics": [self._topic_json(topic) for topic in [*self.topics, self.outliers]],
                "comparisons": self.comparisons,
                "facts": self.facts,
                "config": self.config,
            }
        )
        return content

    def _topic_json(self, topic: Topic) -> dict[str, Any]:
        shown = [{**row, "text": excerpt(row["text"])} for row in topic.representatives]
        shares = {label: topic.label_share(label) for label in self.labels}
        return {
            "topic": topic.number,
            "name": topic.name,
            "words": [{"word": word, "weight": weight} for word, weight in topic.words],
            "size": topic.size,
            "share": topic.share,
            "label_counts": topic.label_counts,
            "label_shares": shares,
            "mean_score": topic.mean_score,
            "representatives": shown,
        }

    def to_html(self) -> str:
        """A page that needs nothing but itself."""
        return render(
            "topics.html.j2",
            report=self,
            title=self.title,
            intervals=bool(self.comparisons or (self.labels and len(self.labels) <= MAX_INTERVAL_LABELS)),
            shown=list(self.topics[:TOPICS_SHOWN]),
            excerpt=excerpt,
            figures=TITLES,
            stacked=1 < len(self.labels) <= MAX_STACKED_LABELS,
            colours=dict(zip(self.labels, _COLOURS.get(len(self.labels), range(1, 1 + len(self.labels))), strict=True)),
            with_intervals=len(self.labels) <= MAX_INTERVAL_LABELS,
            with_score=any(topic.mean_score is not None for topic in self.topics),
            coloured=min(MAX_TOPIC_COLOURS, len(self.topics)),
            map=topic_map(self.points, {topic.number: topic.name for topic in self.topics}) if self.points else None,
            topic_colour=topic_colour,
            verdict=self._verdict(),
        )

    def _verdict(self) -> str:
        """better, worse or undecided: topics against the baseline, by what both figures say with the outliers in."""
        differences = [d for c in self.comparisons[:1] for d in c.agreement.differences.values()]
        if differences and all(d.low > 0 for d in differences):
            return "better"
        return "worse" if differences and all(d.high < 0 for d in differences) else "undecided"


def name_of(words: Sequence[tuple[str, float]]) -> str:
    """The heaviest words of which none is part of another: `car, engine, dealer`."""
    chosen: list[str] = []
    for word, _ in words:
        if not any(word in other or other in word for other in chosen):
            chosen.append(word)
        if len(chosen) == WORDS_IN_NAME:
            break
    return ", ".join(chosen)
