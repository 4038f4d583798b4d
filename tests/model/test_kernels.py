"""Our kernels: what torch computes in fp32, but for rounding; built once, done without where they cannot be."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bertray.model import backend
from bertray.model import kernels as module
from bertray.model.engine import FORMATS, Engine
from bertray.model.kernels import TiledLinear, build, choose_kernels, fits, kernels
from bertray.model.kernels.build import INSTRUCTION_SETS, flags_of
from bertray.model.pooling import PooledReadout
from bertray.model.tokenization import Sequences
from tests.kernel_libraries import EVERY_SET, kernels_of, needs_compiler

# Of numbers and their products, in proportion to the whole; in int8 beside what its own rounding does.
ROUNDING = {torch.bfloat16: 0.004, torch.float32: 2e-6, torch.int8: 0.006}


@pytest.fixture(params=EVERY_SET)
def ours(request):
    return kernels_of(request.param)


@pytest.fixture(params=["its own", "int8"])
def tiles(request, ours):
    """Number format of the weights of linear layers."""
    if request.param == "int8" and torch.int8 not in ours.multiplies:
        pytest.skip("these kernels have no int8")
    return torch.int8 if request.param == "int8" else ours.dtype


def as_multiplied(x_TI: torch.Tensor, tiles: torch.dtype, width: int | None = None) -> torch.Tensor:
    """Rows of a product as fp32; in int8 as 255 values each, as far as the largest of a row's next `width` numbers."""
    if tiles != torch.int8:
        return x_TI.float()
    parts = x_TI.float().split(width or x_TI.shape[1], dim=1)
    scales = [part.abs().amax(dim=1, keepdim=True) / 127 for part in parts]
    return torch.cat([(part / scale).round() * scale for part, scale in zip(parts, scales, strict=True)], dim=1)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


# --- attention -------------------------------------------------------------------------------------------------------

LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 200, 511, 512]


def attention_of(*given: torch.Tensor) -> torch.Tensor:
    """Attention in fp32, a sequence after the other, of q_THE, k_THE, v_THE, cu_seqlens_q and cu_seqlens_k."""
    q_THE, k_THE, v_THE, cu_seqlens_q, cu_seqlens_k = given
    out = []
    for b in range(len(cu_seqlens_q) - 1):
        queries, keys = slice(cu_seqlens_q[b], cu_seqlens_q[b + 1]), slice(cu_seqlens_k[b], cu_seqlens_k[b + 1])
        q_HTE, k_HTE, v_HTE = [
            x[rows].float().transpose(0, 1) for x, rows in ((q_THE, queries), (k_THE, keys), (v_THE, keys))
        ]
        out.append(F.scaled_dot_product_attention(q_HTE, k_HTE, v_HTE).transpose(0, 1).flatten(1))
    return torch.cat(out)


@pytest.mark.parametrize(("num_heads", "head"), [(12, 32), (12, 64), (3, 96), (2, 128)])
def test_attention_within_sequences_of_any_length(ours, num_heads, head):
    torch.manual_seed(0)
    bounds = torch.tensor(np.cumsum([0, *LENGTHS]), dtype=torch.int32)
    qkv = (2 * torch.randn(int(bounds[-1]), 3, num_heads, head)).to(ours.dtype)
    found = ours.attention(*qkv.unbind(1), bounds, bounds)
    assert distance(found, attention_of(*qkv.unbind(1), bounds, bounds)) < ROUNDING[ours.dtype]


def test_attention_of_first_tokens_alone(ours):
    torch.manual_seed(0)
    bounds = torch.tensor(np.cumsum([0, *LENGTHS]), dtype=torch.int32)
    kv = torch.randn(int(bounds[-1]), 2, 12, 32).to(ours.dtype)
    q = torch.randn(len(LENGTHS), 12, 32).to(ours.dtype)
    ones = torch.arange(len(LENGTHS) + 1, dtype=torch.int32)
    found = ours.attention(q, *kv.unbind(1), ones, bounds)
    assert distance(found, attention_of(q, *kv.unbind(1), ones, bounds)) < ROUNDING[ours.dtype]


