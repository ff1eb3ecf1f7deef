"""Objects of clients in a Redis, for all gateways and workers that share it: bounded, encrypted, the oldest evicted first.

An object is a head and segments. Segments that several objects of an owner have are stored once: the turns of a conversation,
which each later turn has too. Names are keyed hashes and contents are encrypted: a reader of that Redis learns sizes and times.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lcp_gateway.accounts.shared.calls import NOW, RedisCalls
from lcp_gateway.accounts.shared.outage import REDIS_KEY_PREFIX, Outage
from lcp_gateway.encryption import DecryptionFailed, Encryption

_PREFIX: Final = f"{REDIS_KEY_PREFIX}:stored:"
_MS_PER_S: Final = 1_000
# The tables outlive the objects in them, and all of it ends by itself once no gateway is left.
_SLACK_MS: Final = 3_600_000
_MAX_EVICTED: Final = 10_000
_CONTEXT: Final = b"stored"

# meta: by object {owner, member, bytes, at, segments}; order: objects by sequence; owner:<name>: the same of one owner, as its
# kind and name; refs and sizes: by segment; bytes: by owner, and of all under "".
_COMMON = f"""{NOW}
local P = '{_PREFIX}'
local function use(owner, by)
  redis.call('HINCRBY', P .. 'bytes', '', by)
  if redis.call('HINCRBY', P .. 'bytes', owner, by) <= 0 then redis.call('HDEL', P .. 'bytes', owner) end
end
local function take_out(name)
  local found = redis.call('HGET', P .. 'meta', name)
  if not found then
    redis.call('ZREM', P .. 'order', name)
    return
  end
  local meta = cjson.decode(found)
  for _, segment in ipairs(meta.segments) do
    if redis.call('HINCRBY', P .. 'refs', segment, -1) <= 0 then
      use(meta.owner, -tonumber(redis.call('HGET', P .. 'sizes', segment) or 0))
      redis.call('HDEL', P .. 'refs', segment)
      redis.call('HDEL', P .. 'sizes', segment)
      redis.call('DEL', P .. 'segment:' .. segment)
    end
  end
  use(meta.owner, -meta.bytes)
  redis.call('HDEL', P .. 'meta', name)
  redis.call('ZREM', P .. 'order', name)
  redis.call('ZREM', P .. 'owner:' .. meta.owner, meta.member)
  redis.call('DEL', P .. 'object:' .. name)
end
local function load(name, keep_ms)
  local found = redis.call('HGET', P .. 'meta', name)
  if not found then return false end
  local meta = cjson.decode(found)
  if now - meta.at >= keep_ms then return false end
  local parts = {{redis.call('GET', P .. 'object:' .. name)}}
  if not parts[1] then return false end
  for _, segment in ipairs(meta.segments) do
    local content = redis.call('GET', P .. 'segment:' .. segment)
    if not content then return false end
    parts[#parts + 1] = segment
    parts[#parts + 1] = content
  end
  return parts
end
local aged = 0
local function evict_aged(keep_ms)
  for _ = 1, {_MAX_EVICTED} do
    local oldest = redis.call('ZRANGE', P .. 'order', 0, 0)[1]
    if not oldest then return end
    local found = redis.call('HGET', P .. 'meta', oldest)
    if found and now - cjson.decode(found).at < keep_ms then return end
    take_out(oldest)
    aged = aged + 1
  end
end
local function held()
  return redis.call('ZCARD', P .. 'order'), tonumber(redis.call('HGET', P .. 'bytes', '') or 0)
end
"""
# ARGV: name, member, owner, how long it is kept, most objects of an owner, most bytes, whether it only replaces, the head, its
# bytes, how many segments, then for each its name, its bytes, and its content ("" where it should be there already).
# Returns {stored, by count, by bytes, by age, objects, bytes}; stored is -1 where a content is missing after all.
_PUT = f"""{_COMMON}
local name, member, owner, keep_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local most, most_bytes, replaces = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'
local head, bytes, count = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])
local alone, segments, new = bytes, {{}}, {{}}
for i = 1, count do
  local segment, size, content = ARGV[8 + i * 3], tonumber(ARGV[9 + i * 3]), ARGV[10 + i * 3]
  if not new[segment] then alone = alone + size end
  new[segment] = {{size, content}}
  segments[i] = segment
  if content == '' and redis.call('EXISTS', P .. 'segment:' .. segment) == 0 then return {{-1, 0, 0, 0, 0, 0}} end
end
local at, sequence = now, false
if replaces then
  local before = redis.call('HGET', P .. 'meta', name)
  at = before and cjson.decode(before).at
  if not at or now - at >= keep_ms then return {{0, 0, 0, 0, held()}} end
  sequence = redis.call('ZSCORE', P .. 'order', name)
