"""What a pass takes, what there is, and where it ends. On a CPU."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import TOKENIZER, TWO, tiny_model

from pm import memory
from pm.batches import Batches
from pm.encoding import Template
from pm.errors import UserError
from pm.model import PreferenceOutput

CPU = torch.device("cpu")
MEGABYTES = 2**20


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)


def batches(packing: bool) -> Batches:
    """Eight pairs, the last one the longest; both orders."""
    template = Template.of(TOKENIZER)
    rows = [{"id": str(number), "prompt_ids": template.turn("user", [300 + number] * 4), "a_ids": [310] * (number + 1),
             "b_ids": [320], "target": [1.0, 0.0]} for number in range(8)]
    for row in rows:
        row["tokens"] = len(template.sequence(row["prompt_ids"], row["a_ids"], row["b_ids"]))
    return Batches(Dataset.from_list(rows), np.ones(8), template, 4, 8192, "both", 0, packing)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")])
def test_a_guard_notes_that_memory_ran_out(error):
    with memory.Guard() as guard:
        raise error
    assert guard.ran_out


def test_a_guard_lets_other_errors_through_and_notes_nothing():
    with pytest.raises(RuntimeError, match="shapes"), memory.Guard():
        raise RuntimeError("shapes cannot be multiplied")
    with memory.Guard() as guard:
        pass
    assert not guard.ran_out


def test_a_peak_is_that_since_the_reset():
    block = torch.ones(300 * MEGABYTES, dtype=torch.uint8)
    high = memory.peak_bytes(CPU)
    del block
    memory.reset_peak(CPU)
    low = memory.peak_bytes(CPU)
    assert high - low > 200 * MEGABYTES
    torch.ones(300 * MEGABYTES, dtype=torch.uint8)
    assert memory.peak_bytes(CPU) - low > 200 * MEGABYTES


def test_ranks_of_a_machine_share_its_memory(monkeypatch):
    alone = memory.free_bytes(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_bytes(CPU) == pytest.approx(alone / 4, rel=0.2)


@pytest.mark.parametrize("packing", [False, True])
def test_a_budget_is_at_most_what_a_step_has_and_less_where_there_is_less(packing, monkeypatch, capsys):
    model, rows = tiny_model(TWO, False).train(), batches(packing)
    monkeypatch.setattr(memory, "FASTEST_ON_CPU", 100)
    assert memory.fitting_budget(model, rows, CPU) == 100
    assert "--tokens_per_micro_batch auto: 100 (" in capsys.readouterr().out
    assert all(parameter.grad is None for parameter in model.parameters())  # the first step begins from nothing
    monkeypatch.setattr(memory, "HEADROOM", 1e-12)
    assert memory.fitting_budget(model, rows, CPU) == 1


def test_a_budget_counts_tokens_also_where_one_row_is_longer_than_the_probes(monkeypatch):
    """Each pass is said to take 1,000 bytes a token on top of 10,000; 10 million bytes are free."""
    read = []

    class Model(torch.nn.Linear):
        def forward(self, pack):
            read.append(len(pack.input_ids))
            return PreferenceOutput(self.weight.sum())

    monkeypatch.setattr(memory, "PROBES", (16, 64))  # the longest row has 2 x 30 tokens
    monkeypatch.setattr(memory, "FASTEST_ON_CPU", 10**9)
    monkeypatch.setattr(memory, "peak_bytes", lambda device: 10_000 + 1000 * read[-1])
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**7)
    assert memory.fitting_budget(Model(1, 1), batches(True), CPU) == pytest.approx(8000, abs=1)
    one = batches(True)
    one = Batches(one.rows.select([7]), np.ones(1), Template.of(TOKENIZER), 4, 8192, "both", 0, True)
    assert memory.fitting_budget(Model(1, 1), one, CPU) < 8000


def test_a_budget_where_a_probe_runs_out_of_memory(monkeypatch, capsys):
    class Model(torch.nn.Linear):
        def forward(self, pack):
            if len(pack.input_ids) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return PreferenceOutput(self.weight.sum())

    monkeypatch.setattr(memory, "PROBES", (16, 64))
    most, _ = batches(True).longest(16)
    assert memory.fitting_budget(Model(1, 1), batches(True), CPU) == most
    assert f"--tokens_per_micro_batch auto: {most} (more ran out of memory)" in capsys.readouterr().out
    most -= 1
    with pytest.raises(UserError, match="auto: out of memory for the longest pairs; a lower --max_length takes less"):
        memory.fitting_budget(Model(1, 1), batches(True), CPU)


@pytest.mark.parametrize("packing", [False, True])
def test_the_longest_rows_have_the_tokens_asked_for(packing):
    rows = batches(packing)
    assert [rows.longest(1)[1].ids, rows.longest(60)[1].ids, rows.shortest().ids] == [["7"], ["7", "6"], ["0"]]
    assert rows.longest(10**6)[0] == 2 * sum(rows.rows["tokens"][:])  # prompts this short are not shared
    assert rows.longest_step == 4 * 2 * max(rows.rows["tokens"][:])


def test_a_budget_is_halved_until_it_holds_nothing():
    rows = batches(True)
    for wanted in (4096, 2048, 1024, 512, 256, 128, 64):
        rows.halve_budget()
        assert rows.token_budget == wanted
    with pytest.raises(UserError, match="out of memory for a single pair"):
        rows.halve_budget()
