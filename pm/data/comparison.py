"""The row: one prompt, two responses, and how probable it is that each is the better one."""

import hashlib
import unicodedata
from dataclasses import asdict, dataclass

from datasets import Features, List, Value

LABELS = ("a", "b")
ROLES = ("system", "user", "assistant")

FEATURES = Features({
    "id": Value("string"),
    "group": Value("string"),
    "language": Value("string"),
    "source": Value("string"),
    "kind": Value("string"),
    "prompt": List({"role": Value("string"), "content": Value("string")}),
    "response_a": Value("string"),
    "response_b": Value("string"),
    "target": List(Value("float64")),
    "prompt_key": Value("string"),
})


@dataclass(frozen=True)
class Comparison:
    """One row.

    group       what must stay on one side of a split: all pairs of a prompt, all translations of it
    language    code of the responses' language, `und` where it is not known
    prompt      turns `{"role", "content"}`, oldest first, the last one the user's
    target      probability of each class of `LABELS`; (0.5, 0.5) is a tie
    kind        in what way the worse response is worse, "" where it is not known
    """

    id: str
    group: str
    language: str
    source: str
    kind: str
    prompt: list[dict[str, str]]
    response_a: str
    response_b: str
    target: list[float]

    def to_row(self) -> dict:
        """The row as `FEATURES` has it."""
        return asdict(self) | {"prompt_key": prompt_key(self.prompt)}


def prompt_key(prompt: list[dict[str, str]]) -> str:
    """Equal for prompts that differ only in case, spaces or Unicode form (NFKC)."""
    return text_hash(*(" ".join(unicodedata.normalize("NFKC", turn["content"]).casefold().split()) for turn in prompt))


def text_hash(*texts: str) -> str:
    """A stable 64-bit hash of texts as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
