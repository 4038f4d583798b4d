"""`bertray topics`: topics of reviews, their words, their sentiment and a map."""

from __future__ import annotations

from bertray.config import TopicsConfig
from bertray.console import say, table
from bertray.runs.topic_search import search_topics
from bertray.wording import percent

MAX_LINES = 10


def run_topics(config: TopicsConfig) -> int:
    """Find topics, and print the largest."""
    result = search_topics(config)
    if result.already_done:
        say(f"already found: {result.report}")
        return 0
    say(result.headline)
    rows = [
        [
            f"{topic.number}",
            f"{topic.size:,}",
            percent(topic.share),
            ", ".join(word for word, _ in topic.words[:6]),
        ]
        for topic in result.topics[:MAX_LINES]
    ]
    table("largest topics", ["", "rows", "share", "words"], rows)
    for sentence in result.comparisons:
        say(sentence)
    say(f"topics       {result.table}")
    say(f"assignments  {result.assignments}")
    say(f"report       {result.report}")
    return 0
