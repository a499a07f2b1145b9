"""Evaluates an exported model: python eval.py [--model RUN_OR_EXPORT] [--data SOURCE...]

Without --data it is the test split of the run. Both orders of every row are scored, and everything that is reported
follows from predictions.jsonl. `deepspeed eval.py` shares the work among ranks; the numbers are the same.
"""

import argparse
import json
import math
from pathlib import Path

from tqdm import tqdm

from pm import benchmarks, distributed, plots, report, shortcuts
from pm.config import Config, fail, load_config
from pm.data.example import content_hash, text_hash
from pm.data.forms import FORMS
from pm.data.prepare import check_overlap, describe, encode, read
from pm.data.sources import Reading, first_row
from pm.data.targets import target_matrix, with_targets
from pm.errors import UserError, run_main
from pm.metrics import DIMENSIONS, compares, difference, evaluation, ranks, surest_mistakes
from pm.predict import PreferenceModel, find_export, newest_export, read_predictions
from pm.ranking import ranking_rows
from pm.run import Data, Split, environment, fitted_shortcuts, load_data
from pm.shortcuts import response_only, with_shortcuts
from pm.tracking import quiet_libraries, read_history

MISTAKES = 24


def main(argv: list[str]) -> None:
    quiet_libraries()
    arguments = _parse(argv)
    device = distributed.start()
    others = read_predictions(arguments.against) if arguments.against else None
    benchmark = _benchmark(arguments)

    # 1. Predictions: read, or made by a model
    if arguments.predictions:
        predictions, rows, run = read_predictions(arguments.predictions), None, None
        about = {"predictions": str(arguments.predictions), **_about_of(arguments.predictions)}
        folder = arguments.predictions.resolve().parent
        output = arguments.output or folder.with_name(f"{folder.name}-again")
        if benchmark and not compares(predictions):
            raise UserError(f"--benchmark {arguments.benchmark}: {arguments.predictions} compares no responses")
    else:
        name = arguments.model or newest_export()
        export = find_export(name)
        run = export.parent if (export.parent / "config.json").is_file() else None
        output = arguments.output or _output(arguments, export, run)
        model = PreferenceModel.from_pretrained(export, device, arguments.packing)
        if benchmark and not model.task.compares:
            raise UserError(f"--benchmark {arguments.benchmark}: {name} classifies texts, it compares no responses")
        data = distributed.main_first(lambda: _data(arguments, benchmark, run)) if run else None
        rows = distributed.main_first(lambda: _rows(arguments, benchmark, model, data, run))
        predictions = _score(arguments, model, rows, data)
        about = {"model": name, "checkpoint": model.settings.get("checkpoint"),
                 "data": (benchmark.sources if benchmark else arguments.data) or "the run's test split",
                 "rows that temperatures were fitted on": model.calibration.rows, **environment()}

    # 2. Everything else follows from them
    def finish() -> tuple[dict, list[str]]:
        folder = _folder(output)
        (folder / "rankings.jsonl").unlink(missing_ok=True)
        if rows:
            _dump_lines(output / "predictions.jsonl", predictions)
        counted = benchmarks.evaluated(benchmark.name, predictions) if benchmark else predictions
        metrics = {"about": about, **evaluation(counted, arguments.by)}
        if others:
            metrics["difference"] = _difference(counted, others, arguments.against)
        written = []
        if benchmark:
            if "ranking" in metrics:
                metrics["ranking"] = ranks(predictions)  # also by the pairs that nobody labelled
            metrics["benchmark"] = benchmarks.scores(benchmark.name, predictions)
            written.append(f"{benchmark.name}.json")
            _dump(folder / written[0], benchmarks.official(benchmark.name, metrics["benchmark"],
                                                           str(about.get("model", ""))))
        if metrics.get("ranking"):
            written.append("rankings.jsonl")
            _dump_lines(folder / written[-1], ranking_rows(predictions))
        return metrics, _write_report(folder, counted, metrics, rows, run) + written

    metrics, written = distributed.on_main(finish)
    distributed.say(f"\n{report.table(metrics)}\n\nwrote {output / 'report'}: {', '.join(written)}")


def _about_of(predictions: Path) -> dict:
    """What the report beside them says of where they come from; nothing where there is none."""
    try:
        return json.loads((predictions.parent / "report" / "metrics.json").read_text("utf-8"))["about"]
    except (OSError, ValueError, KeyError):
        return {}


