"""API keys: made once, kept as digests, and refused in one way."""

import json
import string
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestra.api_keys import ApiKey, ApiKeys, RefusedKeyError
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import SecurityError, ValidationError
from orchestra.permissions import DEFAULT_ROLES, Permission, Roles
from orchestra.store import Store
from tests.fleets import commands_at
from tests.stores import store_at

DAY = timedelta(days=1)


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's store over an empty Redis."""
    with store_at(redis_url) as store:
        yield store


@pytest.fixture
def keys(store: Store) -> ApiKeys:
    """Give the shop's keys; there are none yet."""
    return ApiKeys(store)


def refusal(keys: ApiKeys, text: str) -> tuple[str, str | None, str | None]:
    """Return why a key is refused, its id, and its holder."""
    with pytest.raises(RefusedKeyError) as caught:
        keys.verify(text)
    return caught.value.reason, caught.value.key_id, caught.value.principal


def rewrite(store: Store, key_id: str, /, **changes: object) -> None:
    """Change what Redis holds of a key, as time or an intruder would."""
    name = store.keys.api_keys
    record = json.loads(store.command("HGET", name, key_id))
    record["key"] |= changes
    store.command("HSET", name, key_id, json.dumps(record))


class TestCreate:
    def test_tells_what_was_made(self, keys: ApiKeys) -> None:
        """A new key has its holder, its roles, and its times in UTC."""
        issued = keys.create("billing", {"submitter", "viewer"}, expires=DAY)

        about = issued.about
        assert ("billing", frozenset({"submitter", "viewer"})) == (about.principal, about.roles)
        assert about.created_at + DAY == about.expires_at
        assert UTC == about.created_at.tzinfo
        assert about.revoked_at is None
        assert issued.text.startswith(f"ao_{about.key_id}_")
        assert about == keys.verify(issued.text)

    def test_redis_never_gets_the_secret(self, keys: ApiKeys, redis_url: str) -> None:
        """Neither what is stored nor any command holds the key, when it's made and when it's shown."""
        with commands_at(redis_url) as commands:
            issued = keys.create("billing", ["viewer"], expires=None)
            keys.verify(issued.text)

        secret = issued.text.rpartition("_")[2]
        assert any("api_keys" in command for command in commands)
        assert not any(secret in command for command in commands)

    def test_showing_it_does_not_show_the_secret(self, keys: ApiKeys) -> None:
        """A new key that ends up in a log doesn't give itself away."""
        issued = keys.create("billing", ["viewer"], expires=None)

        assert issued.text.rpartition("_")[2] not in repr(issued)

    def test_two_are_never_alike(self, keys: ApiKeys) -> None:
        """Keys are random, ids and secrets both."""
        made = [keys.create("billing", ["viewer"], expires=None) for _ in range(10)]

        assert 10 == len({one.about.key_id for one in made}) == len({one.text[-64:] for one in made})

    def test_asks_for_enough_randomness(self, store: Store) -> None:
        """An id has 64 random bits and a secret 256, from a source that is made for secrets."""
        asked: list[int] = []

        def random(size: int) -> str:
            asked.append(size)
            return "0f" * size

        issued = ApiKeys(store, random=random).create("billing", ["viewer"], expires=None)

        assert [8, 32] == asked
        assert f"ao_{'0f' * 8}_{'0f' * 32}" == issued.text

    @pytest.mark.parametrize("principal", ["billing", "ann@example.com", "svc:billing/eu", "a" * 128])
    def test_principals_pass(self, keys: ApiKeys, principal: str) -> None:
        """People, services and addresses can hold a key."""
        assert principal == keys.create(principal, ["viewer"], expires=None).about.principal

    @pytest.mark.parametrize("principal", ["", "anonymous", "a b", "a\n", "größe", "-a", "a" * 129])
    def test_other_names_do_not(self, keys: ApiKeys, principal: str) -> None:
        """A name that could be mistaken, for another or for nobody's, can't hold a key."""
        with pytest.raises(ValidationError, match="is no name for a principal"):
            keys.create(principal, ["viewer"], expires=None)

    @pytest.mark.parametrize("expires", [timedelta(0), timedelta(seconds=-1), timedelta(days=3654)])
    def test_times_that_make_no_sense_are_refused(self, keys: ApiKeys, expires: timedelta) -> None:
        """A key lives for some time, up to 10 years, or for ever."""
        with pytest.raises(ValidationError, match="no time for a key to live"):
            keys.create("billing", ["viewer"], expires=expires)

    def test_roles_have_to_be_there(self, store: Store, keys: ApiKeys) -> None:
        """A role that nobody defined is refused, and nothing is written; own roles can be given."""
        with pytest.raises(ValidationError, match="'invoices' is no role"):
            keys.create("billing", ["invoices"], expires=None)
        assert [] == keys.known()

        own = ApiKeys(store, roles=Roles({**DEFAULT_ROLES, "invoices": [Permission.READ_TASKS]}))

        assert {"invoices"} == own.create("billing", ["invoices"], expires=None).about.roles


