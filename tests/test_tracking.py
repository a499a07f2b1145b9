"""The numbers of a training step, from micro-batches written out."""

import math

import pytest
import torch

from pm.batches import MicroBatch
from pm.tracking import StepStatistics

CPU = torch.device("cpu")
A, B, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


def statistics(*parts, compares: bool = True, orders: int = 2) -> StepStatistics:
    """Of micro-batches (logits by row and order, targets); each row's loss is 0.5, its sequences have 3 tokens and a
    pad. The ids count up from 0."""
    made = StepStatistics(CPU, compares, orders)
    count = 0
    for logits, targets in parts:
        ids = [str(count + number) for number in range(len(targets))]
        micro_batch = MicroBatch(ids, {}, 3 * len(ids) * orders, len(ids) * orders, 1.0)
        count += len(targets)
        made.add(micro_batch, torch.tensor(targets), torch.tensor(logits), torch.full((len(targets),), 0.5))
    return made


def test_both_orders_by_hand():
    # Margins of a over b in each order, and their mean:
    logits_NOC = [[[3.0, 0.0], [1.0, 0.0]],  # 3, 1: a
                  [[3.0, 0.0], [0.0, 1.0]],  # 3, -1: a, flips
                  [[1.0, 0.0], [0.0, 3.0]],  # 1, -3: b, flips
                  [[0.0, 1.0], [0.0, 1.0]]]  # -1, -1: b
    numbers = statistics((logits_NOC, [A, B, B, TIE])).reduce(4, False).numbers
    assert numbers == {"loss": 0.5, "accuracy": 2 / 3, "padding": 0.25, "flip_rate": 2 / 4}


def test_an_even_verdict_counts_half_and_is_another_than_a():
    numbers = statistics(([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]],
                          [A, A, B])).reduce(3, False).numbers
    assert (numbers["accuracy"], numbers["flip_rate"]) == ((0.5 + 1 + 0.5) / 3, 2 / 3)


def test_micro_batches_add_up():
    right, wrong = [[2.0, 0.0], [2.0, 0.0]], [[0.0, 2.0], [0.0, 2.0]]
    values = statistics(([right, right, wrong], [A, A, A]), ([wrong], [A])).reduce(4, False)
    assert values.numbers == {"loss": 0.5, "accuracy": 0.5, "padding": 0.25, "flip_rate": 0.0}
    assert (values.tokens, values.stop) == (4 * 2 * 3, False)


def test_one_order_has_no_flip_rate():
    numbers = statistics(([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 2.0]]], [A, B, B]), orders=1).reduce(3, False).numbers
    assert numbers == {"loss": 0.5, "accuracy": 2 / 3, "padding": 0.25}


def test_a_verdict_is_between_a_and_b_whatever_a_tie_has():
    logits_NOC = [[[2.0, 0.0, 1.0], [2.0, 0.0, 9.0]],  # a, a
                  [[0.0, 1.0, 9.0], [5.0, 0.0, 0.0]],  # b, a: together a
                  [[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]],  # b, b
                  [[1.0, 0.0, 0.5], [1.0, 0.0, 0.5]]]  # a, a
    targets_NC = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    numbers = statistics((logits_NOC, targets_NC)).reduce(4, False).numbers
    assert numbers == {"loss": 0.5, "accuracy": 2 / 3, "padding": 0.25, "flip_rate": 1 / 4}


def test_only_ties_are_as_good_as_chance():
    assert statistics(([[[1.0, 0.0], [1.0, 0.0]]], [TIE])).reduce(1, False).numbers["accuracy"] == 0.5


def test_a_classification_is_right_where_its_most_probable_class_is():
    logits_NOC = [[[1.0, 0.0, 2.0]], [[1.0, 0.0, 2.0]], [[0.0, 3.0, 1.0]], [[0.0, 3.0, 1.0]]]
    targets_NC = [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.4, 0.2, 0.4]]
    numbers = statistics((logits_NOC, targets_NC), compares=False, orders=1).reduce(4, False).numbers
    assert numbers == {"loss": 0.5, "accuracy": 2 / 4, "padding": 0.25}


def test_rows_that_fill_in_do_not_count():
    made = statistics(([[[1.0, 0.0], [1.0, 0.0]]], [A]))
    filling = MicroBatch(["9"], {}, 198, 5, 0.0)
    made.add(filling, torch.tensor([B]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([math.nan]))
    values = made.reduce(1, False)
    assert values.numbers == {"loss": 0.5, "accuracy": 1.0, "padding": 0.25, "flip_rate": 0.0}
    assert values.tokens == 6
    assert made.suspects() == "0"


def test_stop_arrives():
    assert statistics(([[[1.0, 0.0], [1.0, 0.0]]], [A])).reduce(1, True).stop is True


@pytest.mark.parametrize(("losses", "wanted"), [
    ([0.5, math.nan, 1.0, math.inf], "b, d"), ([0.5, 0.5, 0.5, 0.5], "a, b, c, d")])
def test_suspects_are_the_rows_whose_loss_is_not_finite_else_all(losses, wanted):
    made = StepStatistics(CPU, True, 1)
    for ids, loss in ((["a", "b"], losses[:2]), (["c", "d"], losses[2:])):
        made.add(MicroBatch(ids, {}, 6, 0, 1.0), torch.tensor([A, B]), torch.zeros(2, 1, 2), torch.tensor(loss))
    assert made.suspects() == wanted
