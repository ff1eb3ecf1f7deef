import base64
import hashlib
import logging
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from lcp_gateway.accounts.callers import KeyRules, Scope
from lcp_gateway.accounts.keys import KeyCache, KeyHash, generate_key, hash_key
from lcp_gateway.accounts.models import KeyKind, KeyRecord
from lcp_gateway.http.authentication import StaticKeys
from tests.support.operations import functions_called, lines_executed

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def record(key_hash: KeyHash, key_id: str = "key_1", change: int = 1, **rules) -> KeyRecord:
    return KeyRecord(
        id=key_id,
        account_id="acct_1",
        key_hash=key_hash,
        prefix="lcpg_abcde",
        name="laptop",
        kind=KeyKind.API,
        rules=KeyRules(**rules),
        created_at=NOW,
        revoked_at=None,
        change=change,
    )


def revoked(known: KeyRecord, change: int) -> KeyRecord:
    return replace(known, revoked_at=NOW, change=change)


def test_a_key_has_256_bits_and_is_known_by_the_hash_of_its_whole_text():
    text, key_hash, prefix = generate_key()

    assert text.startswith("lcpg_") and len(text) == 48
    assert len(base64.urlsafe_b64decode(text.removeprefix("lcpg_") + "=")) == 32
    assert key_hash == hashlib.sha256(text.encode()).digest()
    assert prefix == text[:10]


def test_no_two_keys_are_alike():
    assert len({generate_key().text for _ in range(1_000)}) == 1_000


def test_a_fresh_key_shows_nothing_of_itself():
    fresh = generate_key()

    shown = f"{fresh!r} {fresh} {[fresh]}"

    assert fresh.text not in shown and fresh.prefix not in shown
    assert fresh.hash.hex() not in shown and repr(fresh.hash) not in shown


def test_a_key_authenticates_its_caller():
    fresh = generate_key()
    known = record(fresh.hash, scopes=frozenset({Scope.INFERENCE}))
    cache = KeyCache()
    cache.replace_all([known])

    assert cache.check(fresh.text, NOW) == known.caller


@pytest.mark.parametrize(
    "text", ["", "lcpg_", "lcpg_" + "A" * 43, "sk-other", chr(0xD800), chr(0xDC80), "é" * 9, "x" * 9_000]
)
def test_a_text_that_is_no_key_authenticates_no_caller(text):
    cache = KeyCache(["static"])
    cache.replace_all([record(generate_key().hash)])

    assert cache.check(text, NOW) is None


def test_a_part_of_a_key_authenticates_no_caller():
    text, key_hash, prefix = generate_key()
    cache = KeyCache()
    cache.replace_all([record(key_hash)])

    assert [cache.check(t, NOW) for t in (prefix, text[:-1], text + " ", text.upper())] == [None] * 4


def test_a_key_expires_at_its_time_and_not_before():
    text, key_hash, _ = generate_key()
    cache = KeyCache()
    cache.replace_all([record(key_hash, expires_at=NOW)])

    assert cache.check(text, NOW - timedelta(microseconds=1)) is not None
    assert cache.check(text, NOW) is None


def test_a_revoked_key_is_refused_at_once():
    text, key_hash, _ = generate_key()
    cache = KeyCache()
    known = record(key_hash)
    cache.apply([known])
    assert cache.check(text, NOW)

    cache.apply([revoked(known, change=2)])

    assert cache.check(text, NOW) is None


def test_an_older_record_that_comes_late_does_not_bring_a_revoked_key_back():
    text, key_hash, _ = generate_key()
    cache = KeyCache()
    known = record(key_hash)

    cache.apply([revoked(known, change=2)])
    cache.apply([known])
    assert cache.check(text, NOW) is None

    cache.replace_all([known])
    assert cache.check(text, NOW) is None


def test_changes_may_come_in_any_order_and_twice():
    text, key_hash, _ = generate_key()
    changes = [record(key_hash, change=n, requests_per_minute=n) for n in range(1, 6)]
    cache = KeyCache()

    mixed = changes * 2
    random.Random(1).shuffle(mixed)
    cache.apply(mixed)

    assert cache.check(text, NOW) == changes[-1].caller


def test_replacing_all_forgets_keys_that_are_gone():
    one, two = generate_key(), generate_key()
    cache = KeyCache()
    cache.replace_all([record(one.hash), record(two.hash, "key_2", change=2)])

    cache.replace_all([record(two.hash, "key_2", change=2)])

    assert cache.check(one.text, NOW) is None
    assert cache.check(two.text, NOW)


def test_static_keys_belong_to_no_account_and_are_named_as_the_drop_in_names_them():
    cache = KeyCache(["sk-static", "\udcff"])

    caller = cache.check("sk-static", NOW)

    assert caller is not None and caller.account_id is None
    assert caller.key_id == StaticKeys(["sk-static"]).check("Bearer sk-static")
    other = cache.check("\udcff", NOW)
    assert other is not None and other.key_id == StaticKeys(["\udcff"]).check("Bearer \udcff")


def test_static_keys_stay_whatever_the_store_says():
    cache = KeyCache(["sk-static"])
    stored = record(hash_key("sk-static"), change=9)

    cache.replace_all([stored])
    cache.apply([revoked(stored, change=10)])

    caller = cache.check("sk-static", NOW)
    assert caller is not None and caller.account_id is None


def test_the_cache_shows_and_logs_no_key(caplog):
    caplog.set_level(logging.DEBUG)
    fresh = generate_key()
    cache = KeyCache(["sk-static"])
    cache.apply([record(fresh.hash)])
    cache.check(fresh.text, NOW)

    assert repr(cache) == str(cache) == "KeyCache(2 keys)"
    assert not caplog.records


def test_a_refusal_takes_the_same_steps_as_a_yes_however_many_keys_there_are():
    rules = KeyRules()
    hashes = [hash_key(f"lcpg_{n:043d}") for n in range(20_000)]
    cache = KeyCache()
    cache.replace_all(replace(record(h, change=n), rules=rules) for n, h in enumerate(hashes, start=1))
    end = replace(record(hashes[7], change=20_001), rules=KeyRules(expires_at=NOW))
    cache.apply([end, revoked(record(hashes[8]), change=20_002)])
    texts = {
        "good": f"lcpg_{5:043d}",
        "expired": f"lcpg_{7:043d}",
        "revoked": f"lcpg_{8:043d}",
        "unknown": f"lcpg_{200_000:043d}",
        "malformed": "x" * 48,
    }
    assert [bool(cache.check(text, NOW)) for text in texts.values()] == [True] + [False] * 4

    steps = {name: functions_called(partial(cache.check, text, NOW)) for name, text in texts.items()}
    lines = {name: lines_executed(partial(cache.check, text, NOW)) for name, text in texts.items()}
    assert set(steps.values()) == {steps["good"]}, steps
    assert len(steps["good"]) < 15
    assert set(lines.values()) == {lines["good"]}, lines


def test_other_static_keys_take_the_place_of_those_of_before():
    cache = KeyCache(["old"])
    cache.use_static(["new"])
    assert cache.check("old", NOW) is None
    assert cache.check("new", NOW) is not None
    assert cache.count == 1


def test_a_key_of_the_store_that_was_static_too_is_known_when_it_is_static_no_more():
    made = generate_key()
    cache = KeyCache([made.text])
    cache.apply([record(made.hash)])
    assert cache.check(made.text, NOW).account_id is None
    cache.use_static([])
    assert cache.check(made.text, NOW).account_id is not None
