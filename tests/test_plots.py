"""Every plot of every kind of evaluation, as SVG that can be read."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from pm.metrics import evaluation
from pm.plots import MOST_BARS, available, plots
from pm.report import blocks, to_html

pytest.importorskip("matplotlib")

A, B, TIE = {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 0.5}
A3, TIE3 = {"a": 1.0, "b": 0.0, "tie": 0.0}, {"a": 0.0, "b": 0.0, "tie": 1.0}
NAMES = ("neg", "neu", "pos")

BY_LANGUAGE = "accuracy_by_language"
RELIABILITY = "reliability"
BY_LENGTH = "accuracy_by_length_difference"
ORDERS = "orders"
LENGTHS = "lengths"
LEARNING = "learning_curve"
TITLES = {BY_LANGUAGE: "Accuracy by language, with 95 % intervals",
          RELIABILITY: "Reliability: is it right as often as it says?",
          BY_LENGTH: "Accuracy by length of the better response, against the worse one",
          ORDERS: "Probability of A, in each order of the responses", LENGTHS: "Length, and how many rows were cut"}
OF_COMPARISONS, OF_TEXTS = [BY_LANGUAGE, RELIABILITY, BY_LENGTH, ORDERS, LENGTHS], [BY_LANGUAGE, RELIABILITY, LENGTHS]


def row(ab, ba, target=A, group="g", language="en", **others) -> dict:
    return {"logits_ab": list(ab), "logits_ba": list(ba), "target": target, "group": group, "language": language,
            "characters_a": 10, "characters_b": 10, "source": "s", "kind": "k", "markdown_a": 0, "markdown_b": 0,
            "tokens": 100, "tokens_cut": 0, "temperature": 1.0, "content": "c", "content_a": "x", "content_b": "y",
            "prompt_key": group} | others


def text(target: str, found: str, group="g", language="en") -> dict:
    return {"logits": [float(name == found) for name in NAMES], "group": group, "language": language, "source": "s",
            "target": {name: float(name == target) for name in NAMES}, "kind": "", "characters_a": 5, "tokens": 100,
            "tokens_cut": 0, "temperature": 1.0, "content": "c"}


TWO = [row((2, 0), (1, 0), A, "1"), row((2, 0), (0, 1), A, "2", "de", characters_a=30, tokens_cut=5),
       row((0, 1), (0, 3), A, "3", characters_b=99), row((1, 0), (0, 3), B, "4", "de", tokens=900)]
THREE = [row((3, 0, 1), (1, 0, 1), A3, "1"), row((0, 1, 4), (2, 1, 4), TIE3, "2", "de")]
TEXTS = [text("neg", "neg", "1"), text("neu", "neg", "2", "de"), text("pos", "pos", "3")]


def trained(step: int, loss: float | None) -> dict:
    return {"phase": "train", "step": step, "loss": loss}


def evaluated(step: int, log_loss: float | None, accuracy: float, interval: list[float] | None) -> dict:
    return {"phase": "eval", "step": step, "log_loss": log_loss, "accuracy": accuracy, "accuracy_interval": interval}


def drawn(rows: list[dict], history=()) -> dict[str, str]:
    return plots(evaluation(rows), history)


def words(svg: str) -> list[str]:
    """The texts of an SVG, which is parsed as XML."""
    return ["".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter()
            if element.tag == "{http://www.w3.org/2000/svg}text"]


def test_matplotlib_is_available():
    assert available()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("rows", "titles"), [
    (TWO, OF_COMPARISONS), (THREE, OF_COMPARISONS), (TEXTS, OF_TEXTS), (TWO[:1], OF_COMPARISONS),
    (THREE[:1], OF_COMPARISONS), (TEXTS[:1], OF_TEXTS), ([one | {"temperature": 2.0} for one in TWO], OF_COMPARISONS),
], ids=["two", "three", "texts", "one row", "one row of three", "one text", "temperatures"])
def test_every_plot_is_drawn(rows, titles):
    found = drawn(rows)
    assert list(found) == titles
    for name, svg in found.items():
        assert svg.startswith("<svg") and TITLES[name] in words(svg)


@pytest.mark.parametrize("rows", [[row((1, 0), (1, 0), TIE)], [row((1, 0, 2), (1, 0, 2), TIE3)],
                                  [*TWO, row((1, 0), (1, 0), TIE, language="fr")]],
                         ids=["only ties", "only ties of three", "a language of ties"])
def test_every_plot_is_drawn_where_there_is_no_accuracy(rows):
    found = drawn(rows)
    assert list(found) == OF_COMPARISONS
    assert all(TITLES[name] in words(svg) for name, svg in found.items())


def test_languages_are_drawn_with_their_rows():
    found = words(drawn([*TWO, row((1, 0), (1, 0), A, language="")])[BY_LANGUAGE])
    assert {"en (2)", "de (2)", "- (1)", "model", "accuracy"} <= set(found)


def test_the_best_shortcut_is_named():
    rows = [one | {"shortcuts": {"n_grams": 1.0 if one["target"] is A else -1.0}} for one in TWO]
    for title in (BY_LANGUAGE, BY_LENGTH):
        assert "the best shortcut, n grams" in words(drawn(rows)[title])
    assert not any("shortcut" in word for word in words(drawn(TEXTS)[BY_LANGUAGE]))


def test_only_the_largest_languages_are_drawn():
    rows = [row((1, 0), (1, 0), language=f"l{number:02}") for number in range(MOST_BARS + 1)]
    found = words(drawn(rows)[BY_LANGUAGE])
    assert "Accuracy by language, with 95 % intervals (1 more in the table)" in found
    assert sum(1 for word in found if re.fullmatch(r"l\d\d \(1\)", word)) == MOST_BARS


@pytest.mark.parametrize(("name", "shown"), [
    ("$\\frac$", "$\\frac$ (1)"), ("a$b$c", "a$b$c (1)"), ("a\x01b", "a b (1)")])
def test_a_name_is_no_formula_and_spoils_no_svg(name, shown):
    assert shown in words(drawn([row((1, 0), (1, 0), language=name)])[BY_LANGUAGE])


@pytest.mark.parametrize("verdict", [(1, 0), (0, 1)])
@pytest.mark.parametrize("groups", [3, 4, 5, 6, 10, 14])
def test_the_learning_curve_of_a_model_that_is_always_or_never_right(groups, verdict):
    found = evaluation([row(verdict, verdict, group=str(number)) for number in range(groups)])
    history = [{"phase": "train", "step": 1, "loss": 0.5}, {"phase": "eval", "step": 1, **found["overall"]}]
    assert LEARNING in plots(found, history)


def test_reliability_is_drawn_with_and_without_temperatures():
    names = {"logits as they are", "with temperature"}
    assert names & set(words(drawn(TWO)[RELIABILITY])) == {"logits as they are"}
    assert names <= set(words(drawn([one | {"temperature": 2.0} for one in TWO])[RELIABILITY]))


def test_rows_that_were_cut_are_drawn():
    assert "cut to fit" in words(drawn(TWO)[LENGTHS])
    assert "cut to fit" not in words(drawn(THREE)[LENGTHS])


# The learning curve


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("history", "legend"), [
    ([trained(1, 0.7), trained(2, 0.6)], {"training loss"}),
    ([trained(1, 0.7)], {"training loss"}),
    ([trained(1, None), trained(2, None)], {"training loss"}),
    ([trained(1, 0.7), trained(2, None), evaluated(2, 0.6, 0.7, [0.5, 0.8]), trained(3, 0.6),
      evaluated(3, 0.5, 0.8, None)], {"training loss", "test log-loss", "test accuracy"}),
    ([trained(1, None), evaluated(1, None, 0.5, None)], {"training loss", "test log-loss", "test accuracy"}),
], ids=["losses", "one loss", "null losses", "evaluations", "a null evaluation"])
@pytest.mark.parametrize("rows", [TWO, TEXTS], ids=["comparisons", "texts"])
def test_a_history_is_drawn(rows, history, legend):
    found = drawn(rows, history)
    assert list(found)[-1] == LEARNING
    assert set(words(found[LEARNING])) & {"training loss", "test log-loss", "test accuracy"} == legend


@pytest.mark.parametrize("history", [[], [evaluated(1, 0.5, 0.8, [0.7, 0.9])]])
def test_a_history_without_a_step_is_not_drawn(history):
    assert list(drawn(TWO, history)) == OF_COMPARISONS


# What is in the files

SCRIPTS = ["العربية", "עברית", "हिन्दी", "中文", "日本語", "한국어", "Ελληνικά", "ไทย", "a & b < c"]


@pytest.mark.filterwarnings("error")
def test_text_in_any_script_stays_text():
    found = drawn([row((1, 0), (1, 0), language=name) for name in SCRIPTS])
    assert {f"{name} (1)" for name in SCRIPTS} <= set(words(found[BY_LANGUAGE]))
    assert all(f">{name} (1)</text>" in found[BY_LANGUAGE] for name in SCRIPTS[:-1])


@pytest.mark.filterwarnings("error")
def test_a_shortcut_in_any_script_stays_text():
    name = " ".join(SCRIPTS)
    found = drawn([one | {"shortcuts": {name: 1.0 if one["target"] is A else -1.0}} for one in TWO])
    assert f"the best shortcut, {name}" in words(found[BY_LANGUAGE])


@pytest.mark.parametrize("rows", [TWO, THREE, TEXTS], ids=["two", "three", "texts"])
def test_the_same_numbers_give_the_same_files(rows):
    history = [trained(1, 0.7), evaluated(1, 0.6, 0.7, [0.5, 0.8])]
    assert drawn(rows, history) == drawn(rows, history)
    assert drawn(rows, history) != drawn(rows[:1], history)


def test_a_page_with_plots_needs_no_other_file():
    metrics = {"about": {}, **evaluation(TWO)}
    page = to_html("t", blocks(metrics, plots(metrics, [trained(1, 0.7)])))
    assert page.count("<svg") == page.count("</svg>") == 6
    page = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[a-z0-9/]+"', "", page)
    assert not any(word in page for word in ("http://", "https://", "@import", "<script", "<?xml", "<!DOCTYPE svg"))
    assert all(target.startswith(("#", "data:image/png")) for target in re.findall(r'(?:href|src)="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
