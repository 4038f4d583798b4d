"""Sections of a check that compare numbers: logits, attention, training, memory, ranks."""

from __future__ import annotations

import copy
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everyone knows

from bertray.benchmark.check.cases import Device, classifier, examples, largest, losses, sequences, train
from bertray.benchmark.made_up import lengths
from bertray.model.engine import Engine
from bertray.model.tokenization import Sequences

_FAMILIES = ("bert", "roberta", "distilbert", "electra", "albert")
_FP32_LOGITS, BF16_LOGITS = 1e-3, 0.1  # bounds, where the largest logit is 1 or less, else in proportion
_VARLEN = 5e-3  # of the norm, against fp64
_FP32_LOSSES, _BF16_LOSSES, _RANKS = 2e-3, 5e-2, 1e-3
_RANK_LIMIT_S = 90.0

Found = dict[str, Any]


def environment(device: Device) -> Found:
    """Versions, and the rates of a large matrix product and of copies within the GPU."""
    import transformers

    found: Found = {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "transformers": transformers.__version__,
    }
    if device.is_gpu:
        properties = torch.cuda.get_device_properties(torch.device(device.name))
        found |= {"gpu": properties.name, "cuda": torch.version.cuda, "sm": f"{properties.major}.{properties.minor}"}
        a = torch.randn(8192, 8192, device=device.name, dtype=torch.bfloat16)
        found["matmul_8192_tflops"] = round(2 * 8192**3 / device.seconds(lambda: a @ a) / 1e12)
        source = torch.empty(1 << 30, dtype=torch.int8, device=device.name)
        target = torch.empty_like(source)
        found["copy_tb_per_s"] = round(2 * 2**30 / device.seconds(lambda: target.copy_(source)) / 1e12, 2)
    return found


def heads(device: Device) -> Found:
    """Head sizes that run packed on this device, and the ways of the others; flash takes multiples of 8 to 256."""
    found: Found = {}
    for size in (6, 26, 32, 64, 80, 128, 264):
        path = classifier(device, f"head-{size}", size * 2, 2, 2, 64)
        for precision in ("bf16", "fp32"):
            try:
                engine = Engine(path, device=device.name, precision=precision)
                engine.logits(sequences(device, [5, 40, 17]))
                told = "packed" if engine.packed else f"padded: {engine.why_not_packed}"
            except Exception as error:
                found["ok"], told = False, f"{type(error).__name__}: {str(error)[:80]}"
            found[f"{size} {precision}"] = told
    return {"ok": True, **found}


def logits(device: Device) -> Found:
    """Logits of the engine against transformers' own forward pass, one sequence at a time in fp32."""
    found: Found = {"ok": True}
    ragged = sequences(device, [*range(1, 41), *[12] * 9, *[40] * 5, 200, 511, 512], pairs=True)
    cases = [
        (family, classifier(device, f"tiny-{family}", 32, 3, 4, 48, family, wild=True), ragged) for family in _FAMILIES
    ]
    reviews = sequences(device, [*lengths("imdb", 40), 512, 1], pairs=True)
    cases += [(name, device.model(name, wild=True), reviews) for name in device.shapes]
    for name, path, seqs in cases:
        expected = _alone(path, seqs, device.name)
        scale = max(1.0, largest(expected))
        for precision, bound in (("fp32", _FP32_LOGITS), ("bf16", BF16_LOGITS)):
            engine = Engine(path, device=device.name, precision=precision)
            small = Engine(path, device=device.name, precision=precision, max_tokens_per_pack=600)
            got = engine.logits(seqs)
            off = largest(got - expected) / scale
            found["ok"] &= off <= bound and engine.packed
            found[f"{name} {precision}"] = {
                "off": round(off, 5),
                "same_label": round(float((got.argmax(1) == expected.argmax(1)).mean()), 3),
                "by_budget": round(largest(small.logits(seqs) - got) / scale, 5),
                "by_repeat": largest(engine.logits(seqs) - got),
            }
    return found


