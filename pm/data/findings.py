"""Rows of preference data to what is found in them: duplicates, contradictions, leaks, shortcuts.

Rows are streamed; of each only hashes and a few numbers are kept. N is the number of rows of a side.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from pm.data.example import WINNERS, normalise

BATCH = 1000  # rows whose texts are in memory at once
EXAMPLES = 5  # rows that a finding names

COLUMNS = ["group", "language", "source", "prompt", "response_a", "response_b", "target", "prompt_key"]

WITHIN = {
    "duplicates_exact": "row equal to an earlier one",
    "duplicates_normalised": "row equal to an earlier one but for case, spaces or Unicode form",
    "duplicates_swapped": "row equal to an earlier one with the responses swapped",
    "contradicting": "row whose winner is not that of an equal row",
    "tie_against_winner": "tie that an equal row decides",
    "equal_responses": "row whose responses differ at most in case, spaces or Unicode form",
    "near_prompts": "prompt nearly equal to one of another group",
}
ACROSS = {
    "rows_exact": "row that is in train",
    "rows_normalised": "row that is in train but for case, spaces or Unicode form",
    "rows_swapped": "row that is in train with the responses swapped",
    "same_prompt": "row whose prompt is in train",
    "same_group": "row whose group is in train",
    "same_prompt_other_language": "row whose group is in train, but only in other languages",
    "near_prompts": "prompt that is not in train, but nearly equal to one there",
}
# A row counts in the first of these that it meets, so they can be added up.
DUPLICATES = ("duplicates_exact", "duplicates_normalised", "duplicates_swapped")
ROWS_IN_TRAIN = ("rows_exact", "rows_normalised", "rows_swapped")


@dataclass(frozen=True)
class Side:
    """What is kept of the rows of one side; arrays are (N,), hashes are uint64.

    exact                     hash of roles, prompt and responses as they are
    ordered, swapped          hash of the normalised prompt and responses, and of the same row with A and B swapped;
                              equal where the responses are, and in a classification
    prompt                    `prompt_key` as a number
    group_language            hash of group and language
    winner                    place in `labels` of the most probable class, -1 where that is a tie or not one class
    characters_a              characters of response A, 0 in a classification
    mass                      sum of probabilities by label
    certainty                 rows by what their target is: all of it one label, "tie" (also half and half), or "soft"
    """

    rows: Dataset
    compares: bool
    exact: np.ndarray
    ordered: np.ndarray
    swapped: np.ndarray
    prompt: np.ndarray
    group: np.ndarray
    group_language: np.ndarray
    language: np.ndarray
    source: np.ndarray
    winner: np.ndarray
    characters_a: np.ndarray
    characters_b: np.ndarray
    languages: tuple[str, ...]
    sources: tuple[str, ...]
    labels: tuple[str, ...]
    mass: Counter
    certainty: Counter


# Rows -> numbers


def read_side(rows: Dataset, compares: bool, name: str) -> Side:
    """Streams over the rows; `compares` says that they are a preference's."""
    labels = {label: code for code, label in enumerate(WINNERS)} if compares else {}
    languages: dict[str, int] = {}
    sources: dict[str, int] = {}
    mass: Counter = Counter()
    certainty: Counter = Counter()
    digests, numbers = [np.empty((0, 6), np.uint64)], [np.empty((0, 5), np.int32)]
    batches = rows.select_columns(COLUMNS).with_format("arrow").iter(BATCH)
    with tqdm(total=len(rows), desc=f"audit {name}", unit=" rows", disable=None, leave=False) as progress:
        for batch in batches:
            columns = batch.combine_chunks().to_pydict()  # chosen rows come as one chunk each, which is slow
            digests.append(_digests(columns))
            targets = [{part["label"]: part["probability"] for part in target} for target in columns["target"]]
            for target in targets:
                certainty[_certainty(target, compares)] += 1
                for label, probability in target.items():
                    mass[label] += probability
            winners = [_winner(target, compares) for target in targets]
            numbers.append(np.array([
                _codes(columns["language"], languages),
                _codes(columns["source"], sources),
                _codes(winners, labels),
                [len(text or "") for text in columns["response_a"]],
                [len(text or "") for text in columns["response_b"]],
            ], np.int32).T)
            progress.update(len(batch))
    return Side(rows, compares, *np.concatenate(digests).T, *np.concatenate(numbers).T, tuple(languages),
                tuple(sources), tuple(labels), mass, certainty)


