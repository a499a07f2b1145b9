"""A model behind a batcher, with limits to what one request may take. Knows no HTTP."""

import asyncio
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pm.batching import Batcher
from pm.counters import Counters
from pm.errors import UserError
from pm.predict import PreferenceModel, Prompt
from pm.ranking import Ranking, rank_responses

BYTES_PER_TOKEN = 4  # fewer than a token has in most scripts: a batch's tokens are guessed rather too high


@dataclass(frozen=True)
class Limits:
    """Of one request, but for `waiting`: comparisons or texts of all requests that may wait. Times are in seconds."""

    body: int = 4 * 2**20
    comparisons: int = 1024
    characters: int = 100_000
    waiting: int = 4096
    timeout: float = 120.0
    body_timeout: float = 30.0
    connections: int = 2000

    def check_count(self, what: str, count: int) -> None:
        if count > self.comparisons:
            raise UserError(f"{what} {count:,} comparisons; at most {self.comparisons:,} are allowed "
                            "(--max_comparisons)")

    def check_texts(self, **fields: Sequence) -> None:
        """Each field is a list of texts, of parts of texts, or of turns."""
        for name, values in fields.items():
            for number, value in enumerate(values):
                parts = [value] if isinstance(value, str) else [
                    part if isinstance(part, str) else part["content"] for part in value or ()]
                characters = sum(map(len, parts))
                if characters > self.characters:
                    place = f"[{number}]" if len(values) > 1 else ""
                    raise UserError(f"{name}{place} has {characters:,} characters; at most {self.characters:,} are "
                                    "allowed (--max_characters)")


DEFAULTS = Limits()


class Pair(NamedTuple):
    """What is compared. A prompt is text or turns."""

    prompt: Prompt
    response_a: str
    response_b: str
    language: str


class Service:
    """Raises `UserError` for what a caller got wrong, `Full` and `Closed` as the batcher does."""

    def __init__(self, model: PreferenceModel, limits: Limits, together: bool):
        self.model, self.limits = model, limits
        self.counters = Counters()
        model.progress = iter
        self.batcher = Batcher(self._compare if model.task.compares else self._classify, self._tokens,
                               model.token_budget, limits.waiting, together, self.counters.batch)

    async def compare(self, pairs: Sequence[Pair]) -> list[dict | None]:
        """Predictions; None where the responses are equal."""
        self._check_task(compares=True)
        return await asyncio.wrap_future(self.batcher.submit(pairs))

    async def rank(self, prompt: Prompt, responses: Sequence[str], method: str,
                   language: str) -> tuple[Ranking, list[dict | None]]:
        """The ranking, and the predictions that it is from."""
        found: dict[tuple[int, int], dict | None] = {}

        def beats(pairs: Sequence[tuple[int, int]]) -> list[float]:
            missing = [pair for pair in pairs if pair not in found]
            if missing:
                raise _Missing(missing)
            return [self.better(found[pair]) for pair in pairs]

        while True:  # `rank_responses` cannot wait: it is called again with what it missed, once for each round
            try:
                return rank_responses(len(responses), beats, method), list(found.values())
            except _Missing as missing:
                pairs = [Pair(prompt, responses[i], responses[j], language) for i, j in missing.pairs]
                found |= zip(missing.pairs, await self.compare(pairs), strict=True)

    async def classify(self, texts: Sequence[tuple[object, str]]) -> list[dict[str, float]]:
        """Of texts with their languages."""
        self._check_task(compares=False)
        return await asyncio.wrap_future(self.batcher.submit(texts))

    def better(self, prediction: dict | None) -> float:
        """How probable it is that the first response is better; a tie counts half."""
        probability = prediction["probability"] if prediction else self.tie
        return probability["a"] + probability.get("tie", 0.0) / 2

    @property
    def tie(self) -> dict[str, float]:
        labels = self.model.task.labels
        return {label: float(label == "tie") if "tie" in labels else 0.5 for label in labels}

    def _check_task(self, compares: bool) -> None:
        if self.model.task.compares != compares:
            raise UserError("this model " + ("classifies texts (/classify), it compares no responses" if compares else
                                             "compares responses (/compare), it does not classify"))

    def _compare(self, pairs: Sequence[Pair]) -> list[dict | None]:
        prompts, ones, others, languages = zip(*pairs, strict=True)
        found = self.model.predictions(prompts, ones, others, languages=languages)
        _check_finite(value for row in found if row for value in row["probability"].values())
        return found

    def _classify(self, texts: Sequence[tuple[object, str]]) -> list[dict[str, float]]:
        found = self.model.classify([text for text, _ in texts], languages=[language for _, language in texts])
        _check_finite(value for row in found for value in row.values())
        return found

    def _tokens(self, item: tuple) -> int:
        """A guess; the model cuts what it is given into forward passes by the tokens that there are."""
        *texts, _ = item
        size = len(json.dumps(texts, ensure_ascii=False).encode())
        return min(size // BYTES_PER_TOKEN + 1, self.model.encoder.max_length) * (2 if self.model.task.compares else 1)


class _Missing(Exception):
    def __init__(self, pairs: list[tuple[int, int]]):
        self.pairs = pairs


def _check_finite(values: Iterable[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise ArithmeticError("the model's logits are not finite")


def flips(prediction: dict) -> bool:
    """Whether the verdict changes with the order, as evaluation counts it."""
    ab, ba = (np.sign(logits[0] - logits[1]) for logits in (prediction["logits_ab"], prediction["logits_ba"]))
    return bool(ab != ba)
