"""A line that cannot be printed is never taken for a failure of the work: encodings, closed pipes, full disks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import write

BERTRAY = str(Path(sys.executable).parent / "bertray")
FULL = Path("/dev/full")


def bertray(*argv: Any, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE, **env: str):
    return subprocess.run(
        [BERTRAY, *map(str, argv)], stdout=stdout, stderr=stderr, env={**os.environ, **env}, timeout=120, check=False
    )


def pipe_of_nobody() -> int:
    """The writing end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.fixture(scope="module")
def scored(trained_alone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("café €")
    write(folder / "ïn" / "a.parquet", 12, 3, "a")
    score = bertray("score", f"model={trained_alone / 'model'}", f"input={folder / 'ïn'}", f"output={folder / 'öut'}")
    assert score.returncode == 0, score.stderr
    return folder


QUICK = ["files", "--help"]
SLOW = ["score", "plan", "config show", "score --help", "gc", "--version"]


def argv_of(verb: str, folder: Path, model: Path) -> list[str]:
    keys = {
        "files": [f"output={folder / 'öut'}"],
        "gc": [f"output={folder / 'öut'}"],
        "score": [f"model={model}", f"input={folder / 'ïn'}", f"output={folder / 'öut'}"],
    }
    keys["plan"] = keys["score"]
    keys["config show"] = ["score", *keys["score"]]
    return [*verb.split(), *keys.get(verb, [])]


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoding",
    ["ascii", *(pytest.param(e, marks=pytest.mark.soak) for e in ("cp1252:strict", "latin-1", "ascii:strict"))],
)
@pytest.mark.parametrize(
    "verb", ["score", *(pytest.param(v, marks=pytest.mark.slow) for v in ("files", "plan", "config show"))]
)
def test_characters_that_the_encoding_lacks_are_escaped(verb, encoding, scored, trained_alone):
    done = bertray(*argv_of(verb, scored, trained_alone / "model"), PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("verb", [*QUICK, *(pytest.param(verb, marks=pytest.mark.slow) for verb in SLOW)])
def test_a_reader_that_has_gone_is_no_error(verb, scored, trained_alone):
    writer = pipe_of_nobody()
    try:
        done = bertray(*argv_of(verb, scored, trained_alone / "model"), stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, b"Traceback" in done.stderr, b"Broken" in done.stderr) == (0, False, False)


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("verb", ["files", pytest.param("score", marks=pytest.mark.slow), "--help"])
def test_a_full_disk_under_stdout_is_told_and_a_list_that_was_cut_is_no_success(verb, scored, trained_alone):
    with FULL.open("wb") as full:
        done = bertray(*argv_of(verb, scored, trained_alone / "model"), stdout=full)
    assert done.returncode == 7, done.stderr
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "verb"),
    [
        ("full", "score"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("closed pipe", "files"), ("full", "files"), ("closed pipe", "score"))
        ),
    ],
)
def test_nobody_can_be_told_on_stderr_and_the_work_goes_on(verb, broken, scored, trained_alone):
    stderr = os.open(FULL, os.O_WRONLY) if broken == "full" else pipe_of_nobody()
    try:
        done = bertray(*argv_of(verb, scored, trained_alone / "model"), stderr=stderr)
        wrong = bertray("score", "inputs=x", stderr=stderr)
    finally:
        os.close(stderr)
    assert (done.returncode, wrong.returncode) == (0, 2)


@pytest.mark.parametrize(
    "streams", ["<&- >&- 2>&-", *(pytest.param(words, marks=pytest.mark.slow) for words in (">&-", "2>&-", ">&- 2>&-"))]
)
def test_closed_streams_are_no_error(streams, scored, trained_alone):
    command = f'exec "$@" {streams}'
    argv = argv_of("score", scored, trained_alone / "model")
    assert subprocess.run(["sh", "-c", command, "sh", BERTRAY, *argv], timeout=120, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"), [("statistics.py", "raise RuntimeError"), ("queue.py", ""), ("random", None)]
)
@pytest.mark.parametrize("entry", ["{folder}", "", ".", "{folder}/"])
def test_a_file_on_pythonpath_that_hides_a_module_of_pythons_is_named(name, content, entry, tmp_path):
    if content is None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    else:
        (tmp_path / name).write_text(content)
    path = os.pathsep.join([entry.format(folder=tmp_path), os.environ.get("PYTHONPATH", "")])
    # Only what the command itself imports has been imported by then: an empty file does no harm yet.
    done = subprocess.run(
        [BERTRAY, "files", "output=nowhere"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"{tmp_path / name}" in done.stderr
    if content != "":
        return  # Python itself may have met it before us
    assert (done.returncode, "hides Python's own module `queue`" in done.stderr) == (2, True)
