"""The packed encoder on a CUDA device that is not there: no step of it may wait for the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bertray.model.bundle import HEAD_FILE, HeadForm
from bertray.model.encoders import PackedEncoder, PackTensors
from bertray.model.packing import plan_packs
from bertray.model.pooling import ClassifierReadout, LinearReadout, PooledReadout
from tests.gpu_stand_ins import fake_cuda, on_fake_cuda
from tests.model.test_engine import PACKED, mixed_sequences

CUDA = torch.device("cuda")
pytestmark = pytest.mark.slow  # the first fake tensor of a process imports for seconds; test_varlen.py is its sibling


def pack_of(encoder: PackedEncoder) -> PackTensors:
    seqs = mixed_sequences()
    (pack,) = plan_packs(seqs.lens_S, max_tokens_per_pack=1 << 20)
    return encoder.to_tensors(pack, seqs, np.cumsum(seqs.lens_S) - seqs.lens_S)


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("reads", ["first_tokens", "means", "tokens"])
def test_a_pack_on_fake_cuda_needs_no_synchronization(make_classifier, family, reads):
    model = ClassifierReadout().load(make_classifier(family, 3))
    with fake_cuda() as gpu:
        encoder = PackedEncoder(model, torch.bfloat16, CUDA)
        assert encoder.varlen
        pack = pack_of(encoder)
        gpu.reset()
        out = getattr(encoder, reads)(pack)
    assert out.device.type == "cuda"
    assert gpu.to_host == 0


def test_calls_a_pack_on_fake_cuda_are_few_and_do_not_grow_with_its_sequences(make_classifier):
    """Launches are what a small model costs on a GPU: some ten a layer, on any number of sequences."""
    model = ClassifierReadout().load(make_classifier("bert", 3))
    counts = {}
    with fake_cuda() as gpu:
        for dtype in (torch.bfloat16, torch.float32):
            encoder = PackedEncoder(model, dtype, CUDA)
            pack = pack_of(encoder)
            gpu.reset()
            encoder.first_tokens(pack)
            counts[dtype] = gpu.num_calls
    num_layers = 3
    assert counts[torch.bfloat16] <= 4 + 12 * num_layers
    assert counts[torch.float32] > 2 * counts[torch.bfloat16]  # in groups


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooled_vectors_on_fake_cuda_need_no_synchronization(make_classifier, pooling):
    readout = PooledReadout(pooling)
    model = readout.load(make_classifier("bert", 3))
    with fake_cuda() as gpu:
        encoder = PackedEncoder(model, torch.bfloat16, CUDA, reads=readout.reads)
        pack = pack_of(encoder)
        gpu.reset()
        assert readout.packed(model, encoder, pack).shape[0] == len(pack.first_tokens_B)
    assert gpu.to_host == 0


def test_the_constant_of_a_head_that_leaves_the_encoder_out_stays_on_the_host_beside_fake_cuda(tmp_path):
    bias_C = torch.tensor([0.5, -0.5])
    save_file({"weight": torch.zeros(2, 0), "bias": bias_C}, tmp_path / HEAD_FILE)
    readout = LinearReadout(tmp_path, HeadForm("mean", with_terms=True))
    with fake_cuda():
        assert readout._finished(torch.zeros(3, 32, device=CUDA)).device.type == "cuda"
    assert readout.constant_C is not None
    np.testing.assert_array_equal(readout.constant_C.numpy(), bias_C.numpy())


def test_a_head_of_aspect_attention_on_fake_cuda_needs_no_synchronization(make_classifier):
    from bertray.model.aspect_attention import AspectAttention

    model = ClassifierReadout().load(make_classifier("bert", 3))
    with fake_cuda() as gpu:
        head = AspectAttention(32, 3)
        on_fake_cuda(head)
        encoder = PackedEncoder(model, torch.bfloat16, CUDA)
        pack = pack_of(encoder)
        gpu.reset()
        lens_B = torch.diff(pack.first_tokens_B, append=pack.end_1)
        with torch.no_grad():  # a build for CPUs has no autograd of CUDA
            assert head(encoder.tokens(pack), lens_B, pack.second_lens_B).device.type == "cuda"
    assert gpu.to_host == 0


def test_a_wait_on_fake_cuda_is_found_as_a_synchronization():
    """The stand-in itself: what waits for numbers of the device raises or is counted."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    with fake_cuda() as gpu:
        lens_B = torch.ones(3, dtype=torch.int64, device=CUDA)
        with pytest.raises(DynamicOutputShapeException):
            torch.repeat_interleave(torch.arange(3, device=CUDA), lens_B)
        with pytest.raises(DataDependentOutputException):
            lens_B.sum().item()
        lens_B.cpu()
    assert gpu.to_host == 1


def test_one_graph_of_dynamo_takes_packs_of_all_shapes_with_varlen(make_classifier):
    """A compiler's graph for each ragged pack would cost seconds each."""
    from torch._dynamo.testing import CompileCounter

    from tests.gpu_stand_ins import flash_on_cpu

    model = ClassifierReadout().load(make_classifier("bert", 3))
    with flash_on_cpu(), torch.inference_mode():
        encoder = PackedEncoder(model, torch.bfloat16, torch.device("cpu"))
        counter = CompileCounter()
        compiled = torch.compile(encoder.first_tokens, backend=counter, dynamic=True)
        seqs = mixed_sequences()
        starts_S = np.cumsum(seqs.lens_S) - seqs.lens_S
        packs = plan_packs(seqs.lens_S, max_tokens_per_pack=130)
        assert len({(len(pack.lens_B), pack.num_slots) for pack in packs}) > 5
        for pack in packs:
            tensors = encoder.to_tensors(pack, seqs, starts_S)
            torch.testing.assert_close(compiled(tensors), encoder.first_tokens(tensors), atol=0.1, rtol=0.1)
    assert counter.frame_count == 1
