"""The embedded sample: complete in every language, written in its script, and without a leak over a split."""

import re
import unicodedata
from collections import Counter, defaultdict
from importlib.resources import files

import pyarrow as pa
import pytest

from pm.data import sample
from pm.data.sources import Reading, ReadReport, read_source
from pm.data.split import overlap, split

WRITTEN = sample.written()
ROWS = list(sample.rows())
KINDS = {"wrong_fact", "off_topic", "ignores_instruction", "evasive", "cut_off", "wrong_language", "repetitive"}
DERIVED = {"other_prompt", "other_language", "cut_short", "rambling"}
PAIRS = 1 + len(DERIVED)  # for each written row

SCRIPTS = {"ja": "HIRAGANA KATAKANA KATAKANA-HIRAGANA CJK", "ko": "HANGUL", "zh": "CJK", "ar": "ARABIC", "fa": "ARABIC",
           "ru": "CYRILLIC", "uk": "CYRILLIC", "el": "GREEK", "hi": "DEVANAGARI", "he": "HEBREW"}  # the others: LATIN

# What one of the languages that share a script has more of than all others of that script.
MARKS = {"en": " the ", "fr": " les ", "es": "ñ", "it": " che ", "de": "ß", "pt": " não ", "pl": "ł", "tr": "ı",
         "vi": "ư", "nl": " het ", "cs": "ř", "id": " yang ", "ro": "ț", "ru": "ы", "uk": "ї", "ar": "ة", "fa": "پ"}


def prompt_text(row: dict) -> str:
    return row["prompt"] if isinstance(row["prompt"], str) else "\n".join(turn["content"] for turn in row["prompt"])


def language_text(language: str) -> str:
    """Every prompt and good answer; the worse answers may be in another language."""
    return "\n".join(f"{prompt_text(row)}\n{row['chosen']}" for row in WRITTEN[language])


def scripts(text: str) -> Counter:
    """Letters by the first word of their Unicode name."""
    return Counter(unicodedata.name(letter).split()[0] for letter in text if letter.isalpha())


def test_there_is_one_file_for_each_language():
    names = sorted(path.name for path in files(sample).iterdir() if path.name.endswith(".jsonl"))
    assert names == sorted(f"{language}.jsonl" for language in sample.LANGUAGES)
    assert len(names) == len(set(sample.LANGUAGES)) == 23
    assert list(WRITTEN) == list(sample.LANGUAGES)


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_every_language_has_the_same_groups_and_kinds_in_order(language):
    order = [(row["group"], row["kind"], isinstance(row["prompt"], str)) for row in WRITTEN["en"]]
    assert [(row["group"], row["kind"], isinstance(row["prompt"], str)) for row in WRITTEN[language]] == order


def test_groups_are_unique_and_come_in_twos():
    groups = [row["group"] for row in WRITTEN["en"]]
    assert len(groups) == len(set(groups))
    assert len(groups) % 2 == 0  # else the last one's partner would be itself


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_every_line_has_the_columns_and_texts(language):
    for row in WRITTEN[language]:
        assert set(row) == {"group", "kind", "prompt", "chosen", "rejected"}
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", row["group"])
        assert row["kind"] in KINDS
        assert row["chosen"] != row["rejected"]
        if not isinstance(row["prompt"], str):
            assert [turn["role"] for turn in row["prompt"]] == ["user", "assistant", "user"]
        for text in (*prompt_text(row).split("\n"), row["chosen"], row["rejected"]):
            assert text
            assert text == text.strip()


