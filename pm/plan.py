"""Which rows make up a step, and how they are cut into micro-batches. Pure: numbers in, indices out.

A global batch is drawn at random; only inside it are rows sorted by length, so bucketing changes the speed
and never the gradient. A step's plan depends on (lengths, train_batch_size, token budget, ranks, seed, epoch)
and on nothing else, so to resume is to seek.
"""

import hashlib

import numpy as np

# The cost of one micro-batch, in units of one token's share of the linear layers: what a micro-batch costs by
# itself (launches, padding it to a matrix), and the length at which attention costs as much as the linear layers.
FIXED_COST = 128.0
ATTENTION_LENGTH = 4096.0
EVALUATION_BLOCK = 1024


def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(rows)` for one epoch; the same on every machine and NumPy version."""
    digest = hashlib.sha256(f"order {seed} {epoch}".encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "little")).permutation(rows)


def steps_per_epoch(rows: int, train_batch_size: int) -> int:
    """The last step of an epoch takes the rows that are left: they are used, not dropped."""
    return -(-rows // train_batch_size)


def plan_step(lengths: np.ndarray, rows: np.ndarray, token_budget: int, ranks: int) -> list[list[list[int]]]:
    """Cuts one global batch into micro-batches: `plan[rank][micro_batch]` is a list of row numbers.

    Every rank gets the same number of micro-batches (ZeRO 2 and 3 reduce at every backward); one that has no
    rows is empty. Of all cuts in which `rows * longest` stays within `token_budget` per rank, the one with the
    lowest modelled cost is taken. A single row longer than the budget is a micro-batch of its own.
    """
    rows = np.asarray(rows)
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    load = np.zeros(ranks)
    for start, end in _cut(lengths[rows].astype(np.float64), token_budget, ranks):
        # One piece for each rank, the longest rows first, the dearest piece to the rank with the least to do.
        pieces = [piece.tolist() for piece in np.array_split(rows[start:end], ranks)]
        for piece, rank in zip(pieces, np.argsort(load, kind="stable"), strict=True):
            plan[rank].append(piece)
            load[rank] += _cost(len(piece), lengths[piece[0]]) if piece else 0.0
    return plan


def plan_evaluation(lengths: np.ndarray, token_budget: int, ranks: int) -> list[list[list[int]]]:
    """`plan_step` over all rows, sorted by length and taken in blocks so that the time stays linear."""
    order = np.argsort(-lengths, kind="stable")
    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    for start in range(0, len(order), EVALUATION_BLOCK):
        block = plan_step(lengths, order[start : start + EVALUATION_BLOCK], token_budget, ranks)
        for rank in range(ranks):
            plan[rank] += block[rank]
    return plan


def _cost(rows, length):
    return FIXED_COST + rows * length * (1 + length / ATTENTION_LENGTH)


def _cut(lengths: np.ndarray, token_budget: int, ranks: int) -> list[tuple[int, int]]:
    """Where to cut lengths sorted from long to short: dynamic programming over the end of the last piece."""
    count = len(lengths)
    best = np.zeros(count + 1)
    cut_before = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        widest = ranks * max(1, int(token_budget // max(1.0, lengths[end - 1])))
        starts = np.arange(max(0, end - widest), end)
        per_rank = -(-(end - starts) // ranks)
        longest = lengths[starts]
        cost = best[starts] + _cost(per_rank, longest)
        cost[(per_rank * longest > token_budget) & (per_rank > 1)] = np.inf
        cheapest = int(np.argmin(cost))
        best[end], cut_before[end] = cost[cheapest], starts[cheapest]
    cuts = []
    while count:
        cuts.append((int(cut_before[count]), count))
        count = int(cut_before[count])
    return cuts[::-1]
