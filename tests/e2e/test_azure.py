"""Inputs and outputs in Azure: the address of a container, put-if-absent, a night and the next; Azurite is the server.

Azurite is Azure's own emulator, from npm: `npm install --prefix FOLDER azurite`, and FOLDER/node_modules/.bin in PATH.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.io.store import open_store
from bertray.outputs.claims import probe_put_if_absent
from tests.corpus import write
from tests.nightly import night_config, run_night, visible

AZURITE = shutil.which("azurite-blob")
# Account and key of every Azurite, which Microsoft publishes.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

pytestmark = [pytest.mark.slow, pytest.mark.skipif(AZURITE is None, reason="azurite-blob of npm is not installed")]


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server with an empty container `reviews`, and the settings that lead to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(tmp_path / "azurite"), "--silent"]
    assert AZURITE is not None
    server = subprocess.Popen([AZURITE, *words, "--skipApiVersionCheck", "--disableTelemetry"])
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    settings = {"ACCOUNT_NAME": ACCOUNT, "ACCOUNT_KEY": KEY, "ENDPOINT": endpoint}
    for name, value in settings.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    try:
        wait_for(port)
        make_container(endpoint, "reviews")
        yield
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(port: int) -> None:
    """Until the server answers."""
    for _ in range(300):
        with socket.socket() as caller:
            if caller.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("azurite-blob does not answer")


def make_container(endpoint: str, name: str) -> None:
    """Make a container by one signed request; obstore has none for it."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "\n".join(f"{header}:{value}" for header, value in headers.items())
    words = "PUT" + "\n" * 12 + f"{signed}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), words.encode(), hashlib.sha256)).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"}
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        assert reply.status == 201


@pytest.mark.usefixtures("azure")
def test_two_nights_of_an_azure_container_are_scored_once_each(tmp_path, tiny_encoder, capsys):
    store = open_store("az://reviews")
    probe_put_if_absent(store)
    store.put("in/first.parquet", write(tmp_path / "first.parquet", 40, 1, "a").read_bytes())

    def night(slot: str) -> None:
        config = night_config(tiny_encoder, Path("in"), "az://reviews/out", slot=slot)
        assert run_night(config.model_copy(update={"input": ("abfs://reviews/in",)})) == 0, capsys.readouterr().err

    night("a")
    store.put("in/second.parquet", write(tmp_path / "second.parquet", 30, 2, "b").read_bytes())
    night("b")
    night("c")  # finds nothing new
    found = visible(open_store("abfs://reviews/out"), "data")
    assert {slot: sorted(ids) for slot, ids in found.items()} == {
        "a": sorted(f"a{row}" for row in range(40)),
        "b": sorted(f"b{row}" for row in range(30)),
    }


@pytest.mark.usefixtures("azure")
def test_a_delta_table_in_an_azure_container_is_read_by_its_log():
    deltalake = pytest.importorskip("deltalake", reason="the extra `delta` is not installed")
    from bertray.io.connections import table_options
    from bertray.reviews.formats.delta import live_files

    root = "az://reviews/table"
    rows = pa.table({"id": ["1", "2"], "text": ["one", "two"], "day": ["d1", "d2"]})
    deltalake.write_deltalake(root, rows, partition_by=["day"], storage_options=table_options(root))
    deltalake.DeltaTable(root, storage_options=table_options(root)).delete("id = '2'")
    for address in (root, "abfs://reviews/table"):
        [entry] = live_files(address, "input")
        assert (entry.given, entry.path.startswith(f"{address}/day=d1/")) == ((("day", "d1"),), True)
        content = open_store(address).get(entry.relative_path)
        assert pq.read_table(pa.BufferReader(content))["id"].to_pylist() == ["1"]
