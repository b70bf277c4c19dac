"""What kind of text a file holds."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.language import kind_of, natural_language, prose_of

PROSE = {
    "English": "It was the best of times, and it was the worst of times; there was nothing that we could not have.",
    "German": "Es war die beste und die schlechteste der Zeiten, und nichts davon ist uns für immer geblieben.",
    "French": "C'était le meilleur et le pire des temps, et il ne reste rien de ce que nous avions dans les mains.",
    "Spanish": "Era el mejor y el peor de los tiempos, y no queda nada de lo que la gente tenía en las manos.",
    "Italian": "Era il migliore e il peggiore dei tempi, e non è rimasto nulla di quello che la gente aveva con sé.",
    "Portuguese": "Era o melhor e o pior dos tempos, e não ficou nada do que as pessoas tinham para uma vida com paz.",
    "Dutch": "Het was de beste en de slechtste van alle tijden, en er is niets van over dat wij nog voor ons zien.",
}


class TestKindOf:
    @pytest.mark.parametrize(
        ("path", "kind"),
        [("a/b.py", "Python"), ("x.PY", "Python"), ("m.h", "C"), ("a.tar.json", "JSON"), ("c.yml", "YAML")],
    )
    def test_suffix(self, path: str, kind: str) -> None:
        """A known suffix tells the kind, whatever the content."""
        assert kind_of(path, "x") == kind

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("#!/usr/bin/env python3\nprint()", "Python"),
            ("#! /bin/sh\necho", "Shell"),
            ("#!/usr/local/bin/perl5.36 -w\n", "Perl"),
            ("<?xml version='1.0'?><a/>", "XML"),
            ("#!/opt/strange\n", "text"),
        ],
    )
    def test_first_line(self, text: str, kind: str) -> None:
        """Without a known suffix, the first line may tell."""
        assert kind_of("bin/tool", text) == kind

    def test_a_folder_with_a_dot_is_no_suffix(self) -> None:
        """Only the file's own name has a suffix."""
        assert kind_of("conf.py/README", "x") == "text"

    @pytest.mark.parametrize("language", PROSE)
    def test_prose(self, language: str) -> None:
        """Prose is named by its language."""
        assert kind_of("README", PROSE[language]) == language

    @given(st.text(), st.text())
    def test_always_has_an_answer(self, path: str, text: str) -> None:
        """Any path and any text have a kind."""
        assert kind_of(path, text)


class TestNaturalLanguage:
    @pytest.mark.parametrize("text", ["", "the of and", "0.1e5 0.2e7 " * 50, "lorem ipsum dolor sit amet " * 9])
    def test_no_language(self, text: str) -> None:
        """Too few words, numbers, or words of another language have none."""
        assert natural_language(text) is None


class TestProseOf:
    def test_python(self) -> None:
        """Of Python, docstrings and comments are prose."""
        text = '"""Say\nhello."""\nx = 1  # one\n'

        assert prose_of(text, "Python").split() == ["Say", "hello.", "one"]

    def test_slash_comments(self) -> None:
        """Of languages in C's manner, both sorts of comment."""
        assert prose_of("/* first */ int x; // second\n", "C").split() == ["first", "second"]

    def test_data_has_none(self) -> None:
        """Data holds nothing that a person wrote for people."""
        assert not prose_of('{"a": "b"}', "JSON")

    def test_prose_is_all_of_it(self) -> None:
        """A prose is prose."""
        assert prose_of("All of it.", "English") == "All of it."

    @pytest.mark.parametrize("unit", ["/*", '"""', "'''", "#", "//", "/* ", '""', " ", "#!a "])
    @pytest.mark.parametrize("kind", ["Python", "C"])
    def test_takes_linear_time(self, unit: str, kind: str) -> None:
        """No text, however odd, takes more than a moment: comments that are never closed included."""
        text = unit * (2**20 // len(unit))
        started = time.process_time()

        prose_of(text, kind)

        assert time.process_time() - started < 5
