"""The model: a Cohere 2 backbone, a linear score head on the last token, LoRA; and the language model that a backbone
comes from. Shapes: B sequences, L and T tokens, D hidden, C classes.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Cohere2Config,
    Cohere2ForCausalLM,
    Cohere2Model,
    Cohere2PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput, logging

from pm.errors import UserError, first_line
from pm.files import written_aside
from pm.fused import hidden_states, last_hidden_states, unsupported
from pm.loss import next_token_loss
from pm.packing import Pack, predecessors, sequence_lengths, token_weights

SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 352, "sliding_window": 256, "max_position_embeddings": 8192}
PACKAGED = Path(__file__).parent / "base"
HEAD, BIAS = "score.weight", "score.bias"
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ScoreHead(nn.Linear):
    """A linear layer that computes in fp32 whatever dtype it is stored in."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden.float(), self.weight.float(), None if self.bias is None else self.bias.float())


class Cohere2ForSequenceClassification(Cohere2PreTrainedModel):
    """`model` + `score`, named as in the sequence classifiers of transformers, which has none for Cohere 2."""

    def __init__(self, config: Cohere2Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = Cohere2Model(config)
        self.score = ScoreHead(config.hidden_size, config.num_labels, bias=getattr(config, "score_bias", False))
        self.post_init()

    def _init_weights(self, module):
        """A new head is zero: the untrained model says 'even odds', and the first loss is ln(classes)."""
        super()._init_weights(module)
        if isinstance(module, ScoreHead):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, pack: Pack | None = None,
                language: bool = False, **kwargs):
        """Logits (B, C) in fp32, read on the last token that `attention_mask` (B, L) holds, on whichever side the
        padding is. The mask decides and not the pad id, which a text may hold and which may equal eos.

        With a `pack` of B sequences in their place, the same logits by the faster forward (`fused.py`); with `language`
        as well the loss of the backbone as a language model: the sum over sequences of the mean over their tokens.
        """
        if pack is not None and language:
            hidden_TD = hidden_states(self.model, pack)
            weights = [1 / (length - 1) for length in sequence_lengths(pack)]
            language_loss, _ = language_losses(hidden_TD, self.model, pack, weights)
            return PreferenceOutput(logits=self.score(hidden_TD.index_select(0, pack.last)),
                                    language_loss=language_loss)
        if pack is not None:
            logits_BC = self.score(last_hidden_states(self.model, pack))
        else:
            hidden_BD = self._last_hidden_states(input_ids, attention_mask, inputs_embeds, **kwargs)
            logits_BC = self.score(hidden_BD)
        loss = None if labels is None else F.cross_entropy(logits_BC, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits_BC)

    def _last_hidden_states(self, input_ids, attention_mask, inputs_embeds, **kwargs) -> torch.Tensor:
        kwargs["use_cache"] = False
        kwargs.pop("return_dict", None)
        hidden_BLD = self.model(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds,
                                **kwargs).last_hidden_state
        batch, length = hidden_BLD.shape[:2]
        if attention_mask is None:
            last_B = torch.full((batch,), length - 1, device=hidden_BLD.device)
        else:
            last_B = (attention_mask * torch.arange(length, device=hidden_BLD.device)).argmax(1)
        return hidden_BLD[torch.arange(batch, device=hidden_BLD.device), last_B]


@dataclass
class PreferenceOutput(ModelOutput):
    """`logits` (B, C), `language_loss` (), in nats."""

    logits: torch.Tensor | None = None
    language_loss: torch.Tensor | None = None


class LanguageModel(Cohere2ForCausalLM):
    """Of packs; its weights are those of transformers' class, under the same names."""

    def forward(self, pack: Pack) -> "LanguageOutput":
        return LanguageOutput(*language_losses(hidden_states(self.model, pack), self.model, pack,
                                               [1.0] * len(pack.leaves)))


@dataclass
class LanguageOutput(ModelOutput):
    """In nats: `loss` (), the sum over all sequences and their tokens but the first, and `losses` (T,) of each token of
    the pack, which has no gradient."""

    loss: torch.Tensor | None = None
    losses: torch.Tensor | None = None


