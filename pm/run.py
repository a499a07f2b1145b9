"""A run folder explains itself: settings, versions, base model, data. What train.py, eval.py and export share."""

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from pm import checkpoint, distributed, shortcuts
from pm.config import BASE, Arguments, Common, Config, Pretraining, load_config
from pm.data.audit import cached_audit, truncation
from pm.data.audit import summary as audit_summary
from pm.data.audit import write as write_audit
from pm.data.prepare import (
    SPLITS,
    Rows,
    describe,
    encode,
    fingerprint,
    read,
    split_key,
    split_rows,
    training_texts,
)
from pm.data.targets import classes, distil, target_matrix, with_targets
from pm.encoding import Encoder
from pm.errors import UserError
from pm.files import LOCK, hold, written_aside
from pm.fused import compile_activation, unsupported
from pm.model import (
    PACKAGED,
    add_lora,
    check_trainable,
    copy_base,
    language_unsupported,
    load_model,
    load_tokenizer,
    save_small_base,
    set_prior,
)
from pm.plan import epoch_order, epoch_rows, sampling_rates
from pm.task import Task
from pm.tokenizer import train_tokenizer
from pm.tracking import WANDB_ID, WANDB_LOGGED

TOKENIZER_ROWS = 20_000  # rows whose texts a tokenizer is trained on
REJECTED, TOKENIZER = "rejected.txt", "tokenizer"
PACKAGES = ("torch", "deepspeed", "transformers", "peft", "datasets", "tokenizers", "sentencepiece")


@dataclass(frozen=True)
class Split:
    """Rows as text (`example.FEATURES`), and those that can be scored as ids (`encoding.ENCODED_FEATURES`, with
    `targets.with_targets`)."""

    rows: Dataset
    encoded: Dataset


@dataclass(frozen=True)
class Data:
    """`rates`: how often each training row is used in an epoch; `key` changes where a split does."""

    train: Split
    calibration: Split
    test: Split
    rates: np.ndarray
    encoder: Encoder
    task: Task
    key: str
    summary: str

    @property
    def seen_rows(self) -> Dataset:
        """What the model, or its temperatures, were fitted on."""
        return concatenate_datasets([self.train.rows, self.calibration.rows])


@dataclass(frozen=True)
class Corpus:
    """What a language model is trained and tested on: rows as ids, the encoder's as in `Data`. `key` changes where the
    texts, their order or their languages do."""

    train: Dataset
    test: Dataset
    rates: np.ndarray
    encoder: Encoder
    key: str
    summary: str


def open_run(arguments: Arguments) -> Path:
    """The run's folder, the same on all ranks; a new one gets its settings written, a resumed one the environment in
    which it goes on.

    Raises `UserError` where `--output` is a run with checkpoints, or a folder of something else, or not shared by all
    machines, and where another process trains in the folder.
    """
    run = arguments.resume or distributed.on_main(lambda: _new_run(arguments))
    distributed.check_shared(run, "--resume" if arguments.resume else "--output")
    if arguments.resume:
        distributed.on_main(lambda: _go_on(run))
    return run


def _go_on(run: Path) -> None:
    _hold(run, "--resume")
    path = run / "environment.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    _write(path, found | {"resumed": [*found.get("resumed", []), environment()]})


def _hold(run: Path, flag: str) -> None:
    try:
        hold(run)
    except BlockingIOError as error:
        raise UserError(f"{flag} {run} is in use by {error}") from None


def _new_run(arguments: Arguments) -> Path:
    config = arguments.config
    run = Path(config.output or config.RUNS)
    if config.output and checkpoint.names(run):
        raise UserError(f"--output {run} holds a run already; continue it with --resume {run}, or name another")
    try:
        if config.output:
            run.mkdir(parents=True, exist_ok=True)
        else:
            run = _folder_of_now(run)
        if any(path.name != LOCK for path in run.iterdir()):
            load_config(run, type(config))  # an attempt that came to no checkpoint, or nothing of ours
    except (OSError, UserError) as error:
        raise UserError(f"--output {run} cannot be a new run's folder: {error}") from None
    _hold(run, "--output")
    for name in ("base", TOKENIZER):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in ("metrics.jsonl", "data.json", "teacher.json", REJECTED, WANDB_ID, WANDB_LOGGED):
        (run / name).unlink(missing_ok=True)
    _write(run / "ds_config.json", arguments.ds_config)
    _write(run / "environment.json", environment())
    _write(run / "config.json", dataclasses.asdict(config))
    return run


