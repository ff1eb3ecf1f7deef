"""The receipt of a purchase in the journal, which any party can verify."""

from collections.abc import Mapping, Sequence

from lcp_gateway.lightning.receipts import Receipt, document
from lcp_gateway.purchase.quote import ProviderSource, Quote
from lcp_gateway.purchase.records import PurchaseRecord, StateChange
from lcp_gateway.store.journal.queries import Books


async def receipt_document(books: Books, job_id: bytes, key_id: str) -> Mapping[str, object] | None:
    """Return the receipt of a job that this credential bought from a peer, or None.

    A node gives no invoice, so a purchase from one has no receipt.
    """
    record = await books.purchase(job_id)
    if record is None or record.key_id != key_id or record.kind != ProviderSource.LCP:
        return None
    return document(receipt_of(record, record.steps))


def receipt_of(record: PurchaseRecord, steps: Sequence[StateChange]) -> Receipt:
    """Return the receipt of a purchase; ``lightning.receipt_form.document`` writes it as JSON."""
    return Receipt(
        quote=Quote(
            peer_id=record.peer_id,
            job_id=record.job_id,
            price_msat=record.price_msat,
            expires_at=record.expires_at,
            terms_hash=record.terms_hash,
            payment_request=record.payment_request,
            protocol_version=record.protocol_version,
        ),
        kind=record.task_kind,
        model=record.model,
        request_sha256=record.request_sha256,
        request_bytes=record.request_bytes,
        state=record.state,
        times={step.state: step.at for step in steps},
        payment_hash=record.payment_hash,
        preimage=record.preimage,
        fee_msat=record.fee_msat,
        result_sha256=record.result_sha256,
        result_bytes=record.result_bytes,
    )
