"""What the profiles of many files say together: totals, near duplicates, and what each folder is about."""

import base64
import math
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from workers.documents import Fingerprint, Profile, Report
from workers.minhash import near_pairs

__all__ = ["folder_keywords", "near_duplicates", "report_on", "unreadable"]

NEAR: Final = 0.8
_PAIRS_SHOWN: Final = 200
_SKIPPED_SHOWN: Final = 1000
_FOLDERS_SHOWN: Final = 200
_KEYWORDS_SHOWN: Final = 8


def report_on(profiles: Sequence[Profile]) -> Report:
    """Return the report on a tree; its lists are bounded, its counts are of everything."""
    pairs = near_duplicates(profiles)
    skipped: list[tuple[str, str, str]] = sorted(
        (each["path"], each["outcome"], each["note"]) for each in profiles if each["fingerprint"] is None
    )
    return Report(
        files=len(profiles),
        bytes=sum(each["bytes"] for each in profiles),
        outcomes=_tally(each["outcome"] for each in profiles),
        kinds=_tally(each["description"]["kind"] for each in profiles if each["description"]),
        encodings=_tally(each["encoding"] for each in profiles if each["encoding"]),
        readability=_readability(profiles),
        near_duplicates=len(pairs),
        pairs=pairs[:_PAIRS_SHOWN],
        keywords=folder_keywords(profiles),
        skipped=skipped[:_SKIPPED_SHOWN],
    )


def _tally(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _readability(profiles: Iterable[Profile]) -> dict[str, float]:
    by_kind: defaultdict[str, list[float]] = defaultdict(list)
    for profile in profiles:
        description = profile["description"]
        if description and description["readability"] is not None:
            by_kind[description["kind"]].append(description["readability"])
    return {kind: round(median(values), 1) for kind, values in sorted(by_kind.items())}


def unreadable(named: tuple[str, str]) -> Profile:
    """Return the profile of something that could not even be opened, given its name and the reason."""
    path, note = named
    return Profile(path=path, outcome="unreadable", note=note, bytes=0, encoding="", description=None, fingerprint=None)


def near_duplicates(profiles: Sequence[Profile]) -> list[tuple[str, str, float]]:
    """
    Return the pairs of files that are alike, those that share the most text first.

    Of several files with equal texts, the first stands for all in comparisons with others.
    """
    first: dict[str, str] = {}
    signatures: dict[str, bytes] = {}
    equal: list[tuple[str, str, float]] = []
    for path, fingerprint in _fingerprints(profiles):
        original = first.setdefault(fingerprint["digest"], path)
        if original == path:
            signatures[path] = base64.b64decode(fingerprint["signature"])
        else:
            equal.append((original, path, 1.0))
    near = [(one, other, round(score, 3)) for one, other, score in near_pairs(signatures, NEAR)]
    sizes = {each["path"]: each["bytes"] for each in profiles}
    return sorted([*equal, *near], key=lambda pair: pair[2] * sizes[pair[0]], reverse=True)


def _fingerprints(profiles: Iterable[Profile]) -> list[tuple[str, Fingerprint]]:
    return sorted(
        ((each["path"], each["fingerprint"]) for each in profiles if each["fingerprint"]), key=lambda pair: pair[0]
    )


def folder_keywords(profiles: Iterable[Profile]) -> dict[str, list[str]]:
    """
    Return the words that set each folder apart from the others, those folders first that hold the most files.

    A word counts for a folder by how often its files use it, and the more the fewer other folders do (TF-IDF).
    """
    words: defaultdict[str, Counter[str]] = defaultdict(Counter)
    files: Counter[str] = Counter()
    for profile in profiles:
        if profile["description"]:
            folder = posixpath.dirname(profile["path"]) or "."
            words[folder].update(profile["description"]["keywords"])
            files[folder] += 1
    spread = Counter(word for counts in words.values() for word in counts)
    return {folder: _telling(words[folder], spread, len(words)) for folder, _ in files.most_common(_FOLDERS_SHOWN)}


def _telling(counts: Counter[str], spread: Counter[str], folders: int) -> list[str]:
    weights = {word: times * math.log(1 + folders / spread[word]) for word, times in counts.items()}
    return sorted(weights, key=lambda word: (-weights[word], word))[:_KEYWORDS_SHOWN]
