"""Checks of tensors before their addresses go to C++, which would read and write past a wrong one without a word.

Legend: T packed tokens, B sequences, H heads, E size of a head. One check takes about a microsecond.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

_FLOATS = (torch.bfloat16, torch.float32)
WIDE = 32  # numbers in bf16 in a row of a tile; all sizes are multiples of it, in fp32, too
WIDE_IN_INT8 = 2 * WIDE


def check(what: str, tensor: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
    """Raises:
    ValueError: the tensor is not contiguous on CPU, of this shape and of one of these types; by default bf16 or fp32.
    """
    wanted = dtypes or _FLOATS
    if tensor.shape == shape and tensor.dtype in wanted and tensor.is_contiguous() and not _elsewhere(tensor):
        return
    kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in wanted)
    raise ValueError(f"{what}: expected contiguous {kinds} {list(shape)} on cpu, found {_told(tensor)}")


def check_sizes(what: str, *sizes: int, multiple: int = WIDE) -> None:
    """Raises:
    ValueError: not all are multiples of this.
    """
    if any(size % multiple for size in sizes):
        raise ValueError(f"{what}: expected sizes in multiples of {multiple}, found {' and '.join(map(str, sizes))}")


def check_heads(
    what: str, x_THE: Tensor, shape: tuple[int, ...], row_stride: int, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Raises:
    ValueError: not on CPU of this type and shape [T, H, E], with heads of a token side by side and this row stride.
    """
    strides = (row_stride, shape[2], 1)
    is_laid_out = all(
        size < 2 or stride == wanted for size, stride, wanted in zip(shape, x_THE.stride(), strides, strict=True)
    )
    if x_THE.shape == shape and x_THE.dtype == dtype and is_laid_out and not _elsewhere(x_THE):
        return
    kind = str(dtype).removeprefix("torch.")
    raise ValueError(f"{what}: expected {kind} {list(shape)} with strides {list(strides)} on cpu, found {_told(x_THE)}")


def check_cu_seqlens(what: str, cu_seqlens_B1: Tensor, num_tokens: int) -> None:
    """Raises:
    ValueError: not contiguous int32 [B + 1] on CPU that begins with 0, never falls and ends within `num_tokens`.

    All layers of a model take the same offsets of a pack, so that each thread looks at the values once.
    """
    if _passed.reference() is cu_seqlens_B1 and _passed.num_tokens == num_tokens:
        return
    check(what, cu_seqlens_B1, (max(len(cu_seqlens_B1), 2),), torch.int32)
    first, last = int(cu_seqlens_B1[0]), int(cu_seqlens_B1[-1])
    if first != 0 or last > num_tokens or int(torch.diff(cu_seqlens_B1).min()) < 0:
        found = ", ".join(map(str, cu_seqlens_B1[:6].tolist()))
        raise ValueError(
            f"{what}: expected ascending offsets from 0 to at most {num_tokens}, found {found}, ... {last}"
        )
    _passed.reference, _passed.num_tokens = weakref.ref(cu_seqlens_B1), num_tokens


class _Passed(threading.local):
    """The offsets that passed last in this thread, for as many tokens."""

    reference: Callable[[], Tensor | None] = staticmethod(lambda: None)
    num_tokens = 0


_passed = _Passed()


def _elsewhere(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu"


def _told(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {list(tensor.shape)} with strides {list(tensor.stride())} on {tensor.device}"