def _folder_of_now(runs: Path) -> Path:
    """A new folder, also where other runs start in the same second."""
    for attempt in count(1):
        run = runs / f"{datetime.now():%Y%m%d-%H%M%S}{f'-{attempt}' if attempt > 1 else ''}"
        with suppress(FileExistsError):
            run.mkdir(parents=True)
            return run


def base_of(config: Config, run: Path) -> str:
    """Where the untrained model is: for base and small-random in the run's own folder."""
    return str(run / "base") if config.own_base else config.model


def load_data(config: Config, run: Path) -> Data:
    """Reads, splits and tokenises the run's data, from the cache where it was done before.

    The first call also puts the run's own base there: a copy of the package's, or for small-random a tokenizer trained
    on the training texts, and weights.
    """
    train, test = _read(config)
    splits = split_rows(train, test, config.test_fraction, config.calibration_fraction, config.cache_dir)
    task = Task(config.task, tuple(config.labels) or classes(train.rows))
    if len(task.labels) < 2:
        raise UserError(f"the data has the one class {task.labels[0]!r}: there is nothing to decide")
    if config.model == BASE and not (run / "base").exists():
        copy_base(run / "base")
    if config.random_base and not (run / "base").exists():
        some = epoch_order(len(splits["train"]), config.seed, 0)[:TOKENIZER_ROWS]
        tokenizer = train_tokenizer(training_texts(splits["train"].select(some)), config.vocab_size)
        save_small_base(run / "base", tokenizer, task.labels, config.seed)
    encoder = Encoder(load_tokenizer(base_of(config, run)), config.max_length)
    key = split_key(train, test, config.test_fraction, config.calibration_fraction)
    encoded = [encode(splits[name], f"{key} {name}", encoder, config.cache_dir) for name in SPLITS]
    targets = [target_matrix(rows, task.labels) for rows in encoded]
    prints = map(fingerprint, encoded, targets)
    _check_unchanged(run / "data.json", {"labels": list(task.labels), **dict(zip(SPLITS, prints, strict=True))})
    rates = sampling_rates(encoded[0]["language"][:], _weights(train, encoded[0]), config.language_temperature)
    lines = [describe(name, splits[name], rows, rates if name == "train" else None)
             for name, rows in zip(SPLITS, encoded, strict=True)]
    lines += _note_rejected(run, train, test)
    parts = [Split(splits[name], with_targets(rows, matrix))
             for name, rows, matrix in zip(SPLITS, encoded, targets, strict=True)]
    return Data(*parts, rates, encoder, task, key, "\n".join(lines))


def load_corpus(config: Pretraining, run: Path) -> Corpus:
    """Reads, splits and tokenises what a language model is trained on, from the cache where it was done before.

    For small-random the first call also trains the run's tokenizer, on rows drawn with `--tokenizer_temperature`.
    """
    train, test = _read(config)
    splits = split_rows(train, test, config.test_fraction, 0.0, config.cache_dir)
    if config.random_base and not (run / TOKENIZER).exists():
        rows = splits["train"]
        rates = sampling_rates(rows["language"][:], _weights(train, rows), config.tokenizer_temperature)
        some = rows.select(epoch_rows(rates, config.seed, 0)[:TOKENIZER_ROWS])
        tokenizer = train_tokenizer(training_texts(some), config.vocab_size)
        with written_aside(run / TOKENIZER) as temporary:
            tokenizer.save_pretrained(temporary)
    encoder = Encoder(load_tokenizer(tokenizer_of(config, run)), config.max_length, pieces=True)
    key = split_key(train, test, config.test_fraction, 0.0)
    encoded = {name: encode(splits[name], f"{key} {name}", encoder, config.cache_dir) for name in ("train", "test")}
    none = {name: np.zeros((len(rows), 0)) for name, rows in encoded.items()}
    prints = {name: fingerprint(rows, none[name]) for name, rows in encoded.items()}
    _check_unchanged(run / "data.json", prints)
    rates = sampling_rates(encoded["train"]["language"][:], _weights(train, encoded["train"]),
                           config.language_temperature)
    lines = [describe(name, splits[name], rows, rates if name == "train" else None) for name, rows in encoded.items()]
    return Corpus(*(with_targets(rows, none[name]) for name, rows in encoded.items()), rates, encoder,
                  " ".join(prints.values()), "\n".join(lines + _note_rejected(run, train, test)))


def tokenizer_of(config: Pretraining, run: Path) -> str:
    """Where the language model's tokenizer is, for small-random in the run's own folder; else its weights as well."""
    return str(run / TOKENIZER) if config.random_base else str(PACKAGED) if config.model == BASE else config.model


