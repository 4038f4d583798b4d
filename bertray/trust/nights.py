"""Nights of an output as the drift rule sees them: profile, scripts and model version of each committed run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bertray.outputs.control_files import LedgerRun
from bertray.outputs.night_profile import OTHER_GROUPS, Moments, NightProfile
from bertray.reviews.text_statistics import CHARACTERS_OF, LINKS, LOG_LENGTH, SHORT, TEMPLATED
from bertray.reviews.writing_system import OTHER

FOREIGN = "foreign_script"
NEW_VALUES, RARE_VALUES = "(new values)", "(rare values)"
SHARE_OF = "share:"  # and `<column>=<value>`: rows of a value of `drift.by`
MIN_ROWS = 100  # of a night that is compared
_MAIN_SCRIPT = 0.20  # share of the reference's rows from which a script is one of theirs
_FREQUENT = 0.01  # share of the rows from which a value of a column is looked at by itself


class ColumnValues(NamedTuple):
    """Values of a column of `drift.by` among the nights of a reference.

    Args:
        frequent: those whose shares are statistics; rows of all others count together.
        nights_of: value -> nights of the reference that hold it.
    """

    frequent: tuple[str, ...]
    nights_of: Mapping[str, int]


@dataclass(frozen=True)
class Night:
    """One committed run.

    Args:
        seq: of its ledger entry.
        title: as people read it.
        rows: that were scored.
        scripts: dominant script -> rows.
        profile: None where the run has none of all its rows.
    """

    seq: int
    slot: str
    title: str
    model_version: str
    rows: int
    scripts: Mapping[str, int]
    profile: NightProfile | None

    @classmethod
    def of(cls, run: LedgerRun) -> Night:
        """The night of a ledger entry."""
        profile = run.night_profile
        whole = profile is not None and profile.rows == run.rows_scored > 0
        return cls(
            run.seq, run.slot, run.title, run.model_version, run.rows_scored, run.scripts, profile if whole else None
        )

    @property
    def is_comparable(self) -> bool:
        """Enough rows, all of them in the profile."""
        return self.profile is not None and self.rows >= MIN_ROWS

    def moments(
        self,
        main_scripts: Collection[str],
        columns: Mapping[str, ColumnValues],
        *,
        of_texts: bool = False,
        in_reference: bool = False,
    ) -> dict[str, Moments]:
        """Moments of each statistic by name; nothing of a column that this night does not count.

        Args:
            main_scripts: of the reference; rows of others are foreign.
            columns: of the reference. Rows of frequent values that no (other) night of it holds are new.
            of_texts: only what does not depend on the model.
            in_reference: the night is one of the reference.
        """
        assert self.profile is not None
        found = {name: value for name, value in self.profile.moments.items() if not of_texts or depends_on_text(name)}
        foreign = sum(rows for script, rows in self.scripts.items() if script not in main_scripts and script != OTHER)
        found[FOREIGN] = _share(foreign, self.rows)
        for column, values in columns.items():
            if column in self.profile.groups:
                rows_of = self._rows_of_values(column, values, in_reference=in_reference)
                found |= {f"{SHARE_OF}{column}={value}": _share(rows, self.rows) for value, rows in rows_of.items()}
        return found

    def _rows_of_values(self, column: str, values: ColumnValues, *, in_reference: bool) -> dict[str, int]:
        """Rows of each frequent value, of new ones, and of the rest.

        A night of the reference is compared with the others of it: among its own values none would be new, and the
        long tail of a column would make every later night look odd.
        """
        assert self.profile is not None
        groups = self.profile.groups[column]
        rows_of = {value: groups[value].rows if value in groups else 0 for value in values.frequent}
        rows_of[NEW_VALUES] = sum(
            group.rows
            for value, group in groups.items()
            if value not in rows_of
            and value != OTHER_GROUPS
            and group.rows >= _FREQUENT * self.rows
            and values.nights_of.get(value, 0) <= in_reference
        )
        rows_of[RARE_VALUES] = self.rows - sum(rows_of.values())
        return rows_of


def depends_on_text(name: str) -> bool:
    """Whether a statistic is the same for every model."""
    return name in (LOG_LENGTH, SHORT, LINKS, TEMPLATED) or name.startswith((CHARACTERS_OF, SHARE_OF))


def main_scripts(nights: Sequence[Night]) -> frozenset[str]:
    """Scripts of a good part of the rows of some nights, and the most frequent one."""
    total: dict[str, int] = {}
    for night in nights:
        for script, rows in night.scripts.items():
            if script != OTHER:
                total[script] = total.get(script, 0) + rows
    if not total:
        return frozenset()
    rows_of_all = sum(total.values())
    return frozenset({script for script, rows in total.items() if rows >= _MAIN_SCRIPT * rows_of_all})


def column_values(nights: Sequence[Night]) -> dict[str, ColumnValues]:
    """Values of the columns that every one of some nights counts."""
    profiles = [night.profile for night in nights if night.profile is not None]
    columns = set.intersection(*[set(profile.groups) for profile in profiles]) if profiles else set()
    total = sum(profile.rows for profile in profiles)
    found = {}
    for column in sorted(columns):
        rows_of: dict[str, int] = {}
        nights_of: dict[str, int] = {}
        for profile in profiles:
            for value, group in profile.groups[column].items():
                rows_of[value] = rows_of.get(value, 0) + group.rows
                nights_of[value] = nights_of.get(value, 0) + 1
        frequent = [value for value, rows in rows_of.items() if rows >= _FREQUENT * total and value != OTHER_GROUPS]
        found[column] = ColumnValues(tuple(frequent), nights_of)
    return found


def _share(hits: int, rows: int) -> Moments:
    return Moments(rows, float(hits), float(hits))
