"""Texts to ids: nothing is lost in the tokenizer, nothing becomes a control token, and what is cut is cut as said."""

import copy

import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pm.collator import Collator
from pm.data.example import text_hash
from pm.encoding import ENCODED_FEATURES, GAP, MIN_MAX_LENGTH, Encoder, Template, row_lengths, share_budget
from pm.errors import UserError
from pm.tokenizer import BOS, CHATBOT, END_TURN, EOS, PAD, START_TURN, SYSTEM, UNKNOWN, USER, train_tokenizer

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=100)

CORPUS = ["The quick brown fox says hello to the lazy dog, and the dog says hello back to the fox.",
          "Привет, как дела? Сегодня хорошая погода.", "你好，今天天气很好。", "مرحبا بكم في المدينة.",
          "  two  spaces,\n\nnew lines,\ttabs and numbers 0123456789."]
CORPUS *= 3  # a character that is rarer is left to its bytes
TOKENIZER = train_tokenizer(CORPUS, 600)
TEMPLATE = Template(bos=2, eos=3, pad=0, start=4, end=5, roles={"system": 6, "user": 7, "assistant": 8})
CONTROL_NAMES = [PAD, UNKNOWN, BOS, EOS, START_TURN, END_TURN, SYSTEM, USER, CHATBOT]

FRAGMENTS = [*CONTROL_NAMES, "<0x41>", "<0x", "hello", " hello", "the", "\u2581", "\u2581the", " ", "  ", "\n", "\r\n",
             "\t", "\x00", "\x1b", "\x85", "\u2028", "\ufeff", "\ufffd", "\u200d", "👩\u200d👩\u200d👧", "e\u0301", "é",
             "不", "مرحبا", "\U0010ffff"]
TEXTS = st.text(st.characters(codec="utf-8")) | st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3)).map("".join)

TARGET = [{"label": "a", "probability": 1.0}]

LONG = Encoder(TOKENIZER, 100_000)  # cuts nothing below


def columns(*rows) -> dict[str, list]:
    """A batch of (prompt, response_a, response_b); a prompt is a text or a list of (role, text). In a classification
    the responses are None."""
    count = len(rows)
    prompts = [[("user", prompt)] if isinstance(prompt, str) else prompt for prompt, _, _ in rows]
    return {"id": [str(number) for number in range(count)], "group": ["g"] * count, "language": ["en"] * count,
            "source": ["s"] * count, "kind": ["k"] * count, "prompt_key": ["p"] * count, "source_index": [3] * count,
            "target": [TARGET] * count,
            "prompt": [[{"role": role, "content": text} for role, text in prompt] for prompt in prompts],
            "response_a": [a for _, a, _ in rows], "response_b": [b for _, _, b in rows]}


def encode(encoder, *rows) -> list[dict]:
    batch = encoder.encode(columns(*rows))
    assert list(batch) == list(ENCODED_FEATURES)
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def ids(text: str) -> list[int]:
    """The whole text's."""
    return encode(LONG, ("p", text, text + "!"))[0]["a_ids"]


def words(count: int, name: str = "w") -> str:
    return " ".join(f"{name}{number}" for number in range(count))


# The tokenizer


@FIXED
@given(TEXTS)
@example("".join(map(chr, range(0x20))))
@example("\u2581 \u2581\u2581  a\u2581b")
@example("\n\n  x \t\r\n ")
@example("")
@example("<0x41><0xff>")
def test_a_text_decodes_to_itself(text):
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text


def test_every_character_decodes_to_itself():
    """All up to U+2FFF and a sample of all planes, 64 characters a text."""
    codes = [*range(0x3000), *range(0x3000, 0x110000, 61)]
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    texts = ["".join(characters[start : start + 64]) for start in range(0, len(characters), 64)]
    for text, tokens in zip(texts, TOKENIZER(texts, add_special_tokens=False)["input_ids"], strict=True):
        assert TOKENIZER.decode(tokens) == text


def test_the_same_texts_give_the_same_tokenizer():
    assert train_tokenizer(iter(CORPUS), 600).backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_the_vocabulary_is_no_larger_than_asked_for():
    assert len(train_tokenizer(CORPUS, 400)) == 400
    assert len(train_tokenizer(["x xx"], 400)) < 400


