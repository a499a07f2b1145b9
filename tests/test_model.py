"""The model: where it reads its verdict, what it loads, what it trains."""

import json
import logging
import math

import pytest
import torch
from peft import PeftModel
from transformers import Cohere2Config, Cohere2ForCausalLM, LlamaConfig

from pm.errors import UserError
from pm.model import (
    PACKAGED,
    Cohere2ForSequenceClassification,
    add_lora,
    check_trainable,
    load_model,
    load_tokenizer,
    parameter_groups,
    save_small_base,
    set_prior,
    unswap,
)
from pm.tokenizer import train_tokenizer

PAD, EOS, WINDOW = 0, 2, 8


def tiny_config(**changes) -> Cohere2Config:
    """One layer with a sliding window of 8 and one without; width 32."""
    values = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": WINDOW,
              "layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 64,
              "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": EOS}
    return Cohere2Config(**(values | changes))


def tiny_model(**changes) -> Cohere2ForSequenceClassification:
    """With weights large enough that each token matters, and a head that is not zero."""
    torch.manual_seed(0)
    model = Cohere2ForSequenceClassification(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def logits_of(model, ids: list[list[int]], mask: list[list[int]] | None = None) -> torch.Tensor:
    return model(torch.tensor(ids), None if mask is None else torch.tensor(mask)).logits


def text(length: int, start: int = 0) -> list[int]:
    """A sequence of `length` ordinary tokens."""
    return [3 + (start + 7 * place) % 60 for place in range(length)]


# Pooling


def test_verdict_is_read_on_the_last_token_of_the_mask():
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 0, 0], [0, 0, 0, 5, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
    with torch.no_grad():
        hidden_BLD = model.model(ids, mask).last_hidden_state
        wanted_BC = hidden_BLD[[0, 1, 2], [4, 2, 4]] @ model.score.weight.T
    torch.testing.assert_close(logits_of(model, ids.tolist(), mask.tolist()), wanted_BC)


def test_without_a_mask_the_last_position_is_read():
    model = tiny_model()
    torch.testing.assert_close(logits_of(model, [[5, 6, 7]]), logits_of(model, [[5, 6, 7]], [[1, 1, 1]]))


def test_right_padding_changes_nothing():
    model = tiny_model()
    padded = logits_of(model, [[5, 6, 7, PAD, PAD]], [[1, 1, 1, 0, 0]])
    torch.testing.assert_close(padded, logits_of(model, [[5, 6, 7]]), atol=1e-5, rtol=0)


def test_left_padding_changes_nothing():
    model = tiny_model()
    padded = logits_of(model, [[PAD, PAD, 5, 6, 7]], [[0, 0, 1, 1, 1]])
    torch.testing.assert_close(padded, logits_of(model, [[5, 6, 7]]), atol=1e-5, rtol=0)


def test_ids_under_the_padding_do_not_matter():
    model = tiny_model()
    mask = [[1, 1, 1, 0, 0]]
    assert torch.equal(logits_of(model, [[5, 6, 7, 0, 0]], mask), logits_of(model, [[5, 6, 7, 33, 44]], mask))


def test_pad_id_inside_the_text_is_text():
    model = tiny_model()
    model.model.embed_tokens.weight.data[PAD] = 1.0
    with_pad = [5, PAD, 7, PAD]
    padded = logits_of(model, [[*with_pad, PAD, PAD]], [[1, 1, 1, 1, 0, 0]])
    torch.testing.assert_close(padded, logits_of(model, [with_pad]), atol=1e-5, rtol=0)
    assert not torch.allclose(padded, logits_of(model, [[5, PAD, 7]]), atol=1e-2)


def test_pad_id_may_equal_eos():
    model = tiny_model(pad_token_id=EOS)
    padded = logits_of(model, [[5, 6, EOS, EOS, EOS]], [[1, 1, 1, 0, 0]])
    torch.testing.assert_close(padded, logits_of(model, [[5, 6, EOS]]), atol=1e-5, rtol=0)
    assert not torch.allclose(padded, logits_of(model, [[5, 6]]), atol=1e-2)


# The head


def test_new_head_is_zero_and_its_loss_ln_2():
    torch.manual_seed(0)
    model = Cohere2ForSequenceClassification(tiny_config())
    assert model.score.weight.shape == (2, 32)
    assert not model.score.weight.any()
    output = model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([1]))
    assert output.logits.tolist() == [[0.0, 0.0]]
    assert output.loss.item() == pytest.approx(0.6931472)


def test_logits_of_a_bf16_model_are_computed_in_fp32():
    model = tiny_model().to(torch.bfloat16)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits_BC = model(ids).logits
        last_BD = model.model(ids).last_hidden_state[:, -1]
    assert model.score.weight.dtype == last_BD.dtype == torch.bfloat16
    assert logits_BC.dtype == torch.float32
    torch.testing.assert_close(logits_BC, last_BD.float() @ model.score.weight.float().T)
    assert not torch.equal(logits_BC, logits_BC.bfloat16().float())  # not rounded on the way


