"""Held-out accuracy against training time: python tests/bench/learning.py SOURCE --output FOLDER [--minutes M] [...]

Each of `RUNS` trains on SOURCE for about as long, one after the other, with as many steps as fit by the time of a few,
or as another seed has made. What is there already is not made again. Minutes are those of the steps, without start and
evaluations. Writes learning.json, a table (learning.md) and a plot (learning.svg) of all sources that were run into
FOLDER.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROBE = 12  # steps, of which the first ones are not timed
EVALUATIONS = 3
SETTINGS = {"train_batch_size": 32, "bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"},
            "zero_optimization": {"stage": 2}}
RUNS = {  # flags, peak learning rate at 32 pairs a step
    "random, all weights": (["--model", "small-random"], 1e-3),
    "random, LoRA and embeddings": (["--model", "small-random", "--tune", "lora"], 2e-3),
    "base, LoRA": (["--model", "base"], 2e-3),
    "base, all weights": (["--model", "base", "--tune", "full"], 1e-3),
    "base, LoRA, one order": (["--model", "base", "--orders", "random"], 2e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="a file; without one the table and the plot are made again")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cache_dir", default="~/.cache/pm")
    arguments, more = parser.parse_known_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    if arguments.source:
        for seed in arguments.seeds:
            for name in arguments.runs:
                train(output, arguments.source, name, seed, arguments.minutes, arguments.cache_dir, more)
    found = [json.loads(path.read_text("utf-8")) for path in sorted(output.glob("*/points.json"))]
    (output / "learning.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (output / "learning.md").write_text(table(found), "utf-8")
    (output / "learning.svg").write_text(plot(found), "utf-8")
    print(table(found))


def train(output: Path, source: str, name: str, seed: int, minutes: float, cache_dir: str, more: list[str]) -> None:
    run = output / f"{Path(source).stem}-{name.replace(', ', '-').replace(' ', '_')}-{seed}"
    if (run / "points.json").exists():
        return
    flags, rate = RUNS[name]
    settings = json.loads((ROOT / "ds_config.json").read_text("utf-8")) | SETTINGS
    settings["optimizer"]["params"]["lr"] = rate
    ds_config = output / f"ds_{rate:g}.json"
    ds_config.write_text(json.dumps(settings), "utf-8")

    def go(folder: Path, *words: str) -> list[dict]:
        command = [sys.executable, "train.py", "--deepspeed_config", str(ds_config), "--data", source, "--output",
                   str(folder), "--cache_dir", cache_dir, "--seed", str(seed), "--tokens_per_micro_batch", "4096",
                   *flags, *more, *words]
        with (output / f"{folder.name}.log").open("w") as log:
            subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=subprocess.STDOUT)
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]

    other = next(output.glob(f"{run.name.removesuffix(str(seed))}[0-9]*/points.json"), None)
    if other:
        steps = json.loads(other.read_text("utf-8"))["points"][-1]["step"]
    else:
        lines = go(run.with_name(f"{run.name}-probe"), "--max_steps", str(PROBE), "--eval_every", "0",
                   "--test_fraction", "0", "--calibration_fraction", "0")
        times = [line["seconds"] for line in lines if line["phase"] == "train"][PROBE // 3 :]
        steps = max(EVALUATIONS, int(60 * minutes / statistics.mean(times)))
    lines = go(run, "--max_steps", str(steps), "--eval_every", str(-(-steps // EVALUATIONS)), "--epochs", "1000")
    seconds, points = 0.0, []
    for line in lines:
        if line["phase"] == "train":
            seconds += line["seconds"]
        else:
            points.append({"minutes": seconds / 60, "step": line["step"], "n": line["n"],
                           **{key: line[key] for key in ("accuracy", "accuracy_interval", "log_loss", "flip_rate")},
                           "n_grams": line["shortcuts"].get("n_grams", {}).get("accuracy")})
    (run / "points.json").write_text(json.dumps({"source": Path(source).stem, "run": name, "seed": seed,
                                                 "points": points}), "utf-8")


def table(found: list[dict]) -> str:
    """The last point of each run, and what the seeds of a run have on average."""
    lines = ["| set | run | seed | minutes | steps | accuracy, 95 % interval | flips | log-loss | n-grams | n |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    accuracies = defaultdict(list)
    for one in found:
        last = one["points"][-1]
        low, high = last["accuracy_interval"]
        n_grams = "" if last["n_grams"] is None else f"{last['n_grams']:.3f}"
        lines.append(f"| {one['source']} | {one['run']} | {one['seed']} | {last['minutes']:.1f} | {last['step']:,} | "
                     f"{last['accuracy']:.3f} [{low:.3f}, {high:.3f}] | {last['flip_rate']:.3f} | "
                     f"{last['log_loss']:.3f} | {n_grams} | {last['n']:,} |")
        accuracies[one["source"], one["run"]].append(last["accuracy"])
    lines += ["", "| set | run | seeds | mean accuracy | lowest | highest |", "|---|---|---|---|---|---|"]
    for (source, run), values in accuracies.items():
        lines.append(f"| {source} | {run} | {len(values)} | {statistics.mean(values):.3f} | {min(values):.3f} | "
                     f"{max(values):.3f} |")
    return "\n".join(lines) + "\n"


def plot(found: list[dict]) -> str:
    import io

    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "0"
    from matplotlib import pyplot

    sources = defaultdict(list)
    for one in found:
        sources[one["source"]].append(one)
    figure, all_axes = pyplot.subplots(1, len(sources), figsize=(4.2 * len(sources), 4), squeeze=False,
                                       layout="constrained")
    for axes, (source, runs) in zip(all_axes[0], sources.items(), strict=True):
        for one in runs:
            points, color = one["points"], f"C{list(RUNS).index(one['run'])}"
            minutes = [point["minutes"] for point in points]
            axes.plot(minutes, [point["accuracy"] for point in points], "o-", color=color, markersize=3,
                      label=one["run"] if one["seed"] == min(other["seed"] for other in runs) else None)
            axes.fill_between(minutes, *zip(*(point["accuracy_interval"] for point in points), strict=True),
                              color=color, alpha=0.08)
        n_grams = runs[0]["points"][-1]["n_grams"]
        if n_grams is not None:
            axes.axhline(n_grams, color="0.4", linestyle="--", linewidth=1, label="n-grams")
        axes.set(title=source, xlabel="minutes of training", ylabel="held-out accuracy")
        axes.grid(alpha=0.3)
    figure.legend(*all_axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


if __name__ == "__main__":
    main()
