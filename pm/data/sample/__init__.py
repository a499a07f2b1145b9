"""The embedded sample: prompts in 23 languages, each with a good and a worse answer, written by hand.

One file per language, `<code>.jsonl`; a line is `{"group", "kind", "prompt", "chosen", "rejected"}`, and lines of
one `group` are translations of each other. More pairs are derived here from the written ones.
"""

import json
from collections.abc import Iterator
from importlib.resources import files

from pm.data.example import text_hash

LANGUAGES = ("en", "fr", "es", "it", "de", "pt", "ja", "ko", "ar", "zh", "ru", "pl", "tr", "vi", "nl", "cs", "id", "uk",
             "ro", "el", "hi", "he", "fa")


def written() -> dict[str, list[dict]]:
    """The hand-written rows of each language, in the order of the files (the same in all of them)."""
    texts = {language: files(__package__).joinpath(f"{language}.jsonl").read_text("utf-8") for language in LANGUAGES}
    return {language: [json.loads(line) for line in text.splitlines()] for language, text in texts.items()}


def rows() -> Iterator[dict]:
    """Every pair of the sample in the form `prompt, chosen, rejected` with `id, group, language, kind, source`.

    Besides the written pair each prompt gives four derived ones, whose worse answer is
    `other_prompt` (the good answer to another prompt), `other_language` (the good answer, in another language),
    `cut_short` (the good answer without its end) and `rambling` (the good answer, then the one to another prompt:
    a longer answer is not a better one). Prompts go in twos: the other prompt is always the partner, and partners
    share a group, so that no text is on both sides of a split.
    """
    by_language = written()
    for language, lines in by_language.items():
        space = "" if language in ("ja", "zh") else " "
        for number, line in enumerate(lines):
            partner = lines[min(number ^ 1, len(lines) - 1)]
            group = "+".join(sorted((line["group"], partner["group"])))
            others = [other for other in LANGUAGES if other != language]
            other = others[int(text_hash(language, line["group"]), 16) % len(others)]
            worse = {
                line["kind"]: ("sample", line["rejected"]),
                "other_prompt": ("sample_derived", partner["chosen"]),
                "other_language": ("sample_derived", by_language[other][number]["chosen"]),
                "cut_short": ("sample_derived", _cut_short(line["chosen"])),
                "rambling": ("sample_derived", line["chosen"] + space + partner["chosen"]),
            }
            for kind, (source, rejected) in worse.items():
                yield {"id": f"{language}/{line['group']}/{kind}", "group": group, "language": language, "kind": kind,
                       "source": source, "prompt": line["prompt"], "chosen": line["chosen"], "rejected": rejected}


def _cut_short(text: str) -> str:
    """30 to 79 % of the text, or less so as to end at a space, without closing punctuation."""
    keep = len(text) * (30 + int(text_hash(text), 16) % 50) // 100
    head = text[:keep]
    if " " in head:
        head = head[: head.rindex(" ")]
    return head.rstrip(" ,.;:!?،؛。、，")
