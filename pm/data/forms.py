"""Foreign rows become `Example`s here. `chosen` and `rejected` exist nowhere else in the package.

A form is recognised by its columns. Each has a function from the row to the comparisons (or the texts) in it; what
all forms share - id, group, language, source, kind - is added by `examples`.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

from pm.data.example import ROLES, WINNERS, Example, prompt_key, text_hash
from pm.data.languages import UNKNOWN, language_code
from pm.task import CLASSIFICATION, LANGUAGE, PREFERENCE

ROUNDING = 0.01  # how far from 1 the sum of written probabilities may be
LONGEST_REASON = 400
LONGEST_LABEL = 200

Turns = list[dict[str, str]]


class BadRow(ValueError):
    """Why one row was rejected: on one line, and cut where it is long."""

    def __init__(self, reason: str):
        super().__init__(reason if len(reason) <= LONGEST_REASON else reason[: LONGEST_REASON - 3] + "...")


class Texts(NamedTuple):
    """What a form finds in a row; `part` tells the comparisons of one row apart."""

    prompt: Turns
    response_a: str | None
    response_b: str | None
    target: dict[str, float]
    part: str = ""


class Form(NamedTuple):
    """Rows that have all of `columns`, for some tasks. `convert` takes the row and the log-odds of a margin of 1.
    `by_name`: only where the form is asked for."""

    columns: frozenset[str]
    tasks: tuple[str, ...]
    convert: Callable[[dict, float], Iterator[Texts]]
    by_name: bool = False


def examples(row: dict, task: str, form: str | None, margin_scale: float, language: str, source: str,
             detect: Callable[[str], str] | None) -> list[Example]:
    """The examples of a row; `language` and `source` are used where it names none. Raises `BadRow`."""
    return [_example(row, texts, language, source, detect)
            for texts in _form(row, task, form).convert(row, margin_scale)]


def _form(row: dict, task: str, name: str | None) -> Form:
    wanted = [FORMS[name]] if name else [form for form in FORMS.values()
                                             if task in form.tasks and not form.by_name]
    for form in wanted:
        if form.columns <= row.keys():
            return form
    known = "; ".join(", ".join(sorted(form.columns)) for form in wanted)
    other = next((f"; with --task {form.tasks[0]} they are known" for form in FORMS.values()
                  if task != LANGUAGE and task not in form.tasks and form.columns <= row.keys()), "")
    raise BadRow(f"columns {sorted(row)!s:.200} are none of the known forms: {known}{other}")


def _example(row: dict, texts: Texts, language: str, source: str, detect: Callable[[str], str] | None) -> Example:
    identifier = _optional(row, "id")
    if identifier:
        identifier += texts.part
    else:
        identifier = text_hash(json.dumps(texts.prompt), texts.response_a or "", texts.response_b or "")
    language = language_code(_optional(row, "language") or language)
    if language == UNKNOWN and detect:
        language = detect(" ".join(text for text in (texts.response_a, texts.response_b) if text)
                          or texts.prompt[-1]["content"])
    return Example(
        id=identifier,
        group=_group(row) or "prompt-" + prompt_key(texts.prompt),
        language=language,
        source=_optional(row, "source") or source,
        kind=_optional(row, "kind") or _optional(row, "subset"),
        prompt=texts.prompt, response_a=texts.response_a, response_b=texts.response_b, target=texts.target,
    )


def _group(row: dict) -> str:
    """What links translations: our `group`, or the row number in the original of `multilingual/orca_dpo_pairs`."""
    index = _optional(row, "mllm_index")
    return _optional(row, "group") or (f"mllm-{index}" if index else "")


# The forms


def _pair(row: dict, margin_scale: float) -> Iterator[Texts]:
    """`prompt, response_a, response_b` and a label; arena's columns hold JSON lists of turns."""
    arena = _given(row, "winner_model_a")
    prompt = _arena_prompt(row["prompt"]) if arena else _prompt(row["prompt"], "prompt")
    a, b = ((_joined_turns if arena else _plain)(row[name], name) for name in ("response_a", "response_b"))
    yield Texts(_with_system(row, prompt), a, b, _pair_target(row, margin_scale))


