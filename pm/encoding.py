"""Texts to token ids: the template, the budget of the three texts, and no control token out of a user's text."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from tokenizers import Tokenizer

from pm.data.example import content_hash, markdown_marks, text_hash
from pm.errors import UserError
from pm.tokenizer import CHATBOT, END_TURN, START_TURN, SYSTEM, USER

GAP = " […] "  # stands where the middle of a response was cut out
MIN_MAX_LENGTH = 64
TURN_OVERHEAD = 3  # control tokens around one turn
CHARACTERS_PER_TOKEN = 32  # a text longer than max_length * this is cut before it is tokenised

ENCODED_FEATURES = Features({
    "id": Value("string"),
    "group": Value("string"),
    "language": Value("string"),
    "source": Value("string"),
    "kind": Value("string"),
    "prompt_key": Value("string"),
    "content": Value("string"),
    "content_a": Value("string"),
    "content_b": Value("string"),
    "source_index": Value("int32"),
    "target": List({"label": Value("string"), "probability": Value("float64")}),
    "prompt_ids": List(Value("int32")),
    "a_ids": List(Value("int32")),
    "b_ids": List(Value("int32")),
    "tokens": Value("int32"),
    "tokens_cut": Value("int32"),
    "characters_a": Value("int32"),
    "characters_b": Value("int32"),
    "markdown_a": Value("int32"),
    "markdown_b": Value("int32"),
})

COPIED = ("id", "group", "language", "source", "kind", "prompt_key", "source_index", "target")


@dataclass(frozen=True)
class Template:
    """The control tokens, as ids. A sequence is

    `BOS [START role prompt-turn END]... START chatbot first-response END START chatbot second-response END EOS`

    in a comparison, `BOS [START user text END]... EOS` in a classification; the score is read on the last token.
    """

    bos: int
    eos: int
    pad: int
    start: int
    end: int
    roles: dict[str, int]

    @classmethod
    def of(cls, tokenizer) -> "Template":
        """From a tokenizer with Command R's turn tokens; `UserError` names what is missing."""
        vocabulary = tokenizer.get_vocab()
        names = (START_TURN, END_TURN, SYSTEM, USER, CHATBOT)
        missing = [name for name in names if name not in vocabulary]
        missing += [name for name in ("bos_token", "eos_token", "pad_token") if getattr(tokenizer, name) is None]
        if missing:
            raise UserError(f"the tokenizer lacks {', '.join(missing)}; the template needs Command R's turn tokens")
        start, end, system, user, chatbot = (vocabulary[name] for name in names)
        return cls(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, start, end,
                   {"system": system, "user": user, "assistant": chatbot})

    def saved(self) -> dict:
        """What an export keeps of it, and must find again when it is loaded."""
        return asdict(self) | {"gap": GAP}

    def turn(self, role: str, ids: Sequence[int]) -> list[int]:
        return [self.start, self.roles[role], *ids, self.end]

    def sequence(self, prompt_ids: Sequence[int], *responses: Sequence[int]) -> list[int]:
        """`prompt_ids` are whole turns; the responses, two or none, are bare."""
        ends = [token for response in responses for token in self.turn("assistant", response)]
        return [self.bos, *prompt_ids, *ends, self.eos]


