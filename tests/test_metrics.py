"""Predictions written out, and the numbers that follow from them."""

import json
import math
import random

import numpy as np
import pytest

from pm import report
from pm.metrics import by, by_class, evaluation, f1, mean_interval, summarise

A, B, TIE = {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 0.5}


def row(ab, ba, target=A, group="g", language="en", characters=(10, 10), source="s", kind="k") -> dict:
    """A prediction. `ab` and `ba`: logits of the classes, read in the order A, B and in the order B, A."""
    return {"logits_ab": list(ab), "logits_ba": list(ba), "target": target, "group": group, "language": language,
            "characters_a": characters[0], "characters_b": characters[1], "source": source, "kind": kind}


def sure(target=A, verdict=A, **columns) -> dict:
    """A prediction with the same verdict in both orders, a margin of 1."""
    return row(verdict.values(), verdict.values(), target, **columns)


#   margins of a over b:  A, B | B, A | mean    verdict
FOUR = [
    row((2, 0), (1, 0), A),  # 2 |  1 |  1.5    right in both orders
    row((2, 0), (0, 1), A),  # 2 | -1 |  0.5    right, flips: the first response each time
    row((0, 1), (0, 3), A),  # -1 | -3 | -2     wrong in both orders
    row((1, 0), (0, 3), B),  # 1 | -3 | -1      right, flips: the first response each time
]


def test_accuracy_averages_the_orders():
    assert summarise(FOUR)["accuracy"] == 3 / 4


def test_accuracy_of_a_single_order_is_the_mean_of_both():
    assert summarise(FOUR)["accuracy_single_order"] == (1 + 0.5 + 0 + 0.5) / 4


def test_flips_are_verdicts_that_change_with_the_order():
    assert summarise(FOUR)["flip_rate"] == 2 / 4


def test_prefers_first_counts_both_orders():
    # In the order A, B: first, first, second, first. In the order B, A: second, first, first, first.
    assert summarise(FOUR)["prefers_first"] == 6 / 8


def test_log_loss_is_that_of_the_averaged_logits():
    # ln(1 + e^-1.5), ln(1 + e^-0.5), ln(1 + e^2), ln(1 + e^-1)
    wanted = (0.2014133 + 0.4740770 + 2.1269280 + 0.3132617) / 4
    assert summarise(FOUR)["log_loss"] == pytest.approx(wanted, abs=1e-7)


def test_log_loss_of_soft_targets():
    rows = [row((1, 0), (1, 0), {"a": 0.75, "b": 0.25}), row((0, 0), (0, 0), TIE)]
    wanted = (0.75 * 0.3132617 + 0.25 * 1.3132617 + math.log(2)) / 2
    assert summarise(rows)["log_loss"] == pytest.approx(wanted, abs=1e-7)


def test_log_loss_of_large_logits_is_finite():
    assert summarise([row((0, 5000), (0, 5000), A)])["log_loss"] == 5000.0


def test_ties_count_in_the_log_loss_and_not_in_accuracies():
    summary = summarise([sure(A), row((2, 0), (2, 0), TIE)])
    assert (summary["n"], summary["n_ties"]) == (2, 1)
    assert summary["accuracy"] == summary["accuracy_single_order"] == 1.0
    # ln(1 + e^-1), and (ln(1 + e^-2) + ln(1 + e^2)) / 2
    assert summary["log_loss"] == pytest.approx((0.3132617 + 1.1269280) / 2, abs=1e-7)


def test_only_ties_have_no_accuracy():
    summary = summarise([row((1, 0), (1, 0), TIE)])
    assert summary["accuracy"] is None
    assert summary["accuracy_interval"] is None
    assert summary["log_loss"] is not None


def test_soft_targets_are_decided_by_the_larger_half():
    assert summarise([sure({"a": 0.75, "b": 0.25}), sure({"a": 0.25, "b": 0.75})])["accuracy"] == 0.5


def test_even_verdict_counts_half():
    summary = summarise([row((0, 0), (0, 0), A)])
    assert summary["accuracy"] == summary["accuracy_single_order"] == summary["prefers_first"] == 0.5
    assert summary["flip_rate"] == 0.0


