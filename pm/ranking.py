"""Pairwise verdicts to rankings. Pure. Shapes: n responses to one prompt."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pm.errors import UserError
from pm.predictions import mean_logits, softmax

METHODS = ("full", "bradley_terry", "knockout")
OPPONENTS = 6  # of each response where method is bradley_terry
FEWEST = 3  # responses to one prompt that make a ranking
RIDGE = 1e-12  # keeps scores finite where one response wins always, or where comparisons do not hang together
STEPS = 200


def bradley_terry(wins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) in log-odds with mean 0, and their standard errors, from `wins` (n, n): how often i won against j, or
    the sum of the probabilities that it is better.

    The maximum of the likelihood of Bradley and Terry (1952), by Newton's method. The errors are those of the Fisher
    information, which takes each comparison for one independent draw.
    """
    games = wins + wins.T
    won = wins.sum(1)
    scores = np.zeros(len(wins))
    information = np.zeros_like(games)
    level = np.full_like(games, 1 / len(wins))  # the one direction of which comparisons say nothing
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(np.clip(scores[None] - scores[:, None], -50, 50)))  # of i against j
        weight = games * p * (1 - p)
        information = np.diag(weight.sum(1)) - weight
        gradient = won - (games * p).sum(1) - RIDGE * scores
        step = np.linalg.solve(information + RIDGE * np.eye(len(wins)) + level, gradient)
        step -= step.mean()
        step *= min(1.0, 4.0 / max(np.abs(step).max(), 1e-12))
        scores = scores + step
        if np.abs(step).max() < 1e-10:
            break
    covariance = np.linalg.inv(information + RIDGE * np.eye(len(wins)) + level) - level
    return scores, np.sqrt(np.maximum(np.diag(covariance), 0.0))


@dataclass(frozen=True)
class Ranking:
    """`order`: places of the responses, best first; `scores` of the responses, in the order given, and the standard
    `errors` of those of Bradley and Terry; `comparisons`: how many pairs were compared."""

    order: list[int]
    scores: list[float]
    errors: list[float] | None
    comparisons: int


def rank_responses(count: int, beats: Callable[[Sequence[tuple[int, int]]], Sequence[float]], method: str) -> Ranking:
    """Ranks `count` responses, n, by what `beats` says of pairs (i, j): how probable it is that i is better than j.

    full            all n (n - 1) / 2 pairs; a score is the mean probability of winning against the others
    bradley_terry   pairs with at most `OPPONENTS` others, at most n * `OPPONENTS` / 2; scores in log-odds
    knockout        n - 1 pairs in log2(n) rounds; a score is the number of rounds survived, and only the first place
                    means much

    Raises `UserError` for another method or for no response.
    """
    if not count:
        raise UserError("there are no responses to rank")
    if method == "full":
        pairs = list(combinations(range(count), 2))
        wins = _wins(count, pairs, beats(pairs))
        scores, errors = wins.sum(1) / max(1, count - 1) if count > 1 else np.array([0.5]), None
    elif method == "bradley_terry":
        pairs = _opponents(count)
        scores, errors = bradley_terry(_wins(count, pairs, beats(pairs)))
        errors = errors.tolist()
    elif method == "knockout":
        return _knockout(count, beats)
    else:
        raise UserError(f"method {method!r}: must be one of {', '.join(METHODS)}")
    return Ranking(np.argsort(-scores, kind="stable").tolist(), scores.tolist(), errors, len(pairs))


def _wins(count: int, pairs: Sequence[tuple[int, int]], found: Sequence[float]) -> np.ndarray:
    wins = np.zeros((count, count))
    for (i, j), probability in zip(pairs, found, strict=True):
        wins[i, j], wins[j, i] = probability, 1 - probability
    return wins


