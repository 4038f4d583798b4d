"""Results of shares, queue and answers."""

from __future__ import annotations

from dataclasses import dataclass

from bertray.reports.shares import GroupLine, name_of
from bertray.runs.results import Result, ResultWithPage
from bertray.wording import counted


@dataclass(frozen=True, repr=False, kw_only=True)
class SharesResult(ResultWithPage):
    """Shares of labels per group.

    Attributes:
        lines: one for each group and label: `group`, `label`, `rows`, `counted`, `share`, `method`, `labels`.
        already_done: the same run had been finished before; `table` holds what it found.
    """

    lines: tuple[GroupLine, ...] = ()
    already_done: bool = False

    @property
    def table(self) -> str:
        """Path of `shares.parquet`: a row for each group and label."""
        return self.path("shares.parquet")

    @property
    def headline(self) -> str:
        return "already estimated" if self.already_done else f"{counted(len(self.lines), 'share')} estimated"

    @property
    def rows_of_table(self) -> list[tuple[str, str]]:
        return [(f"{name_of(line.group)}: {line.label}", str(line.share)) for line in self.lines[:40]]


@dataclass(frozen=True, repr=False, kw_only=True)
class QueueResult(Result):
    """Reviews for people to answer.

    Attributes:
        num_random: drawn with known probabilities.
        num_uncertain: those the model is least sure of.
        already_done: the same queue had been written before.
    """

    num_random: int = 0
    num_uncertain: int = 0
    already_done: bool = False

    @property
    def queue(self) -> str:
        """Path of `queue.csv`, whose column `label` people fill in; `queue.parquet` has copies of a text, too."""
        return self.path("queue.csv")

    @property
    def headline(self) -> str:
        if self.already_done:
            return "the queue was written before"
        asked = counted(self.num_random + self.num_uncertain, "review")
        return f"{asked}: {self.num_random:,} drawn at random, {self.num_uncertain:,} the model is least sure of"


@dataclass(frozen=True, repr=False, kw_only=True)
class AnswersResult(Result):
    """Answers that were taken.

    Attributes:
        num_answers: reviews with an answer that counts, of all takings.
        num_new: single answers of this call.
        version: number of takings.
    """

    num_answers: int
    num_new: int
    version: int

    @property
    def answers(self) -> str:
        """Path of `answers.parquet`, a training file as it is."""
        return self.path("answers.parquet")

    @property
    def headline(self) -> str:
        new = f"{counted(self.num_new, 'new answer')}" if self.num_new else "nothing new"
        return f"{new}; {counted(self.num_answers, 'review')} answered (version {self.version})"