def test_orders_that_cancel_count_half():
    summary = summarise([row((2, 0), (0, 2), A)])
    assert (summary["accuracy"], summary["flip_rate"], summary["prefers_first"]) == (0.5, 1.0, 1.0)


def test_a_model_that_always_says_first_is_no_better_than_chance():
    summary = summarise([row((1, 0), (0, 1), target) for target in (A, A, A, B)])
    assert summary["accuracy"] == summary["accuracy_single_order"] == 0.5
    assert summary["prefers_first"] == summary["flip_rate"] == 1.0


def test_a_model_that_always_says_a_scores_the_share_of_a():
    summary = summarise([sure(target, A) for target in (A, A, A, B)])
    assert (summary["accuracy"], summary["prefers_first"], summary["flip_rate"]) == (0.75, 0.5, 0.0)


def test_longer_wins_is_the_accuracy_of_the_longer_response():
    rows = [sure(A, characters=(9, 5)), sure(A, characters=(5, 9)), sure(B, characters=(5, 9)),
            sure(A, characters=(7, 7)), sure(TIE, characters=(9, 5))]
    assert summarise(rows)["longer_wins"] == (1 + 0 + 1 + 0.5) / 4


# Three classes

A3, B3, TIE3 = ({name: float(name == label) for name in ("a", "b", "tie")} for label in ("a", "b", "tie"))

#   mean of the logits of a, b and tie      verdict     most probable
THREE = [
    row((3, 0, 1), (1, 0, 1), A3),  # 2 0 1     a           a
    row((0, 1, 4), (2, 1, 4), A3),  # 1 1 4     even        tie
    row((1, 0, 5), (1, 0, 3), A3),  # 1 0 4     a           tie
    row((0, 2, 0), (0, 4, 0), TIE3),  # 0 3 0   b           b
    row((0, 0, 2), (1, 0, 2), TIE3),  # 0.5 0 2 a           tie
    row((0, 1, 0), (2, 1, 0), B3),  # 1 1 0     even        a, the first of two
]


def test_a_verdict_is_between_a_and_b_whatever_a_tie_has():
    summary = summarise(THREE)
    assert (summary["n"], summary["n_ties"]) == (6, 2)
    assert summary["accuracy"] == (1 + 0.5 + 1 + 0.5) / 4
    # Order A, B: a, b, a | b;  order B, A: a, a, a | a. Each is right or wrong
    assert summary["accuracy_single_order"] == ((1 + 0 + 1 + 1) / 4 + (1 + 1 + 1 + 0) / 4) / 2
    assert summary["flip_rate"] == 3 / 6  # rows 2 and 6, and row 5 from even to a
    # Order A, B: first, second, first, second, even, second. Order B, A: second, second, second, first, second, second
    assert summary["prefers_first"] == (2.5 / 6 + 1 / 6) / 2


def test_accuracy_with_ties_is_of_the_most_probable_of_three():
    assert summarise(THREE)["accuracy_with_ties"] == (1 + 0 + 0 + 0 + 1 + 0) / 6
    assert "accuracy_with_ties" not in summarise(FOUR)


def test_log_loss_of_three_classes():
    rows = [row((2, 0, 1), (0, 0, 1), A3), row((0, 0, 0), (0, 0, 0), {"a": 0.5, "b": 0.25, "tie": 0.25})]
    # ln(e + 1 + e) - 1, and ln 3
    assert summarise(rows)["log_loss"] == pytest.approx((math.log(2 * math.e + 1) - 1 + math.log(3)) / 2)


def test_a_soft_target_without_a_favourite_is_a_tie():
    summary = summarise([row((1, 0, 0), (1, 0, 0), {"a": 0.25, "b": 0.25, "tie": 0.5}),
                         row((1, 0, 0), (1, 0, 0), {"a": 0.3, "b": 0.2, "tie": 0.5})])
    assert (summary["n_ties"], summary["accuracy"], summary["accuracy_with_ties"]) == (1, 1.0, 0.0)


# Classes of texts

NAMES = ("neg", "neu", "pos", "odd")


