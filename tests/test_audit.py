"""The audit of preference data: each finding on rows written out here, and many rows against a slow reference."""

import json
import random
import sys

import pytest
from datasets import Dataset

from pm.data.audit import audit, summary, to_markdown, truncation, write
from pm.data.example import FEATURES, Example, normalise
from pm.data.findings import read_side
from pm.errors import UserError

A, B, TIE = {"a": 1.0}, {"b": 1.0}, {"tie": 1.0}


def pair(identifier: str, prompt: str, a: str, b: str, target: dict[str, float] = A, group: str = "",
         language: str = "en", source: str = "file") -> Example:
    """A row of a preference whose group is its prompt, unless another one is given."""
    return Example(identifier, group or f"group of {prompt}", language, source, "",
                   [{"role": "user", "content": prompt}], a, b, target)


def text(identifier: str, content: str, label: str, *second: str) -> Example:
    """A row of a classification."""
    prompt = [{"role": "user", "content": turn} for turn in (content, *second)]
    return Example(identifier, f"group of {content}", "en", "file", "", prompt, None, None, {label: 1.0})


def rows(*examples: Example) -> Dataset:
    if not examples:
        return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    return Dataset.from_list([example.to_row() for example in examples], features=FEATURES)


def finding(count: int, out_of: int, *pairs: str) -> dict:
    """`finding(1, 3, "x = y")`: x was found, with y."""
    keys = ("id", "of")
    return {"count": count, "out_of": out_of, "examples": [dict(zip(keys, pair.split(" = "), strict=False))
                                                           for pair in pairs]}


def within(*examples: Example, **options) -> dict:
    return audit(rows(*examples), **options)["train"]


def across(train: list[Example], test: list[Example], **options) -> dict:
    return audit(rows(*train), rows(*test), **options)["overlap"]


# Within one side


def test_exact_normalised_and_swapped_duplicates_are_counted_apart():
    found = within(
        pair("first", "Say hi", "Hi there", "Go away"),
        pair("exact", "Say hi", "Hi there", "Go away"),
        pair("case", "say HI", "Hi there", "go away"),
        pair("spaces", "Say  hi\n", "Hi there", "Go away"),
        pair("swapped", "Say hi", "Go away", "Hi there", B),
        pair("swapped again", "Say hi", "Go away", "Hi there", B),
        pair("swapped case", "Say hi", "GO AWAY", "Hi there", B),
        pair("other response", "Say hi", "Hi there", "Go"),
        pair("other prompt", "Say ho", "Hi there", "Go away"),
    )
    assert found["duplicates_exact"] == finding(2, 9, "exact = first", "swapped again = swapped")
    assert found["duplicates_normalised"] == finding(3, 9, "case = first", "spaces = first", "swapped case = swapped")
    assert found["duplicates_swapped"] == finding(1, 9, "swapped = first")
    assert found["contradicting"] == found["tie_against_winner"] == found["equal_responses"] == finding(0, 9)
    assert (found["rows"], found["groups"], found["prompts"]) == (9, 4, 2)


@pytest.mark.parametrize(("one", "other"), [
    ("ﬁne ofﬁce", "fine office"),  # a ligature
    ("ＡＢＣ　１", "abc 1"),  # full width
    ("cafe\u0301", "café"),
    ("Straße", "STRASSE"),
    ("ﾊﾝｶｸ", "ハンカク"),
    ("a\u00a0b\u2003c", "a b c"),
])
def test_unicode_forms_are_duplicates(one, other):
    found = within(pair("1", "p", one, "worse"), pair("2", "p", other, "worse"))
    assert found["duplicates_exact"] == finding(0, 2)
    assert found["duplicates_normalised"] == finding(1, 2, "2 = 1")


def test_texts_are_not_run_together():
    found = within(pair("1", "p", "ab", "c"), pair("2", "p", "a", "bc"), pair("3", "pa", "b", "c"))
    assert found["duplicates_exact"] == found["duplicates_normalised"] == finding(0, 3)


