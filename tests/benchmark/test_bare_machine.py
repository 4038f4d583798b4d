"""`bertray benchmark` on a machine with torch, transformers, pyarrow and numpy alone: all else is made up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bertray.benchmark import made_up
from bertray.benchmark.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
TINY = {"untrained-minilm": (32, 2, 4, 64), "untrained-bert-base": (64, 2, 4, 128)}


def on_a_bare_machine(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python in which the packages of the rest cannot be imported, in its own processes either."""
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom import_blocker import block\nblock()\n"
        f"from bertray.benchmark import made_up\nmade_up.SIZES = {TINY!r}\n"
    )
    import os

    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=580
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "trained",
    [
        pytest.param([], marks=pytest.mark.slow, id="scoring"),
        pytest.param(["train_bertray", "train_tutorial"], marks=pytest.mark.soak, id="training too"),
    ],
)
def test_the_command_measures_made_up_reviews_and_weights_without_any_other_package(trained, tmp_path):
    words = ["bertray", "benchmark", "rows=48", "rival_rows=24", "max_length=32", "rounds=1"]
    words += ["training=true"] if trained else []
    code = f"import sys\nsys.argv = {[*words, 'output=found.json']!r}\nfrom bertray.__main__ import main\nmain()"
    done = on_a_bare_machine(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "is not installed: the engine is measured, without Ray" in done.stderr
    for model in TINY:
        found = json.loads((tmp_path / f"found-{model}.json").read_text())
        assert found["model"] == model
        assert list(found["ways"]) == ["engine", "pipeline", "padded", *trained]
        agreement = found["ways"]["engine"]["agreement"]
        assert agreement["same_label"] == agreement["rows"] == 24
        assert 20 < found["tokens_per_review"] <= 32
    assert done.stdout.count("HF pipeline") == 2


def test_another_command_there_says_which_package_is_missing(tmp_path):
    code = "import sys\nsys.argv = ['bertray', 'score']\nfrom bertray.__main__ import main\nmain()"
    done = on_a_bare_machine(code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ModuleNotFoundError: import of ")


def test_made_up_words_are_one_token_each_and_lengths_are_those_of_reviews(tmp_path):
    from bertray.model.tokenization import ReviewTokenizer, sequences

    texts = made_up.reviews(200, 256)
    tokenizer = ReviewTokenizer(made_up.write_tokenizer(tmp_path), 256)
    lens_S = sequences(tokenizer.encode(texts)).lens_S
    num_words = np.array([len(text.split()) for text in texts.to_pylist()])
    assert lens_S.tolist() == np.minimum(num_words + 2, 256).tolist()
    assert 0.3 < (lens_S == 256).mean() < 0.6
    assert len(set(made_up.words())) == made_up.VOCAB_SIZE - 5
    assert made_up.reviews(5, 64, seed=1).equals(made_up.reviews(5, 64, seed=1))
    assert not made_up.reviews(5, 64, seed=1).equals(made_up.reviews(5, 64, seed=2))


def test_untrained_models_have_the_sizes_of_real_ones():
    sizes = {name: made_up.config_of(name) for name in made_up.SIZES}
    assert {name: (c.hidden_size, c.num_hidden_layers, c.intermediate_size) for name, c in sizes.items()} == {
        "untrained-minilm": (384, 6, 1536),
        "untrained-bert-base": (768, 12, 3072),
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["device=cuda", "few=1"], "no such key: few"),
        (["beside=fastest"], "beside: no such way: fastest"),
        (["model=bert-base-uncased"], "model=bert-base-uncased: give reviews too, or one of untrained-minilm"),
    ],
)
def test_a_wrong_word_names_what_there_is(words, said):
    with pytest.raises(SystemExit, match=said):
        main(words)


def test_beside_a_gpu_reviews_are_tokenized_in_other_threads_and_come_back_in_order():
    import threading

    from bertray.benchmark.contestants import Task, _in_windows

    threads = set()

    class Tokenizer:
        def encode(self, texts: pa.Array) -> pa.Table:
            threads.add(threading.current_thread() is threading.main_thread())
            return pa.table({"text": texts})

    def logits(texts: list[str]) -> np.ndarray:
        return np.array([[0.0, float(text)] for text in texts], np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertray.model.tokenization.sequences", lambda table: table["text"].to_pylist())
        for device, in_main in (("cuda", False), ("cpu", True)):
            threads.clear()
            task = Task("engine", "", "", "", 16, device=device, window_rows=3)
            run = _in_windows(task, Tokenizer(), logits, ["low", "high"])  # type: ignore[arg-type]  # a stand-in
            labels, _ = run([str(number) for number in [-1, 1, -1, 1, 1, -1, 1, -1]])
            assert labels == ["low", "high", "low", "high", "high", "low", "high", "low"]
            assert threads == {in_main}
