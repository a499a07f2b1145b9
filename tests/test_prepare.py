"""What is read, split and tokenised is kept, found again, and described."""

import json

import numpy as np
import pytest
from datasets import Dataset

from pm.data.prepare import describe, fingerprint, read, split_rows
from pm.data.sources import Reading
from pm.errors import UserError

ENCODED = Dataset.from_dict({"content": ["1", "2", "3"], "group": ["g", "g", "h"], "language": ["de", "en", "en"],
                             "tokens": [5, 6, 7], "tokens_cut": [0, 3, 0], "a_ids": [[1], [2], [3]]})


def written(path, rows: int, first: int = 0, word: str = "Yes"):
    path.write_text("".join(json.dumps({"prompt": f"Say {number}", "chosen": word, "rejected": "No", "id": number})
                            + "\n" for number in range(first, first + rows)), "utf-8")
    return str(path)


def test_rows_are_read_once_and_again_where_the_file_changes(tmp_path):
    cache = tmp_path / "cache"
    source = written(tmp_path / "rows.jsonl", 3)
    first, second = (read([source], Reading(), str(cache)) for _ in range(2))
    assert first.key == second.key and first.rows[:] == second.rows[:]
    assert len(list(cache.iterdir())) == 1
    written(tmp_path / "rows.jsonl", 4, word="Sure")
    third = read([source], Reading(), str(cache))
    assert third.key != first.key and len(third.rows) == 4
    assert read([source], Reading(margin_scale=2.0), str(cache)).key != third.key


def test_a_weight_is_kept_beside_the_rows_and_reads_nothing_anew(tmp_path):
    sources = [written(tmp_path / "one.jsonl", 2), written(tmp_path / "other.jsonl", 1)]
    plain = read(sources, Reading(), str(tmp_path / "cache"))
    weighted = read([f"{sources[0]}:0.5", sources[1]], Reading(), str(tmp_path / "cache"), weighted=True)
    assert (plain.key, plain.weights, weighted.weights) == (weighted.key, [1.0, 1.0], [0.5, 1.0])
    assert weighted.rows["source_index"][:] == [0, 0, 1]
    with pytest.raises(UserError, match="only the sources of the training split may have a weight"):
        read([f"{sources[0]}:2"], Reading(), str(tmp_path / "cache"))


def test_a_split_is_found_again(tmp_path):
    rows = read([written(tmp_path / "rows.jsonl", 50)], Reading(), str(tmp_path / "cache"))
    cache = str(tmp_path / "cache")
    first, second = (split_rows(rows, None, 0.2, 0.2, cache) for _ in range(2))
    assert list(first) == ["train", "calibration", "test"]
    assert {name: part["id"][:] for name, part in first.items()} == {name: part["id"][:]
                                                                     for name, part in second.items()}
    assert sorted(identifier for part in first.values() for identifier in part["id"][:]) == sorted(rows.rows["id"][:])
    other = split_rows(rows, None, 0.5, 0.2, cache)
    assert len(other["test"]) > len(first["test"])
    assert [len(part) for part in split_rows(rows, None, 0.0, 0.0, cache).values()] == [50, 0, 0]


def test_ids_of_two_files_may_be_equal(tmp_path):
    sources = [tmp_path / name / "train.jsonl" for name in ("es", "fr")]
    for path in sources:
        path.parent.mkdir()
        path.write_text("".join(json.dumps({"id": number, "prompt": f"{path} {number}", "chosen": "x", "rejected": "y"})
                                + "\n" for number in range(50)))
    rows = read(list(map(str, sources)), Reading(), str(tmp_path / "cache"))
    assert len(set(rows.rows["id"][:])) == 50
    found = split_rows(rows, None, 0.2, 0.2, str(tmp_path / "cache"))
    assert sum(map(len, found.values())) == 100 and len(found["test"]) > 0
    assert not {*found["train"]["prompt_key"][:]} & {*found["test"]["prompt_key"][:]}


def test_the_calibration_split_is_taken_from_what_is_not_tested(tmp_path):
    rows = read([written(tmp_path / "rows.jsonl", 50)], Reading(), str(tmp_path / "cache"))
    with_it, without = (split_rows(rows, None, 0.2, fraction, str(tmp_path / "cache")) for fraction in (0.3, 0.0))
    assert with_it["test"]["id"][:] == without["test"]["id"][:]
    assert 0 < len(with_it["calibration"]) < len(with_it["train"])
    assert sorted(with_it["train"]["id"][:] + with_it["calibration"]["id"][:]) == sorted(without["train"]["id"][:])


def test_beside_a_given_test_split_the_calibration_split_is_taken_from_the_training_data(tmp_path):
    rows = read([written(tmp_path / "rows.jsonl", 50)], Reading(), str(tmp_path / "cache"))
    test = read([written(tmp_path / "test.jsonl", 2, 1000)], Reading(), str(tmp_path / "cache"))
    found = split_rows(rows, test, 0.0, 0.3, str(tmp_path / "cache"))
    assert found["test"]["id"][:] == test.rows["id"][:]
    assert len(found["calibration"]) > 0
    assert len(found["calibration"]) + len(found["train"]) == 50


def test_a_given_test_split_may_share_nothing_with_the_training_split(tmp_path):
    rows = [read([written(tmp_path / f"{name}.jsonl", 3)], Reading(), str(tmp_path / "cache")) for name in "ab"]
    with pytest.raises(UserError, match="^the test rows overlap with the training split: 3 of 3 test rows: "
                                        r"0 \(test\) and 0 \(train\) share their prompt"):
        split_rows(*rows, 0.0, 0.1, str(tmp_path / "cache"))


def test_the_fingerprint_changes_with_texts_languages_and_targets():
    targets = np.array([[1.0, 0.0]] * 3)
    found = {fingerprint(ENCODED, targets), fingerprint(ENCODED, targets[:, ::-1].copy()),
             fingerprint(ENCODED.select([0, 2, 1]), targets),
             fingerprint(ENCODED.map(lambda row: {"language": "fr"}), targets)}
    assert len(found) == 4
    assert fingerprint(ENCODED, targets + 1e-12) in found


def test_a_split_is_described_by_language():
    rows = Dataset.from_dict({"response_a": ["1", "2", "3", "4"]})
    assert describe("train", rows, ENCODED) == (
        "train: 3 rows, 2 groups, 1 left out (equal responses); en 2 (50% cut), de 1")
    assert describe("train", rows.select(range(3)), ENCODED, np.ones(3)) == (
        "train: 3 rows, 2 groups; en 2 (50% cut), de 1")
    assert describe("train", rows.select(range(3)), ENCODED, np.array([3.0, 0.5, 0.5])) == (
        "train: 3 rows, 2 groups; en 2 (50% cut, 1 in an epoch), de 1 (3 in an epoch)")
    assert describe("test", rows, ENCODED.select([])) == "test: no rows"


def test_pieces_of_a_text_are_rows_and_hide_none_that_is_left_out():
    rows = Dataset.from_dict({"response_a": [None, "2", "3"]})  # two pieces, one comparison that is left out
    pieces = Dataset.from_dict({"group": ["t", "t", "g"], "language": ["de"] * 3, "tokens_cut": [0] * 3,
                                "a_ids": [None, None, [2]]})
    assert describe("train", rows, pieces) == "train: 3 rows, 2 groups, 1 left out (equal responses); de 3"
    assert describe("train", rows.select([0, 1]), pieces) == "train: 3 rows, 2 groups; de 3"
    assert describe("train", rows.select([0]), pieces.select([0, 1])) == "train: 2 rows, 1 groups; de 2"
