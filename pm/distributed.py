"""The only module that asks for ranks; everything else is silent or collective by itself."""

import os
import signal
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from pm.errors import UserError

# Reading and tokenising a large data set happens on one rank while the others wait.
TIMEOUT = timedelta(hours=12)


def set_environment() -> None:
    """Makes a bare `python train.py` a world of one; the `deepspeed` launcher has set these already."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1"),
                        ("MASTER_PORT", port)):
        os.environ.setdefault(name, str(value))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def ranks_here() -> int:
    """On this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)  # torchrun's, deepspeed's


def is_main() -> bool:
    return rank() == 0


def set_device() -> torch.device:
    """Makes this rank's GPU the current one and returns it; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def start() -> torch.device:
    """Joins the ranks, where a launcher has started several, and returns this one's device; without deepspeed."""
    device = set_device()
    if world_size() > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return device


def end() -> None:
    """Leaves the ranks together: a process that ends with its connections open may be killed by their threads."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def main_first(work: Callable):
    """Runs `work()` on the first rank of each machine and then on the others, which find its cache filled."""
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    result, error = _attempt(work) if first else (None, None)
    _raise_together(error)
    return result if first else work()


def on_main(work: Callable):
    """Runs `work()` on the first rank and gives every rank its result (which is pickled: keep it small)."""
    result, error = _attempt(work) if is_main() else (None, None)
    _raise_together(error)
    return from_main(result)


def _attempt(work: Callable):
    try:
        return work(), None
    except (UserError, OSError, SafetensorError) as error:
        return None, error
    except Exception as error:  # of whatever kind: the other ranks must not wait for this one
        traceback.print_exc()
        return None, RuntimeError(f"rank {rank()} failed: {error!r:.500}")


def _raise_together(error: Exception | None) -> None:
    """An error that one rank met is raised on all, so that none waits for it; with a barrier's effect."""
    found = [one for one in gather_lists([error]) if one is not None]
    if found:
        raise found[0]


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_lists(items: list) -> list:
    """The items of all ranks, in the order of ranks, on every rank."""
    if not dist.is_initialized() or world_size() == 1:
        return items
    parts: list = [None] * world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def from_main(value):
    """The first rank's value, on every rank."""
    if not dist.is_initialized() or world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def say(*words) -> None:
    """Prints on the first rank."""
    if is_main():
        print(*words, flush=True)


class StopSignal:
    """Notes SIGTERM and SIGINT, so that a run can stop at a step boundary. A second SIGINT stops at once."""

    def __init__(self):
        self.received = False
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number, frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
