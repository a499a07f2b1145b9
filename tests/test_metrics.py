"""Predictions written out, and the numbers that follow from them."""

import math
import random

import numpy as np
import pytest

from pm import report
from pm.metrics import by, mean_interval, summarise

A, B, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


def row(ab, ba, target=A, group="g", language="en", characters=(10, 10), source="s", kind="k") -> dict:
    """A prediction. `ab` and `ba`: logits of (a, b), read in the order A, B and in the order B, A."""
    return {"logits_ab": list(ab), "logits_ba": list(ba), "target": target, "group": group, "language": language,
            "characters_a": characters[0], "characters_b": characters[1], "source": source, "kind": kind}


def sure(target=A, verdict=A, **columns) -> dict:
    """A prediction with the same verdict in both orders."""
    return row(verdict, verdict, target, **columns)


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
    rows = [row((1, 0), (1, 0), [0.75, 0.25]), row((0, 0), (0, 0), TIE)]
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
    assert summarise([sure([0.75, 0.25], A), sure([0.25, 0.75], A)])["accuracy"] == 0.5


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


def test_no_rows_have_no_numbers():
    summary = summarise([])
    assert (summary["n"], summary["n_ties"], summary["n_groups"]) == (0, 0, 0)
    assert summary["accuracy"] is None
    assert summary["log_loss_interval"] is None


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


def test_table_has_a_line_for_all_and_one_per_language():
    lines = report.table(report.evaluation(TWO_LANGUAGES)).splitlines()
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
    lines = [line for line in report.table(report.evaluation(rows)).splitlines() if line]
    assert len(lines) == 1 + 1 + 4 + 2
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 100
    assert "1,200" in lines[1]
    ends = [lines[0].index(title) + len(title) for title in ("accuracy", "95 % interval", "log-loss", "flips")]
    for line in lines[1:]:
        assert all(line[end - 1] != " " and line[end] == " " for end in ends)


def test_table_of_no_rows_has_dashes():
    assert report.table(report.evaluation([])).splitlines()[1].split() == ["all", "0", *["-"] * 7]


def test_short_is_one_line():
    line = report.short(summarise(TWO_LANGUAGES))
    assert "\n" not in line
    assert line.startswith("accuracy 0.667 [0.000, 1.000]  log-loss 0.700  one order 0.500  flips 0.333")
