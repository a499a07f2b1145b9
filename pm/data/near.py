"""Prompts that are nearly equal, by MinHash (the package datasketch, an extra)."""

import zlib
from collections.abc import Iterator
from itertools import islice

import numpy as np

from pm.data.example import normalise
from pm.data.findings import BATCH, EXAMPLES, Side, first_rows, row_id
from pm.errors import UserError

GRAM = 5  # characters of a shingle
GRAMS_AT_ONCE = 4096  # shingles hashed in one go: a very long prompt needs no more memory than a long one
PERMUTATIONS = 128
CANDIDATES = 100  # compared with one prompt: prompts made from one template are all candidates of each other
NEAR = (0.5, 0.95)  # where that many permutations can tell what is near


def _datasketch():
    try:
        import datasketch
    except ImportError:
        raise UserError("--near needs datasketch: pip install 'preference-model[audit]'") from None
    return datasketch


def check_near(near: float) -> None:
    """Raises `UserError` for a threshold out of range, or where datasketch is missing."""
    _datasketch()
    if not NEAR[0] <= near <= NEAR[1]:
        raise UserError(f"--near {near:g}: must be between {NEAR[0]} and {NEAR[1]}")


class NearPrompts:
    """The distinct prompts of one side (one row of each prompt_key), and which of them are nearly equal.

    MinHash LSH over the 5-grams of the normalised text of all turns. The similarity is an estimate: its standard
    error is about 0.035 at 0.8, and some pairs just above the threshold are missed.
    """

    def __init__(self, side: Side, near: float):
        self.side, self.near = side, near
        self.numbers = np.sort(np.unique(side.prompt, return_index=True)[1])
        self.minhashes = list(self._sketch())
        # A missed pair is worse here than a candidate too many, which the estimate then drops.
        self.index = _datasketch().MinHashLSH(threshold=near, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        for place, minhash in enumerate(self.minhashes):
            self.index.insert(place, minhash, check_duplication=False)

    def _sketch(self) -> Iterator:
        datasketch = _datasketch()
        empty = datasketch.MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)
        for batch in self.side.rows.select(self.numbers).select_columns("prompt").iter(BATCH):
            for turns in batch["prompt"]:
                minhash = empty.copy()
                grams = list(_grams(normalise("\n".join(turn["content"] for turn in turns))))
                for start in range(0, len(grams), GRAMS_AT_ONCE):
                    minhash.update_batch(grams[start:start + GRAMS_AT_ONCE])
                yield datasketch.LeanMinHash(minhash)

    def within(self) -> dict:
        """The finding: prompts that are nearly equal to a prompt of another group."""
        groups = self.side.group[self.numbers]
        return self._finding(self, np.arange(len(self.numbers)), groups)

    def near_to(self, train: "NearPrompts") -> dict:
        """The finding: prompts that are not in `train`, but nearly equal to one there."""
        new = first_rows(train.side.prompt, self.side.prompt[self.numbers]) < 0
        return self._finding(train, np.flatnonzero(new))

    def _finding(self, other: "NearPrompts", places: np.ndarray, groups: np.ndarray | None = None) -> dict:
        found = [(place, *nearest) for place in places.tolist()
                 if (nearest := other._nearest(self.minhashes[place], groups, place))]
        examples = [{"id": row_id(self.side, self.numbers[place]), "of": row_id(other.side, other.numbers[partner]),
                     "jaccard": jaccard} for place, partner, jaccard in found[:EXAMPLES]]
        return {"count": len(found), "out_of": len(self.numbers), "examples": examples}

    def _nearest(self, minhash, groups: np.ndarray | None, place: int) -> tuple[int, float] | None:
        """The place of the most similar prompt, with the similarity; with `groups` only out of another group than
        that of the prompt at `place`."""
        candidates = (candidate for candidate in self.index.query(minhash)
                      if groups is None or groups[candidate] != groups[place])
        jaccard, partner = max(((minhash.jaccard(self.minhashes[candidate]), -candidate)
                                for candidate in islice(candidates, CANDIDATES)), default=(0.0, 0))
        return (-partner, jaccard) if jaccard >= self.near else None


def _grams(text: str) -> set[bytes]:
    return {text[start:start + GRAM].encode("utf-8") for start in range(max(1, len(text) - GRAM + 1))}
