"""Ways of labelling a Parquet file, each in a process of its own that keeps its model and runs on request.

`python -m bertray.benchmark.contestants '{"name": "pipeline", ...}'` loads, runs once to warm up, says `ready`, and
then runs once for every line on its standard input, answering each with the seconds it took,
on standard output or the file descriptor that is its second argument.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bertray.model.tokenization import ReviewTokenizer, Sequences

WARM_UP_ROWS = 32
_READERS = 4  # threads that tokenize beside a GPU; each tokenizer takes several cores
_LEARNING_RATE = 5e-5
_PADDED_TOKENS = 4096  # of a batch in sorted shapes, padding included
_CALIBRATION_REVIEWS = 300  # NNCF's default
_EXAMPLE = dict.fromkeys(("input_ids", "attention_mask"), torch.ones(2, 8, dtype=torch.int64))


@dataclass(frozen=True)
class Task:
    """A Parquet file to label.

    Args:
        name: a key of `CONTESTANTS`.
        model: folder of a sequence classifier.
        input: Parquet with a column `text`.
        output: Parquet that receives `label` and `score`.
        max_length: tokens of a text at most.
        batch_size: texts of a batch, where the contestant works in such.
        window_rows: reviews that bertray's engine sorts together, as many as in a shard.
    """

    name: str
    model: str
    input: str
    output: str
    max_length: int
    device: str = "cpu"
    batch_size: int = 32
    window_rows: int = 0


Classify = Callable[[list[str]], tuple[list[str], list[float]]]
Run = Callable[[], float]  # does it once, and returns the seconds


def rival_dtype(device: str) -> torch.dtype:
    """Usual precision: fp16 on a GPU, fp32 on CPU."""
    return torch.float16 if device.startswith("cuda") else torch.float32


def _rival_model(task: Task, **options: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(task.model, trust_remote_code=False, **options)


def _rival_tokenizer(task: Task) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(task.model, trust_remote_code=False)


def pipeline_classifier(model: str, max_length: int, device: str, batch_size: int) -> Any:
    """The `pipeline` of transformers as most people write it: batches in order of arrival, padded to their longest."""
    from transformers import pipeline

    return pipeline(
        "text-classification",
        model=model,
        tokenizer=model,
        device=device,
        dtype=rival_dtype(device),
        batch_size=batch_size,
        truncation=True,
        max_length=max_length,
        trust_remote_code=False,
    )


def _pipeline(task: Task) -> Classify:
    classify = pipeline_classifier(task.model, task.max_length, task.device, task.batch_size)

    def run(texts: list[str]) -> tuple[list[str], list[float]]:
        results = classify(texts)
        return [result["label"] for result in results], [result["score"] for result in results]

    return run


def _padded(task: Task) -> Classify:
    """Texts sorted by length, so that batches of `batch_size` hold little padding; plain PyTorch."""
    tokenizer = _rival_tokenizer(task)
    model = _rival_model(task, dtype=rival_dtype(task.device))
    model = model.to(task.device).eval()

    def run(texts: list[str]) -> tuple[list[str], list[float]]:
        ids = tokenizer(texts, truncation=True, max_length=task.max_length)["input_ids"]
        order = sorted(range(len(texts)), key=lambda row: -len(ids[row]))
        labels, scores = [""] * len(texts), [0.0] * len(texts)
        with torch.inference_mode():
            for start in range(0, len(order), task.batch_size):
                rows = order[start : start + task.batch_size]
                batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt").to(task.device)
                best = model(**batch).logits.float().softmax(dim=-1).max(dim=-1)
                for row, score, label in zip(rows, best.values.tolist(), best.indices.tolist(), strict=True):
                    labels[row], scores[row] = model.config.id2label[label], score
        return labels, scores

    return run


def _openvino(task: Task, *, quantized: bool = False) -> Classify:
    """OpenVINO with what makes it fast: our tokens, longest first in few shapes, in the precision of this processor.

    Args:
        task: its model and reviews.
        quantized: weights and activations are in int8, by NNCF's calibration for transformers on some of the reviews.
    """
    import openvino

    from bertray.model.engine import choose_dtype

    # OpenVINO fuses plain attention itself; what it is traced with are shapes only.
    model = _rival_model(task, attn_implementation="eager").eval()
    traced = openvino.convert_model(model, example_input=_EXAMPLE)
    if quantized:
        import nncf

        reviews = nncf.Dataset(_calibration(task))
        traced = nncf.quantize(traced, reviews, model_type=nncf.ModelType.TRANSFORMER, subset_size=_CALIBRATION_REVIEWS)
    bf16 = choose_dtype("auto", torch.device("cpu")) == torch.bfloat16
    hints = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(traced, "CPU", hints)
    return _in_sorted_shapes(task, model.config, lambda inputs: compiled(inputs)[0])


def _calibration(task: Task) -> list[dict[str, NDArray[np.int64]]]:
    """Inputs of a review each, without padding."""
    tokenizer = _rival_tokenizer(task)
    ids = tokenizer(_texts(task)[:_CALIBRATION_REVIEWS], truncation=True, max_length=task.max_length)["input_ids"]
    return [dict(zip(_EXAMPLE, (np.array([row]), np.ones((1, len(row)), np.int64)), strict=True)) for row in ids]


def _onnx_int8(task: Task) -> Classify:
    """ONNX Runtime as its guide for BERT has it: fused operations, then dynamic quantization to int8."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    from bertray.model.linear import can_quantize

    model = _rival_model(task, attn_implementation="eager").eval()
    config = model.config
    with tempfile.TemporaryDirectory() as folder:
        exported, fused, quantized = (str(Path(folder) / f"{name}.onnx") for name in ("exported", "fused", "int8"))
        torch.onnx.export(
            model,
            tuple(_EXAMPLE.values()),
            exported,
            input_names=list(_EXAMPLE),
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in _EXAMPLE},
            dynamo=False,  # of a graph by torch.export, the optimizer does not know the attention
        )
        optimize_model(
            exported, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
        ).save_model_to_file(fused)
        quantize_dynamic(
            fused,
            quantized,
            weight_type=QuantType.QInt8,
            reduce_range=not can_quantize(torch.device("cpu")),  # without VNNI, sums overflow else
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # the type of what fused operations return
        )
        session = onnxruntime.InferenceSession(quantized, providers=["CPUExecutionProvider"])
    return _in_sorted_shapes(task, config, lambda inputs: session.run(None, inputs)[0])


