"""Our kernels for AMX: what torch computes in fp32, but for rounding; built once, done without where they cannot be."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bertray.model import kernels as module
from bertray.model.engine import Engine
from bertray.model.kernels import TiledLinear, fits, kernels
from bertray.model.pooling import PooledReadout
from bertray.model.tokenization import Sequences

turned_off = os.environ.get("BERTRAY_KERNELS", "").lower() in ("off", "0", "false")
needs_tiles = pytest.mark.skipif(
    turned_off or not module._supported(), reason="this CPU has no AMX, or BERTRAY_KERNELS is off"
)
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or not shutil.which("g++"),
    reason="no g++ for x86-64 on Linux here",
)
ROUNDING = 0.004  # of bf16 and its products, in proportion to the whole


@pytest.fixture
def ours():
    found = kernels()
    assert found is not None, "AMX is here, but the kernels could not be built"
    return found


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


@needs_tiles
@pytest.mark.parametrize(("num_heads", "head"), [(12, 32), (12, 64), (3, 96), (2, 128)])
def test_attention_within_sequences_of_any_length(ours, num_heads, head):
    torch.manual_seed(0)
    bounds = torch.tensor(np.cumsum([0, *LENGTHS]), dtype=torch.int32)
    qkv = (2 * torch.randn(int(bounds[-1]), 3, num_heads, head)).bfloat16()
    found = ours.attention(*qkv.unbind(1), bounds, bounds)
    assert distance(found, attention_of(*qkv.unbind(1), bounds, bounds)) < ROUNDING


@needs_tiles
def test_attention_of_first_tokens_alone(ours):
    torch.manual_seed(0)
    bounds = torch.tensor(np.cumsum([0, *LENGTHS]), dtype=torch.int32)
    kv = torch.randn(int(bounds[-1]), 2, 12, 32).bfloat16()
    q = torch.randn(len(LENGTHS), 12, 32).bfloat16()
    ones = torch.arange(len(LENGTHS) + 1, dtype=torch.int32)
    found = ours.attention(q, *kv.unbind(1), ones, bounds)
    assert distance(found, attention_of(q, *kv.unbind(1), ones, bounds)) < ROUNDING


@needs_tiles
def test_attention_to_one_key_far_above_the_others_is_its_value(ours):
    q, k, v = (torch.randn(40, 1, 32).bfloat16() for _ in range(3))
    q[:], k[:], k[33] = 1, -100, 100
    bounds = torch.tensor([0, 40], dtype=torch.int32)
    assert torch.equal(ours.attention(q, k, v, bounds, bounds), v[33].expand(40, 32))


@needs_tiles
def test_what_is_not_finite_stays_in_its_own_sequence(ours):
    torch.manual_seed(0)
    bounds = torch.tensor(np.cumsum([0, 17, 40, 9]), dtype=torch.int32)
    qkv = torch.randn(66, 3, 2, 32).bfloat16()
    without = ours.attention(*qkv.unbind(1), bounds, bounds)
    poisoned = qkv.clone()
    poisoned[30, 1, 0, 5] = float("nan")
    found = ours.attention(*poisoned.unbind(1), bounds, bounds)
    assert not found[17:57, :32].isfinite().any()
    others = [*range(17), *range(57, 66)]
    assert torch.equal(found[others], without[others])


# --- linear layers ---------------------------------------------------------------------------------------------------


@needs_tiles
@pytest.mark.parametrize("inputs", [64, 384, 672])  # the last in turns of 256, 256 and 160
@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33, 128, 200, 900])
def test_a_linear_layer_for_any_number_of_tokens(ours, num_tokens, inputs):
    torch.manual_seed(0)
    weight, bias = torch.randn(96, inputs).bfloat16(), torch.randn(96)
    x = torch.randn(num_tokens, inputs).bfloat16()
    expected = F.linear(x.float(), weight.float(), bias)
    assert distance(ours.linear(x, TiledLinear.of(weight, bias)), expected) < ROUNDING


@needs_tiles
@pytest.mark.parametrize(("hidden", "inner"), [(64, 160), (96, 64), (416, 992)])
@pytest.mark.parametrize("num_tokens", [1, 31, 200, 1300])
def test_a_layer_behind_attention(ours, num_tokens, hidden, inner):
    torch.manual_seed(0)
    sizes = ((hidden, hidden), (inner, hidden), (hidden, inner))
    weights = [(torch.randn(size) / size[1] ** 0.5).bfloat16() for size in sizes]
    biases = [torch.randn(size[0]) for size in sizes]
    norms = [torch.nn.LayerNorm(hidden, eps=1e-3) for _ in range(2)]
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    attended, x = (torch.randn(num_tokens, hidden).bfloat16() for _ in range(2))
    attended_linear, up, down = (TiledLinear.of(*pair) for pair in zip(weights, biases, strict=True))
    with torch.inference_mode():
        found = ours.feed_forward(attended_linear, norms[0], up, down, norms[1])(attended, x)
        linear = [
            lambda x, pair=pair: F.linear(x, pair[0].float(), pair[1]) for pair in zip(weights, biases, strict=True)
        ]
        y = norms[0](linear[0](attended.float()) + x.float())
        expected = norms[1](linear[2](F.gelu(linear[1](y))) + y)
    assert distance(found, expected) < ROUNDING


@needs_tiles
@pytest.mark.parametrize(("num_heads", "head"), [(3, 32), (2, 64), (7, 96)])
@pytest.mark.parametrize("lens", [[1], [5, 40, 1, 31, 32, 33, 64], [700, 3, 3], [30] * 60])
def test_attention_with_the_linear_layer_before_it(ours, num_heads, head, lens):
    torch.manual_seed(0)
    hidden = num_heads * head
    parts = [(torch.randn(hidden, hidden) / hidden**0.5, torch.randn(hidden)) for _ in range(3)]
    by_head = [
        torch.cat([p.unflatten(0, (num_heads, head)) for p in kind], 1).flatten(0, 1)
        for kind in zip(*parts, strict=True)
    ]
    bounds = torch.tensor(np.cumsum([0, *lens]), dtype=torch.int32)
    x = torch.randn(sum(lens), hidden).bfloat16()
    found = ours.self_attention(TiledLinear.of(by_head[0], by_head[1]), num_heads)(x, bounds)
    apart = [ours.linear(x, TiledLinear.of(*part)).view(-1, num_heads, head) for part in parts]
    assert torch.equal(found, ours.attention(*apart, bounds, bounds))


@needs_tiles
def test_the_threads_make_no_difference(ours, monkeypatch):
    torch.manual_seed(0)
    layer, x = TiledLinear.of(torch.randn(64, 64).bfloat16(), torch.randn(64)), torch.randn(333, 64).bfloat16()
    several = ours.linear(x, layer)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert torch.equal(ours.linear(x, layer), several)


# --- in the engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A classifier of sizes that fit tiles, by family."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    def make(family: str) -> Path:
        names = {"distilbert": {"dim": 64, "n_heads": 2, "n_layers": 2, "hidden_dim": 96}}
        usual = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 96}
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


@needs_tiles
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "albert"])
def test_every_family_is_computed_by_them(models, family):
    folder, seqs = models(family), some_sequences()
    engine = Engine(folder)
    assert engine.own_kernels
    np.testing.assert_allclose(engine.logits(seqs), Engine(folder, precision="fp32").logits(seqs), atol=0.02)


@needs_tiles
def test_what_a_review_gets_does_not_depend_on_those_beside_it(models):
    seqs = some_sequences()
    engine = Engine(models("bert"), readout=PooledReadout())
    together = engine.token_vectors(seqs)
    ends = np.cumsum(seqs.lens_S)
    for number in (0, 7, 39):
        start, stop = ends[number] - seqs.lens_S[number], ends[number]
        alone = of_lengths(seqs.ids_T[start:stop], seqs.lens_S[number : number + 1])
        assert np.array_equal(engine.token_vectors(alone), together[start:stop]), number


@needs_tiles
def test_kernels_that_compute_something_else_are_not_used(models, monkeypatch, caplog):
    from safetensors.torch import load_file, save_file

    folder, seqs = models("bert"), some_sequences()
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 100  # what nobody trained hardly tells sequences apart
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    right = module.Kernels.attention
    monkeypatch.setattr(module.Kernels, "attention", lambda *given: right(*given).roll(1, dims=1) * 100)
    with caplog.at_level(logging.WARNING):
        engine = Engine(folder)
    assert not engine.own_kernels
    assert engine.packed
    assert "Our kernels are not used: their logits differ" in caplog.text
    np.testing.assert_allclose(engine.logits(seqs), Engine(folder, precision="fp32").logits(seqs), atol=0.1)


@needs_tiles
def test_a_model_of_other_sizes_goes_without(make_classifier):
    assert not Engine(make_classifier("bert", 2), precision="bf16").own_kernels


def test_sizes_that_fit():
    assert fits(384, 1536, 32)
    assert fits(768, 3072, 64)
    assert not fits(300, 1200, 32)
    assert not fits(384, 1500, 32)
    assert not fits(384, 1536, 48)
    assert not fits(1024, 4096, 256)


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="no Linux on x86-64")
def test_what_linux_says_of_amx_is_what_torch_says():
    said = Path("/proc/cpuinfo").read_text().split()
    names = {"avx512_f": "avx512f", "avx512_bw": "avx512bw", "avx512_dq": "avx512dq", "avx512_vl": "avx512vl"}
    assert module._supported() == all(names.get(need, need) in said for need in module._NEEDS)


# --- building them ---------------------------------------------------------------------------------------------------


@pytest.fixture
def building(monkeypatch, tmp_path):
    """As on a machine with AMX and an empty cache; gives the compilers that were called."""
    called = []
    compile_ = module._compile

    def compile_and_tell(compiler, sources, to):
        called.append(compiler)
        return compile_(compiler, sources, to)

    monkeypatch.setattr(module, "_supported", lambda: True)
    monkeypatch.setattr(module, "_compile", compile_and_tell)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("BERTRAY_KERNELS", raising=False)
    return called


@pytest.fixture
def instant(building, monkeypatch):
    """As `building`, with a compiler that takes no time."""

    def write(compiler, sources, to):
        building.append(compiler)
        to.write_bytes(b"a library")
        return to

    monkeypatch.setattr(module, "_compile", write)
    return building


@pytest.fixture
def loading(building, monkeypatch):
    """The libraries that were loaded, each with its size then; nothing of them runs."""
    loaded = []
    monkeypatch.setattr(module, "Kernels", lambda path: loaded.append((path, path.stat().st_size)))
    return loaded


@needs_compiler
def test_they_are_built_once_a_machine(building, loading, tmp_path):
    compiler = [shutil.which("g++")]
    for _ in range(2):
        module._loaded(compiler)
    first, second = loading
    assert first == second
    assert first[1] > 0
    assert list((tmp_path / "cache" / "bertray" / "kernels").iterdir()) == [first[0]]
    assert building == [compiler]


@needs_compiler
def test_what_another_has_built_needs_no_compiler_and_no_right_to_write(loading, monkeypatch):
    module._loaded([shutil.which("g++")])
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("nothing is written"))
    module._loaded(None)
    assert loading[0] == loading[1]


@pytest.mark.parametrize("fault", ["a library that others can write", "a folder that others can write", "a link"])
def test_a_library_that_another_user_may_have_put_there_is_not_loaded(instant, loading, tmp_path, caplog, fault):
    compiler = ["c++"]
    module._loaded(compiler)
    library = loading[0][0]
    if fault == "a link":
        library.rename(tmp_path / "planted.so")
        library.symlink_to(tmp_path / "planted.so")
    else:
        (library if "library" in fault else library.parent).chmod(0o777)
    module._loaded(compiler)
    assert loading[1][0] != library
    assert len(instant) == 2
    assert "is a link" in caplog.text if fault == "a link" else "can be written by others" in caplog.text


def test_a_library_of_another_owner_is_not_loaded(instant, loading, monkeypatch, caplog):
    compiler = ["c++"]
    module._loaded(compiler)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    module._loaded(compiler)
    assert loading[1][0] != loading[0][0]
    assert "this is user 12345" in caplog.text


@needs_compiler
def test_where_there_is_no_home_to_write_to_they_are_built_for_the_process(building, loading, tmp_path):
    (tmp_path / "cache").write_text("a file, in which no folder can be")
    module._loaded([shutil.which("g++")])
    ((path, size),) = loading
    assert size > 0
    assert tmp_path not in path.parents
    assert not path.exists()


@needs_compiler
def test_their_source_has_no_warnings():
    sources = sorted(Path(module.__file__).parent.glob("*.cpp"))
    # gcc takes what its own header leaves undefined on purpose for a mistake of whoever includes it.
    flags = ["-Wall", "-Wextra", "-Werror", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-o", "/dev/null"]
    done = subprocess.run(
        ["g++", *module._FLAGS, *flags, *map(str, sources)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_compiler_torch_does_without_them(building, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert kernels.__wrapped__() is None
    assert "No C++ compiler" in caplog.text
    assert building == []


def test_a_compiler_that_fails_is_told_of_and_torch_does_without(building, monkeypatch, caplog, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'this is no compiler' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with caplog.at_level(logging.WARNING):
        assert kernels.__wrapped__() is None
    assert "The model runs without our kernels for AMX, more slowly: this is no compiler" in caplog.text
    assert building == [[str(compiler)]]


@pytest.mark.parametrize("value", ["off", "0", "False"])
def test_the_environment_turns_them_off(building, monkeypatch, value):
    monkeypatch.setenv("BERTRAY_KERNELS", value)
    assert kernels.__wrapped__() is None
    assert building == []
