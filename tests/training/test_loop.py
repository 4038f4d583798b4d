"""The loop on one process and on two: the same steps, a resume that repeats them, and a loss that stays finite."""

import dataclasses
import datetime
import functools
import gc
import json
import logging
import socket

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.multiprocessing.spawn import start_processes
from transformers import BertForSequenceClassification

from bertray.errors import ConfigError, DataRefused, Diverged, InfrastructureError
from bertray.io.store import LocalStore
from bertray.io.tables import to_ipc
from bertray.training import objectives
from bertray.training.checkpoint import checkpoint_folders, load_latest
from bertray.training.examples import Examples, LoopSettings, TrainingSettings
from bertray.training.loading import load_classifier
from bertray.training.loop import Outcome, _Loop, run_loop
from bertray.training.objectives import Classification
from bertray.training.ranks import RefusedByAll
from bertray.training.token_shards import TokenShards
from tests.processes import FORKSERVER

SETTINGS = LoopSettings(
    labels=("bad", "good"),
    training=TrainingSettings(
        epochs=2,
        batch_size=8,
        learning_rate=1e-3,
        warmup_ratio=0.1,
        max_tokens_per_microbatch=64,
        best_metric="accuracy",
        precision="fp32",  # losses are compared; the ranks' own processes do not see conftest's default
    ),
    seed=3,
    run_key="run",
    threads=1,
)


READING = ("letters", "letters_unread", "latin_words", "latin_tokens")


def settings(**training) -> LoopSettings:
    return dataclasses.replace(SETTINGS, training=dataclasses.replace(SETTINGS.training, **training))


def examples(folder, num_rows: int = 53) -> Examples:
    """Reviews whose label is decided by one word: tokens 5 (good) or 8 (bad) among random others."""
    random = np.random.default_rng(0)
    rows, labels = [], []
    for _ in range(num_rows):
        label = int(random.integers(2))
        body = random.integers(12, 25, size=int(random.integers(2, 14))).tolist()
        body.insert(int(random.integers(len(body))), 5 if label else 8)
        rows.append([2, *body, 3])
        labels.append("good" if label else "bad")
    table = pa.table(
        {
            "id": pa.array([f"r{i}" for i in range(num_rows)]),
            "label": pa.array(labels),
            **{name: pa.array(np.arange(num_rows, dtype=np.uint64)) for name in ("text_hash", "input_hash")},
            "group_hash": pa.array(np.arange(num_rows, dtype=np.uint64)),
            "input_ids": pa.array(rows, pa.list_(pa.uint16())),
            "second_len": pa.array(np.zeros(num_rows, np.int32)),
            "n_tokens": pa.array([len(row) for row in rows], pa.int32()),
            "script": pa.nulls(num_rows, pa.string()),
            **{name: pa.nulls(num_rows, pa.int32()) for name in READING},
            "row_no": pa.array(np.arange(num_rows)),
            "file_no": pa.array(np.zeros(num_rows, np.int32)),
        }
    )
    paths = []
    for number, (start, stop) in enumerate([(0, 20), (20, num_rows)]):
        path = folder / f"tokens-{number}.arrow"
        path.write_bytes(to_ipc(table.slice(start, stop - start)))
        paths.append(path)
    label_ids_N = np.array([label == "good" for label in labels], np.int32)
    numbers = np.arange(num_rows)
    return Examples(
        TokenShards(paths), label_ids_N, train=numbers[numbers % 5 > 0], validation=numbers[numbers % 5 == 0]
    )


def losses(outcome: Outcome) -> list[float]:
    return [row["loss"] for row in outcome.history if row["kind"] == "step"]


@pytest.fixture
def whole(tmp_path, tiny_encoder) -> Outcome:
    """An uninterrupted run on one process."""
    return run_loop(examples(tmp_path), tiny_encoder, 0, SETTINGS, LocalStore(tmp_path / "whole"))


@pytest.mark.slow
def test_training_learns_what_the_labels_follow(tmp_path, tiny_encoder):
    longer = settings(epochs=12, learning_rate=5e-3)
    outcome = run_loop(examples(tmp_path, 160), tiny_encoder, 0, longer, LocalStore(tmp_path / "learns"))
    assert max(row["accuracy"] for row in outcome.history if row["kind"] == "eval") > 0.9


