"""A run folder explains itself: settings, versions, base model, data. What train.py, eval.py and export share."""

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from pm import distributed
from pm.config import Arguments, Config, load_config
from pm.data.audit import cached_audit, truncation
from pm.data.audit import summary as audit_summary
from pm.data.audit import write as write_audit
from pm.data.prepare import SIDES, describe, encode, fingerprint, read, split_key, split_rows, training_texts
from pm.data.targets import classes, distil, target_matrix, with_targets
from pm.encoding import Encoder
from pm.errors import UserError
from pm.model import add_lora, check_trainable, load_model, load_tokenizer, save_small_base, set_prior
from pm.plan import epoch_order, sampling_rates
from pm.task import Task
from pm.tokenizer import train_tokenizer

TOKENIZER_ROWS = 20_000  # rows whose texts the small model's tokenizer is trained on
REJECTED = "rejected.txt"
PACKAGES = ("torch", "deepspeed", "transformers", "peft", "datasets", "tokenizers", "sentencepiece")


@dataclass(frozen=True)
class Data:
    """Both sides of the split as ids (`encoding.ENCODED_FEATURES`, `targets.with_targets`) and as text
    (`example.FEATURES`); `rates`: how often each training row is used in an epoch; `key` changes where a side does."""

    train: Dataset
    test: Dataset
    rates: np.ndarray
    train_rows: Dataset
    test_rows: Dataset
    encoder: Encoder
    task: Task
    key: str
    summary: str


def open_run(arguments: Arguments) -> Path:
    """The run's folder, the same on all ranks; a new one gets its settings written.

    Raises `UserError` where `--output` is a run with checkpoints, or a folder of something else.
    """
    return arguments.resume or distributed.on_main(lambda: _new_run(arguments))


def _new_run(arguments: Arguments) -> Path:
    run = Path(arguments.config.output or f"runs/{datetime.now():%Y%m%d-%H%M%S}")
    if (run / "checkpoints").exists():
        raise UserError(f"--output {run} holds a run already; continue it with --resume {run}, or name another")
    try:
        run.mkdir(parents=True, exist_ok=True)
        if any(run.iterdir()):
            load_config(run)  # an attempt that came to no checkpoint, or nothing of ours
    except (OSError, UserError) as error:
        raise UserError(f"--output {run} cannot be a new run's folder: {error}") from None
    shutil.rmtree(run / "base", ignore_errors=True)
    for name in ("metrics.jsonl", "data.json", "teacher.json", REJECTED):
        (run / name).unlink(missing_ok=True)
    _write(run / "ds_config.json", arguments.ds_config)
    _write(run / "environment.json", environment())
    _write(run / "config.json", dataclasses.asdict(arguments.config))
    return run


def base_of(config: Config, run: Path) -> str:
    """Where the untrained model is: for small-random the run's own folder."""
    return str(run / "base") if config.random_base else config.model


def load_data(config: Config, run: Path) -> Data:
    """Reads, splits and tokenises the run's data, from the cache where it was done before.

    For small-random the first call also makes the base: a tokenizer trained on the training texts, and weights.
    """
    train = read(config.data, config.reading, config.cache_dir, weighted=True)
    test = read(config.test_data, config.reading, config.cache_dir) if config.test_data else None
    train_rows, test_rows = split_rows(train, test, config.test_fraction, config.cache_dir)
    task = Task(config.task, tuple(config.labels) or classes(train.rows))
    if len(task.labels) < 2:
        raise UserError(f"the data has the one class {task.labels[0]!r}: there is nothing to decide")
    if config.random_base and not (run / "base" / "config.json").exists():
        some = epoch_order(len(train_rows), config.seed, 0)[:TOKENIZER_ROWS]
        tokenizer = train_tokenizer(training_texts(train_rows.select(some)), config.vocab_size)
        save_small_base(run / "base", tokenizer, task.labels, config.seed)
    encoder = Encoder(load_tokenizer(base_of(config, run)), config.max_length)
    key = split_key(train, test, config.test_fraction)
    encoded = [encode(rows, f"{key} {side}", encoder, config.cache_dir)
               for side, rows in zip(SIDES, (train_rows, test_rows), strict=True)]
    targets = [target_matrix(rows, task.labels) for rows in encoded]
    prints = map(fingerprint, encoded, targets)
    _check_unchanged(run / "data.json", {"labels": list(task.labels), **dict(zip(SIDES, prints, strict=True))})
    weights = np.array(train.weights)[encoded[0]["source_index"][:]]
    rates = sampling_rates(encoded[0]["language"][:], weights, config.language_temperature)
    lines = [describe("train", train_rows, encoded[0], rates), describe("test", test_rows, encoded[1])]
    lines += [f"{flag}: {rows.report.describe()} (all in the run's {REJECTED})"
              for flag, rows in (("--data", train), ("--test_data", test)) if rows and rows.report.rejected]
    rejected = [line for rows in (train, test) if rows for line in rows.report.rejected]
    if rejected and distributed.is_main() and not (run / REJECTED).exists():
        (run / REJECTED).write_text("\n".join(rejected) + "\n", "utf-8")
    return Data(*map(with_targets, encoded, targets), rates, train_rows, test_rows, encoder, task, key,
                "\n".join(lines))