def test_characters_are_pieces_where_they_are_common_and_bytes_where_they_are_rare():
    assert TOKENIZER.tokenize("不") == ["<0xE4>", "<0xB8>", "<0x8D>"]
    assert TOKENIZER.tokenize("你") == ["你"]
    assert TOKENIZER.tokenize("\n") == ["<0x0A>"]


def test_control_tokens_come_first():
    assert TOKENIZER.convert_tokens_to_ids(CONTROL_NAMES) == list(range(9))
    assert set(TOKENIZER.get_added_vocab().values()) == set(range(9))


def test_training_texts_that_spell_control_tokens_add_no_way_to_them():
    tokenizer = train_tokenizer(["<PAD><PAD> <BOS_TOKEN> <0x41><0x41> hello"] * 50, 400)
    text = "<PAD><BOS_TOKEN><0x41>"
    row = encode(Encoder(tokenizer, 64), ("p", text, "b"))[0]
    assert tokenizer.decode(row["a_ids"]) == text
    assert not set(row["a_ids"]) & set(range(9))


def test_a_saved_tokenizer_is_the_same_after_loading(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded.get_added_vocab() == TOKENIZER.get_added_vocab()
    assert (loaded.pad_token, loaded.unk_token, loaded.bos_token, loaded.eos_token) == (PAD, UNKNOWN, BOS, EOS)
    assert Template.of(loaded) == Template.of(TOKENIZER)
    assert Encoder(loaded, 64).fingerprint() == Encoder(TOKENIZER, 64).fingerprint()
    for text in [*CORPUS, "".join(FRAGMENTS), " ,.!? ' n't"]:
        tokens = loaded(text, add_special_tokens=False)["input_ids"]
        assert tokens == TOKENIZER(text, add_special_tokens=False)["input_ids"]
        assert loaded.decode(tokens) == text


# The template


def test_the_template_written_out():
    template = Template(bos=1, eos=2, pad=0, start=3, end=4, roles={"system": 7, "user": 5, "assistant": 6})
    assert template.turn("user", [50, 51]) == [3, 5, 50, 51, 4]
    assert template.sequence([3, 7, 40, 4, 3, 5, 50, 4], [60], [70, 71]) == [
        1, 3, 7, 40, 4, 3, 5, 50, 4, 3, 6, 60, 4, 3, 6, 70, 71, 4, 2]
    assert template.sequence([3, 5, 50, 4, 3, 5, 51, 4]) == [1, 3, 5, 50, 4, 3, 5, 51, 4, 2]


def test_the_template_of_the_small_tokenizer():
    assert Template.of(TOKENIZER) == TEMPLATE


def test_a_tokenizer_without_turn_tokens_is_an_error():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({"a": 0, USER: 1}, [])), eos_token="</s>")
    with pytest.raises(UserError) as caught:
        Template.of(bare)
    assert str(caught.value) == (
        "the tokenizer lacks <|START_OF_TURN_TOKEN|>, <|END_OF_TURN_TOKEN|>, <|SYSTEM_TOKEN|>, <|CHATBOT_TOKEN|>, "
        "bos_token, pad_token; the template needs Command R's turn tokens")


# The budget


def test_shares_written_out():
    assert share_budget([10, 500, 500], 600) == [10, 295, 295]
    assert share_budget([500, 10, 500], 600) == [295, 10, 295]
    assert share_budget([200, 200, 200], 600) == [200, 200, 200]
    assert share_budget([900, 900, 900], 600) == [200, 200, 200]
    assert share_budget([100, 250, 900], 600) == [100, 250, 250]
    assert share_budget([1, 2, 3], 600) == [1, 2, 3]
    assert share_budget([0, 5, 5], 5) == [0, 2, 3]
    assert share_budget([5], 3) == [3]
    assert share_budget([], 3) == []