def _in_sorted_shapes(
    task: Task, config: Any, compute: Callable[[dict[str, NDArray[np.int64]]], NDArray[np.float32]]
) -> Classify:
    """Our tokens to a model that takes padded batches: longest first, in few shapes."""
    from bertray.model.backend import padded_inputs
    from bertray.model.packing import plan_packs
    from bertray.model.tokenization import ReviewTokenizer

    pad_id = config.pad_token_id or 0

    def logits(seqs: Sequences) -> NDArray[np.float32]:
        starts_S = np.cumsum(seqs.lens_S) - seqs.lens_S
        logits_SC = np.empty((len(seqs.lens_S), config.num_labels), np.float32)
        for pack in plan_packs(seqs.lens_S, max_tokens_per_pack=_PADDED_TOKENS, padded=True, width_multiple=16):
            inputs = padded_inputs(pack, seqs, starts_S, pack.groups[0].width, pad_id)
            logits_SC[pack.sequences_B] = compute(inputs)
        return logits_SC

    return _in_windows(task, ReviewTokenizer(Path(task.model), task.max_length), logits, config.id2label.values())


def _engine(task: Task, precision: str = "auto") -> Classify:
    """bertray's tokenizer and predictor alone, without Ray, shards and commit."""
    from bertray.model.engine import Engine
    from bertray.model.tokenization import ReviewTokenizer

    engine = Engine(Path(task.model), device=task.device, precision=precision)
    return _in_windows(task, ReviewTokenizer(Path(task.model), task.max_length), engine.logits, engine.labels)


def _in_windows(
    task: Task,
    tokenizer: ReviewTokenizer,
    logits: Callable[[Sequences], NDArray[np.float32]],
    labels: Iterable[str],
) -> Classify:
    """Texts tokenized by our tokenizer and labelled as many at a time as a shard holds.

    Beside a GPU other threads tokenize while it computes, as tasks do in a job.
    """
    from bertray.model.tokenization import sequences

    names = tuple(labels)

    def tokenized(texts: list[str]) -> Iterator[Sequences]:
        starts = range(0, len(texts), task.window_rows)
        if task.device == "cpu":
            tokens = tokenizer.encode(pa.array(texts, pa.string()))
            yield from (sequences(tokens.slice(at, task.window_rows)) for at in starts)
            return
        windows = [pa.array(texts[at : at + task.window_rows], pa.string()) for at in starts]
        with ThreadPoolExecutor(_READERS) as readers:
            yield from map(sequences, readers.map(tokenizer.encode, windows))

    def run(texts: list[str]) -> tuple[list[str], list[float]]:
        logits_NC = np.concatenate([logits(seqs) for seqs in tokenized(texts)])
        probs_NC = torch.from_numpy(logits_NC).softmax(dim=-1).numpy()
        best_N = probs_NC.argmax(axis=1)
        return [names[i] for i in best_N], probs_NC[np.arange(len(texts)), best_N].tolist()

    return run


# --- training: one epoch over the file, from the same weights each time; labels are made up --------------------------


