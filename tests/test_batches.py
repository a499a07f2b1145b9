"""Training steps as tensors: the plan, the draw of orders and the collator together."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from pm.batches import Batches, seed_step
from pm.collator import draw_orders
from pm.encoding import Template
from pm.plan import epoch_order, epoch_rows

TEMPLATE = Template(bos=1, eos=2, pad=0, start=3, end=4, roles={"system": 7, "user": 5, "assistant": 6})


def batches(count=10, train_batch_size=4, token_budget=40, orders="both", seed=0, rates=None, lengths=None,
            packing=False) -> Batches:
    """Row n has the id n, the prompt token 100 + n and the length 14. With `orders` none it has no responses, and the
    length 6."""
    responses = {"a_ids": [None] * count, "b_ids": [None] * count} if orders == "none" else {
        "a_ids": [[60]] * count, "b_ids": [[70]] * count}
    rows = Dataset.from_dict({
        "id": [str(number) for number in range(count)],
        "prompt_ids": [[3, 5, 100 + number, 4] for number in range(count)], **responses,
        "target": [[1.0, 0.0]] * count, "tokens": lengths or [6 if orders == "none" else 14] * count})
    rates = np.ones(count) if rates is None else np.array(rates)
    return Batches(rows, rates, TEMPLATE, train_batch_size, token_budget, orders, seed, packing)


def ids(found) -> list[list[str]]:
    return [batch.ids for batch in found]


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")


def test_a_step_is_the_plan_of_its_rows():
    count, found = batches().step(0)
    assert count == 4
    assert ids(found) == [["9"], ["2"], ["6"], ["3"]]  # 2 sequences of 14 tokens in a budget of 40
    assert [batch.weight for batch in found] == [1.0] * 4
    assert [(batch.tokens, batch.padding) for batch in found] == [(28, 0)] * 4
    assert found[0].tensors["input_ids"].tolist() == [[1, 3, 5, 109, 4, 3, 6, 60, 4, 3, 6, 70, 4, 2],
                                                      [1, 3, 5, 109, 4, 3, 6, 70, 4, 3, 6, 60, 4, 2]]


def test_one_order_has_room_for_twice_the_rows():
    made = batches(orders="random")
    assert (made.orders_per_row, batches().orders_per_row) == (1, 2)
    _, found = made.step(0)
    assert ids(found) == [["9", "2"], ["6", "3"]]
    # What is drawn for the ids 9, 2 and 6, 3 in epoch 0, and for 2, 4 and 7, 6 in epoch 1
    assert [batch.tensors["swapped"].tolist() for batch in found] == [[True, True], [True, True]]
    assert found[0].tensors["input_ids"].tolist() == [[1, 3, 5, 109, 4, 3, 6, 70, 4, 3, 6, 60, 4, 2],
                                                      [1, 3, 5, 102, 4, 3, 6, 70, 4, 3, 6, 60, 4, 2]]
    _, found = made.step(3)
    assert ids(found) == [["2", "4"], ["7", "6"]]
    assert [batch.tensors["swapped"].tolist() for batch in found] == [
        [draw_orders(name, "random", 0, 1)[0] for name in names] for names in ids(found)]


def test_rows_without_responses_have_one_sequence_each():
    made = batches(orders="none", token_budget=12)
    assert made.orders_per_row == 1
    _, found = made.step(0)
    assert ids(found) == [["9", "2"], ["6", "3"]]
    assert found[0].tokens == 12
    assert found[0].tensors["input_ids"].tolist() == [[1, 3, 5, 109, 4, 2], [1, 3, 5, 102, 4, 2]]
    assert found[0].tensors["swapped"].tolist() == [False, False]


def test_the_tail_step_is_smaller_and_the_next_epoch_has_another_order():
    made = batches()
    assert made.per_epoch == 3
    found = []
    for step in range(6):
        count, micro_batches = made.step(step)
        assert count == (4, 4, 2)[step % 3]
        found += [identifier for names in ids(micro_batches) for identifier in names]
    assert found == list("9263015784" "2476593180")


def test_rows_are_used_as_often_as_their_rates_say():
    """The rates have the sum 4, so an epoch has 4 rows; of the two rows with the rate 1/2 it has one."""
    rates = [2.0, 1.0, 0.5, 0.5, 0.0]
    made = batches(count=5, train_batch_size=3, rates=rates)
    assert made.per_epoch == 2
    uses = []
    for step in range(8):
        count, found = made.step(step)
        assert count == (3, 1)[step % 2]
        uses += [int(identifier) for names in ids(found) for identifier in names]
    wanted = [row for epoch in range(4) for row in epoch_rows(np.array(rates), 0, epoch).tolist()]
    assert sorted(uses) == sorted(wanted)  # inside a step rows are sorted by length
    assert np.bincount(uses, minlength=5).tolist() == [8, 4, 2, 2, 0]


def test_a_row_that_stands_twice_in_a_step_is_read_twice():
    count, found = batches(count=1, rates=[3.0], token_budget=28).step(0)
    assert (count, ids(found)) == (3, [["0"], ["0"], ["0"]])


def test_a_step_does_not_depend_on_the_steps_before():
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


def test_the_row_that_fills_in_is_the_shortest_of_the_step(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    _, found = batches(count=4, train_batch_size=2, lengths=[8, 14, 9, 7]).step(0)  # rows 1 and 2
    assert [(batch.ids, batch.weight) for batch in found] == [(["2"], 0.0)]


def uneven(packing: bool, orders="both", train_batch_size=6, token_budget=150) -> Batches:
    """Ten rows with prompts of 3 to 57 tokens, of which five are long enough to be shared by both orders, and
    responses of 1 to 3."""
    prompts = [[3, 5, *range(100 * number, 106 * number), 4] for number in range(10)]
    a_ids, b_ids = [[60]] * 10, [[70 + number] * (1 + number % 3) for number in range(10)]
    rows = Dataset.from_dict({
        "id": [str(number) for number in range(10)], "prompt_ids": prompts, "a_ids": a_ids, "b_ids": b_ids,
        "target": [[1.0, 0.0]] * 10,
        "tokens": [8 + sum(map(len, texts)) for texts in zip(prompts, a_ids, b_ids, strict=True)]})
    return Batches(rows, np.ones(10), TEMPLATE, train_batch_size, token_budget, orders, 0, packing)


def test_a_packed_step_has_as_many_tokens_in_each_micro_batch_as_it_can():
    """Rows 9, 2, 6, 3 have 14 tokens in each order, of which the orders share 7, too few to be read once."""
    count, found = batches(packing=True, token_budget=60).step(0)
    assert count == 4
    assert [sorted(names) for names in ids(found)] == [["3", "9"], ["2", "6"]]
    assert [(batch.weight, batch.tokens, batch.padding) for batch in found] == [(1.0, 56, 0)] * 2
    assert set(found[0].tensors) == {"pack", "swapped", "target"}
    pack = found[0].tensors["pack"]
    assert pack.input_ids.view(4, 14)[pack.leaves, 3].tolist() == [
        100 + int(name) for name in found[0].ids for _ in range(2)]
    assert found[0].tensors["swapped"].tolist() == [False, True] * 2


def sequences(batch) -> dict[str, list[list[int]]]:
    """Of each row the sequences that are read."""
    tensors = batch.tensors
    if "pack" in tensors:
        pack = tensors["pack"]
        segments = pack.input_ids.split(pack.lengths)
        found = [torch.cat([segments[segment] for segment in pack.paths[leaf]]).tolist() for leaf in pack.leaves]
    else:
        found = [row[mask.bool()].tolist() for row, mask in zip(tensors["input_ids"], tensors["attention_mask"],
                                                                strict=True)]
    per_row = len(found) // len(batch.ids)
    return {name: found[per_row * place : per_row * (place + 1)] for place, name in enumerate(batch.ids)}


@pytest.mark.parametrize("orders", ["both", "random"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_packed_steps_read_the_sequences_of_padded_ones(monkeypatch, orders, ranks):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    for step in range(4):
        read, tokens, numbers = {}, {}, set()
        for packing in (True, False):
            counting = []
            for rank in range(ranks):
                monkeypatch.setenv("RANK", str(rank))
                count, found = uneven(packing, orders).step(step)
                numbers.add((count, len(found)) if packing else count)
                counting += [batch for batch in found if batch.weight]
                assert not packing or {batch.padding for batch in found} == {0}
            read[packing] = [row for batch in counting for row in sequences(batch).items()]
            tokens[packing] = sum(batch.tokens for batch in counting)
            assert tokens[packing] == sum(len(one) for _, both in read[packing] for one in both)
        assert sorted(read[True]) == sorted(read[False])
        assert tokens[True] == tokens[False]
        assert len(numbers) == 2  # every rank has the same rows in the step and as many micro-batches


def test_a_language_model_predicts_all_tokens_of_a_step_but_the_first_of_each_sequence(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for orders in ("both", "random"):
        made = uneven(True, orders, train_batch_size=4)
        for step in (0, 2, 5):
            read = []
            for rank in range(3):
                monkeypatch.setenv("RANK", str(rank))
                read += [sequence for batch in made.step(step)[1] if batch.weight for some in sequences(batch).values()
                         for sequence in some]
            assert made.predicted_tokens(step) == sum(len(sequence) - 1 for sequence in read)
    assert batches(orders="none").predicted_tokens(2) == 2 * 5  # two rows are left in the last step of the epoch


def test_packs_stay_within_the_budget_unless_a_row_alone_does_not():
    """Row 3 has twice 31 tokens; row 9 twice 67, 60 of which are read once."""
    def sizes(token_budget: int) -> dict[str, int]:
        _, found = uneven(True, train_batch_size=10, token_budget=token_budget).step(0)
        return {" ".join(batch.ids): len(batch.tensors["pack"].input_ids) for batch in found if batch.weight}

    alone = {"0": 26, "1": 40, "2": 54, "3": 62, "4": 76, "5": 54, "6": 56, "7": 64, "8": 72, "9": 74}
    assert sizes(30) == alone
    together = sizes(160)
    assert len(together) == 4
    for names, size in together.items():
        assert size == sum(alone[name] for name in names.split()) <= 160


def test_a_rank_without_packs_reads_the_shortest_row_of_the_step_with_weight_0(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        count, of_rank = uneven(True, train_batch_size=2).step(0)  # rows 9 and 2
        assert count == 2
        found += [(batch.ids, batch.weight) for batch in of_rank]
    assert sorted(found) == [(["2"], 0.0), (["2"], 1.0), (["9"], 1.0)]


def drawn(seed: int, step: int) -> list[float]:
    with torch.random.fork_rng(devices=[]):
        seed_step(seed, step)
        return torch.rand(3).tolist()


def test_dropout_is_a_function_of_seed_step_and_rank(monkeypatch):
    once = drawn(0, 5)
    assert drawn(0, 5) == once
    monkeypatch.setenv("RANK", "1")
    assert once not in (drawn(0, 5), drawn(1, 5), drawn(0, 6))
    monkeypatch.setenv("RANK", "0")
    assert once not in (drawn(1, 5), drawn(0, 6))