def test_attention_to_one_key_far_above_the_others_is_its_value(ours):
    q, k, v = (torch.randn(40, 1, 32).to(ours.dtype) for _ in range(3))
    q[:], k[:], k[33] = 1, -100, 100
    bounds = torch.tensor([0, 40], dtype=torch.int32)
    assert torch.equal(ours.attention(q, k, v, bounds, bounds), v[33].expand(40, 32))


def test_what_is_not_finite_stays_in_its_own_sequence(ours):
    torch.manual_seed(0)
    bounds = torch.tensor(np.cumsum([0, 17, 40, 9]), dtype=torch.int32)
    qkv = torch.randn(66, 3, 2, 32).to(ours.dtype)
    without = ours.attention(*qkv.unbind(1), bounds, bounds)
    poisoned = qkv.clone()
    poisoned[30, 1, 0, 5] = float("nan")
    found = ours.attention(*poisoned.unbind(1), bounds, bounds)
    assert not found[17:57, :32].isfinite().any()
    others = [*range(17), *range(57, 66)]
    assert torch.equal(found[others], without[others])


# --- linear layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [64, 384, 1472])  # the last in turns of 256 and what is left
@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33, 128, 200, 900])
def test_a_linear_layer_for_any_number_of_tokens(ours, tiles, num_tokens, inputs):
    torch.manual_seed(0)
    weight, bias = torch.randn(96, inputs).to(ours.dtype), torch.randn(96)
    # Tokens of very different size: in int8 one scale for all of them would lose the small ones.
    x = (torch.randn(num_tokens, inputs) * torch.logspace(-2, 1, num_tokens)[:, None]).to(ours.dtype)
    expected = F.linear(as_multiplied(x, tiles), as_multiplied(weight, tiles), bias)
    layer = TiledLinear.of(weight, bias, tiles)
    assert distance(ours.linear(x, layer), expected) < ROUNDING[ours.dtype]
    for given, dtype in ((x, torch.float32), (x.float(), ours.dtype), (x.float(), torch.float32)):
        if {given.dtype, dtype} <= {*ours.accepted}:
            assert distance(ours.linear(given, layer, dtype), expected) < ROUNDING[ours.dtype]


def test_nothing_but_zeros_is_the_bias(ours, tiles):
    layer = TiledLinear.of(torch.zeros(96, 64), torch.arange(96.0), tiles)
    assert torch.equal(ours.linear(torch.zeros(3, 64).to(ours.dtype), layer), torch.arange(96).expand(3, 96))


@pytest.mark.parametrize(
    ("hidden", "inner", "num_tokens"),
    [
        *((*sizes, tokens) for sizes in ((64, 192), (128, 64), (448, 960)) for tokens in (1, 31, 200, 1300)),
        (1024, 2048, 33),  # in int8 in turns, too, and what is inner in two parts of them
    ],
)
def test_a_layer_behind_attention(ours, tiles, num_tokens, hidden, inner):
    torch.manual_seed(0)
    sizes = ((hidden, hidden), (inner, hidden), (hidden, inner))
    weights = [(torch.randn(size) / size[1] ** 0.5).to(ours.dtype) for size in sizes]
    biases = [torch.randn(size[0]) for size in sizes]
    norms = [torch.nn.LayerNorm(hidden, eps=1e-3) for _ in range(2)]
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    attended, x = (torch.randn(num_tokens, hidden).to(ours.dtype) for _ in range(2))
    attended_linear, up, down = (TiledLinear.of(*pair, tiles) for pair in zip(weights, biases, strict=True))
    with torch.inference_mode():
        found = ours.feed_forward(attended_linear, norms[0], up, down, norms[1])(attended, x)

        def linear(number: int, x: torch.Tensor) -> torch.Tensor:
            weight = as_multiplied(weights[number], tiles)
            return F.linear(as_multiplied(x.to(ours.dtype), tiles, hidden), weight, biases[number])

        y = norms[0](linear(0, attended) + x.float())
        expected = norms[1](linear(2, F.gelu(linear(1, y))) + y)
    assert distance(found, expected) < ROUNDING[tiles]


