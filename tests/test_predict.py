"""An exported model compares and classifies; its weights are random, small and the same each time."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import NAMES, THREE, TOKENIZER, TWO, export, tiny_model

from pm.collator import packed_tokens
from pm.data.example import FEATURES, Example, text_hash
from pm.data.targets import target_matrix, with_targets
from pm.encoding import ENCODED_FEATURES, GAP, row_lengths
from pm.errors import UserError
from pm.plan import plan_evaluation, plan_packed_evaluation
from pm.predict import PreferenceModel, find_export, score
from pm.task import CLASSIFICATION, PREFERENCE, Task

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By number of classes, and `texts`."""
    made = {2: (PREFERENCE, TWO), 3: (PREFERENCE, THREE), "texts": (CLASSIFICATION, NAMES)}
    return {name: PreferenceModel.from_pretrained(export(tmp_path_factory.mktemp("export"), *task), "cpu")
            for name, task in made.items()}


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Comparisons

PROMPTS = ["hello", "say 1", [{"role": "system", "content": "fox"}, {"role": "user", "content": "dog"}]]
GOOD, BAD = ["the fox", "1 0 1 " * 50, "hello"], ["dog", "9", "lazy " * 70]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_comparison_has_a_probability_of_each_class(models, classes):
    found = models[classes].compare(PROMPTS, GOOD, BAD)
    assert [list(row) for row in found] == [list(THREE[:classes])] * 3
    for row in found:
        assert sum(row.values()) == pytest.approx(1.0)
        assert all(0 < probability < 1 for probability in row.values())
        assert abs(row["a"] - row["b"]) > 1e-3


@pytest.mark.parametrize("classes", [2, 3])
def test_responses_that_change_places_change_their_probabilities(models, classes):
    for one, other in zip(models[classes].compare(PROMPTS, GOOD, BAD), models[classes].compare(PROMPTS, BAD, GOOD),
                          strict=True):
        assert other == pytest.approx(one | {"a": one["b"], "b": one["a"]}, abs=1e-6)


@pytest.mark.parametrize(("classes", "tie"), [(2, {"a": 0.5, "b": 0.5}), (3, {"a": 0.0, "b": 0.0, "tie": 1.0})])
def test_equal_responses_are_a_tie(models, classes, tie):
    found = models[classes].compare(["hello", "hello", "hello"], ["fox", "fox", ""], ["fox", "dog", ""])
    assert (found[0], found[2]) == (tie, tie)
    assert found[1] != tie
    assert models[classes].compare(["hello"], ["fox"], ["fox"]) == [tie]


def test_nothing_to_compare(models):
    assert models[2].compare([], [], []) == []


def test_a_prompt_of_text_is_one_user_turn(models):
    turns = [{"role": "user", "content": "hello"}]
    assert models[2].compare(["hello"], ["fox"], ["dog"]) == models[2].compare([turns], ["fox"], ["dog"])


