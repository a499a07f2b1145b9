"""One spelling for each language, from what data sets write; and languages of texts."""

import sys

import pytest

from pm.data.languages import NAMED, UNKNOWN, detector, language_code, language_of_name
from pm.data.sample import LANGUAGES
from pm.errors import UserError


@pytest.mark.parametrize(("name", "code"), [
    ("en", "en"), ("EN", "en"), ("English", "en"), (" english\n", "en"), ("eng", "en"), ("eng_Latn", "en"),
    ("arb_Arab", "ar"), ("ara", "ar"), ("zho-Hans", "zh"), ("cmn_Hant", "zh-hant"), ("zh-Hant-TW", "zh-hant-tw"),
    ("pt_BR", "pt-br"), ("pt-br", "pt-br"), ("Portuguese", "pt"), ("farsi", "fa"), ("pes", "fa"), ("Persian", "fa"),
    ("ca", "ca"), ("Swahili", "swahili"), ("swh_Latn", "swh"), ("en_", "en"), ("en--US", "en-us"), ("5", "5"),
])
def test_a_language_has_one_spelling(name, code):
    assert language_code(name) == code
    assert language_code(code) == code


@pytest.mark.parametrize("name", ["", " ", "-", "_", "__", "-en", "und", "unknown", "Unknown", "none", "None"])
def test_no_language(name):
    assert language_code(name) == UNKNOWN == "und"


def test_the_languages_of_the_sample_are_known_by_each_of_their_names():
    assert set(NAMED) == set(LANGUAGES)
    for code, names in NAMED.items():
        assert {language_code(name) for name in (code, *names)} == {code}
    names = [name for names in NAMED.values() for name in names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "code"), [
    ("es_train", "es"), ("es", "es"), ("spa", "es"), ("arb_Arab", "ar"), ("zh_Hans", "zh"), ("zh-Hant-TW", "zh"),
    ("zho_Hant", "zh-hant"), ("swh_Latn", "swh"), ("be-Cyrl", "be"),
    ("pt_BR", "pt"), ("en-US", "en"), ("ca_train", "ca"), ("hu_test", "hu"), ("id", "id"), ("deu_Latn_test", "de"),
])
def test_a_split_or_a_config_is_named_after_a_language(name, code):
    assert language_of_name(name) == code


@pytest.mark.parametrize("name", [
    "", "train", "test", "validation", "default", "all", "dev", "ca", "raw_es", "train_es", "spanish", "Es", "es.train",
    "es_1", "es_", "_es", "e", "es_train\n", "de train", "sw", "swh", "swh_latn", "swh_Latin", "raw_Text",
])
def test_a_split_or_a_config_is_named_after_no_language(name):
    assert language_of_name(name) == ""


@pytest.fixture(scope="module")
def detect():
    pytest.importorskip("py3langid", reason="py3langid is not installed")
    return detector()


@pytest.mark.parametrize(("text", "language"), [
    ("The weather is nice today and we walk in the park.", "en"),
    ("Das Wetter ist heute sehr schön und wir gehen spazieren.", "de"),
    ("Il fait beau aujourd'hui et nous nous promenons dans le parc.", "fr"),
    ("Сегодня хорошая погода, и мы гуляем в парке.", "ru"),
    ("Сьогодні гарна погода, і ми гуляємо в парку.", "uk"),
    ("今天天气很好，我们在公园里散步。", "zh"),
    ("今日は天気がいいので公園を散歩します。", "ja"),
    ("오늘은 날씨가 좋아서 공원에 갑니다.", "ko"),
    ("الطقس جميل اليوم ونحن نمشي في الحديقة.", "ar"),
    ("هوا امروز خوب است و ما در پارک قدم می‌زنیم.", "fa"),
    ("מזג האוויר נעים היום ואנחנו מטיילים בפארק.", "he"),
    ("आज मौसम बहुत अच्छा है और हम पार्क में घूम रहे हैं।", "hi"),
    ("Ο καιρός είναι ωραίος σήμερα και περπατάμε στο πάρκο.", "el"),
])
def test_the_language_of_a_sure_text(detect, text, language):
    assert detect(text) == language
    assert detect(text * 100_000) == language


@pytest.mark.parametrize("text", ["", " ", "12345 67", "...", "\x00", "😀", "a", "\n\u2028"])
def test_a_text_of_no_sure_language(detect, text):
    assert detect(text) == UNKNOWN


def test_a_detector_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UserError) as caught:
        detector()
    assert str(caught.value) == (
        "--detect_languages needs py3langid: pip install 'preference-model[languages]'")