@pytest.mark.parametrize(
    ("num_heads", "head", "lens"),
    [
        *product((4, 2), (32, 64), ([1], [5, 40, 1, 31, 32, 33, 64], [700, 3, 3], [30] * 60)),
        (2, 96, [5, 40, 1, 31, 32, 33, 64]),
        (7, 128, [40, 1, 3]),  # in int8 in turns, too
    ],
)
def test_attention_with_the_linear_layer_before_it(ours, tiles, num_heads, head, lens):
    torch.manual_seed(0)
    hidden = num_heads * head
    parts = [(torch.randn(hidden, hidden) / hidden**0.5, torch.randn(hidden)) for _ in range(3)]
    by_head = [
        torch.cat([p.unflatten(0, (num_heads, head)) for p in kind], 1).flatten(0, 1)
        for kind in zip(*parts, strict=True)
    ]
    bounds = torch.tensor(np.cumsum([0, *lens]), dtype=torch.int32)
    x = torch.randn(sum(lens), hidden).to(ours.dtype)
    found = ours.self_attention(TiledLinear.of(by_head[0], by_head[1], tiles), num_heads)(x, bounds)
    apart = [ours.linear(x, TiledLinear.of(*part, tiles)).view(-1, num_heads, head) for part in parts]
    assert torch.equal(found, ours.attention(*apart, bounds, bounds))


@pytest.mark.parametrize("num_tokens", [1, 7, 333])
def test_neither_threads_nor_other_rows_make_a_difference(ours, tiles, monkeypatch, num_tokens):
    torch.manual_seed(0)
    layers = [TiledLinear.of(torch.randn(64, 64), torch.randn(64), tiles) for _ in range(3)]
    x, norm = torch.randn(num_tokens, 64).to(ours.dtype), torch.nn.LayerNorm(64)
    feed_forward = ours.feed_forward(layers[0], norm, layers[1], layers[2], norm)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append((ours.linear(x, layers[0]), feed_forward(x, x)))
    alone = [
        torch.cat(parts)
        for parts in zip(*((ours.linear(row, layers[0]), feed_forward(row, row)) for row in x.split(1)), strict=True)
    ]
    for whole, other, by_row in zip(*found, alone, strict=True):
        assert torch.equal(whole, other)
        assert torch.equal(whole, by_row)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_own_row(ours, tiles, wrong):
    torch.manual_seed(0)
    layers = [TiledLinear.of(torch.randn(64, 64), torch.randn(64), tiles) for _ in range(3)]
    x, norm = torch.randn(20, 64).to(ours.dtype), torch.nn.LayerNorm(64)
    feed_forward = ours.feed_forward(layers[0], norm, layers[1], layers[2], norm)
    without = ours.linear(x, layers[0]), feed_forward(x, x)
    x[9, 5] = wrong
    others = [*range(9), *range(10, 20)]
    for found, expected in zip((ours.linear(x, layers[0]), feed_forward(x, x)), without, strict=True):
        assert not found[9].isfinite().any()
        assert torch.equal(found[others], expected[others])


@pytest.mark.parametrize("size", [1e-25, 1e-20, 1e30])
def test_in_int8_a_token_may_be_of_any_size(ours, tiles, size):
    torch.manual_seed(0)
    weight, x = torch.randn(32, 128).to(ours.dtype), (size * torch.randn(5, 128)).to(ours.dtype)
    expected = F.linear(as_multiplied(x, tiles), as_multiplied(weight, tiles))
    found = ours.linear(x, TiledLinear.of(weight, torch.zeros(32), tiles), torch.float32)
    assert distance(found / size, expected / size) < ROUNDING[tiles]


