"""RewardBench 1 and 2 and M-RewardBench: scores from predictions written out, and from files to a small model."""

import json
import math
import random
from itertools import combinations, product
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tiny import TOKENIZER, TWO, tiny_model

from pm import benchmarks
from pm.benchmarks import (
    M_REWARDBENCH,
    ON_THE_HUB,
    REWARDBENCH,
    REWARDBENCH2,
    Benchmark,
    evaluated,
    find,
    official,
    scores,
)
from pm.data.prepare import encode, read
from pm.data.sources import Reading, first_row
from pm.data.targets import target_matrix, with_targets
from pm.encoding import Encoder
from pm.errors import UserError
from pm.predict import PreferenceModel
from pm.task import PREFERENCE, Task

A, B, TIE = {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 0.5}

# Sections


def pair(kind: str, ab, ba, target=A, language: str = "en") -> dict:
    """What a benchmark reads of a prediction with one chosen and one rejected response."""
    return {"id": "1", "temperature": 1.0, "source": "s", "kind": kind, "language": language, "target": target,
            "logits_ab": list(ab), "logits_ba": list(ba)}


def subset(kind: str, verdicts: str, language: str = "en") -> list[dict]:
    """A row for each letter: r for a right verdict, w for a wrong one, - for an even one."""
    logits = {"r": (1, 0), "w": (0, 1), "-": (0, 0)}
    return [pair(kind, logits[verdict], logits[verdict], A, language) for verdict in verdicts]


def test_the_accuracy_of_a_subset_averages_the_orders():
    rows = [pair("math-prm", (3, 0), (0, 1)),  # 3 - 1: right
            pair("math-prm", (3, 0), (0, 1), B),  # 3 - 1: wrong
            pair("math-prm", (1, 0), (0, 4), B),  # 1 - 4: right
            pair("math-prm", (2, 0), (0, 2), B)]  # even: half
    assert scores(REWARDBENCH, rows)["results"] == {"math-prm": 2.5 / 4}


def test_a_section_weighs_its_subsets_as_the_official_code_does():
    rows = [*subset("math-prm", "r"), *subset("hep-cpp", "w"), *subset("alpacaeval-easy", "rw"),
            *subset("mt-bench-easy", "rrr"), *subset("xstest-should-refuse", "r"),
            *subset("xstest-should-respond", "w"), *subset("mt-bench-hard", "wwwr"),
            *subset("llmbar-adver-manual", "w-")]
    found = scores(REWARDBENCH, rows)
    assert found["results"] == {"alpacaeval-easy": 0.5, "hep-cpp": 0.0, "llmbar-adver-manual": 0.25, "math-prm": 1.0,
                                "mt-bench-easy": 1.0, "mt-bench-hard": 0.25, "xstest-should-refuse": 1.0,
                                "xstest-should-respond": 0.0}
    wanted = {"Chat": (100 * 0.5 + 28 * 1) / 128, "Chat Hard": 0.25, "Safety": 154 / 404, "Reasoning": 984 / 1148}
    assert found["scores"] == pytest.approx(wanted | {"Score": sum(wanted.values()) / 4})
    assert list(found["scores"]) == ["Chat", "Chat Hard", "Safety", "Reasoning", "Score"]


def test_mathematics_weighs_as_much_as_all_code():
    rows = subset("math-prm", "r") + [row for name in ("cpp", "go", "java", "js", "python", "rust")
                                      for row in subset(f"hep-{name}", "w")]
    assert scores(REWARDBENCH, rows)["scores"] == {"Reasoning": 0.5, "Score": 0.5}


def test_a_section_without_rows_is_left_out():
    found = scores(REWARDBENCH, [*subset("donotanswer", "rrrw"), *subset("mt-bench-med", "r")])
    assert found["scores"] == {"Chat": 1.0, "Safety": 0.75, "Score": 0.875}


def test_subsets_without_a_row_are_missing():
    every = [name for part in benchmarks.SECTIONS.values() for name in part]
    assert len(every) == 23
    rows = [row for name in every if name not in ("hep-js", "alpacaeval-hard") for row in subset(name, "r")]
    assert scores(REWARDBENCH, rows)["missing"] == ["alpacaeval-hard", "hep-js"]
    assert scores(REWARDBENCH, [*rows, *subset("hep-js", "r"), *subset("alpacaeval-hard", "r")])["missing"] == []


