"""Rows through every reader and every way to name a source; and lines, files and limits that are refused."""

import csv
import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pm.data.example import Example
from pm.data.sources import BadRow, Reading, ReadReport, identity, parse_json_row, read_source, split_weight
from pm.errors import UserError

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=300)

OURS = {"id": "1", "group": "g", "language": "en", "source": "s", "kind": "k", "prompt": "Why?", "response_a": "So.",
        "response_b": "No.", "winner": "a"}
WHY = [{"role": "user", "content": "Why?"}]
USER = {"role": "user", "content": "p"}
GOOD, BAD = {"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}
WINNERS = "a, b, tie, model_a, model_b, tie (bothbad), both_bad"

# What each reader reads below: two rows of texts, which every format can hold.
TWO = [OURS, OURS | {"id": "2", "response_b": 'He said "no", then\r\nleft. 不', "winner": "tie"}]
TWO_AS_EXAMPLES = [
    Example("1", "g", "en", "s", "k", WHY, "So.", "No.", {"a": 1.0}),
    Example("2", "g", "en", "s", "k", WHY, "So.", 'He said "no", then\r\nleft. 不', {"tie": 1.0}),
]


def read(spec, max_bad_fraction=0.0, **reading) -> tuple[list[Example], ReadReport]:
    report = ReadReport()
    return list(read_source(str(spec), Reading(max_bad_fraction=max_bad_fraction, **reading), report)), report


def jsonl(tmp_path, *rows) -> Path:
    """A file of these rows: objects are written as JSON, bytes as they are."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def parquet(path, *rows) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def reason(tmp_path, row) -> str:
    """Why `row` is rejected; it stands on line 4, after a good row, a bad one and an empty line."""
    path = jsonl(tmp_path, OURS, b"{}", b"", row, OURS | {"id": "5"})
    rows, report = read(path, 1.0)
    assert [row.id for row in rows] == ["1", "5"]
    assert report.read == 4
    assert len(report.rejected) == 2
    assert report.rejected[0].startswith(f"{path}:2: columns [] are none of the known forms")
    where, _, text = report.rejected[1].partition(": ")
    assert where == f"{path}:4"
    return text


def test_the_form_of_a_row_does_not_depend_on_the_row_before_it(tmp_path):
    rows, report = read(jsonl(tmp_path, OURS, {"question": "q", "chosen": "x", "rejected": "y"},
                              {"prompt": "p", "chosen": "x", "rejected": "y"}, OURS))
    assert [row.prompt[0]["content"] for row in rows] == ["Why?", "q", "p", "Why?"]
    assert report == ReadReport(read=4, rejected=[])


def test_the_file_names_the_source_of_rows_that_do_not(tmp_path):
    row, = read(jsonl(tmp_path, OURS | {"source": None}))[0]
    assert row.source == "rows.jsonl"


def test_a_form_that_is_asked_for_is_taken(tmp_path):
    path = jsonl(tmp_path, OURS | {"chosen": "x", "rejected": "y"}, OURS)
    rows, report = read(path, 0.5, format="chosen")
    assert [{row.response_a, row.response_b} for row in rows] == [{"x", "y"}]
    assert report.rejected == [
        f"{path}:2: columns ['group', 'id', 'kind', 'language', 'prompt', 'response_a', 'response_b', 'source', "
        "'winner'] are none of the known forms: chosen, rejected"]
    assert [row.response_a for row in read(path, 0.5, format="pair")[0]] == ["So.", "So."]


def test_a_scale_for_margins(tmp_path):
    row, = read(jsonl(tmp_path, OURS | {"margin": 2.0}), margin_scale=0.5)[0]
    assert row.target == pytest.approx({"a": 0.7310586, "b": 0.2689414})  # the sigmoid of 1


def test_texts_to_classify(tmp_path):
    path = jsonl(tmp_path, {"id": "1", "text": "t", "text_pair": "u", "label": 3}, OURS)
    rows, report = read(path, 0.5, task="classification")
    assert [(row.prompt, row.response_a, row.response_b, row.target) for row in rows] == [
        ([{"role": "user", "content": "t"}, {"role": "user", "content": "u"}], None, None, {"3": 1.0})]
    assert report.rejected[0].startswith(f"{path}:2: columns [")
    assert report.rejected[0].endswith("none of the known forms: text; with --task preference they are known")


def test_languages_are_detected_where_none_is_named(tmp_path):
    pytest.importorskip("py3langid", reason="py3langid is not installed")
    texts = {"prompt": "1", "response_a": "Das Wetter ist heute sehr schön.", "response_b": "Wir gehen gern spazieren.",
             "winner": "a"}
    path = jsonl(tmp_path, texts, texts | {"language": "fr"})
    assert [row.language for row in read(path, detect_languages=True)[0]] == ["de", "fr"]
    assert [row.language for row in read(path)[0]] == ["und", "fr"]


# A source and its weight


@pytest.mark.parametrize(("spec", "wanted"), [
    ("sample", ("sample", 1.0)),
    ("x.jsonl", ("x.jsonl", 1.0)),
    ("x.jsonl:0.5", ("x.jsonl", 0.5)),
    ("x.jsonl.gz:2", ("x.jsonl.gz", 2.0)),
    ("org/name@config:2", ("org/name@config", 2.0)),
    ("org/name@config#es_*,ar_*:0.25", ("org/name@config#es_*,ar_*", 0.25)),
    ("org/name#train", ("org/name#train", 1.0)),
    ("a:1:2", ("a:1", 2.0)),
    ("x.jsonl:", ("x.jsonl:", 1.0)),
    ("x.jsonl:half", ("x.jsonl:half", 1.0)),
    ("x.jsonl:-1", ("x.jsonl:-1", 1.0)),
    (":2", (":2", 1.0)),
    ("a" * 5000 + ":2", ("a" * 5000, 2.0)),
])
def test_a_weight_after_a_source(spec, wanted):
    assert split_weight(spec) == wanted


@pytest.mark.parametrize(("spec", "wanted"), [
    ("x.jsonl:0", "--data x.jsonl:0: a weight must be above 0"),
    ("org/name@config:0.00", "--data org/name@config:0.00: a weight must be above 0"),
    ("x:" + "9" * 400, "--data x:" + "9" * 400 + ": a weight must be above 0, and a finite number"),
])
def test_a_weight_of_nothing_or_of_infinity_is_an_error(spec, wanted):
    with pytest.raises(UserError) as caught:
        split_weight(spec)
    assert str(caught.value) == wanted


@pytest.mark.parametrize("name", ["rows:2", "rows.jsonl:0", "rows:0.5"])
def test_a_file_or_folder_that_is_called_so_has_no_weight(tmp_path, name):
    (tmp_path / name).mkdir()
    assert split_weight(str(tmp_path / name)) == (str(tmp_path / name), 1.0)
    assert split_weight(str(tmp_path / name) + ":3") == (str(tmp_path / name), 3.0)
    (tmp_path / name).rmdir()
    (tmp_path / name).write_text("{}")
    assert split_weight(str(tmp_path / name)) == (str(tmp_path / name), 1.0)


# Readers


def test_jsonl(tmp_path):
    assert read(jsonl(tmp_path, *TWO)) == (TWO_AS_EXAMPLES, ReadReport(2, []))


def test_jsonl_without_a_last_newline(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, TWO)))
    assert read(path) == (TWO_AS_EXAMPLES, ReadReport(2, []))


def test_jsonl_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(map(json.dumps, TWO)).encode())
    assert read(path) == (TWO_AS_EXAMPLES, ReadReport(2, []))


def test_jsonl_with_windows_line_ends(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\r\n".join(["", *map(json.dumps, TWO), "", ""]).encode())
    assert read(path) == (TWO_AS_EXAMPLES, ReadReport(2, []))


def test_json(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([*TWO, 5, OURS | {"winner": "c"}], indent=1).encode())
    assert read(path, 0.5) == (TWO_AS_EXAMPLES, ReadReport(4, [
        f"{path}:3: not an object but int", f"{path}:4: winner must be one of {WINNERS}, not 'c'"]))


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_csv(tmp_path, start):
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(start)
        writer = csv.DictWriter(file, OURS)
        writer.writeheader()
        writer.writerows(TWO)
        file.write("1,2,3,4,5,6,7,8,9,10\n")
        file.write("1,2\n")
    # The header is line 1, the second row stands on lines 3 and 4.
    assert read(path, 0.5) == (TWO_AS_EXAMPLES, ReadReport(4, [
        f"{path}:5: more cells than columns",
        f"{path}:6: prompt must be text or a list of turns, not NoneType"]))


def test_csv_texts_stay_texts(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response_a,response_b,winner\n007,1.50,NA,a\nnull,NaN,2020-01-01,b\n")
    rows, _ = read(path)
    assert [(row.prompt[0]["content"], row.response_a, row.response_b) for row in rows] == [
        ("007", "1.50", "NA"), ("null", "NaN", "2020-01-01")]


def test_parquet(tmp_path):
    path = parquet(tmp_path / "rows.parquet", *TWO, OURS | {"response_a": None})
    assert read(path, 0.5) == (TWO_AS_EXAMPLES, ReadReport(3, [f"{path}:3: response_a must be text, not NoneType"]))


def test_parquet_with_turns(tmp_path):
    path = parquet(tmp_path / "rows.parquet", {"id": "1", "chosen": [USER, GOOD], "rejected": [USER, BAD]})
    assert read(path)[0] == [
        Example("1", "prompt-bab13d950742f1cb", "und", "rows.parquet", "", [USER], "x", "y", {"a": 1.0})]


def test_parquet_with_objects_of_different_keys(tmp_path):
    """Each gets the keys of all, and null for those that it does not have."""
    path = parquet(tmp_path / "rows.parquet", OURS | {"votes": {"a": 3, "b": 1}}, OURS | {"votes": {"tie": 1}}, OURS)
    assert [row.target for row in read(path)[0]] == [{"a": 0.75, "b": 0.25}, {"tie": 1.0}, {"a": 1.0}]


def test_parquet_rows_are_numbered_over_its_batches(tmp_path):
    path = parquet(tmp_path / "rows.parquet", *[OURS] * 2500, OURS | {"winner": ""})
    read_rows, report = read(path, 0.5)
    assert len(read_rows) == 2500
    assert report.rejected == [f"{path}:2501: winner must be one of {WINNERS}, not ''"]


def txt(tmp_path, contents: str | bytes, name: str = "de.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    return path


def paragraphs(path, **reading) -> list[str]:
    found, report = read(path, task="language", **reading)
    assert all((row.response_a, row.response_b, row.target) == (None, None, {}) for row in found)
    assert report == ReadReport(len(found), [])
    return [turn["content"] for row in found for turn in row.prompt]


def test_paragraphs_are_rows(tmp_path):
    path = txt(tmp_path, "Eins,\nzwei.\n\n\n \t\nDrei. 不\n\nvier")
    assert paragraphs(path) == ["Eins,\nzwei.", "Drei. 不", "vier"]
    found, _ = read(path, task="language")
    assert found[2] == Example("ad1a613d640fff0a", "prompt-291a9719aa17ee1b", "de", "de.txt", "",
                               [{"role": "user", "content": "vier"}], None, None, {})
    assert len({row.group for row in found}) == len({row.id for row in found}) == 3


def test_the_same_paragraph_twice_is_of_one_group(tmp_path):
    """Which lies on one side of the split."""
    found, _ = read(txt(tmp_path, "Eins.\n\nzwei\n\nEins."), task="language")
    assert found[0].group == found[2].group != found[1].group


@pytest.mark.parametrize("contents", [
    "\ufeffEins.\n\nZwei.\n", "\ufeff\n\nEins.\n\nZwei.", "Eins.\r\n\r\nZwei.\r\n", "\n\n  Eins.  \n\n\tZwei.\n\n\n",
    "Eins.\n \x0b \f\nZwei.",
])
def test_marks_line_ends_and_space_around_paragraphs_are_no_text(tmp_path, contents):
    assert paragraphs(txt(tmp_path, contents)) == ["Eins.", "Zwei."]


def test_line_ends_within_a_paragraph_are_those_of_unix(tmp_path):
    assert paragraphs(txt(tmp_path, "Eins,\r\nzwei.\r\n\r\nDrei.")) == ["Eins,\nzwei.", "Drei."]


def test_a_byte_order_mark_within_is_text(tmp_path):
    assert paragraphs(txt(tmp_path, "Eins.\n\n\ufeffZwei.")) == ["Eins.", "\ufeffZwei."]


@pytest.mark.parametrize(("name", "language"), [
    ("de.txt", "de"), ("deu.txt", "de"), ("de.txt.gz", "de"), ("de.part2.txt", "de"), ("zh_Hant.txt", "zh-hant"),
    ("sw_train.txt", "sw"), ("sw.txt", "sw"), ("swh_Latn.txt", "swh"), ("texts.txt", "und"), ("de2.txt", "und"),
    (".txt", "und"), (".txt.gz", "und"),
])
def test_a_text_file_is_named_after_its_language(tmp_path, name, language):
    contents = b"Eins." if name.endswith("txt") else gzip.compress(b"Eins.")
    row, = read(txt(tmp_path, contents, name), task="language")[0]
    assert (row.language, row.source) == (language, name)


def test_a_paragraph_that_is_not_utf_8_is_rejected_by_the_line_that_it_begins_on(tmp_path):
    path = txt(tmp_path, b"\nEins.\n\n\nZw\xff\nei.\n\nDrei.\n\n" + "\u3000\n\n".encode() + b"\xff")
    found, report = read(path, 0.6, task="language")
    assert [row.prompt[0]["content"] for row in found] == ["Eins.", "Drei."]
    assert report == ReadReport(5, [f"{path}:5: not UTF-8 at byte 2", f"{path}:10: text is empty",
                                    f"{path}:12: not UTF-8 at byte 0"])
    with pytest.raises(UserError, match="3 of 5 rows are bad"):
        read(path, 0.1, task="language")


def test_text_that_is_packed_is_read_alike(tmp_path):
    contents = b"Eins.\n\nZwei."
    assert paragraphs(txt(tmp_path, gzip.compress(contents), "de.txt.gz")) == paragraphs(txt(tmp_path, contents))


@pytest.mark.parametrize("contents", [b"", b"\n \r\n\n", b"\xef\xbb\xbf\n"])
def test_a_text_file_without_paragraphs_is_an_error(tmp_path, contents):
    with pytest.raises(UserError) as caught:
        read(txt(tmp_path, contents), task="language")
    assert str(caught.value) == f"{tmp_path}/de.txt holds no rows"


@pytest.mark.parametrize("task", ["preference", "classification"])
def test_paragraphs_are_nothing_to_decide(tmp_path, task):
    with pytest.raises(UserError, match="1 of 1 rows are bad"):
        read(txt(tmp_path, "Eins."), task=task)


def test_texts_comparisons_and_classified_texts_in_one_file(tmp_path):
    path = jsonl(tmp_path, OURS, {"text": "t", "language": "English"}, {"text": "u", "label": 3, "text_pair": "v"})
    found, report = read(path, task="language")
    assert report == ReadReport(3, [])
    assert found[0] == Example("1", "g", "en", "s", "k", WHY, "So.", "No.", {"a": 1.0})
    assert [(row.prompt, row.response_a, row.target, row.language) for row in found[1:]] == [
        ([{"role": "user", "content": "t"}], None, {}, "en"), ([{"role": "user", "content": "u"}], None, {}, "und")]
    assert [row.prompt[0]["content"] for row in read(path, 0.4, task="language", format="text")[0]] == ["t", "u"]


def test_what_is_packed_is_read_alike(tmp_path):
    parquet(tmp_path / "rows.parquet", *TWO, OURS | {"winner": ""})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*TWO, OURS | {"winner": ""}])))
    (tmp_path / "rows.json").write_text(json.dumps([*TWO, OURS | {"winner": ""}]))
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, OURS)
        writer.writeheader()
        writer.writerows([*TWO, OURS | {"winner": ""}])
    for kind, number in (("parquet", 3), ("jsonl", 3), ("json", 3), ("csv", 5)):
        path, packed = tmp_path / f"rows.{kind}", tmp_path / f"rows.{kind}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        for file in (path, packed):
            assert read(file, 0.5) == (TWO_AS_EXAMPLES, ReadReport(3, [
                f"{file}:{number}: winner must be one of {WINNERS}, not ''"]))


# A Hub dataset, as a local folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What `multilingual/orca_dpo_pairs` looks like, with two languages."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "orca" / "data").mkdir(parents=True)
    for language in ("ar", "es"):
        rows = [{"system": "", "question": f"{language} {number}", "chosen": "x", "rejected": "y"} for number in (1, 2)]
        parquet(tmp_path / "orca" / "data" / f"{language}_train-00000-of-00001.parquet", *rows)
    return tmp_path / "orca"


def languages_and_questions(spec) -> list[tuple[str, str]]:
    rows, report = read(spec)
    assert report == ReadReport(len(rows), [])
    assert {row.source for row in rows} == {str(spec)}
    return sorted((row.language, row.prompt[0]["content"]) for row in rows)


def test_a_folder_is_read_with_all_its_train_splits(folder):
    assert languages_and_questions(folder) == [("ar", "ar 1"), ("ar", "ar 2"), ("es", "es 1"), ("es", "es 2")]


def test_translations_of_a_row_share_its_group(folder):
    for file in (folder / "data").iterdir():
        rows = [{"mllm_index": index, "question": f"{file.name} {index}", "chosen": "x", "rejected": "y"}
                for index in (7, 8)]
        parquet(file, *rows)
    found = {(row.language, row.group) for spec in ("#es_*", "#ar_*") for row in read(f"{folder}{spec}")[0]}
    assert found == {(language, f"mllm-{index}") for language in ("es", "ar") for index in (7, 8)}


def test_patterns_choose_splits(folder):
    assert languages_and_questions(f"{folder}#es_*") == [("es", "es 1"), ("es", "es 2")]
    assert languages_and_questions(f"{folder}#es_train,a?_train") == languages_and_questions(folder)[:4]


def test_a_pattern_without_a_split_is_an_error(folder):
    with pytest.raises(UserError, match=r"none of the splits ar_train, es_train matches 'de_\*'$"):
        read(f"{folder}#de_*")


def test_a_config_is_chosen_by_its_name(folder):
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: spanish\n  data_files:\n  - split: es_train\n    path: data/es_train-*\n"
        "- config_name: arabic\n  data_files:\n  - split: train\n    path: data/ar_train-*\n"
        "- config_name: arb_Arab\n  data_files:\n  - split: train\n    path: data/ar_train-*\n---\n")
    assert languages_and_questions(f"{folder}@spanish") == [("es", "es 1"), ("es", "es 2")]
    assert languages_and_questions(f"{folder}@arabic") == [("und", "ar 1"), ("und", "ar 2")]
    assert languages_and_questions(f"{folder}@arabic#train") == [("und", "ar 1"), ("und", "ar 2")]
    assert languages_and_questions(f"{folder}@arb_Arab") == [("ar", "ar 1"), ("ar", "ar 2")]
    with pytest.raises(UserError, match=r"@french: .*spanish"):
        read(f"{folder}@french")


def test_a_language_column_goes_before_the_name_of_the_split(folder):
    rows = [{"language": language, "question": "q", "chosen": "x", "rejected": "y"} for language in ("ca", None)]
    for file in (folder / "data").iterdir():
        parquet(file, *rows)
    assert languages_and_questions(f"{folder}#es_*") == [("ca", "q"), ("es", "q")]


def test_without_a_train_split_all_splits_are_read(folder):
    for name, other in (("es", "test"), ("ar", "zh_Hans")):
        (folder / "data" / f"{name}_train-00000-of-00001.parquet").rename(
            folder / "data" / f"{other}-00000-of-00001.parquet")
    assert languages_and_questions(folder) == [("und", "es 1"), ("und", "es 2"), ("zh", "ar 1"), ("zh", "ar 2")]


def test_a_bad_row_of_a_folder_is_named_by_split_and_number(folder):
    rows = [{"system": "", "question": "q", "chosen": chosen, "rejected": "y"} for chosen in ("x", " ")]
    parquet(folder / "data" / "es_train-00000-of-00001.parquet", *rows)
    assert read(f"{folder}#es_*", 0.5)[1] == ReadReport(2, [f"{folder}#es_*[es_train]:2: chosen is empty"])


@pytest.fixture
def labelled(folder):
    """Adds a split `fr_test` whose label and language are numbers that have names."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"]),
                         "language": ClassLabel(names=["French", "en"])})
    rows = {"text": ["t0", "t1", "t2", "t3"], "label": [1, 0, -1, None], "language": [0, 1, -1, 0]}
    Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / "fr_test-00000-of-00001.parquet")
    for file in (folder / "data").glob("*_train*"):
        file.unlink()
    return folder


