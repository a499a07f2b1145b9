"""Encoded rows to tensors, padded or packed. Shapes: B sequences, L tokens of the longest one, N rows, C classes."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from pm.encoding import Template
from pm.packing import SHORTEST_SHARED, Pack, pack, to_device


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

    With `packing` there is a `packing.Pack` of the same sequences in the place of input_ids and attention_mask.

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

    def __init__(self, template: Template, packing: bool):
        self.template = template
        self.packing = packing

    def __call__(self, rows: Sequence[dict], orders: Sequence[Sequence[bool]]) -> dict[str, torch.Tensor | Pack]:
        """`orders[n]` says in which orders row n is read; sequences of a row are neighbours."""
        sequences = [self._sequence(row, swap) for row, row_orders in zip(rows, orders, strict=True)
                     for swap in row_orders]
        labels = {"swapped": torch.tensor([swap for row_orders in orders for swap in row_orders]),
                  "target": torch.tensor([row["target"] for row in rows], dtype=torch.float32)}
        if self.packing:
            return {"pack": pack(sequences), **labels}
        return {"input_ids": _padded(sequences, self.template.pad),
                "attention_mask": _padded([[1] * len(sequence) for sequence in sequences], 0), **labels}

    def _sequence(self, row: dict, swap: bool) -> list[int]:
        responses = [] if row["a_ids"] is None else [row["a_ids"], row["b_ids"]]
        return self.template.sequence(row["prompt_ids"], *(responses[::-1] if swap else responses))


def on_device(tensors: dict[str, torch.Tensor | Pack], device: torch.device) -> dict[str, torch.Tensor | Pack]:
    """A micro-batch, by name, where the model is."""
    return {name: value.to(device) if isinstance(value, Pack) else to_device(value, device)
            for name, value in tensors.items()}


def packed_tokens(tokens: np.ndarray, prompt_tokens: np.ndarray, orders: int) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens rows take in a pack, alone and behind one with the same prompt: `orders` sequences of `tokens`
    each, of which BOS and the prompt are read once where they are long enough. What else is shared is not counted."""
    shared = prompt_tokens + 1
    shared = shared * (shared >= SHORTEST_SHARED)
    return orders * tokens - (orders - 1) * shared, orders * (tokens - shared)


def _padded(sequences: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    padded_BL = torch.full((len(sequences), max(map(len, sequences))), padding)
    for number, sequence in enumerate(sequences):
        padded_BL[number, : len(sequence)] = torch.tensor(sequence)
    return padded_BL
