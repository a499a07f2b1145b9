"""What a server has done, in the text format of Prometheus."""

from bisect import bisect_left
from collections import Counter
from threading import Lock

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """How many values are at most each of `bounds`."""

    def __init__(self, bounds: tuple[float, ...]):
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str = "") -> list[str]:
        total, lines = 0, []
        before = f"{labels}," if labels else ""
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{before}le="{bound}"}} {total}')
        braces = f"{{{labels}}}" if labels else ""
        return [*lines, f"{name}_sum{braces} {self._sum:.6f}", f"{name}_count{braces} {total}"]


class Counters:
    """Any thread may count."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, Histogram] = {}
        self._batch_items, self._batch_callers, self._batch_seconds = map(Histogram, (ITEMS, ITEMS, SECONDS))

    def request(self, path: str, status: int, seconds: float) -> None:
        with self._lock:
            self._requests[path, status] += 1
            self._seconds.setdefault(path, Histogram(SECONDS)).add(seconds)

    def batch(self, callers: int, items: int, seconds: float) -> None:
        with self._lock:
            self._batch_items.add(items)
            self._batch_callers.add(callers)
            self._batch_seconds.add(seconds)

    def text(self, waiting: int) -> str:
        """`waiting`: how many items are in no batch yet."""
        lines: list[str] = []

        def family(name: str, kind: str, text: str, values: list[str]) -> None:
            lines.extend([f"# HELP {name} {text}", f"# TYPE {name} {kind}", *values])

        with self._lock:
            family("pm_requests_total", "counter", "Requests by path and status; 499: the client has gone.", [
                f'pm_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._requests.items())])
            family("pm_request_seconds", "histogram", "From a request's head to the end of its answer.", [
                line for path, histogram in sorted(self._seconds.items())
                for line in histogram.lines("pm_request_seconds", f'path="{path}"')])
            family("pm_batch_items", "histogram", "Comparisons or texts of a batch.",
                   self._batch_items.lines("pm_batch_items"))
            family("pm_batch_requests", "histogram", "Requests that share a batch.",
                   self._batch_callers.lines("pm_batch_requests"))
            family("pm_batch_seconds", "histogram", "Time of a batch in the model.",
                   self._batch_seconds.lines("pm_batch_seconds"))
            family("pm_waiting_items", "gauge", "Comparisons or texts that are in no batch yet.",
                   [f"pm_waiting_items {waiting}"])
        return "\n".join(lines) + "\n"