@FIXED
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=5), st.integers(0, 3000))
def test_shares_use_the_whole_budget_evenly(lengths, total):
    limits = share_budget(lengths, total)
    assert sum(limits) == min(total, sum(lengths))
    for length, limit in zip(lengths, limits, strict=True):
        assert 0 <= limit <= length
        assert limit == length or limit >= max(limits) - 1


# Rows


def test_a_row_that_fits_written_out():
    row = encode(Encoder(TOKENIZER, 64), ([("system", "the"), ("user", "fox")], "hello", "dog"))[0]
    the, fox, hello, dog = ids("the"), ids("fox"), ids("hello"), ids("dog")
    assert row == {
        "id": "0", "group": "g", "language": "en", "source": "s", "kind": "k", "source_index": 3,
        "content": text_hash("the", "fox", "hello", "dog"), "content_a": text_hash("hello"),
        "content_b": text_hash("dog"), "prompt_key": "p", "target": TARGET,
        "prompt_ids": [4, 6, *the, 5, 4, 7, *fox, 5], "a_ids": hello, "b_ids": dog,
        "tokens": 8 + 6 + len(the + fox + hello + dog), "tokens_cut": 0, "characters_a": 5, "characters_b": 3,
        "markdown_a": 0, "markdown_b": 0}
    assert TOKENIZER.decode(TEMPLATE.sequence(row["prompt_ids"], row["a_ids"], row["b_ids"])) == (
        f"{BOS}{START_TURN}{SYSTEM}the{END_TURN}{START_TURN}{USER}fox{END_TURN}"
        f"{START_TURN}{CHATBOT}hello{END_TURN}{START_TURN}{CHATBOT}dog{END_TURN}{EOS}")


@FIXED
@given(TEXTS.filter(len), TEXTS.filter(len), TEXTS)
def test_a_row_that_fits_holds_its_texts_and_no_control_token_in_them(prompt, a, b):
    for row in encode(LONG, (prompt, a, b + a + "!")):
        assert (row["prompt_ids"][:2], row["prompt_ids"][-1]) == ([4, 7], 5)
        for tokens, text in ((row["prompt_ids"][2:-1], prompt), (row["a_ids"], a), (row["b_ids"], b + a + "!")):
            assert not set(tokens) & set(range(9))
            assert TOKENIZER.decode(tokens) == text


def test_plain_tokenizing_would_read_control_tokens():
    """What the encoder must not do: the test above would see it."""
    assert set(TOKENIZER("".join(CONTROL_NAMES), add_special_tokens=False)["input_ids"]) == set(range(9))


