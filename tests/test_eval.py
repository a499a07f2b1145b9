"""eval.py from flags to files, with small random models and a few rows."""

import dataclasses
import html
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from safetensors.torch import load_file, save_file
from tiny import NAMES, THREE, TWO, export

from eval import main
from pm.config import Config
from pm.errors import run_main
from pm.task import CLASSIFICATION, PREFERENCE

ROOT = Path(__file__).parents[1]

ROWS = [{"id": f"r{number}", "prompt": f"Say {number}", "response_a": "the fox " * (number % 3 + 1),
         "response_b": "مرحبا <b>" if number % 2 else "dog", "winner": "ab"[number % 2],
         "language": ("en", "ar")[number % 2], "kind": f"k{number % 3}"} for number in range(6)]
TEXTS = [{"text": f"fox {number}", "label": NAMES[number % 3]} for number in range(6)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Exports by number of classes, and `texts`."""
    made = {2: (PREFERENCE, TWO), 3: (PREFERENCE, THREE), "texts": (CLASSIFICATION, NAMES)}
    return {name: export(tmp_path_factory.mktemp("export"), *task) for name, task in made.items()}


def jsonl(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def evaluate(folder, *flags) -> dict:
    """Runs `main` with the cache and, where none is given, the output in `folder`; returns metrics.json."""
    if "--output" not in flags:
        flags = (*flags, "--output", folder / "out")
    flags = (*flags, "--cache_dir", folder / "cache")
    main(list(map(str, flags)))
    return json.loads((Path(flags[flags.index("--output") + 1]) / "report/metrics.json").read_text("utf-8"))


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def evaluated(models, tmp_path_factory):
    """A folder where `out` is the evaluation of ROWS by the model of two classes, and `texts` that of TEXTS."""
    folder = tmp_path_factory.mktemp("evaluated")
    evaluate(folder, "--model", models[2], "--data", jsonl(folder / "rows.jsonl", ROWS))
    evaluate(folder, "--model", models["texts"], "--data", jsonl(folder / "texts.jsonl", TEXTS), "--output",
             folder / "texts")
    return folder


def numbers(folder) -> dict:
    """metrics.json of an evaluation without what it says about itself."""
    metrics = json.loads((folder / "report/metrics.json").read_text("utf-8"))
    return {name: value for name, value in metrics.items() if name != "about"}


def predictions(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


# A model and data


def test_an_evaluation_writes_predictions_and_a_report(evaluated):
    assert files(evaluated / "out") == {"predictions.jsonl", "report/metrics.json", "report/report.html",
                                        "report/report.md"}
    rows = predictions(evaluated / "out")
    assert [(row["id"], row["language"], row["kind"], row["source"]) for row in rows] == [
        (row["id"], row["language"], row["kind"], "rows.jsonl") for row in ROWS]
    assert [row["target"] for row in rows] == [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}] * 3
    assert all(set(row["shortcuts"]) == {"response_only"} for row in rows)


def test_the_metrics_are_those_of_the_rows(evaluated):
    metrics = json.loads((evaluated / "out/report/metrics.json").read_text("utf-8"))
    assert metrics["about"]["data"] == [str(evaluated / "rows.jsonl")]
    assert metrics["about"]["checkpoint"] == "step_000004" and "commit" in metrics["about"]
    assert metrics["overall"]["n"] == 6
    assert {language: part["n"] for language, part in metrics["by_language"].items()} == {"ar": 3, "en": 3}
    assert list(metrics["by_language,kind"]) == ["ar, k0", "ar, k1", "ar, k2", "en, k0", "en, k1", "en, k2"]
    right = [row["probability"]["a"] > row["probability"]["b"] for row in predictions(evaluated / "out")]
    assert metrics["overall"]["accuracy"] == sum(said == (row["winner"] == "a")
                                                 for said, row in zip(right, ROWS, strict=True)) / 6


def test_what_is_printed_ends_with_the_table_and_the_folder(models, tmp_path, capsys):
    source = jsonl(tmp_path / "rows.jsonl", ROWS)
    evaluate(tmp_path, "--model", models[2], "--data", source)
    printed, warned = capsys.readouterr()
    assert f"{source}: 6 rows, 6 groups; ar 3, en 3\n" in printed
    assert "\nall" in printed and "\nlanguage en" in printed and "this model without the prompt" in printed
    assert printed.endswith(f"\nwrote {tmp_path}/out/report: report.html, report.md, metrics.json\n")
    assert warned == ""


def test_the_page_shows_plots(evaluated):
    pytest.importorskip("matplotlib")
    page = (evaluated / "out/report/report.html").read_text("utf-8")
    assert page.count("<svg") == page.count("</svg>") == 5


def test_the_page_shows_the_texts_of_mistakes(models, tmp_path):
    """Each row stands there with either label, so that one of the two is a mistake."""
    other = [row | {"id": f"not {row['id']}", "winner": "ba"["ab".index(row["winner"])]} for row in ROWS]
    evaluate(tmp_path, "--model", models[2], "--data", jsonl(tmp_path / "rows.jsonl", [*ROWS, *other]))
    page = (tmp_path / "out/report/report.html").read_text("utf-8")
    wrong = [row for row in predictions(tmp_path / "out")
             if (row["probability"]["a"] > row["probability"]["b"]) != (row["target"]["a"] == 1)]
    assert len(wrong) == 6 == page.count("<section>")
    for row in wrong:
        sure = max(row["probability"].values())
        assert f"<h3>{row['language']}  {row['id']}  {row['kind']}  p {sure:.2f}</h3>" in page
        said, side = ROWS[int(row["id"][-1])], "ab" if row["target"]["a"] else "ba"
        parts = ("prompt", said["prompt"]), *zip(("better, by the label", "preferred by the model"), (
            html.escape(said[f"response_{name}"]) for name in side), strict=True)
        assert "".join(f"<dt>{label}<dd dir=auto lang='{row['language']}'>{text}" for label, text in parts) in page
    assert page.count(">مرحبا &lt;b&gt;<") == 3 and "<b>" not in page


def test_a_classification_is_evaluated(evaluated):
    metrics = numbers(evaluated / "texts")
    assert metrics["overall"]["n"] == 6 and "shortcuts" not in metrics["overall"]
    assert {name: part["n"] for name, part in metrics["by_class"].items()} == dict.fromkeys(NAMES, 2)
    assert all("shortcuts" not in row for row in predictions(evaluated / "texts"))
    assert "## Classes" in (evaluated / "texts/report/report.md").read_text("utf-8")


def test_three_classes_are_evaluated(models, tmp_path):
    source = jsonl(tmp_path / "rows.jsonl", [*ROWS, ROWS[0] | {"id": "t", "prompt": "Tie?", "winner": "tie"}])
    metrics = evaluate(tmp_path, "--model", models[3], "--data", source)
    assert (metrics["overall"]["n"], metrics["overall"]["n_ties"]) == (7, 1)
    assert metrics["overall"]["accuracy_with_ties"] is not None


def test_prompts_can_be_left_in(models, tmp_path):
    metrics = evaluate(tmp_path, "--model", models[2], "--data", jsonl(tmp_path / "rows.jsonl", ROWS),
                       "--no_response_only")
    assert list(metrics["overall"]["shortcuts"]) == ["longer", "more_markdown", "always_a"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_single_row_is_evaluated(models, tmp_path, number):
    source = jsonl(tmp_path / "rows.jsonl", ROWS[number : number + 1])
    overall = evaluate(tmp_path, "--model", models[2], "--data", source)["overall"]
    assert overall["n"] == 1 and overall["accuracy"] in (0.0, 1.0) and overall["accuracy_interval"] is None
    assert len(files(tmp_path / "out")) == 4


def test_a_single_text_is_evaluated(models, tmp_path):
    metrics = evaluate(tmp_path, "--model", models["texts"], "--data", jsonl(tmp_path / "texts.jsonl", TEXTS[:1]))
    assert metrics["overall"]["n"] == 1 and metrics["overall"]["accuracy_interval"] is None


@pytest.mark.parametrize("classes", [2, 3])
def test_rows_that_are_all_ties_are_evaluated(models, tmp_path, classes):
    source = jsonl(tmp_path / "rows.jsonl", [row | {"winner": "tie"} for row in ROWS])
    overall = evaluate(tmp_path, "--model", models[classes], "--data", source)["overall"]
    assert (overall["n"], overall["n_ties"], overall["accuracy"]) == (6, 6, None)
    assert overall["log_loss"] > 0
    assert len(files(tmp_path / "out")) == 4


def test_responses_to_one_prompt_are_ranked(models, tmp_path):
    rows = [{"id": f"r{number}", "prompt": "Say", "response_a": a, "response_b": b, "winner": "a"}
            for number, (a, b) in enumerate((("fox", "dog"), ("dog", "lazy"), ("fox", "lazy")))]
    metrics = evaluate(tmp_path, "--model", models[2], "--data", jsonl(tmp_path / "rows.jsonl", rows))
    assert (metrics["ranking"]["n_prompts"], metrics["ranking"]["n_responses"]) == (1, 3)
    ranked, = map(json.loads, (tmp_path / "out/report/rankings.jsonl").read_text("utf-8").splitlines())
    assert len(ranked["responses"]) == 3 and ranked["triples"] == 1


# Crossed dimensions


def test_dimensions_are_crossed_as_asked_for(evaluated, tmp_path):
    metrics = evaluate(tmp_path, "--predictions", evaluated / "out/predictions.jsonl", "--by", "language,kind,length",
                       "source,length_difference")
    assert {"by_language,kind,length", "by_source,length_difference"} < set(metrics)
    assert "by_language,kind" not in metrics
    assert {name: part["n"] for name, part in metrics["by_language,kind,length"].items()} == {
        f"{language}, k{kind}, 1 to 128": 1 for language in ("ar", "en") for kind in range(3)}
    assert all(name.startswith("rows.jsonl, better ") for name in metrics["by_source,length_difference"])
    assert (tmp_path / "out/report/report.html").read_text("utf-8").count("<details>") == 2
    assert "1 to 128" not in (tmp_path / "out/report/report.md").read_text("utf-8")


# Predictions without a model


@pytest.mark.parametrize("kind", ["out", "texts"])
def test_predictions_give_the_numbers_that_the_model_gave(evaluated, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # where there is no run
    path = Path(shutil.copy(evaluated / kind / "predictions.jsonl", tmp_path))
    main(["--predictions", str(path)])
    again = tmp_path.with_name(f"{tmp_path.name}-again")
    assert numbers(again) == numbers(evaluated / kind)
    assert json.loads((again / "report/metrics.json").read_text("utf-8"))["about"] == {"predictions": str(path)}
    assert path.read_bytes() == (evaluated / kind / "predictions.jsonl").read_bytes()
    assert files(again) == {"report/metrics.json", "report/report.html", "report/report.md"}


def test_a_report_without_a_model_says_what_the_one_beside_the_predictions_says(evaluated, tmp_path):
    path = evaluated / "out/predictions.jsonl"
    about = evaluate(tmp_path, "--predictions", path)["about"]
    beside = json.loads((evaluated / "out/report/metrics.json").read_text("utf-8"))["about"]
    assert about == {"predictions": str(path), **beside} and "commit" in about


# Two models


def test_two_models_are_compared_on_the_rows_of_both(evaluated, tmp_path):
    """The other one is right in the first four rows, and has one more of its own."""
    others = [row | {"logits_ab": list(row["target"].values()), "logits_ba": list(row["target"].values())}
              for row in predictions(evaluated / "out")[:4]]
    path = jsonl(tmp_path / "others.jsonl", [*others, others[0] | {"content": "alone"}])
    metrics = evaluate(tmp_path, "--predictions", evaluated / "out/predictions.jsonl", "--against", path)
    right = [row["probability"]["a"] > row["probability"]["b"] for row in predictions(evaluated / "out")[:4]]
    accuracy = sum(said == (row["winner"] == "a") for said, row in zip(right, ROWS, strict=False)) / 4
    found = metrics["difference"]
    assert (found["other"], found["n"], found["n_alone"], found["accuracy"]) == (path, 4, 2, accuracy - 1)
    page = (tmp_path / "out/report/report.md").read_text("utf-8")
    assert "## Against the other model\n\n|  | value | 95 % interval |\n|---|---:|---:|\n| n | 4 | - |\n" in page
    assert f"this model minus {path}." in page


def test_a_model_is_compared_with_predictions_while_it_is_evaluated(evaluated, models, tmp_path):
    metrics = evaluate(tmp_path, "--model", models[2], "--data", evaluated / "rows.jsonl", "--against",
                       evaluated / "out/predictions.jsonl")
    assert (metrics["difference"]["n"], metrics["difference"]["accuracy"]) == (6, 0.0)
    assert metrics["difference"]["log_loss"] == pytest.approx(0.0, abs=1e-6)


# Benchmarks

REWARDBENCH = [{"prompt": f"Say {number}", "chosen": "the lazy fox", "chosen_model": "m", "rejected": "dog " * number,
                "rejected_model": "n", "subset": kind, "id": number}
               for number, kind in enumerate(("alpacaeval-easy", "mt-bench-hard", "donotanswer", "math-prm"), 1)]
ABOUT = ["model", "model_type", "chat_template"]


def test_a_file_like_rewardbench_is_scored(models, tmp_path):
    source = jsonl(tmp_path / "filtered.jsonl", REWARDBENCH)
    metrics = evaluate(tmp_path, "--model", models[2], "--benchmark", source)
    found = metrics["benchmark"]
    assert found["name"] == "RewardBench" and len(found["missing"]) == 19
    assert list(found["scores"]) == ["Chat", "Chat Hard", "Safety", "Reasoning", "Score"]
    assert found["results"] == {kind: part["accuracy"] for kind, part in metrics["by_kind"].items()}
    assert metrics["about"]["data"] == [source]
    official, = json.loads((tmp_path / "out/report/rewardbench.json").read_text("utf-8"))
    assert list(official) == [*ABOUT, *found["results"]] and official["model"] == str(models[2])
    assert "\n## RewardBench\n" in (tmp_path / "out/report/report.md").read_text("utf-8")
    again = evaluate(tmp_path, "--predictions", tmp_path / "out/predictions.jsonl", "--benchmark", "rewardbench",
                     "--output", tmp_path / "again")
    assert again["benchmark"] == found
    named = evaluate(tmp_path, "--model", models[2], "--benchmark", "rewardbench", "--data", source, "--output",
                     tmp_path / "named")
    assert named["benchmark"] == found


def test_a_file_like_rewardbench_2_is_scored(models, tmp_path):
    rows = [{"id": identifier, "prompt": f"Say {identifier}", "chosen": right, "rejected": ["dog", "lazy", "1"],
             "num_correct": len(right), "num_incorrect": 3, "total_completions": len(right) + 3, "models": ["m"],
             "subset": kind, "additional_metadata": None}
            for identifier, right, kind in (("1", ["the fox"], "Math"), ("tied:2", ["fox", "fox 2"], "Ties"),
                                            ("ref:2", ["hello"], "Ties"))]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    metrics = evaluate(tmp_path, "--model", models[2], "--benchmark", tmp_path / "test.parquet")
    assert metrics["overall"]["n"] == 3 + 6 + 3  # the pairs that have a label
    assert len(predictions(tmp_path / "out")) == 6 + 10 + 6
    assert list(metrics["benchmark"]["scores"]) == ["Math", "Ties", "Score"]
    assert (metrics["ranking"]["n_prompts"], metrics["ranking"]["triples"]) == (3, 4 + 10 + 4)  # of all pairs
    official, = json.loads((tmp_path / "out/report/rewardbench2.json").read_text("utf-8"))
    assert list(official) == [*ABOUT, "Math", "Ties"]


def test_a_file_like_m_rewardbench_is_scored(models, tmp_path):
    source = jsonl(tmp_path / "rows.jsonl", [row | {"language": language, "id": 7} for row, language in
                                             zip(REWARDBENCH, ("arb_Arab", "zho_Hans", "zho_Hant", "deu_Latn"),
                                                 strict=True)])
    metrics = evaluate(tmp_path, "--model", models[2], "--benchmark", source)
    assert list(metrics["benchmark"]["scores"]) == ["ar", "de", "zh", "zh-hant", "Score"]
    official = json.loads((tmp_path / "out/report/m-rewardbench.json").read_text("utf-8"))
    assert [list(one) for one in official] == [
        [*ABOUT, "language", kind] for kind in ("alpacaeval-easy", "math-prm", "mt-bench-hard", "donotanswer")]


# A run


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    """The folder of a run that was trained on 36 rows, with 4 to test."""
    folder = tmp_path_factory.mktemp("run")
    tested = [ROWS[number] | {"id": f"t{number}", "prompt": f"Tell {number}"} for number in range(4)]
    trained = [ROWS[number % 6] | {"id": f"m{number}", "prompt": f"Ask {number}"} for number in range(36)]
    config = Config(data=[jsonl(folder / "trained.jsonl", trained)], test_data=[jsonl(folder / "tested.jsonl", tested)],
                    calibration_fraction=0.0, model=str(models[2]), tune="full", max_length=64,
                    cache_dir=str(folder / "cache"))
    shutil.copytree(models[2], folder / "export")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    jsonl(folder / "metrics.jsonl", [
        {"phase": "train", "step": 1, "loss": 0.7}, {"phase": "train", "step": 2, "loss": 0.6},
        {"phase": "eval", "step": 2, "log_loss": 0.6, "accuracy": 0.75, "accuracy_interval": [0.5, 1.0]}])
    return folder


def test_a_run_is_evaluated_on_its_test_split_with_the_shortcuts_of_its_training_split(run, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    main(["--model", str(run), "--cache_dir", str(tmp_path / "cache")])
    assert [row["id"] for row in predictions(run / "evaluation")] == ["t0", "t1", "t2", "t3"]
    metrics = json.loads((run / "evaluation/report/metrics.json").read_text("utf-8"))
    assert metrics["about"]["data"] == "the run's test split"
    assert list(metrics["overall"]["shortcuts"]) == ["longer", "more_markdown", "always_a", "n_grams", "prompt_only",
                                                    "response_only"]
    assert "Learning curve" in (run / "evaluation/report/report.html").read_text("utf-8")


def test_other_data_gets_a_folder_of_its_own(run, evaluated, tmp_path):
    flags = ["--model", str(run), "--cache_dir", str(tmp_path / "cache"), "--data"]
    main([*flags, str(evaluated / "rows.jsonl")])
    found = [folder for folder in run.glob("evaluation-*") if folder.is_dir()]
    assert len(found) == 1 and len(predictions(found[0])) == 6


def test_rows_of_the_training_split_are_evaluated_where_that_is_allowed(run, tmp_path):
    metrics = evaluate(tmp_path, "--model", run, "--data", run / "trained.jsonl", "--allow_overlap")
    assert metrics["overall"]["n"] == 36


def test_without_matplotlib_and_scikit_learn_there_is_a_report(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    metrics = evaluate(tmp_path, "--model", run)
    assert ("without plots and the n-gram shortcuts: they need pip install 'preference-model[report]'\n"
            in capsys.readouterr().out)
    assert list(metrics["overall"]["shortcuts"]) == ["longer", "more_markdown", "always_a", "response_only"]
    page = (tmp_path / "out/report/report.html").read_text("utf-8")
    assert "<svg" not in page and "<h2>Plots</h2>" not in page and "<h2>Overall</h2>" in page


# What is refused


def refused(monkeypatch, capsys, *flags) -> str:
    """The one line that a user sees, after "error: "."""
    monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        run_main(main)
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert printed.startswith("error: ") and printed.count("\n") == 1 and len(printed) < 1000
    return printed.removeprefix("error: ").removesuffix("\n")


@pytest.mark.parametrize(("flags", "words"), [
    (["--by", "tongue"], "--by tongue: must be of language, source, kind, length, length_difference"),
    (["--by", "kind", "language,tongue"], "--by tongue: must be of language, source, kind, length, length_difference"),
    (["--by", "language,,kind"], "--by : must be of language, source, kind, length, length_difference"),
    (["--predictions", "p.jsonl", "--model", "m"],
     "--predictions are of a model and of data: --model and --data say another thing"),
    (["--predictions", "p.jsonl", "--data", "d.jsonl"],
     "--predictions are of a model and of data: --model and --data say another thing"),
    (["--predictions", "p.jsonl"], "p.jsonl cannot be read: No such file or directory"),
    (["--predictions", "."], ". cannot be read: Is a directory"),
    (["--predictions"], "argument --predictions: expected one argument"),
    (["--tokens_per_micro_batch", "0"], "--tokens_per_micro_batch 0: must be at least 1"),
    (["--bye"], "unrecognized arguments: --bye"),
    ([], "there is no run with export/preference.json in runs/; train one first, or name one"),
])
def test_a_wrong_flag_is_refused(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert refused(monkeypatch, capsys, *flags) == words


GOOD = dict.fromkeys(("id", "content", "prompt_key", "group", "language", "source", "kind", "content_a", "content_b"),
                     "x") | dict.fromkeys(("tokens", "tokens_cut", "characters_a", "characters_b", "markdown_a",
                                           "markdown_b"), 1)
GOOD |= {"target": {"a": 1.0, "b": 0.0}, "probability": {"a": 0.5, "b": 0.5}, "temperature": 1.0, "logits_ab": [1, 0],
         "logits_ba": [1, 0]}
NEITHER = "{}:1 is no prediction of eval.py: "


@pytest.mark.parametrize(("content", "words"), [
    ("", "{} holds no predictions"),
    ("hello\n", NEITHER + "not JSON: Expecting value: line 1 column 1 (char 0)"),
    ('{"content": "c', NEITHER + "not JSON: Unterminated string starting at: line 1 column 13 (char 12)"),
    (b"\xff\xfe", NEITHER + "not UTF-8 at byte 0"),
    ('{"text": "t", "label": "pos"}\n', NEITHER + "it has no id"),
    ("[]\n", NEITHER + "not an object but list"),
    (json.dumps({name: value for name, value in GOOD.items() if name != "temperature"}),  # of an older version
     NEITHER + "it has no temperature"),
    (json.dumps({name: value for name, value in GOOD.items() if name != "logits_ba"}), NEITHER + "it has no logits_ba"),
    (json.dumps(GOOD | {"logits_ab": [1]}), NEITHER + "its classes are not a, b"),
    (json.dumps(GOOD | {"logits_ab": [1, None]}), NEITHER + "a target or a logit is no number"),
    (json.dumps(GOOD | {"logits_ab": [1, float("nan")]}), NEITHER + "NaN is not a number in JSON"),
    (json.dumps(GOOD | {"target": 3}), NEITHER + "target is 3"),
    (json.dumps(GOOD | {"temperature": 0}), NEITHER + "temperature is 0"),
    (json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"target": {"a": 1, "b": 0, "tie": 0}}),
     "{}:2 is no prediction of eval.py: its classes are not a, b"),
], ids=["empty", "words", "cut off", "bytes", "data", "list", "no temperature", "one order", "one logit", "null", "nan",
        "target", "temperature 0", "other classes"])
@pytest.mark.parametrize("flag", ["--predictions", "--against"])
def test_a_file_that_holds_no_predictions_is_refused(evaluated, tmp_path, monkeypatch, capsys, content, words, flag):
    path = tmp_path / "some.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    good = () if flag == "--predictions" else ("--predictions", evaluated / "out/predictions.jsonl")
    assert refused(monkeypatch, capsys, *good, flag, path, "--output", tmp_path / "out") == words.format(path)
    assert not (tmp_path / "out").exists()


def test_models_without_a_common_row_are_not_compared(evaluated, tmp_path, monkeypatch, capsys):
    mine = evaluated / "out/predictions.jsonl"
    others = jsonl(tmp_path / "others.jsonl", [row | {"content": row["id"]} for row in predictions(evaluated / "out")])
    found = refused(monkeypatch, capsys, "--predictions", mine, "--against", others, "--output", tmp_path / "out")
    assert found == f"--against {others}: the two have no row in common"


def test_a_comparison_is_not_compared_with_a_classification(evaluated, tmp_path, monkeypatch, capsys):
    mine = evaluated / "out/predictions.jsonl"
    others = evaluated / "texts/predictions.jsonl"
    found = refused(monkeypatch, capsys, "--predictions", mine, "--against", others, "--output", tmp_path / "out")
    assert found == f"--against {others}: one compares responses and the other classifies texts"


def test_a_benchmark_with_other_columns_is_refused(evaluated, models, monkeypatch, capsys):
    source = evaluated / "rows.jsonl"
    assert refused(monkeypatch, capsys, "--model", models[2], "--benchmark", source) == (
        f"--benchmark {source}: neither rewardbench, rewardbench2, m-rewardbench nor data with the columns of one "
        "(chosen, rejected and subset); it has id, prompt, response_a, response_b, winner, language, kind")


def test_a_benchmark_without_rows_is_refused(models, tmp_path, monkeypatch, capsys):
    source = jsonl(tmp_path / "rows.jsonl", [])
    assert refused(monkeypatch, capsys, "--model", models[2], "--benchmark", source).endswith("it has no rows")


def test_a_benchmark_that_is_no_file_is_refused(models, tmp_path, monkeypatch, capsys):
    found = refused(monkeypatch, capsys, "--model", models[2], "--benchmark", tmp_path / "no.jsonl")
    assert found.endswith(f" {tmp_path}/no.jsonl: there is no such file")


@pytest.mark.parametrize("rows", [REWARDBENCH, [row | {"num_correct": 1} for row in REWARDBENCH]])
def test_a_benchmark_needs_a_model_that_compares(models, tmp_path, monkeypatch, capsys, rows):
    source = jsonl(tmp_path / "rows.jsonl", rows)
    found = refused(monkeypatch, capsys, "--model", models["texts"], "--benchmark", source, "--cache_dir",
                    tmp_path / "cache")
    assert found == f"--benchmark {source}: {models['texts']} classifies texts, it compares no responses"


def test_a_benchmark_needs_predictions_of_comparisons(evaluated, monkeypatch, capsys):
    path = evaluated / "texts/predictions.jsonl"
    assert refused(monkeypatch, capsys, "--predictions", path, "--benchmark", "rewardbench") == (
        f"--benchmark rewardbench: {path} compares no responses")


def test_dimensions_that_a_classification_has_not_are_not_crossed(evaluated, tmp_path):
    metrics = evaluate(tmp_path, "--predictions", evaluated / "texts/predictions.jsonl", "--by",
                       "language,length_difference", "language,kind")
    assert "by_language,kind" in metrics and "by_language,length_difference" not in metrics


def test_the_form_of_a_benchmark_is_its_own(monkeypatch, capsys):
    assert refused(monkeypatch, capsys, "--benchmark", "rewardbench", "--format", "chosen") == (
        "--benchmark rewardbench has a form of its own; take --format out")


@pytest.mark.parametrize(("rows", "words"), [
    ([], "{} holds no rows"),
    ([ROWS[0] | {"response_b": ROWS[0]["response_a"]}],
     "none of 1 rows is left: in each the two responses are equal"),
])
def test_data_without_a_row_is_refused(models, tmp_path, monkeypatch, capsys, rows, words):
    source = jsonl(tmp_path / "rows.jsonl", rows)
    assert refused(monkeypatch, capsys, "--model", models[2], "--data", source, "--cache_dir",
                   tmp_path / "cache") == words.format(source)


def test_rows_of_the_training_split_are_refused(run, tmp_path, monkeypatch, capsys):
    found = refused(monkeypatch, capsys, "--model", run, "--data", run / "trained.jsonl", "--cache_dir",
                    tmp_path / "cache")
    assert found.startswith("the test rows overlap with the training split: 36 of 36 test rows: ")


def test_an_export_outside_its_run_needs_data(models, tmp_path, monkeypatch, capsys):
    assert refused(monkeypatch, capsys, "--model", models[2], "--output", tmp_path / "out") == (
        f"--model {models[2]} is not in its run's folder; give --data")


def test_an_output_that_is_a_file_is_refused(evaluated, tmp_path, monkeypatch, capsys):
    path = tmp_path / "file"
    path.write_text("")
    assert refused(monkeypatch, capsys, "--predictions", evaluated / "out/predictions.jsonl", "--output", path) == (
        f"--output {path} cannot be made: Not a directory")


def test_an_error_of_the_process_is_one_line():
    result = subprocess.run([sys.executable, "eval.py", "--by", "tongue"], cwd=ROOT, text=True, capture_output=True,
                            check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: --by tongue: must be of language, source, kind, length, length_difference\n"


def test_a_model_whose_logits_are_not_finite_is_refused(models, tmp_path, monkeypatch, capsys):
    shutil.copytree(models[2], tmp_path / "broken")
    state = load_file(tmp_path / "broken/model.safetensors")
    state["score.weight"][:] = float("nan")
    save_file(state, tmp_path / "broken/model.safetensors", {"format": "pt"})
    source = jsonl(tmp_path / "rows.jsonl", ROWS)
    found = refused(monkeypatch, capsys, "--model", tmp_path / "broken", "--data", source, "--output", tmp_path / "out",
                    "--cache_dir", tmp_path / "cache")
    assert found.startswith("the model's logits are not finite for 6 of 6 rows, such as ")