def _output(arguments: argparse.Namespace, export: Path, run: Path | None) -> Path:
    kept = "evaluation" if export.name == "export" else f"evaluation-{export.name}"
    if arguments.benchmark or arguments.data:
        named = arguments.benchmark if arguments.benchmark in benchmarks.ON_THE_HUB else None
        kept += f"-{named or text_hash(arguments.benchmark or '', *(arguments.data or []))[:8]}"
    return run / kept if run else Path(kept)


def _benchmark(arguments: argparse.Namespace) -> benchmarks.Benchmark | None:
    name = arguments.benchmark
    if not name:
        return None
    known = name in benchmarks.ON_THE_HUB
    return benchmarks.find(name, arguments.data, None if known else distributed.on_main(lambda: first_row(name)))


def _data(arguments: argparse.Namespace, benchmark: benchmarks.Benchmark | None, run: Path) -> Data | None:
    """The run's data. Where other rows are evaluated, and may overlap with it, it need not be there any more."""
    try:
        return load_data(load_config(run), run)
    except UserError as error:
        if not (arguments.allow_overlap and (arguments.data or benchmark)):
            raise
        distributed.say(f"warning: without the shortcuts that are fitted on the training split: {error}")
        return None


def _rows(arguments: argparse.Namespace, benchmark: benchmarks.Benchmark | None, model: PreferenceModel,
          data: Data | None, run: Path | None) -> Split:
    """The rows to evaluate on, which are never rows of the training or the calibration split."""
    sources = benchmark.sources if benchmark else arguments.data
    if not sources:
        if data is None:
            raise UserError(f"--model {arguments.model} is not in its run's folder; give --data")
        if not len(data.test.encoded):
            raise UserError(f"{run} has no test split; give --data")
        distributed.say(f"model: {run}\n{data.summary}")
        return data.test
    reading = Reading(model.task.name, benchmark.form if benchmark else arguments.format, arguments.margin_scale,
                      arguments.detect_languages, arguments.max_bad_fraction)
    source = read(sources, reading, arguments.cache_dir)
    if data is None:
        distributed.say("warning: the model's run is not known, so its training split cannot be compared with the rows")
    elif not arguments.allow_overlap:
        check_overlap(data.seen_rows, source.rows)
    if source.report.rejected:
        distributed.say(f"--data: {source.report.describe()}")
    encoded = encode(source.rows, source.key, model.encoder, arguments.cache_dir)
    encoded = with_targets(encoded, target_matrix(encoded, model.task.labels))
    distributed.say(f"model: {run or arguments.model}\n{describe(' '.join(sources), source.rows, encoded)}")
    return Split(source.rows, encoded)


def _score(arguments: argparse.Namespace, model: PreferenceModel, rows: Split, data: Data | None) -> list[dict]:
    """Predictions with the log-odds of the shortcuts that are more than a count of signs."""
    def progress(name: str):
        return lambda items: tqdm(items, desc=name, unit="batch", leave=False,
                                  disable=None if distributed.is_main() else True)

    budget = arguments.tokens_per_micro_batch
    predictions = model.score(rows.encoded, budget, shared=True, progress=progress("score"))
    broken = [row["id"] for row in predictions if not all(map(math.isfinite, row["probability"].values()))]
    if broken:
        raise UserError(f"the model's logits are not finite for {len(broken):,} of {len(predictions):,} rows, such as "
                        f"{broken[0]}")
    if not model.task.compares:
        return predictions
    if data:
        predictions = with_shortcuts(predictions, distributed.on_main(
            lambda: fitted_shortcuts(data, rows.rows, arguments.cache_dir)))
    if arguments.no_response_only:
        return predictions
    blank = model.score(rows.encoded, budget, shared=True, progress=progress("without prompts"), blank_prompts=True)
    return with_shortcuts(predictions, response_only(blank))


def _difference(predictions: list[dict], others: list[dict], path: Path) -> dict:
    try:
        return {"other": str(path), **difference(predictions, others)}
    except ValueError as error:
        raise UserError(f"--against {path}: {error}") from None


def _folder(output: Path) -> Path:
    folder = output / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from None
    return folder


