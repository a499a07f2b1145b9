"""Steps and micro-batches: literal small cases, and what holds for any lengths."""

import itertools

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pm.batches import Batches
from pm.encoding import Template
from pm.plan import (
    ATTENTION_LENGTH,
    EVALUATION_BLOCK,
    FIXED_COST,
    epoch_order,
    plan_evaluation,
    plan_step,
    steps_per_epoch,
)

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=100)

LENGTHS = st.lists(st.integers(1, 300) | st.integers(1, 8192), min_size=1, max_size=40)
BUDGET = st.integers(1, 20_000)
RANKS = st.integers(1, 9)


def cost(rows: int, longest: int) -> float:
    """The model of `pm.plan`, written out again: what a micro-batch costs."""
    return FIXED_COST + rows * longest * (1 + longest / ATTENTION_LENGTH)


def costs(plan, lengths) -> list[list[float]]:
    """Of each rank's micro-batches."""
    return [[cost(len(batch), max(lengths[row] for row in batch)) if batch else 0.0 for batch in batches]
            for batches in plan]


def log_normal(mean: float, sigma: float, count: int) -> np.ndarray:
    """Lengths in tokens with the median e**mean, as chat data has them: 20 to 8,192."""
    return np.clip(np.random.RandomState(0).lognormal(mean, sigma, count), 20, 8192).astype(np.int64)


def steps(lengths, train_batch_size, token_budget, ranks, epoch=0):
    order = epoch_order(len(lengths), 0, epoch)
    for step in range(steps_per_epoch(len(lengths), train_batch_size)):
        yield plan_step(lengths, order[step * train_batch_size : (step + 1) * train_batch_size], token_budget, ranks)


# The order of an epoch


def test_a_golden_order():
    assert epoch_order(10, 0, 0).tolist() == [9, 2, 6, 3, 0, 1, 5, 7, 8, 4]
    assert epoch_order(10, 0, 1).tolist() == [2, 4, 7, 6, 5, 9, 3, 1, 8, 0]
    assert epoch_order(5, 7, 3).tolist() == [2, 1, 4, 3, 0]


