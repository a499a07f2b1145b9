"""The training rows as steps of micro-batches: plan, orders and collator together."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from pm.collator import Collator, draw_orders, on_device, packed_tokens
from pm.distributed import rank, world_size
from pm.encoding import MIN_MAX_LENGTH, Template, row_lengths
from pm.errors import UserError
from pm.packing import Pack
from pm.plan import attention_cost, epoch_rows, plan_packs, plan_step, rows_per_epoch, steps_per_epoch


@dataclass(frozen=True)
class MicroBatch:
    """`ids` of the rows, `tensors` as the collator gives them, `tokens` of the sequences and `padding` beside them.
    `weight` is 0 where the rows only fill in for none: every rank runs as many micro-batches as the others."""

    ids: list[str]
    tensors: dict[str, torch.Tensor | Pack]
    tokens: int
    padding: int
    weight: float

    def on(self, device: torch.device) -> tuple[dict[str, torch.Tensor | Pack], torch.Tensor, torch.Tensor]:
        """What the model reads, by name; which sequences are swapped (B,); and the targets (N, C)."""
        inputs = on_device(self.tensors, device)
        return inputs, inputs.pop("swapped"), inputs.pop("target")


class Batches:
    """Micro-batches of any step: a pure function of the rows, the arguments and the step."""

    def __init__(self, rows: Dataset, rates: np.ndarray, template: Template, train_batch_size: int, token_budget: int,
                 orders: str, seed: int, packing: bool):
        """`rates` (N,): how often each row is used in an epoch (`plan.sampling_rates`). `token_budget` of a micro-batch
        on one rank, with its padding."""
        self.rows = rows
        self.train_batch_size = train_batch_size
        self.orders_per_row = 2 if orders == "both" else 1
        self.per_epoch = steps_per_epoch(rows_per_epoch(rates), train_batch_size)
        self.token_budget = token_budget
        self._collate = Collator(template, packing)
        self._rates, self._orders, self._seed, self._packing = rates, orders, seed, packing
        self._lengths, prompt_lengths = row_lengths(rows)
        self._tokens = self.orders_per_row * self._lengths  # that a row takes of the budget, but for padding
        if packing:
            self._tokens, _ = packed_tokens(self._lengths, prompt_lengths, self.orders_per_row)
        self._costs = self._tokens + self.orders_per_row * attention_cost(self._lengths)
        self._epoch, self._permutation = -1, np.empty(0)

    def step(self, number: int) -> tuple[int, list[MicroBatch]]:
        """The number of rows of step `number` on all ranks, and this rank's micro-batches of it."""
        epoch, chosen = self._chosen(number)
        plan = self._plan(chosen)[rank()]
        shortest = int(chosen[self._lengths[chosen].argmin()])
        return len(chosen), [self._micro_batch(numbers or [shortest], bool(numbers), epoch) for numbers in plan]

    def predicted_tokens(self, number: int) -> int:
        """How many tokens of step `number` a language model predicts on all ranks: all but the first of a sequence."""
        _, chosen = self._chosen(number)
        return self.orders_per_row * int((self._lengths[chosen] - 1).sum())

    def _chosen(self, number: int) -> tuple[int, np.ndarray]:
        """The epoch of a step, and the numbers of its rows."""
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, epoch_rows(self._rates, self._seed, epoch)
        return epoch, self._permutation[place * self.train_batch_size : (place + 1) * self.train_batch_size]

    @property
    def longest_step(self) -> int:
        """The most tokens that a step may have on one rank."""
        return int(self._tokens.max()) * self.train_batch_size

    def halve_budget(self) -> None:
        """Raises `UserError` where it holds no sequence any more."""
        self.token_budget //= 2
        if self.token_budget < MIN_MAX_LENGTH:
            raise UserError("out of memory for a single pair; a lower --max_length takes less")

    def shortest(self) -> MicroBatch:
        return self._micro_batch([int(self._tokens.argmin())], False, 0)

    def longest(self, tokens: int) -> tuple[int, MicroBatch]:
        """The longest rows, as many as have that many tokens, at least one; and how many they have."""
        order = np.argsort(-self._tokens, kind="stable")
        numbers = order[: 1 + int(np.cumsum(self._tokens[order]).searchsorted(tokens))]
        return int(self._tokens[numbers].sum()), self._micro_batch(numbers.tolist(), True, 0)

    def _plan(self, chosen: np.ndarray) -> list[list[list[int]]]:
        if not self._packing:
            return plan_step(self._lengths, chosen, self.token_budget // self.orders_per_row, world_size())
        return plan_packs(self._tokens, self._costs, chosen, self.token_budget, world_size())

    def _micro_batch(self, numbers: list[int], counts: bool, epoch: int) -> MicroBatch:
        rows = [self.rows[number] for number in numbers]
        orders = [draw_orders(row["id"], self._orders, self._seed, epoch) for row in rows]
        tensors = self._collate(rows, orders)
        tokens = sum(row["tokens"] for row in rows) * self.orders_per_row
        padding = 0 if self._packing else tensors["input_ids"].numel() - tokens
        return MicroBatch([row["id"] for row in rows], tensors, tokens, padding, float(counts))


def seed_step(seed: int, step: int) -> None:
    """Dropout is a function of (seed, step, rank): there is no random state to save."""
    digest = hashlib.sha256(f"dropout {seed} {step} {rank()}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))
