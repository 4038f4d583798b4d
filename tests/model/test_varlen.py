"""Scoring on a GPU as far as a machine without one shows it: the flash kernel's reference, and ways without it."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounterWithBackend

from bertray.errors import ConfigError
from bertray.model import backend, fused, varlen
from bertray.model import engine as engine_module
from bertray.model.backend import made_up_sequences
from bertray.model.engine import Engine, choose_dtype, cuda_tokens_per_pack
from bertray.model.pooling import ClassifierReadout, PooledReadout
from bertray.model.tokenization import Sequences
from bertray.model.varlen import takes_varlen
from tests.gpu_stand_ins import flash_on_cpu
from tests.model.test_engine import PACKED, mixed_sequences, transformers_logits

CUDA = torch.device("cuda")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def gpu(monkeypatch, *, sm: tuple[int, int], multiprocessors: int = 132) -> None:
    """As if this process saw a GPU of that kind."""
    properties = type("Properties", (), {"multi_processor_count": multiprocessors, "total_memory": 24 << 30})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: sm)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)


def takes_packed_input(model: Engine) -> bool:
    inner: Any = model._backend
    return bool(inner._encoder.varlen)


@pytest.mark.parametrize(
    ("sm", "dtype", "head_size", "takes"),
    [
        ((8, 0), torch.bfloat16, 64, True),
        ((9, 0), torch.float16, 32, True),
        ((8, 9), torch.bfloat16, 256, True),
        ((7, 5), torch.float16, 64, False),  # T4
        ((9, 0), torch.float32, 64, False),
        ((9, 0), torch.bfloat16, 26, False),  # rubert-tiny
        ((9, 0), torch.bfloat16, 264, False),
    ],
)
def test_varlen_attention_is_for_ampere_and_later_in_16_bit_and_heads_of_eights(
    monkeypatch, sm, dtype, head_size, takes
):
    gpu(monkeypatch, sm=sm)
    assert takes_varlen(CUDA, dtype, head_size) is takes
    assert not takes_varlen(torch.device("cpu"), dtype, head_size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_size", [6, 26, 264])
def test_flash_reference_refuses_heads_as_the_kernel_does(dtype, head_size):
    q_THE = torch.zeros(4, 2, head_size, dtype=dtype)
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    with flash_on_cpu(), pytest.raises(RuntimeError, match="head"):
        varlen.varlen_attention(q_THE, q_THE, q_THE, bounds, bounds, 4, 4)


@pytest.mark.parametrize("family", PACKED)
def test_flash_logits_of_each_family_are_near_those_of_transformers(make_classifier, family):
    folder, seqs = make_classifier(family, 3), mixed_sequences()
    with flash_on_cpu():
        model = Engine(folder, precision="bf16")
        assert (model.packed, takes_packed_input(model)) == (True, True)
        found = model.logits(seqs)
    expected = transformers_logits(folder, seqs)
    # bf16 has three digits, and these weights are far from usual ones: a tenth of the largest logit is the bound.
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9


def test_varlen_is_left_for_groups_where_the_head_size_is_no_multiple_of_8(make_classifier):
    folder, seqs = make_classifier("bert", 2, hidden_size=24), mixed_sequences()
    with flash_on_cpu():
        model = Engine(folder, precision="bf16")
        assert (model.packed, takes_packed_input(model)) == (True, False)
        found = model.logits(seqs)
    expected = transformers_logits(folder, seqs)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_a_flash_kernel_that_fails_is_told_in_one_line_and_groups_take_its_place(make_classifier, caplog):
    folder = make_classifier("bert", 2, hidden_size=24)  # which the kernel refuses
    with flash_on_cpu(lambda device, dtype, head: dtype != torch.float32), caplog.at_level(logging.WARNING, "bertray"):
        model = Engine(folder, precision="bf16")
    assert (model.packed, takes_packed_input(model)) == (True, False)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == (
        f"{folder}: attention in groups of sequences, more slowly: with the flash kernel its packed forward pass on "
        "cpu in torch.bfloat16 fails (head_size should be a multiple of 8)."
    )


@pytest.mark.parametrize("error", [TypeError("unexpected keyword argument 'scale'"), ImportError("no varlen_attn")])
def test_a_flash_kernel_that_another_torch_calls_in_another_way_leaves_groups(
    make_classifier, monkeypatch, caplog, error
):
    def other(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", other)
    with flash_on_cpu(), caplog.at_level(logging.WARNING, "bertray"):
        model = Engine(make_classifier("bert", 2), precision="bf16")
    assert (model.packed, takes_packed_input(model)) == (True, False)
    assert f"on cpu in torch.bfloat16 fails ({error})." in caplog.text


def test_a_device_on_which_nothing_packed_runs_gets_padded_batches(make_classifier, monkeypatch, caplog):
    from bertray.model.encoders import PackedEncoder

    def fails(self, layer, x_TD, pack):
        if self.dtype == torch.bfloat16:
            raise RuntimeError("no kernel image is available for execution on the device")
        return attend(self, layer, x_TD, pack)

    attend = PackedEncoder._attend
    monkeypatch.setattr(PackedEncoder, "_attend", fails)
    folder, seqs = make_classifier("bert", 2), mixed_sequences()
    with flash_on_cpu(), caplog.at_level(logging.WARNING, "bertray"):
        model = Engine(folder, precision="bf16")
    assert not model.packed
    assert "runs padded, more slowly: its packed forward pass on cpu in torch.bfloat16 fails (no kernel" in caplog.text
    expected = transformers_logits(folder, seqs)
    assert np.abs(model.logits(seqs) - expected).max() < 0.1 * np.abs(expected).max()


def test_a_padded_model_that_is_far_off_in_16_bit_computes_in_fp32(make_classifier, monkeypatch, caplog):
    monkeypatch.setattr(backend, "_16_BIT_TOLERANCE", 1e-6)
    with caplog.at_level(logging.WARNING, "bertray"):
        model = Engine(make_classifier("deberta-v2", 2), precision="bf16")
    assert model.dtype == torch.float32
    assert "computed in fp32: in torch.bfloat16 its logits differ by" in caplog.text


@pytest.mark.parametrize("readout", [ClassifierReadout(), PooledReadout("mean")], ids=["logits", "vectors"])
def test_sequences_that_overflow_fp16_are_computed_in_fp32_on_varlen_and_others_are_not(
    make_classifier, monkeypatch, caplog, tmp_path, readout
):
    """The embedding of one token is beyond fp16, and its norm brings it back; the self-check does not meet it."""
    made_up = set(made_up_sequences(900, 40).ids_T.tolist())
    large, usual = sorted(set(range(900)) - made_up)[:2]
    folder = shutil.copytree(make_classifier("bert", 3, vocab_size=900), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][large] *= 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids = [[usual] * 5, [usual, large, usual], [large], [usual] * 7]
    lens = np.array([len(row) for row in ids])
    seqs = Sequences(np.concatenate(ids), lens, np.zeros(4, np.int32), np.arange(4), 4)
    expected = Engine(folder, precision="fp32", readout=readout)
    monkeypatch.setattr(engine_module, "choose_dtype", lambda precision, device: DTYPES[precision])
    with flash_on_cpu(), caplog.at_level(logging.WARNING, "bertray"):
        model = Engine(folder, precision="fp16", readout=readout)
        assert (model.precision, takes_packed_input(model)) == ("fp16", True)
        found = model.logits(seqs)
        wanted = expected.logits(seqs)
        np.testing.assert_allclose(found[[1, 2]], wanted[[1, 2]], atol=1e-4)  # fp32, in packs of another size
        np.testing.assert_array_equal(model.logits(seqs), found)
        assert 1e-4 < np.abs(found - wanted)[[0, 3]].max() < 0.05 * np.abs(wanted).max()  # fp16
        if isinstance(readout, PooledReadout):
            vectors_TD = model.token_vectors(seqs)
            of_large = np.repeat(np.isin(np.arange(4), [1, 2]), lens)
            np.testing.assert_allclose(vectors_TD[of_large], expected.token_vectors(seqs)[of_large], atol=1e-4)
            assert np.isfinite(vectors_TD).all()
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: some reviews overflow fp16; these are computed in fp32."
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler, about itself
@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_fused_kernels_beside_varlen_give_the_logits_of_transformers_by_one_graph(make_classifier, monkeypatch, family):
    """Compiled by inductor for this CPU, as Triton compiles them for a GPU."""
    counter = CompileCounterWithBackend("inductor")
    monkeypatch.setattr(backend, "fuses", lambda device, dtype: True)
    monkeypatch.setattr(backend, "compiled_add_norm", lambda: fused.compiled_add_norm(counter))
    folder, seqs = make_classifier(family, 3), mixed_sequences()
    with flash_on_cpu():
        model = Engine(folder, precision="bf16", max_tokens_per_pack=130)
        inner: Any = model._backend
        assert (type(inner._encoder._layers[0].up), inner._encoder.varlen) == (fused.GeluLinear, True)
        found = model.logits(seqs)
    sizes = {(pack.num_slots, len(pack.lens_B)) for pack in model._packs(seqs)}
    assert len(sizes) > 5
    assert all(min(size) > 1 for size in sizes)  # a size of one is a graph of its own
    assert counter.frame_count == 1
    expected = transformers_logits(folder, seqs)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_fused_kernels_that_cannot_be_compiled_are_left_out_beside_varlen_and_a_line_says_so(
    make_classifier, monkeypatch, caplog
):
    def fails(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(backend, "fuses", lambda device, dtype: True)
    monkeypatch.setattr(backend, "compiled_add_norm", lambda: fails)
    folder, seqs = make_classifier("bert", 3), mixed_sequences()
    with flash_on_cpu(), caplog.at_level(logging.WARNING, "bertray"):
        plain = Engine(folder, precision="bf16")
        assert (plain.packed, takes_packed_input(plain)) == (True, True)
        found = plain.logits(seqs)
        monkeypatch.setattr(backend, "fuses", fused.fuses)
        np.testing.assert_array_equal(found, Engine(folder, precision="bf16").logits(seqs))
    (line,) = (record.getMessage() for record in caplog.records)
    assert "without fused kernels: with them its packed forward pass on cpu in torch.bfloat16 fails (Failed" in line


def test_kernels_are_fused_where_they_are_asked_for_on_a_gpu_in_16_bit_beside_varlen(monkeypatch):
    def asked() -> list[bool]:
        ways = [
            (CUDA, torch.bfloat16),
            (CUDA, torch.float16),
            (CUDA, torch.float32),
            (torch.device("cpu"), torch.bfloat16),
        ]
        return [fused.fuses(*way) for way in ways]

    monkeypatch.delenv("BERTRAY_FUSED", raising=False)
    assert asked() == [False] * 4
    monkeypatch.setenv("BERTRAY_FUSED", "1")
    assert asked() == [True, True, False, False]


@pytest.mark.parametrize(
    ("sm", "expected"), [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), None)]
)
def test_auto_is_bf16_from_ampere_on_fp16_on_older_tensor_cores_else_fp32(monkeypatch, sm, expected):
    gpu(monkeypatch, sm=sm)
    assert choose_dtype("auto", CUDA) == (expected or torch.float32)
    assert choose_dtype("fp16", CUDA) == torch.float16
    assert choose_dtype("fp32", CUDA) == torch.float32


def test_bf16_on_a_gpu_without_it_and_fp16_on_a_cpu_are_errors_of_the_configuration(monkeypatch):
    gpu(monkeypatch, sm=(7, 5))
    with pytest.raises(ConfigError, match=r"precision=bf16: expected a GPU that computes in it .*, found sm75\."):
        choose_dtype("bf16", CUDA)
    with pytest.raises(ConfigError, match=r"precision=fp16: expected a GPU, found cpu\."):
        choose_dtype("fp16", torch.device("cpu"))


def test_the_number_format_is_that_of_the_gpu_that_is_asked_for_not_of_the_current_one(monkeypatch):
    kinds = {None: (9, 0), 0: (9, 0), 1: (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: kinds[torch.device(device).index])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)  # of the current one
    assert [choose_dtype("auto", torch.device(f"cuda:{number}")) for number in (0, 1)] == [
        torch.bfloat16,
        torch.float16,
    ]
    with pytest.raises(ConfigError, match="found sm75"):
        choose_dtype("bf16", torch.device("cuda:1"))


@pytest.mark.parametrize(("multiprocessors", "tokens"), [(132, 65536), (108, 32768), (58, 16384), (40, 16384)])
def test_a_smaller_gpu_gets_smaller_packs(monkeypatch, multiprocessors, tokens):
    gpu(monkeypatch, sm=(8, 0), multiprocessors=multiprocessors)
    assert cuda_tokens_per_pack(CUDA) == tokens
