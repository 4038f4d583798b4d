"""Shares, queue and answers on a scored output: from committed rows to people and back."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bertray
from bertray.errors import ConfigError, DataRefused
from bertray.runs.answered_rows import is_answers
from tests.nightly import night_config, run_night

LABELS = ("neg", "pos")
HOSTILE = '=HYPERLINK("http://evil")'
NO_RAY = {"in_process_rows": 10_000_000}
DAYS = (20, 21)


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tiny_encoder) -> str:
    """Two nights of 240 rows with a kept column; one text is a formula, some are copies."""
    root = tmp_path_factory.mktemp("shares")
    inbox, output = root / "inbox", root / "out"
    inbox.mkdir()
    for day in DAYS:
        rng = np.random.default_rng(day)
        words = ["good", "bad", "film", "story", "plot", "actor", "boring", "lovely", "music", "scene"]
        texts = [" ".join(rng.choice(words, 12)) + f" {n}" for n in range(240)]
        texts[3], texts[4:8] = HOSTILE, ["copies of one and the same text"] * 4
        table = pa.table(
            {"id": [f"{day}:{n}" for n in range(240)], "text": texts, "shop": rng.choice(["north", "south"], 240)}
        )
        pq.write_table(table, inbox / f"{day}.parquet")
        config = night_config(tiny_encoder, inbox, str(output), keep_columns=["shop"], rows_per_shard=100)
        assert run_night(config, day=f"2026-11-{day}") == 0
    return str(output)


def rows_of(scored: str) -> list[dict]:
    return [row for path in bertray.files(scored) for row in pq.read_table(path).to_pylist()]


def true_label(row: dict) -> str:
    """A label that depends on the row and is not always the predicted one."""
    return LABELS[int(row["prob_pos"] * 0.8 + (hash_of(row["id"]) % 100) / 100 > 0.75)]


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**n for n, letter in enumerate(text))


def filled(queue: str, label_of) -> Path:
    """queue.csv with its label column filled in, as a spreadsheet saves it."""
    rows = csv_rows(queue)
    target = Path(queue).with_name("filled.csv")
    with target.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, [*rows[0], "who"], delimiter=";")
        writer.writeheader()
        writer.writerows({**row, **label_of(row)} for row in rows)
    return target


def csv_rows(path: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8-sig"), newline="")))


# --- shares ----------------------------------------------------------------------------------------------------------


def test_shares_add_up_over_groups_and_labels(scored, tmp_path):
    result = bertray.shares(scored, by=["shop", "day"], output=str(tmp_path / "s"), workers=NO_RAY)
    rows = rows_of(scored)
    assert len(result.lines) == 2 * 2 * 2
    assert sum(line.rows for line in result.lines) == 2 * len(rows) == 2 * 480
    for line in result.lines:
        mine = [row for row in rows if row["shop"] == line.group[0] and row["id"][:2] == line.group[1][-2:]]
        assert line.rows == len(mine)
        assert line.counted == pytest.approx(np.mean([row["label"] == line.label for row in mine]))
        assert line.share.value == pytest.approx(np.mean([row[f"prob_{line.label}"] for row in mine]), abs=1e-6)
        assert line.share.low < line.share.value < line.share.high
        assert line.method == "mean probability"
    table = pq.read_table(result.table)
    assert table.column_names == [
        *("shop", "day", "label", "rows", "counted", "share", "low", "high", "method", "labelled_rows"),
    ]
    page = (tmp_path / "s/report.html").read_text()
    assert "polyline" in page
    again = bertray.shares(scored, by=["shop", "day"], output=str(tmp_path / "s"), workers=NO_RAY)
    assert again.already_done


def test_a_group_that_is_no_column_is_told_with_the_columns_that_are(scored, tmp_path):
    with pytest.raises(ConfigError, match=r"by: expected a column .* 'shops'.*Did you mean 'shop'"):
        bertray.shares(scored, by=["shops"], output=str(tmp_path / "s"))


def test_the_smallest_of_very_many_groups_are_one_and_no_row_is_lost(scored, tmp_path, monkeypatch):
    monkeypatch.setattr("bertray.runs.label_shares.MAX_GROUPS", 10)
    result = bertray.shares(scored, by=["id"], output=str(tmp_path / "s"), workers=NO_RAY)
    groups = {line.group: line.rows for line in result.lines}
    assert len(groups) == 10
    assert groups[("(other groups)",)] == 480 - 9
    assert any("More than 10 groups" in note for note in result.notes)


def test_ten_thousand_groups_take_no_time_and_lose_no_row(tiny_encoder, tmp_path):
    inbox, output = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    numbers = np.arange(12_000)
    shops = [f"shop {number % 10_000}" for number in numbers]
    shops[0] = "(other groups)"  # a value that is called as the rest is
    table = pa.table({"id": numbers.astype(str), "text": [f"film {number}" for number in numbers], "shop": shops})
    pq.write_table(table, inbox / "1.parquet")
    assert run_night(night_config(tiny_encoder, inbox, str(output), keep_columns=["shop"], rows_per_shard=20_000)) == 0
    started = time.monotonic()
    result = bertray.shares(str(output), by=["shop"], output=str(tmp_path / "s"), workers=NO_RAY)
    assert time.monotonic() - started < 20
    groups = {line.group: line.rows for line in result.lines}
    assert (len(groups), sum(groups.values())) == (1000, 12_000)
    assert groups[("shop 1",)] == 2


def test_a_group_of_lists_is_refused(tiny_encoder, tmp_path):
    inbox, output = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    pq.write_table(pa.table({"id": ["a"], "text": ["a film"], "tags": [["x"]]}), inbox / "1.parquet")
    assert run_night(night_config(tiny_encoder, inbox, str(output), keep_columns=["tags"])) == 0
    with pytest.raises(ConfigError, match="by: expected a column of single values that are no bytes, found 'tags' of"):
        bertray.shares(str(output), by=["tags"], output=str(tmp_path / "s"), workers=NO_RAY)


def test_labels_of_a_group_of_its_own_correct_what_the_model_confuses(scored, tmp_path, monkeypatch):
    monkeypatch.setattr("bertray.trust.shares.MIN_SOURCE_ROWS", 100)
    rows = rows_of(scored)
    truth = tmp_path / "truth.parquet"
    pq.write_table(pa.table({"id": [r["id"] for r in rows], "label": [true_label(r) for r in rows]}), truth)
    result = bertray.shares(scored, by=["shop"], truth=str(truth), output=str(tmp_path / "s"), workers=NO_RAY)
    for line in result.lines:
        mine = [row for row in rows if row["shop"] == line.group[0]]
        true = np.mean([true_label(row) == line.label for row in mine])
        assert line.method == "adjusted count"
        assert line.share.value == pytest.approx(true, abs=0.01)  # of the very rows that gave the matrix


# --- queue and answers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(scored, tmp_path_factory) -> bertray.api.verbs.trust_results.QueueResult:
    output = tmp_path_factory.mktemp("queue") / "q"
    return bertray.queue(scored, slot="dt=2026-11-21", budget=100, output=str(output), workers=NO_RAY)


def test_half_of_the_queue_is_drawn_with_known_probabilities_and_half_is_uncertain(asked, scored):
    assert (asked.num_random, asked.num_uncertain) == (50, 50)
    rows = pq.read_table(Path(asked.output) / "queue.parquet").to_pylist()
    random = [row for row in rows if row["why"] == "random"]
    assert sum(1 / row["probability"] for row in random) == pytest.approx(240)
    assert all(row["probability"] is None for row in rows if row["why"] == "uncertain")
    assert all(row["label"] is None for row in rows)
    scores = {row["id"]: row["score"] for row in rows_of(scored) if row["id"].startswith("21:")}
    uncertain = [row["score"] for row in rows if row["why"] == "uncertain"]
    assert max(uncertain) <= np.quantile(list(scores.values()), 0.45)
    assert len({row["id"] for row in rows}) == 100
    assert sum("copies of one" in row["text"] for row in rows if row["why"] == "uncertain") <= 1
    texts = {row["id"]: row["text"] for row in rows}
    assert all(row["input_path"].endswith("/21.parquet") for row in rows)
    assert {id_: text for id_, text in texts.items() if text.startswith("=")} in ({}, {"21:3": HOSTILE})


def test_copies_of_a_text_are_asked_once_and_the_answer_counts_for_each(tiny_encoder, tmp_path):
    inbox, output = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    texts = [*["one and the same text"] * 30, *(f"a film of {number}" for number in range(10))]
    titles = [*["first"] * 20, *["second"] * 10, *["first"] * 10]
    table = pa.table({"id": [f"r{number}" for number in range(40)], "text": texts, "title": titles})
    pq.write_table(table, inbox / "1.parquet")
    label_of = {"first": "pos", "second": "neg"}
    for columns, num_asked in (({}, 11), ({"text_pair": "title"}, 12)):
        name = str(num_asked)
        assert run_night(night_config(tiny_encoder, inbox, str(output / name), columns=columns)) == 0
        queue = bertray.queue(str(output / name), budget=80, output=str(tmp_path / f"q{name}"), workers=NO_RAY)
        assert (queue.num_random, len(csv_rows(queue.queue))) == (40, num_asked)
        assert any(f"{40 - num_asked} reviews with the very text of another one" in note for note in queue.notes)
        file = filled(queue.queue, lambda row: {"label": label_of.get(row.get("text_pair", ""), "pos"), "who": "ann"})
        taken = bertray.answers(str(file), queue.output, output=str(tmp_path / f"a{name}"))
        rows = pq.read_table(taken.answers).to_pylist()
        assert {row["id"]: row["label"] for row in rows} == {
            id_: label_of[title] if columns else "pos"
            for id_, title in zip(table["id"].to_pylist(), titles, strict=True)
        }
        assert all(row["probability"] == 1 for row in rows)
        assert ("text_pair" in rows[0]) == bool(columns)
        again = bertray.answers(str(file), queue.output, output=str(tmp_path / f"a{name}"))
        assert (again.num_new, again.version) == (0, 1)


def test_a_formula_in_the_spreadsheet_is_no_formula(scored, tmp_path):
    result = bertray.queue(scored, slot="dt=2026-11-21", budget=240, output=str(tmp_path / "all"), workers=NO_RAY)
    content = Path(result.queue).read_text(encoding="utf-8-sig")
    cells = [cell for row in csv.reader(io.StringIO(content, newline="")) for cell in row]
    assert f"'{HOSTILE}" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_answers_come_back_and_make_shares_narrower_and_right(asked, scored, tmp_path):
    by_id = {row["id"]: row for row in rows_of(scored)}
    file = filled(asked.queue, lambda row: {"label": true_label(by_id[row["id"]]), "who": "ann"})
    taken = bertray.answers(str(file), asked.output, output=str(tmp_path / "a"))
    assert (taken.num_answers, taken.num_new, taken.version) == (100, 100, 1)
    table = pq.read_table(taken.answers)
    assert {"id", "input_path", "text", "label", "who", "answered_at", "queue", "probability"} <= set(
        table.column_names
    )
    again = bertray.answers(str(file), asked.output, output=str(tmp_path / "a"))
    assert (again.num_new, again.version) == (0, 1)
    keys: Any = {"slot": "dt=2026-11-21", "workers": NO_RAY}
    result = bertray.shares(scored, answers=str(tmp_path / "a"), output=str(tmp_path / "s"), **keys)
    line = next(line for line in result.lines if line.label == "pos")
    true = np.mean([true_label(row) == "pos" for id_, row in by_id.items() if id_.startswith("21:")])
    assert (line.method, line.labels) == ("answers", 50)
    assert abs(line.share.value - true) < line.share.high - line.share.low  # a draw by chance
    assert any("50 answers without a probability" in note for note in result.notes)
    both = bertray.shares(scored, answers=str(tmp_path / "a"), output=str(tmp_path / "both"), workers=NO_RAY)
    assert both.lines[0].rows == 480  # rows of a slot without answers keep their mean probability


def test_answers_of_the_uncertain_half_alone_are_refused(asked, scored, tmp_path):
    why = {row["id"]: row["why"] for row in pq.read_table(Path(asked.output) / "queue.parquet").to_pylist()}
    uncertain = filled(asked.queue, lambda row: {"label": "pos" if why[row["id"]] == "uncertain" else "", "who": "ann"})
    bertray.answers(str(uncertain), asked.output, output=str(tmp_path / "a"))
    with pytest.raises(DataRefused, match=r"none of 50 answers has a probability .* off by tens of points"):
        bertray.shares(scored, answers=str(tmp_path / "a"), output=str(tmp_path / "s"), workers=NO_RAY)


def test_people_who_disagree_and_labels_that_are_none_are_set_aside_by_name(asked, tmp_path):
    ids = [row["id"] for row in pq.read_table(Path(asked.output) / "queue.parquet").to_pylist()]
    first = filled(asked.queue, lambda row: {"label": "pos" if row["id"] in ids[:3] else "", "who": "ann"})
    words = {ids[0]: "pos", ids[1]: "neg", ids[2]: "great"}
    second = first.rename(first.with_name("ann.csv"))
    bob = filled(asked.queue, lambda row: {"label": words.get(row["id"], ""), "who": "bob"})
    taken = bertray.answers([str(second), str(bob)], asked.output, output=str(tmp_path / "a"))
    aside = pq.read_table(tmp_path / "a/set_aside.parquet").to_pylist()
    assert taken.num_answers == 2  # both say pos of the first, one of them of the third
    assert sorted((row["id"], row["who"], row["why"]) for row in aside) == sorted(
        [
            (ids[1], "ann", "people disagree"),
            (ids[1], "bob", "people disagree"),
            (ids[2], "bob", "no class of the model: great"),
        ]
    )
    assert any("Two people agree in 50.0 % of 2 pairs" in note for note in taken.notes)


def test_a_person_who_answers_again_has_the_last_word_and_the_first_is_kept_aside(asked, tmp_path):
    ids = [row["id"] for row in pq.read_table(Path(asked.output) / "queue.parquet").to_pylist()]
    for label in ("neg", "pos"):
        file = filled(
            asked.queue, lambda row, label=label: {"label": label if row["id"] == ids[0] else "", "who": "ann"}
        )
        taken = bertray.answers(str(file), asked.output, output=str(tmp_path / "a"))
    assert (taken.version, pq.read_table(taken.answers)["label"].to_pylist()) == (2, ["pos"])
    assert pq.read_table(tmp_path / "a/versions/0001/answers.parquet")["label"].to_pylist() == ["neg"]
    (aside,) = pq.read_table(tmp_path / "a/set_aside.parquet").to_pylist()
    assert (aside["label"], aside["why"]) == ("neg", "answered again by the same person")


@pytest.mark.parametrize("step", [0, 1])
def test_the_last_word_of_a_person_counts_though_the_file_was_taken_before(asked, tmp_path, step):
    ids = [row["id"] for row in pq.read_table(Path(asked.output) / "queue.parquet").to_pylist()]
    files = []
    for label in ("neg", "pos"):
        file = filled(asked.queue, lambda row, label=label: {"label": label if row["id"] == ids[0] else "", "who": "a"})
        files.append(str(file.rename(tmp_path / f"{label}.csv")))
    found = []
    for given in (files[0], files[1], files[0], files[0], files, files, files[::-1])[step:]:
        taken = bertray.answers(given, asked.output, output=str(tmp_path / "a"))
        found.append((taken.version, taken.num_new, pq.read_table(taken.answers)["label"].to_pylist()))
    neg, pos = ["neg"], ["pos"]
    assert (
        found
        == [
            [(1, 1, neg), (2, 1, pos), (3, 1, neg), (3, 0, neg), (4, 1, pos), (4, 0, pos), (5, 1, neg)],
            [(1, 1, pos), (2, 1, neg), (2, 0, neg), (3, 1, pos), (3, 0, pos), (4, 1, neg)],
        ][step]
    )


def test_answers_may_be_folders_and_globs_and_what_is_none_is_refused_at_once(asked, tmp_path):
    file = filled(asked.queue, lambda row: {"label": "pos", "who": "ann"})
    (tmp_path / "in").mkdir()
    shutil.copy(file, tmp_path / "in/ann.csv")
    for number, given in enumerate((tmp_path / "in", tmp_path / "i*/*.csv")):
        taken = bertray.answers(str(given), asked.output, output=str(tmp_path / f"a{number}"))
        assert taken.num_answers == 100
    shutil.copytree(asked.output, tmp_path / "q")
    shutil.copy(file, tmp_path / "q/queue.csv")  # filled in where it lay
    assert bertray.answers(str(tmp_path / "q"), str(tmp_path / "q"), output=str(tmp_path / "b")).num_answers == 100
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "nowhere", "a0", "in/*.parquet"):
        with pytest.raises(ConfigError):
            bertray.answers(str(tmp_path / wrong), asked.output, output=str(tmp_path / "c"))


def test_answers_are_read_as_a_spreadsheet_leaves_them(asked, tmp_path):
    file = filled(asked.queue, lambda row: {"label": "pos", "who": "ann"})
    text = file.read_text(encoding="utf-8-sig")
    header, rest = text.split("\n", 1)
    saved = {
        "sep.csv": f"sep=;\r\n{text}".encode("utf-8-sig"),
        "headers.csv": f"{header.upper().replace(';', ' ; ')}\n{rest}".encode(),
        "unicode.txt": text.replace(";", "\t").encode("utf-16"),
    }
    for name, content in saved.items():
        (tmp_path / name).write_bytes(content)
        taken = bertray.answers(str(tmp_path / name), asked.output, output=str(tmp_path / f"a-{name}"))
        assert (name, taken.num_answers, taken.num_new) == (name, 100, 100)


def test_ids_that_a_spreadsheet_changed_are_found_by_their_place(tiny_encoder, tmp_path):
    inbox, output = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    ids = ["00012", "12", "1234567890123456789"]
    pq.write_table(pa.table({"id": ids, "text": ["good film", "bad film", "a plot"]}), inbox / "1.parquet")
    assert run_night(night_config(tiny_encoder, inbox, str(output))) == 0
    queue = bertray.queue(str(output), budget=3, output=str(tmp_path / "q"), workers=NO_RAY)
    label_of = dict(zip(ids, ["pos", "neg", "pos"], strict=True))

    def spoilt(row):
        return {"label": label_of[row["id"]], "id": {"00012": "12", ids[2]: "1.23457E+18"}.get(row["id"], row["id"])}

    taken = bertray.answers(str(filled(queue.queue, spoilt)), queue.output, output=str(tmp_path / "a"))
    rows = pq.read_table(taken.answers).to_pylist()
    assert {row["id"]: row["label"] for row in rows} == label_of


def test_ids_that_were_never_asked_and_files_of_another_queue_are_told(asked, scored, tmp_path):
    other = bertray.queue(scored, slot="dt=2026-11-20", budget=10, output=str(tmp_path / "q2"), workers=NO_RAY)
    file = filled(other.queue, lambda row: {"label": "pos"})
    with pytest.raises(DataRefused, match="of another queue"):
        bertray.answers(str(file), asked.output, output=str(tmp_path / "a"))
    strange = filled(asked.queue, lambda row: {"label": "pos", "id": f"x{row['id']}", "row_no": ""})
    with pytest.raises(DataRefused, match=r"100 answers set aside \(never asked\).*import the column `id` as text"):
        bertray.answers(str(strange), asked.output, output=str(tmp_path / "a"))


def test_half_of_a_queue_answered_and_a_second_queue_correct_as_much_as_one(scored, tmp_path):
    by_id = {row["id"]: row for row in rows_of(scored)}
    true = np.mean([true_label(row) == "pos" for id_, row in by_id.items() if id_.startswith("21:")])
    mean = np.mean([row["prob_pos"] for id_, row in by_id.items() if id_.startswith("21:")])
    found = {}
    for name, budgets, share in (("half", [200], 0.5), ("two", [100, 102], 1.0)):
        for number, budget in enumerate(budgets):
            queue = bertray.queue(scored, budget=budget, output=str(tmp_path / f"{name}{number}"), workers=NO_RAY)
            last = int(share * budget)
            ids = [row["id"] for row in pq.read_table(Path(queue.output) / "queue.parquet").to_pylist()][:last]
            file = filled(
                queue.queue,
                lambda row, ids=ids: {"label": true_label(by_id[row["id"]]) if row["id"] in ids else "", "who": "ann"},
            )
            bertray.answers(str(file), queue.output, output=str(tmp_path / name))
        result = bertray.shares(
            scored,
            slot="dt=2026-11-21",
            answers=str(tmp_path / name),
            output=str(tmp_path / f"s{name}"),
            workers=NO_RAY,
        )
        found[name] = next(line for line in result.lines if line.label == "pos")
    assert abs(mean - true) > 0.1
    for line in found.values():
        assert line.method == "answers"
        assert abs(line.share.value - true) < line.share.high - line.share.low  # draws by chance


def test_answers_as_csv_are_read_as_text(asked, scored, tmp_path):
    by_id = {row["id"]: row for row in rows_of(scored)}
    file = filled(asked.queue, lambda row: {"label": true_label(by_id[row["id"]]), "who": "ann"})
    bertray.answers(str(file), asked.output, output=str(tmp_path / "a"))
    keys: Any = {"slot": "dt=2026-11-21", "workers": NO_RAY}
    one = bertray.shares(scored, answers=str(tmp_path / "a"), output=str(tmp_path / "s1"), **keys)
    two = bertray.shares(scored, answers=str(tmp_path / "a/answers.csv"), output=str(tmp_path / "s2"), **keys)
    assert one.lines == two.lines
    table = pq.read_table(tmp_path / "a/answers.parquet").to_pandas()  # nulls become NaN
    table.to_parquet(tmp_path / "pandas.parquet")
    three = bertray.shares(scored, answers=str(tmp_path / "pandas.parquet"), output=str(tmp_path / "s3"), **keys)
    assert one.lines == three.lines
    table.assign(probability=1.7).to_parquet(tmp_path / "wrong.parquet")
    with pytest.raises(DataRefused, match="expected a probability above 0 and at most 1"):
        bertray.shares(scored, answers=str(tmp_path / "wrong.parquet"), output=str(tmp_path / "s4"), **keys)


def test_rows_of_a_run_that_came_after_the_queue_keep_their_mean_probability(tiny_encoder, tmp_path):
    inbox, output = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()

    def deliver(name: str) -> None:
        ids = [f"{name}:{number}" for number in range(150)]
        pq.write_table(pa.table({"id": ids, "text": [f"a film of {id_}" for id_ in ids]}), inbox / f"{name}.parquet")
        assert run_night(night_config(tiny_encoder, inbox, str(output)), day="2026-11-21") == 0

    deliver("a")
    deliver("b")
    queue = bertray.queue(str(output), budget=80, output=str(tmp_path / "q"), workers=NO_RAY)
    asked_ids = {row["id"][0] for row in pq.read_table(Path(queue.output) / "queue.parquet").to_pylist()}
    assert asked_ids == {"a", "b"}  # every run of the slot
    deliver("c")
    file = filled(queue.queue, lambda row: {"label": "pos", "who": "ann"})
    bertray.answers(str(file), queue.output, output=str(tmp_path / "a"))
    result = bertray.shares(str(output), answers=str(tmp_path / "a"), output=str(tmp_path / "s"), workers=NO_RAY)
    line = next(line for line in result.lines if line.label == "pos")
    mean = np.mean([row["prob_pos"] for row in rows_of(str(output)) if row["id"].startswith("c")])
    # People say pos to all of the first two runs.
    assert line.share.value == pytest.approx((2 + mean) / 3, abs=0.12)  # four standard errors; uncorrected: 0.35 off


def test_ids_that_several_rows_have_are_not_asked_about(tiny_encoder, tmp_path):
    inbox, output = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    for name in "ab":
        ids = ["same", *(f"{name}{number}" for number in range(20))]
        pq.write_table(pa.table({"id": ids, "text": [f"{name} {id_}" for id_ in ids]}), inbox / f"{name}.parquet")
    assert run_night(night_config(tiny_encoder, inbox, str(output))) == 0
    queue = bertray.queue(str(output), budget=42, output=str(tmp_path / "q"), workers=NO_RAY)
    assert "same" not in [row["id"] for row in pq.read_table(Path(queue.output) / "queue.parquet").to_pylist()]
    assert any("2 rows not asked about" in note for note in queue.notes)


def test_a_file_that_has_changed_is_not_asked_about(tiny_encoder, tmp_path):
    inbox, output = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["good film", "bad film"]}), inbox / "1.parquet")
    assert run_night(night_config(tiny_encoder, inbox, str(output))) == 0
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["another film", "a third film"]}), inbox / "1.parquet")
    with pytest.raises(DataRefused, match="has changed since it was scored"):
        bertray.queue(str(output), budget=2, output=str(tmp_path / "q"), workers=NO_RAY)


def test_a_queue_whose_reviews_are_gone_says_so(tiny_encoder, tmp_path):
    inbox, output = tmp_path / "inbox", tmp_path / "out"
    inbox.mkdir()
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["good film", "bad film", "a plot"]}), inbox / "1.parquet")
    assert run_night(night_config(tiny_encoder, inbox, str(output))) == 0
    (inbox / "1.parquet").unlink()
    with pytest.raises(DataRefused, match="cannot be read any more"):
        bertray.queue(str(output), budget=2, output=str(tmp_path / "q"), workers=NO_RAY)


# --- labels that come later ------------------------------------------------------------------------------------------


def test_labels_that_come_later_are_compared_with_the_rows_by_id(scored, tmp_path):
    rows = rows_of(scored)
    truth = tmp_path / "truth.csv"
    truth.write_text("id,label\n" + "".join(f"{r['id']},{true_label(r)}\n" for r in rows[:300]) + "nobody,pos\n")
    result = bertray.score(output=scored, truth=[str(truth)])
    said = " ".join(result.notes)
    assert "1 label of ids that were never scored; not counted." in said
    (tmp_path / "other.csv").write_text("id,label\nx,pos\n")
    with pytest.raises(DataRefused, match="expected ids of scored rows"):
        bertray.score(output=scored, truth=[str(tmp_path / "other.csv")])


@pytest.fixture(scope="module")
def numbered(tmp_path_factory, tiny_encoder) -> str:
    """Two nights whose ids are the numbers of their rows; one was given a date that no calendar has."""
    root = tmp_path_factory.mktemp("numbered")
    inbox, output = root / "inbox", root / "out"
    inbox.mkdir()
    for slot in ("dt=2026-02-01", "dt=2026-02-30"):
        rng = np.random.default_rng(len(slot))
        texts = [f"{' '.join(rng.choice(['good', 'bad', 'film'], 5))} {slot} {n}" for n in range(60)]
        ids = [str(n) for n in range(60)] + (["alone"] if slot.endswith("01") else [])
        pq.write_table(pa.table({"id": ids, "text": [*texts, "a film"][: len(ids)]}), inbox / f"{slot}.parquet")
        assert run_night(night_config(tiny_encoder, inbox, str(output), slot=slot)) == 0
    return str(output)


def test_labels_of_ids_that_begin_anew_every_night_count_where_the_slot_is_named(numbered, tmp_path):
    truth = tmp_path / "truth.csv"
    truth.write_text("id,label\n" + "".join(f"{n},pos\n" for n in range(60)))
    with pytest.raises(
        DataRefused, match=r"60 labels of ids that several rows have, in dt=2026-02-01 and dt=2026-02-30"
    ):
        bertray.score(output=numbered, truth=[str(truth)])
    with pytest.raises(ConfigError, match="slot: nothing of dt=2026-02-09 is committed"):
        bertray.score(output=numbered, truth=[str(truth)], slot="dt=2026-02-09")
    (told,) = bertray.score(output=numbered, truth=[str(truth)], slot="dt=2026-02-01").notes
    assert told.startswith("dt=2026-02-01: 60 labels, accuracy ")
    truth.write_text(truth.read_text() + "alone,pos\n")
    one, left_out = bertray.score(output=numbered, truth=[str(truth)]).notes
    assert one.startswith("dt=2026-02-01: 1 label, accuracy ")
    assert left_out.startswith("60 labels of ids that several rows have")
    shares = bertray.shares(numbered, by=["slot"], truth=str(truth), output=str(tmp_path / "s"), workers=NO_RAY)
    assert left_out in shares.notes
    assert {line.method for line in shares.lines} == {"mean probability"}


def test_two_labels_of_one_id_are_left_out(numbered, tmp_path, caplog):
    truth = tmp_path / "truth.csv"
    truth.write_text("id,label\n0,pos\n1,pos\n1,neg\n1,pos\n")
    (told,) = bertray.score(output=numbered, truth=[str(truth)], slot="dt=2026-02-30").notes
    assert told.startswith("dt=2026-02-30: 1 label, accuracy ")
    assert "truth: 1 id with different labels, such as 1; left out" in caplog.text


def test_a_slot_with_a_date_of_no_calendar_is_grouped_by_when_it_was_scored(numbered, tmp_path):
    result = bertray.shares(numbered, by=["month"], output=str(tmp_path / "s"), workers=NO_RAY)
    (scored_at,) = {row["scored_at"] for row in rows_of(numbered) if row["id"] == "alone"}
    assert {line.group for line in result.lines} == {("2026-02",), (f"{scored_at:%Y-%m}",)}


def test_answers_measure_the_accuracy_of_their_night_on_its_page_and_the_index(asked, scored, tmp_path):
    output = shutil.copytree(scored, tmp_path / "out")
    shutil.rmtree(output / "control/truth", ignore_errors=True)  # of another test
    by_id = {row["id"]: row for row in rows_of(scored)}
    file = filled(asked.queue, lambda row: {"label": true_label(by_id[row["id"]]), "who": "ann"})
    taken = bertray.answers(str(file), asked.output, output=str(tmp_path / "a"))
    mine = [row for id_, row in by_id.items() if id_.startswith("21:")]
    true = np.mean([true_label(row) == row["label"] for row in mine])
    for path in (str(tmp_path / "a"), taken.answers):  # an output, or its table; the second time changes nothing
        result = bertray.score(output=str(output), truth=[path])
        assert "50 answers without a probability of being drawn left out." in result.notes
        measured = json.loads((output / "reports/dt=2026-11-21/run=1/report.json").read_text())["quality"][
            "measured_later"
        ]
        assert abs(measured["value"] - true) < measured["high"] - measured["low"]  # a draw by chance
        assert measured["rows"] == 50
    assert len(list(output.glob("control/truth/*"))) == 1
    page = (output / "reports/dt=2026-11-21/run=1/report.html").read_text()
    assert page.count("Measured later on 50 answers: accuracy ") == 1
    index = json.loads((output / "reports/index.json").read_text())
    assert index["nights"][0]["measured"] == pytest.approx(measured["value"])
    assert index["nights"][1]["measured"] is None


def test_answers_are_known_by_their_columns(asked, tmp_path):
    file = filled(asked.queue, lambda row: {"label": "pos", "who": "ann"})
    taken = bertray.answers(str(file), asked.output, output=str(tmp_path / "a"))
    assert all(is_answers(path) for path in (str(tmp_path / "a"), taken.answers, str(tmp_path / "a/answers.csv")))
    (tmp_path / "answers.csv").write_text("id,label\nx,pos\n")
    others = (str(tmp_path / "answers.csv"), str(tmp_path), "hub://name/test", str(tmp_path / "*.csv"), str(file))
    assert not any(is_answers(path) for path in others)


def test_the_index_lists_every_night_and_leads_to_it(scored):
    index = json.loads((Path(scored) / "reports/index.json").read_text())
    assert [night["title"] for night in index["nights"]] == ["dt=2026-11-21", "dt=2026-11-20"]
    assert (index["schema_version"], index["severity"]) == (1, "good")
    page = (Path(scored) / "reports/index.html").read_text()
    assert 'href="dt%3D2026-11-21/run%3D1/report.html"' in page
    first = (Path(scored) / "reports/dt=2026-11-20/run=1/report.html").read_text()
    second = (Path(scored) / "reports/dt=2026-11-21/run=1/report.html").read_text()
    assert 'href="../../dt%3D2026-11-21/run%3D1/report.html"' in first
    assert 'href="../../dt%3D2026-11-20/run%3D1/report.html"' in second
