"""What can be had without reading: baselines that are fitted on the training split.

`n_grams`   a logistic regression on the n-grams of response A minus those of response B: style, not sense
`prompt_only`   one on the n-grams of the prompt alone. Which response is called a should not follow from the prompt;
            where this is above chance, the data gives its labels away. (A model that sees no responses says the same
            in both orders, which averages to even odds: it would show nothing.)
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from pm.data.example import content_hash, text_hash
from pm.data.prepare import cached, code_hash
from pm.predictions import mean_logits

N_GRAMS, PROMPT_ONLY, RESPONSE_ONLY = "n_grams", "prompt_only", "response_only"
MOST_ROWS = 50_000
MOST_CHARACTERS = 2_000  # of a text, half of them from its end
MOST_IN_ALL = 40_000_000  # characters of the responses that are fitted on: about a minute, and less than 1 GB
FEATURES = 2**18
BATCH = 2_000
STRENGTH = 0.1  # inverse of the L2 penalty
CODE = code_hash(sys.modules[__name__])


def available() -> bool:
    """Whether scikit-learn is installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return False
    return True


def fitted(train: Dataset, key: str, rows: Dataset, cache_dir: str) -> dict[str, dict[str, float]]:
    """Log-odds of a over b by each of the two baselines, for each row by its `example.content_hash`.

    `train` and `rows` are rows of text (`example.FEATURES`) that compare responses; `key` changes where `train` does,
    since what was fitted is kept. Needs scikit-learn.
    """
    def build(folder: Path) -> None:
        for name, weights in _fit(train).items():
            np.save(folder / f"{name}.npy", weights)

    folder = cached(cache_dir, f"shortcuts-{text_hash(CODE, key)}", build)
    found: dict[str, dict[str, float]] = {}
    weights = {name: np.load(folder / f"{name}.npy") for name in (N_GRAMS, PROMPT_ONLY)}
    for batch in rows.iter(BATCH):
        columns = {name: (features @ weights[name][1:] + weights[name][0]).tolist()
                   for name, features in _features(batch).items()}
        for number, content in enumerate(map(content_hash, batch["prompt"], batch["response_a"], batch["response_b"])):
            found[content] = {name: column[number] for name, column in columns.items()}
    return found


def with_shortcuts(predictions: Sequence[dict], found: dict[str, dict[str, float]]) -> list[dict]:
    """The predictions with log-odds of `found` added to their `shortcuts`, joined on `content`."""
    return [row | {"shortcuts": row.get("shortcuts", {}) | found[row["content"]]} if row["content"] in found else row
            for row in predictions]


def response_only(predictions: Sequence[dict]) -> dict[str, dict[str, float]]:
    """The model's own log-odds where it was scored with blank prompts (`predict.score`), by `content`."""
    logits_NC = mean_logits(predictions)
    odds = (logits_NC[:, 0] - logits_NC[:, 1]).tolist()
    return {row["content"]: {RESPONSE_ONLY: value} for row, value in zip(predictions, odds, strict=True)}


def _fit(train: Dataset) -> dict[str, np.ndarray]:
    """Of each baseline the intercept and a weight for each feature."""
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    order = np.random.RandomState(0).permutation(len(train))[:MOST_ROWS]
    parts: dict[str, list] = {N_GRAMS: [], PROMPT_ONLY: []}
    winners, characters = [], 0
    for batch in train.select(order).iter(BATCH):
        characters += sum(min(len(text), MOST_CHARACTERS) for name in ("response_a", "response_b")
                          for text in batch[name])
        if characters > MOST_IN_ALL and winners:
            break
        wanted = np.array([sum({"a": 1, "b": -1}.get(part["label"], 0) * part["probability"] for part in target)
                           for target in batch["target"]])
        winners.append(np.sign(wanted))
        for name, features in _features(batch).items():
            parts[name].append(features)
    winner = np.concatenate(winners)
    decided = winner != 0
    result = {}
    for name, features in parts.items():
        weights = np.zeros(FEATURES + 1)
        if len(set(winner[decided])) == 2:
            model = LogisticRegression(C=STRENGTH, fit_intercept=name == PROMPT_ONLY, solver="liblinear")
            model.fit(vstack(features)[decided], winner[decided])
            weights = np.concatenate([np.atleast_1d(model.intercept_), model.coef_[0]])
        result[name] = weights
    return result


def _features(batch: dict[str, list]) -> dict[str, object]:
    """Sparse (rows, FEATURES): logarithms of the counts of 1- to 4-grams of characters, inside words."""
    from sklearn.feature_extraction.text import HashingVectorizer

    count = HashingVectorizer(analyzer="char_wb", ngram_range=(1, 4), n_features=FEATURES, norm=None,
                              alternate_sign=False, lowercase=False).transform
    a, b = (count(map(_shortened, batch[name])) for name in ("response_a", "response_b"))
    prompts = count(_shortened("\n".join(turn["content"] for turn in prompt)) for prompt in batch["prompt"])
    result = {N_GRAMS: a - b, PROMPT_ONLY: prompts}
    for features in result.values():
        features.data = np.sign(features.data) * np.log1p(np.abs(features.data))
    return result


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS // 2] + text[-MOST_CHARACTERS // 2 :]
