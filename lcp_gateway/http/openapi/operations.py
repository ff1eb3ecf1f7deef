"""The routes' declarations: what each takes and returns, beside what its handler and its path say themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lcp_gateway.accounts.callers import Scope
from lcp_gateway.accounts.documents import KEY_LIMITS
from lcp_gateway.accounts.models import KeyKind
from lcp_gateway.accounts.withdrawal_states import WithdrawalState
from lcp_gateway.http.fields import MOST_MSAT
from lcp_gateway.http.gateway.events import EVENTS_QUERY
from lcp_gateway.http.gateway.purchases import LIST_QUERY, ONE_QUERY, Format
from lcp_gateway.http.gateway.usage import USAGE_QUERY
from lcp_gateway.http.openapi.schemas import FLAG, NAME, NUMBER, Schema, array, nullable, obj, one_of, page, ref
from lcp_gateway.http.queries import AFTER, LIMIT, QueryParameter, choice
from lcp_gateway.purchase.money import Refund

JSON: Final = "application/json"
CSV: Final = "text/csv"


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route returns, and takes. ``media`` are the types of its response; ``errors`` are statuses beside the usual ones."""

    tag: str
    returns: Schema
    status: int = 200
    query: tuple[QueryParameter, ...] = ()
    body: Schema | None = None
    media: tuple[str, ...] = (JSON,)
    errors: tuple[int, ...] = ()
    headers: Mapping[str, str] | None = None


PAGE: Final = (LIMIT, AFTER)
_REASON: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 128}
_AMOUNT: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": MOST_MSAT}
_TIME: Final[Schema] = {
    "anyOf": [{"type": "integer", "minimum": 0, "maximum": 253402300799}, {"type": "string", "format": "date-time"}]
}
_NAME_BODY: Final = obj({"name": {**NAME, "minLength": 1}})
_EMPTY: Final = obj({})


def _key_body(*scopes: Scope) -> Schema:
    return obj(
        {},
        {
            "name": NAME,
            "scopes": array(one_of(scopes)),
            "models": array({"type": "string", "minLength": 1, "maxLength": 128}),
            **dict.fromkeys(KEY_LIMITS, _AMOUNT),
            "expires_at": nullable(_TIME),
        },
    )


_ANY_KEY: Final = _key_body(*Scope)
_OWN_KEY: Final = _key_body(*(scope for scope in Scope if scope is not Scope.ADMIN))


def _new(body: Schema) -> Schema:
    return {**body, "properties": {**body["properties"], "kind": one_of(KeyKind)}}