def _write_report(folder: Path, predictions: list[dict], metrics: dict, rows: Split | None,
                  run: Path | None) -> list[str]:
    """Returns the names of what it writes."""
    _dump(folder / "metrics.json", metrics)
    missing = [what for what, there in (("plots", plots.available()), ("the n-gram shortcuts", shortcuts.available()))
               if not there]
    if missing:
        distributed.say(f"without {' and '.join(missing)}: they need pip install 'preference-model[report]'")
    drawn = plots.plots(metrics, read_history(run) if run else ())
    texts = _texts(surest_mistakes(predictions, MISTAKES), rows) if rows and "orders" in metrics else []
    title = f"Evaluation of {metrics['about'].get('model') or folder.parent}"
    (folder / "report.md").write_text(report.to_markdown(title, report.blocks(metrics, drawn)), "utf-8")
    (folder / "report.html").write_text(report.to_html(title, report.blocks(metrics, drawn, texts)), "utf-8")
    return ["report.html", "report.md", "metrics.json"]


def _texts(mistakes: list[dict], rows: Split) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """What `report.Block` shows of rows: heading, language and the three texts."""
    wanted = {row["content"] for row in mistakes}
    found = {}
    for batch in rows.rows.iter(1000):
        for prompt, a, b in zip(batch["prompt"], batch["response_a"], batch["response_b"], strict=True):
            content = content_hash(prompt, a, b)
            if content in wanted:
                found[content] = ("\n".join(turn["content"] for turn in prompt), a, b)
    texts = []
    for row in mistakes:
        prompt, a, b = found[row["content"]]
        better, worse = (a, b) if row["target"]["a"] > row["target"]["b"] else (b, a)
        sure = max(row["probability"]["a"], row["probability"]["b"])
        texts.append((f"{row['language']}  {row['id']}  {row['kind']}  p {sure:.2f}", row["language"],
                      [("prompt", prompt), ("better, by the label", better), ("preferred by the model", worse)]))
    return texts


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _dump_lines(path: Path, rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eval.py", allow_abbrev=False, description="Evaluates a preference model.")
    parser.add_argument("--model", help="a run, an export, or a hub id of one [the newest run]")
    parser.add_argument("--data", nargs="+", metavar="SOURCE", help="as for train.py [the run's test split]")
    parser.add_argument("--benchmark", metavar="NAME", help=f"{', '.join(benchmarks.ON_THE_HUB)}, from the Hub or from "
                                                            "--data; or a source with the columns of one")
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="report on a predictions.jsonl, without model")
    parser.add_argument("--against", type=Path, metavar="FILE", help="predictions.jsonl of another model, to be "
                                                                     "compared on the same rows")
    parser.add_argument("--by", nargs="+", type=lambda text: text.split(","), default=[["language", "kind"]],
                        metavar="A,B", help=f"dimensions to be crossed, of {', '.join(DIMENSIONS)} [language,kind]")
    parser.add_argument("--allow_overlap", action="store_true", help="evaluate rows of the training split as well")
    parser.add_argument("--no_response_only", action="store_true", help="do not score again with blank prompts")
    parser.add_argument("--output", type=Path, help="folder for predictions.jsonl and report/ [RUN/evaluation, or "
                                                    "RUN/evaluation-... with --data, --benchmark or another "
                                                    "export; with --predictions their folder's name and -again]")
    parser.add_argument("--format", choices=FORMS, help="as for train.py")
    parser.add_argument("--detect_languages", action="store_true", help="as for train.py")
    parser.add_argument("--tokens_per_micro_batch", type=int,
                        help="tokens of one forward pass [as in the run: then the last digits are the same]")
    parser.add_argument("--packing", action=argparse.BooleanOptionalAction, help="as for train.py [as in the run]")
    for name, kind in (("max_bad_fraction", float), ("margin_scale", float), ("cache_dir", str)):
        default = getattr(Config, name)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"as for train.py [{default}]")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher appends it
    parser.error = fail
    arguments = parser.parse_args(argv)
    if arguments.tokens_per_micro_batch is not None and arguments.tokens_per_micro_batch < 1:
        raise UserError(f"--tokens_per_micro_batch {arguments.tokens_per_micro_batch}: must be at least 1")
    if arguments.benchmark and arguments.format:
        raise UserError(f"--benchmark {arguments.benchmark} has a form of its own; take --format out")
    if arguments.predictions and (arguments.model or arguments.data):
        raise UserError("--predictions are of a model and of data: --model and --data say another thing")
    unknown = [name for names in arguments.by for name in names if name not in DIMENSIONS]
    if unknown:
        raise UserError(f"--by {unknown[0]}: must be of {', '.join(DIMENSIONS)}")
    return arguments


if __name__ == "__main__":
    run_main(main, distributed.is_first_here, distributed.leave)
    distributed.end()
