"""Labels: canonical values, class names, ids, and the messages for labels that do not fit."""

from __future__ import annotations

import json
import re
import shlex
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bertray.config import build_config, load_config
from bertray.errors import DataRefused
from bertray.reviews.labels import (
    LEFT_OUT,
    MOST_CLASSES,
    NO_LABEL,
    UNKNOWN,
    LabelMap,
    canonical,
    check_values,
    sorted_values,
    value_counts,
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([0, 1, None]), ["0", "1", None]),
        (pa.array([1.0, 2.5, float("nan"), None]), ["1", "2.5", None, None]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([" pos ", "", "1.0", "-2.00", "1.5", "v1.0", None]), ["pos", None, "1", "-2", "1.5", "v1.0", None]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
        (pa.array([b"good", b"\xff"], pa.binary()), ["good", "\ufffd"]),
        (pa.array(["x"], pa.large_string()), ["x"]),
        (pa.array([Decimal("1.00"), Decimal("2.50")]), ["1", "2.50"]),
        (pa.array([None, None], pa.null()), [None, None]),
    ],
)
def test_canonical_text_is_the_same_for_the_same_value_in_any_type(values, expected):
    assert canonical(values).to_pylist() == expected
    assert canonical(values).type == pa.string()


def test_without_labels_the_sorted_values_are_the_names():
    assert LabelMap.from_config(None, ["pos", "neg", "pos"]).names == ("neg", "pos")
    assert LabelMap.from_config(None, ["10", "2", "-1"]).names == ("-1", "2", "10")
    assert sorted_values(["10", "2", "a"]) == ["10", "2", "a"]


def test_a_list_gives_the_id_order():
    labels = LabelMap.from_config(["positive", "negative"])
    assert labels.ids(pa.array(["negative", "positive"])).tolist() == [1, 0]


def test_a_mapping_gives_ids_by_first_appearance_and_leaves_nulls_out():
    labels = LabelMap.from_config({"1": "bad", "2": "bad", "3": None, "4": "good", "5": "good"})
    assert labels.names == ("bad", "good")
    ids = labels.ids(pa.array(["5", "1", "3", "9", None, "2"]))
    assert ids.dtype == np.int32
    assert ids.tolist() == [1, 0, LEFT_OUT, UNKNOWN, NO_LABEL, 0]


def test_ids_of_a_chunked_column_are_in_order():
    labels = LabelMap.from_config(["a", "b"])
    assert labels.ids(pa.chunked_array([["b"], ["a", None]])).tolist() == [1, 0, NO_LABEL]


def test_value_counts_leave_nulls_out():
    assert value_counts(pa.array(["a", None, "b", "a"])) == {"a": 2, "b": 1}


def test_one_class_without_labels_is_refused():
    with pytest.raises(DataRefused, match=r"at least two classes, found 1 \(neg\)") as caught:
        LabelMap.from_config(None, ["neg", "neg"])
    assert caught.value.exit_code == 6


def test_unknown_values_are_refused_with_counts_in_order_and_the_remedy():
    labels = LabelMap.from_config(["negative", "positive"])
    with pytest.raises(DataRefused) as caught:
        labels.check({"1": 12500, "0": 12400}, "data.train")
    assert str(caught.value) == (
        "data.train: expected label values negative, positive, found 24,900 rows with others: 0 (12,400), 1 (12,500). "
        'Give every value a class name (null leaves it out): `\'labels={"0": negative, "1": positive}\'`.'
    )


def test_one_more_value_than_the_mapping_knows_is_shown_in_the_remedy():
    labels = LabelMap.from_config({"0": "negative", "1": "positive"})
    with pytest.raises(DataRefused, match=r"labels=\{\"0\": negative, \"1\": positive, \"2\": class_2\}"):
        labels.check({"0": 5, "1": 5, "2": 1}, "data.train")


def test_a_class_without_rows_is_refused_for_training_only():
    labels = LabelMap.from_config(["a", "b", "c"])
    with pytest.raises(DataRefused, match=r"found a \(3\), b \(2\), c \(0\)"):
        labels.check({"a": 3, "b": 2}, "data.train")
    labels.check({"a": 3, "b": 2}, "input", needs_all_classes=False)
    with pytest.raises(DataRefused, match="two classes at least"):
        labels.check({"a": 3}, "input", needs_all_classes=False)


def test_values_that_are_left_out_do_not_count_as_a_class():
    labels = LabelMap.from_config({"0": "negative", "1": "positive", "2": None})
    labels.check({"0": 1, "1": 1, "2": 100}, "data.train")
    with pytest.raises(DataRefused):
        labels.check({"0": 1, "2": 100}, "data.train")


def test_a_label_map_survives_json():
    labels = LabelMap.from_config({"1": "schlecht", "2": None, "3": "gut"})
    assert LabelMap.from_json(json.loads(json.dumps(labels.to_json()))) == labels