def test_a_role_is_part_of_an_exact_row():
    system = Example("1", "g", "en", "file", "", [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
                     "x", "y", A)
    user = Example("2", "g", "en", "file", "", [{"role": "user", "content": "s"}, {"role": "user", "content": "u"}],
                   "x", "y", A)
    found = within(system, user)
    assert found["duplicates_exact"] == finding(0, 2)
    assert found["duplicates_normalised"] == finding(1, 2, "2 = 1")


def test_only_five_examples_are_shown():
    found = within(*(pair(str(number), "p", "x", "y") for number in range(8)))
    assert found["duplicates_exact"] == finding(7, 8, *(f"{number} = 0" for number in range(1, 6)))


def test_contradictions_with_and_without_swap():
    found = within(
        pair("1", "p", "x", "y", A), pair("2", "p", "x", "y", B),
        pair("3", "q", "x", "y", A), pair("4", "Q", "Y", "x", B),  # the same verdict, swapped
        pair("5", "r", "x", "y", A), pair("6", "r", "y", "x", A),
        pair("7", "s", "x", "y", {"a": 0.7, "b": 0.3}), pair("8", "s", "x", "y", {"a": 0.2, "b": 0.5, "tie": 0.3}),
    )
    assert found["contradicting"] == finding(6, 8, "1 = 2", "2 = 1", "5 = 6", "6 = 5", "7 = 8")
    assert found["tie_against_winner"] == finding(0, 8)


def test_a_tie_against_a_winner_is_no_contradiction():
    found = within(
        pair("1", "p", "x", "y", A), pair("2", "p", "y", "X", TIE), pair("3", "p", "x", "y", {"a": 0.5, "b": 0.5}),
        pair("4", "q", "x", "y", TIE), pair("5", "q", "x", "y", TIE),
        pair("6", "r", "x", "y", {"a": 0.4, "b": 0.2, "tie": 0.4}), pair("7", "r", "x", "y", B),
    )
    assert found["contradicting"] == finding(0, 7)
    assert found["tie_against_winner"] == finding(3, 7, "2 = 1", "3 = 1", "6 = 7")


def test_equal_responses_contradict_nothing():
    found = within(pair("1", "p", "x", "X ", A), pair("2", "p", "x", "X ", B), pair("3", "p", "x", "x", TIE))
    assert found["equal_responses"] == finding(3, 3) | {"examples": [{"id": "1"}, {"id": "2"}, {"id": "3"}]}
    assert found["contradicting"] == found["tie_against_winner"] == finding(0, 3)


def test_label_balance_with_soft_targets():
    labels = within(pair("1", "p", "x", "y", A), pair("2", "q", "x", "y", {"a": 0.75, "b": 0.25}),
                    pair("3", "r", "x", "y", TIE), pair("4", "s", "x", "y", {"a": 0.5, "b": 0.5}),
                    pair("5", "t", "x", "y", {"a": 0.25, "b": 0.25, "tie": 0.5}))["labels"]
    assert labels["classes"] == {"a": {"mass": 2.5, "share": 0.5}, "tie": {"mass": 1.5, "share": 0.3},
                                 "b": {"mass": 1.0, "share": 0.2}}
    assert labels["rows"] == {"a": 1, "b": 0, "tie": 2, "soft": 2}


def test_length_by_winner():
    length = within(
        pair("1", "p", "xxxx", "yy", A),  # longer
        pair("2", "q", "xx", "yyyy", A, language="de"),  # shorter
        pair("3", "r", "é", "yyyyyyy", B),  # longer, in characters
        pair("4", "s", "xx", "yy", {"a": 0.4, "b": 0.6}),  # equal
        pair("5", "t", "xxxxxxxxx", "y", TIE, language="fr"),
    )["length_by_winner"]
    assert length["all"] == {"rows": 4, "better_mean": 3.75, "better_median": 3.0, "worse_mean": 2.25,
                             "worse_median": 2.0, "longer_wins": 0.625}
    assert list(length["by_language"]) == ["en", "de"]
    assert length["by_language"]["en"] == {"rows": 3, "better_mean": 13 / 3, "better_median": 4.0,
                                           "worse_mean": 5 / 3, "worse_median": 2.0, "longer_wins": 2.5 / 3}
    assert length["by_language"]["de"]["longer_wins"] == 0.0


def test_languages_and_sources_have_rows_and_groups():
    found = within(
        pair("1", "p", "x", "y", group="g", source="s"), pair("2", "q", "x", "y", group="g", language="de"),
        pair("3", "r", "x", "y", group="h", language="de"), pair("4", "t", "x", "y", group="h", language="de"))
    assert list(found["languages"].items()) == [("de", {"rows": 3, "groups": 2}), ("en", {"rows": 1, "groups": 1})]
    assert found["sources"] == {"file": {"rows": 3, "groups": 2}, "s": {"rows": 1, "groups": 1}}


# Across sides


def test_rows_of_the_test_side_that_are_in_train():
    train = [pair("t1", "Say hi", "x", "y"), pair("t2", "Say ho", "x", "y")]
    found = across(train, [
        pair("exact", "Say hi", "x", "y", B), pair("case", "say hi", "X", "y"), pair("swapped", "Say hi", "y", "x"),
        pair("prompt", "SAY HO", "x", "z", group="new"),
        pair("new", "Say he", "x", "y"), pair("newer", "Say he", "x", "y"),
    ])
    assert found == {
        "rows": 6,
        "rows_exact": finding(1, 6, "exact = t1"),
        "rows_normalised": finding(1, 6, "case = t1"),
        "rows_swapped": finding(1, 6, "swapped = t1"),
        "same_prompt": finding(4, 6, "exact = t1", "case = t1", "swapped = t1", "prompt = t2"),
        "same_group": finding(2, 6, "exact = t1", "swapped = t1"),
        "same_prompt_other_language": finding(0, 6),
    }


def test_translations_of_a_prompt_share_its_group():
    train = [pair("en", "Hello", "x", "y", group="g"), pair("fr", "Bonjour", "x", "y", group="g", language="fr"),
             pair("de", "Wasser", "x", "y", group="h", language="de")]
    found = across(train, [pair("de2", "Hallo", "x", "y", group="g", language="de"),
                           pair("fr2", "Salut", "x", "y", group="g", language="fr"),
                           pair("en2", "Water", "x", "y", group="h"), pair("en3", "Fire", "x", "y", group="i")])
    assert found["same_group"] == finding(3, 4, "de2 = en", "fr2 = en", "en2 = de")
    assert found["same_prompt_other_language"] == finding(2, 4, "de2 = en", "en2 = de")
    assert found["same_prompt"] == finding(0, 4)


def test_a_benchmark_is_compared_with_train_alone():
    found = audit(rows(pair("1", "p", "x", "y")), rows(pair("2", "q", "x", "y")),
                  rows(pair("3", "P", "x", "y"), pair("4", "q", "x", "y")))
    assert found["contamination"]["rows_normalised"] == finding(1, 2, "3 = 1")
    assert found["contamination"]["same_prompt"] == finding(1, 2, "3 = 1")
    assert found["overlap"]["same_prompt"] == finding(0, 1)
    assert "benchmark" not in found


def test_rows_chosen_out_of_a_dataset_keep_their_ids():
    whole = rows(*(pair(str(number), f"p{number % 3}", "x", "y") for number in range(9)))
    found = audit(whole.select([8, 1, 7]), whole.select([4, 5, 0]))
    assert found["train"]["duplicates_exact"] == finding(1, 3, "7 = 1")
    assert found["overlap"]["rows_exact"] == finding(2, 3, "4 = 1", "5 = 8")


@pytest.mark.parametrize("examples", [[], [pair("1", "p", "x", "y")]])
def test_an_empty_test_side(examples):
    found = audit(rows(*examples), rows())
    assert found["overlap"]["same_group"] == finding(0, 0)
    assert found["test"]["rows"] == found["test"]["groups"] == 0
    assert found["test"]["length_by_winner"] == {"all": {"rows": 0}, "by_language": {}}
    assert "no test row is in the training split" in to_markdown(found)
    assert summary(found) == []
    json.dumps(found, allow_nan=False)


# Classification


def test_a_classification_has_what_applies_to_it():
    found = audit(rows(text("1", "good", "pos"), text("2", "GOOD", "neg"), text("3", "good", "pos"),
                       text("4", "bad", "neg"), text("5", "bad", "neg", "second"), text("6", "good", "mixed")),
                  rows(text("7", "Bad", "pos"), text("8", "new", "pos")))
    train = found["train"]
    assert found["task"] == "classification"
    assert train["duplicates_exact"] == finding(2, 6, "3 = 1", "6 = 1")
    assert train["duplicates_normalised"] == finding(1, 6, "2 = 1")
    assert train["contradicting"] == finding(4, 6, "1 = 6", "2 = 1", "3 = 6", "6 = 1")
    assert train["labels"]["classes"]["pos"] == {"mass": 2.0, "share": 1 / 3}
    assert train["labels"]["rows"] == {"neg": 3, "pos": 2, "mixed": 1}
    assert not {"duplicates_swapped", "equal_responses", "length_by_winner"} & train.keys()
    assert found["overlap"]["rows_normalised"] == found["overlap"]["same_prompt"] == finding(1, 2, "7 = 4")
    assert "rows_swapped" not in found["overlap"]
    assert "1 are in the training split" in to_markdown(found)


def test_a_class_named_like_a_tie_is_a_class():
    found = within(text("1", "p", "tie"), text("2", "p", "a"))
    assert found["contradicting"] == finding(2, 2, "1 = 2", "2 = 1")
    assert found["tie_against_winner"] == finding(0, 2)


def test_many_classes_are_listed_in_part():
    found = audit(rows(*(text(str(number), f"p{number}", f"class {number:03}") for number in range(40))))
    assert len(found["train"]["labels"]["classes"]) == 40
    assert "and 15 more" in to_markdown(found)


# Nearly equal prompts

STORY = "Please write a short story about a lighthouse keeper who finds a message in a bottle on the beach."


def test_nearly_equal_prompts():
    pytest.importorskip("datasketch", reason="--near needs datasketch")
    train = [pair("1", STORY, "x", "y"), pair("2", STORY + " Thanks", "x", "y"),
             pair("3", STORY.replace("short", "brief"), "x", "y", group=f"group of {STORY}"),
             pair("4", "What is the capital of Iceland?", "x", "y"), pair("5", STORY, "x", "z", group="another")]
    test = [pair("6", STORY + "..", "x", "y"), pair("7", STORY.upper(), "x", "y"), pair("8", "hi", "x", "y"),
            pair("9", "Hi!", "x", "y")]
    found = audit(rows(*train), rows(*test), near=0.8)
    near = found["train"]["near_prompts"]
    # 3 is near 1, which is of its own group, and near 2 by less than 0.8; 5 has the same prompt as 1.
    assert (near["count"], near["out_of"]) == (2, 4)
    assert [(example["id"], example["of"]) for example in near["examples"]] == [("1", "2"), ("2", "1")]
    assert all(abs(example["jaccard"] - 94 / 101) < 0.1 for example in near["examples"])
    near = found["overlap"]["near_prompts"]
    assert (near["count"], near["out_of"]) == (1, 4)  # 7 is in train as it is
    assert (near["examples"][0]["id"], near["examples"][0]["of"]) == ("6", "1")
    # Within test, 6 and 7 are nearly equal, the short ones are not.
    assert found["test"]["near_prompts"]["count"] == 2
    report = to_markdown(found)
    assert "- test: 1 of 4 prompts are nearly equal to one in the training split" in report
    assert "- train: 2 of 4 prompts are nearly equal to one of another group" in report
    assert "audit: test: 1 of 4 prompts are nearly equal to one in the training split" in summary(found)
    json.dumps(found, allow_nan=False)


def test_nearly_equal_prompts_of_an_empty_side():
    pytest.importorskip("datasketch", reason="--near needs datasketch")
    assert across([pair("1", STORY, "x", "y")], [], near=0.8)["near_prompts"] == finding(0, 0)
    assert across([], [pair("1", STORY, "x", "y")], near=0.8)["near_prompts"] == finding(0, 1)


def test_without_datasketch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError) as caught:
        within(pair("1", "p", "x", "y"), near=0.8)
    assert str(caught.value) == "--near needs datasketch: pip install 'preference-model[audit]'"


