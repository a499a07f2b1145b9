"""Writes exports: what others load.

An export is a PEFT adapter with the score head, or a whole model; with the tokenizer, config.json with the label names,
preference.json and a model card. The run's own base (base, small-random) lies in it too.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from pm import publish
from pm.calibration import Calibration, fit_temperatures
from pm.card import untrained_card
from pm.checkpoint import Checkpoint, load
from pm.config import Config, load_config
from pm.encoding import Encoder
from pm.errors import UserError
from pm.files import written_aside
from pm.memory import free_bytes
from pm.merge import compared_rows, digests, drift, merged
from pm.model import load_model, load_tokenizer, save_model
from pm.predict import SETTINGS, PreferenceModel
from pm.predictions import mean_logits
from pm.run import Data, base_of, build_model, dtype_of, load_data, saved_labels
from pm.task import Task

# How far logits may be from those of the live model, which may be on another device; of logits above 1, which part.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
ROOM = 1.3  # times the model's size must be free on a GPU, or it is loaded on the CPU
ROWS = 1000


@dataclass(frozen=True)
class Form:
    """What an export is to be: whether LoRA is `merged` into the weights, and a `dtype` other than the run's. `rows`:
    on how many it is then compared with the model that was trained. `licence` and the hub id `place` are for the card.
    """

    merged: bool = False
    dtype: torch.dtype | None = None
    rows: int = ROWS
    licence: str | None = None
    place: str = ""


def finish(run: Path, name: str, rows: Dataset, predictions: Sequence[dict], calibration: Calibration,
           metrics: dict | None) -> float:
    """Exports checkpoint `name` as `run/export`, checked against the live model's predictions of `rows`.

    Returns the largest difference of a logit. The last step of a training run; called on one rank.
    """
    few = [0, len(rows) // 4, len(rows) // 2]
    chosen = np.argsort(rows["tokens"][:], kind="stable")[few]
    expected = rows.select(chosen), [predictions[number] for number in chosen]
    return export(run, load(run / "checkpoints" / name), run / "export", calibration, metrics, expected)["difference"]


def export(run: Path, checkpoint: Checkpoint, output: Path, calibration: Calibration | None = None,
           metrics: dict | None = None, expected: tuple[Dataset, Sequence[dict]] | None = None,
           form: Form = Form()) -> dict:
    """Writes `output` from a checkpoint; called on one rank. Without `calibration` the temperatures are fitted here,
    and `metrics` are those that were measured before.

    The export is loaded afresh, and counts as saved only where each tensor of it has the bits that it was to have.
    With `expected`, a few encoded rows and the live model's predictions of them, its logits must agree too. Raises
    `UserError` where they do not, or where `output` is a folder of something else.

    Returns `difference`, the largest one of a logit, and for an export that was merged or given another dtype `drift`
    (`merge.drift`).
    """
    config = load_config(run)
    trained_in = dtype_of(json.loads((run / "ds_config.json").read_text("utf-8")))
    dtype, lora = form.dtype or trained_in, config.tune == "lora"
    whole = form.merged or not lora
    changed = dtype != trained_in or (form.merged and lora)
    if changed and not whole:
        raise UserError("--dtype is of whole weights: it needs --merged")
    labels = saved_labels(run)
    data = None if calibration else _data(config, run)
    model = build_model(config, run, labels, trained_in, say=lambda text: None)
    encoder = Encoder(load_tokenizer(base_of(config, run)), config.max_length)
    settings = {
        "base": _base(config, whole), "tune": config.tune, "merged": form.merged and lora,
        "dtype": str(dtype).removeprefix("torch."), "task": config.task, "labels": labels, "packing": config.packing,
        "tokens_per_micro_batch": config.token_budget, "max_length": config.max_length,
        "template": encoder.template.saved(), "run": run.resolve().name, "checkpoint": checkpoint.path.name,
        "step": checkpoint.trainer["step"],
    }
    metrics = metrics or publish.saved_metrics(run, checkpoint.path.name, checkpoint.trainer["step"])
    state = checkpoint.state()
    device = _device(model)
    if changed:
        task = Task(config.task, tuple(labels))
        compared, of = compared_rows(data and data.test.encoded, encoder, task, config.cache_dir, form.rows)
        _set_trained(model, state, trained_in)
        before = PreferenceModel(model, task, encoder, settings, device).score(compared)
    _set_trained(model, state, torch.float32 if lora or changed else dtype)
    if changed:
        model = merged(model, dtype)
    wanted = digests(model, dtype, [name for name, parameter in model.named_parameters()
                                    if whole or parameter.requires_grad])
    _refuse_foreign(output)
    with written_aside(output) as folder:
        if not whole and config.own_base:
            model.peft_config["default"].base_model_name_or_path = "base"
            shutil.copytree(run / "base", folder / "base")
        _save_model(folder, model, base_of(config, run), whole)
        _dump(folder / SETTINGS, settings)
        del model, state
        fresh = PreferenceModel.from_pretrained(folder, device)
        _check_digests(fresh, dtype, wanted)
        result = {"difference": _check_logits(fresh, dtype, *expected) if expected else 0.0}
        if changed:
            result["drift"] = settings["drift"] = {**drift(before, fresh.score(compared)), "of": of}
        if calibration is None:
            calibration = _fitted(fresh, data, run, checkpoint.path.name)
        settings["calibration"] = asdict(calibration)
        _dump(folder / SETTINGS, settings)
        if metrics is not None:
            _dump(folder / "metrics.json", metrics)
        (folder / "README.md").write_text(
            publish.card(run, config, settings, metrics, form.licence, form.place), "utf-8")
    return result


def init(base: str, output: Path, labels: Sequence[str], dtype: torch.dtype | None = None, licence: str | None = None,
         place: str = "") -> None:
    """Writes the untrained sequence classifier: the backbone of a folder or hub id, in its own dtype unless given, a
    score head of zeros, and the tokenizer. Trained with `--model`, it gives the run that `base` gives.

    Raises `UserError` where `base` has a trained head, or `output` is there.
    """
    if output.exists():
        raise UserError(f"--output {output} is there already")
    try:
        model, has_head = load_model(base, dtype or "auto", labels)
        if has_head:
            raise UserError(f"--model {base} has a trained score head")
        if model.dtype not in TOLERANCE:
            raise UserError(f"--model {base} holds {str(model.dtype).removeprefix('torch.')}; give --dtype")
    except UserError as error:
        raise UserError(str(error).replace("--model", "--init", 1)) from None
    with written_aside(output) as folder:
        _save_model(folder, model, base, whole=True)
        hub_id = publish.hub_id(base)
        (folder / "README.md").write_text(untrained_card(
            place.split("/")[-1] or output.resolve().name, hub_id, labels,
            {"license": licence} if licence else publish.licence_of(base)), "utf-8")


def _base(config: Config, whole: bool) -> str:
    """From where an adapter's base is loaded; of whole weights only what they were made from."""
    if config.own_base:
        return config.model if whole else "base"
    folder = Path(config.model).expanduser().resolve()  # which another process may look for from elsewhere
    return publish.hub_id(config.model) or (folder.name if whole else str(folder))