def test_every_step_and_epoch_is_recorded(whole):
    assert [row["kind"] for row in whole.history] == ["step"] * 6 + ["eval"] + ["step"] * 6 + ["eval"]
    assert whole.num_steps == 12  # 42 examples in steps of 8, the last of 2, twice
    assert whole.validation_VK.shape == (11, 2)


def test_learning_rate_rises_then_falls_to_the_last_step(tmp_path, tiny_encoder):
    outcome = run_loop(examples(tmp_path), tiny_encoder, 0, settings(warmup_ratio=0.25), LocalStore(tmp_path / "run"))
    rates = [row["learning_rate"] for row in outcome.history if row["kind"] == "step"]
    expected = [1 / 3, 2 / 3, 1.0] + [(12 - step) / 9 for step in range(3, 12)]
    np.testing.assert_allclose(rates, np.array(expected) * 1e-3, rtol=1e-12)


class _Killed(Exception):
    pass


def dying_at(step: int) -> type[_Loop]:
    """A loop that ends before it takes a step."""

    class Dying(_Loop):
        def _step(self, members, learning_rate):
            if self.progress.step == step:
                raise _Killed
            return super()._step(members, learning_rate)

    return Dying


@pytest.mark.parametrize("step", [2, 7, 9])
def test_a_killed_run_resumes_from_its_last_checkpoint_with_bit_equal_losses(tmp_path, tiny_encoder, whole, step):
    store = LocalStore(tmp_path / "killed")
    often = settings(checkpoint_every_s=1e-9)  # a checkpoint after every step
    data = examples(tmp_path)
    with pytest.raises(_Killed):
        dying_at(step)(data, tiny_encoder, 0, often, store, "cpu", None).run()
    resumed = run_loop(data, tiny_encoder, 0, often, store)
    assert resumed.resumed_from == step
    assert losses(resumed) == losses(whole)
    np.testing.assert_array_equal(resumed.validation_VK, whole.validation_VK)


def test_a_damaged_checkpoint_falls_back_to_the_one_before_it_and_says_so(tmp_path, tiny_encoder, whole, caplog):
    store = LocalStore(tmp_path / "damaged")
    data = examples(tmp_path)
    run_loop(data, tiny_encoder, 0, SETTINGS, store)
    folders = checkpoint_folders(store)
    latest = f"{folders[-1]}/optimizer.safetensors"
    content = bytearray(store.get(latest))
    content[len(content) // 2] ^= 1
    store.put(latest, bytes(content))
    with caplog.at_level(logging.WARNING, "bertray"):
        checkpoint = load_latest(store, "run")
    assert checkpoint is not None
    assert checkpoint.progress.step == 6
    assert "optimizer.safetensors is damaged; falling back to the checkpoint before it" in caplog.text
    assert losses(run_loop(data, tiny_encoder, 0, SETTINGS, store)) == losses(whole)


def test_a_checkpoint_cut_short_is_passed_over(tmp_path, tiny_encoder):
    store = LocalStore(tmp_path / "cut")
    run_loop(examples(tmp_path), tiny_encoder, 0, SETTINGS, store)
    newest = checkpoint_folders(store)[-1]
    store.put(f"{newest}/progress.json", store.get(f"{newest}/progress.json")[:40])
    found = load_latest(store, "run")
    assert found is not None
    assert found.progress.step == 6


def test_a_checkpoint_of_another_run_is_not_used(tmp_path, tiny_encoder):
    store = LocalStore(tmp_path / "other")
    run_loop(examples(tmp_path), tiny_encoder, 0, SETTINGS, store)
    assert load_latest(store, "another") is None


def _poisoned_at(step: int, poison):
    """An objective whose loss is another one from a step on, counted from 1."""

    class Poisoned(Classification):
        steps = 0

        def begin_step(self, members, epoch):
            self.steps += 1
            return super().begin_step(members, epoch)

        def loss(self, net, inputs):
            loss = super().loss(net, inputs)
            return poison(loss) if self.steps >= step else loss

    return Poisoned


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, tiny_encoder):
    store = LocalStore(tmp_path / "nan")
    often = settings(checkpoint_every_s=1e-9)
    poisoned = _poisoned_at(6, lambda loss: loss * float("nan"))
    with pytest.raises(InfrastructureError, match="the loss is nan at step 6"):
        run_loop(examples(tmp_path), tiny_encoder, 0, often, store, objective=poisoned)
    kept = load_latest(store, "run")
    assert kept is not None
    assert kept.progress.step == 5


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_a_checkpoint(tmp_path, tiny_encoder):
    store = LocalStore(tmp_path / "nan-gradient")
    often = settings(checkpoint_every_s=1e-9)
    poisoned = _poisoned_at(6, lambda loss: loss + torch.sqrt(loss * 0.0))  # the root of zero is zero; its slope is not
    with pytest.raises(InfrastructureError, match="the gradient is nan at step 6; the last checkpoint is finite"):
        run_loop(examples(tmp_path), tiny_encoder, 0, often, store, objective=poisoned)
    kept = load_latest(store, "run")
    assert kept is not None
    assert kept.progress.step == 5
    assert all(tensor.isfinite().all() for tensor in [*kept.model.values(), *kept.optimizer.values()])


