"""Exports: what others load. `python -m pm.export RUN` writes one from a checkpoint of a run.

An export is a PEFT adapter with the score head (or, with --tune full, a whole model), the tokenizer, config.json
with the label names, and preference.json. For small-random the base lies in it too.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset

from pm.checkpoint import Broken, Checkpoint, load, newest
from pm.config import load_config, newest_run
from pm.data.comparison import LABELS
from pm.errors import UserError, run_main
from pm.model import load_tokenizer
from pm.predict import SETTINGS, PreferenceModel
from pm.run import base_of, build_model, dtype_of
from pm.tracking import quiet_libraries

# How far logits may be from those of the live model, which may be on another device.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


def export(run: Path, checkpoint: Checkpoint, output: Path, metrics: dict | None,
           expected: tuple[Dataset, Sequence[dict]] | None) -> float | None:
    """Writes `output` from a checkpoint; called on one rank.

    `expected` are a few encoded rows with the live model's predictions: the export is loaded afresh, and counts as
    saved only where its logits agree. Returns the largest difference. Raises `UserError` where they differ.
    """
    config = load_config(run)
    ds_config = json.loads((run / "ds_config.json").read_text("utf-8"))
    dtype = dtype_of(ds_config)
    base = base_of(config, run)
    model = build_model(config, run, dtype)
    state = checkpoint.state()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            master = state[f"master/{name}"]
            parameter.data = master if config.tune == "lora" else master.to(dtype)
    temporary = output.with_name(f".{output.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if config.tune == "lora" and config.random_base:
            model.peft_config["default"].base_model_name_or_path = "base"
            shutil.copytree(base, temporary / "base")
        model.save_pretrained(temporary, **({"save_embedding_layers": False} if config.tune == "lora" else {}))
        model.config.architectures = ["Cohere2ForSequenceClassification"]
        model.config.save_pretrained(temporary)
        load_tokenizer(base).save_pretrained(temporary)
        settings = {
            "base": base, "tune": config.tune, "dtype": str(dtype).removeprefix("torch."), "labels": list(LABELS),
            "max_length": config.max_length, "run": run.name, "checkpoint": checkpoint.path.name,
            "step": checkpoint.trainer["step"],
        }
        (temporary / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        if metrics is not None:
            (temporary / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
        difference = None if expected is None else _difference(temporary, *expected, TOLERANCE[settings["dtype"]])
        old = output.with_name(f".{output.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if output.exists():
            os.rename(output, old)
        os.rename(temporary, output)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return difference


def _difference(folder: Path, rows: Dataset, live: Sequence[dict], tolerance: float) -> float:
    fresh = PreferenceModel.from_pretrained(folder, device="cpu").score(rows, token_budget=1)
    difference = max(abs(one - other) for new, old in zip(fresh, live, strict=True)
                     for order in ("logits_ab", "logits_ba") for one, other in zip(new[order], old[order], strict=True))
    if not difference <= tolerance:
        raise UserError(f"the export, loaded afresh, gives logits that differ by {difference:.2g} from the trained "
                        f"model's; {tolerance:g} is allowed: it was not saved")
    return difference


def main(argv: list[str]) -> None:
    quiet_libraries()
    parser = argparse.ArgumentParser(prog="python -m pm.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="folder of the run [the newest one]")
    parser.add_argument("--checkpoint", help="its name, or best [the newest one]")
    parser.add_argument("--output", type=Path, help="folder of the export [RUN/export]")
    arguments = parser.parse_args(argv)
    run = Path(arguments.run) if arguments.run else newest_run("checkpoints/latest")
    name = arguments.checkpoint
    if name == "best":
        best = run / "checkpoints" / "best"
        if not best.exists():
            raise UserError(f"{run} has no best checkpoint: it was not evaluated yet")
        name = best.read_text("utf-8").strip()
    try:
        checkpoint = load(run / "checkpoints" / name) if name else newest(run)
    except Broken as error:
        raise UserError(f"checkpoint {name} of {run} cannot be read: {error}") from None
    output = arguments.output or run / "export"
    export(run, checkpoint, output, None, None)
    print(f"wrote {output} from {checkpoint.path.name}; evaluate it with: python eval.py --model {output}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_main(main)
