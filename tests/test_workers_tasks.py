"""The text, compute and general agents: one file's way through them."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.compute import fingerprint
from workers.documents import Document, pack, unpack
from workers.general import collect
from workers.io import read
from workers.text import describe, keywords

SKIPPED = Document(path="x", outcome="binary", note="no text", bytes=9, encoding="", packed="")


def document(path: str, text: str) -> Document:
    """Return a document as the io agent makes it."""
    return Document(path=path, outcome="profiled", note="", bytes=len(text), encoding="utf-8", packed=pack(text))


class TestPack:
    @given(st.text())
    def test_comes_back(self, text: str) -> None:
        """What is packed is unpacked, and needs no escapes in JSON."""
        packed = pack(text)

        assert unpack(packed) == text
        assert json.dumps(packed) == f'"{packed}"'


class TestKeywords:
    def test_best_first(self) -> None:
        """The most frequent words that mean something come first."""
        assert keywords("The orchestra plays; the orchestra rests. A violin plays on.", 2) == ["orchestra", "plays"]

    def test_runs_as_a_task(self) -> None:
        """It is called like any Celery task."""
        assert keywords.apply(("a violin",)).get() == ["violin"]


class TestDescribe:
    def test_code(self) -> None:
        """A file gets its kind, its readability and its keywords."""
        text = 'def play_violin():\n    """Play it."""\n' * 3

        (described,) = describe([document("a.py", text)])

        assert described["description"] == {"kind": "Python", "readability": None, "keywords": {"play": 6, "violin": 3}}

    def test_skipped_files_pass(self) -> None:
        """A file without a text isn't described, and goes on."""
        assert describe([SKIPPED]) == [{"document": SKIPPED, "description": None}]


class TestFingerprint:
    def test_equal_texts_have_equal_prints(self) -> None:
        """Texts that are equal have equal digests and signatures, others have not."""
        one, same, other = fingerprint(describe([document("a", "one"), document("b", "one"), document("c", "other")]))

        assert one["fingerprint"] == same["fingerprint"] != other["fingerprint"]

    def test_the_text_is_let_go(self) -> None:
        """A profile is small, whatever the file."""
        words = " ".join(f"{'wörter' * 3}{chr(0x430 + number % 30) * 20}" for number in range(10_000))

        (profile,) = fingerprint(describe([document("p", words)]))

        assert len(json.dumps(profile)) < 1600

    def test_skipped_files_pass(self) -> None:
        """A file without a text keeps its outcome and has no prints."""
        (profile,) = fingerprint(describe([SKIPPED]))

        assert (profile["outcome"], profile["note"], profile["bytes"]) == ("binary", "no text", 9)
        assert profile["description"] is None
        assert profile["fingerprint"] is None


class TestAll:
    def test_a_chain_of_batches(self, tmp_path: Path) -> None:
        """The three steps and the collecting fit together, and what they pass is JSON."""
        (tmp_path / "a.py").write_text("print('hello')")
        (tmp_path / "b.bin").write_bytes(bytes(9))

        read_ = json.loads(json.dumps(read(str(tmp_path), ["a.py", "b.bin"])))
        described = json.loads(json.dumps(describe(read_)))
        profiles = json.loads(json.dumps(fingerprint(described)))

        assert [(each["path"], each["outcome"]) for each in collect([profiles, []])] == [
            ("a.py", "profiled"),
            ("b.bin", "binary"),
        ]

    @pytest.mark.parametrize("unit", ["a ", "ab", "0,", "\n", '"', "天", "{[(", "aB_", "/*#"])
    def test_no_text_takes_long(self, unit: str) -> None:
        """A text of the largest size takes seconds at most, however odd it is."""
        started = time.process_time()

        fingerprint(describe([document("odd.py", unit * (2**20 // len(unit.encode())))]))

        assert time.process_time() - started < 10