def prior(data: Data) -> np.ndarray:
    """The share of each class (C,) in the targets of the training split, none of them 0; a and b are alike."""
    total_C = np.sum(data.train["target"][:], axis=0) + 1
    if data.task.compares:
        total_C[:2] = total_C[:2].mean()
    return total_C / total_C.sum()


def load_training_data(config: Config, run: Path) -> Data:
    """`load_data`, with a teacher's targets for the training rows where one is asked for."""
    data = load_data(config, run)
    if not config.teacher:
        return data
    own_NC = np.array(data.train["target"][:])
    targets, taught = distil(data.train["content"][:], own_NC, data.task.labels, Path(config.teacher),
                             config.teacher_temperature, config.teacher_weight)
    _check_unchanged(run / "teacher.json", {"train": fingerprint(data.train, targets)})
    line = f"teacher: {taught:,} of {len(data.train):,} training rows have its predictions"
    return dataclasses.replace(data, train=with_targets(data.train, targets), summary=f"{data.summary}\n{line}")


def audit_run(config: Config, run: Path, data: Data) -> list[str]:
    """Looks through the run's data, and for its prompts in `--benchmark_data`; writes audit.md and audit.json.

    Returns the lines for the log. Called on one rank.
    """
    benchmark = read(config.benchmark_data, config.reading, config.cache_dir) if config.benchmark_data else None
    findings = cached_audit(data.train_rows, data.test_rows, benchmark.rows if benchmark else None,
                            f"{data.key} {benchmark.key if benchmark else ''}", config.cache_dir)
    findings["truncated"] = truncation([data.train, data.test])
    write_audit(findings, run)
    return audit_summary(findings)


def saved_labels(run: Path) -> list[str]:
    """The classes of a run, in the order of the logits."""
    return json.loads((run / "data.json").read_text("utf-8"))["labels"]


def _check_unchanged(path: Path, found: dict) -> None:
    """A run's data is that of its start: rows that moved to the other side would be evaluated after training."""
    if not path.exists():
        _write(path, found)
    elif json.loads(path.read_text("utf-8")) != found:
        raise UserError(f"the data of {path.parent} is no longer what it was trained on ({path} has other hashes)")


def build_model(config: Config, run: Path, labels: Sequence[str], dtype: torch.dtype,
                prior_C: np.ndarray | None = None, say=distributed.say):
    """The model that is trained, its head new or kept, with the trainable parameters marked. A new head begins at
    `prior_C`, the shares of the classes."""
    base = base_of(config, run)
    model, has_head = load_model(base, dtype, labels)
    if prior_C is not None and (config.random_base or not has_head):
        set_prior(model, prior_C)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.tune == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = add_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.train_embeddings)
        check_trainable(model, config.train_embeddings)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    head = "kept" if has_head and not config.random_base else "new"
    say(f"model: {base}, {total:,} parameters, {trained:,} trained ({config.tune}), "
        f"{str(dtype).removeprefix('torch.')}, score head {head}")
    return model


def dtype_of(ds_config: dict) -> torch.dtype:
    return torch.bfloat16 if ds_config.get("bf16", {}).get("enabled") else torch.float32


def environment() -> dict:
    """Command, commit, versions and hardware."""
    def git(*words: str) -> str:
        result = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return result.stdout.strip()

    return {
        "command": sys.argv,
        "commit": git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else ""),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "ranks": distributed.world_size(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
    }


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
