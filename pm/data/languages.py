"""Language codes: from what data sets write, or from the text itself."""

import re
from collections.abc import Callable

from pm.errors import UserError

UNKNOWN = "und"
TRADITIONAL = "hant"
LEAST_CONFIDENCE = 0.5
DETECTED_CHARACTERS = 2000

# The languages of the sample and of Command R7B: ISO 639-1, the ISO 639-3 codes in use, the name in English.
NAMED = {
    "ar": ("arb", "ara", "arabic"), "cs": ("ces", "czech"), "de": ("deu", "german"), "el": ("ell", "greek"),
    "en": ("eng", "english"), "es": ("spa", "spanish"), "fa": ("pes", "fas", "persian", "farsi"),
    "fr": ("fra", "french"), "he": ("heb", "hebrew"), "hi": ("hin", "hindi"), "id": ("ind", "indonesian"),
    "it": ("ita", "italian"), "ja": ("jpn", "japanese"), "ko": ("kor", "korean"), "nl": ("nld", "dutch"),
    "pl": ("pol", "polish"), "pt": ("por", "portuguese"), "ro": ("ron", "romanian"), "ru": ("rus", "russian"),
    "tr": ("tur", "turkish"), "uk": ("ukr", "ukrainian"), "vi": ("vie", "vietnamese"), "zh": ("zho", "cmn", "chinese"),
}
SPLIT = r"_([a-z]+_)*(train|test|dev|valid|validation)"  # makes a language of any two letters before it
SCRIPT = ("[-_](Arab|Armn|Beng|Cyrl|Deva|Ethi|Geor|Grek|Gujr|Guru|Hang|Hans|Hant|Hebr|Jpan|Khmr|Knda|Kore|Laoo|Latn|"
          "Mlym|Mong|Mymr|Olck|Orya|Sinh|Taml|Telu|Tfng|Thai|Tibt)")  # makes one of any two or three letters
CODES = {name: code for code, names in NAMED.items() for name in names}


def language_code(name: str) -> str:
    """One spelling for each language: `English` and `eng_Latn` are `en`, `pt_BR` is `pt-br`, nothing is `und`.

    A name that is not known stays as it is, in lower case; a script (four letters) is left out, but for traditional
    Chinese, `zh-hant`.
    """
    parts = re.split(r"[-_]", name.strip().lower())
    kept = (part for part in parts[1:] if part and (len(part) != 4 or part == TRADITIONAL))
    first, *others = [CODES.get(parts[0], parts[0]), *kept]
    return UNKNOWN if first in ("", "unknown", "und", "none") else "-".join([first, *others])


def language_of_name(name: str) -> str:
    """The language that a split or a config is named after, "" for none: `es_train`, `swh_Latn`, `fr`."""
    match = re.fullmatch(r"([a-z]{2,3})((?:[-_][A-Za-z]+)*)", name)
    if match and (match[1] in NAMED or match[1] in CODES or re.fullmatch(SCRIPT, match[2])
                  or (len(match[1]) == 2 and re.fullmatch(SPLIT, match[2]))):
        return language_code(name if match[2][1:].lower() == TRADITIONAL else match[1])
    return ""


def detector() -> Callable[[str], str]:
    """Text to language code, `und` where it is not sure. Raises `UserError` where py3langid is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError("--detect_languages needs py3langid: pip install 'preference-model[languages]'") from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=LEAST_CONFIDENCE)
    return lambda text: identifier.classify(text[:DETECTED_CHARACTERS])[0]
