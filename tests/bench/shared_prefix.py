"""Time of an evaluation that reads each prompt once for both orders, against two sequences for each row.

    python tests/bench/shared_prefix.py [--tokens 100 200 400 800 1600] [--shares 0.2 0.4 0.6 0.8]

Processor time on one thread, of the small model with random weights; both ways in turn, the best of three.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pm.collator import Collator, shared_tokens
from pm.encoding import Template
from pm.model import load_model, save_small_base
from pm.plan import plan_evaluation, shares_prompts
from pm.tokenizer import train_tokenizer

BUDGET = 8192  # tokens of a forward pass
ROW_TOKENS = 12_000  # of all rows together
TIMES = 3


@torch.no_grad()
def run(model, collate: Collator, rows: list[dict], lengths: np.ndarray, once: bool) -> torch.Tensor:
    """Logits in the order of the rows."""
    found = {}
    for numbers in plan_evaluation(lengths, BUDGET if once else BUDGET // 2, 1)[0]:
        chosen = [rows[number] for number in numbers]
        batch = collate.both_orders(chosen) if once else collate(chosen, [(False, True)] * len(chosen))
        mask = "branches" if once else "attention_mask"
        logits = model(input_ids=batch["input_ids"], **{mask: batch[mask]}).logits
        found |= dict(zip(numbers, logits.view(len(numbers), -1), strict=True))
    return torch.stack([found[number] for number in range(len(rows))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[100, 200, 400, 800, 1600])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["The quick brown fox jumps over the lazy dog. 0123456789"] * 9, 400)
    with tempfile.TemporaryDirectory() as folder:
        save_small_base(Path(folder) / "base", tokenizer, ("a", "b"), 0)
        model, _ = load_model(str(Path(folder) / "base"), torch.float32, ("a", "b"))
    model.eval()
    torch.nn.init.normal_(model.score.weight)
    template = Template.of(tokenizer)
    collate, random = Collator(template), np.random.default_rng(0)
    print("tokens  prompt  ratio  chosen  largest difference of a logit")
    for tokens in arguments.tokens:
        for share in arguments.shares:
            rows = []
            for total in random.uniform(0.5, 1.5, max(8, ROW_TOKENS // tokens)) * tokens:
                counts = (np.array([share, (1 - share) / 2, (1 - share) / 2]) * total).astype(int)
                prompt, a, b = (random.integers(300, len(tokenizer), count).tolist() for count in counts)
                rows.append({"prompt_ids": template.turn("user", prompt), "a_ids": a, "b_ids": b, "target": [1.0, 0.0]})
            lengths = np.array([len(template.sequence(row["prompt_ids"], row["a_ids"], row["b_ids"])) for row in rows])
            shared = np.array([shared_tokens(len(row["prompt_ids"])) for row in rows])
            took: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(TIMES):
                found = {}
                for once in (False, True):
                    started = time.process_time()
                    found[once] = run(model, collate, rows, 2 * lengths - shared if once else lengths, once)
                    took[once].append(time.process_time() - started)
            print(f"{tokens:6}  {share:6.0%}  {min(took[False]) / min(took[True]):5.2f}  "
                  f"{'once' if shares_prompts(lengths, shared) else 'twice':>6}  "
                  f"{(found[True] - found[False]).abs().max():.1g}", flush=True)


if __name__ == "__main__":
    main()
