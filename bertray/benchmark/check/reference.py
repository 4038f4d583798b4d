"""The flash-attention operators of torch's CUDA build, slow and on CPU, with the checks that flash_api.cpp makes.

With them the code that calls `varlen_attn` runs, and is checked, where there is no GPU.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_MOST_HEAD = 256


def register_reference_flash() -> object:
    """Register the operators for CPU, for as long as the result lives."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]  # torch gives it no types
    library.impl("_flash_attention_forward", _forward, "CPU")
    library.impl("_flash_attention_backward", _backward, "CPU")
    return library


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    causal: bool,
    debug: bool,
    *,
    scale: float | None = None,
    **_: Any,
) -> tuple[Tensor, ...]:
    _check(query, key, value, cu_seqlens_q, cu_seqlens_k, max_q, max_k)
    if dropout or causal:
        raise RuntimeError("the reference has neither dropout nor a causal mask")
    out, logsumexp = torch.empty_like(query), torch.zeros(query.shape[1], query.shape[0])
    for of_q, of_k in _spans(cu_seqlens_q, cu_seqlens_k):
        q, k, v = (x.float().transpose(0, 1) for x in (query[of_q], key[of_k], value[of_k]))
        scores = q @ k.transpose(1, 2) * (scale or query.shape[-1] ** -0.5)
        out[of_q] = (scores.softmax(-1) @ v).transpose(0, 1).to(out.dtype)
        logsumexp[:, of_q] = scores.logsumexp(-1)
    return out, logsumexp, torch.zeros(2, dtype=torch.uint64), torch.zeros((), dtype=torch.uint64), torch.empty(0)


def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *_: Any,
    scale: float | None = None,
    **__: Any,
) -> tuple[Tensor, ...]:
    of_query, of_key, of_value = (torch.zeros_like(x) for x in (query, key, value))
    scale = scale or query.shape[-1] ** -0.5
    for of_q, of_k in _spans(cu_seqlens_q, cu_seqlens_k):
        q, k, v, upstream = (x.float().transpose(0, 1) for x in (query[of_q], key[of_k], value[of_k], gradient[of_q]))
        probs, of_probs = (q @ k.transpose(1, 2) * scale).softmax(-1), upstream @ v.transpose(1, 2)
        of_scores = probs * (of_probs - (of_probs * probs).sum(-1, keepdim=True)) * scale
        of_query[of_q] = (of_scores @ k).transpose(0, 1).to(query.dtype)
        of_key[of_k] = (of_scores.transpose(1, 2) @ q).transpose(0, 1).to(key.dtype)
        of_value[of_k] = (probs.transpose(1, 2) @ upstream).transpose(0, 1).to(value.dtype)
    return of_query, of_key, of_value


def _check(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_q: int, max_k: int
) -> None:
    """Raises RuntimeError, as the kernel does, with the condition that does not hold."""
    head_size = query.shape[-1]
    conditions = {
        "FlashAttention only supports fp16 and bf16 data type": query.dtype in (torch.float16, torch.bfloat16),
        "query, key and value must have the same dtype": query.dtype == key.dtype == value.dtype,
        "cu_seqlens must have dtype int32": cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32,
        "cu_seqlens must be contiguous": cu_seqlens_q.is_contiguous() and cu_seqlens_k.is_contiguous(),
        "the last dimension must be contiguous": all(x.stride(-1) == 1 for x in (query, key, value)),
        "key and value must have the same strides": key.stride() == value.stride(),
        "head_size should be a multiple of 8": head_size % 8 == 0,
        "only supports head dimension at most 256": head_size <= _MOST_HEAD,
        "max_q is below the longest sequence": max_q >= int(cu_seqlens_q.diff().max()),
        "max_k is below the longest sequence": max_k >= int(cu_seqlens_k.diff().max()),
    }
    for condition, holds in conditions.items():
        if not holds:
            raise RuntimeError(condition)


def _spans(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> list[tuple[slice, slice]]:
    spans = ([slice(*ends) for ends in pairwise(ends.tolist())] for ends in (cu_seqlens_q, cu_seqlens_k))
    return list(zip(*spans, strict=True))
