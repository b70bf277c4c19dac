"""The words of a text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.words import count_words, lix, top_words

SIMPLE = "The cat sat on the mat. The dog ran to the cat. They had fun. "
HARD = (
    "Notwithstanding considerable methodological disagreements, contemporary epistemologists characteristically "
    "presuppose distinguishable justificatory relationships between propositional attitudes, evidential circumstances "
    "and deliberative responsibilities. "
)


class TestCountWords:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("parse_http_header", {"parse", "http", "header"}),
            ("parseHTTPHeader", {"parse", "http", "header"}),
            ("HTTPServerError", {"http", "server", "error"}),
            ("__private_name__", {"name"}),
            ("MAX_RETRIES", {"max", "retries"}),
            ("utf8Decoder2", {"utf", "decoder"}),
            ("straßeÜber", {"straßeüber"}),
        ],
    )
    def test_names_are_taken_apart(self, name: str, words: set[str]) -> None:
        """Names count by the words that they are made of."""
        assert set(count_words(name)) == words

    def test_stop_words_do_not_count(self) -> None:
        """Words that say nothing, of languages and of programming languages, are left out."""
        assert count_words("the def return und avec self import None fox") == {"fox": 1}

    def test_case_does_not_matter(self) -> None:
        """A word is the same in any case."""
        assert count_words("Fox fox FOX redFox") == {"fox": 4, "red": 1}

    @given(st.text())
    def test_words_are_letters(self, text: str) -> None:
        """Any text can be counted, and what counts are short words in letters."""
        assert all(word.isalpha() and 3 <= len(word) <= 20 for word in count_words(text))


class TestTopWords:
    def test_best_first(self) -> None:
        """The most frequent come first, equals in the text's order."""
        assert list(top_words("red blue blue green", 2).items()) == [("blue", 2), ("red", 1)]

    def test_of_nothing(self) -> None:
        """A text without words has none."""
        assert top_words("123 !!", 5) == {}


class TestLix:
    def test_hard_prose_is_harder(self) -> None:
        """Long sentences of long words score higher than short ones of short ones."""
        simple, hard = lix(SIMPLE * 5), lix(HARD * 5)

        assert simple is not None
        assert hard is not None
        assert simple < 20
        assert hard > 60

    def test_by_hand(self) -> None:
        """The index is words per sentence plus the percentage of long words."""
        assert lix("Reading short things. " * 10) == pytest.approx(3 + 100 / 3, abs=0.1)

    @pytest.mark.parametrize("text", ["", "Few words.", "one two three " * 50, "日本語の文章です。" * 100])
    def test_not_judged(self, text: str) -> None:
        """Little prose, lists, and scripts that don't part their words aren't judged."""
        assert lix(text) is None


@pytest.mark.parametrize("unit", ["a", "A", "aA", "Aa ", " ", ".", "\n", "é", "_", "\n \n"])
def test_takes_linear_time(unit: str) -> None:
    """No text, however odd, takes more than a moment."""
    text = unit * 2**20
    started = time.process_time()

    count_words(text)
    lix(text)

    assert time.process_time() - started < 5
