"""The language model: its loss and gradients are those of transformers; perplexities; what cannot be one."""

import json
import math
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tiny import TOKENIZER, TWO, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cohere2Config, Cohere2ForCausalLM

from pm import perplexity
from pm.config import Config, Pretraining
from pm.data.targets import with_targets
from pm.encoding import ENCODED_FEATURES, Encoder
from pm.errors import UserError
from pm.fused import hidden_states
from pm.loss import next_token_loss
from pm.model import (
    Cohere2ForSequenceClassification,
    LanguageModel,
    add_lora,
    language_losses,
    load_language_model,
    load_tokenizer,
    new_language_model,
)
from pm.packing import pack, sequence_sums
from pm.perplexity import lines, perplexities, score_language, table
from pm.run import build_model, load_corpus

VOCABULARY, WINDOW = 64, 8
SLIDING, FULL = "sliding_attention", "full_attention"


def settings(**changes) -> Cohere2Config:
    return Cohere2Config(**{
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": WINDOW,
        "layer_types": [SLIDING, FULL, SLIDING], "max_position_embeddings": 512, "logit_scale": 1.0, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2} | changes)


def made(kind: type, **changes):
    """Of width 32; its weights are large enough that each token matters."""
    torch.manual_seed(0)
    model = kind(settings(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.dim() > 1 else parameter.normal_(mean=1.0, std=0.2)
    return model.train()


def text(length: int, number: int) -> list[int]:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(100 * number + length)).tolist()


PROMPT, ANSWERS = text(20, 0), [text(length, 1) for length in (17, 30, WINDOW)]
SEQUENCES = {
    "apart": [text(length, length) for length in (2, WINDOW, WINDOW + 1, 75, 150)],
    "orders of answers": [[*PROMPT, *one, *other] for one, other in permutations(ANSWERS, 2)],
    "a beginning, the same again, and one token": [[*PROMPT, 5], [*PROMPT, *text(90, 2)], [*PROMPT, 5], [7]],
}


def plain_losses(model: Cohere2ForCausalLM, sequence: list[int]) -> torch.Tensor:
    """Of its tokens but the first, by the logits of transformers."""
    logits_LV = model(torch.tensor([sequence])).logits[0]
    return F.cross_entropy(logits_LV[:-1], torch.tensor(sequence)[1:], reduction="none")


def plain_loss(model: Cohere2ForCausalLM, sequence: list[int]) -> torch.Tensor:
    """The sum over its tokens, by the loss of transformers, which is a mean."""
    if len(sequence) == 1:
        return torch.zeros(())
    ids = torch.tensor([sequence])
    return model(ids, labels=ids).loss * (len(sequence) - 1)


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(found: torch.Tensor, wanted: torch.Tensor, name: str = "") -> None:
    """To 1e-5 of the norm."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype, name
    assert wanted.norm() > 0, name
    assert (found - wanted).norm() <= 1e-5 * wanted.norm(), (name, ((found - wanted).norm() / wanted.norm()).item())


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert_close(found[name], gradient, name)


class Operations(TorchDispatchMode):
    """Notes the name of each operation, and the most logits at once."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self.logits = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **keywords or {})
        self.names.append(function.overloadpacket.__name__)
        if self.names[-1] in ("_softmax", "_log_softmax"):
            self.logits = max(self.logits, result.numel())
        return result


# The loss by hand

# The logits are 0 and hidden[0] * scale * ln 3: at the first place even, behind it 1 to 3, and 3 to 1.
EMBEDDING_VD = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
HIDDEN_TD = torch.tensor([[0.0, 5.0], [1.0, 5.0], [-1.0, 5.0]])


@pytest.mark.parametrize(("scale", "ids", "before", "wanted"), [
    (1, [0, 1, 1], [-1, 0, 1], [0, math.log(2), math.log(4 / 3)]),
    (1, [1, 1, 0], [-1, 0, 1], [0, math.log(2), math.log(4)]),
    (2, [0, 1, 1], [-1, 0, 1], [0, math.log(2), math.log(10 / 9)]),
    (1, [0, 1, 1], [-1, 2, 2], [0, math.log(4), math.log(4)]),
    (1, [0, 1, 1], [-1, -1, -1], [0, 0, 0]),
])
def test_losses_by_hand(scale, ids, before, wanted):
    weight_T = torch.tensor([9.0, 1.0, 0.5])
    total, loss_T = next_token_loss(HIDDEN_TD, EMBEDDING_VD, scale, torch.tensor(ids), torch.tensor(before), weight_T)
    assert loss_T.tolist() == pytest.approx(wanted, abs=1e-6)
    assert total.item() == pytest.approx(wanted[1] + 0.5 * wanted[2], abs=1e-6)


def test_gradients_by_hand():
    """Of the logit of a token p - 1, of the other 1 - p; the second place predicts with p = 3/4."""
    hidden_TD, embedding_VD = HIDDEN_TD.clone().requires_grad_(), EMBEDDING_VD.clone().requires_grad_()
    total, loss_T = next_token_loss(hidden_TD, embedding_VD, 2 / 2, torch.tensor([0, 0, 1]), torch.tensor([-1, -1, 1]),
                                    torch.tensor([1.0, 1.0, 3.0]))
    (2 * total).backward()  # 2 from outside, 3 by the weight
    torch.testing.assert_close(hidden_TD.grad, 6 * torch.tensor([[0.0, 0.0], [-math.log(3) / 4, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(embedding_VD.grad, 6 * torch.tensor([[0.25, 1.25], [-0.25, -1.25]]))
    assert not loss_T.requires_grad


# Against transformers


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("name", SEQUENCES)
def test_loss_and_gradients_are_those_of_transformers(name, scale):
    model, plain = made(LanguageModel, logit_scale=scale), made(Cohere2ForCausalLM, logit_scale=scale)
    loss = model(pack=pack(SEQUENCES[name])).loss
    wanted = sum(plain_loss(plain, sequence) for sequence in SEQUENCES[name])
    assert_close(loss, wanted)
    found = gradients(model, loss)
    assert_same(found, gradients(plain, wanted))
    assert found.keys() == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("logits", [1, 7 * VOCABULARY + 3, 10**9])
def test_logits_in_several_parts_give_the_same(monkeypatch, logits):
    sequences = SEQUENCES["orders of answers"]
    model, plain = made(LanguageModel, logit_scale=0.5), made(Cohere2ForCausalLM, logit_scale=0.5)
    wanted = sum(plain_loss(plain, sequence) for sequence in sequences)
    monkeypatch.setattr("pm.loss.LOGITS_AT_ONCE", logits)
    with Operations() as operations:
        loss = model(pack=pack(sequences)).loss
        found = gradients(model, loss)
    assert_close(loss, wanted)
    assert_same(found, gradients(plain, wanted))
    assert VOCABULARY <= operations.logits <= max(VOCABULARY, logits)
    assert (operations.logits > 7 * VOCABULARY) == (logits == 10**9)


def test_gradient_checkpointing_changes_no_gradient():
    sequences = SEQUENCES["orders of answers"]
    model, again = made(LanguageModel), made(LanguageModel)
    again.gradient_checkpointing_enable({"use_reentrant": False})
    losses = [each(pack=pack(sequences)).loss for each in (model, again)]
    assert_close(losses[1], losses[0])
    assert_same(gradients(again, losses[1]), gradients(model, losses[0]))
    plain = made(Cohere2ForCausalLM)
    assert_same(gradients(again, again(pack=pack(sequences)).loss),
                gradients(plain, sum(plain_loss(plain, sequence) for sequence in sequences)))


@pytest.mark.parametrize("name", SEQUENCES)
def test_each_token_has_its_loss_and_each_sequence_the_sum(name):
    model, plain = made(LanguageModel, logit_scale=0.5), made(Cohere2ForCausalLM, logit_scale=0.5)
    packed = pack(SEQUENCES[name])
    output = model(pack=packed)
    parts, wanted = output.losses.split(packed.lengths), [plain_losses(plain, some) for some in SEQUENCES[name]]
    for leaf, losses in zip(packed.leaves, wanted, strict=True):
        found = torch.cat([parts[segment] for segment in packed.paths[leaf]])
        assert found[0] == 0
        torch.testing.assert_close(found[1:], losses, rtol=1e-5, atol=1e-5)
    sums = sequence_sums(packed, output.losses)
    assert sums == pytest.approx([losses.sum().item() for losses in wanted], rel=1e-5)
    assert sum(sums) == pytest.approx(output.loss.item(), rel=1e-5)
    assert output.loss.requires_grad and not output.losses.requires_grad


def test_sequences_count_with_their_weights():
    sequences, weights = SEQUENCES["orders of answers"], [0.5, 2.0, 0.0, 1.0, 0.25, 3.0]
    model, plain, packed = made(LanguageModel), made(Cohere2ForCausalLM), pack(sequences)
    loss, losses_T = language_losses(hidden_states(model.model, packed), model.model, packed, weights)
    wanted = sum(weight * plain_loss(plain, sequence) for sequence, weight in zip(sequences, weights, strict=True))
    assert_close(loss, wanted)
    assert_same(gradients(model, loss), gradients(plain, wanted))
    assert_close(losses_T, model(pack=packed).losses)  # which have no weights


def test_no_gradient_is_made_where_none_is_asked_for():
    model, packed = made(LanguageModel), pack(SEQUENCES["orders of answers"])
    with Operations() as training:
        wanted = model(pack=packed)
    with torch.no_grad(), Operations() as scoring:
        found = model(pack=packed)
    assert "scatter_" in training.names and "scatter_" not in scoring.names
    assert_close(found.loss, wanted.loss)
    assert_close(found.losses, wanted.losses)
    assert not found.loss.requires_grad


def test_what_is_frozen_gets_no_gradient():
    model, packed = made(LanguageModel), pack(SEQUENCES["orders of answers"])
    whole = gradients(model, model(pack=packed).loss)
    model.model.embed_tokens.requires_grad_(False)
    found = gradients(model, model(pack=packed).loss)
    assert_same(found, {name: gradient for name, gradient in whole.items() if "embed_tokens" not in name})
    model.requires_grad_(False)
    model.model.embed_tokens.requires_grad_(True)
    assert_same(gradients(model, model(pack=packed).loss),
                {name: gradient for name, gradient in whole.items() if "embed_tokens" in name})


def test_a_loss_that_is_not_finite_has_no_finite_gradient():
    """`engine.drop_step` lets no rank make a step by it."""
    model = made(LanguageModel)
    found = gradients(model, model(pack=pack([text(9, 1)])).loss * math.nan)
    assert not any(gradient.isfinite().any() for gradient in found.values())


def test_in_bf16_the_gradient_is_as_good_as_that_of_transformers():
    """Against the same weights in fp32."""
    sequences = SEQUENCES["orders of answers"]

    def rounded(kind: type, dtype: torch.dtype):
        model = made(kind)
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().to(dtype)
        return model

    def summed(model, loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([gradient.flatten().float() for gradient in gradients(model, loss).values()])

    exact, plain, model = (rounded(Cohere2ForCausalLM, torch.float32), rounded(Cohere2ForCausalLM, torch.bfloat16),
                           rounded(LanguageModel, torch.bfloat16))
    wanted = summed(exact, sum(plain_loss(exact, sequence) for sequence in sequences))
    usual = summed(plain, sum(plain_loss(plain, sequence) for sequence in sequences))
    output = model(pack=pack(sequences))
    assert output.loss.dtype == output.losses.dtype == torch.float32
    errors = [((found - wanted).norm() / wanted.norm()).item() for found in (summed(model, output.loss), usual)]
    assert 1e-4 < errors[1] < 0.2
    assert errors[0] <= 1.5 * errors[1]


# Beside a preference

KINDS = ["lora", "lora and embeddings", "full"]


def preference(kind: str):
    """With LoRA neither of whose matrices is zero."""
    model = made(Cohere2ForSequenceClassification, num_labels=3, score_bias=True, logit_scale=0.5)
    if kind == "full":
        return model
    model = add_lora(model, rank=4, alpha=8.0, dropout=0.0, train_embeddings=kind == "lora and embeddings")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
            elif "embed_tokens.modules_to_save" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.train()


def plain_preference(model, kind: str, sequences) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the sum over sequences of the mean loss of a token, by the modules of transformers and peft."""
    classifier = model if kind == "full" else model.base_model.model
    embedding = classifier.model.embed_tokens
    embedding_VD = embedding.modules_to_save["default"].weight if kind == "lora and embeddings" else embedding.weight
    logits, losses = [], []
    for sequence in sequences:
        hidden_LD = classifier.model(torch.tensor([sequence])).last_hidden_state[0]
        logits.append(classifier.score(hidden_LD[-1]))
        losses.append(F.cross_entropy(0.5 * hidden_LD[:-1] @ embedding_VD.T, torch.tensor(sequence[1:])))
    return torch.stack(logits), sum(losses)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_the_language_loss_of_one_forward(kind, checkpointing):
    model, sequences = preference(kind), [*SEQUENCES["orders of answers"], text(40, 3)]
    if checkpointing:
        (model if kind == "full" else model.base_model.model).gradient_checkpointing_enable({"use_reentrant": False})
    weights_BC = torch.linspace(-1, 1, 3 * len(sequences)).view(-1, 3)
    output = model(pack=pack(sequences), language=True)
    found = gradients(model, (output.logits * weights_BC).sum() + 0.7 * output.language_loss)
    logits_BC, language_loss = plain_preference(model, kind, sequences)
    assert_close(output.logits, logits_BC)
    assert_close(output.language_loss, language_loss)
    assert_same(found, gradients(model, (logits_BC * weights_BC).sum() + 0.7 * language_loss))
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("embed_tokens" in name for name in found) == (kind != "lora")


@pytest.mark.parametrize("kind", KINDS)
def test_without_language_the_logits_are_the_same_and_there_is_no_loss(kind):
    model, packed = preference(kind), pack(SEQUENCES["orders of answers"])
    with torch.no_grad():
        without, beside = model(pack=packed), model(pack=packed, language=True)
    assert_close(beside.logits, without.logits)
    assert "language_loss" not in without and without.loss is None


def test_an_lm_head_of_its_own_is_no_language_model_of_the_backbone(tmp_path):
    Cohere2ForCausalLM(settings(tie_word_embeddings=False)).save_pretrained(tmp_path)
    config = Config(model=str(tmp_path), tune="full", lm_loss_weight=0.1, gradient_checkpointing=False)
    with pytest.raises(UserError) as error:
        build_model(config, tmp_path, TWO, torch.float32, say=print)
    assert str(error.value) == (f"--lm_loss_weight 0.1: {tmp_path} cannot be read as a language model: its lm_head is "
                                "another matrix than its embeddings (tie_word_embeddings)")


# Perplexity


def test_perplexities_by_hand():
    """A row of n tokens predicts n - 1."""
    rows = Dataset.from_dict({"tokens": [3, 2, 5, 2], "prompt_ids": [[]] * 4, "language": ["en", "de", "en", "fr"]})
    found = perplexities(rows, np.array([2 * math.log(2), math.log(8), 4 * math.log(4), 800.0]))
    english = (2 * math.log(2) + 4 * math.log(4)) / 6
    everything = (10 * math.log(2) + math.log(8) + 800) / 8
    assert list(found["by_language"]) == ["en", "de", "fr"]
    assert found == {
        "overall": {"rows": 4, "tokens": 8, "loss": pytest.approx(everything),
                    "perplexity": pytest.approx(math.exp(everything))},
        "by_language": {
            "en": {"rows": 2, "tokens": 6, "loss": pytest.approx(english),
                   "perplexity": pytest.approx(math.exp(english))},
            "de": {"rows": 1, "tokens": 1, "loss": pytest.approx(math.log(8)), "perplexity": pytest.approx(8)},
            "fr": {"rows": 1, "tokens": 1, "loss": 800.0, "perplexity": math.inf}}}


def test_perplexities_as_a_table():
    found = {"overall": {"rows": 1200, "tokens": 34567, "loss": 1.5, "perplexity": 4.4816},
             "by_language": {"en": {"rows": 1200, "tokens": 34567, "loss": 1.5, "perplexity": math.inf}}}
    assert lines(found) == [["all", "1,200", "34,567", "1.500", "4.48"], ["en", "1,200", "34,567", "1.500", "inf"]]
    assert [line.split() for line in table(found).splitlines()] == [
        ["language", "rows", "tokens", "loss", "perplexity"], *lines(found)]


def words(count: int, name: str) -> str:
    return " ".join(f"{name}{number}" for number in range(count))


TEXTS = [("p", "x", "y"), (words(30, "p"), "so", "no"), (words(30, "p"), "so", words(40, "n")), ("fox", None, None),
         (words(40, "t"), None, None), (words(30, "p"), "no", "so")]


def encoded(*texts, max_length: int = 512) -> tuple[Encoder, Dataset]:
    """Rows of (prompt, response_a, response_b)."""
    encoder, count = Encoder(TOKENIZER, max_length, pieces=True), len(texts)
    columns = {name: [""] * count for name in ("group", "source", "kind", "prompt_key")} | {
        "id": [str(number) for number in range(count)], "language": ["en"] * count, "source_index": [0] * count,
        "target": [[]] * count, "prompt": [[{"role": "user", "content": prompt}] for prompt, _, _ in texts],
        "response_a": [a for _, a, _ in texts], "response_b": [b for _, _, b in texts]}
    rows = Dataset.from_dict(encoder.encode(columns), features=ENCODED_FEATURES)
    return encoder, with_targets(rows, np.zeros((len(rows), 0)))


def language_model() -> tuple[LanguageModel, Cohere2ForCausalLM]:
    """The same weights, for `TOKENIZER`, as a model of packs and as that of transformers."""
    names = {"vocab_size": len(TOKENIZER), "pad_token_id": TOKENIZER.pad_token_id}
    return made(LanguageModel, **names), made(Cohere2ForCausalLM, **names).eval()


@torch.no_grad()
def test_a_row_has_the_same_loss_in_a_pack_of_any_size():
    model, plain = language_model()
    encoder, rows = encoded(*TEXTS)
    sequences = [encoder.template.sequence(row["prompt_ids"], *([] if row["a_ids"] is None else
                                                                [row["a_ids"], row["b_ids"]])) for row in rows]
    wanted = [plain_losses(plain, sequence).sum().item() for sequence in sequences]
    assert max(map(len, sequences)) > 2 * WINDOW
    for token_budget in (1, 100, 300, 10**6):
        asked = []
        found = score_language(model, rows, encoder.template, token_budget, torch.device("cpu"),
                               progress=lambda plan, asked=asked: [asked.append(some) or some for some in plan])
        assert found == pytest.approx(wanted, rel=1e-5)
        assert sorted(number for numbers in asked for number in numbers) == list(range(len(TEXTS)))
        assert all(len(numbers) == 1 or sum(rows[numbers]["tokens"]) <= token_budget for numbers in asked)
    assert len(asked) == 1


def test_scoring_trains_nothing_and_leaves_a_model_in_training_as_it_was():
    model, _ = language_model()
    encoder, rows = encoded(*TEXTS)
    seen = []
    model.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    for training in (True, False):
        model.train(training)
        score_language(model, rows, encoder.template, 300, torch.device("cpu"))
        assert model.training is training
    assert set(seen) == {(False, False)}


def test_a_long_text_has_the_perplexity_of_its_pieces():
    """Each begins anew, with the template's tokens around it."""
    model, _ = language_model()
    encoder, rows = encoded((words(100, "t"), None, None), max_length=64)
    assert len(rows) > 3
    losses_N = score_language(model, rows, encoder.template, 200, torch.device("cpu"))
    found = perplexities(rows, losses_N)["overall"]
    assert (found["rows"], found["tokens"]) == (len(rows), sum(rows["tokens"][:]) - len(rows))
    assert found["loss"] == pytest.approx(losses_N.sum() / found["tokens"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A saved language model with its tokenizer, and two texts, of which the second is read in pieces."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    language_model()[0].save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    write(tmp_path / "de.txt", "fox", words(40, "t"))
    return tmp_path


def perplexity_of(folder, *flags: str) -> None:
    perplexity.main(["--model", str(folder), "--cache_dir", str(folder / "cache"), *flags])


def test_the_command_prints_perplexities(folder, capsys):
    perplexity_of(folder, "--data", str(folder / "de.txt"), "--max_length", "64")
    encoder, rows = encoded(("fox", None, None), (words(40, "t"), None, None), max_length=64)
    losses_N = score_language(language_model()[0], rows, encoder.template, 500, torch.device("cpu"))
    tokens = sum(rows["tokens"][:]) - len(rows)
    loss = losses_N.sum() / tokens
    numbers = [f"{len(rows):,}", f"{tokens:,}", f"{loss:.3f}", f"{math.exp(loss):.2f}"]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["language", "rows", "tokens", "loss", "perplexity"], ["all", *numbers], ["de", *numbers]]


@pytest.mark.parametrize(("flags", "words"), [
    ([], "the following arguments are required: --data"),
    (["--data", "missing.txt"], "--data missing.txt: there is no such file"),
    (["--data", "sample:0.5"], "sample:0.5: only the sources of the training split may have a weight"),
    (["--data", "sample", "--max_length", "63"], "--max_length 63: at least 64 tokens are needed"),
    (["--data", "sample", "--max_length", "long"], "argument --max_length: invalid int value: 'long'"),
    (["--data", "sample", "--batch", "3"], "unrecognized arguments: --batch 3"),
])
def test_what_the_command_refuses(folder, flags, words):
    assert refusal(perplexity_of, folder, *flags).startswith(words)


# What is loaded


def test_a_saved_language_model_is_loaded_and_one_of_transformers_is_as_well(tmp_path):
    sequence = text(40, 1)
    model, plain = made(LanguageModel), made(Cohere2ForCausalLM)
    for folder, saved in ((tmp_path / "ours", model), (tmp_path / "theirs", plain)):
        saved.save_pretrained(folder)
        assert_close(load_language_model(str(folder), torch.float32)(pack=pack([sequence])).loss,
                     plain_loss(plain, sequence))
    fresh = Cohere2ForCausalLM.from_pretrained(tmp_path / "ours")
    assert_close(plain_loss(fresh, sequence), plain_loss(plain, sequence))
    assert load_language_model(str(tmp_path / "ours"), torch.bfloat16).dtype == torch.bfloat16


def test_the_backbone_of_a_preference_model_is_a_language_model(tmp_path):
    classifier = tiny_model(TWO, False)
    classifier.save_pretrained(tmp_path)
    packed = pack([text(40, 1)])
    with torch.no_grad():
        wanted, _ = language_losses(hidden_states(classifier.model, packed), classifier.model, packed, [1.0])
        assert_close(load_language_model(str(tmp_path), torch.float32)(pack=packed).loss, wanted)


def refusal(call, *arguments) -> str:
    """What a `UserError` says, on one line."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("changes", "words"), [
    ({"model_type": "llama"}, " is of type llama; a cohere2 model is needed"),
    ({"hidden_size": "wide"}, " cannot be loaded: Validation error for field 'hidden_size'"),
    ({"layer_types": [FULL]}, " cannot be loaded: Class validation error for validator 'validate_layer_type'"),
    ({"num_attention_heads": 0}, " cannot be loaded: "),
    ({"num_hidden_layers": 4, "layer_types": [FULL] * 4}, ": 8 weights are missing, such as model.layers.3."),
    ({"intermediate_size": 64}, ": the weights cannot be loaded: "),
    ({"hidden_act": "nonesuch"}, ": the weights cannot be loaded: 'nonesuch'"),
    ({"hidden_act": "gelu"}, " cannot be read as a language model: its attention has a bias or dropout, or its "
                             "activation is not silu"),
    ({"tie_word_embeddings": False}, ": 1 weights are missing, such as lm_head.weight"),
])
def test_what_is_no_language_model_is_refused(tmp_path, changes, words):
    made(LanguageModel).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | changes))
    assert refusal(load_language_model, str(tmp_path), torch.float32).startswith(f"--model {tmp_path}{words}")


def test_an_lm_head_of_its_own_is_refused(tmp_path):
    Cohere2ForCausalLM(settings(tie_word_embeddings=False)).save_pretrained(tmp_path)
    assert refusal(load_language_model, str(tmp_path), torch.float32) == (
        f"--model {tmp_path} cannot be read as a language model: its lm_head is another matrix than its embeddings "
        "(tie_word_embeddings)")


@pytest.mark.parametrize("config", [None, "{", "[]", "null", "5"])
def test_a_folder_of_something_else_is_refused(tmp_path, config):
    if config:
        (tmp_path / "config.json").write_text(config)
    assert refusal(load_language_model, str(tmp_path), torch.float32).startswith(f"--model {tmp_path} cannot be loaded")
    assert "cannot be loaded" in refusal(load_language_model, str(tmp_path / "missing"), torch.float32)


def test_a_folder_without_weights_is_refused(tmp_path):
    settings().save_pretrained(tmp_path)
    assert refusal(load_language_model, str(tmp_path), torch.float32).startswith(
        f"--model {tmp_path}: the weights cannot be loaded")


def test_damaged_weights_are_refused(tmp_path):
    made(LanguageModel).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert refusal(load_language_model, str(tmp_path), torch.float32).startswith(
        f"--model {tmp_path}: the weights cannot be loaded")


# What is made

SHAPE = {"model_type": "cohere2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": 8, "max_position_embeddings": 256}


def new(folder, shape: dict | str | bytes, seed: int = 0, dtype: torch.dtype = torch.float32) -> LanguageModel:
    contents = json.dumps(shape) if isinstance(shape, dict) else shape
    path = folder / "shape.json"
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    return new_language_model(str(path), TOKENIZER, seed, dtype)


def test_a_new_model_has_the_shape_of_the_file_and_the_vocabulary_of_the_tokenizer(tmp_path):
    config = new(tmp_path, SHAPE | {"vocab_size": 5, "eos_token_id": 1, "logit_scale": 0.5}).config
    assert (config.hidden_size, config.num_hidden_layers, config.logit_scale) == (32, 2, 0.5)
    assert config.vocab_size == len(TOKENIZER)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (
        TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)


def test_the_shape_that_is_shipped_is_one():
    model = new_language_model(Pretraining.shape, TOKENIZER, 0, torch.float32)
    assert model.config.hidden_size == 128 and model.config.logit_scale == 1


def test_weights_are_those_of_the_seed_and_nothing_else_is_drawn(tmp_path):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, same, other = new(tmp_path, SHAPE), new(tmp_path, SHAPE), new(tmp_path, SHAPE, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, weight), again, different in zip(one.named_parameters(), same.parameters(), other.parameters(),
                                                strict=True):
        assert torch.equal(weight, again)
        assert torch.equal(weight, different) == ("norm" in name), name
    assert {parameter.dtype for parameter in new(tmp_path, SHAPE, dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16}


def test_a_new_model_knows_nothing(tmp_path):
    """Its first loss is that of even odds."""
    sequence = [number % len(TOKENIZER) for number in text(60, 1)]
    loss = new(tmp_path, SHAPE | {"initializer_range": 0.01})(pack=pack([sequence])).loss.item() / 59
    assert loss == pytest.approx(math.log(len(TOKENIZER)), abs=0.02)


@pytest.mark.parametrize(("shape", "words"), [
    ("{", "no model can be made of it: Expecting property name"),
    ("[]", "no model can be made of it: "),
    ("null", "no model can be made of it: "),
    (b"\xff\xfe", "no model can be made of it: 'utf-8' codec can't decode"),
    (SHAPE | {"hidden_size": "wide"}, "no model can be made of it: Validation error for field 'hidden_size': "),
    (SHAPE | {"hidden_size": -4}, "no model can be made of it: "),
    (SHAPE | {"hidden_size": 0}, "no model can be made of it: "),
    (SHAPE | {"num_hidden_layers": 3, "layer_types": [FULL]}, "no model can be made of it: Class validation error"),
    (SHAPE | {"head_dim": 7}, "no model can be made of it: Class validation error"),
    (SHAPE | {"num_key_value_heads": 0}, "no model can be made of it: "),
    (SHAPE | {"hidden_act": "nonesuch"}, "no model can be made of it: 'nonesuch'"),
    (SHAPE | {"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple of num_key_value_heads 3"),
])
def test_a_shape_that_cannot_be_is_refused(tmp_path, shape, words):
    assert refusal(new, tmp_path, shape).startswith(f"--shape {tmp_path}/shape.json: {words}")


@pytest.mark.parametrize(("change", "words"), [
    ({"model_type": "llama"}, "is of type llama; that of a cohere2 model is needed"),
    ({"attention_bias": True}, "cannot be read as a language model: its attention has a bias"),
    ({"attention_dropout": 0.1}, "cannot be read as a language model: its attention has a bias or dropout"),
    ({"hidden_act": "gelu"}, "cannot be read as a language model: its attention has a bias or dropout"),
    ({"tie_word_embeddings": False}, "cannot be read as a language model: its lm_head is another matrix"),
])
def test_a_shape_of_another_model_is_refused(tmp_path, change, words):
    assert refusal(new, tmp_path, SHAPE | change).startswith(f"--shape {tmp_path}/shape.json {words}")


def test_a_missing_shape_is_refused(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        message = refusal(new_language_model, str(path), TOKENIZER, 0, torch.float32)
        assert message.startswith(f"--shape {path}: no model can be made of it: [Errno ")


# The corpus


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def corpus_of(run, **flags):
    config = Pretraining(**{"data": [str(run.parent / "en.txt")], "vocab_size": 400, "max_length": 64,
                            "test_fraction": 0.2, "cache_dir": str(run.parent / "cache")} | flags)
    return load_corpus(config, run)


def write(path, *paragraphs: str) -> str:
    path.write_text("\n\n".join(paragraphs), "utf-8")
    return str(path)


def test_a_corpus_is_texts_and_comparisons_in_pieces_that_fit(run):
    write(run.parent / "en.txt", *(words(5, name) for name in "abcdefghij"), words(300, "long"))
    pairs = [{"prompt": f"Say {number}", "chosen": "Yes", "rejected": "No", "language": "de"} for number in range(9)]
    path = run.parent / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*pairs, {"prompt": "x", "chosen": "y"}]))
    corpus = corpus_of(run, data=[f"{run.parent}/en.txt", f"{path}:0.5"], max_bad_fraction=0.2)
    rows = [*corpus.train, *corpus.test]
    assert len(corpus.test) > 0 and {row["language"] for row in rows} == {"en", "de"}
    assert max(row["tokens"] for row in rows) == 64 and not any(row["tokens_cut"] for row in rows)
    assert {row["target"] == [] for row in rows} == {True}
    assert dict(zip(corpus.train["language"][:], corpus.rates, strict=True)) == {"en": 1.0, "de": 0.5}
    assert (run / "rejected.txt").read_text().startswith(f"{path}:10: columns")
    assert "left out" not in corpus.summary
    assert "--data: 1 of 21 rows rejected" in corpus.summary


def test_the_tokenizer_is_trained_once_on_what_is_not_tested(run):
    path = run.parent / "en.txt"
    write(path, *(words(5, name) for name in "abcdefghij"))
    first = corpus_of(run)
    assert len(first.encoder.template.roles) == 3 and (run / "tokenizer/tokenizer.json").exists()
    trained = (run / "tokenizer/tokenizer.json").stat().st_mtime_ns
    assert corpus_of(run).key == first.key
    assert (run / "tokenizer/tokenizer.json").stat().st_mtime_ns == trained
    (run / "data.json").unlink()
    other = corpus_of(run, model=str(run / "tokenizer"))  # a model to go on with brings its own
    assert other.key == first.key and other.train["prompt_ids"][:] == first.train["prompt_ids"][:]


def test_the_tokenizer_has_a_temperature_of_its_own(run):
    """At 0 it reads as much of the language with few rows, which then takes fewer tokens."""
    german = [f"{'Zeitung ' * 6}{number}" for number in range(4)]
    english = ["".join(chr(97 + letter % 23) for letter in text(5, number)) for number in range(100)]
    sources = [write(run.parent / "en.txt", *(" ".join([*english, str(number)]) for number in range(60))),
               write(run.parent / "de.txt", *german)]

    def tokenizer(name: str, **flags) -> str:
        (run / name).mkdir()
        corpus_of(run / name, data=sources, test_fraction=0.0, cache_dir=str(run / "cache"), **flags)
        return str(run / name / "tokenizer")

    def read(name: str) -> int:
        return len(load_tokenizer(name)(german[0]).input_ids)

    few, many = (tokenizer(name, tokenizer_temperature=value) for name, value in (("as is", 1.0), ("alike", 0.0)))
    assert read(many) < read(few)
    assert read(tokenizer("other", tokenizer_temperature=1.0, language_temperature=0.0)) == read(few)


def test_a_corpus_that_has_changed_is_refused(run):
    path = run.parent / "en.txt"
    write(path, *(words(5, name) for name in "abcdefghij"))
    corpus_of(run)
    write(path, *(words(5, name) for name in "abcdefghijk"))
    assert refusal(corpus_of, run) == (
        f"the data of {run} is no longer what it was trained on ({run}/data.json has other hashes)")


def test_without_a_test_split_there_is_none(run):
    write(run.parent / "en.txt", *(words(5, name) for name in "abcdefghij"))
    corpus = corpus_of(run, test_fraction=0.0)
    assert (len(corpus.train), len(corpus.test)) == (10, 0)
    assert "test: no rows" in corpus.summary
