"""Writes and publishes an export of a run: python -m pm.export [RUN] [--merged] [--push_to_hub REPO]

`--init BASE` writes the untrained base instead: the backbone with a new score head.
"""

import argparse
from pathlib import Path

import torch

from pm import publish
from pm.checkpoint import Broken, Checkpoint, best, load, newest
from pm.config import fail, load_config, newest_run
from pm.errors import UserError, run_main
from pm.save import ROWS, Form, export, init
from pm.tracking import quiet_libraries

DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}


def main(argv: list[str]) -> None:
    quiet_libraries()
    arguments = _parse(argv)
    licence, dtype = arguments.license, DTYPES[arguments.dtype] if arguments.dtype else None
    repo = publish.check_login(arguments.push_to_hub) if arguments.push_to_hub else ""
    if arguments.init:
        output = arguments.output
        init(arguments.init, output, arguments.labels or ["a", "b"], dtype, licence, repo)
        print(f"wrote {output}, untrained; train it with: deepspeed train.py --model {output}")
        message = f"Untrained base of {arguments.init}"
    else:
        run = Path(arguments.run) if arguments.run else newest_run("checkpoints/latest")
        config = load_config(run)
        if repo and config.tune == "lora" and not (arguments.merged or config.own_base or
                                                   publish.hub_id(config.model)):
            raise UserError(f"--push_to_hub {repo}: nobody else has the adapter's base, the folder {config.model}; "
                            "add --merged")
        checkpoint = _checkpoint(run, arguments.checkpoint)
        output = arguments.output or run / ("merged" if arguments.merged else "export")
        found = export(run, checkpoint, output, form=Form(arguments.merged, dtype, arguments.rows, licence, repo))
        if "drift" in found:
            print(_drift_line(found["drift"]))
        print(f"wrote {output} from {checkpoint.path.name}; evaluate it with: python eval.py --model {output}")
        message = f"{checkpoint.path.name} of {run.resolve().name}"
    if repo:
        print(f"pushed to {publish.push(output, repo, arguments.private, message)}")


def _drift_line(found: dict) -> str:
    return (f"against the model as it was trained, on {found['rows']:,} rows of {found['of']}: logits differ by "
            f"{found['mean']:.2g} on average, {found['largest']:.2g} at most; {found['flipped']:,} verdicts "
            f"({found['flipped'] / found['rows']:.2%}) change")


def _checkpoint(run: Path, name: str | None) -> Checkpoint:
    if name == "best":
        found = best(run)
        if not found:
            raise UserError(f"{run} has no best checkpoint: it was not evaluated yet")
        name, _ = found
    try:
        return load(run / "checkpoints" / name) if name else newest(run)
    except Broken as error:
        raise UserError(f"checkpoint {name} of {run} cannot be read: {error}") from None


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pm.export", allow_abbrev=False,
                                     description="Writes and publishes an export of a run.")
    parser.add_argument("run", nargs="?", help="folder of the run [the newest one]")
    parser.add_argument("--checkpoint", help="its name, or best [the newest one]")
    parser.add_argument("--output", type=Path, help="folder of the export [RUN/export, or RUN/merged]")
    parser.add_argument("--merged", action="store_true", help="a whole model, LoRA added to its weights, and not an "
                                                              "adapter")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights of a whole model [the run's; with --init the "
                                                        "base's]")
    parser.add_argument("--rows", type=int, default=ROWS, help="on how many of the test split, or of the embedded "
                        "sample, a whole model is compared with what was trained [%(default)s]")
    parser.add_argument("--init", metavar="BASE", help="write the untrained base instead: a Cohere 2 (hub id or local "
                                                       "folder) with a new score head")
    parser.add_argument("--labels", nargs="+", help="classes of the new head [a b]")
    parser.add_argument("--push_to_hub", metavar="REPO", help="upload the export to this repository of the Hub")
    parser.add_argument("--private", action="store_true", help="make that repository a private one")
    parser.add_argument("--license", help="of the model, as the Hub names it [the base's]")
    parser.error = fail
    arguments = parser.parse_args(argv)
    if arguments.private and not arguments.push_to_hub:
        raise UserError("--private is of --push_to_hub")
    if arguments.rows < 1:
        raise UserError(f"--rows {arguments.rows}: must be at least 1")
    labels = arguments.labels
    if not arguments.init and labels:
        raise UserError("--labels are of --init; a run has its own")
    if arguments.init and (arguments.run or arguments.checkpoint or arguments.merged):
        raise UserError(f"--init {arguments.init} writes no run: take RUN, --checkpoint and --merged out")
    if arguments.init and not arguments.output:
        raise UserError(f"--init {arguments.init} needs --output, the folder to be written")
    if labels and len(set(labels)) < max(2, len(labels)):
        raise UserError(f"--labels {' '.join(labels)}: at least two different ones are needed")
    return arguments


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_main(main)
