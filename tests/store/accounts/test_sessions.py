"""Sessions of the console: a hash in the database, shared by gateways, ended by time, by sign-out and with their key."""

import hashlib
from datetime import timedelta

import pytest
from sqlalchemy import text

from lcp_gateway.accounts.callers import Caller, KeyRules, Scope
from lcp_gateway.accounts.key_sync import KeySync
from lcp_gateway.accounts.keys import KeyCache
from lcp_gateway.accounts.sessions import MOST_SESSIONS, ConsoleSessions, Role, SettingsKeys
from lcp_gateway.store.accounts.admin_log import AdminLog
from lcp_gateway.store.accounts.keys import Keys
from lcp_gateway.store.accounts.sessions import Sessions
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.telemetry.logs import get_logger
from tests.store.journals import NOW

ADMIN = Caller("admin", None, KeyRules(scopes=frozenset({Scope.ADMIN})))
OWN = Caller("key_0123456789ab", None, KeyRules(scopes=frozenset({Scope.INFERENCE})))
SIGN_IN = KeyRules(scopes=frozenset({Scope.ACCOUNT, Scope.WALLET}))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Gateway:
    """One gateway's sessions, with a clock that the test sets."""

    def __init__(self, database, *, admin_key="boss"):
        self.now = NOW
        self.keys = Keys(database)
        self.cache = KeySync(self.keys, KeyCache(), get_logger("test"), unavailable=(), clock=lambda: 0.0)
        self.sessions = self.with_settings(database, admin_key)

    def with_settings(self, database, admin_key):
        return ConsoleSessions(
            Sessions(database),
            settings_keys=SettingsKeys([("own", Role.KEY, OWN), (admin_key, Role.OPERATOR, ADMIN)]),
            find_key=self.cache.find,
            now=lambda: self.now,
        )

    async def sign_in(self, key):
        await self.cache.refresh()
        made = await self.sessions.sign_in(key)
        return None if made is None else made.token

    async def caller(self, token, *, extend=True):
        found = await self.sessions.find(token, extend=extend)
        return None if found is None else found.caller


@pytest.fixture
def gateway(database):
    return Gateway(database)


@pytest.fixture
async def key(gateway, customer):
    return await gateway.keys.create(await customer(0), name="k", actor="test", at=NOW, rules=SIGN_IN)


async def test_a_browser_that_signed_in_is_the_keys_caller(gateway, key):
    token = await gateway.sign_in(key.text)
    assert await gateway.caller(token) == key.record.caller
    assert await gateway.caller(await gateway.sign_in("boss")) == ADMIN
    assert await gateway.caller(await gateway.sign_in("own")) == OWN
    assert await gateway.sign_in("no key") is None
    assert await gateway.caller("no token") is None


async def test_a_token_has_256_bits_and_is_another_at_each_sign_in(gateway, key):
    tokens = {await gateway.sign_in(key.text) for _ in range(5)}
    assert len(tokens) == 5 and all(len(token) == 43 for token in tokens)


async def test_only_a_hash_of_the_token_is_stored_and_nothing_of_a_key(gateway, key, database):
    tokens = [await gateway.sign_in(text) for text in (key.text, "boss", "own")]
    rows = await database.read(lambda connection: connection.execute(text("SELECT * FROM sessions")).mappings().all())
    assert {bytes(row["hash"]) for row in rows} == {hashlib.sha256(token.encode()).digest() for token in tokens}
    seen = repr([dict(row) for row in rows])
    stored = b"".join(bytes(value) for row in rows for value in row.values() if isinstance(value, bytes))
    for secret in (*tokens, key.text, "boss"):
        assert secret not in seen and secret.encode() not in stored
    # Nor can a stolen database be searched for a weak administrator's key.
    assert hashlib.sha256(b"boss").digest() not in stored
    assert key.text not in repr(await gateway.sessions.sign_in(key.text))


async def test_a_session_ends_with_the_revocation_of_its_key_at_once_and_everywhere(gateway, key, where):
    token = await gateway.sign_in(key.text)
    other = await open_database(where, gone_after_s=0)
    try:
        await Keys(other).revoke(key.record.id, actor="test", at=NOW)
    finally:
        await other.close()
    # Without another read of the keys.
    assert await gateway.caller(token) is None


async def test_a_session_ends_when_its_key_expires(gateway, customer):
    rules = KeyRules(scopes=SIGN_IN.scopes, expires_at=NOW + HOUR)
    made = await gateway.keys.create(await customer(0), name="k", actor="test", at=NOW, rules=rules)
    await gateway.cache.refresh()
    token = (await gateway.sessions.begin(made.record.caller)).token
    gateway.now = NOW + HOUR - timedelta(seconds=1)
    assert await gateway.caller(token) is not None
    gateway.now = NOW + HOUR
    assert await gateway.caller(token) is None


async def test_a_session_ends_with_its_account(gateway, key, accounts):
    token = await gateway.sign_in(key.text)
    await accounts.delete(key.record.account_id, actor="test", at=NOW)
    assert await gateway.caller(token) is None


async def test_a_changed_admin_key_ends_the_administrators_sessions_and_no_other(gateway, key, database):
    admin, own, customers = [await gateway.sign_in(text) for text in ("boss", "own", key.text)]
    gateway.sessions = gateway.with_settings(database, "another boss")
    assert await gateway.caller(admin) is None
    assert await gateway.caller(own) == OWN
    assert await gateway.caller(customers) == key.record.caller


