"""Dynamic batching: what several callers want at the same time is worked on together. Knows neither models nor HTTP."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Condition, Thread


class Full(Exception):
    """As many items are waiting as may wait."""


class Closed(Exception):
    """The batcher was closed before the items were worked on."""


class _Call:
    """The items of one caller: the first `taken` of them are in a batch or done."""

    def __init__(self, items: Sequence):
        self.items = items
        self.taken = 0
        self.results: list = []
        self.future: Future = Future()

    @property
    def left(self) -> int:
        return len(self.items) - self.taken

    def settle(self, results: list | None = None, error: Exception | None = None) -> None:
        """The first answer counts, and none where the caller has given up."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            if error:
                self.future.set_exception(error)
            else:
                self.future.set_result(results)


class Batcher:
    """One thread that calls `work` with items of as many callers as are waiting, and hands each caller its results.

    A batch holds at most `budget`, of which an item takes `cost(item)`, and at least one item. It never waits for more:
    where nothing else is waiting, an item is worked on at once. Callers take turns item by item, so that a long list
    does not hold up the short ones behind it. Of a caller who cancels the future, nothing more is taken. Where `work`
    fails on a batch, each caller's items in it are worked on again by themselves, and only those that fail again get
    the error. At most `most_waiting` items wait, but for a single caller's.

    `together=False`: a batch holds the items of one caller only. `observe(callers, items, seconds)` is told of each
    batch.
    """

    def __init__(self, work: Callable[[list], Sequence], cost: Callable[[object], int], budget: int, most_waiting: int,
                 together: bool = True, observe: Callable[[int, int, float], None] = lambda *_: None):
        self._work, self._cost, self._observe = work, cost, observe
        self._budget, self._most_waiting, self._together = budget, most_waiting, together
        self._calls: deque[_Call] = deque()
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many items are in no batch yet."""
        with self._changed:
            return self._count()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, items: Sequence) -> Future:
        """The future of the results, in the order of the items. Raises `Full` or `Closed`."""
        call = _Call(items)
        if not items:
            call.settle([])
            return call.future
        with self._changed:
            if self._closed:
                raise Closed("closed")
            waiting = self._count()
            if waiting and waiting + len(items) > self._most_waiting:
                raise Full(f"{waiting} are waiting")
            self._calls.append(call)
            self._changed.notify()
        return call.future

    def close(self) -> None:
        """Ends the batch that is being worked on; what still waits fails with `Closed`."""
        with self._changed:
            self._closed = True
            left = list(self._calls)
            self._changed.notify()
        self._thread.join()
        for call in left:
            call.settle(error=Closed("closed"))

    def _count(self) -> int:
        return sum(call.left for call in self._calls if not call.future.done())

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._closed)
                if self._closed:
                    return
                batch = self._take()
            if batch:
                started = time.perf_counter()
                self._work_on(batch)
                self._observe(len({id(call) for call, _ in batch}), len(batch), time.perf_counter() - started)

    def _take(self) -> list[tuple[_Call, int]]:
        """The items of the next batch, each as a call and a place in it; in each call the places are in order."""
        batch: list[tuple[_Call, int]] = []
        spent = 0
        while self._calls:
            call = self._calls[0]
            if call.future.done():  # given up, or failed
                self._calls.popleft()
                continue
            spent += self._cost(call.items[call.taken])
            if batch and spent > self._budget:
                break
            batch.append((call, call.taken))
            call.taken += 1
            if not call.left:
                self._calls.popleft()
            if not self._together and not call.left:
                break
            if self._together and call.left:
                self._calls.rotate(-1)
        return batch

    def _work_on(self, batch: list[tuple[_Call, int]]) -> None:
        calls, done = list(dict.fromkeys(call for call, _ in batch)), []
        try:
            done = list(zip(batch, self._work([call.items[place] for call, place in batch]), strict=True))
        except Exception as error:
            if len(calls) == 1:
                calls[0].settle(error=error)
                return
        if not done:  # each call alone, when what the error held of their common pass is gone
            for call in calls:
                self._work_on([one for one in batch if one[0] is call])
        for (call, _), result in done:
            call.results.append(result)
            if len(call.results) == len(call.items):
                call.settle(call.results)
