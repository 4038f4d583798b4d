"""Training as on a GPU: packed on the flash kernel's reference, prepared in a thread, in bf16 and in fp16."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import torch

from bertray.errors import Diverged, InfrastructureError
from bertray.io.store import LocalStore
from bertray.training import loss_scale
from bertray.training.checkpoint import load_latest
from bertray.training.contrast import Contrast, ContrastSettings
from bertray.training.examples import PretrainingSettings
from bertray.training.loop import Outcome, _Loop, run_loop
from bertray.training.masked_language import MaskedLanguage
from bertray.training.objectives import Classification, Objective
from bertray.training.packed import PackedModel
from tests.gpu_stand_ins import flash_on_cpu
from tests.training.test_loop import SETTINGS, examples, losses, settings

TEN_STEPS = {"epochs": 2, "batch_size": 9, "max_tokens_per_microbatch": None}  # 43 examples: five steps an epoch


@pytest.fixture
def on_gpu(monkeypatch):
    """Objectives on CPU take the ways of a GPU: packed by the device's kernels, steps prepared in a thread."""
    monkeypatch.setattr(Objective, "on_gpu", property(lambda self: True))
    monkeypatch.setattr(Objective, "pinned", lambda self, inputs: inputs)
    with flash_on_cpu():
        yield


@pytest.fixture
def still(make_classifier):
    return make_classifier("bert", 2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, vocab_size=60)


def ten_steps(folder, tmp_path, **training) -> Outcome:
    name = "-".join(["run", *map(str, training.values())])
    return run_loop(examples(tmp_path, 54), folder, 0, settings(**TEN_STEPS | training), LocalStore(tmp_path / name))


def padded_losses(folder, tmp_path, monkeypatch, **training) -> list[float]:
    with monkeypatch.context() as patch:
        patch.setattr(PackedModel, "of", lambda model, kernels_in: (None, "not today"))
        patch.setattr(Objective, "on_gpu", property(lambda self: False))
        return losses(ten_steps(folder, tmp_path, **training))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_of_ten_steps_on_varlen_are_near_those_of_padded_fp32(on_gpu, still, tmp_path, monkeypatch, precision):
    expected = np.array(padded_losses(still, tmp_path, monkeypatch))
    found = np.array(losses(ten_steps(still, tmp_path, precision=precision)))
    in_16_bit = np.array(padded_losses(still, tmp_path, monkeypatch, precision="bf16"))
    assert len(found) == len(expected) == 10
    assert expected[-1] < 0.8 * expected[0]
    # The bound of `bertray.benchmark.check` for bf16 against fp32, and no farther off than padded batches in bf16 are.
    assert np.abs(found - expected).max() < 5e-2
    assert np.abs(found - expected).mean() < 1.5 * np.abs(in_16_bit - expected).mean() + 1e-3