def test_a_threshold_out_of_range():
    pytest.importorskip("datasketch", reason="--near needs datasketch")
    with pytest.raises(UserError, match=r"--near 1\.5: must be between 0\.5 and 0\.95"):
        within(pair("1", "p", "x", "y"), near=1.5)


# Reports


def test_a_clean_report_says_so():
    found = audit(rows(pair("1", "p", "x", "y")), rows(pair("2", "q", "x", "y")), rows(pair("3", "r", "x", "y")))
    report = to_markdown(found)
    assert "- no test row is in the training split, nor is its prompt or its group (1 rows)" in report
    assert "- no benchmark row is in the training split" in report
    assert "- train: no row repeats or contradicts another (1 rows)" in report
    assert "Nothing found of train: duplicates_exact, " in report
    assert "| finding |" not in report
    assert summary(found) == []


def test_a_report_names_what_was_found():
    train = [pair("1", "p", "x", "y", A), pair("2", "p", "x", "y", B), pair("a|b", "P", "x", "y", TIE),
             pair("4", "q", "x", "x")]
    found = audit(rows(*train), rows(pair("5", "p", "x", "y", language="de"), pair("6", "r", "x", "y")))
    encoded = [Dataset.from_dict({"language": ["en"] * 4, "tokens_cut": [0, 7, 0, 0]}),
               Dataset.from_dict({"language": ["de"], "tokens_cut": [0]})]
    found["truncated"] = truncation(encoded)
    report = to_markdown(found)
    for line in (
        "- of 2 test rows 1 are in the training split, 1 have a prompt of the training split, 1 have a group of the "
        "training split (1 of them in other languages only)",
        "- train: 2 of 4 rows (50.0%) repeat an earlier one: 1 exactly, 1 in other case, spaces or Unicode form",
        "- train: of 4 rows 2 contradict the winner of an equal row, 1 are ties where an equal row has a winner, "
        "1 have two responses that differ at most in case, spaces or Unicode form",
        "| train | row equal to an earlier one | 1 | 4 | 25.0% | 2 = 1 |",
        "| train | tie that an equal row decides | 1 | 4 | 25.0% | a\\|b = 1 |",
        "| test in train | row that is in train | 1 | 2 | 50.0% | 5 = 1 |",
        "| a | 50.0% | 100.0% |",
        "| train | 3 | 1 (1) | 1 (1) | 50.0% |",
        "| language | train: rows (groups) | test: rows (groups) | longer wins | cut |",
        "| en | 4 (3) | 1 (1) | 50% | 25.0% |",
        "| de | - | 1 (1) | - | 0.0% |",
        "| file | 4 (3) | 2 (2) |",
    ):
        assert line in report.splitlines()
    assert found["truncated"] == {"en": {"rows": 4, "cut": 1, "share": 0.25}, "de": {"rows": 1, "cut": 0, "share": 0.0}}


