"""The training rows as steps of micro-batches: plan, orders and collator together."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from pm.collator import Collator, draw_orders
from pm.distributed import rank, world_size
from pm.encoding import Template
from pm.plan import epoch_rows, plan_step, rows_per_epoch, steps_per_epoch


@dataclass(frozen=True)
class MicroBatch:
    """`ids` of the rows, `tensors` as the collator gives them. `weight` is 0 where the rows only fill in for none:
    every rank runs as many micro-batches as the others."""

    ids: list[str]
    tensors: dict[str, torch.Tensor]
    weight: float


class Batches:
    """Micro-batches of any step: a pure function of the rows, the arguments and the step."""

    def __init__(self, rows: Dataset, rates: np.ndarray, template: Template, train_batch_size: int, token_budget: int,
                 orders: str, seed: int):
        """`rates` (N,): how often each row is used in an epoch (`plan.sampling_rates`)."""
        self.rows = rows
        self.train_batch_size = train_batch_size
        self.orders_per_row = 2 if orders == "both" else 1
        self.per_epoch = steps_per_epoch(rows_per_epoch(rates), train_batch_size)
        self._collate = Collator(template)
        self._rates, self._orders, self._seed = rates, orders, seed
        self._lengths = np.asarray(rows.with_format("numpy")["tokens"][:])
        self._budget = token_budget // self.orders_per_row
        self._epoch, self._permutation = -1, np.empty(0)

    def step(self, number: int) -> tuple[int, list[MicroBatch]]:
        """The number of rows of step `number` on all ranks, and this rank's micro-batches of it."""
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, epoch_rows(self._rates, self._seed, epoch)
        chosen = self._permutation[place * self.train_batch_size : (place + 1) * self.train_batch_size]
        plan = plan_step(self._lengths, chosen, self._budget, world_size())[rank()]
        shortest = int(chosen[self._lengths[chosen].argmin()])
        return len(chosen), [self._micro_batch(numbers or [shortest], bool(numbers), epoch) for numbers in plan]

    def _micro_batch(self, numbers: list[int], counts: bool, epoch: int) -> MicroBatch:
        rows = [self.rows[number] for number in numbers]
        orders = [draw_orders(row["id"], self._orders, self._seed, epoch) for row in rows]
        return MicroBatch([row["id"] for row in rows], self._collate(rows, orders), float(counts))


def seed_step(seed: int, step: int) -> None:
    """Dropout is a function of (seed, step, rank): there is no random state to save."""
    digest = hashlib.sha256(f"dropout {seed} {step} {rank()}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))
