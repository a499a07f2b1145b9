"""Packs: what sequences begin with in common stands there once, and each path spells its sequence."""

from itertools import combinations, permutations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pm.packing import (
    SHORTEST_SHARED,
    Pack,
    filled_up,
    pack,
    predecessors,
    sequence_lengths,
    sequence_sums,
    token_weights,
)

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=200)


@pytest.fixture
def share_two(monkeypatch):
    monkeypatch.setattr("pm.packing.SHORTEST_SHARED", 2)


def parts(found: Pack) -> list[list[int]]:
    """The segments, written out."""
    return [part.tolist() for part in found.input_ids.split(found.lengths)]


def path(found: Pack, sequence: int) -> tuple[int, ...]:
    return found.paths[found.leaves[sequence]]


def test_the_example_of_the_docstring(share_two):
    found = pack([[1, 6], [1, 5, 8], [1, 5, 7, 8]])
    assert found.input_ids.tolist() == [1, 5, 7, 8, 8, 1, 6]
    assert found.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert found.lengths == [2, 2, 1, 2]
    assert found.paths == [(0,), (0, 1), (0, 2), (3,)]
    assert found.leaves == [3, 2, 1]
    assert found.last.tolist() == [6, 4, 3]


def test_what_a_language_model_needs_of_the_example(share_two):
    found = pack([[1, 6], [1, 5, 8], [1, 5, 7, 8]])
    assert predecessors(found).tolist() == [-1, 0, 1, 2, 1, -1, 5]
    # [1, 5] is in the second and in the third one, [7, 8] in the third, [8] in the second, [1, 6] is the first.
    assert token_weights(found, [0.25, 2.0, 5.0]).tolist() == [7.0, 7.0, 5.0, 5.0, 2.0, 0.25, 0.25]
    assert sequence_lengths(found) == [2, 3, 4]
    values_T = torch.tensor([1.0, 2.0, 10.0, 20.0, 100.0, 1000.0, 3000.0])
    assert sequence_sums(found, values_T) == [4000.0, 103.0, 33.0]


def test_a_pack_of_one_token_and_one_of_none():
    found = pack([[5]])
    assert (predecessors(found).tolist(), token_weights(found, [3.0]).tolist(), sequence_lengths(found)) == (
        [-1], [3.0], [1])
    nothing = pack([])
    assert (predecessors(nothing).tolist(), token_weights(nothing, []).tolist()) == ([], [])
    assert (sequence_lengths(nothing), sequence_sums(nothing, torch.zeros(0))) == ([], [])


def test_weights_are_one_for_each_sequence():
    with pytest.raises(ValueError, match="shorter"):
        token_weights(pack([[1], [2]]), [1.0])


def test_equal_sequences_share_all_but_their_last_token(share_two):
    found = pack([[1, 5, 7]] * 3)
    assert parts(found) == [[1, 5], [7], [7], [7]]
    assert found.positions.tolist() == [0, 1, 2, 2, 2]
    assert [path(found, sequence) for sequence in range(3)] == [(0, 1), (0, 2), (0, 3)]
    assert found.last.tolist() == [2, 3, 4]


@pytest.mark.parametrize("turned", [False, True])
def test_a_sequence_that_another_begins_with_has_its_last_token_to_itself(share_two, turned):
    sequences = [[1, 5, 7], [1, 5, 7, 8, 9]]
    found = pack(sequences[::-1] if turned else sequences)
    assert parts(found) == [[1, 5], [7], [7, 8, 9]]
    assert found.positions.tolist() == [0, 1, 2, 2, 3, 4]
    assert found.leaves == ([2, 1] if turned else [1, 2])
    assert found.last.tolist() == ([5, 2] if turned else [2, 5])


def test_too_short_a_beginning_is_read_twice(share_two):
    assert parts(pack([[1, 5, 7], [1, 6, 7]])) == [[1, 5, 7], [1, 6, 7]]
    assert parts(pack([[1, 5], [1, 5]])) == [[1, 5], [1, 5]]
    # Below a shared segment as well: the last two begin with one token more in common.
    assert parts(pack([[1, 5, 7], [1, 5, 8, 1], [1, 5, 8, 2]])) == [[1, 5], [7], [8, 1], [8, 2]]


def test_as_many_tokens_as_the_constant_says_are_shared_and_no_fewer():
    for shared, tokens in ((SHORTEST_SHARED - 1, 2 * SHORTEST_SHARED), (SHORTEST_SHARED, SHORTEST_SHARED + 2)):
        assert len(pack([[*range(shared), 90], [*range(shared), 91]]).input_ids) == tokens


def test_leaves_are_in_the_order_of_the_sequences_whatever_the_order_of_the_segments(share_two):
    found = pack([[9, 9, 1], [4, 4], [8], [7, 7, 3], [7, 7, 2], [7, 7, 1]])
    assert parts(found) == [[4, 4], [7, 7], [1], [2], [3], [8], [9, 9, 1]]
    assert found.leaves == [6, 0, 5, 4, 3, 2]
    assert found.last.tolist() == [10, 1, 7, 6, 5, 4]


