"""Stand-ins for a GPU: torch's flash kernel on CPU, and tensors on a CUDA device that have a shape but no numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bertray.benchmark.check.reference import register_reference_flash
from bertray.model import backend, encoders
from bertray.training import packed

SIXTEEN_BIT = (torch.float16, torch.bfloat16)


def like_a_gpu(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """`takes_varlen` as a GPU from Ampere on has it, whatever the device."""
    return dtype in SIXTEEN_BIT and head_size % 8 == 0 and head_size <= 256


@contextmanager
def flash_on_cpu(takes: Any = like_a_gpu) -> Iterator[None]:
    """Let packed models on CPU attend by the flash kernel's reference, in place of anything that a CPU has."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (encoders, packed):
            patch.setattr(module, "takes_varlen", takes)
        patch.setattr(backend, "kernels", lambda _: None)
        patch.setattr(backend, "can_prepack", lambda dtype, device: False)
        library = register_reference_flash()
        yield
        del library


class CallsToGpu(TorchDispatchMode):
    """Counts operators, and copies from the GPU, for which the host would wait.

    Operators whose result depends on numbers of the device raise by themselves, since fake tensors have none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Count from here on."""
        self.calls: Counter[str] = Counter()
        self.to_host = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        sources = [x.device.type for x in args if isinstance(x, torch.Tensor)]
        into = out if name == "_to_copy" else args[0] if name == "copy_" else None
        self.to_host += into is not None and into.device.type == "cpu" and "cuda" in sources
        return out

    @property
    def num_calls(self) -> int:
        """Operators that launch something: views do not."""
        return sum(count for name, count in self.calls.items() if name not in VIEWS)


VIEWS = frozenset(
    {"view", "_unsafe_view", "unbind", "select", "slice", "transpose", "permute", "expand", "t", "detach", "alias"}
    | {"unsqueeze", "squeeze", "split", "split_with_sizes", "as_strided", "reshape", "empty", "empty_like", "device"}
)


def _to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`Tensor.to`, which a build for CPUs refuses for CUDA even where nothing is there to be copied."""
    given = kwargs.get("device", args[0] if args else None)
    if not isinstance(given, str | torch.device) or torch.device(given).type != "cuda":
        return _REAL_TO(tensor, *args, **kwargs)
    dtype = kwargs.get("dtype") or next((each for each in args[1:] if isinstance(each, torch.dtype)), tensor.dtype)
    copied: torch.Tensor = torch.ops.aten._to_copy.default(tensor, device=torch.device(given), dtype=dtype)
    return copied


def _getitem(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """Indexing by numbers, slices, None and tensors, for which a build for CPUs has no guard of a CUDA device."""
    if tensor.device.type != "cuda":
        return _REAL_GETITEM(tensor, index)
    dim = 0
    for part in index if isinstance(index, tuple) else (index,):
        if part is None:
            tensor = torch.ops.aten.unsqueeze.default(tensor, dim)
        elif isinstance(part, int):
            tensor = torch.ops.aten.select.int(tensor, dim, part)
            continue
        elif isinstance(part, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, part.start, part.stop)
        else:
            assert isinstance(part, torch.Tensor)
            tensor = torch.ops.aten.index.Tensor(tensor, [*[None] * dim, part])
        dim += 1
    return tensor


def _setitem(tensor: torch.Tensor, index: Any, value: Any) -> None:
    if tensor.device.type != "cuda":
        _REAL_SETITEM(tensor, index, value)
    elif isinstance(value, torch.Tensor):
        torch.ops.aten.copy_.default(_getitem(tensor, index), value)
    else:
        torch.ops.aten.fill_.Scalar(_getitem(tensor, index), value)


def on_fake_cuda(module: torch.nn.Module) -> None:
    """Move the weights of a module; `Module.to` cannot swap real ones for fake ones."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                moved = _to(weight.detach(), "cuda")
                part._parameters[name] = torch.nn.Parameter(moved, requires_grad=weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _to(buffer, "cuda")


_REAL_TO, _REAL_GETITEM, _REAL_SETITEM = torch.Tensor.to, torch.Tensor.__getitem__, torch.Tensor.__setitem__


@contextmanager
def fake_cuda() -> Iterator[CallsToGpu]:
    """Tensors that are made inside may lie on a CUDA device that is not there; real ones are taken as they are."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(torch.Tensor, "to", _to)
        patch.setattr(torch.Tensor, "__getitem__", _getitem)
        patch.setattr(torch.Tensor, "__setitem__", _setitem)
        patch.setattr(encoders, "to_device", lambda array, device: torch.from_numpy(array).to(device))
        for module in (encoders, packed):
            patch.setattr(module, "takes_varlen", like_a_gpu)
        with CallsToGpu() as calls:
            yield calls


class Waits(TorchDispatchMode):
    """Where the host would wait for a GPU, seen on CPU: operators that hand a number to the host or need one of it,
    and arrays of the host, whose copy to a GPU waits for what is queued there.

    What a stand-in for a kernel does inside of it does not count.
    """

    OPERATORS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        unsized = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        if name in self.OPERATORS or by_mask or unsized:
            self.found.append(name)
        before, self._inside = self._inside, True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._inside = before

    def __enter__(self) -> Waits:
        self._patch = pytest.MonkeyPatch()
        real, from_numpy = torch.Tensor.tolist, torch.from_numpy

        def noted(array: Any) -> torch.Tensor:
            self.found.append("from_numpy")
            return from_numpy(array)

        def tolist(tensor: torch.Tensor) -> Any:
            if not self._inside:
                self.found.append(f"tolist {tuple(tensor.shape)}")
            return real(tensor)

        self._patch.setattr(torch.Tensor, "tolist", tolist)
        self._patch.setattr(torch, "from_numpy", noted)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.undo()
