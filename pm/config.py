"""Every flag, its unit and its default; the command line becomes a `Config` and a checked ds_config.

ds_config.json owns batch size, precision, ZeRO, clipping, optimizer and peak learning rate; flags own the rest.
"""

import argparse
import dataclasses
import difflib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pm.data.forms import FORMS
from pm.data.sources import Reading
from pm.errors import UserError
from pm.task import CLASSIFICATION, LANGUAGE, PREFERENCE

BASE, SMALL_RANDOM = "base", "small-random"
SAMPLE = "sample"

# What ds_config.json may hold; everything else is refused, since DeepSpeed ignores keys that it does not know.
DS_KEYS = {
    "train_batch_size", "managed_gradient_accumulation", "gradient_clipping", "optimizer", "zero_optimization", "bf16",
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "flops_profiler", "comms_logger",
    "communication_data_type", "data_types", "prescale_gradients", "dump_state",
}
OPTIMIZER_KEYS = {"lr", "betas", "eps", "weight_decay", "torch_adam"}


AUTO = "auto"
DEFAULT_TOKENS = 8192


def flag(default, text: str, choices: tuple = (), changeable: bool = False):
    """A field with its help text. `changeable`: a resumed run may have another value, since the result stays."""
    metadata = {"help": text, "choices": choices, "changeable": changeable}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Common:
    """What preference training and pretraining share."""

    # data
    data: list[str] = flag([SAMPLE], "sources: sample, local files (.jsonl .json .csv .parquet, each also .gz) or Hub "
                                     "datasets as id[@config][#split,pattern_*]; with :0.5 at the end each row is "
                                     "used half as often")
    test_data: list[str] = flag([], "sources of the test split; without them it is taken from --data")
    test_fraction: float | None = flag(None, "share of prompt groups in the test split "
                                             "[0.05; 0.25 of the embedded sample, which has few groups]")
    format: str | None = flag(None, "form of the rows [the first form whose columns a row has]", tuple(FORMS))
    detect_languages: bool = flag(False, "detect the language of rows that name none (py3langid)")
    language_temperature: float = flag(1.0, "share of a language in an epoch, as a power of its share of the rows: 1 "
                                            "as is, towards 0 all alike")
    max_bad_fraction: float = flag(0.01, "stop where a larger share of a source's rows is bad")
    max_length: int = flag(2048, "tokens of one sequence: the template, the prompt and both responses")
    cache_dir: str = flag("~/.cache/pm", "where read and tokenised data is kept", changeable=True)
    # model
    model: str = flag(BASE, "base, the small model that comes with the package; small-random, one with new weights; or "
                            "a Cohere 2 model: a hub id or a local folder")
    vocab_size: int = flag(8000, "pieces of the tokenizer that is trained for small-random")
    gradient_checkpointing: bool | None = flag(None, "recompute activations in the backward pass [not for "
                                                     "base and small-random]", changeable=True)
    compile: bool = flag(False, "make one kernel of the activation with torch.compile, and one of its gradient: for a "
                                "GPU", changeable=True)
    # training
    epochs: float = flag(1.5, "passes over the training split")
    max_steps: int | None = flag(None, "stop after this many steps; the schedule ends there too")
    warmup: float = flag(0.05, "share of the steps in which the learning rate rises")
    min_lr: float = flag(0.1, "share of the peak learning rate at the end of the cosine")
    tokens_per_micro_batch: int | str = flag(DEFAULT_TOKENS, "tokens of one forward pass on one rank, with "
                                             "their padding; auto: as many as fit the memory", changeable=True)
    seed: int = flag(0, "of the data order, the A/B order, dropout and new weights")
    # evaluation, checkpoints, logging
    eval_every: int = flag(200, "steps between evaluations, each followed by a checkpoint; 0: only at the end")
    keep: int = flag(2, "newest checkpoints that are kept, beside the best one", changeable=True)
    output: str | None = flag(None, "folder of the run [runs/DATE-TIME]")
    log_every: int = flag(10, "steps between printed lines where there is no terminal", changeable=True)
    wandb: bool = flag(False, "log to Weights & Biases as well", changeable=True)
    wandb_project: str = flag("preference-model", "its project", changeable=True)

    PROGRAM: ClassVar[str]
    PURPOSE: ClassVar[str]
    RUNS: ClassVar[Path]  # where runs lie that were given no folder
    EARLIER: ClassVar[dict] = {}  # what runs had that say nothing of it

    @property
    def random_base(self) -> bool:
        return self.model == SMALL_RANDOM

    @property
    def own_base(self) -> bool:
        """Whether the run keeps its base in a folder of its own."""
        return self.model in (BASE, SMALL_RANDOM)

    @property
    def token_budget(self) -> int:
        """Tokens of one forward pass: of an evaluation, on every machine the same, as are its last digits; and of
        training until `auto` has measured."""
        return DEFAULT_TOKENS if self.tokens_per_micro_batch == AUTO else self.tokens_per_micro_batch