class TestVerify:
    def test_costs_one_round_trip(self, keys: ApiKeys, redis_url: str) -> None:
        """A key is found by its id, without looking at others."""
        issued = [keys.create("billing", ["viewer"], expires=None) for _ in range(3)][1]

        with commands_at(redis_url) as commands:
            keys.verify(issued.text)

        assert [f"HGET orchestra:{{shop}}:api_keys {issued.about.key_id}", "TIME"] == commands

    def test_malformed_ones_do_not_reach_redis(self, keys: ApiKeys, redis_url: str) -> None:
        """What can't be a key of ours costs no round trip."""
        with commands_at(redis_url) as commands:
            for text in ("", "ao_", "ao_1_2", "x" * 10_000, f"ao_{'0' * 16}_{'0' * 64}\n", f"AO_{'0' * 16}_{'0' * 64}"):
                assert ("malformed", None, None) == refusal(keys, text)

        assert [] == commands

    def test_unknown(self, keys: ApiKeys) -> None:
        """A key that was never made is refused."""
        assert ("unknown", "0" * 16, None) == refusal(keys, f"ao_{'0' * 16}_{'0' * 64}")

    def test_wrong_secret(self, keys: ApiKeys) -> None:
        """Who knows an id only isn't its holder, and isn't told who is."""
        key_id = keys.create("billing", ["viewer"], expires=None).about.key_id

        assert ("wrong secret", key_id, None) == refusal(keys, f"ao_{key_id}_{'0' * 64}")

    def test_expired(self, store: Store, keys: ApiKeys) -> None:
        """A key is good up to its time, by Redis's clock, and not at it."""
        issued = keys.create("billing", ["viewer"], expires=DAY)
        rewrite(store, issued.about.key_id, expires_at=issued.about.created_at.isoformat())

        assert ("expired", issued.about.key_id, "billing") == refusal(keys, issued.text)

    def test_another_fleets_key(self, keys: ApiKeys, redis_url: str) -> None:
        """A key opens one fleet only."""
        issued = keys.create("billing", ["viewer"], expires=None)

        with store_at(redis_url, fleet="bank") as bank:
            assert ("unknown", issued.about.key_id, None) == refusal(ApiKeys(bank), issued.text)

    def test_a_digest_is_good_for_its_own_id_only(self, store: Store, keys: ApiKeys) -> None:
        """A record that was copied to another id opens nothing."""
        name = store.keys.api_keys
        viewer = keys.create("ann", ["viewer"], expires=None)
        admin = keys.create("eve", ["admin"], expires=None)
        store.command("HSET", name, admin.about.key_id, store.command("HGET", name, viewer.about.key_id))

        assert ("unknown", admin.about.key_id, None) == refusal(keys, admin.text)
        moved = viewer.text.replace(viewer.about.key_id, admin.about.key_id)
        rewrite(store, admin.about.key_id, key_id=admin.about.key_id)
        assert ("wrong secret", admin.about.key_id, None) == refusal(keys, moved)

    @pytest.mark.parametrize("text", ["", "{}", "[]", "\xff", '{"key": {}, "digest": "ä"}'])
    def test_rubbish_in_redis_is_no_key(self, store: Store, keys: ApiKeys, text: str) -> None:
        """What we didn't write opens nothing, and hides no other key."""
        spoilt = keys.create("billing", ["viewer"], expires=None)
        other = keys.create("billing", ["viewer"], expires=None)
        store.command("HSET", store.keys.api_keys, spoilt.about.key_id, text)

        assert "unknown" == refusal(keys, spoilt.text)[0]
        assert [other.about] == keys.known()
        assert not keys.revoke(spoilt.about.key_id)

    def test_a_digest_of_another_kind_is_no_key(self, store: Store, keys: ApiKeys) -> None:
        """A digest that can't be compared is a refusal, not a crash."""
        issued = keys.create("billing", ["viewer"], expires=None)
        record = json.loads(store.command("HGET", store.keys.api_keys, issued.about.key_id))
        store.command("HSET", store.keys.api_keys, issued.about.key_id, json.dumps(record | {"digest": "ä" * 64}))

        assert "unknown" == refusal(keys, issued.text)[0]

    def test_the_answer_is_always_the_same(self, store: Store, keys: ApiKeys) -> None:
        """Nobody learns from the message which ids there are and what became of them."""
        revoked, expired, live = (keys.create("billing", ["viewer"], expires=DAY) for _ in range(3))
        keys.revoke(revoked.about.key_id)
        rewrite(store, expired.about.key_id, expires_at=expired.about.created_at.isoformat())
        guesses = ["", f"ao_{'0' * 16}_{'0' * 64}", f"{live.text[:-64]}{'0' * 64}", revoked.text, expired.text]

        answers = set()
        for guess in guesses:
            with pytest.raises(SecurityError) as caught:
                keys.verify(guess)
            answers.add(str(caught.value))

        assert 1 == len(answers)
        assert not any(guess and guess in answer for answer in answers for guess in guesses)


