"""`bertray topics`."""

from bertray.runs.topic_search import run_topics as run_topics
