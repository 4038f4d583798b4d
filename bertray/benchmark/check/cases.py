"""Models with random weights, sequences of random ids and one training run: what all sections of a check share."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from bertray import schema as s
from bertray.benchmark.limit import ModelShape, synchronize
from bertray.benchmark.made_up import SIZES, VOCAB_SIZE
from bertray.io.store import LocalStore
from bertray.model.tokenization import Sequences
from bertray.training.examples import Examples, LoopSettings, TrainingSettings
from bertray.training.loop import Outcome, run_loop
from bertray.training.token_shards import TokenShards, write_examples

LABELS = ("0", "1", "2")
_FIRST_ID = 5  # ids below it are special tokens


@dataclass(frozen=True)
class Device:
    """The device to check, and the sizes that suit it: those of real models on a GPU, tiny ones on CPU.

    Args:
        name: as torch names it.
        root: receives models and runs.
    """

    name: str
    root: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def is_gpu(self) -> bool:
        return self.name.startswith("cuda")

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZE if self.is_gpu else 300

    @property
    def shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Hidden size, layers, heads and feed-forward size of the models that stand for real ones."""
        if self.is_gpu:
            return {"minilm": SIZES["untrained-minilm"], "base": SIZES["untrained-bert-base"]}
        return {"minilm": (64, 2, 4, 128), "base": (96, 2, 4, 192)}

    def model(self, name: str, *, wild: bool = False) -> Path:
        """The model of one of `shapes`."""
        return classifier(self, f"{'wild-' if wild else ''}{name}", *self.shapes[name], wild=wild)

    def flops(self, name: str, lens_S: NDArray[Any]) -> float:
        """Operations of one forward pass of a model of `shapes`, padding not counted."""
        hidden, layers, _, feed_forward = self.shapes[name]
        return ModelShape(layers, hidden, feed_forward).flops(lens_S)

    def seconds(self, run: Callable[[], object], repeats: int = 10) -> float:
        """Median seconds of a call, after one that warms up."""
        run()
        times = []
        for _ in range(repeats):
            synchronize(torch.device(self.name))
            began = time.perf_counter()
            run()
            synchronize(torch.device(self.name))
            times.append(time.perf_counter() - began)
        return float(np.median(times))


def classifier(
    device: Device,
    name: str,
    hidden: int,
    layers: int,
    heads: int,
    inner: int,
    family: str = "bert",
    *,
    wild: bool = False,
) -> Path:
    """A classifier of three classes without dropout, with random weights; `wild`: far from the usual initialisation."""
    import transformers as t

    target = device.root / name
    if target.exists():
        return target
    config: Any
    sizes: dict[str, Any]
    if family == "distilbert":
        sizes = {"dim": hidden, "n_layers": layers, "n_heads": heads, "hidden_dim": inner}
        sizes |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
        config = t.DistilBertConfig(**sizes, vocab_size=device.vocab_size, max_position_embeddings=514, num_labels=3)
    else:
        sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
        sizes |= {"intermediate_size": inner, "max_position_embeddings": 514}
        sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        if family in ("electra", "albert"):
            sizes["embedding_size"] = hidden // 2
        if family == "roberta":
            sizes |= {"pad_token_id": 1, "type_vocab_size": 1}
        names = {"bert": "Bert", "roberta": "Roberta", "electra": "Electra", "albert": "Albert"}
        config = getattr(t, f"{names[family]}Config")(**sizes, vocab_size=device.vocab_size, num_labels=3)
    torch.manual_seed(0)
    model = t.AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    if wild:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 / (hidden / 32) ** 0.5 * torch.randn_like(parameter)
    model.save_pretrained(target)
    return target


def sequences(device: Device, lens: Any, *, seed: int = 0, pairs: bool = False) -> Sequences:
    """Sequences of random ids; of `pairs` every other one ends with a second text."""
    lens_S = np.asarray(lens, np.int64)
    second_S = np.where(np.arange(len(lens_S)) % 2, lens_S // 3, 0) if pairs else np.zeros(len(lens_S))
    ids_T = np.random.default_rng(seed).integers(_FIRST_ID, device.vocab_size, size=int(lens_S.sum()))
    return Sequences(ids_T.astype(np.uint16), lens_S, second_S.astype(np.int32), np.arange(len(lens_S)), len(lens_S))


def examples(device: Device, lens: Any) -> Examples:
    """Token shards whose label follows from the first token; the first tenth is validation."""
    seqs = sequences(device, lens, seed=3)
    rows = np.arange(len(seqs.lens_S))
    labels = rows % len(LABELS)
    seqs.ids_T[np.cumsum(seqs.lens_S) - seqs.lens_S] = _FIRST_ID + labels
    offsets = pa.array(np.concatenate([[0], np.cumsum(seqs.lens_S)]).astype(np.int32))
    columns = {
        s.INPUT_IDS: pa.ListArray.from_arrays(offsets, pa.array(seqs.ids_T)),
        s.SECOND_LEN: pa.array(seqs.second_lens_S),
        s.N_TOKENS: pa.array(seqs.lens_S.astype(np.int32)),
    }
    path = Path(tempfile.mkdtemp(dir=device.root)) / "examples.arrow"
    write_examples(path, pa.table(columns), [LABELS[label] for label in labels])
    num_validation = max(8, len(rows) // 10)
    return Examples(
        TokenShards([path]), labels.astype(np.int32), train=rows[num_validation:], validation=rows[:num_validation]
    )


def train(device: Device, model: Path, data: Examples, on: str, *, batch_size: int = 32, **settings: Any) -> Outcome:
    """One epoch of bertray's own loop on some device, in fp32 by default."""
    training = TrainingSettings(1, 1e-4, batch_size, 0.1, checkpoint_every_s=1e9, precision="fp32")
    loop = LoopSettings(LABELS, replace(training, **settings), 0, "check", None)
    return run_loop(data, model, 0, loop, LocalStore(Path(tempfile.mkdtemp(dir=device.root))), device=on)


def losses(outcome: Outcome) -> NDArray[np.float64]:
    """Losses of each step."""
    return np.array([row["loss"] for row in outcome.history if row["kind"] == "step"])


def largest(differences: NDArray[Any]) -> float:
    """Largest of some absolute values."""
    return float(np.abs(differences).max())
