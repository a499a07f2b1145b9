"""How well a language model predicts text, by language: python -m pm.perplexity --model MODEL --data SOURCE [...]"""

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset

from pm.collator import Collator
from pm.config import BASE, DEFAULT_TOKENS, Pretraining, fail
from pm.data.prepare import encode, read
from pm.data.targets import with_targets
from pm.distributed import gather_rows, rank, world_size
from pm.encoding import Encoder, Template, row_lengths
from pm.errors import run_main
from pm.model import PACKAGED, load_language_model, load_tokenizer
from pm.packing import sequence_sums
from pm.plan import plan_packed_evaluation
from pm.report import Table, aligned
from pm.tracking import quiet_libraries

COLUMNS = ["language", "rows", "tokens", "loss", "perplexity"]


@torch.no_grad()
def score_language(model, rows: Dataset, template: Template, token_budget: int, device: torch.device, *,
                   shared: bool = False, progress: Callable = iter) -> np.ndarray:
    """The loss of each row as text, in nats, the sum over its tokens but the first, (N,).

    `rows` as for `predict.score`; responses are read in the order A, B. `shared` as there.
    """
    lengths, _ = row_lengths(rows)
    plan = plan_packed_evaluation(lengths, lengths, range(len(rows)), token_budget, world_size() if shared else 1)
    collate = Collator(template, packing=True)
    was_training = model.training
    model.eval()
    mine: list[tuple[int, float]] = []
    for numbers in progress(plan[rank() if shared else 0]):
        if numbers:
            pack = collate([rows[number] for number in numbers], [(False,)] * len(numbers))["pack"].to(device)
            mine += zip(numbers, sequence_sums(pack, model(pack=pack).losses), strict=True)
    model.train(was_training)
    return np.array(gather_rows(mine, len(rows), shared))


def perplexities(rows: Dataset, losses_N: np.ndarray) -> dict:
    """`overall`, and `by_language` from the one with most rows to the one with fewest, each with the number of `rows`
    and of predicted `tokens`, the mean `loss` of a token in nats and the `perplexity`, its exponential."""
    tokens_N, language_N = row_lengths(rows)[0] - 1, np.array(rows["language"][:])

    def part(some_N: np.ndarray) -> dict:
        tokens = int(tokens_N[some_N].sum())
        loss = float(losses_N[some_N].sum() / tokens)
        return {"rows": int(some_N.sum()), "tokens": tokens, "loss": loss,
                "perplexity": math.exp(loss) if loss < 700 else math.inf}

    names, counts = np.unique(language_N, return_counts=True)
    return {"overall": part(np.ones(len(rows), dtype=bool)),
            "by_language": {str(name): part(language_N == name) for name in names[np.argsort(-counts, kind="stable")]}}


def table(found: dict) -> str:
    """`perplexities` as a table."""
    return aligned(Table(COLUMNS, lines(found)))


def lines(found: dict) -> list[list[str]]:
    """Of `COLUMNS`, for all languages together and for each."""
    return [[name, f"{part['rows']:,}", f"{part['tokens']:,}", f"{part['loss']:.3f}", f"{part['perplexity']:.2f}"]
            for name, part in {"all": found["overall"], **found["by_language"]}.items()]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="pm.perplexity", allow_abbrev=False,
                                     description="Perplexity of a Cohere 2 language model, or of the backbone of a "
                                                 "preference model (--tune full, or merged), by language.")
    parser.error = fail
    parser.add_argument("--model", required=True, help="base, a hub id or a local folder")
    parser.add_argument("--data", required=True, nargs="+", metavar="SOURCE", help="as for pm.pretrain")
    parser.add_argument("--max_length", type=int, default=Pretraining.max_length, metavar="N",
                        help="tokens of one sequence [%(default)s]")
    parser.add_argument("--cache_dir", default=Pretraining.cache_dir, help="where read and tokenised data is kept "
                                                                           "[%(default)s]")
    arguments = parser.parse_args(argv)
    quiet_libraries()
    name = str(PACKAGED) if arguments.model == BASE else arguments.model
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = read(arguments.data, Pretraining().reading, arguments.cache_dir)
    encoder = Encoder(load_tokenizer(name), arguments.max_length, pieces=True)
    rows = encode(source.rows, source.key, encoder, arguments.cache_dir)
    rows = with_targets(rows, np.zeros((len(rows), 0)))
    model = load_language_model(name, torch.float32).to(device)
    print(table(perplexities(rows, score_language(model, rows, encoder.template, DEFAULT_TOKENS, device))))


if __name__ == "__main__":
    run_main(main)
