"""Plans: which files are new, and what a plan pins."""

import pytest

from bertray.errors import ConflictError
from bertray.io.store import LocalStore
from bertray.outputs import ledger
from bertray.outputs.commit import commit
from bertray.scoring.plan import (
    decide_files,
    open_plans,
    owners,
    pin_plan,
    plan_key,
    rows_per_part,
    versions,
)
from tests.plans import entry, file, plan


def test_only_files_that_the_ledger_does_not_hold_are_scored():
    old, new = file("a", digest="da"), file("b", digest="db")
    verdicts = {d.file.path: d.verdict for d in decide_files([old, new], [entry("dt=1", old)])}
    assert verdicts == {"a": "scored", "b": "score"}


def test_a_changed_file_is_named_and_a_touched_one_is_not():
    ledger_entry = entry("dt=1", file("a", digest="da"), file("b", digest="db"))
    changed = file("a", size=11, modified="2", digest="other")
    touched = file("b", modified="2", digest="db")
    decisions = decide_files([changed, touched], [ledger_entry])
    assert [(d.verdict, d.why) for d in decisions] == [
        ("changed", "changed since it was scored in slot dt=1"),
        ("scored", "scored in slot dt=1"),
    ]


def test_a_file_that_was_quarantined_whole_is_scored_once_it_is_repaired():
    broken = entry("dt=1", file("a", digest=None))
    broken = broken.model_copy(update={"files": [broken.files[0].model_copy(update={"reason": "file_corrupt"})]})
    decisions = decide_files([file("a", size=11, modified="2", digest="new")], [broken])
    assert [(d.verdict, d.why) for d in decisions] == [("score", "repaired since slot dt=1 quarantined it")]
    assert [d.verdict for d in decide_files([file("a", digest=None)], [broken])] == ["scored"]


def test_a_repaired_file_that_an_older_slot_took_in_is_that_slots():
    a, b, bad, repaired = file("a", digest="da"), file("b", digest="db"), file("x", digest=None), file("x", size=11)
    of_bad = entry("dt=2", b, bad, seq=2)
    of_bad = of_bad.model_copy(
        update={"files": [of_bad.files[0], of_bad.files[1].model_copy(update={"reason": "file_corrupt"})]}
    )
    entries = [entry("dt=1", a), of_bad, entry("dt=1", a, repaired, seq=3, version=2)]
    assert {path: (found, by.seq) for path, (found, by) in owners(entries).items()} == {
        "a": (entries[2].files[0], 3),
        "b": (entries[1].files[0], 2),
        "x": (entries[2].files[1], 3),
    }
    assert [(d.verdict, d.why) for d in decide_files([repaired], entries)] == [("scored", "scored in slot dt=1")]


def test_the_same_content_under_another_name_is_not_scored_twice():
    decisions = decide_files([file("b"), file("c"), file("d", digest="other")], [entry("dt=1", file("a"))])
    assert [(d.verdict, d.why) for d in decisions] == [
        ("duplicate", "same content as a, scored in slot dt=1"),
        ("duplicate", "same content as a, scored in slot dt=1"),
        ("score", "new"),
    ]
    tonight = decide_files([file("x"), file("y")], [])
    assert [(d.verdict, d.why) for d in tonight] == [("score", "new"), ("duplicate", "same content as x")]


def test_the_plan_key_ignores_the_order_of_listing_and_sees_everything_else():
    a, b = file("a"), file("b")
    key = plan_key([a, b], "v", {"x": 1})
    assert key == plan_key([b, a], "v", {"x": 1})
    others = [
        plan_key([a], "v", {"x": 1}),
        plan_key([a, b], "w", {"x": 1}),
        plan_key([a, b], "v", {"x": 2}),
        plan_key([a, file("b", modified="9")], "v", {"x": 1}),
    ]
    assert len({key, *others}) == 5


def test_runs_of_the_newest_version_of_each_slot_are_current():
    entries = [
        entry("dt=1", seq=1),
        entry("dt=2", seq=2),
        entry("dt=1", seq=3, run=2),
        entry("dt=2", seq=4, run=2),
        entry("dt=1", seq=5, version=2),
        entry("dt=1", seq=6, run=2, version=2),
    ]
    assert [found.seq for found in ledger.current(entries)] == [5, 6, 2, 4]
    assert versions(entries) == {"dt=1": 2, "dt=2": 1}
    assert ledger.num_runs(entries, "dt=1", 1) == 2
    assert ledger.num_runs(entries, "dt=1", 3) == 0
    assert [found.folder for found in ledger.current(entries)] == [
        "dt=1/run=1",
        "dt=1/run=2",
        "dt=2/run=1",
        "dt=2/run=2",
    ]


