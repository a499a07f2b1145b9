"""Whole training runs as a user starts them: each is a process of its own (or two ranks of one launcher)."""

import csv
import gzip
import hashlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Cohere2Config, Cohere2ForCausalLM

from pm.data import sample
from pm.data.example import text_hash
from pm.predict import PreferenceModel
from pm.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared/data/multi_mt_human.jsonl"
COMMON = ("--log_every", "1", "--epochs", "100")
RANDOM = ("--model", "small-random", "--tune", "lora", "--vocab_size", "600")

# The small model from seed 0 on the rows below, 4 steps of 16 pairs: loss of each step, in nats.
GOLDEN_LOSSES = [0.693147, 0.691406, 0.695583, 0.685839]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with data, DeepSpeed settings and a cache that the runs below share."""
    folder = tmp_path_factory.mktemp("end_to_end")
    written = sample.written()
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for language in ("en", "fr", "ar", "zh"):
            for row in written[language]:
                file.write(json.dumps(row | {"id": f"{language}/{row['group']}", "language": language}) + "\n")
    settings = json.loads((ROOT / "ds_config.json").read_text()) | {"train_batch_size": 16}
    settings["optimizer"]["params"]["lr"] = 2e-3
    for stage in range(4):
        settings["zero_optimization"] = {"stage": stage}
        (folder / f"stage{stage}.json").write_text(json.dumps(settings))
    settings |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    for stage in (2, 3):
        settings["zero_optimization"] = {"stage": stage}
        (folder / f"bf16_stage{stage}.json").write_text(json.dumps(settings))
    return folder


def start(workplace: Path, name: str, *flags: str, ranks: int = 1, settings: str = "stage1", resume: bool = False,
          script: str = "train.py"):
    launcher = [sys.executable] if ranks == 1 else [
        str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", free_port()]
    command = [*launcher, script, "--deepspeed_config", str(workplace / f"{settings}.json")]
    if resume:
        command += ["--resume", str(workplace / name)]
    else:
        data = () if "--data" in flags else ("--data", str(workplace / "pairs.jsonl"))
        model = () if "--model" in flags else RANDOM
        command += ["--output", str(workplace / name), "--cache_dir", str(workplace / "cache"), *data, *COMMON, *model]
    log = (workplace / f"{name}.log").open("a")
    return subprocess.Popen([*command, *flags], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                            start_new_session=True)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def train(workplace: Path, name: str, *flags: str, expect: int = 0, **options) -> str:
    """Runs to its end and returns what it printed."""
    return end(start(workplace, name, *flags, **options), workplace, name, expect)


def end(process: subprocess.Popen, workplace: Path, name: str, expect: int = 0) -> str:
    code = process.wait(timeout=300)
    printed = (workplace / f"{name}.log").read_text()
    assert code == expect, printed[-3000:]
    return printed


def lines(workplace: Path, name: str, phase: str) -> list[dict]:
    rows = [json.loads(line) for line in (workplace / name / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == phase]


def losses(workplace: Path, name: str) -> list[float]:
    return [row["loss"] for row in lines(workplace, name, "train")]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def newest_state(workplace: Path, name: str) -> Path:
    checkpoints = workplace / name / "checkpoints"
    return checkpoints / (checkpoints / "latest").read_text().strip() / "state.safetensors"


@pytest.fixture(scope="module")
def reference(workplace):
    """Four steps on one rank, ZeRO 1."""
    train(workplace, "reference", "--max_steps", "4")
    return workplace


@pytest.fixture(scope="module")
def short_of_memory(workplace):
    """train.py, whose last rank has memory for 1000 tokens: with more a backward pass breaks off at its third block."""
    path = workplace / "short_of_memory.py"
    path.write_text(f"""
import os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from pm import fused

backward, calls = fused._Output.backward, []

def short_of_memory(ctx, grad):
    calls.append(len(grad))
    if len(grad) > 1000 and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1) and len(calls) % 3 == 0:
        raise torch.OutOfMemoryError("no memory for", len(grad), "tokens")
    return backward(ctx, grad)

