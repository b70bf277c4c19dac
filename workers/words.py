"""The words of a text: which ones it is about, and how hard they are to read."""

import keyword
import re
from collections import Counter
from typing import Final

from workers.language import COMMON_WORDS

__all__ = ["count_words", "lix", "top_words"]

# Splitting bytes at spaces is several times faster than searching for words: so all that is no letter becomes a space.
# Letters beyond ASCII are bytes from 0x80 on in UTF-8, and stay.
_BEYOND_ASCII: Final = 0x80
_LETTERS_ONLY: Final = bytes(byte if byte >= _BEYOND_ASCII or chr(byte).isalpha() else 0x20 for byte in range(256))
_CAMEL: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+")
_WORD_LENGTHS: Final = range(3, 21)  # what is longer is seldom a word
_ENGLISH: Final = """
    about after all also any because been before being both can cannot could did do does done each either else even
    ever every few get gets give given had has he her here him his how however into its itself just like made make
    makes many may might more most much must no nor now off once one only other our out over own per rather same see
    set she should since so some such than their them then there these they those through thus too two under until
    up upon use used uses using very want was way we well were what when where whether while who whose why will
    without would yes yet your
"""
_CODE: Final = """
    arg args bool bytes char cls const def dict elif endif enum extern false float func function import include int
    kwargs len let list long namespace new none null obj object param params print private public ret return self
    short signed sizeof static str string struct super switch template this throw true tuple type typedef typename
    typeof unsigned val value var void
"""
_STOP: Final = frozenset(" ".join((*COMMON_WORDS.values(), _ENGLISH, _CODE, *keyword.kwlist)).lower().split())

_SENTENCE_END: Final = re.compile(r"[.!?:](?=\s|\Z)|\n\s*\n")
_CHINESE_ON: Final = "\u2e80"  # scripts from here on don't part their words by spaces
_LONG_WORD: Final = 7
_LEAST_WORDS: Final = 30
_LONGEST_SENTENCE: Final = 60  # on average; beyond that it is a list or a table


def top_words(text: str, limit: int) -> dict[str, int]:
    """Return the `limit` most frequent words that mean something, and how often they occur, best first."""
    return dict(count_words(text).most_common(limit))


def count_words(text: str) -> Counter[str]:
    """Count the words of a text, those within `snake_case` and `camelCase` names included; stop words don't count."""
    counts: Counter[str] = Counter()
    for run, times in Counter(_runs_of_letters(text)).items():
        for word in _words_in(run):
            counts[word] += times
    return counts


def _runs_of_letters(text: str) -> list[str]:
    return text.encode().translate(_LETTERS_ONLY).decode().split()


def _words_in(run: str) -> list[str]:
    parts = [run] if run.islower() else [part.lower() for part in _CAMEL.findall(run)]
    return [part for part in parts if len(part) in _WORD_LENGTHS and part not in _STOP and part.isalpha()]


def lix(prose: str) -> float | None:
    """
    Return Björnsson's readability index: words per sentence, plus the percentage of words over six letters.

    Under 30 is easy, 40 a newspaper, over 60 hard. Unlike indices that count syllables, it holds for every language
    that parts its words. None stands for too little prose to judge, or for lists.
    """
    words = [word for word in _runs_of_letters(prose) if word < _CHINESE_ON]
    if len(words) < _LEAST_WORDS:
        return None
    sentence_length = len(words) / max(1, len(_SENTENCE_END.findall(prose)))
    long_words = sum(len(word) >= _LONG_WORD for word in words)
    return round(sentence_length + 100 * long_words / len(words), 1) if sentence_length <= _LONGEST_SENTENCE else None
