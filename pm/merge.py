"""An adapter and its backbone made one model, and what that changes. Shapes: N rows, C classes."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from pm.data.example import FEATURES
from pm.data.prepare import read
from pm.data.sources import Reading
from pm.data.targets import target_matrix, with_targets
from pm.encoding import ENCODED_FEATURES, Encoder
from pm.predictions import mean_logits
from pm.task import Task


@torch.no_grad()
def merged(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with LoRA added to its weights, the trained head and embeddings in their places, all of it in `dtype`.

    Each layer is added up in fp32 and rounded once: sums of bf16 weights round LoRA's small steps away. Layer by layer
    and in place, so that it takes the memory of one model; the one that is given must not be used any more.
    """
    model.to("cpu")
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        layer.base_layer.float()
        for matrices in (layer.lora_A, layer.lora_B):
            matrices.float()
        layer.merge()
        layer.base_layer.to(dtype)
    whole = model.unload() if isinstance(model, PeftModel) else model
    for parameter in whole.parameters():  # not `.to(dtype)`: the rotary frequencies stay fp32
        parameter.data = parameter.data.to(dtype)
    return whole


def drift(before: Sequence[dict], after: Sequence[dict]) -> dict:
    """How far the predictions of the same rows are apart: {"rows", "largest", "mean" (of the differences of a logit in
    one order), "flipped" (verdicts that change, averaged over both orders where there are two)}."""
    differences = np.abs([_logits(new) - _logits(old) for new, old in zip(after, before, strict=True)])
    flipped = _verdicts(before) != _verdicts(after)
    return {"rows": len(before), "largest": float(differences.max()), "mean": float(differences.mean()),
            "flipped": int(flipped.sum())}


def compared_rows(test: Dataset | None, encoder: Encoder, task: Task, cache_dir: str, most: int) -> tuple[Dataset, str]:
    """At most `most` encoded rows, spread evenly over the test split, or where there is none over the embedded sample;
    and which of the two it was."""
    if test is not None and len(test):
        return test.select(_spread(len(test), most)), "the test split"
    rows = read(["sample"], Reading(), cache_dir).rows
    rows = [row if task.compares else row | {"response_a": None, "response_b": None, "target": []}
            for row in rows.select(_spread(len(rows), most))]
    columns = encoder.encode(Dataset.from_list(rows, features=FEATURES)[:])
    encoded = Dataset.from_dict(columns, features=ENCODED_FEATURES)
    return with_targets(encoded, target_matrix(encoded, task.labels)), "the embedded sample"


def _spread(count: int, most: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def digests(model: nn.Module, dtype: torch.dtype, names: Sequence[str]) -> dict[str, str]:
    """A hash of the bits that each of these parameters has in `dtype`."""
    return {name: hashlib.sha256(parameter.detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy()).hexdigest()
            for name, parameter in model.named_parameters() if name in names}


def _logits(row: dict) -> np.ndarray:
    return np.concatenate([row[name] for name in ("logits_ab", "logits_ba", "logits") if name in row])


def _verdicts(predictions: Sequence[dict]) -> np.ndarray:
    """Of a comparison which of a and b has the higher logit (0 for neither), of a classification which class."""
    logits_NC = mean_logits(predictions)
    return logits_NC.argmax(1) if "logits" in predictions[0] else np.sign(logits_NC[:, 0] - logits_NC[:, 1])
