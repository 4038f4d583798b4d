"""The steps of the Dockerfile in a fresh environment: the wheel is built and installed, and labels three sentences.

The step that installs all locked packages is not run: gigabytes would be downloaded. Some of them are, by their hashes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_image import ROOT, instructions

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


PURE_PACKAGES = ("annotated-types", "filelock", "idna", "jmespath", "mdurl", "packaging")  # a wheel for every machine


def download_of_lock(folder: Path, change: str = "") -> subprocess.CompletedProcess[str]:
    """Download some packages of the lock as the Dockerfile installs all of them.

    Args:
        folder: for their files.
        change: digest that takes the place of every one.
    """
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(([\w.-]+)==\S+ \\\n(?: +--hash=\S+(?: \\)?\n)+)", lock, re.MULTILINE))
    chosen = "".join(text for text, name in found.items() if name in PURE_PACKAGES)
    if change:
        chosen = re.sub(r"(?<=--hash=sha256:)\w+", change, chosen)
    (folder / "some.lock").write_text(chosen, encoding="utf-8")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-cache-dir", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder / "files"), "-r", "some.lock"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if re.search("NewConnectionError|Max retries|ConnectTimeout|NameResolution|connection broken", done.stderr):
        pytest.skip("no index of packages can be reached")
    return done


@pytest.mark.slow
def test_packages_of_the_lock_have_the_hashes_that_it_says(tmp_path):
    done = download_of_lock(tmp_path)
    assert (done.returncode, done.stderr.count("ERROR")) == (0, 0), done.stderr
    names = {path.name.split("-")[0].replace("_", "-") for path in (tmp_path / "files").glob("*.whl")}
    assert names == set(PURE_PACKAGES)


@pytest.mark.slow
def test_a_package_with_another_hash_than_that_of_the_lock_is_not_taken(tmp_path):
    done = download_of_lock(tmp_path, "0" * 64)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


@pytest.mark.slow
def test_the_wheel_of_the_image_labels_three_sentences_beside_installed_packages(tmp_path):
    """The wheel alone is new; the packages are those of this environment, which the lock names."""
    env = fresh_environment(tmp_path / "env")
    [packages] = {Path(path) for path in sys.path if path.endswith("site-packages") and (Path(path) / "torch").is_dir()}
    [own] = (tmp_path / "env/lib").glob("python3.*/site-packages")
    (own / "others.pth").write_text(f"{packages}\n")
    (_, builders), (_, build), _, (_, install) = steps()
    for step in (builders, build):
        run_step(step, ROOT, tmp_path, env)
    shutil.copytree(tmp_path / "dist", tmp_path / "tmp" / "dist")
    run_step(install, tmp_path, tmp_path, env)
    where, *labels = labelled(env, tmp_path)
    assert where == str(own / "bertray/__init__.py")
    assert labels == ["positive", "negative", "positive"]
