"""The model as a reward function and judge of TRL; its weights are random, small and the same each time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import NAMES, THREE, TWO, export

from pm.errors import UserError
from pm.predict import PreferenceModel
from pm.ranking import bradley_terry
from pm.rlhf import PreferenceJudge, PreferenceReward, head_to_head
from pm.task import CLASSIFICATION, PREFERENCE

ROOT = Path(__file__).resolve().parents[1]
PROMPTS, COMPLETIONS = ["hello"] * 3 + ["say 1"] * 3, ["the fox", "dog", "9 9", "hello", "lazy dog " * 9, "brown"]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    made = {2: (PREFERENCE, TWO), 3: (PREFERENCE, THREE), "texts": (CLASSIFICATION, NAMES)}
    calibration = {"calibration": {"temperature": 1.0, "languages": {"de": 50.0}, "rows": 9}}
    return {name: export(tmp_path_factory.mktemp("export"), *task, calibration) for name, task in made.items()}


@pytest.fixture(scope="module")
def models(exports):
    return {name: PreferenceModel.from_pretrained(folder, "cpu") for name, folder in exports.items()}


def refusal(call, *arguments, **named) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **named)
    return str(error.value)


def better(model: PreferenceModel, prompt: str, one: str, other: str) -> float:
    found = model.compare([prompt], [one], [other])[0]
    return found["a"] + found.get("tie", 0) / 2


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


# Rewards in a group

@pytest.mark.parametrize("classes", [2, 3])
def test_a_reward_is_the_mean_probability_of_winning_against_the_others(models, classes):
    rewards = PreferenceReward(models[classes])(PROMPTS, COMPLETIONS)
    for place, reward in enumerate(rewards):
        group = [0, 1, 2] if place < 3 else [3, 4, 5]
        assert reward == pytest.approx(np.mean([better(models[classes], PROMPTS[place], COMPLETIONS[place],
                                                       COMPLETIONS[other]) for other in group if other != place]))
    assert np.mean(rewards[:3]) == pytest.approx(0.5) and np.mean(rewards[3:]) == pytest.approx(0.5)
    assert np.std(rewards) > 0.01


def test_log_odds_are_the_scores_of_bradley_and_terry(models):
    rewards = np.array(PreferenceReward(models[2], scale="log_odds")(PROMPTS, COMPLETIONS))
    wins = models[2].compare_all(["hello"], [COMPLETIONS[:3]])[0] - 0.5 * np.eye(3)
    assert rewards[:3] == pytest.approx(bradley_terry(wins)[0])
    shares = np.array(PreferenceReward(models[2])(PROMPTS, COMPLETIONS))
    for group in (slice(3), slice(3, 6)):
        assert rewards[group].argsort().tolist() == shares[group].argsort().tolist()


def test_completions_of_a_prompt_need_not_stand_together(models):
    """TRL's online DPO has the second completions of all prompts behind the first ones."""
    together = PreferenceReward(models[2])(PROMPTS, COMPLETIONS)
    order = [0, 3, 1, 4, 2, 5]
    apart = PreferenceReward(models[2])([PROMPTS[place] for place in order], [COMPLETIONS[place] for place in order])
    assert apart == pytest.approx([together[place] for place in order], abs=1e-6)


def test_equal_completions_are_ties(models):
    assert PreferenceReward(models[2])(["hello"] * 3, ["fox"] * 3) == [0.5] * 3
    assert PreferenceReward(models[2], scale="log_odds")(["hello"] * 3, ["fox"] * 3) == pytest.approx([0.0] * 3)
    assert PreferenceReward(models[2], "reference")(["hello"], ["fox"], reference=["fox"]) == [0.5]
    first, second, _ = PreferenceReward(models[2])(["hello"] * 3, ["fox", "fox", "dog"])
    assert first == pytest.approx(second)


def test_turns_are_read_as_their_texts(models):
    plain = PreferenceReward(models[2])(PROMPTS, COMPLETIONS)
    turns = PreferenceReward(models[2])(list(map(user, PROMPTS)), list(map(assistant, COMPLETIONS)))
    assert turns == plain
    pieces = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    parts = [{"role": "user", "content": pieces, "name": "x"}]
    called = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "42"},
              *assistant("the fox")]
    assert PreferenceReward(models[2])([parts] * 3, [called, *map(assistant, COMPLETIONS[1:3])]) == plain[:3]