def test_numbers_that_have_names(labelled):
    rows, report = read(labelled, 0.5, task="classification")
    assert [(row.prompt[0]["content"], row.target, row.language) for row in rows] == [
        ("t0", {"pos": 1.0}, "fr"), ("t1", {"neg": 1.0}, "en")]
    assert report == ReadReport(4, [
        f"{labelled}[fr_test]:3: label must be the name or number of a class, not None",
        f"{labelled}[fr_test]:4: label must be the name or number of a class, not None"])


def test_a_number_beyond_the_names_has_none(labelled):
    """`datasets` trusts a file that was written with the names, whatever numbers are in it."""
    file = labelled / "data" / "fr_test-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(file)
    numbers = pyarrow.array([2, -2, 10**12, 1], pyarrow.int64())
    pyarrow.parquet.write_table(table.set_column(1, table.schema.field("label"), numbers), file)
    rows, report = read(labelled, 1.0, task="classification")
    assert [row.target for row in rows] == [{"pos": 1.0}]
    assert len(report.rejected) == 3


# Bad rows


@pytest.mark.parametrize(("line", "wanted"), [
    (b'{"prompt": "p", "respon', "not JSON: "),
    (b'{"prompt": "p",}', "not JSON: "),
    (b"{'prompt': 'p'}", "not JSON: "),
    (b"{} {}", "not JSON: Extra data"),
    (b'{"prompt": "a\tb"}', "not JSON: Invalid control character"),
    (b"\xef\xbb\xbf{}", "not JSON: Expecting value: line 1 column 1 (char 0)"),
    (b"[]", "not an object but list"),
    (b"null", "not an object but NoneType"),
    (b'"text"', "not an object but str"),
    (b'{"prompt": "p", "winner": "a", "prompt": "p"}', "key 'prompt' stands twice"),
    (b'{"prompt": [{"role": "user", "role": "user", "content": "p"}]}', "key 'role' stands twice"),
    (b'{"prompt": "p", "margin": NaN}', "NaN is not a number in JSON"),
    (b'{"prompt": "p", "margin": Infinity}', "Infinity is not a number in JSON"),
    (b'{"prompt": "p", "margin": [-Infinity]}', "-Infinity is not a number in JSON"),
    pytest.param(b'{"%s": 1, "%s": 2}' % (b"n" * 1_000_000, b"n" * 1_000_000), "key 'nnn", id="long key"),
    (b'{"\\n": 1, "\\n": 2}', "key '\\n' stands twice"),
    (b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
    (b'{"prompt": "\xed\xa0\x80"}', "not UTF-8 at byte 12"),
    (b'{"prompt": "\xc3', "not UTF-8 at byte 12"),
    ('{"prompt": "p"}'.encode("utf-16-be"), "not JSON: "),
    pytest.param(b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply", id="deep list"),
    pytest.param(b'{"prompt":' * 100_000, "nested too deeply", id="deep object"),
    pytest.param(b'{"id": ' + b"1" * 100_000 + b"}", "not JSON: Exceeds the limit", id="long integer"),
    pytest.param(b'{"id": -' + b"1" * 100_000 + b"}", "not JSON: Exceeds the limit", id="long negative integer"),
])
def test_a_line_that_is_not_strict_json_is_rejected(tmp_path, line, wanted):
    found = reason(tmp_path, line)
    assert found.startswith(wanted)
    assert len(found) <= 400


def test_an_integer_response_changes_no_other_text(tmp_path):
    texts = ["007", "1.0", "2020-01-01", "NaN", "true", "null"]
    rows = [OURS | {"id": text, "response_a": text} for text in texts]
    path = jsonl(tmp_path, *rows[:3], OURS | {"response_a": 7}, *rows[3:])
    found, report = read(path, 0.5)
    assert [(row.id, row.response_a) for row in found] == [(text, text) for text in texts]
    assert report.rejected == [f"{path}:4: response_a must be text, not int"]


# Limits


BAD_ROW = OURS | {"winner": ""}


def test_a_share_of_bad_rows_up_to_the_limit_is_left_out(tmp_path):
    rows, report = read(jsonl(tmp_path, OURS, BAD_ROW, OURS, OURS), 0.25)
    assert (len(rows), report.read, len(report.rejected)) == (3, 4, 1)


def test_more_bad_rows_than_the_limit_stop(tmp_path):
    path = jsonl(tmp_path, OURS, BAD_ROW, OURS, OURS)
    with pytest.raises(UserError) as caught:
        read(path, 0.24)
    assert str(caught.value) == (f"{path}: 1 of 4 rows are bad, more than --max_bad_fraction 0.24 allows: "
                                 f"{path}:2: winner must be one of {WINNERS}, not ''")


def test_the_message_shows_the_first_three_reasons(tmp_path):
    path = jsonl(tmp_path, *[BAD_ROW] * 5)
    with pytest.raises(UserError, match=r"5 of 5 rows are bad.*:1: .*:2: .*:3: [^:]*$"):
        read(path)


def test_a_report_over_two_sources_limits_each_by_itself(tmp_path):
    (tmp_path / "one").mkdir()
    good, half = jsonl(tmp_path / "one", *[OURS] * 8), jsonl(tmp_path, OURS, BAD_ROW)
    report = ReadReport()
    assert len(list(read_source(str(half), Reading(max_bad_fraction=0.5), report))) == 1
    assert len(list(read_source(str(good), Reading(max_bad_fraction=0.0), report))) == 8
    assert report == ReadReport(10, [f"{half}:2: winner must be one of {WINNERS}, not ''"])
    with pytest.raises(UserError, match="1 of 2 rows are bad"):
        list(read_source(str(half), Reading(max_bad_fraction=0.1), report))


@pytest.mark.parametrize(("name", "contents"), [
    ("rows.jsonl", b""), ("rows.jsonl", b"\n \r\n\n"), ("rows.jsonl", b"\xef\xbb\xbf"),
    ("rows.jsonl.gz", gzip.compress(b"\n", mtime=0)), ("rows.json", b"[]"), ("rows.csv", b""),
    ("rows.csv", b"prompt,response_a,response_b,winner\n"),
])
def test_no_rows_is_an_error(tmp_path, name, contents):
    path = tmp_path / name
    path.write_bytes(contents)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value) == f"{path} holds no rows"


def test_a_parquet_file_without_rows_is_an_error(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([OURS]).slice(0, 0), path)
    with pytest.raises(UserError, match=r"holds no rows$"):
        read(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv", "rows.parquet", "rows.txt",
                                  pytest.param("x" * 5000 + ".jsonl", id="long name")])
