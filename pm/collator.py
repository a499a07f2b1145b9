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
                responses = [] if row["a_ids"] is None else [row["a_ids"], row["b_ids"]]
                sequences.append(self.template.sequence(row["prompt_ids"], *(responses[::-1] if swap else responses)))
                swapped.append(swap)
        longest = max(map(len, sequences))
        input_ids_BL = torch.full((len(sequences), longest), self.template.pad)
        mask_BL = torch.zeros_like(input_ids_BL)
        for number, sequence in enumerate(sequences):
            input_ids_BL[number, : len(sequence)] = torch.tensor(sequence)
            mask_BL[number, : len(sequence)] = 1
        return {
            "input_ids": input_ids_BL,
            "attention_mask": mask_BL,
            "swapped": torch.tensor(swapped),
            "target": torch.tensor([row["target"] for row in rows], dtype=torch.float32),
        }
