"""Temperatures: how far logits are to be divided so that probabilities are as often right as they say. Pure.

One for all rows and one for each language (Guo et al. 2017, arXiv:1706.04599). Shapes: N rows, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pm.predictions import mean_logits, softmax, targets

LOWEST, HIGHEST = 0.02, 50.0
SPREAD_OF_ALL = 1.0  # of ln(temperature) around 0, before any row is seen
SPREAD_OF_LANGUAGES = 0.25  # of a language's ln(temperature) around that of all
STEPS = 60


@dataclass(frozen=True)
class Calibration:
    """`temperature` serves languages that `languages` does not name; `rows` were held out to fit them."""

    temperature: float = 1.0
    languages: dict[str, float] = field(default_factory=dict)
    rows: int = 0

    def of(self, language: str) -> float:
        return self.languages.get(language, self.temperature)


def fit_temperatures(predictions: Sequence[dict]) -> Calibration:
    """From rows that were not trained on, with `logits_ab` and `logits_ba`, or `logits`, and `target`.

    A temperature has the lowest log-loss, but is drawn by a normal prior on its logarithm: that of all rows to 1, that
    of a language to that of all. With few rows it stays near there, with many it is the rows' own.
    """
    if not predictions:
        return Calibration()
    logits_NC, target_NC = mean_logits(predictions), targets(predictions)
    languages = np.array([row["language"] for row in predictions])
    common = _fit(logits_NC, target_NC, 1.0, SPREAD_OF_ALL)
    return Calibration(common, {str(language): _fit(logits_NC[languages == language], target_NC[languages == language],
                                                    common, SPREAD_OF_LANGUAGES)
                                for language in np.unique(languages)}, len(predictions))


def _fit(logits_NC: np.ndarray, target_NC: np.ndarray, around: float, spread: float) -> float:
    """The temperature where log-loss and prior together have slope 0, by bisection over its logarithm."""
    wanted = (target_NC * logits_NC).sum()  # the logits that the targets choose

    def slope(log_temperature: float) -> float:
        scaled = logits_NC * np.exp(-log_temperature)
        found = (softmax(scaled) * logits_NC).sum()  # those that the model chooses
        return (wanted - found) * np.exp(-log_temperature) + (log_temperature - np.log(around)) / spread**2

    low, high = np.log(LOWEST), np.log(HIGHEST)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(np.exp((low + high) / 2))