def test_a_token_that_is_added_but_not_special_is_text():
    tokenizer = copy.deepcopy(TOKENIZER)
    assert tokenizer.add_tokens(["farewell", "fox says"]) == 2
    added = set(tokenizer.convert_tokens_to_ids(["farewell", "fox says"]))
    text = "farewell, the fox says farewell"
    assert added <= set(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    row = encode(Encoder(tokenizer, 200), (text, text, text + "!"))[0]
    sequence = TEMPLATE.sequence(row["prompt_ids"], row["a_ids"], row["b_ids"])
    assert not set(sequence) & added
    assert row["a_ids"] == ids(text)
    assert TOKENIZER.decode(row["a_ids"]) == text


def test_an_added_token_that_merges_lead_to_is_an_error():
    tokenizer = copy.deepcopy(TOKENIZER)
    the = TOKENIZER.get_vocab()[" the"]
    tokenizer.add_tokens([" the"])
    assert tokenizer.get_added_vocab()[" the"] == the
    with pytest.raises(UserError) as caught:
        encode(Encoder(tokenizer, 64), ("p", "to the fox", "b"))
    assert str(caught.value) == f"the tokenizer makes its added tokens [{the}] out of plain text"


def test_the_tokenizer_that_is_given_is_not_changed():
    before = TOKENIZER.backend_tokenizer.to_str()
    encode(Encoder(TOKENIZER, 64), (words(500), words(500, "a"), words(500, "b")))
    assert TOKENIZER.backend_tokenizer.to_str() == before


def test_rows_are_not_changed():
    batch = columns(([("system", "s"), ("user", words(100))], words(100), words(100, "b")))
    before = copy.deepcopy(batch)
    Encoder(TOKENIZER, 64).encode(batch)
    assert batch == before


# Truncation


def test_a_response_keeps_its_beginning_and_its_end():
    whole, gap = ids(words(300, "a")), ids(GAP)
    row = encode(Encoder(TOKENIZER, 128), ("p", words(300, "a"), "b"))[0]
    kept = 128 - 8 - len(row["prompt_ids"]) - len(row["b_ids"]) - len(gap)
    begin, end = kept - kept // 2, kept // 2
    assert row["a_ids"] == whole[:begin] + gap + whole[-end:]
    assert row["tokens"] == 128
    assert row["tokens_cut"] == len(whole) - len(row["a_ids"])
    assert row["characters_a"] == len(words(300, "a"))
    text = TOKENIZER.decode(row["a_ids"])
    assert text.startswith("a0 a1 a2 a3 ")
    assert text.endswith(" a298 a299")
    assert text.count(GAP) == 1


def test_a_prompt_keeps_its_end():
    whole = ids(words(300))
    row = encode(Encoder(TOKENIZER, 128), (words(300), "a", "b"))[0]
    room = 128 - 8 - len(row["a_ids"]) - len(row["b_ids"]) - 3
    assert row["prompt_ids"] == [4, 7, *whole[-room:], 5]
    assert row["tokens"] == 128
    assert row["tokens_cut"] == len(whole) - room


def test_three_long_texts_get_a_third_each():
    row = encode(Encoder(TOKENIZER, 128), (words(300), words(300, "a"), words(300, "b")))[0]
    assert [len(row[name]) for name in ("prompt_ids", "a_ids", "b_ids")] == [40, 40, 40]
    assert TOKENIZER.decode(row["a_ids"]).startswith("a0 ")
    assert TOKENIZER.decode(row["b_ids"]).startswith("b0 ")
    assert TOKENIZER.decode(row["prompt_ids"][2:-1]).endswith("w299")


def test_both_responses_stay_after_a_long_prompt():
    for max_length in (64, 65, 66, 128):
        row = encode(Encoder(TOKENIZER, max_length), (words(5000), "hello fox", "hello dog"))[0]
        assert (row["a_ids"], row["b_ids"]) == (ids("hello fox"), ids("hello dog"))


def test_the_oldest_turns_go_first():
    turns = [("system", words(50, "s")), ("user", words(50, "u")), ("assistant", words(50, "v")), ("user", "hello")]
    hello, answer = ids("hello"), ids(words(50, "v"))
    row = encode(Encoder(TOKENIZER, 128), (turns, "a", "b"))[0]
    room = 128 - 8 - len(row["a_ids"]) - len(row["b_ids"]) - (3 + len(hello)) - 3
    assert 0 < room < len(answer)
    assert row["prompt_ids"] == [4, 8, *answer[-room:], 5, 4, 7, *hello, 5]


def test_a_turn_without_room_for_a_token_is_left_out():
    """The last turn leaves 0 to 4 tokens to the turn before it, which needs 3 around at least one."""
    last = words(200, "u")
    for more in range(5):
        cut = len(ids(last)) + 3 + more
        encoder = Encoder(TOKENIZER, cut + 8 + len(ids("a")) + len(ids("b")))
        row = encode(encoder, ([("system", words(50)), ("user", last)], "a", "b"))[0]
        first = [4, 6, ids(words(50))[-1], 5] if more == 4 else []
        assert row["prompt_ids"] == [*first, 4, 7, *ids(last), 5]


@FIXED
@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.integers(1, 60)), max_size=5),
    st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(MIN_MAX_LENGTH, 300))