def test_answers_in_all_orders_share_the_prompt_and_then_the_first_response(share_two):
    """Three answers have six ordered pairs; the prompt stands there once, each answer once as the first."""
    prompt, answers = [1, 2], [[10, 11], [20, 21], [30, 31]]
    found = pack([[*prompt, *one, *other] for one, other in permutations(answers, 2)])
    assert parts(found) == [[1, 2], [10, 11], [20, 21], [30, 31], [20, 21], [10, 11], [30, 31], [30, 31], [10, 11],
                            [20, 21]]
    assert [path(found, sequence) for sequence in range(6)] == [
        (0, 1, 2), (0, 1, 3), (0, 4, 5), (0, 4, 6), (0, 7, 8), (0, 7, 9)]
    assert found.positions.tolist() == [0, 1, *([2, 3, 4, 5, 4, 5] * 3)]


def test_nothing_is_an_empty_pack():
    found = pack([])
    assert (found.input_ids.tolist(), found.lengths, found.paths, found.leaves) == ([], [], [], [])


def test_a_pack_moves_as_a_whole():
    """To a device without data, where there is no other one."""
    moved = pack([[1, 5, 7, 8]]).to(torch.device("meta"))
    assert {part.device.type for part in (moved.input_ids, moved.positions, moved.last)} == {"meta"}
    assert (moved.lengths, moved.paths, moved.leaves) == ([4], [(0,)], [0])


SEQUENCES = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=9), max_size=9)


def packed(sequences: list[list[int]], shortest: int) -> Pack:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pm.packing.SHORTEST_SHARED", shortest)
        return pack(sequences)


@FIXED
@given(SEQUENCES, st.integers(1, 4))
@example([[1, 1, 1, 1]] * 3, 1)
def test_each_path_spells_its_sequence(sequences, shortest):
    found = packed(sequences, shortest)
    segments, places = parts(found), found.positions.split(found.lengths)
    assert len(found.leaves) == len(set(found.leaves)) == len(sequences)
    for number, sequence in enumerate(sequences):
        assert [token for segment in path(found, number) for token in segments[segment]] == sequence
        assert [place for segment in path(found, number) for place in places[segment].tolist()] == list(
            range(len(sequence)))
        assert found.last[number] == sum(found.lengths[: found.leaves[number] + 1]) - 1
    assert sum(found.lengths) == len(found.input_ids) <= sum(map(len, sequences))
    assert all(found.lengths)
    assert all(found.lengths[inner] >= shortest for segments_above in found.paths for inner in segments_above[:-1])


@FIXED
@given(SEQUENCES, st.integers(1, 4))
def test_predecessors_spell_each_sequence_backwards(sequences, shortest):
    found = packed(sequences, shortest)
    before, tokens = predecessors(found).tolist(), found.input_ids.tolist()
    for number, sequence in enumerate(sequences):
        place, spelt = int(found.last[number]), []
        while place >= 0:
            spelt.append(tokens[place])
            place = before[place]
        assert spelt[::-1] == sequence
    assert sequence_lengths(found) == list(map(len, sequences))


@FIXED
@given(SEQUENCES, st.integers(1, 4))
def test_sums_with_weights_are_those_over_sequences(sequences, shortest):
    found = packed(sequences, shortest)
    weights = [2.0**-number for number in range(len(sequences))]
    values_T = torch.arange(1.0, len(found.input_ids) + 1)
    sums = sequence_sums(found, values_T)
    assert float((values_T * token_weights(found, weights)).sum()) == sum(
        weight * value for weight, value in zip(weights, sums, strict=True))


def beginning(one: list[int], other: list[int]) -> int:
    """How many tokens two sequences begin with in common, the last one of each left out."""
    count = 0
    while count < min(len(one), len(other)) - 1 and one[count] == other[count]:
        count += 1
    return count


@FIXED
@given(SEQUENCES, st.integers(1, 4))
def test_sequences_share_wherever_they_begin_alike(sequences, shortest):
    """Of two alone all that is alike; of more at the least something, and never what is not alike."""
    found = packed(sequences, shortest)
    for other, one in combinations(range(len(sequences)), 2):
        alike = beginning(sequences[one], sequences[other])
        both = set(path(found, one)) & set(path(found, other))
        assert sum(found.lengths[segment] for segment in both) <= alike
        assert both or alike < shortest
        alone = packed([sequences[one], sequences[other]], shortest)
        assert len(alone.input_ids) == len(sequences[one]) + len(sequences[other]) - alike * (alike >= shortest)


@pytest.mark.parametrize(("tokens", "wanted"), [(1, 1), (63, 63), (64, 64), (65, 66), (129, 132), (7800, 7808)])
def test_a_pack_is_filled_up_behind_its_sequences(tokens, wanted):
    found = pack([list(range(10, 10 + tokens))])
    filled = filled_up(found)
    assert len(filled.input_ids) == len(filled.positions) == sum(filled.lengths) == wanted
    assert torch.equal(filled.input_ids[:tokens], found.input_ids)
    assert torch.equal(filled.positions[:tokens], found.positions)
    assert (filled.leaves, filled.last.tolist(), filled.paths[0]) == ([0], [tokens - 1], (0,))
    assert filled.paths[1:] == ([(1,)] if wanted > tokens else [])
    assert filled.positions[tokens:].tolist() == list(range(wanted - tokens))