@FIXED
@given(st.integers(0, 500), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_order_is_a_permutation(rows, seed, epoch):
    assert sorted(epoch_order(rows, seed, epoch).tolist()) == list(range(rows))


def test_an_order_depends_on_nothing_but_rows_seed_and_epoch():
    np.random.seed(1)
    once = epoch_order(1000, 0, 0)
    np.random.seed(2)
    assert epoch_order(1000, 0, 0).tolist() == once.tolist()
    for other in (epoch_order(1000, 1, 0), epoch_order(1000, 0, 1)):
        assert (other == once).mean() < 0.02


@pytest.mark.parametrize(("rows", "train_batch_size", "wanted"), [
    (8, 4, 2), (9, 4, 3), (1, 4, 1), (4, 4, 1), (3, 1, 3), (0, 4, 0)])
def test_steps_per_epoch(rows, train_batch_size, wanted):
    assert steps_per_epoch(rows, train_batch_size) == wanted


# One step


def test_rows_are_sorted_from_long_to_short_and_ties_keep_their_order():
    assert plan_step(np.array([5, 3, 9, 5]), np.array([3, 1, 0, 2]), 1000, 1) == [[[2, 3, 0, 1]]]


def test_rows_of_one_length_fill_the_budget():
    lengths, rows = np.array([100] * 4), np.arange(4)
    assert plan_step(lengths, rows, 200, 1) == [[[0, 1], [2, 3]]]
    assert plan_step(lengths, rows, 200, 2) == [[[0, 1]], [[2, 3]]]
    assert plan_step(lengths, rows, 200, 3) == [[[0, 1]], [[2]], [[3]]]
    assert plan_step(lengths, rows, 200, 4) == [[[0]], [[1]], [[2]], [[3]]]
    assert plan_step(lengths, rows, 400, 1) == [[[0, 1, 2, 3]]]


def test_a_rank_without_rows_has_an_empty_micro_batch():
    assert plan_step(np.array([100] * 3), np.arange(3), 100, 2) == [[[0], [2]], [[], [1]]]
    assert plan_step(np.array([100]), np.arange(1), 100, 3) == [[[0]], [[]], [[]]]


def test_a_row_longer_than_the_budget_is_alone():
    assert plan_step(np.array([500, 10, 10]), np.arange(3), 100, 1) == [[[0], [1, 2]]]
    assert plan_step(np.array([500, 400, 10]), np.arange(3), 100, 1) == [[[0], [1], [2]]]


def test_the_list_is_cut_where_padding_would_cost_more_than_a_micro_batch():
    """One piece of all four would pad two rows from 100 to 1,000."""
    assert plan_step(np.array([1000, 1000, 100, 100]), np.arange(4), 100_000, 1) == [[[0, 1], [2, 3]]]
    assert plan_step(np.array([100, 100, 90, 90]), np.arange(4), 100_000, 1) == [[[0, 1, 2, 3]]]


def test_the_dearest_piece_goes_to_the_rank_with_the_least_to_do():
    # Piece 1: rows 0 and 1; piece 2: rows 2 and 3, the longer of which goes to the rank that had row 1.
    plan = plan_step(np.array([4000, 3000, 1000, 500]), np.arange(4), 4000, 2)
    assert plan == [[[0], [3]], [[1], [2]]]


def test_rows_are_row_numbers_and_not_places():
    assert plan_step(np.array([9, 100, 9, 100, 9]), np.array([3, 1]), 100, 1) == [[[3], [1]]]


def test_no_rows_no_micro_batches():
    assert plan_step(np.array([], dtype=int), np.array([], dtype=int), 100, 2) == [[], []]
    assert plan_evaluation(np.array([], dtype=int), 100, 2) == [[], []]


@FIXED
@given(LENGTHS, BUDGET, RANKS)
@example([8192] * 40, 1, 9)
@example([1], 20_000, 9)
def test_a_step_has_every_row_once_within_the_budget_on_equal_counts(lengths, token_budget, ranks):
    lengths = np.array(lengths)
    rows = np.random.RandomState(0).permutation(len(lengths))
    plan = plan_step(lengths, rows, token_budget, ranks)
    assert len(plan) == ranks
    assert len({len(batches) for batches in plan}) == 1
    flat = [row for batches in plan for batch in batches for row in batch]
    assert all(type(row) is int for row in flat)
    assert sorted(flat) == list(range(len(lengths)))
    for batches in plan:
        for batch in batches:
            assert len(batch) <= 1 or len(batch) * lengths[batch].max() <= token_budget


@FIXED
@given(LENGTHS, BUDGET, RANKS)
def test_every_step_of_micro_batches_has_a_row_on_some_rank(lengths, token_budget, ranks):
    plan = plan_step(np.array(lengths), np.arange(len(lengths)), token_budget, ranks)
    assert all(any(batches) for batches in zip(*plan, strict=True))


@FIXED
@given(LENGTHS, BUDGET, RANKS)
def test_a_plan_is_pure(lengths, token_budget, ranks):
    lengths, rows = np.array(lengths), np.arange(len(lengths))
    before = lengths.copy(), rows.copy()
    once = plan_step(lengths, rows, token_budget, ranks)
    assert plan_step(lengths, rows, token_budget, ranks) == once
    assert plan_step(lengths.astype(np.int32), rows.astype(np.int32), token_budget, ranks) == once
    assert np.array_equal(lengths, before[0])
    assert np.array_equal(rows, before[1])


@FIXED
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=8), st.integers(1, 5000), st.integers(1, 3))
def test_no_cut_of_the_sorted_rows_costs_less(lengths, token_budget, ranks):
    """Against all cuts; the cost of one counts, for each piece, the rank that has most of its rows."""
    lengths = np.array(sorted(lengths, reverse=True))
    count = len(lengths)

    def price(cuts) -> float:
        total = 0.0
        for start, end in itertools.pairwise((0, *cuts, count)):
            most = -(-(end - start) // ranks)
            if most > 1 and most * lengths[start] > token_budget:
                return float("inf")
            total += cost(most, lengths[start])
        return total

    cheapest = min(price(cuts) for number in range(count) for cuts in itertools.combinations(range(1, count), number))
    plan = plan_step(lengths, np.arange(count), token_budget, ranks)
    sizes = [sum(map(len, batches)) for batches in zip(*plan, strict=True)]
    assert price(tuple(itertools.accumulate(sizes[:-1]))) == pytest.approx(cheapest)


@FIXED
@given(LENGTHS, BUDGET, RANKS)
def test_loads_of_ranks_differ_by_no_more_than_the_dearest_micro_batch(lengths, token_budget, ranks):
    plan = plan_step(np.array(lengths), np.arange(len(lengths)), token_budget, ranks)
    by_rank = costs(plan, lengths)
    loads = [sum(rank) for rank in by_rank]
    assert max(loads) - min(loads) <= max(map(max, by_rank)) + 1e-6


@pytest.mark.parametrize(("ranks", "limit"), [(2, 1.03), (4, 1.10), (8, 1.30)])
def test_ranks_wait_little_for_each_other(ranks, limit):
    """What the slowest rank costs over the mean of all ranks, summed over the steps."""
    lengths = log_normal(5.5, 0.8, 6400)
    slowest = mean = 0.0
    for plan in steps(lengths, 64, 8192, ranks):
        loads = [sum(rank) for rank in costs(plan, lengths)]
        slowest += max(loads)
        mean += sum(loads) / ranks
    assert slowest / mean < limit


@pytest.mark.parametrize(("mean", "sigma"), [(5.0, 1.0), (5.5, 0.8), (6.0, 0.6), (6.0, 0.9)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_padding_is_under_8_percent(mean, sigma, ranks):
    lengths = log_normal(mean, sigma, 6400)
    padded = 0
    for plan in steps(lengths, 64, 8192, ranks):
        padded += sum(len(batch) * lengths[batch].max() for batches in plan for batch in batches if batch)
    assert 1 - lengths.sum() / padded < 0.08


# An epoch


def test_the_last_step_takes_the_rows_that_are_left():
    lengths = np.full(10, 100)
    found = list(steps(lengths, 4, 200, 1))
    assert [sum(map(len, batches)) for plan in found for batches in plan] == [4, 4, 2]
    assert sorted(row for plan in found for batches in plan for batch in batches for row in batch) == list(range(10))


@FIXED
@given(LENGTHS, st.integers(1, 50), BUDGET, RANKS, st.integers(0, 3))
def test_an_epoch_has_every_row_once(lengths, train_batch_size, token_budget, ranks, epoch):
    found = list(steps(np.array(lengths), train_batch_size, token_budget, ranks, epoch))
    assert sorted(row for plan in found for batches in plan for batch in batches for row in batch) == list(
        range(len(lengths)))
    sizes = [sum(len(batch) for batches in plan for batch in batches) for plan in found]
    assert sizes[:-1] == [train_batch_size] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= train_batch_size


@FIXED
@given(LENGTHS, BUDGET, RANKS)
def test_an_evaluation_has_every_row_once_within_the_budget_on_equal_counts(lengths, token_budget, ranks):
    lengths = np.array(lengths)
    plan = plan_evaluation(lengths, token_budget, ranks)
    assert len({len(batches) for batches in plan}) == 1
    assert sorted(row for batches in plan for batch in batches for row in batch) == list(range(len(lengths)))
    for batches in plan:
        for batch in batches:
            assert len(batch) <= 1 or len(batch) * lengths[batch].max() <= token_budget


@pytest.mark.parametrize("rows", [EVALUATION_BLOCK - 1, EVALUATION_BLOCK, EVALUATION_BLOCK + 1, 3 * EVALUATION_BLOCK])
def test_an_evaluation_of_several_blocks_has_every_row_once(rows):
    lengths = log_normal(5.5, 0.8, rows)
    plan = plan_evaluation(lengths, 8192, 2)
    assert len(plan[0]) == len(plan[1])
    assert sorted(row for batches in plan for batch in batches for row in batch) == list(range(rows))


# Batches: the plan with its tensors


TEMPLATE = Template(bos=1, eos=2, pad=0, start=3, end=4, roles={"system": 7, "user": 5, "assistant": 6})


def batches(count=10, train_batch_size=4, token_budget=40, orders="both", seed=0) -> Batches:
    """Row n has the id n, the prompt token 100 + n and the length 13."""
    rows = Dataset.from_dict({
        "id": [str(number) for number in range(count)],
        "prompt_ids": [[3, 5, 100 + number, 4] for number in range(count)],
        "a_ids": [[60]] * count, "b_ids": [[70]] * count, "target": [[1.0, 0.0]] * count, "tokens": [14] * count})
    return Batches(rows, TEMPLATE, train_batch_size, token_budget, orders, seed)


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")


def test_a_step_of_batches_is_the_plan_of_its_rows():
    count, found = batches().step(0)
    assert count == 4
    assert [batch.ids for batch in found] == [["9"], ["2"], ["6"], ["3"]]  # 2 sequences of 14 tokens in a budget of 40
    assert [batch.weight for batch in found] == [1.0] * 4
    assert found[0].tensors["input_ids"].tolist() == [[1, 3, 5, 109, 4, 3, 6, 60, 4, 3, 6, 70, 4, 2],
                                                      [1, 3, 5, 109, 4, 3, 6, 70, 4, 3, 6, 60, 4, 2]]


def test_the_tail_step_of_batches_is_smaller_and_the_next_epoch_has_another_order():
    made = batches()
    ids = []
    for step in range(6):
        count, found = made.step(step)
        assert count == (4, 4, 2)[step % 3]
        ids += [identifier for batch in found for identifier in batch.ids]
    assert ids == list("9263015784" "2476593180")


def test_a_step_of_batches_does_not_depend_on_the_steps_before():
    made, other = batches(orders="random"), batches(orders="random")
    steps_before = [made.step(number) for number in range(7)]
    count, found = other.step(5)
    assert count == steps_before[5][0]
    for one, again in zip(found, steps_before[5][1], strict=True):
        assert one.ids == again.ids
        assert {name: tensor.tolist() for name, tensor in one.tensors.items()} == {
            name: tensor.tolist() for name, tensor in again.tensors.items()}


def test_ranks_share_a_step_and_fill_in_with_weight_0(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        count, of_rank = batches(count=3, train_batch_size=3).step(0)
        assert count == 3
        found.append([(batch.ids, batch.weight) for batch in of_rank])
    order = [str(row) for row in epoch_order(3, 0, 0)]
    assert found == [[([order[0]], 1.0), ([order[2]], 1.0)], [([order[0]], 0.0), ([order[1]], 1.0)]]