end
evict_aged(keep_ms)
local counted, sized = 0, 0
local stored = (most > 0 and alone <= most_bytes) and 1 or 0
if stored == 1 then
  for _, segment in ipairs(segments) do
    if redis.call('HINCRBY', P .. 'refs', segment, 1) == 1 then
      redis.call('HSET', P .. 'sizes', segment, new[segment][1])
      use(owner, new[segment][1])
      redis.call('SET', P .. 'segment:' .. segment, new[segment][2])
    end
    redis.call('PEXPIRE', P .. 'segment:' .. segment, keep_ms + {_SLACK_MS})
  end
end
take_out(name)
if stored == 1 then
  redis.call('SET', P .. 'object:' .. name, head, 'PX', keep_ms + {_SLACK_MS})
  redis.call('HSET', P .. 'meta', name, cjson.encode({{owner = owner, member = member, bytes = bytes, at = at, segments = segments}}))
  use(owner, bytes)
  sequence = sequence or redis.call('INCR', P .. 'sequence')
  redis.call('ZADD', P .. 'order', sequence, name)
  redis.call('ZADD', P .. 'owner:' .. owner, sequence, member)
  while redis.call('ZCARD', P .. 'owner:' .. owner) > most do
    take_out(string.sub(redis.call('ZRANGE', P .. 'owner:' .. owner, 0, 0)[1], 2))
    counted = counted + 1
  end
  while tonumber(redis.call('HGET', P .. 'bytes', '') or 0) > most_bytes do
    local fair = most_bytes / math.max(1, redis.call('HLEN', P .. 'bytes') - 1)
    local own = tonumber(redis.call('HGET', P .. 'bytes', owner) or 0)
    -- Its newest object may itself be larger than the share.
    if own > fair and redis.call('ZCARD', P .. 'owner:' .. owner) > 1 then
      take_out(string.sub(redis.call('ZRANGE', P .. 'owner:' .. owner, 0, 0)[1], 2))
    else
      take_out(redis.call('ZRANGE', P .. 'order', 0, 0)[1])
    end
    sized = sized + 1
  end
  for _, table in ipairs({{'meta', 'order', 'refs', 'sizes', 'bytes', 'sequence', 'owner:' .. owner}}) do
    redis.call('PEXPIRE', P .. table, keep_ms + 2 * {_SLACK_MS})
  end
  stored = redis.call('HEXISTS', P .. 'meta', name)
