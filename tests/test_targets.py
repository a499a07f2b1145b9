"""Labels to one probability per class, and a teacher's probabilities mixed in."""

import json

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from pm.data.example import FEATURES, Example
from pm.data.targets import classes, distil, target_matrix, with_targets
from pm.encoding import ENCODED_FEATURES
from pm.errors import UserError

TWO, THREE = ("a", "b"), ("a", "b", "tie")

# A winner, its opposite, a tie, a probability of a, and votes 1 : 2 : 1.
MIXED = ({"a": 1.0}, {"b": 1.0}, {"tie": 1.0}, {"a": 0.7, "b": 0.3}, {"a": 0.25, "b": 0.5, "tie": 0.25})


def dataset(*targets: dict[str, float], source: str = "s", language: str = "en") -> Dataset:
    """Row n has the id n, and is number n of its columns."""
    prompt = [{"role": "user", "content": "p"}]
    rows = [Example(str(number), f"g{number}", language, source, "k", prompt, "x", "y", target).to_row(number)
            for number, target in enumerate(targets)]
    return Dataset.from_list(rows, features=FEATURES)


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Classes


@pytest.mark.parametrize(("targets", "wanted"), [
    ([{"b": 1.0}, {"tie": 0.5, "a": 0.5}], ("a", "b", "tie")),
    ([{"10": 1.0}, {"9": 1.0}, {"0": 1.0}], ("0", "9", "10")),
    ([{"10": 1.0}, {"9": 1.0}, {"-1": 1.0}], ("-1", "10", "9")),
    ([{"positif": 1.0}, {"négatif": 1.0}, {"Neutre": 1.0}], ("Neutre", "négatif", "positif")),
])
def test_classes_are_in_the_order_of_numbers_else_of_the_alphabet(targets, wanted):
    assert classes(dataset(*targets)) == wanted


def test_classes_are_those_of_the_rows_that_are_left():
    assert classes(dataset({"c": 1.0}, {"b": 1.0}, {"a": 1.0}).select([2, 0])) == ("a", "c")


# The matrix


def test_a_tie_goes_half_to_each_where_it_is_no_class():
    assert target_matrix(dataset(*MIXED), TWO).tolist() == [[1, 0], [0, 1], [0.5, 0.5], [0.7, 0.3], [0.375, 0.625]]


def test_a_tie_stays_where_it_is_a_class():
    assert target_matrix(dataset(*MIXED), THREE).tolist() == [
        [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.7, 0.3, 0], [0.25, 0.5, 0.25]]


def test_columns_are_in_the_order_of_the_labels():
    rows = dataset({"no": 1.0}, {"yes": 0.75, "no": 0.25})
    assert target_matrix(rows, ("yes", "no", "maybe")).tolist() == [[0, 1, 0], [0.75, 0.25, 0]]
    assert target_matrix(rows, ("maybe", "no", "yes")).tolist() == [[0, 1, 0], [0, 0.25, 0.75]]


def test_rows_without_a_label_are_zero():
    assert target_matrix(dataset({}, {"b": 1.0}, {}), TWO).tolist() == [[0, 0], [0, 1], [0, 0]]
    assert target_matrix(dataset({}, {}), TWO).tolist() == [[0, 0], [0, 0]]


def test_an_unknown_class_is_an_error():
    assert refusal(target_matrix, dataset({"a": 1.0}, {"c": 1.0}), TWO) == (
        "class 'c' of the data is none of the model's: a, b; name all with --labels")


def test_a_tie_is_split_between_a_and_b_only():
    assert refusal(target_matrix, dataset({"tie": 1.0}), ("no", "yes")) == (
        "class 'tie' of the data is none of the model's: no, yes; name all with --labels")


# As a column


def replaced(rows: Dataset, labels) -> Dataset:
    return with_targets(rows, target_matrix(rows, labels))


def test_targets_take_the_place_of_labels_and_all_else_stays():
    rows = dataset(*MIXED)
    found = replaced(rows, TWO)
    assert found["target"][:] == [[1, 0], [0, 1], [0.5, 0.5], [0.7, 0.3], [0.375, 0.625]]
    assert set(found.column_names) == set(rows.column_names)
    assert found.remove_columns("target").to_list() == rows.remove_columns("target").to_list()