def test_a_token_budget_changes_no_comparison(models):
    for one, other in zip(models[3].compare(PROMPTS, GOOD, BAD), models[3].compare(PROMPTS, GOOD, BAD, 1), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


# Texts

LINES = ["hello", "the quick brown fox " * 30, ("fox", "dog"), ("dog", "fox"), "", ["fox", "lazy " * 90]]


def test_a_text_has_a_probability_of_each_class(models):
    found = models["texts"].classify(LINES)
    assert [list(row) for row in found] == [list(NAMES)] * len(LINES)
    for row in found:
        assert sum(row.values()) == pytest.approx(1.0)
    assert found[2] != pytest.approx(found[3], abs=1e-3)


def test_each_text_has_its_own_probabilities_whatever_stands_beside_it(models):
    together = models["texts"].classify(LINES)
    for line, row in zip(LINES, together, strict=True):
        assert models["texts"].classify([line])[0] == pytest.approx(row, abs=1e-6)


def test_nothing_to_classify(models):
    assert models["texts"].classify([]) == []


def test_the_other_task_is_refused(models):
    assert refusal(models[2].classify, ["hello"]) == (
        "classify needs a model trained with --task classification; this one's is preference")
    assert refusal(models["texts"].compare, ["hello"], ["fox"], ["dog"]) == (
        "compare needs a model trained with --task preference; this one's is classification")


# Predictions


def encoded(model: PreferenceModel, *examples: Example) -> Dataset:
    rows = Dataset.from_list([example.to_row() for example in examples], features=FEATURES)
    encoded = Dataset.from_dict(model.encoder.encode(rows[:]), features=ENCODED_FEATURES)
    return with_targets(encoded, target_matrix(encoded, model.task.labels))


def turn(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


@torch.no_grad()
def logits_of(model: PreferenceModel, *texts) -> list[float]:
    """Of one sequence: user turns, then responses after None."""
    ids = [TOKENIZER(text or "", add_special_tokens=False)["input_ids"] for text in texts]
    first = texts.index(None) if None in texts else len(texts)
    template = model.encoder.template
    prompt = [token for part in ids[:first] for token in template.turn("user", part)]
    return model.model(torch.tensor([template.sequence(prompt, *ids[first + 1 :])])).logits[0].tolist()


def test_a_prediction_of_a_comparison_holds_both_orders(models):
    model = models[3]
    rows = encoded(model, Example("1", "g", "en", "s", "k", [turn("hello")], "fox", "dog", {"tie": 1.0}))
    prediction, = model.score(rows, 8192)
    first, second = logits_of(model, "hello", None, "fox", "dog"), logits_of(model, "hello", None, "dog", "fox")
    ba = [second[1], second[0], second[2]]
    assert prediction.pop("logits_ab") == pytest.approx(first, abs=1e-5)
    assert prediction.pop("logits_ba") == pytest.approx(ba, abs=1e-5)
    wanted = torch.tensor([first, ba]).mean(0).softmax(0).tolist()
    assert prediction.pop("probability") == pytest.approx(dict(zip(THREE, wanted, strict=True)), abs=1e-6)
    assert prediction == {
        "id": "1", "content": text_hash("hello", "fox", "dog"), "content_a": text_hash("fox"),
        "content_b": text_hash("dog"), "prompt_key": rows[0]["prompt_key"], "group": "g", "language": "en",
        "source": "s", "kind": "k", "tokens": rows[0]["tokens"], "tokens_cut": 0, "characters_a": 3, "characters_b": 3,
        "markdown_a": 0, "markdown_b": 0, "target": {"a": 0.0, "b": 0.0, "tie": 1.0}, "temperature": 1.0}


def comparisons(model: PreferenceModel, count: int = 7) -> Dataset:
    """With prompts of one token to ones far longer than the window; responses that begin alike, and that do not."""
    return encoded(model, *(Example(str(number), "g", "en", "s", "k", [turn("fox dog " * (3 * number % 11))],
                                    "lazy " * number + "the", "lazy " * (number % 2) + "dog" * (number % 3 + 1),
                                    {"a": 1.0}) for number in range(count)))


def texts(model: PreferenceModel) -> Dataset:
    target = {"positive": 1.0}
    return encoded(model, *(Example(str(number), "g", "en", "s", "k", [turn("fox " * (5 * number % 13))] * (
        1 + number % 2), None, None, target) for number in range(7)))


@pytest.mark.parametrize("classes", [2, 3])
def test_both_orders_of_a_packed_row_are_as_two_sequences(models, classes):
    model = models[classes]
    rows = comparisons(model)
    assert model.packing
    for prediction, row in zip(model.score(rows, 8192), rows, strict=True):
        sequences = [model.encoder.template.sequence(row["prompt_ids"], *responses)
                     for responses in ((row["a_ids"], row["b_ids"]), (row["b_ids"], row["a_ids"]))]
        with torch.no_grad():
            ab, ba = (model.model(torch.tensor([sequence])).logits[0].tolist() for sequence in sequences)
        assert prediction["logits_ab"] == pytest.approx(ab, abs=1e-5)
        assert prediction["logits_ba"] == pytest.approx([ba[1], ba[0], *ba[2:]], abs=1e-5)


@pytest.mark.parametrize("token_budget", [1, 100, 8192])
@pytest.mark.parametrize("blank_prompts", [False, True])
@pytest.mark.parametrize("name", [2, 3, "texts"])
def test_packed_scores_are_those_of_padded_sequences(models, name, blank_prompts, token_budget):
    model = models[name]
    rows = texts(model) if name == "texts" else comparisons(model)
    packed = model.score(rows, token_budget, blank_prompts=blank_prompts)
    padded = model.score(rows, 8192, packing=False, blank_prompts=blank_prompts)
    assert packed != padded  # other kernels, other last bits
    for one, other in zip(packed, padded, strict=True):
        for value in ("logits_ab", "logits_ba", "logits"):
            assert one.pop(value, 0.0) == pytest.approx(other.pop(value, 0.0), abs=1e-5)
        assert one.pop("probability") == pytest.approx(other.pop("probability"), abs=1e-5)
        assert one == other


@pytest.mark.parametrize("name", [2, "texts"])
@pytest.mark.parametrize("packing", [False, True])
def test_a_micro_batch_gives_the_same_bits_whatever_the_others_hold(models, name, packing):
    """So do ranks, whose micro-batches are the same however many they are."""
    model = models[name]
    rows = texts(model) if name == "texts" else comparisons(model)
    lengths, prompt_lengths = row_lengths(rows)
    orders, token_budget = (1, 45) if name == "texts" else (2, 160)
    planned, = plan_packed_evaluation(*packed_tokens(lengths, prompt_lengths, orders), rows["prompt_key"][:],
                                      token_budget, 1) if packing else plan_evaluation(
                                          lengths, token_budget // orders, 1)
    together = model.score(rows, token_budget, packing=packing)
    assert 2 < len(planned) < len(rows)
    for numbers in planned:
        assert model.score(rows.select(numbers), token_budget, packing=packing) == [together[one] for one in numbers]


def test_answers_to_one_prompt_are_packed_together_and_scored_as_apart(models):
    """All pairs of four answers, every row given a prompt of another length in between."""
    model = models[2]
    answers = ["the fox", "a dog", "the lazy dog", "0"]
    pairs = [pair for one in range(4) for other in range(one) for pair in [(answers[one], answers[other])]]
    rows = encoded(model, *(Example(f"{number} {prompt}", "g", "en", "s", "k", [turn(prompt)], a, b, {"a": 1.0})
                            for number, (a, b) in enumerate(pairs) for prompt in ("fox dog " * 6, "say 0 1 " * 7)))
    for token_budget in (100, 200, 8192):
        packed, padded = model.score(rows, token_budget), model.score(rows, 8192, packing=False)
        assert [row["id"] for row in packed] == rows["id"][:]
        for one, other in zip(packed, padded, strict=True):
            assert one["logits_ab"] == pytest.approx(other["logits_ab"], abs=1e-5)
            assert one["logits_ba"] == pytest.approx(other["logits_ba"], abs=1e-5)


@pytest.mark.parametrize("token_budget", [150, 300])
def test_a_pack_stays_within_the_budget_where_answers_cut_the_prompt_short(models, token_budget):
    """At a --max_length of 64 a long prompt loses another part of its beginning beside each pair of answers."""
    model, sizes = models[2], []
    rows = encoded(model, *(Example(str(number), "g", "en", "s", "k", [turn("the quick brown fox " * 30)],
                                    "lazy " * number, "dog " * number, {"a": 1.0}) for number in range(1, 8)))
    assert len({len(ids) for ids in rows["prompt_ids"]}) > 3
    hook = model.model.register_forward_pre_hook(
        lambda module, inputs, named: sizes.append((len(named["pack"].leaves), len(named["pack"].input_ids))),
        with_kwargs=True)
    try:
        model.score(rows, token_budget)
    finally:
        hook.remove()
    assert sum(sequences for sequences, _ in sizes) == 14
    assert [tokens for sequences, tokens in sizes if sequences > 2 and tokens > token_budget] == []


def test_blank_prompts_are_empty_user_turns(models):
    model = models[2]
    prompt = [turn("fox " * 9), turn("dog")]
    rows = encoded(model, Example("1", "g", "en", "s", "k", prompt, "hello", "lazy", {"a": 1.0}))
    prediction, = model.score(rows, 8192, blank_prompts=True)
    assert prediction["logits_ab"] == pytest.approx(logits_of(model, "", None, "hello", "lazy"), abs=1e-5)


def test_a_prediction_of_texts_holds_its_logits(models):
    model = models["texts"]
    target = {"negative": 0.25, "positive": 0.75}
    rows = encoded(model, Example("1", "g", "en", "s", "", [turn("fox"), turn("dog")], None, None, target))
    prediction, = model.score(rows, 8192)
    logits = logits_of(model, "fox", "dog")
    assert prediction.pop("logits") == pytest.approx(logits, abs=1e-5)
    wanted = torch.tensor(logits).softmax(0).tolist()
    assert prediction.pop("probability") == pytest.approx(dict(zip(NAMES, wanted, strict=True)), abs=1e-6)
    assert prediction == {
        "id": "1", "content": text_hash("fox", "dog"), "content_a": text_hash("foxdog"),
        "prompt_key": rows[0]["prompt_key"], "group": "g", "language": "en", "source": "s", "kind": "",
        "tokens": rows[0]["tokens"], "tokens_cut": 0, "characters_a": 6, "markdown_a": 0,
        "target": {"negative": 0.25, "neutral": 0.0, "positive": 0.75}, "temperature": 1.0}


def test_predictions_are_in_the_order_of_the_rows(models):
    model = models[2]
    rows = encoded(model, *(Example(str(number), "g", "en", "s", "k", [turn("fox " * (7 * number % 5))], "a", "b",
                                    {"a": 1.0}) for number in range(9)))
    for token_budget in (1, 100, 8192):
        assert [row["id"] for row in model.score(rows, token_budget)] == [str(number) for number in range(9)]


def test_no_rows_have_no_predictions(models):
    rows = Dataset.from_dict({name: [] for name in ENCODED_FEATURES}, features=ENCODED_FEATURES)
    assert models[2].score(rows, 8192) == []


def test_scoring_leaves_a_model_in_training_as_it_was(models):
    model = models[2]
    rows = encoded(model, Example("1", "g", "en", "s", "k", [turn("fox")], "a", "b", {"a": 1.0}))
    for training in (True, False):
        model.model.train(training)
        score(model.model, rows, model.encoder.template, Task(PREFERENCE, TWO), 8192, CPU, packing=False)
        assert model.model.training is training


# Exports


@pytest.mark.parametrize(("saved", "wanted"), [(None, True), (True, True), (False, False)])
def test_an_export_is_read_as_it_was_trained_and_an_older_one_packed(tmp_path, saved, wanted):
    assert PreferenceModel.from_pretrained(export(tmp_path, PREFERENCE, TWO, {"packing": saved}), CPU).packing is wanted


def test_a_model_that_the_faster_forward_cannot_read_is_read_padded(tmp_path):
    folder = export(tmp_path, PREFERENCE, TWO, {"packing": True})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"hidden_act": "gelu"}))
    model = PreferenceModel.from_pretrained(folder, CPU)
    assert model.packing is False
    assert model.compare(["hello"], ["fox"], ["dog"])[0]["a"] != 0.5


