"""Masks."""

import pytest

from orchestra.utils import is_secret_name, mask_fields, mask_text, shorten


class TestMaskText:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("redis://:hunter2@h:6379/0", "redis://:***@h:6379/0"),
            ("redis://user:hunt@er/2@h", "redis://user:***@h"),
            ("redis://hunter2@h", "redis://***@h"),
            ("sentinel://:hunter2@a;sentinel://:hunter2@b/0", "sentinel://:***@a;sentinel://:***@b/0"),
            ("can't reach redis://:hunter2@h, gave up", "can't reach redis://:***@h, gave up"),
            ("redis://h/0?password=hunter2&db=1", "redis://h/0?password=***&db=1"),
            ("Authorization: Bearer hunter2", "Authorization: ***"),
            ("api_key=hunter2, x=1", "api_key=***, x=1"),
            ("{'password': 'hunter2 too'}", "{'password': ***}"),
        ],
    )
    def test_secrets_give_way(self, text: str, expected: str) -> None:
        """Passwords in URLs and values that are named as secrets are masked, and hosts stay."""
        assert expected == mask_text(text)

    @pytest.mark.parametrize("text", ["redis://localhost:6379/0", "a@b.example", "max_tokens=512", "tokenizer: bpe"])
    def test_the_rest_stays(self, text: str) -> None:
        """Text without secrets stays as it is."""
        assert text == mask_text(text)


class TestMaskFields:
    def test_names_decide_at_every_depth(self) -> None:
        """A field that is named like a secret is masked wherever it stands; other values stay."""
        fields = {"a": 1, "user": {"password": "x", "tags": ["redis://:x@h"]}, "error": ValueError("token=x")}

        assert {"a": 1, "user": {"password": "***", "tags": ["redis://:***@h"]}, "error": "token=***"} == mask_fields(
            fields
        )

    @pytest.mark.parametrize("name", ["password", "flower_password", "API-KEY", "Authorization", "refresh_token"])
    def test_names_of_secrets(self, name: str) -> None:
        """The usual names of secrets are known."""
        assert is_secret_name(name)


class TestShorten:
    def test_the_end_gives_way(self) -> None:
        """A text within the limit stays; a longer one ends in an ellipsis."""
        assert ("abc", "ab…") == (shorten("abc", 3), shorten("abcd", 3))