def test_rows_that_were_selected_keep_their_order():
    found = replaced(dataset(*MIXED).select([4, 0, 2]), THREE)
    assert found["target"][:] == [[0.25, 0.5, 0.25], [1, 0, 0], [0, 0, 1]]
    assert found["id"][:] == ["4", "0", "2"]
    assert found["source_index"][:] == [4, 0, 2]


def test_rows_that_were_sliced_keep_their_order():
    found = replaced(dataset(*MIXED).select(range(2, 4)), TWO)
    assert (found["id"][:], found["target"][:]) == (["2", "3"], [[0.5, 0.5], [0.7, 0.3]])


def test_rows_of_several_chunks_are_one_matrix():
    rows = concatenate_datasets([dataset({"a": 1.0}), dataset({"b": 1.0}, {"tie": 1.0})])
    assert classes(rows) == ("a", "b", "tie")
    assert replaced(rows, TWO)["target"][:] == [[1, 0], [0, 1], [0.5, 0.5]]


def test_targets_can_be_given():
    found = with_targets(dataset({"a": 1.0}, {"b": 1.0}), np.array([[0.9, 0.1], [0.2, 0.8]]))
    assert found["target"][:] == [[0.9, 0.1], [0.2, 0.8]]


@pytest.mark.parametrize("features", [FEATURES, ENCODED_FEATURES])
def test_no_rows(features):
    rows = replaced(Dataset.from_dict({name: [] for name in features}, features=features), TWO)
    assert (len(rows), set(rows.column_names)) == (0, set(features))
    assert len(replaced(dataset(*MIXED).select([]), TWO)) == 0


# A teacher


def predictions(folder, *rows: dict):
    path = folder / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def taught(content: str, **probability: float) -> dict:
    return {"content": content, "probability": probability}


def learned(rows: Dataset, labels, path, temperature: float, weight: float):
    """The id stands for the hash of a row's texts."""
    return distil(rows["id"][:], target_matrix(rows, labels), labels, path, temperature, weight)


def test_a_teacher_is_mixed_in_by_its_weight(tmp_path):
    path = predictions(tmp_path, taught("0", a=0.6, b=0.4), taught("1", a=0.6, b=0.4), taught("2", a=0.9, b=0.1))
    rows = dataset({"a": 1.0}, {"b": 1.0}, {"tie": 1.0})
    for weight, wanted in ((0.25, [[0.9, 0.1], [0.15, 0.85], [0.6, 0.4]]), (1.0, [[0.6, 0.4], [0.6, 0.4], [0.9, 0.1]])):
        targets_NC, count = learned(rows, TWO, path, 1.0, weight)
        np.testing.assert_allclose(targets_NC, wanted)
        assert count == 3


@pytest.mark.parametrize(("temperature", "wanted"), [
    (2.0, [3 / 4, 1 / 4]),  # square roots: 3 to 1
    (0.5, [81 / 82, 1 / 82]),  # squares: 81 to 1
])
def test_a_temperature_flattens_or_sharpens_the_teacher(tmp_path, temperature, wanted):
    path = predictions(tmp_path, taught("0", a=0.9, b=0.1))
    targets_NC, _ = learned(dataset({"a": 1.0}), TWO, path, temperature, 1.0)
    np.testing.assert_allclose(targets_NC, [wanted])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
def test_it_is_the_softmax_of_the_teachers_logits_over_the_temperature(tmp_path, temperature):
    logits_NC = np.array([[1.5, -0.5, 0.25], [-3.0, 0.0, 3.0], [60.0, 0.0, -60.0]])

    def softmax(logits_NC):
        odds_NC = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
        return odds_NC / odds_NC.sum(1, keepdims=True)

    path = predictions(tmp_path, *(taught(str(number), **dict(zip(THREE, row, strict=True)))
                                   for number, row in enumerate(softmax(logits_NC).tolist())))
    targets_NC, _ = learned(dataset({"a": 1.0}, {"b": 1.0}, {"tie": 1.0}), THREE, path, temperature, 1.0)
    np.testing.assert_allclose(targets_NC, softmax(logits_NC / temperature), rtol=1e-12)