# The sliding window


@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_alone_equal_those_in_a_padded_batch(length, side):
    model = tiny_model()
    longest, missing = 3 * WINDOW + 2, 3 * WINDOW + 2 - length
    row, ones, pads = text(length), [1] * length, [0] * missing
    ids = [text(longest, start=1), row + pads if side == "right" else pads + row]
    mask = [[1] * longest, ones + pads if side == "right" else pads + ones]
    torch.testing.assert_close(logits_of(model, ids, mask)[1:], logits_of(model, [row]), atol=1e-5, rtol=0)


def test_a_sliding_layer_sees_window_tokens_and_no_more():
    model = tiny_model(num_hidden_layers=1, layer_types=["sliding_attention"])
    row = text(WINDOW + 1)
    outside, inside = [60, *row[1:]], [row[0], 60, *row[2:]]
    torch.testing.assert_close(logits_of(model, [outside]), logits_of(model, [row]), atol=1e-6, rtol=0)
    assert not torch.allclose(logits_of(model, [inside]), logits_of(model, [row]), atol=1e-3)


def test_a_global_layer_sees_past_the_window():
    model = tiny_model(num_hidden_layers=1, layer_types=["full_attention"])
    row = text(WINDOW + 1)
    assert not torch.allclose(logits_of(model, [[60, *row[1:]]]), logits_of(model, [row]), atol=1e-3)


# Orders


def test_unswap_turns_swapped_rows_only():
    logits_BC = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    turned_BC = unswap(logits_BC, torch.tensor([False, True, False]))
    assert turned_BC.tolist() == [[1.0, 2.0], [4.0, 3.0], [5.0, 6.0]]
    assert logits_BC.tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def test_unswap_leaves_a_tie_where_it_is():
    logits_BC = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert unswap(logits_BC, torch.tensor([False, True])).tolist() == [[1.0, 2.0, 3.0], [5.0, 4.0, 6.0]]


def test_unswap_without_orders_changes_nothing():
    logits_BC = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert unswap(logits_BC, torch.tensor([False])).tolist() == [[1.0, 2.0, 3.0, 4.0]]


# Loading

TWO, THREE = ("a", "b"), ("a", "b", "tie")


def test_causal_model_gives_its_backbone_and_a_new_head(tmp_path):
    torch.manual_seed(1)
    causal = Cohere2ForCausalLM(tiny_config(tie_word_embeddings=False))
    causal.save_pretrained(tmp_path)
    model, has_head = load_model(str(tmp_path), torch.float32, TWO)
    assert has_head is False
    backbone, loaded = causal.model.state_dict(), model.state_dict()
    assert set(loaded) == {f"model.{name}" for name in backbone} | {"score.weight"}
    for name, weight in backbone.items():
        assert torch.equal(loaded[f"model.{name}"], weight), name
    assert not loaded["score.weight"].any()
    assert model.config.id2label == {0: "a", 1: "b"}
    assert not model.training


def test_saved_classifier_keeps_its_head(tmp_path):
    saved = tiny_model()
    saved.save_pretrained(tmp_path)
    model, has_head = load_model(str(tmp_path), torch.float32, TWO)
    assert has_head is True
    for name, weight in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert torch.equal(logits_of(model, [[5, 6, 7]]), logits_of(saved, [[5, 6, 7]]))


def test_model_is_loaded_in_the_dtype_asked_for_and_its_rotary_frequencies_in_fp32(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model, _ = load_model(str(tmp_path), torch.bfloat16, TWO)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


@pytest.mark.parametrize("labels", [THREE, ("negative", "neutral", "positive", "mixed")])
def test_more_classes_are_loaded_and_saved_with_their_names(tmp_path, labels):
    Cohere2ForCausalLM(tiny_config()).save_pretrained(tmp_path / "base")
    model, has_head = load_model(str(tmp_path / "base"), torch.float32, labels)
    assert has_head is False
    assert model.score.weight.shape == (len(labels), 32)
    assert model(torch.tensor([[5, 6]]), labels=torch.tensor([0])).loss.item() == pytest.approx(math.log(len(labels)))
    model.score.weight.data.normal_()
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["id2label"] == {str(number): label for number, label in enumerate(labels)}
    assert saved["label2id"] == {label: number for number, label in enumerate(labels)}
    again, has_head = load_model(str(tmp_path / "saved"), torch.float32, labels)
    assert has_head is True
    assert torch.equal(again.score.weight, model.score.weight)


def test_the_small_base_has_a_new_head_and_the_names_of_the_classes(tmp_path):
    tokenizer = train_tokenizer(["hello world"], 400)
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        save_small_base(tmp_path / name, tokenizer, THREE, seed)
    one, same, other = (load_model(str(tmp_path / name), torch.float32, THREE)[0].state_dict()
                        for name in ("one", "same", "other"))
    assert one["score.weight"].shape == (3, 128)
    assert not one["score.weight"].any()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "one" / "config.json").read_text())["id2label"] == {"0": "a", "1": "b", "2": "tie"}
    assert load_tokenizer(str(tmp_path / "one")).get_vocab() == tokenizer.get_vocab()
    small, packaged = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "one", PACKAGED))
    assert {name for name in small.keys() & packaged.keys() if small[name] != packaged[name]} <= {
        "architectures", "vocab_size", "dtype", "transformers_version", "initializer_range", "logit_scale"}


