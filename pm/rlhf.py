"""A preference model as TRL takes it: a reward function for its online trainers, and a pairwise judge. Needs no trl.

Shapes: N completions of a batch, n of them of one prompt.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np

from pm.data.example import ROLES
from pm.data.languages import UNKNOWN
from pm.distributed import gather_lists, rank
from pm.errors import UserError
from pm.predict import PreferenceModel
from pm.ranking import bradley_terry

GROUP = "group"
SCALES = ("win_rate", "log_odds")
SUREST = 1e-9  # a probability nearer to 0 or 1 counts as this: log-odds stay finite


class PreferenceReward:
    """Rewards each completion by comparisons: a reward function for TRL's GRPO, RLOO and online DPO trainers.

    against     "group": with the other completions of its prompt in the batch, which takes n (n - 1) / 2 comparisons a
                prompt; or the name of a column with a reference response: with that, n comparisons a prompt
    scale       "win_rate": the (mean) probability of being better, 0 to 1; 0.5 is the mean of each group. "log_odds": the
                Bradley-Terry score in the group, or the log-odds of being better than the reference; not bounded

    GRPO subtracts a group's mean and divides by its standard deviation: both scales order completions alike, but one bad
    completion has large log-odds, and with them most of the group's advantage. With `scale_rewards="none"` win rates
    also keep how sure the model is: a group of equals counts little.

    A comparison reads both orders of two completions; what they share is read once (`PreferenceModel.compare_all`).
    Completions with the same text are ties. Prompts and completions are texts or lists of turns, of which those of the
    assistant count; a text is one user turn, so no chat template belongs into it. A column `language` gives the
    temperatures. Several ranks gather their completions, so a group may lie on more than one; then all must call.

    Each rank holds the whole model. On GPUs make the trainer's config first (it chooses the rank's GPU), or give
    `PreferenceModel.from_pretrained` the device.
    """

    def __init__(self, model: PreferenceModel, against: str = GROUP, scale: str = "win_rate",
                 token_budget: int | None = None):
        if scale not in SCALES:
            raise UserError(f"scale {scale!r}: must be one of {', '.join(SCALES)}")
        self.model = model
        self.against = against
        self.scale = scale
        self.token_budget = token_budget
        self.__name__ = "preference"  # by which trl logs the reward

    def __call__(self, prompts: Sequence[str | list[dict]], completions: Sequence[str | list[dict]],
                 completion_ids: Sequence[list[int]] | None = None, trainer_state=None,
                 log_extra: Callable[[str, list], None] | None = None,
                 log_metric: Callable[[str, float], None] | None = None, **columns: Sequence) -> list[float]:
        """A reward for each completion, higher for a better one. `columns` are those of the data, a value for each.

        Logs `preference/length_correlation` (of reward and characters, within prompts), `preference/certainty` (mean
        distance of the probabilities from even odds, 0 to 1) and `preference/repeated` (share of completions whose
        text another one of the prompt has); and the characters of each completion.
        Raises `UserError` where a completion has nothing to be compared with, or cannot be read.
        """
        prompts, texts = [_prompt(prompt) for prompt in prompts], [_text(completion) for completion in completions]
        languages = [language or UNKNOWN for language in columns.get("language") or [UNKNOWN] * len(texts)]
        keys = [json.dumps(prompt, ensure_ascii=False) for prompt in prompts]
        if self.against == GROUP:
            rewards_N, certainty = self._in_groups(prompts, keys, texts, languages)
        else:
            rewards_N, certainty = self._against_references(prompts, texts, languages, columns)
        if log_extra:
            log_extra("characters", [len(text) for text in texts])
        if log_metric:
            values = {"length_correlation": length_correlation(rewards_N, texts, keys), "certainty": certainty,
                      "repeated": _repeated(texts, keys)}
            for name, value in values.items():
                if value is not None:
                    log_metric(f"preference/{name}", value)
        return rewards_N.tolist()

    def _in_groups(self, prompts: list, keys: list[str], texts: list[str], languages: list[str]
                   ) -> tuple[np.ndarray, float]:
        groups: dict[str, list[tuple[int, int, str]]] = {}
        for place, (owner, key, text) in enumerate(gather_lists([(rank(), *row) for row in zip(keys, texts,
                                                                                               strict=True)])):
            groups.setdefault(key, []).append((owner, place, text))
        first = {key: place for place, key in reversed(list(enumerate(keys)))}  # this rank's prompts
        cohorts = {key: [text for *_, text in groups[key]] for key in first}
        lone = [key for key, cohort in cohorts.items() if len(cohort) < 2]
        if lone:
            raise UserError(f"{len(lone)} of {len(cohorts)} prompts have a single completion in the batch, which has no "
                            f"win rate: num_generations must be at least 2, and per_device_train_batch_size x "
                            f"steps_per_generation x ranks a multiple of it; the first is {lone[0]:.80}")
        better = self.model.compare_all([prompts[place] for place in first.values()], list(cohorts.values()),
                                        self.token_budget, [languages[place] for place in first.values()])
        rewards = {place: float(reward) for key, better_nn in zip(cohorts, better, strict=True)
                   for (owner, place, _), reward in zip(groups[key], self._scores(better_nn), strict=True)
                   if owner == rank()}
        pairs = np.concatenate([better_nn[np.triu_indices(len(better_nn), 1)] for better_nn in better])
        return np.array([rewards[place] for place in sorted(rewards)]), _certainty(pairs)

    def _scores(self, better_nn: np.ndarray) -> np.ndarray:
        others_nn = better_nn * (1 - np.eye(len(better_nn)))
        return others_nn.sum(1) / (len(better_nn) - 1) if self.scale == "win_rate" else bradley_terry(others_nn)[0]

    def _against_references(self, prompts: list, texts: list[str], languages: list[str], columns: dict[str, Sequence]
                            ) -> tuple[np.ndarray, float]:
        if self.against not in columns:
            raise UserError(f"against {self.against!r}: must be {GROUP!r} or a column of the data with reference "
                            f"responses; the columns are {', '.join(columns) or 'none'}")
        found = self.model.compare(prompts, texts, [_text(reference) for reference in columns[self.against]],
                                   self.token_budget, languages)
        better_N = np.array([probability_of_first(probability) for probability in found])
        if self.scale == "win_rate":
            return better_N, _certainty(better_N)
        sure_N = np.clip(better_N, SUREST, 1 - SUREST)
        return np.log(sure_N / (1 - sure_N)), _certainty(better_N)


class PreferenceJudge:
    """A pairwise judge as TRL's are: `judge(prompts, completions)` says which of two is better.

    Trainers of TRL that take a judge (online DPO, Nash-MD and XPO, before 1.0) take this one; later ones take
    `PreferenceReward`.
    """

    def __init__(self, model: PreferenceModel, token_budget: int | None = None):
        self.model = model
        self.token_budget = token_budget

    def judge(self, prompts: Sequence[str | list[dict]], completions: Sequence[Sequence[str | list[dict]]],
              shuffle_order: bool = True, return_scores: bool = False) -> list[int] | list[float]:
        """0 or 1 for each prompt, the place of the better one of its two completions; -1 where they are exactly even,
        as those with the same text are. With `return_scores` the probability that the first one is better.

        `shuffle_order` changes nothing: every pair is read in both orders. Raises `UserError` for other than pairs.
        """
        wrong = next((number for number, pair in enumerate(completions) if len(pair) != 2), None)
        if wrong is not None:
            raise UserError(f"a judge compares 2 completions of a prompt; number {wrong} has {len(completions[wrong])}")
        first, second = ([_text(pair[place]) for pair in completions] for place in (0, 1))
        found = self.model.compare([_prompt(prompt) for prompt in prompts], first, second, self.token_budget)
        if return_scores:
            return [probability_of_first(probability) for probability in found]
        return [-1 if probability["a"] == probability["b"] else int(probability["b"] > probability["a"])
                for probability in found]


def probability_of_first(probability: dict[str, float]) -> float:
    """That the first of two responses is better; a tie counts half."""
    return probability["a"] + probability.get("tie", 0.0) / 2


def length_correlation(values_N: np.ndarray, texts: Sequence[str], keys: Sequence[str]) -> float | None:
    """Pearson's correlation of values and characters within the texts of the same key; None where either is constant.

    The mean of each key's texts is taken off both, so that prompts that ask for long answers do not count.
    """
    _, group_N = np.unique(np.array(keys, dtype=object), return_inverse=True)
    counts = np.bincount(group_N)
    values, lengths = (column - (np.bincount(group_N, column) / counts)[group_N]
                       for column in (np.asarray(values_N, float), np.array([len(text) for text in texts], float)))
    scale = np.sqrt((values**2).sum() * (lengths**2).sum())
    return float((values * lengths).sum() / scale) if scale > 1e-9 else None


def _certainty(better: np.ndarray) -> float:
    return float(np.abs(2 * better - 1).mean())


def _repeated(texts: Sequence[str], keys: Sequence[str]) -> float:
    rows = list(zip(keys, texts, strict=True))
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        seen[row] = seen.get(row, 0) + 1
    return sum(count for count in seen.values() if count > 1) / len(rows)


def _prompt(prompt: str | list[dict]) -> str | list[dict]:
    """With nothing but roles and texts."""
    if isinstance(prompt, str):
        return prompt
    for turn in prompt:
        if turn["role"] not in ROLES:
            raise UserError(f"a prompt has a turn of role {turn['role']!r}; the model reads {', '.join(ROLES)}")
    return [{"role": turn["role"], "content": _content(turn["content"])} for turn in prompt]


def _text(completion: str | list[dict]) -> str:
    """A completion's text: the assistant's turns, where it is a list of turns."""
    if isinstance(completion, str):
        return completion
    said = (_content(turn.get("content")) for turn in completion if turn["role"] == "assistant")
    return "\n\n".join(text for text in said if text)


def _content(content: str | list[dict] | None) -> str:
    """Of a turn: text, or parts of type text."""
    if isinstance(content, str) or not content:
        return content or ""
    other = next((part["type"] for part in content if part["type"] != "text"), None)
    if other:
        raise UserError(f"a turn has a part of type {other!r}; the model reads text only")
    return "".join(part["text"] for part in content)
