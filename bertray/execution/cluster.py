"""Blocks of Ray Data as pipelines that are not stages yet take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bertray.errors import InfrastructureError
from bertray.execution.resources import Resources
from bertray.execution.stalls import Pending, StallWatch

if TYPE_CHECKING:
    import pyarrow as pa


def numbers(count: int, resources: Resources) -> Any:
    """A data set of the numbers of some items, column `id`, a block each.

    The blocks are made by this process: tasks that made them (`ray.data.range`) would each need a whole CPU, and
    workers that fill their machines leave only READER_CPUS.
    """
    import ray.data

    from bertray.execution.ray_data import MAX_BLOCKS, configure_data

    configure_data(resources.stall_timeout_s)
    return ray.data.from_items([{"id": number} for number in range(count)], override_num_blocks=min(count, MAX_BLOCKS))


def blocks_of(dataset: Any, stage: str, pending: Pending, resources: Resources) -> Iterator[pa.Table]:
    """The blocks of a data set of Ray's, each as soon as it is made; while none is, the log tells what waits.

    By default Ray hands one out when the next one has been made: what was done would be told a shard late.

    Args:
        stage: what the data set does, for the log: `scoring`.
        pending: items that it works on; a column `id` of its blocks says which have arrived.
        resources: how the work is laid out.

    Raises:
        InfrastructureError: nothing arrived for `Resources.stall_timeout_s`.
    """
    from ray.data.exceptions import ExecutionTimeoutError

    try:
        with StallWatch(stage, lambda: str(pending)) as watch:
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                watch.progressed()
                if "id" in block.column_names:
                    for number in set(block["id"].to_pylist()):
                        pending.arrived(number)
                yield block
    except ExecutionTimeoutError as error:
        raise InfrastructureError(
            f"{stage}: nothing was finished for {resources.stall_timeout_s:,.0f} s; {pending}.",
            "Look for a worker that hangs (`ray list actors`), then run the same command again; a slow model needs a "
            "longer workers.stall_timeout_s.",
        ) from error
