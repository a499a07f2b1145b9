"""The only module that asks for ranks; everything else is silent or collective by itself."""

import os
import platform
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from pm.errors import UserError, first_line

MEETING = timedelta(minutes=10)  # until all ranks are there

_store = None  # through which the ranks have found each other
_gathered = 0


def set_environment() -> None:
    """Makes a bare `python train.py` a world of one; a launcher has set these already."""
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


def is_first_here() -> bool:
    """On this machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def set_device() -> torch.device:
    """Makes this rank's GPU the current one and returns it; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Packs differ in size at every step: memory that can grow in place is not cut into pieces that fit none of them.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= gpus:
        raise UserError(f"rank {rank()} on {socket.gethostname()} needs GPU {local} of that machine and sees {gpus}: "
                        "start fewer ranks, or let each see all of them", of_this_rank=True)
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def start() -> torch.device:
    """Joins the ranks, where a launcher has started several, and returns this one's device; without deepspeed."""
    global _store
    device = set_device()
    if world_size() > 1:
        _store = _meet()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=_store, rank=rank(),
                                world_size=world_size())
    return device


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"


def _meet():
    """The store through which the ranks find each other, when all are there. Raises `UserError`."""
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=MEETING))
        store.set(f"here/{rank()}", "")
        store.wait([f"here/{other}" for other in range(world_size())], MEETING)
    except dist.DistError as error:
        raise UserError(f"rank {rank()} on {socket.gethostname()} did not meet all {world_size()} ranks at MASTER_ADDR "
                        f"{os.environ['MASTER_ADDR']}, MASTER_PORT {os.environ['MASTER_PORT']} within "
                        f"{MEETING.total_seconds():g} s: {first_line(error)}") from None
    return store


def end() -> None:
    """Leaves the ranks together."""
    gather_lists([])  # waits longer than a barrier: the first rank may still upload
    if dist.is_initialized():
        dist.barrier()
    leave()


def leave(alone: bool = False) -> None:
    """Leaves the ranks: a process that ends with its connections open may be killed by their threads. `alone` where the
    others do not leave: NCCL would wait for them, so the process ends here, with exit code 2."""
    global _store
    if dist.is_initialized():
        if alone and dist.get_backend() == "nccl":
            sys.stdout.flush()
            os._exit(2)
        dist.destroy_process_group()
    _store = None


def check_shared(folder: Path, name: str) -> None:
    """Raises `UserError` where not every machine has the first rank's `folder`; `name` is how a user calls it."""
    if world_size() == 1:
        return
    mark = folder / on_main(lambda: _mark(folder))
    blind = gather_lists([] if mark.exists() else [socket.gethostname()])
    on_main(mark.unlink)
    if blind:
        raise UserError(f"{name} must be one folder that all machines share, under the same path; what the first rank "
                        f"writes to {folder} is not seen on {', '.join(sorted(set(blind)))}")


def _mark(folder: Path) -> str:
    name = f".seen_{secrets.token_hex(8)}"  # a new one each time: file systems remember what was not there
    (folder / name).touch()
    return name


def main_first(work: Callable):
    """Runs `work()` on the first rank, then on the first one of each other machine, then on all others: each finds
    what those before it left in folders that they share."""
    result = None
    for turn in (is_main(), is_first_here() and not is_main(), not is_first_here()):
        error = None
        if turn:
            result, error = _attempt(work)
        _raise_together(error)
    return result


def together(work: Callable):
    """Runs `work()` on every rank; an error on one is raised on all."""
    result, error = _attempt(work)
    _raise_together(error)
    return result


def on_main(work: Callable):
    """Runs `work()` on the first rank and gives every rank its result (which is pickled: keep it small)."""
    result, error = _attempt(work) if is_main() else (None, None)
    _raise_together(error)
    return from_main(result)


def _attempt(work: Callable):
    try:
        return work(), None
    except UserError as error:
        here = "" if rank() == int(os.environ.get("LOCAL_RANK", 0)) else f"on {socket.gethostname()}: "
        return None, UserError(f"{here}{error}")
    except (OSError, SafetensorError) as error:
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
    _wait()
    parts: list = [None] * world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def gather_rows(mine: list[tuple], rows: int, shared: bool) -> list:
    """What was made of each row, in the order of rows, from `(number, value)` of this rank's rows, or where `shared` of
    all ranks'."""
    everyone = sorted(gather_lists(mine) if shared else mine)
    assert [number for number, _ in everyone] == list(range(rows)), "each row is scored exactly once"
    return [value for _, value in everyone]


def _wait() -> None:
    """Until all ranks are here, however long one works (reading a large data set, or the export).

    A collective operation would wait a fixed time, and as long for a machine that vanished; asking again and again
    ends when the connection does.
    """
    global _gathered
    _gathered += 1
    _store.set(f"gathered/{_gathered}/{rank()}", "")
    everyone, pause = [f"gathered/{_gathered}/{other}" for other in range(world_size())], 0.001
    while not _store.check(everyone):
        time.sleep(pause)
        pause = min(2 * pause, 1)


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