def _digests(columns: dict[str, list]) -> np.ndarray:
    """(N, 6): the hashes of `Side`, in its order."""
    digests = []
    names = ("prompt", "prompt_key", "response_a", "response_b", "group", "language")
    for turns, prompt_key, a, b, group, language in zip(*(columns[name] for name in names), strict=True):
        responses = () if a is None else (a, b)
        exact = _digest(b"".join(map(_hash, (*(f"{turn['role']}\n{turn['content']}" for turn in turns), *responses))))
        prompt = bytes.fromhex(prompt_key)
        normal_a, normal_b = (_hash(normalise(text)) for text in responses or ("", ""))
        digests += [exact, _digest(prompt + normal_a + normal_b), _digest(prompt + normal_b + normal_a), prompt,
                    _hash(group), _hash(f"{language}\n{group}")]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 6)


def _hash(text: str) -> bytes:
    return _digest(text.encode("utf-8"))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _codes(names: Sequence[str | None], known: dict[str, int]) -> list[int]:
    """The number of each name, which `known` gets where it is new; -1 for None."""
    return [-1 if name is None else known.setdefault(name, len(known)) for name in names]


def _winner(target: dict[str, float], compares: bool) -> str | None:
    """The most probable class; None where that is not one class, or is a tie."""
    highest = max(target.values(), default=0.0)
    best = [label for label, probability in target.items() if probability == highest]
    return best[0] if len(best) == 1 and not (compares and best[0] == "tie") else None


def _certainty(target: dict[str, float], compares: bool) -> str:
    for label, probability in target.items():
        if probability > 1 - 1e-9:
            return label
    even = compares and target.get("a") == target.get("b") and not target.get("tie")
    return "tie" if even else "soft"


# Findings


