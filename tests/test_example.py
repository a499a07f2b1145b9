"""The row as it is stored, and what counts as the same text."""

import pytest

from pm.data.example import FEATURES, Example, normalise, prompt_key, text_hash


@pytest.mark.parametrize(("text", "wanted"), [
    ("  Hello\n\tWORLD ", "hello world"), ("ＡＢＣ ﬁne", "abc fine"), ("Straße", "strasse"), ("Å", "å"),
    ("ΣΑΣ", "σασ"), ("東京　タワー", "東京 タワー"), ("", ""), ("नमस्ते", "नमस्ते"), ("?!" * 32, "?!" * 32),
    ("a" + "-" * 64 + "b", "a" + "-" * 64 + "b"),
])
def test_case_spaces_and_unicode_form_do_not_count(text, wanted):
    assert normalise(text) == wanted


def test_a_megabyte_of_combining_marks_is_cut_before_it_is_put_in_order():
    assert normalise("a" + "\u0301\u0323" * 500_000) == normalise("a" + "\u0301\u0323" * 32)


def test_prompts_are_the_same_turn_by_turn():
    def key(*texts: str) -> str:
        return prompt_key([{"role": "user", "content": text} for text in texts])

    assert key("Why?") == key(" WHY? ")
    assert len({key("a b"), key("a", "b"), key("b", "a"), key("ab")}) == 4


def test_a_hash_tells_texts_from_their_concatenation():
    assert text_hash("ab", "c") != text_hash("a", "bc") != text_hash("abc")
    assert text_hash("prompt") == "29af8a4d4afa75fb"


def test_a_row_has_the_columns_that_are_stored():
    prompt = [{"role": "user", "content": "Why?"}]
    row = Example("1", "g", "en", "s", "k", prompt, "So.", "No.", {"a": 0.75, "b": 0.25}).to_row(2)
    assert row == {
        "id": "1", "group": "g", "language": "en", "source": "s", "kind": "k", "prompt": prompt, "response_a": "So.",
        "response_b": "No.", "target": [{"label": "a", "probability": 0.75}, {"label": "b", "probability": 0.25}],
        "prompt_key": prompt_key(prompt), "source_index": 2,
    }
    assert row.keys() == set(FEATURES)