def test_the_language_of_a_row_chooses_the_temperature(models):
    plain, german = (np.array(PreferenceReward(models[2], scale="log_odds")(PROMPTS, COMPLETIONS, language=languages))
                     for languages in (["en", None, ""] * 2, ["de"] * 3 + ["en"] * 3))
    assert np.abs(german[:3]).max() < np.abs(plain[:3]).max() / 10
    assert german[3:] == pytest.approx(plain[3:])
    assert PreferenceReward(models[2])(PROMPTS, COMPLETIONS, language=["de"] * 6) != pytest.approx(
        PreferenceReward(models[2])(PROMPTS, COMPLETIONS), abs=1e-3)


def test_a_lone_completion_is_refused(models):
    message = refusal(PreferenceReward(models[2]), ["hello"] * 2 + ["say 1"], ["fox", "dog", "9"])
    assert "single completion" in message and '"say 1"' in message
    assert "num_generations" in message and "per_device_train_batch_size" in message


# Rewards against a reference

def test_a_reward_is_the_probability_of_being_better_than_the_reference(models):
    references = ["lazy"] * 3 + ["dog"] * 3
    rewards = PreferenceReward(models[2], "gold")(PROMPTS, COMPLETIONS, gold=references, other=[1] * 6)
    assert rewards == pytest.approx([better(models[2], *row) for row in zip(PROMPTS, COMPLETIONS, references,
                                                                            strict=True)], abs=1e-6)
    log_odds = PreferenceReward(models[2], "gold", "log_odds")(PROMPTS, COMPLETIONS, gold=references)
    assert log_odds == pytest.approx([np.log(reward / (1 - reward)) for reward in rewards])
    as_turns = PreferenceReward(models[2], "gold")(PROMPTS, COMPLETIONS, gold=list(map(assistant, references)))
    assert as_turns == rewards
    assert PreferenceReward(models[2], "gold")(["hello"], ["fox"], gold=["dog"]) == pytest.approx(
        [better(models[2], "hello", "fox", "dog")])  # a lone completion has its reference


def test_what_cannot_be_rewarded_is_refused(models):
    assert "against 'gold'" in refusal(PreferenceReward(models[2], "gold"), PROMPTS, COMPLETIONS, answer=["x"] * 6)
    assert "win_rate, log_odds" in refusal(PreferenceReward, models[2], scale="elo")
    assert "--task preference" in refusal(PreferenceReward(models["texts"]), PROMPTS, COMPLETIONS)
    picture = [{"role": "user", "content": [{"type": "image"}]}]
    assert "'image'" in refusal(PreferenceReward(models[2]), [picture] * 2, ["fox", "dog"])
    tool = [{"role": "tool", "content": "42"}]
    assert "role must be one of" in refusal(PreferenceReward(models[2]), [tool] * 2, ["fox", "dog"])


# What is logged

def test_lengths_and_metrics_are_logged(models):
    columns, metrics = {}, {}
    rewards = PreferenceReward(models[2])(["hello"] * 4, ["fox", "dog", "dog", "lazy dog"], [[1]] * 4, None,
                                          columns.__setitem__, metrics.__setitem__)
    assert columns == {"characters": [3, 3, 3, 8]}
    wins = models[2].compare_all(["hello"], [["fox", "dog", "dog", "lazy dog"]])[0][np.triu_indices(4, 1)]
    assert metrics == pytest.approx({
        "preference/certainty": np.abs(2 * wins - 1).mean(), "preference/repeated": 0.5,
        "preference/length_correlation": np.corrcoef(rewards, [3, 3, 3, 8])[0, 1]})


def test_the_correlation_with_length_is_within_prompts(models):
    """Long answers to the one prompt and short ones to the other say nothing of length."""
    metrics = {}
    PreferenceReward(models[2])(["hello"] * 2 + ["say 1"] * 2, ["fox", "dog", "lazy dogs", "brown fox"],
                                log_metric=metrics.__setitem__)
    assert metrics.keys() == {"preference/certainty", "preference/repeated"}


# Ranks

RANKS = """
import json, sys
import torch.distributed as dist
from pm.distributed import end, gather_lists, rank, start
from pm.predict import PreferenceModel
from pm.rlhf import PreferenceReward
start()
prompts, completions = json.loads(sys.argv[2])
mine = slice(4 * rank(), 4 * rank() + 4)
reward = PreferenceReward(PreferenceModel.from_pretrained(sys.argv[1], "cpu"))
rewards = gather_lists(reward(prompts[mine], completions[mine]))
if rank() == 0:
    print(json.dumps(rewards))
end()
"""


@pytest.mark.slow
def test_a_group_may_lie_on_two_ranks(models, exports):
    prompts, completions = ["hello"] * 3 + ["say 1"] * 3 + ["fox"] * 2, [*COMPLETIONS, "dog", "9"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "ranks",
               str(exports[2]), json.dumps([prompts, completions])]
    folder = exports[2].parent
    (folder / "ranks.py").write_text(RANKS)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    assert found == pytest.approx(PreferenceReward(models[2])(prompts, completions), abs=1e-6)


