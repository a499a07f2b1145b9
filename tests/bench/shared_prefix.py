"""Time of an evaluation that reads common beginnings once, against padded sequences of their own; how logits differ.

    python tests/bench/shared_prefix.py [--tokens 100 400 1600] [--shares 0.2 0.4 0.6 0.8] [--responses 2 4 6]

Processor time on one thread, of the small model with random weights; the ways in turn, the best of three. Two responses
are a pair read in both orders; n are all n * (n - 1) ordered pairs of the responses to one prompt, which share the
prompt and the first response. `--shortest` is `packing.SHORTEST_SHARED`. Not collected by pytest.
"""

import argparse
import time
from itertools import permutations

import numpy as np
import torch
from transformers import Cohere2Config

from pm import packing
from pm.model import SMALL, Cohere2ForSequenceClassification

PASS_TOKENS = 8192  # of a forward pass
ALL_TOKENS = 24_000  # of all sequences of a way
TIMES = 3


def padded(model, groups: list[list[list[int]]]) -> torch.Tensor:
    """Logits in the order of the sequences, which are sorted by length."""
    sequences = [sequence for group in groups for sequence in group]
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
    logits, start = torch.empty(len(sequences), 2), 0
    while start < len(order):
        longest = len(sequences[order[start]])
        some = order[start : start + max(1, PASS_TOKENS // longest)]
        ids, mask = torch.zeros(2, len(some), longest, dtype=torch.long)
        for row, number in enumerate(some):
            ids[row, : len(sequences[number])] = torch.tensor(sequences[number])
            mask[row, : len(sequences[number])] = 1
        logits[some] = model(input_ids=ids, attention_mask=mask).logits
        start += len(some)
    return logits


def packed(model, groups: list[list[list[int]]], shortest: int) -> torch.Tensor:
    packing.SHORTEST_SHARED = shortest
    found, some = [], []
    for group in [*groups, None]:
        if some and (group is None or len(packing.pack([*some, *group]).input_ids) > PASS_TOKENS):
            found.append(model(pack=packing.pack(some)).logits)
            some = []
        some = [*some, *(group or [])]
    return torch.cat(found)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[100, 400, 1600], help="of a sequence, on average")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8], help="of the prompt in it")
    parser.add_argument("--responses", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--shortest", type=int, default=packing.SHORTEST_SHARED)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Cohere2Config(vocab_size=8000, pad_token_id=0, eos_token_id=1, **SMALL)
    model = Cohere2ForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.score.weight)
    model.requires_grad_(False)
    random = np.random.default_rng(0)
    print("responses  tokens  prompt  packed  and shared  largest difference of a logit")
    for responses in arguments.responses:
        for tokens in arguments.tokens:
            for share in arguments.shares:
                groups = []
                for scale in random.uniform(0.5, 1.5, max(2, ALL_TOKENS // (tokens * responses * (responses - 1)))):
                    sizes = (np.array([share, *[(1 - share) / 2] * responses]) * tokens * scale).astype(int)
                    prompt, *answers = (random.integers(300, 8000, size).tolist() for size in sizes)
                    groups.append([prompt + one + other for one, other in permutations(answers, 2)])
                ways = {"padded": lambda groups=groups: padded(model, groups),
                        "packed": lambda groups=groups: packed(model, groups, 10**9),
                        "shared": lambda groups=groups: packed(model, groups, arguments.shortest)}
                took: dict[str, list[float]] = {name: [] for name in ways}
                logits = {}
                for _ in range(TIMES):
                    for name, way in ways.items():
                        started = time.process_time()
                        logits[name] = way()
                        took[name].append(time.process_time() - started)
                best = {name: min(times) for name, times in took.items()}
                difference = max((logits[name] - logits["padded"]).abs().max() for name in ("packed", "shared"))
                print(f"{responses:9}  {tokens:6}  {share:6.0%}  {best['padded'] / best['packed']:6.2f}  "
                      f"{best['padded'] / best['shared']:10.2f}  {difference:.1g}", flush=True)


if __name__ == "__main__":
    main()
