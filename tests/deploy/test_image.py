"""The image: locked and hashed packages, a user without rights, and steps that run in a fresh environment."""

from __future__ import annotations

import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from tests.test_dependencies import name_of

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
LOCKS = ("requirements.lock", "requirements-cpu.lock", "requirements-cuda.lock")


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]  # type: ignore[misc]  # two words each


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> (version, hashes) of a lock."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if "==" in line and not line.startswith("#"):
            pin, *hashes = line.split()
            package, version = pin.split("==")
            found[name_of(package)] = (version, [word for word in hashes if word.startswith("--hash=sha256:")])
    return found


def test_the_base_can_be_pinned_by_digest_and_the_last_user_has_no_rights():
    given = instructions()
    assert given[0] == ("ARG", "PYTHON_IMAGE=python:3.11-slim-bookworm")
    assert {rest.split()[0] for word, rest in given if word == "FROM"} == {"${PYTHON_IMAGE}"}
    assert [rest for word, rest in given if word == "USER"] == ["1000:1000"]
    assert not [word for word, _ in given if word == "ADD"]


def test_every_package_of_the_image_is_locked_by_hash_to_what_was_tested():
    pins = {
        name_of(line.split("==")[0]): line.split("==")[1]
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    own, cpu, cuda = map(locked, LOCKS)
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {name: version for name, (version, _) in own.items()}.items() <= pins.items()
    assert all(hashes for _, hashes in (*own.values(), *cpu.values(), *cuda.values()))
    assert [(name, version) for name, (version, _) in cpu.items()] == [("torch", f"{pins['torch']}+cpu")]
    assert cuda["torch"][0] == pins["torch"]
    assert not own.keys() & cuda.keys()
    builders = locked("requirements-build.lock")
    assert all(hashes for _, hashes in builders.values())
    assert {name: pins[name] for name in builders.keys() & pins.keys()}.items() <= {
        name: version for name, (version, _) in builders.items()
    }.items()
    [builder] = (name_of(requirement) for requirement in whole["build-system"]["requires"])
    assert builder in builders
    assert all(re.match("nvidia-|cuda-|triton|torch$", name) for name in cuda)
    project = whole["project"]
    extras = [
        requirement for extra in ("aws", "bundled", "fast") for requirement in project["optional-dependencies"][extra]
    ]
    assert {name_of(requirement) for requirement in [*project["dependencies"], *extras]} - {"torch"} <= own.keys()


def test_the_build_gets_every_file_that_it_copies_and_no_other():
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in shlex.split(rest)[:-1]
    }
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert let_in == copied
    assert all((ROOT / name).exists() for name in copied)
    assert not [name for name in (".venv", ".git", "demo-run", "shared") if any(fnmatch(name, kept) for kept in let_in)]


def test_every_stage_that_asks_an_index_knows_the_mirror():
    """An argument before the first stage has no value in a stage that does not name it."""
    stages: list[list[tuple[str, str]]] = [[]]
    for word, rest in instructions():
        stages += [[]] if word == "FROM" else []
        stages[-1].append((word, rest))
    before, *later = [{rest.partition("=")[0] for word, rest in stage if word == "ARG"} for stage in stages]
    assert before >= {"PIP_INDEX_URL", "PYTORCH_CPU_INDEX"}
    for stage, known in zip(stages[1:], later, strict=True):
        steps = " ".join(rest for word, rest in stage if word == "RUN")
        assert "pip" in steps
        assert "PIP_INDEX_URL" in known
        assert set(re.findall(r"\$\{?([A-Z_]+)", steps)) <= known
