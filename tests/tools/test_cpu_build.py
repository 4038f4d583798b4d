"""The CPU build of PyTorch: asked for where there is no driver and its index answers, within two seconds."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "cpu_build.py"
spec = importlib.util.spec_from_file_location("cpu_build", SCRIPT)
assert spec is not None
assert spec.loader is not None
cpu_build: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cpu_build)


class Index(BaseHTTPRequestHandler):
    """An index that has torch below /cpu and nothing elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/cpu/torch/" else 404)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        return None


@pytest.fixture
def index() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_build, "has_nvidia_driver", lambda: False)


def test_an_index_that_has_torch_is_added_and_another_is_not(index, without_driver):
    assert cpu_build.arguments(f"{index}/cpu") == ["--extra-index-url", f"{index}/cpu"]
    assert cpu_build.arguments(f"{index}/cu128") == []
    assert cpu_build.arguments("http://127.0.0.1:1/cpu") == []


def test_a_machine_with_a_driver_asks_nobody(index, monkeypatch):
    monkeypatch.setattr(cpu_build, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(cpu_build, "is_reachable", lambda *_: pytest.fail("asked"))
    assert cpu_build.arguments(f"{index}/cpu") == []


def test_a_driver_is_known_by_its_file_or_its_program(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_build, "_DRIVER", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not cpu_build.has_nvidia_driver()
    (tmp_path / "version").touch()
    assert cpu_build.has_nvidia_driver()
    (tmp_path / "version").unlink()
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    assert cpu_build.has_nvidia_driver()


def test_a_server_that_never_answers_is_left_after_the_limit():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert not cpu_build.is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/cpu", limit_s=0.2)
        assert time.monotonic() - began < 1


def test_make_gets_the_arguments_as_words_of_a_shell(index, tmp_path):
    env = {"PATH": str(tmp_path), "PYTORCH_CPU_INDEX": f"{index}/cpu"}
    said = subprocess.run([sys.executable, "-S", str(SCRIPT)], env=env, capture_output=True, text=True, check=True)
    driver = Path("/proc/driver/nvidia/version").exists()
    assert said.stdout.split() == ([] if driver else ["--extra-index-url", f"{index}/cpu"])