@pytest.mark.parametrize(
    "error", [InfrastructureError("x: the storage failed."), ConfigError("x: read-only."), OSError(5, "hiccup")]
)
def test_progress_that_cannot_be_written_is_said_once_and_does_not_end_training(tmp_path, tiny_encoder, caplog, error):
    import bertray.training.loop as loop_module

    calls = []

    def on_progress(state):
        calls.append(state["step"])
        raise error

    class Chatty(loop_module._Loop):
        def _report(self, loss, learning_rate):
            self._last_report = float("-inf")  # a second has passed
            super()._report(loss, learning_rate)

    store = LocalStore(tmp_path / "hiccup")
    with caplog.at_level(logging.WARNING, "bertray"):
        outcome = Chatty(examples(tmp_path), tiny_encoder, 0, SETTINGS, store, "cpu", on_progress).run()
    assert outcome.num_steps == 12
    assert calls == list(range(1, 13))
    assert [record.getMessage() for record in caplog.records] == [
        f"progress cannot be shown for now, training goes on: {error}"
    ]


class _FullStore(LocalStore):
    """Holds one checkpoint; then the disk is full."""

    def put(self, key, value):
        if key.startswith("checkpoints/step-00000012/"):
            raise OSError(28, "No space left on device")
        super().put(key, value)


def test_a_checkpoint_that_cannot_be_written_is_an_infrastructure_error_and_keeps_the_one_before(
    tmp_path, tiny_encoder
):
    store = _FullStore(tmp_path / "full")
    with pytest.raises(InfrastructureError, match=r"checkpoint of step 12 cannot be written: .*No space left"):
        run_loop(examples(tmp_path), tiny_encoder, 0, SETTINGS, store)
    kept = load_latest(store, "run")
    assert kept is not None
    assert kept.progress.step == 6


def test_a_bug_while_writing_a_checkpoint_keeps_its_name(tmp_path, tiny_encoder):
    class Buggy(LocalStore):
        def put(self, key, value):
            raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        run_loop(examples(tmp_path), tiny_encoder, 0, SETTINGS, Buggy(tmp_path / "bug"))


@pytest.mark.parametrize(
    ("max_rows", "expected"), [(7, [2, 4, 6, 8, 10, 12]), (12, list(range(1, 13))), (5, [3, 6, 9, 12])]
)
def test_history_never_has_more_rows_than_its_limit(tmp_path, tiny_encoder, monkeypatch, max_rows, expected):
    monkeypatch.setattr("bertray.training.loop.MAX_HISTORY_ROWS", max_rows)
    outcome = run_loop(examples(tmp_path), tiny_encoder, 0, SETTINGS, LocalStore(tmp_path / "run"))
    assert [row["step"] for row in outcome.history if row["kind"] == "step"] == expected


# --- architectures ---------------------------------------------------------------------------------------------------


