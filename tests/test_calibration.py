"""Temperatures of logits whose true temperature is known."""

import json
import random
from dataclasses import asdict

import numpy as np
import pytest

from pm.calibration import HIGHEST, LOWEST, Calibration, fit_temperatures
from pm.predictions import mean_logits, softmax, targets

A, B, TIE = {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 0.5}
NAMES = ("a", "b", "tie")


def row(logits, target, language="en") -> dict:
    """A comparison that was read the same way in both orders."""
    return {"logits_ab": list(logits), "logits_ba": list(logits), "target": target, "language": language}


def simulated(count: int, temperature: float, classes: int = 2, soft: bool = False, language: str = "en") -> list[dict]:
    """Logits that are `temperature` times those which the labels were drawn from; or whose probabilities are the
    targets. The two orders differ, and their mean counts."""
    random_state = np.random.default_rng(0)
    true_NC = random_state.normal(0, 1.5, (count, classes))
    p_NC = softmax(true_NC)
    if not soft:
        p_NC = np.eye(classes)[[random_state.choice(classes, p=p) for p in p_NC]]
    shift_NC = random_state.normal(0, 1, (count, classes))
    return [{"logits_ab": (temperature * true + shift).tolist(), "logits_ba": (temperature * true - shift).tolist(),
             "target": dict(zip(NAMES, p.tolist(), strict=False)), "language": language}
            for true, shift, p in zip(true_NC, shift_NC, p_NC, strict=True)]


def log_loss(predictions: list[dict], temperature: float) -> float:
    logits_NC = mean_logits(predictions) / temperature
    return float((targets(predictions) * (np.log(np.exp(logits_NC).sum(1, keepdims=True)) - logits_NC)).sum(1).mean())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature, classes):
    found = fit_temperatures(simulated(4000, temperature, classes))
    assert found.temperature == pytest.approx(temperature, rel=0.07)
    assert found.rows == 4000


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_of_soft_targets_is_found(temperature, classes):
    found = fit_temperatures(simulated(2000, temperature, classes, soft=True))
    assert found.temperature == pytest.approx(temperature, rel=0.005)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_no_temperature_beside_the_one_found_has_a_lower_log_loss(temperature, soft):
    rows = simulated(1000, temperature, 3, soft)
    found = fit_temperatures(rows).temperature
    for factor in (0.2, 0.5, 0.9, 0.97, 1.03, 1.1, 2.0, 5.0):
        assert log_loss(rows, found) < log_loss(rows, found * factor)


def test_right_three_times_of_four_is_a_probability_of_three_quarters():
    """A margin of 4 is to become ln 3."""
    rows = [row((4, 0), target) for target in (A, A, A, B) * 500]
    assert fit_temperatures(rows).temperature == pytest.approx(4 / np.log(3), rel=0.003)


def test_the_orders_are_averaged():
    rows = [row((2, 0), A), row((1, 0), B), row((0, 3), B)]
    apart = [{"logits_ab": [logits[0] + 5, logits[1] - 1], "logits_ba": [logits[0] - 5, logits[1] + 1],
              "target": one["target"], "language": "en"} for one in rows for logits in [one["logits_ab"]]]
    assert fit_temperatures(apart).temperature == pytest.approx(fit_temperatures(rows).temperature)


# Languages


def share_of_the_way(count: int) -> float:
    """How far the temperature of a language with so many rows is from that of all, of the way to its own (on a
    logarithmic scale)."""
    rows = simulated(6000, 1.0, soft=True) + simulated(count, 3.0, soft=True, language="de")
    found = fit_temperatures(rows)
    return np.log(found.of("de") / found.temperature) / np.log(3 / found.temperature)


def test_a_language_with_few_rows_is_drawn_to_that_of_all():
    assert 0 < share_of_the_way(5) < 0.3


def test_a_language_with_many_rows_has_its_own():
    assert 0.95 < share_of_the_way(2000) < 1


def test_the_more_rows_the_nearer_a_language_is_to_its_own():
    shares = [share_of_the_way(count) for count in (1, 10, 100, 1000)]
    assert shares == sorted(shares)


