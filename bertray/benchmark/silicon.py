"""Rates of a CPU's widest products: one instruction on registers or tiles again and again, nothing from memory."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Collection

import torch

from bertray.model.kernels import any_wanted, kernels
from bertray.model.kernels.build import INSTRUCTION_SETS, library_of, on_this_platform
from bertray.runtime import num_cpus

PRODUCTS = {
    "bf16": ("amx_bf16", "avx512_bf16"),
    "int8": ("amx_int8", "avx512_vnni"),
    "fp32": ("avx512_f", "fma3"),
}
"""Products in each number format, the widest first, named after the feature of a CPU as torch has it."""

_SECONDS = 0.05  # on each product


def widest(names: Collection[str]) -> dict[str, str]:
    """The widest of these products in each number format; none for a format in which none of them is."""
    here = {form: [name for name in products if name in names] for form, products in PRODUCTS.items()}
    return {form: found[0] for form, found in here.items() if found}


@functools.cache
def products() -> dict[str, str]:
    """Widest product in each number format that both this CPU and the library of our kernels have."""
    library, capabilities = _library(), torch.cpu.get_capabilities()
    if library is None:
        return {}
    names = [name for names in PRODUCTS.values() for name in names if capabilities.get(name)]
    return widest([name for name in names if operations(library, name, rounds=1, num_threads=1)])


def silicon_rates() -> dict[str, float]:
    """Operations/s of all cores of this process by each of `products`, by its number format."""
    library = _library()
    if library is None:
        return {}
    return {form: _rate(library, name, num_cpus()) for form, name in products().items()}


def operations(library: ctypes.CDLL, product: str, rounds: int, num_threads: int) -> int:
    """Additions and multiplications of so many rounds of a product on each thread; 0 where the library has it not."""
    peak = library.bertray_peak
    peak.argtypes, peak.restype = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int], ctypes.c_int64
    return int(peak(product.encode(), rounds, num_threads))


def _rate(library: ctypes.CDLL, product: str, num_threads: int) -> float:
    """Operations/s, the best of runs that grow until their time is over."""
    best, rounds = 0.0, 1 << 12
    end = time.perf_counter() + _SECONDS
    while (start := time.perf_counter()) < end:
        done = operations(library, product, rounds, num_threads)
        best = max(best, done / (time.perf_counter() - start))
        rounds *= 2
    return best


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Library of the kernels in use; on CPUs with AVX512 and without bf16 and VNNI, where none are, that for AVX2."""
    for dtype in (torch.bfloat16, torch.float32):
        if (found := kernels(dtype)) is not None:
            return found.library
    capabilities, library = torch.cpu.get_capabilities(), library_of("avx2")
    may_load = any_wanted() and on_this_platform() and all(map(capabilities.get, INSTRUCTION_SETS["avx2"]))
    return ctypes.CDLL(str(library)) if may_load and library.exists() else None