@dataclass(frozen=True)
class Config(Common):
    """Of train.py."""

    # data
    benchmark_data: list[str] = flag([], "sources that the model will be judged on later: the audit reports which of "
                                         "their prompts are in the training split")
    calibration_fraction: float = flag(0.05, "share of the other groups that is not trained on, so that temperatures "
                                             "can be fitted on it; none where that is less than eight groups")
    task: str = flag(PREFERENCE, "what is decided: which response is better, or the class of a text",
                     (PREFERENCE, CLASSIFICATION))
    labels: list[str] = flag([], "classes, in the order of the logits [a b, or a b tie, for a preference; those of the "
                                 "data for a classification]")
    margin_scale: float = flag(1.0, "log-odds that a margin of 1 stands for, where rows have a margin")
    teacher: str | None = flag(None, "predictions.jsonl of another model's evaluation of the training rows: its "
                                     "probabilities become targets")
    teacher_temperature: float = flag(1.0, "by which the teacher's log-probabilities are divided")
    teacher_weight: float = flag(0.5, "share of the teacher in the targets; the rest is the label's")
    # model
    tune: str | None = flag(None, "what is trained: LoRA and the score head, or all weights [lora; full for "
                                  "small-random, of which LoRA has nothing to adapt]", ("lora", "full"))
    lora_rank: int = flag(16, "rank of the LoRA matrices")
    lora_alpha: float = flag(32.0, "LoRA updates are scaled by alpha / rank")
    lora_dropout: float = flag(0.0, "dropout before the LoRA matrices")
    train_embeddings: bool | None = flag(None, "train the embeddings beside LoRA [only for small-random]")
    # training
    orders: str | None = flag(None, "orders of a pair in a step: one drawn at random, or both, with the loss on the "
                                    "logits averaged over them [both; a classification has none]", ("random", "both"))
    order_weight: float = flag(0.5, "weight of each single order's own loss where --orders both")
    consistency_weight: float = flag(0.0, "weight of the divergence between the two orders where --orders both")
    label_smoothing: float = flag(0.0, "share of each target that is spread over all classes")
    lm_loss_weight: float = flag(0.0, "weight of the backbone's own loss as a language model, the mean over the tokens "
                                      "of a sequence, so that it keeps its language")
    packing: bool | None = flag(None, "read sequences without padding, and what both orders begin with once, by a "
                                      "faster forward; else padded, by that of transformers and peft "
                                      "[where there is no ZeRO 3 and no --lora_dropout]", changeable=True)
    # evaluation
    best_metric: str = flag("log_loss", "what the best checkpoint is best in", ("log_loss", "accuracy"))

    PROGRAM = "train.py"
    PURPOSE = "Trains a preference model."
    RUNS = Path("runs")
    EARLIER: ClassVar[dict] = {"calibration_fraction": 0.0, "packing": False}

    @property
    def reading(self) -> Reading:
        return Reading(self.task, self.format, self.margin_scale, self.detect_languages, self.max_bad_fraction)