def test_a_probability_of_zero_stays_near_zero(tmp_path):
    targets_NC, _ = learned(dataset({"a": 1.0}), TWO, predictions(tmp_path, taught("0", a=1.0, b=0.0)), 1.0, 0.5)
    np.testing.assert_allclose(targets_NC, [[1.0, 0.0]], atol=1e-12)


def test_rows_without_a_prediction_keep_their_own_label(tmp_path):
    path = predictions(tmp_path, taught("1", a=0.6, b=0.4), taught("7", a=0.6, b=0.4))
    targets_NC, count = learned(dataset({"a": 1.0}, {"b": 1.0}, {"tie": 1.0}), TWO, path, 1.0, 0.5)
    np.testing.assert_allclose(targets_NC, [[1.0, 0.0], [0.3, 0.7], [0.5, 0.5]])
    assert count == 1


def test_rows_are_joined_by_their_texts(tmp_path):
    path = predictions(tmp_path, taught("other", a=0.1, b=0.9), taught("1", a=0.3, b=0.7), taught("1", a=0.3, b=0.7))
    rows = dataset({"a": 1.0}, {"a": 1.0})
    targets_NC, count = learned(rows, TWO, path, 1.0, 1.0)
    np.testing.assert_allclose(targets_NC, [[1.0, 0.0], [0.3, 0.7]])
    assert count == 1
    targets_NC, _ = learned(rows.select([1, 0, 1]), TWO, path, 1.0, 1.0)
    np.testing.assert_allclose(targets_NC, [[0.3, 0.7], [1.0, 0.0], [0.3, 0.7]])


def test_a_teachers_classes_may_be_in_another_order(tmp_path):
    path = predictions(tmp_path, taught("0", tie=0.1, b=0.2, a=0.7))
    targets_NC, _ = learned(dataset({"a": 1.0}), THREE, path, 1.0, 1.0)
    np.testing.assert_allclose(targets_NC, [[0.7, 0.2, 0.1]])


@pytest.mark.parametrize("probability", [{"a": 0.6, "b": 0.3, "tie": 0.1}, {"a": 1.0}, {"no": 0.5, "yes": 0.5}])
def test_a_teacher_of_other_classes_is_refused(tmp_path, probability):
    path = predictions(tmp_path, taught("0", a=0.5, b=0.5), taught("1", **probability))
    assert refusal(learned, dataset({"a": 1.0}), TWO, path, 1.0, 0.5) == (
        f"--teacher {path}:2 has the classes {', '.join(probability)}; those of this run are a, b")


def test_a_teacher_of_other_rows_is_refused(tmp_path):
    path = predictions(tmp_path, taught("5", a=0.5, b=0.5), taught("6", a=0.5, b=0.5))
    assert refusal(learned, dataset({"a": 1.0}), TWO, path, 1.0, 0.5) == (
        f"--teacher {path}: none of its 2 rows is in the training split")


@pytest.mark.parametrize("content", [
    b"{", b"\xff\xfe", b"[]\n", b"3\n", b'{"content": "0"}\n',
    b'{"probability": {"a": 1, "b": 0}}\n',
    b'{"content": "0", "probability": {"a": "much", "b": 0}}\n',
    b'{"content": ["0"], "probability": {"a": 1, "b": 0}}\n',
    b'{"content": "0", "probability": [0.5, 0.5]}\n',
])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(content)
    message = refusal(learned, dataset({"a": 1.0}), TWO, path, 1.0, 0.5)
    assert message.startswith(f"--teacher {path} holds no predictions of eval.py: ")


def test_a_missing_file_is_refused(tmp_path):
    message = refusal(learned, dataset({"a": 1.0}), TWO, tmp_path / "none", 1.0, 0.5)
    assert message == f"--teacher {tmp_path / 'none'} cannot be read: No such file or directory"


def test_an_empty_file_is_refused(tmp_path):
    path = predictions(tmp_path)
    assert refusal(learned, dataset({"a": 1.0}), TWO, path, 1.0, 0.5) == (
        f"--teacher {path}: none of its 0 rows is in the training split")


def test_probabilities_that_are_not_finite_are_refused(tmp_path):
    path = predictions(tmp_path, taught("0", a=float("nan"), b=float("nan")))
    assert refusal(learned, dataset({"a": 1.0}), TWO, path, 1.0, 0.5) == (
        f"--teacher {path} holds probabilities that are not finite")
