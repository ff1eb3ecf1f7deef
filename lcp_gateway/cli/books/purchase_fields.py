"""A purchase as JSON, as a line of CSV, and as a row of a table."""

from datetime import UTC, datetime

from lcp_gateway.accounts.documents import csv_cell
from lcp_gateway.cli.output import Columns, format_time
from lcp_gateway.purchase.money import Refund
from lcp_gateway.purchase.records import PurchaseRecord
from lcp_gateway.purchase.states import VERDICTS, State

FIELDS = (
    *("job_id", "state", "verdict", "kind", "task_kind", "model", "peer_id", "upstream", "key_id"),
    *("request_id", "price_msat", "fee_cap_msat", "fee_msat", "runner_up_msat", "terms_hash"),
    *("payment_request", "payment_hash", "preimage", "protocol_version"),
    *("request_sha256", "request_bytes", "stream", "result_sha256", "result_bytes"),
    *("expires_at", "paying_at", "ended_at", "updated_at"),
    *("account_id", "charge_msat", "charged_msat", "ended_by", "received", "provider_blamed"),
    "refund",
)
"""The fields of a purchase in the order in which they are written."""

_SHORT_PEER_CHARACTERS = 12

PlainValue = str | int | bool | None

COLUMNS: Columns[PurchaseRecord] = {
    "time": lambda record: format_time(record.paying_at),
    "state": lambda record: f"{record.state} (withheld)" if record.refund is Refund.WITHHELD else record.state.value,
    "price msat": lambda record: str(record.price_msat),
    # An estimated fee is written in brackets.
    "fee msat": lambda record: f"({record.fee_cap_msat})" if record.fee_msat is None else str(record.fee_msat),
    "model": lambda record: record.model,
    "peer": lambda record: record.peer_id[:_SHORT_PEER_CHARACTERS],
    "key": lambda record: record.key_id or "-",
    "job id": lambda record: record.job_id.hex(),
}


def fields_of(record: PurchaseRecord) -> dict[str, PlainValue]:
    """Return the fields by name: hashes as hex, times in RFC 3339 and UTC, amounts in msat."""
    charge = record.charge
    values = {
        "verdict": VERDICTS[record.state],
        "account_id": None if charge is None else charge.account_id,
        "charge_msat": None if charge is None else charge.amount_msat,
        "charged_msat": None if charge is None else record.charged_msat,
        "provider_blamed": record.blames_provider if record.state is State.UNDELIVERED else None,
    }
    values.update((name, getattr(record, name)) for name in FIELDS if name not in values)
    return {name: _plain(values[name]) for name in FIELDS}


def csv_cells(record: PurchaseRecord) -> list[str]:
    """Return the cells of a line in a form that a spreadsheet reads as text and numbers only."""
    return [csv_cell(value) for value in fields_of(record).values()]


def written_field(value: PlainValue) -> str:
    """Write a field for display; a dash stands for no value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in {None, ""} else str(value)


def _plain(value: object) -> PlainValue:
    match value:
        case None | bool() | int():
            return value
        case bytes():
            return value.hex()
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case _:
            return str(value)
