"""Checkpoints: committed, not written. A name that can be seen is a checkpoint that was whole when it was made.

    checkpoints/step_000040/state.safetensors   trained parameters (fp32) and Adam's moments
                            trainer.json        step, counters, settings
                            manifest.json       sha256 and size of the others
    checkpoints/latest                          the newest one's name
    checkpoints/best                            the best one's name, and the value of the metric by which it is
"""

import hashlib
import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pm.errors import UserError
from pm.files import replace_text, sync, written_aside

STATE, TRAINER, MANIFEST = "state.safetensors", "trainer.json", "manifest.json"
LATEST, BEST = "latest", "best"


class Broken(Exception):
    """Why a checkpoint does not verify."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    trainer: dict

    def state(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / STATE)


def commit(run: Path, state: dict[str, torch.Tensor], trainer: dict, keep: int) -> str:
    """Writes a checkpoint and returns its name. Called on one rank.

    The files are written and synced in a temporary folder, which is then renamed; `latest` is replaced last. No
    name is given twice. Then all but the newest `keep`, this one among them, and the best one are deleted.
    """
    folder = run / "checkpoints"
    base = name = f"step_{trainer['step']:06d}"
    attempt = 1
    while (folder / name).exists():
        attempt += 1
        name = f"{base}_{attempt}"
    for unfinished in folder.glob(".step_*.writing"):  # by a process that was killed
        shutil.rmtree(unfinished)
    with written_aside(folder / name) as temporary:
        save_file(state, temporary / STATE)
        _write_json(temporary / TRAINER, trainer)
        _write_json(temporary / MANIFEST, {file: {"sha256": _sha256(temporary / file),
                                                  "bytes": (temporary / file).stat().st_size}
                                           for file in (STATE, TRAINER)})
        for path in (temporary / STATE, temporary / TRAINER, temporary / MANIFEST, temporary):
            sync(path)
    sync(folder)
    replace_text(folder / LATEST, name + "\n")
    _delete_old(run, keep, name)
    return name


def judge(run: Path, name: str, value: float | None, metric: str, keep: int) -> None:
    """Makes the newest checkpoint, `name`, the best one where `value` of the metric is better than that of the best so
    far, which is then deleted unless it is one of the newest `keep`. Called on one rank."""
    _, so_far = best(run) or (None, None)
    if is_better(value, so_far, metric):
        replace_text(run / "checkpoints" / BEST, f"{name} {float(value)!r}\n")
        _delete_old(run, keep, name)


def best(run: Path) -> tuple[str, float] | None:
    """The name of the best checkpoint and its value."""
    path = run / "checkpoints" / BEST
    if not path.exists():
        return None
    name, value = path.read_text("utf-8").split()
    return name, float(value)


def _delete_old(run: Path, keep: int, written: str) -> None:
    best_name, _ = best(run) or (None, None)
    for name in names(run)[keep:]:
        if name not in (best_name, written):
            shutil.rmtree(run / "checkpoints" / name)


def is_better(value: float | None, so_far: float | None, metric: str) -> bool:
    """Whether `value` of a metric is better than the best so far; None and NaN are no value."""
    if value is None or math.isnan(value) or so_far is None:
        return value is not None and not math.isnan(value)
    return value < so_far if metric == "log_loss" else value > so_far


def names(run: Path) -> list[str]:
    """The checkpoints' names, newest first."""
    folder = run / "checkpoints"
    found = [match for path in (folder.iterdir() if folder.is_dir() else ())
             if (match := re.fullmatch(r"step_(\d+)(?:_(\d+))?", path.name))]
    return [match[0] for match in sorted(found, key=lambda match: (int(match[1]), int(match[2] or 1)), reverse=True)]


def load(path: Path) -> Checkpoint:
    """Verifies one checkpoint against its manifest. Raises `Broken`."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        for file in (STATE, TRAINER):
            if (path / file).stat().st_size != manifest[file]["bytes"]:
                raise Broken(f"{file} has {(path / file).stat().st_size} bytes, not {manifest[file]['bytes']}")
            if _sha256(path / file) != manifest[file]["sha256"]:
                raise Broken(f"{file} has another sha256 than its manifest says")
        return Checkpoint(path, json.loads((path / TRAINER).read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Broken(str(error)) from None


def newest(run: Path, say=print) -> Checkpoint:
    """The newest checkpoint that verifies; each newer one is named with what is wrong with it.

    Raises `UserError` where none verifies: a run that cannot be resumed must not silently start again.
    """
    tried = names(run)
    for name in tried:
        try:
            return load(run / "checkpoints" / name)
        except Broken as error:
            say(f"skipping checkpoint {run / 'checkpoints' / name}: {error}")
    raise UserError(f"{run} has no checkpoint that can be read ({len(tried)} tried)")


def to_resume(run: Path, say=print) -> Checkpoint:
    """`newest`; a best checkpoint that does not verify is forgotten, so that one made again can take its place. Called
    on one rank."""
    found, (best_name, _) = newest(run, say), best(run) or (None, None)
    if best_name not in (None, found.path.name):
        try:
            load(run / "checkpoints" / best_name)
        except Broken as error:
            say(f"forgetting the best checkpoint, {best_name}: {error}")
            (run / "checkpoints" / BEST).unlink()
    return found


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", "utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
