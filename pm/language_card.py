"""The card of a language model: how it was made, so that it can be made again."""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from pm.card import UNKNOWN_LICENCE, command, table_lines, versions
from pm.config import Pretraining
from pm.perplexity import COLUMNS, lines
from pm.run import Corpus

LOSSES = 20  # of the training steps, at most as many as the card shows


def language_card(run: Path, config: Pretraining, ds_config: dict, corpus: Corpus, history: Sequence[dict],
                  found: dict | None, parameters: int) -> str:
    """README.md of an export. `history` is the run's metrics.jsonl, `found` the perplexities of its test split."""
    environment = json.loads((run / "environment.json").read_text("utf-8"))
    codes = [name for name in (found or {"by_language": {}})["by_language"] if name != "und"]
    metadata = ModelCardData(language=codes or None, library_name="transformers", pipeline_tag="text-generation",
                             tags=["cohere2"], license=config.license or UNKNOWN_LICENCE)
    steps = [line for line in history if line["phase"] == "train"]
    finite = [line for line in steps if line["loss"] is not None]
    rows = [
        ["parameters", f"{parameters:,}"],
        ["steps", f"{steps[-1]['step']:,}, each of {ds_config['train_batch_size']} sequences" if steps else "0"],
        ["peak learning rate", f"{ds_config['optimizer']['params']['lr']:g}"],
        ["precision", "bf16" if ds_config.get("bf16", {}).get("enabled") else "fp32"],
        ["seed", str(config.seed)],
        ["hashes of the data (train, test)", corpus.key],
        ["commit", environment["commit"]],
        ["versions", versions(environment)],
        ["hardware", f"{environment['ranks']} x {environment['device']}"],
        ["time", f"{sum(line['seconds'] for line in steps) / 60:.0f} minutes"],
    ]
    parts = [
        f"# {run.resolve().name}\n",
        "A small language model (Cohere 2): the base of preference models, which adapt it with LoRA. It is made by\n"
        "`python -m pm.pretrain` of the package `preference-model`, and is no model to write text with.\n",
        "## Data\n", "```", *corpus.summary.splitlines(), "```\n",
        "## Training\n", *table_lines(["", ""], rows), "", "```bash", command(environment["command"]), "```", "",
        "Loss of a token in nats, in training:\n",
        *table_lines(["step", "loss"], [[f"{line['step']:,}", f"{line['loss']:.3f}"] for line in _some(finite)]), "",
    ]
    if found:
        parts += ["## Perplexity\n", "On rows that were held out, by groups of prompts; per token of its own "
                  "tokenizer, the template's included.\n", *table_lines(COLUMNS, lines(found)), ""]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(parts)


def _some(steps: Sequence[dict]) -> list[dict]:
    every = max(1, -(-len(steps) // LOSSES))
    return [line for number, line in enumerate(steps, 1) if number % every == 0]