def _train_tutorial(task: Task) -> Run:
    """The loop of the tutorials: every text padded to `max_length`, fp32, a step a batch."""
    tokenizer = _rival_tokenizer(task)
    texts = _texts(task)
    encoded = tokenizer(
        texts, truncation=True, max_length=task.max_length, padding="max_length", return_tensors="pt"
    ).to(task.device)
    labels_N = torch.arange(len(texts), device=task.device) % 2

    def run() -> float:
        torch.manual_seed(0)
        model = _rival_model(task, dtype=torch.float32).to(task.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
        model.train()
        start = time.perf_counter()
        order = torch.randperm(len(texts))
        for at in range(0, len(order), task.batch_size):
            rows = order[at : at + task.batch_size]
            loss = model(**{name: tensor[rows] for name, tensor in encoded.items()}, labels=labels_N[rows]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        loss.item()  # waits for the device
        return time.perf_counter() - start

    return run


def _train_bertray(task: Task) -> Run:
    """bertray's own loop on one process, without Ray; its steps alone are timed."""
    from bertray.io.store import LocalStore
    from bertray.model.tokenization import ReviewTokenizer
    from bertray.training.examples import Examples, LoopSettings, TrainingSettings
    from bertray.training.loop import run_loop
    from bertray.training.token_shards import TokenShards, write_examples

    tokenizer = ReviewTokenizer(Path(task.model), task.max_length)
    texts = _texts(task)
    labels = [("a", "b")[row % 2] for row in range(len(texts))]
    shard = Path(task.output).with_suffix(".arrow")
    write_examples(shard, tokenizer.encode(pa.array(texts, pa.string())), labels)
    rows = np.arange(len(texts))
    examples = Examples(TokenShards([shard]), (rows % 2).astype(np.int32), train=rows, validation=rows[:2])
    training = TrainingSettings(
        epochs=1, batch_size=task.batch_size, learning_rate=_LEARNING_RATE, warmup_ratio=0.0, checkpoint_every_s=1e9
    )
    settings = LoopSettings(("a", "b"), training, seed=0, run_key="benchmark", threads=None)

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_loop(
                examples, Path(task.model), tokenizer.pad_id, settings, LocalStore(Path(folder)), device=task.device
            )
        return max(float(row["seconds"]) for row in outcome.history if row["kind"] == "step")

    return run


# --- what the machine could do at best -------------------------------------------------------------------------------


def _limit(task: Task) -> Run:
    """Matrix products of the model's own shapes, in the precision that we pick: the seconds of 1e12 operations."""
    from bertray.benchmark.limit import ModelShape, matmul_rate
    from bertray.model.engine import choose_dtype
    from bertray.model.pretrained.weights import load_config

    device = torch.device(task.device)
    shape, dtype = ModelShape.of(load_config(Path(task.model))), choose_dtype("auto", device)

    def run() -> float:
        seconds = 1e12 / matmul_rate(shape, dtype, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the ways that take turns with it want the memory
        return seconds

    return run


# --- running them ----------------------------------------------------------------------------------------------------


def _scoring(classifier: Callable[[Task], Classify]) -> Callable[[Task], Run]:
    """Parquet in, Parquet out; ready once it has run on a few texts."""

    def prepare(task: Task) -> Run:
        classify = classifier(task)
        classify(_texts(task)[:WARM_UP_ROWS])

        def run() -> float:
            start = time.perf_counter()
            labels, scores = classify(_texts(task))
            pq.write_table(pa.table({"label": labels, "score": pa.array(scores, pa.float32())}), task.output)
            return time.perf_counter() - start

        return run

    return prepare


def _texts(task: Task) -> list[str]:
    texts: list[str] = pq.read_table(task.input, columns=["text"])["text"].to_pylist()
    return texts


CONTESTANTS: dict[str, Callable[[Task], Run]] = {
    "pipeline": _scoring(_pipeline),
    "padded": _scoring(_padded),
    "openvino": _scoring(_openvino),
    "openvino_int8": _scoring(partial(_openvino, quantized=True)),
    "onnx_int8": _scoring(_onnx_int8),
    "engine": _scoring(_engine),
    "int8": _scoring(partial(_engine, precision="int8")),
    "train_tutorial": _train_tutorial,
    "train_bertray": _train_bertray,
    "limit": _limit,
}


class Contestant:
    """A contestant in its process.

    Args:
        task: what it does.
        environment: of its process.

    Raises:
        RuntimeError: the process ended before it was ready, or in a run; the message holds what it printed.
    """

    def __init__(self, task: Task, environment: Mapping[str, str]) -> None:
        self.task = task
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process; a pipe could fill up
        answers, write_end = os.pipe()  # not its standard output, on which any library may print
        self._answers = os.fdopen(answers)
        self._process = subprocess.Popen(  # noqa: S603 - this very module
            [sys.executable, "-m", "bertray.benchmark.contestants", json.dumps(asdict(task)), str(write_end)],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=self._errors,
            stderr=self._errors,
            pass_fds=(write_end,),
            text=True,
        )
        os.close(write_end)
        self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def seconds(self) -> float:
        """Run once, Parquet in to Parquet out."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        line = self._answers.readline()
        if not line:
            self._process.communicate()
            self._answers.close()
            self._errors.seek(0)
            raise RuntimeError(f"benchmark: {self.task.name} ended: {self._errors.read().strip()[-2000:]}")
        return line

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, which ends it
        self._answers.close()
        self._errors.close()


def _main(task: Task, answers: TextIO) -> None:
    run = CONTESTANTS[task.name](task)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        print(run(), file=answers, flush=True)


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[2]) if len(sys.argv) > 2 else sys.stdout.fileno(), "w") as stream:
        _main(Task(**json.loads(sys.argv[1])), stream)