def _conversations(row: dict, margin_scale: float) -> Iterator[Texts]:
    """`conversation_a, conversation_b`, in which the user says the same, and a label."""
    names = ("conversation_a", "conversation_b")
    one, other = (_turns(row[name], name) for name in names)
    if one[:-1] == other[:-1]:
        prompt, a, b = _after_prompt(one, other, one[:-1], names)
    else:
        prompt, asked = ([turn for turn in turns if turn["role"] != "assistant"] for turns in (one, other))
        if prompt != asked:
            raise BadRow("conversation_a and conversation_b must have the same user turns")
        for name, turns in zip(names, (one, other), strict=True):
            if not turns or turns[-1]["role"] != "assistant":
                raise BadRow(f"{name} must end with an assistant turn")
        a, b = (_plain(_answers(turn["content"] for turn in turns if turn["role"] == "assistant"), name)
                for name, turns in zip(names, (one, other), strict=True))
    yield Texts(_with_system(row, _prompt(prompt, "prompt")), a, b, _pair_target(row, margin_scale))


def _orca(row: dict, margin_scale: float) -> Iterator[Texts]:
    """`question`, `chosen` and `rejected`, all texts. In a set that mixes such rows with others all have a `prompt`."""
    if _given(row, "prompt") and not (_given(row, "question") and isinstance(_parsed_turns(row["chosen"]), str)):
        yield from _chosen(row, margin_scale)
        return
    yield _ranked(_with_system(row, _prompt(row["question"], "question")), _plain(row["chosen"], "chosen"),
                  _plain(row["rejected"], "rejected"), _margin(row, margin_scale))