def test_every_kind_is_there():
    assert {row["kind"] for row in WRITTEN["en"]} == KINDS


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_texts_are_nfc_without_stray_characters(language):
    for row in WRITTEN[language]:
        text = prompt_text(row) + row["chosen"] + row["rejected"]
        assert unicodedata.normalize("NFC", text) == text
        odd = {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cn", "Co")} - {"\n"}
        assert odd <= ({"\u200c"} if language == "fa" else set())  # Persian writes the zero-width non-joiner


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_a_language_is_written_in_its_script(language):
    count = scripts(language_text(language))
    own = sum(count[script] for script in SCRIPTS.get(language, "LATIN").split())
    assert own / count.total() > 0.99


def test_japanese_has_kana_and_chinese_has_none():
    japanese, chinese = scripts(language_text("ja")), scripts(language_text("zh"))
    assert japanese["HIRAGANA"] > japanese["CJK"] > 0
    assert japanese["KATAKANA"] > 0
    assert chinese["HIRAGANA"] == chinese["KATAKANA"] == 0


@pytest.mark.parametrize("language", MARKS)
def test_a_language_is_not_another_one_of_its_script(language):
    script = SCRIPTS.get(language, "LATIN")
    count = {other: language_text(other).count(MARKS[language]) for other in sample.LANGUAGES
             if SCRIPTS.get(other, "LATIN") == script}
    assert count[language] >= 3
    assert count[language] > 2 * max(number for other, number in count.items() if other != language)


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_cut_off_is_a_strict_prefix(language):
    for row in WRITTEN[language]:
        is_prefix = row["chosen"].startswith(row["rejected"])
        assert is_prefix == (row["kind"] == "cut_off")
        assert not is_prefix or len(row["rejected"]) < len(row["chosen"])


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_wrong_language_is_in_another_language(language):
    """By script where it differs; else by its words, of which the good answers of the language know few."""
    words = set(re.findall(r"\w+", language_text(language).casefold()))
    for row in WRITTEN[language]:
        if row["kind"] == "wrong_language":
            own = set(SCRIPTS.get(language, "LATIN").split())
            found = scripts(row["rejected"])
            is_other_script = sum(found[script] for script in own) < 0.5 * found.total()
            rejected = re.findall(r"\w+", row["rejected"].casefold())
            known = sum(word in words for word in rejected) / len(rejected)
            assert is_other_script or known < 0.4, (row["group"], known)


def test_every_written_pair_gives_one_of_each_derived_kind():
    assert len(ROWS) == PAIRS * sum(map(len, WRITTEN.values())) == PAIRS * 23 * len(WRITTEN["en"])
    for language, number in Counter(row["language"] for row in ROWS).items():
        assert number == PAIRS * len(WRITTEN[language])
    written = [row for row in ROWS if row["source"] == "sample"]
    assert [(row["language"], row["kind"], row["prompt"], row["chosen"], row["rejected"]) for row in written] == [
        (language, row["kind"], row["prompt"], row["chosen"], row["rejected"])
        for language in sample.LANGUAGES for row in WRITTEN[language]]
    assert {row["kind"] for row in written} == KINDS
    derived = Counter(row["kind"] for row in ROWS if row["source"] == "sample_derived")
    assert derived == dict.fromkeys(DERIVED, len(written))


def test_the_pairs_of_the_first_prompt():
    assert [(row["id"], row["group"], row["chosen"][:12], row["rejected"]) for row in ROWS[:PAIRS]] == [
        ("en/boiling-water/wrong_fact", "boiling-water+capital-australia", "At sea level",
         "At sea level, water boils at 60 degrees Celsius, which is 140 degrees Fahrenheit."),
        ("en/boiling-water/other_prompt", "boiling-water+capital-australia", "At sea level",
         "The capital of Australia is Canberra. It was founded as a compromise between Sydney and Melbourne."),
        ("en/boiling-water/other_language", "boiling-water+capital-australia", "At sea level",
         "آب در سطح دریا در دمای ۱۰۰ درجهٔ سلسیوس، یعنی ۲۱۲ درجهٔ فارنهایت، می\u200cجوشد."),
        ("en/boiling-water/cut_short", "boiling-water+capital-australia", "At sea level",
         "At sea level, water boils at 100 degrees Celsius"),
        ("en/boiling-water/rambling", "boiling-water+capital-australia", "At sea level",
         "At sea level, water boils at 100 degrees Celsius, which is 212 degrees Fahrenheit. "
         "The capital of Australia is Canberra. It was founded as a compromise between Sydney and Melbourne.")]


def test_ids_are_unique():
    assert len({row["id"] for row in ROWS}) == len(ROWS)


def test_no_pair_is_equal_or_empty():
    for row in ROWS:
        assert row["rejected"].strip()
        assert row["chosen"] != row["rejected"]


def test_partners_share_a_group():
    for first, second in zip(WRITTEN["en"][::2], WRITTEN["en"][1::2], strict=True):
        names = sorted((first["group"], second["group"]))
        found = [row for row in ROWS if row["id"].split("/")[1] in names]
        assert {row["group"] for row in found} == {"+".join(names)}
        assert len(found) == 2 * PAIRS * 23


def test_other_prompt_is_the_answer_to_the_partner():
    chosen = {(row["language"], row["id"].split("/")[1]): row["chosen"] for row in ROWS}
    for row in ROWS:
        if row["kind"] == "other_prompt":
            language, own, _ = row["id"].split("/")
            partner = next(name for name in row["group"].split("+") if name != own)
            assert row["rejected"] == chosen[language, partner]


def test_other_language_is_the_same_answer_in_another_one():
    chosen = {(row["language"], row["id"].split("/")[1]): row["chosen"] for row in ROWS}
    seen = set()
    for row in ROWS:
        if row["kind"] == "other_language":
            language, own, _ = row["id"].split("/")
            others = [other for other in sample.LANGUAGES if chosen[other, own] == row["rejected"]]
            assert others
            assert language not in others
            seen.update(others)
    assert seen == set(sample.LANGUAGES)


def test_cut_short_is_a_strict_prefix():
    for row in ROWS:
        if row["kind"] == "cut_short":
            assert row["chosen"].startswith(row["rejected"])
            assert 0.15 * len(row["chosen"]) < len(row["rejected"]) < 0.8 * len(row["chosen"])


def test_rambling_goes_on_with_the_answer_to_the_partner():
    chosen = {(row["language"], row["id"].split("/")[1]): row["chosen"] for row in ROWS}
    for row in ROWS:
        if row["kind"] == "rambling":
            language, own, _ = row["id"].split("/")
            partner = next(name for name in row["group"].split("+") if name != own)
            assert row["rejected"].startswith(row["chosen"])
            assert row["rejected"].endswith(chosen[language, partner])


def test_no_answer_occurs_in_two_groups():
    groups = defaultdict(set)
    for row in ROWS:
        for text in (row["chosen"], row["rejected"]):
            groups[row["language"], text].add(row["group"])
    assert [text for text, names in groups.items() if len(names) > 1] == []


def test_no_prompt_occurs_in_two_groups():
    groups = defaultdict(set)
    for row in ROWS:
        groups[prompt_text(row).casefold()].add(row["group"])
    assert [text for text, names in groups.items() if len(names) > 1] == []


def test_the_sample_is_read_without_a_bad_row():
    report = ReadReport()
    rows = list(read_source("sample", Reading(max_bad_fraction=0.0), report))
    assert report == ReadReport(len(ROWS), [])
    assert [row.id for row in rows] == [row["id"] for row in ROWS]
    for row, written in zip(rows, ROWS, strict=True):
        good = row.response_a if row.target == {"a": 1.0} else row.response_b
        assert good == written["chosen"]
        assert {row.response_a, row.response_b} == {written["chosen"], written["rejected"]}
        assert (row.group, row.language, row.kind, row.source) == (
            written["group"], written["language"], written["kind"], written["source"])
    assert 0.45 < sum(row.target == {"a": 1.0} for row in rows) / len(rows) < 0.55


@pytest.mark.parametrize("test_fraction", [0.05, 0.25, 0.5])
def test_a_split_of_the_sample_has_every_language_on_both_sides_and_no_overlap(test_fraction):
    rows = [row.to_row() for row in read_source("sample", Reading(), ReadReport())]
    sides = split([row["group"] for row in rows], [row["prompt_key"] for row in rows], test_fraction)
    train, test = ([rows[number] for number in side] for side in sides)
    tables = [pa.table({name: [row[name] for row in side] for name in ("id", "group", "prompt_key", "source")})
              for side in (train, test)]
    assert overlap(*tables) is None
    assert {row["language"] for row in train} == {row["language"] for row in test} == set(sample.LANGUAGES)
    texts = [{(row["language"], row[name]) for row in side for name in ("response_a", "response_b")}
             for side in (train, test)]
    assert not texts[0] & texts[1]