def test_in_int8_every_instruction_set_gives_the_same_numbers():
    """Sums are whole numbers: nothing is rounded before the scales."""
    here = [name for name in build.SETS_OF["bf16"] if name in module._supported()]
    if not here:
        pytest.skip("this CPU has none of these instructions; emulated ones are compared with torch alone")
    torch.manual_seed(0)
    weight, bias, x = torch.randn(96, 1472), torch.randn(96), torch.randn(70, 1472).bfloat16()
    layer = TiledLinear.of(weight, bias, torch.int8)
    found = [kernels_of(name).linear(x, layer, torch.float32) for name in here]
    scales_T1 = x.float().abs().amax(dim=1, keepdim=True) / 127
    sums_TO = (x * (1 / scales_T1)).round().double() @ (weight / layer._scales_O[:, None]).round().double().T
    expected_TO = (sums_TO * scales_T1 * layer._scales_O + bias).float()
    for numbers_TO in found:
        torch.testing.assert_close(numbers_TO, expected_TO, atol=5e-5, rtol=0)
        assert torch.equal(numbers_TO, found[0])


def test_weights_in_int8_have_a_scale_for_each_output():
    weight_OI = torch.zeros(32, 128)
    weight_OI[3, 0], weight_OI[3, 70], weight_OI[5, 127] = -2.0, 1.0, 1e-3
    layer = TiledLinear.of(weight_OI, torch.zeros(32), torch.int8)
    scales_O, zeros_ZO = torch.full((32,), 1e-30 / 127), torch.zeros(3, 32, dtype=torch.int32)
    scales_O[3], scales_O[5] = 2 / 127, 1e-3 / 127
    zeros_ZO[:, 3], zeros_ZO[2, 5] = torch.tensor([0, -127 * 128, (64 - 127) * 128]), 127 * 128
    torch.testing.assert_close(layer._scales_O, scales_O)
    assert torch.equal(layer._zeros_ZO, zeros_ZO)


# --- in the engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=EVERY_SET)
def in_engine(request, monkeypatch):
    """The precision of engines that run on the kernels of an instruction set."""
    ours = kernels_of(request.param)
    monkeypatch.setattr(backend, "kernels", lambda dtype: ours if dtype == ours.dtype else None)
    return FORMATS[ours.dtype]


@pytest.fixture
def in_int8(in_engine, monkeypatch):
    """As `in_engine`, for those that have linear layers in int8, which only they compute here."""
    if in_engine != "bf16":
        pytest.skip("these kernels have no int8")
    monkeypatch.setattr(backend, "can_quantize", lambda device: False)
    return {"precision": "int8", "emulated": True}


def logits_by_torch(folder: Path, seqs: Sequences) -> np.ndarray:
    """In fp32, without our kernels."""
    with mock.patch.object(backend, "kernels", return_value=None):
        engine = Engine(folder, precision="fp32")
    assert not engine.own_kernels
    return engine.logits(seqs)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A classifier of sizes that fit tiles, by family."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    def make(family: str, inner: int = 96) -> Path:
        names = {"distilbert": {"dim": 64, "n_heads": 2, "n_layers": 2, "hidden_dim": inner}}
        usual = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": inner}
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, vocab_size=60, num_labels=3, **names.get(family, usual))
        folder = tmp_path_factory.mktemp(family)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        return folder

    return make


def of_lengths(ids: np.ndarray, lens: np.ndarray) -> Sequences:
    return Sequences(ids, lens, np.zeros(len(lens), np.int32), np.arange(len(lens)), len(lens))


def some_sequences() -> Sequences:
    random = np.random.default_rng(0)
    lens = random.integers(1, 120, size=40)
    return of_lengths(random.integers(3, 60, size=lens.sum()).astype(np.uint16), lens)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "albert"])
