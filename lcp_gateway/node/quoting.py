"""Makes a quote: a price, an expiry, a terms hash and an invoice that its peer has signed."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256

from coincurve import PrivateKey

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.terms import terms_hash
from lcp_gateway.node.config import ModelConfig, NodeConfig, derive_key
from lcp_gateway.node.faults import Fault
from lcp_gateway.node.jobs import Job
from lcp_gateway.node.peers import Peer
from lcp_gateway.node.tasks import Task

_INVOICE_EXPIRY_MARGIN_S = 5
_HOUR_S = 3600
_MIN_FINAL_CLTV = 80


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote as RequestQuote answers it."""

    job: Job
    protocol_version: int
    terms_hash: bytes
    payment_request: str


@dataclass(frozen=True, slots=True)
class _Draft:
    """A quote before it is signed, so that a fault can change any part of it."""

    job_id: bytes
    price_msat: int
    expires_at: int
    terms_hash: bytes
    network: str
    invoice_msat: int
    invoice_at: int
    invoice_expiry_s: int
    description_hash: bytes
    key: PrivateKey


def price_msat(model: ModelConfig, task: Task) -> int:
    """Return the price of a task: the output it is allowed is charged in full, once, however many choices it asks for."""
    output = task.max_tokens or model.default_max_tokens
    return model.base_msat + model.prompt_token_msat * task.prompt_tokens + model.output_token_msat * output


class Quoter:
    """Makes quotes for a node's peers."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._other_key = derive_key(config.seed, "a stranger")

    def quote(self, peer: Peer, model: ModelConfig, task: Task, fault: Fault | None) -> Quote:
        """Make a quote for a task that was admitted, with the fault of the quote side, if any."""
        secrets = os.urandom(96)
        preimage = secrets[32:64]
        payment_hash = sha256(preimage).digest()
        draft = self._draft(peer, task, secrets[:32], price_msat(model, task))
        problem = None
        name = fault.name if fault is not None else ""
        if name:
            draft = self._inject(draft, name, peer, task)
            problem = _PROBLEMS.get(name)
        if name == "garbage-invoice":
            payment_request = "lnbcrt1thisisnotaninvoice"
        else:
            payment_request = bolt11.encode(
                draft.key,
                network=draft.network,
                timestamp=draft.invoice_at,
                payment_hash=payment_hash,
                payment_secret=secrets[64:],
                amount_msat=draft.invoice_msat,
                description_hash=draft.description_hash,
                expiry_s=draft.invoice_expiry_s,
                min_final_cltv=_MIN_FINAL_CLTV,
            )
        if name == "bad-signature":
            payment_request = _break_signature(payment_request)
        job = Job(
            id=draft.job_id,
            peer=peer,
            model=model,
            task=task,
            price_msat=draft.price_msat,
            created_at=int(time.time()),
            expires_at=draft.expires_at,
            payment_hash=payment_hash,
            preimage=preimage,
            invoice_problem=problem,
        )
        return Quote(job, self._config.protocol_version, draft.terms_hash, payment_request)

    def _draft(self, peer: Peer, task: Task, job_id: bytes, price: int) -> _Draft:
        now = int(time.time())
        # Terms count whole seconds; a shorter life than one would have ended before it is read.
        expires_at = now + max(1, math.ceil(self._config.quote_ttl_s))
        digest = self._terms_hash(task, job_id, price, expires_at)
        return _Draft(
            job_id=job_id,
            price_msat=price,
            expires_at=expires_at,
            terms_hash=digest,
            network=self._config.network,
            invoice_msat=price,
            invoice_at=now,
            invoice_expiry_s=max(1, expires_at - now - _INVOICE_EXPIRY_MARGIN_S),
            description_hash=digest,
            key=peer.key,
        )

    def _terms_hash(self, task: Task, job_id: bytes, price: int, expires_at: int) -> bytes:
        return terms_hash(
            protocol_version=self._config.protocol_version,
            job_id=job_id,
            price_msat=price,
            quote_expiry=expires_at,
            task_kind=task.kind.value,
            request=task.body,
            model=task.model,
        )

    def _inject(self, draft: _Draft, name: str, peer: Peer, task: Task) -> _Draft:
        if name == "expensive":
            return self._draft(peer, task, draft.job_id, self._config.fault_settings.expensive_msat)
        if name == "short-job-id":
            return replace(draft, job_id=draft.job_id[:16])
        if name == "expired":
            past = draft.invoice_at - 1
            digest = self._terms_hash(task, draft.job_id, draft.price_msat, past)
            # The invoice outlives it by as much as the daemon allows, so that it is the quote that has expired.
            return replace(draft, expires_at=past, terms_hash=digest, description_hash=digest, invoice_expiry_s=3)
        if name == "wrong-payee":
            return replace(draft, key=self._other_key)
        change = _CHANGES.get(name)
        return change(draft) if change is not None else draft


def _wrong_terms_hash(draft: _Draft) -> _Draft:
    other = sha256(draft.terms_hash).digest()
    return replace(draft, terms_hash=other, description_hash=other)


def _expired_invoice(draft: _Draft) -> _Draft:
    return replace(draft, invoice_at=draft.invoice_at - _HOUR_S, invoice_expiry_s=60)


def _outliving_invoice(draft: _Draft) -> _Draft:
    return replace(draft, invoice_expiry_s=draft.expires_at - draft.invoice_at + _HOUR_S)


_CHANGES: dict[str, Callable[[_Draft], _Draft]] = {
    "wrong-price": lambda draft: replace(draft, invoice_msat=draft.price_msat + 1_000),
    "wrong-description-hash": lambda draft: replace(draft, description_hash=sha256(draft.terms_hash).digest()),
    "wrong-terms-hash": _wrong_terms_hash,
    "wrong-network": lambda draft: replace(draft, network="bc"),
    "wrong-invoice-expiry": _outliving_invoice,
    "expired-invoice": _expired_invoice,
}

_PROBLEMS = {
    "wrong-price": "invoice amount does not match price",
    "wrong-payee": "invoice payee does not match peer",
    "wrong-description-hash": "invoice description_hash does not match terms_hash",
    "wrong-network": "decode invoice: not for the active network",
    "wrong-invoice-expiry": "invoice expires after the quote",
    "expired-invoice": "invoice expired",
    "bad-signature": "decode invoice: invalid signature",
    "garbage-invoice": "decode invoice: not an invoice",
}
"""The daemon's error when it checks the invoice. It cannot see that terms_hash itself is wrong when the invoice repeats
it: only the client, which knows the request, can."""


def _break_signature(payment_request: str) -> str:
    """Replace the signature by one that no key can have made, and repair the checksum."""
    return bolt11.with_signature(payment_request, b"\xff" * 64 + b"\x00")
