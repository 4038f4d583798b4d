"""The page of an audit: what is wrong with reviews, the weightiest first, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bertray.evaluation.label_errors import LabelErrorSearch
from bertray.outputs.control_files import add_counts
from bertray.reports.html import render
from bertray.reports.plain import excerpt, plain
from bertray.schema import REASON_WORDS, SCHEMA_VERSION, because
from bertray.wording import counted, percent

WEIGHTS = ("serious", "look", "minor", "none")
WEIGHT_WORDS = {"serious": "serious", "look": "worth a look", "minor": "minor", "none": "nothing found"}
MARK_WORDS = {
    "control_characters": "control characters",
    "replacement_character": "replacement characters (U+FFFD): bytes that somebody decoded wrongly",
    "html_tags": "HTML mark-up",
    "html_entities": "HTML entities",
    "links": "links, or what is left of them",
    "e_mail_addresses": "e-mail addresses",
    "line_breaks": "line breaks inside the text",
}
_FEW = 0.01  # below this share of the rows a finding weighs less
_UNEVEN = 0.8  # share of the largest class from which on accuracy says little
_MANY_DOUBTS = 0.1  # share of labels in doubt from which on the judge is in doubt, too
_CUT = 0.2  # share of cut texts from which on max_length is a matter


@dataclass(frozen=True)
class SplitRows:
    """A split: its files and rows, and the lengths of the usable ones."""

    name: str
    files: int
    rows_in: int
    rows: int  # usable
    chars: Mapping[str, int] = field(default_factory=dict)  # p50, p90, p99, max
    tokens: Mapping[str, int] = field(default_factory=dict)
    truncated: int = 0


@dataclass(frozen=True)
class Repeats:
    """Rows that repeat each other: `groups` different ones, `rows` in all."""

    groups: int = 0
    rows: int = 0
    as_stored: int = 0  # of the rows beyond the first of their group, those that equal it before cleaning too
    other_labels: int = 0  # groups with more than one label

    @property
    def extra(self) -> int:
        """Rows beyond the first of each group."""
        return self.rows - self.groups


@dataclass(frozen=True)
class Leak:
    """Rows of a later split that stand in an earlier one."""

    earlier: str
    later: str
    later_rows: int
    exact_rows: int
    exact_texts: int
    near_rows: int
    other_labels: int = 0  # of these rows, those with another label there


@dataclass(frozen=True)
class BrokenFile:
    """A file with unusable rows; `rows_in` None: it cannot be read at all."""

    split: str
    path: str
    rows_in: int | None
    reasons: Mapping[str, int]


@dataclass(frozen=True)
class Example:
    """Something found: one text or two, as they are stored after cleaning, and what to know of it."""

    texts: tuple[str, ...]
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Finding:
    """One sentence with a count, how much it weighs, what to do, and where the rows are."""

    name: str
    title: str
    weight: str
    share: float
    sentences: tuple[str, ...]
    advice: str = ""
    table: str = ""
    examples: Sequence[Example] = ()

    @property
    def weight_words(self) -> str:
        return WEIGHT_WORDS[self.weight]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for example in self.examples for name in example.facts))


@dataclass(frozen=True)
class AuditReport:
    """An audit as plain data. Mappings by split have every split, in their order."""

    title: str
    splits: Sequence[SplitRows]
    repeats: Mapping[str, Repeats]
    near: Mapping[str, Repeats] | None  # None: not searched
    threshold: float
    ids: Repeats | None  # within a split; None: the data has no ids
    ids_in_two_splits: int
    leaks: Sequence[Leak]
    conflicts: Mapping[str, Repeats] | None  # None: no labels; "all": over all splits
    broken: Mapping[str, Mapping[str, int]]  # split -> reason -> rows
    broken_files: Sequence[BrokenFile]
    labels: Mapping[str, Mapping[str, int]]  # split -> label -> rows
    unlabelled: Mapping[str, int]
    doubt: LabelErrorSearch
    marks: Mapping[str, Mapping[str, int]]  # split -> mark -> rows
    damaged: int  # rows with control characters or U+FFFD, of all splits
    scripts: Mapping[str, Mapping[str, int]]
    max_length: int
    tokenizer: str
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    config: str = ""
    created: str = ""

    @property
    def rows(self) -> int:
        return sum(split.rows for split in self.splits)

    @property
    def rows_in(self) -> int:
        return sum(split.rows_in for split in self.splits)

    @property
    def findings(self) -> list[Finding]:
        """Findings, the weightiest first; checks without a finding stand last."""
        labelled = self.conflicts is not None
        found = [
            *sorted(map(self._leak, self.leaks), key=lambda finding: -finding.share),
            self._broken(),
            *([self._conflicts(self.conflicts)] if self.conflicts is not None else []),
            *([self._ids(self.ids)] if self.ids is not None else []),
            *([self._doubt(self.doubt)] if labelled else []),
            self._duplicates(),
            *([self._near(self.near)] if self.near is not None else []),
            self._length(),
            self._damage(),
            *([self._balance()] if labelled else []),
        ]
        return sorted(found, key=lambda finding: WEIGHTS.index(finding.weight))

    @property
    def headline(self) -> str:
        """Number of audited rows and of kinds of findings."""
        files = sum(split.files for split in self.splits)
        said = f"{counted(self.rows_in, 'row')} in {counted(files, 'file')}"
        if len(self.splits) > 1:
            said += f" ({', '.join(f'{split.name} {split.rows_in:,}' for split in self.splits)})"
        serious = [f.title.lower() for f in self.findings if f.weight == "serious"]
        others = [f.title.lower() for f in self.findings if f.weight == "look"]
        if serious:
            said += f". Serious: {'; '.join(serious)}"
        if others:
            said += f". Worth a look: {'; '.join(others)}"
        return said + ("." if serious or others else ". Nothing serious was found.")

    def _with_other_labels(self, found: Repeats) -> str:
        """The end of a sentence about groups: how many contradict themselves."""
        if self.conflicts is None:
            return "."
        return f"; {found.other_labels:,} {'has' if found.other_labels == 1 else 'have'} different labels."

    @property
    def _alike(self) -> str:
        return f"{100 * self.threshold:.0f} %"

    def _example(self, name: str) -> Sequence[Example]:
        return self.examples.get(name, ())

    def _leak(self, leak: Leak) -> Finding:
        title = f"leakage of {leak.later} rows into {leak.earlier}"
        share = (leak.exact_rows + leak.near_rows) / max(leak.later_rows, 1)
        near = "" if self.near is None else f", {leak.near_rows:,} more nearly so ({self._alike} or more alike)"
        if not leak.exact_rows and not leak.near_rows:
            or_near = "" if self.near is None else ", not even nearly"
            said = f"No {leak.later} text stands in {leak.earlier}{or_near}."
            return Finding(f"leakage_{leak.earlier}_{leak.later}", _capital(title), "none", 0.0, (said,))
        stand = "stands" if leak.exact_rows == 1 else "stand"
        said = (
            f"{leak.exact_rows:,} of {counted(leak.later_rows, f'{leak.later} row')} "
            f"({counted(leak.exact_texts, 'text')}) {stand} in {leak.earlier} word for word{near}: {percent(share)} of "
            f"{leak.later}."
        )
        if leak.other_labels:
            said += f" {leak.other_labels:,} of them {'has' if leak.other_labels == 1 else 'have'} another label there."
        return Finding(
            f"leakage_{leak.earlier}_{leak.later}",
            _capital(title),
            "serious" if leak.exact_rows or share >= _FEW else "look",
            share,
            (said,),
            f"A model that has seen a {leak.later} text flatters itself on it: take the rows of leaking.parquet out of "
            f"{leak.earlier}.",
            "leakage.parquet",
            self._example(f"leakage_{leak.earlier}_{leak.later}"),
        )

    def _broken(self) -> Finding:
        rows = sum(sum(reasons.values()) for reasons in self.broken.values())
        files = sum(file.rows_in is None for file in self.broken_files)
        share = rows / max(self.rows_in, 1)
        if not rows and not files:
            return Finding("broken", "Empty and broken rows", "none", 0.0, ("Every row has a text that can be read.",))
        total, said = add_counts(self.broken.values()), []
        if rows:
            of = counted(self.rows_in, "row")
            said.append(f"{rows:,} of {of} cannot be used ({percent(share)}): {because(total)}.")
        if files:
            said.append(f"{counted(files, 'file')} cannot be read at all.")
        return Finding(
            "broken",
            "Empty and broken rows",
            "serious" if share >= _FEW or files else "minor",
            share,
            tuple(said),
            "Training leaves such rows out; a nightly run puts them into quarantine. Many of one reason mean that the "
            "export is wrong.",
            "broken.parquet",
        )

    def _conflicts(self, conflicts: Mapping[str, Repeats]) -> Finding:
        found = conflicts["all"]
        share = found.rows / max(self.rows, 1)
        title = "Conflicting labels"
        if not found.groups:
            return Finding("conflicts", title, "none", 0.0, ("No text has two different labels.",))
        said = f"{counted(found.groups, 'text')} in {counted(found.rows, 'row')} with different labels"
        inside = ", ".join(f"{name} {each.groups:,}" for name, each in conflicts.items() if name != "all")
        said += f" (within one split: {inside})." if len(self.splits) > 1 else "."
        return Finding(
            "conflicts",
            title,
            "serious" if share >= _FEW else "look",
            share,
            (said,),
            "No model can be right on both: decide on one label, or leave these rows out.",
            "conflicts.parquet",
            self._example("conflicts"),
        )

    def _doubt(self, doubt: LabelErrorSearch) -> Finding:
        title = "Probable label errors"
        if doubt.skipped:
            return Finding("label_errors", title, "minor", 0.0, (doubt.skipped,))
        share = doubt.suspected / max(doubt.judged, 1)
        judged = f"{doubt.means}, right on {percent(doubt.accuracy)} (the largest class: {percent(doubt.majority)})"
        if not doubt.suspected:
            return Finding("label_errors", title, "none", 0.0, (f"No label is in doubt for {judged}.",))
        of = counted(doubt.judged, "row") + (" looked at" if doubt.judged < doubt.labelled else "")
        so_many = share >= _MANY_DOUBTS
        return Finding(
            "label_errors",
            title,
            "look",
            share,
            (
                f"{doubt.suspected:,} labels of {of} are in doubt ({percent(share)}).",
                *(["So many doubts say as much of the judge as of the labels."] if so_many else []),
                f"They were judged out of sample by {judged}; cleanlab told the label's fault from the model's by how "
                "often each class is mistaken for each other. Some of them are hard texts with a right label.",
            ),
            "Read them from the top, the most doubtful stand first. Correct what is wrong; do not delete the rest.",
            "label_errors.parquet",
            self._example("label_errors"),
        )

    def _ids(self, ids: Repeats) -> Finding:
        across = self.ids_in_two_splits
        if not ids.groups and not across:
            return Finding("repeated_ids", "Repeated ids", "none", 0.0, ("Every id stands once.",))
        share = ids.extra / max(self.rows, 1)
        said, advice = [], "Join by split and id together, or make ids that are unique over all splits."
        if ids.groups:
            inside = " in one split" if len(self.splits) > 1 else ""
            repeated = f"{counted(ids.groups, 'id')} in {counted(ids.rows, 'row')} more than once{inside}"
            said.append(repeated + self._with_other_labels(ids))
            advice = (
                "Nothing that is joined by the id can be trusted; a nightly run scores the first row of a file and "
                "puts the others into quarantine."
            )
        if across:
            said.append(
                f"{across:,} id{' stands' if across == 1 else 's stand'} in two splits, as where each is numbered anew."
            )
        weight = "serious" if share >= _FEW else "look" if ids.groups else "minor"
        examples = self._example("repeated_ids")
        return Finding(
            "repeated_ids", "Repeated ids", weight, share, tuple(said), advice, "repeated_ids.parquet", examples
        )

    def _duplicates(self) -> Finding:
        extra = sum(each.extra for each in self.repeats.values())
        share = extra / max(self.rows, 1)
        if not extra:
            return Finding("duplicates", "Duplicates", "none", 0.0, ("No text stands twice in a split.",))
        said = [
            f"{name}: {counted(each.groups, 'text')} more than once, in {counted(each.rows, 'row')}; "
            f"{each.extra:,} beyond the first, {each.as_stored:,} of these the same before cleaning too."
            for name, each in self.repeats.items()
            if each.groups
        ]
        return Finding(
            "duplicates",
            "Duplicates",
            "look" if share >= _FEW else "minor",
            share,
            tuple(said),
            "Keep one row of each group, or keep them in one split (bertray's own validation split does). Short "
            "texts that many people write, such as “good”, repeat by nature.",
            "duplicates.parquet",
            self._example("duplicates"),
        )

    def _near(self, near: Mapping[str, Repeats]) -> Finding:
        extra = sum(each.extra for each in near.values())
        share = extra / max(self.rows, 1)
        alike = f"{self._alike} or more of their character n-grams alike"
        if not extra:
            return Finding("near_duplicates", "Near-duplicates", "none", 0.0, (f"No two texts have {alike}.",))
        said = [
            f"{name}: {counted(each.groups, 'group')} of different texts with {alike}, "
            f"{each.rows:,} rows" + self._with_other_labels(each)
            for name, each in near.items()
            if each.groups
        ]
        return Finding(
            "near_duplicates",
            "Near-duplicates",
            "look" if share >= _FEW else "minor",
            share,
            tuple(said),
            "Templates, editions and spellings of one text: keep each group on one side of a split, and look at "
            "those with different labels.",
            "near_duplicates.parquet",
            self._example("near_duplicates"),
        )

    def _balance(self) -> Finding:
        split, counts = next(((name, counts) for name, counts in self.labels.items() if counts), ("", {}))
        if not counts:
            return Finding("labels", "Class balance", "serious", 0.0, ("No usable row has a label.",))
        total = sum(counts.values())
        label, most = max(counts.items(), key=lambda item: item[1])
        share = most / max(total, 1)
        missing = [
            f"{name} has no row of {', '.join(sorted(absent))}."
            for name, other in self.labels.items()
            if other and (absent := {value for all_of in self.labels.values() for value in all_of} - set(other))
        ]
        classes = counted(len(counts), "class", "classes")
        said = f"{split}: the largest of {classes} is {label} with {percent(share)} of {counted(total, 'row')}."
        weight = "look" if share >= _UNEVEN or missing or len(counts) == 1 else "minor"
        advice = (
            "A model that always says this is right so often: report macro F1 or MCC beside accuracy."
            if share > 1.5 / max(len(counts), 1)
            else ""
        )
        return Finding("labels", "Class balance", weight, 0.0, (said, *missing), advice)

    def _length(self) -> Finding:
        cut = sum(split.truncated for split in self.splits)
        share = cut / max(self.rows, 1)
        than = f"more than {self.max_length} tokens of {self.tokenizer}"
        said = f"No text has {than}."
        if cut:
            of = f"{cut:,} of {counted(self.rows, 'row')} ({percent(share)})"
            said = f"{of} have {than}: a model would not see their end."
        advice = "Raise max_length, or set long_text=head_tail: verdicts often stand at the end." if cut else ""
        return Finding("length", "Truncated texts", _by(cut, share, _CUT), share, (said,), advice)

    def _damage(self) -> Finding:
        total = {mark: sum(counts.get(mark, 0) for counts in self.marks.values()) for mark in MARK_WORDS}
        damaged = self.damaged
        share = damaged / max(self.rows, 1)
        found = [f"{counted(rows, 'row')} with {MARK_WORDS[mark]}" for mark, rows in total.items() if rows]
        if not found:
            said = "No control characters, mark-up, entities, links or addresses."
            return Finding("marks", "Control characters, markup, links and addresses", "none", 0.0, (said,))
        return Finding(
            "marks",
            "Control characters, markup, links and addresses",
            _by(damaged, share, _FEW) if damaged else "minor",
            share,
            ("; ".join(found) + ".",),
            "Cleaning takes out control characters, mark-up and entities, in training and in scoring alike. U+FFFD "
            "cannot be undone: export again from the source. Addresses are somebody's: mind where the texts go.",
            "damaged.parquet" if damaged else "",
        )

    def shown(self, example: Example) -> list[str]:
        """The texts of an example as a page may show them."""
        return [excerpt(text) for text in example.texts]

    def to_json(self) -> dict[str, Any]:
        """Everything on the page as plain data: the content of report.json."""
        content: dict[str, Any] = plain(
            {
                "schema_version": SCHEMA_VERSION,
                "kind": "audit",
                "title": self.title,
                "created": self.created,
                "headline": self.headline,
                "notes": self.notes,
                "rows_in": self.rows_in,
                "rows": self.rows,
                "splits": self.splits,
                "findings": [
                    {
                        "name": finding.name,
                        "title": finding.title,
                        "weight": finding.weight,
                        "sentences": finding.sentences,
                        "advice": finding.advice,
                        "table": finding.table,
                        "examples": [{"texts": self.shown(example), **example.facts} for example in finding.examples],
                    }
                    for finding in self.findings
                ],
                "duplicates": self.repeats,
                "near_duplicates": self.near,
                "repeated_ids": self.ids,
                "ids_in_two_splits": self.ids_in_two_splits,
                "leakage": self.leaks,
                "conflicts": self.conflicts,
                "broken": self.broken,
                "broken_files": self.broken_files,
                "labels": self.labels,
                "unlabelled": self.unlabelled,
                "label_errors": self.doubt,
                "marks": self.marks,
                "scripts": self.scripts,
                "facts": self.facts,
                "config": self.config,
            }
        )
        return content

    def to_html(self) -> str:
        """A page that needs nothing but itself."""
        return render(
            "audit.html.j2",
            report=self,
            title=self.title,
            intervals=False,
            findings=self.findings,
            mark_words=MARK_WORDS,
            reason_words=REASON_WORDS,
            label_names=list(dict.fromkeys(label for counts in self.labels.values() for label in counts)),
            script_names=list(dict.fromkeys(name for counts in self.scripts.values() for name in counts)),
        )


def _by(rows: int, share: float, much: float) -> str:
    return "none" if not rows else "look" if share >= much else "minor"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
