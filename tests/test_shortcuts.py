"""Baselines that learn what was planted, and nothing where nothing was."""

import random

import numpy as np
import pytest
from datasets import Dataset

from pm.data.example import FEATURES, Example, content_hash
from pm.shortcuts import MOST_CHARACTERS, N_GRAMS, PROMPT_ONLY, RESPONSE_ONLY, fitted, response_only, with_shortcuts

WORDS = ["river", "stone", "cloud", "lamp", "paper", "garden", "window", "music", "silver", "morning", "bread", "snow"]
ROW = tuple[str, str, str, dict[str, float]]  # prompt, response a, response b, target


def simulated(count: int, seed: int, style: str = "", sign: str = "") -> list[ROW]:
    """Random words. The better response ends with `style`; prompts where a is the better one begin with `sign`."""
    choose = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(choose.choices(WORDS, k=choose.randint(3, most)))

    rows = []
    for _ in range(count):
        prompt, a, b, winner = words(8), words(20), words(20), choose.choice("ab")
        first = winner == "a"
        rows.append((sign * first + prompt, a + style * first, b + style * (not first), {winner: 1.0}))
    return rows


STYLE, SIGN = simulated(300, 0, style="!!"), simulated(300, 0, sign="zebra ")


def turn(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def dataset(rows: list[ROW]) -> Dataset:
    return Dataset.from_list([
        Example(str(number), str(number), "en", "s", "k", [turn(prompt)], a, b, target).to_row()
        for number, (prompt, a, b, target) in enumerate(rows)], features=FEATURES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache for all tests: what is fitted on the same rows is fitted once."""
    return str(tmp_path_factory.mktemp("cache"))


def odds(train: list[ROW], rows: list[ROW], folder: str, key: str | None = None) -> dict[str, np.ndarray]:
    """Log-odds of a over b of each baseline, in the order of the rows."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    found = fitted(dataset(train), key or repr(train), dataset(rows), folder)
    contents = [content_hash([turn(prompt)], a, b) for prompt, a, b, _ in rows]
    assert set(found) == set(contents)
    return {name: np.array([found[content][name] for content in contents]) for name in (N_GRAMS, PROMPT_ONLY)}


def accuracy(margins: np.ndarray, rows: list[ROW]) -> float:
    wanted = np.array([target.get("a", 0) - target.get("b", 0) for *_, target in rows])
    return float((margins * wanted > 0).mean())


# Responses


def test_a_style_that_wins_is_learnt(folder):
    rows = simulated(300, 1, style="!!")
    assert accuracy(odds(STYLE, rows, folder)[N_GRAMS], rows) > 0.97


def test_responses_that_say_nothing_are_at_chance(folder):
    rows = simulated(400, 1, sign="zebra ")
    assert 0.4 < accuracy(odds(SIGN, rows, folder)[N_GRAMS], rows) < 0.6


def test_log_odds_change_their_sign_where_responses_change_places(folder):
    rows = simulated(50, 1, style="!!")
    here, there = odds(STYLE, rows, folder), odds(STYLE, [(prompt, b, a, {}) for prompt, a, b, _ in rows], folder)
    assert np.abs(here[N_GRAMS]).min() > 0
    assert there[N_GRAMS] == pytest.approx(-here[N_GRAMS])
    assert there[PROMPT_ONLY] == pytest.approx(here[PROMPT_ONLY])


def test_equal_responses_have_even_odds(folder):
    assert odds(STYLE, [("river", "stone!!", "stone!!", {"tie": 1.0})], folder)[N_GRAMS] == 0


def test_a_baseline_of_responses_reads_no_prompt_and_one_of_prompts_no_response(folder):
    found = odds(STYLE, [("river", "stone!!", "lamp", {}), ("cloud", "stone!!", "lamp", {}),
                         ("river", "lamp", "bread!!", {})], folder)
    assert found[N_GRAMS][0] == found[N_GRAMS][1] != found[N_GRAMS][2]
    assert found[PROMPT_ONLY][0] == found[PROMPT_ONLY][2] != found[PROMPT_ONLY][1]


# Prompts


def test_a_word_in_the_prompt_that_gives_labels_away_is_found(folder):
    rows = simulated(300, 1, sign="zebra ")
    assert accuracy(odds(SIGN, rows, folder)[PROMPT_ONLY], rows) > 0.97


def test_prompts_that_say_nothing_are_at_chance(folder):
    rows = simulated(400, 1, style="!!")
    assert 0.4 < accuracy(odds(STYLE, rows, folder)[PROMPT_ONLY], rows) < 0.6


def test_all_turns_of_a_prompt_are_read(folder):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    prompts = [[turn("zebra"), {"role": "assistant", "content": "stone"}, turn("river")],
               [turn("lamp"), {"role": "assistant", "content": "stone"}, turn("river")]]
    rows = Dataset.from_list([Example("1", "g", "en", "s", "k", prompt, "lamp", "bread", {}).to_row()
                              for prompt in prompts], features=FEATURES)
    found = fitted(dataset(SIGN), repr(SIGN), rows, folder)
    first, second = (found[content_hash(prompt, "lamp", "bread")][PROMPT_ONLY] for prompt in prompts)
    assert first > 0 > second


# Labels


def test_soft_targets_are_decided_by_the_larger_half(folder):
    soft = [(*texts, {"a": 0.6, "b": 0.4} if "a" in target else {"a": 0.2, "b": 0.3, "tie": 0.5})
            for *texts, target in STYLE]
    rows = simulated(50, 1, style="!!")
    hard, found = odds(STYLE, rows, folder), odds(soft, rows, folder)
    assert all(np.array_equal(found[name], hard[name]) for name in hard)


def test_ties_are_not_learnt_from(folder):
    ties = [("zebra", "lamp!!", "bread", target) for target in ({"tie": 1.0}, {"a": 0.5, "b": 0.5})] * 50
    rows = simulated(50, 1, style="!!")
    without, found = odds(STYLE, rows, folder), odds(STYLE + ties, rows, folder)
    assert all(found[name] == pytest.approx(without[name], abs=0.02) for name in without)


@pytest.mark.parametrize("target", [{"tie": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 1.0}, {"b": 0.75, "a": 0.25}],
                         ids=["tie", "half", "a", "b"])
def test_labels_that_are_all_ties_or_all_of_one_winner_teach_nothing(folder, target):
    train = [(*texts, target) for *texts, _ in STYLE[:20]]
    found = odds(train, simulated(5, 1, style="!!"), folder)
    assert {name: values.tolist() for name, values in found.items()} == {N_GRAMS: [0.0] * 5, PROMPT_ONLY: [0.0] * 5}


# Long texts


def test_of_a_long_text_only_the_beginning_and_the_end_are_read(folder):
    half = MOST_CHARACTERS // 2
    long = "lamp " * half
    responses = [long, long[:half] + "!! zebra " * 20 + long[half:], long + "!!"]
    found = odds(STYLE, [("river", response, "bread", {}) for response in responses], folder)[N_GRAMS]
    assert found[0] == found[1] < found[2]
    prompts = [long, long[:half] + "!! zebra " * 20 + long[half:], "zebra " + long[6:]]
    found = odds(SIGN, [(prompt, "stone", "bread", {}) for prompt in prompts], folder)[PROMPT_ONLY]
    assert found[0] == found[1] < found[2]


# What is kept


def test_what_was_fitted_is_kept_by_key(folder):
    rows, others = simulated(20, 1, style="!!"), [(*texts, {"tie": 1.0}) for *texts, _ in STYLE]
    fitted_once = odds(STYLE, rows, folder)
    again = odds(others, rows, folder, key=repr(STYLE))
    assert all(np.array_equal(again[name], fitted_once[name]) for name in again)
    assert not odds(others, rows, folder, key="another")[N_GRAMS].any()


# Predictions


def test_log_odds_are_joined_to_predictions_by_their_texts():
    predictions = [{"content": "1", "shortcuts": {"n_grams": 9.0, "mine": 1.0}}, {"content": "2"}, {"content": "3"},
                   {"content": "1", "id": "again"}]
    before = [dict(row) for row in predictions]
    found = with_shortcuts(predictions, {"1": {"n_grams": 0.5}, "2": {"n_grams": -2.0, "prompt_only": 0.25}, "4": {}})
    assert found == [{"content": "1", "shortcuts": {"n_grams": 0.5, "mine": 1.0}},
                     {"content": "2", "shortcuts": {"n_grams": -2.0, "prompt_only": 0.25}}, {"content": "3"},
                     {"content": "1", "id": "again", "shortcuts": {"n_grams": 0.5}}]
    assert predictions == before


def test_a_second_baseline_is_added_to_the_first():
    once = with_shortcuts([{"content": "1"}], {"1": {"n_grams": 0.5}})
    assert with_shortcuts(once, {"1": {"response_only": 2.0}}) == [
        {"content": "1", "shortcuts": {"n_grams": 0.5, "response_only": 2.0}}]


def test_blank_prompts_give_the_log_odds_of_both_orders():
    rows = [{"content": "1", "logits_ab": [2.0, 0.0], "logits_ba": [1.0, 2.0]},
            {"content": "2", "logits_ab": [0.0, 3.0], "logits_ba": [0.0, 0.0]}]
    assert response_only(rows) == {"1": {RESPONSE_ONLY: 0.5}, "2": {RESPONSE_ONLY: -1.5}}


def test_a_tie_has_no_part_in_the_log_odds_of_blank_prompts():
    assert response_only([{"content": "1", "logits_ab": [2.0, 0.0, 7.0], "logits_ba": [2.0, 0.0, 9.0]}]) == {
        "1": {RESPONSE_ONLY: 2.0}}
