"""Masks, and the cache."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Self

import pytest

from orchestra.frozen_clock import FrozenClock
from orchestra.utils import TTLCache, error_text, is_secret_name, mask_fields, mask_text, shorten


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


class Prices:
    """A slow lookup that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def of(self, key: str) -> int:
        """Look a price up; it is another one each time."""
        self.asked.append(key)
        if key == "none":
            message = "no price"
            raise LookupError(message)
        return len(self.asked)


@pytest.fixture
def prices() -> Prices:
    """Give a lookup that nobody has asked yet."""
    return Prices()


class TestTTLCache:
    def test_is_looked_up_once_while_it_is_fresh(self, prices: Prices, frozen_clock: FrozenClock) -> None:
        """Up to its time a value is trusted, each key by itself; from then on it's looked up again."""
        cache = TTLCache(prices.of, ttl_seconds=30, clock=frozen_clock)
        cache.get("tea")
        frozen_clock.advance(20)
        cache.get("jam")
        frozen_clock.advance(9.5)

        assert (1, 2) == (cache.get("tea"), cache.get("jam"))
        frozen_clock.advance(0.5)
        assert (3, 2) == (cache.get("tea"), cache.get("jam"))

    def test_no_time_is_no_cache(self, prices: Prices, frozen_clock: FrozenClock) -> None:
        """With 0 seconds each question is a lookup."""
        cache = TTLCache(prices.of, ttl_seconds=0, clock=frozen_clock)

        assert [1, 2, 3] == [cache.get("tea") for _ in range(3)]

    def test_the_least_wanted_gives_way(self, prices: Prices) -> None:
        """Beyond `maxsize` that value goes which was asked for the longest ago."""
        cache = TTLCache(prices.of, ttl_seconds=3600, maxsize=2)
        for key in ("tea", "jam", "tea", "rye", "tea", "jam"):
            cache.get(key)

        assert ["tea", "jam", "rye", "jam"] == prices.asked

    def test_invalidated_values_are_looked_up_again(self, prices: Prices) -> None:
        """`invalidate` forgets one key, `clear` all of them; what isn't there may be forgotten too."""
        cache = TTLCache(prices.of, ttl_seconds=3600)
        cache.get("tea")
        cache.get("jam")

        cache.invalidate("tea")
        cache.invalidate("rye")
        assert (3, 2) == (cache.get("tea"), cache.get("jam"))
        cache.clear()
        assert (4, 5) == (cache.get("tea"), cache.get("jam"))

    def test_errors_are_not_kept(self, prices: Prices) -> None:
        """A lookup that fails tells its caller, and the next one tries again."""
        cache = TTLCache(prices.of, ttl_seconds=3600)

        for _ in range(2):
            with pytest.raises(LookupError, match="no price"):
                cache.get("none")
        assert ["none", "none"] == prices.asked

    @pytest.mark.parametrize("given", [{"ttl_seconds": -1}, {"ttl_seconds": float("nan")}, {"maxsize": 0}])
    def test_impossible_bounds(self, prices: Prices, given: dict[str, float]) -> None:
        """A cache that couldn't work isn't made."""
        options: dict[str, float] = {"ttl_seconds": 1, **given}

        with pytest.raises(ValueError, match="are the least"):
            TTLCache(prices.of, **options)  # type: ignore[arg-type]


class Sought(str):
    """A key that tells when a cache looks for it; it does so within its lock, and so before a lookup can end."""

    __slots__ = ("event",)
    event: Event

    def __new__(cls, key: str, event: Event) -> Self:
        """Make a key that sets `event`."""
        made = super().__new__(cls, key)
        made.event = event
        return made

    def __hash__(self) -> int:
        """Say that it's looked for."""
        self.event.set()
        return super().__hash__()

    __eq__ = str.__eq__


class TestTTLCacheAmongThreads:
    @pytest.mark.parametrize("key", ["tea", "none"])
    def test_one_lookup_serves_all_who_wait(self, prices: Prices, key: str) -> None:
        """Threads that ask at the same time cause one lookup, and share its value or its error."""
        begun, go_on = Event(), Event()

        def slow(key: str) -> int:
            begun.set()
            go_on.wait(10)
            return prices.of(key)

        cache = TTLCache(slow, ttl_seconds=3600)
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(cache.get, key)
            assert begun.wait(10)
            second = threads.submit(cache.get, Sought(key, go_on))

            outcomes = [type(one.exception(10)) if key == "none" else one.result(10) for one in (first, second)]

        assert [LookupError if key == "none" else 1] * 2 == outcomes
        assert [key] == prices.asked

    def test_keys_do_not_wait_for_each_other(self, prices: Prices) -> None:
        """A slow lookup holds up nobody who asks for something else, even from within it."""

        def price(key: str) -> int:
            return prices.of(key) if key == "jam" else cache.get("jam")

        cache = TTLCache(price, ttl_seconds=3600)

        assert 1 == cache.get("tea")

    @pytest.mark.parametrize("forget", ["invalidate", "clear"])
    def test_what_was_invalidated_on_the_way_is_not_kept(self, prices: Prices, forget: str) -> None:
        """A lookup that began before the invalidation may have read what was true before it."""

        def overtaken(key: str) -> int:
            price = prices.of(key)
            if price == 1:
                cache.invalidate(key) if forget == "invalidate" else cache.clear()
            return price

        cache = TTLCache(overtaken, ttl_seconds=3600)

        assert [1, 2, 2] == [cache.get("tea") for _ in range(3)]


class _UnreadableError(Exception):
    def __str__(self) -> str:
        raise KeyError(self)


class TestErrorText:
    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (ValueError("no"), "ValueError: no"),
            (KeyError("x"), "KeyError: 'x'"),
            (SystemExit(), "SystemExit: "),
            (_UnreadableError(), "_UnreadableError: its text can't be had, for KeyError"),
        ],
    )
    def test_whatever_its_words_are(self, error: BaseException, text: str) -> None:
        """An error is told by its class and its words, also one that raises another when it's asked for them."""
        assert text == error_text(error)
