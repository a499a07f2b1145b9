"""Predictions to numbers. Pure: takes rows of `predictions.jsonl`, returns plain values."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000
MOST_RESAMPLED = 500


def evaluation(predictions: Sequence[dict]) -> dict:
    """All metrics of a set of predictions, as `eval.py` writes them to `metrics.json`."""
    result = {"overall": summarise(predictions)}
    result |= {f"by_{column}": by(predictions, column) for column in ("language", "source", "kind")}
    return result if compares(predictions) else result | by_class(predictions)


def compares(predictions: Sequence[dict]) -> bool:
    """Whether these are comparisons, which have logits for two orders, or classifications."""
    return "logits_ab" in predictions[0]


def summarise(predictions: Sequence[dict]) -> dict[str, float | int | list[float] | None]:
    """Every number of one set of rows.

    Of comparisons:
    accuracy                the better response has the higher probability, averaged over both orders
    accuracy_single_order   the same for verdicts from one order, mean of the two orders
    log_loss                nats, of the order-averaged logits, ties and soft targets included
    flip_rate               the verdict changes when the responses change places
    prefers_first           share of single-order verdicts for the response that stands first; 0.5 is unbiased
    longer_wins             accuracy of 'the longer response in characters is better'
    accuracy_with_ties      only where `tie` is a class: the most probable of the three is that of the label (where
                            that is one)
    n, n_ties, n_groups     rows, rows among them whose target favours neither, groups of prompts
    Verdicts are between a and b, also where `tie` is a class. Accuracies but the last leave ties out, and an even
    verdict counts half, so a model that always says the same scores 0.5.

    Of classifications: accuracy (of the most probable class), log_loss, macro_f1 (mean F1 of the classes that the
    rows have), most_common (accuracy of always saying the most frequent class), n and n_groups.

    Names ending in `_interval` are 95 % intervals, resampling groups. None: there is nothing to count.
    """
    groups = np.array([row["group"] for row in predictions], dtype=object).astype(str)
    values = _of_comparisons(predictions) if compares(predictions) else _of_classes(predictions)
    result: dict = {"n": len(predictions), "n_groups": len(set(groups))}
    for name, (per_row, counted) in values.items():
        mean, interval = mean_interval(per_row[counted], groups[counted])
        result[name] = mean
        result[f"{name}_interval"] = interval
    if compares(predictions):
        return result | {"n_ties": int((~values["accuracy"][1]).sum())}
    confusion, _ = confusion_matrix(predictions)
    present = confusion.sum(1) > 0
    return result | {"macro_f1": float(f1(confusion)[present].mean()),
                     "most_common": float(confusion.sum(1).max() / confusion.sum())}


def by(predictions: Sequence[dict], column: str) -> dict[str, dict]:
    """`summarise` for each value of a column, most rows first."""
    parts: dict[str, list[dict]] = {}
    for row in predictions:
        parts.setdefault(row[column], []).append(row)
    return {value: summarise(rows) for value, rows in sorted(parts.items(), key=lambda item: (-len(item[1]), item[0]))}


def by_class(predictions: Sequence[dict]) -> dict[str, dict]:
    """`by_class`: n, precision, recall and F1 of each class; `confusion`: for each class of the rows, most rows first,
    how many of them were taken for which class."""
    confusion, labels = confusion_matrix(predictions)
    named, found, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    order = np.argsort(-named, kind="stable")
    scores = zip(named.tolist(), _ratio(right, found).tolist(), _ratio(right, named).tolist(),
                 f1(confusion).tolist(), strict=True)
    table = [dict(zip(("n", "precision", "recall", "f1"), row, strict=True)) for row in scores]
    return {
        "by_class": {labels[place]: table[place] for place in order},
        "confusion": {labels[place]: {labels[other]: int(confusion[place, other])
                                      for other in np.argsort(-confusion[place], kind="stable")
                                      if confusion[place, other]} for place in order if named[place]},
    }


def confusion_matrix(predictions: Sequence[dict]) -> tuple[np.ndarray, list[str]]:
    """Counts (C, C), rows by the most probable class of the target, columns by that of the model; class names."""
    labels = list(predictions[0]["target"])
    _, target_NC, logits_NC = _columns(predictions, "logits")
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, (target_NC.argmax(1), logits_NC.argmax(1)), 1)
    return confusion, labels


def f1(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class; 0 for one that is neither in the rows nor found."""
    return _ratio(2 * confusion.diagonal(), confusion.sum(0) + confusion.sum(1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


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


def _of_comparisons(predictions: Sequence[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each metric as (value of each row, which rows count). A margin is the logit of a minus the logit of b."""
    labels, target_NC, ab_NC = _columns(predictions, "logits_ab")
    ba_NC = _columns(predictions, "logits_ba")[2]
    mean_NC = (ab_NC + ba_NC) / 2
    margin_ab, margin_ba, margin = (logits[:, 0] - logits[:, 1] for logits in (ab_NC, ba_NC, mean_NC))
    wanted = target_NC[:, 0] - target_NC[:, 1]
    length = np.array([row["characters_a"] - row["characters_b"] for row in predictions])
    decided, every = wanted != 0, np.ones(len(predictions), dtype=bool)

    def right(found: np.ndarray) -> np.ndarray:
        return _share(found * np.sign(wanted))

    values = {
        "accuracy": (right(margin), decided),
        "accuracy_single_order": ((right(margin_ab) + right(margin_ba)) / 2, decided),
        "log_loss": (_log_loss(mean_NC, target_NC), every),
        "flip_rate": ((np.sign(margin_ab) != np.sign(margin_ba)).astype(float), every),
        "prefers_first": ((_share(margin_ab) + _share(-margin_ba)) / 2, every),
        "longer_wins": (right(length), decided),
    }
    if "tie" in labels:
        one_is_right = (target_NC == target_NC.max(1, keepdims=True)).sum(1) == 1
        values["accuracy_with_ties"] = (_most_probable_is_right(mean_NC, target_NC), one_is_right)
    return values


def _of_classes(predictions: Sequence[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    _, target_NC, logits_NC = _columns(predictions, "logits")
    every = np.ones(len(predictions), dtype=bool)
    return {"accuracy": (_most_probable_is_right(logits_NC, target_NC), every),
            "log_loss": (_log_loss(logits_NC, target_NC), every)}


def _columns(predictions: Sequence[dict], logits: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Class names, targets (N, C) and the logits (N, C) of that name."""
    labels = list(predictions[0]["target"])
    target_NC = np.array([[row["target"][label] for label in labels] for row in predictions], dtype=np.float64)
    return labels, target_NC, np.array([row[logits] for row in predictions], dtype=np.float64)


def _log_loss(logits_NC: np.ndarray, target_NC: np.ndarray) -> np.ndarray:
    return (target_NC * (np.logaddexp.reduce(logits_NC, axis=1, keepdims=True) - logits_NC)).sum(1)


def _most_probable_is_right(logits_NC: np.ndarray, target_NC: np.ndarray) -> np.ndarray:
    return (logits_NC.argmax(1) == target_NC.argmax(1)).astype(float)


def _share(margin: np.ndarray) -> np.ndarray:
    """1 above zero, 0 below, 0.5 at zero."""
    return (np.sign(margin) + 1) / 2
