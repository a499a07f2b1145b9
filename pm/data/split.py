"""Train and test, by group, by a stable hash."""

from collections.abc import Iterable, Sequence

from pm.data.comparison import text_hash
from pm.errors import UserError


def split(groups: Sequence[str], prompt_keys: Sequence[str], test_fraction: float) -> tuple[list[int], list[int]]:
    """Row numbers of the train and the test side.

    Rows with the same group, or with the same prompt, are always on one side: groups that share a prompt are
    joined first. A joined group is in the test split where the hash of its name falls under `test_fraction`, so
    it stays there when rows are added that do not join it to another; where that leaves a side empty, the group
    nearest to the line moves.
    Raises `UserError` where there is only one group.
    """
    joined = _join(groups, prompt_keys)
    places = {name: int(text_hash("split", name), 16) / 2**64 for name in joined}
    if test_fraction <= 0:
        return list(range(len(joined))), []
    if len(places) < 2:
        raise UserError(f"a split by group needs at least 2 groups of prompts; the data has {len(places)}")
    ranked = sorted(places, key=places.__getitem__)
    count = min(max(1, sum(place < test_fraction for place in places.values())), len(ranked) - 1)
    test = set(ranked[:count])
    return ([row for row, name in enumerate(joined) if name not in test],
            [row for row, name in enumerate(joined) if name in test])


def overlap(train: Iterable[dict], test: Iterable[dict], shown: int = 3) -> str | None:
    """Names rows of `test` whose id, group or prompt is in `train` too; None where there are none.

    Rows need the keys `id`, `group`, `prompt_key` and `source`; an id counts within its source.
    """
    seen: dict[tuple[str, ...], str] = {}
    for row in train:
        for column in ("id", "group", "prompt_key"):
            seen.setdefault(_key(row, column), row["id"])
    found = []
    total = count = 0
    for row in test:
        total += 1
        for column in ("prompt_key", "group", "id"):
            other = seen.get(_key(row, column))
            if other is not None:
                count += 1
                if len(found) < shown:
                    name = column.removesuffix("_key")
                    found.append(f"{row['id']} (test) and {other} (train) share their {name}")
                break
    return f"{count} of {total} test rows: {'; '.join(found)}" if count else None


def _key(row: dict, column: str) -> tuple[str, ...]:
    return (column, row[column], row["source"]) if column == "id" else (column, row[column])


def _join(groups: Sequence[str], prompt_keys: Sequence[str]) -> list[str]:
    """For each row the smallest name among the groups that shared prompts connect with its own (union-find)."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    group_of_prompt: dict[str, str] = {}
    for group, prompt in zip(groups, prompt_keys, strict=True):
        one, other = root(group), root(group_of_prompt.setdefault(prompt, group))
        if one != other:
            parent[max(one, other)] = min(one, other)
    return [root(group) for group in groups]