end
local objects, all = held()
return {{stored, counted, sized, aged, objects, all}}
"""
# ARGV: name, how long it is kept, whether it is removed.
_GET = f"""{_COMMON}
local parts = load(ARGV[1], tonumber(ARGV[2]))
if ARGV[3] == '1' then take_out(ARGV[1]) end
return parts
"""
# ARGV: owner, the letter of the kind, how long objects are kept. Returns the name and the head of each, the oldest first.
_LIST = f"""{_COMMON}
local found = {{}}
for _, member in ipairs(redis.call('ZRANGE', P .. 'owner:' .. ARGV[1], 0, -1)) do
  if string.sub(member, 1, 1) == ARGV[2] then
    local name = string.sub(member, 2)
    local meta = redis.call('HGET', P .. 'meta', name)
    local head = meta and now - cjson.decode(meta).at < tonumber(ARGV[3]) and redis.call('GET', P .. 'object:' .. name)
    if head then found[#found + 1] = {{name, head}} end
  end
end
return found
"""
# ARGV: how long objects are kept, most bytes.
_PURGE = f"""{_COMMON}
evict_aged(tonumber(ARGV[1]))
local sized = 0
while tonumber(redis.call('HGET', P .. 'bytes', '') or 0) > tonumber(ARGV[2]) and sized < {_MAX_EVICTED} do
  local oldest = redis.call('ZRANGE', P .. 'order', 0, 0)[1]
  if not oldest then break end
  take_out(oldest)
  sized = sized + 1
end
local objects, all = held()
return {{sized, aged, objects, all}}
"""


@dataclass(frozen=True, slots=True)
class ObjectLimits:
    """Limits: objects of one owner, bytes of all together, age in seconds."""

    per_owner: int
    bytes_in_all: int
    keep_s: float


@dataclass(frozen=True, slots=True)
class ObjectParts:
    """The head of an object and its segments. ``size`` are the bytes that it counts besides its segments, ``sizes`` those of each."""

    head: bytes = field(repr=False)
    segments: Sequence[bytes] = field(repr=False)
    size: int = 0
    sizes: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class PutResult:
    """Whether an object is stored, how many others were evicted for it by what limit, and how much is stored now."""

    is_stored: bool
    evicted: Mapping[str, int]
    objects: int
    bytes_in_all: int


class RedisObjects:
    """The objects that all gateways on one Redis with one secret share."""

    def __init__(self, calls: RedisCalls, outage: Outage) -> None:
        self._calls = calls
        self._outage = outage
        self._put = calls.script(_PUT, alone=True)
        self._get = calls.script(_GET, alone=True)
        self._list = calls.script(_LIST, alone=True)
        self._purge = calls.script(_PURGE, alone=True)

    async def put(
        self,
        encryption: Encryption,
        owner: str,
        kind: str,
        object_id: str,
        parts: ObjectParts,
        limits: ObjectLimits,
        *,
        replaces: bool = False,
        new_segments: int = 0,
    ) -> PutResult:
        """Store an object as its owner's newest, instead of one with its kind and id; with ``replaces`` in the place of that one.

        Only the last ``new_segments`` are sent at first (0: all): those before are probably there.

        Raises:
            RedisUnavailable: it is not stored.
        """
        name = _name(encryption, owner, kind, object_id)
        owner_name = _owner_name(encryption, owner)
        first_sent = len(parts.segments) - new_segments if new_segments else 0
        head = encryption.encrypt(name, parts.head, _CONTEXT)
        while True:
            arguments: list[object] = [
                *(name.hex(), kind[0] + name.hex(), owner_name, round(limits.keep_s * _MS_PER_S)),
                *(limits.per_owner, limits.bytes_in_all, int(replaces), head, parts.size, len(parts.segments)),
            ]
            for place, (segment, size) in enumerate(zip(parts.segments, parts.sizes, strict=True)):
                digest = encryption.keyed_name(b"segment", owner.encode(), hashlib.sha256(segment).digest())
                content = b"" if place < first_sent else encryption.encrypt(digest, segment, _CONTEXT)
                arguments += [digest.hex(), size, content]
            found = await self._calls.reply(self._outage, self._put, [], arguments)
            if found[0] >= 0 or not first_sent:
                stored, counted, sized, aged, objects, bytes_in_all = map(int, found)
                return PutResult(bool(stored), {"count": counted, "bytes": sized, "age": aged}, objects, bytes_in_all)
            first_sent = 0

    async def get(
        self, encryption: Encryption, owner: str, kind: str, object_id: str, keep_s: float, *, remove: bool = False
    ) -> ObjectParts | None:
        """Return an object, and remove it if so wanted; None where the owner has none, or it is too old.

        Raises:
            RedisUnavailable: it cannot be read now.
        """
        name = _name(encryption, owner, kind, object_id)
        parts = await self._calls.reply(
            self._outage, self._get, [], [name.hex(), round(keep_s * _MS_PER_S), int(remove)]
        )
        if not parts:
            return None
        try:
            head = encryption.decrypt(name, parts[0], _CONTEXT)
            segments = [
                encryption.decrypt(bytes.fromhex(digest.decode()), content, _CONTEXT)
                for digest, content in zip(parts[1::2], parts[2::2], strict=True)
            ]
        except DecryptionFailed:
            # Written with another secret: for this gateway it is not there.
            return None
        return ObjectParts(head, segments)

    async def heads(self, encryption: Encryption, owner: str, kind: str, keep_s: float) -> Sequence[bytes]:
        """Return the heads of an owner's objects of a kind, the oldest first.

        Raises:
            RedisUnavailable: they cannot be read now.
        """
        owner_name = _owner_name(encryption, owner)
        found = await self._calls.reply(self._outage, self._list, [], [owner_name, kind[0], round(keep_s * _MS_PER_S)])
        heads = []
        for name, head in found:
            try:
                heads.append(encryption.decrypt(bytes.fromhex(name.decode()), head, _CONTEXT))
            except DecryptionFailed:
                continue
        return heads

    async def purge(self, limits: ObjectLimits) -> PutResult:
        """Evict objects that are too old, and the oldest above the limit of bytes.

        Raises:
            RedisUnavailable: nothing was evicted.
        """
        sized, aged, objects, bytes_in_all = map(
            int,
            await self._calls.reply(
                self._outage, self._purge, [], [round(limits.keep_s * _MS_PER_S), limits.bytes_in_all]
            ),
        )
        return PutResult(True, {"bytes": sized, "age": aged}, objects, bytes_in_all)


def _name(encryption: Encryption, owner: str, kind: str, object_id: str) -> bytes:
    return encryption.keyed_name(b"object", owner.encode(), kind.encode(), object_id.encode())


def _owner_name(encryption: Encryption, owner: str) -> str:
    return encryption.keyed_name(b"owner", owner.encode()).hex()