def first_rows(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each wanted key the number of the first row that has it; -1 where none has."""
    known, first = np.unique(keys, return_index=True)
    if not len(known):
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[places] == wanted, first[places], -1)


def _equal_rows(side: Side, train: Side) -> Iterator[np.ndarray]:
    """For each row of `side` the first equal row of `train`, or -1: exactly, then normalised, then swapped.

    A row that one of them finds is -1 in the next ones. Within one side only earlier rows count.
    """
    found = np.zeros(len(side.rows), bool)
    pairs = [(train.exact, side.exact), (train.ordered, side.ordered), (train.ordered, side.swapped)]
    for keys, wanted in pairs if side.compares else pairs[:2]:
        partners = first_rows(keys, wanted)
        if side is train:
            partners[partners >= np.arange(len(partners))] = -1
        partners[found] = -1
        found |= partners >= 0
        yield partners


def _contradictions(side: Side) -> tuple[np.ndarray, np.ndarray]:
    """For each decided row an equal one with another winner, and for each undecided row an equal decided one; or -1.

    Equal is meant normalised, in either order. Rows with equal responses are left out: they have no order in which
    their winners could be compared.
    """
    content, winner = side.ordered, side.winner
    usable = np.ones(len(winner), bool)
    if side.compares:
        turned = side.ordered > side.swapped
        content = np.minimum(side.ordered, side.swapped)
        winner = np.where(turned & (winner >= 0), 1 - winner, winner)
        usable = side.ordered != side.swapped
    decided, undecided = np.flatnonzero(usable & (winner >= 0)), np.flatnonzero(usable & (winner < 0))
    contradicting, against = np.full(len(winner), -1), np.full(len(winner), -1)
    contradicting[decided] = _chosen(decided, _other_winner(content[decided], winner[decided]))
    against[undecided] = _chosen(decided, first_rows(content[decided], content[undecided]))
    return contradicting, against


def _other_winner(content: np.ndarray, winner: np.ndarray) -> np.ndarray:
    """For each row the first one with the same content and another winner; -1 where there is none."""
    _, number = np.unique(content, return_inverse=True)
    lowest, highest = np.full(len(content), np.iinfo(np.int64).max), np.full(len(content), -1)
    np.minimum.at(lowest, number, winner)
    np.maximum.at(highest, number, winner)
    other = np.where(winner == lowest[number], highest[number], lowest[number])
    base = winner.max(initial=0) + 1
    return np.where(other != winner, first_rows(number * base + winner, number * base + other), -1)


def _chosen(numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`numbers[places]`, with -1 where the place is -1."""
    return np.append(numbers, -1)[places]


def within(side: Side) -> dict:
    """The findings of `WITHIN`, labels, lengths, languages and sources of one side."""
    found = dict(zip(DUPLICATES, _equal_rows(side, side), strict=False))
    found["contradicting"], found["tie_against_winner"] = _contradictions(side)
    findings = {"rows": len(side.rows), "groups": len(np.unique(side.group)), "prompts": len(np.unique(side.prompt))}
    findings |= {name: _finding(side, side, partners) for name, partners in found.items()}
    if side.compares:
        findings["equal_responses"] = _alone(side, side.ordered == side.swapped)
        findings["length_by_winner"] = _length_by_winner(side)
    findings["labels"] = _labels(side)
    findings["languages"] = _counts(side, side.language, side.languages)
    findings["sources"] = _counts(side, side.source, side.sources)
    return findings


def across(side: Side, train: Side) -> dict:
    """The findings of `ACROSS`: what rows of `side` share with those of the training split."""
    found = dict(zip(ROWS_IN_TRAIN, _equal_rows(side, train), strict=False))
    found["same_prompt"] = first_rows(train.prompt, side.prompt)
    found["same_group"] = first_rows(train.group, side.group)
    same_language = first_rows(train.group_language, side.group_language) >= 0
    found["same_prompt_other_language"] = np.where(same_language, -1, found["same_group"])
    return {"rows": len(side.rows)} | {name: _finding(side, train, partners) for name, partners in found.items()}


def _finding(side: Side, other: Side, partners: np.ndarray) -> dict:
    """`partners`: for each row of `side` the row of `other` that it was found with, or -1."""
    found = np.flatnonzero(partners >= 0)
    return {"count": len(found), "out_of": len(partners), "examples": [
        {"id": row_id(side, row), "of": row_id(other, partners[row])} for row in found[:EXAMPLES]]}


def _alone(side: Side, mask: np.ndarray) -> dict:
    found = np.flatnonzero(mask)
    return {"count": len(found), "out_of": len(mask),
            "examples": [{"id": row_id(side, row)} for row in found[:EXAMPLES]]}


def row_id(side: Side, row: int) -> str:
    return side.rows["id"][int(row)]


def _labels(side: Side) -> dict:
    """Probability mass and share by class; rows by how certain they are: "hard" by class, "soft", for a preference
    ties as well."""
    total = sum(side.mass.values()) or 1.0
    classes = {label: {"mass": mass, "share": mass / total} for label, mass in side.mass.most_common()}
    rows = dict(side.certainty.most_common())
    if side.compares:
        rows = {name: side.certainty[name] for name in (*WINNERS, "soft")}
    return {"classes": classes, "rows": rows}


def _counts(side: Side, codes: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows and groups by name, the most frequent first."""
    groups, group = np.unique(side.group, return_inverse=True)
    pairs = np.unique(codes.astype(np.int64) * len(groups) + group)
    rows_of = np.bincount(codes, minlength=len(names))
    groups_of = np.bincount(pairs // max(len(groups), 1), minlength=len(names))
    return {names[code]: {"rows": int(rows_of[code]), "groups": int(groups_of[code])}
            for code in np.argsort(-rows_of, kind="stable")}


def _length_by_winner(side: Side) -> dict:
    """Of decided rows, all and by language: see `_length`."""
    decided = side.winner >= 0
    a_wins = side.winner[decided] == WINNERS.index("a")
    a, b, language = side.characters_a[decided], side.characters_b[decided], side.language[decided]
    better, worse = np.where(a_wins, a, b), np.where(a_wins, b, a)
    masks = {name: language == code for code, name in enumerate(side.languages)}
    by_language = {name: _length(better[mask], worse[mask]) for name, mask in masks.items() if mask.any()}
    return {"all": _length(better, worse),
            "by_language": dict(sorted(by_language.items(), key=lambda item: -item[1]["rows"]))}


def _length(better: np.ndarray, worse: np.ndarray) -> dict:
    """Characters of the better and the worse response; the share of rows in which the better one is longer, equal
    lengths counted half."""
    if not len(better):
        return {"rows": 0}
    longer = (better > worse) + (better == worse) / 2
    return {"rows": len(better), "better_mean": float(better.mean()), "better_median": float(np.median(better)),
            "worse_mean": float(worse.mean()), "worse_median": float(np.median(worse)),
            "longer_wins": float(longer.mean())}
