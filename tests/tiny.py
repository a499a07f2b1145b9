"""A tokenizer, a model and an export that are small, random and the same each time, for tests."""

import json

import torch
from transformers import Cohere2Config

from pm.encoding import Template
from pm.model import Cohere2ForSequenceClassification
from pm.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["The quick brown fox says hello to the lazy dog. 0123456789"] * 9, 400)
TWO, THREE, NAMES = ("a", "b"), ("a", "b", "tie"), ("negative", "neutral", "positive")


def tiny_model(labels: tuple[str, ...], score_bias: bool) -> Cohere2ForSequenceClassification:
    """Two layers of width 32, one of them with a window of 8 tokens; its weights are large enough to matter."""
    torch.manual_seed(0)
    model = Cohere2ForSequenceClassification(Cohere2Config(
        vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, sliding_window=8, layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=256, pad_token_id=TOKENIZER.pad_token_id, bos_token_id=TOKENIZER.bos_token_id,
        eos_token_id=TOKENIZER.eos_token_id, id2label=dict(enumerate(labels)), score_bias=score_bias,
        label2id={label: number for number, label in enumerate(labels)}))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    return model


def export(folder, task: str, labels: tuple[str, ...], changes=None):
    """A folder as `pm.export` writes it with --tune full. `changes` of its settings; None takes one out."""
    tiny_model(labels, labels != TWO).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    settings = {"base": "none", "tune": "full", "dtype": "float32", "task": task, "labels": labels, "max_length": 64,
                "template": Template.of(TOKENIZER).saved(), "checkpoint": "step_000004"} | (changes or {})
    settings = {name: value for name, value in settings.items() if value is not None}
    (folder / "preference.json").write_text(json.dumps(settings))
    return folder