@example([], 300, 300, 300, 64)
@example([("system", 1)] * 5, 300, 300, 300, 64)
@example([("system", 1)] * 5, 1, 1, 1, 64)
def test_no_sequence_is_longer_than_max_length(turns, last, a, b, max_length):
    prompt = [*((role, words(count, "t")) for role, count in turns), ("user", words(last, "u"))]
    whole = [sum(3 + len(ids(text)) for _, text in prompt), len(ids(words(a, "a"))), len(ids(words(b, "b")))]
    row, = encode(Encoder(TOKENIZER, max_length), (prompt, words(a, "a"), words(b, "b")))
    for first, second in (("a_ids", "b_ids"), ("b_ids", "a_ids")):
        assert len(TEMPLATE.sequence(row["prompt_ids"], row[first], row[second])) == row["tokens"] <= max_length
    if 8 + sum(whole) <= max_length:
        assert (row["tokens"], row["tokens_cut"]) == (8 + sum(whole), 0)
    else:
        assert row["tokens"] >= max_length - 3  # at most the room for a turn without a token stays empty
        assert row["tokens_cut"] == 8 + sum(whole) - max_length
    assert len(row["a_ids"]) >= min(whole[1], (max_length - 8) // 3)
    assert len(row["b_ids"]) >= min(whole[2], (max_length - 8) // 3)
    assert row["prompt_ids"][-2:] == [ids(words(last, "u"))[-1], 5]
    assert row["prompt_ids"].count(4) == row["prompt_ids"].count(5)


# Texts without responses


def text_row(encoder: Encoder, *texts: str) -> dict:
    row, = encode(encoder, ([("user", text) for text in texts], None, None))
    sequence = TEMPLATE.sequence(row["prompt_ids"])
    assert len(sequence) == row["tokens"] <= encoder.max_length
    return row


def test_one_text_written_out():
    row = text_row(Encoder(TOKENIZER, 64), "fox")
    assert row == {
        "id": "0", "group": "g", "language": "en", "source": "s", "kind": "k", "source_index": 3,
        "content": text_hash("fox"), "content_a": text_hash("fox"), "content_b": text_hash(""), "prompt_key": "p",
        "target": TARGET,
        "prompt_ids": [4, 7, *ids("fox"), 5], "a_ids": None, "b_ids": None,
        "tokens": 5 + len(ids("fox")), "tokens_cut": 0, "characters_a": 3, "characters_b": 0,
        "markdown_a": 0, "markdown_b": 0}
    assert TOKENIZER.decode(TEMPLATE.sequence(row["prompt_ids"])) == (
        f"{BOS}{START_TURN}{USER}fox{END_TURN}{EOS}")


def test_two_texts_written_out():
    row = text_row(Encoder(TOKENIZER, 64), "fox", "hello")
    assert row["prompt_ids"] == [4, 7, *ids("fox"), 5, 4, 7, *ids("hello"), 5]
    assert (row["a_ids"], row["b_ids"]) == (None, None)
    assert (row["tokens"], row["tokens_cut"]) == (8 + len(ids("fox") + ids("hello")), 0)
    assert (row["characters_a"], row["characters_b"]) == (8, 0)


def test_one_long_text_keeps_its_beginning_and_its_end():
    whole, gap = ids(words(300)), ids(GAP)
    kept = 64 - 5 - len(gap)
    row = text_row(Encoder(TOKENIZER, 64), words(300))
    assert row["prompt_ids"] == [4, 7, *whole[: kept - kept // 2], *gap, *whole[-(kept // 2) :], 5]
    assert (row["tokens"], row["tokens_cut"]) == (64, len(whole) - 59)


def test_two_long_texts_share_the_tokens_and_keep_their_beginning_and_their_end():
    row = text_row(Encoder(TOKENIZER, 128), words(300, "a"), words(300, "b"))
    text, gap = (128 - 8) // 2, ids(GAP)
    kept = text - len(gap)
    for place, name in ((0, "a"), (text + 3, "b")):
        whole = ids(words(300, name))
        assert row["prompt_ids"][place : place + text + 3] == [
            4, 7, *whole[: kept - kept // 2], *gap, *whole[-(kept // 2) :], 5]
    assert len(row["prompt_ids"]) == 2 * (text + 3)
    assert row["tokens_cut"] == len(ids(words(300, "a")) + ids(words(300, "b"))) - 2 * text


def test_a_short_text_leaves_its_room_to_the_long_one():
    for texts in (("hello fox", words(300)), (words(300), "hello fox")):
        row = text_row(Encoder(TOKENIZER, 64), *texts)
        assert row["tokens"] == 64
        turn = [4, 7, *ids("hello fox"), 5]
        assert turn in (row["prompt_ids"][: len(turn)], row["prompt_ids"][-len(turn) :])


@FIXED
@given(st.lists(st.integers(1, 300), min_size=1, max_size=2), st.integers(MIN_MAX_LENGTH, 300))
def test_no_texts_are_longer_than_max_length(counts, max_length):
    texts = [words(count, name) for count, name in zip(counts, "ab", strict=False)]
    whole = sum(len(ids(text)) + 3 for text in texts)
    row = text_row(Encoder(TOKENIZER, max_length), *texts)
    assert row["tokens"] == min(max_length, 2 + whole)
    assert row["tokens_cut"] == max(0, 2 + whole - max_length)


def pieces(encoder: Encoder, *texts: str) -> list[dict]:
    found = encode(encoder, *((text, None, None) for text in texts))
    for row in found:
        assert len(TEMPLATE.sequence(row["prompt_ids"])) == row["tokens"] <= encoder.max_length
        assert (row["tokens_cut"], row["a_ids"], row["b_ids"]) == (0, None, None)
    return found


def test_a_long_text_in_pieces_written_out():
    """Of a piece 5 tokens are the template's; the last one has what is left."""
    text = words(60)
    whole = ids(text)
    found = pieces(Encoder(TOKENIZER, 64, pieces=True), "fox", text)
    assert [row["prompt_ids"] for row in found] == [
        [4, 7, *ids("fox"), 5], *([4, 7, *whole[start : start + 59], 5] for start in range(0, len(whole), 59))]
    assert len(found) > 3
    for row in found[1:]:
        assert (row["id"], row["content"], row["characters_a"]) == ("1", text_hash(text), len(text))


@FIXED
@given(TEXTS, st.integers(MIN_MAX_LENGTH, 100))
@example("x" * 5000, 64)
@example(" " * 500, 64)
@example("不" * 300, 64)
@example("<PAD>" * 100, 64)
def test_nothing_of_a_text_is_lost_in_pieces(text, max_length):
    found = pieces(Encoder(TOKENIZER, max_length, pieces=True), text)
    assert [token for row in found for token in row["prompt_ids"][2:-1]] == ids(text)
    assert all(row["tokens"] == max_length for row in found[:-1])


def test_a_text_that_fits_is_one_piece_and_the_same_as_without():
    encoder = Encoder(TOKENIZER, 64, pieces=True)
    assert pieces(encoder, "fox") == encode(Encoder(TOKENIZER, 64), ("fox", None, None))
    exact = TOKENIZER.decode(ids(words(60))[:59])
    assert len(ids(exact)) == 59
    assert [row["tokens"] for row in pieces(encoder, exact)] == [64]


def test_nothing_of_a_text_of_5_mb_is_cut():
    """Where texts are cut they are, before they are tokenised."""
    text = "hello world, this is text. " * 5 + "fox" * 1_666_000
    found = pieces(Encoder(TOKENIZER, 8192, pieces=True), text)
    assert sum(len(row["prompt_ids"]) - 3 for row in found) == len(TOKENIZER(text, add_special_tokens=False).input_ids)


def test_a_comparison_is_cut_as_without_pieces():
    comparison = (words(300), words(300, "a"), words(300, "b"))
    assert encode(Encoder(TOKENIZER, 64, pieces=True), comparison) == encode(Encoder(TOKENIZER, 64), comparison)
    assert encode(Encoder(TOKENIZER, 64, pieces=True), ("p", "same", "same")) == []


def test_texts_and_comparisons_are_encoded_beside_each_other():
    rows = encode(Encoder(TOKENIZER, 64), ("fox", None, None), ("p", "same", "same"), ("q", "one", "other"))
    assert [(row["id"], row["a_ids"], row["b_ids"]) for row in rows] == [
        ("0", None, None), ("2", ids("one"), ids("other"))]


def test_tokens_are_as_many_as_the_collator_makes():
    encoder = Encoder(TOKENIZER, 64)
    rows = [row | {"target": [1.0, 0.0]} for row in encode(
        encoder, ("fox", None, None), ([("user", words(99)), ("user", words(99, "b"))], None, None),
        ("fox", "hello", "dog"), (words(99), words(99, "a"), words(99, "b")))]
    orders = [[False], [False], [False, True], [False, True]]
    mask_BL = Collator(encoder.template, packing=False)(rows, orders)["attention_mask"]
    fox, three = 5 + len(ids("fox")), 11 + len(ids("fox") + ids("hello") + ids("dog"))
    assert mask_BL.sum(1).tolist() == [fox, 64, three, three, 64, 64]
    assert [row["tokens"] for row in rows] == [fox, 64, three, 64]


def test_lengths_of_rows_and_of_their_prompts_in_the_order_of_the_rows():
    texts = [("fox", None, None), ("fox fox", "hello", "dog"), ("", "one", "other")]
    rows = Dataset.from_list(encode(Encoder(TOKENIZER, 64), *texts), features=ENCODED_FEATURES).select([2, 0, 1])
    tokens, prompt_tokens = row_lengths(rows)
    prompts = [0, 3 + len(ids("fox")), 3 + len(ids("fox fox"))]  # a turn of no text is left out
    assert prompt_tokens.tolist() == prompts
    assert tokens.tolist() == [8 + prompts[0] + len(ids("one") + ids("other")), 2 + prompts[1],
                               8 + prompts[2] + len(ids("hello") + ids("dog"))]
    for none in row_lengths(rows.select([])):
        assert none.tolist() == []


# What is left out


def test_equal_responses_are_left_out():
    rows = encode(Encoder(TOKENIZER, 64), ("p", "same", "same"), ("q", "one", "other"), ("r", "", ""), ("s", "x", "x "))
    assert [row["id"] for row in rows] == ["1", "3"]
    assert rows[0]["prompt_ids"] == [4, 7, *ids("q"), 5]
    assert rows[1]["prompt_ids"] == [4, 7, *ids("s"), 5]


def test_responses_that_differ_only_where_they_are_cut_are_left_out():
    a, b = (f"{words(200)} {middle} {words(200)}" for middle in ("q7", "q8"))
    assert len(ids(a)) == len(ids(b))
    assert encode(Encoder(TOKENIZER, 128), ("p", a, b)) == []
    assert len(encode(Encoder(TOKENIZER, 8192), ("p", a, b))) == 1


def test_no_rows():
    assert encode(LONG) == []


# Limits


@pytest.mark.parametrize("max_length", [63, 1, 0, -5])
def test_a_max_length_that_is_too_small_is_an_error(max_length):
    with pytest.raises(UserError) as caught:
        Encoder(TOKENIZER, max_length)
    assert str(caught.value) == f"--max_length {max_length}: at least 64 tokens are needed for three texts"


def test_the_smallest_max_length_works():
    row, = encode(Encoder(TOKENIZER, 64), (words(100), words(100, "a"), words(100, "b")))
    assert row["tokens"] == 64


@pytest.mark.parametrize("part", ["a", " ", "\n", "hello world, this is text. ", "中文字符", "𒀀", "<PAD>"])
def test_a_text_of_5_mb_fits(part):
    """It is cut to `CHARACTERS_PER_TOKEN * max_length` at each end before it is tokenised."""
    text = part * (5_000_000 // len(part.encode()))
    row, = encode(Encoder(TOKENIZER, 2048), (text, text, "b" + text))
    assert row["tokens"] == 2048
    assert row["characters_a"] == len(text)
    assert TOKENIZER.decode(row["a_ids"][:96]).startswith(part)


def test_the_fingerprint_changes_with_what_changes_the_ids():
    fingerprint = Encoder(TOKENIZER, 64).fingerprint()
    assert Encoder(TOKENIZER, 64).fingerprint() == fingerprint
    assert Encoder(TOKENIZER, 65).fingerprint() != fingerprint
    assert Encoder(train_tokenizer(CORPUS, 400), 64).fingerprint() != fingerprint
    assert Encoder(TOKENIZER, 64, pieces=True).fingerprint() != fingerprint