def test_each_of_two_languages_has_its_own():
    found = fit_temperatures(simulated(3000, 1.0) + simulated(3000, 3.0, language="de"))
    assert found.of("en") == pytest.approx(1.0, rel=0.1)
    assert found.of("de") == pytest.approx(3.0, rel=0.1)
    assert found.of("en") < found.temperature < found.of("de")


def test_an_unknown_language_has_that_of_all():
    found = fit_temperatures(simulated(500, 1.0) + simulated(500, 3.0, language="de"))
    assert set(found.languages) == {"en", "de"}
    assert found.of("fr") == found.temperature
    assert found.of("fr") not in found.languages.values()


def test_a_single_language_has_that_of_all():
    found = fit_temperatures(simulated(500, 3.0))
    assert found.of("en") == pytest.approx(found.temperature, rel=0.01)


# Where there is little to go by


def test_no_predictions_have_a_temperature_of_1():
    assert fit_temperatures([]) == Calibration(1.0, {}, 0)
    assert Calibration().of("en") == 1.0


@pytest.mark.parametrize("count", [1, 10, 2000])
@pytest.mark.parametrize("scale", [1e-6, 0.01, 1, 30, 1e4])
def test_temperatures_stay_within_bounds_where_all_rows_are_right_or_all_wrong(scale, count):
    for target in (A, B):
        found = fit_temperatures([row((scale, 0), target)] * count)
        assert all(LOWEST <= temperature <= HIGHEST for temperature in (found.temperature, found.of("en")))


def test_where_all_rows_are_right_probabilities_become_surer_and_where_all_are_wrong_less_sure():
    assert fit_temperatures([row((2, 0), A)] * 200).temperature < 0.5
    assert fit_temperatures([row((2, 0), B)] * 200).temperature > 10


@pytest.mark.parametrize("tie", [(TIE, (2, 0)), ({"a": 0.0, "b": 0.0, "tie": 1.0}, (2, 1, 0))], ids=["half", "class"])
def test_sure_verdicts_of_nothing_but_ties_become_less_sure(tie):
    target, logits = tie
    found = fit_temperatures([row(logits, target)] * 100)
    assert 5 < found.temperature <= HIGHEST


def test_even_logits_say_nothing():
    assert fit_temperatures([row((0, 0), A), row((3, 3), TIE)]).temperature == pytest.approx(1.0)
    rows = simulated(100, 2.0)
    assert fit_temperatures(rows + [row((1, 1), A)] * 50).temperature == pytest.approx(
        fit_temperatures(rows).temperature)


def test_the_order_of_rows_changes_nothing():
    rows = simulated(300, 2.0) + simulated(50, 0.5, language="de") + simulated(10, 4.0, language="fr")
    found, shuffled = (fit_temperatures(some) for some in (rows, random.Random(0).sample(rows, len(rows))))
    assert shuffled.temperature == pytest.approx(found.temperature, rel=1e-9)
    assert shuffled.languages == pytest.approx(found.languages, rel=1e-9)


# Rows


def test_logits_of_a_classification_are_taken_as_they_are():
    rows = simulated(500, 2.0, 3)
    texts = [{"logits": logits.tolist(), "target": one["target"], "language": one["language"]}
             for one, logits in zip(rows, mean_logits(rows), strict=True)]
    assert mean_logits(texts).tolist() == mean_logits(rows).tolist()
    assert fit_temperatures(texts) == fit_temperatures(rows)


def test_targets_are_in_the_order_of_the_first_row():
    rows = [{"target": {"b": 0.25, "a": 0.75}}, {"target": {"a": 1.0, "b": 0.0}}]
    assert targets(rows).tolist() == [[0.25, 0.75], [0.0, 1.0]]


def test_temperatures_can_be_written_and_read():
    found = fit_temperatures(simulated(50, 2.0) + simulated(5, 2.0, language="de"))
    assert Calibration(**json.loads(json.dumps(asdict(found)))) == found


def test_probabilities_of_large_logits_are_finite():
    assert softmax(np.array([[5000.0, 0.0], [-5000.0, -5000.0]])).tolist() == [[1.0, 0.0], [0.5, 0.5]]
