"""Trains a tiny policy with TRL against a preference model and shows whether it wins, and whether only by length.

    python -m pm.examples.grpo --model RUN [--trainer online_dpo] [--output FOLDER]

Needs `pip install -e '.[rlhf]'`, no GPU and no network; takes minutes. The policy has random weights and the model's own
tokenizer; it first learns to imitate the answers of the embedded sample, good and bad ones alike, and is then trained by
reinforcement on the prompts. Every few steps it answers held-out prompts, and the model compares these answers with the
initial policy's. This shows that the arrow from comparisons to a policy points the right way. It says nothing of quality:
the judge is the one that the policy was trained to please, and a policy this small does not answer questions.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import Cohere2Config, Cohere2ForCausalLM, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from pm import intervals
from pm.config import fail, newest_run
from pm.data import sample
from pm.errors import UserError, run_main
from pm.model import load_tokenizer
from pm.predict import PreferenceModel, find_export
from pm.rlhf import PreferenceReward, probability_of_first
from pm.tokenizer import CHATBOT, END_TURN, START_TURN, SYSTEM, USER
from pm.tracking import quiet_libraries

TEMPLATE = ("{{ bos_token }}{% for turn in messages %}" + START_TURN + "{{ {'system': '" + SYSTEM + "', 'user': '" + USER
            + "', 'assistant': '" + CHATBOT + "'}[turn.role] }}{{ turn.content }}" + END_TURN
            + "{% endfor %}{% if add_generation_prompt %}" + START_TURN + CHATBOT + "{% endif %}")
HELD_OUT = 0.3  # of the prompts, all languages of each
ANSWERS = 4  # to each held-out prompt
NEAR = 0.1  # two answers are of nearly equal length where they differ by this share of the longer one
COLUMNS = ("step", "win rate", "95 %", "probability", "KL", "characters", "longer wins", "near length", "correlation")


def main(argv: list[str]) -> None:
    # 1. Settings, the judge, its tokenizer
    quiet_libraries()
    arguments = parse(argv)
    name = arguments.model or str(newest_run("export"))
    judge = PreferenceModel.from_pretrained(name)
    tokenizer = load_tokenizer(str(find_export(name)))
    tokenizer.chat_template, tokenizer.eos_token = TEMPLATE, END_TURN
    set_seed(arguments.seed)

    # 2. Data: prompts of the sample, some held out with all their translations
    rows = [row for row in sample.rows() if row["language"] in arguments.languages]
    groups = sorted({row["group"] for row in rows})
    held_out = set(np.random.default_rng(arguments.seed).permutation(groups)[: math.ceil(HELD_OUT * len(groups))])
    prompts = {row["prompt"]: {"prompt": turn("user", row["prompt"]), "language": row["language"]} for row in rows
               if row["group"] not in held_out}
    held_out_prompts = list(dict.fromkeys(row["prompt"] for row in rows if row["group"] in held_out))
    imitated = [{"prompt": turn("user", row["prompt"]), "completion": turn("assistant", row[side])} for row in rows
                for side in ("chosen", "rejected") if row["group"] not in held_out]

    # 3. The policy, which learns to say what the sample says, good or bad
    policy = Cohere2ForCausalLM(Cohere2Config(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=352, max_position_embeddings=2048, logit_scale=1.0, bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id))
    common = {"output_dir": str(arguments.output), "seed": arguments.seed, "report_to": "none", "save_strategy": "no",
              "disable_tqdm": True, "bf16": False, "use_cpu": True, "gradient_checkpointing": False,
              "logging_steps": 10, "max_grad_norm": 1.0}
    SFTTrainer(policy, SFTConfig(max_steps=arguments.warmup_steps, per_device_train_batch_size=32, learning_rate=3e-3,
                                 **common), train_dataset=Dataset.from_list(imitated),
               processing_class=tokenizer).train()

    # 4. Reinforcement: TRL asks PreferenceReward for the reward of each completion
    measure = Measure(judge, policy, tokenizer, held_out_prompts, arguments)
    reward = PreferenceReward(judge, scale=arguments.scale)
    common |= {"max_steps": arguments.steps, "learning_rate": arguments.learning_rate, "temperature": 1.0,
               "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}
    if arguments.trainer == "grpo":
        trainer = GRPOTrainer(policy, reward, GRPOConfig(
            per_device_train_batch_size=32, num_generations=8, max_completion_length=arguments.tokens,
            beta=arguments.beta, **common), Dataset.from_list(list(prompts.values())), processing_class=tokenizer,
            callbacks=[measure])
    else:
        trainer = OnlineDPOTrainer(policy, reward_funcs=reward, args=OnlineDPOConfig(
            per_device_train_batch_size=16, max_new_tokens=arguments.tokens, beta=arguments.beta, **common),
            train_dataset=Dataset.from_list(list(prompts.values())), processing_class=tokenizer, callbacks=[measure])
    trainer.train()

    # 5. What came of it
    result = {"model": name, **{key: value for key, value in vars(arguments).items() if key not in ("model", "output")},
              "held_out_prompts": len(held_out_prompts), "curve": measure.curve, "samples": measure.samples}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "rlhf.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    run_main(main)