def _opponents(count: int) -> list[tuple[int, int]]:
    """Each response on a ring meets those that are 1, 2, 4, ... places on: every two are then few steps apart."""
    if count <= OPPONENTS + 1:
        return list(combinations(range(count), 2))
    return sorted({tuple(sorted((place, (place + 2**power) % count))) for power in range(OPPONENTS // 2)
                   for place in range(count)})


def _knockout(count: int, beats: Callable) -> Ranking:
    """Of those that survived as many rounds, the one that lost more narrowly is first."""
    left, survived, last = list(range(count)), [0.0] * count, [1.0] * count  # `last`: what it had in its last match
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        left = left[2 * len(pairs) :]  # an odd one goes on without a match, and has one in the next round
        for (i, j), probability in zip(pairs, beats(pairs), strict=True):
            last[i], last[j] = probability, 1 - probability
            left.append(i if probability >= 0.5 else j)
        for place in left:
            survived[place] += 1
    order = sorted(range(count), key=lambda place: (-survived[place], -last[place]))
    return Ranking(order, survived, None, count - 1)


def cycles(margins: np.ndarray) -> tuple[int, int]:
    """How many triples of responses go in a circle, and how many were compared with one another.

    `margins` (n, n): above 0 where i is better than j, its negative for j and i, and 0 where they are even or were
    not compared.
    """
    beats = (margins > 0).astype(np.int64)
    compared = beats + beats.T
    return int(np.trace(beats @ beats @ beats)) // 3, int(np.trace(compared @ compared @ compared)) // 6


class Prompt:
    """All comparisons of the responses to one prompt, by the hashes of the responses.

    `names` (n,), `wins` (n, n): sum of the probabilities that i is better than j, a tie half to each; `margins` (n, n):
    the mean log-odds of that; `labels` (n, n): how many rows call i the better one.
    """

    def __init__(self, rows: Sequence[dict]):
        self.rows = rows
        self.names = list(dict.fromkeys(row[side] for row in rows for side in ("content_a", "content_b")))
        place = {name: number for number, name in enumerate(self.names)}
        self.wins, margins, times, self.labels = (np.zeros((len(self.names),) * 2) for _ in range(4))
        logits_NC = mean_logits(rows) / np.array([[row["temperature"]] for row in rows])
        tie_N = softmax(logits_NC)[:, 2] if logits_NC.shape[1] > 2 else np.zeros(len(rows))
        for row, logits, tie in zip(rows, logits_NC, tie_N, strict=True):
            a, b = place[row["content_a"]], place[row["content_b"]]
            margin = logits[0] - logits[1]
            p = tie / 2 + (1 - tie) / (1 + np.exp(-np.clip(margin, -50, 50)))
            self.wins[a, b] += p
            self.wins[b, a] += 1 - p
            margins[a, b] += margin
            margins[b, a] -= margin
            times[a, b] += 1
            times[b, a] += 1
            wanted = row["target"]["a"] - row["target"]["b"]
            self.labels[a, b] += wanted > 0
            self.labels[b, a] += wanted < 0
        self.margins = margins / np.maximum(times, 1)
        self.scores, self.errors = bradley_terry(self.wins)


def prompts(predictions: Iterable[dict], fewest: int = FEWEST) -> list[Prompt]:
    """Those with at least `fewest` different responses, in the order of the rows. A prompt in two groups is two, and so
    is one whose responses fall into two sets that were never compared with one another."""
    rows: dict[tuple[str, str], list[dict]] = {}
    for row in predictions:
        rows.setdefault((row["group"], row["prompt_key"]), []).append(row)
    return [Prompt(some) for prompt in rows.values() for some in _connected(prompt)
            if len({row[side] for row in some for side in ("content_a", "content_b")}) >= fewest]


def _connected(rows: Sequence[dict]) -> list[list[dict]]:
    """The rows in parts that share no response (union-find)."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while name in parent:
            parent[name] = name = parent.get(parent[name], parent[name])
        return name

    for row in rows:
        one, other = root(row["content_a"]), root(row["content_b"])
        if one != other:
            parent[other] = one
    parts: dict[str, list[dict]] = {}
    for row in rows:
        parts.setdefault(root(row["content_a"]), []).append(row)
    return list(parts.values())


def concordance(prompt: Prompt) -> tuple[int, int, int]:
    """Labelled pairs of responses that the scores order as the labels do, that they order the other way round, and all
    of them; pairs whose labels are even are left out."""
    above = np.sign(prompt.labels - prompt.labels.T)
    agreement = np.triu(above * np.sign(np.round(prompt.scores[:, None] - prompt.scores[None], 9)))
    return int((agreement > 0).sum()), int((agreement < 0).sum()), int((np.triu(above) != 0).sum())


def ranking_rows(predictions: Iterable[dict]) -> Iterator[dict]:
    """A row for each prompt with three or more responses: these by their hashes, best first, each with its score and a
    95 % interval (`bradley_terry`)."""
    for prompt in prompts(predictions):
        order = np.argsort(-prompt.scores, kind="stable").tolist()
        circles, triples = cycles(prompt.margins)
        yield {"group": prompt.rows[0]["group"], "prompt_key": prompt.rows[0]["prompt_key"],
               "language": prompt.rows[0]["language"], "triples": triples, "cycles": circles,
               "responses": [{"content": prompt.names[place], "score": float(prompt.scores[place]),
                              "interval": [float(prompt.scores[place] + side * 1.959964 * prompt.errors[place])
                                           for side in (-1, 1)]} for place in order]}
