"""The numbers of a training step, from micro-batches written out; what wandb's own files hold, offline."""

import json
import math
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from written import FOUR

from pm.batches import MicroBatch
from pm.errors import UserError
from pm.metrics import evaluation
from pm.tracking import StepStatistics, Tracker

ROOT = Path(__file__).parents[1]

CPU = torch.device("cpu")
A, B, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


def statistics(*parts, compares: bool = True, orders: int = 2) -> StepStatistics:
    """Of micro-batches (logits by row and order, targets); each row's loss is 0.5, its sequences have 3 tokens and a
    pad. The ids count up from 0."""
    made = StepStatistics(CPU, compares, orders)
    count = 0
    for logits, targets in parts:
        ids = [str(count + number) for number in range(len(targets))]
        micro_batch = MicroBatch(ids, {}, 3 * len(ids) * orders, len(ids) * orders, 1.0)
        count += len(targets)
        made.add(micro_batch, torch.tensor(targets), torch.tensor(logits), torch.full((len(targets),), 0.5))
    return made


def test_both_orders_by_hand():
    # Margins of a over b in each order, and their mean:
    logits_NOC = [[[3.0, 0.0], [1.0, 0.0]],  # 3, 1: a
                  [[3.0, 0.0], [0.0, 1.0]],  # 3, -1: a, flips
                  [[1.0, 0.0], [0.0, 3.0]],  # 1, -3: b, flips
                  [[0.0, 1.0], [0.0, 1.0]]]  # -1, -1: b
    numbers = statistics((logits_NOC, [A, B, B, TIE])).reduce(4, False).numbers
    assert numbers == {"loss": 0.5, "accuracy": 2 / 3, "padding": 0.25, "flip_rate": 2 / 4}


def test_an_even_verdict_counts_half_and_is_another_than_a():
    numbers = statistics(([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]],
                          [A, A, B])).reduce(3, False).numbers
    assert (numbers["accuracy"], numbers["flip_rate"]) == ((0.5 + 1 + 0.5) / 3, 2 / 3)


def test_micro_batches_add_up():
    right, wrong = [[2.0, 0.0], [2.0, 0.0]], [[0.0, 2.0], [0.0, 2.0]]
    values = statistics(([right, right, wrong], [A, A, A]), ([wrong], [A])).reduce(4, False)
    assert values.numbers == {"loss": 0.5, "accuracy": 0.5, "padding": 0.25, "flip_rate": 0.0}
    assert (values.tokens, values.stop) == (4 * 2 * 3, False)


def test_one_order_has_no_flip_rate():
    numbers = statistics(([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 2.0]]], [A, B, B]), orders=1).reduce(3, False).numbers
    assert numbers == {"loss": 0.5, "accuracy": 2 / 3, "padding": 0.25}


def test_a_verdict_is_between_a_and_b_whatever_a_tie_has():
    logits_NOC = [[[2.0, 0.0, 1.0], [2.0, 0.0, 9.0]],  # a, a
                  [[0.0, 1.0, 9.0], [5.0, 0.0, 0.0]],  # b, a: together a
                  [[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]],  # b, b
                  [[1.0, 0.0, 0.5], [1.0, 0.0, 0.5]]]  # a, a
    targets_NC = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    numbers = statistics((logits_NOC, targets_NC)).reduce(4, False).numbers
    assert numbers == {"loss": 0.5, "accuracy": 2 / 3, "padding": 0.25, "flip_rate": 1 / 4}


def test_only_ties_are_as_good_as_chance():
    assert statistics(([[[1.0, 0.0], [1.0, 0.0]]], [TIE])).reduce(1, False).numbers["accuracy"] == 0.5


def test_a_classification_is_right_where_its_most_probable_class_is():
    logits_NOC = [[[1.0, 0.0, 2.0]], [[1.0, 0.0, 2.0]], [[0.0, 3.0, 1.0]], [[0.0, 3.0, 1.0]]]
    targets_NC = [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.4, 0.2, 0.4]]
    numbers = statistics((logits_NOC, targets_NC), compares=False, orders=1).reduce(4, False).numbers
    assert numbers == {"loss": 0.5, "accuracy": 2 / 4, "padding": 0.25}


