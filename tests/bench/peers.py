"""Speed of whole training jobs: ours, Transformers' Trainer, TRL's RewardTrainer and pairjudge.

    pip install -e . -r tests/bench/requirements.txt
    python tests/bench/peers.py [--model small|tiny|7b|FOLDER] [--data FILE ...] [--precision fp32 bf16] [--steps 240]
    python tests/bench/peers.py --model 7b --precision bf16 --gradient_checkpointing --tokens_per_micro_batch auto

All train LoRA and the score head of one Cohere 2 on the same pairs, PAIRS of them in a step, with AdamW. Each job is a
process of its own; a round holds one job of each contender, draws pairs of its own, and every second round goes
backwards. What the table says:

- tokens/s: tokens of texts and template, without padding, from the end of the last warm-up step to that of the last
  step; the median of the rounds, as all that follows. pairs/s is that by the tokens which a pair has in the contender's
  own reading: TRL reads the prompt with each response, pairjudge puts words around the texts, two orders are two.
- x random, x grouped: tokens/s by that of the Trainer in the same round, with the lowest and the highest of the rounds.
- memory: the largest until the last step, resident, or on a GPU allocated there.
- MFU: arithmetic that the sequences need without padding, by the fastest matrix product found in the same precision.
- start: from the start of the process to the end of its first step. Texts were read, tokenised and audited before, and
  only pairjudge does it again.

The table goes to stdout, all to FOLDER/peers.json, what a job printed to FOLDER/logs. Not collected by pytest.
"""

import argparse
import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Cohere2Config,
    Cohere2ForCausalLM,
    DataCollatorWithPadding,
)

from pm.collator import draw_orders
from pm.config import Config, parse
from pm.data.prepare import read, training_texts
from pm.model import SMALL, Cohere2ForSequenceClassification, add_lora
from pm.plan import epoch_order, epoch_rows
from pm.run import TOKENIZER_ROWS, Data, audit_run, environment, load_data
from pm.tokenizer import train_tokenizer
from pm.tracking import read_history