class TestRevoke:
    def test_ends_a_key_at_once(self, keys: ApiKeys) -> None:
        """A revoked key is refused from the next request on."""
        issued = keys.create("billing", ["viewer"], expires=None)

        assert keys.revoke(issued.about.key_id)

        assert ("revoked", issued.about.key_id, "billing") == refusal(keys, issued.text)

    def test_tells_whether_there_was_one(self, keys: ApiKeys) -> None:
        """Revoking a second time changes nothing, and neither does revoking what isn't there."""
        key_id = keys.create("billing", ["viewer"], expires=None).about.key_id

        assert [True, False, False] == [keys.revoke(key_id), keys.revoke(key_id), keys.revoke("0" * 16)]
        assert [key_id] == [key.key_id for key in keys.known()]

    def test_keeps_when_it_was(self, keys: ApiKeys) -> None:
        """The time of the first revocation stays."""
        key_id = keys.create("billing", ["viewer"], expires=None).about.key_id
        keys.revoke(key_id)
        first = keys.known()[0].revoked_at
        keys.revoke(key_id)

        assert first is not None
        assert first == keys.known()[0].revoked_at


class TestRotation:
    def test_two_keys_of_a_principal_live_side_by_side(self, keys: ApiKeys) -> None:
        """The new key works before the old one ends, so nothing has to change at one moment."""
        old = keys.create("billing", ["submitter"], expires=DAY)
        new = keys.create("billing", ["submitter"], expires=DAY)
        assert {"billing"} == {keys.verify(old.text).principal, keys.verify(new.text).principal}

        keys.revoke(old.about.key_id)

        assert new.about == keys.verify(new.text)
        assert "revoked" == refusal(keys, old.text)[0]


class TestKnown:
    def test_lists_all_with_their_ends(self, keys: ApiKeys) -> None:
        """The list holds revoked keys too, the oldest first."""
        first = keys.create("billing", ["viewer"], expires=None).about
        second = keys.create("ann", ["admin"], expires=DAY).about
        keys.revoke(first.key_id)

        listed = keys.known()

        assert [first.key_id, second.key_id] == [key.key_id for key in listed]
        assert ["revoked", None] == [key.problem_at(first.created_at) for key in listed]
        assert [second] == keys.known("ann")

    def test_shows_no_secret(self, store: Store, keys: ApiKeys) -> None:
        """Neither the secret nor its digest is in the list."""
        issued = keys.create("billing", ["viewer"], expires=None)
        digest = json.loads(store.command("HGET", store.keys.api_keys, issued.about.key_id))["digest"]

        listed = repr(keys.known())

        assert issued.about.key_id in listed
        assert issued.text[-64:] not in listed
        assert digest not in listed


class TestApiKey:
    @pytest.mark.parametrize(
        ("expires_in", "revoked", "problem"),
        [(1, False, None), (0, False, "expired"), (-1, False, "expired"), (None, False, None), (1, True, "revoked")],
    )
    def test_problem_at(self, expires_in: int | None, revoked: bool, problem: str | None) -> None:
        """A key is live until it expires or is revoked, whichever comes first."""
        now = datetime(2026, 1, 1, tzinfo=UTC)
        key = ApiKey(
            key_id="0" * 16,
            principal="billing",
            roles=frozenset(),
            created_at=now - DAY,
            expires_at=None if expires_in is None else now + timedelta(seconds=expires_in),
            revoked_at=now if revoked else None,
        )

        assert problem == key.problem_at(now)


PRINCIPALS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.@:/+-]{0,127}", fullmatch=True).filter(
    lambda name: name != "anonymous"
)
ROLES = st.sets(st.sampled_from(sorted(DEFAULT_ROLES)), min_size=1)


class TestProperties:
    @given(principal=PRINCIPALS, roles=ROLES)
    def test_round_trip(self, redis_server: EmbeddedServer, principal: str, roles: set[str]) -> None:
        """Whoever is given a key is recognised by it, with their roles."""
        with store_at(redis_server.url, fleet="round_trip") as store:
            keys = ApiKeys(store)
            key = keys.verify(keys.create(principal, roles, expires=DAY).text)

        assert (principal, frozenset(roles)) == (key.principal, key.roles)

    @given(place=st.integers(0, 83), character=st.sampled_from(string.printable) | st.characters())
    def test_any_changed_character_is_refused(self, redis_server: EmbeddedServer, place: int, character: str) -> None:
        """No other text than the key itself is accepted, at any character."""
        with store_at(redis_server.url, fleet="changed") as store:
            keys = ApiKeys(store)
            text = keys.create("billing", ["viewer"], expires=DAY).text
            assert 84 == len(text)
            assume(text[place] != character)

            assert refusal(keys, f"{text[:place]}{character}{text[place + 1 :]}")[0] in {
                "malformed",
                "unknown",
                "wrong secret",
            }