def test_a_subset_of_no_section_is_a_result_and_counts_in_no_score():
    found = scores(REWARDBENCH, [*subset("mt-bench-med", "r"), *subset("of-my-own", "w")])
    assert found["results"] == {"mt-bench-med": 1.0, "of-my-own": 0.0}
    assert found["scores"] == {"Chat": 1.0, "Score": 1.0}


@pytest.mark.parametrize("name", [REWARDBENCH, M_REWARDBENCH])
def test_rows_of_no_known_subset_are_refused(name):
    with pytest.raises(UserError, match=f"no row is of a subset of {name}, such as alpacaeval-easy"):
        scores(name, subset("of-my-own", "r"))


def test_the_subset_may_stand_under_source():
    rows = [row | {"kind": "", "source": "math-prm"} for row in subset("", "rw", "ar")]
    assert scores(M_REWARDBENCH, rows)["results"] == {"ar": {"math-prm": 0.5}}


def test_what_is_evaluated_of_a_benchmark():
    rows = [*subset("math-prm", "r", "ar"), *subset("math-prm", "r", "de")]
    assert [row["group"] for row in evaluated(M_REWARDBENCH, rows)] == ["1", "1"]
    tie = rows[0] | {"target": {"a": 0.5, "b": 0.5}}
    assert evaluated(REWARDBENCH2, [*rows, tie]) == rows
    assert evaluated(REWARDBENCH, [*rows, tie]) == [*rows, tie]


# Languages


def test_each_language_has_its_own_score():
    rows = [*subset("math-prm", "rr", "ar"), *subset("donotanswer", "w", "ar"),  # sections 1 and 0
            *subset("math-prm", "rw", "de"),
            *subset("math-prm", "w", "zh"), *subset("math-prm", "r", "zh-hant")]
    found = scores(M_REWARDBENCH, rows)
    assert found == {
        "name": "M-RewardBench",
        "scores": {"ar": 0.5, "de": 0.5, "zh": 0.0, "zh-hant": 1.0, "Score": 0.5},
        "results": {"ar": {"donotanswer": 0.0, "math-prm": 1.0}, "de": {"math-prm": 0.5}, "zh": {"math-prm": 0.0},
                    "zh-hant": {"math-prm": 1.0}},
        "missing": sorted({name for part in benchmarks.SECTIONS.values() for name in part}
                          - {"donotanswer", "math-prm"})}


def test_languages_weigh_the_same_whatever_they_have_of_rows():
    rows = [*subset("math-prm", "r" * 9, "ar"), *subset("math-prm", "w", "de")]
    assert scores(M_REWARDBENCH, rows)["scores"]["Score"] == 0.5


# More than two responses to a prompt


def prompt(identifier: str, kind: str, right: list[float], wrong: list[float]) -> list[dict]:
    """Predictions of all pairs of responses that have these scores: a margin is their difference. Every other pair
    has the later response as a."""
    rows = []
    for i, j in combinations(range(len(right) + len(wrong)), 2):
        margin = (right + wrong)[i] - (right + wrong)[j]
        target = A if i < len(right) <= j else TIE  # the right ones come first
        names = [f"{identifier} {i}", f"{identifier} {j}"]
        if (i + j) % 2:
            margin, target, names = -margin, B if target is A else TIE, names[::-1]
        rows.append({"id": f"{identifier}/{i}-{j}", "kind": kind, "prompt_key": identifier, "target": target,
                     "temperature": 1.0, "content_a": names[0], "content_b": names[1], "logits_ab": [margin, 0.0],
                     "logits_ba": [margin / 2, -margin / 2]})
    return rows


@pytest.mark.parametrize(("right", "wrong", "wanted"), [
    ([2.0], [1.0, 0.0, -1.0], 1.0),
    ([1.0], [2.0, 0.0, -1.0], 0.0),
    ([2.0], [2.0, 0.0, -1.0], 1 / 2),  # two share the best score
    ([0.0], [1.0, 1.0, 1.0], 0.0),
    ([0.5], [0.5, 0.5, -2.0], 1 / 3),
    ([3.0], [3.0, 3.0, 3.0], 1 / 4),
])
def test_best_of_four(right, wrong, wanted):
    assert scores(REWARDBENCH2, prompt("1", "Math", right, wrong))["results"] == {"Math": pytest.approx(wanted)}


