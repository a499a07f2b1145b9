"""Forward and backward pass of one step: packed, padded, and in random batches; and how far their gradients are apart.

    python tests/bench/forward.py [--model small|tiny|7b] [--layers N] [--data FILE] [--precision fp32 bf16] [--profile]

The same pairs of real data are read in random batches of eight, in padded micro-batches of pm.plan, and packed; in one
order, and in both. Seconds are the best of the rounds, in turn: of the processor on a CPU, where other processes
disturb them less, wall on a GPU. MFU is counted as in peers.py, without padding and without sharing. Kept are the
activations of all micro-batches for the backward pass. `--profile` says where the time of the packs goes,
`--tokens_per_micro_batch` and `--shortest`, which is `packing.SHORTEST_SHARED`, show which are fast, and on a GPU
`--compile`, which is that of train.py, and `--path_by_path`, what compiled activations and what FlashAttention over all
paths at once gain. Not collected by pytest.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peers import DTYPES, PRESETS, REPOSITORY, matmul_peak, useful_flops
from transformers import Cohere2Config

from pm import attention, fused, packing
from pm.batches import Batches
from pm.collator import Collator, draw_orders
from pm.config import parse
from pm.encoding import Template
from pm.model import Cohere2ForSequenceClassification, add_lora
from pm.run import load_data
from pm.tracking import quiet_libraries

RANK = 16


def readings(rows, template: Template, tokens: int, orders: str) -> dict[str, list[dict]]:
    """The tensors of a step's micro-batches, by the way they are read."""
    def planned(packed: bool) -> list[dict]:
        batches = Batches(rows, np.ones(len(rows)), template, len(rows), tokens, orders, 0, packed)
        return [batch.tensors for batch in batches.step(0)[1]]

    eights = [[rows[number] for number in range(start, min(start + 8, len(rows)))] for start in range(0, len(rows), 8)]
    found = {"random batches of 8": [Collator(template, False)(some, [draw_orders(row["id"], orders, 0, 0)
                                                                      for row in some]) for some in eights],
             "padded": planned(False)}
    if orders == "both":
        shortest, packing.SHORTEST_SHARED = packing.SHORTEST_SHARED, 10**9
        found["packed, nothing shared"] = planned(True)
        packing.SHORTEST_SHARED = shortest
    return found | {"packed": planned(True)}


def kept(model, micro_batches: list[dict], device: torch.device) -> int:
    """Bytes of the tensors that the forward passes keep for the backward pass, beside the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    total = 0

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    for tensors in micro_batches:
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits_BC = forward(model, tensors, device)
        total += sum(sizes.values())
        del logits_BC
    return total


def forward(model, tensors: dict, device: torch.device) -> torch.Tensor:
    return model(**{name: tensor.to(device) for name, tensor in tensors.items()
                    if name not in ("swapped", "target")}).logits


def passes(model, micro_batches: list[dict], device: torch.device) -> float:
    """Seconds of all micro-batches; the gradients are left in the model."""
    model.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    for tensors in micro_batches:
        ((-1.0) ** tensors["swapped"].to(device)[:, None] * forward(model, tensors, device)).sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def main() -> None:
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PRESETS, default="tiny")
    parser.add_argument("--layers", type=int, help="of the model, where all of them do not fit [all]")
    parser.add_argument("--data", default=str(REPOSITORY.parent / "shared/data/mt_postedit_mlqe.jsonl"))
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--tokens_per_micro_batch", type=int, default=8192)
    parser.add_argument("--shortest", type=int, default=packing.SHORTEST_SHARED)
    parser.add_argument("--path_by_path", action="store_true", help="attention, as it always is on a CPU")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    packing.SHORTEST_SHARED = arguments.shortest
    if arguments.path_by_path:
        attention.flash_runs = lambda value_TKE: False
    if arguments.compile:
        fused.compile_activation()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        argv = ["--model", "small-random", "--data", arguments.data, "--cache_dir", folder]
        data = load_data(parse(argv).config, Path(folder))
        chosen = np.random.default_rng(0).permutation(len(data.train.encoded))[: arguments.pairs]
        rows = data.train.encoded.select(chosen)
    shape = PRESETS[arguments.model]
    shape |= {"num_hidden_layers": arguments.layers or shape["num_hidden_layers"]}
    config = Cohere2Config(**shape, pad_token_id=data.encoder.template.pad, eos_token_id=data.encoder.template.eos)
    for precision in arguments.precision:
        torch.manual_seed(0)
        with device:
            model = Cohere2ForSequenceClassification._from_config(config, dtype=DTYPES[precision])
        if arguments.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model = add_lora(model, RANK, 2 * RANK, 0.0, False).to(device).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "score" in name:
                torch.nn.init.normal_(parameter, std=0.02)
            parameter.data = parameter.data.to(DTYPES[precision])
        peak = matmul_peak(device.type, DTYPES[precision])
        print(f"\n{precision}, {arguments.pairs} pairs, fastest matrix product {peak / 1e9:,.0f} GFLOP/s\n"
              f"{'':38}{'seconds':>9}{'ratio':>7}{'tokens':>9}{'padding':>9}{'MFU':>7}{'kept':>10}{'gradient':>10}")
        for orders in ("random", "both"):
            lengths = rows["tokens"][:] * (2 if orders == "both" else 1)
            flops, ways = useful_flops(config, RANK, lengths), readings(
                rows, data.encoder.template, arguments.tokens_per_micro_batch, orders)
            took, gradients = {name: [] for name in ways}, {}
            for _ in range(arguments.rounds):
                for name, micro_batches in ways.items():
                    took[name].append(passes(model, micro_batches, device))
                    gradients[name] = torch.cat([parameter.grad.flatten().float() for parameter in model.parameters()
                                                 if parameter.grad is not None])
            first = next(iter(ways))
            for name, micro_batches in ways.items():
                read = sum((tensors["pack"].input_ids if "pack" in tensors else tensors["input_ids"]).numel()
                           for tensors in micro_batches)
                padding = 0.0 if "packed" in name else 1 - sum(lengths) / read
                difference = (gradients[name] - gradients[first]).norm() / gradients[first].norm()
                seconds = min(took[name])
                print(f"{'both orders' if orders == 'both' else 'one order'}, {name:25}{seconds:9.2f}"
                      f"{min(took[first]) / seconds:7.2f}{read:9,}{padding:9.1%}{flops / seconds / peak:7.1%}"
                      f"{kept(model, micro_batches, device) / 2**20:7,.0f} MB{difference:10.1g}", flush=True)
        if arguments.profile:
            for _ in range(arguments.rounds):  # so that memory is there
                passes(model, ways["packed"], device)
            with torch.profiler.profile() as profile:
                passes(model, ways["packed"], device)
            print(profile.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=25,
                                               max_name_column_width=60))


if __name__ == "__main__":
    main()
