"""Attention within each of several sequences that lie end to end, by torch's flash kernel for GPUs.

Legend: T packed tokens, H heads, E size of a head, B sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_HEAD = 256
SM80 = (8, 0)  # Ampere, the first with bf16


def takes_varlen(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether torch's flash kernel runs here: CUDA from sm80 on, 16 bit, heads of a multiple of 8 up to 256.

    Source: the checks of `mha_varlen_fwd` in torch's `flash_api.cpp`; the kernel raises where they do not hold.
    """
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_size % 8 == 0
        and head_size <= _MOST_HEAD
        and torch.cuda.get_device_capability(device) >= SM80
    )


def varlen_attention(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float | None = None,
) -> Tensor:
    """Attention of the queries of each sequence to its keys, [T, H, E]; has a gradient.

    Args:
        cu_seqlens_q, cu_seqlens_k: int32 [B + 1], where each sequence begins among queries and keys.
        max_q, max_k: longest sequence of each; numbers of the host, so that nothing waits for the device.
    """
    from torch.nn.attention.varlen import varlen_attn

    attended = varlen_attn(q_THE, k_THE, v_THE, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale=scale)
    assert isinstance(attended, Tensor)
    return attended