def test_a_missing_file_is_an_error(tmp_path, name):
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert str(caught.value) == f"--data {tmp_path / name}: there is no such file"


@pytest.mark.parametrize("name", ["rows", "rows.md", "rows.jsonl/"])
def test_a_missing_folder_is_an_error(tmp_path, folder, name):
    with pytest.raises(UserError, match=r"neither a local file \(\.jsonl, .*\) nor a dataset that can be loaded"):
        read(f"{tmp_path}/{name}")


@pytest.mark.parametrize(("name", "contents", "wanted"), [
    ("rows.json", b'[{"prompt": "p"', "is not JSON: "),
    ("rows.json", b'{"prompt": "p"}', "must hold a list of objects, not dict"),
    ("rows.json", b'[{"prompt": "p", "prompt": "p"}]', "is not JSON: key 'prompt' stands twice"),
    ("rows.json", b"[NaN]", "is not JSON: NaN is not a number in JSON"),
    ("rows.json", b'["\xff"]', "is not JSON: 'utf-8' codec"),
    pytest.param("rows.json", b"[" * 100_000, "is not JSON: ", id="deep list"),
    pytest.param("rows.json", b"[" + b"1" * 100_000 + b"]", "is not JSON: Exceeds the limit", id="long integer"),
    ("rows.jsonl.gz", b"{}", "cannot be read: Not a gzipped file"),
    ("rows.jsonl.gz", gzip.compress(b'{"id": 1}\n' * 1000, mtime=0)[:-10], "cannot be read: Compressed file ended"),
    ("rows.csv", b"prompt,response_a,response_a,response_b,winner\n1,2,3,4,a\n", "column 'response_a' stands twice"),
    ("rows.csv", b'a,b\n1,2\n1,"2"3\n1,2\n', ":3: ',' expected after"),
    ("rows.csv", b'a,b\n1,2\n1,"2\n', ":3: unexpected end of data"),
    ("rows.jsonl.gz", gzip.compress(b"{}", mtime=0)[:15] + b"\xff" * 9, "cannot be read: "),
    ("rows.json.gz", gzip.compress(b"{}", mtime=0)[:-3], "cannot be read: "),
    ("rows.txt.gz", b"text", "cannot be read: Not a gzipped file"),
    ("rows.txt.gz", gzip.compress(b"text\n\n" * 1000, mtime=0)[:-10], "cannot be read: Compressed file ended"),
    ("rows.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "cannot be read: "),
    ("rows.parquet.gz", b"{}", "cannot be read: "),
    ("rows.parquet.gz", gzip.compress(b"no parquet file", mtime=0), "cannot be read: "),
    pytest.param("rows.csv", b"%s,%s\n" % (b"n" * 1_000_000, b"n" * 1_000_000), "column 'n", id="long column"),
    ("rows.parquet", b"", "cannot be read: "),
    ("rows.parquet", b"no parquet file at all", "cannot be read: "),
])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name, contents, wanted):
    path = tmp_path / name
    path.write_bytes(contents)
    with pytest.raises(UserError, match=f"^{path}:? ?{wanted}") as caught:
        read(path, 1.0)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("column", [
    pyarrow.array([2**62], pyarrow.timestamp("us")),
    pyarrow.array([2**30], pyarrow.date32()),
    pyarrow.array([1], pyarrow.timestamp("us", "Mars/Phobos")),
    pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"),
                                                     pyarrow.py_buffer(b"\xff")]),
])
def test_a_parquet_value_that_python_has_no_type_for_is_an_error(tmp_path, column):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"created": column} | {name: [OURS[name]] for name in OURS}), path)
    with pytest.raises(UserError, match=f"^{path} cannot be read: ") as caught:
        read(path, 1.0)
    assert len(str(caught.value).splitlines()) == 1


