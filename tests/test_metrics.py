"""Predictions written out, and the numbers that follow from them."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written import A3, B3, FOUR, TEXTS, THREE, TIE, TIE3, A, B, row, sure, text

from pm.intervals import means
from pm.metrics import by_class, difference, evaluation, f1, ranks, summarise, surest_mistakes


def mean_interval(values: np.ndarray, groups: np.ndarray) -> list[float]:
    """Of a mean over rows that all count."""
    every = np.ones(len(values), dtype=bool)
    return means({"": (values, every)}, np.unique(groups, return_inverse=True)[1], ())[""][1]


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
    assert summarise(rows)["shortcuts"]["longer"]["accuracy"] == (1 + 0 + 1 + 0.5) / 4


# Three classes


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


def test_numbers_of_a_classification():
    summary = summarise(TEXTS)
    assert (summary["n"], summary["n_groups"], summary["accuracy"], summary["most_common"]) == (10, 9, 0.6, 0.4)
    # -ln of e / (e + 3) and of 1 / (e + 3)
    assert summary["log_loss"] == pytest.approx((6 * (math.log(math.e + 3) - 1) + 4 * math.log(math.e + 3)) / 10)
    # neg 6 / (4 + 5), neu 2 / (4 + 2), pos 1; none of the rows is odd
    assert summary["macro_f1"] == pytest.approx((2 / 3 + 1 / 3 + 1) / 3)
    low, high = summary["accuracy_interval"]
    assert 0 <= low < 0.6 < high <= 1
    assert not {"flip_rate", "n_ties", "shortcuts"} & summary.keys()


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
    assert set(found) == {"overall", "by_language", "by_source", "by_kind", "by_length", "by_class", "confusion",
                          "reliability", "lengths"}
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


# Probabilities


def says(probability: float, target=A, **columns) -> dict:
    """A prediction that gives a this probability against b."""
    margin = math.log(probability / (1 - probability))
    return row((margin, 0), (margin, 0), target, **columns)


def test_brier_is_the_squared_error_summed_over_the_classes():
    rows = [says(0.8, A), says(0.8, B), says(0.6, {"a": 0.75, "b": 0.25}), says(0.5, TIE)]
    assert summarise(rows)["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.8**2 + 2 * 0.15**2 + 0) / 4)


def test_brier_of_three_classes():
    rows = [row((0, 0, 0), (0, 0, 0), A3), row((0, 0, 0), (0, 0, 0), {"a": 0.5, "b": 0.25, "tie": 0.25}),
            row((math.log(2), 0, 0), (math.log(2), 0, 0), TIE3)]  # 1/2, 1/4, 1/4
    assert summarise(rows)["brier"] == pytest.approx((6 / 9 + (1 / 36 + 2 / 144) + (1 / 4 + 1 / 16 + 9 / 16)) / 3)


def test_brier_of_texts():
    # e / (e + 3) = 0.475367 and three times 0.174878; six are right
    right, wrong = 0.524633**2 + 3 * 0.174878**2, 0.475367**2 + 0.825122**2 + 2 * 0.174878**2
    assert summarise(TEXTS)["brier"] == pytest.approx((6 * right + 4 * wrong) / 10, abs=1e-5)


def test_calibration_error_by_hand():
    """Bins of 0.05 from 0.5: three rows from 0.8 to 0.85, of which two are right; one from 0.6 to 0.65, wrong."""
    rows = [says(0.81, A), says(0.18, B), says(0.84, B), says(0.62, B)]
    found = evaluation(rows)
    assert found["reliability"] == {"before": [
        {"n": 1, "confidence": pytest.approx(0.62), "outcome": 0.0},
        {"n": 3, "confidence": pytest.approx((0.81 + 0.82 + 0.84) / 3), "outcome": pytest.approx(2 / 3)}]}
    assert found["overall"]["ece"] == pytest.approx((0.62 + abs(0.81 + 0.82 + 0.84 - 2)) / 4)


def test_errors_of_one_bin_cancel_and_those_of_two_add_up():
    assert summarise([says(0.76, A), says(0.76, A), says(0.76, A), says(0.72, B)])["ece"] == pytest.approx(
        (3 * 0.24 + 0.72) / 4)
    assert summarise([says(0.76, A), says(0.76, A), says(0.76, A), says(0.76, B)])["ece"] == pytest.approx(0.01)


def test_calibration_error_of_three_classes_by_hand():
    """Bins of 1/15 from 1/3: logits ln 3, ln 2, 0 are 1/2, 1/3, 1/6; ln 8, 0, 0 are 0.8, 0.1, 0.1."""
    half, sure = (math.log(3), math.log(2), 0), (0, 0, math.log(8))
    found = evaluation([row(half, half, A3), row(half, half, B3), row(half, half, TIE3), row(sure, sure, TIE3)])
    assert found["reliability"]["before"] == [
        {"n": 3, "confidence": pytest.approx(1 / 2), "outcome": pytest.approx(1 / 3)},
        {"n": 1, "confidence": pytest.approx(0.8), "outcome": 1.0}]
    assert found["overall"]["ece"] == pytest.approx((3 * (1 / 2 - 1 / 3) + 0.2) / 4)


def test_classes_that_are_equally_probable_share_the_outcome():
    found = evaluation([row((0, 0), (0, 0), A), row((2, 0), (0, 2), B)])
    assert found["reliability"]["before"] == [{"n": 2, "confidence": 0.5, "outcome": 0.5}]
    assert found["overall"]["ece"] == 0
    two, all_three = (math.log(2), math.log(2), 0), (0, 0, 0)  # 2/5, 2/5, 1/5, and 1/3 each
    found = evaluation([row(two, two, A3), row(two, two, TIE3), row(all_three, all_three, B3)])
    assert found["reliability"]["before"] == [
        {"n": 1, "confidence": pytest.approx(1 / 3), "outcome": pytest.approx(1 / 3)},
        {"n": 2, "confidence": pytest.approx(2 / 5), "outcome": 0.25}]


def test_the_outcome_of_a_soft_target_is_its_probability():
    rows = [says(0.77, {"a": 0.7, "b": 0.3}), says(0.23, {"a": 0.5, "b": 0.5})]
    assert evaluation(rows)["reliability"]["before"] == [
        {"n": 2, "confidence": pytest.approx(0.77), "outcome": pytest.approx(0.6)}]


def test_the_surest_probabilities_are_in_the_last_bin():
    found = evaluation([row((5000, 0), (5000, 0), A), says(0.96, A)])
    assert found["reliability"]["before"] == [{"n": 2, "confidence": pytest.approx(0.98), "outcome": 1.0}]


def test_the_interval_of_a_calibration_error_is_that_of_its_only_bin():
    """All say 0.93 and 70 % are right: an error of 0.23, with the width that the share of right ones has."""
    rows = [says(0.93, A if number % 10 < 7 else B, group=str(number)) for number in range(400)]
    summary = summarise(rows)
    assert summary["ece"] == pytest.approx(0.23)
    assert summary["ece_interval"] == pytest.approx([0.23 - 0.045, 0.23 + 0.045], abs=0.005)
    low, high = summary["accuracy_interval"]
    assert summary["ece_interval"][1] - summary["ece_interval"][0] == pytest.approx(high - low, abs=0.01)


def test_no_interval_of_a_calibration_error_of_one_group():
    assert summarise([says(0.9, A), says(0.6, B)])["ece_interval"] is None


# Temperatures


@pytest.mark.parametrize("predictions", [FOUR, THREE, TEXTS], ids=["two", "three", "texts"])
def test_without_temperatures_nothing_is_calibrated(predictions):
    assert not [name for name in summarise(predictions) if "calibrated" in name]
    assert list(evaluation(predictions)["reliability"]) == ["before"]


def divided(prediction: dict, temperature: float) -> dict:
    return prediction | {name: [logit / temperature for logit in logits] for name, logits in prediction.items()
                         if name.startswith("logits")}


@pytest.mark.parametrize("predictions", [FOUR, THREE, TEXTS], ids=["two", "three", "texts"])
def test_calibrated_numbers_are_those_of_divided_logits(predictions):
    predictions = [one | {"group": str(number // 2)} for number, one in enumerate(predictions)]
    temperatures = [1.0, 2.0, 0.25, 4.0] * 3
    pairs = list(zip(predictions, temperatures, strict=False))
    found = evaluation([one | {"temperature": temperature} for one, temperature in pairs])
    wanted = evaluation([divided(one, temperature) for one, temperature in pairs])
    for name in ("log_loss", "brier", "ece"):
        for ending in ("", "_interval"):
            assert found["overall"][f"{name}_calibrated{ending}"] == wanted["overall"][f"{name}{ending}"]
    assert found["reliability"]["after"] == wanted["reliability"]["before"]


@pytest.mark.parametrize("predictions", [FOUR, THREE, TEXTS], ids=["two", "three", "texts"])
def test_temperatures_leave_the_other_numbers_as_they_are(predictions):
    found = summarise([one | {"temperature": 2.0} for one in predictions])
    assert {name: value for name, value in found.items() if "_calibrated" not in name} == summarise(predictions)


def test_a_single_temperature_is_enough_for_calibrated_numbers():
    parts = evaluation([sure(language="en"), sure(language="de", temperature=2.0)])["by_language"]
    assert parts["en"]["log_loss_calibrated"] == parts["en"]["log_loss"] == pytest.approx(0.3132617)
    assert parts["de"]["log_loss_calibrated"] == pytest.approx(0.4740770)  # ln(1 + e^-0.5)


# AUC


def auc_one_by_one(margins: list[float]) -> float:
    """Each row as (a, b) and as (b, a): how often a better one is above a worse one."""
    pairs = [(better, -worse) for better in margins for worse in margins]
    return sum((better > worse) + (better == worse) / 2 for better, worse in pairs) / len(pairs)


def drawn(count: int, seed: int = 0, rows_of_a_group: int = 1) -> list[dict]:
    """Predictions that are mostly right, with margins of halves, so that some are equal and some even."""
    random_state = np.random.default_rng(seed)
    result = []
    for number in range(count):
        target = A if random_state.random() < 0.5 else B
        margin = round(2 * (random_state.normal(0.7, 1.5))) / 2 * (1 if target is A else -1)
        other = round(random_state.normal()) / 2
        result.append(row((margin + other, 0), (margin - other, 0), target, group=str(number // rows_of_a_group)))
    return result


def margins_of_the_better(rows: list[dict]) -> list[float]:
    return [(one["logits_ab"][0] + one["logits_ba"][0]) / 2 * (1 if one["target"] is A else -1) for one in rows]


def test_auc_by_hand():
    # The better responses' margins are 1, -2 and 3: sums above 0 are 1 + 1, 1 + 3 (twice), -2 + 3 (twice) and 3 + 3
    rows = [row((1, 0), (1, 0), A), row((2, 0), (2, 0), B), row((0, 3), (0, 3), B)]
    assert summarise(rows)["auc"] == pytest.approx(6 / 9)


@pytest.mark.parametrize("count", [1, 2, 10, 101])
def test_auc_is_that_of_all_pairs_of_rows(count):
    rows = drawn(count)
    assert summarise(rows)["auc"] == pytest.approx(auc_one_by_one(margins_of_the_better(rows)))


def test_auc_is_the_area_under_the_curve_of_rows_both_ways_round():
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rows = drawn(200)
    margins = np.array([(one["logits_ab"][0] + one["logits_ba"][0]) / 2 for one in rows])
    labels = np.array([one["target"] is A for one in rows])
    assert summarise(rows)["auc"] == pytest.approx(
        sklearn.roc_auc_score(np.concatenate([labels, ~labels]), np.concatenate([margins, -margins])))


def test_auc_of_models_that_are_always_right_wrong_or_even():
    assert summarise([sure(A), sure(B, B)])["auc"] == 1.0
    assert summarise([sure(A, B), sure(B, A)])["auc"] == 0.0
    assert summarise([row((0, 0), (0, 0), A), row((1, 0), (0, 1), B)])["auc"] == 0.5


def test_auc_of_a_model_that_always_says_a_is_even():
    assert summarise([sure(A, A), sure(B, A)])["auc"] == 0.5


def test_auc_leaves_ties_out():
    rows = drawn(20)
    assert summarise([*rows, sure(TIE, A), sure(TIE, B)])["auc"] == summarise(rows)["auc"]
    assert summarise([sure(TIE, A)])["auc"] is summarise([sure(TIE, A)])["auc_interval"] is None


def test_auc_of_a_part_is_of_its_rows_alone():
    rows = [one | {"language": "de" if number % 3 else "en"} for number, one in enumerate(drawn(30))]
    for language, part in evaluation(rows)["by_language"].items():
        assert part["auc"] == summarise([one for one in rows if one["language"] == language])["auc"]


@pytest.mark.parametrize("rows_of_a_group", [1, 4])
def test_the_interval_of_auc_is_that_of_a_plain_bootstrap(rows_of_a_group):
    rows = drawn(120, 3, rows_of_a_group)
    margins, groups = np.array(margins_of_the_better(rows)), np.array([int(one["group"]) for one in rows])
    above = (np.sign(margins[:, None] + margins[None]) + 1) / 2
    random_state, count = np.random.default_rng(5), groups.max() + 1
    aucs = []
    for _ in range(3000):
        times = np.bincount(random_state.integers(count, size=count), minlength=count)[groups]
        aucs.append(times @ above @ times / times.sum() ** 2)
    low, high = np.percentile(aucs, (2.5, 97.5))
    assert summarise(rows)["auc_interval"] == pytest.approx([low, high], abs=0.15 * (high - low))


def test_the_interval_of_auc_stays_within_0_and_1():
    rows = [row((5, 0), (5, 0), A, group=str(number)) for number in range(5)] + [row((1, 0), (1, 0), B, group="5")]
    summary, other = summarise(rows), summarise([one | {"target": B if one["target"] is A else A} for one in rows])
    assert (summary["auc"], summary["auc_interval"][1]) == (pytest.approx(35 / 36), 1.0)
    assert (other["auc"], other["auc_interval"][0]) == (pytest.approx(1 / 36), 0.0)


def test_an_auc_of_1_or_0_has_an_interval_like_every_share():
    for rows, wanted in (([sure(A, A)] * 3, [1 - 3.8415 / 6.8415, 1.0]), ([sure(A, B)] * 3, [0.0, 3.8415 / 6.8415])):
        rows = [one | {"group": str(number)} for number, one in enumerate(rows)]
        assert summarise(rows)["auc_interval"] == pytest.approx(wanted, abs=1e-4)


# Shortcuts


def test_more_markdown_wins_is_the_accuracy_of_the_response_with_more_signs():
    rows = [sure(A, markdown_a=3), sure(A, markdown_b=1), sure(B, markdown_b=2), sure(A, markdown_a=2, markdown_b=2),
            sure(TIE, markdown_a=9)]
    found = summarise(rows)["shortcuts"]["more_markdown"]
    assert (found["n"], found["accuracy"]) == (4, (1 + 0 + 1 + 0.5) / 4)


def test_always_a_is_the_share_of_a():
    found = summarise([sure(A), sure(A), sure(B), sure(A), sure(TIE)])["shortcuts"]["always_a"]
    assert (found["n"], found["accuracy"]) == (4, 3 / 4)


def test_a_shortcut_is_compared_with_the_model_on_the_same_rows():
    """Longer: right, right, wrong, even. The model: right, wrong, right, right."""
    rows = [sure(A, A, characters=(9, 5)), sure(A, B, characters=(9, 5)), sure(A, A, characters=(5, 9)),
            sure(B, B, characters=(5, 5)), sure(TIE, A, characters=(9, 5))]
    rows = [one | {"group": str(number)} for number, one in enumerate(rows)]
    found = summarise(rows)["shortcuts"]["longer"]
    assert (found["accuracy"], found["difference"]) == ((1 + 1 + 0 + 0.5) / 4, (0 - 1 + 1 + 0.5) / 4)
    low, high = found["difference_interval"]
    assert low < 0 < high


def test_the_interval_of_a_paired_difference_is_that_of_the_rows_differences():
    rows = [one | {"characters_a": number % 4} for number, one in enumerate(drawn(60, rows_of_a_group=2))]
    rows = [one | {"characters_b": 2} for one in rows]
    right = (np.sign(margins_of_the_better(rows)) + 1) / 2
    longer = np.array([(1 + np.sign(one["characters_a"] - 2) * (1 if one["target"] is A else -1)) / 2 for one in rows])
    groups = np.array([one["group"] for one in rows])
    found = summarise(rows)["shortcuts"]["longer"]
    assert (found["accuracy"], found["accuracy_interval"]) == (
        pytest.approx(longer.mean()), pytest.approx(mean_interval(longer, groups)))
    assert (found["difference"], found["difference_interval"]) == (
        pytest.approx((right - longer).mean()), pytest.approx(mean_interval(right - longer, groups)))


def test_shortcuts_of_rows_are_log_odds_and_rows_without_are_left_out():
    rows = [sure(A, A, shortcuts={"n_grams": 2.0, "prompt_only": -1.0}), sure(B, A, shortcuts={"n_grams": -1.0}),
            sure(A, A), sure(A, A, shortcuts={"n_grams": 0.0}), sure(TIE, A, shortcuts={"n_grams": 1.0})]
    found = summarise(rows)["shortcuts"]
    assert list(found) == ["longer", "more_markdown", "always_a", "n_grams", "prompt_only"]
    assert (found["n_grams"]["n"], found["prompt_only"]["n"], found["longer"]["n"]) == (3, 1, 4)
    assert found["n_grams"]["accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["n_grams"]["difference"] == pytest.approx((0 - 1 + 0.5) / 3)
    assert (found["prompt_only"]["accuracy"], found["prompt_only"]["difference"]) == (0.0, 1.0)


def test_a_part_without_rows_of_a_shortcut_has_no_number_of_it():
    rows = [sure(A, language="en", shortcuts={"n_grams": 2.0}), sure(A, language="de")]
    assert evaluation(rows)["by_language"]["de"]["shortcuts"]["n_grams"] == {
        "n": 0, "accuracy": None, "accuracy_interval": None, "difference": None, "difference_interval": None}


# Intervals


def test_no_interval_for_one_group():
    assert summarise([sure(A), sure(B)])["accuracy_interval"] is None


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
    parts = evaluation(rows)["by_language"]
    assert [(value, part["n"]) for value, part in parts.items()] == [("en", 3), ("de", 2), ("ar", 1)]
    assert sum(part["n"] for part in parts.values()) == len(rows)


def test_equally_large_parts_come_by_name():
    rows = [sure(language=language) for language in ("fr", "ar", "de")]
    assert list(evaluation(rows)["by_language"]) == ["ar", "de", "fr"]


def test_each_part_has_its_own_accuracy():
    rows = [sure(A, language="en"), sure(B, language="de"), sure(A, language="en")]
    parts = evaluation(rows)["by_language"]
    assert (parts["en"]["accuracy"], parts["de"]["accuracy"]) == (1.0, 0.0)


def test_lengths_are_in_their_own_order():
    tokens = [4097, 128, 1, 129, 129, 129, 9000, 4096]
    parts = evaluation([sure(tokens=count) for count in tokens])["by_length"]
    assert [(value, part["n"]) for value, part in parts.items()] == [
        ("1 to 128", 2), ("129 to 256", 3), ("2049 to 4096", 1), ("over 4096", 2)]


def test_length_differences_are_those_of_the_better_response():
    #      better half     equal       better longer  double         half, b     tie         shorter, b
    rows = [sure(A, characters=(4, 10)), sure(A, characters=(10, 10)), sure(A, characters=(15, 10)),
            sure(A, characters=(21, 10)), sure(B, characters=(10, 4)), sure(TIE, characters=(90, 1)),
            sure(B, characters=(10, 7)), sure(B, characters=(100, 95)), sure(A, characters=(1, 0))]
    parts = evaluation(rows)["by_length_difference"]
    assert [(value, part["n"]) for value, part in parts.items()] == [
        ("better under half", 2), ("better shorter", 1), ("about equal", 2), ("better longer", 1),
        ("better over double", 2), ("tie", 1)]
    assert parts["tie"]["accuracy"] is None
    assert "by_length_difference" not in evaluation(TEXTS)


def test_dimensions_can_be_crossed():
    rows = [sure(A, A, language="en", kind="x"), sure(A, B, language="de", kind="y"),
            sure(A, A, language="de", kind="y"), sure(A, A, language="de", kind="x", tokens=900)]
    found = evaluation(rows, [("language", "kind"), ("kind", "length", "language")])
    assert [(value, part["n"], part["accuracy"]) for value, part in found["by_language,kind"].items()] == [
        ("de, y", 2, 0.5), ("de, x", 1, 1.0), ("en, x", 1, 1.0)]
    assert list(found["by_kind,length,language"]) == ["y, 1 to 128, de", "x, 1 to 128, en", "x, 513 to 1024, de"]


def test_crossed_lengths_are_in_their_own_order():
    rows = [sure(A, characters=(30, 10), tokens=900), sure(A, characters=(30, 10)), sure(A, characters=(30, 10)),
            sure(A, characters=(1, 10))]
    assert list(evaluation(rows, [("length", "length_difference")])["by_length,length_difference"]) == [
        "1 to 128, better under half", "1 to 128, better over double", "513 to 1024, better over double"]


# Two models


def contents(rows: list[dict], names: str) -> list[dict]:
    return [one | {"content": name, "group": name} for one, name in zip(rows, names, strict=True)]


def test_a_difference_is_that_of_the_first_to_the_second():
    one = contents([sure(A, A), sure(A, A), sure(A, A), sure(B, A)], "pqrs")
    other = contents([sure(A, B), sure(A, A), sure(A, B), sure(B, A)], "pqrs")
    found = difference(one, other)
    assert (found["n"], found["n_alone"]) == (4, 0)
    assert (found["accuracy"], found["accuracy_single_order"], found["flip_rate"]) == (0.5, 0.5, 0.0)
    assert found["log_loss"] == pytest.approx(-2 / 4)  # ln(1 + e^-1) - ln(1 + e), twice
    assert difference(other, one)["accuracy"] == -0.5


def test_the_interval_of_a_difference_is_that_of_the_rows_differences():
    one, other = drawn(80, 1, rows_of_a_group=2), drawn(80, 2)
    pairs = [(first | {"content": str(number)}, first | {"content": str(number), "logits_ab": second["logits_ab"],
                                                         "logits_ba": second["logits_ba"]})
             for number, (first, second) in enumerate(zip(one, other, strict=True))]
    one, other = zip(*pairs, strict=True)
    right, others_right = ((np.sign(margins_of_the_better(rows)) + 1) / 2 for rows in (one, other))
    mean, interval = (right - others_right).mean(), mean_interval(right - others_right, [row["group"] for row in one])
    found = difference(one, other)
    assert (found["accuracy"], found["accuracy_interval"]) == (pytest.approx(mean), pytest.approx(interval))
    low, high = found["accuracy_interval"]
    assert low < mean < high


def test_rows_are_joined_by_their_texts():
    one = contents([sure(A, A), sure(A, A), sure(B, A)], "pqr")
    other = contents([sure(B, B), sure(A, B), sure(A, A)], "rpx")
    found = difference(one, other)
    assert (found["n"], found["n_alone"]) == (2, 1)  # p and r
    assert found["accuracy"] == ((1 - 0) + (0 - 1)) / 2
    assert found["prefers_first"] == 0.0


def test_texts_that_are_repeated_are_joined_in_their_order_and_once_each():
    one = contents([sure(A, A), sure(A, B), sure(A, A)], "ppp")
    other = contents([sure(A, A), sure(A, A)], "pp")
    found = difference(one, other)
    assert (found["n"], found["n_alone"], found["accuracy"]) == (2, 1, -0.5)
    found = difference(other, one)
    assert (found["n"], found["n_alone"], found["accuracy"]) == (2, 0, 0.5)
    assert difference(contents([sure(A, A)], "p"), contents([sure(A, B), sure(A, A)], "pp"))["accuracy"] == 1.0


def test_the_order_in_which_classes_are_named_does_not_matter():
    other = [one | {"target": dict(reversed(one["target"].items())), "logits": one["logits"][::-1]} for one in TEXTS]
    found = difference(TEXTS, other)
    assert (found["n"], found["n_alone"], found["accuracy"], found["log_loss"]) == (
        len(TEXTS), 0, 0.0, pytest.approx(0.0, abs=1e-12))


def test_no_row_in_common_is_an_error():
    with pytest.raises(ValueError, match="the two have no row in common"):
        difference(contents([sure()], "p"), contents([sure()], "q"))
    with pytest.raises(ValueError, match="the two have no row in common"):
        difference(contents([sure()], "p"), [])


def test_a_model_that_compares_has_no_difference_to_one_that_classifies():
    with pytest.raises(ValueError, match="one compares responses and the other classifies texts"):
        difference(FOUR, TEXTS)


def test_rows_whose_targets_are_others_are_not_compared():
    one = contents([sure(A), sure(A), sure(B)], "xyz")
    other = contents([sure(A), sure(B), sure(B)], "xyz")
    assert (difference(one, other)["n"], difference(one, other)["n_alone"]) == (2, 1)
    with pytest.raises(ValueError, match="the two have no row in common"):
        difference(one, [one[0] | {"target": A3, "logits_ab": [0, 0, 0], "logits_ba": [0, 0, 0]}])


def test_a_difference_of_classifications():
    other = [one | {"logits": [0.0, 1.0, 0.0, 0.0]} for one in TEXTS]  # always neu: 4 of 10
    one = [row | {"content": str(number)} for number, row in enumerate(TEXTS)]
    other = [row | {"content": str(number)} for number, row in enumerate(other)]
    assert difference(one, other)["accuracy"] == pytest.approx(0.6 - 0.4)


def test_calibrated_numbers_differ_where_both_are_calibrated():
    one = contents([sure(A, temperature=2.0)], "p")
    other = contents([sure(A, temperature=0.5)], "p")
    assert difference(one, other)["log_loss"] == 0.0
    # ln(1 + e^-0.5) - ln(1 + e^-2)
    assert difference(one, other)["log_loss_calibrated"] == pytest.approx(0.4740770 - 0.1269280)
    assert "log_loss_calibrated" not in difference(one, contents([sure(A)], "p"))


# Mistakes


def test_the_surest_mistakes_take_languages_in_turn():
    rows = [says(0.6, B, id="1"), says(0.9, B, id="2"), says(0.99, A, id="3"), says(0.8, B, id="4"),
            says(0.7, B, id="5", language="de"), says(0.2, A, id="6", language="de"),
            says(0.55, B, id="7", language="fr")]
    wanted = ["2", "6", "7", "4", "5", "1"]
    assert [one["id"] for one in surest_mistakes(rows, 10)] == wanted
    for most in range(len(wanted)):
        assert [one["id"] for one in surest_mistakes(rows, most)] == wanted[:most]


def test_right_verdicts_even_verdicts_and_ties_are_no_mistakes():
    assert surest_mistakes([sure(A, A), row((1, 0), (0, 1), A), sure(TIE, A)], 10) == []


def test_the_surest_mistake_is_that_of_calibrated_probabilities():
    rows = [says(0.9, B, id="1", temperature=4.0), says(0.8, B, id="2")]
    assert [one["id"] for one in surest_mistakes(rows, 2)] == ["2", "1"]


# Rankings


def pair(names: str, target=A, group="g", margin=1) -> dict:
    return row((margin, 0), (margin, 0), target, content_a=names[0], content_b=names[1], group=group)


def test_rankings_by_hand():
    """In g verdicts are an order, which two labels of three agree with; in h a circle; i has two responses."""
    rows = [pair("xy"), pair("yz"), pair("xz", B), pair("xy", group="h"), pair("yz", group="h"), pair("zx", group="h"),
            pair("xy", group="i")]
    found = ranks(rows)
    assert found == evaluation(rows)["ranking"]
    assert (found["n_prompts"], found["n_responses"], found["triples"], found["pairs"]) == (2, 6, 2, 6)
    assert found["cycle_rate"] == 1 / 2
    assert found["kendall_tau"] == pytest.approx((2 - 1) / 6)
    assert found["cycle_rate_interval"] == [0.0, 1.0]
    assert found["kendall_tau_interval"] == [-1.0, 1.0]  # of two groups nothing can be said


def test_kendalls_tau_of_labels_that_are_an_order():
    # The labels x, y, z, w; the scores y, x, z, w: five pairs of six
    labels = [pair("xy", A, margin=-1), *(pair(names) for names in ("xz", "xw", "yz", "yw", "zw"))]
    assert ranks(labels)["kendall_tau"] == pytest.approx((5 - 1) / 6)


def test_rankings_of_a_single_group_have_no_interval():
    found = ranks([pair("xy"), pair("yz"), pair("xz")])
    assert (found["cycle_rate"], found["cycle_rate_interval"]) == (0.0, None)
    assert (found["kendall_tau"], found["kendall_tau_interval"]) == (1.0, None)


def test_rankings_without_labels_or_without_triples_have_no_number_of_these():
    found = ranks([pair("xy", TIE), pair("yz", TIE)])
    assert (found["triples"], found["cycle_rate"], found["cycle_rate_interval"]) == (0, None, None)
    assert (found["pairs"], found["kendall_tau"], found["kendall_tau_interval"]) == (0, None, None)


def test_no_rankings_where_no_prompt_has_three_responses():
    assert ranks(FOUR) is None
    assert evaluation(FOUR)["ranking"] is None
    assert "ranking" not in evaluation(TEXTS)


# Which response is called a


def swapped(prediction: dict) -> dict:
    """The same comparison with the responses named the other way round."""
    def turned(logits: list[float]) -> list[float]:
        return [logits[1], logits[0], *logits[2:]]

    turn = {"a": "b", "b": "a", "tie": "tie"}
    columns = {name: prediction[f"{name[:-1]}{turn[name[-1]]}"]
               for name in prediction if name.startswith(("content_", "characters_", "markdown_"))}
    target = {label: prediction["target"][turn[label]] for label in prediction["target"]}
    shortcuts = {name: -odds for name, odds in prediction["shortcuts"].items()}
    return prediction | columns | {"logits_ab": turned(prediction["logits_ba"]), "shortcuts": shortcuts,
                                   "logits_ba": turned(prediction["logits_ab"]), "target": target}


@st.composite
def comparisons(draw) -> list[dict]:
    """Predictions of two classes or of three."""
    classes = draw(st.integers(2, 3))
    targets = [A, B, TIE, {"a": 0.75, "b": 0.25}] if classes == 2 else [A3, B3, TIE3, {"a": 0.2, "b": 0.3, "tie": 0.5}]
    logits = st.lists(st.integers(-4, 4), min_size=classes, max_size=classes)
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        ab, ba = draw(logits), draw(logits)
        if classes == 3:
            ab[0] += 0.125  # a and b are never equal: the first one would be the most probable of three
        a, b = draw(st.permutations("xyzw"))[:2]
        rows.append(row(ab, ba, draw(st.sampled_from(targets)), content_a=a, content_b=b,
                        characters=(draw(st.integers(0, 30)), draw(st.integers(0, 30))),
                        markdown_a=draw(st.integers(0, 2)), markdown_b=draw(st.integers(0, 2)),
                        group=draw(st.sampled_from("gh")), language=draw(st.sampled_from(["en", "de"])),
                        temperature=draw(st.sampled_from([1.0, 2.0])),
                        shortcuts=draw(st.sampled_from([{}, {"n_grams": 0.5}, {"n_grams": 0.0}, {"n_grams": -2.0}]))))
    return rows


def without_always_a(found: dict) -> dict:
    """An evaluation without what depends on which response is called a."""
    found = json.loads(json.dumps(found))
    del found["orders"]
    parts = [part for name, values in found.items() if name.startswith("by_") for part in values.values()]
    for part in (found["overall"], *parts):
        del part["shortcuts"]["always_a"]
    return found


@settings(deadline=None, max_examples=60, derandomize=True)
@given(comparisons())
def test_which_response_is_called_a_changes_no_number_but_always_a(rows):
    here, there = evaluation(rows), evaluation([swapped(one) for one in rows])
    assert without_always_a(there) == without_always_a(here)
    share = here["overall"]["shortcuts"]["always_a"]["accuracy"]
    if share is not None:
        assert there["overall"]["shortcuts"]["always_a"]["accuracy"] == pytest.approx(1 - share)


def test_auc_of_a_difference():
    one, other = contents([sure(A, A), sure(B, B)], "pq"), contents([sure(A, B), sure(B, A)], "pq")
    assert difference(one, other)["auc"] == 1.0


def test_a_model_differs_from_itself_by_nothing():
    rows = contents([sure(A, A if number % 3 else B, group=str(number)) for number in range(10)], "abcdefghij")
    found = difference(rows, rows)
    assert {name: found[name] for name in found if name.endswith("_interval")} == {
        f"{name}_interval": [0.0, 0.0] for name in ("accuracy", "accuracy_single_order", "flip_rate", "prefers_first",
                                                    "log_loss", "brier", "auc")}


def test_a_difference_turned_round_has_the_interval_turned_round():
    one, other = (contents([sure(A, verdict, group=str(number)) for number in range(10)], "abcdefghij")
                  for verdict in (A, B))
    low, high = difference(one, other)["accuracy_interval"]
    assert difference(other, one)["accuracy_interval"] == [-high, -low]


def test_a_shortcut_that_is_always_as_right_as_the_model_differs_by_nothing():
    rows = [sure(A, A, characters=(9, 5), group=str(number)) for number in range(10)]
    assert summarise(rows)["shortcuts"]["longer"]["difference_interval"] == [0.0, 0.0]


def test_the_interval_of_the_calibration_error_holds_the_estimate_and_of_a_perfect_model_zero():
    outside, above = 0, 0
    for seed in range(40):
        random_state = np.random.default_rng(seed)
        p = random_state.uniform(0.02, 0.98, 400)
        rows = [says(q, A if right else B, group=str(number))
                for number, (q, right) in enumerate(zip(p, random_state.random(400) < p, strict=True))]
        summary = summarise(rows)
        low, high = summary["ece_interval"]
        outside += not low <= summary["ece"] <= high
        above += low > 0
    assert outside == 0
    assert above <= 5  # 2 in 40 are expected


def test_lengths_are_compared_alike_both_ways_round():
    rows = [sure(A, characters=characters) for characters in ((20, 10), (10, 20), (10, 9), (9, 10), (21, 10), (10, 21))]
    assert {name: part["n"] for name, part in evaluation(rows)["by_length_difference"].items()} == {
        "better under half": 1, "better shorter": 1, "about equal": 2, "better longer": 1, "better over double": 1}


def test_the_surest_mistakes_of_three_classes_are_between_a_and_b():
    rows = [row((0.1, 0, 9), (0.1, 0, 9), B3, id="sure of tie"), row((3, 0, 0), (3, 0, 0), B3, id="sure of a")]
    assert surest_mistakes(rows, 1)[0]["id"] == "sure of a"


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_row_without_finite_logits_spoils_means_and_nothing_more():
    rows = [sure(A, A, group="1"), row((math.nan, 0), (1, 0), A, group="2"), sure(B, A, group="3")]
    found = evaluation(rows)
    assert math.isnan(found["overall"]["accuracy"]) and found["overall"]["shortcuts"]["longer"]["accuracy"] == 0.5