# The ledger of a run that read it before the second entry.
READ_BEFORE = ledger.Ledger((entry("dt=1", file("a", digest="da")),))


@pytest.mark.parametrize(("beside", "number"), [(True, 3), (False, None)])
def test_a_run_that_lost_the_race_of_its_day_becomes_the_next(beside, number, tmp_path):
    store = LocalStore(tmp_path)
    ledger.append(store, entry("dt=1", file("a", digest="da")))
    ledger.append(store, entry("dt=1", file("b", digest="db"), seq=2, run=2, key="other"))
    mine = entry("dt=1", file("c", digest="dc"), seq=2, run=2, key="mine")
    if number is None:
        with pytest.raises(ConflictError, match="another run committed this slot"):
            commit(store, READ_BEFORE, mine, beside=beside)
        assert len(ledger.read_ledger(store)) == 2
    else:
        committed, known = commit(store, READ_BEFORE, mine, beside=beside)
        assert (committed.seq, committed.run) == (3, number)
        assert known == ledger.read_ledger(store)


@pytest.mark.parametrize("replaced_by", [2, 3])
def test_no_run_is_added_to_a_version_that_was_replaced(replaced_by, tmp_path):
    store = LocalStore(tmp_path)
    ledger.append(store, entry("dt=1", file("a", digest="da")))
    ledger.append(store, entry("dt=1", file("a", digest="d2"), seq=2, version=replaced_by, key="other"))
    with pytest.raises(ConflictError, match="another run committed this slot"):
        commit(store, READ_BEFORE, entry("dt=1", file("c", digest="dc"), seq=2, run=2, key="mine"), beside=True)


def test_two_runs_with_the_same_plan_share_the_first_one(tmp_path):
    store = LocalStore(tmp_path)
    first = pin_plan(store, plan(file("a")))
    second = pin_plan(store, plan(file("a")).model_copy(update={"run_id": "other"}))
    assert (first.is_new, second.is_new) == (True, False)
    assert second.plan == first.plan
    assert open_plans(store, []) == [first.plan]
    assert open_plans(store, [entry("s", key="k")]) == []


def test_the_ledger_takes_one_entry_a_sequence_number(tmp_path):
    store = LocalStore(tmp_path)
    mine = entry("dt=1", file("a"))
    assert ledger.append(store, mine) == mine
    assert ledger.append(store, entry("dt=1", file("a")).model_copy(update={"run_id": "beside"})) == mine
    assert ledger.append(store, entry("dt=2", file("b"), key="other")) is None
    assert list(ledger.read_ledger(store)) == [mine]


def test_a_control_file_of_another_version_is_a_conflict(tmp_path):
    store = LocalStore(tmp_path)
    store.put(ledger.entry_key(1), entry("dt=1").model_copy(update={"schema_version": 1}).to_bytes())
    with pytest.raises(ConflictError, match="expected schema_version 2, found 1") as caught:
        ledger.read_ledger(store)
    assert "Choose a new `output`" in str(caught.value)
    store.put(ledger.entry_key(1), entry("dt=1").model_copy(update={"schema_version": 3}).to_bytes())
    with pytest.raises(ConflictError, match="expected schema_version 2, found 3"):
        ledger.read_ledger(store)
    store.put(ledger.entry_key(1), b"{}")
    with pytest.raises(ConflictError, match="damaged or edited"):
        ledger.read_ledger(store)


@pytest.mark.parametrize(
    ("num_rows", "expected"),
    [(0, 4096), (1, 4096), (20_000 * 4096, 4096), (20_000 * 4096 + 1, 8192), (10**9, 53_248), (10**10, 65_536)],
)
def test_parts_grow_where_there_would_be_very_many(num_rows, expected):
    assert rows_per_part(num_rows) == expected


@pytest.mark.parametrize(
    ("num_rows", "num_gpus", "expected"),
    [
        (0, 1, 4096),
        (100_000, 1, 12_288),
        (10**6, 1, 32_768),
        (10**6, 8, 12_288),
        (10**7, 2, 32_768),
        (10**10, 4, 65_536),
    ],
)
def test_parts_of_a_gpu_are_larger_as_long_as_each_gpu_has_several(num_rows, num_gpus, expected):
    assert rows_per_part(num_rows, num_gpus) == expected