def row_lengths(encoded: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the tokens of its sequence and those of its prompt, both (N,)."""
    columns = encoded.select_columns(["tokens", "prompt_ids"]).with_format("arrow")[:]
    return columns["tokens"].to_numpy(), pc.list_value_length(columns["prompt_ids"]).to_numpy()


def share_budget(lengths: Sequence[int], total: int) -> list[int]:
    """How much of each text fits: none gets more than it needs, the rest is shared evenly.

    >>> share_budget([10, 500, 500], 600)
    [10, 295, 295]
    """
    limits = list(lengths)
    for place, text in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        limits[text] = min(lengths[text], total // (len(lengths) - place))
        total -= limits[text]
    return limits


class Encoder:
    """Turns rows of text into rows of ids that fit `max_length` in either order of the responses.

    The prompt and the two responses share the tokens; in a classification, which has no responses, its texts do.
    """

    def __init__(self, tokenizer, max_length: int, pieces: bool = False):
        """`pieces`: a text by itself that is too long becomes several rows, and nothing of it is cut."""
        if max_length < MIN_MAX_LENGTH:
            raise UserError(f"--max_length {max_length}: at least {MIN_MAX_LENGTH} tokens are needed for three texts")
        self.template = Template.of(tokenizer)
        self.max_length = max_length
        self.pieces = pieces
        self._text_tokenizer = _without_added_tokens(tokenizer)
        self._control_ids = set(tokenizer.get_added_vocab().values()) - {tokenizer.unk_token_id}
        self._gap = self._tokenise([GAP])[0]

    def fingerprint(self) -> str:
        """Changes where the ids that `encode` gives may change."""
        return text_hash(self._text_tokenizer.to_str(), repr(self.template), str(self.max_length), GAP,
                         *["pieces"] * self.pieces)

    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        """A batch of columns as in `example.FEATURES` to a batch as in `ENCODED_FEATURES`.

        A row whose kept responses are equal is left out: it holds nothing to learn and nothing to judge.
        """
        contents = [turn["content"] for prompt in rows["prompt"] for turn in prompt]
        turn_ids = iter(self._tokenise(contents, whole=self.pieces))
        a_ids, b_ids = (self._tokenise([text or "" for text in rows[name]]) for name in ("response_a", "response_b"))
        encoded: dict[str, list] = {name: [] for name in ENCODED_FEATURES}
        for number, prompt in enumerate(rows["prompt"]):
            turns = [(turn["role"], next(turn_ids)) for turn in prompt]
            row = {name: rows[name][number] for name in COPIED}
            responses = rows["response_a"][number], rows["response_b"][number]
            row["content"] = content_hash(prompt, *responses)
            if responses[0] is None:
                found = self._in_pieces(turns) if self.pieces else [self._texts(turns)]
                responses = ("".join(turn["content"] for turn in prompt), "")
            else:
                found = [self._comparison(turns, a_ids[number], b_ids[number])]
                if found[0]["a_ids"] == found[0]["b_ids"]:
                    continue
            for side, text in zip("ab", responses, strict=True):
                row |= {f"content_{side}": text_hash(text), f"characters_{side}": len(text),
                        f"markdown_{side}": markdown_marks(text)}
            for piece in found:
                for name, value in (row | piece).items():
                    encoded[name].append(value)
        return encoded

    def kept(self, prompt: list[dict[str, str]], response_a: str, response_b: str) -> tuple[str, str, str]:
        """The texts of a comparison after cutting; turns of the prompt are joined by empty lines."""
        turns = list(zip((turn["role"] for turn in prompt), self._tokenise([turn["content"] for turn in prompt]),
                         strict=True))
        row = self._comparison(turns, *self._tokenise([response_a, response_b]))
        turn_ids: list[list[int]] = []
        for token in row["prompt_ids"]:
            if token == self.template.start:
                turn_ids.append([])
            elif token not in self._control_ids:
                turn_ids[-1].append(token)
        prompt_text = "\n\n".join(map(self._text_tokenizer.decode, turn_ids))
        return prompt_text, self._text_tokenizer.decode(row["a_ids"]), self._text_tokenizer.decode(row["b_ids"])

    def _comparison(self, turns: list[tuple[str, list[int]]], a_ids: list[int], b_ids: list[int]) -> dict:
        overhead = len(self.template.sequence([], [], []))
        whole = [sum(len(ids) + TURN_OVERHEAD for _, ids in turns), len(a_ids), len(b_ids)]
        limits = share_budget(whole, self.max_length - overhead)
        a, b = (self._cut_middle(ids, limit) for ids, limit in zip((a_ids, b_ids), limits[1:], strict=True))
        prompt_ids = self._last_turns(turns, limits[0])
        return {"prompt_ids": prompt_ids, "a_ids": a, "b_ids": b, "tokens_cut": sum(whole) - sum(limits),
                "tokens": overhead + len(prompt_ids) + len(a) + len(b)}

    def _texts(self, turns: list[tuple[str, list[int]]]) -> dict:
        overhead = len(self.template.sequence([]))
        whole = [len(ids) for _, ids in turns]
        limits = share_budget(whole, self.max_length - overhead - TURN_OVERHEAD * len(turns))
        prompt_ids = [token for (role, ids), limit in zip(turns, limits, strict=True)
                      for token in self.template.turn(role, self._cut_middle(ids, limit))]
        return {"prompt_ids": prompt_ids, "a_ids": None, "b_ids": None, "tokens_cut": sum(whole) - sum(limits),
                "tokens": overhead + len(prompt_ids)}

    def _in_pieces(self, turns: list[tuple[str, list[int]]]) -> list[dict]:
        (role, ids), = turns
        size = self.max_length - len(self.template.sequence([])) - TURN_OVERHEAD
        return [self._texts([(role, ids[start : start + size])]) for start in range(0, len(ids), size)]

    def _tokenise(self, texts: Sequence[str], whole: bool = False) -> list[list[int]]:
        longest = len(max(texts, key=len, default="")) if whole else self.max_length * CHARACTERS_PER_TOKEN
        texts = [text if len(text) <= 2 * longest else text[:longest] + text[-longest:] for text in texts]
        batch = [encoding.ids for encoding in self._text_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        for ids in batch:
            control = self._control_ids.intersection(ids)
            if control:
                raise UserError(f"the tokenizer makes its added tokens {sorted(control)} out of plain text")
        return batch

    def _cut_middle(self, ids: list[int], limit: int) -> list[int]:
        """A response keeps its beginning and its end."""
        if len(ids) <= limit:
            return ids
        kept = limit - len(self._gap)
        if kept < 2:
            return ids[:limit]
        return ids[: kept - kept // 2] + self._gap + ids[len(ids) - kept // 2 :]

    def _last_turns(self, turns: list[tuple[str, list[int]]], limit: int) -> list[int]:
        """A prompt keeps its end: the oldest turns go first, and of the oldest kept turn the beginning goes."""
        kept: list[int] = []
        for role, ids in reversed(turns):
            room = limit - len(kept) - TURN_OVERHEAD
            if room < 1:
                break
            kept = self.template.turn(role, ids[max(0, len(ids) - room) :]) + kept
        return kept


def _without_added_tokens(tokenizer) -> Tokenizer:
    """The tokenizer with its added tokens taken away: a text that spells one of them stays text.

    `split_special_tokens=True` would let tokens through that are added but not special.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(state))
