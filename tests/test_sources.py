"""Literal rows of every known form, through every reader, to literal `Comparison`s; and every way to be a bad row."""

import csv
import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pm.data.comparison import Comparison
from pm.data.sources import BadRow, ReadReport, identity, parse_json_row, read_source
from pm.errors import UserError

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=300)

OURS = {"id": "1", "group": "g", "language": "en", "source": "s", "kind": "k", "prompt": "Why?", "response_a": "So.",
        "response_b": "No.", "winner": "a"}
OURS_AS_COMPARISON = Comparison("1", "g", "en", "s", "k", [{"role": "user", "content": "Why?"}], "So.", "No.",
                                [1.0, 0.0])
USER = {"role": "user", "content": "p"}
GOOD, BAD = {"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}

# What each reader reads below: two rows of texts, which every format can hold.
TWO = [OURS, OURS | {"id": "2", "response_b": 'He said "no", then\r\nleft. 不', "winner": "tie"}]
TWO_AS_COMPARISONS = [
    OURS_AS_COMPARISON,
    Comparison("2", "g", "en", "s", "k", [{"role": "user", "content": "Why?"}], "So.",
               'He said "no", then\r\nleft. 不', [0.5, 0.5]),
]


def read(path, max_bad_fraction=0.0) -> tuple[list[Comparison], ReadReport]:
    report = ReadReport()
    return list(read_source(str(path), max_bad_fraction, report)), report


def jsonl(tmp_path, *rows):
    """A file of these rows: objects are written as JSON, bytes as they are."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def one(tmp_path, row) -> Comparison:
    rows, report = read(jsonl(tmp_path, row))
    assert report == ReadReport(read=1, rejected=[])
    return rows[0]


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


# Forms


def test_ours_with_a_text_prompt(tmp_path):
    assert one(tmp_path, OURS) == OURS_AS_COMPARISON


def test_ours_with_a_prompt_of_turns(tmp_path):
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
             {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Why?"}]
    row = OURS | {"prompt": [turn | {"name": "left out"} for turn in turns]}
    assert one(tmp_path, row) == Comparison("1", "g", "en", "s", "k", turns, "So.", "No.", [1.0, 0.0])


@pytest.mark.parametrize(("winner", "target"), [("a", [1.0, 0.0]), ("b", [0.0, 1.0]), ("tie", [0.5, 0.5])])
def test_the_winner_becomes_the_target(tmp_path, winner, target):
    assert one(tmp_path, OURS | {"winner": winner}).target == target


def test_columns_that_are_missing_or_null_are_filled_in(tmp_path):
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "a"}
    wanted = Comparison("00981b66a073034b", "prompt-bab13d950742f1cb", "und", "rows.jsonl", "", [USER], "x", "y",
                        [1.0, 0.0])
    assert one(tmp_path, row) == wanted
    nulls = dict.fromkeys(("id", "group", "language", "source", "kind"))
    assert one(tmp_path, row | nulls) == wanted


def test_an_integer_id_is_text(tmp_path):
    assert one(tmp_path, OURS | {"id": 17, "group": 0}) == Comparison(
        "17", "0", "en", "s", "k", [{"role": "user", "content": "Why?"}], "So.", "No.", [1.0, 0.0])


def test_texts_are_kept_as_they_are(tmp_path):
    text = " \ufeffA\r\n\u2028\x00e\u0301 😀\ufffd\t"
    row = one(tmp_path, OURS | {"prompt": text, "response_a": text, "response_b": text + " "})
    assert (row.prompt[0]["content"], row.response_a, row.response_b) == (text, text, text + " ")


def test_chosen_and_rejected_as_text(tmp_path):
    row = one(tmp_path, {"id": "1", "prompt": "p", "chosen": "x", "rejected": "y"})
    assert row == Comparison("1", "prompt-bab13d950742f1cb", "und", "rows.jsonl", "", [USER], "x", "y", [1.0, 0.0])


def test_chosen_may_become_response_b(tmp_path):
    row = one(tmp_path, {"id": "1", "prompt": "q", "chosen": "x", "rejected": "y"})
    assert (row.response_a, row.response_b, row.target) == ("y", "x", [0.0, 1.0])


def test_chosen_is_a_about_half_of_the_time(tmp_path):
    rows, _ = read(jsonl(tmp_path, *({"prompt": f"p{n}", "chosen": "x", "rejected": "y"} for n in range(1000))))
    assert all((row.response_a == "x") == (row.target == [1.0, 0.0]) for row in rows)
    assert 450 < sum(row.response_a == "x" for row in rows) < 550


@pytest.mark.parametrize("row", [
    {"prompt": "p", "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": "p", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [BAD]},
    {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"chosen": [USER, GOOD], "rejected": [BAD]},
    {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]},
])
def test_messages_with_an_explicit_or_a_common_prompt(tmp_path, row):
    wanted = Comparison("1", "prompt-bab13d950742f1cb", "und", "rows.jsonl", "", [USER], "x", "y", [1.0, 0.0])
    assert one(tmp_path, {"id": "1"} | row) == wanted


def test_messages_of_many_turns(tmp_path):
    prompt = [{"role": "system", "content": "s"}, USER, GOOD, USER]
    row = one(tmp_path, {"chosen": [*prompt, GOOD], "rejected": [*prompt, BAD]})
    assert row.prompt == prompt
    assert {row.response_a, row.response_b} == {"x", "y"}
    assert row.target[("x", "y").index(row.response_a)] == 1.0


def test_orca_with_a_system_text(tmp_path):
    row = one(tmp_path, {"id": "1", "system": "Be kind.", "question": "q", "chosen": "x", "rejected": "y"})
    assert row.prompt == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}]


@pytest.mark.parametrize("system", [{}, {"system": None}, {"system": ""}, {"system": " \n"}])
def test_orca_without_a_system_text(tmp_path, system):
    row = one(tmp_path, {"id": "1", "question": "q", "chosen": "x", "rejected": "y"} | system)
    prompt = [{"role": "user", "content": "q"}]
    assert row == Comparison("1", "prompt-d8bd38ee9bee818c", "und", "rows.jsonl", "", prompt, "y", "x", [0.0, 1.0])


def test_a_file_may_change_its_form(tmp_path):
    rows, report = read(jsonl(tmp_path, OURS, {"question": "q", "chosen": "x", "rejected": "y"},
                              {"prompt": "p", "chosen": "x", "rejected": "y"}, OURS))
    assert [row.prompt[0]["content"] for row in rows] == ["Why?", "q", "p", "Why?"]
    assert report == ReadReport(read=4, rejected=[])


# Readers


def test_jsonl(tmp_path):
    assert read(jsonl(tmp_path, *TWO)) == (TWO_AS_COMPARISONS, ReadReport(2, []))


def test_jsonl_without_a_last_newline(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, TWO)))
    assert read(path) == (TWO_AS_COMPARISONS, ReadReport(2, []))


def test_jsonl_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(map(json.dumps, TWO)).encode())
    assert read(path) == (TWO_AS_COMPARISONS, ReadReport(2, []))


def test_jsonl_with_windows_line_ends(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\r\n".join(["", *map(json.dumps, TWO), "", ""]).encode())
    assert read(path) == (TWO_AS_COMPARISONS, ReadReport(2, []))


def test_jsonl_gz(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join([*map(json.dumps, TWO), "[]"]).encode()))
    assert read(path, 0.5) == (TWO_AS_COMPARISONS, ReadReport(3, [f"{path}:3: not an object but list"]))


def test_json(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([*TWO, 5, OURS | {"winner": "c"}], indent=1).encode())
    assert read(path, 0.5) == (TWO_AS_COMPARISONS, ReadReport(4, [
        f"{path}:3: not an object but int", f"{path}:4: winner must be one of a, b, tie, not 'c'"]))


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
    assert read(path, 0.5) == (TWO_AS_COMPARISONS, ReadReport(4, [
        f"{path}:5: more cells than columns",
        f"{path}:6: winner must be one of a, b, tie, not None"]))


def test_csv_texts_stay_texts(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response_a,response_b,winner\n007,1.50,NA,a\nnull,NaN,2020-01-01,b\n")
    rows, _ = read(path)
    assert [(row.prompt[0]["content"], row.response_a, row.response_b) for row in rows] == [
        ("007", "1.50", "NA"), ("null", "NaN", "2020-01-01")]


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*TWO, OURS | {"response_a": None}]), path)
    assert read(path, 0.5) == (TWO_AS_COMPARISONS,
                               ReadReport(3, [f"{path}:3: response_a must be text, not NoneType"]))


def test_parquet_with_messages(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [{"id": "1", "chosen": [USER, GOOD], "rejected": [USER, BAD]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read(path)[0] == [Comparison("1", "prompt-bab13d950742f1cb", "und", "rows.parquet", "", [USER], "x", "y",
                                        [1.0, 0.0])]


def test_parquet_rows_are_numbered_over_its_batches(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [OURS] * 2500 + [OURS | {"winner": ""}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    read_rows, report = read(path, 0.5)
    assert len(read_rows) == 2500
    assert report.rejected == [f"{path}:2501: winner must be one of a, b, tie, not ''"]


# A Hub dataset, as a local folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What `multilingual/orca_dpo_pairs` looks like, with two languages."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "orca" / "data").mkdir(parents=True)
    for language in ("ar", "es"):
        rows = [{"system": "", "question": f"{language} {number}", "chosen": "x", "rejected": "y"} for number in (1, 2)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows),
                                    tmp_path / "orca" / "data" / f"{language}_train-00000-of-00001.parquet")
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
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
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
        "- config_name: arabic\n  data_files:\n  - split: train\n    path: data/ar_train-*\n---\n")
    assert languages_and_questions(f"{folder}@spanish") == [("es", "es 1"), ("es", "es 2")]
    assert languages_and_questions(f"{folder}@arabic") == [("und", "ar 1"), ("und", "ar 2")]
    assert languages_and_questions(f"{folder}@arabic#train") == [("und", "ar 1"), ("und", "ar 2")]
    with pytest.raises(UserError, match=r"@french: .*spanish"):
        read(f"{folder}@french")


def test_a_language_column_goes_before_the_name_of_the_split(folder):
    rows = [{"language": language, "question": "q", "chosen": "x", "rejected": "y"} for language in ("ca", None)]
    for file in (folder / "data").iterdir():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert languages_and_questions(f"{folder}#es_*") == [("ca", "q"), ("es", "q")]


def test_without_a_train_split_all_splits_are_read(folder):
    for name, other in (("es", "test"), ("ar", "zh_Hans")):
        (folder / "data" / f"{name}_train-00000-of-00001.parquet").rename(
            folder / "data" / f"{other}-00000-of-00001.parquet")
    assert languages_and_questions(folder) == [("und", "es 1"), ("und", "es 2"), ("zh", "ar 1"), ("zh", "ar 2")]


def test_a_bad_row_of_a_folder_is_named_by_split_and_number(folder):
    rows = [{"system": "", "question": "q", "chosen": chosen, "rejected": "y"} for chosen in ("x", " ")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / "es_train-00000-of-00001.parquet")
    assert read(f"{folder}#es_*", 0.5)[1] == ReadReport(2, [f"{folder}#es_*[es_train]:2: chosen is empty"])


# Bad rows


@pytest.mark.parametrize(("line", "wanted"), [
    (b'{"prompt": "p", "respon', "not JSON: "),
    (b'{"prompt": "p",}', "not JSON: "),
    (b"{'prompt': 'p'}", "not JSON: "),
    (b"{} {}", "not JSON: Extra data"),
    (b'{"prompt": "a\tb"}', "not JSON: Invalid control character"),
    (b"\xef\xbb\xbf{}", "not JSON: Unexpected UTF-8 BOM"),
    (b"[]", "not an object but list"),
    (b"null", "not an object but NoneType"),
    (b'"text"', "not an object but str"),
    (b'{"prompt": "p", "winner": "a", "prompt": "p"}', "key 'prompt' stands twice"),
    (b'{"prompt": [{"role": "user", "role": "user", "content": "p"}]}', "key 'role' stands twice"),
    (b'{"prompt": "p", "margin": NaN}', "NaN is not a number in JSON"),
    (b'{"prompt": "p", "margin": Infinity}', "Infinity is not a number in JSON"),
    (b'{"prompt": "p", "margin": [-Infinity]}', "-Infinity is not a number in JSON"),
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
    assert len(found) < 300


@pytest.mark.parametrize(("change", "wanted"), [
    ({"response_a": ""}, "response_a is empty"),
    ({"response_b": " \n\t\u3000\u2028"}, "response_b is empty"),
    ({"response_a": None}, "response_a must be text, not NoneType"),
    ({"response_a": 5}, "response_a must be text, not int"),
    ({"response_b": 1.5}, "response_b must be text, not float"),
    ({"response_b": True}, "response_b must be text, not bool"),
    ({"response_b": ["So."]}, "response_b must be text, not list"),
    ({"response_b": {"role": "assistant", "content": "So."}}, "response_b must be text, not dict"),
    ({"response_b": "\ud800"}, "response_b is not UTF-8, or holds a lone surrogate"),
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": "\udfff"}, "prompt is not UTF-8, or holds a lone surrogate"),
    ({"prompt": None}, "prompt must be text or a list of turns, not NoneType"),
    ({"prompt": 5}, "prompt must be text or a list of turns, not int"),
    ({"prompt": USER}, "prompt must be text or a list of turns, not dict"),
    ({"prompt": []}, "prompt must be text or a list of turns, not list"),
    ({"prompt": ["p"]}, "prompt: each turn must have role and content"),
    ({"prompt": [{"role": "user"}]}, "prompt: each turn must have role and content"),
    ({"prompt": [{"role": "tool", "content": "p"}, USER]},
     "prompt: role must be one of system, user, assistant, not 'tool'"),
    ({"prompt": [{"role": ["user"], "content": "p"}]},
     "prompt: role must be one of system, user, assistant, not ['user']"),
    ({"prompt": [{"role": "user", "content": None}]}, "prompt turn must be text, not NoneType"),
    ({"prompt": [{"role": "user", "content": " "}]}, "prompt turn is empty"),
    ({"prompt": [USER, GOOD]}, "prompt must end with a user turn, not assistant"),
    ({"winner": "c"}, "winner must be one of a, b, tie, not 'c'"),
    ({"winner": "A"}, "winner must be one of a, b, tie, not 'A'"),
    ({"winner": None}, "winner must be one of a, b, tie, not None"),
    ({"winner": 0}, "winner must be one of a, b, tie, not 0"),
    ({"winner": ["a"]}, "winner must be one of a, b, tie, not ['a']"),
    ({"id": 1.5}, "id must be text, not float"),
    ({"id": "\ud800"}, "id is not UTF-8, or holds a lone surrogate"),
    ({"group": ["g"]}, "group must be text, not list"),
    ({"language": {"code": "en"}}, "language must be text, not dict"),
    ({"source": "\ud800"}, "source is not UTF-8, or holds a lone surrogate"),
])
def test_a_wrong_value_is_rejected(tmp_path, change, wanted):
    assert reason(tmp_path, OURS | change) == wanted


@pytest.mark.parametrize(("row", "wanted"), [
    ({"chosen": "x", "rejected": "y"}, "a prompt column is needed where chosen and rejected are plain text"),
    ({"prompt": "p", "chosen": "x", "rejected": ""}, "rejected is empty"),
    ({"prompt": "p", "chosen": "x", "rejected": [BAD]}, "chosen must be text or a list of turns, not str"),
    ({"prompt": "p", "chosen": ["x"], "rejected": ["y"]}, "chosen: each turn must have role and content"),
    ({"chosen": [GOOD], "rejected": [BAD]}, "prompt must be text or a list of turns, not list"),
    ({"prompt": "p", "chosen": [USER], "rejected": [USER]}, "chosen must be the prompt followed by one assistant turn"),
    ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
     "chosen must be the prompt followed by one assistant turn"),
    ({"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "q"}, BAD]},
     "rejected must be the prompt followed by one assistant turn"),
    ({"chosen": [USER, GOOD, USER], "rejected": [USER, GOOD, USER]},
     "chosen must be the prompt followed by one assistant turn"),
    ({"system": 5, "question": "q", "chosen": "x", "rejected": "y"}, "system must be text, not int"),
    ({"system": "\ud800", "question": "q", "chosen": "x", "rejected": 5}, "rejected must be text, not int"),
    ({"question": " ", "chosen": "x", "rejected": "y"}, "question is empty"),
    ({"question": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "chosen must be text, not list"),
])
def test_a_wrong_chosen_or_rejected_is_rejected(tmp_path, row, wanted):
    assert reason(tmp_path, row) == wanted


def test_unknown_columns_are_named(tmp_path):
    assert reason(tmp_path, {"text": "x", "label": 1}) == (
        "columns ['label', 'text'] are none of the known forms: prompt, response_a, response_b, winner; "
        "chosen, question, rejected; chosen, rejected")


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
                                 f"{path}:2: winner must be one of a, b, tie, not ''")


def test_the_message_shows_the_first_three_reasons(tmp_path):
    path = jsonl(tmp_path, *[BAD_ROW] * 5)
    with pytest.raises(UserError, match=r"5 of 5 rows are bad.*:1: .*:2: .*:3: [^:]*$"):
        read(path)


def test_a_report_over_two_sources_limits_each_by_itself(tmp_path):
    (tmp_path / "one").mkdir()
    good, half = jsonl(tmp_path / "one", *[OURS] * 8), jsonl(tmp_path, OURS, BAD_ROW)
    report = ReadReport()
    assert len(list(read_source(str(half), 0.5, report))) == 1
    assert len(list(read_source(str(good), 0.0, report))) == 8
    assert report == ReadReport(10, [f"{half}:2: winner must be one of a, b, tie, not ''"])
    with pytest.raises(UserError, match="1 of 2 rows are bad"):
        list(read_source(str(half), 0.1, report))


@pytest.mark.parametrize(("name", "contents"), [
    ("rows.jsonl", b""), ("rows.jsonl", b"\n \r\n\n"), ("rows.jsonl", b"\xef\xbb\xbf"),
    ("rows.jsonl.gz", gzip.compress(b"\n")), ("rows.json", b"[]"), ("rows.csv", b""),
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


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv", "rows.parquet"])
def test_a_missing_file_is_an_error(tmp_path, name):
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert str(caught.value) == f"--data {tmp_path / name}: there is no such file"


@pytest.mark.parametrize("name", ["rows", "rows.txt", "rows.jsonl/"])
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
    ("rows.jsonl.gz", gzip.compress(b'{"id": 1}\n' * 1000)[:-10], "cannot be read: Compressed file ended"),
    ("rows.csv", b"prompt,response_a,response_a,response_b,winner\n1,2,3,4,a\n", "column 'response_a' stands twice"),
    ("rows.csv", b'a,b\n1,2\n1,"2"3\n1,2\n', ":3: ',' expected after"),
    ("rows.csv", b'a,b\n1,2\n1,"2\n', ":3: unexpected end of data"),
    ("rows.parquet", b"", "cannot be read: "),
    ("rows.parquet", b"no parquet file at all", "cannot be read: "),
])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name, contents, wanted):
    path = tmp_path / name
    path.write_bytes(contents)
    with pytest.raises(UserError, match=f"^{path}:? ?{wanted}"):
        read(path, 1.0)


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
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / "es_train-00000-of-00001.parquet")
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
        assert sum(row.target) == 1.0


def test_a_csv_row_that_is_not_utf_8_is_rejected_by_itself(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,chosen,rejected\np,x,y\np,x,\xff\np,y,z\n")
    rows, report = read(path, 1.0)
    assert len(rows) == 2
    assert report.rejected == [f"{path}:3: rejected is not UTF-8, or holds a lone surrogate"]


def test_the_form_of_a_row_does_not_depend_on_the_row_before_it(tmp_path):
    path = jsonl(tmp_path, {"prompt": "p", "chosen": "x", "rejected": "y"},
                 {"question": "q", "chosen": "x", "rejected": "y"})
    assert len(read(path)[0]) == 2


def test_an_empty_system_turn_is_no_turn(tmp_path):
    row = one(tmp_path, {"prompt": [{"role": "system", "content": ""}, USER], "chosen": "x", "rejected": "y"})
    assert row.prompt == [USER]
