"""Literal rows of every form to literal `Example`s, and every way in which a row is bad."""

import json
import math

import pytest

from pm.data.example import Example
from pm.data.forms import FORMS, BadRow, examples
from pm.task import CLASSIFICATION, LANGUAGE, PREFERENCE

USER = {"role": "user", "content": "p"}
GOOD, BAD = {"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}
P_KEY = "prompt-bab13d950742f1cb"  # the group of the prompt "p"

OURS = {"id": "1", "group": "g", "language": "en", "source": "s", "kind": "k", "prompt": "Why?", "response_a": "So.",
        "response_b": "No.", "winner": "a"}
PAIR = {"id": "1", "prompt": "p", "response_a": "x", "response_b": "y"}
CHOSEN = {"id": "1", "prompt": "p", "chosen": "x", "rejected": "y"}
TEXT = {"id": "1", "text": "t", "label": "pos"}


def read(row, task=PREFERENCE, form=None, margin_scale=1.0, language="", detect=None) -> list[Example]:
    before = json.dumps(row)
    found = examples(row, task, form, margin_scale, language, "file", detect)
    assert json.dumps(row) == before
    return found


def one(row, **how) -> Example:
    found, = read(row, **how)
    return found


def reason(row, **how) -> str:
    with pytest.raises(BadRow) as caught:
        read(row, **how)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) <= 400
    return text


def judged(row: Example) -> tuple[str, str, str]:
    """The prompt's last turn, the better response and the worse one."""
    assert row.target in ({"a": 1.0}, {"b": 1.0})
    pair = (row.response_a, row.response_b)
    return row.prompt[-1]["content"], *(pair if "a" in row.target else pair[::-1])