def test_every_family_is_computed_by_them(models, family, in_engine):
    folder, seqs = models(family), some_sequences()
    engine = Engine(folder, precision=in_engine)
    assert engine.own_kernels
    atol = {"bf16": 0.02, "fp32": 2e-6}[in_engine]
    np.testing.assert_allclose(engine.logits(seqs), logits_by_torch(folder, seqs), atol=atol)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "albert"])
def test_every_family_is_computed_by_them_in_int8(models, family, in_int8):
    folder, seqs = models(family, inner=128), some_sequences()
    engine = Engine(folder, **in_int8)
    assert (engine.own_kernels, engine.quantized, engine.precision) == (True, True, "int8")
    found, expected = engine.logits(seqs), logits_by_torch(folder, seqs)
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert np.abs(found - Engine(folder, precision="bf16").logits(seqs)).max() > 1e-4  # rounded indeed


def test_in_int8_models_of_other_sizes_go_without(models, in_int8):
    engine = Engine(models("bert", inner=96), **in_int8)
    assert (engine.own_kernels, engine.quantized, engine.dtype) == (False, True, torch.float32)


def test_kernels_that_are_wrong_in_int8_are_not_used(models, monkeypatch, caplog, in_int8):
    folder, seqs = models("bert", inner=128), some_sequences()
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patched:
        patched.setattr(module.Kernels, "attention", lambda self, q, *_: torch.full((len(q), 64), torch.inf).to(q))
        engine = Engine(folder, **in_int8)
        assert "Not computed in int8: logits differ" in caplog.text
    assert (engine.own_kernels, engine.quantized, engine.dtype) == (False, True, torch.float32)
    np.testing.assert_allclose(engine.logits(seqs), logits_by_torch(folder, seqs), atol=0.05)


def test_what_a_review_gets_does_not_depend_on_those_beside_it(models, in_engine):
    seqs = some_sequences()
    engine = Engine(models("bert"), precision=in_engine, readout=PooledReadout())
    assert engine.own_kernels
    together = engine.token_vectors(seqs)
    ends = np.cumsum(seqs.lens_S)
    for number in (0, 7, 39):
        start, stop = ends[number] - seqs.lens_S[number], ends[number]
        alone = of_lengths(seqs.ids_T[start:stop], seqs.lens_S[number : number + 1])
        assert np.array_equal(engine.token_vectors(alone), together[start:stop]), number


def test_kernels_that_compute_something_else_are_not_used(models, monkeypatch, caplog, in_engine):
    from safetensors.torch import load_file, save_file

    folder, seqs = models("bert"), some_sequences()
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 100  # what nobody trained hardly tells sequences apart
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    right = module.Kernels.attention
    monkeypatch.setattr(module.Kernels, "attention", lambda *given: right(*given).roll(1, dims=1) * 100)
    with caplog.at_level(logging.WARNING):
        engine = Engine(folder, precision=in_engine)
    assert not engine.own_kernels
    assert engine.packed
    assert "Our kernels are not used: their logits differ" in caplog.text
    np.testing.assert_allclose(engine.logits(seqs), logits_by_torch(folder, seqs), atol=0.1)


def test_a_model_of_other_sizes_goes_without(make_classifier, in_engine):
    assert not Engine(make_classifier("bert", 2), precision=in_engine).own_kernels


def test_sizes_that_fit():
    assert fits(384, 1536, 32)
    assert fits(768, 3072, 64)
    assert not fits(300, 1200, 32)
    assert not fits(384, 1500, 32)
    assert not fits(384, 1536, 48)
    assert not fits(1024, 4096, 256)
    assert fits(96, 160, 32)
    assert not fits(96, 128, 32, in_int8=True)
    assert not fits(128, 160, 32, in_int8=True)
    assert fits(384, 1536, 32, in_int8=True)


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="no Linux on x86-64")
def test_what_linux_says_of_the_cpu_is_what_torch_says():
    said = Path("/proc/cpuinfo").read_text().split()
    names = {f"avx512_{part}": f"avx512{part}" for part in ("f", "bw", "dq", "vl")} | {"fma3": "fma"}
    has = {name: all(names.get(need, need) in said for need in needs) for name, needs in INSTRUCTION_SETS.items()}
    assert module._supported() == [name for name in INSTRUCTION_SETS if has[name]]