def test_unknown_values_are_counted_without_classes_and_values_left_out():
    labels = LabelMap.from_config({"0": "negative", "1": "positive", "2": None})
    assert labels.unknown_values({"10": 1, "1": 4, "3": 7, "2": 9}) == {"3": 7, "10": 1}
    assert labels.unknown_values({"0": 1, "2": 9}) == {}


@pytest.mark.parametrize(
    "value",
    [1, 1.0, -2.0, 2.5, 1e15, 1e17, 2.0**53, 10**20, "1.0", " -2.00 ", "v1.0", "1.0.0", "\u00a0a b\u3000", "1e5"],
)
def test_a_value_in_the_config_is_the_value_in_the_data(value):
    config: Any = build_config("evaluate", {"input": "i", "output": "o", "labels": {value: "this", "other": "that"}})
    in_data = pa.array([value]) if not isinstance(value, int) or value < 2**63 else pa.array([str(value)])
    assert LabelMap.from_config(config.labels).ids(canonical(in_data)).tolist() == [0]


def labels_of(remedy: str) -> dict[str, str | None] | list[str]:
    """The `labels` of a printed remedy, through a shell and the config loader."""
    [words] = re.findall(r"`(.*)`", remedy, re.DOTALL)
    [word] = shlex.split(words)
    config: Any = load_config("evaluate", [], ["input=i", "output=o", "model=m", word])
    return config.labels


ODD_VALUES = [
    ["0", "1"], ["true", "false"], ["True", "False"], ["no", "yes"], ["null", "~"], ["#1", "#2"], ["a: b", "c, d"],
    ["{x}", "[y]"], ["it's", '"quoted"'], ["1.5", "2.5"], ["1e5", "0x1"], ["sehr gut", "naja"], ["좋아요", "싫어요"],
    ["$HOME", "`id`"], ["-", "?"], ["2026-11-29", "12:30"], ["*a", "&b"], ["\\", "a\\b"],
    [f"class number {n}" for n in range(30)],
]  # fmt: skip


@pytest.mark.parametrize("values", ODD_VALUES, ids=repr)
@pytest.mark.parametrize("labels", [["neg", "pos"], {"0": "neg", "1": "pos"}, {"no": "neg", "yes": "pos", "x": None}])
def test_a_printed_remedy_works_in_a_shell_and_in_the_next_command(values, labels):
    counts = dict.fromkeys(values, 10)
    known = LabelMap.from_config(labels)
    if not known.unknown_values(counts):
        return
    with pytest.raises(DataRefused) as caught:
        known.check(counts, "data.train")
    LabelMap.from_config(labels_of(caught.value.remedy)).check_known(counts, "data.train")


@pytest.mark.parametrize("name", ["label", "Label", "LABEL"])
@pytest.mark.parametrize("values", [["neg", "pos"], ["0", "1"], ["no", "yes", "#"]])
def test_the_name_of_the_column_is_no_class(name, values):
    counts = {**dict.fromkeys(values, 20), name: 2}
    with pytest.raises(
        DataRefused, match=r"data.train: expected classes in column 'label', found its own name"
    ) as caught:
        check_values(counts, "label", "data.train")
    labels = LabelMap.from_config(labels_of(caught.value.remedy))
    labels.check(counts, "data.train")
    assert labels.names == tuple(sorted_values(values))
    with pytest.raises(DataRefused) as caught:
        check_values({name: 2, "pos": 9}, "label", "data.train")
    assert caught.value.remedy == "Set `columns.label` to the column that holds the classes."


def test_a_class_of_very_few_rows_beside_large_ones_is_named():
    assert check_values({"neg": 100, "pos": 99, "postive": 1, "odd": 5}, "label", "data.train") == [
        "data.train: the class 'postive' has 1 row. Did you mean 'pos'? `labels` names the classes, and null leaves a "
        "value out."
    ]
    assert check_values({"neg": 30, "pos": 2}, "label", "data.train") == []
    assert check_values({"1": 4, "2": 9, "3": 8}, "stars", "data.train") == []


def test_values_that_stand_in_one_row_alone_are_no_classes():
    ids = {f"r{number}": 1 for number in range(51)}
    with pytest.raises(DataRefused) as caught:
        check_values(ids, "key", "data.train")
    assert caught.value.message == (
        "data.train: expected classes in column 'key', found 51 values, 51 of them in one row alone, as ids and texts "
        "are."
    )
    assert check_values(dict.fromkeys(ids, 2), "key", "data.train") == []
    assert check_values(dict(list(ids.items())[:50]), "key", "data.train") == []


def test_so_many_classes_are_refused():
    counts = {f"class{number}": 7 for number in range(MOST_CLASSES)}
    LabelMap.from_config(None, counts).check(counts, "data.train")
    counts["one more"] = 7
    with pytest.raises(DataRefused, match="expected at most 1,000 classes, found 1,001"):
        LabelMap.from_config(None, counts).check(counts, "data.train")