def test_varlen_gradients_are_as_near_to_fp32_as_padded_ones(on_gpu, still, tmp_path, monkeypatch):
    data = examples(tmp_path, 54)
    batch = data.train[:16]

    def gradient(precision: str, *, packed: bool) -> torch.Tensor:
        with monkeypatch.context() as patch:
            if not packed:
                patch.setattr(PackedModel, "of", lambda model, kernels_in: (None, "not today"))
            one = Classification(data, still, 0, settings(precision=precision), "cpu")
        one.net.eval()
        one.begin_step(batch, 0)
        one.loss(one.net, one.inputs(batch)).backward()
        named = {name.removeprefix("model."): p.grad for name, p in one.net.named_parameters() if p.grad is not None}
        return torch.cat([named[name].flatten() for name in sorted(named)])

    exact = gradient("fp32", packed=False)
    varlen, padded = (float((gradient("bf16", packed=way) - exact).norm() / exact.norm()) for way in (True, False))
    assert 0 < varlen < 1.2 * padded
    assert padded < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "training"),
    [
        (Classification, SETTINGS.training),
        (MaskedLanguage, PretrainingSettings(2, 5e-5, 8, 0.1, held_out_tokens=20)),
        (Contrast, ContrastSettings(1, 5e-5, 8, 0.1, steps=6)),
    ],
)
def test_varlen_steps_prepared_in_a_thread_are_those_prepared_in_line(
    on_gpu, tiny_encoder, tmp_path, monkeypatch, objective, training
):
    from dataclasses import replace

    wanted = replace(SETTINGS, training=replace(training, precision="bf16"), kept_epoch="last")
    data = examples(tmp_path)
    threaded = run_loop(data, tiny_encoder, 0, wanted, LocalStore(tmp_path / "threaded"), objective=objective)

    def in_line(self, steps, epoch):
        yield from (self._prepared(members, epoch) for members in steps)

    monkeypatch.setattr(_Loop, "_prepared_steps", in_line)
    plain = run_loop(data, tiny_encoder, 0, wanted, LocalStore(tmp_path / "plain"), objective=objective)
    assert losses(threaded) == losses(plain)
    assert threaded.validation_VK.tolist() == plain.validation_VK.tolist()


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "albert"])
def test_varlen_is_used_by_each_family_in_16_bit_and_not_with_dropout_of_attention(
    on_gpu, make_classifier, tmp_path, family
):
    dropping = {} if family == "distilbert" else {"attention_probs_dropout_prob": 0.1}  # its default has another name
    folder, data = make_classifier(family, 2, **dropping), examples(tmp_path)
    one = Classification(data, folder, 0, settings(precision="bf16"), "cpu")
    assert one.packed is not None
    assert one.packed.varlen
    assert one.net_inputs_of(data.train[:4]).groups == ()
    kept = Classification(data, folder, 0, settings(precision="bf16", attention_dropout=True), "cpu")
    assert (kept.packed is not None, kept.packed and kept.packed.varlen) == (True, False)
    assert not Classification(data, folder, 0, settings(precision="fp32"), "cpu").packed.varlen


