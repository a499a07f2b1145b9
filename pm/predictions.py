"""Rows of `predictions.jsonl` as arrays. Pure. Shapes: N rows, C classes."""

from collections.abc import Sequence

import numpy as np


def mean_logits(predictions: Sequence[dict]) -> np.ndarray:
    """Logits (N, C) averaged over the orders that a row was read in."""
    if "logits" in predictions[0]:
        return np.array([row["logits"] for row in predictions], dtype=np.float64)
    return (np.array([row["logits_ab"] for row in predictions], dtype=np.float64)
            + np.array([row["logits_ba"] for row in predictions], dtype=np.float64)) / 2


def targets(predictions: Sequence[dict]) -> np.ndarray:
    """Targets (N, C), in the order of the logits."""
    labels = list(predictions[0]["target"])
    return np.array([[row["target"][label] for label in labels] for row in predictions], dtype=np.float64)


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    odds = np.exp(logits_NC - logits_NC.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)
