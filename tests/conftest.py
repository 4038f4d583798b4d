"""What tests share: a tiny model built on the spot, a tiny corpus, one Ray cluster, and where real data lies."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from bertray.runtime import THREADS_ENV, unless_chosen

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.update(unless_chosen(THREADS_ENV))  # read when torch is imported; two test processes share the cores
os.environ.setdefault("BERTRAY_KERNELS", "build")  # of the source that is tested, whenever bertray was installed
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # silences a warning of Ray about its own future default

# No test cuts the power, and what a killed process wrote stays with the system. A disk may take 10 ms for each.
os.fsync = lambda fd: None

# How long an example takes says nothing on a machine that others use, and folders of a test may serve all its examples.
unchecked = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("shared machine", deadline=None, suppress_health_check=unchecked)
settings.load_profile("shared machine")

ROOT = Path(__file__).resolve().parent.parent
WORDS = [
    "great",
    "good",
    "fine",
    "bad",
    "awful",
    "poor",
    "boring",
    "lovely",
    "the",
    "a",
    "film",
    "was",
    "is",
    "it",
    "very",
    "not",
    "and",
    "but",
    "plot",
    "actor",
    "story",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Properties are run once more by `make test-slow`, on more examples; what starts Ray says so.

    The cluster stays until the last test, and commands of the tests that follow would find it at hand.
    """
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if "ray_cluster" in getattr(item, "fixturenames", ()) and not marks & {"ray", "soak", "scale"}:
            raise pytest.UsageError(f"{item.nodeid}: expected the marker `ray` on a test that uses the cluster")
        if hasattr(getattr(item, "obj", None), "hypothesis"):
            item.add_marker("property")


def _seed_torch(seed: int) -> None:
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Weights that tests and fixtures draw are the same in every order: pytest-randomly seeds all but torch."""
    _seed_torch(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """As before, whether a fixture was made for this test or for one before it."""
    _seed_torch(1)


@pytest.fixture(autouse=True)
def _own_logging():
    """The command line sets up logging on the stderr of one test; the next test has another."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The labelled data beside the project; tests that need it skip without it."""
    folder = Path(os.environ.get("BERTRAY_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "imdb").is_dir():
        pytest.skip(f"real data is not there: {folder} (set BERTRAY_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT encoder of two layers with random weights and a WordPiece vocabulary of a few words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("encoder")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{c}" for c in letters), "."]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    set_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(dict.fromkeys(vocabulary)),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray for the whole test session; four logical CPUs, so that actor pools leave some for tasks."""
    import ray

    from bertray.execution.session import LOCAL_TRAIN_ENV
    from bertray.runtime import COMPUTE_ENV

    os.environ.update(unless_chosen(COMPUTE_ENV) | LOCAL_TRAIN_ENV)
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=4,
        object_store_memory=300 << 20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray, or asking for an executor for more than the scan, is work that began too early."""
    from bertray.execution import session
    from bertray.execution.on_demand import OnDemand

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("work began before the input was checked")

    monkeypatch.setattr(session, "_connect", refuse)
    monkeypatch.setattr(OnDemand, "for_rows", refuse)
    monkeypatch.setattr(OnDemand, "session", refuse)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 240 labelled reviews to train on and 90 to test with."""
    from tests.corpus import write

    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "train.parquet", 240, 1, "t")
    write(folder / "test.parquet", 90, 2, "e")
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """A real HTTP server that speaks S3; the settings that lead to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    server.stop()


@pytest.fixture
def s3_environment(s3_server: dict[str, str]) -> dict[str, str]:
    """The settings that lead to a server with one bucket, `bertray`, which other tests may have cleared away."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=s3_server["AWS_ENDPOINT_URL"],
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bertray")
    return s3_server


@pytest.fixture(params=["s3", "gs", "az"])
def remote(request, monkeypatch) -> Iterator[tuple[str, Any]]:
    """Address of a bucket of each provider, and the server behind it."""
    from tests.s3_in_memory import BUCKET, InMemoryS3

    with InMemoryS3().serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield f"{request.param}://{BUCKET}", server


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_encoder, corpus, ray_cluster) -> Path:
    """A finished training run, on a worker of Ray Train."""
    return _trained(tmp_path_factory, tiny_encoder, corpus)


@pytest.fixture(scope="session")
def trained_alone(tmp_path_factory, tiny_encoder, corpus) -> Path:
    """A finished training run, made in this process, for tests that need no Ray."""
    from tests.nightly import without_ray

    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        return _trained(tmp_path_factory, tiny_encoder, corpus)


def _trained(tmp_path_factory: pytest.TempPathFactory, encoder: Path, corpus: Path) -> Path:
    from bertray.cli import run
    from tests.corpus import train_argv

    output = tmp_path_factory.mktemp("run") / "train"
    assert run(train_argv(encoder, corpus, output)) == 0
    return output