@pytest.mark.parametrize(
    ("here", "chosen", "found"),
    [
        (["amx", "avx512bf16"], "", ("amx", False)),
        (["amx", "avx512bf16"], "build", ("amx", True)),
        (["amx", "avx512bf16"], "AVX512BF16", ("avx512bf16", False)),
        (["amx", "avx512bf16"], "build, avx512bf16", ("avx512bf16", True)),
        (["avx512bf16"], "", ("avx512bf16", False)),
        (["avx512bf16"], "off", (None, False)),
        ([], "", (None, False)),
        ([], "build", (None, True)),
    ],
)
def test_the_fastest_instructions_of_the_cpu_or_those_chosen(monkeypatch, caplog, here, chosen, found):
    monkeypatch.setattr(module, "_supported", lambda: here)
    monkeypatch.setenv("BERTRAY_KERNELS", chosen)
    assert choose_kernels(torch.bfloat16) == found
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("here", "chosen", "has_avx512", "found"),
    [
        (["avx2"], "", False, ("avx2", False)),
        (["avx2"], "build", False, ("avx2", True)),
        (["avx2"], "off", False, (None, False)),
        (["avx512bf16", "avx2"], "", True, (None, False)),
        (["avx512bf16", "avx2"], "avx512bf16", True, (None, False)),
        (["avx512bf16", "avx2"], "avx2", True, ("avx2", False)),
        ([], "", False, (None, False)),
    ],
)
def test_in_fp32_kernels_are_used_where_torch_has_no_wider_registers(monkeypatch, here, chosen, has_avx512, found):
    monkeypatch.setattr(module, "_supported", lambda: here)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": has_avx512})
    monkeypatch.setenv("BERTRAY_KERNELS", chosen)
    assert choose_kernels(torch.float32) == found


def test_no_kernels_are_in_fp16(monkeypatch):
    monkeypatch.setattr(module, "_supported", lambda: list(INSTRUCTION_SETS))
    monkeypatch.delenv("BERTRAY_KERNELS", raising=False)
    assert choose_kernels(torch.float16) == (None, False)


@pytest.mark.parametrize("chosen", ["amx", "avx"])
def test_instructions_that_this_cpu_lacks_are_told_of(monkeypatch, caplog, chosen):
    monkeypatch.setattr(module, "_supported", lambda: ["avx512bf16"])
    monkeypatch.setenv("BERTRAY_KERNELS", chosen)
    assert choose_kernels(torch.bfloat16) == (None, False)
    assert caplog.messages == [
        f"BERTRAY_KERNELS: expected one of avx512bf16, build, off on this machine, found {chosen}. None are used."
    ]


# --- building them ---------------------------------------------------------------------------------------------------


@pytest.fixture
def building(monkeypatch, tmp_path):
    """As on a machine with AVX512-BF16, where nothing is built; gives the compilers that were called."""
    called = []
    compile_ = build.compile_library

    def compile_and_tell(compiler, *how):
        called.append(compiler)
        return compile_(compiler, *how)

    monkeypatch.setattr(module, "_supported", lambda: ["avx512bf16"])
    for room in (module, build):
        monkeypatch.setattr(room, "compile_library", compile_and_tell)
    monkeypatch.setattr(build, "LIBRARIES", tmp_path / "libraries")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("BERTRAY_KERNELS", "build")
    return called