def _chosen(row: dict, margin_scale: float) -> Iterator[Texts]:
    """`chosen, rejected`: texts, lists of turns, or lists of texts (RewardBench 2), each of which is compared."""
    chosen, rejected = _parsed_turns(row["chosen"]), _parsed_turns(row["rejected"])
    probability = _margin(row, margin_scale)
    if isinstance(chosen, list) and isinstance(rejected, list) and chosen and isinstance(chosen[0], dict):
        one, other = _turns(chosen, "chosen"), _turns(rejected, "rejected")
        prompt = one[:-1]
        if _given(row, "prompt"):
            written = _prompt(row["prompt"], "prompt")
            if one[:-1] != other[:-1] or len(written) > 1 or written[0] not in prompt:
                prompt = written  # else it is one of the user's turns in what both begin with
        prompt, good, bad = _after_prompt(one, other, prompt, ("chosen", "rejected"))
        yield _ranked(_with_system(row, _prompt(prompt, "prompt")), good, bad, probability)
        return
    if not _given(row, "prompt"):
        raise BadRow("a prompt column is needed where chosen and rejected are plain text")
    prompt = _with_system(row, _prompt(row["prompt"], "prompt"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        yield _ranked(prompt, _plain(chosen, "chosen"), _plain(rejected, "rejected"), probability)
        return
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise BadRow("chosen and rejected must be two texts or two lists, not "
                     f"{type(chosen).__name__} and {type(rejected).__name__}")
    if not chosen or not rejected:
        raise BadRow(f"{'rejected' if chosen else 'chosen'} is empty")
    for i, good in enumerate(chosen):
        for j, bad in enumerate(rejected):
            yield _ranked(prompt, _plain(good, "chosen"), _plain(bad, "rejected"), probability, f"/{i}-{j}")


def _round_robin(row: dict, margin_scale: float) -> Iterator[Texts]:
    """`prompt`, and lists of texts `chosen` and `rejected`, which may be written as JSON: every two of all of them."""
    prompt = _with_system(row, _prompt(row["prompt"], "prompt"))
    right, wrong = (_json(row[name]) for name in ("chosen", "rejected"))
    if not (isinstance(right, list) and isinstance(wrong, list) and right and wrong):
        raise BadRow("chosen and rejected must be lists of at least one text")
    read = [(True, _plain(text, "chosen")) for text in right] + [(False, _plain(text, "rejected")) for text in wrong]
    for (i, (better, text)), (j, (as_good, other)) in combinations(enumerate(read), 2):
        if better == as_good:
            yield Texts(prompt, text, other, {"tie": 1.0}, f"/{i}-{j}")
        else:
            yield _ranked(prompt, text, other, 1.0, f"/{i}-{j}")


def _completions(row: dict, margin_scale: float) -> Iterator[Texts]:
    """`context` and ranked `completions`, the lowest rank best: every two of them are compared."""
    prompt = _with_system(row, _prompt(row["context"], "context"))
    completions = _json(row["completions"])
    if not isinstance(completions, list) or len(completions) < 2:
        raise BadRow("completions must be a list of at least two")
    read = []
    for completion in completions:
        if not isinstance(completion, dict) or not {"rank", "completion"} <= completion.keys():
            raise BadRow("completions: each must have rank and completion")
        turns = _turns(completion["completion"], "completion")
        if [turn["role"] for turn in turns] != ["assistant"]:
            raise BadRow("completion must be one assistant turn")
        read.append((_number(completion["rank"], "rank"), turns[0]["content"]))
    for (i, (rank, text)), (j, (other_rank, other)) in combinations(enumerate(read), 2):
        if rank == other_rank:
            yield Texts(prompt, text, other, {"tie": 1.0}, f"/{i}-{j}")
        else:
            good, bad = (text, other) if rank < other_rank else (other, text)
            yield _ranked(prompt, good, bad, 1.0, f"/{i}-{j}")


def _classified(row: dict, margin_scale: float) -> Iterator[Texts]:
    """`text`, `text_pair` and `label`."""
    turns = [{"role": "user", "content": _plain(row["text"], "text")}]
    if _given(row, "text_pair"):
        turns.append({"role": "user", "content": _plain(row["text_pair"], "text_pair")})
    if _given(row, "probability"):
        probabilities = _json(row["probability"])
        if not isinstance(probabilities, dict):
            raise BadRow("probability must be an object of classes")
        probabilities = {_class_name(name, "a class of probability"): number
                         for name, number in _without_nulls(probabilities).items()}
        yield Texts(turns, None, None, _distribution(probabilities, "probability"))
        return
    label = row.get("label")
    if not isinstance(label, (str, int)) or label == "":
        raise BadRow(f"label must be the name or number of a class, not {_shown(label)}")
    yield Texts(turns, None, None, {_class_name(str(label), "label"): 1.0})


def _text(row: dict, margin_scale: float) -> Iterator[Texts]:
    """`text` by itself."""
    yield Texts([{"role": "user", "content": _plain(row["text"], "text")}], None, None, {})


# The first form whose columns a row has is taken.
COMPARED = (PREFERENCE, LANGUAGE)
FORMS = {
    "pair": Form(frozenset({"prompt", "response_a", "response_b"}), COMPARED, _pair),
    "conversations": Form(frozenset({"conversation_a", "conversation_b"}), COMPARED, _conversations),
    "orca": Form(frozenset({"question", "chosen", "rejected"}), COMPARED, _orca),
    "chosen": Form(frozenset({"chosen", "rejected"}), COMPARED, _chosen),
    "completions": Form(frozenset({"context", "completions"}), COMPARED, _completions),
    "round_robin": Form(frozenset({"prompt", "chosen", "rejected"}), COMPARED, _round_robin, by_name=True),
    "classification": Form(frozenset({"text"}), (CLASSIFICATION,), _classified),
    "text": Form(frozenset({"text"}), (LANGUAGE,), _text),
}


# Labels


def _pair_target(row: dict, margin_scale: float) -> dict[str, float]:
    """The most detailed label there is: votes, then probabilities, then a winner with or without a margin."""
    if _given(row, "votes"):
        votes = _by_winner(row["votes"], "votes")
        if min(votes.values()) < 0:
            raise BadRow(f"votes must be at least 0, not {list(votes.values())}")
        total = sum(votes.values())
        if not total:
            raise BadRow("votes are all zero")
        return _distribution({name: count / total for name, count in votes.items()}, "votes")
    if _given(row, "probability"):
        value = _json(row["probability"])
        if not isinstance(value, (dict, list)):
            value = _number(value, "probability")
            value = [value, 1 - value]
        return _distribution(_by_winner(value, "probability"), "probability")
    if _given(row, "winner_model_a"):
        columns = {"a": "winner_model_a", "b": "winner_model_b", "tie": "winner_tie"}
        return _distribution({name: row[column] for name, column in columns.items() if _given(row, column)},
                             "winner_model_a, winner_model_b and winner_tie")
    winner = row.get("winner")
    known = {"a": "a", "b": "b", "tie": "tie", "model_a": "a", "model_b": "b", "tie (bothbad)": "tie",
             "both_bad": "tie"}
    if not isinstance(winner, str) or winner not in known:
        raise BadRow(f"winner must be one of {', '.join(known)}, not {_shown(winner)}")
    if known[winner] == "tie":
        return {"tie": 1.0}
    return _two_sided(known[winner], _margin(row, margin_scale))


def _by_winner(value: object, name: str) -> dict[str, object]:
    """`[a, b]`, `[a, b, tie]` or an object of these, with numbers."""
    value = _json(value)
    if isinstance(value, list) and len(value) in (2, 3):
        value = dict(zip(WINNERS, value, strict=False))
    elif isinstance(value, dict):
        value = _without_nulls(value)
    if not isinstance(value, dict) or not value or not value.keys() <= set(WINNERS):
        raise BadRow(f"{name} must be [a, b], [a, b, tie] or an object of these")
    return {key: _number(number, name) for key, number in value.items()}


def _distribution(values: dict[str, object], name: str) -> dict[str, float]:
    numbers = {key: _number(value, name) for key, value in values.items()}
    if any(number < 0 for number in numbers.values()) or round(abs(sum(numbers.values()) - 1), 9) > ROUNDING:
        raise BadRow(f"{name} must be at least 0 and add up to 1, not {list(numbers.values())}")
    scale = sum(numbers.values())
    return {key: number / scale for key, number in numbers.items() if number}


def _margin(row: dict, margin_scale: float) -> float:
    """Probability that the better response is better: 1, or by Bradley and Terry the sigmoid of a scaled margin."""
    if not _given(row, "margin"):
        return 1.0
    margin = _number(row["margin"], "margin")
    if margin < 0:
        raise BadRow(f"margin must be at least 0, not {margin:g}: it says by how much the better response is better")
    return 1 / (1 + math.exp(-min(margin * margin_scale, 700.0)))


def _two_sided(winner: str, probability: float) -> dict[str, float]:
    other = "b" if winner == "a" else "a"
    return {winner: 1.0} if probability == 1 else {winner: probability, other: 1 - probability}


def _ranked(prompt: Turns, good: str, bad: str, probability: float, part: str = "") -> Texts:
    """Which of the two is A is drawn from a hash of the texts."""
    if int(text_hash("order", prompt_key(prompt), good, bad), 16) % 2:
        return Texts(prompt, good, bad, _two_sided("a", probability), part)
    return Texts(prompt, bad, good, _two_sided("b", probability), part)


# Values


def _given(row: dict, column: str) -> bool:
    """Whether the row has a value there; an empty cell of a .csv is none."""
    return row.get(column) not in (None, "")


def _without_nulls(values: dict) -> dict:
    """A .parquet gives every object the keys of all, with null for those that it does not have."""
    return {name: value for name, value in values.items() if value is not None}


def _shown(value: object) -> str:
    """A wrong value as a reason shows it; a list or an object may be of any size and depth."""
    return type(value).__name__ if isinstance(value, (list, dict)) else f"{value!r:.50}"


def _number(value: object, name: str) -> float:
    try:
        if not isinstance(value, (str, int, float)):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise BadRow(f"{name} must be a number, not {_shown(value)}") from None
    if not math.isfinite(number):
        raise BadRow(f"{name} must be a finite number, not {_shown(value)}")
    return number


def _json(value: object) -> object:
    """Lists and objects may be written as JSON in a text, as in a .csv; any other text stays what it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _parsed_turns(value: object) -> object:
    """A text is turns only where it is a JSON list of objects with role and content; else it is a text."""
    parsed = _json(value)
    if isinstance(parsed, list) and parsed and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys()
                                                   for turn in parsed):
        return parsed
    return value


def _optional(row: dict, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise BadRow(f"{column} must be text, not {type(value).__name__}")
    return storable(str(value), column)


def _plain(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} must be text, not {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    return storable(value, name)


def _class_name(text: str, name: str) -> str:
    if len(text) > LONGEST_LABEL:
        raise BadRow(f"{name} is longer than {LONGEST_LABEL} characters")
    return _plain(text, name)


def storable(text: str, name: str) -> str:
    """Raises `BadRow` for a text that cannot be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{name} is not UTF-8, or holds a lone surrogate") from None
    return text


def _prompt(value: object, name: str) -> Turns:
    value = _parsed_turns(value)
    return [{"role": "user", "content": _plain(value, name)}] if isinstance(value, str) else prompt_turns(value, name)


def prompt_turns(value: object, name: str) -> Turns:
    """A list of turns as a prompt. Raises `BadRow` where it is none."""
    if not isinstance(value, list):
        raise BadRow(f"{name} must be text or a list of turns, not {type(value).__name__}")
    turns = _turns(value, name)
    if not turns or turns[-1]["role"] != "user":
        raise BadRow(f"{name} must end with a user turn" + (f", not {turns[-1]['role']}" if turns else ""))
    return turns


def _turns(value: object, name: str) -> Turns:
    value = _parsed_turns(value)
    if not isinstance(value, list):
        raise BadRow(f"{name} must be a list of turns, not {type(value).__name__}")
    if not value:
        raise BadRow(f"{name} is empty")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise BadRow(f"{name}: each turn must have role and content")
        if turn["role"] not in ROLES:
            raise BadRow(f"{name}: role must be one of {', '.join(ROLES)}, not {_shown(turn['role'])}")
        if turn["role"] == "system" and turn["content"] in (None, ""):
            continue
        turns.append({"role": turn["role"], "content": _content(turn["content"], f"{name} turn")})
    return turns


def _content(value: object, name: str) -> str:
    """A turn's text, which may be written as a list of parts `{"type": "text", "text"}`."""
    if isinstance(value, list) and value and all(isinstance(part, dict) and part.get("type") == "text"
                                                 for part in value):
        return "\n".join(_plain(part.get("text"), name) for part in value)
    return _plain(value, name)


def _with_system(row: dict, prompt: Turns) -> Turns:
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise BadRow(f"system must be text, not {type(system).__name__}")
    if not system or not system.strip() or prompt[0]["role"] == "system":
        return prompt
    return [{"role": "system", "content": storable(system, "system")}, *prompt]


def _after_prompt(one: Turns, other: Turns, prompt: Turns, names: tuple[str, str]) -> tuple[Turns, str, str]:
    """The prompt, which may stand at the beginning of both lists of turns, and the two responses after it."""
    responses = []
    for name, turns in zip(names, (one, other), strict=True):
        rest = turns[len(prompt):] if turns[: len(prompt)] == prompt else turns
        if [turn["role"] for turn in rest] != ["assistant"]:
            raise BadRow(f"{name} must be the prompt followed by one assistant turn")
        responses.append(rest[0]["content"])
    return prompt, *responses


def _parsed_list(value: object) -> list | None:
    """Arena's texts are JSON lists of the texts of all turns, with null for a missing one."""
    parsed = _json(value)
    if isinstance(parsed, list) and parsed and all(text is None or isinstance(text, str) for text in parsed):
        return [text for text in parsed if text is not None and text.strip()]
    return None


def _answers(texts: Iterable[str]) -> str:
    """The answers to all turns, one after the other: the two conversations share only what the user says."""
    return "\n\n".join(texts)


def _arena_prompt(value: object) -> Turns:
    texts = _parsed_list(value)
    if texts is None:
        return _prompt(value, "prompt")
    if not texts:
        raise BadRow("prompt is empty")
    return [{"role": "user", "content": storable(text, "prompt")} for text in texts]


def _joined_turns(value: object, name: str) -> str:
    texts = _parsed_list(value)
    return _plain(value if texts is None else _answers(texts), name)
