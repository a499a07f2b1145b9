"""How much memory a forward and backward pass takes, how much there is, and what to do where it runs out."""

from pathlib import Path

import torch
from torch import nn

from pm.batches import Batches
from pm.distributed import gather_lists, ranks_here, say
from pm.errors import UserError

HEADROOM = 0.8  # share of the free memory that is planned with
PROBES = (1024, 4096)  # tokens, at least, of the two passes whose difference shows what a token takes
FASTEST_ON_CPU = 4096  # tokens: micro-batches of more are slower there (tests/bench/forward.py)

# What a RuntimeError says of memory that is not torch's own on a GPU, of cuBLAS or NCCL, and of any on a CPU.
RAN_OUT = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Cuda failure 2 'out of memory'",
           "can't allocate memory")

CONTAINER_MEMORY = [(Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")), (
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))]


def fitting_budget(model: nn.Module, batches: Batches, device: torch.device, **more) -> int:
    """How many tokens of one forward and backward pass fit the memory of each rank; said with how it was found.
    `more` is what the model is called with beside a micro-batch.

    Not more than a step has, or than is fast. All ranks call it together and get the same number. Raises `UserError`
    where memory runs out in the smaller of the probes.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def peak(tokens: int) -> tuple[int, int]:
        """Of a pass over the longest rows that have that many tokens: how many those are, and the bytes."""
        taken, micro_batch = batches.longest(tokens)
        inputs, _, _ = micro_batch.on(device)
        reset_peak(device)
        outputs = [output.sum() for output in model(**inputs, **more).to_tuple() if output.requires_grad]
        torch.autograd.grad(sum(outputs), trained, allow_unused=True)
        return taken, peak_bytes(device)

    with Guard() as guard:
        peak(PROBES[0])  # what is made once does not count
        free = free_bytes(device)
        few, bytes_of_few = peak(PROBES[0])
    if guard.ran_out:
        raise UserError("--tokens_per_micro_batch auto: out of memory for the longest pairs; a lower --max_length "
                        "takes less", of_this_rank=True)
    fits, reason = few, "more ran out of memory"
    with Guard():
        many, bytes_of_many = peak(max(PROBES[1], 2 * few))
        if many == few:  # there is only one row: all that is taken, the weights too, counts as the tokens'
            few = bytes_of_few = 0
        per_token = max(1.0, (bytes_of_many - bytes_of_few) / (many - few))
        fits = int(HEADROOM * free / per_token)
        reason = f"a pass takes {per_token / 1024:,.0f} KiB a token; {free / 2**30:.1f} GiB are free"
    useful = FASTEST_ON_CPU if device.type == "cpu" else batches.longest_step
    found = min(gather_lists([max(1, min(fits, useful))]))
    say(f"--tokens_per_micro_batch auto: {found:,} ({reason})")
    return found


def free_bytes(device: torch.device) -> int:
    """What tensors on this rank may take: on a CPU an even share for each rank of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device)
    free = [_kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024]
    for limit, used in CONTAINER_MEMORY:
        if limit.exists() and limit.read_text().strip() != "max":
            free.append(int(limit.read_text()) - int(used.read_text()))
    return min(free) // ranks_here()


def peak_bytes(device: torch.device) -> int:
    """The most memory so far, or since `reset_peak`: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _kilobytes(Path("/proc/self/status"), "VmHWM") * 1024


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM


class Guard:
    """Ends a `with` block where memory runs out, and notes it in `ran_out`."""

    ran_out = False

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, kind, error, traceback) -> bool:
        self.ran_out = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and any(words in str(error) for words in RAN_OUT))
        return self.ran_out


def _kilobytes(path: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
