"""Trains a tiny policy with TRL against a preference model, and shows whether it wins, and whether only by length.

    python -m pm.examples.grpo --model RUN [--trainer online_dpo]

Needs `pip install -e '.[rlhf]'` and a few minutes, but no GPU and no network. The policy has random weights and the
model's own tokenizer. It first imitates the answers of the embedded sample, good and bad ones alike, and is then
trained by reinforcement. Every few steps it answers held-out prompts, and the model compares these answers with those
of the policy before reinforcement. A rising win rate shows that comparisons push the policy the right way. It does not
show quality: the judge is the one that the policy is trained to please, and one this small cannot answer questions.

Shapes: B answers, L tokens, V pieces of the vocabulary.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import Cohere2Config, Cohere2ForCausalLM, PrinterCallback, TrainerCallback, set_seed

from pm import plots
from pm.config import fail
from pm.data import sample
from pm.errors import run_main
from pm.model import load_tokenizer
from pm.predict import PreferenceModel, find_export, newest_export
from pm.rlhf import SCALES, PreferenceReward, head_to_head
from pm.tokenizer import CHATBOT, END_TURN, START_TURN, SYSTEM, USER
from pm.tracking import quiet_libraries

try:
    from trl import GRPOConfig, GRPOTrainer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install -e '.[rlhf]'") from None

TEMPLATE = (  # of Command R, whose turn tokens every tokenizer of this project has
    "{{ bos_token }}{% for turn in messages %}" + START_TURN
    + f"{{{{ {{'system': '{SYSTEM}', 'user': '{USER}', 'assistant': '{CHATBOT}'}}[turn.role] }}}}"
    + "{{ turn.content }}" + END_TURN + "{% endfor %}"
    + "{% if add_generation_prompt %}" + START_TURN + CHATBOT + "{% endif %}")
LANGUAGES = ("en", "de", "fr", "es")
HELD_OUT = 0.3  # of the prompts, with all their translations
ANSWERS = 4  # to each held-out prompt
BATCH = 32  # conversations or completions of a step
HEADER = ("| step | win rate | mean probability | KL | characters | longer wins | win rate at near length (n) | "
          "length correlation |\n|---|---|---|---|---|---|---|---|")


def main(argv: list[str]) -> None:
    # 1. The judge, and its tokenizer as a chat model has it
    quiet_libraries()
    arguments = parse(argv)
    name = arguments.model or newest_export()
    judge = PreferenceModel.from_pretrained(name)
    tokenizer = load_tokenizer(str(find_export(name)))
    tokenizer.chat_template, tokenizer.eos_token, tokenizer.padding_side = TEMPLATE, END_TURN, "left"
    set_seed(arguments.seed)

    # 2. Prompts of the sample; all translations of some are held out
    written = sample.written()
    rows = [row | {"language": language} for language in arguments.languages for row in written[language]]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    held_out = set(np.random.default_rng(arguments.seed).permutation(groups)[: round(HELD_OUT * len(groups))])
    tests = [(turns(row["prompt"], "user"), row["language"]) for row in rows if row["group"] in held_out]
    rows = [row for row in rows if row["group"] not in held_out]
    prompts = Dataset.from_list([{"prompt": turns(row["prompt"], "user"), "language": row["language"]} for row in rows])

    # 3. The initial policy, which imitates good and bad answers
    initial = Cohere2ForCausalLM(Cohere2Config(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=352, max_position_embeddings=2048, logit_scale=1.0, bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id))
    imitate(initial, tokenizer, [(turns(row["prompt"], "user"), turns(row[side], "assistant")) for row in rows
                                 for side in ("chosen", "rejected")], arguments.imitation_steps)
    initial.eval().save_pretrained(arguments.output / "initial")
    tokenizer.save_pretrained(arguments.output / "initial")

    # 4. Reinforcement: TRL has its completions rewarded by comparisons
    measure = Measure(judge, initial, tokenizer, tests, arguments.eval_every, arguments.tokens)
    reward = PreferenceReward(judge, scale=arguments.scale)
    config = {"output_dir": str(arguments.output), "max_steps": arguments.steps, "seed": arguments.seed,
              "learning_rate": arguments.learning_rate, "lr_scheduler_type": "constant", "beta": arguments.beta,
              "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no",
              "logging_steps": arguments.eval_every, "report_to": "none", "disable_tqdm": True}
    others = {"train_dataset": prompts, "processing_class": tokenizer, "callbacks": [measure]}
    if arguments.trainer == "grpo":
        trainer = GRPOTrainer(str(arguments.output / "initial"), reward, GRPOConfig(
            per_device_train_batch_size=BATCH, num_generations=8, max_completion_length=arguments.tokens, **config),
            **others)
    else:
        trainer = OnlineDPOTrainer(str(arguments.output / "initial"), reward_funcs=reward, args=OnlineDPOConfig(
            per_device_train_batch_size=BATCH // 2, max_new_tokens=arguments.tokens, temperature=1.0, **config),
            **others)
    trainer.remove_callback(PrinterCallback)
    print(HEADER)
    measure.add(initial, 0)
    trainer.train()

    # 5. What came of it
    trainer.model.save_pretrained(arguments.output / "final")
    settings = {key: value for key, value in vars(arguments).items() if key != "output"} | {"model": name}
    (arguments.output / "rlhf.json").write_text(json.dumps(
        {"settings": settings, "curve": measure.curve, "log": trainer.state.log_history}, indent=1) + "\n", "utf-8")
    if plots.available():
        plot(measure.curve, arguments.output / "rlhf.png")
    low = (measure.curve[-1]["near_length_interval"] or [0.0])[0]
    print(f"\nWin rates against the initial policy on {len(tests)} held-out prompts, with 95 % intervals by prompt. "
          f"{'The policy also wins' if low > 0.5 else 'It is not shown that the policy wins'} at nearly equal length"
          f"{'' if low > 0.5 else ', so length may be all it learned'}.\nwrote {arguments.output}")


def imitate(policy: Cohere2ForCausalLM, tokenizer, conversations: list[tuple[list, list]], steps: int) -> None:
    """Trains the policy to say the second part of each conversation after the first."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(steps):
        chosen = [conversations[place] for place in torch.randint(len(conversations), (BATCH,)).tolist()]
        begins = [tokenizer.apply_chat_template(begin, add_generation_prompt=True, return_dict=False)
                  for begin, _ in chosen]
        inputs = tokenizer.apply_chat_template([begin + end for begin, end in chosen], padding=True,
                                               return_dict=True, return_tensors="pt")
        ids_BL, read_BL = inputs["input_ids"], inputs["attention_mask"]
        said_BL = read_BL.cumsum(1) > torch.tensor([[len(begin)] for begin in begins])
        hidden_BLD = policy.model(**inputs).last_hidden_state[:, :-1]
        loss = cross_entropy(policy.lm_head(hidden_BLD[said_BL[:, 1:]]), ids_BL[:, 1:][said_BL[:, 1:]])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