_CSV_TOO: Final = (choice("format", "JSON in pages, or all of it as CSV.", Format, Format.JSON),)
_STATUS: Final = QueryParameter("status", "In this state.", one_of(WithdrawalState))
_ACCOUNT_ID: Final = QueryParameter("account_id", "Of this account.")
_REFUND: Final = QueryParameter("refund", "With this state of the refund.", one_of(Refund))
_IDEMPOTENCY: Final = {"Idempotency-Key": "With it, it happens once however often it is sent."}

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    # -- console
    ("GET", "/api/console"): Operation("console", ref("Console")),
    ("POST", "/api/session"): Operation(
        "console", ref("Session"), 201, body=obj({"key": {"type": "string"}}), errors=(404,)
    ),
    ("GET", "/api/session"): Operation("console", ref("Session")),
    ("DELETE", "/api/session"): Operation("console", ref("SessionEnded")),
    ("DELETE", "/api/sessions"): Operation("console", ref("SessionsEnded")),
    ("POST", "/api/register"): Operation(
        "console", ref("Registration"), 201, body=obj({"name": NAME}, {"invite": {"type": "string"}}), errors=(404,)
    ),
    # -- account
    ("GET", "/api/account"): Operation("account", ref("Account")),
    ("PATCH", "/api/account"): Operation("account", ref("Account"), body=_NAME_BODY),
    ("DELETE", "/api/account"): Operation(
        "account", ref("Deleted"), body=obj({}, {"forfeit_msat": _AMOUNT}), errors=(409,)
    ),
    ("POST", "/api/account/keys"): Operation("account", ref("NewKey"), 201, body=_new(_OWN_KEY)),
    ("GET", "/api/account/keys"): Operation("account", page(ref("Key")), query=PAGE),
    ("GET", "/api/account/keys/{id}"): Operation("account", ref("Key")),
    ("PATCH", "/api/account/keys/{id}"): Operation("account", ref("Key"), body=_OWN_KEY, errors=(409,)),
    ("DELETE", "/api/account/keys/{id}"): Operation("account", ref("Key")),
    # -- wallet
    ("GET", "/api/wallet"): Operation("wallet", ref("Wallet")),
    ("POST", "/api/wallet/topups"): Operation(
        "wallet",
        ref("Topup"),
        201,
        body={
            **obj({}, {"amount_sat": _AMOUNT, "amount_msat": _AMOUNT, "memo": NAME}),
            "oneOf": [{"required": ["amount_sat"]}, {"required": ["amount_msat"]}],
        },
    ),
    ("GET", "/api/wallet/topups"): Operation("wallet", page(ref("Topup")), query=PAGE),
    ("GET", "/api/wallet/topups/{id}"): Operation("wallet", ref("Topup")),
    ("POST", "/api/wallet/topups/{id}/demo-payment"): Operation("wallet", ref("Topup"), body=_EMPTY, errors=(409,)),
    ("GET", "/api/wallet/topups/{id}/qr.{form}"): Operation(
        "wallet", {"type": "string"}, media=("image/svg+xml", "image/png")
    ),
    ("GET", "/api/wallet/transactions"): Operation(
        "wallet", page(ref("StatementLine")), query=(*PAGE, *_CSV_TOO), media=(JSON, CSV)
    ),
    ("GET", "/api/wallet/refunds"): Operation("wallet", page(ref("Refund")), query=(*PAGE, _REFUND)),
    ("POST", "/api/wallet/withdrawals"): Operation(
        "wallet",
        ref("Withdrawal"),
        201,
        body=obj(
            {"payment_request": {"type": "string", "minLength": 1}}, {"amount_msat": _AMOUNT, "max_fee_msat": _AMOUNT}
        ),
        errors=(200, 402, 409),
    ),
    ("GET", "/api/wallet/withdrawals"): Operation("wallet", page(ref("Withdrawal")), query=(*PAGE, _STATUS)),
    ("GET", "/api/wallet/withdrawals/{id}"): Operation("wallet", ref("Withdrawal")),
    ("DELETE", "/api/wallet/withdrawals/{id}"): Operation("wallet", ref("Withdrawal"), errors=(409,)),
    ("POST", "/api/wallet/demo-invoice"): Operation(
        "wallet", ref("DemoInvoice"), 201, body=obj({}, {"amount_sat": _AMOUNT}), errors=(404,)
    ),
    # -- books
    ("GET", "/api/purchases"): Operation(
        "books", page(ref("Purchase")), query=LIST_QUERY, media=(JSON, CSV), errors=(404,)
    ),
    ("GET", "/api/purchases/{job_id}"): Operation(
        "books", {"anyOf": [ref("PurchaseWithReceipt"), ref("Receipt")]}, query=ONE_QUERY
    ),
    ("GET", "/v1/receipts/{job_id}"): Operation("books", ref("Receipt")),
    ("GET", "/api/usage"): Operation("books", ref("Usage"), query=USAGE_QUERY, media=(JSON, CSV), errors=(404,)),
    ("GET", "/api/budgets"): Operation("books", page(ref("Budget")), errors=(404,)),
    ("GET", "/api/events"): Operation(
        "books",
        {"type": "string"},
        query=EVENTS_QUERY,
        media=("text/event-stream",),
        headers={"Last-Event-ID": "The id of the last event that was received: what was missed comes first."},
    ),
    # -- nodes
    ("GET", "/api/nodes"): Operation("nodes", page(ref("Node")), query=PAGE),
    ("GET", "/api/nodes/{id}/earnings"): Operation("nodes", page(ref("Earning")), query=PAGE),
    ("GET", "/api/nodes/connect"): Operation("nodes", {"type": "string"}, 101, media=(), errors=(404, 426)),
    # -- offers
    ("GET", "/api/models"): Operation(
        "offers", obj({"object": {"type": "string", "const": "list"}, "data": array(ref("Model"))})
    ),
    ("POST", "/api/models/route"): Operation(
        "offers",
        obj(
            {"object": {"type": "string", "const": "list"}, "data": array(ref("RankedModel"))},
            {"reasons": array({"type": "string"})},
        ),
        body=obj(
            {},
            {
                "providers": array({"type": "string"}),
                "min_params_b": nullable({**NUMBER, "minimum": 0}),
                "max_params_b": nullable({**NUMBER, "minimum": 0}),
                "capabilities": array({"type": "string"}),
                "prefer_size": {"type": "string"},
                "limit": {"type": "integer", "minimum": 1},
            },
        ),
    ),
    # -- the operator
    ("GET", "/api/providers"): Operation(
        "operator", page(ref("Provider"), daemon=obj({"reachable": FLAG, "problem": nullable({"type": "string"})}))
    ),
    ("GET", "/api/admin/overview"): Operation("operator", ref("Overview")),
    ("POST", "/api/admin/purchases/{job_id}/resolution"): Operation(
        "operator",
        ref("PurchaseWithReceipt"),
        body=obj(
            {
                "state": {"type": "string", "enum": ["settled", "undelivered", "not_paid"]},
                "reason": {"type": "string", "minLength": 1, "maxLength": 500},
            }
        ),
        errors=(409,),
    ),
    ("POST", "/api/admin/accounts"): Operation("operator", ref("Account"), 201, body=_NAME_BODY),
    ("GET", "/api/admin/accounts"): Operation("operator", page(ref("Account")), query=PAGE),
    ("GET", "/api/admin/accounts/{id}"): Operation("operator", ref("Account")),
    ("PATCH", "/api/admin/accounts/{id}"): Operation("operator", ref("Account"), body=_NAME_BODY),
    ("DELETE", "/api/admin/accounts/{id}"): Operation("operator", ref("Deleted"), errors=(409,)),
    ("POST", "/api/admin/accounts/{id}/adjustments"): Operation(
        "operator",
        ref("Balance"),
        201,
        body=obj({"amount_msat": {"type": "integer", "minimum": -MOST_MSAT, "maximum": MOST_MSAT}, "reason": _REASON}),
        errors=(409,),
        headers=_IDEMPOTENCY,
    ),
    ("GET", "/api/admin/accounts/{id}/statement"): Operation(
        "operator", page(ref("StatementLine")), query=(*PAGE, *_CSV_TOO), media=(JSON, CSV)
    ),
    ("POST", "/api/admin/accounts/{id}/withdrawals"): Operation(
        "operator", ref("Frozen"), body=obj({"frozen": FLAG, "reason": _REASON})
    ),
    ("POST", "/api/admin/accounts/{id}/keys"): Operation("operator", ref("NewKey"), 201, body=_new(_ANY_KEY)),
    ("GET", "/api/admin/accounts/{id}/keys"): Operation("operator", page(ref("Key")), query=PAGE),
    ("GET", "/api/admin/keys"): Operation("operator", page(ref("Key")), query=PAGE),
    ("GET", "/api/admin/keys/{id}"): Operation("operator", ref("Key")),
    ("PATCH", "/api/admin/keys/{id}"): Operation("operator", ref("Key"), body=_ANY_KEY, errors=(409,)),
    ("DELETE", "/api/admin/keys/{id}"): Operation("operator", ref("Key")),
    ("POST", "/api/admin/invites"): Operation(
        "operator", ref("Invite"), 201, body=obj({}, {"note": NAME, "expires_at": nullable(_TIME)})
    ),
    ("GET", "/api/admin/invites"): Operation("operator", page(ref("Invite")), query=PAGE),
    ("GET", "/api/admin/invites/{id}"): Operation("operator", ref("Invite")),
    ("DELETE", "/api/admin/invites/{id}"): Operation("operator", ref("Invite"), errors=(409,)),
    ("GET", "/api/admin/refunds"): Operation("operator", page(ref("Refund")), query=(*PAGE, _REFUND, _ACCOUNT_ID)),
    ("GET", "/api/admin/refunds/{id}"): Operation("operator", ref("Refund")),
    ("POST", "/api/admin/refunds/{id}"): Operation(
        "operator",
        ref("Refund"),
        body=obj({"decision": {"type": "string", "enum": ["grant", "deny"]}, "reason": _REASON}),
        errors=(409,),
    ),
    ("GET", "/api/admin/withdrawals"): Operation(
        "operator", page(ref("WithdrawalOfCustomer")), query=(*PAGE, _STATUS, _ACCOUNT_ID)
    ),
    ("GET", "/api/admin/withdrawals/{id}"): Operation("operator", ref("WithdrawalOfCustomer")),
    ("POST", "/api/admin/withdrawals/{id}"): Operation(
        "operator",
        ref("WithdrawalOfCustomer"),
        body=obj(
            {"decision": {"type": "string", "enum": ["approve", "deny", "settled", "failed"]}, "reason": _REASON},
            {"fee_msat": _AMOUNT},
        ),
        errors=(409,),
    ),
    ("GET", "/api/admin/nodes"): Operation("operator", page(ref("NodeOfAccount")), query=PAGE),
    ("POST", "/api/admin/nodes/{id}"): Operation(
        "operator",
        ref("NodeOfAccount"),
        body=obj({"reason": _REASON}, {"commission_percent": {**NUMBER, "minimum": 0, "maximum": 100}, "frozen": FLAG}),
    ),
    ("GET", "/api/admin/audit"): Operation("operator", ref("Audit")),
    ("GET", "/api/admin/log"): Operation("operator", page(ref("Action")), query=PAGE),
    # -- monitoring
    ("GET", "/healthz"): Operation("monitoring", ref("Health")),
    ("GET", "/readyz"): Operation("monitoring", ref("Readiness")),
    ("GET", "/metrics"): Operation(
        "monitoring", {"type": "string"}, media=("text/plain", "application/openmetrics-text")
    ),
    ("GET", "/openapi.json"): Operation("monitoring", {"type": "object"}),
}
