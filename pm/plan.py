"""Which rows make up a step, and how they are cut into micro-batches. Pure: numbers in, indices out.

A global batch is drawn at random; only inside it are rows sorted by length or packed, which changes the speed
and never the gradient. A step's plan depends on (lengths, train_batch_size, token budget, ranks, seed, epoch)
and on nothing else, so to resume is to seek. Where rows are not used equally often, their rates decide as well.
"""

import hashlib
import heapq
import math
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from pm.errors import UserError

# The cost of one micro-batch, in units of one token's share of the linear layers: what a micro-batch costs by
# itself (launches, padding it to a matrix), and the length at which attention costs as much as the linear layers.
FIXED_COST = 128.0
ATTENTION_LENGTH = 4096.0
EVALUATION_BLOCK = 1024
STARTS_AT_ONCE = 64

# Rates are added up as whole numbers of 1 / 2**FRACTION_BITS, so that no rounding loses a row or doubles one.
FRACTION_BITS = 32
GOLDEN = 0x9E3779B9  # (sqrt(5) - 1) / 2 in that unit; its multiples spread evenly over 0..1


def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(rows)` for one epoch; the same on every machine and NumPy version."""
    digest = hashlib.sha256(f"order {seed} {epoch}".encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "little")).permutation(rows)


def steps_per_epoch(rows: int, train_batch_size: int) -> int:
    """The last step of an epoch takes the rows that are left: they are used, not dropped."""
    return -(-rows // train_batch_size)


def sampling_rates(languages: Sequence[str], weights: np.ndarray, temperature: float) -> np.ndarray:
    """How often each row is used per epoch, float64 (N,).

    `weights` (N,) is the same by source alone, at least 0. The share p of a language, by weight, becomes
    p**temperature / sum (Conneau et al. 2020, section 3.1, where it is alpha): 1 changes nothing, 0 makes the
    languages equal. The rates have the sum of the weights, and inside a language their proportions.
    Raises `UserError` where all weights are 0.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if not weights.any():
        raise UserError(f"the weights of all {len(weights)} rows are 0; no row is left to train on")
    if temperature == 1:
        return weights.copy()
    number: dict[str, int] = {}
    language_N = np.fromiter((number.setdefault(name, len(number)) for name in languages), np.int64, len(weights))
    sums = np.bincount(language_N, weights)
    present = sums > 0
    wanted = np.where(present, (sums / sums.max()) ** temperature, 0.0)
    inside = np.divide(weights, sums[language_N], out=np.zeros_like(weights), where=present[language_N])
    return inside * (wanted / wanted.sum() * sums.sum())[language_N]


def rows_per_epoch(rates: np.ndarray) -> int:
    """How many rows `epoch_rows` gives: the sum of the rates to the nearest whole number, at least 1."""
    return max(1, round(math.fsum(rates))) if len(rates) else 0


def epoch_rows(rates: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Row numbers of one epoch in the order of use, int64 (`rows_per_epoch`,). Rates of 1 give `epoch_order`.

    Systematic sampling: rows lie side by side, each as wide as its rate, and every whole number takes the row it
    falls on. Over the epochs the row of whole numbers moves on by the golden ratio, so that rows take turns: in
    one epoch a row stands its rate times, rounded up or down, and over the epochs as often as its rate says.
    Rates are at least 0, their sum is more; they are scaled so that the sum is a whole number.
    """
    count = rows_per_epoch(rates)
    if not count:
        return np.empty(0, dtype=np.int64)
    side_by_side = epoch_order(len(rates), seed, -1)  # of no epoch: the same in all
    ends = np.cumsum(np.asarray(rates, dtype=np.float64)[side_by_side])
    total = count << FRACTION_BITS
    scaled = np.rint(ends * (count / ends[-1]) * 2.0**FRACTION_BITS).astype(np.int64)
    ends = np.where(ends < ends[-1], np.minimum(scaled, total), total)  # a last row of rate 0 gains no width either
    moved = epoch * GOLDEN % 2**FRACTION_BITS
    times = np.empty(len(rates), dtype=np.int64)
    times[side_by_side] = np.diff((ends + moved) >> FRACTION_BITS, prepend=0)
    return np.repeat(np.arange(len(rates)), times)[epoch_order(count, seed, epoch)]


def plan_packs(tokens: np.ndarray, costs: np.ndarray, rows: np.ndarray, token_budget: int,
               ranks: int) -> list[list[list[int]]]:
    """Deals one global batch to packs without padding: `plan[rank][micro_batch]` is a list of row numbers.

    Every rank gets the same number of micro-batches (ZeRO 2 and 3 reduce at every backward); one that has no
    rows is empty. Ranks have nearly equal sums of `costs`, and the micro-batches of a rank nearly equal tokens, at most
    `token_budget`; a single row with more is a micro-batch of its own.
    """
    parts = [rows[part] for part in balance(costs[rows], ranks)]
    count = max(1, max(-(-int(np.minimum(tokens[part], token_budget).sum()) // token_budget) for part in parts))
    while True:
        plan = [[part[some].tolist() for some in balance(tokens[part], count)] for part in parts]
        if all(len(some) < 2 or tokens[some].sum() <= token_budget for packs in plan for some in packs):
            return plan
        count += 1 + count // 8


def balance(costs: np.ndarray, parts: int) -> list[list[int]]:
    """Numbers of `costs` in `parts` lists with nearly equal sums, by the largest differencing method (Karmarkar and
    Karp 1982): of all partial solutions, the two that are least even are joined, the largest part to the smallest."""
    empty = [(0.0, ())] * (parts - 1)
    heap = [(-float(cost), number, [*empty, (float(cost), (number,))]) for number, cost in enumerate(costs)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, number, one), (_, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        joined = sorted((low + high, some + others) for (low, some), (high, others)
                        in zip(one, reversed(other), strict=True))
        heapq.heappush(heap, (joined[0][0] - joined[-1][0], number, joined))
    return [sorted(numbers) for _, numbers in heap[0][2]] if heap else [[] for _ in range(parts)]


def attention_cost(tokens):
    """The cost of the attention of a sequence, in units of one token's share of the linear layers."""
    return tokens * (tokens / ATTENTION_LENGTH)


def plan_step(lengths: np.ndarray, rows: np.ndarray, token_budget: int, ranks: int) -> list[list[list[int]]]:
    """Cuts one global batch into padded micro-batches, in the form of `plan_packs`.

    Of all cuts in which `rows * longest` stays within `token_budget` per rank, the one with the lowest modelled cost is
    taken. A single row longer than the budget is a micro-batch of its own.
    """
    rows = np.asarray(rows)
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    cuts = _cut(lengths[rows].astype(np.float64), token_budget, ranks)
    longest, numbers = lengths[rows].tolist(), rows.tolist()
    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for start, end in cuts:
        # One piece for each rank, the longest rows first, the dearest piece to the rank with the least to do.
        size, larger = divmod(end - start, ranks)
        for piece, rank in enumerate(sorted(range(ranks), key=load.__getitem__)):
            stop = start + size + (piece < larger)
            plan[rank].append(numbers[start:stop])
            if start < stop:
                load[rank] += _cost(stop - start, longest[start])
            start = stop
    return plan


def plan_evaluation(lengths: np.ndarray, token_budget: int, ranks: int) -> list[list[list[int]]]:
    """Padded micro-batches of all rows, sorted by length and dealt to the ranks.

    A micro-batch holds the same rows for any number of ranks, so that their logits have the same bits. Every rank gets
    the same number of micro-batches; those that have no rows are empty.
    """
    order = np.argsort(-lengths, kind="stable")
    micro_batches: list[list[int]] = []
    for start in range(0, len(order), EVALUATION_BLOCK):  # in blocks, so that the time stays linear
        micro_batches += plan_step(lengths, order[start : start + EVALUATION_BLOCK], token_budget, 1)[0]
    return _deal(micro_batches, ranks)


def plan_packed_evaluation(alone: np.ndarray, after: np.ndarray, prompts: Sequence[Hashable], token_budget: int,
                           ranks: int) -> list[list[list[int]]]:
    """As `plan_evaluation`, but packed: rows of the same prompt follow each other, and in a pack the first of them
    takes its tokens `alone`, the others those `after` one (`collator.packed_tokens`)."""
    rows_of: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(prompt, []).append(row)
    micro_batches: list[list[int]] = []
    left = 0
    for rows in rows_of.values():
        for place, row in enumerate(rows):
            taken = int(after[row] if place else alone[row])
            if taken > left:
                micro_batches.append([])
                taken, left = int(alone[row]), token_budget
            micro_batches[-1].append(row)
            left -= taken
    return _deal(micro_batches, ranks)


def _deal(micro_batches: list[list[int]], ranks: int) -> list[list[list[int]]]:
    micro_batches += [[]] * (-len(micro_batches) % ranks)
    return [micro_batches[rank::ranks] for rank in range(ranks)]


def _cost(rows, length):
    return FIXED_COST + rows * (length + attention_cost(length))


def _cut(lengths: np.ndarray, token_budget: int, ranks: int) -> list[tuple[int, int]]:
    """Where to cut lengths sorted from long to short: dynamic programming over the start of the next piece."""
    count = len(lengths)
    fits = ranks * np.maximum(1, token_budget // np.maximum(1.0, lengths))
    last_end = np.minimum(np.arange(count) + fits, count).astype(np.int64)  # of a piece from each start; it never falls
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    for start, costs in enumerate(_costs_from_each_start(lengths, last_end, ranks)):
        to_each_end = best[start + 1 : start + 1 + len(costs)]
        np.minimum(to_each_end, costs + best[start], out=to_each_end)
    cuts = []
    while count:
        first = int(last_end.searchsorted(count))
        per_rank = -(-np.arange(count - first, 0, -1) // ranks)
        start = first + int((best[first:count] + _cost(per_rank, lengths[first:count])).argmin())
        cuts.append((start, count))
        count = start
    return cuts[::-1]


def _costs_from_each_start(lengths: np.ndarray, last_end: np.ndarray, ranks: int) -> Iterator[np.ndarray]:
    """For each start the costs of pieces of 1, 2, ... rows, to its last end; many starts at once take less time."""
    rows = last_end - np.arange(len(lengths))
    for first in range(0, len(lengths), STARTS_AT_ONCE):
        some = slice(first, first + STARTS_AT_ONCE)
        per_rank = -(-np.arange(1, rows[some].max() + 1) // ranks)
        for costs, count in zip(_cost(per_rank, lengths[some, None]), rows[some].tolist(), strict=True):
            yield costs[:count]
