"""A preference model as TRL takes it: a reward function for its online trainers, and a pairwise judge. Needs no trl.

Shapes: N completions or pairs of them, n completions of one prompt.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from pm import intervals
from pm.data.languages import UNKNOWN
from pm.distributed import gather_lists, rank
from pm.errors import UserError
from pm.predict import PreferenceModel, Prompt
from pm.ranking import bradley_terry

GROUP = "group"
SCALES = ("win_rate", "log_odds")
SUREST = 1e-9  # a probability nearer to 0 or 1 counts as this, so that log-odds are finite
NEAR = 0.1  # responses are of nearly equal length where the shorter one lacks at most this share of the longer one

Completion = str | list[dict]


class PreferenceReward:
    """Rewards completions by comparing them: a reward function for TRL's GRPO, RLOO and online DPO trainers.

    against     `group`: with the other completions of the prompt in the batch, n (n - 1) / 2 comparisons for n of them;
                else the column of the data that holds a reference response, n comparisons
    scale       `win_rate`: the probability of being better, its mean over the others of a group. `log_odds`: the score
                by Bradley and Terry in the group, or the log-odds of being better than the reference

    GRPO divides by a group's standard deviation, after which both scales give nearly the same advantages. Win rates are
    bounded, and with `scale_rewards="none"` they keep how sure the model is, so that a group of equals counts little.
    In a group their mean is 0.5 (of log-odds 0) whatever the policy has learned: measure that by `head_to_head`.

    A comparison reads two completions in both orders; what comparisons share is read once, and completions of the same
    text are ties without a look. Prompts and completions are texts or lists of turns. A prompt that is text is one user
    turn to the model: let TRL apply the chat template. The column `language` chooses temperatures.

    With several ranks all call together, as TRL's trainers do, and a group may lie on more than one of them. Each holds
    the whole model, on its own GPU if the trainer's config was made first, or `from_pretrained` was given the device.
    """

    def __init__(self, model: PreferenceModel, against: str = GROUP, scale: str = "win_rate",
                 token_budget: int | None = None):
        if scale not in SCALES:
            raise UserError(f"scale {scale!r}: must be one of {', '.join(SCALES)}")
        self.model = model
        self.against = against
        self.scale = scale
        self.token_budget = token_budget
        self.__name__ = "preference"  # under which TRL logs the reward

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion],
                 completion_ids: Sequence[list[int]] | None = None, trainer_state=None,
                 log_extra: Callable[[str, list], None] | None = None,
                 log_metric: Callable[[str, float], None] | None = None, **columns: Sequence) -> list[float]:
        """A reward for each completion. `columns` are those of the data, with a value for each completion.

        Logs the characters of each completion, and the metrics `preference/length_correlation` (of reward and
        characters, among completions of the same prompt), `preference/certainty` (how far the probabilities are from
        even odds, from 0 to 1) and `preference/repeated` (the share of completions whose text the prompt has more than
        once). Raises `UserError` where a completion has nothing to be compared with.
        """
        prompts, texts = list(map(_prompt, prompts)), list(map(_text, completions))
        languages = [language or UNKNOWN for language in columns.get("language") or [""] * len(texts)]
        keys = [json.dumps(prompt, ensure_ascii=False) for prompt in prompts]
        if self.against == GROUP:
            rewards_N, certainty = self._in_groups(prompts, texts, languages, keys)
        else:
            rewards_N, certainty = self._against_references(prompts, texts, languages, columns)
        if log_extra:
            log_extra("characters", [len(text) for text in texts])
        if log_metric:
            times = Counter(zip(keys, texts, strict=True))
            correlation = _correlation(_centred(rewards_N, keys), _centred([len(text) for text in texts], keys))
            if correlation is not None:
                log_metric("preference/length_correlation", correlation)
            log_metric("preference/certainty", certainty)
            log_metric("preference/repeated", sum(count for count in times.values() if count > 1) / len(texts))
        return rewards_N.tolist()

    def _in_groups(self, prompts: list[Prompt], texts: list[str], languages: list[str], keys: list[str]
                   ) -> tuple[np.ndarray, float]:
        """By prompt, not by place: online DPO has the second completions of all prompts behind the first ones."""
        cohorts: dict[str, list[tuple[int, str]]] = {}  # the rank and text of each completion of a prompt
        for owner, key, text in gather_lists([(rank(), *row) for row in zip(keys, texts, strict=True)]):
            cohorts.setdefault(key, []).append((owner, text))
        places: dict[str, list[int]] = {}  # of this rank's completions
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)
        lone = next((key for key, cohort in cohorts.items() if len(cohort) < 2), None)
        if lone:  # on all ranks alike
            raise UserError(f"a prompt has a single completion in the batch, which then has no win rate: {lone:.80}; "
                            "num_generations must be 2 or more, and per_device_train_batch_size x steps_per_generation "
                            "x ranks a multiple of it")
        better = self.model.compare_all(
            [prompts[mine[0]] for mine in places.values()], [[text for _, text in cohorts[key]] for key in places],
            self.token_budget, [languages[mine[0]] for mine in places.values()])
        rewards_N = np.zeros(len(texts))
        for (key, mine), better_nn in zip(places.items(), better, strict=True):
            rewards_N[mine] = self._scores(better_nn)[[owner == rank() for owner, _ in cohorts[key]]]
        return rewards_N, _certainty(np.concatenate([nn[np.triu_indices(len(nn), 1)] for nn in better]))

    def _scores(self, better_nn: np.ndarray) -> np.ndarray:
        others_nn = better_nn * (1 - np.eye(len(better_nn)))
        return others_nn.sum(1) / (len(better_nn) - 1) if self.scale == "win_rate" else bradley_terry(others_nn)[0]

    def _against_references(self, prompts: list[Prompt], texts: list[str], languages: list[str],
                            columns: dict[str, Sequence]) -> tuple[np.ndarray, float]:
        if self.against not in columns:
            raise UserError(f"against {self.against!r}: must be {GROUP!r} or a column of the data that holds reference "
                            f"responses; its columns are {', '.join(columns) or 'none'}")
        references = [_text(reference) for reference in columns[self.against]]
        better_N = np.array([_first_wins(probability) for probability in
                             self.model.compare(prompts, texts, references, self.token_budget, languages)])
        clipped_N = np.clip(better_N, SUREST, 1 - SUREST)
        return better_N if self.scale == "win_rate" else np.log(clipped_N / (1 - clipped_N)), _certainty(better_N)


class PreferenceJudge:
    """A pairwise judge as TRL had them, for what takes one. The trainers of TRL 1.16 take reward functions only."""

    def __init__(self, model: PreferenceModel, token_budget: int | None = None):
        self.model = model
        self.token_budget = token_budget

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], shuffle_order: bool = True,
              return_scores: bool = False) -> list[int] | list[float]:
        """For each prompt the place, 0 or 1, of the better one of its two completions; -1 where they are exactly even,
        as two of the same text are. With `return_scores` the probability that the first one is better.

        `shuffle_order` changes nothing, as each pair is read in both orders. Raises `UserError` for other than pairs.
        """
        wrong = next((number for number, pair in enumerate(completions) if len(pair) != 2), None)
        if wrong is not None:
            raise UserError(f"completions[{wrong}] has {len(completions[wrong])} completions; a judge compares 2")
        first, second = ([_text(pair[place]) for pair in completions] for place in (0, 1))
        found = self.model.compare(list(map(_prompt, prompts)), first, second, self.token_budget)
        if return_scores:
            return [_first_wins(probability) for probability in found]
        return [-1 if probability["a"] == probability["b"] else int(probability["b"] > probability["a"])
                for probability in found]


def head_to_head(model: PreferenceModel, prompts: Sequence[Prompt], responses: Sequence[Completion],
                 others: Sequence[Completion], token_budget: int | None = None,
                 languages: Sequence[str] | None = None) -> dict:
    """How often `responses` win against `others`, pair by pair, and whether only because they are longer or shorter.

    `win_rate`: share of verdicts, an even one counts half; `probability`: mean of winning; `characters`: mean of both
    sides; `longer_wins`: share of the verdicts, among pairs of different length, that are for the longer one;
    `near_length`: the win rate among the `near_length_n` pairs of nearly equal length; `length_correlation`: of the
    probability and the difference of characters. 95 % intervals (`..._interval`) resample prompts. None where there
    is nothing to count. Raises `UserError` for no pairs.
    """
    prompts, responses, others = list(map(_prompt, prompts)), list(map(_text, responses)), list(map(_text, others))
    if not responses:
        raise UserError("head_to_head: there are no responses")
    better_N = np.array([_first_wins(probability) for probability in
                         model.compare(prompts, responses, others, token_budget, languages)])
    lengths_N2 = np.array([[len(one), len(other)] for one, other in zip(responses, others, strict=True)], float)
    difference_N, longest_N = lengths_N2[:, 0] - lengths_N2[:, 1], lengths_N2.max(1)
    won_N = (np.sign(better_N - 0.5) + 1) / 2
    near_N, all_N = np.abs(difference_N) <= NEAR * longest_N, np.ones(len(won_N), bool)
    _, group_N = np.unique([json.dumps(prompt) for prompt in prompts], return_inverse=True)
    shares = {"win_rate": (won_N, all_N), "probability": (better_N, all_N), "near_length": (won_N, near_N),
              "longer_wins": (np.where(difference_N > 0, won_N, 1 - won_N), difference_N != 0)}
    found = {"n": len(won_N), "prompts": len(set(group_N))}
    for name, (share, interval) in intervals.means(shares, group_N, shares).items():
        found |= {name: share, f"{name}_interval": interval}
    return found | {"near_length_n": int(near_N.sum()), "characters": lengths_N2.mean(0).tolist(),
                    "length_correlation": _correlation(better_N - better_N.mean(), difference_N - difference_N.mean())}


def _first_wins(probability: dict[str, float]) -> float:
    return probability["a"] + probability.get("tie", 0.0) / 2


def _certainty(better: np.ndarray) -> float:
    return float(np.abs(2 * better - 1).mean())


def _centred(values: Sequence[float], keys: Sequence[str]) -> np.ndarray:
    """The values less the mean of those with the same key."""
    _, group_N = np.unique(keys, return_inverse=True)
    return np.asarray(values) - (np.bincount(group_N, values) / np.bincount(group_N))[group_N]


def _correlation(one_N: np.ndarray, other_N: np.ndarray) -> float | None:
    """Pearson's, of columns with mean 0; None where one does not vary."""
    scale = np.sqrt((one_N**2).sum() * (other_N**2).sum())
    return float((one_N * other_N).sum() / scale) if scale > 1e-9 else None


def _prompt(prompt: Prompt) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    return [{"role": turn["role"], "content": _content(turn["content"])} for turn in prompt]


def _text(completion: Completion) -> str:
    """Of a list of turns what the assistant says."""
    if isinstance(completion, str):
        return completion
    said = (_content(turn.get("content")) for turn in completion if turn["role"] == "assistant")
    return "\n\n".join(text for text in said if text)


def _content(content: str | list[dict] | None) -> str:
    """A turn's text, which may come in parts."""
    if isinstance(content, str) or not content:
        return content or ""
    other = next((part["type"] for part in content if part["type"] != "text"), None)
    if other:
        raise UserError(f"a turn holds a part of type {other!r}; the model reads text")
    return "".join(part["text"] for part in content)