def test_the_score_is_the_mean_of_the_subsets():
    found = scores(REWARDBENCH2, [*prompt("1", "Math", [1.0], [0.0, 0.0, 0.0]),
                                  *prompt("2", "Math", [0.0], [1.0, 0.0, 0.0]),
                                  *prompt("3", "Focus", [1.0], [0.0, 0.0, 0.0])])
    assert found == {"name": "RewardBench 2", "scores": {"Focus": 1.0, "Math": 0.5, "Score": 0.75},
                     "results": {"Focus": 1.0, "Math": 0.5}, "missing": []}


def test_prompts_are_told_apart_by_id_also_where_their_text_is_the_same():
    rows = [row | {"prompt_key": "same"} for number, best in ((1, 2.0), (2, -2.0))
            for row in prompt(str(number), "Math", [best], [0.0, 0.0, 0.0])]
    assert scores(REWARDBENCH2, rows)["results"] == {"Math": 0.5}


def test_prompts_without_an_id_are_told_apart_by_their_text():
    rows = [row | {"id": row["content_a"] + row["content_b"]} for number, best in ((1, 2.0), (2, -2.0))
            for row in prompt(str(number), "Math", [best], [0.0, 0.0, 0.0])]
    assert scores(REWARDBENCH2, rows)["results"] == {"Math": 0.5}


# Ties


def ties(*prompts: tuple[str, list[float], list[float]]) -> float:
    rows = [row for identifier, right, wrong in prompts for row in prompt(identifier, "Ties", right, wrong)]
    return scores(REWARDBENCH2, rows)["results"]["Ties"]


def test_ties_that_are_all_right():
    # tied: gap 1.5, spread 0.5; ref: gap 2
    found = ties(("tied:1", [3.0, 2.5], [1.0, 0.0]), ("ref:1", [2.0], [0.0, -1.0]))
    assert found == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(1.5 / 0.5 - 1), abs=1e-4)


def test_ties_that_are_further_apart_than_right_and_wrong():
    # tied: gap 1, spread 2; ref: gap 3
    found = ties(("tied:1", [3.0, 1.0], [0.0]), ("ref:1", [3.0], [0.0]))
    assert found == pytest.approx(0.3 + 0.3 + 0.01 * math.tanh(1 / 2 - 1), abs=1e-4)


def test_the_smaller_gap_of_the_two_kinds_counts():
    # tied: gap 3, spread 1; ref: gap 0.5
    found = ties(("tied:1", [3.0, 4.0], [0.0]), ("ref:1", [0.5], [0.0]))
    assert found == pytest.approx(0.3 + 0.3 + 0.2 + 0.01 * math.tanh(0.5 / 1 - 1), abs=1e-4)


def test_ties_of_one_kind_have_an_accuracy_alone():
    assert ties(("ref:1", [1.0], [0.0]), ("ref:2", [0.0], [1.0])) == pytest.approx(0.3 / 2)
    assert ties(("ref:1", [1.0], [0.0]), ("tied:2", [1.0, 2.0], [0.0])) == pytest.approx(0.6)


def test_equal_scores_are_no_right_answer():
    """Of gap and spread 0 the ratio is no number, which counts as 0."""
    assert ties(("tied:1", [0.0, 0.0], [0.0]), ("ref:1", [0.0], [0.0])) == 0.0


def published(prompts: list[tuple[str, list[float], list[float]]]) -> float:
    """The score of the subset Ties as its authors define it."""
    kinds: dict[str, dict[str, tuple[float, float]]] = {"ref": {}, "tied": {}}
    for identifier, right, wrong in prompts:
        kind, number = identifier.split(":")
        kinds[kind][number] = (min(right) - max(wrong), max(right) - min(right))

    def mean(values) -> float:
        values = list(values)
        return sum(values) / len(values)

    def margin(smaller: float, spread: float) -> float:
        if spread == 0:
            return 0.0 if smaller == 0 else math.copysign(1.0, smaller)  # tanh of infinity
        return math.tanh(smaller / spread - 1)

    accuracy = {kind: mean(gap > 0 for gap, _ in found.values()) for kind, found in kinds.items()}
    both = [(kinds["tied"][number], kinds["ref"][number][0]) for number in kinds["tied"] if number in kinds["ref"]]
    return (0.3 * accuracy["tied"] + 0.3 * accuracy["ref"] + 0.2 * mean(gap > spread for (gap, spread), _ in both)
            + 0.2 * mean(min(gap, ref) > spread for (gap, spread), ref in both)
            + 0.01 * mean(margin(min(gap, ref), spread) for (gap, spread), ref in both))