def refusal(name, labels=TWO) -> str:
    """What `load_model` says, on one line."""
    with pytest.raises(UserError) as error:
        load_model(str(name), torch.float32, labels)
    message = str(error.value)
    assert message.startswith(f"--model {name}")
    assert "\n" not in message
    return message


def test_another_model_type_is_refused(tmp_path):
    LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4).save_pretrained(tmp_path)
    assert refusal(tmp_path) == f"--model {tmp_path} is of type llama; a cohere2 model is needed"


def test_an_adapter_or_a_run_is_refused_with_what_can_be_trained_on(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    (tmp_path / "run/export").mkdir(parents=True)
    for name in ("adapter", "run"):
        assert refusal(tmp_path / name).startswith(
            f"--model {tmp_path / name} is an adapter, or a run; a whole model is needed: RUN/export after --tune full")


def test_a_head_of_other_classes_is_refused(tmp_path):
    tiny_model(id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}).save_pretrained(tmp_path / "two")
    for labels in (THREE, ("b", "a"), ("no", "yes")):
        assert refusal(tmp_path / "two", labels) == (
            f"--model {tmp_path / 'two'} has a head for the classes a, b; one for {', '.join(labels)} is needed")
    tiny_model(num_labels=3).save_pretrained(tmp_path / "three")
    assert refusal(tmp_path / "three") == (
        f"--model {tmp_path / 'three'} has a head for the classes LABEL_0, LABEL_1, LABEL_2; one for a, b is needed")


def test_a_new_head_is_loaded_without_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    Cohere2ForCausalLM(tiny_config()).save_pretrained(tmp_path)
    before = logging.getLogger("transformers").level
    assert load_model(str(tmp_path), torch.float32, TWO)[1] is False
    assert [record for record in caplog.records if "MISSING" in record.getMessage()] == []
    assert logging.getLogger("transformers").level == before


def test_a_head_whose_classes_have_no_names_is_kept(tmp_path):
    tiny_model(num_labels=3).save_pretrained(tmp_path)
    model, has_head = load_model(str(tmp_path), torch.float32, THREE)
    assert has_head and list(model.config.id2label.values()) == list(THREE)


def test_missing_folder_is_refused(tmp_path):
    assert "cannot be loaded" in refusal(tmp_path / "missing")


def test_empty_folder_is_refused(tmp_path):
    assert "cannot be loaded" in refusal(tmp_path)


def test_broken_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in refusal(tmp_path)


def test_folder_without_weights_is_refused(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert "the weights cannot be loaded" in refusal(tmp_path)


def test_missing_backbone_weights_are_refused(tmp_path):
    Cohere2ForCausalLM(tiny_config(num_hidden_layers=1, layer_types=["full_attention"])).save_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)  # two layers
    assert "weights are missing, such as model.layers.1.input_layernorm.weight" in refusal(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path):
    Cohere2ForCausalLM(tiny_config()).save_pretrained(tmp_path)
    tiny_config(intermediate_size=64).save_pretrained(tmp_path)
    assert "the weights cannot be loaded" in refusal(tmp_path)


def test_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        load_tokenizer(str(tmp_path))
    assert str(error.value).startswith(f"--model {tmp_path}: no tokenizer can be loaded")
    assert "\n" not in str(error.value)


# What is trained

ONE_LAYER = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
               "mlp.up_proj", "mlp.down_proj")
ADAPTERS = {f"base_model.model.model.layers.0.{projection}.lora_{side}.default.weight"
            for projection in PROJECTIONS for side in "AB"}
HEAD = {"base_model.model.score.modules_to_save.default.weight"}
EMBEDDINGS = {"base_model.model.model.embed_tokens.modules_to_save.default.weight"}


def tiny_lora(train_embeddings: bool):
    return add_lora(tiny_model(**ONE_LAYER), rank=4, alpha=8.0, dropout=0.0, train_embeddings=train_embeddings)


