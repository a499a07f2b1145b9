"""Exports: what others load. `python -m pm.export RUN` writes one from a checkpoint of a run.

An export is a PEFT adapter with the score head (or, with --tune full, a whole model), the tokenizer, config.json
with the label names, and preference.json. For small-random the base lies in it too.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from pm.calibration import Calibration, fit_temperatures
from pm.checkpoint import Broken, Checkpoint, load, newest
from pm.config import Config, fail, load_config, newest_run
from pm.encoding import Template
from pm.errors import UserError, run_main
from pm.model import load_tokenizer
from pm.predict import SETTINGS, PreferenceModel
from pm.run import base_of, build_model, dtype_of, load_data, saved_labels
from pm.tracking import quiet_libraries

# How far logits may be from those of the live model, which may be on another device.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def finish(run: Path, name: str, rows: Dataset, predictions: Sequence[dict], calibration: Calibration,
           metrics: dict | None) -> float:
    """Exports checkpoint `name` as `run/export`, checked against the live model's predictions of `rows`.

    Returns the largest difference of a logit. The last step of a training run; called on one rank.
    """
    few = [0, len(rows) // 4, len(rows) // 2]
    chosen = np.argsort(rows["tokens"][:], kind="stable")[few]
    return export(run, load(run / "checkpoints" / name), run / "export", calibration, metrics,
                  (rows.select(chosen), [predictions[number] for number in chosen]))


def export(run: Path, checkpoint: Checkpoint, output: Path, calibration: Calibration | None = None,
           metrics: dict | None = None, expected: tuple[Dataset, Sequence[dict]] | None = None) -> float:
    """Writes `output` from a checkpoint; called on one rank. Without `calibration` the temperatures are fitted here.

    The export is loaded afresh, and counts as saved only where each trained tensor has the checkpoint's bits. With
    `expected`, a few encoded rows and the live model's predictions of them, its logits must agree too; returns
    their largest difference. Raises `UserError` where they do not, or where `output` is a folder of something else.
    """
    if output.exists() and not (output / SETTINGS).exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} is there already, and is no export")
    config = load_config(run)
    dtype = dtype_of(json.loads((run / "ds_config.json").read_text("utf-8")))
    stored = torch.float32 if config.tune == "lora" else dtype
    model = build_model(config, run, saved_labels(run), dtype, say=lambda text: None)
    state = checkpoint.state()
    trained = {name: state[f"master/{name}"].to(stored) for name, parameter in model.named_parameters()
               if parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.data = trained[name]
    temporary = output.with_name(f".{output.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        settings = _write(temporary, run, config, model, checkpoint, dtype, metrics)
        del model, state
        fresh = PreferenceModel.from_pretrained(temporary, device="cpu" if calibration else None)
        for name, parameter in fresh.model.named_parameters():
            if name in trained and not torch.equal(parameter.cpu(), trained.pop(name).to(dtype)):
                raise UserError(f"the export, loaded afresh, has other values in {name}: it was not saved")
        if trained:
            raise UserError(f"the export, loaded afresh, lacks {', '.join(trained)}: it was not saved")
        difference = _difference(fresh, *expected) if expected else 0.0
        if not difference <= TOLERANCE[dtype]:
            raise UserError(f"the export, loaded afresh, gives logits that differ by {difference:.2g} from the trained "
                            f"model's; {TOLERANCE[dtype]:g} is allowed: it was not saved")
        if calibration is None:
            held_out = load_data(config, run).calibration.encoded
            calibration = fit_temperatures(fresh.score(held_out))
        _save(temporary, settings | {"calibration": asdict(calibration)})
        shutil.rmtree(output, ignore_errors=True)
        os.rename(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return difference


def _write(folder: Path, run: Path, config: Config, model, checkpoint: Checkpoint, dtype: torch.dtype,
           metrics: dict | None) -> dict:
    base = base_of(config, run)
    if config.tune == "lora" and config.random_base:
        model.peft_config["default"].base_model_name_or_path = "base"
        shutil.copytree(base, folder / "base")
    # PEFT would look the base up on the hub to decide whether embeddings were resized; they never are.
    model.save_pretrained(folder, **({"save_embedding_layers": False} if config.tune == "lora" else {}))
    model.config.architectures = ["Cohere2ForSequenceClassification"]
    model.config.save_pretrained(folder)
    tokenizer = load_tokenizer(base)
    tokenizer.save_pretrained(folder)
    settings = {
        "base": base, "tune": config.tune, "dtype": str(dtype).removeprefix("torch."), "task": config.task,
        "labels": list(model.config.id2label.values()), "packing": config.packing,
        "tokens_per_micro_batch": config.evaluation_tokens,
        "max_length": config.max_length, "template": Template.of(tokenizer).saved(), "run": run.name,
        "checkpoint": checkpoint.path.name, "step": checkpoint.trainer["step"],
    }
    _save(folder, settings)
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
    return settings


def _save(folder: Path, settings: dict) -> None:
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _difference(fresh: PreferenceModel, rows: Dataset, live: Sequence[dict]) -> float:
    return max(abs(one - other) for new, old in zip(fresh.score(rows, token_budget=1), live, strict=True)
               for name in new if name.startswith("logits")
               for one, other in zip(new[name], old[name], strict=True))


def main(argv: list[str]) -> None:
    quiet_libraries()
    parser = argparse.ArgumentParser(prog="python -m pm.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="folder of the run [the newest one]")
    parser.add_argument("--checkpoint", help="its name, or best [the newest one]")
    parser.add_argument("--output", type=Path, help="folder of the export [RUN/export]")
    parser.error = fail
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
    export(run, checkpoint, output)
    print(f"wrote {output} from {checkpoint.path.name}; evaluate it with: python eval.py --model {output}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_main(main)