def test_rows_that_fill_in_do_not_count():
    made = statistics(([[[1.0, 0.0], [1.0, 0.0]]], [A]))
    filling = MicroBatch(["9"], {}, 198, 5, 0.0)
    made.add(filling, torch.tensor([B]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([math.nan]))
    values = made.reduce(1, False)
    assert values.numbers == {"loss": 0.5, "accuracy": 1.0, "padding": 0.25, "flip_rate": 0.0}
    assert values.tokens == 6
    assert made.suspects() == "0"


def test_a_language_loss_is_shown_where_there_is_one():
    made = StepStatistics(CPU, True, 1)
    for weight, language_loss in ((1.0, 3.0), (0.0, math.nan), (1.0, 4.0)):
        micro_batch = MicroBatch(["0", "1"], {}, 6, 0, weight)
        made.add(micro_batch, torch.tensor([A, TIE]), torch.tensor([[[1.0, 0.0]]] * 2), torch.tensor([0.5, 0.25]),
                 torch.tensor(language_loss))
    assert made.reduce(4, False).numbers == {"loss": 1.5 / 4, "accuracy": 1.0, "padding": 0.0, "language_loss": 7 / 4}
    assert "language_loss" not in statistics(([[[1.0, 0.0], [1.0, 0.0]]], [A])).reduce(1, False).numbers


def test_a_perplexity_is_a_line_of_the_evaluation(tmp_path):
    """What is not finite is null."""
    tracker = Tracker(tmp_path, "", {})
    tracker.start(9, 0)
    part = {"rows": 2, "tokens": 9, "loss": 800.0, "perplexity": math.inf}
    tracker.perplexity(3, {"overall": part, "by_language": {"de": part}})
    line, = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line == {"phase": "eval", "step": 3, "rows": 2, "tokens": 9, "loss": 800.0, "perplexity": None,
                    "by_language": {"de": part | {"perplexity": None}}}


def test_stop_arrives():
    assert statistics(([[[1.0, 0.0], [1.0, 0.0]]], [A])).reduce(1, True).stop is True


@pytest.mark.parametrize(("losses", "wanted"), [
    ([0.5, math.nan, 1.0, math.inf], "b, d"), ([0.5, 0.5, 0.5, 0.5], "a, b, c, d")])
def test_suspects_are_the_rows_whose_loss_is_not_finite_else_all(losses, wanted):
    made = StepStatistics(CPU, True, 1)
    for ids, loss in ((["a", "b"], losses[:2]), (["c", "d"], losses[2:])):
        made.add(MicroBatch(ids, {}, 6, 0, 1.0), torch.tensor([A, B]), torch.zeros(2, 1, 2), torch.tensor(loss))
    assert made.suspects() == wanted


STEP = {"loss": 0.5, "accuracy": 0.75, "padding": 0.0, "learning_rate": 1e-3, "gradient_norm": 1.0, "seconds": 1.0,
        "tokens_per_second": 10.0, "peak_memory": 0}
METRICS = evaluation(FOUR)
NUMBERS = {name: value for name, value in METRICS["overall"].items() if isinstance(value, (int, float))}


def records(path: Path) -> list:
    """Those of a .wandb file: after 7 bytes a log of LevelDB's kind, whose blocks of 32 KiB hold parts of records, each
    with 7 bytes before it (checksum, length, kind: 1 a whole one, 2 its beginning, 3 its middle, 4 its end)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if at + 7 + length > len(data):  # not written whole yet
            break
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(part))
            part = b""
    return found


def wandb_files(run: Path) -> list[Path]:
    """In the order of their starts, when all are whole: a busy machine writes them after `wandb.finish` returns."""
    latest = time.monotonic() + 60
    while True:
        files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
        if all(any(record.HasField("exit") for record in records(path)) for path in files):
            return files
        assert time.monotonic() < latest
        time.sleep(0.1)


def history(path: Path) -> list[dict]:
    return [{".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in records(path) if record.HasField("history")]


def models(path: Path) -> list:
    """Artifacts of the type model."""
    return [record.artifact for record in records(path) if record.HasField("artifact")
            and record.artifact.type == "model"]


def axis(rows: list[dict], phase: str) -> list[int]:
    return [row["step"] for row in rows if any(name.startswith(f"{phase}/") for name in row)]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def started(run: Path, start_step: int) -> Tracker:
    tracker = Tracker(run, "a-project", {"seed": 3, "ds_config": {"train_batch_size": 64}})
    tracker.start(9, start_step)
    return tracker


def test_curves_tables_config_and_export_are_in_wandbs_file(offline):
    tracker = started(offline, 0)
    tracker.step(STEP | {"step": 1}, show=False)
    tracker.evaluation(1, METRICS)
    (offline / "export").mkdir()
    (offline / "export/weights").write_bytes(b"123")
    tracker.export(offline / "export", 1, METRICS["overall"])
    tracker.close()
    (file,) = wandb_files(offline)
    (run,) = [record.run for record in records(file) if record.HasField("run")]
    assert (run.project, run.display_name, run.run_id) == ("a-project", "run", (offline / "wandb_id").read_text())
    config = {entry.key: json.loads(entry.value_json) for entry in run.config.update}
    assert (config["seed"], config["ds_config"]) == (3, {"train_batch_size": 64})
    train, evaluated = history(file)
    assert {f"train/{name}": value for name, value in STEP.items()}.items() <= train.items()
    assert evaluated["eval/accuracy"] == 0.75
    assert {f"eval/{name}": value for name, value in NUMBERS.items()}.items() <= evaluated.items()
    assert evaluated["eval/shortcuts/longer"] == METRICS["overall"]["shortcuts"]["longer"]["accuracy"]
    assert evaluated["eval/by_language._type"] == "table-file"
    table = json.loads((file.parent / "files" / evaluated["eval/by_language.path"]).read_text())
    assert table["columns"] == ["language", "n", "accuracy", "low", "high", "log_loss"]
    (row,) = table["data"]
    assert row[:3] == ["en", 4, 0.75] and row[5] == METRICS["overall"]["log_loss"]
    summary = {".".join(item.nested_key) for record in records(file)
               if record.HasField("summary") for item in record.summary.update}
    assert {"train/loss", "eval/accuracy", "eval/by_language._type"} <= summary
    (artifact,) = models(file)
    assert artifact.name == f"export-{run.run_id}"
    assert {entry.path for entry in artifact.manifest.contents} == {"weights"}
    assert json.loads(artifact.metadata) == {"step": 1, **NUMBERS}


def test_perplexities_by_language_are_a_table_of_wandb(offline):
    tracker = started(offline, 0)
    part = {"rows": 2, "tokens": 9, "loss": 800.0, "perplexity": math.inf}
    tracker.perplexity(1, {"overall": part, "by_language": {"de": part}})
    tracker.close()
    (file,) = wandb_files(offline)
    (evaluated,) = history(file)
    table = json.loads((file.parent / "files" / evaluated["eval/by_language.path"]).read_text())
    assert table["columns"] == ["language", "rows", "tokens", "loss", "perplexity"]
    assert table["data"] == [["de", 2, 9, 800.0, None]]


def test_a_plot_that_fails_ends_wandb_and_not_the_run(offline, monkeypatch, capsys):
    tracker = started(offline, 0)
    of_wandb = tracker.wandb
    monkeypatch.setattr("pm.tracking.plots.plots", lambda metrics: {}["no such plot"])
    tracker.evaluation(1, METRICS)
    of_wandb.finish()  # else the next test would get this run
    assert tracker.wandb is None
    assert "wandb has stopped, the run goes on without it" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in (offline / "metrics.jsonl").read_text().splitlines()] == [1]


def test_a_resumed_run_is_one_run_with_each_step_once(offline):
    """The first attempt is cut off in an evaluation, the second one after it has gone back twice."""
    def train(start_step: int, steps: range, evaluations: tuple[int, ...]) -> None:
        tracker = started(offline, start_step)
        for step in steps:
            tracker.step(STEP | {"step": step}, show=False)
            if step in evaluations:
                tracker.evaluation(step, METRICS)
        tracker.close()

    train(0, range(1, 5), (2,))
    train(2, range(3, 4), ())
    train(2, range(3, 7), (4, 6))
    lines = [json.loads(line) for line in (offline / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines if row["phase"] == "train"] == [1, 2, 3, 4, 5, 6]
    files = wandb_files(offline)
    assert len({path.name for path in files}) == 1
    rows = [row for path in files for row in history(path)]
    assert axis(rows, "train") == [1, 2, 3, 4, 5, 6]
    assert axis(rows, "eval") == [2, 4, 6]
    numbers = [row["_step"] for row in rows]
    assert numbers == sorted(set(numbers))  # wandb ignores one that does not rise
    for path in files:
        metrics = [record.metric for record in records(path) if record.HasField("metric")]
        assert ("*", "step") in [(metric.glob_name, metric.step_metric) for metric in metrics]


def test_training_outlives_wandb(offline):
    """In a process of its own, which has a wandb of its own to lose."""
    code = f"""
import psutil, time
from pathlib import Path
from pm.tracking import Tracker
tracker = Tracker(Path({str(offline)!r}), "a-project", {{}})
tracker.start(9, 0)
service, = [process for process in psutil.Process().children(recursive=True) if process.name() == "wandb-core"]
service.kill()
service.wait(5)
for step in range(1, 101):
    tracker.step({STEP!r} | {{"step": step}}, show=False)
    time.sleep(0 if tracker.wandb is None else 0.1)  # wandb may take a moment to see that it has lost its service
tracker.export(Path({str(offline)!r}), 3, {{}})
tracker.close()
print("ended")
"""
    alone = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    result = subprocess.run([sys.executable, "-c", code], env=alone | {"PYTHONPATH": str(ROOT)}, text=True,
                            capture_output=True, timeout=60, check=True)
    told, ended = result.stdout.splitlines()
    assert told.startswith("wandb has stopped, the run goes on without it: ") and ended == "ended"
    assert len((offline / "metrics.jsonl").read_text().splitlines()) == 100


@pytest.mark.parametrize(("key", "told"), [("", "there is no login"), ("short", "--wandb cannot start: .*40")])
def test_without_a_login_there_is_an_error_and_no_question(tmp_path, key, told):
    """In a process of its own, since wandb keeps its settings."""
    code = f"from pathlib import Path; from pm.tracking import Tracker; Tracker(Path({str(tmp_path)!r}), 'p', {{}})"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment = clean | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)} | ({"WANDB_API_KEY": key} if key else {})
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True,
                            timeout=60, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{UserError.__module__}.{UserError.__name__}: --wandb") and re.search(told, last)


def test_without_wandb_it_is_not_imported(tmp_path):
    code = (f"import sys; from pathlib import Path; from pm.tracking import Tracker; "
            f"tracker = Tracker(Path({str(tmp_path)!r}), '', {{}}); tracker.start(1, 0); "
            f"tracker.export(Path('nowhere'), 1, {{}}); tracker.close(); print('wandb' in sys.modules)")
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
                            capture_output=True, check=True)
    assert result.stdout == "False\n"


@pytest.mark.slow
def test_a_run_of_training_resumed_for_its_last_steps_and_then_for_its_export(tmp_path):
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_DATA_DIR": str(tmp_path)}
    flags = ("--cache_dir", str(tmp_path / "cache"), "--max_steps", "4", "--eval_every", "2", "--keep", "9",
             "--model", "small-random", "--vocab_size", "500", "--max_length", "96", "--output", str(tmp_path / "run"))

    def train(*more: str) -> None:
        subprocess.run([sys.executable, "train.py", "--wandb", *more], cwd=ROOT, env=environment, check=True,
                       capture_output=True)

    run = tmp_path / "run"
    train(*flags)
    (run / "checkpoints/step_000004/manifest.json").unlink()
    train("--resume", str(run))
    train("--resume", str(run))
    files = wandb_files(run)
    assert [path.name for path in files] == [f"run-{(run / 'wandb_id').read_text()}.wandb"] * 3
    rows = [row for path in files for row in history(path)]
    assert (axis(rows, "train"), axis(rows, "eval")) == ([1, 2, 3, 4], [2, 4])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [
        row["loss"] for row in lines if row["phase"] == "train"]
    exported = {str(path.relative_to(run / "export")) for path in (run / "export").rglob("*") if path.is_file()}
    for path in files:
        (artifact,) = models(path)
        assert {entry.path for entry in artifact.manifest.contents} == exported
        assert json.loads(artifact.metadata)["step"] == 4