@dataclass(frozen=True)
class Pretraining(Common):
    """Of pm.pretrain."""

    data: list[str] = flag([SAMPLE], "sources as for train.py, of which prompt and responses are read one after the "
                                     "other; rows with a text alone; and .txt files, whose paragraphs are the rows")
    max_length: int = flag(1024, "tokens of one sequence; a text that is longer is read in pieces")
    model: str = flag(SMALL_RANDOM, "small-random, for new weights of --shape and a new tokenizer; or the model to go "
                                    "on with: base, a hub id or a local folder")
    shape: str = flag(str(Path(__file__).parent / "base/config.json"), "config.json of a Cohere 2 model: the new one's "
                                                                       "shape")
    vocab_size: int = flag(12_000, "pieces of the new model's tokenizer")
    tokenizer_temperature: float = flag(0.5, "as --language_temperature, for the rows that the tokenizer is trained on")
    epochs: float = flag(3.0, "passes over the training split")
    eval_every: int = flag(500, "steps between evaluations, each followed by a checkpoint; 0: only at the end")
    output: str | None = flag(None, "folder of the run [runs/pretrain/DATE-TIME]")
    license: str | None = flag(None, "for the card: the licence of the model", changeable=True)

    PROGRAM = "pm.pretrain"
    PURPOSE = "Trains a language model to be the base of preference models."
    RUNS = Path("runs/pretrain")

    @property
    def reading(self) -> Reading:
        return Reading(LANGUAGE, self.format, detect_languages=self.detect_languages,
                       max_bad_fraction=self.max_bad_fraction)


@dataclass(frozen=True)
class Arguments:
    """What the command line said, checked. `resume` is None, or the run's folder."""

    config: Common
    ds_config: dict
    resume: Path | None


def parse(argv: list[str], kind: type[Common] = Config, ds_config: str = "ds_config.json") -> Arguments:
    """Reads the command line and the file of DeepSpeed's settings that it names, else `ds_config`. Raises `UserError`;
    `--help` exits.

    A resumed run has the settings of its own config.json; a flag that says otherwise is an error unless the result
    does not depend on it.
    """
    parser = argparse.ArgumentParser(prog=kind.PROGRAM, allow_abbrev=False, exit_on_error=False,
                                     description=kind.PURPOSE)
    parser.error = fail
    for item in dataclasses.fields(kind):
        _add_flag(parser, item, typing.get_type_hints(kind)[item.name])
    parser.add_argument("--deepspeed_config", default=ds_config, metavar="FILE",
                        help="DeepSpeed's settings [%(default)s]")
    parser.add_argument("--resume", nargs="?", const="newest", metavar="RUN",
                        help="continue a run from its newest checkpoint [the newest run]")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher appends it
    try:
        given = vars(parser.parse_args(argv))
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    ds_path, resume = given.pop("deepspeed_config"), given.pop("resume")
    given.pop("local_rank")
    settings = read_ds_config(Path(ds_path))
    run = None
    if resume is None:
        config = _check(_defaults(kind(**given)))
        _refuse_unused(config, given)
    else:
        run = newest_run("checkpoints/latest", kind.RUNS) if resume == "newest" else Path(resume)
        config = _check(_resumed(run, given, settings, kind))
    return Arguments(_with_packing(config, settings, given), settings, run)


def _refuse_unused(config: Common, given: dict) -> None:
    """Raises `UserError` for a flag that was given and says nothing here."""
    for name in ("vocab_size", "shape", "tokenizer_temperature"):
        if name in given and not config.random_base:
            raise UserError(f"--{name} {given[name]} is of --model small-random; {config.model} has its own")
    if not isinstance(config, Config):
        return
    for name in ("lora_rank", "lora_alpha", "lora_dropout"):
        if name in given and config.tune != "lora":
            raise UserError(f"--{name} {given[name]:g} is of --tune lora; here all weights are trained")
    if "order_weight" in given and config.orders != "both":
        raise UserError(f"--order_weight {given['order_weight']:g} is of --orders both")


def newest_run(holds: str, root: Path = Config.RUNS) -> Path:
    """The run started last among those that have the file or folder `holds`. Raises `UserError` for none."""
    found = [path.parent for path in root.glob("*/config.json") if (path.parent / holds).exists()]
    if not found:
        raise UserError(f"there is no run with {holds} in {root}/; train one first, or name one")
    return max(found, key=lambda run: (run / "config.json").stat().st_mtime_ns)


def load_config(run: Path, kind: type[Common] = Config) -> Common:
    """The settings of a run. Raises `UserError`."""
    try:
        saved = json.loads((run / "config.json").read_text("utf-8"))
        return _check(_defaults(kind(**kind.EARLIER | saved)))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{run} is not a run: config.json cannot be read: {error}") from None