@pytest.fixture
def instant(building, monkeypatch):
    """As `building`, with a compiler that takes no time."""

    def write(compiler, instructions, flags, to):
        building.append(compiler)
        to.write_bytes(b"a library")
        return to

    monkeypatch.setenv("CXX", "instant")
    for room in (module, build):
        monkeypatch.setattr(room, "compile_library", write)
    return building


@pytest.fixture
def loading(building, monkeypatch):
    """The libraries that were loaded, each with its size then; nothing of them runs."""
    loaded = []
    monkeypatch.setattr(module, "Kernels", lambda path, dtype: loaded.append((path, path.stat().st_size, dtype)))
    return loaded


def test_they_are_built_once_a_machine(instant, loading, tmp_path):
    for _ in range(2):
        kernels.__wrapped__(torch.bfloat16)
    first, second = loading
    assert first == second
    assert first[1:] == (len(b"a library"), torch.bfloat16)
    assert list((tmp_path / "cache" / "bertray" / "kernels").iterdir()) == [first[0]]
    assert instant == [["instant"]]


@pytest.mark.parametrize("is_installed", [True, False])
def test_those_in_fp32_are_loaded_as_such(instant, loading, monkeypatch, is_installed):
    monkeypatch.setattr(module, "_supported", lambda: ["avx512bf16", "avx2"])
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    if is_installed:
        build.build_all()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        kernels.__wrapped__(dtype)
    (of_fp32, _, fp32), (of_bf16, _, bf16) = loading
    assert (fp32, bf16) == (torch.float32, torch.bfloat16)
    assert of_fp32 != of_bf16
    assert of_fp32.name.startswith("avx2-") == of_bf16.name.startswith("avx512bf16-") == is_installed


def test_what_another_has_built_needs_no_compiler_and_no_right_to_write(instant, loading, monkeypatch):
    kernels.__wrapped__(torch.bfloat16)
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("nothing is written"))
    kernels.__wrapped__(torch.bfloat16)
    assert loading[0] == loading[1]


@pytest.mark.parametrize("fault", ["a library that others can write", "a folder that others can write", "a link"])
def test_a_library_that_another_user_may_have_put_there_is_not_loaded(instant, loading, tmp_path, caplog, fault):
    kernels.__wrapped__(torch.bfloat16)
    library = loading[0][0]
    if fault == "a link":
        library.rename(tmp_path / "planted.so")
        library.symlink_to(tmp_path / "planted.so")
    else:
        (library if "library" in fault else library.parent).chmod(0o777)
    kernels.__wrapped__(torch.bfloat16)
    assert loading[1][0] != library
    assert len(instant) == 2
    assert "is a link" in caplog.text if fault == "a link" else "can be written by others" in caplog.text


def test_a_library_of_another_owner_is_not_loaded(instant, loading, monkeypatch, caplog):
    kernels.__wrapped__(torch.bfloat16)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    kernels.__wrapped__(torch.bfloat16)
    assert loading[1][0] != loading[0][0]
    assert "this is user 12345" in caplog.text