def test_many_languages_are_listed_in_part():
    report = to_markdown(audit(rows(*(pair(str(number), f"p{number}", "x", "y", language=f"l{number}")
                                      for number in range(30)))))
    assert "and 5 more" in report
    assert "| l24 |" in report
    assert "| l25 |" not in report


def test_a_summary_has_a_line_for_each_thing_found():
    lopsided = [pair(str(number), f"p{number}", "longer", "short", A) for number in range(200)]
    found = audit(rows(*lopsided, lopsided[0], pair("x", "p1", "short", "longer", A)), rows(lopsided[5]),
                  rows(pair("y", "P7", "new", "newer")))
    assert summary(found) == [
        "audit: train: 2 of 202 rows (1.0%) repeat an earlier one: 1 exactly, 1 with the responses swapped",
        "audit: train: of 202 rows 2 contradict the winner of an equal row",
        "audit: of 1 test rows 1 are in the training split, 1 have a prompt of the training split, 1 have a group of "
        "the training split",
        "audit: of 1 benchmark rows 1 have a prompt of the training split",
        "audit: train: 100.0% of the winners are 'a'",
        "audit: train: the longer response wins 100% of 202 decided rows; length alone is a way to the label",
    ]


def test_a_dominant_class_is_worth_a_line():
    found = audit(rows(*(text(str(number), f"p{number}", "rare" if number < 10 else "common")
                         for number in range(100))))
    assert summary(found) == ["audit: train: 90.0% of the labels are 'common'"]


