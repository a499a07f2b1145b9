"""Train and test by group: what stays together, what stays in place, and what an overlap says."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm.data.example import text_hash
from pm.data.split import overlap, split
from pm.errors import UserError

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=300)

NAMES = st.integers(0, 12).map("n{}".format)
PAIRS = st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=40)


def sides(groups, prompts, test_fraction) -> tuple[set, set]:
    """The groups of the train and of the test side."""
    train, test = split(groups, prompts, test_fraction)
    return {groups[row] for row in train}, {groups[row] for row in test}


def test_a_golden_split():
    groups = list("abcdefghij")
    assert split(groups, groups, 0.3) == ([0, 1, 3, 5, 6, 7, 8, 9], [2, 4])


def reference_split(groups, prompt_keys, test_fraction):
    """The first implementation, plain: a row's side must never change."""
    parent = {}

    def root(name):
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    group_of_prompt = {}
    for group, prompt in zip(groups, prompt_keys, strict=True):
        one, other = root(group), root(group_of_prompt.setdefault(prompt, group))
        if one != other:
            parent[max(one, other)] = min(one, other)
    joined = [root(group) for group in groups]
    places = {name: int(text_hash("split", name), 16) / 2**64 for name in joined}
    ranked = sorted(places, key=places.__getitem__)
    test = set(ranked[: min(max(1, sum(place < test_fraction for place in places.values())), len(ranked) - 1)])
    return ([row for row, name in enumerate(joined) if name not in test],
            [row for row, name in enumerate(joined) if name in test])


@FIXED
@given(PAIRS | st.lists(st.tuples(st.integers(0, 60).map("é{}".format), st.text()), min_size=1, max_size=80),
       st.floats(0.001, 2.0))
def test_a_split_is_that_of_the_reference(pairs, test_fraction):
    groups, prompts = [group for group, _ in pairs], [prompt for _, prompt in pairs]
    try:
        sides = split(groups, prompts, test_fraction)
    except UserError:
        return  # one group
    assert sides == reference_split(groups, prompts, test_fraction)


def test_a_chain_of_groups_is_one_group_whatever_its_length():
    groups = [f"g{number // 2}" for number in range(20_000)] + ["another"]
    prompts = [f"p{(number + 1) // 2}" for number in range(20_000)] + ["another"]
    assert sorted(map(len, split(groups, prompts, 0.5))) == [1, 20_000]


def test_rows_of_a_group_stay_together():
    groups = ["g", "h", "g", "i", "h", "g"]
    assert split(groups, list("123456"), 0.5) == ([0, 2, 3, 5], [1, 4])


def test_a_shared_prompt_joins_groups():
    # g and h share p2, h and i share p4: one group of three, whatever j does.
    groups = ["g", "g", "h", "h", "i", "j"]
    prompts = ["p1", "p2", "p2", "p4", "p4", "p5"]
    for test_fraction in (0.01, 0.3, 0.5, 0.7, 0.99):
        assert sorted(split(groups, prompts, test_fraction)) == [[0, 1, 2, 3, 4], [5]]


def test_the_order_in_which_groups_meet_does_not_matter():
    groups, prompts = ["c", "b", "a", "c", "d", "e"], ["1", "2", "3", "2", "3", "4"]
    train, test = split(groups, prompts, 0.5)
    back_train, back_test = split(groups[::-1], prompts[::-1], 0.5)
    assert (train, test) == (sorted(5 - row for row in back_train), sorted(5 - row for row in back_test))


@FIXED
@given(PAIRS, st.floats(0.001, 0.999))
def test_no_group_and_no_prompt_is_on_both_sides(pairs, test_fraction):
    groups, prompts = [group for group, _ in pairs], [f"p-{prompt}" for _, prompt in pairs]
    try:
        train, test = split(groups, prompts, test_fraction)
    except UserError:
        return  # all groups are one; `test_one_group_is_an_error` says when
    assert sorted(train + test) == list(range(len(pairs)))
    assert train == sorted(train)
    assert test == sorted(test)
    assert train
    assert test
    for column in (groups, prompts):
        assert not {column[row] for row in train} & {column[row] for row in test}


@FIXED
@given(PAIRS, st.floats(0.001, 0.999))
def test_only_connected_groups_are_joined(pairs, test_fraction):
    """An error stands for one connected piece: grown from the first row, it takes in every row."""
    groups, prompts = [group for group, _ in pairs], [f"p-{prompt}" for _, prompt in pairs]
    piece = {groups[0], prompts[0]}
    for _ in pairs:
        for pair in zip(groups, prompts, strict=True):
            if piece & set(pair):
                piece |= set(pair)
    if piece == set(groups) | set(prompts):
        with pytest.raises(UserError):
            split(groups, prompts, test_fraction)
    else:
        split(groups, prompts, test_fraction)


def test_a_row_keeps_its_side_when_rows_are_added():
    names = [f"g{number}" for number in range(400)]
    few, many = split(names[:200], names[:200], 0.25), split(names, names, 0.25)
    assert [row for row in many[0] if row < 200] == few[0]
    assert [row for row in many[1] if row < 200] == few[1]
    again = split(names[:200] * 2, names[:200] + [f"another {name}" for name in names[:200]], 0.25)
    assert [row for row in again[1] if row < 200] == few[1]


