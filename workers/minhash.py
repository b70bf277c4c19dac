"""
MinHash: how alike two texts are, told from two short signatures instead of the texts.

A text is the set of its shingles (runs of a few words). One hash per shingle is dealt out to bins, and each bin keeps
its smallest: two texts agree in a bin as often as their sets overlap (one-permutation hashing: one pass over the text
where the textbook makes one per place of the signature). A byte of each bin's hash is enough to compare.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final
from zlib import crc32

__all__ = ["BINS", "near_pairs", "shingles", "signature", "similarity"]

BINS: Final = 128
_BIN_WIDTH: Final = 2**32 // BINS
_CHANCE: Final = 1 / 256  # that two bytes agree by accident

# Splitting bytes at spaces is several times faster than searching for words: so lower case for letters, a space for
# all other ASCII. Chinese and Japanese don't part their words, so there each character counts as one.
_BEYOND_ASCII: Final = 0x80
_WORDS_ONLY: Final = bytes(
    byte if byte >= _BEYOND_ASCII else ord(chr(byte).lower()) if chr(byte).isalnum() else 0x20 for byte in range(256)
)
_IDEOGRAPH: Final = re.compile(r"[\u2e80-\u9fff]")

# Which bins an empty bin borrows from, first to last: an order of its own for each, the same for every text.
_LENDERS: Final = [sorted(range(BINS), key=lambda lender: crc32(bytes((bin_, lender)))) for bin_ in range(BINS)]
_MIXERS: Final = [crc32(bytes((bin_,))) | 1 for bin_ in range(BINS)]  # so that one lent hash shows as different bytes

_BAND_BYTES: Final = 4  # pairs of similarity 0.8 meet in one of the 32 bands almost surely, those of 0.3 seldom
_MOST_COMPARED: Final = 50  # per text and band, so that thousands of almost equal files stay affordable


def shingles(text: str) -> set[int]:
    """Return the hashes of a text's runs of four words; one hash for all of a shorter text."""
    spaced = text if text.isascii() else _IDEOGRAPH.sub(r" \g<0> ", text)
    words = spaced.encode().translate(_WORDS_ONLY).split()
    runs = zip(words, words[1:], words[2:], words[3:], strict=False)
    return {crc32(b" ".join(run)) for run in runs} or {crc32(b" ".join(words))}


def signature(hashes: Iterable[int]) -> bytes:
    """Return the signature of a set of 32-bit hashes, which must not be empty."""
    smallest = {value // _BIN_WIDTH: value for value in sorted(hashes, reverse=True)}  # a bin's last one stays
    held = (smallest[next(filter(smallest.__contains__, lenders))] for lenders in _LENDERS)
    return bytes(value * mixer >> 24 & 0xFF for value, mixer in zip(held, _MIXERS, strict=True))


def similarity(one: bytes, other: bytes) -> float:
    """Estimate the Jaccard similarity of the sets behind two signatures; the standard error is 0.04 at most."""
    agreeing = sum(map(int.__eq__, one, other)) / BINS
    return max(0.0, (agreeing - _CHANCE) / (1 - _CHANCE))


def near_pairs(signatures: Mapping[str, bytes], threshold: float) -> list[tuple[str, str, float]]:
    """
    Return the pairs of names whose signatures are alike, the closest first.

    Only those that share a band of their signatures are compared, instead of all with all.
    """
    compared = ((one, other, similarity(signatures[one], signatures[other])) for one, other in _candidates(signatures))
    alike = [pair for pair in compared if pair[2] >= threshold]
    return sorted(alike, key=lambda pair: (-pair[2], pair[0], pair[1]))


def _candidates(signatures: Mapping[str, bytes]) -> set[tuple[str, str]]:
    bands: defaultdict[tuple[int, bytes], list[str]] = defaultdict(list)
    pairs: set[tuple[str, str]] = set()
    for name in sorted(signatures):
        for start in range(0, BINS, _BAND_BYTES):
            members = bands[start, signatures[name][start : start + _BAND_BYTES]]
            pairs.update((member, name) for member in members[:_MOST_COMPARED])
            members.append(name)
    return pairs