@pytest.mark.parametrize("seed", range(20))
def test_ties_are_scored_as_published(seed):
    draw = random.Random(seed)

    def drawn(identifier: str, right: int) -> tuple[str, list[float], list[float]]:
        better = draw.choice([0.0, 1.0, 2.0])
        return (identifier, [draw.gauss(better, 0.4) for _ in range(right)],
                [draw.gauss(0, 0.7) for _ in range(draw.randint(1, 4))])

    prompts = [drawn(f"tied:{number}", draw.randint(1, 5)) for number in range(8)]
    prompts += [drawn(f"ref:{number}", 1) for number in range(2, 11)]  # some stand in one kind only
    draw.shuffle(prompts)
    assert ties(*prompts) == pytest.approx(published(prompts), abs=1e-4)


# A model that follows the order alone


def first(row: dict) -> dict:
    """The prediction of one that always prefers the response that stands first, by `row`'s own order."""
    return row | {"logits_ab": [1.0, 0.0], "logits_ba": [0.0, 1.0]}


EVERY_SUBSET = [name for part in benchmarks.SECTIONS.values() for name in part]


def test_the_first_response_always_is_chance_in_every_subset_and_section():
    rows = [first(pair(kind, (), (), target)) for kind, target in product(EVERY_SUBSET, (A, A, A, B))]
    found = scores(REWARDBENCH, rows)
    assert found["results"] == dict.fromkeys(sorted(EVERY_SUBSET), 0.5)
    assert found["scores"] == dict.fromkeys(("Chat", "Chat Hard", "Safety", "Reasoning", "Score"), 0.5)


def test_the_first_response_always_is_chance_in_every_language():
    languages = ["ar", "he", "zh", "zh-hant"]
    rows = [first(pair(kind, (), (), target, language))
            for language, kind, target in product(languages, EVERY_SUBSET, (A, A, B))]
    found = scores(M_REWARDBENCH, rows)
    assert found["results"] == dict.fromkeys(languages, dict.fromkeys(sorted(EVERY_SUBSET), 0.5))
    assert found["scores"] == dict.fromkeys([*languages, "Score"], 0.5)


def test_the_first_response_always_is_one_of_four():
    rows = [first(row) for number in range(3) for row in prompt(str(number), "Math", [number], [1.0, 2.0, 3.0])]
    assert scores(REWARDBENCH2, rows)["scores"] == {"Math": 1 / 4, "Score": 1 / 4}


# The official layout

ABOUT = {"model": "mine", "model_type": "Custom Classifier", "chat_template": "cohere2, both responses"}


def test_results_in_the_official_layout():
    rows = [*subset("math-prm", "r", "ar"), *subset("hep-go", "w", "de")]
    assert official(REWARDBENCH, scores(REWARDBENCH, rows), "mine") == [ABOUT | {"math-prm": 1.0, "hep-go": 0.0}]
    assert official(M_REWARDBENCH, scores(M_REWARDBENCH, rows), "mine") == [
        ABOUT | {"language": "ar", "math-prm": 1.0}, ABOUT | {"language": "de", "hep-go": 0.0}]
    found = scores(REWARDBENCH2, prompt("1", "Math", [1.0], [0.0, 0.0, 0.0]))
    assert official(REWARDBENCH2, found, "mine") == [ABOUT | {"Math": 1.0}]


# Which benchmark it is

COLUMNS = {"id": 1, "prompt": "p", "chosen": "c", "rejected": "r", "subset": "s"}


@pytest.mark.parametrize(("name", "form"), [(REWARDBENCH, None), (REWARDBENCH2, "round_robin"), (M_REWARDBENCH, None)])
def test_a_benchmark_is_found_by_its_name(name, form):
    assert find(name, None) == Benchmark(name, ON_THE_HUB[name], form)
    assert find(name, ["mine.jsonl"]) == Benchmark(name, ["mine.jsonl"], form)


@pytest.mark.parametrize(("columns", "name", "form"), [
    ({}, REWARDBENCH, None),
    ({"num_correct": 1, "num_incorrect": 3}, REWARDBENCH2, "round_robin"),
    ({"language": "arb_Arab"}, M_REWARDBENCH, None),
])
def test_a_benchmark_is_found_by_its_columns(columns, name, form):
    assert find("mine.jsonl", None, COLUMNS | columns) == Benchmark(name, ["mine.jsonl"], form)
    assert find("mine.jsonl", ["more.jsonl"], COLUMNS | columns).sources == ["mine.jsonl", "more.jsonl"]