def test_a_larger_fraction_only_moves_groups_to_the_test_side():
    names = [f"g{number}" for number in range(200)]
    smaller = set()
    for test_fraction in (0.05, 0.1, 0.25, 0.5, 0.9):
        larger = set(split(names, names, test_fraction)[1])
        assert smaller < larger
        smaller = larger


def test_the_test_side_has_about_its_share():
    names = [f"g{number}" for number in range(10_000)]
    for test_fraction in (0.05, 0.25):
        assert abs(len(split(names, names, test_fraction)[1]) / 10_000 - test_fraction) < 0.02


def test_no_side_is_ever_empty():
    for number in range(50):
        groups = [f"{number} a", f"{number} b", f"{number} a"]
        for test_fraction in (1e-9, 0.5, 0.999999):
            train, test = sides(groups, ["1", "2", "3"], test_fraction)
            assert len(train) == len(test) == 1


@pytest.mark.parametrize("test_fraction", [-0.1, 1.0, 7.0, float("nan")])
def test_a_fraction_is_below_1(test_fraction):
    with pytest.raises(UserError, match=f"--test_fraction {test_fraction}: must be at least 0 and below 1"):
        split(["g", "h"], ["1", "2"], test_fraction)


def test_a_fraction_of_0_leaves_all_rows_in_train():
    assert split(["g", "h", "g"], ["1", "2", "3"], 0.0) == ([0, 1, 2], [])
    assert split(["g"], ["1"], 0.0) == ([0], [])


@pytest.mark.parametrize(("groups", "prompts", "count"), [
    (["g", "g", "g"], ["1", "2", "3"], 1),
    (["g", "h"], ["1", "1"], 1),
    (["g", "h", "i"], ["1", "1", "1"], 1),
    ([], [], 0),
])
def test_one_group_is_an_error(groups, prompts, count):
    with pytest.raises(UserError) as caught:
        split(groups, prompts, 0.5)
    assert str(caught.value) == f"a split by group needs at least 2 groups of prompts; the data has {count}"


def row(identifier: str, group: str, prompt_key: str, source: str = "file") -> dict:
    return {"id": identifier, "group": group, "prompt_key": prompt_key, "source": source}


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in row("", "", "")]))


def found(train: list[dict], test: list[dict]) -> str | None:
    return overlap(table(train), table(test))


TRAIN = [row("1", "g", "p"), row("2", "g", "q"), row("3", "h", "r")]


def test_no_overlap():
    assert found(TRAIN, [row("4", "i", "s")]) is None
    assert found(TRAIN, []) is None
    assert found([], TRAIN) is None


@pytest.mark.parametrize(("test_row", "wanted"), [
    (row("4", "i", "q"), "4 (test) and 2 (train) share their prompt"),
    (row("4", "h", "s"), "4 (test) and 3 (train) share their group"),
    (row("3", "i", "s"), "3 (test) and 3 (train) share their id"),
    (row("1", "g", "p"), "1 (test) and 1 (train) share their prompt"),
])
def test_an_overlap_names_the_rows(test_row, wanted):
    assert found(TRAIN, [row("5", "j", "t"), test_row]) == f"1 of 2 test rows: {wanted}"


def test_an_equal_text_in_another_column_is_no_overlap():
    assert found(TRAIN, [row("g", "p", "1")]) is None


def test_an_equal_id_in_another_source_is_no_overlap():
    assert found(TRAIN, [row("1", "i", "s", "another file")]) is None


def test_sources_do_not_run_into_ids():
    for one, other in [("a 1", "a"), ("a", "a 1"), ("0", "0 0"), ("", " ")]:
        assert found([row("1 2", "g", "p", one)], [row("1 2", "h", "q", other)]) is None
        assert found([row("1 2", "g", "p", one)], [row("1 2", "h", "q", one)]) is not None


def test_an_overlap_names_the_first_train_row_of_many_chunks():
    train = pa.concat_tables([table([row("0", "f", "o")]), table(TRAIN), table(TRAIN)])
    test = pa.concat_tables([table([row("4", "i", "s")]), table([row("5", "g", "t"), row("3", "i", "u")])])
    assert overlap(train, test) == ("2 of 3 test rows: 5 (test) and 1 (train) share their group; "
                                    "3 (test) and 3 (train) share their id")


def test_an_overlap_counts_all_rows_and_shows_three():
    assert found(TRAIN, [row(f"t{number}", "h", f"s{number}") for number in range(5)]) == (
        "5 of 5 test rows: t0 (test) and 3 (train) share their group; t1 (test) and 3 (train) share their group; "
        "t2 (test) and 3 (train) share their group")
    assert overlap(table(TRAIN), table([row("t", "h", "s")]), shown=0) == "1 of 1 test rows: "


@FIXED
@given(PAIRS, st.floats(0.001, 0.999))
def test_a_split_has_no_overlap(pairs, test_fraction):
    rows = [row(str(number), *pair) for number, pair in enumerate(pairs)]
    try:
        train, test = split([row["group"] for row in rows], [row["prompt_key"] for row in rows], test_fraction)
    except UserError:
        return  # one group
    assert found([rows[number] for number in train], [rows[number] for number in test]) is None
