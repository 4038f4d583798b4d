"""What goes wrong in a function that Ray Data runs keeps its exit code and its words."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from safetensors import SafetensorError

from bertray.errors import BertrayError, ConfigError, DataRefused, InfrastructureError
from bertray.execution.remote_errors import as_known

pytestmark = pytest.mark.ray


def full_disk() -> None:
    raise OSError(28, "No space left on device")


def no_memory() -> None:
    raise MemoryError("4 GiB")


def no_memory_of_numpy() -> None:
    np.empty(1 << 55, np.uint8)


def no_memory_of_arrow() -> None:
    raise pa.ArrowMemoryError("malloc of size 64 failed")


def no_memory_of_torch() -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 9 bytes.")


def full_disk_of_safetensors() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def storage_failed() -> None:
    try:
        raise OSError("connection reset")
    except OSError as error:
        raise InfrastructureError("s3://b/x: the storage failed.", "Run the same command again.") from error


def refused() -> None:
    raise DataRefused("a.parquet: expected text, found numbers.", "Look at the file.")


def wrong() -> None:
    raise ConfigError("max_length: too long.", "Lower it.")


def a_bug() -> None:
    raise KeyError("bertray.errors.ConfigError: not at the start of a line")


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (full_disk, InfrastructureError, "No space left"),
        (no_memory, InfrastructureError, "MemoryError"),
        (no_memory_of_numpy, InfrastructureError, "MemoryError"),
        (no_memory_of_arrow, InfrastructureError, "malloc of size 64 failed"),
        (no_memory_of_torch, InfrastructureError, "can't allocate memory: 9 bytes"),
        (full_disk_of_safetensors, InfrastructureError, "No space left"),
        (storage_failed, InfrastructureError, "s3://b/x: the storage failed. Run the same command again."),
        (refused, DataRefused, "a.parquet: expected text, found numbers. Look at the file."),
        (wrong, ConfigError, "max_length: too long. Lower it."),
        (a_bug, None, ""),
    ],
)
def test_an_error_in_a_worker_is_told_as_what_it_is(fault, kind, said, ray_cluster):
    import ray.data

    def raises(batch):
        fault()
        return batch

    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever Ray makes of it
        list(ray.data.range(1).map_batches(raises).iter_batches())
    known = as_known(caught.value)
    assert type(known) is (kind or type(None))
    if kind is not None:
        assert isinstance(known, BertrayError)
        assert said in str(known)