def test_a_parquet_column_of_bytes_is_no_text(tmp_path):
    path = parquet(tmp_path / "rows.parquet", OURS | {"response_a": b"So."})
    assert read(path, 1.0)[1].rejected == [f"{path}:1: response_a must be text, not bytes"]


def test_the_identity_of_a_file_changes_with_it(tmp_path):
    path = jsonl(tmp_path, OURS)
    before = identity(str(path))
    assert identity(str(path)) == before
    path.write_text("{}")
    assert identity(str(path)) != before


def test_the_identity_of_a_folder_changes_with_it(folder):
    before = identity(str(folder))
    assert identity(str(folder)) == before
    rows = [{"system": "", "question": "another", "chosen": "x", "rejected": "y"}]
    parquet(folder / "data" / "es_train-00000-of-00001.parquet", *rows)
    assert identity(str(folder)) != before


# Any line, any value

JSON_LIKE = st.lists(st.sampled_from([
    b'"', b"{", b"}", b"[", b"]", b":", b",", b"\\", b"\\u", b"d800", b"1", b"-", b".", b"e9", b"NaN", b"Infinity",
    b"true", b"null", b" ", b"\n", b"\xff", b"\xe4\xb8", b'"a":', b"\x00"])).map(b"".join)


@FIXED
@given(st.binary() | JSON_LIKE)
@example(b"")
@example(b"\xef\xbb\xbf{}")
def test_any_bytes_are_an_object_or_a_bad_row(line):
    row = parse_json_row(line)
    assert isinstance(row, (dict, BadRow))
    if isinstance(row, dict):
        assert json.loads(line) == row


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()) | st.sampled_from(["p", "x", "a", "tie", "user", "system", USER, GOOD, [USER], [BAD]]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content"]) | st.text(), inner, max_size=3), max_leaves=6)
ROWS = st.dictionaries(st.sampled_from([*OURS, "chosen", "rejected", "question", "system"]), VALUES, min_size=2)


@settings(FIXED, max_examples=150)
@given(rows=st.lists(ROWS | VALUES | ROWS.map(lambda row: OURS | row), min_size=1, max_size=4))
@example(rows=[OURS])
def test_every_row_is_accepted_or_rejected(rows, tmp_path_factory):
    found, report = read(jsonl(tmp_path_factory.getbasetemp(), *rows), 1.0)
    assert len(found) + len(report.rejected) == report.read == len(rows)
    for row in found:
        assert row.prompt[-1]["role"] == "user"
        for text in (row.id, row.group, row.language, row.source, row.response_a, row.response_b):
            assert text
            text.encode("utf-8")
        assert sum(row.target.values()) == pytest.approx(1.0)


def test_a_csv_row_that_is_not_utf_8_is_rejected_by_itself(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,chosen,rejected\np,x,y\np,x,\xff\np,y,z\n")
    rows, report = read(path, 1.0)
    assert len(rows) == 2
    assert report.rejected == [f"{path}:3: rejected is not UTF-8, or holds a lone surrogate"]