async def test_a_session_of_a_setting_does_not_become_that_of_another_key(gateway, database):
    token = await gateway.sign_in("own")
    gateway.sessions = gateway.with_settings(database, "own")
    assert await gateway.caller(token) == OWN, "the same text is in api_keys and in admin_key: the role stays"


async def test_an_operator_is_signed_out_after_an_hour_without_a_request_and_after_twelve(gateway):
    token = await gateway.sign_in("boss")
    gateway.now = NOW + HOUR - timedelta(seconds=1)
    assert await gateway.caller(token) == ADMIN
    gateway.now += HOUR - timedelta(seconds=1)
    assert await gateway.caller(token) == ADMIN
    gateway.now += HOUR
    assert await gateway.caller(token) is None
    token = await gateway.sign_in("boss")
    signed_in = gateway.now
    while gateway.now < signed_in + 12 * HOUR - timedelta(minutes=30):
        gateway.now += timedelta(minutes=30)
        assert await gateway.caller(token) == ADMIN
    gateway.now = signed_in + 12 * HOUR
    assert await gateway.caller(token) is None


async def test_refreshes_that_no_person_caused_do_not_keep_a_session(gateway):
    token = await gateway.sign_in("boss")
    for minutes in range(0, 60, 10):
        gateway.now = NOW + timedelta(minutes=minutes)
        assert await gateway.caller(token, extend=False) == ADMIN
    gateway.now = NOW + HOUR
    assert await gateway.caller(token) is None


async def test_a_customers_session_lasts_a_week_without_a_request_and_thirty_days(gateway, key):
    token = await gateway.sign_in(key.text)
    for days in range(6, 30, 6):
        gateway.now = NOW + timedelta(days=days)
        assert await gateway.caller(token) is not None
    gateway.now = NOW + 30 * DAY
    assert await gateway.caller(token) is None


async def test_a_session_is_seen_by_every_gateway_on_the_database(gateway, key, where):
    database = await open_database(where, gone_after_s=0)
    try:
        other = Gateway(database)
        token = await gateway.sign_in(key.text)
        assert await other.caller(token) == key.record.caller
        await other.sessions.end(token)
        assert await gateway.caller(token) is None
    finally:
        await database.close()


async def test_sign_out_ends_one_session_and_sign_out_everywhere_all_of_the_account(gateway, key, customer):
    ordinary = await gateway.keys.create(key.record.account_id, name="o", actor="test", at=NOW)
    stranger = await gateway.keys.create(await customer(0), name="s", actor="test", at=NOW, rules=SIGN_IN)
    mine = [await gateway.sign_in(text) for text in (key.text, key.text, ordinary.text)]
    others = await gateway.sign_in(stranger.text)
    assert await gateway.sessions.end(mine[0]) is True
    assert await gateway.sessions.end(mine[0]) is False
    assert [await gateway.caller(token) is not None for token in mine] == [False, True, True]
    assert await gateway.sessions.end_all(ordinary.record.caller) == 1, "an ordinary key ends its own"
    assert await gateway.caller(mine[1]) is not None
    assert await gateway.sessions.end_all(key.record.caller) == 1
    assert await gateway.caller(mine[1]) is None
    assert await gateway.caller(others) is not None


async def test_the_operators_sign_out_everywhere_leaves_customers_signed_in(gateway, key):
    admin, own, customers = [await gateway.sign_in(text) for text in ("boss", "own", key.text)]
    assert await gateway.sessions.end_all(ADMIN) == 1
    assert await gateway.caller(admin) is None
    assert await gateway.caller(own) is not None and await gateway.caller(customers) is not None


async def test_a_key_has_twenty_sessions_at_most_the_longest_unused_ends_first(gateway, key):
    first = await gateway.sign_in(key.text)
    tokens = []
    for number in range(MOST_SESSIONS):
        gateway.now = NOW + timedelta(minutes=number + 1)
        tokens.append(await gateway.sign_in(key.text))
    assert await gateway.caller(first) is None
    assert all([await gateway.caller(token) is not None for token in tokens])


async def test_a_session_has_the_rules_that_its_key_has_now(gateway, key, database):
    token = await gateway.sign_in(key.text)
    change = text("UPDATE keys SET scopes = '[\"wallet\"]' WHERE id = :id")
    await database.write(lambda connection: connection.execute(change, {"id": key.record.id}))
    assert (await gateway.caller(token)).rules.scopes == {Scope.WALLET}
    admin = text("UPDATE keys SET scopes = '[\"admin\"]' WHERE id = :id")
    await database.write(lambda connection: connection.execute(admin, {"id": key.record.id}))
    assert await gateway.caller(token) is None, "an administrator's session is shorter: a new sign-in is needed"


async def test_an_administrators_sign_in_is_in_the_log_and_a_customers_is_not(gateway, key, database):
    await gateway.sign_in("boss")
    await gateway.sign_in(key.text)
    acts = [(act.actor, act.action) for act in (await AdminLog(database).page()).items]
    assert acts.count(("console:admin", "session.create")) == 1
    assert [action for _, action in acts].count("session.create") == 1


async def test_sessions_that_have_ended_are_forgotten(gateway, key, database):
    await gateway.sign_in("boss")
    await gateway.sign_in(key.text)
    sessions = Sessions(database)
    assert await sessions.forget_ended(NOW) == 0
    assert await sessions.forget_ended(NOW + HOUR) == 1
    assert await sessions.forget_ended(NOW + 30 * DAY) == 1
