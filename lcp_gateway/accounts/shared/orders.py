"""Quotes that can be taken, and names of background jobs, at all gateways and workers that share a Redis."""

import asyncio
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Final

import orjson

from lcp_gateway.accounts.shared.calls import RedisCalls, RedisUnavailable
from lcp_gateway.accounts.shared.claims import ClaimNames
from lcp_gateway.accounts.shared.outage import REDIS_KEY_PREFIX, Outage
from lcp_gateway.accounts.shared.serialization import plain, quote_facts, quote_of
from lcp_gateway.encryption import DecryptionFailed, Encryption
from lcp_gateway.purchase.held_quotes import HeldQuote
from lcp_gateway.purchase.order import Order, Task, TaskKind
from lcp_gateway.purchase.quote import Candidate, Payee
from lcp_gateway.purchase.quoting import Offer

_QUOTES: Final = f"{REDIS_KEY_PREFIX}:quote:"
_JOBS: Final = f"{REDIS_KEY_PREFIX}:job:"
_CONTEXT: Final = b"quote"
_JOB: Final = b"job"
_MARK_BYTES: Final = 32
# A quote that has just expired is told from one that never was.
_KEPT_AFTER_S: Final = 60.0
_MS_PER_S: Final = 1_000


# KEYS: the names to look up, then all names. ARGV: how many to look up, the job, then how long each name is kept.
_NAME_JOB = """
local looks = tonumber(ARGV[1])
for i = 1, looks do
  local other = redis.call('GET', KEYS[i])
  if other then return {KEYS[i], other} end
end
for i = looks + 1, #KEYS do redis.call('SET', KEYS[i], ARGV[2], 'PX', ARGV[2 + i - looks]) end
return {}
"""
# KEYS: the names. ARGV: the keyed hash that the job begins with, and its length.
_FORGET_JOB = """
for _, name in ipairs(KEYS) do
  if redis.call('GETRANGE', name, 0, ARGV[2] - 1) == ARGV[1] then redis.call('DEL', name) end
end
"""


@dataclass(frozen=True, slots=True)
class NamedJob:
    """A background job by one of its names: its id, and the fingerprint of its order."""

    job_id: str
    fingerprint: bytes


class RedisOrders:
    """Held quotes and named jobs in a Redis. Names are keyed hashes and quotes are encrypted.

    While Redis is unreachable no quote is held, and no job has a name.
    """

    def __init__(self, calls: RedisCalls, outage: Outage) -> None:
        self._calls = calls
        self._outage = outage
        self._name_job = calls.script(_NAME_JOB)
        self._forget_job = calls.script(_FORGET_JOB)

    async def hold(self, encryption: Encryption, order: Order, held: HeldQuote, now: datetime) -> bool:
        """Hold a quote; return whether it is held. ``order`` still has its body."""
        name = _name(encryption, held.id)
        left_s = max(0.0, (held.offer.quote.expires_at - now).total_seconds()) + _KEPT_AFTER_S
        content = encryption.encrypt(name, _packed(order, held), _CONTEXT)
        reply = await self._reply(
            self._calls.command, "SET", _QUOTES + name.hex(), content, "PX", round(left_s * _MS_PER_S)
        )
        return reply is not None

    async def find(self, encryption: Encryption, quote_name: str) -> HeldQuote | None:
        """Return a held quote, which stays held; None where there is none."""
        name = _name(encryption, quote_name)
        content = await self._reply(self._calls.command, "GET", _QUOTES + name.hex())
        if content is None:
            return None
        try:
            return _unpacked(encryption.decrypt(name, content, _CONTEXT))
        except DecryptionFailed:
            return None

    async def drop(self, encryption: Encryption, quote_name: str) -> bool:
        """Drop a held quote; return whether it was held: of several that drop it at one time, one gets True."""
        name = _name(encryption, quote_name)
        return bool(await self._reply(self._calls.command, "DEL", _QUOTES + name.hex()))

    async def name_job(self, encryption: Encryption, names: ClaimNames, job_id: str) -> NamedJob:
        """Give these names to a job, unless another has one of those that are looked up; return the one that has them."""
        content = _job_content(encryption, names, job_id)
        keys = [*map(_job_key, names.looked_up), *map(_job_key, names.all)]
        values = [len(names.looked_up), content, *names.keep_ms]
        found = await self._reply(self._name_job, keys, values)
        if not found:
            return NamedJob(job_id, names.fingerprint)
        try:
            facts = orjson.loads(encryption.decrypt(_JOB, found[1][_MARK_BYTES:], _CONTEXT))
        except DecryptionFailed:
            return NamedJob(job_id, names.fingerprint)
        return NamedJob(facts["id"], bytes.fromhex(facts["order"]))

    async def forget_job(self, encryption: Encryption, names: ClaimNames, job_id: str) -> None:
        """Take names back from a job."""
        mark = encryption.keyed_name(b"job", job_id.encode())
        await self._reply(self._forget_job, [*map(_job_key, names.all)], [mark, len(mark)])

    async def _reply(self, call: Callable[..., asyncio.Future[Any]], *arguments: Any) -> Any:
        try:
            return await self._calls.reply(self._outage, call, *arguments)
        except RedisUnavailable:
            return None


