"""Our kernels for each instruction set on any machine: by this CPU, or the same source on emulated instructions."""

from __future__ import annotations

import functools
import platform
import shutil
import sys
import zlib
from pathlib import Path

import pytest

from bertray.model import kernels as module
from bertray.model.kernels import Kernels
from bertray.model.kernels.build import INSTRUCTION_SETS, SETS_OF, flags_of

COMPILER = shutil.which("g++")
EMULATED = Path(__file__).parent / "model" / "emulated"

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or COMPILER is None,
    reason="no g++ for x86-64 on Linux here",
)

# What the compiler defines for an instruction set, and the sources ask for.
_DEFINED = {
    "amx": ["-D__AMX_BF16__", "-D__AVX512BF16__"],
    "avx512bf16": ["-D__AVX512BF16__"],
    "avx512vnni": ["-U__AVX512BF16__"],
}


def _fastest() -> set[str]:
    """Of each number format the instruction set that this CPU uses."""
    here = module._supported()
    return {name for sets in SETS_OF.values() for name in [name for name in sets if name in here][:1]}


# Every instruction set. Quick tests take those of this CPU; slow ones what it has but does not use, and what it lacks,
# which is emulated and takes half a minute of compiling.
EVERY_SET = [pytest.param(name, marks=() if name in _fastest() else pytest.mark.slow) for name in INSTRUCTION_SETS]


@functools.cache
def kernels_of(instructions: str) -> Kernels:
    """The kernels for an instruction set.

    Where this CPU lacks it, or the operating system does not give it, a header in place of the compiler's own has each
    instruction in plain C++ (`tests/model/emulated`).
    """
    if COMPILER is None:
        pytest.skip("no g++ here")
    if instructions in module._supported():
        return module._built(instructions, flags_of(instructions))
    if instructions in SETS_OF["fp32"]:
        pytest.skip("this CPU has no AVX2, which nothing emulates")
    version = zlib.crc32((EMULATED / "immintrin.h").read_bytes())
    flags = ["-std=c++17", "-O2", "-march=native", "-shared", "-fPIC", "-fopenmp", "-Wno-psabi"]
    flags += [f"-I{EMULATED}", f"-DEMULATED={version}", *_DEFINED[instructions]]
    return module._built(instructions, flags)
