"""Every check of a quote with its outcome, where the gateway itself stops at the first that fails."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from lcp_gateway.lightning.bolt11 import InvoiceError, decode
from lcp_gateway.lightning.checks import (
    PROTOCOL_VERSIONS,
    Mismatch,
    mismatch_of,
    mismatches,
)
from lcp_gateway.lightning.checks import WORDS as MISMATCH_WORDS
from lcp_gateway.lightning.terms import terms_hash
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.task import Task

_NOT_LOOKED_AT = "not looked at"
_OF_THE_INVOICE = (
    Mismatch.NETWORK,
    Mismatch.PAYEE,
    Mismatch.AMOUNT,
    Mismatch.DESCRIPTION_HASH,
    Mismatch.EXPIRY,
    Mismatch.EXPIRED,
)


@dataclass(frozen=True, slots=True)
class Checked:
    """One check by the name of its mismatch. ``ok`` is None for one that could not be made; ``words`` say why not ok."""

    name: str
    ok: bool | None
    words: str = ""


def check_all(task: Task, quote: Quote, now: datetime, *, network: str | None) -> list[Checked]:
    """Check a quote against the task's own bytes, and its invoice against the quote.

    ``now`` is aware UTC; ``network`` is the prefix of invoices, or None where it is not known which is right.
    """
    return list(_checks(task, quote, now, network))


def _checks(task: Task, quote: Quote, now: datetime, network: str | None) -> Iterator[Checked]:
    yield _checked(Mismatch.PROTOCOL_VERSION, quote.protocol_version in PROTOCOL_VERSIONS)
    recomputed = _terms_hash(task, quote)
    yield _checked(Mismatch.TERMS_HASH, recomputed == quote.terms_hash)
    try:
        invoice = decode(quote.payment_request)
    except InvoiceError as error:
        yield _checked(mismatch_of(error), ok=False)
        yield from (Checked(mismatch.value, None, _NOT_LOOKED_AT) for mismatch in _OF_THE_INVOICE)
        return
    yield _checked(Mismatch.SIGNATURE, ok=True)
    found = set(
        mismatches(
            invoice,
            payee=quote.peer_id,
            price_msat=quote.price_msat,
            terms_hash=recomputed,
            quote_expiry=int(quote.expires_at.timestamp()),
            network=network,
        )
    )
    if now.timestamp() >= invoice.expires_at:
        found.add(Mismatch.EXPIRED)
    for mismatch in _OF_THE_INVOICE:
        if mismatch is Mismatch.NETWORK and network is None:
            words = f"{invoice.network}, and none is set: see network"
            yield Checked(mismatch.value, None, words)
        else:
            yield _checked(mismatch, mismatch not in found)


def _checked(mismatch: Mismatch, ok: bool) -> Checked:
    return Checked(mismatch.value, ok, "" if ok else MISMATCH_WORDS[mismatch])


def _terms_hash(task: Task, quote: Quote) -> bytes:
    try:
        return terms_hash(
            protocol_version=quote.protocol_version,
            job_id=quote.job_id,
            price_msat=quote.price_msat,
            quote_expiry=int(quote.expires_at.timestamp()),
            task_kind=task.kind.value,
            request=task.body,
            model=task.model,
        )
    except ValueError:
        # Terms that cannot be written down have no hash, and so not this one either.
        return b""
