"""The batcher, with work that a test holds back until it has seen what it wants to see."""

import threading
import time
from concurrent.futures import CancelledError

import pytest

from pm.batching import Batcher, Closed, Full


class Work:
    """Doubles numbers, and fails on 13. A batch is worked on when the test lets it: `go.set()`, or one `step()`."""

    def __init__(self, held: bool = False):
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0) if held else None

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.begun.release()
        if self.go:
            assert self.go.acquire(timeout=10)
        if 13 in items:
            raise ValueError(f"13 is among {len(items)}")
        return [2 * item for item in items]

    def let(self, batches: int) -> None:
        self.go.release(batches)


def batcher(work: Work, budget: int = 100, most_waiting: int = 1000, **options) -> Batcher:
    return Batcher(work, lambda item: item, budget, most_waiting, **options)


def test_each_caller_gets_its_own_results_in_order():
    made = batcher(Work())
    futures = [made.submit(list(range(first, first + 5))) for first in range(0, 10, 5)]
    assert [future.result(10) for future in futures] == [[0, 2, 4, 6, 8], [10, 12, 14, 16, 18]]
    made.close()


def test_nothing_is_answered_without_work():
    work = Work()
    made = batcher(work)
    assert made.submit([]).result(1) == []
    made.close()
    assert work.batches == []


def test_one_alone_is_worked_on_at_once_and_what_came_meanwhile_together():
    work = Work(held=True)
    made = batcher(work)
    first = made.submit([1])
    assert work.begun.acquire(timeout=10)
    others = [made.submit([item]) for item in (2, 3, 4)]
    work.let(2)
    assert first.result(10) == [2]
    assert [other.result(10) for other in others] == [[4], [6], [8]]
    assert work.batches == [[1], [2, 3, 4]]
    made.close()


def test_a_batch_stays_within_the_budget_but_for_one_item_that_is_above_it():
    work = Work(held=True)
    made = batcher(work, budget=10)
    futures = [made.submit([1])]
    assert work.begun.acquire(timeout=10)
    futures += [made.submit([4, 6, 5]), made.submit([50])]
    work.let(5)
    assert [future.result(10) for future in futures] == [[2], [8, 12, 10], [100]]
    assert work.batches == [[1], [4], [50], [6], [5]]
    made.close()


def test_callers_take_turns_so_that_a_long_list_does_not_hold_up_a_short_one():
    work = Work(held=True)
    made = batcher(work, budget=4)
    first = made.submit([1])
    assert work.begun.acquire(timeout=10)
    long, short = made.submit([1] * 9), made.submit([1, 1])
    work.let(2)
    assert short.result(10) == [2, 2]
    assert not long.done()
    work.let(3)
    assert long.result(10) == [2] * 9
    assert first.done()
    made.close()


def test_without_batching_together_each_batch_is_of_one_caller():
    work = Work(held=True)
    made = batcher(work, together=False)
    futures = [made.submit([1])]
    assert work.begun.acquire(timeout=10)
    futures += [made.submit([2, 3]), made.submit([4])]
    work.let(3)
    assert [future.result(10) for future in futures] == [[2], [4, 6], [8]]
    assert work.batches == [[1], [2, 3], [4]]
    made.close()


def test_one_that_fails_spoils_no_other():
    work = Work(held=True)
    made = batcher(work)
    first = made.submit([1])
    assert work.begun.acquire(timeout=10)
    good, bad, other = made.submit([2, 3]), made.submit([4, 13]), made.submit([5])
    work.let(9)
    assert (first.result(10), good.result(10), other.result(10)) == ([2], [4, 6], [10])
    with pytest.raises(ValueError, match="13 is among 2"):
        bad.result(10)
    assert made.submit([7]).result(10) == [14]
    made.close()


def test_a_wrong_number_of_results_is_an_error_and_not_the_end():
    made = Batcher(lambda items: [1] * (3 - len(items)), lambda item: 1, 10, 10)
    with pytest.raises(ValueError, match="zip"):
        made.submit([1]).result(10)
    assert made.submit([1, 2]).exception(10)
    assert made.alive
    made.close()


def test_what_a_caller_has_given_up_is_not_worked_on():
    work = Work(held=True)
    made = batcher(work)
    first = made.submit([1])
    assert work.begun.acquire(timeout=10)
    given_up, kept = made.submit([2, 3]), made.submit([4])
    assert made.waiting == 3
    given_up.cancel()
    assert made.waiting == 1
    work.let(2)
    assert (first.result(10), kept.result(10)) == ([2], [8])
    assert work.batches == [[1], [4]]
    with pytest.raises(CancelledError):
        given_up.result(1)
    made.close()


def test_one_given_up_while_it_is_worked_on_is_forgotten():
    work = Work(held=True)
    made = batcher(work)
    future = made.submit([1])
    assert work.begun.acquire(timeout=10)
    assert future.cancel()
    work.let(2)
    assert made.submit([2]).result(10) == [4]
    made.close()


def test_more_than_may_wait_is_refused_until_there_is_room():
    work = Work(held=True)
    made = batcher(work, most_waiting=3)
    first = made.submit([1] * 5)  # a single caller may have more
    assert work.begun.acquire(timeout=10)
    second = made.submit([2, 2])
    with pytest.raises(Full, match="2 are waiting"):
        made.submit([3, 3])
    third = made.submit([3])
    with pytest.raises(Full):
        made.submit([4])
    second.cancel()
    fourth = made.submit([4])
    work.let(2)
    assert [future.result(10) for future in (first, third, fourth)] == [[2] * 5, [6], [8]]
    made.close()


def test_closing_ends_the_batch_at_hand_and_fails_the_rest():
    work = Work(held=True)
    made = batcher(work)
    first = made.submit([1])
    assert work.begun.acquire(timeout=10)
    second = made.submit([2])
    threading.Timer(0.2, work.let, [1]).start()
    made.close()
    assert first.result(1) == [2]
    with pytest.raises(Closed):
        second.result(1)
    with pytest.raises(Closed):
        made.submit([3])
    assert not made.alive
    assert work.batches == [[1]]


def test_the_observer_is_told_of_each_batch():
    seen: list[tuple[int, int, float]] = []
    work = Work(held=True)
    made = batcher(work, observe=lambda *told: seen.append(told))
    made.submit([1])
    assert work.begun.acquire(timeout=10)
    last = [made.submit([2, 3]), made.submit([4])]
    work.let(2)
    assert [future.result(10) for future in last] == [[4, 6], [8]]
    made.close()
    assert [told[:2] for told in seen] == [(1, 1), (2, 3)]
    assert all(0 < told[2] < 10 for told in seen)


def test_many_threads_get_what_they_asked_for():
    made = Batcher(lambda items: [time.sleep(0.001 * (items[0] % 3)) or item**2 for item in items], lambda item: 1, 7,
                   10_000)
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = made.submit(list(range(number, number + number % 9))).result(30)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.close()
    assert found == {number: [item**2 for item in range(number, number + number % 9)] for number in range(200)}