fused._Output.backward = staticmethod(short_of_memory)
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
""")
    return str(path)


@pytest.mark.parametrize(("settings", "ranks"), [("stage0", 1), ("stage1", 2), ("stage2", 2)])
def test_a_step_that_runs_out_of_memory_is_made_again(reference, short_of_memory, settings, ranks):
    name = f"short_{settings}"
    options = {"settings": settings, "ranks": ranks, "script": short_of_memory}
    printed = train(reference, name, "--max_steps", "4", "--eval_every", "2", **options)
    assert "step 1: out of memory; again with 4,096 tokens of a micro-batch" in printed
    assert [row["step"] for row in lines(reference, name, "train")] == [1, 2, 3, 4]
    assert losses(reference, name) == pytest.approx(losses(reference, "reference"), abs=1e-5)
    one, other = load_file(newest_state(reference, name)), load_file(newest_state(reference, "reference"))
    assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one if key.startswith("exp_avg/"))
    shutil.rmtree(newest_state(reference, name).parent)
    resumed = train(reference, name, resume=True, **options).removeprefix(printed)
    assert "at step 2 of 4" in resumed and "out of memory" not in resumed  # which tokens fit is known by now


def test_it_ends_in_the_same_bytes_as_a_run_that_knew_which_tokens_fit(reference, short_of_memory):
    """With ZeRO 2 in bf16; a part of the gradients has been reduced when memory runs out."""
    settings = json.loads((reference / "bf16_stage2.json").read_text())
    settings["zero_optimization"] = {"stage": 2, "reduce_bucket_size": 2000}
    (reference / "small_buckets.json").write_text(json.dumps(settings))
    printed = train(reference, "short_bf16", "--max_steps", "3", settings="small_buckets", script=short_of_memory)
    assert "step 1: out of memory; again with 4,096 tokens of a micro-batch" in printed
    trainer = json.loads((newest_state(reference, "short_bf16").parent / "trainer.json").read_text())
    train(reference, "known_bf16", "--max_steps", "3", "--tokens_per_micro_batch", str(trainer["token_budget"]),
          settings="small_buckets")
    assert losses(reference, "short_bf16") == losses(reference, "known_bf16")
    assert digest(newest_state(reference, "short_bf16")) == digest(newest_state(reference, "known_bf16"))
    printed = train(reference, "short_buckets", "--max_steps", "3", settings="small_buckets", script=short_of_memory,
                    ranks=2, expect=2)
    assert "a lower --tokens_per_micro_batch takes less" in printed


def test_the_padded_forward_trains_the_same(reference):
    train(reference, "padded", "--max_steps", "4", "--no-packing")
    assert losses(reference, "padded") == pytest.approx(losses(reference, "reference"), abs=1e-5)
    assert all(row["padding"] == 0 for row in lines(reference, "reference", "train"))
    assert any(row["padding"] > 0 for row in lines(reference, "padded", "train"))


def test_losses_are_the_golden_ones(reference):
    assert losses(reference, "reference") == pytest.approx(GOLDEN_LOSSES, abs=2e-4)


@pytest.mark.parametrize(("name", "settings", "ranks", "budget"), [
    ("budget", "stage1", 1, "500"), ("zero0", "stage0", 1, "8192"), ("zero0_ranks2", "stage0", 2, "1000"),
    ("zero2_ranks2", "stage2", 2, "700"), ("zero3_ranks2", "stage3", 2, "2000"),
])
def test_ranks_budgets_and_zero_stages_change_no_step(reference, name, settings, ranks, budget):
    train(reference, name, "--max_steps", "4", "--tokens_per_micro_batch", budget, settings=settings, ranks=ranks)
    assert losses(reference, name) == pytest.approx(losses(reference, "reference"), abs=1e-5)
    norms = [[row["gradient_norm"] for row in lines(reference, run, "train")] for run in (name, "reference")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    one, other = load_file(newest_state(reference, name)), load_file(newest_state(reference, "reference"))
    assert one.keys() == other.keys()
    for key in (key for key in one if key.startswith("exp_avg/")):
        assert torch.allclose(one[key], other[key], atol=1e-5), key


def test_eval_py_gives_the_numbers_of_the_training_run(reference):
    result = subprocess.run([sys.executable, "eval.py", "--model", str(reference / "reference")], cwd=ROOT, text=True,
                            capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    logged = lines(reference, "reference", "eval")[-1]
    evaluated = json.loads((reference / "reference/evaluation/report/metrics.json").read_text())["overall"]
    for name in ("n", "accuracy", "accuracy_single_order", "flip_rate", "prefers_first"):
        assert logged[name] == evaluated[name], name
    assert logged["shortcuts"] == {name: evaluated["shortcuts"][name] for name in logged["shortcuts"]}
    assert {"longer", "more_markdown", "always_a", "n_grams", "prompt_only"} == set(logged["shortcuts"])
    assert logged["log_loss"] == pytest.approx(evaluated["log_loss"], abs=1e-6)
    predictions = (reference / "reference/evaluation/predictions.jsonl").read_text().splitlines()
    assert len(predictions) == evaluated["n"] == len({json.loads(line)["id"] for line in predictions})


NOISE = 0.2


@pytest.fixture(scope="module")
def noisy(workplace):
    """A run on whole answers of the sample against beginnings of them, with a known share of the labels flipped."""
    path = workplace / "noisy.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for language, rows in sample.written().items():
            for row in rows:
                for part in range(3):
                    whole, identifier = row["chosen"], f"{language}/{row['group']}/{part}"
                    draw = [int(text_hash(name, identifier), 16) / 2**64 for name in ("cut", "order", "flip")]
                    pair = [whole, whole[: int(len(whole) * (0.3 + 0.5 * draw[0]))].rstrip(" ,.;:!?،؛。、，")]
                    whole_is_a, flipped = draw[1] < 0.5, draw[2] < NOISE
                    file.write(json.dumps({
                        "id": identifier, "group": row["group"], "language": language, "prompt": row["prompt"],
                        "response_a": pair[not whole_is_a], "response_b": pair[whole_is_a],
                        "winner": "a" if whole_is_a != flipped else "b", "kind": "flipped" if flipped else "right"})
                        + "\n")
    settings = json.loads((workplace / "stage1.json").read_text()) | {"train_batch_size": 32}
    settings["optimizer"]["params"]["lr"] = 1e-3
    (workplace / "noisy.json").write_text(json.dumps(settings))
    train(workplace, "noisy", "--data", str(path), "--tune", "full", "--max_steps", "80", "--test_fraction", "0.3",
          "--calibration_fraction", "0.35", "--eval_every", "0", settings="noisy")
    return workplace


def evaluate(workplace: Path, name: str, *flags: str, ranks: int = 1) -> tuple[str, dict, list[dict]]:
    """What eval.py prints of a run, the metrics and the predictions that it writes."""
    output = workplace / f"{name}_evaluation_{ranks}"
    launcher = [sys.executable] if ranks == 1 else [
        str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", free_port()]
    command = [*launcher, "eval.py", "--model", str(workplace / name), "--output", str(output), "--cache_dir",
               str(workplace / "cache"), *flags]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return (result.stdout, json.loads((output / "report/metrics.json").read_text()),
            [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()])


def test_calibrated_probabilities_approach_the_known_noise(noisy):
    printed, metrics, predictions = evaluate(noisy, "noisy", "--no_response_only")
    known = [row for row in predictions if row["kind"] == "right"]
    right = [(row["probability"]["a"] > 0.5) == (row["target"]["a"] == 1) for row in known]
    assert sum(right) > 0.97 * len(known)  # so nearly all doubt that is due is the labels'
    sure = sorted(max(row["probability"].values()) for row in predictions)
    assert sure[len(sure) // 2] == pytest.approx(1 - NOISE, abs=0.03)
    assert sum(sure) / len(sure) == pytest.approx(1 - NOISE, abs=0.05)
    assert metrics["overall"]["ece_calibrated"] < 0.1
    assert "with temperatures" in printed and {row["temperature"] for row in predictions} != {1.0}


def test_two_ranks_evaluate_to_the_same_bytes(noisy):
    _, alone, predictions = evaluate(noisy, "noisy", "--tokens_per_micro_batch", "2000")
    _, together, shared = evaluate(noisy, "noisy", "--tokens_per_micro_batch", "2000", ranks=2)
    assert shared == predictions
    assert together.pop("about")["ranks"] == 2 and alone.pop("about")["ranks"] == 1
    assert together == alone


def test_an_export_of_a_checkpoint_has_the_temperatures_of_the_run(noisy, tmp_path):
    settings = json.loads((noisy / "noisy/export/preference.json").read_text())["calibration"]
    assert settings["rows"] == 8 * 69 and set(settings["languages"]) == set(sample.LANGUAGES)
    command = [sys.executable, "-m", "pm.export", str(noisy / "noisy"), "--output", str(tmp_path / "export")]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    again = json.loads((tmp_path / "export/preference.json").read_text())["calibration"]
    assert again["temperature"] == pytest.approx(settings["temperature"], rel=1e-3)
    model = PreferenceModel.from_pretrained(tmp_path / "export")
    found = model.compare(["Say yes."] * 2, ["Yes, of course."] * 2, ["Yes, of"] * 2, languages=["de", "xx"])
    odds = [math.log(row["a"] / row["b"]) for row in found]
    assert odds[0] * again["languages"]["de"] == pytest.approx(odds[1] * again["temperature"], rel=1e-4)


def test_eval_py_refuses_rows_that_were_trained_on(reference):
    command = [sys.executable, "eval.py", "--model", str(reference / "reference"), "--cache_dir",
               str(reference / "cache"), "--data", str(reference / "pairs.jsonl")]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: the test rows overlap with the training split")
    assert "Traceback" not in result.stderr


def test_a_run_whose_data_has_changed_is_not_evaluated_on_another_split(workplace, reference):
    rows = [{"prompt": f"Say {number}", "chosen": f"Yes {number}", "rejected": "No"} for number in range(40)]
    path = workplace / "changing.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(workplace, "changed", "--data", str(path), "--max_steps", "1")
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    command = [sys.executable, "eval.py", "--model", str(workplace / "changed")]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert result.returncode == 2
    assert "is no longer what it was trained on" in result.stderr and "Traceback" not in result.stderr


def test_an_export_does_not_replace_a_folder_of_something_else(reference, tmp_path):
    (tmp_path / "thesis.tex").write_text("Chapter 1")
    command = [sys.executable, "-m", "pm.export", str(reference / "reference"), "--output", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert result.returncode == 2 and result.stderr.strip().endswith("is there already, and is no export")
    assert (tmp_path / "thesis.tex").read_text() == "Chapter 1"
    command[-1] = str(tmp_path / "export")
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    written, exported = (folder / "adapter_model.safetensors" for folder in (tmp_path / "export",
                                                                             reference / "reference/export"))
    assert digest(written) == digest(exported)


def test_the_export_holds_tokenizer_template_and_labels(reference):
    export = reference / "reference" / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    assert tokenizer.decode(tokenizer("Zürich ☃ 東京", add_special_tokens=False).input_ids) == "Zürich ☃ 東京"
    assert json.loads((export / "config.json").read_text())["id2label"] == {"0": "a", "1": "b"}
    assert json.loads((export / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    assert json.loads((export / "preference.json").read_text())["template"]["start"] == 4


@pytest.mark.parametrize(("name", "settings", "ranks", "sent"), [
    ("terminated", "stage0", 1, signal.SIGTERM), ("killed_bf16", "bf16_stage2", 1, signal.SIGKILL),
    ("killed_zero3", "stage3", 2, signal.SIGKILL),
])
def test_a_resumed_run_ends_in_the_same_bytes(reference, name, settings, ranks, sent):
    workplace = reference
    flags = ("--max_steps", "8", "--eval_every", "2", "--keep", "9", "--lora_dropout", "0.1", "--orders", "random")
    options = {"settings": settings, "ranks": ranks}
    whole = start(workplace, f"{name}_whole", *flags, **options)
    process = start(workplace, name, *flags, **options)
    metrics = workplace / name / "metrics.jsonl"
    latest = time.monotonic() + 240
    while process.poll() is None and not (metrics.exists() and '"step": 3' in metrics.read_text()):
        assert time.monotonic() < latest
        time.sleep(0.02)
    os.killpg(process.pid, sent)
    code = process.wait(timeout=120)
    assert code == (0 if sent == signal.SIGTERM else -signal.SIGKILL)
    assert not (workplace / name / "export").exists()
    printed = train(workplace, name, resume=True, **options)
    end(whole, workplace, f"{name}_whole")
    assert "resumed from" in printed
    assert digest(newest_state(workplace, name)) == digest(newest_state(workplace, f"{name}_whole"))
    adapters = [digest(workplace / run / "export/adapter_model.safetensors") for run in (name, f"{name}_whole")]
    assert adapters[0] == adapters[1]
    assert losses(workplace, name) == losses(workplace, f"{name}_whole")
    steps = [row["step"] for row in lines(workplace, name, "train")]
    assert steps == list(range(1, 9))
    environment = json.loads((workplace / name / "environment.json").read_text())
    assert "--output" in environment["command"] and "--resume" in environment["resumed"][0]["command"]
    assert len(environment["resumed"]) == 1


def test_a_folder_in_which_a_run_trains_is_not_taken_by_another(workplace):
    process = start(workplace, "busy")
    latest = time.monotonic() + 120
    while not (workplace / "busy/config.json").exists():
        assert process.poll() is None and time.monotonic() < latest
        time.sleep(0.02)
    for resume, flag in ((False, "--output"), (True, "--resume")):
        printed = train(workplace, "busy", resume=resume, expect=2)
        assert f"{flag} {workplace / 'busy'} is in use by process {process.pid} on " in printed
    os.killpg(process.pid, signal.SIGKILL)


def test_an_evaluation_that_fails_costs_no_step_and_is_made_when_the_run_goes_on(reference):
    script = reference / "failing.py"
    script.write_text(f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
from pm import metrics

def evaluation(predictions):
    raise OSError("No space left on device")

metrics.evaluation = evaluation
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
""")
    printed = train(reference, "failing", "--max_steps", "4", "--eval_every", "2", expect=1, script=str(script))
    assert "No space left on device" in printed
    assert newest_state(reference, "failing").parent.name == "step_000002"
    assert not lines(reference, "failing", "eval")
    assert "at step 2 of 4" in train(reference, "failing", resume=True)
    assert losses(reference, "failing") == losses(reference, "reference")
    assert [line["step"] for line in lines(reference, "failing", "eval")] == [2, 4]