def _alone(path: Path, seqs: Sequences, device: str) -> np.ndarray:
    from transformers import AutoModelForSequenceClassification

    model = (
        AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
        .eval()
        .to(device)
    )
    reads_types, out, start = getattr(model.config, "type_vocab_size", 0) > 1, [], 0
    for length, second in zip(seqs.lens_S.tolist(), seqs.second_lens_S.tolist(), strict=True):
        ids = torch.from_numpy(seqs.ids_T[start : start + length].astype(np.int64))[None].to(device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if reads_types:
            inputs["token_type_ids"] = (torch.arange(length) >= length - second).long()[None].to(device)
        with torch.inference_mode():
            out.append(model(**inputs).logits[0].cpu().numpy())
        start += length
    return np.stack(out)


def varlen(device: Device) -> Found:
    """`varlen_attn` forward and backward against fp64: norm of the difference over the norm."""
    from torch.nn.attention.varlen import varlen_attn

    found: Found = {"ok": True}
    lens = [1, 3, 256, 200, 64, 65, 17, 512]
    ends = np.concatenate([[0], np.cumsum(lens)])
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=device.name)
    for size in (32, 64, 128):
        torch.manual_seed(0)
        qkv = torch.randn(sum(lens), 3, 4, size, device=device.name, dtype=torch.bfloat16, requires_grad=True)
        q_THE, k_THE, v_THE = qkv.unbind(1)
        out = varlen_attn(q_THE, k_THE, v_THE, cu_seqlens, cu_seqlens, max(lens), max(lens))
        assert isinstance(out, Tensor)
        weight = torch.randn_like(out)
        (gradient,) = torch.autograd.grad((out * weight).sum(), qkv)
        exact = qkv.detach().double().requires_grad_()
        parts = []
        for start, stop in pairwise(ends.tolist()):
            q, k, v = exact[start:stop].permute(1, 2, 0, 3)
            parts.append(((q @ k.transpose(1, 2) * size**-0.5).softmax(-1) @ v).transpose(0, 1))
        reference = torch.cat(parts)
        (expected,) = torch.autograd.grad((reference * weight.double()).sum(), exact)
        off = [float((a.double() - b).norm() / b.norm()) for a, b in ((out, reference), (gradient, expected))]
        found["ok"] &= max(off) < _VARLEN
        found[f"head {size}"] = {"forward": round(off[0], 5), "backward": round(off[1], 5)}
    return found


def training(device: Device) -> Found:
    """Losses of the same steps on CPU and on the device: fp32, bf16, micro-batches; and a repeated run."""
    path, data = _small(device)
    expected = losses(train(device, path, data, "cpu"))
    found: Found = {"steps": len(expected), "first": float(expected[0]), "last": float(expected[-1])}
    cases: dict[str, dict[str, Any]] = {
        "fp32": {},
        "bf16": {"precision": "bf16"},
        "micro-batches": {"max_tokens_per_microbatch": 256},
    }
    if device.is_gpu:
        cases["fp16"] = {"precision": "fp16"}
    for name, settings in cases.items():
        found[name] = largest(losses(train(device, path, data, device.name, **settings)) - expected)
    twice = [losses(train(device, path, data, device.name, precision="bf16")) for _ in range(2)]
    found["equal_when_repeated"] = bool((twice[0] == twice[1]).all())
    return {"ok": max(found["fp32"], found["micro-batches"]) < _FP32_LOSSES and found["bf16"] < _BF16_LOSSES, **found}


def _small(device: Device) -> tuple[Path, Any]:
    lens = np.random.default_rng(2).integers(3, 60, 352)
    return classifier(device, "train", 64, 2, 4, 128), examples(device, lens)