def test_a_flash_kernel_that_fails_in_training_leaves_groups_and_says_so(
    make_classifier, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(Objective, "on_gpu", property(lambda self: True))
    folder, data = make_classifier("bert", 2, hidden_size=24), examples(tmp_path)  # heads of 6
    with flash_on_cpu(lambda device, dtype, head: dtype != torch.float32), caplog.at_level(logging.WARNING, "bertray"):
        one = Classification(data, folder, 0, settings(precision="bf16"), "cpu")
    assert one.packed is not None
    assert not one.packed.varlen
    assert (
        "trains with attention in groups, more slowly: with the flash kernel its packed forward or backward"
        in caplog.text
    )


def test_what_does_not_train_packed_on_varlen_or_in_groups_trains_padded_as_it_was(
    make_classifier, tmp_path, monkeypatch, on_gpu
):
    folder, data = make_classifier("bert", 2), examples(tmp_path)
    monkeypatch.setattr(PackedModel, "_why_not", lambda self, *_: "it fails")
    one = Classification(data, folder, 0, settings(precision="bf16"), "cpu")
    assert one.packed is None
    assert one.model.config._attn_implementation == "eager"  # on CPU in bf16
    assert [name for name, module in one.model.named_modules() if "forward" in vars(module)] == []


@pytest.mark.parametrize("error", [TypeError("unexpected keyword argument 'scale'"), ImportError("no varlen_attn")])
def test_a_flash_kernel_that_another_torch_calls_in_another_way_trains_in_groups(
    make_classifier, tmp_path, monkeypatch, on_gpu, caplog, error
):
    def other(*_, **__):
        raise error

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", other)
    with caplog.at_level(logging.WARNING, "bertray"):
        one = Classification(examples(tmp_path), make_classifier("bert", 2), 0, settings(precision="bf16"), "cpu")
    assert one.packed is not None
    assert not one.packed.varlen
    assert f"its packed forward or backward pass fails there ({error})" in caplog.text


# --- threads beside a GPU --------------------------------------------------------------------------------------------


class _SlowStore(LocalStore):
    """Takes a checkpoint only when training has gone on by two steps, or after ten seconds."""

    def __init__(self, root):
        super().__init__(root)
        self.went_on, self.waited = threading.Semaphore(0), []

    def put(self, key, value):
        if key == "checkpoints/step-00000002/model.safetensors":
            self.waited = [self.went_on.acquire(timeout=10) for _ in range(2)]
        super().put(key, value)


def test_beside_a_gpu_training_on_varlen_goes_on_while_a_checkpoint_and_a_report_are_written(on_gpu, still, tmp_path):
    store, data = _SlowStore(tmp_path / "slow"), examples(tmp_path, 54)
    told = []

    class Steps(_Loop):
        def _step(self, prepared, learning_rate):
            if self.progress.step == 2:
                self.settings.training.__dict__["checkpoint_every_s"] = 1e9
            if self.progress.step > 2:
                store.went_on.release()
            self._last_report = float("-inf")  # a second has passed
            return super()._step(prepared, learning_rate)

    def on_progress(state):
        told.append((state["step"], threading.current_thread() is threading.main_thread()))

    wanted = settings(**TEN_STEPS, precision="bf16", checkpoint_every_s=1e-9)
    outcome = Steps(data, still, 0, wanted, store, "cpu", on_progress).run()
    assert outcome.num_steps == 10
    assert store.waited == [True, True]
    assert told
    assert not any(in_main for _, in_main in told)
    assert [step for step, _ in told] == sorted(step for step, _ in told)


class _FullAtStep(LocalStore):
    def put(self, key, value):
        if key.startswith("checkpoints/step-00000003/"):
            raise OSError(28, "No space left on device")
        super().put(key, value)


def test_a_checkpoint_that_a_thread_cannot_write_beside_varlen_ends_the_run_at_the_next_one(on_gpu, still, tmp_path):
    often = settings(**TEN_STEPS, precision="bf16", checkpoint_every_s=1e-9)
    store = _FullAtStep(tmp_path / "full")
    with pytest.raises(InfrastructureError, match=r"the checkpoint of step 3 cannot be written: .*No space left"):
        run_loop(examples(tmp_path, 54), still, 0, often, store)
    kept = load_latest(store, "run")
    assert kept is not None
    assert kept.progress.step == 2


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [4, 7])
def test_a_run_on_varlen_that_is_killed_resumes_from_what_the_thread_wrote_with_equal_losses(
    on_gpu, still, tmp_path, killed_at
):
    """A checkpoint holds the weights as they were, not as later steps made them."""

    class Killed(_Loop):
        def _step(self, prepared, learning_rate):
            if self.progress.step == killed_at:
                raise KeyboardInterrupt
            return super()._step(prepared, learning_rate)

    often = settings(**TEN_STEPS, precision="bf16", checkpoint_every_s=1e-9)
    data, store = examples(tmp_path, 54), LocalStore(tmp_path / "killed")
    whole = run_loop(data, still, 0, often, LocalStore(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        Killed(data, still, 0, often, store, "cpu", None).run()
    resumed = run_loop(data, still, 0, often, store)
    assert resumed.resumed_from == killed_at
    assert losses(resumed) == losses(whole)
    assert resumed.validation_VK.tolist() == whole.validation_VK.tolist()


def test_no_thread_beside_varlen_outlives_a_run_that_diverges(on_gpu, still, tmp_path):
    class Infinite(Classification):
        def loss(self, net, inputs):
            return super().loss(net, inputs) / torch.zeros(())

    wanted = settings(**TEN_STEPS, precision="bf16")
    with pytest.raises(Diverged) as caught:
        run_loop(examples(tmp_path, 54), still, 0, wanted, LocalStore(tmp_path / "run"), objective=Infinite)
    assert caught.traceback  # which holds the frames of the run
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.partition("_")[0] in ("prepare", "report", "checkpoint")] == []


# --- fp16 ------------------------------------------------------------------------------------------------------------


def test_a_gradient_that_overflows_fp16_leaves_its_step_out_and_halves_the_scale(on_gpu, still, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 3)
    steps, real = [], _Loop._optimizer_step

    def noted(self, norm, scale):
        norm = float("inf") if len(steps) == 1 else norm
        before = [p.detach().clone() for p in self.raw_model.parameters()]
        real(self, norm, scale)
        moved = any(not torch.equal(p, old) for p, old in zip(self.raw_model.parameters(), before, strict=True))
        assert moved == bool(np.isfinite(norm))
        steps.append((moved, scale))

    monkeypatch.setattr(_Loop, "_optimizer_step", noted)
    store = LocalStore(tmp_path / "run")
    outcome = run_loop(examples(tmp_path, 54), still, 0, settings(**TEN_STEPS, precision="fp16"), store)
    scale, good = 2.0**16, 0
    for moved, used in steps:
        assert used == scale
        scale, good = (scale, good + 1) if moved else (scale / 2, 0)
        if good == 3:
            scale, good = scale * 2, 0
    assert [used for _, used in steps[:6]] == [2.0**16, 2.0**16, 2.0**15, 2.0**15, 2.0**15, 2.0**16]
    checkpoint = load_latest(store, "run")
    assert checkpoint is not None
    assert (checkpoint.progress.loss_scale, checkpoint.progress.scaled_steps) == (scale, good)
    assert np.isfinite(losses(outcome)).all()


def test_fp16_that_overflows_at_every_scale_is_told_as_diverged(on_gpu, still, tmp_path, monkeypatch):
    real = _Loop._optimizer_step
    monkeypatch.setattr(_Loop, "_optimizer_step", lambda self, norm, scale: real(self, float("inf"), scale))
    with pytest.raises(Diverged, match="the gradient is inf at step 17"):
        run_loop(
            examples(tmp_path, 54),
            still,
            0,
            settings(epochs=9, batch_size=9, precision="fp16"),
            LocalStore(tmp_path / "run"),
        )


def test_a_resumed_run_in_fp16_takes_the_same_steps(on_gpu, still, tmp_path):
    class Killed(Classification):
        begun = 0

        def begin_step(self, members, epoch):
            self.begun += 1
            if self.begun > 7:
                raise KeyboardInterrupt
            return super().begin_step(members, epoch)

    wanted = settings(**TEN_STEPS, precision="fp16")
    data = examples(tmp_path, 54)
    whole = run_loop(data, still, 0, wanted, LocalStore(tmp_path / "whole"))
    store = LocalStore(tmp_path / "resumed")
    with pytest.raises(KeyboardInterrupt):
        run_loop(data, still, 0, wanted, store, objective=Killed)
    resumed = run_loop(data, still, 0, wanted, store)
    assert resumed.resumed_from == 5
    assert losses(resumed) == losses(whole)


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gigabytes", "hidden", "layers", "expected"),
    [
        (143, 768, 12, 65_536),  # bert-base on an H200: the most
        (24, 768, 12, 18_497),  # on an L4: (24e9 - 20 * 109e6) / (128 * 12 * 768)
        (16, 1024, 24, 2_956),  # bert-large on a T4
        (4, 1024, 24, 2_048),  # the least
    ],
)
def test_tokens_of_a_pass_follow_the_memory_of_a_gpu_and_the_model(monkeypatch, gigabytes, hidden, layers, expected):
    from types import SimpleNamespace

    from bertray.training.objectives import default_max_tokens

    weights = {768: 109_000_000, 1024: 335_000_000}[hidden]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=gigabytes * 10**9))
    model = SimpleNamespace(
        config=SimpleNamespace(num_hidden_layers=layers, hidden_size=hidden),
        parameters=lambda: [torch.empty(weights, device="meta")],
    )
    assert default_max_tokens(model, "cuda:0") == expected
    assert default_max_tokens(model, "cpu") == 8192