def text(target: str | dict, found: str | tuple, group="g", language="en") -> dict:
    """A prediction whose most probable class is `found`, with a margin of 1; or with these logits."""
    target = {name: float(name == target) for name in NAMES} if isinstance(target, str) else target
    logits = [float(name == found) for name in NAMES] if isinstance(found, str) else list(found)
    return {"logits": logits, "target": target, "group": group, "language": language, "source": "s", "kind": "",
            "characters_a": 5}


#         neg   neu   pos   odd   found
# neg      3     1     0     0
# neu      2     1     0     1
# pos      0     0     2     0
TEXTS = [text("neg", "neg", group="1"), text("neg", "neg", group="2"), text("neg", "neg", group="3"),
         text("neg", "neu", group="4"), text("neu", "neg", group="5", language="de"),
         text("neu", "neg", group="6", language="de"), text("neu", "neu", group="7"), text("neu", "odd", group="8"),
         text("pos", "pos", group="9"), text("pos", "pos", group="9", language="de")]


def test_numbers_of_a_classification():
    summary = summarise(TEXTS)
    assert (summary["n"], summary["n_groups"], summary["accuracy"], summary["most_common"]) == (10, 9, 0.6, 0.4)
    # -ln of e / (e + 3) and of 1 / (e + 3)
    assert summary["log_loss"] == pytest.approx((6 * (math.log(math.e + 3) - 1) + 4 * math.log(math.e + 3)) / 10)
    # neg 6 / (4 + 5), neu 2 / (4 + 2), pos 1; none of the rows is odd
    assert summary["macro_f1"] == pytest.approx((2 / 3 + 1 / 3 + 1) / 3)
    low, high = summary["accuracy_interval"]
    assert 0 <= low < 0.6 < high <= 1
    assert not {"flip_rate", "n_ties", "longer_wins"} & summary.keys()


def test_a_classification_by_class():
    found = by_class(TEXTS)
    assert found["by_class"] == {
        "neg": {"n": 4, "precision": 3 / 5, "recall": 3 / 4, "f1": pytest.approx(2 / 3)},
        "neu": {"n": 4, "precision": 1 / 2, "recall": 1 / 4, "f1": pytest.approx(1 / 3)},
        "pos": {"n": 2, "precision": 1.0, "recall": 1.0, "f1": 1.0},
        "odd": {"n": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}}
    assert list(found["by_class"]) == ["neg", "neu", "pos", "odd"]
    assert found["confusion"] == {"neg": {"neg": 3, "neu": 1}, "neu": {"neg": 2, "neu": 1, "odd": 1},
                                  "pos": {"pos": 2}}
    assert list(found["confusion"]["neu"]) == ["neg", "neu", "odd"]


def test_a_class_that_is_neither_in_the_rows_nor_found_has_an_f1_of_zero():
    assert f1(np.array([[2, 1, 0], [0, 0, 0], [0, 0, 0]])).tolist() == [0.8, 0.0, 0.0]


def test_a_soft_target_is_of_its_most_probable_class():
    rows = [text({"neg": 0.25, "neu": 0.75, "pos": 0.0, "odd": 0.0}, (0, 0, 0, 0)), text("neg", (2, 2, 0, 0))]
    summary = summarise(rows)
    assert summary["accuracy"] == 0.5  # of equal logits the first class is taken
    assert summary["log_loss"] == pytest.approx((math.log(4) + math.log(2 * math.exp(2) + 2) - 2) / 2)


def test_an_evaluation_of_a_classification_has_its_languages():
    found = evaluation(TEXTS)
    assert set(found) == {"overall", "by_language", "by_source", "by_kind", "by_class", "confusion"}
    assert [(language, part["n"], part["accuracy"], part["most_common"])
            for language, part in found["by_language"].items()] == [
        ("en", 7, 5 / 7, 4 / 7), ("de", 3, 1 / 3, 2 / 3)]
    # neu: none found; pos: 1 of 1
    assert found["by_language"]["de"]["macro_f1"] == 0.5


@pytest.mark.parametrize("predictions", [FOUR, THREE, TEXTS], ids=["two", "three", "texts"])
def test_predictions_read_from_a_file_give_the_same_numbers(predictions):
    """As an evaluation's predictions.jsonl holds them."""
    read = [json.loads(json.dumps(prediction)) for prediction in predictions]
    assert evaluation(read) == evaluation(predictions)


