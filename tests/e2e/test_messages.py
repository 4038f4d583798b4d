"""Bad input: one screen with what was expected, what was found and what to do; the right code; no cluster started."""

import errno

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run

pytestmark = pytest.mark.usefixtures("no_work")


@pytest.fixture
def reviews(tmp_path):
    """Eight labelled reviews of two classes."""
    path = tmp_path / "reviews.parquet"
    texts = [f"{word} film number {i}" for i, word in enumerate(["good", "bad"] * 4)]
    pq.write_table(
        pa.table({"id": [f"r{i}" for i in range(8)], "text": texts, "label": ["pos", "neg"] * 4, "stars": range(8)}),
        path,
    )
    return path


@pytest.fixture
def tiny_classifier(tmp_path, tiny_encoder):
    """A classifier of two classes as it comes from the hub: without a bertray.json."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / "classifier"
    labels = {0: "neg", 1: "pos"}
    AutoModelForSequenceClassification.from_pretrained(tiny_encoder, id2label=labels).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    return folder


def outcome(capsys, *argv: object) -> tuple[int, str]:
    code = run([str(word) for word in argv])
    text = capsys.readouterr()
    assert "Traceback" not in text.out + text.err
    return code, text.err


TRAIN_FAULTS = [
    (2, ["data.train={tmp}/nowhere.parquet"], ["nowhere.parquet"]),
    (2, ["columns.text=body"], ["expected column 'body'", "'text'"]),
    (2, ["columns.text=stars"], ["expected column 'stars' to be string", "int64"]),
    (2, ["training.epoch=3"], ["Did you mean 'training.epochs'?"]),
    (2, ["model=/no/such/model"], ["model=/no/such/model: no such folder"]),
    (2, ["max_length=9999"], ["max_length=9999", "sees at most 64 tokens"]),
    (2, ["output=/proc/bertray"], ["/proc/bertray"]),
    (2, ["output=ftp://host/x"], ["found ftp://"]),
    (2, ["training.method=distill"], ["training.teacher is missing"]),
    (2, ["training.teacher=runs/teacher"], ["training.teacher applies to training.method=distill, not to auto"]),
    (2, ["training.head=svm"], ["training.head applies to training.method=features, not to auto"]),
    (2, ["training.freeze_layers=99"], ["training.freeze_layers=99: expected at most 2"]),
    (2, ["training.lora.rank=2", "training.lora.targets=[querry]"], ["training.lora.targets", "found querry"]),
    (6, ["labels=[pos, negative]"], ["neg (4)"]),
    (6, ["columns.label=stars", "labels={{0: a, 1: b}}"], ["2 (1)", "labels={"]),
    (7, ["model=some/model-of-the-hub"], ["cannot be reached"]),
]


@pytest.mark.parametrize(("code", "words", "parts"), TRAIN_FAULTS)
def test_a_wrong_train_command_is_told_before_any_cluster_work(
    tmp_path, tiny_encoder, reviews, capsys, code, words, parts
):
    argv = ["train", f"model={tiny_encoder}", f"data.train={reviews}", f"output={tmp_path / 'out'}", "max_length=32"]
    found, text = outcome(capsys, *argv, *(word.format(tmp=tmp_path) for word in words))
    assert found == code, text
    for part in parts:
        assert part in text
    assert len(text.splitlines()) <= 25
    assert text.splitlines()[-1].startswith(f"bertray: exit {code} (")


def test_an_empty_data_set_is_refused(tmp_path, tiny_encoder, capsys):
    path = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string()), "label": []}), path)
    code, text = outcome(
        capsys, "train", f"model={tiny_encoder}", f"data.train={path}", f"output={tmp_path / 'out'}", "max_length=32"
    )
    assert code == 6, text
    assert "no row" in text


def test_one_class_only_is_refused(tmp_path, tiny_encoder, capsys):
    path = tmp_path / "one.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["good", "fine"], "label": ["pos", "pos"]}), path)
    code, text = outcome(
        capsys, "train", f"model={tiny_encoder}", f"data.train={path}", f"output={tmp_path / 'out'}", "max_length=32"
    )
    assert code == 6, text
    assert "expected at least two classes, found 1 (pos)" in text


def test_a_damaged_training_file_is_refused_by_name(tmp_path, tiny_encoder, reviews, capsys):
    content = reviews.read_bytes()
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(content[: len(content) // 2])
    code, text = outcome(
        capsys,
        "train",
        f"model={tiny_encoder}",
        f"data.train=[{reviews}, {broken}]",
        f"output={tmp_path / 'out'}",
        "max_length=32",
    )
    assert code == 6, text
    assert "broken.parquet: file_corrupt" in text


def test_an_output_that_holds_another_run_is_a_conflict(tmp_path, tiny_encoder, reviews, capsys):
    from bertray.io.store import LocalStore
    from bertray.outputs.claims import claim_output

    claim_output(LocalStore(tmp_path / "out"), "train", "another", "model: other\n")
    argv = ["train", f"model={tiny_encoder}", f"data.train={reviews}", f"output={tmp_path / 'out'}", "max_length=32"]
    code, text = outcome(capsys, *argv)
    assert code == 4, text
    assert "holds a train run with other data or settings" in text


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path, tiny_encoder, reviews, capsys):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "precious").write_text("x")
    (tmp_path / "out" / "metrics.json").write_text("{}")
    for argv in (
        ["train", f"model={tiny_encoder}", f"data.train={reviews}", "max_length=32"],
        ["train", f"model={tiny_encoder}", f"data.train={reviews}", "max_length=32"],
    ):
        code, text = outcome(capsys, *argv, f"output={tmp_path / 'out'}")
        assert code == 4, text
        assert "not empty, and not an output of bertray" in text
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*"))
    assert found == ["metrics.json", "model", "model/precious"]


@pytest.mark.parametrize("below", ["", "/run"])
def test_an_output_that_is_a_file_or_below_one_is_a_configuration_error(tmp_path, tiny_encoder, reviews, capsys, below):
    (tmp_path / "file").write_text("x")
    argv = ["train", f"model={tiny_encoder}", f"data.train={reviews}", "max_length=32"]
    code, text = outcome(capsys, *argv, f"output={tmp_path}/file{below}")
    assert code == 2, text


def test_a_wrong_input_leaves_the_output_untouched(tmp_path, capsys, reviews, tiny_classifier):
    code, text = outcome(capsys, "score", f"model={tiny_classifier}", "input=nowhere", f"output={tmp_path / 'out'}")
    assert code == 2, text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["score", "evaluate"])
def test_int8_on_a_cpu_without_it_is_refused_before_any_work(
    tmp_path, capsys, monkeypatch, reviews, tiny_classifier, verb
):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True})
    argv = [verb, f"model={tiny_classifier}", f"input={reviews}", f"output={tmp_path / 'out'}"]
    code, text = outcome(capsys, *argv, "precision=int8")
    assert code == 2, text
    assert "expected a CPU with VNNI or AMX, found cpu without" in text
    assert not (tmp_path / "out").exists()


def test_a_plan_over_reviews_without_text_says_so(tmp_path, capsys, tiny_classifier):
    path = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["   "]}), path)
    # `score` would put the row into the quarantine.
    assert run(["plan", f"model={tiny_classifier}", f"input={path}", f"output={tmp_path / 'out'}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no forecast: none of 1 sampled row can be used; first: text_empty" in printed


def test_labels_of_another_model_are_refused(tmp_path, capsys, reviews, tiny_classifier):
    for verb in ("score", "evaluate"):
        argv = [verb, f"model={tiny_classifier}", f"input={reviews}", f"output={tmp_path / 'out'}"]
        code, text = outcome(capsys, *argv, "labels={neg: sad, pos: happy}")
        assert code == 2, text
        assert "expected classes of the model (neg, pos), found sad, happy" in text


def test_scoring_with_an_encoder_that_was_never_trained_says_to_train(tmp_path, tiny_encoder, reviews, capsys):
    code, text = outcome(capsys, "score", f"model={tiny_encoder}", f"input={reviews}", f"output={tmp_path / 'out'}")
    assert code == 2, text
    assert "expected a trained classifier, found BertModel" in text


def test_a_folder_that_holds_a_run_is_told_where_its_model_is(tmp_path, tiny_encoder, reviews, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tiny_encoder)
    code, text = outcome(capsys, "score", f"model={tmp_path / 'run'}", f"input={reviews}", f"output={tmp_path / 'out'}")
    assert code == 2, text
    assert f"Give `model={tmp_path / 'run' / 'model'}`." in text


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["trian"], "Did you mean 'train', 'pretrain'?"),
        (["train", "--epochs", "3"], "No such option"),
        (["config", "show", "scroe"], "Did you mean 'score'?"),
        (["train", "-c", "nowhere.yaml"], "no such file"),
        (
            ["init"],
            "init: expected data, found none.\nbertray: exit 2 (configuration): Name it: `bertray init reviews.csv",
        ),
    ],
)
def test_a_wrong_command_line_is_a_configuration_error(capsys, argv, part):
    code, text = outcome(capsys, *argv)
    assert code == 2
    assert part in text


def test_v_shows_the_traceback_of_a_users_error(tmp_path, capsys):
    code = run(["score", "-v", f"input={tmp_path}/nowhere", f"output={tmp_path}/out", "model=/no/model"])
    assert code == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_shows_its_traceback_and_exits_with_1(monkeypatch, capsys):
    import bertray.cli as cli

    def broken(verb):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(cli, "_runner", broken)
    assert run(["demo"]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.splitlines()[-1].startswith("bertray: exit 1 (a bug)")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/part"),
            "/data/part: No space left on device.",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "bertray demo: Disk quota exceeded."),
        (MemoryError(), "out of memory"),
    ],
)
def test_a_machine_that_is_full_is_no_bug(error, said, monkeypatch, capsys):
    import bertray.cli as cli

    def full(verb):
        raise error

    monkeypatch.setattr(cli, "_runner", full)
    assert run(["demo"]) == 7
    text = capsys.readouterr().err
    assert said in text
    assert "Traceback" not in text


def test_ctrl_c_exits_with_130(monkeypatch, capsys):
    import bertray.cli as cli

    def interrupted(verb):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_runner", interrupted)
    assert run(["demo"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_help_and_version_need_no_config(capsys):
    assert run(["--version"]) == 0
    assert run(["score", "--help"]) == 0
    text = capsys.readouterr().out
    assert "bertray 0.1.0" in text
    assert "max_quarantine_ratio = 0.01" in text
