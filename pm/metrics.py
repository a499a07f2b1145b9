"""Predictions to numbers. Pure: takes rows of `predictions.jsonl`, returns plain values."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000
MOST_RESAMPLED = 500


def summarise(predictions: Sequence[dict]) -> dict[str, float | int | list[float] | None]:
    """Every number of one set of rows.

    accuracy                the better response has the higher probability, averaged over both orders
    accuracy_single_order   the same for verdicts from one order, mean of the two orders
    log_loss                nats, of the order-averaged probabilities, ties (soft targets) included
    flip_rate               the verdict changes when the responses change places
    prefers_first           share of single-order verdicts for the response that stands first; 0.5 is unbiased
    longer_wins             accuracy of 'the longer response in characters is better'
    n, n_ties, n_groups     rows, rows among them whose target favours neither, groups of prompts
    Names ending in `_interval` are 95 % intervals, resampling groups. Accuracies leave ties out, and an even
    verdict counts half, so a model that always says the same scores 0.5. None: there is nothing to count.
    """
    table = _Table(predictions)
    decided = table.decided
    values = {
        "accuracy": (table.right(table.margin), decided),
        "accuracy_single_order": ((table.right(table.margin_ab) + table.right(table.margin_ba)) / 2, decided),
        "log_loss": (table.log_loss(), np.ones_like(decided)),
        "flip_rate": ((np.sign(table.margin_ab) != np.sign(table.margin_ba)).astype(float), np.ones_like(decided)),
        "prefers_first": ((_share(table.margin_ab) + _share(-table.margin_ba)) / 2, np.ones_like(decided)),
        "longer_wins": (table.right(table.length_difference), decided),
    }
    result: dict = {"n": len(predictions), "n_ties": int((~decided).sum()), "n_groups": len(set(table.groups))}
    for name, (per_row, counted) in values.items():
        mean, interval = mean_interval(per_row[counted], table.groups[counted])
        result[name] = mean
        result[f"{name}_interval"] = interval
    return result


def by(predictions: Sequence[dict], column: str) -> dict[str, dict]:
    """`summarise` for each value of a column, most rows first."""
    parts: dict[str, list[dict]] = {}
    for row in predictions:
        parts.setdefault(row[column], []).append(row)
    return {value: summarise(rows) for value, rows in sorted(parts.items(), key=lambda item: (-len(item[1]), item[0]))}


def mean_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float | None, list[float] | None]:
    """Mean of `values` and its 95 % interval: percentiles over 1,000 resamplings of whole groups.

    Above `MOST_RESAMPLED` groups, where resampling is slow and its distribution normal, it is the normal interval
    with the standard error of a ratio over groups. Where all values are equal 0 or 1, resampling would give an
    interval of no width; then it is Wilson's, with each group counted once. None for no values; no interval for a
    single group.
    """
    if len(values) == 0:
        return None, None
    mean = float(np.mean(values))
    _, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    if len(counts) < 2:
        return mean, None
    if np.all(values == 0) or np.all(values == 1):
        return mean, _wilson(mean, len(counts))
    if len(counts) > MOST_RESAMPLED:
        variance = np.sum((sums - mean * counts) ** 2) * len(counts) / (len(counts) - 1)
        half = 1.959964 * float(np.sqrt(variance)) / len(values)
        low, high = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (-np.inf, np.inf)
        return mean, [max(low, mean - half), min(high, mean + half)]
    random = np.random.RandomState(0)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 50):
        drawn = random.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=50)
        means[start : start + 50] = (drawn @ sums) / np.maximum(drawn @ counts, 1)
    return mean, [float(bound) for bound in np.percentile(means, (2.5, 97.5))]


def _wilson(share: float, n: int) -> list[float]:
    """Wilson's score interval of a proportion (1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [max(0.0, float(centre - half)), min(1.0, float(centre + half))]


class _Table:
    """The columns of the predictions as arrays; a margin is the logit of a minus the logit of b."""

    def __init__(self, predictions: Sequence[dict]):
        logits_ab = np.array([row["logits_ab"] for row in predictions], dtype=np.float64).reshape(-1, 2)
        logits_ba = np.array([row["logits_ba"] for row in predictions], dtype=np.float64).reshape(-1, 2)
        self.target_a = np.array([row["target"][0] for row in predictions], dtype=np.float64)
        self.groups = np.array([row["group"] for row in predictions], dtype=object).astype(str)
        self.length_difference = np.array([row["characters_a"] - row["characters_b"] for row in predictions])
        self.margin_ab = logits_ab[:, 0] - logits_ab[:, 1]
        self.margin_ba = logits_ba[:, 0] - logits_ba[:, 1]
        self.margin = (self.margin_ab + self.margin_ba) / 2
        self.decided = self.target_a != 0.5

    def right(self, margin: np.ndarray) -> np.ndarray:
        return _share(margin * np.sign(self.target_a - 0.5))

    def log_loss(self) -> np.ndarray:
        return self.target_a * np.logaddexp(0, -self.margin) + (1 - self.target_a) * np.logaddexp(0, self.margin)


def _share(margin: np.ndarray) -> np.ndarray:
    """1 above zero, 0 below, 0.5 at zero."""
    return (np.sign(margin) + 1) / 2
