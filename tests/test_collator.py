"""Rows to tensors, written out; and the draw of orders."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pm.collator import Collator, draw_orders, packed_tokens
from pm.encoding import Template

TEMPLATE = Template(bos=1, eos=2, pad=0, start=3, end=4, roles={"system": 7, "user": 5, "assistant": 6})
COLLATE, PACK = Collator(TEMPLATE, packing=False), Collator(TEMPLATE, packing=True)
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


def test_one_row_swapped_keeps_its_target():
    assert_batch(COLLATE(ROWS[1:], [[True]]),
                 input_ids=[[1, 3, 5, 51, 4, 3, 6, 72, 4, 3, 6, 61, 4, 2]],
                 attention_mask=[[1] * 14], swapped=[True], target=[[0.0, 1.0]])


def test_padding_is_as_long_as_the_longest_sequence_of_the_batch_only():
    assert COLLATE(ROWS, [[False], [False]])["input_ids"].shape == (2, 15)
    assert COLLATE(ROWS[1:], [[False]])["input_ids"].shape == (1, 14)


def test_a_pad_id_that_is_also_eos_is_masked_by_place():
    collate = Collator(Template(bos=1, eos=2, pad=2, start=3, end=4, roles={"assistant": 6}), packing=False)
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


@pytest.mark.parametrize("collate", [COLLATE, PACK], ids=["padded", "packed"])
def test_as_many_orders_as_rows_are_needed(collate):
    with pytest.raises(ValueError, match="zip"):
        collate(ROWS, [[False]])


# Packed


def test_the_example_of_the_docstring_packed(monkeypatch):
    """Both orders of a row share BOS, the prompt and what opens a turn; the other row begins with too little of it."""
    monkeypatch.setattr("pm.packing.SHORTEST_SHARED", 7)
    batch = PACK(ROWS, [[False, True], [False]])
    assert set(batch) == {"pack", "swapped", "target"}
    pack = batch["pack"]
    assert pack.input_ids.tolist() == [1, 3, 5, 50, 4, 3, 6, 60, 4, 3, 6, 70, 71, 4, 2, 70, 71, 4, 3, 6, 60, 4, 2,
                                       1, 3, 5, 51, 4, 3, 6, 61, 4, 3, 6, 72, 4, 2]
    assert pack.positions.tolist() == [*range(15), *range(7, 15), *range(14)]
    assert (pack.lengths, pack.paths, pack.leaves) == ([7, 8, 8, 14], [(0,), (0, 1), (0, 2), (3,)], [1, 2, 3])
    assert pack.last.tolist() == [14, 22, 36]
    assert batch["swapped"].tolist() == [False, True, False]
    assert batch["target"].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_rows_of_one_prompt_share_it_in_a_pack(monkeypatch):
    monkeypatch.setattr("pm.packing.SHORTEST_SHARED", 5)
    pack = PACK([ROWS[0], ROWS[0] | {"a_ids": [61]}], [[False], [True]])["pack"]
    assert [part.tolist() for part in pack.input_ids.split(pack.lengths)] == [
        [1, 3, 5, 50, 4, 3, 6], [60, 4, 3, 6, 70, 71, 4, 2], [70, 71, 4, 3, 6, 61, 4, 2]]


def sequences(pack) -> list[list[int]]:
    """What the paths of a pack spell, from the root to each leaf."""
    segments = pack.input_ids.split(pack.lengths)
    return [torch.cat([segments[segment] for segment in pack.paths[leaf]]).tolist() for leaf in pack.leaves]


LONG = [
    {"id": "1", "prompt_ids": [3, 5, *range(50, 80), 4], "a_ids": [60, 61], "b_ids": [60], "target": [1.0, 0.0]},
    {"id": "2", "prompt_ids": [3, 5, *range(50, 90), 4], "a_ids": [], "b_ids": [70] * 9, "target": [0.5, 0.5]},
    {"id": "3", "prompt_ids": [3, 5, 4], "a_ids": [9], "b_ids": [8], "target": [0.0, 1.0]},
]


@pytest.mark.parametrize("orders", [
    [[False, True]] * 3, [[True], [False], [True]], [[True, False], [False], [False, True]]])
def test_a_pack_holds_the_sequences_of_the_padded_batch_in_their_order(orders):
    packed, padded = PACK(LONG, orders), COLLATE(LONG, orders)
    kept = [ids[mask.bool()].tolist() for ids, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True)]
    assert sequences(packed["pack"]) == kept
    assert torch.equal(packed["swapped"], padded["swapped"])
    assert torch.equal(packed["target"], padded["target"])


def test_texts_are_packed_one_sequence_each():
    row = {"id": "1", "prompt_ids": [3, 5, 50, 4], "a_ids": None, "b_ids": None, "target": [0.0, 0.0, 1.0]}
    pack = PACK([row, row], [[False], [False]])["pack"]
    assert pack.input_ids.tolist() == [1, 3, 5, 50, 4, 2] * 2
    assert pack.last.tolist() == [5, 11]


def test_tokens_that_a_row_takes_alone_and_behind_one_of_the_same_prompt():
    """BOS and 30 tokens are too few to be read once, BOS and 31 are not."""
    for orders, wanted in ((1, ([60, 60], [60, 28])), (2, ([120, 88], [120, 56]))):
        found = packed_tokens(np.array([60, 60]), np.array([30, 31]), orders)
        assert tuple(part.tolist() for part in found) == wanted


TEXT = st.lists(st.integers(7, 8), max_size=36)


@settings(derandomize=True, deadline=None, database=None, max_examples=150)
@given(TEXT, st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.sampled_from([(False,), (True, False)]))
@example([7] * 36, [([7] * 5, [7] * 9), ([7] * 5, [7] * 9)], (False, True))
@example([7] * 36, [([7] * 5, [8] * 9)], (False, True))
@example([], [([7] * 36, [7] * 35), ([7] * 36, [7] * 34)], (False, True))
def test_rows_of_one_prompt_take_no_more_tokens_than_that(prompt, responses, orders):
    prompt_ids = TEMPLATE.turn("user", prompt)
    rows = [{"prompt_ids": prompt_ids, "a_ids": a, "b_ids": b, "target": [1.0, 0.0]} for a, b in responses]
    tokens = np.array([len(TEMPLATE.sequence(prompt_ids, *pair)) for pair in responses])
    alone, after = packed_tokens(tokens, np.full(len(rows), len(prompt_ids)), len(orders))
    taken = len(PACK(rows, [orders] * len(rows))["pack"].input_ids)
    assert taken <= alone[0] + after[1:].sum()
    if len(rows) == 1 and len(orders) == 2 and responses[0][0][:1] != responses[0][1][:1]:
        opened = 2 if len(prompt) >= 28 else 0  # what opens a turn is read once as well
        assert taken == alone[0] - opened or 27 <= len(prompt_ids) < 31


# The draw of orders


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
