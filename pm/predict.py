"""From a trained model to predictions. Training and evaluation both score through `score`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors import SafetensorError

from pm.collator import Collator
from pm.data.comparison import LABELS, Comparison
from pm.distributed import gather_lists, rank, world_size
from pm.encoding import Encoder, Template
from pm.errors import UserError, first_line
from pm.model import load_model, load_tokenizer, unswap
from pm.plan import plan_evaluation

BOTH = (False, True)
SETTINGS = "preference.json"


@torch.no_grad()
def score(model, rows: Dataset, template: Template, token_budget: int, device: torch.device, shared: bool = False,
          progress: Callable = iter) -> list[dict]:
    """One prediction per row, in the order of the rows, each from both orders of its responses.

    `rows` as in `encoding.ENCODED_FEATURES`. `shared`: all ranks call it together, share the work and get the whole
    result; else a rank works by itself.
    A prediction holds the row's id, group, language, source, kind, target, lengths, `logits_ab` and `logits_ba`
    (read as A, B and as B, A; both in the row's class order) and `probability` of each class, from their mean.
    """
    if not len(rows):
        return []
    collate = Collator(template)
    lengths = np.asarray(rows.with_format("numpy")["tokens"][:])
    shortest = int(lengths.argmin())
    plan = plan_evaluation(lengths, token_budget // 2,
                           world_size() if shared else 1)
    micro_batches = plan[rank() if shared else 0]
    was_training = model.training
    model.eval()
    scored: list[tuple[list[int], torch.Tensor]] = []
    for numbers in progress(micro_batches):
        # A micro-batch without rows is run on some row all the same: ZeRO 3 gathers weights at every forward.
        batch = collate([rows[number] for number in numbers or [shortest]], [BOTH] * max(1, len(numbers)))
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        logits_BC = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        scored.append((numbers, unswap(logits_BC, batch["swapped"])))
    model.train(was_training)
    mine = [(number, pair) for numbers, logits_BC in scored
            for number, pair in zip(numbers, logits_BC.cpu().view(-1, 2, len(LABELS)).tolist(), strict=False)]
    everyone = sorted(gather_lists(mine) if shared else mine)
    assert [number for number, _ in everyone] == list(range(len(rows))), "each row is scored exactly once"
    return [_prediction(rows[number], *pair) for number, pair in everyone]


def _prediction(row: dict, logits_ab: list[float], logits_ba: list[float]) -> dict:
    kept = ("id", "group", "language", "source", "kind", "target", "tokens", "tokens_cut", "characters_a",
            "characters_b")
    mean = (np.array(logits_ab) + np.array(logits_ba)) / 2
    odds = np.exp(mean - mean.max())
    return {name: row[name] for name in kept} | {
        "logits_ab": logits_ab, "logits_ba": logits_ba, "probability": (odds / odds.sum()).tolist()}


class PreferenceModel:
    """An exported model: compares responses, and scores encoded rows."""

    def __init__(self, model, encoder: Encoder, settings: dict, device: torch.device):
        self.model = model.to(device).eval()
        self.encoder = encoder
        self.settings = settings
        self.device = device

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | torch.device | None = None) -> "PreferenceModel":
        """From an export, a run that has one, or a hub id. `device` is a GPU where there is one, unless given.

        Raises `UserError` where there is no export.
        """
        folder = find_export(name)
        try:
            settings = json.loads((folder / SETTINGS).read_text("utf-8"))
            dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings["dtype"]]
            if settings["tune"] == "lora":
                base = folder / "base"
                model, _ = load_model(str(base) if base.is_dir() else settings["base"], dtype)
                if not (folder / "adapter_model.safetensors").is_file():
                    raise UserError(f"{folder} holds no adapter_model.safetensors")
                model = PeftModel.from_pretrained(model, str(folder))
            else:
                model, _ = load_model(str(folder), dtype)
            encoder = Encoder(load_tokenizer(str(folder)), settings["max_length"])
            if (settings["template"], settings["labels"]) != (encoder.template.saved(), list(LABELS)):
                raise UserError(f"{folder} was trained with another template or other labels than this code has")
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(f"the export {folder} cannot be read: {first_line(error)}") from None
        for parameter in model.parameters():  # not `.to(dtype)`: the rotary frequencies are buffers and stay fp32
            parameter.data = parameter.data.to(dtype)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, encoder, settings, device)

    def score(self, rows: Dataset, token_budget: int, progress: Callable = iter) -> list[dict]:
        """`predict.score` with this model."""
        return score(self.model, rows, self.encoder.template, token_budget, self.device, progress=progress)

    def compare(self, prompts: Sequence[str | list[dict]], responses_a: Sequence[str],
                responses_b: Sequence[str], token_budget: int = 8192) -> list[float]:
        """P(response_a is better) for each triple, averaged over both orders; 0.5 for equal responses.

        A prompt is text or a list of turns `{"role", "content"}`.
        """
        comparisons = []
        for number, (prompt, a, b) in enumerate(zip(prompts, responses_a, responses_b, strict=True)):
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            comparisons.append(Comparison(str(number), "", "und", "", "", turns, a, b, [0.5, 0.5]).to_row())
        if not comparisons:
            return []
        columns = {name: [row[name] for row in comparisons] for name in comparisons[0]}
        rows = Dataset.from_dict(self.encoder.encode(columns))
        probabilities = [0.5] * len(comparisons)
        for prediction in self.score(rows, token_budget):
            probabilities[int(prediction["id"])] = prediction["probability"][0]
        return probabilities


def find_export(name: str | Path) -> Path:
    """The folder of an export: `name` itself, `name/export`, or what the hub has under that id."""
    folder = Path(name)
    for candidate in (folder, folder / "export"):
        if (candidate / SETTINGS).is_file():
            return candidate
    if folder.exists():
        raise UserError(f"--model {name} holds no export ({SETTINGS} is missing): has the run ended? "
                        f"`python -m pm.export {name}` writes one from its newest checkpoint")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(name)))
    except (OSError, ValueError) as error:
        raise UserError(f"--model {name}: neither a folder nor a readable hub id: {first_line(error)}") from None
    if not (folder / SETTINGS).is_file():
        raise UserError(f"--model {name} was not exported by this project: it has no {SETTINGS}")
    return folder
