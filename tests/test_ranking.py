"""Verdicts on pairs to scores, circles and orders."""

import json
from itertools import combinations

import numpy as np
import pytest

from pm.errors import UserError
from pm.ranking import (
    METHODS,
    OPPONENTS,
    Prompt,
    bradley_terry,
    concordance,
    cycles,
    prompts,
    rank_responses,
    ranking_rows,
)

A, B, TIE = {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 0.5}


def row(a: str, b: str, margin: float, target=A, group="g", prompt="p") -> dict:
    """A comparison of two responses, named by letters; above 0 a is better."""
    return {"content_a": a, "content_b": b, "logits_ab": [margin + 1, 0.0], "logits_ba": [margin - 1, 0.0],
            "target": target, "group": group, "prompt_key": prompt, "language": "en", "temperature": 1.0}


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Of row i against column j, 0 on the diagonal."""
    return (1 - np.eye(len(scores))) / (1 + np.exp(scores[None] - scores[:, None]))


# Scores


@pytest.mark.parametrize("wanted", [[0.0, 0.0], [0.5, -0.5], [2.0, 0.5, -0.5, -2.0], [3.0, -1.0, -1.0, -1.0]])
def test_scores_are_recovered_from_probabilities_that_follow_from_them(wanted):
    scores, _ = bradley_terry(100 * probabilities(np.array(wanted)))
    assert scores == pytest.approx(np.array(wanted), abs=1e-4)


def test_scores_of_some_pairs_are_enough_where_they_hang_together():
    """A chain: first against second, second against third."""
    compared = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    scores, _ = bradley_terry(100 * compared * probabilities(np.array([1.5, 0.5, -2.0])))
    assert scores == pytest.approx(np.array([1.5, 0.5, -2.0]), abs=1e-4)


def test_two_responses_by_hand():
    scores, _ = bradley_terry(np.array([[0.0, 300.0], [100.0, 0.0]]))
    assert scores == pytest.approx(np.array([np.log(3), -np.log(3)]) / 2, abs=1e-5)


def zermelo(wins: np.ndarray) -> np.ndarray:
    """The maximum of the likelihood in another way (Zermelo 1929): strength = wins / sum of games / (both strengths)"""
    games, strength = wins + wins.T, np.ones(len(wins))
    for _ in range(5000):
        strength = wins.sum(1) / (games / (strength[:, None] + strength[None])).sum(1)
    return np.log(strength) - np.log(strength).mean()


@pytest.mark.parametrize("seed", range(5))
def test_scores_have_the_highest_likelihood(seed):
    wins = np.random.default_rng(seed).integers(1, 200, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    scores, _ = bradley_terry(wins)
    assert scores == pytest.approx(zermelo(wins), abs=1e-4)
    assert scores.mean() == pytest.approx(0, abs=1e-12)


def test_a_response_that_always_wins_has_the_highest_score_and_it_is_finite():
    wins = np.array([[0.0, 5, 5], [0, 0, 3], [0, 2, 0]])
    scores, errors = bradley_terry(wins)
    assert np.isfinite(scores).all() and np.isfinite(errors).all()
    assert 3 < scores[0] - scores[1] < 30
    assert scores[0] > scores[1] > scores[2]


def test_even_comparisons_have_even_scores():
    scores, _ = bradley_terry(np.array([[0.0, 4, 4], [4, 0, 4], [4, 4, 0]]))
    assert scores == pytest.approx(np.zeros(3), abs=1e-12)


# Circles


def circles_one_by_one(margins: np.ndarray) -> tuple[int, int]:
    circles = compared = 0
    for i, j, k in combinations(range(len(margins)), 3):
        signs = {np.sign(margins[i, j]), np.sign(margins[j, k]), np.sign(margins[k, i])}
        compared += 0 not in signs
        circles += signs in ({1.0}, {-1.0})
    return circles, compared


@pytest.mark.parametrize("share", [1.0, 0.7, 0.3, 0.0], ids=lambda share: f"{share:.0%} compared")
def test_circles_are_those_that_are_found_one_by_one(share):
    random_state = np.random.default_rng(0)
    for count in (2, 3, 4, 5, 8, 12):
        above = np.triu(random_state.normal(size=(count, count)) * (random_state.random((count, count)) < share), 1)
        assert cycles(above - above.T) == circles_one_by_one(above - above.T)


def test_a_circle_of_three():
    circle = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]])
    assert cycles(circle) == cycles(-circle) == cycles(circle.T) == (1, 1)


def test_an_order_has_no_circle():
    scores = np.array([3.0, 1.0, 0.5, -2.0])
    assert cycles(scores[:, None] - scores[None]) == (0, 4)


def test_a_triple_with_an_even_pair_is_no_triple():
    assert cycles(np.array([[0, 0, -1], [0, 0, 1], [1, -1, 0]])) == (0, 0)


# Rows


def test_a_prompt_by_hand():
    prompt = Prompt([row("x", "y", np.log(3), A), row("z", "y", np.log(4), B), row("y", "x", np.log(3), TIE),
                     row("x", "z", 0, A)])
    assert prompt.names == ["x", "y", "z"]
    # x against y: 3/4, then 1/4
    assert prompt.wins == pytest.approx(np.array([[0, 1, 0.5], [1, 0, 0.2], [0.5, 0.8, 0]]))
    assert prompt.margins == pytest.approx(np.array([[0, 0, 0], [0, 0, -np.log(4)], [0, np.log(4), 0]]))
    assert prompt.labels.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_log_odds_of_a_pair_are_averaged_and_its_wins_and_labels_added_up():
    prompt = Prompt([row("x", "y", 1, A), row("x", "y", 5, A), row("y", "x", 0, B)])
    assert prompt.margins.tolist() == [[0, 2], [-2, 0]]
    assert prompt.wins.sum() == pytest.approx(3)
    assert prompt.labels.tolist() == [[0, 3], [0, 0]]


def test_which_response_is_called_a_changes_nothing():
    rows = [row("x", "y", 1.5, A), row("y", "z", -0.5, B), row("x", "z", 2.0, TIE), row("w", "z", 0.3, A)]
    turned = [row(one["content_b"], one["content_a"], -(one["logits_ab"][0] - 1),
                  {"a": one["target"]["b"], "b": one["target"]["a"]}) for one in rows]
    mixed = [rows[0], turned[1], rows[2], turned[3]]
    wanted = Prompt(rows)
    score_of = dict(zip(wanted.names, wanted.scores, strict=True))
    for some in (turned, mixed):
        prompt = Prompt(some)
        assert dict(zip(prompt.names, prompt.scores, strict=True)) == pytest.approx(score_of)
        assert cycles(prompt.margins) == cycles(wanted.margins)
        assert concordance(prompt) == concordance(wanted)


def test_half_of_a_tie_is_a_win_where_tie_is_a_class():
    logits = [np.log(3), 0.0, np.log(4)]  # 3/8, 1/8, 4/8
    prompt = Prompt([{"temperature": 1.0, "content_a": "x", "content_b": "y", "logits_ab": logits, "logits_ba": logits,
                      "target": {"a": 0.0, "b": 0.0, "tie": 1.0}}])
    assert prompt.wins == pytest.approx(np.array([[0, 5 / 8], [3 / 8, 0]]))
    assert prompt.margins == pytest.approx(np.array([[0, np.log(3)], [-np.log(3), 0]]))
    assert prompt.labels.tolist() == [[0, 0], [0, 0]]


def test_large_logits_have_finite_scores():
    with np.errstate(over="raise"):
        prompt = Prompt([row("x", "y", 5000), row("y", "z", 5000), row("z", "x", -5000)])
    assert prompt.scores[0] > prompt.scores[1] > prompt.scores[2]
    assert np.isfinite(prompt.scores).all()


def test_prompts_with_three_responses_make_a_ranking():
    rows = [row("x", "y", 1, prompt="two"), row("x", "y", 1, prompt="three"), row("y", "x", 1, prompt="two"),
            row("x", "z", 1, prompt="three"), row("x", "y", 1, prompt="apart"), row("v", "w", 1, prompt="apart"),
            row("y", "v", 1, prompt="joined"), row("x", "y", 1, prompt="joined"), row("v", "w", 1, prompt="joined")]
    found = prompts(rows)
    assert [(prompt.rows[0]["prompt_key"], len(prompt.names)) for prompt in found] == [("three", 3), ("joined", 4)]
    assert [prompt.rows[0]["prompt_key"] for prompt in prompts(rows, fewest=2)] == [
        "two", "three", "apart", "apart", "joined"]
    assert prompts([]) == []


def test_a_prompt_in_two_groups_is_two():
    rows = [row(*pair, 1, group=group) for group in "gh" for pair in ("xy", "yz")]
    assert [prompt.rows[0]["group"] for prompt in prompts(rows)] == ["g", "h"]
    assert prompts([row("x", "y", 1, group="g"), row("y", "z", 1, group="h")]) == []


# Labels and scores


def test_labels_agree_with_scores_or_not():
    # The scores say x, y, z; the labels x over y, z over y, x over z.
    rows = [row("x", "y", 2, A), row("y", "z", 2, B), row("z", "x", -4, B)]
    assert concordance(Prompt(rows)) == (2, 1, 3)


def test_the_majority_of_a_pairs_labels_counts_and_even_ones_are_left_out():
    majority = [row("x", "y", 2, A), row("y", "x", -2, B), row("x", "y", 2, B)]  # 2 : 1 for x
    even = [row("y", "z", 2, A), row("y", "z", 2, B)]
    tie = [row("x", "z", 4, TIE)]
    assert concordance(Prompt(majority + even + tie)) == (1, 0, 1)


def test_even_scores_neither_agree_nor_disagree():
    assert concordance(Prompt([row("x", "y", 1, A), row("y", "z", 1, A), row("z", "x", 1, A)])) == (0, 0, 3)


# Rows of rankings


def test_rows_of_rankings_have_the_best_response_first_and_can_be_written():
    rows = [row("x", "y", -1, B, "g", "p"), row("y", "z", 2, A, "g", "p"), row("x", "z", 1, A, "g", "p"),
            row("x", "y", 1, A, "h", "q"), row("y", "z", 1, A, "h", "q"), row("z", "x", 1, A, "h", "q"),
            row("x", "y", 1, A, "h", "no ranking")]
    found = list(ranking_rows(rows))
    assert json.loads(json.dumps(found)) == found
    assert [(one["group"], one["prompt_key"], one["language"], one["triples"], one["cycles"]) for one in found] == [
        ("g", "p", "en", 1, 0), ("h", "q", "en", 1, 1)]
    assert [response["content"] for response in found[0]["responses"]] == ["y", "x", "z"]
    for one in found:
        scores = [response["score"] for response in one["responses"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(0, abs=1e-9)
        for response in one["responses"]:
            low, high = response["interval"]
            assert (low + high) / 2 == pytest.approx(response["score"], abs=1e-9)
            assert low < high


def test_no_rows_have_no_rankings():
    assert list(ranking_rows([])) == []


def test_errors_of_two_responses_by_hand():
    _, errors = bradley_terry(np.array([[0.0, 50.0], [50.0, 0.0]]))
    assert errors == pytest.approx([0.1, 0.1], rel=1e-6)  # half of 1 / sqrt(100 x 1/4)


@pytest.mark.parametrize("times", [4, 100])
def test_errors_shrink_with_the_root_of_the_number_of_games(times):
    wins = np.array([[0.0, 30, 20], [10, 0, 30], [20, 10, 0]])
    assert bradley_terry(wins * times)[1] == pytest.approx(bradley_terry(wins)[1] / times**0.5, rel=1e-6)


def test_gaps_of_very_sure_verdicts_are_kept():
    scores = np.array([22.0, 21.9, 21.0, 0.0, 0.0, -1.0])
    wins = 1 / (1 + np.exp(scores[None] - scores[:, None]))
    np.fill_diagonal(wins, 0)
    assert bradley_terry(wins)[0] == pytest.approx(scores - scores.mean(), abs=0.3)


# Responses ranked by asking for comparisons


class Asked:
    """Answers by true scores, and notes what was asked."""

    def __init__(self, scores):
        self.found = probabilities(np.array(scores, dtype=float))
        self.rounds: list[list[tuple[int, int]]] = []

    def __call__(self, pairs):
        self.rounds.append(list(pairs))
        return [self.found[i, j] for i, j in pairs]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 9, 16, 23])
def test_the_best_response_is_first_and_no_pair_is_asked_twice(method, count):
    scores = np.random.default_rng(count).permutation(count)
    asked = Asked(scores)
    ranking = rank_responses(count, asked, method)
    assert ranking.order[0] == scores.argmax()
    assert sorted(ranking.order) == list(range(count))
    pairs = [frozenset(pair) for pairs in asked.rounds for pair in pairs]
    assert len(pairs) == len(set(pairs)) == ranking.comparisons
    assert all(len(pair) == 2 for pair in pairs)
    if method != "knockout":
        assert ranking.order == np.argsort(-scores).tolist()


def test_what_each_method_costs():
    cost = {method: rank_responses(20, Asked(range(20)), method).comparisons for method in METHODS}
    assert cost == {"full": 190, "bradley_terry": 60, "knockout": 19}
    asked = Asked(range(20))
    rank_responses(20, asked, "bradley_terry")
    met = np.bincount(np.array(asked.rounds).ravel(), minlength=20)
    assert met.max() == met.min() == OPPONENTS


def test_scores_of_each_method():
    full = rank_responses(3, Asked([2, 0, 0]), "full")
    assert full.scores == pytest.approx([0.8808, 0.3096, 0.3096], abs=1e-4)
    assert full.errors is None
    terry = rank_responses(3, Asked([2, 0.5, -2.5]), "bradley_terry")
    assert terry.scores == pytest.approx([2, 0.5, -2.5], abs=1e-6)
    assert min(terry.errors) > 0


def test_a_knockout_goes_round_by_round():
    """The fifth has no match in the first round, and the first one in the second."""
    asked = Asked([3, 1, 2, 0, 4])
    ranking = rank_responses(5, asked, "knockout")
    assert asked.rounds == [[(0, 1), (2, 3)], [(4, 0)], [(2, 4)]]
    assert ranking.scores == [1, 0, 2, 0, 3]
    assert ranking.order == [4, 2, 0, 1, 3]


@pytest.mark.parametrize(("count", "method", "words"), [
    (0, "full", "there are no responses to rank"),
    (3, "swiss", "method 'swiss': must be one of full, bradley_terry, knockout")])
def test_what_cannot_be_ranked_is_refused(count, method, words):
    with pytest.raises(UserError, match=words):
        rank_responses(count, Asked(range(3)), method)