def test_written_files(tmp_path):
    found = audit(rows(pair("1", "p", "x", "y"), pair("ü", "p", "x", "y")), rows(pair("2", "q", "x", "y")))
    write(found, tmp_path / "new" / "folder")
    assert json.loads((tmp_path / "new/folder/audit.json").read_text("utf-8")) == found
    assert (tmp_path / "new/folder/audit.md").read_text("utf-8") == to_markdown(found)


# Many rows against a reference that keeps the texts


def generated(seed: int, count: int) -> list[Example]:
    """Rows with few different texts, so that all kinds of duplicates are there."""
    draw = random.Random(seed)
    words = ["Ja", "ja", "ﬁn", "fin", "naïve text", "naive text", "x  y", "X y", "ж", "Ж", *map(str, range(20))]
    targets = [A, B, TIE, {"a": 0.25, "b": 0.75}, {"a": 0.5, "b": 0.5}, {"a": 0.6, "tie": 0.4}]
    return [pair(f"{seed}-{number}", f"{draw.choice(words)} {draw.randrange(30)}", draw.choice(words),
                 draw.choice(words), draw.choice(targets), group=f"g{draw.randrange(count)}",
                 language=draw.choice(["en", "de", "und"])) for number in range(count)]


def content(row: Example) -> tuple:
    return tuple(turn["content"] for turn in row.prompt), row.response_a, row.response_b


