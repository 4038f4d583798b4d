"""Products of this CPU by one instruction again and again: which are picked, and how many operations they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bertray.benchmark import silicon
from bertray.benchmark.silicon import operations, products, silicon_rates, widest
from bertray.model import kernels as module
from bertray.runtime import num_cpus
from tests.kernel_libraries import kernels_of

HERE = module._supported()
needs_instructions = pytest.mark.skipif(not HERE, reason="this CPU has none of the instructions of our kernels")

# Multiplications of a round: rows, columns and inputs of four tiles; numbers in twelve registers and inputs of each.
MULTIPLICATIONS = {
    "amx_bf16": 4 * 16 * 16 * 32,
    "amx_int8": 4 * 16 * 16 * 64,
    "avx512_bf16": 12 * 16 * 2,
    "avx512_vnni": 12 * 16 * 4,
    "avx512_f": 12 * 16,
    "fma3": 12 * 8,
}
EVERYWHERE = {"avx512_vnni", "avx512_f", "fma3"}
IN_LIBRARY = {
    "amx": set(MULTIPLICATIONS),
    "avx512bf16": EVERYWHERE | {"avx512_bf16"},
    "avx512vnni": EVERYWHERE,
    "avx2": EVERYWHERE,
}


@pytest.fixture
def fresh():
    """Nothing of the library is remembered, before and after."""
    silicon._library.cache_clear()
    silicon.products.cache_clear()
    yield
    silicon._library.cache_clear()
    silicon.products.cache_clear()


@pytest.mark.parametrize("instructions", HERE)
def test_a_library_has_the_products_of_its_instructions_and_counts_their_operations(instructions):
    library, capabilities = kernels_of(instructions).library, torch.cpu.get_capabilities()
    found = {
        name: operations(library, name, rounds=10, num_threads=2) for name in MULTIPLICATIONS if capabilities[name]
    }
    assert found == {
        name: 2 * 10 * 2 * MULTIPLICATIONS[name] if name in IN_LIBRARY[instructions] else 0 for name in found
    }
    assert operations(library, "sse2", rounds=10, num_threads=2) == 0


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (list(MULTIPLICATIONS), {"bf16": "amx_bf16", "int8": "amx_int8", "fp32": "avx512_f"}),
        (
            ["fma3", "avx512_f", "avx512_vnni", "avx512_bf16"],
            {"bf16": "avx512_bf16", "int8": "avx512_vnni", "fp32": "avx512_f"},
        ),
        (["avx512_vnni", "avx512_f", "fma3"], {"int8": "avx512_vnni", "fp32": "avx512_f"}),
        (["fma3"], {"fp32": "fma3"}),
        ([], {}),
    ],
)
def test_the_widest_product_in_each_number_format_is_picked(here, expected):
    assert widest(here) == expected


@needs_instructions
def test_rates_are_those_of_a_cpu(monkeypatch, fresh):
    ours = kernels_of(HERE[0])
    monkeypatch.setattr(silicon, "kernels", lambda dtype: ours if dtype == ours.dtype else None)
    rates = silicon_rates()
    assert rates.keys() == products().keys() >= {"fp32"}
    # Two instructions a cycle, of tiles one in sixteen, at 6 GHz: no CPU does twice as much.
    most = {form: 2 * MULTIPLICATIONS[name] * 6e9 * num_cpus() for form, name in products().items()}
    per_cycle = {form: 1 / 64 if name.startswith("amx") else 2 / 12 for form, name in products().items()}
    assert {form: 1e8 < rate < 2 * most[form] * per_cycle[form] for form, rate in rates.items()} == dict.fromkeys(
        rates, True
    )


@pytest.mark.skipif("avx2" not in HERE, reason="this CPU has no AVX2")
def test_without_kernels_for_this_cpu_the_library_for_avx2_measures_it_unless_they_are_off(monkeypatch, fresh):
    path = Path(kernels_of("avx2").library._name)
    monkeypatch.setattr(silicon, "kernels", lambda _: None)
    monkeypatch.setattr(silicon, "library_of", lambda _: path)
    capabilities = torch.cpu.get_capabilities()
    expected = widest([name for name in EVERYWHERE if capabilities[name]])
    monkeypatch.delenv("BERTRAY_KERNELS", raising=False)
    assert products() == expected
    for nothing in ("off", " OFF", "off,build", "of an unknown name"):
        silicon._library.cache_clear()
        silicon.products.cache_clear()
        monkeypatch.setenv("BERTRAY_KERNELS", nothing)
        assert silicon_rates() == {}, nothing


def test_without_a_library_there_are_no_rates(monkeypatch, tmp_path, fresh):
    monkeypatch.setattr(silicon, "kernels", lambda _: None)
    monkeypatch.setattr(silicon, "library_of", lambda _: tmp_path / "none.so")
    assert silicon_rates() == products() == {}