def _tiny_classifier(family: str, folder):
    """A classifier of two labels with wild random weights, so that each input matters."""
    import transformers as t

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    plain = {**sizes, "vocab_size": 60, "max_position_embeddings": 40, "type_vocab_size": 2, "pad_token_id": 0}
    modern = {**sizes, "vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0}
    modern |= {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    distil = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 60, "pad_token_id": 0}
    config = {
        "bert": lambda: t.BertConfig(**plain),
        "roberta": lambda: t.RobertaConfig(**{**plain, "type_vocab_size": 1}),
        "electra": lambda: t.ElectraConfig(**plain, embedding_size=16),
        "albert": lambda: t.AlbertConfig(**plain, embedding_size=16),
        "distilbert": lambda: t.DistilBertConfig(**distil),
        "deberta-v2": lambda: t.DebertaV2Config(**plain, relative_attention=True, pos_att_type=["p2c", "c2p"]),
        "modernbert": lambda: t.ModernBertConfig(**modern),
    }[family]()
    torch.manual_seed(0)
    model = t.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def _loop_of(family: str, tmp_path, data: Examples):
    import bertray.training.loop as loop_module

    encoder = _tiny_classifier(family, tmp_path / family)
    store = LocalStore(tmp_path / "run")
    return loop_module._Loop(data, encoder, 0, settings(precision="fp32"), store, "cpu", None)


FAMILIES = ["bert", "roberta", "electra", "albert", "distilbert", "deberta-v2", "modernbert"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_takes_an_optimizer_step(tmp_path, family):
    data = examples(tmp_path)
    loop = _loop_of(family, tmp_path, data)
    before = {name: parameter.detach().clone() for name, parameter in loop.raw_model.named_parameters()}
    loss, _, tokens = loop._step(loop._prepared(data.train[:8], 0), 1e-3)
    assert np.isfinite(loss)
    assert tokens == data.shards.lens_N[data.train[:8]].sum()
    still = [name for name, parameter in loop.raw_model.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []  # DDP would refuse a parameter that no loss reaches


@pytest.mark.parametrize("family", ["bert", "electra", "roberta", "deberta-v2"])
def test_training_sees_a_pair_as_scoring_does(tmp_path, family):
    from bertray.model.engine import Engine
    from bertray.model.tokenization import Sequences

    data = examples(tmp_path)
    data.shards.second_lens_N = (data.shards.lens_N // 2).astype(np.int32)
    loop = _loop_of(family, tmp_path, data)
    loop.raw_model.eval()
    batch = data.train[:8]
    with torch.inference_mode():
        logits_BC = loop.objective.logits(loop.net, batch).numpy()
    seqs = Sequences(
        ids_T=np.concatenate([data.shards._example(int(number)) for number in batch]),
        lens_S=data.shards.lens_N[batch],
        second_lens_S=data.shards.second_lens_N[batch],
        rows_S=np.arange(len(batch)),
        num_rows=len(batch),
    )
    expected_SC = Engine(tmp_path / family, precision="fp32").logits(seqs)
    np.testing.assert_allclose(logits_BC, expected_SC, atol=1e-3)  # the engine's own contract for fp32


def test_a_padded_model_that_cannot_be_called_in_bf16_trains_in_fp32_and_says_so(tmp_path, monkeypatch, caplog):
    import transformers as t

    encoder, forward = _tiny_classifier("deberta-v2", tmp_path / "model"), t.DebertaV2ForSequenceClassification.forward

    @functools.wraps(forward)  # an objective reads its signature
    def refuses(self, *args, **keys):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not implemented for 'BFloat16'")
        return forward(self, *args, **keys)

    monkeypatch.setattr(t.DebertaV2ForSequenceClassification, "forward", refuses)
    with caplog.at_level(logging.WARNING, "bertray"):
        one = Classification(examples(tmp_path), encoder, 0, settings(precision="bf16"), "cpu")
    assert one.dtype == torch.float32
    assert "trains in fp32: " in caplog.text


# --- how a run ends --------------------------------------------------------------------------------------------------


def test_early_stopping_ends_after_epochs_without_gain(tmp_path, tiny_encoder):
    frozen = settings(epochs=9, learning_rate=1e-12, early_stopping_patience=2)
    outcome = run_loop(examples(tmp_path), tiny_encoder, 0, frozen, LocalStore(tmp_path / "stop"))
    assert [row["epoch"] for row in outcome.history if row["kind"] == "eval"] == [1.0, 2.0, 3.0]
    assert outcome.best_step == 6


def test_accumulation_gives_the_losses_of_one_large_pass(tmp_path, tiny_encoder):
    data = examples(tmp_path)
    still = _without_dropout(tiny_encoder, tmp_path)
    small = run_loop(data, still, 0, settings(max_tokens_per_microbatch=16), LocalStore(tmp_path / "small"))
    large = run_loop(data, still, 0, settings(max_tokens_per_microbatch=8192), LocalStore(tmp_path / "large"))
    np.testing.assert_allclose(losses(small), losses(large), atol=2e-5)  # sums in another order


def test_balanced_class_weights_give_the_weighted_cross_entropy_of_torch(tmp_path, tiny_encoder):
    data = examples(tmp_path)
    # Nine of ten examples of one class, and an encoder with a head, so that the first loss is that of known weights.
    kept = np.concatenate(
        [data.train[data.label_ids_N[data.train] == 1], data.train[data.label_ids_N[data.train] == 0][:2]]
    )
    data = dataclasses.replace(data, train=np.sort(kept))
    still = _without_dropout(tiny_encoder, tmp_path)
    model = BertForSequenceClassification.from_pretrained(still, num_labels=2).eval()
    model.config.id2label = dict(enumerate(SETTINGS.labels))
    model.save_pretrained(still)
    ids = [torch.tensor(data.shards.padded(np.array([row]), 0)["input_ids"][0]) for row in data.train]
    with torch.no_grad():
        logits = torch.cat([model(input_ids=row[None]).logits for row in ids])
    labels = torch.from_numpy(data.label_ids_N[data.train]).long()
    weights = torch.tensor([len(labels) / (2.0 * int((labels == c).sum())) for c in (0, 1)])
    expected = torch.nn.CrossEntropyLoss(weight=weights)(logits, labels)
    one_step = settings(class_weights="balanced", batch_size=64, epochs=1)
    outcome = run_loop(data, still, 0, one_step, LocalStore(tmp_path / "weighted"))
    np.testing.assert_allclose(losses(outcome), [float(expected)], rtol=1e-4)
    assert abs(float(expected) - float(torch.nn.CrossEntropyLoss()(logits, labels))) > 1e-3


def test_validation_logits_that_are_not_finite_stop_the_run_whatever_the_best_metric(
    tmp_path, tiny_encoder, monkeypatch
):
    import bertray.training.loop as loop_module

    def poisoned(self):
        return np.full((len(self.examples.validation), 2), np.nan, np.float32)

    monkeypatch.setattr(loop_module._Loop, "_validate", poisoned)
    with pytest.raises(InfrastructureError, match="validation loss is not finite"):
        run_loop(examples(tmp_path), tiny_encoder, 0, SETTINGS, LocalStore(tmp_path / "nan"))


def test_a_split_without_examples_is_refused(tmp_path, tiny_encoder):
    data = dataclasses.replace(examples(tmp_path), validation=np.empty(0, np.int64))
    with pytest.raises(DataRefused, match="42 train and 0 validation examples"):
        run_loop(data, tiny_encoder, 0, SETTINGS, LocalStore(tmp_path / "empty"))


def _without_dropout(encoder, tmp_path):
    folder = tmp_path / "still"
    folder.mkdir()
    for path in encoder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class _SeesOtherFigures(Classification):
    """Rank 1 comes to figures by which the first epoch is the best and training ends early."""

    def figures(self, rows_VK):
        rank = torch.distributed.get_rank()
        self.judged = getattr(self, "judged", 0) + 1
        return super().figures(rows_VK) | {"loss": (1.0 if rank else -1.0) * self.judged}


class _NotFiniteWhereIdle(Classification):
    """On rank 1 the loss of a step of a single example is infinite, as is its gradient: rank 0 computes that one."""

    def begin_step(self, members, epoch):
        self.is_idle = torch.distributed.get_rank() == 1 and len(members) == 1
        return super().begin_step(members, epoch)

    def loss(self, net, inputs):
        loss = super().loss(net, inputs)
        return loss / torch.zeros(()) if self.is_idle else loss


def _rank(rank: int, world_size: int, port: int, folder, encoder, queue) -> None:
    """One of the ranks: a whole run; one whose second checkpoint rank 0 cannot write; that one again; one that finds a
    checkpoint on rank 0 only; how many models in DDP they left behind; and runs in which ranks are unlike."""
    gc.disable()
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=180),
    )
    mine = folder / f"rank-{rank}"  # each rank writes its own copy of the same token shards
    mine.mkdir()
    in_passes = settings(max_tokens_per_microbatch=16)  # several passes a step on each rank, which no message follows
    data = examples(mine, 52)

    def error_of(store: LocalStore) -> tuple[str, str]:
        try:
            run_loop(data, encoder, 0, in_passes, store)
        except Exception as raised:
            return type(raised).__name__, str(raised)
        return "", ""

    outcome = run_loop(data, encoder, 0, in_passes, LocalStore(folder / "whole"))
    full = error_of(_FullStore(folder / "full"))
    resumed = run_loop(data, encoder, 0, in_passes, LocalStore(folder / "full"))
    stale = error_of(LocalStore(folder / ("whole" if rank == 0 else "seen-late")))
    runs = [(losses(run), run.resumed_from, run.num_steps, run.validation_VK.tolist()) for run in (outcome, resumed)]
    in_ddp = [each for each in gc.get_objects() if isinstance(each, torch.nn.parallel.DistributedDataParallel)]
    queue.put((rank, runs, full, stale, len(in_ddp), _unlike(rank, data, encoder, folder)))
    torch.distributed.destroy_process_group()


def _unlike(rank: int, data: Examples, encoder, folder) -> dict[str, object]:
    """Losses with gradients exchanged in bf16, and where an idle rank's is infinite; epochs and best one where ranks
    judge differently; precision, or what refuses it, where the device of rank 0 computes in bf16 and that of rank 1 not
    """
    in_passes = settings(max_tokens_per_microbatch=16)  # as the whole run
    in_bf16 = settings(max_tokens_per_microbatch=16, gradient_compression="bf16")
    compressed = run_loop(data, encoder, 0, in_bf16, LocalStore(folder / "compressed"))
    judging = settings(best_metric="loss", early_stopping_patience=1, epochs=3)
    judged = run_loop(data, encoder, 0, judging, LocalStore(folder / "judged"), objective=_SeesOtherFigures)
    idle = run_loop(data, encoder, 0, in_passes, LocalStore(folder / "idle"), objective=_NotFiniteWhereIdle)

    def compute_dtype(precision: str, device: str) -> torch.dtype:
        if precision == "bf16" and rank:
            raise ConfigError("precision=bf16: expected a GPU that computes in it.", "Leave it out.")
        return {"fp32": torch.float32}.get(precision, torch.float32 if rank else torch.bfloat16)

    objectives.compute_dtype = compute_dtype
    loop = _Loop(data, encoder, 0, settings(precision="auto"), LocalStore(folder / "precision"), "cpu", None)
    refused = ""
    try:
        _Loop(data, encoder, 0, settings(precision="bf16"), LocalStore(folder / "refused"), "cpu", None)
    except ConfigError as error:
        refused = f"{type(error).__name__}: {error.message}"
    return {
        "compressed": losses(compressed),
        "idle": losses(idle),
        "refused": refused,
        "judged": (judged.best_step, judged.num_steps, [r["loss"] for r in judged.history if r["kind"] == "eval"]),
        "precision": (loop.settings.training.precision, loop.objective.dtype == torch.float32),
    }


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, tiny_encoder):
    """What two ranks say of their runs, in order of rank, and the encoder they began from."""
    folder = tmp_path_factory.mktemp("two-ranks")
    still = _without_dropout(tiny_encoder, folder)
    queue = FORKSERVER.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_rank, args=(2, port, folder, still, queue), nprocs=2, start_method="forkserver")
    return sorted(queue.get() for _ in range(2)), still


