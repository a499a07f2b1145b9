"""Train, calibration and test, by group, by a stable hash."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pm.data.example import text_hash
from pm.errors import UserError

FEWEST_TO_CALIBRATE = 8  # groups: fewer say too little of a temperature, and are not held out


def split(groups: Sequence[str], prompt_keys: Sequence[str], test_fraction: float) -> tuple[list[int], list[int]]:
    """Row numbers of the train and the test side.

    Rows with the same group, or with the same prompt, are always on one side: groups that share a prompt are
    joined first. A joined group is in the test split where the hash of its name falls under `test_fraction`, so
    it stays there when rows are added that do not join it to another; where that leaves a side empty, the group
    nearest to the line moves.
    Raises `UserError` where there is only one group, or for another share than one from 0 up to 1.
    """
    if not 0 <= test_fraction < 1:
        raise UserError(f"--test_fraction {test_fraction}: must be at least 0 and below 1")
    if not test_fraction:
        return list(range(len(groups))), []
    names, joined = _join(groups, prompt_keys)
    if len(names) < 2:
        raise UserError(f"a split by group needs at least 2 groups of prompts; the data has {len(names)}")
    return _sides(names, joined, test_fraction, "split")


def calibration_split(groups: Sequence[str], prompt_keys: Sequence[str],
                      fraction: float) -> tuple[list[int], list[int]]:
    """Row numbers of what is trained on and of what is held out to fit temperatures: `split` by another hash. Where the
    fraction is less than `FEWEST_TO_CALIBRATE` groups, nothing is held out."""
    names, joined = _join(groups, prompt_keys)
    if len(names) * fraction < FEWEST_TO_CALIBRATE:
        return list(range(len(groups))), []
    return _sides(names, joined, fraction, "calibration", FEWEST_TO_CALIBRATE)


def _sides(names: list[str], joined: np.ndarray, fraction: float, salt: str,
           fewest: int = 1) -> tuple[list[int], list[int]]:
    hashes = (int(text_hash(salt, name), 16) for name in names)
    places = np.fromiter(hashes, np.uint64, len(names)) / 2.0**64
    count = min(max(fewest, int((places < fraction).sum())), len(names) - 1)
    chosen = np.zeros(len(names), dtype=bool)
    chosen[np.argsort(places, kind="stable")[:count]] = True
    return np.flatnonzero(~chosen[joined]).tolist(), np.flatnonzero(chosen[joined]).tolist()


def overlap(train: pa.Table, test: pa.Table, shown: int = 3) -> str | None:
    """Names rows of `test` whose id, group or prompt is in `train` too; None where there are none.

    Tables need the columns `id`, `group`, `prompt_key` and `source`; an id counts within its source.
    """
    pairs = {"prompt": (train["prompt_key"], test["prompt_key"]), "group": (train["group"], test["group"]),
             "id": _ids_by_source(train, test)}
    # [column, test row]: the first train row with the same value, -1 where there is none.
    place = np.stack([pc.fill_null(pc.index_in(wanted, value_set=known), -1).to_numpy()
                      for known, wanted in pairs.values()])
    rows = np.flatnonzero((place >= 0).any(axis=0))
    found = []
    for row in rows[:shown].tolist():
        column = int((place[:, row] >= 0).argmax())
        name, other = list(pairs)[column], int(place[column, row])
        found.append(f"{test['id'][row]} (test) and {train['id'][other]} (train) share their {name}")
    return f"{len(rows)} of {len(test)} test rows: {'; '.join(found)}" if len(rows) else None


def _ids_by_source(*tables: pa.Table) -> list[pa.ChunkedArray]:
    """Ids that differ where sources differ: each after the number of its source in the first table, or null."""
    sources = pc.unique(tables[0]["source"])
    return [pc.binary_join_element_wise(pc.index_in(table["source"], value_set=sources).cast(pa.string()), table["id"],
                                        " ") for table in tables]


def _join(groups: Sequence[str], prompt_keys: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names of the joined groups, and for each row the place of its own in that list, int64 (rows,).

    The name is the smallest of the groups that shared prompts connect; names stand in the order of rows.
    """
    names, group_of_row = _numbered(groups)
    roots, place = _numbered(_roots(names, group_of_row, prompt_keys))
    return [names[group] for group in roots], np.array(place, dtype=np.int64)[group_of_row]


def _roots(names: list[str], group_of_row: list[int], prompt_keys: Sequence[str]) -> list[int]:
    """For each group that of the smallest name among those which shared prompts connect with it (union-find)."""
    parent: dict[int, int] = {}

    def root(group: int) -> int:
        while group in parent:
            above = parent[group]
            parent[group] = group = parent.get(above, above)
        return group

    group_of_prompt: dict[str, int] = {}
    for prompt, group in zip(prompt_keys, group_of_row, strict=True):
        one, other = root(group), root(group_of_prompt.setdefault(prompt, group))
        if one != other:
            smaller, larger = sorted((one, other), key=names.__getitem__)
            parent[larger] = smaller
    return list(map(root, range(len(names))))


def _numbered(values: Sequence) -> tuple[list, list[int]]:
    """The distinct values in the order of rows, and the place of each row's value among them."""
    places: dict = {}
    place_of_row = [places.setdefault(value, len(places)) for value in values]
    return list(places), place_of_row