def test_an_evaluation_can_be_written():
    for predictions in (FOUR, THREE, TEXTS):
        assert json.loads(json.dumps(evaluation(predictions))) == evaluation(predictions)


# Intervals


def test_no_interval_for_one_group():
    assert summarise([sure(A), sure(B)])["accuracy_interval"] is None


def test_no_mean_of_no_values():
    assert mean_interval(np.array([]), np.array([])) == (None, None)


def test_wilson_where_all_are_right_or_all_wrong():
    # z^2 = 3.841459: n / (n + z^2) of n = 10
    groups = np.array(list("abcdefghij"))
    mean, interval = mean_interval(np.ones(10), groups)
    assert (mean, interval) == (1.0, pytest.approx([0.7224672, 1.0]))
    mean, interval = mean_interval(np.zeros(10), groups)
    assert (mean, interval) == (0.0, pytest.approx([0.0, 0.2775328]))


def test_wilson_counts_groups_and_not_rows():
    _, interval = mean_interval(np.ones(20), np.array(list("abcdefghij") * 2))
    assert interval == pytest.approx([0.7224672, 1.0])


def test_interval_of_independent_rows_is_near_the_normal_one():
    values = np.array([1.0, 0.0] * 200)
    mean, (low, high) = mean_interval(values, np.arange(400))
    assert mean == 0.5
    assert (low, high) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=0.006)