def test_the_loss_curve_does_not_depend_on_the_number_of_workers(tmp_path, two_ranks):
    # Two ranks share steps of 8 and a last step of 1, in which one rank is idle.
    said, still = two_ranks
    alone = run_loop(examples(tmp_path, 52), still, 0, SETTINGS, LocalStore(tmp_path / "alone"))
    for _, ((together, _, num_steps, logits_VC), _), *_ in said:
        assert num_steps == alone.num_steps
        np.testing.assert_allclose(together, losses(alone), atol=1e-5)  # gradients are summed in another order
        np.testing.assert_allclose(logits_VC, alone.validation_VK, atol=1e-3)


def test_gradients_exchanged_in_bf16_give_nearly_the_same_losses_on_all_ranks(two_ranks):
    compressed = [said[-1]["compressed"] for said in two_ranks[0]]
    whole = two_ranks[0][0][1][0][0]
    assert compressed[0] == compressed[1]
    assert compressed[0] != whole
    np.testing.assert_allclose(compressed[0], whole, atol=2e-2)  # eight bits of each gradient


def test_an_infinite_loss_of_an_idle_rank_reaches_neither_the_loss_nor_the_gradient(two_ranks):
    whole = two_ranks[0][0][1][0][0]
    assert [said[-1]["idle"] for said in two_ranks[0]] == [whole, whole]