# The judge

@pytest.mark.parametrize("classes", [2, 3])
def test_a_judge_names_the_better_one(models, classes):
    judge = PreferenceJudge(models[classes])
    pairs = [["the fox", "9 9"], ["9 9", "the fox"], ["fox", "fox"]]
    verdicts = judge.judge(["hello"] * 3, pairs)
    first = better(models[classes], "hello", "the fox", "9 9")
    assert verdicts == ([0, 1, -1] if first > 0.5 else [1, 0, -1])
    assert judge.judge([user("hello")] * 3, [list(map(assistant, pair)) for pair in pairs], shuffle_order=False
                       ) == verdicts
    assert judge.judge(["hello"] * 3, pairs, return_scores=True) == pytest.approx([first, 1 - first, 0.5], abs=1e-6)


def test_a_judge_takes_pairs(models):
    assert "completions[1] has 3" in refusal(PreferenceJudge(models[2]).judge, ["hello"] * 2,
                                             [["fox", "dog"], ["fox", "dog", "9"]])


# Head to head

def test_head_to_head_counts_verdicts_and_lengths(models):
    prompts, responses, others = PROMPTS, COMPLETIONS, ["dog", "the fox", "9", "hello", "fox", "brown dog"]
    wins = np.array([better(models[2], *row) for row in zip(prompts, responses, others, strict=True)])
    assert wins[3] == 0.5
    found = head_to_head(models[2], prompts, responses, others)
    assert found["win_rate"] == pytest.approx(((wins > 0.5).sum() + 0.5) / 6)
    assert found["probability"] == pytest.approx(wins.mean(), abs=1e-6)
    assert found["characters"] == pytest.approx([(7 + 3 + 3 + 5 + 81 + 5) / 6, (3 + 7 + 1 + 5 + 3 + 9) / 6])
    longer = [wins[0] > 0.5, wins[1] < 0.5, wins[2] > 0.5, wins[4] > 0.5, wins[5] < 0.5]
    assert found["longer_wins"] == pytest.approx(np.mean(longer))
    assert (found["near_length"], found["near_length_n"]) == (0.5, 1)
    assert found["length_correlation"] == pytest.approx(np.corrcoef(wins, [4, -4, 2, 0, 78, -4])[0, 1], abs=1e-4)
    assert (found["n"], found["prompts"]) == (6, 2)
    low, high = found["win_rate_interval"]
    assert low <= found["win_rate"] <= high

    turned = head_to_head(models[2], list(map(user, prompts)), list(map(assistant, others)), responses)
    assert turned["win_rate"] == pytest.approx(1 - found["win_rate"])
    assert turned["longer_wins"] == pytest.approx(found["longer_wins"])


def test_head_to_head_without_a_difference(models):
    found = head_to_head(models[2], ["hello", "fox"], ["dog", "dog"], ["dog", "dog"])
    assert (found["win_rate"], found["longer_wins"], found["length_correlation"]) == (0.5, None, None)
    assert "no responses" in refusal(head_to_head, models[2], [], [], [])


# TRL's own trainers

@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "rate"), [("grpo", "1e-3"), ("online_dpo", "2e-3")])
def test_reinforcement_raises_the_win_rate(tmp_path, trainer, rate):
    """The judge has random weights; what it happens to prefer can be learned all the same."""
    pytest.importorskip("trl")
    judge = export(tmp_path / "judge", PREFERENCE, TWO, {"max_length": 256})
    command = [sys.executable, "-m", "pm.examples.grpo", "--model", str(judge), "--output", str(tmp_path / "out"),
               "--trainer", trainer, *("--languages en --imitation_steps 20 --steps 40 --eval_every 20 --tokens 24 "
               f"--learning_rate {rate}".split())]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300,
                           env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert ended.returncode == 0, ended.stderr
    written = json.loads((tmp_path / "out" / "rlhf.json").read_text())
    before, *_, after = written["curve"]
    assert before["win_rate_interval"][0] < 0.5 < before["win_rate_interval"][1]
    assert after["win_rate_interval"][0] > 0.55 and after["win_rate"] > before["win_rate"] + 0.15
    assert before["kl"] == pytest.approx(0.0, abs=1e-3) and after["kl"] > 0.1
    assert [point["step"] for point in written["curve"]] == [0, 20, 40]
    assert ended.stdout.count("\n| ") >= 4  # a heading and three rows
    if trainer == "grpo":  # the other one hands no log_metric on
        assert {"preference/length_correlation", "preference/certainty", "rewards/preference/mean"
                } <= written["log"][0].keys()