def read_ds_config(path: Path) -> dict:
    """Reads and checks DeepSpeed's settings. Raises `UserError` naming the key, the rule and the value."""
    try:
        ds_config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"--deepspeed_config {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--deepspeed_config {path} is not JSON: {error}") from None

    def refuse(text: str):
        raise UserError(f"{path}: {text}")

    if not isinstance(ds_config, dict):
        refuse("must hold an object")
    for keys, value in _leaves(ds_config):
        if value == "auto":
            refuse(f'{keys} is "auto"; give its value')
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        if key in ds_config:
            refuse(f"{key} contradicts train_batch_size, which alone says what a step is; take it out "
                   "(--tokens_per_micro_batch sets the micro-batches)")
    if "scheduler" in ds_config:
        refuse("scheduler is set by --warmup and --min_lr; take it out")
    if "fp16" in ds_config:
        refuse("fp16 is not supported; use bf16")
    for key in ds_config:
        if key not in DS_KEYS:
            near = difflib.get_close_matches(key, DS_KEYS, 1)
            refuse(f"{key} is not a known key" + (f"; {near[0]} is" if near else ""))
    batch = ds_config.get("train_batch_size")
    if type(batch) is not int or batch < 1:
        refuse(f"train_batch_size must be a whole number of pairs, at least 1, not {batch!r}")
    managed = ds_config.get("managed_gradient_accumulation")
    if managed is not False:
        refuse(f"managed_gradient_accumulation must be false, not {managed!r}: the loop makes the micro-batches")
    clipping = ds_config.get("gradient_clipping", 0.0)
    if not _is_number(clipping) or clipping < 0:
        refuse(f"gradient_clipping must be a number, at least 0, not {clipping!r}")
    optimizer, zero, bf16 = (_object(ds_config, key, refuse) for key in ("optimizer", "zero_optimization", "bf16"))
    if optimizer.get("type") not in ("Adam", "AdamW"):
        refuse(f"optimizer.type must be Adam or AdamW, not {optimizer.get('type')!r}")
    parameters = _object(optimizer, "params", lambda text: refuse(f"optimizer.{text}"))
    if not _is_number(parameters.get("lr")) or parameters["lr"] <= 0:
        refuse(f"optimizer.params.lr must be a number above 0, not {parameters.get('lr')!r}")
    for key in ("weight_decay", "eps"):
        if not _is_number(parameters.get(key, 0.0)) or parameters.get(key, 0.0) < 0:
            refuse(f"optimizer.params.{key} must be a number, at least 0, not {parameters[key]!r}")
    betas = parameters.get("betas", [0.9, 0.999])
    if not isinstance(betas, list) or len(betas) != 2 or not all(_is_number(beta) and 0 <= beta < 1 for beta in betas):
        refuse(f"optimizer.params.betas must be two numbers, at least 0 and below 1, not {betas!r}")
    for key in sorted(parameters.keys() - OPTIMIZER_KEYS):
        refuse(f"optimizer.params.{key} is not a known key; known are {', '.join(sorted(OPTIMIZER_KEYS))}")
    if parameters.get("torch_adam") is not True:
        refuse(f"optimizer.params.torch_adam must be true, not {parameters.get('torch_adam')!r}: DeepSpeed's own Adams "
               "are compiled at the first use")
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        refuse(f"zero_optimization.stage must be 0, 1, 2 or 3, not {stage!r}")
    for key in sorted(bf16.keys() - {"enabled"}):
        refuse(f"bf16.{key} is not supported: weights stay fp32 in the optimizer, and steps are checked")
    if not isinstance(bf16.get("enabled", False), bool):
        refuse(f"bf16.enabled must be true or false, not {bf16['enabled']!r}")
    if zero.get("overlap_comm") and stage < 2:
        refuse(f"zero_optimization.overlap_comm needs stage 2 or 3; it is {stage}")
    for key in ("offload_optimizer", "offload_param", "cpu_offload", "cpu_offload_params"):
        if key in zero:
            refuse(f"zero_optimization.{key} is not supported; LoRA's optimizer state is small")
    if bf16.get("enabled") and stage == 0:
        refuse("bf16 needs zero_optimization.stage 1 or more, which keeps fp32 weights; it is 0")
    if bf16.get("enabled") and stage == 1 and "data_types" in ds_config:
        refuse("data_types is not supported with bf16 and zero_optimization.stage 1, for which DeepSpeed takes another "
               "optimizer; stage 2 does it")
    return ds_config


