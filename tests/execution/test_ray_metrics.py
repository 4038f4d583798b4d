"""Counters of a night on the metrics endpoint of a real local Ray."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.nightly import write_inbox

SCRIPT = """
import sys, time
import ray, bertray
model, inbox, output, port, told = sys.argv[1:]
ray.init(
    address="local", num_cpus=4, object_store_memory=300 << 20, include_dashboard=False, log_to_driver=False,
    _metrics_export_port=int(port), _system_config={"metrics_report_interval_ms": 500},
)
result = bertray.score(model=model, input=inbox, output=output, workers={"in_process_rows": 0}, report={"explain": 0})
open(told, "w").write(str(result.rows_scored))
sys.stdin.read()  # until the endpoint has been read
"""


def scraped(port: int) -> dict[tuple[str, str], float]:
    """Sums of bertray's counters by name and stage."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found: dict[tuple[str, str], float] = {}
    for name, tags, value in re.findall(r"^ray_(bertray_\w+?)(?:_total)?\{(.*)\} ([\d.e+]+)$", text, re.MULTILINE):
        stage = re.search(r'stage="(\w*)"', tags)
        key = (name, stage[1] if stage else "")
        found[key] = found.get(key, 0.0) + float(value)
    return found


@pytest.mark.slow
@pytest.mark.ray
def test_rows_tokens_and_seconds_of_a_night_are_scraped_from_ray(trained_alone, tmp_path):
    write_inbox(tmp_path / "in", {"a.parquet": 70})  # every seventh without text
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = tmp_path / "told"
    words = [str(trained_alone / "model"), str(tmp_path / "in"), str(tmp_path / "out"), str(port), str(told)]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *words], stdin=subprocess.PIPE)
    try:
        found: dict[tuple[str, str], float] = {}
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(1)
            try:
                found = scraped(port) if told.is_file() else {}
            except (urllib.error.URLError, ConnectionError):
                continue
            if found.get(("bertray_rows", "")) == 60 and ("bertray_stage_seconds", "read") in found:
                break
        assert found[("bertray_rows", "")] == 60
        assert found[("bertray_quarantined_rows", "")] == 10
        assert found[("bertray_tokens", "")] > 60 * 5
        assert {stage for name, stage in found if name == "bertray_stage_seconds"} == {"read", "model"}
    finally:
        process.communicate(timeout=60)
