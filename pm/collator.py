"""Encoded rows to padded tensors. Shapes: B sequences, L tokens of the longest one, N rows, C classes."""

import hashlib
from collections.abc import Sequence

import torch

from pm.encoding import Template


def draw_orders(identifier: str, orders: str, seed: int, epoch: int) -> list[bool]:
    """Which orders of a row to read: True stands for B before A.

    `both` gives both; `random` gives one, drawn anew for every (seed, epoch, id); `none` is for rows without
    responses, and gives the one order that they have.
    """
    if orders == "none":
        return [False]
    if orders == "both":
        return [False, True]
    digest = hashlib.sha256(f"swap {seed} {epoch} {identifier}".encode()).digest()
    return [bool(digest[0] & 1)]


class Collator:
    """Puts the template around the three texts, in the order asked for, and pads on the right.

    With BOS=1, EOS=2, START=3, END=4, USER=5, CHATBOT=6 and PAD=0, the row
    `prompt_ids=[3, 5, 50, 4], a_ids=[60], b_ids=[70, 71], target=[1.0, 0.0]` read in both orders, together with
    `prompt_ids=[3, 5, 51, 4], a_ids=[61], b_ids=[72], target=[0.0, 1.0]` read in order A, B only, would be

        input_ids       [[1, 3, 5, 50, 4, 3, 6, 60, 4, 3, 6, 70, 71, 4, 2],
                         [1, 3, 5, 50, 4, 3, 6, 70, 71, 4, 3, 6, 60, 4, 2],
                         [1, 3, 5, 51, 4, 3, 6, 61, 4, 3, 6, 72, 4, 2, 0]]
        attention_mask  1 where input_ids holds the sequence, 0 where it is padding
        swapped         [False, True, False]
        target          [[1.0, 0.0], [0.0, 1.0]]

    The target is in the row's own order, whatever the order read: it is the logits that are put back
    (`model.unswap`). In a row without responses `a_ids` and `b_ids` are None. Rows are never changed.
    """

    def __init__(self, template: Template):
        self.template = template

    def __call__(self, rows: Sequence[dict], orders: Sequence[Sequence[bool]]) -> dict[str, torch.Tensor]:
        """`orders[n]` says in which orders row n is read; sequences of a row are neighbours."""
        sequences, swapped = [], []
        for row, row_orders in zip(rows, orders, strict=True):
            for swap in row_orders:
                sequences.append(self._sequence(row, swap))
                swapped.append(swap)
        return {
            "input_ids": _padded(sequences, self.template.pad),
            "attention_mask": _padded([[1] * len(sequence) for sequence in sequences], 0),
            "swapped": torch.tensor(swapped),
            "target": _targets(rows),
        }

    def both_orders(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        """Each row as one sequence: what both orders begin with, the rest of the order A, B, the rest of B, A. The
        first row above would be

            input_ids  [[1, 3, 5, 50, 4, 3, 6, 60, 4, 3, 6, 70, 71, 4, 2, 3, 6, 70, 71, 4, 3, 6, 60, 4, 2]]
            branches   [[0, 0, 0,  0, 0, 1, 1,  1, 1, 1, 1,  1,  1, 1, 1, 2, 2,  2,  2, 2, 2, 2,  2, 2, 2]]

        with -1 where there is padding. The model gives two logits for a row, so `swapped` is as for both orders.
        """
        sequences, branches = [], []
        for row in rows:
            one, other = self._sequence(row, False), self._sequence(row, True)
            shared = shared_tokens(len(row["prompt_ids"]))
            sequences.append(one + other[shared:])
            branches.append([0] * shared + [1] * (len(one) - shared) + [2] * (len(other) - shared))
        return {"input_ids": _padded(sequences, self.template.pad), "branches": _padded(branches, -1),
                "swapped": torch.tensor([False, True] * len(rows)), "target": _targets(rows)}

    def _sequence(self, row: dict, swap: bool) -> list[int]:
        responses = [] if row["a_ids"] is None else [row["a_ids"], row["b_ids"]]
        return self.template.sequence(row["prompt_ids"], *(responses[::-1] if swap else responses))


def shared_tokens(prompt_tokens):
    """How many tokens both orders of a row begin with: BOS and the prompt."""
    return prompt_tokens + 1


def _padded(sequences: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    padded_BL = torch.full((len(sequences), max(map(len, sequences))), padding)
    for number, sequence in enumerate(sequences):
        padded_BL[number, : len(sequence)] = torch.tensor(sequence)
    return padded_BL


def _targets(rows: Sequence[dict]) -> torch.Tensor:
    return torch.tensor([row["target"] for row in rows], dtype=torch.float32)