def test_a_checkpoint_moves_between_ranks_and_zero_stages(reference):
    flags = ("--max_steps", "4", "--eval_every", "2", "--keep", "9")
    train(reference, "moved", *flags)
    for path in (reference / "moved/checkpoints").glob("step_000004*"):
        (path / "state.safetensors").write_bytes(b"broken")
    printed = train(reference, "moved", resume=True, settings="stage3", ranks=2)
    assert "skipping checkpoint" in printed and "resumed from" in printed
    assert losses(reference, "moved") == pytest.approx(losses(reference, "reference"), abs=1e-5)
    one, other = load_file(newest_state(reference, "moved")), load_file(newest_state(reference, "reference"))
    for key in (key for key in one if key.startswith("exp_avg")):
        assert torch.allclose(one[key], other[key], atol=1e-5), key


@pytest.fixture(scope="module")
def causal_model(workplace):
    """A saved causal language model, as a hub would give it, whose weights are not finite for the token `☃`."""
    folder = workplace / "causal"
    tokenizer = train_tokenizer([row["chosen"] + " ☃" * 9 for row in sample.written()["en"]], 600)
    torch.manual_seed(0)
    config = Cohere2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, sliding_window=64, max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    Cohere2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for index in {tokenizer.convert_tokens_to_ids(piece) for piece in ("☃", " ☃")} - {tokenizer.unk_token_id}:
        weights["model.embed_tokens.weight"][index] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_pairs(path: Path, poisoned: set[int]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(40):
            file.write(json.dumps({"id": f"row{number}", "prompt": f"Say {number}",
                                   "chosen": "Yes ☃" if number in poisoned else "Yes", "rejected": "No"}) + "\n")


@pytest.mark.parametrize(("settings", "ranks"), [("stage0", 1), ("stage2", 1), ("bf16_stage3", 2)])
def test_a_step_that_is_not_finite_is_skipped_and_its_row_named(workplace, causal_model, settings, ranks):
    name = f"not_finite_{settings}"
    write_pairs(workplace / "poisoned.jsonl", {7})
    printed = train(workplace, name, "--data", str(workplace / "poisoned.jsonl"), "--model", str(causal_model),
                    "--test_fraction", "0", "--max_steps", "5", settings=settings, ranks=ranks)
    skipped = [line for line in printed.splitlines() if "step skipped" in line]
    assert skipped and all(line.endswith("rows: row7") for line in skipped)
    state = load_file(newest_state(workplace, name))
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_three_steps_in_a_row_that_are_not_finite_stop_the_run(workplace, causal_model):
    write_pairs(workplace / "all_poisoned.jsonl", set(range(40)))
    printed = train(workplace, "all_not_finite", "--data", str(workplace / "all_poisoned.jsonl"), "--model",
                    str(causal_model), "--test_fraction", "0", "--max_steps", "9", expect=2, settings="stage0")
    assert printed.strip().splitlines()[-1].startswith("error: three steps in a row were not finite")


def test_a_causal_model_is_trained_in_bf16_under_zero_3(workplace, causal_model):
    flags = ("--model", str(causal_model), "--max_steps", "3")
    printed = train(workplace, "real", *flags, settings="bf16_stage3", ranks=2)
    assert "bfloat16, score head new" in printed
    config = json.loads((workplace / "real/config.json").read_text())
    assert config["gradient_checkpointing"] and not config["train_embeddings"]
    adapter = load_file(workplace / "real/export/adapter_model.safetensors")
    assert not any("embed" in name for name in adapter)
    assert sum("score" in name for name in adapter) == 1
    assert sum("lora_" in name for name in adapter) == 4 * 7 * 2


def test_all_weights_are_trained_and_exported_whole_and_the_head_is_kept_from_there(workplace):
    train(workplace, "full", "--tune", "full", "--max_steps", "3")
    export = workplace / "full/export"
    assert (export / "model.safetensors").exists() and not (export / "adapter_config.json").exists()
    printed = train(workplace, "from_full", "--model", str(export), "--max_steps", "2", "--no-gradient_checkpointing")
    assert "score head kept" in printed
    assert losses(workplace, "from_full")[0] != pytest.approx(0.693147, abs=1e-6)


def test_three_forms_weights_and_languages_in_one_run_of_three_classes(workplace):
    """Turns in a .json.gz, arena's parquet with ties, votes in a .csv; two ranks."""
    chosen, arena, votes = [], [], []
    for number, row in enumerate(row for row in sample.written()["en"] if isinstance(row["prompt"], str)):
        prompt, good, bad = (row[name] for name in ("prompt", "chosen", "rejected"))
        user = {"role": "user", "content": prompt}
        chosen.append({"chosen": [user, {"role": "assistant", "content": good}], "language": "English",
                       "rejected": [user, {"role": "assistant", "content": bad}]})
        arena.append({"prompt": json.dumps([prompt + " 2"]), "response_a": json.dumps([good, None]),
                      "response_b": json.dumps([bad]), "winner_model_a": number % 3 == 0,
                      "winner_model_b": number % 3 == 1, "winner_tie": number % 3 == 2, "language": "ar"})
        votes.append({"prompt": prompt + " 3", "response_a": bad, "response_b": good, "votes": "[1, 3]"})
    with gzip.open(workplace / "chosen.json.gz", "wt", encoding="utf-8") as file:
        json.dump(chosen, file)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(arena), workplace / "arena.parquet")
    with (workplace / "votes.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, votes[0])
        writer.writeheader()
        writer.writerows(votes)
    data = [str(workplace / name) for name in ("chosen.json.gz", "arena.parquet:2", "votes.csv:0.5")]
    printed = train(workplace, "three", "--data", *data, "--labels", "a", "b", "tie", "--language_temperature", "0.5",
                    "--test_fraction", "0.2", "--consistency_weight", "1", "--label_smoothing", "0.1", "--max_steps",
                    "2", ranks=2)
    described = next(line for line in printed.splitlines() if line.startswith("train:"))
    assert all(f"{language} " in described for language in ("en", "ar", "und")) and "in an epoch" in described
    evaluated = lines(workplace, "three", "eval")[-1]
    assert evaluated["accuracy_with_ties"] is not None and evaluated["n_ties"] > 0
    settings = json.loads((workplace / "three/export/preference.json").read_text())
    assert (settings["task"], settings["labels"]) == ("preference", ["a", "b", "tie"])
    assert "# Data audit" in (workplace / "three/audit.md").read_text()
    assert json.loads((workplace / "three/audit.json").read_text())["overlap"]["same_prompt"]["count"] == 0


def test_a_model_learns_from_the_predictions_of_another(reference):
    command = [sys.executable, "eval.py", "--model", str(reference / "reference"), "--data",
               str(reference / "pairs.jsonl"), "--allow_overlap", "--output", str(reference / "teacher"), "--cache_dir",
               str(reference / "cache")]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    teacher = reference / "teacher/predictions.jsonl"
    printed = train(reference, "student", "--teacher", str(teacher), "--teacher_weight", "1", "--max_steps", "4")
    taught, rows = next(line.split()[1:4:2] for line in printed.splitlines() if line.startswith("teacher:"))
    assert taught == rows and 0 < int(rows) < len((reference / "pairs.jsonl").read_text().splitlines())
    found, alone = losses(reference, "student"), losses(reference, "reference")
    assert found[0] == pytest.approx(alone[0]) and found[-1] != pytest.approx(alone[-1], abs=1e-3)
    teacher.unlink()  # an evaluation needs it no more
    subprocess.run([sys.executable, "eval.py", "--model", str(reference / "student")], cwd=ROOT,
                   capture_output=True, check=True)


def test_languages_are_told_apart_on_real_data(workplace):
    """A classification, from its rows to `eval.py` and `classify`."""
    if not REAL.exists():
        pytest.skip(f"{REAL} is missing")
    rows = {}
    with REAL.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            rows.setdefault(row["language"], []).append({"text": row["response_a"], "label": row["language"],
                                                         "group": row["group"], "language": row["language"]})
    chosen = [row for language, some in rows.items() if language != "und" and len(some) >= 150 for row in some[:150]]
    assert len({row["label"] for row in chosen}) >= 10
    path = workplace / "languages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen), "utf-8")
    train(workplace, "languages", "--task", "classification", "--data", str(path), "--tune", "full", "--max_steps",
          "60", "--max_length", "192", "--test_fraction", "0.1", "--vocab_size", "2000")
    logged = lines(workplace, "languages", "eval")[-1]
    assert logged["accuracy"] > 0.6 > 3 * logged["most_common"]
    command = [sys.executable, "eval.py", "--model", str(workplace / "languages")]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((workplace / "languages/evaluation/report/metrics.json").read_text())
    assert metrics["overall"]["accuracy"] == logged["accuracy"]
    assert metrics["overall"]["macro_f1"] == logged["macro_f1"]
    assert sum(part["n"] for part in metrics["by_class"].values()) == logged["n"]
    model = PreferenceModel.from_pretrained(workplace / "languages")
    probabilities = model.classify([chosen[0]["text"], "これは日本語の文です。"])
    assert [sum(row.values()) for row in probabilities] == pytest.approx([1, 1])
    assert max(probabilities[1], key=probabilities[1].get) == "ja"
