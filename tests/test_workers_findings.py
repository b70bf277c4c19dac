"""What the profiles of many files say together."""

from workers.compute import fingerprint
from workers.documents import Document, Outcome, Profile, pack
from workers.findings import folder_keywords, near_duplicates, report_on
from workers.text import describe

WORDS = [f"word{number}" for number in range(300)]


def profiles(**texts: str) -> list[Profile]:
    """Return the profiles of files, whose names have `__` for `/` and `_` for a dot."""
    return fingerprint(describe([_document(name, text) for name, text in texts.items()]))


def skipped(path: str, outcome: Outcome) -> Profile:
    """Return the profile of a file that has none."""
    return Profile(
        path=path, outcome=outcome, note=f"is {outcome}", bytes=5, encoding="", description=None, fingerprint=None
    )


def _document(name: str, text: str) -> Document:
    path = name.replace("__", "/").replace("_", ".")
    return Document(path=path, outcome="profiled", note="", bytes=len(text), encoding="utf-8", packed=pack(text))


class TestNearDuplicates:
    def test_alike_and_equal_ones(self) -> None:
        """Alike files are found; of equal ones, one stands for all; who shares the most text comes first."""
        text, close, other = " ".join(WORDS), " ".join([*WORDS[:295], "new"]), " ".join(reversed(WORDS))

        pairs = near_duplicates(profiles(a=text, b=text, c=close, d=other))

        assert [pair[:2] for pair in pairs] == [("a", "b"), ("a", "c")]
        assert pairs[0][2] == 1
        assert 0.8 <= pairs[1][2] < 1

    def test_none(self) -> None:
        """Skipped files and different ones give no pairs."""
        assert near_duplicates([*profiles(a="one", b="two"), skipped("c", "empty"), skipped("d", "empty")]) == []


class TestFolderKeywords:
    def test_what_sets_a_folder_apart(self) -> None:
        """Words that all folders share count less; the folder with the most files comes first."""
        given = profiles(a__one="common violin", b__one="common trumpet", b__two="common trumpet", top="common drum")

        words = folder_keywords(given)

        assert list(words) == ["b", "a", "."]
        assert [words[folder][0] for folder in words] == ["trumpet", "violin", "drum"]

    def test_a_single_folder(self) -> None:
        """With nothing to compare with, frequency alone counts."""
        assert folder_keywords(profiles(one="violin violin drum")) == {".": ["violin", "drum"]}


class TestReportOn:
    def test_totals(self) -> None:
        """Everything is counted, and every skipped file named."""
        given = [*profiles(a_py="x = violin", b_py="y = drum"), skipped("c", "binary"), skipped("d", "empty")]

        report = report_on(given)

        assert (report["files"], report["bytes"]) == (4, 10 + 8 + 5 + 5)
        assert report["outcomes"] == {"profiled": 2, "binary": 1, "empty": 1}
        assert report["kinds"] == {"Python": 2}
        assert report["encodings"] == {"utf-8": 2}
        assert report["skipped"] == [("c", "binary", "is binary"), ("d", "empty", "is empty")]

    def test_readability_by_kind(self) -> None:
        """Readability is the median of those files of a kind that have enough prose."""
        prose = "Reading short things and more of it. "

        report = report_on(profiles(a_md=prose * 10, b_md=prose * 20, c_md="little"))

        assert report["readability"] == {"English": 21.3}

    def test_of_nothing(self) -> None:
        """No files make an empty report."""
        assert report_on([])["files"] == 0
