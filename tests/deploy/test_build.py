"""The steps of the Dockerfile in a fresh environment: wheel, locked packages, and three sentences labelled.

PyTorch alone is not installed, as its CPU build is on an index of its own: it is lent by the environment of the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_image import LOCKS, ROOT, instructions

LABEL = """
import bertray, pandas as pd
reviews = pd.read_json({reviews!r}, lines=True)
result = bertray.train(reviews, training={{"method": "features"}})
print(bertray.__file__)
print(*result.classifier.predict(["Great tent!", "The zip broke.", "Dry after three days of rain. Great tent!"]))
"""


def steps() -> list[tuple[str, str]]:
    """(folder, command) of the steps that install Python packages; other steps are left out."""
    found, folder = [], "/"
    for word, rest in instructions():
        folder = rest if word == "WORKDIR" else folder
        if word == "RUN" and "pip" in rest:
            found.append((folder, rest))
    return found


def fresh_environment(folder: Path) -> dict[str, str]:
    """Variables of a shell in a new virtual environment, in which nothing of this one can be found."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return {**kept, "PATH": f"{folder / 'bin'}:/usr/bin:/bin", "DEVICE": "cpu"}


def run_step(command: str, folder: Path, root: Path, env: dict[str, str]) -> None:
    """Run a step with the folders of the image, /dist and /tmp, below `root`."""
    moved = re.sub(r"(?<![\w.])/(tmp|dist)\b", rf"{root}/\1", command)
    subprocess.run(moved, shell=True, cwd=folder, env=env, check=True)


def labelled(env: dict[str, str], folder: Path) -> list[str]:
    """Labels of three sentences by a model that the environment has trained, and where its bertray lies."""
    code = LABEL.format(reviews=str(ROOT / "bertray/demo/reviews/train.jsonl"))
    said = subprocess.run(["python", "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return said.stdout.split()


def test_the_steps_build_the_wheel_install_the_lock_and_then_the_wheel():
    (build_folder, builders), (_, build), (_, install), (_, own) = steps()
    assert build_folder == "/src"
    assert "--require-hashes" in builders
    assert "pip wheel" in build
    assert "--no-build-isolation" in build
    assert "--require-hashes" in install
    assert "--no-index" in own


def lend_torch(folder: Path, environment: Path) -> None:
    """Let a fresh environment import the torch of this one, and nothing else of it."""
    [packages] = {Path(path) for path in sys.path if path.endswith("site-packages") and (Path(path) / "torch").is_dir()}
    folder.mkdir()
    for path in (*packages.glob("torch"), *packages.glob("torchgen"), *packages.glob("torch-*.dist-info")):
        (folder / path.name).symlink_to(path)
    [own] = (environment / "lib").glob("python3.*/site-packages")
    (own / "torch.pth").write_text(f"{folder}\n")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_of_the_image_install_what_labels_three_sentences(tmp_path):
    env = fresh_environment(tmp_path / "env")
    lend_torch(tmp_path / "lent", tmp_path / "env")
    locks = tmp_path / "tmp" / "locks"
    locks.mkdir(parents=True)
    for name in LOCKS:
        shutil.copy(ROOT / name, locks)
    (_, builders), (_, build), (_, packages), (_, install) = steps()
    run_step(builders, ROOT, tmp_path, env)
    run_step(build, ROOT, tmp_path, env)
    without_torch = packages.replace('-r "/tmp/locks/requirements-$DEVICE.lock"', "")
    assert without_torch != packages
    # Of PyTorch's own index, which may be out of reach, nothing is needed then.
    run_step(without_torch, tmp_path, tmp_path, {**env, "DEVICE": "none"})
    shutil.copytree(tmp_path / "dist", tmp_path / "tmp" / "dist")
    run_step(install, tmp_path, tmp_path, env)
    where, *labels = labelled(env, tmp_path)
    [own] = (tmp_path / "env/lib").glob("python3.*/site-packages")
    assert where == str(own / "bertray/__init__.py")
    assert labels == ["positive", "negative", "positive"]


@pytest.mark.slow
def test_a_package_with_another_hash_than_that_of_the_lock_is_not_taken(tmp_path):
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    [pinned] = re.findall(r"^packaging==\S+ \\\n(?: +--hash=\S+(?: \\)?\n)+", lock, re.MULTILINE)
    (tmp_path / "other.lock").write_text(re.sub(r"(?<=--hash=sha256:)\w+", "0" * 64, pinned), encoding="utf-8")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-cache-dir", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(tmp_path), "-r", "other.lock"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    if re.search("NewConnectionError|Max retries|ConnectTimeout|NameResolution|connection broken", done.stderr):
        pytest.skip("no index of packages can be reached")
    assert "DO NOT MATCH THE HASHES" in done.stderr
