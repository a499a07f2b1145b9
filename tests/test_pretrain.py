"""Language models as a user trains them and goes on from them: each run is a process of its own, or two ranks."""

import hashlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Cohere2ForCausalLM

from pm.config import Pretraining
from pm.data import sample
from pm.data.prepare import encode, read
from pm.encoding import Encoder

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
STEPS, LENGTH = 30, 96
SHAPE = {"model_type": "cohere2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": 16, "max_position_embeddings": 512,
         "logit_scale": 1.0}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """English and German texts, some of them held out and some longer than a sequence; French comparisons; settings."""
    folder = tmp_path_factory.mktemp("pretrain")
    (folder / "test").mkdir()
    written = sample.written()
    for language in ("en", "de"):
        texts = [row["chosen"].replace("\n\n", "\n") for row in written[language]]
        for path, some in ((folder, texts[:20]), (folder / "test", texts[24:])):
            (path / f"{language}.txt").write_text("\n\n".join(some), "utf-8")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row | {"language": "fr"}) + "\n" for row in written["fr"]))
    (folder / "shape.json").write_text(json.dumps(SHAPE))
    settings = json.loads((ROOT / "pm/ds_configs/pretrain.json").read_text()) | {"train_batch_size": 8}
    for stage in range(4):
        (folder / f"stage{stage}.json").write_text(json.dumps(settings | {"zero_optimization": {"stage": stage}}))
    settings = json.loads((ROOT / "pm/ds_configs/pretrain_bf16.json").read_text()) | {"train_batch_size": 8}
    (folder / "bf16.json").write_text(json.dumps(settings))
    return folder


def flags(workplace: Path, name: str) -> list[str]:
    """Of a run as it is meant to be."""
    return ["--data", *(str(workplace / source) for source in ("en.txt", "de.txt:2", "pairs.jsonl:0.5")), "--test_data",
            *(str(workplace / "test" / source) for source in ("en.txt", "de.txt")), "--max_length", str(LENGTH),
            "--max_steps", str(STEPS), "--epochs", "100", "--eval_every", "10", "--keep", "9", "--log_every", "1",
            "--output", str(workplace / name), "--cache_dir", str(workplace / "cache")]


def new(workplace: Path) -> list[str]:
    return ["--model", "small-random", "--shape", str(workplace / "shape.json"), "--vocab_size", "500"]


def start(workplace: Path, name: str, *words: str, ranks: int = 1, settings: str = "stage1",
          program: tuple[str, ...] = ("-m", "pm.pretrain")) -> subprocess.Popen:
    launcher = [sys.executable, *program]
    if ranks > 1:
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port",
                    free_port(), *("--module" if word == "-m" else word for word in program)]
    log = (workplace / f"{name}.log").open("a")
    command = [*launcher, "--deepspeed_config", str(workplace / f"{settings}.json"), *words]
    return subprocess.Popen(command, cwd=workplace, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT,
                            start_new_session=True)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def end(process: subprocess.Popen, workplace: Path, name: str) -> str:
    """What it printed."""
    code = process.wait(timeout=300)
    printed = (workplace / f"{name}.log").read_text()
    assert code == 0, printed[-3000:]
    return printed


def train(workplace: Path, name: str, *words: str, **options) -> str:
    return end(start(workplace, name, *words, **options), workplace, name)


def lines(workplace: Path, name: str, phase: str) -> list[dict]:
    rows = [json.loads(line) for line in (workplace / name / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == phase]


def losses(workplace: Path, name: str, column: str = "loss") -> list[float]:
    return [row[column] for row in lines(workplace, name, "train")]


def digests(workplace: Path, name: str) -> list[str]:
    """Of the last checkpoint's state and of the exported weights."""
    checkpoints = workplace / name / "checkpoints"
    state = checkpoints / (checkpoints / "latest").read_text().strip() / "state.safetensors"
    return [hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (state, workplace / name / "export/model.safetensors")]


@pytest.fixture(scope="module")
def reference(workplace):
    """One rank, ZeRO 1."""
    train(workplace, "reference", *new(workplace), *flags(workplace, "reference"))
    return workplace


def test_a_run_learns_and_says_how_well(reference):
    printed = (reference / "reference.log").read_text()
    found = losses(reference, "reference")
    assert len(found) == STEPS and found[0] == pytest.approx(math.log(500), abs=0.05) and found[-1] < found[0] - 0.7
    evaluated = lines(reference, "reference", "eval")
    assert [line["step"] for line in evaluated] == [10, 20, 30]
    assert evaluated[0]["perplexity"] > evaluated[1]["perplexity"] > evaluated[2]["perplexity"]
    for line in evaluated:
        parts = line["by_language"].values()
        assert set(line["by_language"]) == {"en", "de"}
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))
        assert line["tokens"] == sum(part["tokens"] for part in parts)
        assert line["loss"] == pytest.approx(sum(part["loss"] * part["tokens"] for part in parts) / line["tokens"])
    assert "in an epoch" in printed and "left out" not in printed
    assert f"step 30 test: perplexity {evaluated[-1]['perplexity']:.2f}" in printed
    assert f"exported to {reference / 'reference/export'}" in printed.splitlines()[-2]


