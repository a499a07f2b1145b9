"""The faster forward against that of transformers and peft, in logits and in gradients."""

import copy
import shutil
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Cohere2Config

from pm import attention
from pm import fused as fused_module
from pm.fused import compile_activation, hidden_states, last_hidden_states, unsupported
from pm.model import LORA_TARGETS, Cohere2ForSequenceClassification, add_lora, parameter_groups
from pm.packing import pack

SLIDING, FULL = "sliding_attention", "full_attention"
KINDS = ["lora", "lora and embeddings", "full"]


def base(window: int, layers=(SLIDING, FULL, SLIDING), **changes) -> Cohere2ForSequenceClassification:
    """Width 32; its weights are large enough that each token matters."""
    torch.manual_seed(0)
    model = Cohere2ForSequenceClassification(Cohere2Config(**{
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": len(layers), "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": window, "layer_types": list(layers),
        "max_position_embeddings": 512, "num_labels": 3, "score_bias": True} | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.dim() > 1 else parameter.normal_(mean=1.0, std=0.2)
    return model


def with_lora(model, train_embeddings: bool, dropout: float = 0.0) -> PeftModel:
    """Neither of its matrices is zero, and the scaling is 2."""
    model = add_lora(model, rank=4, alpha=8.0, dropout=dropout, train_embeddings=train_embeddings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
    return model


def made(kind: str, window: int, layers=(SLIDING, FULL, SLIDING)):
    model = base(window, layers)
    return model.train() if kind == "full" else with_lora(model, kind == "lora and embeddings").train()


def text(length: int, start: int) -> list[int]:
    return torch.randint(64, (length,), generator=torch.Generator().manual_seed(1000 * start + length)).tolist()


def around(window: int) -> list[int]:
    """Lengths at the edges of the window and of the blocks of queries in it, one token at the least."""
    block = max(64, window // 2)
    return [1, window - 1, window, window + 1, block - 1, block, block + 1, window + 2 * block + 3]


def apart(window: int) -> list[list[list[int]]]:
    return [[text(length, number)] for number, length in enumerate(around(window))]


def shared(window: int) -> list[list[list[int]]]:
    """Beginnings that end before, at and after an edge; the parts of their own as well, one of them a single token."""
    groups = [[text(length, 0) + text(1, 1), text(length, 0) + text(other, 2), text(length, 0) + text(other + 1, 3)]
              for length, other in zip(around(window)[1:], reversed(around(window)[1:]), strict=True)]
    return [[sequence for sequence in group if len(sequence) < 400] for group in groups]


def answers(window: int) -> list[list[list[int]]]:
    """Each ordered pair of three answers to one prompt: three segments lead to each leaf."""
    prompt, three = text(20, 0), [text(length, 1) for length in (17, window, 30)]
    return [[prompt + one + other for one, other in permutations(three, 2)], [text(window, 2)]]


def plain(model, groups) -> torch.Tensor:
    """Logits of each sequence by itself, by transformers and peft."""
    return torch.cat([model(torch.tensor([sequence])).logits for group in groups for sequence in group])


def fused(model, groups) -> torch.Tensor:
    return model(pack=pack([sequence for group in groups for sequence in group])).logits


def outcome(model, forward, groups) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradient of a sum of them with unlike weights."""
    model.zero_grad()
    logits_BC = forward(model, groups)
    weights_BC = torch.linspace(0.5, 1.5, logits_BC.numel()).view_as(logits_BC) * torch.tensor([1.0, -2.0, 0.5])
    (logits_BC * weights_BC).sum().backward()
    return logits_BC.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()
                                if parameter.requires_grad}


def assert_close(found: torch.Tensor, wanted: torch.Tensor, name: str = "") -> None:
    """To 1e-5 of the norm."""
    assert found.dtype == wanted.dtype
    assert wanted.norm() > 0, name
    assert (found - wanted).norm() <= 1e-5 * wanted.norm(), (name, ((found - wanted).norm() / wanted.norm()).item())


def assert_same(one, other) -> None:
    """Logits row by row and gradients tensor by tensor."""
    for number, (found_C, wanted_C) in enumerate(zip(one[0], other[0], strict=True)):
        assert_close(found_C, wanted_C, f"sequence {number}")
    assert one[1].keys() == other[1].keys()
    for name, gradient in other[1].items():
        assert_close(one[1][name], gradient, name)


def varlen_attn(query, key, value, query_starts, key_starts, most_queries, most_keys, *, window_size, enable_gqa):
    """What FlashAttention computes, by its documentation: of each sequence, the last query is opposite to the last key,
    and a query sees `window_size` keys before and after the one that is opposite to it; -1 is all."""
    assert enable_gqa
    assert query_starts.dtype == key_starts.dtype == torch.int32
    counts, seen = query_starts.diff(), key_starts.diff()
    assert (most_queries, most_keys) == (counts.max(), seen.max())
    assert (query_starts[-1], key_starts[-1], key_starts[-1]) == (len(query), len(key), len(value))
    before, after = window_size
    found = []
    for queries, keys, values in zip(*(parts.split(sizes.tolist()) for parts, sizes in (
            (query, counts), (key, seen), (value, seen))), strict=True):
        opposite = torch.arange(len(keys) - len(queries), len(keys))[:, None]
        distance = opposite - torch.arange(len(keys))
        visible = (distance >= -after) & ((distance <= before) | (before == -1))
        found.append(F.scaled_dot_product_attention(
            *(part.transpose(0, 1) for part in (queries, keys, values)), visible, enable_gqa=True).transpose(0, 1))
    return torch.cat(found)


@pytest.fixture(params=["path by path", "at once"])
def each_attention(request, monkeypatch):
    """Both ways of `pm.attention`, that of a GPU with a stand-in for the kernel."""
    if request.param == "at once":
        monkeypatch.setattr(attention, "flash_runs", lambda value_TKE: True)
        monkeypatch.setattr(attention, "varlen_attn", varlen_attn)


# Exact


@pytest.mark.usefixtures("each_attention")
@pytest.mark.parametrize("groups", [apart, shared, answers])
@pytest.mark.parametrize("window", [8, 160])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_transformers_and_peft(kind, window, groups):
    model, groups = made(kind, window), groups(window)
    assert_same(outcome(model, fused, groups), outcome(model, plain, groups))


@torch.no_grad()
@pytest.mark.usefixtures("each_attention")
@pytest.mark.parametrize("groups", [apart, shared, answers])
def test_the_hidden_state_of_every_token_is_that_of_transformers(groups):
    backbone, sequences = base(8).eval().model, [sequence for group in groups(8) for sequence in group]
    packed = pack(sequences)
    hidden_TD = hidden_states(backbone, packed)
    parts = hidden_TD.split(packed.lengths)
    for leaf, sequence in zip(packed.leaves, sequences, strict=True):
        wanted_LD = backbone(torch.tensor([sequence])).last_hidden_state[0]
        assert_close(torch.cat([parts[segment] for segment in packed.paths[leaf]]), wanted_LD)
    assert_close(last_hidden_states(backbone, packed), hidden_TD[packed.last])


@pytest.mark.parametrize("layers", [(FULL,), (SLIDING,), (SLIDING, FULL)])
def test_any_layer_may_be_the_last(layers):
    model, groups = made("lora", 8, layers), shared(8)[:3]
    assert_same(outcome(model, fused, groups), outcome(model, plain, groups))


@pytest.mark.parametrize("groups", [apart, shared, answers])
def test_a_frozen_model_without_adapters_gives_the_same_logits(groups):
    model, groups = base(8).eval().requires_grad_(False), groups(8)
    wanted = plain(model, groups)
    assert_close(fused(model, groups), wanted)
    assert_close(fused(model, groups), wanted)  # its weights lie side by side now


def test_packed_sequences_are_those_of_a_padded_batch():
    model, groups = made("lora", 8), [[text(20, 0) + text(9, 1), text(20, 0) + text(3, 2)], [text(14, 3)]]

    def padded(model, groups):
        sequences = [sequence for group in groups for sequence in group]
        input_ids, mask = (torch.zeros(len(sequences), 29, dtype=torch.long) for _ in range(2))
        for number, sequence in enumerate(sequences):
            input_ids[number, : len(sequence)], mask[number, : len(sequence)] = torch.tensor(sequence), 1
        return model(input_ids, mask).logits

    assert_same(outcome(model, fused, groups), outcome(model, padded, groups))


@pytest.mark.usefixtures("each_attention")
def test_other_heads_and_sizes():
    """As many heads of keys as of queries, and heads of another size than width / heads."""
    model = with_lora(base(8, num_key_value_heads=4, head_dim=16), False).train()
    assert_same(outcome(model, fused, shared(8)[:2]), outcome(model, plain, shared(8)[:2]))


# What a sequence does not see


@pytest.mark.usefixtures("each_attention")
def test_a_sibling_changes_no_bit_of_the_other():
    """Nor another group: the places of all tokens stay."""
    model = made("lora", 8).eval()
    beginning, own, sibling, stranger = text(20, 0), [10, *text(30, 1)], [20, *text(30, 2)], text(25, 3)
    with torch.no_grad():
        before = fused(model, [[beginning + own, beginning + sibling], [stranger]])
        after = fused(model, [[beginning + own, [*beginning, 20, *text(30, 4)]], [stranger]])
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert (before[1] - after[1]).abs().min() > 1e-3


@pytest.mark.usefixtures("each_attention")
def test_a_token_outside_of_the_window_changes_no_bit_and_one_inside_does():
    """Of the only layer, whose last token sees `window` tokens, itself included; the first of them belongs to the
    shared segment."""
    model = made("lora", 30, (SLIDING,)).eval()
    beginning, ends = text(40, 0), [[10, *text(9, 1)], [20, *text(9, 2)]]

    def logits(place: int) -> torch.Tensor:
        changed = [*beginning[:place], (beginning[place] + 1) % 64, *beginning[place + 1 :]]
        return fused(model, [[changed + end for end in ends]])

    with torch.no_grad():
        before = fused(model, [[beginning + end for end in ends]])
        assert torch.equal(logits(19), before)
        assert (logits(20) - before).abs().max() > 1e-3


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_gradient_and_keeps_less(kind):
    """Enabled before LoRA is added, as a run does it."""
    def kept(model) -> int:
        numbers = 0

        def count(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            fused(model, groups)
        return numbers

    groups = shared(8)[:4]
    whole, again = made(kind, 8, (SLIDING, FULL, SLIDING, FULL)), base(8, (SLIDING, FULL, SLIDING, FULL))
    again.gradient_checkpointing_enable({"use_reentrant": False})
    again = (again if kind == "full" else add_lora(again, 4, 8.0, 0.0, kind == "lora and embeddings")).train()
    again.load_state_dict(whole.state_dict())
    assert_same(outcome(again, fused, groups), outcome(whole, plain, groups))
    assert_same(outcome(again, fused, groups), outcome(again, plain, groups))
    assert kept(again) < 0.6 * kept(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_adamw_makes_the_same_weights_of_both(kind):
    models = [made(kind, 8) for _ in range(2)]
    groups = shared(8)[:3]
    for model, forward in zip(models, (fused, plain), strict=True):
        optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=1e-3)
        for _ in range(3):
            outcome(model, forward, groups)
            optimizer.step()
    start, moved = made(kind, 8), 0
    for before, one, other in zip(*(model.parameters() for model in (start, *models)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        moved += (one - before).abs().max().item() > 1e-3
    assert moved == sum(parameter.requires_grad for parameter in start.parameters())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is none")
def test_a_compiled_activation_gives_the_same_for_packs_of_all_sizes(monkeypatch):
    for name in ("_swiglu", "_swiglu_gradients"):
        monkeypatch.setattr(fused_module, name, getattr(fused_module, name))  # which puts it back afterwards
    cases = [(made(kind, 8), groups(8)) for kind in ("lora", "full") for groups in (apart, shared, answers)]
    wanted = [outcome(model, fused, groups) for model, groups in cases]
    torch._dynamo.utils.counters.clear()
    compile_activation.__wrapped__()
    for (model, groups), one in zip(cases, wanted, strict=True):
        assert_same(outcome(model, fused, groups), one)
    assert 2 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6  # kernels; a pack's size makes no new ones


def in_bf16(model, trained: torch.dtype):
    """Not `.to`: the rotary frequencies stay in fp32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(trained if parameter.requires_grad else torch.bfloat16)
    return model


@pytest.mark.parametrize(("kind", "trained"), [
    ("lora", torch.bfloat16), ("lora", torch.float32), ("lora and embeddings", torch.bfloat16),
    ("full", torch.bfloat16)])
def test_in_bf16_the_gradient_is_as_good_as_that_of_transformers_and_peft(kind, trained):
    """Against the same weights in fp32. DeepSpeed has all weights in bf16, peft alone not those that are trained."""
    model, groups = in_bf16(made(kind, 40), trained), shared(40)[:4]
    exact = copy.deepcopy(model).float()
    wanted_logits_BC, wanted = outcome(exact, plain, groups)

    def errors(forward) -> tuple[float, float]:
        logits_BC, found = outcome(model, forward, groups)
        assert all(found[name].dtype == trained for name in wanted)
        difference, norm = (torch.cat([part.flatten() for part in parts]).norm() for parts in (
            [found[name].float() - wanted[name] for name in wanted], wanted.values()))
        return (difference / norm).item(), ((logits_BC - wanted_logits_BC).norm() / wanted_logits_BC.norm()).item()

    for found, usual in zip(errors(fused), errors(plain), strict=True):
        assert 1e-4 < usual < 0.2
        assert found <= 1.5 * usual


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("groups", [apart, shared, answers])
@pytest.mark.parametrize("window", [8, 160])
def test_flash_attention_is_as_good_as_path_by_path(window, groups, monkeypatch):
    """In bf16, against the same weights in fp32."""
    model, groups = in_bf16(with_lora(base(window, head_dim=32), False).train(), torch.bfloat16).cuda(), groups(window)
    exact = copy.deepcopy(model).float()

    packed = pack([sequence for group in groups for sequence in group]).to(torch.device("cuda"))

    def outcome_on_gpu(model) -> torch.Tensor:
        model.zero_grad()
        logits_BC = model(pack=packed).logits
        (logits_BC * torch.linspace(-1.0, 1.0, logits_BC.numel(), device="cuda").view_as(logits_BC)).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        return torch.cat([part.detach().float().flatten() for part in (logits_BC, *gradients)])

    wanted = outcome_on_gpu(exact)
    at_once = (outcome_on_gpu(model) - wanted).norm() / wanted.norm()
    monkeypatch.setattr(attention, "flash_runs", lambda value_TKE: False)
    path_by_path = (outcome_on_gpu(model) - wanted).norm() / wanted.norm()
    assert 1e-4 < path_by_path < 0.2
    assert at_once <= 1.5 * path_by_path


# The weights


def test_frozen_weights_lie_side_by_side_with_the_values_that_they_had(tmp_path):
    model, groups = made("lora", 8), shared(8)[:2]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    wanted = outcome(model, plain, groups)
    places = []
    for _ in range(2):
        assert_same(outcome(model, fused, groups), wanted)
        attention = model.base_model.model.model.layers[0].self_attn
        places.append({layer.base_layer.weight.untyped_storage().data_ptr()
                       for layer in (attention.q_proj, attention.k_proj, attention.v_proj)})
    assert len(places[0]) == 1
    assert places[1] == places[0]  # they are laid there once
    assert model.state_dict().keys() == before.keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert_same(outcome(model, plain, groups), wanted)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    fresh = PeftModel.from_pretrained(base(8), str(tmp_path))
    with torch.no_grad():
        assert torch.equal(plain(fresh, groups), plain(model.eval(), groups))


def test_a_whole_model_is_saved_from_weights_side_by_side(tmp_path):
    model, groups = base(8).eval().requires_grad_(False), shared(8)[:2]
    wanted = plain(model, groups)
    fused(model, groups)
    model.save_pretrained(tmp_path)
    fresh = Cohere2ForSequenceClassification.from_pretrained(tmp_path).eval()
    for name, weight in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], weight), name
    with torch.no_grad():
        assert torch.equal(plain(fresh, groups), wanted)


@torch.no_grad()
def test_weights_that_are_given_anew_are_read():
    """As an export, a checkpoint or a move to another device or precision does."""
    model, groups = base(8).eval().requires_grad_(False), shared(8)[:2]
    fused(model, groups)
    other = base(8).eval()
    for parameter in other.parameters():
        parameter.mul_(1.1)
    wanted = plain(other, groups)
    model.load_state_dict(other.state_dict())  # into the place where they lie
    assert_close(fused(model, groups), wanted)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    for parameter in other.parameters():
        parameter.mul_(1.1)
    model.model.layers[0].self_attn.k_proj.weight.data = other.model.layers[0].self_attn.k_proj.weight.data
    assert_close(fused(model, groups), plain(model, groups))


@torch.no_grad()
def test_adapters_that_are_merged_or_switched_off():
    groups = shared(8)[:2]
    wanted, without = plain(made("lora", 8).eval(), groups), plain(base(8).eval(), groups)
    assert (wanted - without).abs().max() > 0.1
    model = made("lora", 8).eval()
    for _ in range(2):
        assert_close(fused(model, groups), wanted)
        with model.disable_adapter():
            # The head is trained beside the adapters, and is still as it was
            assert_close(fused(model, groups), without)
            assert_close(plain(model, groups), without)
        model.merge_adapter()
        assert_close(fused(model, groups), wanted)
        assert_close(plain(model, groups), wanted)
        model.unmerge_adapter()
    merged = model.merge_and_unload()
    assert isinstance(merged, Cohere2ForSequenceClassification)
    for _ in range(2):
        assert_close(fused(merged.requires_grad_(False), groups), wanted)
        assert_close(plain(merged, groups), wanted)


# What cannot be read


@pytest.mark.parametrize("changes", [
    {"attention_bias": True}, {"attention_dropout": 0.1}, {"hidden_act": "gelu"}])
def test_another_kind_of_layer_is_not_supported(changes):
    for training in (True, False):
        reason = unsupported(base(8, **changes).train(training))
        assert reason == "its attention has a bias or dropout, or its activation is not silu"


def test_what_is_trained_here_is_supported():
    for training in (True, False):
        assert unsupported(base(8).train(training)) == ""
        for kind in KINDS:
            assert unsupported(made(kind, 8).train(training)) == ""


def test_lora_dropout_is_not_supported_in_training_alone():
    model = with_lora(base(8), False, dropout=0.1)
    assert unsupported(model.train()) == "LoRA has dropout"
    assert unsupported(model.eval()) == ""
    with torch.no_grad():
        assert_close(fused(model, shared(8)[:1]), plain(model, shared(8)[:1]))


def test_other_kinds_of_lora_are_not_supported():
    dora = get_peft_model(base(8), LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "v_proj"]))
    assert unsupported(dora) == "its LoRA is not the plain one"


def test_weights_of_zero_3_are_not_supported():
    """Where they are no longer whole, each has an id."""
    model = base(8)
    model.model.norm.weight.ds_id = 0
    assert unsupported(model).startswith("ZeRO 3 ")


def test_lora_that_is_not_ours_is_refused():
    with_bias = get_peft_model(base(8), LoraConfig(target_modules=list(LORA_TARGETS), bias="none", lora_bias=True))
    assert unsupported(with_bias) == "its LoRA is not the plain one"
    partly = get_peft_model(base(8), LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert unsupported(partly) == "its LoRA is on some projections only"
