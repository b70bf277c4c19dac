"""A template filled in is the message that Celery would have made."""

from typing import Any

import pytest
from celery.utils.saferepr import saferepr
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import loads

from orchestra.templates import Holes, Template, are_flat, template_of

FLAT = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(FLAT, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
HOLES = Holes("1", "2", None, "me", "tag")
ECHO = Template('{"args": %(args)s, "kwargs": %(kwargs)s, "100%%": %(parent)s}', 40, 30, 3)
MESSAGE: dict[str, Any] = {
    "body": "W10=",
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {"id": "1", "task": "shop.100%", "eta": None, "expires": None},
    "properties": {"correlation_id": "1", "body_encoding": "base64", "priority": 6},
}


class TestShown:
    @given(st.lists(FLAT) | st.lists(FLAT).map(tuple), st.dictionaries(st.text(), FLAT))
    def test_single_values(self, args: Any, kwargs: dict[str, Any]) -> None:
        """Arguments without nesting are shown as Celery's own function does, however long they are."""
        shown = loads(ECHO.filled(args, kwargs, HOLES, is_flat=are_flat(args, kwargs)))

        assert are_flat(args, kwargs)
        assert (saferepr(args, 40), saferepr(kwargs, 30)) == (shown["args"], shown["kwargs"])

    @given(st.lists(VALUES), st.dictionaries(st.text(), VALUES))
    def test_nested_values(self, args: Any, kwargs: dict[str, Any]) -> None:
        """And so are all others."""
        shown = loads(ECHO.filled(args, kwargs, HOLES, is_flat=are_flat(args, kwargs)))

        assert (saferepr(args, 40), saferepr(kwargs, 30)) == (shown["args"], shown["kwargs"])

    @pytest.mark.parametrize("value", [[1], {"a": 1}, (1,), {1}, b"x", type("Text", (str,), {})("x"), object()])
    def test_what_is_not_flat(self, value: Any) -> None:
        """Whatever may hold something else, or is shown in a way of its own."""
        assert not are_flat((value,), {})
        assert not are_flat((), {"value": value})


class TestTemplateOf:
    def test_the_holes(self) -> None:
        """Ids, arguments and the sender are cut out; everything else stays, signs of the format included."""
        template = template_of(MESSAGE, most_args=40, most_kwargs=30, levels=3)
        assert template is not None

        filled = loads(template.filled((1,), {"a": 'b"%s'}, HOLES, is_flat=True))

        assert ("1", "2", None, "shop.100%") == tuple(
            filled["headers"][name] for name in ("id", "root_id", "parent_id", "task")
        )
        assert ("(1,)", "{'a': 'b\"%s'}") == (filled["headers"]["argsrepr"], filled["headers"]["kwargsrepr"])
        assert {
            "correlation_id": "1",
            "reply_to": "me",
            "delivery_tag": "tag",
            "body_encoding": "base64",
            "priority": 6,
        } == filled["properties"]

    @pytest.mark.parametrize(
        ("part", "changes"),
        [
            ("headers", {"eta": "2030-01-01T00:00:00+00:00"}),
            ("headers", {"expires": "2030-01-01T00:00:00+00:00"}),
            ("headers", {"stamps": {"a": 1}}),
            ("headers", {"compression": "application/x-gzip"}),
            ("headers", {"shadow": "other"}),
            ("properties", {"body_encoding": None}),
            ("properties", {"correlation_id": "7"}),
            ("properties", {"expiration": "5000"}),
        ],
    )
    def test_what_has_none(self, part: str, changes: dict[str, Any]) -> None:
        """A message with something of its own call, or in another form."""
        message = {**MESSAGE, part: {**MESSAGE[part], **changes}}

        assert template_of(message, most_args=40, most_kwargs=30, levels=3) is None

    def test_other_content(self) -> None:
        """Nor has a message that isn't kombu's JSON."""
        for change in ({"content-type": "application/x-yaml"}, {"content-encoding": "binary"}):
            assert template_of({**MESSAGE, **change}, most_args=40, most_kwargs=30, levels=3) is None