def language_losses(hidden_TD: torch.Tensor, backbone: Cohere2Model, pack: Pack,
                    weights: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """`loss.next_token_loss` of a pack, whose sequences have `weights` (B), with the embeddings as lm_head."""
    return next_token_loss(hidden_TD, backbone.embed_tokens.weight, backbone.config.logit_scale, pack.input_ids,
                           predecessors(pack), token_weights(pack, weights))


def unswap(logits_BC: torch.Tensor, swapped_B: torch.Tensor) -> torch.Tensor:
    """Logits of sequences read in the order B, A put back into the row's own class order: the first two classes
    are a and b, a third one (tie) stays."""
    back_BC = torch.cat([logits_BC[:, :2].flip(-1), logits_BC[:, 2:]], dim=-1)
    return torch.where(swapped_B[:, None], back_BC, logits_BC)


def copy_base(folder: Path) -> None:
    """Copies the package's own model, its tokenizer and its card."""
    with written_aside(folder) as temporary:
        shutil.copytree(PACKAGED, temporary, ignore=shutil.ignore_patterns("texts"), dirs_exist_ok=True)


def save_small_base(folder: Path, tokenizer, labels: Sequence[str], seed: int) -> None:
    """Writes a small random Cohere 2 and its tokenizer, to be loaded like any other local model."""
    config = Cohere2Config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
                           bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                           **SMALL, **_head(labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Cohere2ForSequenceClassification(config)
    with written_aside(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def new_language_model(shape: str, tokenizer, seed: int, dtype: torch.dtype) -> LanguageModel:
    """Random weights in the shape of a config.json, for the tokenizer. Raises `UserError`."""
    try:
        keys = json.loads(Path(shape).read_text("utf-8"))
        config = Cohere2Config.from_dict(keys | {
            "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LanguageModel(config).to(dtype)
    except Exception as error:  # for a value that cannot be, the libraries raise many kinds
        raise UserError(f"--shape {shape}: no model can be made of it: {_told(error)}") from None
    if config.model_type != Cohere2Config.model_type:
        raise UserError(f"--shape {shape} is of type {config.model_type}; that of a cohere2 model is needed")
    if config.num_attention_heads % config.num_key_value_heads:
        raise UserError(f"--shape {shape}: num_attention_heads {config.num_attention_heads} must be a multiple of "
                        f"num_key_value_heads {config.num_key_value_heads}")
    _refuse_unreadable(f"--shape {shape}", model)
    return model


def load_language_model(name: str, dtype: torch.dtype) -> LanguageModel:
    """The language model of a hub id or local folder, or the backbone of a preference model as one. Raises
    `UserError`."""
    config = _cohere2_config(name)
    try:
        with _without_report():
            model, info = LanguageModel.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True)
    except Exception as error:  # as for a shape
        raise UserError(f"--model {name}: the weights cannot be loaded: {_told(error)}") from None
    _refuse_missing(name, set(info["missing_keys"]))
    _refuse_unreadable(f"--model {name}", model)
    return model


def language_unsupported(model: nn.Module) -> str:
    """Why `language_losses` are not those of the model; "" where they are."""
    if not model.config.tie_word_embeddings:
        return "its lm_head is another matrix than its embeddings (tie_word_embeddings)"
    return unsupported(model)


def _refuse_unreadable(flag: str, model: LanguageModel) -> None:
    reason = language_unsupported(model)
    if reason:
        raise UserError(f"{flag} cannot be read as a language model: {reason}")


def save_model(folder: Path, model: nn.Module, tokenizer, architecture: str, **options) -> None:
    """Weights, config.json and tokenizer, as classes of others read them. `options` are those of `save_pretrained`."""
    config = model.config
    config.pad_token_id = tokenizer.pad_token_id
    # Transformers 4, and what is built on it, reads rope_theta only here, and would take its default without a word.
    config.rope_theta = config.rope_parameters["rope_theta"]
    model.save_pretrained(folder, **options)
    config.architectures = [architecture]  # and not the model's own class, where others have it under another name
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_tokenizer(name: str):
    """The tokenizer of a hub id or local folder."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"--model {name}: no tokenizer can be loaded: {first_line(error)}") from None


def load_model(name: str, dtype: torch.dtype, labels: Sequence[str]) -> tuple[Cohere2ForSequenceClassification, bool]:
    """The model of a hub id or local folder with a class for each of `labels`, and whether it has a trained score head.

    A causal language model's folder gives its backbone (the lm_head is dropped) and a new head. A head of zeros, as
    `pm.export --init` writes it, is as good as new.
    """
    config = _cohere2_config(name)
    if "Cohere2ForSequenceClassification" in (config.architectures or ()):
        head = list(config.id2label.values())
        generic = head == [f"LABEL_{place}" for place in range(len(labels))]
        if head != list(labels) and not generic:
            raise UserError(f"--model {name} has a head for the classes {', '.join(head)}; one for "
                            f"{', '.join(labels)} is needed")
    try:
        for key, value in _head(labels).items():
            setattr(config, key, value)
        with _without_report():
            model, info = Cohere2ForSequenceClassification.from_pretrained(name, config=config, dtype=dtype,
                                                                           output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model {name}: the weights cannot be loaded: {first_line(error)}") from None
    missing = set(info["missing_keys"])
    _refuse_missing(name, missing - {HEAD, BIAS})
    return model, HEAD not in missing and any(parameter.any() for parameter in model.score.parameters())


@contextmanager
def _without_report() -> Iterator[None]:
    """Missing weights are looked at here; transformers' table of them asks a user to train what is about to be."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _cohere2_config(name: str) -> Cohere2Config:
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file() or (folder / "export").is_dir():
        raise UserError(f"--model {name} is an adapter, or a run; a whole model is needed: RUN/export after --tune "
                        "full, else RUN/merged, which `python -m pm.export RUN --merged` writes")
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # as for a shape
        raise UserError(f"--model {name} cannot be loaded: {_told(error)}") from None
    if not isinstance(config, Cohere2Config):
        raise UserError(f"--model {name} is of type {config.model_type}; a cohere2 model is needed")
    return config


def _refuse_missing(name: str, missing: set[str]) -> None:
    if missing:
        raise UserError(f"--model {name}: {len(missing)} weights are missing, such as {min(missing)}")


def _told(error: Exception) -> str:
    """What a library says, on one line; the first one of a config's check names only the check."""
    return " ".join(str(error).split()) if isinstance(error, StrictDataclassError) else first_line(error)


def set_prior(model: Cohere2ForSequenceClassification, prior_C: Sequence[float]) -> None:
    """Lets a new head begin at the shares of the classes, so that none of the training goes into finding them; a head
    for a and b alone, which are alike, has no bias and is left as it is."""
    if model.score.bias is not None:
        with torch.no_grad():
            model.score.bias.copy_(torch.as_tensor(prior_C).log())


def add_lora(model, rank: int, alpha: int, dropout: float, train_embeddings: bool) -> PeftModel:
    """LoRA on every attention and MLP projection. `SEQ_CLS` makes PEFT train and save the head with the adapter."""
    return get_peft_model(model, LoraConfig(
        task_type="SEQ_CLS", r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(LORA_TARGETS),
        modules_to_save=["score", "embed_tokens"] if train_embeddings else ["score"],
    ))


def check_trainable(model: nn.Module, train_embeddings: bool) -> None:
    """With LoRA exactly the adapters, the head and, where asked for, the embeddings are trained."""
    wanted = {"lora_A": 0, "lora_B": 0, "score.modules_to_save": 0}
    wanted |= {"embed_tokens.modules_to_save": 0} if train_embeddings else {}
    for name, parameter in model.named_parameters():
        parts = [part for part in wanted if part in name]
        assert parameter.requires_grad == bool(parts), name
        assert not ("lora_" in name and "score" in name), name
        for part in parts:
            wanted[part] += 1
    assert all(wanted.values()), wanted


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for matrices; none for norms, embeddings and the head."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if _decays(name, parameter)]
    others = [parameter for name, parameter in trained if not _decays(name, parameter)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _decays(name: str, parameter: torch.Tensor) -> bool:
    return parameter.dim() > 1 and "embed_tokens" not in name and "score" not in name


def _head(labels: Sequence[str]) -> dict:
    """What the config says of the head: the names of its classes, and a bias where they are not as alike as a and b."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)},
            "score_bias": list(labels) != ["a", "b"]}


# Without exist_ok this is a silent no-op for a configuration that transformers has itself.
AutoModelForSequenceClassification.register(Cohere2Config, Cohere2ForSequenceClassification, exist_ok=True)