def _object(parent: dict, key: str, refuse) -> dict:
    value = parent.get(key, {})
    if not isinstance(value, dict):
        refuse(f"{key} must be an object, not {value!r}")
    return value


def _leaves(value, keys: str = ""):
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{keys}.{key}".lstrip("."))
    else:
        yield keys, value


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _add_flag(parser: argparse.ArgumentParser, item: dataclasses.Field, kind: type) -> None:
    default = item.default if item.default is not dataclasses.MISSING else item.default_factory()
    text = item.metadata["help"].replace("%", "%%")
    if default not in (None, []):
        shown = " ".join(default) if isinstance(default, list) else default
        text += f" [{shown}]"
    options: dict = {"default": argparse.SUPPRESS, "help": text}  # so that a flag that is not given can be told apart
    optional = [part for part in typing.get_args(kind) if part is not type(None)]
    if kind == int | str:
        kind = _number_or_auto
    elif isinstance(kind, types.UnionType):
        kind = optional[0]
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) is list:
        options |= {"nargs": "+", "metavar": "LABEL" if item.name == "labels" else "SOURCE"}
    else:
        options |= {"type": kind}
        options |= {"choices": item.metadata["choices"]} if item.metadata["choices"] else {
            "metavar": {int: "N", float: "X", str: "TEXT", _number_or_auto: "N"}[kind]}
    parser.add_argument(f"--{item.name}", **options)


def _number_or_auto(text: str) -> int | str:
    try:
        return text if text == AUTO else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, or {AUTO}") from None


def fail(message: str):
    """An argument parser's `error` that raises instead of leaving."""
    raise UserError(message)


def _defaults(config: Common) -> Common:
    """Fills in the defaults that depend on other flags."""
    values = {}
    if config.test_fraction is None:
        values["test_fraction"] = default_test_fraction(config.data, config.test_data)
    if config.gradient_checkpointing is None:
        values["gradient_checkpointing"] = not config.own_base
    if isinstance(config, Config):
        tune = config.tune or ("full" if config.random_base else "lora")
        values["tune"] = tune
        if config.train_embeddings is None:
            values["train_embeddings"] = config.random_base and tune == "lora"
    if isinstance(config, Config) and config.task == PREFERENCE:
        values |= {"orders": config.orders or "both", "labels": config.labels or ["a", "b"]}
    return dataclasses.replace(config, **values)


def _with_packing(config: Common, ds_config: dict, given: dict) -> Common:
    """With `packing` decided. Raises `UserError` where it is among the flags that were given, or needed by others, and
    cannot be."""
    zero3 = ds_config.get("zero_optimization", {}).get("stage") == 3
    if isinstance(config, Pretraining):
        if zero3:
            raise UserError("pm.pretrain runs without zero_optimization.stage 3, which gathers only the weights of "
                            "modules that are called")
        return config
    possible = not zero3 and not config.lora_dropout
    if given.get("packing") and not possible:
        raise UserError("--packing runs without zero_optimization.stage 3, which gathers only the weights of modules "
                        f"that are called, and without --lora_dropout, which is {config.lora_dropout}")
    if config.tokens_per_micro_batch == AUTO and zero3:
        raise UserError("--tokens_per_micro_batch auto runs without zero_optimization.stage 3, whose passes are those "
                        "of all ranks together")
    config = dataclasses.replace(config, packing=possible and config.packing is not False)
    for name in ("lm_loss_weight", "compile"):
        if getattr(config, name) and not config.packing:
            raise UserError(f"--{name} needs packing: no --no-packing, no --lora_dropout, no zero_optimization.stage 3")
    return config


def default_test_fraction(data: list[str], test_data: list[str]) -> float:
    return 0.0 if test_data else 0.25 if all(map(_is_sample, data)) else 0.05


def _is_sample(source: str) -> bool:
    return source.partition(":")[0] == SAMPLE