def rows_of_test(workplace: Path, tokenizer) -> tuple[Encoder, list[dict]]:
    source = read([str(workplace / "test" / name) for name in ("en.txt", "de.txt")], Pretraining().reading,
                  str(workplace / "cache"))
    encoder = Encoder(tokenizer, LENGTH, pieces=True)
    return encoder, list(encode(source.rows, source.key, encoder, str(workplace / "cache")))


@torch.no_grad()
def loss_of_transformers(workplace: Path, name: str) -> float:
    """Of a token of the test split, by an export that is loaded without a line of ours."""
    export = workplace / name / "export"
    model = AutoModelForCausalLM.from_pretrained(export)
    assert type(model) is Cohere2ForCausalLM
    encoder, rows = rows_of_test(workplace, AutoTokenizer.from_pretrained(export))
    total = tokens = 0
    for row in rows:
        ids = torch.tensor([encoder.template.sequence(row["prompt_ids"])])
        total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert any(row["tokens"] == LENGTH for row in rows)  # a text in pieces
    return total / tokens


def test_the_export_is_a_model_of_transformers_with_the_same_loss(reference):
    assert loss_of_transformers(reference, "reference") == pytest.approx(
        lines(reference, "reference", "eval")[-1]["loss"], rel=1e-5)


def test_the_card_says_how_the_model_was_made(reference):
    saved = json.loads((reference / "reference/export/config.json").read_text())
    assert saved["architectures"] == ["Cohere2ForCausalLM"]
    assert saved["rope_theta"] == saved["rope_parameters"]["rope_theta"]
    card = (reference / "reference/export/README.md").read_text()
    found, data = losses(reference, "reference"), json.loads((reference / "reference/data.json").read_text())
    assert card.startswith("---\nlanguage:\n- ")
    assert "python -m pm.pretrain --deepspeed_config stage1.json --model small-random --shape shape.json" in card
    assert str(reference) not in card
    wanted = [["seed", "0"], ["hashes of the data (train, test)", f"{data['train']} {data['test']}"],
              ["steps", "30, each of 8 sequences"], ["precision", "fp32"], ["parameters", "31,456"],
              ["2", f"{found[1]:.3f}"], ["30", f"{found[-1]:.3f}"]]
    wanted += [[name, str(part["rows"]), f"{part['tokens']:,}", f"{part['loss']:.3f}", f"{part['perplexity']:.2f}"]
               for name, part in lines(reference, "reference", "eval")[-1]["by_language"].items()]
    assert [cells for cells in wanted if f"| {' | '.join(cells)} |" not in card] == []
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True, capture_output=True, check=False)
    assert f"| commit | {commit.stdout.strip()}" in card