def test_an_export_is_found_in_its_run(tmp_path):
    folder = tmp_path / "run" / "export"
    folder.mkdir(parents=True)
    (folder / "preference.json").write_text("{}")
    assert find_export(tmp_path / "run") == find_export(folder) == folder


def test_a_folder_without_an_export_is_named(tmp_path):
    assert refusal(find_export, tmp_path).startswith(f"--model {tmp_path} holds no export (preference.json is missing)")


@pytest.mark.parametrize(("changes", "words"), [
    ({"task": None}, "the export {} cannot be read: 'task'"),  # as it was written before there were tasks
    ({"labels": None}, "the export {} cannot be read: 'labels'"),
    ({"dtype": "int8"}, "the export {} cannot be read: 'int8'"),
    ({"labels": THREE}, "--model {} has a head for the classes a, b; one for a, b, tie is needed"),
    ({"template": {"start": 9}}, "{} was trained with another template than this code has"),
])
def test_an_export_that_does_not_fit_is_refused(tmp_path, changes, words):
    folder = export(tmp_path, PREFERENCE, TWO, changes)
    assert refusal(PreferenceModel.from_pretrained, folder) == words.format(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_settings_of_something_else_are_refused(tmp_path, content):
    (tmp_path / "preference.json").write_text(content)
    message = refusal(PreferenceModel.from_pretrained, tmp_path)
    assert message.startswith(f"the export {tmp_path} cannot be read: ")


def test_an_adapter_without_weights_is_refused(tmp_path):
    base = export(tmp_path / "base", PREFERENCE, TWO)
    folder = export(tmp_path / "export", PREFERENCE, TWO, {"tune": "lora", "base": str(base)})
    assert refusal(PreferenceModel.from_pretrained, folder) == f"{folder} holds no adapter_model.safetensors"
    shutil.rmtree(base)
    assert refusal(PreferenceModel.from_pretrained, folder).startswith(f"--model {base} cannot be loaded: ")


# All pairs of one prompt's responses

ANSWERS = ["the fox says hello", "dog", "the fox says no", "9 8 7"]


@pytest.mark.parametrize("classes", [2, 3])
def test_all_pairs_are_those_of_compare(models, classes):
    found, few = models[classes].compare_all(["hello to the dog " * 4, "hello"], [ANSWERS, ANSWERS[:2]])
    assert found.shape == (4, 4)
    assert few == pytest.approx(models[classes].compare_all(["hello"], [ANSWERS[:2]])[0], abs=1e-5)
    for i, one in enumerate(ANSWERS):
        for j, other in enumerate(ANSWERS):
            if i == j:
                assert found[i, j] == 0.5
                continue
            single, = models[classes].compare(["hello to the dog " * 4], [one], [other])
            assert found[i, j] == pytest.approx(single["a"] + single.get("tie", 0) / 2, abs=1e-5)
            assert found[i, j] + found[j, i] == pytest.approx(1)


def test_all_pairs_of_few_and_of_equal_responses(models):
    assert models[2].compare_all([], []) == []
    none, one = models[2].compare_all(["hello", "hello"], [[], ["fox"]])
    assert none.shape == (0, 0) and one.tolist() == [[0.5]]
    equal, = models[3].compare_all(["hello"], [["fox", "fox"]])
    assert equal.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_all_pairs_need_a_model_that_compares(models):
    assert "compare needs a model" in refusal(models["texts"].compare_all, ["hello"], [["fox", "dog"]])


# Rankings, and what a caller may get wrong


def test_a_ranking_follows_the_comparisons(models):
    better_NN, = models[2].compare_all(["hello"], [ANSWERS])
    ranking = models[2].rank("hello", ANSWERS)
    assert ranking.scores == pytest.approx((better_NN.sum(1) - 0.5) / 3, abs=1e-5)
    assert [ranking.scores[place] for place in ranking.order] == sorted(ranking.scores, reverse=True)
    assert ranking.comparisons == 6
    assert sorted(models[2].rank("hello", ANSWERS, "bradley_terry").order) == [0, 1, 2, 3]


def test_the_best_of_two_is_the_likelier_one(models):
    found, = models[2].compare(["hello"], ANSWERS[:1], ANSWERS[1:2])
    assert models[2].best_of_n("hello", ANSWERS[:2]) == (found["b"] > found["a"])
    assert models[2].best_of_n("hello", ["fox"]) == 0


def test_predictions_are_what_probabilities_are_from(models):
    row, equal = models[2].predictions(["hello", "hello"], ["fox", "dog"], ["dog", "dog"], languages=["English", "de"])
    assert equal is None
    assert row["language"] == "en"
    mean = (np.array(row["logits_ab"]) + np.array(row["logits_ba"])) / 2 / row["temperature"]
    assert row["probability"]["a"] == pytest.approx(1 / (1 + np.exp(mean[1] - mean[0])))


def test_texts_are_shown_as_they_are_read(models):
    prompt = [{"role": "system", "content": "say no"}, {"role": "user", "content": "the <EOS_TOKEN> fox"}]
    assert models[2].as_read(prompt, "dog", "fox") == ("say no\n\nthe <EOS_TOKEN> fox", "dog", "fox")
    _, a, b = models[2].as_read("hello", "dog " * 100 + "fox", "fox")
    assert GAP in a and a.startswith("dog") and a.endswith("fox") and len(a) < 300 and b == "fox"


@pytest.mark.parametrize(("arguments", "words"), [
    (("hello", ["fox"], ["dog"]), "prompts must be a list, not str; for one item give a list of one"),
    ((["hello"], ["fox", "dog"], ["dog"]), "1 prompts, 2 responses_a, 1 responses_b"),
    ((["hello"], [None], ["dog"]), "responses_a[0] must be text, not NoneType"),
    ((["hello"], ["fox"], ["\ud800"]), "responses_b[0] is not UTF-8, or holds a lone surrogate"),
    ((["hello", 3], ["fox"] * 2, ["dog"] * 2), "prompts[1] must be text or a list of turns, not int"),
    (([[{"role": "assistant", "content": "fox"}]], ["fox"], ["dog"]), "prompts[0] must end with a user turn"),
    (([[{"role": "user"}]], ["fox"], ["dog"]), "prompts[0]: each turn must have role and content"),
    ((["hello"], ["fox"], ["dog"], None, ["en", "de"]), "1 prompts, 1 responses_a, 1 responses_b, 2 languages"),
])
def test_what_cannot_be_compared_is_named(models, arguments, words):
    assert words in refusal(models[2].compare, *arguments)


def test_many_threads_get_what_one_gets(models):
    prompts = [f"hello {number} " * 3 for number in range(12)]
    alone = [models[2].compare([prompt], ["fox"], ["dog"])[0]["a"] for prompt in prompts]
    fresh = PreferenceModel(tiny_model(TWO, False), models[2].task, models[2].encoder, {}, CPU)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda prompt: fresh.compare([prompt], ["fox"], ["dog"])[0]["a"], prompts))
    assert found == pytest.approx(alone, abs=1e-6)
