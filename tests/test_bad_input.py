"""Hostile and sloppy files: nothing crashes, every row is accepted as it stands or rejected with its line."""

import csv
import datetime
import decimal
import io
import json
import random
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pm.data.example import Example
from pm.data.prepare import read as prepare_read
from pm.data.sources import Reading, ReadReport, read_source
from pm.encoding import Encoder, Template
from pm.errors import UserError
from pm.task import CLASSIFICATION, PREFERENCE
from pm.tokenizer import train_tokenizer

BOM = b"\xef\xbb\xbf"
WORDS = ["fox", "dog", "two  spaces", "Привет", "你好", "مرحبا", "नमस्ते", "👩\u200d👧", "e\u0301", "\ufeff", "\ufffd",
         "\\", '"', "\t", "[1, 2", '{"role": "user"}', "<|END_OF_TURN_TOKEN|>", "null", "NaN", "line\nbreak",
         "back\r\nbreak"]


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 6))) + f" {draw.randrange(10**9)}"


def said(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def dialogue(draw: random.Random) -> list[dict]:
    """A prompt of one to five turns."""
    system = [said("system", text(draw))] if draw.random() < 0.3 else []
    asked = [said(role, text(draw)) for _ in range(draw.randint(0, 2)) for role in ("user", "assistant")]
    return [*system, *asked, said("user", text(draw))]


# Good rows of every form


def pair(draw):
    prompt = text(draw) if draw.random() < 0.5 else dialogue(draw)
    return {"prompt": prompt, "response_a": text(draw), "response_b": text(draw),
            "winner": draw.choice(["a", "b", "tie", "model_a", "model_b", "tie (bothbad)"]), "source": "s", "kind": "k"}


def votes(draw):
    return pair(draw) | {"votes": draw.choice([[3, 1], [1, 1, 2], {"a": 1, "tie": 2}, "[5, 0]"])}


def probability(draw):
    return pair(draw) | {"probability": draw.choice([0.7, 0, "0.25", [0.5, 0.5], {"b": 0.1, "tie": 0.9}])}


def margin(draw):
    return pair(draw) | {"margin": draw.choice([0, 0.5, 30, None])}


def arena(draw):
    prompt, a, b = (json.dumps([text(draw) for _ in range(2)] + [None] * draw.randint(0, 1)) for _ in range(3))
    winner = draw.randrange(3)
    return {"model_a": "m", "model_b": "n", "prompt": prompt, "response_a": a, "response_b": b,
            "winner_model_a": int(winner == 0), "winner_model_b": int(winner == 1), "winner_tie": int(winner == 2)}


def conversations(draw):
    prompt = dialogue(draw)
    return {"conversation_a": [*prompt, said("assistant", text(draw))], "language": "English", "winner": "model_a",
            "conversation_b": [turn if turn["role"] != "assistant" or draw.random() < 0.5
                               else said("assistant", text(draw)) for turn in prompt] + [said("assistant", text(draw))]}


def orca(draw):
    return {"system": draw.choice(["", None, text(draw)]), "question": text(draw), "chosen": text(draw),
            "rejected": text(draw), "mllm_index": draw.randrange(100)}


def chosen(draw):
    return {"prompt": text(draw), "chosen": text(draw), "rejected": text(draw), "subset": "Chat"}


def chosen_turns(draw):
    prompt = dialogue(draw)
    row = {"chosen": [*prompt, said("assistant", text(draw))], "rejected": [*prompt, said("assistant", text(draw))]}
    if draw.random() < 0.3:
        row["prompt"] = prompt
    return {name: json.dumps(value) for name, value in row.items()} if draw.random() < 0.3 else row


def best_of(draw):
    return {"prompt": text(draw), "chosen": [text(draw) for _ in range(draw.randint(1, 2))],
            "rejected": [text(draw) for _ in range(3)], "num_correct": 1}


def nemo(draw):
    return {"context": dialogue(draw), "completions": [
        {"rank": draw.randrange(3), "completion": [said("assistant", text(draw))]} for _ in range(draw.randint(2, 3))]}


def labelled(draw):
    return {"text": text(draw), "label": draw.choice(["pos", "neg", 0, 17])}


def two_texts(draw):
    return labelled(draw) | {"text_pair": text(draw)}


def soft(draw):
    return {"text": text(draw), "probability": draw.choice([{"pos": 0.5, "neg": 0.5}, '{"pos": 1}'])}


FORMS = {PREFERENCE: [pair, votes, probability, margin, arena, conversations, orca, chosen, chosen_turns, best_of,
                      nemo],
         CLASSIFICATION: [labelled, two_texts, soft]}


# What a good row says: (turns, responses) of each of its examples, the responses in the order of the alphabet


Said = tuple[list[tuple[str, str]], list[str]]


def turns(value) -> list[tuple[str, str]]:
    if isinstance(value, str) and value.startswith('[{"role"'):
        value = json.loads(value)
    if isinstance(value, str):
        return [("user", value)]
    return [(turn["role"], turn["content"]) for turn in value if (turn["role"], turn["content"]) != ("system", "")]


def listed(value: str | list) -> list[str] | None:
    """The texts of a list, or a JSON list, of texts and nulls."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
    if isinstance(value, list) and value and all(one is None or isinstance(one, str) for one in value):
        return [one for one in value if one]
    return None


def what_it_says(row: dict) -> list[Said]:
    if "text" in row:
        pair = [("user", row["text_pair"])] if row.get("text_pair") else []
        return [([("user", row["text"]), *pair], [])]
    if {"prompt", "response_a", "response_b"} <= row.keys():
        responses = [row["response_a"], row["response_b"]]
        if row.get("winner_model_a") in (None, ""):
            found = [(turns(row["prompt"]), responses)]
        else:
            prompt = [("user", one) for one in listed(row["prompt"]) or [row["prompt"]]]
            found = [(prompt, ["\n\n".join(listed(one) or [one]) for one in responses])]
    elif "conversation_a" in row:
        one, other = turns(row["conversation_a"]), turns(row["conversation_b"])
        if one[:-1] == other[:-1]:
            found = [(one[:-1], [one[-1][1], other[-1][1]])]
        else:
            found = [([turn for turn in one if turn[0] != "assistant"],
                      ["\n\n".join(said for role, said in both if role == "assistant") for both in (one, other)])]
    elif "completions" in row:
        answers = [completion["completion"][0]["content"] for completion in row["completions"]]
        found = [(turns(row["context"]), list(two)) for two in combinations(answers, 2)]
    elif "question" in row:
        found = [(turns(row["question"]), [row["chosen"], row["rejected"]])]
    elif isinstance(row["chosen"], list) and isinstance(row["chosen"][0], str):
        found = [(turns(row["prompt"]), [good, bad]) for good in row["chosen"] for bad in row["rejected"]]
    else:
        good, bad = turns(row["chosen"])[-1][1], turns(row["rejected"])[-1][1]
        found = [(turns(row["prompt"]) if row.get("prompt") else turns(row["chosen"])[:-1], [good, bad])]
    if (row.get("system") or "").strip():
        found = [(prompt if prompt[0][0] == "system" else [("system", row["system"]), *prompt], responses)
                 for prompt, responses in found]
    return [(prompt, sorted(responses)) for prompt, responses in found]


def says(example: Example) -> Said:
    return ([(turn["role"], turn["content"]) for turn in example.prompt],
            sorted(one for one in (example.response_a, example.response_b) if one is not None))


# What is done to them: (draw, row) -> line


WRONG = [None, True, False, 0, 7, -1, 1.5, 1e300, 10**30, -(10**400), [], {}, [1], ["t"], [None], [[]], [["t", "u"]],
         {"a": 1}, {"role": "user"}, {"content": "c"}, [{"role": "user", "content": 5}], [{"role": 5, "content": "c"}],
         [{"role": "tool", "content": "c"}], [{}], "", " ", "\u3000\u2028", "[", "{", "null", "[null]", "\x00"]
TEXTS = ("prompt", "response_a", "response_b", "chosen", "rejected", "question", "text", "text_pair")


def line(draw, row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=draw.random() < 0.5).encode()


def column(draw, row: dict) -> str:
    return draw.choice(sorted(row))


def inserted(draw, row: dict, damage: bytes) -> bytes:
    whole = line(draw, row)
    place = draw.randint(1, len(whole) - 1)
    return whole[:place] + damage + whole[place:]


def truncated(draw, row):
    whole = line(draw, row)
    return whole[: draw.randint(1, len(whole) - 1)]


def wrong_type(draw, row):
    return line(draw, row | {column(draw, row): draw.choice(WRONG)})


def several_wrong_types(draw, row):
    return line(draw, row | {column(draw, row): draw.choice(WRONG) for _ in range(3)})


def key_twice(draw, row):
    return line(draw, row)[:-1] + b", " + json.dumps(column(draw, row)).encode() + b": null}"


def not_a_number(draw, row):
    return line(draw, row | {draw.choice(["margin", column(draw, row), "extra"]): float(draw.choice(["nan", "-inf"]))})


def too_large_a_number(draw, row):
    return line(draw, row | {draw.choice(["margin", "extra"]): 12345.5}).replace(b"12345.5", b"1e999")


def raw_nul(draw, row):
    return inserted(draw, row, b"\x00")


def replaced_text(draw, row, end: str) -> dict:
    """A text of the row gets this end, or the row gets an unknown column where it has no plain text."""
    texts = [name for name in TEXTS if isinstance(row.get(name), str) and row[name][0] != "["]
    name = draw.choice(texts or ["extra"])
    return row | {name: row.get(name, "") + end}


def nul_in_a_text(draw, row):
    return line(draw, replaced_text(draw, row, "\x00"))


def lone_surrogate(draw, row):
    return json.dumps(replaced_text(draw, row, draw.choice("\ud800\udfff"))).encode()


def raw_surrogate(draw, row):
    return inserted(draw, row, b"\xed\xa0\x80")


def not_utf8(draw, row):
    return inserted(draw, row, draw.choice([b"\xff", b"\xc0\x80", b"\xf5"]))


def byte_order_mark(draw, row):
    return BOM + line(draw, row)


def windows_line_end(draw, row):
    return line(draw, row) + b"\r"


def separators(draw, row):
    row = replaced_text(draw, row, "\u2028\u2029\x85\x0b\x0c\x1c")
    return json.dumps(row, ensure_ascii=False).encode()


def empty_response(draw, row):
    name = next(name for name in ("response_b", "rejected", "conversation_b", "completions", "text") if name in row)
    return line(draw, row | {name: draw.choice(["", " ", "\n\t\u3000", "\u2028\x85"])})


def equal_responses(draw, row):
    same = text(draw)
    return line(draw, {"id": row["id"], "prompt": text(draw), "response_a": same, "response_b": same, "winner": "b"})


def unknown_label(draw, row):
    row = {name: value for name, value in row.items() if name not in ("votes", "probability")}
    name = "label" if "text" in row else "winner" if "winner" in row else "id"
    return line(draw, row | {name: draw.choice([["a"], {"a": 1}, 0.5, None if name != "id" else 0.5])})


def missing_column(draw, row):
    name = column(draw, row)
    return line(draw, {other: value for other, value in row.items() if other != name})


def unknown_column(draw, row):
    name = draw.choice(["extra", "", "\n", "\ud800", "Prompt", "\u2028"])
    return json.dumps(row | {name: draw.choice(WRONG)}).encode()


def deep(draw, row):
    levels = draw.choice([50, 500, 5000])
    where = draw.choice([column(draw, row), "extra"])
    return line(draw, row | {where: "@deep@"}).replace(b'"@deep@"', b"[" * levels + b"]" * levels)


def huge_integer(draw, row):
    where = draw.choice([column(draw, row), "extra"])
    return line(draw, row | {where: "@huge@"}).replace(b'"@huge@"', b"9" * draw.choice([25, 4000, 5000]))


def no_object(draw, row):
    return draw.choice([b"[]", b"null", b"5", b'"text"', b"true", b"{}", b"{", b"-", b"\x00", b"\\", BOM, b"\xa0"])


MUTATIONS = [truncated, wrong_type, several_wrong_types, key_twice, not_a_number, too_large_a_number, raw_nul,
             nul_in_a_text, lone_surrogate, raw_surrogate, not_utf8, byte_order_mark, windows_line_end, separators,
             empty_response, unknown_label, missing_column, unknown_column, deep, huge_integer, no_object]
ALWAYS_GOOD = {"unmutated", "windows_line_end", "separators", "nul_in_a_text", "unknown_column", "equal_responses",
               "one line of 10 MB"}
ALWAYS_BAD = {"truncated", "key_twice", "not_a_number", "raw_nul", "raw_surrogate", "not_utf8", "empty_response",
              "unknown_label", "no_object"}


def mutated(task: str, count: int) -> list[tuple[str, bytes]]:
    """What was done to each line, and the line."""
    draw = random.Random(f"{task} {count}")
    mutations = MUTATIONS + [equal_responses] * (task == PREFERENCE)
    lines = []
    for number in range(count):
        row = {"id": f"r{number}"} | draw.choice(FORMS[task])(draw)
        if number == count // 2:
            name = "response_a" if task == PREFERENCE else "text"
            row = {"id": "long"} | FORMS[task][0](draw) | {name: "x" * 10_000_000}
            lines.append(("one line of 10 MB", line(draw, row)))
        elif draw.random() < 0.25:
            lines.append(("unmutated", line(draw, row)))
        else:
            change = draw.choice(mutations)
            lines.append((change.__name__, change(draw, row)))
    return lines


def rejected_lines(report: ReadReport, path: Path) -> list[int]:
    """The line of each rejected row, each with a reason that fits on a line."""
    matches = [re.fullmatch(rf"{re.escape(str(path))}:(\d+): (\S.{{0,399}})", rejected) for rejected in report.rejected]
    assert all(matches)
    assert all(len(rejected.splitlines()) == 1 for rejected in report.rejected)
    return [int(match[1]) for match in matches]


@pytest.mark.parametrize(("task", "count"), [(PREFERENCE, 10_000), (CLASSIFICATION, 2_000)])
def test_mutated_lines_are_accepted_as_they_stand_or_rejected(task, count, tmp_path):
    lines = mutated(task, count)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(line + b"\n" for _, line in lines))
    assert path.read_bytes().count(b"\n") == len(lines) == count
    report, reading = ReadReport(), Reading(task, max_bad_fraction=1.0)
    examples = list(read_source(str(path), reading, report))
    assert report.read == count

    rejected = rejected_lines(report, path)
    assert rejected == sorted(set(rejected))
    rejected = set(rejected)
    assert rejected <= set(range(1, count + 1))
    accepted = [line for number, (_, line) in enumerate(lines, 1) if number not in rejected]
    assert len(accepted) + len(rejected) == count
    kinds = {good: Counter(kind for number, (kind, _) in enumerate(lines, 1) if (number not in rejected) == good)
             for good in (True, False)}
    assert not ALWAYS_GOOD & kinds[False].keys()
    assert not ALWAYS_BAD & kinds[True].keys()
    assert list(map(says, examples)) == [
        said for line in accepted for said in what_it_says(json.loads(line.removeprefix(BOM)))]

    for kind in sorted(kinds[True] | kinds[False]):
        print(f"{task} {kind}: {kinds[True][kind]} accepted, {kinds[False][kind]} rejected")
    print(f"{task}: {len(accepted)} of {count} lines accepted with {len(examples)} examples, {len(rejected)} rejected")

    stored = prepare_read([str(path)], reading, str(tmp_path / "cache"))
    assert stored.report == report
    assert stored.rows.to_list() == [example.to_row() for example in examples]


# CSV


CELLS = ["", " ", "\u2028\x85\x0b", "a\r\nb", "a\rb", "a\n\n", '""', "'", ",", ";", "\t", "\x00", "\ufeff", "007",
         "NaN", "null", "[", '["a", "b"]', '{"role": "user"}', "=1+1", "\\", "é" * 1000]


def csv_line(cells: list) -> bytes:
    written = io.StringIO(newline="")
    csv.writer(written).writerow(cells)
    return written.getvalue().encode("utf-8", "surrogateescape")


def mutated_csv(count: int) -> tuple[list[bytes], list[tuple | None]]:
    """The lines after the header `id,prompt,response_a,response_b,winner`, and what each says, None where it is bad."""
    draw = random.Random(count)
    written, wanted = [], []
    for number in range(count):
        cells = [f"r{number}", *(draw.choice([text(draw), draw.choice(CELLS)]) for _ in range(3)),
                 draw.choice(["a", "b", "tie", "tie", "a", "", "c"])]
        damage = draw.random()
        good = all(cell.strip() for cell in cells) and cells[-1] != "c"
        if damage < 0.05:
            cells.append("one more")
        elif damage < 0.1:
            cells.pop()
        elif damage < 0.15:
            cells[draw.randint(1, 3)] += "\udcff"  # the byte 0xFF
        written.append(csv_line(cells))
        wanted.append((cells[1], cells[2], cells[3]) if good and damage >= 0.15 else None)
    return written, wanted


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_mutated_csv_rows_are_accepted_as_they_stand_or_rejected(tmp_path, line_end):
    written, wanted = mutated_csv(1000)
    written = [row[:-2] + line_end for row in written]
    header = b"id,prompt,response_a,response_b,winner" + line_end
    path = tmp_path / "rows.csv"
    path.write_bytes(header + b"".join(written))
    ends, lines = [], 1
    for row in written:
        lines += len(re.findall(rb"\r\n|\r|\n", row))
        ends.append(lines)

    report = ReadReport()
    examples = list(read_source(str(path), Reading(max_bad_fraction=1.0), report))
    assert [(row.prompt[0]["content"], row.response_a, row.response_b) for row in examples] == [
        said for said in wanted if said]
    assert rejected_lines(report, path) == [end for end, said in zip(ends, wanted, strict=True) if not said]
    assert report.read == len(examples) + len(report.rejected) == 1000
    print(f"csv: {len(examples)} accepted, {len(report.rejected)} rejected")


def read_or_refused(path: Path) -> int:
    """How many rows were read, -1 where the file was refused with one short line."""
    report = ReadReport()
    try:
        found = list(read_source(str(path), Reading(max_bad_fraction=1.0), report))
    except UserError as error:
        assert str(error).startswith(str(path))
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 1000
        return -1
    rejected_lines(report, path)
    assert len(found) + len(report.rejected) == report.read
    return report.read


def test_a_csv_file_with_damaged_bytes_is_read_or_refused(tmp_path):
    draw = random.Random(0)
    whole = b"id,prompt,response_a,response_b,winner\n" + b"".join(mutated_csv(20)[0])
    path = tmp_path / "rows.csv"
    found = Counter()
    for _ in range(500):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + draw.choice([b'"', b"\xff", b"\x00", b"\r", b",", b"\n", b""])
                         + whole[place + draw.randint(0, 20) :])
        found[read_or_refused(path) >= 0] += 1
    assert min(found[True], found[False]) > 20


# Parquet


COLUMNS = {"id": "1", "group": "g", "language": "en", "source": "s", "kind": "k", "prompt": "p", "response_a": "x",
           "response_b": "y", "winner": "a", "margin": 1.0, "system": "s", "subset": "t"}


def test_parquet_rows_with_nulls_are_accepted_or_rejected(tmp_path):
    draw = random.Random(0)
    rows = [{name: None if draw.random() < 0.05 else value for name, value in COLUMNS.items()} for _ in range(1000)]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    report = ReadReport()
    examples = list(read_source(str(path), Reading(max_bad_fraction=1.0), report))
    bad = [number for number, row in enumerate(rows, 1)
           if None in (row["prompt"], row["response_a"], row["response_b"], row["winner"])]
    assert rejected_lines(report, path) == bad
    assert len(examples) + len(bad) == report.read == 1000


WRONG_COLUMNS = [
    pyarrow.array([None, None]), pyarrow.array([1, 2]), pyarrow.array([2**64 - 1, 0], pyarrow.uint64()),
    pyarrow.array([1.5, float("nan")]), pyarrow.array([True, None]), pyarrow.array([b"\xff", b""]),
    pyarrow.array([["x"], []]), pyarrow.array([["x", None], None]), pyarrow.array([{"role": "user"}, None]),
    pyarrow.array([[{"role": "user", "content": "c"}], [{"role": None, "content": None}]]),
    pyarrow.array([{"a": 1, "b": None}, {"a": None, "b": None}]),
    pyarrow.array([[("a", 1.0)], []], pyarrow.map_(pyarrow.string(), pyarrow.float64())),
    pyarrow.array([datetime.datetime(2020, 1, 1), None]), pyarrow.array([datetime.date(2020, 1, 1), None]),
    pyarrow.array([datetime.timedelta(1), None]), pyarrow.array([decimal.Decimal("1.5"), None]),
    pyarrow.array(["x", None]).dictionary_encode(), pyarrow.array(["x", ""], pyarrow.large_string()),
    pyarrow.array([[[["x"]]], [[[]]]]),
]


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("column", WRONG_COLUMNS, ids=[str(column.type) for column in WRONG_COLUMNS])
def test_a_parquet_column_of_any_type_is_accepted_or_rejected(tmp_path, name, column):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({other: [value] * 2 for other, value in COLUMNS.items()} | {name: column})
    pyarrow.parquet.write_table(table, path)
    assert read_or_refused(path) == 2


def test_a_parquet_file_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([COLUMNS]), path)
    whole = path.read_bytes()
    for end in range(0, len(whole), 50):
        path.write_bytes(whole[:end])
        assert read_or_refused(path) == -1


# Control tokens


def test_texts_that_spell_control_tokens_leave_the_template_as_it_is():
    tokenizer = train_tokenizer([" ".join(WORDS)] * 20, 400)
    tokenizer.add_tokens(["farewell", "fox says", "<|added|>"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<special>", "[INST]"]}, replace_extra_special_tokens=False)
    control = set(tokenizer.get_added_vocab().values())
    assert len(control) == 9 + 5
    spelled = [*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens]
    template, draw = Template.of(tokenizer), random.Random(0)

    def hostile() -> str:
        return "".join(draw.choices([*spelled, *WORDS, " ", "\n"], k=draw.randint(1, 12))) + str(draw.randrange(1000))

    def plain() -> str:
        return f"plain {draw.randrange(10**6)}"

    def rows(write) -> dict[str, list]:
        """1,000 rows: of two responses to prompts of one to three turns, and every tenth of texts alone."""
        found = []
        for number in range(1000):
            roles = ["user", "assistant", "user"][: 1 + 2 * (number % 2)]
            responses = (None, None) if number % 10 == 0 else (write() + "1", write() + "2")
            found.append(Example(str(number), "g", "en", "s", "k", [said(role, write()) for role in roles], *responses,
                                 {"a": 1.0}).to_row())
        return {name: [row[name] for row in found] for name in found[0]}

    def sequences(encoder, batch) -> list[list[int]]:
        encoded = encoder.encode(batch)
        assert len(encoded["id"]) == 1000
        for prompt, a, b in zip(encoded["prompt_ids"], encoded["a_ids"], encoded["b_ids"], strict=True):
            assert not control & {*(a or []), *(b or [])}
            yield template.sequence(prompt, *([] if a is None else [a, b]))

    def skeleton(sequence: list[int]) -> list[int]:
        return [token for token in sequence if token in control]

    batch = rows(hostile)
    texts = [turn["content"] for prompt in batch["prompt"] for turn in prompt]
    assert all(any(token in text for text in texts) for token in spelled)
    assert set(tokenizer(texts[0] + "".join(spelled))["input_ids"]) >= control  # what the tokenizer alone would do
    whole = Encoder(tokenizer, 100_000)
    for number, (one, other) in enumerate(zip(sequences(whole, batch), sequences(whole, rows(plain)), strict=True)):
        assert skeleton(one) == skeleton(other)
        spans = re.split(r"(?:<\d+>)+", "".join(f"<{token}>" if token in control else f" {token}" for token in one))
        wanted = [turn["content"] for turn in batch["prompt"][number]]
        wanted += [one for one in (batch["response_a"][number], batch["response_b"][number]) if one is not None]
        assert [tokenizer.decode(list(map(int, span.split()))) for span in spans[1:-1]] == wanted

    turn = rf"<{template.start}><(?:{'|'.join(map(str, template.roles.values()))})><{template.end}>"
    for sequence in sequences(Encoder(tokenizer, 64), batch):  # cut short
        found = "".join(f"<{token}>" for token in skeleton(sequence))
        assert re.fullmatch(rf"<{template.bos}>(?:{turn})+<{template.eos}>", found)
