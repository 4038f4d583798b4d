"""Method by rule: the one that is best in most cases for so many rows of so many classes.

Measured on English sets with the bundled encoder (docs/recipes.md): with few rows in all an encoder that learns which
texts belong together beats fine-tuning with a new head; from about 150 rows on fine-tuning is level or better; one
logistic regression on TF-IDF and the frozen encoder needs the fewest rows of all, and reads a long text whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bertray.model.coverage import UNREAD

Recipe = Literal["terms", "stack", "contrast", "finetune"]

NAMES: dict[Recipe, str] = {
    "finetune": "fine-tuning",
    "contrast": "contrast",
    "stack": "TF-IDF and encoder in one logistic regression",
    "terms": "TF-IDF in a logistic regression",
}
CHEAP: tuple[Recipe, ...] = ("stack", "terms")  # fitted in seconds: tried beside any other
FEW_A_CLASS = 8
FEW_ROWS = 150
MANY_ROWS = 1000  # from here on a tenth of the rows is enough to choose by
MANY_CLASSES = 50  # linear heads of so many classes cost more than they bring
MOSTLY_CUT = 0.5
ROWS_TO_CHOOSE_BY = 100
ROWS_OF_NO_RIVAL = 50_000  # from which fine-tuning needs nothing beside it


@dataclass(frozen=True)
class TrainingRows:
    """Facts on the rows that there are to learn from.

    Args:
        cut: share of the rows that are longer than the encoder reads.
        unread: share of the letters that its tokenizer cannot read.
    """

    num_rows: int
    num_classes: int
    cut: float
    unread: float

    @property
    def a_class(self) -> float:
        """Rows a class, on average."""
        return self.num_rows / self.num_classes


@dataclass(frozen=True)
class Choice:
    """A method, and the reason in words.

    Args:
        is_stated: the config says so, not the rule.
    """

    recipe: Recipe
    why: str
    is_stated: bool = False

    @property
    def name(self) -> str:
        """The method in words."""
        return NAMES[self.recipe]

    @property
    def reads(self) -> bool:
        """Whether the encoder is of use."""
        return self.recipe != "terms"


def choose(rows: TrainingRows) -> Choice:
    """The method for some rows."""
    if rows.unread > UNREAD:
        return Choice("terms", f"the encoder cannot read {rows.unread:.0%} of the letters")
    if rows.num_classes >= MANY_CLASSES:
        return Choice("finetune", f"{rows.num_classes:,} classes")
    if rows.a_class < FEW_A_CLASS:
        return Choice("stack", f"{rows.a_class:.1f} rows a class are few: the model is a guess at best")
    if rows.num_rows < MANY_ROWS and rows.cut > MOSTLY_CUT:
        return Choice(
            "stack", f"{rows.cut:.0%} of the texts are longer than max_length, and TF-IDF reads all of a text"
        )
    if rows.num_rows < FEW_ROWS:
        return Choice("contrast", f"{rows.num_rows:,} rows, fewer than {FEW_ROWS}")
    return Choice("finetune", f"{rows.num_rows:,} rows, {FEW_ROWS} or more")
