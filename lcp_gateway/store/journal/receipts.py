"""The receipt of a purchase in the journal, which any party can verify."""

from lcp_gateway.lightning.receipts import Receipt
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.records import PurchaseRecord


def receipt_of(record: PurchaseRecord) -> Receipt:
    """Return the receipt of a purchase; ``lightning.receipts.document`` writes it as JSON."""
    return Receipt(
        quote=Quote(
            peer_id=record.peer_id,
            job_id=record.job_id,
            price_msat=record.price_msat,
            expires_at=record.expires_at,
            terms_hash=record.terms_hash,
            payment_request=record.payment_request,
            protocol_version=record.protocol_version,
            response_content_type=record.response_content_type,
            response_content_encoding=record.response_content_encoding,
        ),
        kind=record.task_kind,
        model=record.model,
        request_sha256=record.request_sha256,
        request_bytes=record.request_bytes,
        state=record.state,
        times={step.state: step.at for step in record.steps},
        payment_hash=record.payment_hash,
        preimage=record.preimage,
        fee_msat=record.fee_msat,
        result_sha256=record.result_sha256,
        result_bytes=record.result_bytes,
    )
