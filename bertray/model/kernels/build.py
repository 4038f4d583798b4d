"""Compilation of the kernels, once for each instruction set; standard library alone, since the installation runs it."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC", "-fopenmp")
_AVX512 = {name: f"-m{name.replace('_', '')}" for name in ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl")}
_AVX512_VNNI = _AVX512 | {"avx512_vnni": "-mavx512vnni"}
_AVX512_BF16 = _AVX512_VNNI | {"avx512_bf16": "-mavx512bf16"}
INSTRUCTION_SETS = {
    "amx": _AVX512_BF16 | {"amx_tile": "-mamx-tile", "amx_bf16": "-mamx-bf16", "amx_int8": "-mamx-int8"},
    "avx512bf16": _AVX512_BF16,
    "avx512vnni": _AVX512_VNNI,
    "avx2": {"avx2": "-mavx2", "fma3": "-mfma"},
}
"""Needs of each: features of a CPU as torch names them, with the compiler's flag; the fastest set first."""

SETS_OF = {"bf16": ("amx", "avx512bf16", "avx512vnni"), "fp32": ("avx2",)}
"""Instruction sets of the kernels in a number format; the last in bf16 multiplies it in fp32, and int8 by VNNI."""

ROOM = Path(__file__).parent
LIBRARIES = ROOM / "libraries"
"""Libraries that the installation built; a name says of which source, so that none of an older one is loaded."""

_BUILD_LIMIT_S = 300.0


def on_this_platform() -> bool:
    """Whether the kernels are written for this system and processor family."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def find_compiler() -> list[str] | None:
    """Command of the C++ compiler: `$CXX`, or the first of g++, clang++ and c++ on the `PATH`."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    return found.split() if found else None


def flags_of(instructions: str) -> tuple[str, ...]:
    """Flags of the compiler for an instruction set."""
    return (*_FLAGS, *INSTRUCTION_SETS[instructions].values())


def source_of(instructions: str, ending: str = ".cpp") -> list[Path]:
    """Files of the source for an instruction set: those in its number format, and what all have."""
    number_format = next(name for name, sets in SETS_OF.items() if instructions in sets)
    return sorted(path for folder in ("common", number_format) for path in (ROOM / folder).glob(f"*{ending}"))


def digest_of(instructions: str, *settings: object) -> str:
    """Digest of the source and of what else decides what it becomes."""
    digest = hashlib.sha256(repr(settings).encode())
    for path in (*source_of(instructions), *source_of(instructions, ".h")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def library_of(instructions: str) -> Path:
    """Path at which the installation puts the library of the present source for an instruction set."""
    return LIBRARIES / f"{instructions}-{digest_of(instructions, flags_of(instructions))}.so"


def compile_library(compiler: Sequence[str], instructions: str, flags: Sequence[str], to: Path) -> Path:
    """Compile the kernels for an instruction set.

    Args:
        flags: those of `flags_of`, but for a test.

    Raises:
        OSError, subprocess.SubprocessError: the compiler cannot be called, or fails; its stderr says why.
    """
    command = [*compiler, *flags, *map(str, source_of(instructions)), "-o", str(to)]
    subprocess.run(  # noqa: S603 - our sources
        command, check=True, capture_output=True, text=True, errors="replace", timeout=_BUILD_LIMIT_S
    )
    to.chmod(0o700)
    return to


def build_all() -> tuple[list[Path], str]:
    """Build the library of each instruction set into `LIBRARIES`, and remove those of another source.

    Returns:
        The libraries, and why there are not all of them; empty where there are.
    """
    compiler = find_compiler()
    if not on_this_platform():
        return [], "they are written for Linux on x86-64"
    if compiler is None:
        return [], "there is no C++ compiler"
    built: list[Path] = []
    why_not = ""
    for instructions in INSTRUCTION_SETS:
        library = library_of(instructions)
        aside = library.with_suffix(f".{os.getpid()}")
        try:
            LIBRARIES.mkdir(exist_ok=True)
            if not library.exists():
                compile_library(compiler, instructions, flags_of(instructions), aside).chmod(0o755)
                aside.rename(library)
            built.append(library)
        except (OSError, subprocess.SubprocessError) as error:  # an older compiler may know one set of them
            why_not = (getattr(error, "stderr", None) or str(error)).strip().rstrip(".")[-500:]
    if built:
        for other in {*LIBRARIES.iterdir()} - {*built}:
            other.unlink(missing_ok=True)
    return built, why_not