def varlen_training(device: Device) -> Found:
    """A training step of the packed model on `varlen_attn` beside one on padded batches: gradient error and time."""
    from transformers import AutoModelForSequenceClassification

    from bertray.training.inputs import over_tensors
    from bertray.training.packed import PackedModel, pack

    found: Found = {"ok": True}
    for name in device.shapes:
        for kind, num_rows in (("imdb", 32), ("imdb", 128), ("short", 128)) if device.is_gpu else (("short", 6),):
            lens = lengths(kind, num_rows)
            ids = np.split(sequences(device, lens, seed=5).ids_T.astype(np.int64), np.cumsum(lens)[:-1])
            base = AutoModelForSequenceClassification.from_pretrained(
                device.model(name), dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
            )
            plain = copy.deepcopy(base).to(device.name).train()
            packed, why_not = PackedModel.of(copy.deepcopy(base).train())
            assert packed is not None, why_not
            packed.to(device.name)
            packed.varlen = True  # on CPU by the reference
            on_host = pack(ids, np.zeros(num_rows, np.int64), base.config, in_groups=False)
            batch = over_tensors(on_host, lambda tensor: tensor.to(device.name))
            padded = {key: value.to(device.name) for key, value in _padded(ids).items()}
            targets_B = torch.arange(num_rows, device=device.name) % 3
            runs: dict[str, tuple[Any, Callable[[], Tensor]]] = {
                "padded": (plain, partial(_padded_logits, plain, padded)),
                "varlen": (packed, partial(packed, batch)),
            }
            exact = _gradients(*runs["padded"], targets_B, device.name, bf16=False)
            row: Found = {"fill": round(float(lens.sum() / (num_rows * lens.max())), 2)}
            for way, run in runs.items():
                step = partial(_gradients, *run, targets_B, device.name, bf16=True)
                got = step()
                row[f"off_{way}"] = round(_norm({key: got[key] - exact[key] for key in exact}) / _norm(exact), 4)
                row[f"{way}_ms"] = round(device.seconds(step, 5 if device.is_gpu else 1) * 1e3, 2)
            found["ok"] &= row["off_varlen"] <= 1.2 * row["off_padded"]
            found[f"{name} {kind} {num_rows}"] = row
    return found


def _padded_logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    logits_BC: Tensor = model(**inputs).logits
    return logits_BC


def _padded(ids: list[np.ndarray]) -> dict[str, Tensor]:
    width = max(map(len, ids))
    inputs = {name: torch.zeros(len(ids), width, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    for row, sequence in enumerate(ids):
        inputs["input_ids"][row, : len(sequence)] = torch.from_numpy(sequence)
        inputs["attention_mask"][row, : len(sequence)] = 1
    return inputs


def _gradients(
    model: Any, run: Callable[[], Tensor], targets_B: Tensor, device: str, *, bf16: bool
) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=bf16):
        logits_BC = run()
    F.cross_entropy(logits_BC.float(), targets_B).backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    return {name.removeprefix("model."): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _norm(gradients: dict[str, Tensor]) -> float:
    return float(sum(float(gradient.square().sum()) for gradient in gradients.values()) ** 0.5)


def out_of_memory(device: Device) -> Found:
    """A token budget beyond the memory is halved, and the logits are the same."""
    from bertray.model.predictor import within_memory

    path = device.model("minilm")
    engine = Engine(path, device=device.name, precision="bf16", max_tokens_per_pack=1 << 22)
    seqs = sequences(device, lengths("imdb", 20000 if device.is_gpu else 60))
    expected = Engine(path, device=device.name, precision="bf16").logits(seqs)
    if device.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(0.03)
    try:
        off = largest(within_memory(engine, engine.logits, seqs) - expected)
    finally:
        if device.is_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
    return {"ok": off <= BF16_LOGITS, "max_tokens_per_pack": engine.max_tokens_per_pack, "off": off}


def ranks(device: Device) -> Found:
    """The loop on one rank over NCCL, and on two ranks of this device over gloo, against one process."""
    import torch.multiprocessing as mp

    path, data = _small(device)
    expected = losses(train(device, path, data, device.name))
    found: Found = {"ok": True}
    context = mp.get_context("spawn")
    for world_size in (1, 2):
        # NCCL refuses two ranks on one GPU; gloo takes tensors on CUDA.
        backend = "nccl" if device.is_gpu and world_size == 1 else "gloo"
        queue, port = context.SimpleQueue(), _free_port()
        processes = [
            context.Process(target=_rank, args=(device, rank, world_size, backend, port, path, queue))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_RANK_LIMIT_S)
            if process.is_alive():
                process.kill()
        answers = []
        while not queue.empty():
            answers.append(queue.get())
        off = [largest(np.array(answer) - expected) for answer in answers if isinstance(answer, list)]
        found["ok"] &= len(off) == world_size and max(off, default=1.0) < _RANKS
        found[f"{world_size} over {backend}"] = [*off, *(answer for answer in answers if isinstance(answer, str))]
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank(device: Device, rank: int, world_size: int, backend: str, port: int, path: Path, queue: Any) -> None:
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if device.is_gpu:
        torch.cuda.set_device(0)
    dist.init_process_group(backend, rank=rank, world_size=world_size)
    try:
        _, data = _small(device)
        queue.put(losses(train(device, path, data, device.name)).tolist())
    except BaseException as error:
        queue.put(f"{type(error).__name__}: {error}")
        raise
    finally:
        dist.destroy_process_group()
