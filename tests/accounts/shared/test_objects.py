"""Objects in a Redis behave as the store in memory does, whatever is put, read and removed, and reveal nothing."""

import random

import pytest
from redis.asyncio import Redis

from lcp_gateway.accounts.shared.calls import RedisCalls, RedisUnavailable
from lcp_gateway.accounts.shared.objects import ObjectLimits, ObjectParts, RedisObjects
from lcp_gateway.accounts.shared.outage import Outage
from lcp_gateway.encryption import Encryption
from lcp_gateway.responses.store import HOLD_BYTES, ITEM_BYTES, SEGMENT_BYTES, ResponseStore, StoreLimits
from tests.support.redis import running_redis

LIMITS = ObjectLimits(per_owner=4, bytes_in_all=30_000, keep_s=1e6)
OWNERS = ("a", "b", "c")


class Stored:
    """An item of the model."""

    def __init__(self, item_id, head, segments):
        self.kind, self.id, self.head, self.held = "response", item_id, head, segments

    def segments(self):
        return self.held


@pytest.fixture(scope="module")
def server():
    with running_redis() as it:
        yield it


@pytest.fixture
async def objects(server):
    await server.forget()
    calls = RedisCalls(server.url)
    made = RedisObjects(calls, Outage())
    yield made
    await calls.aclose()


def parts(stored):
    size = ITEM_BYTES + HOLD_BYTES * len(stored.held)
    return ObjectParts(stored.head, stored.held, size, [SEGMENT_BYTES + len(one) for one in stored.held])


@pytest.mark.parametrize("seed", range(4))
async def test_it_does_what_the_store_in_memory_does(objects, seed):
    dice, encryption = random.Random(seed), Encryption(b"s" * 32)
    model = ResponseStore(StoreLimits(LIMITS.per_owner, LIMITS.bytes_in_all, LIMITS.keep_s))
    # Segments of an owner's conversation, which several of its objects have. In memory they are shared by identity.
    pool = {owner: [owner.encode() + bytes(dice.randrange(0, 5_000)) + b"%d" % n for n in range(8)] for owner in OWNERS}
    for step in range(150):
        owner, item_id = dice.choice(OWNERS), f"id-{dice.randrange(6)}"
        what = dice.choice(("put", "put", "put", "replace", "get", "remove"))
        made = Stored(item_id, b"head %d" % step, tuple(dice.sample(pool[owner], dice.randrange(0, 6))))
        if what in {"put", "replace"}:
            expected = model.put(owner, made) if what == "put" else model.replace(owner, made)
            result = await objects.put(
                encryption,
                owner,
                "response",
                item_id,
                parts(made),
                LIMITS,
                replaces=what == "replace",
                new_segments=dice.randrange(0, 3),
            )
            assert result.is_stored == expected, step
            assert (result.objects, result.bytes_in_all) == (len(model), model.held_bytes), step
        else:
            take = model.get if what == "get" else model.remove
            expected = take(owner, "response", item_id)
            found = await objects.get(encryption, owner, "response", item_id, LIMITS.keep_s, remove=what == "remove")
            assert (found is None) == (expected is None), step
            if found is not None:
                assert (found.head, tuple(found.segments)) == (expected.head, expected.held)
        heads = await objects.heads(encryption, owner, "response", LIMITS.keep_s)
        assert list(heads) == [item.head for item in model.items(owner, "response")], step
    total = await objects.purge(LIMITS)
    assert (total.objects, total.bytes_in_all) == (len(model), model.held_bytes)


async def test_what_is_too_old_is_gone_and_everything_ends_by_itself(objects, server):
    encryption = Encryption(b"s" * 32)
    made = Stored("id", b"head", (b"segment",))
    await objects.put(encryption, "a", "response", "id", parts(made), LIMITS)
    assert await objects.get(encryption, "a", "response", "id", 0.0) is None
    assert await objects.heads(encryption, "a", "response", 0.0) == []
    client = Redis.from_url(server.url)
    keys = await client.keys("*")
    assert len(keys) >= 7
    assert all([await client.pttl(key) > 0 for key in keys])
    purged = await objects.purge(ObjectLimits(4, 30_000, 0.0))
    assert (purged.evicted["age"], purged.objects, purged.bytes_in_all) == (1, 0, 0)
    assert {key.split(b":")[-1] for key in await client.keys("*")} <= {b"sequence", b"bytes"}
    await client.aclose()


async def test_nothing_is_readable_and_another_secret_finds_nothing(objects, server):
    made = Stored("id-of-it", b"a head", (b"the prompt",))
    await objects.put(Encryption(b"s" * 32), "owner-name", "response", "id-of-it", parts(made), LIMITS)
    client = Redis.from_url(server.url)
    for key in await client.keys("*"):
        kind = await client.type(key)
        read = {b"string": client.get, b"hash": client.hgetall}.get(kind)
        content = repr(await read(key) if read else await client.zrange(key, 0, -1))
        for secret in ("the prompt", "a head", "id-of-it", "owner-name"):
            assert secret not in content and secret not in key.decode()
    await client.aclose()
    assert await objects.get(Encryption(b"t" * 32), "owner-name", "response", "id-of-it", 1e6) is None


async def test_without_redis_it_says_so(server):
    calls = RedisCalls("redis://127.0.0.1:1/0")
    made = RedisObjects(calls, Outage())
    with pytest.raises(RedisUnavailable):
        await made.get(Encryption(b"s" * 32), "a", "response", "id", 1.0)
    await calls.aclose()