REPOSITORY = Path(__file__).resolve().parents[2]
PRESETS = {
    "small": {"vocab_size": 8000, **SMALL},
    "tiny": {"vocab_size": 8000, "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8,
             "num_key_value_heads": 2, "intermediate_size": 704, "sliding_window": 512,
             "max_position_embeddings": 8192},
    "7b": {"vocab_size": 256000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "intermediate_size": 14336, "sliding_window": 4096,
           "max_position_embeddings": 8192},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PAIRS = 64  # in a step
WARM_UP = 3  # steps at the beginning of a job that are not timed
LEARNING_RATE = 1e-4


class Watch:
    """When each step of the optimizer ended, whoever made it, and the attention masks of what was read for it."""

    def __init__(self):
        self.ends: list[float] = []
        self.masks: list[list[torch.Tensor]] = [[]]
        self.memory = 0
        register_optimizer_step_post_hook(self._step_ended)

    def _step_ended(self, *_) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.memory = torch.cuda.max_memory_allocated()
        else:
            self.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
        self.ends.append(time.time())
        self.masks.append([])


@dataclass(frozen=True)
class Job:
    """What a peer is told. `micro_batch` is the number of pairs in a forward pass."""

    config: Config
    dtype: torch.dtype
    micro_batch: int
    data: Data
    folder: Path


def job_rows(config: Config, data: Data) -> Dataset:
    """The training rows of a job, in the order in which train.py uses them."""
    return data.train.encoded.select(epoch_rows(data.rates, config.seed, 0)[: config.max_steps * PAIRS])


# The contenders


def ours(config: Config, argv: list[str]) -> tuple[list[list[int]], list[float]]:
    """train.py, whole. Of each step the tokens of each sequence, and of all together with padding."""
    sys.argv = [str(REPOSITORY / "train.py"), *argv]
    runpy.run_path(sys.argv[0], run_name="__main__")
    tokens = job_rows(config, load_data(config, Path(config.output)))["tokens"][:]
    times = 2 if config.orders == "both" else 1
    lengths = [tokens[start : start + PAIRS] * times for start in range(0, len(tokens), PAIRS)]
    steps = [line for line in read_history(Path(config.output)) if line["phase"] == "train"]
    return lengths, [sum(step) / (1 - line["padding"]) for step, line in zip(lengths, steps, strict=True)]


def trainer(job: Job, sampling: str) -> None:
    """Transformers' Trainer on the sequences of `--orders random`."""
    from transformers import Trainer, TrainingArguments

    sequences = []
    for row in job_rows(job.config, job.data):
        swapped = draw_orders(row["id"], "random", job.config.seed, 0)[0]
        responses = (row["b_ids"], row["a_ids"]) if swapped else (row["a_ids"], row["b_ids"])
        sequences.append({"input_ids": job.data.encoder.template.sequence(row["prompt_ids"], *responses),
                          "labels": _winner(row) ^ swapped})
    Trainer(lora_model(job, labels=2), TrainingArguments(train_sampling_strategy=sampling, **trainer_arguments(job)),
            DataCollatorWithPadding(AutoTokenizer.from_pretrained(job.config.model)), Dataset.from_list(sequences),
            compute_loss_func=lambda outputs, labels, num_items_in_batch: F.cross_entropy(
                outputs.logits, labels, reduction="sum") / num_items_in_batch).train()


def reward_trainer(job: Job) -> None:
    """TRL's RewardTrainer: one score for a prompt and a response, a loss for two scores."""
    from trl import RewardConfig, RewardTrainer

    sequence = job.data.encoder.template.sequence
    pairs = []
    for row in job_rows(job.config, job.data):
        chosen, rejected = (row["b_ids"], row["a_ids"]) if _winner(row) else (row["a_ids"], row["b_ids"])
        pairs.append({"chosen_ids": sequence(row["prompt_ids"], chosen),
                      "rejected_ids": sequence(row["prompt_ids"], rejected)})
    RewardTrainer(lora_model(job, labels=1), RewardConfig(max_length=job.config.max_length, **trainer_arguments(job)),
                  train_dataset=Dataset.from_list(pairs),
                  processing_class=AutoTokenizer.from_pretrained(job.config.model)).train()


def pairjudge(job: Job) -> None:
    """pairjudge's training, with its own words around the texts and its three classes."""
    from pairjudge.training import JudgeTrainConfig, train

    texts = {row["id"]: row for row in job.data.train.rows}
    pairs = []
    for row in job_rows(job.config, job.data):
        text = texts[row["id"]]
        prompt = "\n".join(turn["content"] for turn in text["prompt"])
        pairs.append(_canonical(prompt, text["response_a"], text["response_b"], _winner(row)))
    for name, rows in (("train", pairs), ("validation", [_canonical("2 + 2", "4", "5", 0)])):
        (job.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    train(JudgeTrainConfig(
        train_path=str(job.folder / "train.jsonl"), validation_path=str(job.folder / "validation.jsonl"),
        model_name=job.config.model, output_dir=str(job.folder / "judge"), merge_adapter=False,
        seed=job.config.seed, max_length=job.config.max_length, max_steps=job.config.max_steps, lr=LEARNING_RATE,
        dtype=str(job.dtype).removeprefix("torch."), gradient_checkpointing=job.config.gradient_checkpointing,
        lora_r=job.config.lora_rank, lora_alpha=job.config.lora_alpha, lora_dropout=job.config.lora_dropout,
        per_device_train_batch_size=job.micro_batch, gradient_accumulation_steps=PAIRS // job.micro_batch))


RANDOM, GROUPED = "Trainer, random batches", "Trainer, group_by_length"
OURS = {
    "ours, packed": ["--orders", "random", "--packing"],
    "ours, padded": ["--orders", "random", "--no-packing"],
    "ours, both orders, packed": ["--orders", "both", "--packing"],
    "ours, both orders, padded": ["--orders", "both", "--no-packing"],
}
PEERS = {
    RANDOM: lambda job: trainer(job, "random"),
    GROUPED: lambda job: trainer(job, "group_by_length"),
    "TRL RewardTrainer": reward_trainer,
    "pairjudge": pairjudge,
}


def lora_model(job: Job, labels: int):
    """With PEFT's defaults: where the model is bf16 its adapters are fp32."""
    model = AutoModelForSequenceClassification.from_pretrained(job.config.model, num_labels=labels, dtype=job.dtype)
    return add_lora(model, job.config.lora_rank, job.config.lora_alpha, job.config.lora_dropout, False)


def trainer_arguments(job: Job) -> dict:
    """Where they say nothing, defaults hold; TRL's own would be to recompute activations in the backward pass."""
    return {"output_dir": str(job.folder), "max_steps": job.config.max_steps, "learning_rate": LEARNING_RATE,
            "per_device_train_batch_size": job.micro_batch, "gradient_accumulation_steps": PAIRS // job.micro_batch,
            "bf16": job.dtype == torch.bfloat16, "gradient_checkpointing": job.config.gradient_checkpointing,
            "use_cpu": not torch.cuda.is_available(), "seed": job.config.seed, "save_strategy": "no",
            "report_to": "none", "disable_tqdm": True}


def _winner(row: dict) -> int:
    return int(row["target"][1] > row["target"][0])  # a tie is a win of a: not all have a place for it


def _canonical(prompt: str, response_a: str, response_b: str, winner: int) -> dict:
    """A row as pairjudge reads it."""
    return {"prompt": [prompt], "response_a": [response_a], "response_b": [response_b],
            "winner_model_a": 1 - winner, "winner_model_b": winner, "winner_tie": 0}


# One job, in a process of its own


def train_flags(arguments: argparse.Namespace, precision: str, seed: int, output: Path) -> list[str]:
    """Of train.py; the peers take their settings from them too."""
    checkpointing = "--gradient_checkpointing" if arguments.gradient_checkpointing else "--no-gradient_checkpointing"
    return ["--deepspeed_config", str(arguments.folder / f"{precision}.json"), "--model", str(base_folder(arguments)),
            "--data", *arguments.data, "--cache_dir", str(arguments.folder / "cache"), "--output", str(output),
            "--seed", str(seed), "--max_steps", str(WARM_UP + arguments.steps // arguments.rounds), "--eval_every", "0",
            "--test_fraction", "0", "--calibration_fraction", "0", "--tune", "lora", checkpointing,
            "--tokens_per_micro_batch", arguments.tokens_per_micro_batch, *(["--compile"] if arguments.compile else [])]


def run_job(arguments: argparse.Namespace, precision: str, contender: str, number: int) -> dict:
    """Trains, and gives what was measured."""
    watch = Watch()

    class Watched(Cohere2ForSequenceClassification):
        def forward(self, input_ids, attention_mask, labels=None, **others):
            watch.masks[-1].append(attention_mask)
            return super().forward(input_ids, attention_mask, labels=labels, **others)

    # Transformers has none for Cohere 2; without `exist_ok` it ignores what is registered for a config of its own.
    AutoModelForSequenceClassification.register(Cohere2Config, Watched, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        argv = train_flags(arguments, precision, number, Path(name) / "run") + OURS.get(contender, [])
        config = parse(argv).config
        if contender in OURS:
            lengths, padded = ours(config, argv)
        else:
            data = load_data(config, Path(name))
            PEERS[contender](Job(config, DTYPES[precision], arguments.micro_batch, data, Path(name)))
            lengths = [torch.cat([mask.sum(1) for mask in masks]).tolist() for masks in watch.masks[: config.max_steps]]
            padded = [sum(mask.numel() for mask in masks) for masks in watch.masks[: config.max_steps]]
    updates, rest = divmod(len(watch.ends), config.max_steps)  # DeepSpeed makes one for each group of parameters
    assert not rest, f"{len(watch.ends)} updates in {config.max_steps} steps"
    ends = watch.ends[updates - 1 :: updates]
    timed = list(chain.from_iterable(lengths[WARM_UP:]))
    rate = sum(timed) / (ends[-1] - ends[WARM_UP - 1])
    flops = useful_flops(Cohere2Config.from_pretrained(config.model), config.lora_rank, timed)
    return {"tokens_per_second": rate, "pairs_per_second": rate * config.max_steps * PAIRS / sum(map(sum, lengths)),
            "padding": 1 - sum(timed) / sum(padded[WARM_UP:]), "memory": watch.memory,
            "flops_per_second": rate * flops / sum(timed), "start": ends[0] - psutil.Process().create_time()}


def useful_flops(config: Cohere2Config, rank: int, lengths: list[int]) -> int:
    """Of a training step on sequences of these lengths, without padding. Frozen weights have a forward pass and the
    gradient of their input, adapters that of themselves as well; attention sees what is before it in its window."""
    hidden, inner = config.hidden_size, config.intermediate_size
    values = hidden // config.num_attention_heads * config.num_key_value_heads
    shapes = [(hidden, hidden)] * 2 + [(hidden, values)] * 2 + [(hidden, inner)] * 3
    frozen, adapters = sum(a * b for a, b in shapes), sum(rank * (a + b) for a, b in shapes)
    seen = 0
    for kind in config.layer_types:
        for length in lengths:
            window = min(length, config.sliding_window) if kind == "sliding_attention" else length
            seen += window * (window + 1) // 2 + (length - window) * window
    return sum(lengths) * config.num_hidden_layers * (4 * frozen + 6 * adapters) + 3 * 4 * hidden * seen


# All jobs


def base_folder(arguments: argparse.Namespace) -> Path:
    if arguments.model not in PRESETS:
        return Path(arguments.model)
    return arguments.folder / "-".join([arguments.model, *(Path(source).stem for source in arguments.data)])


def prepare(arguments: argparse.Namespace) -> None:
    """Writes the model and the ds_configs, and reads, tokenises and audits the data, which fills the cache."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    ds_config = json.loads((REPOSITORY / "ds_config.json").read_text("utf-8"))
    ds_config["train_batch_size"], ds_config["optimizer"]["params"]["lr"] = PAIRS, LEARNING_RATE
    for precision in DTYPES:
        (arguments.folder / f"{precision}.json").write_text(
            json.dumps({**ds_config, "bf16": {"enabled": precision == "bf16"}}), "utf-8")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        config = parse(train_flags(arguments, "fp32", 0, Path(name))).config
        base = base_folder(arguments)
        if not (base / "tokenizer.json").exists():  # which is written last
            rows = read(config.data, config.reading, config.cache_dir).rows
            some = rows.select(epoch_order(len(rows), 0, 0)[:TOKENIZER_ROWS])
            tokenizer = train_tokenizer(training_texts(some), config.vocab_size)
            model_config = Cohere2Config(pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
                                         eos_token_id=tokenizer.eos_token_id, **PRESETS[arguments.model])
            torch.manual_seed(0)
            Cohere2ForCausalLM._from_config(model_config, dtype=torch.bfloat16).save_pretrained(base)
            tokenizer.save_pretrained(base)
        data = load_data(config, Path(name))
        audit_run(config, Path(name), data)
    if config.max_steps * PAIRS > len(data.train.encoded):
        sys.exit(f"--steps {arguments.steps} in {arguments.rounds} rounds, with warm-up, need "
                 f"{config.max_steps * PAIRS} pairs; there are {len(data.train.encoded)}")


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """flop/s of the fastest of some products of square matrices."""
    best = 0.0
    for size in (1024, 2048, 4096, *((8192,) if device == "cuda" else ())):
        left, right = torch.randn(2, size, size, device=device).to(dtype)
        for _ in range(5):
            started = time.perf_counter()
            left @ right
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    torch.cuda.empty_cache()
    return best


def start_job(arguments: argparse.Namespace, precision: str, contender: str, number: int) -> dict:
    """The job's measurements, or why there are none."""
    log, result = arguments.folder / "logs" / f"{precision} {contender} {number}.txt", arguments.folder / "result.json"
    log.parent.mkdir(exist_ok=True)
    result.unlink(missing_ok=True)
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", precision, contender, str(number)],
                              stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code or not result.exists():
        lines = [line for line in log.read_text("utf-8").splitlines() if line.strip()]
        return {"failed": f"exit code {code}: {lines[-1][:300] if lines else 'without a word'}"}
    return json.loads(result.read_text("utf-8"))


def table(results: dict[str, list[dict]], peak: float) -> str:
    """Markdown; `results` has a list of rounds for each contender."""
    def median(rounds: list[dict], name: str) -> float:
        return statistics.median(one[name] for one in rounds)

    def ratio(rounds: list[dict], to: str) -> str:
        if to not in results or "failed" in results[to][-1]:
            return ""
        pairs = zip(rounds, results[to], strict=True)
        found = [one["tokens_per_second"] / other["tokens_per_second"] for one, other in pairs]
        return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"

    lines = ["| contender | tokens/s | pairs/s | padding | memory, GB | MFU | x random | x grouped | start, s |",
             "|---|---|---|---|---|---|---|---|---|"]
    for contender, rounds in results.items():
        if "failed" in rounds[-1]:
            lines.append(f"| {contender} | {rounds[-1]['failed'].replace('|', '/')} ||||||||")
            continue
        lines.append(
            f"| {contender} | {median(rounds, 'tokens_per_second'):,.0f} | {median(rounds, 'pairs_per_second'):,.1f} "
            f"| {median(rounds, 'padding'):.1%} | {median(rounds, 'memory') / 1e9:.2f} "
            f"| {median(rounds, 'flops_per_second') / peak:.1%} | {ratio(rounds, RANDOM)} "
            f"| {ratio(rounds, GROUPED)} | {median(rounds, 'start'):.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help=f"{', '.join(PRESETS)}, or a folder [%(default)s]")
    parser.add_argument("--data", nargs="+", default=[str(REPOSITORY.parent / "shared/data/mt_postedit_mlqe.jsonl")])
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--contenders", nargs="+", choices=[*OURS, *PEERS], default=[*OURS, *PEERS])
    parser.add_argument("--steps", type=int, default=240, help="timed steps of each contender in all rounds together")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--micro_batch", type=int, default=8, help="pairs in a forward pass of a peer [%(default)s]")
    parser.add_argument("--tokens_per_micro_batch", default="8192", help="of ours; auto: as many as fit [%(default)s]")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="in all contenders")
    parser.add_argument("--compile", action="store_true", help="in ours")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("/tmp/peers"))
    parser.add_argument("--only", nargs=3, metavar=("PRECISION", "CONTENDER", "ROUND"), help="a single job")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    if arguments.only:
        precision, contender, number = arguments.only
        result = run_job(arguments, precision, contender, int(number))
        (arguments.folder / "result.json").write_text(json.dumps(result), "utf-8")
        return

    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # one GPU: Trainer would use them all
    os.environ["CUDA_VISIBLE_DEVICES"] = visible if arguments.device == "cuda" else ""
    torch.set_num_threads(arguments.threads)
    prepare(arguments)
    peaks = {precision: matmul_peak(arguments.device, DTYPES[precision]) for precision in arguments.precision}
    results = {precision: {contender: [] for contender in arguments.contenders} for precision in arguments.precision}
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    found = environment()
    found["packages"] |= {name: version(name) for name in ("accelerate", "trl", "pairjudge")}
    found |= {"processor": processor.partition(": ")[2], "cores": os.cpu_count(), "arguments": vars(arguments),
              "model": Cohere2Config.from_pretrained(base_folder(arguments)).to_dict(), "matmul_flops": peaks,
              "results": results}
    for number in range(arguments.rounds):
        for precision, of_contender in results.items():
            for contender in list(of_contender)[:: -1 if number % 2 else 1]:
                of_contender[contender].append(start_job(arguments, precision, contender, number))
                print(f"{precision}  round {number}  {contender}: {of_contender[contender][-1]}", file=sys.stderr)
        (arguments.folder / "peers.json").write_text(json.dumps(found, indent=1, default=str) + "\n", "utf-8")
    for precision, of_contender in results.items():
        print(f"\n{precision}, fastest matrix product {peaks[precision] / 1e9:,.0f} GFLOP/s\n\n"
              f"{table(of_contender, peaks[precision])}")


if __name__ == "__main__":
    main()