def test_a_precision_that_one_rank_refuses_is_refused_by_all(two_ranks):
    assert [said[-1]["refused"] for said in two_ranks[0]] == [
        "RefusedByAll: training.precision=bf16: the device of another worker does not compute in it.",
        "RefusedByAll: precision=bf16: expected a GPU that computes in it.",
    ]


@pytest.mark.parametrize(
    ("error", "returned"), [(RefusedByAll("a.", "b."), True), (Diverged("a.", "b."), True), (ConfigError("a."), False)]
)
def test_a_rank_among_several_returns_what_all_of_them_refuse_and_raises_what_befell_it_alone(
    tmp_path, monkeypatch, tiny_encoder, error, returned
):
    from bertray.execution.executor import Rank
    from bertray.training import rank
    from bertray.training.tokenized_data import TokenizedData

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(rank, "run_loop", fails)
    monkeypatch.setattr(TokenizedData, "examples", lambda self: None)
    (tmp_path / "tokens.arrow").touch()
    job = rank.TrainJob(TokenizedData(str(tmp_path), ["tokens.arrow"], None, None, 0.1, 0), str(tiny_encoder), SETTINGS)
    if returned:
        assert rank.train_rank(job, Rank(1, 2, "cpu")) is error
    else:
        with pytest.raises(ConfigError):
            rank.train_rank(job, Rank(1, 2, "cpu"))