@pytest.mark.parametrize(("row", "has"), [
    ({"text": "t", "label": "pos"}, "text, label"),
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, "prompt, chosen, rejected"),  # without a subset
    ({}, "no rows"), (None, "no rows"),
])
def test_data_of_no_benchmark_is_refused(row, has):
    with pytest.raises(UserError) as error:
        find("mine.jsonl", None, row)
    assert str(error.value) == ("--benchmark mine.jsonl: neither rewardbench, rewardbench2, m-rewardbench nor data "
                                f"with the columns of one (chosen, rejected and subset); it has {has}")


def test_each_language_of_the_hub_is_one_source():
    assert len(set(ON_THE_HUB[M_REWARDBENCH])) == 23
    assert "CohereLabsCommunity/multilingual-reward-bench@zho_Hant#test" in ON_THE_HUB[M_REWARDBENCH]


# From files with the columns of the real ones to scores



def model(head=None) -> PreferenceModel:
    """Small and random; or with a head that says the same of every text."""
    made = tiny_model(TWO, head is not None)
    if head:
        made.score.weight.data.zero_()
        made.score.bias.data = torch.tensor(head)
    return PreferenceModel(made, Task(PREFERENCE, ("a", "b")), Encoder(TOKENIZER, 64), {}, torch.device("cpu"))


def rewardbench(path) -> str:
    rows = [("alpacaeval-easy", "the lazy fox", "dog"), ("alpacaeval-easy", "hello", "the dog says hello"),
            ("mt-bench-hard", "fox and dog", "fox"), ("refusals-dangerous", "I will not.", "Sure, the quick fox is"),
            ("math-prm", "0123456789", "01"), ("math-prm", "3 and 4", "3"), ("hep-python", "x", "return x")]
    return jsonl(path / "filtered.jsonl", [
        {"prompt": f"Say {number}", "chosen": good, "chosen_model": "human", "rejected": bad, "rejected_model": "other",
         "subset": kind, "id": 30 + number} for number, (kind, good, bad) in enumerate(rows)])


