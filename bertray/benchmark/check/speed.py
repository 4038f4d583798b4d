"""Sections of a check that measure: rates of the engine and of training, waits of the host, shares of kernels."""

from __future__ import annotations

import os
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from bertray.benchmark.check.cases import Device, examples, largest, sequences, train
from bertray.benchmark.check.correctness import BF16_LOGITS, Found
from bertray.benchmark.made_up import lengths
from bertray.model.engine import Engine
from bertray.model.fused import SWITCH
from bertray.model.pooling import PooledReadout

_KINDS = {
    "attention": ("flash", "fmha"),
    "matrix product": ("gemm", "cutlass", "nvjet", "xmma", "cublas"),
    "norm": ("layer_norm", "layernorm"),
    "copy": ("memcpy", "memset"),
    "gelu": ("gelu",),
    "add": ("add",),
}


def engine(device: Device) -> Found:
    """Rows and operations a second of `Engine.logits` on token ids, by the token budget of a pack."""
    found: Found = {}
    for name in device.shapes:
        model = Engine(device.model(name), device=device.name, precision="bf16")
        for kind in ("256", "imdb", "short"):
            lens = lengths(kind, (65536 if kind == "short" else 8192) if device.is_gpu else 16)
            seqs = sequences(device, lens)
            for budget in (8192, 16384, 32768, 65536, 131072) if device.is_gpu else (4096,):
                model.max_tokens_per_pack = budget
                seconds = device.seconds(lambda model=model, seqs=seqs: model.logits(seqs), 3)  # type: ignore[misc]
                found[f"{name} {kind} {budget}"] = {
                    "rows_per_s": round(len(lens) / seconds),
                    "tokens_per_s": round(float(lens.sum()) / seconds),
                    "tflops": round(device.flops(name, lens) / seconds / 1e12, 1),
                    "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if device.is_gpu else None,
                }
    return found


def training_loop(device: Device) -> Found:
    """Rows a second of bertray's own loop, over the steps after the first ten."""
    found: Found = {}
    cases = (("imdb", 32, 8192), ("imdb", 128, 65536), ("short", 32, 8192)) if device.is_gpu else (("short", 8, 8192),)
    for name in device.shapes:
        for kind, batch_size, most in cases:
            data = examples(device, lengths(kind, int(batch_size * (60 if device.is_gpu else 4) * 1.12)))
            settings = {"precision": "bf16" if device.is_gpu else "fp32", "max_tokens_per_microbatch": most}
            outcome = train(device, device.model(name), data, device.name, batch_size=batch_size, **settings)
            rows = [row for row in outcome.history if row["kind"] == "step"]
            skipped = min(10, len(rows) // 2)
            step_s = (rows[-1]["seconds"] - rows[skipped - 1]["seconds"]) / (len(rows) - skipped)
            lens = data.shards.lens_N[data.train]
            flops = 3 * device.flops(name, lens) / len(lens) * batch_size
            found[f"{name} {kind} {batch_size}"] = {
                "rows_per_s": round(batch_size / step_s),
                "step_ms": round(step_s * 1e3, 1),
                "tflops": round(flops / step_s / 1e12, 1),
            }
    return found


def fused(device: Device) -> Found:
    """Rows a second with fused kernels and without, seconds until the first result, and what they change in logits."""
    found: Found = {"ok": True}
    for name in device.shapes:
        seqs = sequences(device, lengths("imdb", 8192 if device.is_gpu else 16))
        row: Found = {}
        given: list[NDArray[np.float32]] = []
        for way, switch in (("plain", "0"), ("fused", "1")):
            began = time.perf_counter()
            with patch.dict(os.environ, {SWITCH: switch}):
                model = Engine(device.model(name), device=device.name, precision="bf16")
            given.append(model.logits(seqs))
            row[f"{way}_first_s"] = round(time.perf_counter() - began, 1)
            row[f"{way}_rows_per_s"] = round(len(seqs.lens_S) / device.seconds(partial(model.logits, seqs), 3))
        row["off"] = round(largest(given[1] - given[0]) / max(1.0, largest(given[0])), 5)
        found["ok"] &= row["off"] <= BF16_LOGITS
        found[name] = row
    return found


def host_copies(device: Device) -> Found:
    """Milliseconds that the host waits in a copy while the GPU is busy for some 50 ms."""
    if not device.is_gpu:
        return {}
    large, small = np.zeros(65536, np.int64), np.zeros(512, np.int64)
    pinned = torch.empty(65536, dtype=torch.int64, pin_memory=True)
    copies: dict[str, Callable[[], object]] = {
        "pageable 512 KB": lambda: torch.from_numpy(large).to(device.name, non_blocking=True),
        "pageable 4 KB": lambda: torch.from_numpy(small).to(device.name, non_blocking=True),
        "pinned 512 KB": lambda: pinned.to(device.name, non_blocking=True),
        "pinned first, 512 KB": lambda: torch.from_numpy(large).pin_memory().to(device.name, non_blocking=True),
    }
    found: Found = {}
    for name, copy in copies.items():
        copy()
        torch.cuda.synchronize()
        torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]  # torch gives it no types
        began = time.perf_counter()
        copy()
        found[name] = round((time.perf_counter() - began) * 1e3, 3)
        torch.cuda.synchronize()
    return found


def waits(device: Device) -> Found:
    """Lines of bertray in which the host waits for the GPU: in the engine, in mean pooling, in two training steps."""
    if not device.is_gpu:
        return {}
    seqs = sequences(device, lengths("imdb", 2048))
    path, budget = device.model("minilm"), 32768
    scorer = Engine(path, device=device.name, precision="bf16", max_tokens_per_pack=budget)
    pooled = Engine(
        path, device=device.name, precision="bf16", max_tokens_per_pack=budget, readout=PooledReadout("mean")
    )
    data = examples(device, lengths("imdb", 72))
    return {
        "engine": _waits_in(lambda: scorer.logits(seqs)),
        "mean pooling": (pooling := _waits_in(lambda: pooled.logits(seqs))),
        "two training steps": _waits_in(lambda: train(device, path, data, device.name, precision="bf16")),
        "ok": len(pooling) <= 1,  # the copy of the result
    }


def _waits_in(run: Callable[[], object]) -> dict[str, int]:
    lines: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            frames = [frame for frame in traceback.extract_stack() if "/bertray/" in frame.filename]
            lines[f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # catch_warnings puts the old one back
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(lines.most_common(25))


def kernels(device: Device) -> Found:
    """GPU milliseconds by kind of kernel, and the share of the wall time in which the GPU is busy."""
    if not device.is_gpu:
        return {}
    from torch.profiler import ProfilerActivity, profile

    found: Found = {}
    seqs = sequences(device, lengths("imdb", 8192))
    for name in device.shapes:
        model = Engine(device.model(name), device=device.name, precision="bf16")
        wall_ms = device.seconds(lambda model=model: model.logits(seqs), 3) * 1e3  # type: ignore[misc]
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            model.logits(seqs)
            torch.cuda.synchronize()
        spent: Counter[str] = Counter()
        for event in seen.key_averages():
            if event.device_type.name == "CUDA":
                key = event.key.lower()
                kind = next((kind for kind, words in _KINDS.items() if any(word in key for word in words)), "other")
                spent[kind] += event.self_device_time_total / 1e3
        total_ms = sum(spent.values())
        found[name] = {"wall_ms": round(wall_ms, 1), "gpu_ms": round(total_ms, 1), "busy": round(total_ms / wall_ms, 2)}
        found[name] |= {kind: round(ms, 2) for kind, ms in spent.most_common()}
    return found