@pytest.mark.slow
def test_rank_0_decides_for_all_ranks_on_the_best_epoch_and_the_end(two_ranks):
    steps = -(-41 // 8)  # of 52 examples a fifth is for validation
    for said in two_ranks[0]:
        assert said[-1]["judged"] == (3 * steps, 3 * steps, [-1.0, -2.0, -3.0])


def test_unlike_ranks_train_in_the_precision_that_all_compute_in(two_ranks):
    assert [said[-1]["precision"] for said in two_ranks[0]] == [("fp32", True), ("fp32", True)]


def test_every_rank_ends_with_the_same_error_when_a_checkpoint_cannot_be_written(two_ranks):
    (first, first_text), (second, second_text) = [full for _, _, full, *_ in two_ranks[0]]
    assert (first, second) == ("InfrastructureError", "InfrastructureError")
    assert "the checkpoint of step 12 cannot be written: [Errno 28] No space left on device" in first_text
    assert "a checkpoint up to step 12 cannot be written, on rank 0." in second_text


def test_two_ranks_resume_with_the_losses_of_a_whole_run(two_ranks):
    for _, (whole_run, resumed_run), *_ in two_ranks[0]:
        assert whole_run[1] is None
        assert resumed_run[1] == 6
        np.testing.assert_allclose(resumed_run[0], whole_run[0], atol=1e-6)


def test_ranks_that_see_different_checkpoints_say_so_instead_of_going_different_ways(two_ranks):
    for _, _, _, (kind, text), *_ in two_ranks[0]:
        assert kind == "InfrastructureError"
        assert "workers see different checkpoints (steps -1 and 12; -1: none)" in text


def test_no_run_leaves_something_that_holds_the_process_group(two_ranks):
    # A rank that ends with it hangs, once in some runs on a busy machine.
    assert [left for *_, left, _ in two_ranks[0]] == [0, 0]


def test_a_head_that_knows_these_classes_is_put_into_their_order(tmp_path):
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path / "known"
    _tiny_classifier("bert", folder)
    known = AutoModelForSequenceClassification.from_pretrained(folder, id2label={0: "bad", 1: "good"})
    known.save_pretrained(folder)
    weight = known.classifier.weight
    for labels, expected in ((("bad", "good"), weight), (("good", "bad"), weight.flip(0))):
        loaded = load_classifier(folder, labels)
        assert torch.equal(loaded.classifier.weight, expected)
        assert loaded.config.id2label == dict(enumerate(labels))


@pytest.mark.parametrize("change", ["a weight is missing", "the vocabulary has another size"])
def test_weights_of_an_encoder_that_would_be_drawn_at_random_are_refused(tmp_path, change):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    _tiny_classifier("bert", folder)
    if change == "a weight is missing":
        weights = load_file(folder / "model.safetensors")
        del weights["bert.encoder.layer.0.output.dense.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        said = "lacks 1 weights of BertForSequenceClassification: bert.encoder.layer.0.output.dense.weight"
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
        said = "has in another shape 1 weights of BertForSequenceClassification: bert.embeddings.word_embeddings.weight"
    with pytest.raises(ConfigError, match=said):
        load_classifier(folder, ("bad", "good"))


def test_older_checkpoints_that_cannot_be_removed_do_not_end_training(tmp_path, tiny_encoder, caplog):
    class Undeletable(LocalStore):
        def delete(self, key: str) -> None:
            raise InfrastructureError(f"{key}: no permission to delete.")

    with caplog.at_level(logging.WARNING):
        outcome = run_loop(examples(tmp_path), tiny_encoder, 0, settings(epochs=5), Undeletable(tmp_path / "run"))
    assert outcome.num_steps == 30
    (told,) = [record.message for record in caplog.records]
    assert told.startswith("older checkpoints cannot be removed, training goes on: checkpoints/step-000000")


@pytest.mark.parametrize(("damaged", "left"), [(2, [6, 7, 8]), (9, [4, 5])])
def test_checkpoints_that_cannot_be_read_do_not_count_among_the_latest(tmp_path, tiny_encoder, damaged, left):
    """Of 9 steps those of the last 2, or of all that are there, are damaged; another run goes on and dies."""
    store, often, data = LocalStore(tmp_path / "run"), settings(checkpoint_every_s=1e-9), examples(tmp_path)
    with pytest.raises(_Killed):
        dying_at(9)(data, tiny_encoder, 0, often, store, "cpu", None).run()
    for folder in checkpoint_folders(store)[-damaged:]:
        store.put(f"{folder}/optimizer.safetensors", b"")
    with pytest.raises(_Killed):
        dying_at(left[-1])(data, tiny_encoder, 0, often, store, "cpu", None).run()
    assert [int(folder[-2:]) for folder in checkpoint_folders(store)] == left


def test_the_last_epoch_needs_no_validation_rows_and_learns_the_same(tmp_path, tiny_encoder, whole):
    data = examples(tmp_path)
    last = dataclasses.replace(SETTINGS, kept_epoch="last")
    judged = run_loop(data, tiny_encoder, 0, last, LocalStore(tmp_path / "judged"))
    assert judged.best_step == judged.num_steps == 12
    assert losses(judged) == losses(whole)
    none = dataclasses.replace(data, validation=data.validation[:0])
    alone = run_loop(none, tiny_encoder, 0, last, LocalStore(tmp_path / "alone"))
    assert (losses(alone), alone.validation_VK.shape) == (losses(whole), (0, 2))
    assert [row.get("accuracy") for row in alone.history if row["kind"] == "eval"] == [None, None]
    with pytest.raises(DataRefused, match="both need at least one"):
        run_loop(none, tiny_encoder, 0, SETTINGS, LocalStore(tmp_path / "none"))


def test_a_run_in_one_go_has_no_best_epoch():
    with pytest.raises(ValueError, match="expected the last of a run in one go"):
        dataclasses.replace(SETTINGS, in_one_go=True)


def test_a_run_in_one_go_writes_nothing_and_judges_its_end(tmp_path, tiny_encoder, whole):
    short = dataclasses.replace(SETTINGS, kept_epoch="last", in_one_go=True)
    store = LocalStore(tmp_path / "short")
    outcome = run_loop(examples(tmp_path), tiny_encoder, 0, short, store)
    assert (losses(outcome), list(store.keys(""))) == (losses(whole), [])
    figures = [row.get("loss") for row in outcome.history if row["kind"] == "eval"]
    assert figures == [None, [row["loss"] for row in whole.history if row["kind"] == "eval"][-1]]
