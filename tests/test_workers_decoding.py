"""From bytes to text, whatever the encoding."""

import codecs
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.decoding import Decoded, decode

TEXT = "Grüße aus Köln: 100 € für Ærøskøbing"


class TestDecode:
    @given(st.binary(max_size=4096))
    def test_never_raises(self, raw: bytes) -> None:
        """Whatever the bytes, the answer is a text that can be written as UTF-8, or None."""
        decoded = decode(raw)

        assert decoded is None or decoded.text.encode() is not None

    @given(
        st.sampled_from([b"# coding: ", b"#!/bin/x\n# -*- coding: ", b'<?xml version="1.0" encoding="']),
        st.sampled_from(
            ["utf-7", "rot13", "zlib", "idna", "unicode_escape", "undefined", "no-such", "latin-1", "big5"]
        ),
        st.binary(max_size=200),
    )
    def test_never_raises_for_a_declared_encoding(self, start: bytes, name: str, rest: bytes) -> None:
        """A declaration, right or wrong, doesn't change that."""
        decoded = decode(start + name.encode() + b'" \n' + rest)

        assert decoded is None or decoded.text.encode() is not None

    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1))
    def test_utf8_comes_back(self, text: str) -> None:
        """UTF-8 without a declaration is read as such."""
        decoded = decode(("x\n\n" + text).encode())

        assert decoded == Decoded("x\n\n" + text, "utf-8")

    @pytest.mark.parametrize(
        ("mark", "codec", "expected"),
        [
            (codecs.BOM_UTF8, "utf-8", "utf-8-sig"),
            (codecs.BOM_UTF16_LE, "utf-16-le", "utf-16"),
            (codecs.BOM_UTF16_BE, "utf-16-be", "utf-16"),
            (codecs.BOM_UTF32_LE, "utf-32-le", "utf-32"),
            (codecs.BOM_UTF32_BE, "utf-32-be", "utf-32"),
        ],
    )
    def test_byte_order_mark_wins(self, mark: bytes, codec: str, expected: str) -> None:
        """A byte order mark tells the encoding, and isn't part of the text."""
        assert decode(mark + TEXT.encode(codec)) == Decoded(TEXT, expected)

    @pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
    def test_utf16_without_a_mark(self, codec: str) -> None:
        """Mostly Western UTF-16 is known by its zero bytes."""
        assert decode(TEXT.encode(codec)) == Decoded(TEXT, codec)

    @pytest.mark.parametrize("line", ["# coding: {}", "#!/bin/x\n# -*- coding: {} -*-", "# vim: set fileencoding={} :"])
    @pytest.mark.parametrize("name", ["koi8-r", "cp1251"])
    def test_coding_cookie(self, line: str, name: str) -> None:
        """A coding cookie in the first two lines is believed."""
        text = f"{line.format(name)}\n# привет\n"

        assert decode(text.encode(name)) == Decoded(text, codecs.lookup(name).name)

    def test_xml_declaration(self) -> None:
        """So is an XML declaration."""
        text = '<?xml version="1.0" encoding="ISO-8859-5"?>\n<a>привет</a>'

        assert decode(text.encode("iso-8859-5")) == Decoded(text, "iso8859-5")

    def test_cookie_in_the_third_line_is_none(self) -> None:
        """Later lines declare nothing."""
        text = "\n\n# coding: koi8-r\n# é"

        assert decode(text.encode()) == Decoded(text, "utf-8")

    @pytest.mark.parametrize("name", ["no-such-codec", "rot13", "zlib", "utf-7", "unicode_escape", "idna", "ascii"])
    def test_wrong_cookie_counts_as_none(self, name: str) -> None:
        """A cookie that names no codec, no encoding of texts, or the wrong one, is passed over."""
        text = f"# coding: {name}\n# é +AOk- \\xe9"

        assert decode(text.encode()) == Decoded(text, "utf-8")

    def test_latin1_is_the_last_resort(self) -> None:
        """Text-like bytes that fit nothing else are read as Latin-1."""
        assert decode("naïve café".encode("latin-1")) == Decoded("naïve café", "latin-1")

    @pytest.mark.parametrize(
        "raw",
        [
            b"\x7fELF\x02\x01\x01" + bytes(60),
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            zlib.compress(bytes(range(256)) * 64),
            b"text, and then a zero \0 byte",
            b"\xff\xfe" + b"\x00\xd8\x41\x00" * 10,
        ],
    )
    def test_binary_is_told_by_content(self, raw: bytes) -> None:
        """Zero bytes, or many control characters, are no text."""
        assert decode(raw) is None

    def test_empty(self) -> None:
        """Nothing at all is an empty text."""
        assert decode(b"") == Decoded("", "utf-8")