@pytest.mark.parametrize(("train_embeddings", "wanted"), [
    (False, ADAPTERS | HEAD),
    (True, ADAPTERS | HEAD | EMBEDDINGS),
])
def test_lora_marks_adapters_head_and_embeddings_where_asked(train_embeddings, wanted):
    model = tiny_lora(train_embeddings)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == wanted
    assert model.peft_config["default"].task_type == "SEQ_CLS"
    check_trainable(model, train_embeddings)


@pytest.mark.parametrize("train_embeddings", [False, True])
def test_training_changes_what_is_marked_and_nothing_else(train_embeddings):
    model = tiny_lora(train_embeddings)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.0), lr=0.01)
    for _ in range(2):  # in the first step the A matrices have no gradient: the B matrices are zero
        model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([1])).loss.backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == ADAPTERS | HEAD | (EMBEDDINGS if train_embeddings else set())


def test_a_new_adapter_changes_no_logit():
    model = tiny_model(**ONE_LAYER)
    before = logits_of(model, [[5, 6, 7]])
    assert torch.equal(logits_of(add_lora(model, 4, 8.0, 0.0, True), [[5, 6, 7]]), before)


@pytest.mark.parametrize("train_embeddings", [False, True])
def test_saved_adapter_brings_its_head_and_embeddings(tmp_path, train_embeddings):
    model = tiny_lora(train_embeddings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path, save_embedding_layers=False)  # as an export is saved
    fresh = PeftModel.from_pretrained(tiny_model(**ONE_LAYER), str(tmp_path))
    assert torch.equal(logits_of(fresh, [[5, 6, 7]]), logits_of(model, [[5, 6, 7]]))


def test_check_fails_where_something_else_is_trained():
    model = tiny_lora(train_embeddings=False)
    model.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(AssertionError, match=r"model\.norm\.weight"):
        check_trainable(model, train_embeddings=False)


def test_check_fails_where_embeddings_are_trained_unasked():
    with pytest.raises(AssertionError, match="embed_tokens"):
        check_trainable(tiny_lora(train_embeddings=True), train_embeddings=False)


def test_check_fails_where_an_adapter_is_frozen():
    model = tiny_lora(train_embeddings=False)
    model.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight.requires_grad_(False)
    with pytest.raises(AssertionError, match=r"up_proj\.lora_B"):
        check_trainable(model, train_embeddings=False)


@pytest.mark.parametrize("make", [
    lambda: tiny_lora(train_embeddings=False),
    lambda: tiny_lora(train_embeddings=True),
    lambda: tiny_model(**ONE_LAYER),
], ids=["lora", "lora and embeddings", "full"])
def test_each_trained_parameter_is_in_one_group(make):
    model = make()
    grouped = [id(parameter) for group in parameter_groups(model, 0.01) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def test_weight_decay_spares_norms_embeddings_and_head():
    model = tiny_model(**ONE_LAYER)
    decayed, spared = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in spared["params"]} == {
        "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight", "score.weight"}


def test_a_group_without_parameters_is_left_out():
    model = tiny_model(**ONE_LAYER)
    model.model.requires_grad_(False)
    groups = parameter_groups(model, 0.01)
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.0, 1)]
    assert groups[0]["params"][0] is model.score.weight


def test_only_classes_that_are_not_alike_have_a_bias_which_begins_at_their_shares():
    two, three = (Cohere2ForSequenceClassification(tiny_config(**head)) for head in (
        {"num_labels": 2}, {"num_labels": 3, "score_bias": True}))
    ids = torch.tensor([[1, 7, 9, 2]])
    set_prior(two, [0.9, 0.1])
    assert two.score.bias is None and two(ids).logits.tolist() == [[0.0, 0.0]]
    assert three(ids).logits.tolist() == [[0.0, 0.0, 0.0]]
    set_prior(three, [0.45, 0.45, 0.1])
    torch.testing.assert_close(three(ids).logits.softmax(-1), torch.tensor([[0.45, 0.45, 0.1]]))


def test_a_bias_is_new_for_a_causal_model_and_found_again_in_a_saved_classifier(tmp_path):
    Cohere2ForCausalLM(tiny_config(tie_word_embeddings=False)).save_pretrained(tmp_path / "causal")
    model, has_head = load_model(str(tmp_path / "causal"), torch.float32, THREE)
    assert not has_head and model.score.bias.tolist() == [0.0, 0.0, 0.0]
    set_prior(model, [0.45, 0.45, 0.1])
    model.save_pretrained(tmp_path / "saved")
    again, has_head = load_model(str(tmp_path / "saved"), torch.float32, THREE)
    assert has_head and torch.equal(again.score.bias, model.score.bias)
    lora = add_lora(again, 2, 4.0, 0.0, False)
    check_trainable(lora, False)
    assert [name for name, parameter in lora.named_parameters() if parameter.requires_grad and "bias" in name] == [
        "base_model.model.score.modules_to_save.default.bias"]
