"""Evaluates an exported model: python eval.py [--model RUN_OR_EXPORT] [--data SOURCE...]

Without --data it is the test split of the run. Both orders of every row are scored.
"""

import argparse
import json
import sys
from pathlib import Path

from datasets import Dataset
from tqdm import tqdm

from pm import report
from pm.config import Config, fail, load_config, newest_run
from pm.data.example import text_hash
from pm.data.forms import FORMS
from pm.data.prepare import check_overlap, describe, encode, read
from pm.data.sources import Reading
from pm.data.targets import target_matrix, with_targets
from pm.errors import UserError, run_main
from pm.metrics import evaluation
from pm.predict import PreferenceModel, find_export
from pm.run import environment, load_data
from pm.tracking import quiet_libraries


def main(argv: list[str]) -> None:
    quiet_libraries()
    arguments = _parse(argv)
    name = arguments.model or str(newest_run("export"))
    export = find_export(name)
    model = PreferenceModel.from_pretrained(export)
    run = export.parent if (export.parent / "config.json").is_file() else None

    kept = Path("evaluation" if not arguments.data else f"evaluation-{text_hash(*arguments.data)[:8]}")
    output = Path(arguments.output) if arguments.output else (run / kept if run else kept)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from None
    rows = _rows(arguments, model, run)
    predictions = model.score(rows, arguments.tokens_per_micro_batch,
                              lambda items: tqdm(items, desc="score", unit="batch", disable=None, leave=False))
    metrics = evaluation(predictions)

    with (output / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for row in predictions:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    about = {"model": name, "checkpoint": model.settings["checkpoint"], "data": arguments.data or "run's test split"}
    metrics = {"about": about | environment(), **metrics}
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
    print(f"\n{report.table(metrics)}\n\nwrote {output / 'predictions.jsonl'} and metrics.json")


def _rows(arguments: argparse.Namespace, model: PreferenceModel, run: Path | None) -> Dataset:
    """The encoded rows to evaluate on, which are never rows of the training split."""
    if not arguments.data:
        if run is None:
            raise UserError(f"--model {arguments.model} is not in its run's folder; give --data")
        data = load_data(load_config(run), run)
        if not len(data.test):
            raise UserError(f"{run} has no test split; give --data")
        print(f"model: {run}\n{data.summary}")
        return data.test
    reading = Reading(model.task.name, arguments.format, arguments.margin_scale, arguments.detect_languages,
                      arguments.max_bad_fraction)
    source = read(arguments.data, reading, arguments.cache_dir)
    if run is None:
        print("warning: the model's run is not known, so its training split cannot be compared with --data",
              file=sys.stderr)
    elif not arguments.allow_overlap:
        check_overlap(load_data(load_config(run), run).train_rows, source.rows)
    if source.report.rejected:
        print(f"--data: {source.report.describe()}")
    encoded = encode(source.rows, source.key, model.encoder, arguments.cache_dir)
    encoded = with_targets(encoded, target_matrix(encoded, model.task.labels))
    print(f"model: {run or arguments.model}\n{describe(' '.join(arguments.data), source.rows, encoded)}")
    return encoded


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eval.py", allow_abbrev=False, description="Evaluates a preference model.")
    parser.add_argument("--model", help="a run, an export, or a hub id of one [the newest run]")
    parser.add_argument("--data", nargs="+", metavar="SOURCE", help="as for train.py [the run's test split]")
    parser.add_argument("--allow_overlap", action="store_true", help="evaluate rows of the training split as well")
    parser.add_argument("--output", help="folder for predictions.jsonl and metrics.json [RUN/evaluation, or "
                                           "RUN/evaluation-HASH with --data]")
    parser.add_argument("--format", choices=FORMS, help="as for train.py")
    parser.add_argument("--detect_languages", action="store_true", help="as for train.py")
    for name, kind in (("tokens_per_micro_batch", int), ("max_bad_fraction", float), ("margin_scale", float),
                       ("cache_dir", str)):
        default = getattr(Config, name)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"as for train.py [{default}]")
    parser.error = fail
    arguments = parser.parse_args(argv)
    if arguments.tokens_per_micro_batch < 1:
        raise UserError(f"--tokens_per_micro_batch {arguments.tokens_per_micro_batch}: must be at least 1")
    return arguments


if __name__ == "__main__":
    run_main(main)
