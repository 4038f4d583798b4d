"""Work side by side, each thread with its share of torch's threads."""

from __future__ import annotations

import threading

import pytest
import torch

from bertray.model.pack_threads import PackThreads


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("num_threads", "count", "threads_each"),
    [(1, 1, 4), (2, 2, 1), (3, 3, 1), (4, 4, 1), (6, 3, 2), (7, 1, 4), (8, 4, 2)],
)
def test_pack_threads_share_the_threads_and_leave_those_of_others_alone(four_threads, num_threads, count, threads_each):
    threads = PackThreads(num_threads)
    assert threads.count == count
    torch.set_num_threads(4)
    assert threads.map(lambda _: torch.get_num_threads(), range(20)) == [threads_each] * 20
    assert torch.get_num_threads() == 4
    of_another = []
    other = threading.Thread(target=lambda: of_another.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert of_another == [4]


def test_pack_threads_work_at_the_same_time_and_answer_in_order():
    both = threading.Barrier(2, timeout=30)

    def work(item):
        both.wait()
        return -item

    assert PackThreads(2).map(work, range(6)) == [0, -1, -2, -3, -4, -5]


def test_fewer_items_than_threads_have_all_of_torchs_threads(four_threads):
    threads = PackThreads(4)
    assert threads.map(lambda _: torch.get_num_threads(), range(3)) == [4] * 3
    assert threads.map(lambda _: torch.get_num_threads(), range(4)) == [1] * 4


@pytest.mark.parametrize("num_threads", [1, 2])
def test_what_goes_wrong_in_a_thread_reaches_who_asked(num_threads):
    threads = PackThreads(num_threads)

    def work(item):
        if item == 3:
            raise MemoryError("out of memory")
        return item

    with pytest.raises(MemoryError):
        threads.map(work, range(6))
    assert threads.map(str, range(3)) == ["0", "1", "2"]