def _device(model: torch.nn.Module) -> torch.device:
    """A GPU where there is room, also beside a model that is still being trained there."""
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        if free_bytes(device) > ROOM * sum(parameter.nbytes for parameter in model.parameters()):
            return device
    return torch.device("cpu")


def _data(config: Config, run: Path) -> Data | None:
    try:
        return load_data(config, run)
    except UserError as error:
        print(f"warning: without the run's data: {error}")
        return None


def _set_trained(model: torch.nn.Module, state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = state[f"master/{name}"].to(parameter.device, dtype)


def _refuse_foreign(output: Path) -> None:
    """Raises `UserError` where `output` is something else than an empty folder or an earlier export."""
    if output.exists() and not (output / SETTINGS).exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} is there already, and is no export")


def _save_model(folder: Path, model: torch.nn.Module, base: str, whole: bool) -> None:
    # PEFT would look the base up on the hub to decide whether embeddings were resized; they never are.
    options = {} if whole else {"save_embedding_layers": False}
    save_model(folder, model, load_tokenizer(base), "Cohere2ForSequenceClassification", **options)


def _check_digests(fresh: PreferenceModel, dtype: torch.dtype, wanted: dict[str, str]) -> None:
    found = digests(fresh.model, dtype, list(wanted))
    for name, digest in wanted.items():
        if name not in found:
            raise UserError(f"the export, loaded afresh, lacks {name}: it was not saved")
        if found[name] != digest:
            raise UserError(f"the export, loaded afresh, has other values in {name}: it was not saved")


def _check_logits(fresh: PreferenceModel, dtype: torch.dtype, rows: Dataset, live: Sequence[dict]) -> float:
    difference = drift(live, fresh.score(rows, token_budget=1))["largest"]
    allowed = TOLERANCE[dtype] * max(1.0, float(np.abs(mean_logits(live)).max()))
    if not difference <= allowed:
        raise UserError(f"the export, loaded afresh, gives logits that differ by {difference:.2g} from the trained "
                        f"model's; {allowed:.2g} is allowed: it was not saved")
    return difference


def _fitted(fresh: PreferenceModel, data: Data | None, run: Path, checkpoint: str) -> Calibration:
    """Temperatures from the run's calibration split, or where its data is gone those of an earlier export."""
    if data is not None:
        return fit_temperatures(fresh.score(data.calibration.encoded))
    try:
        saved = json.loads((run / "export" / SETTINGS).read_text("utf-8"))
        return Calibration(**saved["calibration"]) if saved["checkpoint"] == checkpoint else Calibration()
    except (OSError, ValueError, KeyError, TypeError):
        return Calibration()


def _dump(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