def _check(config: Common) -> Common:
    rules = [
        ("test_fraction", 0 <= config.test_fraction < 1, "at least 0 and below 1"),
        ("language_temperature", 0 <= config.language_temperature < math.inf, "a number, at least 0"),
        ("vocab_size", config.vocab_size >= 400, "at least 400: 256 bytes, the control tokens and some letters"),
        ("seed", abs(config.seed) < 2**31, "within 32 bits"),
        ("epochs", 0 < config.epochs < math.inf, "above 0"),
        ("max_steps", config.max_steps is None or config.max_steps >= 1, "at least 1"),
        ("warmup", 0 <= config.warmup <= 1, "between 0 and 1"),
        ("min_lr", 0 <= config.min_lr <= 1, "between 0 and 1"),
        ("tokens_per_micro_batch", config.tokens_per_micro_batch == AUTO or config.tokens_per_micro_batch >= 1,
         "at least 1, or auto"),
        ("eval_every", config.eval_every >= 0, "at least 0"),
        ("keep", config.keep >= 1, "at least 1"),
        ("log_every", config.log_every >= 1, "at least 1"),
    ]
    if isinstance(config, Config):
        rules += [
            ("calibration_fraction", 0 <= config.calibration_fraction < 1, "at least 0 and below 1"),
            ("teacher_temperature", 0 < config.teacher_temperature < math.inf, "a number above 0"),
            ("teacher_weight", 0 < config.teacher_weight <= 1, "above 0, at most 1"),
            ("lora_rank", config.lora_rank >= 1, "at least 1"),
            ("lora_alpha", 0 < config.lora_alpha < math.inf, "a number above 0"),
            ("lora_dropout", 0 <= config.lora_dropout < 1, "at least 0 and below 1"),
            ("order_weight", 0 <= config.order_weight <= 1, "between 0 and 1"),
            ("consistency_weight", 0 <= config.consistency_weight < math.inf, "a number, at least 0"),
            ("label_smoothing", 0 <= config.label_smoothing < 1, "at least 0 and below 1"),
            ("lm_loss_weight", 0 <= config.lm_loss_weight < math.inf, "a number, at least 0"),
        ]
    else:
        rules += [("tokenizer_temperature", 0 <= config.tokenizer_temperature < math.inf, "a number, at least 0")]
    for name, good, rule in rules:
        if not good:
            raise UserError(f"--{name} {getattr(config, name)}: must be {rule}")
    if config.test_data and config.test_fraction:
        raise UserError(f"--test_data and --test_fraction {config.test_fraction} say two things; give one")
    _ = config.reading  # checks its own part
    if isinstance(config, Config):
        _check_preference(config)
    return config


def _check_preference(config: Config) -> None:
    if config.task == PREFERENCE and config.labels not in (["a", "b"], ["a", "b", "tie"]):
        raise UserError(f"--labels {' '.join(config.labels)}: those of a preference are a b, or a b tie")
    if len(set(config.labels)) < len(config.labels) or len(config.labels) == 1:
        raise UserError(f"--labels {' '.join(config.labels)}: at least two different ones are needed")
    if config.task == CLASSIFICATION and config.orders:
        raise UserError(f"--orders {config.orders} is of two responses; --task classification has none")
    if config.task == CLASSIFICATION and any(map(_is_sample, config.data)):
        raise UserError("--task classification needs --data: the embedded sample holds comparisons")
    if not config.teacher and (config.teacher_weight, config.teacher_temperature) != (
            Config.teacher_weight, Config.teacher_temperature):
        raise UserError("--teacher_weight and --teacher_temperature need --teacher")
    if config.consistency_weight and config.orders != "both":
        raise UserError(f"--consistency_weight {config.consistency_weight:g} compares two orders; it needs "
                        "--orders both")
    if config.train_embeddings and config.tune == "full":
        raise UserError("--train_embeddings: --tune full trains them anyway")


def _resumed(run: Path, given: dict, ds_config: dict, kind: type[Common]) -> Common:
    saved = load_config(run, kind)
    for item in dataclasses.fields(kind):
        value = given.get(item.name)
        if item.name in given and value != getattr(saved, item.name) and not item.metadata["changeable"]:
            raise UserError(f"--resume {run} with --{item.name} {value}: the run has {getattr(saved, item.name)}")
    saved_ds = read_ds_config(run / "ds_config.json")
    for key in ("train_batch_size", "optimizer", "gradient_clipping", "bf16"):
        if ds_config.get(key) != saved_ds.get(key):
            raise UserError(f"--resume {run}: {key} is {ds_config.get(key)} in the ds_config, but {saved_ds.get(key)} "
                            "in the run's")
    return dataclasses.replace(saved, **given)