def normal(row: Example) -> tuple[str, str, str]:
    return tuple(map(normalise, (row.prompt[0]["content"], row.response_a, row.response_b)))


def swap(key: tuple[str, str, str]) -> tuple[str, str, str]:
    return key[0], key[2], key[1]


def kinds_of_equality(row: Example, exact: dict, ordered: dict) -> list[str]:
    key = normal(row)
    return ["exact"] if content(row) in exact else ["normalised"] if key in ordered else (
        ["swapped"] if swap(key) in ordered else [])


def test_20000_rows_are_as_the_reference_says():
    train, test = generated(1, 20_000), generated(2, 2_000)
    exact, ordered, winners = {}, {}, {}
    counts = dict.fromkeys(("exact", "normalised", "swapped", "contradicting", "tie"), 0)
    for row in train:
        for kind in kinds_of_equality(row, exact, ordered):
            counts[kind] += 1
        exact.setdefault(content(row), row.id)
        ordered.setdefault(normal(row), row.id)
        key = min(normal(row), swap(normal(row)))
        winners.setdefault(key, []).append(better(row))
    for key, found in winners.items():
        if key[1] != key[2]:
            decided = [winner for winner in found if winner is not None]
            counts["contradicting"] += len(decided) if len(set(decided)) > 1 else 0
            counts["tie"] += len(found) - len(decided) if decided else 0

    found = audit(rows(*train), rows(*test))
    side, overlap = found["train"], found["overlap"]
    assert min(counts.values()) > 100
    assert counts == {"exact": side["duplicates_exact"]["count"], "normalised": side["duplicates_normalised"]["count"],
                      "swapped": side["duplicates_swapped"]["count"],
                      "contradicting": side["contradicting"]["count"], "tie": side["tie_against_winner"]["count"]}
    for example in side["duplicates_normalised"]["examples"]:
        row = next(row for row in train if row.id == example["id"])
        assert ordered[normal(row)] == example["of"]

    prompts = {normal(row)[0] for row in train}
    groups = {row.group for row in train}
    languages = {(row.group, row.language) for row in train}
    kinds = [kind for row in test for kind in kinds_of_equality(row, exact, ordered)]
    assert {name: overlap[f"rows_{name}"]["count"] for name in ("exact", "normalised", "swapped")} == {
        name: kinds.count(name) for name in ("exact", "normalised", "swapped")}
    assert overlap["same_prompt"]["count"] == sum(normal(row)[0] in prompts for row in test)
    assert overlap["same_group"]["count"] == sum(row.group in groups for row in test)
    assert overlap["same_prompt_other_language"]["count"] == sum(
        row.group in groups and (row.group, row.language) not in languages for row in test)


def better(row: Example) -> str | None:
    """The normalised response that wins."""
    a, b = row.target.get("a", 0), row.target.get("b", 0)
    return None if a == b else normal(row)[1 if a > b else 2]


def test_no_text_is_kept():
    side = read_side(rows(*(pair(str(number), "p" * 1000, "x" * 1000, "y" * 1000) for number in range(100))), True, "")
    kept = sum(value.nbytes for value in vars(side).values() if hasattr(value, "nbytes"))
    assert kept == 100 * (6 * 8 + 5 * 4)
