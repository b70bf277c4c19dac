"""What headers show of who sends a request, and what an address is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.credentials import Credentials, UnreadableCredentialsError, source_address
from orchestra.exceptions import ValidationError

TOKEN = "ao_0f0f_5e4d"


class TestFromHeaders:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": f"Bearer {TOKEN}"},
            {"authorization": f"bearer {TOKEN}"},
            {"AUTHORIZATION": f"BEARER  {TOKEN}"},
            {"X-API-Key": TOKEN},
            {"x-api-key": TOKEN, "Authorization": f"Bearer {TOKEN}"},
            {"x-api-key": TOKEN, "X-Api-Key": TOKEN, "Accept": "text/html\x00"},
        ],
        ids=str,
    )
    def test_a_token_may_come_in_two_headers(self, headers: dict[str, str]) -> None:
        """Names of headers and of the scheme have no case; the same token twice is one token."""
        assert TOKEN == Credentials.from_headers(headers).token

    @pytest.mark.parametrize("headers", [{}, {"Accept": "text/html"}, {"Authorisation": f"Bearer {TOKEN}"}], ids=str)
    def test_there_may_be_none(self, headers: dict[str, str]) -> None:
        """Who shows no token shows none; other headers aren't looked at."""
        assert Credentials(token=None, request_id=None) == Credentials.from_headers(headers)

    @pytest.mark.parametrize(
        ("headers", "reason"),
        [
            ({"Authorization": f"Bearer {TOKEN}", "X-API-Key": "ao_other"}, "several credentials"),
            ({"Authorization": f"Bearer {TOKEN}", "authorization": "Bearer ao_other"}, "several credentials"),
            ({"Authorization": "Basic YTpi"}, "no bearer token"),
            ({"Authorization": TOKEN}, "no bearer token"),
            ({"Authorization": ""}, "no bearer token"),
            ({"Authorization": "Bearer"}, "malformed"),
            ({"Authorization": f"Bearer {TOKEN}, Bearer {TOKEN}"}, "malformed"),
            ({"Authorization": f"Bearer {TOKEN}\r\nX-Admin: 1"}, "malformed"),
            ({"X-API-Key": ""}, "malformed"),
            ({"X-API-Key": f"{TOKEN}\n"}, "malformed"),
            ({"X-API-Key": f" {TOKEN}"}, "malformed"),
            ({"X-API-Key": f"{TOKEN}\x00"}, "malformed"),
            ({"X-API-Key": "schlüssel"}, "malformed"),
            ({"X-API-Key": "x" * 8193}, "oversize"),
            ({"Authorization": f"Bearer {'x' * 8193}"}, "oversize"),
            ({"Authorization": f"Bearer {TOKEN}".encode()}, "header is no text"),
            ({b"Authorization": f"Bearer {TOKEN}"}, "header is no text"),
            ({"X-API-Key": None}, "header is no text"),
        ],
        ids=lambda value: repr(value)[:60],
    )
    def test_what_could_be_read_in_two_ways_is_refused(self, headers: dict[Any, Any], reason: str) -> None:
        """A token has one place, bounded length and plain characters; the error doesn't repeat it."""
        with pytest.raises(UnreadableCredentialsError, match=reason) as caught:
            Credentials.from_headers(headers)

        assert reason == caught.value.reason
        assert TOKEN not in str(caught.value)

    @given(st.dictionaries(st.sampled_from(["Authorization", "X-API-Key", "X-Request-ID"]), st.text()))
    def test_no_text_breaks_it(self, headers: dict[str, str]) -> None:
        """Whatever headers hold, they are read or refused, and nothing with white space is a token or an id."""
        try:
            shown = Credentials.from_headers(headers)
        except UnreadableCredentialsError:
            return

        for text in (shown.token, shown.request_id):
            assert text is None or (text.isascii() and text.isprintable() and " " not in text)

    @pytest.mark.parametrize(
        ("headers", "request_id"),
        [
            ({"x-request-ID": "web-1.a_B"}, "web-1.a_B"),
            ({}, None),
            ({"X-Request-ID": ""}, None),
            ({"X-Request-ID": "a b"}, None),
            ({"X-Request-ID": "a\nadmin granted"}, None),
            ({"X-Request-ID": "x" * 128}, "x" * 128),
            ({"X-Request-ID": "x" * 129}, None),
            ({"X-Request-ID": "a", "x-request-id": "b"}, None),
            ({"X-Request-ID": "a", "x-request-id": "b c"}, None),
        ],
        ids=lambda value: repr(value)[:60],
    )
    def test_an_id_is_taken_if_it_is_harmless(self, headers: dict[str, str], request_id: str | None) -> None:
        """An id that could forge a line in a log isn't taken, and neither is one of several."""
        assert request_id == Credentials.from_headers(headers).request_id

    def test_showing_them_does_not_show_the_token(self) -> None:
        """Credentials that end up in a log don't give the token away."""
        assert TOKEN not in repr(Credentials.from_headers({"X-API-Key": TOKEN}))


class TestSourceAddress:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("192.0.2.7", "192.0.2.7"),
            ("2001:DB8:0::1", "2001:db8::1"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("fe80::1%eth0\nadmin granted", "fe80::1"),
        ],
    )
    def test_addresses_have_one_form(self, given: str, expected: str) -> None:
        """One source is one text, however its address was written."""
        assert expected == source_address(given) == source_address(expected)

    @pytest.mark.parametrize("given", ["", "testclient", "192.0.2.7, 10.0.0.1", "192.0.2.7\n", "1", "192.0.2.007"])
    def test_other_texts_are_none(self, given: str) -> None:
        """Who hands over something else reads what to hand over."""
        with pytest.raises(ValidationError, match="is no IP address: give the address") as caught:
            source_address(given)

        assert "source_ip" == caught.value.errors[0].field

    @given(st.ip_addresses())
    def test_every_address_passes(self, address: object) -> None:
        """Every address passes, and its form is settled."""
        assert source_address(source_address(str(address))) == source_address(str(address))
