"""Rows to tensors, written out; and the draw of orders."""

import copy

import pytest
import torch

from pm.collator import Collator, draw_orders
from pm.encoding import Template

COLLATE = Collator(Template(bos=1, eos=2, pad=0, start=3, end=4, roles={"system": 7, "user": 5, "assistant": 6}))
ROWS = [
    {"id": "1", "prompt_ids": [3, 5, 50, 4], "a_ids": [60], "b_ids": [70, 71], "target": [1.0, 0.0]},
    {"id": "2", "prompt_ids": [3, 5, 51, 4], "a_ids": [61], "b_ids": [72], "target": [0.0, 1.0]},
]


def assert_batch(batch, input_ids, attention_mask, swapped, target):
    assert set(batch) == {"input_ids", "attention_mask", "swapped", "target"}
    for name, wanted in (("input_ids", torch.tensor(input_ids)), ("attention_mask", torch.tensor(attention_mask)),
                         ("swapped", torch.tensor(swapped)), ("target", torch.tensor(target))):
        assert batch[name].dtype == wanted.dtype
        assert torch.equal(batch[name], wanted)


def test_the_example_of_the_docstring():
    assert_batch(
        COLLATE(ROWS, [[False, True], [False]]),
        input_ids=[[1, 3, 5, 50, 4, 3, 6, 60, 4, 3, 6, 70, 71, 4, 2],
                   [1, 3, 5, 50, 4, 3, 6, 70, 71, 4, 3, 6, 60, 4, 2],
                   [1, 3, 5, 51, 4, 3, 6, 61, 4, 3, 6, 72, 4, 2, 0]],
        attention_mask=[[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
                        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
                        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]],
        swapped=[False, True, False],
        target=[[1.0, 0.0], [0.0, 1.0]])


def test_both_orders_in_one_sequence_as_in_the_docstring():
    batch = COLLATE.both_orders(ROWS)
    assert batch["input_ids"].tolist() == [
        [1, 3, 5, 50, 4, 3, 6, 60, 4, 3, 6, 70, 71, 4, 2, 3, 6, 70, 71, 4, 3, 6, 60, 4, 2],
        [1, 3, 5, 51, 4, 3, 6, 61, 4, 3, 6, 72, 4, 2, 3, 6, 72, 4, 3, 6, 61, 4, 2, 0, 0]]
    assert batch["branches"].tolist() == [[0] * 5 + [1] * 10 + [2] * 10, [0] * 5 + [1] * 9 + [2] * 9 + [-1] * 2]
    assert batch["swapped"].tolist() == [False, True, False, True]
    assert batch["target"].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_one_row_swapped_keeps_its_target():
    assert_batch(COLLATE(ROWS[1:], [[True]]),
                 input_ids=[[1, 3, 5, 51, 4, 3, 6, 72, 4, 3, 6, 61, 4, 2]],
                 attention_mask=[[1] * 14], swapped=[True], target=[[0.0, 1.0]])


def test_padding_is_as_long_as_the_longest_sequence_of_the_batch_only():
    assert COLLATE(ROWS, [[False], [False]])["input_ids"].shape == (2, 15)
    assert COLLATE(ROWS[1:], [[False]])["input_ids"].shape == (1, 14)


def test_a_pad_id_that_is_also_eos_is_masked_by_place():
    collate = Collator(Template(bos=1, eos=2, pad=2, start=3, end=4, roles={"assistant": 6}))
    assert_batch(collate(ROWS, [[False], [False]]),
                 input_ids=[[1, 3, 5, 50, 4, 3, 6, 60, 4, 3, 6, 70, 71, 4, 2],
                            [1, 3, 5, 51, 4, 3, 6, 61, 4, 3, 6, 72, 4, 2, 2]],
                 attention_mask=[[1] * 15, [1] * 14 + [0]], swapped=[False, False], target=[[1.0, 0.0], [0.0, 1.0]])


def test_a_soft_target_is_kept():
    row = ROWS[0] | {"target": [0.25, 0.75]}
    assert COLLATE([row], [[True]])["target"].tolist() == [[0.25, 0.75]]


def test_rows_are_not_changed():
    rows = copy.deepcopy(ROWS)
    batch = COLLATE(rows, [[True, False], [True]])
    batch["input_ids"].fill_(9)
    batch["target"].fill_(9)
    assert rows == ROWS


def test_rows_without_responses_written_out():
    """One text, and two texts as two turns."""
    rows = [{"id": "1", "prompt_ids": [3, 5, 50, 4], "a_ids": None, "b_ids": None, "target": [0.0, 0.0, 1.0]},
            {"id": "2", "prompt_ids": [3, 5, 51, 4, 3, 5, 52, 53, 4], "a_ids": None, "b_ids": None,
             "target": [0.25, 0.75, 0.0]}]
    assert_batch(COLLATE(rows, [draw_orders(row["id"], "none", 0, 0) for row in rows]),
                 input_ids=[[1, 3, 5, 50, 4, 2, 0, 0, 0, 0, 0], [1, 3, 5, 51, 4, 3, 5, 52, 53, 4, 2]],
                 attention_mask=[[1] * 6 + [0] * 5, [1] * 11], swapped=[False, False],
                 target=[[0.0, 0.0, 1.0], [0.25, 0.75, 0.0]])


def test_as_many_orders_as_rows_are_needed():
    with pytest.raises(ValueError, match="zip"):
        COLLATE(ROWS, [[False]])


def test_both_orders_are_drawn_where_asked_for():
    assert draw_orders("any", "both", 0, 0) == [False, True]


def test_rows_without_responses_have_one_order():
    assert [draw_orders(str(number), "none", 1, 2) for number in range(9)] == [[False]] * 9


def test_golden_orders():
    assert [draw_orders(str(number), "random", 0, 0) for number in range(8)] == [
        [False], [True], [True], [True], [False], [False], [True], [True]]


def test_an_order_depends_on_nothing_but_seed_epoch_and_id():
    once = [draw_orders(f"{number}", "random", 3, 2) for number in range(100)]
    torch.manual_seed(5)
    again = [draw_orders(f"{number}", "random", 3, 2) for number in reversed(range(100))]
    assert once == again[::-1]


def test_an_order_varies_with_id_epoch_and_seed():
    assert {draw_orders(f"{number}", "random", 0, 0)[0] for number in range(40)} == {False, True}
    assert {draw_orders("1", "random", 0, epoch)[0] for epoch in range(40)} == {False, True}
    assert {draw_orders("1", "random", seed, 0)[0] for seed in range(40)} == {False, True}


def test_about_half_of_the_rows_are_swapped():
    """4 standard deviations of 10,000 fair draws are 0.02."""
    for epoch in range(3):
        drawn = [draw_orders(f"{number}", "random", 0, epoch)[0] for number in range(10_000)]
        assert abs(sum(drawn) / 10_000 - 0.5) < 0.02


def test_orders_of_two_epochs_are_independent():
    pairs = [(draw_orders(f"{number}", "random", 0, 0)[0], draw_orders(f"{number}", "random", 0, 1)[0])
             for number in range(10_000)]
    for pair in ((False, False), (False, True), (True, False), (True, True)):
        assert abs(pairs.count(pair) / 10_000 - 0.25) < 0.02