def _read(config: Common) -> tuple[Rows, Rows | None]:
    """The rows of `--data` and of `--test_data`."""
    return (read(config.data, config.reading, config.cache_dir, weighted=True),
            read(config.test_data, config.reading, config.cache_dir) if config.test_data else None)


def _weights(read_rows: Rows, rows: Dataset) -> np.ndarray:
    """Of each of `rows` the weight of its source."""
    return np.array(read_rows.weights)[rows["source_index"][:]]


def _note_rejected(run: Path, *read_rows: Rows | None) -> list[str]:
    """Lines for the log about the rows of `--data` and of `--test_data` that were bad; all go to the run's file."""
    rejected = [line for rows in read_rows if rows for line in rows.report.rejected]
    if rejected and distributed.is_main() and not (run / REJECTED).exists():
        (run / REJECTED).write_text("\n".join(rejected) + "\n", "utf-8")
    return [f"{flag}: {rows.report.describe()} (all in the run's {REJECTED})"
            for flag, rows in zip(("--data", "--test_data"), read_rows, strict=True) if rows and rows.report.rejected]


def prior(data: Data) -> np.ndarray:
    """The share of each class (C,) in the targets of the training split, none of them 0; a and b are alike."""
    total_C = np.sum(data.train.encoded["target"][:], axis=0) + 1
    if data.task.compares:
        total_C[:2] = total_C[:2].mean()
    return total_C / total_C.sum()


def load_training_data(config: Config, run: Path) -> Data:
    """`load_data`, with a teacher's targets for the training rows where one is asked for."""
    data = load_data(config, run)
    if not config.teacher:
        return data
    encoded = data.train.encoded
    targets, taught = distil(encoded["content"][:], np.array(encoded["target"][:]), data.task.labels,
                             Path(config.teacher), config.teacher_temperature, config.teacher_weight)
    _check_unchanged(run / "teacher.json", {"train": fingerprint(encoded, targets)})
    line = f"teacher: {taught:,} of {len(encoded):,} training rows have its predictions"
    return dataclasses.replace(data, train=Split(data.train.rows, with_targets(encoded, targets)),
                               summary=f"{data.summary}\n{line}")


def fitted_shortcuts(data: Data, rows: Dataset, cache_dir: str) -> dict[str, dict[str, float]]:
    """Log-odds by baselines that are fitted on the training split, for rows of text: see `shortcuts.fitted`. None of
    them for a classification, or without scikit-learn."""
    if not data.task.compares or not shortcuts.available():
        return {}
    return shortcuts.fitted(data.train.rows, data.key, rows, cache_dir)


def audit_run(config: Config, run: Path, data: Data) -> list[str]:
    """Looks through the training and the test split, and for prompts of `--benchmark_data` in the first; writes
    audit.md and audit.json.

    Returns the lines for the log. Called on one rank.
    """
    benchmark = read(config.benchmark_data, config.reading, config.cache_dir) if config.benchmark_data else None
    findings = cached_audit(data.train.rows, data.test.rows, benchmark.rows if benchmark else None,
                            f"{data.key} {benchmark.key if benchmark else ''}", config.cache_dir)
    findings["truncated"] = truncation([data.train.encoded, data.test.encoded])
    write_audit(findings, run)
    return audit_summary(findings)


def saved_labels(run: Path) -> list[str]:
    """The classes of a run, in the order of the logits."""
    return json.loads((run / "data.json").read_text("utf-8"))["labels"]


def _check_unchanged(path: Path, found: dict) -> None:
    """A run's data is that of its start: rows that moved to the other side would be evaluated after training."""
    if not path.exists():
        _write(path, found)
    elif not json.loads(path.read_text("utf-8")).items() <= found.items():
        raise UserError(f"the data of {path.parent} is no longer what it was trained on ({path} has other hashes)")


def build_model(config: Config, run: Path, labels: Sequence[str], dtype: torch.dtype,
                prior_C: np.ndarray | None = None, say=distributed.say):
    """The model that is trained, its head new or kept, with the trainable parameters marked. A new head begins at
    `prior_C`, the shares of the classes."""
    base = base_of(config, run)
    model, has_head = load_model(base, dtype, labels)
    if prior_C is not None and (config.random_base or not has_head):
        set_prior(model, prior_C)
    reason = unsupported(model) if config.packing else ""
    if reason:
        raise UserError(f"--packing cannot read {base}: {reason}; --no-packing can")
    reason = language_unsupported(model) if config.lm_loss_weight else ""
    if reason:
        raise UserError(f"--lm_loss_weight {config.lm_loss_weight:g}: {base} cannot be read as a language model: "
                        f"{reason}")
    if config.compile:
        compile_activation()
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
        "device": distributed.device_name(),
    }


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