def test_where_there_is_no_home_to_write_to_they_are_built_for_the_process(instant, loading, tmp_path):
    (tmp_path / "cache").write_text("a file, in which no folder can be")
    kernels.__wrapped__(torch.bfloat16)
    ((path, size, _),) = loading
    assert size > 0
    assert tmp_path not in path.parents
    assert not path.exists()


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
def test_their_source_has_no_warnings(instructions):
    # gcc takes what its own header leaves undefined on purpose for a mistake of whoever includes it.
    strict = ["-Wall", "-Wextra", "-Werror", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-o", "/dev/null"]
    sources = map(str, build.source_of(instructions))
    done = subprocess.run(
        ["g++", *flags_of(instructions), *strict, *sources], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_compiler_torch_does_without_them(building, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert kernels.__wrapped__(torch.bfloat16) is None
    assert "more slowly: BERTRAY_KERNELS=build, but there is no C++ compiler" in caplog.text
    assert building == []


def test_a_compiler_that_fails_is_told_of_and_torch_does_without(building, monkeypatch, caplog, tmp_path):
    compiler = failing_compiler(tmp_path)
    monkeypatch.setenv("CXX", str(compiler))
    assert kernels.__wrapped__(torch.bfloat16) is None
    assert "The model runs without our kernels, more slowly: this is no compiler" in caplog.text
    assert building == [[str(compiler)]]


def failing_compiler(folder: Path) -> Path:
    compiler = folder / "compiler"
    compiler.write_text("#!/bin/sh\necho 'this is no compiler' >&2\nexit 3\n")
    compiler.chmod(0o755)
    return compiler


@pytest.mark.parametrize("value", ["off", "0", "False"])
def test_the_environment_turns_them_off(instant, loading, monkeypatch, value):
    build.build_all()
    instant.clear()
    monkeypatch.setenv("BERTRAY_KERNELS", value)
    assert kernels.__wrapped__(torch.bfloat16) is None
    assert (instant, loading) == ([], [])


# --- as bertray is installed -----------------------------------------------------------------------------------------


def test_an_installation_builds_a_library_for_each_instruction_set_and_no_process_another(
    instant, loading, monkeypatch, tmp_path
):
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "amx-0123456789abcdef.so").write_bytes(b"of another version")
    libraries, why_not = build.build_all()
    assert why_not == ""
    assert [library.name.split("-")[0] for library in libraries] == list(INSTRUCTION_SETS)
    assert sorted((tmp_path / "libraries").iterdir()) == sorted(libraries)
    assert build.build_all() == (libraries, "")
    assert len(instant) == len(libraries)
    for value in ("", "build"):
        monkeypatch.setenv("BERTRAY_KERNELS", value)
        kernels.__wrapped__(torch.bfloat16)
    assert [path.name for path, *_ in loading] == [build.library_of("avx512bf16").name] * 2
    assert len(instant) == len(libraries)
    assert not (tmp_path / "cache").exists()


def test_a_library_of_another_source_is_not_loaded_and_no_cache_is_read(instant, loading, monkeypatch, caplog):
    kernels.__wrapped__(torch.bfloat16)  # into the cache
    build.build_all()
    monkeypatch.setattr(build, "digest_of", lambda *_: "as of another version")
    monkeypatch.setenv("BERTRAY_KERNELS", "")
    assert kernels.__wrapped__(torch.bfloat16) is None
    assert len(loading) == 1
    assert "they were not compiled when bertray was installed. Install it again" in caplog.text


def test_a_compiler_that_knows_one_instruction_set_builds_that(instant, monkeypatch):
    write = build.compile_library

    def write_without_tiles(compiler, instructions, flags, to):
        if "-mamx-tile" in flags:
            raise subprocess.CalledProcessError(1, compiler, stderr="unrecognized option '-mamx-tile'.")
        return write(compiler, instructions, flags, to)

    monkeypatch.setattr(build, "compile_library", write_without_tiles)
    libraries = [build.library_of(name) for name in ("avx512bf16", "avx512vnni", "avx2")]
    assert build.build_all() == (libraries, "unrecognized option '-mamx-tile'")


@pytest.mark.parametrize("fault", ["no compiler", "a compiler that fails", "no right to write"])
def test_an_installation_goes_on_without_them(building, monkeypatch, tmp_path, fault):
    if fault == "no compiler":
        monkeypatch.setattr(shutil, "which", lambda _: None)
        expected = "there is no C++ compiler"
    elif fault == "a compiler that fails":
        monkeypatch.setenv("CXX", str(failing_compiler(tmp_path)))
        expected = "this is no compiler"
    else:
        (tmp_path / "libraries").write_text("a file, in which no library can be")
        expected = "File exists"
    libraries, why_not = build.build_all()
    assert libraries == []
    assert expected in why_not