class Measure(TrainerCallback):
    """Every few steps compares the policy's answers to held-out prompts with the initial policy's."""

    def __init__(self, judge: PreferenceModel, initial: Cohere2ForCausalLM, tokenizer,
                 tests: list[tuple[list[dict], str]], every: int, tokens: int):
        self.judge, self.initial, self.tokenizer, self.every, self.tokens = judge, initial, tokenizer, every, tokens
        self.prompts, self.languages = zip(*[test for test in tests for _ in range(ANSWERS)], strict=True)
        self.initial_answers, _ = self.answer(initial, seed=1)
        self.curve: list[dict] = []

    def on_step_end(self, args, state, control, model: Cohere2ForCausalLM, **others) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.add(model, state.global_step)

    def add(self, policy: Cohere2ForCausalLM, step: int) -> None:
        answers, kl = self.answer(policy, seed=0)
        found = head_to_head(self.judge, self.prompts, answers, self.initial_answers, languages=self.languages)
        self.curve.append({"step": step, "kl": kl, **found, "example": answers[0]})
        print(line(self.curve[-1]), flush=True)

    @torch.no_grad()
    def answer(self, policy: Cohere2ForCausalLM, seed: int) -> tuple[list[str], float]:
        """An answer to each prompt, and the divergence from the initial policy in nats, a mean over the answers."""
        inputs = self.tokenizer.apply_chat_template(list(self.prompts), add_generation_prompt=True, padding=True,
                                                    return_dict=True, return_tensors="pt")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            ids_BL = policy.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=self.tokens)
        answers_BL = ids_BL[:, inputs["input_ids"].shape[1]:]
        ends_BL = (answers_BL == self.tokenizer.eos_token_id).long()
        said_BL = ends_BL.cumsum(1) == ends_BL  # up to the first end
        read_BL = torch.cat([inputs["attention_mask"], said_BL.long()], dim=1)
        now_BL, before_BL = (
            -cross_entropy(model(input_ids=ids_BL, attention_mask=read_BL, logits_to_keep=answers_BL.shape[1] + 1)
                           .logits[:, :-1].transpose(1, 2), answers_BL, reduction="none")
            for model in (policy, self.initial))
        texts = self.tokenizer.batch_decode(answers_BL, skip_special_tokens=True)
        return texts, float(((now_BL - before_BL) * said_BL).sum(1).mean())


def line(point: dict) -> str:
    """A row of the table."""
    def shown(name: str) -> str:
        if point[name] is None:
            return "-"
        interval = point.get(f"{name}_interval")
        return f"{point[name]:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")

    lengths = f"{point['characters'][0]:.0f} against {point['characters'][1]:.0f}"
    return (f"| {point['step']} | {shown('win_rate')} | {shown('probability')} | {point['kl']:.1f} | {lengths} | "
            f"{shown('longer_wins')} | {shown('near_length')} ({point['near_length_n']}) | "
            f"{shown('length_correlation')} |")


def plot(curve: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="win rate against the initial policy", ylim=(0, 1))
    steps = [point["step"] for point in curve]
    axes.fill_between(steps, *zip(*[point["win_rate_interval"] for point in curve], strict=True), alpha=0.2)
    axes.plot(steps, [point["win_rate"] for point in curve], label="all answers")
    near = [point for point in curve if point["near_length"] is not None]
    axes.plot([point["step"] for point in near], [point["near_length"] for point in near], "--",
              label="answers of nearly equal length")
    axes.axhline(0.5, color="grey", linewidth=0.8)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def turns(text: str | list[dict], role: str) -> list[dict]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pm.examples.grpo", description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", help="run, export or hub id of the preference model; the newest run if not given")
    parser.add_argument("--trainer", choices=("grpo", "online_dpo"), default="grpo", help="of TRL")
    parser.add_argument("--scale", choices=SCALES, default=SCALES[0], help="of the rewards")
    parser.add_argument("--languages", nargs="+", choices=sample.LANGUAGES, default=LANGUAGES, metavar="CODE")
    parser.add_argument("--imitation_steps", type=int, default=150, help="before reinforcement")
    parser.add_argument("--steps", type=int, default=50, help="of reinforcement")
    parser.add_argument("--eval_every", type=int, default=10, help="steps between two rows of the table")
    parser.add_argument("--learning_rate", type=float, default=2e-4, help="of reinforcement")
    parser.add_argument("--beta", type=float, default=0.04, help="weight of the divergence from the initial policy")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/rlhf"), help="folder for both policies and rlhf.json")
    parser.error = fail
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