def test_interval_is_wider_where_rows_are_clustered():
    values = np.array([1.0] * 50 + [0.0] * 50)
    _, alone = mean_interval(values, np.arange(100))
    _, clustered = mean_interval(values, np.arange(100) // 10)  # ten groups, each all right or all wrong
    assert clustered[1] - clustered[0] > 2 * (alone[1] - alone[0])


def test_interval_is_the_same_each_time_and_in_any_order():
    rows = [row((number / 7, 1), (number / 11, 2), group=f"group {number // 2}") for number in range(30)]
    shuffled = random.Random(0).sample(rows, len(rows))
    first = summarise(rows)
    assert summarise(rows) == first
    for name in ("accuracy_interval", "log_loss_interval"):
        assert summarise(shuffled)[name] == pytest.approx(first[name])


def test_interval_holds_the_mean():
    summary = summarise([sure(A if number % 3 else B, group=str(number)) for number in range(30)])
    low, high = summary["accuracy_interval"]
    assert 0 <= low < summary["accuracy"] == 2 / 3 < high <= 1


# Parts


def test_parts_add_up_and_the_largest_comes_first():
    rows = [sure(language=language) for language in ("de", "en", "en", "ar", "de", "en")]
    parts = by(rows, "language")
    assert [(value, part["n"]) for value, part in parts.items()] == [("en", 3), ("de", 2), ("ar", 1)]
    assert sum(part["n"] for part in parts.values()) == len(rows)


def test_equally_large_parts_come_by_name():
    assert list(by([sure(language=language) for language in ("fr", "ar", "de")], "language")) == ["ar", "de", "fr"]


def test_each_part_has_its_own_accuracy():
    parts = by([sure(A, language="en"), sure(B, language="de"), sure(A, language="en")], "language")
    assert (parts["en"]["accuracy"], parts["de"]["accuracy"]) == (1.0, 0.0)


# The table

TWO_LANGUAGES = [sure(A, group="1", characters=(9, 5)), sure(B, group="2", characters=(9, 5)),
                 row((2, 0), (0, 1), A, group="3", language="de", characters=(5, 9))]


def numbers(table: str) -> list[str]:
    """The lines of a table of comparisons, without the legend."""
    return table.rpartition("\n\naccuracy: both orders averaged;")[0].splitlines()


def test_table_has_a_line_for_all_and_one_per_language():
    lines = numbers(report.table(evaluation(TWO_LANGUAGES)))
    cells = [line.split() for line in lines]
    assert lines[0].split("  ")[-1] == "longer wins"
    assert cells[1][:3] == ["all", "3", "0.667"]
    assert cells[1][-5:] == ["0.500", "0.700", "0.333", "0.667", "0.333"]
    assert cells[2] == []
    assert cells[3][:6] == ["language", "en", "2", "0.500", "[0.000,", "1.000]"]
    assert cells[3][6:] == ["0.500", "0.813", "0.000", "0.500", "0.500"]
    assert cells[4] == ["language", "de", "1", "1.000", "-", "0.500", "0.474", "1.000", "1.000", "0.000"]
    assert len(lines) == 5  # a single source and a single kind have no lines of their own


def test_table_is_aligned_and_fits_a_terminal():
    rows = [sure(A if number % 3 else B, group=str(number), language=f"l{number % 4}", source=f"s{number % 2}")
            for number in range(1200)]
    lines = [line for line in numbers(report.table(evaluation(rows))) if line]
    assert len(lines) == 1 + 1 + 4 + 2
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 100
    assert "1,200" in lines[1]
    ends = [lines[0].index(title) + len(title) for title in ("accuracy", "95 % interval", "log-loss", "flips")]
    for line in lines[1:]:
        assert all(line[end - 1] != " " and line[end] == " " for end in ends)


def test_table_has_dashes_where_there_is_no_number():
    table = numbers(report.table(evaluation([row((1, 0), (1, 0), TIE)])))
    assert table[1].split() == ["all", "1", "-", "-", "-", "0.813", "0.000", "0.500", "-"]


def test_table_says_what_its_columns_mean():
    two, three = (report.table(evaluation(rows)) for rows in (FOUR, THREE))
    assert two.endswith("longer wins: accuracy of that rule. Ties are in no accuracy.")
    assert three.endswith("Ties are in no accuracy but\n'with ties', where the most probable of a, b and tie must be "
                          "the label.")
    assert max(map(len, [*two.splitlines(), *three.splitlines()])) <= 120


def test_table_of_three_classes():
    lines = [line.split("  ") for line in numbers(report.table(evaluation(THREE)))]
    assert [cell.strip() for cell in lines[0] if cell] == [
        "n", "accuracy", "95 % interval", "with ties", "one order", "log-loss", "flips", "first", "longer wins"]
    assert [cell.strip() for cell in lines[1] if cell] == [
        "all", "6", "0.750", "-", "0.333", "0.750", "1.805", "0.500", "0.292", "0.500"]
    assert len(lines) == 2


def test_table_of_a_classification():
    lines = report.table(evaluation(TEXTS)).splitlines()
    interval = evaluation(TEXTS)["overall"]["accuracy_interval"]
    assert [line.split() for line in lines[:2]] == [
        ["n", "accuracy", "95", "%", "interval", "macro-F1", "log-loss", "most", "common"],
        ["all", "10", "0.600", f"[{interval[0]:.3f},", f"{interval[1]:.3f}]", "0.667", "1.144", "0.400"]]
    assert lines[2] == ""
    assert [line.split()[:4] for line in lines[3:5]] == [["language", "en", "7", "0.714"],
                                                         ["language", "de", "3", "0.333"]]
    assert lines[5] == ""
    assert [line.split() for line in lines[6:11]] == [
        ["class", "n", "precision", "recall", "F1"],
        ["neg", "4", "0.600", "0.750", "0.667"],
        ["neu", "4", "0.500", "0.250", "0.333"],
        ["pos", "2", "1.000", "1.000", "1.000"],
        ["odd", "0", "0.000", "0.000", "0.000"]]
    assert lines[11:] == ["", "taken most often for another class: neu → neg (2), neg → neu (1), neu → odd (1)"]


def test_table_of_a_classification_without_an_error():
    assert report.table(evaluation([text("neg", "neg")])).endswith("no row was taken for another class")


def test_short_of_a_classification_is_one_line():
    interval = summarise(TEXTS)["accuracy_interval"]
    assert report.short(summarise(TEXTS)) == (
        f"accuracy 0.600 [{interval[0]:.3f}, {interval[1]:.3f}]  log-loss 1.144  macro-F1 0.667  (most common class "
        "0.400, n 10)")


def test_short_is_one_line():
    line = report.short(summarise(TWO_LANGUAGES))
    assert "\n" not in line
    assert line.startswith("accuracy 0.667 [0.000, 1.000]  log-loss 0.700  one order 0.500  flips 0.333")