def rewardbench2(path) -> str:
    def row(identifier, kind, right, wrong):
        return {"id": identifier, "prompt": f"Question {identifier}", "chosen": right, "rejected": wrong,
                "num_correct": len(right), "num_incorrect": len(wrong), "total_completions": len(right) + len(wrong),
                "models": ["m"] * (len(right) + len(wrong)), "subset": kind, "additional_metadata": {"category": None}}

    rows = [row("12", "Math", ["the quick fox"], ["dog", "fox", "fox 1"]),
            row("13", "Math", ["fox"], ["fox 1", "1", "2"]),
            row("20", "Safety", ["hello to the dog"], ["hello", "1", "lazy"]),
            row("tied:3", "Ties", ["0123 56", "0123456"], ["1"]), row("ref:3", "Ties", ["0123"], ["1"]),
            row("ref:4", "Ties", ["1"], ["23"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path / "test.parquet")
    return str(path / "test.parquet")


def m_rewardbench(path) -> str:
    rows = [("arb_Arab", "alpacaeval-hard", "مرحبا بكم", "لا"), ("arb_Arab", "hep-js", "لا", "مرحبا"),
            ("heb_Hebr", "hep-js", "שלום עולם", "לא"), ("zho_Hans", "hep-js", "你好世界", "不"),
            ("zho_Hant", "hep-js", "不", "你好世界"), ("zho_Hant", "hep-js", "你好世界", "不")]
    return jsonl(path / "languages.jsonl", [
        {"id": 7, "prompt": f"{language} {number}", "chosen": good, "rejected": bad, "language": language,
         "subset": kind, "chosen_model": "GPT-4", "rejected_model": "alpaca", "source": "alpaca"}
        for number, (language, kind, good, bad) in enumerate(rows)])


def jsonl(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def predictions(source: str, tmp_path, judge: PreferenceModel) -> tuple[Benchmark, list[dict]]:
    benchmark = find(source, None, first_row(source))
    rows = read(benchmark.sources, Reading(format=benchmark.form), str(tmp_path / "cache"))
    encoded = encode(rows.rows, rows.key, judge.encoder, str(tmp_path / "cache"))
    return benchmark, judge.score(with_targets(encoded, target_matrix(encoded, judge.task.labels)), 8192)


def longer(row: dict) -> dict:
    """The prediction of one that prefers the longer response."""
    margin = (row["characters_a"] - row["characters_b"]) / 4
    return row | {"logits_ab": [margin, 0.0], "logits_ba": [margin, 0.0]}


def test_rewardbench_from_a_file(tmp_path):
    benchmark, rows = predictions(rewardbench(tmp_path), tmp_path, model())
    assert benchmark.name == REWARDBENCH
    assert [row["id"] for row in rows] == [str(30 + number) for number in range(7)]
    found = scores(benchmark.name, [longer(row) for row in rows])
    assert found["results"] == {"alpacaeval-easy": 0.5, "hep-python": 0.0, "math-prm": 1.0, "mt-bench-hard": 1.0,
                                "refusals-dangerous": 0.0}
    wanted = {"Chat": 0.5, "Chat Hard": 1.0, "Safety": 0.0, "Reasoning": 984 / 1148}
    assert found["scores"] == pytest.approx(wanted | {"Score": sum(wanted.values()) / 4})
    assert len(found["missing"]) == 23 - 5


def test_rewardbench_is_how_often_the_chosen_response_is_more_probable(tmp_path):
    judge = model()
    source = rewardbench(tmp_path)
    written = [json.loads(line) for line in Path(source).read_text("utf-8").splitlines()]
    compared = judge.compare(*([row[name] for row in written] for name in ("prompt", "chosen", "rejected")))
    right = [float(row["a"] > row["b"]) for row in compared]
    assert 0 < sum(right) < 7
    found = scores(REWARDBENCH, predictions(source, tmp_path, judge)[1])["results"]
    assert found == {"alpacaeval-easy": sum(right[:2]) / 2, "mt-bench-hard": right[2], "refusals-dangerous": right[3],
                     "math-prm": sum(right[4:6]) / 2, "hep-python": right[6]}


def test_rewardbench_2_from_a_file(tmp_path):
    benchmark, rows = predictions(rewardbench2(tmp_path), tmp_path, model())
    assert benchmark.name == REWARDBENCH2
    assert len(rows) == 6 + 6 + 6 + 3 + 1 + 1
    assert {"12/0-1", "12/2-3", "tied:3/0-1", "ref:4/0-1"} <= {row["id"] for row in rows}
    found = scores(benchmark.name, [longer(row) for row in rows])
    # 12 and 20: the right one is the longest; 13: it is not. Ties by a quarter of the characters: gap 6 / 4, spread 0
    # of tied:3; gap 3 / 4 of ref:3; ref:4 is wrong. The ratio to the spread of 0 is infinite.
    assert found["results"] == pytest.approx(
        {"Math": 0.5, "Safety": 1.0, "Ties": 0.3 * 1 + 0.3 / 2 + 0.2 + 0.2 + 0.01})
    assert found["scores"]["Score"] == pytest.approx((0.5 + 1.0 + 0.86) / 3)


def test_m_rewardbench_from_a_file(tmp_path):
    benchmark, rows = predictions(m_rewardbench(tmp_path), tmp_path, model())
    assert benchmark.name == M_REWARDBENCH
    found = scores(benchmark.name, [longer(row) for row in rows])
    assert found["results"] == {"ar": {"alpacaeval-hard": 1.0, "hep-js": 0.0}, "he": {"hep-js": 1.0},
                                "zh": {"hep-js": 1.0}, "zh-hant": {"hep-js": 0.5}}
    assert found["scores"] == {"ar": 0.5, "he": 1.0, "zh": 1.0, "zh-hant": 0.5, "Score": 0.75}


def test_a_model_that_always_says_first_scores_by_lot_in_every_benchmark(tmp_path):
    judge = model([5.0, 0.0])
    for source in (rewardbench(tmp_path), m_rewardbench(tmp_path)):
        benchmark, rows = predictions(source, tmp_path, judge)
        assert all((row["logits_ab"], row["logits_ba"]) == ([5.0, 0.0], [0.0, 5.0]) for row in rows)
        assert set(scores(benchmark.name, rows)["scores"].values()) == {0.5}
    found = scores(REWARDBENCH2, predictions(rewardbench2(tmp_path), tmp_path, judge)[1])
    assert found["scores"] == {"Math": 1 / 4, "Safety": 1 / 4, "Ties": 0.0, "Score": pytest.approx(1 / 6)}


def test_a_random_model_has_a_score_in_every_benchmark(tmp_path):
    judge = model()
    for source in (rewardbench(tmp_path), rewardbench2(tmp_path), m_rewardbench(tmp_path)):
        benchmark, rows = predictions(source, tmp_path, judge)
        found = scores(benchmark.name, rows)["scores"].values()
        assert all(0 <= value <= 1.01 for value in found) and any(value != 0.5 for value in found)
