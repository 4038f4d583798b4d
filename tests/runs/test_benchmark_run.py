"""A benchmark says before it begins what it lacks."""

from __future__ import annotations

import pytest

from bertray import runtime
from bertray.config import BenchmarkConfig
from bertray.errors import ConfigError
from bertray.runs.benchmark_run import benchmark


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("openvino", "openvino"),
        ("openvino_int8", "openvino"),
        ("openvino_int8", "nncf"),
        ("onnx_int8", "onnx"),
        ("onnx_int8", "onnxruntime"),
    ],
)
def test_a_contestant_whose_package_is_not_installed_names_it_and_its_extra(name, package, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "find_spec", lambda module: None if module == package else object())
    config = BenchmarkConfig(beside=("pipeline", name), output=str(tmp_path / "bench"))
    with pytest.raises(ConfigError) as refused:
        benchmark(config, [])
    assert f"{name}: {package} is not installed." in str(refused.value)
    assert f"pip install 'bertray[{name}]'" in str(refused.value)
    assert not (tmp_path / "bench").exists()
