"""Words of any script: letters with their marks, and the characters of scripts that are written without spaces."""

from __future__ import annotations

import importlib.util
import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache

# Han, kana, Thai, Lao, Burmese and Khmer: words are not separated by spaces.
_KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HAN = "\u3005-\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_OTHER = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\uaa60-\uaa7f"
_SPACELESS = f"{_KANA}{_HAN}{_OTHER}"
_CHARACTERS_PER_WORD = 1.6  # of Chinese; the others have more
_MOSTLY = 0.5  # share of the letters from which a script decides
_SOME_KANA = 0.05  # Japanese is mostly written with Han characters and kana


@cache
def _marks() -> str:
    """All combining marks (Unicode M*) and the joiners, as the inside of a character class."""
    found = (chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M")
    return re.escape("".join(found)) + "\u200c\u200d"


@cache
def _token() -> re.Pattern[str]:
    """A word, or one character of a script without spaces, each with its marks."""
    marks = _marks()
    return re.compile(f"[{_SPACELESS}][{marks}]*|(?:[^\\W_{_SPACELESS}][{marks}]*)+")


@cache
def _spaceless() -> re.Pattern[str]:
    return re.compile(f"[{_SPACELESS}]")


def words(text: str) -> list[str]:
    """The words of a text without punctuation; of a script that is written without spaces, its characters."""
    if text.isascii():
        return re.findall(r"[^\W_]+", text)
    return _token().findall(unicodedata.normalize("NFC", text))


def split(text: str) -> list[str]:
    """What white space separates; parts in a script without spaces are divided into characters."""
    if text.isascii() or not _spaceless().search(text):
        return text.split()
    return [
        piece for part in text.split() for piece in (_token().findall(part) if _spaceless().search(part) else [part])
    ]


def count(text: str) -> float:
    """Number of words of a text. Characters of scripts without spaces count as a part of a word."""
    if text.isascii() or not (single := len(_spaceless().findall(text))):
        return float(len(text.split()))
    return len(_spaceless().sub(" ", text).split()) + single / _CHARACTERS_PER_WORD


def bleu_tokenizer(texts: Iterable[str]) -> str:
    """sacrebleu's tokenizer for the script of most letters of some texts."""
    letters, kana, han, other = 0, 0, 0, 0
    for text in texts:
        letters += sum(character.isalpha() for character in text)
        if not text.isascii():
            kana += len(re.findall(f"[{_KANA}]", text))
            han += len(re.findall(f"[{_HAN}]", text))
            other += len(re.findall(f"[{_OTHER}]", text))
    if not letters or kana + han + other < _MOSTLY * letters:
        return "13a"
    if other > kana + han:
        return "char"
    if kana > _SOME_KANA * letters:
        installed = all(importlib.util.find_spec(name) is not None for name in ("MeCab", "ipadic"))
        return "ja-mecab" if installed else "char"
    return "zh"