def test_the_perplexities_of_the_export_are_those_of_its_run(reference):
    command = [sys.executable, "-m", "pm.perplexity", "--model", str(reference / "reference/export"), "--data",
               *(str(reference / "test" / name) for name in ("en.txt", "de.txt")), "--max_length", str(LENGTH),
               "--cache_dir", str(reference / "cache")]
    result = subprocess.run(command, cwd=reference, text=True, env=ENVIRONMENT, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    printed = result.stdout.strip().splitlines()
    assert printed[0].split() == ["language", "rows", "tokens", "loss", "perplexity"]
    names = ["all", *lines(reference, "reference", "eval")[-1]["by_language"]]
    assert [line.split()[0] for line in printed[1:]] == names
    assert "\n".join(printed) in (reference / "reference.log").read_text()


def test_two_ranks_and_other_micro_batches_train_the_same(reference):
    train(reference, "ranks", *new(reference), *flags(reference, "ranks"), "--tokens_per_micro_batch", "300",
          ranks=2, settings="stage2")
    assert losses(reference, "ranks") == pytest.approx(losses(reference, "reference"), rel=1e-5)
    assert losses(reference, "ranks", "gradient_norm") == pytest.approx(
        losses(reference, "reference", "gradient_norm"), rel=1e-3)
    for found, wanted in zip(lines(reference, "ranks", "eval"), lines(reference, "reference", "eval"), strict=True):
        assert found["perplexity"] == pytest.approx(wanted["perplexity"], rel=1e-5)
        for name, part in wanted["by_language"].items():
            assert found["by_language"][name] == pytest.approx(part, rel=1e-5)
    card = (reference / "ranks/export/README.md").read_text()
    assert "deepspeed --module pm.pretrain --deepspeed_config stage2.json" in card and "| hardware | 2 x " in card


def test_a_resumed_run_ends_in_the_same_bytes(reference):
    process = start(reference, "resumed", *new(reference), *flags(reference, "resumed"))
    metrics, latest = reference / "resumed/metrics.jsonl", time.monotonic() + 240
    while process.poll() is None and not (metrics.exists() and '"step": 3' in metrics.read_text()):
        assert time.monotonic() < latest
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    assert f"/ds_config.json --resume {reference / 'resumed'}" in end(process, reference, "resumed").splitlines()[-1]
    assert not (reference / "resumed/export").exists()
    printed = train(reference, "resumed", "--resume", str(reference / "resumed"))
    assert "resumed from" in printed
    assert digests(reference, "resumed") == digests(reference, "reference")
    for phase in ("train", "eval"):
        found, wanted = ([{name: value for name, value in line.items() if name in ("step", "loss", "by_language")}
                          for line in lines(reference, name, phase)] for name in ("resumed", "reference"))
        assert found == wanted


def test_a_step_that_runs_out_of_memory_is_made_again(reference):
    """No backward pass has memory for 300 tokens."""
    path = reference / "short_of_memory.py"
    path.write_text("""
import runpy
import torch
from pm import loss

backward = loss._NextTokenLoss.backward

def short_of_memory(ctx, grad, grad_losses):
    if len(ctx.gradients[0]) > 300:
        raise torch.OutOfMemoryError("no memory for", len(ctx.gradients[0]), "tokens")
    return backward(ctx, grad, grad_losses)

loss._NextTokenLoss.backward = staticmethod(short_of_memory)
runpy.run_module("pm.pretrain", run_name="__main__", alter_sys=True)
""")
    printed = train(reference, "short", *new(reference), *flags(reference, "short"), settings="stage0",
                    program=(str(path),))
    assert "step 1: out of memory; again with 4,096 tokens of a micro-batch" in printed
    assert [line["step"] for line in lines(reference, "short", "train")] == list(range(1, STEPS + 1))
    assert losses(reference, "short") == pytest.approx(losses(reference, "reference"), rel=1e-5)


def test_a_model_is_gone_on_with_in_bf16(reference):
    """With gradient checkpointing, which such a run has."""
    words = [*flags(reference, "longer"), "--model", str(reference / "reference/export"), "--max_steps", "4"]
    printed = train(reference, "longer", *words, settings="bf16")
    assert "31,456 parameters, bfloat16" in printed
    before, found = losses(reference, "reference"), losses(reference, "longer")
    assert found[0] == pytest.approx(before[-1], abs=0.2) and found[0] < before[0] - 0.5
    exported = load_file(reference / "longer/export/model.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    assert exported.keys() == load_file(reference / "reference/export/model.safetensors").keys()
    assert loss_of_transformers(reference, "longer") == pytest.approx(
        lines(reference, "longer", "eval")[-1]["loss"], abs=0.02)
    tokenizers = [(reference / name / "export/tokenizer.json").read_text() for name in ("reference", "longer")]
    assert tokenizers[0] == tokenizers[1] and not (reference / "longer/tokenizer").exists()
    assert "| precision | bf16 |" in (reference / "longer/export/README.md").read_text()


def test_the_export_is_a_base_whose_language_is_kept(reference):
    """train.py with the language model's loss, on one rank and on two."""
    words = ["--model", str(reference / "reference/export"), "--data", str(reference / "pairs.jsonl"), "--max_length",
             "160", "--max_steps", "2", "--tune", "lora", "--lm_loss_weight", "0.1", "--test_fraction", "0.2",
             "--eval_every", "1", "--log_every", "1", "--cache_dir", str(reference / "cache"), "--output"]
    processes = [start(reference, f"judge{ranks}", *words, str(reference / f"judge{ranks}"), ranks=ranks,
                       program=(str(ROOT / "train.py"),), settings=f"stage{ranks}") for ranks in (1, 2)]
    for ranks, process in enumerate(processes, 1):
        assert " lm " in end(process, reference, f"judge{ranks}")
    for column in ("loss", "language_loss", "accuracy", "gradient_norm"):
        alone, together = (losses(reference, f"judge{ranks}", column) for ranks in (1, 2))
        assert len(alone) == 2 and together == pytest.approx(alone, rel=1e-4 if column == "gradient_norm" else 1e-5)
    assert losses(reference, "judge1")[0] == pytest.approx(math.log(2), abs=1e-6)  # without the language model's
    assert losses(reference, "judge1", "language_loss")[0] < losses(reference, "reference")[0] - 0.5
    state = load_file(reference / "judge1/checkpoints/step_000001/state.safetensors")
    moments = [tensor for name, tensor in state.items() if name.startswith("exp_avg/") and "lora_B" in name]
    assert len(moments) == 2 * 7 and all(moment.any() for moment in moments)  # by a head of zeros they have no gradient
    assert (reference / "judge1/export/adapter_model.safetensors").exists()


@pytest.fixture(scope="module")
def refused(reference):
    """What each of these words ends with: the exit code and what it printed to stderr. All in one process."""
    (reference / "thesis").mkdir()
    (reference / "thesis/thesis.tex").write_text("Chapter 1")
    (reference / "bad.txt").write_bytes(b"\xff\xfe\n\nGood.")
    broken = reference / "broken"
    AutoTokenizer.from_pretrained(reference / "reference/export").save_pretrained(broken)
    (broken / "config.json").write_text((reference / "reference/export/config.json").read_text())
    weights = load_file(reference / "reference/export/model.safetensors")
    save_file({name: tensor * math.nan for name, tensor in weights.items()}, broken / "model.safetensors",
              metadata={"format": "pt"})
    cases = {
        "no data": (["--data", "nonesuch.jsonl"], "stage1"), "form": (["--format", "classification"], "stage1"),
        "zero 3": ([], "stage3"), "output": (["--output", str(reference / "thesis")], "stage1"),
        "again": (["--output", str(reference / "reference")], "stage1"), "bad rows": (["--data", "bad.txt"], "stage1"),
        "shape": (["--shape", "nonesuch.json"], "stage1"), "model": (["--model", str(reference / "thesis")], "stage1"),
        "overlap": (["--test_data", "en.txt"], "stage1"), "resume": (["--resume", str(reference / "thesis")], "stage1"),
        "not finite": (["--model", str(broken)], "stage1")}
    script = reference / "refused.py"
    script.write_text("""
import contextlib, io, json, runpy, sys

found = {}
for name, words in json.loads(sys.argv[1]).items():
    sys.argv[1:], printed, code = words, io.StringIO(), None
    try:
        with contextlib.redirect_stderr(printed):
            runpy.run_module("pm.pretrain", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code
    found[name] = [code, printed.getvalue()]
with open("refused.json", "w") as file:
    json.dump(found, file)
""")
    usual = flags(reference, "refused")
    arguments = {}
    for name, (words, settings) in cases.items():
        before = [*([] if "--model" in words or "--resume" in words else new(reference)), *usual]
        before = [] if "--resume" in words else before
        arguments[name] = ["--deepspeed_config", str(reference / f"{settings}.json"), *before, *words]
    result = subprocess.run([sys.executable, str(script), json.dumps(arguments)], cwd=reference, text=True,
                            env=ENVIRONMENT, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads((reference / "refused.json").read_text())


@pytest.mark.parametrize(("name", "wanted"), [
    ("no data", "--data nonesuch.jsonl: there is no such file"),
    ("form", "--format classification is of --task classification"),
    ("zero 3", "pm.pretrain runs without zero_optimization.stage 3, which gathers only the weights of modules that"),
    ("output", "--output {0}/thesis cannot be a new run's folder: {0}/thesis is not a run: "),
    ("again", "--output {0}/reference holds a run already; continue it with --resume {0}/reference, or name another"),
    ("bad rows", "bad.txt: 1 of 2 rows are bad, more than --max_bad_fraction 0.01 allows: bad.txt:1: not UTF-8 at"),
    ("shape", "--shape nonesuch.json: no model can be made of it: [Errno 2] No such file"),
    ("model", "--model {0}/thesis: no tokenizer can be loaded: "),
    ("overlap", "the test rows overlap with the training split: "),
    ("resume", "{0}/thesis is not a run: config.json cannot be read: "),
    ("not finite", "three steps in a row were not finite, the last one step 3; the run has stopped (without a "
                   "checkpoint)"),
])
def test_what_a_user_did_wrong_is_one_line(refused, reference, name, wanted):
    code, printed = refused[name]
    assert code == 2
    assert printed.splitlines()[-1].startswith("error: " + wanted.format(reference))
    assert "Traceback" not in printed
    assert (reference / "thesis/thesis.tex").read_text() == "Chapter 1"
