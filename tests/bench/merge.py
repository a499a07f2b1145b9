"""What merging an adapter changes, by where it is rounded: python tests/bench/merge.py RUN [--rows N]

Against the adapter read in fp32: the adapter read in bf16, LoRA merged in fp32 and kept, merged in fp32 and then cast
(what `pm.export --merged --dtype bf16` does), and merged by PEFT in a model that was cast before.
"""

import argparse
import copy
import json
from pathlib import Path

import torch

from pm.checkpoint import newest
from pm.config import load_config
from pm.encoding import Encoder
from pm.merge import compared_rows, drift, merged
from pm.model import load_tokenizer
from pm.predict import PreferenceModel
from pm.run import base_of, build_model, load_data, saved_labels
from pm.task import Task


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=10**9)
    arguments = parser.parse_args()
    run, config = arguments.run, load_config(arguments.run)
    task = Task(config.task, tuple(saved_labels(run)))
    encoder = Encoder(load_tokenizer(base_of(config, run)), config.max_length)
    rows, of = compared_rows(load_data(config, run).test.encoded, encoder, task, config.cache_dir, arguments.rows)
    model = build_model(config, run, task.labels, torch.float32, say=lambda text: None)
    state = newest(run).state()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = state[f"master/{name}"]

    def cast() -> torch.nn.Module:
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.data = parameter.data.bfloat16()
        return other

    def predictions(found: torch.nn.Module) -> list[dict]:
        return PreferenceModel(found, task, encoder, {}, torch.device("cpu")).score(rows)

    reference = predictions(model)
    made = {"the adapter, read in bf16": cast, "merged in fp32": lambda: merged(copy.deepcopy(model), torch.float32),
            "merged in fp32, then cast to bf16": lambda: merged(copy.deepcopy(model), torch.bfloat16),
            "cast to bf16, then merged": lambda: cast().merge_and_unload()}
    for name, make in made.items():
        print(json.dumps({"weights": name, **drift(reference, predictions(make())), "of": of}))


if __name__ == "__main__":
    main()
