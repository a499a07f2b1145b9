"""The row: texts, and how probable each class is.

For a preference the texts are a prompt and two responses, and the classes say which response is better; for a
classification they are one or two texts, and the classes are the user's.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

from datasets import Features, List, Value

SIGNS = re.compile(r"([^\w\s]{64})[^\w\s]+")
# Headings, list items, quotes and tables at the beginning of a line; bold, code and links anywhere.
MARKDOWN = re.compile(r"^ {0,3}(?:#{1,6} |[-*+] |\d{1,3}[.)] |> |\||```)|\*\*|__|`|\]\(", re.MULTILINE)
ROLES = ("system", "user", "assistant")
WINNERS = ("a", "b", "tie")

FEATURES = Features({
    "id": Value("string"),
    "group": Value("string"),
    "language": Value("string"),
    "source": Value("string"),
    "kind": Value("string"),
    "prompt": List({"role": Value("string"), "content": Value("string")}),
    "response_a": Value("string"),
    "response_b": Value("string"),
    "target": List({"label": Value("string"), "probability": Value("float64")}),
    "prompt_key": Value("string"),
    "source_index": Value("int32"),
})


@dataclass(frozen=True)
class Example:
    """One row.

    group       what must stay on one side of a split: all pairs of a prompt, all translations of it
    language    code of the responses' language, `und` where it is not known
    prompt      turns `{"role", "content"}`, oldest first, the last one the user's; in a classification the text is
                one user turn, the text beside it a second one, and the responses are None
    target      probability of each class that has any, by name: of `WINNERS` for a preference
    kind        in what way the worse response is worse, "" where it is not known
    """

    id: str
    group: str
    language: str
    source: str
    kind: str
    prompt: list[dict[str, str]]
    response_a: str | None
    response_b: str | None
    target: dict[str, float]

    def to_row(self, source_index: int = 0) -> dict:
        """The row as `FEATURES` has it; `source_index` is the place of its source among those that were read."""
        target = [{"label": label, "probability": probability} for label, probability in self.target.items()]
        return {**vars(self), "target": target, "prompt_key": prompt_key(self.prompt), "source_index": source_index}


def prompt_key(prompt: list[dict[str, str]]) -> str:
    """Equal for prompts that differ only in case, spaces or Unicode form (NFKC)."""
    return text_hash(*(normalise(turn["content"]) for turn in prompt))


def normalise(text: str) -> str:
    """NFKC, lower case, single spaces. Of a long run of marks and signs only the beginning counts: NFKC takes quadratic
    time in a run of combining marks."""
    return " ".join(unicodedata.normalize("NFKC", SIGNS.sub(r"\1", text)).casefold().split())


def content_hash(prompt: list[dict[str, str]], *responses: str | None) -> str:
    """What tells rows apart by their texts alone: the same in each run, split and file."""
    return text_hash(*(turn["content"] for turn in prompt), *(text for text in responses if text))


def markdown_marks(text: str) -> int:
    """How many signs of Markdown a text has."""
    return sum(1 for _ in MARKDOWN.finditer(text))


def text_hash(*texts: str) -> str:
    """A stable 64-bit hash of texts as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
