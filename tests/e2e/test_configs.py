"""The example configs: each is valid as it stands, with every commented setting, and with the commands it shows."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from bertray.config import CONFIGS, ScoreConfig, TrainConfig, load_config
from bertray.errors import ConfigError

CONFIG_FOLDER = Path(__file__).parents[2] / "jobs" / "configs"
TRAIN = ["imdb", "cola", "emotion", "tweets", "aspects", "features", "chinese", "korean"]
VERBS = dict.fromkeys(TRAIN, "train") | {"nightly": "score", "embed": "embed", "tune": "tune", "topics": "topics"}
VERBS |= {"audit": "audit", "pretrain": "pretrain", "scratch": "pretrain", "distill": "train"}
REQUIRED = {
    "train": ["data.train=train.parquet", "output=runs/x"],
    "tune": ["data.train=train.parquet", "output=runs/x"],
    "score": ["input=incoming", "output=scored"],
    "embed": ["input=incoming", "output=vectors"],
    "pretrain": ["input=incoming", "output=runs/x"],
    "topics": ["input=incoming", "output=runs/x"],
    "audit": ["data.train=train.parquet", "output=runs/x"],
}
# A setting is commented out by a `#` without a space; a `#` with one is prose.
COMMENTED_SETTING = re.compile(r"^( *)#(?=[a-z])", re.MULTILINE)


def _required(name: str) -> list[str]:
    return [*REQUIRED[VERBS[name]], *(["data.test=test.parquet"] if name == "distill" else [])]


def _path(name: str) -> Path:
    return CONFIG_FOLDER / f"{name}.yaml"


def _commands(text: str) -> list[list[str]]:
    """The `bertray …` and `python jobs/….py …` commands of the comments, as (verb, words)."""
    found = []
    for line in re.findall(r"^#  +(.*)$", text, re.MULTILINE):
        words = shlex.split(line)
        if words[0] == "bertray":
            found.append(words[1:])
        elif "python" in words:
            job, *rest = words[words.index("python") + 1 :]
            found.append([Path(job).stem, *rest])
    return found


def _uncommented(name: str, tmp_path: Path) -> Path:
    path = tmp_path / f"{name}.yaml"
    path.write_text(COMMENTED_SETTING.sub(r"\1", _path(name).read_text(encoding="utf-8")), encoding="utf-8")
    return path


def test_folder_holds_exactly_the_configs_tested_here():
    assert sorted(path.name for path in CONFIG_FOLDER.iterdir()) == sorted(f"{name}.yaml" for name in VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_config_is_valid_with_the_required_paths(name: str):
    verb = VERBS[name]
    config = load_config(verb, [str(_path(name))], _required(name))
    assert type(config) is CONFIGS[verb]


@pytest.mark.parametrize("name", VERBS)
def test_config_leaves_every_path_to_the_command_line(name: str):
    with pytest.raises(ConfigError) as caught:
        load_config(VERBS[name], [str(_path(name))])
    assert "output: missing" in str(caught.value)
    config = load_config(VERBS[name], [str(_path(name))], _required(name))
    if isinstance(config, TrainConfig):
        assert (config.data.train, config.data.validation) == (("train.parquet",), None)


@pytest.mark.parametrize("name", VERBS)
def test_config_is_valid_with_every_commented_setting(name: str, tmp_path: Path):
    path = _uncommented(name, tmp_path)
    assert path.read_text(encoding="utf-8") != _path(name).read_text(encoding="utf-8")
    plain = load_config(VERBS[name], [str(_path(name))], _required(name))
    uncommented = load_config(VERBS[name], [str(path)], _required(name))
    assert uncommented != plain


@pytest.mark.parametrize(
    ("name", "columns", "reader"),
    [
        ("imdb", ("review", "sentiment"), ("tsv", None, True, False)),
        ("cola", ("3", "1"), ("tsv", None, False, False)),
        ("emotion", ("0", "1"), ("csv", ";", False, False)),
        ("tweets", ("text", "airline_sentiment"), ("csv", None, True, None)),
        ("chinese", ("review", "label"), ("csv", None, True, True)),
        ("korean", ("document", "label"), ("tsv", None, True, False)),
    ],
)
def test_commented_block_reads_the_original_form(
    name: str, columns: tuple[str, str], reader: tuple[str, str | None, bool, bool | None], tmp_path: Path
):
    config = load_config("train", [str(_uncommented(name, tmp_path))], REQUIRED["train"])
    assert isinstance(config, TrainConfig)
    assert (config.columns.text, config.columns.label) == columns
    form = config.reader
    assert (form.format, form.delimiter, form.header, form.quoting) == reader


@pytest.mark.parametrize("name", TRAIN)
def test_plain_config_fits_parquet_with_columns_text_and_label(name: str):
    config = load_config("train", [str(_path(name))], REQUIRED["train"])
    assert isinstance(config, TrainConfig)
    assert (config.columns.text, config.columns.label, config.reader.format) == ("text", "label", "auto")


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("imdb", {"0": "negative", "1": "positive"}),
        ("cola", {"0": "unacceptable", "1": "acceptable"}),
        ("emotion", ("sadness", "joy", "love", "anger", "fear", "surprise")),
        ("tweets", ("negative", "neutral", "positive")),
        ("aspects", ("negative", "neutral", "positive")),
        ("chinese", {"0": "negative", "1": "positive"}),
        ("korean", None),
    ],
)
def test_labels_are_those_of_the_data_sets(name: str, labels: Any):
    config = load_config("train", [str(_path(name))], REQUIRED["train"])
    assert isinstance(config, TrainConfig)
    assert config.labels == labels


@pytest.mark.parametrize("name", VERBS)
def test_commands_in_the_comments_are_valid_and_name_this_config(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(CONFIG_FOLDER.parent.parent)
    commands = _commands(_path(name).read_text(encoding="utf-8"))
    assert commands
    assert any(f"jobs/configs/{name}.yaml" in words for _, *words in commands)
    for verb, *words in commands:
        named = [word for before, word in itertools.pairwise(words) if before == "-c"]
        files = [path for path in named if not path.startswith("runs/")]
        rest = [word for word in words if word != "-c" and word not in named]
        needed = _required(name) if len(files) < len(named) else []  # what the file of an earlier run would say
        assert isinstance(load_config(verb, files, [*needed, *rest]), CONFIGS[verb])


def test_overrides_named_in_the_prose_are_valid():
    checked = []
    for name, verb in VERBS.items():
        prose = " ".join(re.findall(r"# (.*)$", _path(name).read_text(encoding="utf-8"), re.MULTILINE))
        for override in re.findall(r"[`']((?:[a-z_]+\.)*[a-z_]+=[^`']+)[`']", prose):
            load_config(verb, [str(_path(name))], [*_required(name), override])
            checked.append(override)
    assert {"training.epochs=2", "report.slices=[cat]", "slot=dt=2026-11-18", "model=bundled"} <= set(checked)


def test_nightly_explains_the_slot_but_leaves_it_to_the_date():
    config = load_config("score", [str(_path("nightly"))], REQUIRED["score"])
    assert isinstance(config, ScoreConfig)
    assert config.slot is None
    assert (config.keep_columns, config.needs_review_below) == (("date",), 0.6)
    assert "run=2 beside run=1" in _path("nightly").read_text(encoding="utf-8")
