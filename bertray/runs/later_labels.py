"""Labels that come after a night was scored, joined to its rows by their ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bertray.config import EvaluateConfig, ScoreConfig, SharesConfig
from bertray.config.values import Labels
from bertray.runs.release.pair import labels_by_id
from bertray.wording import counted


def read_labels(config: ScoreConfig | SharesConfig, labels: Sequence[str], values: Labels | None) -> dict[str, str]:
    """Class by id of the files that `truth` names; their texts are not read, nor need they be there.

    Args:
        labels: classes of the scored rows.
        values: label values to class names.

    Raises:
        DataRefused: label values that are no class.
    """
    if not config.truth:
        return {}
    columns = config.columns.model_copy(update={"text": config.columns.id, "text_pair": None, "aspects": None})
    reading = EvaluateConfig(
        input=config.truth, output=config.output, columns=columns, reader=config.reader, labels=values
    )
    found = labels_by_id(reading, labels, key="truth")
    return {id_: label for id_, label in found.items() if label is not None}


def of_several_rows(ids_of_slots: Iterable[tuple[str, Iterable[str]]]) -> dict[str, list[str]]:
    """Ids that several rows have, and the slots of these: numbers of rows begin anew with every file."""
    slots: dict[str, list[str]] = {}
    for slot, ids in ids_of_slots:
        for id_ in ids:
            slots.setdefault(id_, []).append(slot)
    return {id_: of_id for id_, of_id in slots.items() if len(of_id) > 1}


def in_words(ambiguous: Mapping[str, Sequence[str]]) -> str:
    """Sentence on labels that are left out since nobody can tell which row they mean."""
    slots = sorted(set(max(ambiguous.values(), key=lambda of_id: len(set(of_id)))))[:2]
    remedy = " Name the slot that they belong to by `slot`." if len(slots) > 1 else ""
    return (
        f"{counted(len(ambiguous), 'label')} of ids that several rows have, in {' and '.join(slots)}, left out: nobody "
        f"can tell which row is meant.{remedy}"
    )