def _job_key(name: bytes) -> str:
    return _JOBS + name.hex()


def _job_content(encryption: Encryption, names: ClaimNames, job_id: str) -> bytes:
    facts = {"id": job_id, "order": names.fingerprint.hex()}
    mark = encryption.keyed_name(b"job", job_id.encode())
    return mark + encryption.encrypt(_JOB, orjson.dumps(facts), _CONTEXT)


def _name(encryption: Encryption, quote_name: str) -> bytes:
    return encryption.keyed_name(b"quote", quote_name.encode())


def _packed(order: Order, held: HeldQuote) -> bytes:
    """Return a held quote as bytes, with the task that its provider gets where that is another than the client's."""
    offer, task = held.offer, order.task
    adapted = offer.candidate.adapt(task)
    quote = offer.quote
    return orjson.dumps(
        {
            "key_id": order.key_id,
            "request_id": order.request_id,
            "kind": task.kind,
            "model": task.model,
            "stream": task.stream,
            "output_tokens": task.output_tokens,
            "body_sha256": order.body_sha256.hex(),
            "adapted": None
            if adapted is task
            else {
                "kind": adapted.kind,
                "model": adapted.model,
                "body": adapted.body.decode("latin-1"),
                "stream": adapted.stream,
                "output_tokens": adapted.output_tokens,
            },
            "provider_id": offer.candidate.provider_id,
            "adapter": offer.candidate.adapter,
            "routing": None if offer.candidate.routing is None else dict(offer.candidate.routing),
            "runner_up_msat": offer.runner_up_msat,
            "quote": {
                **quote_facts(quote),
                "payment_request": quote.payment_request,
                "response": [quote.response_content_type, quote.response_content_encoding],
                "on_delivery": quote.on_delivery,
                "payee": None if quote.payee is None else list(astuple(quote.payee)),
            },
        },
        default=plain,
    )


def _unpacked(content: bytes) -> HeldQuote:
    facts = orjson.loads(content)
    task = Task(
        TaskKind(facts["kind"]), facts["model"], b"", stream=facts["stream"], output_tokens=facts["output_tokens"]
    )
    order = Order(task, facts["request_id"], facts["key_id"], bytes.fromhex(facts["body_sha256"]))
    candidate = Candidate(facts["provider_id"], adapter=facts["adapter"], routing=facts["routing"])
    bought = order
    if (given := facts["adapted"]) is not None:
        adapted = Task(
            TaskKind(given["kind"]),
            given["model"],
            given["body"].encode("latin-1"),
            stream=given["stream"],
            output_tokens=given["output_tokens"],
        )
        candidate = replace(candidate, adapt=partial(_as_quoted, adapted))
        bought = order.for_task(adapted).without_body()
    quote = facts["quote"]
    # Not there in what a gateway of an earlier version holds.
    response_type, response_encoding = quote.get("response") or (None, None)
    offer = Offer(
        bought,
        candidate,
        quote_of(
            quote,
            payment_request=quote["payment_request"],
            on_delivery=quote["on_delivery"],
            payee=None if quote["payee"] is None else Payee(*quote["payee"]),
            response_content_type=response_type,
            response_content_encoding=response_encoding,
        ),
        None,
        runner_up_msat=facts["runner_up_msat"],
    )
    return HeldQuote(order, offer)


def _as_quoted(adapted: Task, _task: Task) -> Task:
    """Return the task that was quoted; the request is known to be the same."""
    return adapted