def turns(*texts: str) -> list[dict[str, str]]:
    """User and assistant by turns."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


# Ours


def test_ours_with_a_text_prompt():
    assert one(OURS) == Example("1", "g", "en", "s", "k", turns("Why?"), "So.", "No.", {"a": 1.0})


def test_ours_with_a_prompt_of_turns():
    prompt = [{"role": "system", "content": "Be kind."}, *turns("Hi", "Hello!", "Why?")]
    wanted = Example("1", "g", "en", "s", "k", prompt, "So.", "No.", {"a": 1.0})
    assert one(OURS | {"prompt": prompt}) == wanted
    assert one(OURS | {"prompt": [turn | {"name": "left out"} for turn in prompt]}) == wanted
    assert one(OURS | {"prompt": json.dumps(prompt)}) == wanted
    assert one(OURS | {"prompt": prompt[1:], "system": "Be kind."}) == wanted
    assert one(OURS | {"prompt": prompt, "system": "Be rude."}) == wanted


@pytest.mark.parametrize(("winner", "target"), [
    ("a", {"a": 1.0}), ("b", {"b": 1.0}), ("tie", {"tie": 1.0}), ("model_a", {"a": 1.0}), ("model_b", {"b": 1.0}),
    ("tie (bothbad)", {"tie": 1.0}), ("both_bad", {"tie": 1.0}),
])
def test_the_winner_becomes_the_target(winner, target):
    assert one(PAIR | {"winner": winner}).target == target


def test_columns_that_are_missing_null_or_empty_are_filled_in():
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "a"}
    wanted = Example("00981b66a073034b", P_KEY, "und", "file", "", [USER], "x", "y", {"a": 1.0})
    names = ("id", "group", "language", "source", "kind", "system", "votes", "probability", "margin", "winner_model_a")
    assert one(row) == one(row | dict.fromkeys(names)) == one(row | dict.fromkeys(names, "")) == wanted
    assert one(row, language="es").language == "es"


def test_an_integer_id_is_text():
    assert one(OURS | {"id": 17, "group": 0}).id == "17"
    assert one(OURS | {"id": 17, "group": 0}).group == "0"


def test_the_language_of_a_row_goes_before_that_of_its_file_and_before_a_detected_one():
    def detect(text):
        return f"of {text}"

    row = PAIR | {"winner": "a"}
    assert one(row | {"language": "English"}, language="es", detect=detect).language == "en"
    assert one(row, language="es", detect=detect).language == "es"
    assert one(row | {"language": "unknown"}, detect=detect).language == "of x y"
    assert one({"text": "t"} | TEXT, task=CLASSIFICATION, detect=detect).language == "of t"


@pytest.mark.parametrize(("votes", "target"), [
    ([3, 1], {"a": 0.75, "b": 0.25}),
    ([2, 0], {"a": 1.0}),
    ([1, 1, 2], {"a": 0.25, "b": 0.25, "tie": 0.5}),
    ({"a": 3, "b": 1, "tie": 1}, {"a": 0.6, "b": 0.2, "tie": 0.2}),
    ({"b": 5}, {"b": 1.0}),
    ({"a": 3, "b": 1, "tie": None}, {"a": 0.75, "b": 0.25}),  # how a .parquet writes a key that is not there
    ("[3, 1]", {"a": 0.75, "b": 0.25}),
    (' {"a": "3", "tie": "1"}', {"a": 0.75, "tie": 0.25}),
])
def test_votes(votes, target):
    assert one(PAIR | {"votes": votes, "winner": "tie"}).target == pytest.approx(target)


@pytest.mark.parametrize(("probability", "target"), [
    (0.75, {"a": 0.75, "b": 0.25}),
    ("0.75", {"a": 0.75, "b": 0.25}),
    (1, {"a": 1.0}),
    (0, {"b": 1.0}),
    ([0.5, 0.25, 0.25], {"a": 0.5, "b": 0.25, "tie": 0.25}),
    ("[0.75, 0.25]", {"a": 0.75, "b": 0.25}),
    ({"a": 0.5, "tie": 0.5}, {"a": 0.5, "tie": 0.5}),
    ('{"b": 0.25, "tie": 0.75}', {"b": 0.25, "tie": 0.75}),
    ([0.333, 0.333, 0.333], {"a": 1 / 3, "b": 1 / 3, "tie": 1 / 3}),
    ([0.33, 0.33, 0.33], {"a": 1 / 3, "b": 1 / 3, "tie": 1 / 3}),
])
def test_probabilities(probability, target):
    found = one(PAIR | {"probability": probability, "winner": "tie"}).target
    assert found == pytest.approx(target)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-15)


def test_votes_go_before_probabilities_and_those_before_the_winner():
    row = PAIR | {"votes": [1, 0], "probability": 0.0, "winner": "tie"}
    assert one(row).target == {"a": 1.0}
    assert one(row | {"votes": None}).target == {"b": 1.0}
    assert one(row | {"votes": "", "probability": ""}).target == {"tie": 1.0}


def test_a_margin_is_the_log_odds_of_the_winner():
    odds = math.log(3)  # 3 to 1
    row = PAIR | {"winner": "b", "margin": odds}
    assert one(row).target == pytest.approx({"b": 0.75, "a": 0.25})
    assert one(row | {"winner": "a", "margin": str(odds)}).target == pytest.approx({"a": 0.75, "b": 0.25})
    assert one(row | {"margin": odds / 10}, margin_scale=10.0).target == pytest.approx({"b": 0.75, "a": 0.25})
    assert one(row | {"margin": 0}).target == {"b": 0.5, "a": 0.5}
    assert one(row | {"margin": 1e308}, margin_scale=1e308).target == {"b": 1.0}
    assert one(row | {"margin": None}).target == one(row | {"margin": ""}).target == {"b": 1.0}
    assert one(row | {"winner": "tie"}).target == {"tie": 1.0}


# Arena, WSDM


ARENA = {"id": 30192, "model_a": "m", "model_b": "n", "prompt": '["p"]', "response_a": '["x"]', "response_b": '["y"]',
         "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}


def test_arena_of_one_turn():
    assert one(ARENA) == Example("30192", P_KEY, "und", "file", "", [USER], "x", "y", {"a": 1.0})


def test_arena_of_several_turns():
    row = ARENA | {"prompt": '["p", "q"]', "response_a": '["x", "more"]', "response_b": '["y", "less"]'}
    found = one(row)
    assert found.prompt == [USER, {"role": "user", "content": "q"}]
    assert (found.response_a, found.response_b) == ("x\n\nmore", "y\n\nless")
    assert one({name: json.loads(value) if name in ("prompt", "response_a", "response_b") else value
                for name, value in row.items()}) == found


def test_arena_with_nulls():
    found = one(ARENA | {"prompt": '["p", null]', "response_a": '[null, "x"]', "response_b": '["y", " ", null]'})
    assert (found.prompt, found.response_a, found.response_b) == ([USER], "x", "y")


def test_arena_text_that_is_no_list_stays_text():
    found = one(ARENA | {"prompt": "[p", "response_a": "[1]", "response_b": "[]"})
    assert (found.prompt[0]["content"], found.response_a, found.response_b) == ("[p", "[1]", "[]")


@pytest.mark.parametrize(("winners", "target"), [
    ((1, 0, 0), {"a": 1.0}), ((0, 1, 0), {"b": 1.0}), ((0, 0, 1), {"tie": 1.0}),
    (("1", "0", "0"), {"a": 1.0}), (("0", "1", "0"), {"b": 1.0}), (("0", "0", "1"), {"tie": 1.0}),
    ((0.25, 0.5, 0.25), {"a": 0.25, "b": 0.5, "tie": 0.25}), ((0, 1, None), {"b": 1.0}), (("0", "1", ""), {"b": 1.0}),
])
def test_arena_winners(winners, target):
    row = dict(zip(("winner_model_a", "winner_model_b", "winner_tie"), winners, strict=True))
    assert one(ARENA | row).target == target


@pytest.mark.parametrize(("change", "wanted"), [
    ({"prompt": "[null]"}, "prompt is empty"),
    ({"prompt": '["", " "]'}, "prompt is empty"),
    ({"response_a": "[null, null]"}, "response_a is empty"),
    ({"response_b": '[" "]'}, "response_b is empty"),
    ({"response_b": '["\\ud83d"]'}, "response_b is not UTF-8, or holds a lone surrogate"),
    ({"prompt": '["\\ud83d"]'}, "prompt is not UTF-8, or holds a lone surrogate"),
    ({"response_a": 5}, "response_a must be text, not int"),
    ({"winner_model_a": 0},
     "winner_model_a, winner_model_b and winner_tie must be at least 0 and add up to 1, not [0.0, 0.0, 0.0]"),
    ({"winner_tie": 1},
     "winner_model_a, winner_model_b and winner_tie must be at least 0 and add up to 1, not [1.0, 0.0, 1.0]"),
    ({"winner_model_a": -1, "winner_model_b": 2},
     "winner_model_a, winner_model_b and winner_tie must be at least 0 and add up to 1, not [-1.0, 2.0, 0.0]"),
    ({"winner_model_a": "yes"},
     "winner_model_a, winner_model_b and winner_tie must be a number, not 'yes'"),
])
def test_a_bad_row_of_arena(change, wanted):
    assert reason(ARENA | change) == wanted


def test_wsdm():
    row = {"id": "00007cff", "prompt": "p", "response_a": "x", "response_b": "y", "winner": "model_b",
           "model_a": "m", "model_b": "n", "language": "English"}
    assert one(row) == Example("00007cff", P_KEY, "en", "file", "", [USER], "x", "y", {"b": 1.0})


# Conversations


CONVERSATIONS = {"question_id": "1", "id": "1", "model_a": "m", "model_b": "n", "winner": "model_a",
                 "language": "German", "conversation_a": [USER, GOOD], "conversation_b": [USER, BAD]}


def test_conversations_of_one_turn():
    wanted = Example("1", P_KEY, "de", "file", "", [USER], "x", "y", {"a": 1.0})
    assert one(CONVERSATIONS) == wanted
    texts = {name: json.dumps(CONVERSATIONS[name]) for name in ("conversation_a", "conversation_b")}
    assert one(CONVERSATIONS | texts) == wanted


def test_conversations_that_share_all_but_the_last_answer():
    row = {"conversation_a": turns("u", "v", "w", "x"), "conversation_b": turns("u", "v", "w", "y")}
    found = one(CONVERSATIONS | row)
    assert (found.prompt, found.response_a, found.response_b) == (turns("u", "v", "w"), "x", "y")


def test_conversations_with_different_answers():
    system = {"role": "system", "content": "s"}
    found = one(CONVERSATIONS | {"conversation_a": [system, *turns("u", "v", "w", "x")],
                                 "conversation_b": [system, *turns("u", "V", "w", "y")], "winner": "tie (bothbad)"})
    assert found.prompt == [system, {"role": "user", "content": "u"}, {"role": "user", "content": "w"}]
    assert (found.response_a, found.response_b, found.target) == ("v\n\nx", "V\n\ny", {"tie": 1.0})


def test_conversations_with_system_turns():
    for system in ({"role": "system", "content": ""}, {"role": "system", "content": None}):
        row = CONVERSATIONS | {"conversation_a": [system, USER, GOOD], "conversation_b": [USER, BAD]}
        assert one(row).prompt == [USER]
    row = CONVERSATIONS | {"system": "s"}
    assert one(row).prompt == [{"role": "system", "content": "s"}, USER]


@pytest.mark.parametrize(("change", "wanted"), [
    ({"conversation_a": [{"role": "user", "content": "q"}, GOOD]},
     "conversation_a and conversation_b must have the same user turns"),
    ({"conversation_a": [*turns("p", "x", "q", "x")]},
     "conversation_a and conversation_b must have the same user turns"),
    ({"conversation_a": [USER], "conversation_b": [USER]},
     "conversation_a must be the prompt followed by one assistant turn"),
    ({"conversation_b": [USER, USER]}, "conversation_b must be the prompt followed by one assistant turn"),
    ({"conversation_a": turns("u", "v", "w"), "conversation_b": turns("u", "V", "w")},
     "conversation_a must end with an assistant turn"),
    ({"conversation_a": turns("u", "v", "w", "x"), "conversation_b": turns("u", "V", "w")},
     "conversation_b must end with an assistant turn"),
    ({"conversation_a": [GOOD], "conversation_b": [BAD]}, "prompt is empty"),
    ({"conversation_a": []}, "conversation_a is empty"),
    ({"conversation_a": "Hello"}, "conversation_a must be a list of turns, not str"),
    ({"conversation_b": None}, "conversation_b must be a list of turns, not NoneType"),
    ({"conversation_b": [USER, "y"]}, "conversation_b: each turn must have role and content"),
    ({"conversation_b": [USER, {"role": "assistant", "content": ""}]}, "conversation_b turn is empty"),
    ({"winner": "both"}, "winner must be one of a, b, tie, model_a, model_b, tie (bothbad), both_bad, not 'both'"),
])
def test_a_bad_row_of_conversations(change, wanted):
    assert reason(CONVERSATIONS | change) == wanted


# Orca


ORCA = {"id": "1", "system": "Be kind.", "question": "q", "chosen": "x", "rejected": "y"}


def test_orca_with_a_system_text():
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}]
    found = one(ORCA)
    assert found.prompt == prompt
    assert judged(found) == ("q", "x", "y")


@pytest.mark.parametrize("system", [{}, {"system": None}, {"system": ""}, {"system": " \n"}])
def test_orca_without_a_system_text(system):
    row = {name: value for name, value in ORCA.items() if name != "system"} | system
    assert one(row) == Example("1", "prompt-d8bd38ee9bee818c", "und", "file", "", turns("q"), "y", "x", {"b": 1.0})


def test_multilingual_orca():
    assert one(ORCA | {"mllm_index": 0}, language="es").group == "mllm-0"
    assert one(ORCA | {"mllm_index": "7"}).group == "mllm-7"
    assert one(ORCA | {"mllm_index": 7, "group": "g"}).group == "g"
    assert one(ORCA | {"mllm_index": None, "system": None}).group == "prompt-d8bd38ee9bee818c"


@pytest.mark.parametrize(("change", "wanted"), [
    ({"system": 5}, "system must be text, not int"),
    ({"system": "\ud800"}, "system is not UTF-8, or holds a lone surrogate"),
    ({"question": " "}, "question is empty"),
    ({"question": None}, "question must be text or a list of turns, not NoneType"),
    ({"question": turns("q", "r")}, "question must end with a user turn, not assistant"),
    ({"chosen": None}, "chosen must be text, not NoneType"),
    ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "chosen must be text, not list"),
    ({"rejected": 5}, "rejected must be text, not int"),
    ({"margin": "wide"}, "margin must be a number, not 'wide'"),
    ({"mllm_index": 1.5}, "mllm_index must be text, not float"),
])
def test_a_bad_row_of_orca(change, wanted):
    assert reason(ORCA | change) == wanted


# Chosen and rejected


def test_chosen_and_rejected_as_text():
    assert one(CHOSEN) == Example("1", P_KEY, "und", "file", "", [USER], "x", "y", {"a": 1.0})


def test_chosen_may_become_response_b():
    found = one(CHOSEN | {"prompt": "q"})
    assert (found.response_a, found.response_b, found.target) == ("y", "x", {"b": 1.0})


def test_chosen_is_a_about_half_of_the_time():
    found = [one({"prompt": f"p{number}", "chosen": "x", "rejected": "y"}) for number in range(1000)]
    assert all(judged(row)[1:] == ("x", "y") for row in found)
    assert 450 < sum(row.response_a == "x" for row in found) < 550


@pytest.mark.parametrize("row", [
    {"prompt": "p", "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": "p", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [BAD]},
    {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"chosen": [USER, GOOD], "rejected": [BAD]},
    {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"prompt": json.dumps([USER]), "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])},
    {"prompt": "", "chosen": json.dumps([USER, GOOD]), "rejected": " " + json.dumps([USER, BAD])},
    {"prompt": [{"role": "system", "content": ""}, USER], "chosen": "x", "rejected": "y"},
])
def test_turns_with_an_explicit_or_a_common_prompt(row):
    assert one({"id": "1"} | row) == Example("1", P_KEY, "und", "file", "", [USER], "x", "y", {"a": 1.0})


def test_many_turns():
    prompt = [{"role": "system", "content": "s"}, *turns("u", "v", "w")]
    found = one({"chosen": [*prompt, GOOD], "rejected": [*prompt, BAD]})
    assert found.prompt == prompt
    assert judged(found) == ("w", "x", "y")
    assert one({"system": "t", "chosen": [*prompt, GOOD], "rejected": [*prompt, BAD]}) == found
    assert one({"system": "s", "chosen": [*prompt[1:], GOOD], "rejected": [*prompt[1:], BAD]}) == found


@pytest.mark.parametrize("prompt", ["u", "w", [{"role": "user", "content": "w"}]])
def test_a_prompt_beside_many_turns_may_be_any_of_the_users(prompt):
    history = [{"role": "system", "content": "s"}, *turns("u", "v", "w")]
    found = one({"prompt": prompt, "chosen": [*history, GOOD], "rejected": [*history, BAD]})
    assert found.prompt == history
    assert judged(found) == ("w", "x", "y")


@pytest.mark.parametrize("prompt", ["v", "s", "other"])
def test_another_prompt_than_one_of_the_users_is_bad(prompt):
    history = [{"role": "system", "content": "s"}, *turns("u", "v", "w")]
    assert reason({"prompt": prompt, "chosen": [*history, GOOD], "rejected": [*history, BAD]}) == (
        "chosen must be the prompt followed by one assistant turn")


@pytest.mark.parametrize("question", ["p", None])
def test_turns_beside_a_question_and_a_prompt(question):
    """A set that mixes rows of orca with others has the columns of both."""
    row = {"id": "1", "prompt": "p", "question": question, "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert one(row) == Example("1", P_KEY, "und", "file", "", [USER], "x", "y", {"a": 1.0})
    assert one(row | {"chosen": "x", "rejected": "y"}).prompt == [USER]


def test_a_turn_in_parts():
    def parts(role: str, *texts: str) -> dict:
        return {"role": role, "content": [{"type": "text", "text": text, "image": None} for text in texts]}

    row = CONVERSATIONS | {"conversation_a": [parts("user", "p", "q"), parts("assistant", "x")],
                           "conversation_b": [parts("user", "p", "q"), parts("assistant", "y")]}
    found = one(row)
    assert (found.prompt, found.response_a, found.response_b) == (turns("p\nq"), "x", "y")
    picture = {"role": "user", "content": [{"type": "image", "image": "..."}]}
    assert reason(row | {"conversation_a": [picture, GOOD]}) == "conversation_a turn must be text, not list"
    assert reason(row | {"conversation_a": [parts("user", " "), GOOD]}) == "conversation_a turn is empty"


def test_chosen_with_a_margin():
    good = one(CHOSEN | {"margin": math.log(3)})
    assert (good.response_a, good.target) == ("x", pytest.approx({"a": 0.75, "b": 0.25}))
    other = one(CHOSEN | {"prompt": "q", "margin": 2 * math.log(3)}, margin_scale=0.5)
    assert (other.response_b, other.target) == ("x", pytest.approx({"b": 0.75, "a": 0.25}))
    assert one(CHOSEN | {"margin": None}).target == {"a": 1.0}


@pytest.mark.parametrize(("change", "wanted"), [
    ({"prompt": None}, "a prompt column is needed where chosen and rejected are plain text"),
    ({"prompt": ""}, "a prompt column is needed where chosen and rejected are plain text"),
    ({"prompt": " "}, "prompt is empty"),
    ({"rejected": ""}, "rejected is empty"),
    ({"chosen": None}, "chosen and rejected must be two texts or two lists, not NoneType and str"),
    ({"chosen": {"role": "assistant", "content": "x"}},
     "chosen and rejected must be two texts or two lists, not dict and str"),
    ({"rejected": 5}, "chosen and rejected must be two texts or two lists, not str and int"),
    ({"rejected": [BAD]}, "chosen and rejected must be two texts or two lists, not str and list"),
    ({"chosen": [GOOD]}, "chosen and rejected must be two texts or two lists, not list and str"),
    ({"chosen": json.dumps([GOOD])}, "chosen and rejected must be two texts or two lists, not list and str"),
    ({"prompt": None, "chosen": [GOOD], "rejected": [BAD]}, "prompt is empty"),
    ({"chosen": [USER], "rejected": [USER]}, "chosen must be the prompt followed by one assistant turn"),
    ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
     "chosen must be the prompt followed by one assistant turn"),
    ({"prompt": None, "chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "q"}, BAD]},
     "rejected must be the prompt followed by one assistant turn"),
    ({"chosen": [USER, GOOD, USER], "rejected": [USER, GOOD, USER]},
     "chosen must be the prompt followed by one assistant turn"),
    ({"chosen": [{"role": "assistant", "content": 5}], "rejected": [BAD]}, "chosen turn must be text, not int"),
    ({"chosen": [GOOD], "rejected": ["y"]}, "rejected: each turn must have role and content"),
    ({"chosen": [GOOD], "rejected": []}, "rejected is empty"),
    ({"margin": -0.5}, "margin must be at least 0, not -0.5: it says by how much the better response is better"),
    ({"margin": "wide"}, "margin must be a number, not 'wide'"),
    ({"margin": [1]}, "margin must be a number, not list"),
    ({"margin": 10**400}, "margin must be a number, not 1" + "0" * 49),
    ({"margin": math.nan}, "margin must be a finite number, not nan"),
    ({"margin": "1" * 400}, "margin must be a finite number, not '" + "1" * 49),
])
def test_a_bad_row_of_chosen(change, wanted):
    assert reason(CHOSEN | change) == wanted


# RewardBench


def test_rewardbench_1():
    row = CHOSEN | {"id": 30, "chosen_model": "m", "rejected_model": "n", "subset": "alpacaeval-easy"}
    assert one(row) == Example("30", P_KEY, "und", "file", "alpacaeval-easy", [USER], "x", "y", {"a": 1.0})
    assert one(row | {"kind": "k"}).kind == "k"


REWARDBENCH_2 = {"id": "7", "prompt": "p", "chosen": ["x"], "rejected": ["y1", "y2", "y3"], "num_correct": 1,
                 "total_completions": 4, "subset": "Math"}


def test_rewardbench_2():
    found = read(REWARDBENCH_2)
    assert [row.id for row in found] == ["7/0-0", "7/0-1", "7/0-2"]
    assert [judged(row) for row in found] == [("p", "x", "y1"), ("p", "x", "y2"), ("p", "x", "y3")]
    assert {row.group for row in found} == {P_KEY}
    assert {row.kind for row in found} == {"Math"}


def test_every_pair_of_rewardbench_2():
    found = read(REWARDBENCH_2 | {"chosen": ["x0", "x1"], "rejected": ["y0", "y1"]})
    assert [(row.id, *judged(row)[1:]) for row in found] == [
        ("7/0-0", "x0", "y0"), ("7/0-1", "x0", "y1"), ("7/1-0", "x1", "y0"), ("7/1-1", "x1", "y1")]


def test_pairs_of_a_row_without_an_id_have_different_ones():
    assert len({row.id for row in read(REWARDBENCH_2 | {"id": None})}) == 3


@pytest.mark.parametrize(("change", "wanted"), [
    ({"chosen": []}, "chosen is empty"),
    ({"rejected": []}, "rejected is empty"),
    ({"chosen": [None]}, "chosen must be text, not NoneType"),
    ({"rejected": ["y", " "]}, "rejected is empty"),
    ({"rejected": ["y", ["z"]]}, "rejected must be text, not list"),
    ({"rejected": [BAD]}, "rejected must be text, not dict"),
    ({"prompt": None}, "a prompt column is needed where chosen and rejected are plain text"),
])
def test_a_bad_row_of_rewardbench_2(change, wanted):
    assert reason(REWARDBENCH_2 | change) == wanted


def test_m_rewardbench():
    found = one(CHOSEN | {"language": "arb_Arab", "subset": "hep-cpp"})
    assert (found.language, found.kind) == ("ar", "hep-cpp")


# NeMo


def nemo(*ranked: tuple) -> dict:
    return {"id": "1", "context": [USER], "completions": [
        {"rank": rank, "completion": [{"role": "assistant", "content": text}]} for rank, text in ranked]}


def test_nemo_with_two_completions():
    assert read(nemo((0, "x"), (1, "y"))) == [
        Example("1/0-1", P_KEY, "und", "file", "", [USER], "x", "y", {"a": 1.0})]
    found, = read(nemo((2, "y"), (1, "x")))
    assert (found.id, judged(found)) == ("1/0-1", ("p", "x", "y"))


def test_nemo_with_three_completions():
    found = read(nemo((1, "best"), (3, "worst"), ("2", "between")))
    assert [(row.id, *judged(row)[1:]) for row in found] == [
        ("1/0-1", "best", "worst"), ("1/0-2", "best", "between"), ("1/1-2", "between", "worst")]


def test_equal_ranks_of_nemo_are_a_tie():
    assert read(nemo((1, "x"), (1.0, "y"))) == [
        Example("1/0-1", P_KEY, "und", "file", "", [USER], "x", "y", {"tie": 1.0})]


def test_nemo_as_texts():
    row = nemo((0, "x"), (1, "y"))
    texts = {"context": json.dumps(row["context"]), "completions": json.dumps(row["completions"])}
    assert read(row | texts) == read(row | {"context": "p"}) == read(row)
    assert read(row | {"system": "s"})[0].prompt == [{"role": "system", "content": "s"}, USER]


@pytest.mark.parametrize(("change", "wanted"), [
    ({"context": []}, "context is empty"),
    ({"context": [GOOD]}, "context must end with a user turn, not assistant"),
    ({"context": None}, "context must be text or a list of turns, not NoneType"),
    (nemo(), "completions must be a list of at least two"),
    (nemo((0, "x")), "completions must be a list of at least two"),
    ({"completions": "[1, 2"}, "completions must be a list of at least two"),
    ({"completions": None}, "completions must be a list of at least two"),
    ({"completions": ["x", "y"]}, "completions: each must have rank and completion"),
    ({"completions": [{"rank": 0}, {"rank": 1}]}, "completions: each must have rank and completion"),
    (nemo((0, "x"), (None, "y")), "rank must be a number, not None"),
    (nemo((0, "x"), ("first", "y")), "rank must be a number, not 'first'"),
    (nemo((0, "x"), (math.inf, "y")), "rank must be a finite number, not inf"),
    (nemo((0, "x"), (1, " ")), "completion turn is empty"),
    ({"completions": [{"rank": 0, "completion": "x"}] * 2}, "completion must be a list of turns, not str"),
    ({"completions": [{"rank": 0, "completion": []}] * 2}, "completion is empty"),
    ({"completions": [{"rank": 0, "completion": [USER, GOOD]}] * 2}, "completion must be one assistant turn"),
    ({"completions": [{"rank": 0, "completion": [USER]}] * 2}, "completion must be one assistant turn"),
])
def test_a_bad_row_of_nemo(change, wanted):
    assert reason(nemo((0, "x"), (1, "y")) | change) == wanted


# Classification


def classified(row) -> Example:
    return one(row, task=CLASSIFICATION)


def test_a_text_and_its_label():
    assert classified(TEXT) == Example("1", "prompt-0356cf916b28f80e", "und", "file", "",
                                       [{"role": "user", "content": "t"}], None, None, {"pos": 1.0})


@pytest.mark.parametrize("pair", [{}, {"text_pair": None}, {"text_pair": ""}])
def test_without_a_second_text(pair):
    assert classified(TEXT | pair) == classified(TEXT)


def test_two_texts_and_their_label():
    assert classified(TEXT | {"text_pair": "u"}).prompt == [
        {"role": "user", "content": "t"}, {"role": "user", "content": "u"}]


@pytest.mark.parametrize(("label", "name"), [
    ("pos", "pos"), ("3", "3"), (3, "3"), (0, "0"), (-1, "-1"), (True, "True"), ("5 étoiles", "5 étoiles"),
])
def test_the_label_becomes_the_target(label, name):
    assert classified(TEXT | {"label": label}).target == {name: 1.0}


@pytest.mark.parametrize(("probability", "target"), [
    ({"pos": 0.75, "neg": 0.25, "neither": 0}, {"pos": 0.75, "neg": 0.25}),
    ('{"pos": 1}', {"pos": 1.0}),
    ({"pos": 0.5, "neg": 0.5, "neither": None}, {"pos": 0.5, "neg": 0.5}),
])
@pytest.mark.parametrize("label", [{"label": None}, {"label": ""}, {}])
def test_probabilities_of_classes(probability, target, label):
    assert classified({"text": "t", "probability": probability} | label).target == target


def test_probabilities_go_before_a_label():
    assert classified(TEXT | {"probability": {"neg": 0.75, "pos": 0.25}}).target == {"neg": 0.75, "pos": 0.25}
    assert classified(TEXT | {"probability": None}).target == {"pos": 1.0}


@pytest.mark.parametrize(("change", "wanted"), [
    ({"text": ""}, "text is empty"),
    ({"text": None}, "text must be text, not NoneType"),
    ({"text": ["t"]}, "text must be text, not list"),
    ({"text": "\ud800"}, "text is not UTF-8, or holds a lone surrogate"),
    ({"text_pair": " "}, "text_pair is empty"),
    ({"text_pair": 5}, "text_pair must be text, not int"),
    ({"label": None}, "label must be the name or number of a class, not None"),
    ({"label": ""}, "label must be the name or number of a class, not ''"),
    ({"label": " "}, "label is empty"),
    ({"label": 1.0}, "label must be the name or number of a class, not 1.0"),
    ({"label": ["pos"]}, "label must be the name or number of a class, not list"),
    ({"label": "\ud800"}, "label is not UTF-8, or holds a lone surrogate"),
    ({"label": "x" * 201}, "label is longer than 200 characters"),
    ({"label": 10**200}, "label is longer than 200 characters"),
    ({"label": None, "probability": {"x" * 201: 1}}, "a class of probability is longer than 200 characters"),
    ({"label": None, "probability": 0.5}, "probability must be an object of classes"),
    ({"label": None, "probability": [0.5, 0.5]}, "probability must be an object of classes"),
    ({"label": None, "probability": "{"}, "probability must be an object of classes"),
    ({"label": None, "probability": {}}, "probability must be at least 0 and add up to 1, not []"),
    ({"label": None, "probability": {"pos": 0.5}}, "probability must be at least 0 and add up to 1, not [0.5]"),
    ({"label": None, "probability": {"pos": 1.5, "neg": -0.5}},
     "probability must be at least 0 and add up to 1, not [1.5, -0.5]"),
    ({"label": None, "probability": {"pos": "1,0"}}, "probability must be a number, not '1,0'"),
    ({"label": None, "probability": {"\ud800": 1}}, "a class of probability is not UTF-8, or holds a lone surrogate"),
    ({"label": None, "probability": {" ": 1}}, "a class of probability is empty"),
])
def test_a_bad_row_of_a_classification(change, wanted):
    assert reason(TEXT | change, task=CLASSIFICATION) == wanted


# A text by itself


def a_text(row, **how) -> Example:
    return one(row, task=LANGUAGE, **how)


def test_a_text():
    wanted = Example("1", "prompt-0356cf916b28f80e", "und", "file", "", [{"role": "user", "content": "t"}], None, None,
                     {})
    assert a_text({"id": "1", "text": "t"}) == a_text({"id": "1", "text": "t"}, form="text") == wanted
    found = a_text({"text": "t"}, language="es")
    assert (found.id, found.language) == ("9ea4cba4e68aace6", "es")
    named = a_text({"text": "t", "group": "g", "language": "German", "source": "s", "kind": "k"}, language="es")
    assert (named.group, named.language, named.source, named.kind) == ("g", "de", "s", "k")
    assert a_text({"text": "t"}, detect=lambda text: f"of {text}").language == "of t"


@pytest.mark.parametrize("label", ["pos", 5, None, "", ["x"], 1.5])
def test_a_text_with_a_label_is_a_text(label):
    assert a_text(TEXT | {"label": label, "text_pair": "u", "probability": "x"}) == a_text({"id": "1", "text": "t"})


@pytest.mark.parametrize("row", [OURS, ORCA, CHOSEN, CONVERSATIONS])
def test_comparisons_are_read_beside_texts(row):
    assert a_text(row) == one(row)
    assert a_text(row | {"text": "t"}) == one(row)  # its other columns say more
    assert a_text(row | {"text": "t"}, form="text").prompt == [{"role": "user", "content": "t"}]


def test_text_that_looks_like_turns_is_text():
    text = '[{"role": "user", "content": "c"}]'
    assert a_text({"text": text}).prompt == [{"role": "user", "content": text}]


@pytest.mark.parametrize(("row", "wanted"), [
    ({"text": ""}, "text is empty"),
    ({"text": " \n\u3000"}, "text is empty"),
    ({"text": None}, "text must be text, not NoneType"),
    ({"text": [USER]}, "text must be text, not list"),
    ({"text": "\ud800"}, "text is not UTF-8, or holds a lone surrogate"),
    ({"id": 1.5, "text": "t"}, "id must be text, not float"),
    ({"content": "t"}, "columns ['content'] are none of the known forms: prompt, response_a, response_b; "
                       "conversation_a, conversation_b; chosen, question, rejected; chosen, rejected; completions, "
                       "context; text"),
])
def test_a_bad_row_of_texts(row, wanted):
    assert reason(row, task=LANGUAGE) == wanted


def test_a_text_is_no_comparison_and_no_classification():
    assert reason({"text": "t"}).endswith("with --task classification they are known")
    assert reason({"text": "t"}, task=CLASSIFICATION) == "label must be the name or number of a class, not None"


# Which form


def test_the_form_of_a_row_depends_on_its_columns_alone():
    rows = [OURS, ORCA, CHOSEN, CONVERSATIONS, nemo((0, "x"), (1, "y"))]
    assert [row.prompt[-1]["content"] for row in map(one, rows)] == ["Why?", "q", "p", "p", "p"]
    assert [one(row, form=form) for row, form in zip(rows, ("pair", "orca", "chosen", "conversations", "completions"),
                                                     strict=True)] == list(map(one, rows))


def test_a_form_that_is_asked_for_is_taken():
    row = PAIR | {"winner": "a", "chosen": "c", "rejected": "d"}
    assert judged(one(row)) == ("p", "x", "y")
    assert judged(one(row, form="chosen")) == ("p", "c", "d")
    assert reason(row, form="orca") == (
        "columns ['chosen', 'id', 'prompt', 'rejected', 'response_a', 'response_b', 'winner'] are none of the known "
        "forms: chosen, question, rejected")


def test_a_row_of_no_form():
    assert reason(TEXT) == (
        "columns ['id', 'label', 'text'] are none of the known forms: prompt, response_a, response_b; "
        "conversation_a, conversation_b; chosen, question, rejected; chosen, rejected; completions, context; "
        "with --task classification they are known")
    assert reason({}, task=CLASSIFICATION) == "columns [] are none of the known forms: text"
    assert reason({"\n": 1, "\u2028": 2}, task=CLASSIFICATION) == (
        "columns ['\\n', '\\u2028'] are none of the known forms: text")


# What is wrong in any form


@pytest.mark.parametrize(("change", "wanted"), [
    ({"response_a": ""}, "response_a is empty"),
    ({"response_b": " \n\t\u3000\u2028"}, "response_b is empty"),
    ({"response_a": None}, "response_a must be text, not NoneType"),
    ({"response_a": 5}, "response_a must be text, not int"),
    ({"response_b": 1.5}, "response_b must be text, not float"),
    ({"response_b": True}, "response_b must be text, not bool"),
    ({"response_b": ["So."]}, "response_b must be text, not list"),
    ({"response_b": GOOD}, "response_b must be text, not dict"),
    ({"response_b": "\ud800"}, "response_b is not UTF-8, or holds a lone surrogate"),
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": "\udfff"}, "prompt is not UTF-8, or holds a lone surrogate"),
    ({"prompt": None}, "prompt must be text or a list of turns, not NoneType"),
    ({"prompt": 5}, "prompt must be text or a list of turns, not int"),
    ({"prompt": USER}, "prompt must be text or a list of turns, not dict"),
    ({"prompt": []}, "prompt is empty"),
    ({"prompt": ["p"]}, "prompt: each turn must have role and content"),
    ({"prompt": [{"role": "user"}]}, "prompt: each turn must have role and content"),
    ({"prompt": [{"role": "tool", "content": "p"}, USER]},
     "prompt: role must be one of system, user, assistant, not 'tool'"),
    ({"prompt": [{"role": ["user"], "content": "p"}]},
     "prompt: role must be one of system, user, assistant, not list"),
    ({"prompt": [{"role": "system", "content": ""}]}, "prompt must end with a user turn"),
    ({"prompt": [{"role": "user", "content": None}]}, "prompt turn must be text, not NoneType"),
    ({"prompt": [{"role": "user", "content": " "}]}, "prompt turn is empty"),
    ({"prompt": [{"role": "user", "content": "\ud800"}]}, "prompt turn is not UTF-8, or holds a lone surrogate"),
    ({"prompt": [USER, GOOD]}, "prompt must end with a user turn, not assistant"),
    ({"winner": "c"}, "winner must be one of a, b, tie, model_a, model_b, tie (bothbad), both_bad, not 'c'"),
    ({"winner": "A"}, "winner must be one of a, b, tie, model_a, model_b, tie (bothbad), both_bad, not 'A'"),
    ({"winner": None}, "winner must be one of a, b, tie, model_a, model_b, tie (bothbad), both_bad, not None"),
    ({"winner": 0}, "winner must be one of a, b, tie, model_a, model_b, tie (bothbad), both_bad, not 0"),
    ({"winner": ["a"]}, "winner must be one of a, b, tie, model_a, model_b, tie (bothbad), both_bad, not list"),
    ({"margin": -1}, "margin must be at least 0, not -1: it says by how much the better response is better"),
    ({"votes": [0, 0]}, "votes are all zero"),
    ({"votes": [3, -1]}, "votes must be at least 0, not [3.0, -1.0]"),
    ({"votes": [-3, -1]}, "votes must be at least 0, not [-3.0, -1.0]"),
    ({"votes": [1, -1]}, "votes must be at least 0, not [1.0, -1.0]"),
    ({"votes": [1]}, "votes must be [a, b], [a, b, tie] or an object of these"),
    ({"votes": [1, 1, 1, 1]}, "votes must be [a, b], [a, b, tie] or an object of these"),
    ({"votes": {}}, "votes must be [a, b], [a, b, tie] or an object of these"),
    ({"votes": {"a": 1, "c": 1}}, "votes must be [a, b], [a, b, tie] or an object of these"),
    ({"votes": 3}, "votes must be [a, b], [a, b, tie] or an object of these"),
    ({"votes": ["many", 1]}, "votes must be a number, not 'many'"),
    ({"votes": [3, None]}, "votes must be a number, not None"),
    ({"probability": 1.2}, "probability must be at least 0 and add up to 1, not [1.2, -0.19999999999999996]"),
    ({"probability": [0.5, 0.4]}, "probability must be at least 0 and add up to 1, not [0.5, 0.4]"),
    ({"probability": "likely"}, "probability must be a number, not 'likely'"),
    ({"probability": "nan"}, "probability must be a finite number, not 'nan'"),
    ({"probability": {"pos": 1}}, "probability must be [a, b], [a, b, tie] or an object of these"),
    ({"id": 1.5}, "id must be text, not float"),
    ({"id": True}, "id must be text, not bool"),
    ({"id": "\ud800"}, "id is not UTF-8, or holds a lone surrogate"),
    ({"group": ["g"]}, "group must be text, not list"),
    ({"language": {"code": "en"}}, "language must be text, not dict"),
    ({"source": "\ud800"}, "source is not UTF-8, or holds a lone surrogate"),
    ({"kind": []}, "kind must be text, not list"),
    ({"kind": None, "subset": 1.5}, "subset must be text, not float"),
    ({"system": ["s"]}, "system must be text, not list"),
])
def test_a_wrong_value_is_rejected(change, wanted):
    assert reason(OURS | change) == wanted


@pytest.mark.parametrize("text", ["x" * 1_000_000, "\n\r\u2028" * 300_000, " " * 1_000_000])
@pytest.mark.parametrize("row", [
    lambda text: OURS | {"winner": text},
    lambda text: OURS | {"winner": {text: text}},
    lambda text: OURS | {"prompt": [{"role": text, "content": "p"}]},
    lambda text: OURS | {"probability": "nan" + " " * len(text)},
    lambda text: OURS | {"probability": [text, text]},
    lambda text: CHOSEN | {"margin": text},
    lambda text: {text: 1},
    lambda text: {f"{text} {number}": number for number in range(3)},
])
def test_a_reason_is_short(row, text):
    reason(row(text))


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("column", ["prompt", "response_a", "winner", "votes", "probability", "id", "system", "kind"])
@pytest.mark.parametrize("levels", [2, 500, 100_000])
def test_a_value_of_many_levels_is_rejected(column, levels):
    with pytest.raises(BadRow) as caught:  # not by `reason`: it writes the row as JSON
        examples(OURS | {column: deep(levels)}, PREFERENCE, None, 1.0, "", "file", None)
    assert len(str(caught.value)) < 200


# Texts


LOOKS_LIKE_JSON = ['["a", "b"]', "[1, 2", "[1, 2]", '{"role": "user"}', '{"role": "user", "content": "c"}', "[]", "{}",
                   '[{"role": "user"}]', '["a", null]', '[{"content": "c"}]', "null", "5", '"quoted"', "[" * 5000]


@pytest.mark.parametrize("text", LOOKS_LIKE_JSON)
def test_text_that_looks_like_json_stays_text(text):
    good, bad = text + " ", text + "\n"
    found = one({"prompt": text, "response_a": good, "response_b": bad, "winner": "a"})
    assert (found.prompt, found.response_a, found.response_b) == (turns(text), good, bad)
    assert judged(one({"prompt": text, "chosen": good, "rejected": bad})) == (text, good, bad)
    assert judged(one({"question": text, "chosen": good, "rejected": bad})) == (text, good, bad)
    assert judged(one({"prompt": text, "chosen": [good], "rejected": [bad]})) == (text, good, bad)
    said = [{"role": "user", "content": text}, {"role": "assistant", "content": good}]
    other = [said[0], {"role": "assistant", "content": bad}]
    assert judged(one({"chosen": said, "rejected": other})) == (text, good, bad)
    assert judged(one({"conversation_a": said, "conversation_b": other, "winner": "a"})) == (text, good, bad)
    assert judged(one({"context": text, "completions": [{"rank": 0, "completion": said[1:]},
                                                        {"rank": 1, "completion": other[1:]}]})) == (text, good, bad)
    found = classified({"text": text, "text_pair": good, "label": "pos"})
    assert [turn["content"] for turn in found.prompt] == [text, good]


def test_texts_are_kept_as_they_are():
    text = " \ufeffA\r\n\u2028\x85\x00e\u0301 😀\ufffd\t"
    found = one(OURS | {"prompt": text, "response_a": text, "response_b": text + " "})
    assert (found.prompt[0]["content"], found.response_a, found.response_b) == (text, text, text + " ")


def test_equal_responses_are_read():
    found = one(OURS | {"response_b": "So."})
    assert (found.response_a, found.response_b, found.target) == ("So.", "So.", {"a": 1.0})


def test_the_names_of_the_forms():
    assert {name: form.tasks for name, form in FORMS.items()} == dict.fromkeys(
        ("pair", "conversations", "orca", "chosen", "completions", "round_robin"), (PREFERENCE, LANGUAGE)) | {
        "classification": (CLASSIFICATION,), "text": (LANGUAGE,)}
