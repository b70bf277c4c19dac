"""Breaker: which values are allowed, and which breaker a call belongs to."""

from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.breaker_policy import Breaker, BreakerKey
from orchestra.exceptions import PermanentError, ValidationError

WORDS = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=200)


def _fetch(url: str, timeout: float = 5.0, **more: Any) -> None: ...


class TestValues:
    def test_usual_ones(self) -> None:
        """A name alone stands for a breaker that opens after five failures in half a minute, half of all calls."""
        assert Breaker("llm-api", 5, 0.5, 30, 30, 1) == Breaker.of("llm-api")

    @pytest.mark.parametrize(
        ("option", "value", "allowed"),
        [
            *(("name", value, "up to 100 letters") for value in ("", "a b", "a:b", "é", "-a", "a" * 101, None, 3)),
            *(("failures", value, "a whole number of at least 1") for value in (0, -1, 1.5, True, "5", None)),
            *(("probes", value, "a whole number of at least 1") for value in (0, 0.5, False)),
            *(("ratio", value, "a number above 0 and up to 1") for value in (0, 1.01, -1, nan, "0.5", True)),
            *(("window", value, "a number of seconds, above 0 and up to 86400") for value in (0, -1, inf, 86_401, "9")),
            *(("cooldown", value, "a number of seconds, above 0 and up to 86400") for value in (0, nan, None)),
            *(("key", value, "a function that names the task's arguments") for value in ("url", 3, lambda: "", dict)),
            ("key", lambda *args: "", "a function that names the task's arguments"),
            ("key", lambda url, /: "", "a function that names the task's arguments"),
        ],
    )
    def test_refused(self, option: str, value: Any, allowed: str) -> None:
        """A value that makes no sense is refused, with the option and what is allowed."""
        with pytest.raises(ValidationError, match=rf"Breaker\({option}=.*\) makes no sense: give {allowed}"):
            Breaker(**{"name": "api", option: value})

    def test_published(self) -> None:
        """The catalogue has the policy as JSON; of a key that there is one."""
        plain = {"name": "api", "failures": 5, "ratio": 0.5, "window": 30.0, "cooldown": 30.0, "probes": 1}

        assert plain == Breaker("api").to_catalogue()
        assert {**plain, "keyed": True} == Breaker("api", key=lambda url: url).to_catalogue()


class TestKey:
    @pytest.mark.parametrize(
        ("args", "kwargs"), [(("u", 5.0), {}), (("u",), {}), ((), {"url": "u"}), ((), {"timeout": 5.0, "url": "u"})]
    )
    def test_by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A key gets the arguments that it names, however they were given, with the task's own defaults."""
        key = BreakerKey("t", Breaker("host", key=lambda url, timeout: f"{url}/{timeout}"), _fetch)

        assert "host:u/5.0" == key.name(args, kwargs)

    def test_of_further_ones(self) -> None:
        """What a task takes as `**more` is found as well."""
        key = BreakerKey("t", Breaker("host", key=lambda tenant: tenant), _fetch)

        assert "host:acme" == key.name(("u",), {"tenant": "acme"})

    @given(WORDS)
    def test_any_word(self, word: str) -> None:
        """Any text without white space is a key, and no two share a breaker."""
        key = BreakerKey("t", Breaker("host", key=lambda url: url), _fetch)

        assert f"host:{word}" == key.name((word,), {})

    @pytest.mark.parametrize("value", ["", "a b", "a\n", "\x00", "a" * 201, None, 3, b"host"])
    def test_no_name(self, value: Any) -> None:
        """What is no such text is the task's own error, which tells what was computed."""
        key = BreakerKey("t", Breaker("host", key=lambda url: url), _fetch)

        with pytest.raises(
            PermanentError, match=r"t can't run: the key of its breaker host is .*; a text of up to 200"
        ):
            key.name((value,), {})

    @pytest.mark.parametrize(("args", "kwargs"), [((), {}), (("u", 1, 2), {}), (("u",), {})])
    def test_that_raises(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Whatever goes wrong while it's computed is told by that error, with its cause."""
        key = BreakerKey("t", Breaker("host", key=lambda url: url.netloc), _fetch)

        with pytest.raises(PermanentError, match="the key of its breaker host raised") as caught:
            key.name(args, kwargs)
        assert caught.value.__cause__ is not None
