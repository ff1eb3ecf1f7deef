"""The JSON Schemas of the gateway's own objects; the values of enumerations are those of the code."""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final

from lcp_gateway.accounts.callers import Scope
from lcp_gateway.accounts.documents import KEY_LIMITS
from lcp_gateway.accounts.invites import InviteStatus
from lcp_gateway.accounts.models import Cause, KeyKind, TopupState
from lcp_gateway.accounts.withdrawal_states import WithdrawalState
from lcp_gateway.http.gateway.purchases import JOURNALED
from lcp_gateway.http.gateway.usage import ALL_SUMS, CUSTOMER_SUMS
from lcp_gateway.purchase.money import Period, Refund
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.outcome import EndedBy, Received
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.records import GroupBy
from lcp_gateway.purchase.states import Verdict

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
INTEGER: Final[Schema] = {"type": "integer"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
MSAT: Final[Schema] = {"type": "integer", "description": "Millisatoshi."}
NUMBER: Final[Schema] = {"type": "number"}
FLAG: Final[Schema] = {"type": "boolean"}
UNIX: Final[Schema] = {"type": "integer", "description": "Unix seconds."}
TIME: Final[Schema] = {"type": "string", "format": "date-time", "description": "RFC 3339, UTC."}
OBJECT: Final[Schema] = {"type": "object"}
HASH: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
NAME: Final[Schema] = {"type": "string", "maxLength": 128}


def one_of(values: Iterable[Enum]) -> Schema:
    """Return the schema of an enumeration."""
    return {"type": "string", "enum": [item.value for item in values]}


def const(value: str) -> Schema:
    """Return the schema of one text."""
    return {"type": "string", "const": value}


def nullable(schema: Schema) -> Schema:
    """Return a schema that allows null as well."""
    return {"anyOf": [schema, {"type": "null"}]}


def array(items: Schema) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items}


def ref(name: str) -> Schema:
    """Return a reference to a schema of ``SCHEMAS``."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def with_more(schema: Schema, required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object with further properties."""
    names = set(schema["required"])
    own = {name: value for name, value in schema["properties"].items() if name in names}
    others = {name: value for name, value in schema["properties"].items() if name not in names}
    return obj({**own, **required}, {**others, **(optional or {})})


def page(item: Schema, **more: Schema) -> Schema:
    """Return the schema of a page of a list; ``after`` is the cursor of the next one."""
    return obj({"object": const("list"), "data": array(item), "after": nullable(TEXT), **more})


_BALANCE = {"balance_msat": MSAT, "held_msat": MSAT, "available_msat": MSAT}
_PERIODS = obj({period.value: MSAT for period in Period})
_SUMS = dict.fromkeys(CUSTOMER_SUMS, COUNT)
_OPERATORS_SUMS = {name: COUNT for name in ALL_SUMS if name not in CUSTOMER_SUMS}
_GROUP = {"id": nullable(TEXT), "name": TEXT}
_KEY_RULES = dict.fromkeys(KEY_LIMITS, COUNT)

ERROR: Final = obj(
    {
        "error": {
            "type": "object",
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": nullable(TEXT),
                "code": nullable(TEXT),
                "lcp": OBJECT,
            },
            "required": ["message", "type", "param", "code"],
        }
    }
)
ACCOUNT: Final = obj(
    {
        "object": const("lcp.account"),
        "id": TEXT,
        "name": TEXT,
        "created_at": UNIX,
        "deleted": FLAG,
        "withdrawals_frozen": FLAG,
        **_BALANCE,
    }
)
_PLAIN_KEY = obj(
    {
        "object": const("lcp.key"),
        "id": TEXT,
        "account_id": TEXT,
        "name": TEXT,
        "kind": one_of(KeyKind),
        "prefix": TEXT,
        "scopes": array(one_of(Scope)),
        "models": array(TEXT),
        **_KEY_RULES,
        "expires_at": nullable(UNIX),
        "created_at": UNIX,
        "revoked_at": nullable(UNIX),
    }
)
KEY: Final = with_more(
    _PLAIN_KEY,
    {
        "last_used_at": nullable(UNIX),
        "spent_msat": _PERIODS,
        "resets_at": obj({period.value: UNIX for period in Period}),
    },
)
_TOPUP = {
    "object": const("lcp.topup"),
    "id": TEXT,
    "status": one_of(TopupState),
    "amount_msat": MSAT,
    "received_msat": nullable(MSAT),
    "memo": TEXT,
    "created_at": UNIX,
    "expires_at": UNIX,
    "settled_at": nullable(UNIX),
}
_WITHDRAWAL = {
    "object": const("lcp.withdrawal"),
    "id": TEXT,
    "status": one_of(WithdrawalState),
    "amount_msat": MSAT,
    "fee_msat": nullable(MSAT),
    "fee_limit_msat": MSAT,
    "held_msat": MSAT,
    "internal": FLAG,
    "reason": nullable(TEXT),
    "message": nullable(TEXT),
    "payment_hash": HASH,
    "payment_request": TEXT,
    "created_at": UNIX,
    "expires_at": UNIX,
    "ended_at": nullable(UNIX),
}
_NODE = {
    "object": const("lcp.node"),
    "id": TEXT,
    "provider_id": TEXT,
    "name": TEXT,
    "key_id": TEXT,
    "up": FLAG,
    "models": COUNT,
    "running": COUNT,
    "commission_percent": NUMBER,
    "frozen": FLAG,
    "delivered": COUNT,
    "earned_msat": MSAT,
    "commission_msat": MSAT,
    "earned_today_msat": MSAT,
    "created_at": UNIX,
    "connected_at": UNIX,
}
_REFUND = {
    "id": HASH,
    "object": const("lcp.refund"),
    "job_id": HASH,
    "refund": one_of(Refund),
    "amount_msat": MSAT,
    "model": TEXT,
    "ended_by": nullable(one_of(EndedBy)),
    "received": nullable(one_of(Received)),
    "bought_at": TIME,
    "ended_at": nullable(TIME),
}
PURCHASE: Final = obj(
    {
        "object": const("lcp.purchase"),
        "job_id": HASH,
        "state": one_of(JOURNALED),
        "verdict": one_of(Verdict),
        "task_kind": one_of(TaskKind),
        "model": TEXT,
        "key_id": TEXT,
        "key_name": nullable(TEXT),
        "request_id": TEXT,
        "stream": FLAG,
        "charge_msat": nullable(MSAT),
        "charged_msat": nullable(MSAT),
        "refund": nullable(one_of(Refund)),
        "ended_by": nullable(one_of(EndedBy)),
        "received": nullable(one_of(Received)),
        "request_bytes": COUNT,
        "result_bytes": nullable(COUNT),
        "paying_at": TIME,
        "ended_at": nullable(TIME),
        "updated_at": TIME,
        "has_receipt": FLAG,
    },
    {
        "kind": one_of(ProviderSource),
        "peer_id": TEXT,
        "account_id": nullable(TEXT),
        "price_msat": MSAT,
        "fee_msat": nullable(MSAT),
        "fee_cap_msat": MSAT,
        "cost_msat": MSAT,
        "runner_up_msat": nullable(MSAT),
        "provider_blamed": nullable(FLAG),
    },
)
_OVERVIEW_SUMS = nullable(obj({**_SUMS, **_OPERATORS_SUMS, "margin_msat": nullable(MSAT)}))

SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": ERROR,
    "Account": ACCOUNT,
    "Deleted": obj({"id": TEXT, "deleted": FLAG}),
    "Balance": obj(_BALANCE),
    "Wallet": obj({"object": const("lcp.wallet"), **_BALANCE}),
    "Key": KEY,
    "NewKey": with_more(KEY, {"key": TEXT}, {"agent_path": TEXT}),
    "Topup": obj({**_TOPUP, "payment_request": TEXT, "payment_hash": HASH, "qr_svg": TEXT, "qr_png": TEXT}),
    "StatementLine": obj(
        {"id": TEXT, "at": TIME, "amount_msat": MSAT, "balance_msat": MSAT, "cause": one_of(Cause), "cause_id": TEXT}
    ),
    "Withdrawal": obj({**_WITHDRAWAL, "preimage": nullable(HASH)}),
    "WithdrawalOfCustomer": obj({**_WITHDRAWAL, "account_id": TEXT, "key_id": TEXT}),
    "DemoInvoice": obj({"object": const("lcp.demo_invoice"), "payment_request": TEXT}),
    "Frozen": obj({"id": TEXT, "withdrawals_frozen": FLAG}),
    "Refund": obj(_REFUND, {"account_id": TEXT, "peer_id": TEXT}),
    "Purchase": PURCHASE,
    "PurchaseWithReceipt": with_more(
        PURCHASE,
        {
            "times": {"type": "object", "additionalProperties": TIME, "propertyNames": one_of(JOURNALED)},
            "receipt": nullable(ref("Receipt")),
        },
    ),
    "Receipt": obj(
        {
            "object": const("lcp.receipt"),
            "version": INTEGER,
            "job_id": HASH,
            "peer_id": TEXT,
            "model": TEXT,
            "task_kind": one_of(TaskKind),
            "price_msat": MSAT,
            "fee_msat": nullable(MSAT),
            "terms": OBJECT,
            "terms_hash": HASH,
            "payment_request": TEXT,
            "payment_hash": nullable(HASH),
            "preimage": nullable(HASH),
            "result_sha256": nullable(HASH),
            "result_bytes": nullable(COUNT),
            "state": one_of(JOURNALED),
            "verdict": one_of(Verdict),
            "times": OBJECT,
        }
    ),
    "Usage": obj(
        {
            "object": const("lcp.usage"),
            "by": one_of(GroupBy),
            "period": one_of(Period),
            "since": nullable(TIME),
            "until": nullable(TIME),
            "as_of": TIME,
            "totals": obj(_SUMS, _OPERATORS_SUMS),
            "groups": array(obj({**_GROUP, **_SUMS}, _OPERATORS_SUMS)),
            "data": array(obj({"starts_at": TIME, **_GROUP, **_SUMS}, _OPERATORS_SUMS)),
        }
    ),
    "Budget": obj(
        {
            "object": const("lcp.budget"),
            "scope": {"type": "string", "enum": ["gateway", "key"]},
            "key_id": nullable(TEXT),
            "key_name": nullable(TEXT),
            "period": one_of(Period),
            "limit_msat": MSAT,
            "spent_msat": MSAT,
            "left_msat": MSAT,
            "starts_at": TIME,
            "resets_at": TIME,
            "is_warning": FLAG,
        }
    ),
    "Model": obj(
        {
            "id": TEXT,
            "object": const("model"),
            "created": UNIX,
            "owned_by": TEXT,
            "lcp": obj(
                {
                    "providers": array(TEXT),
                    "endpoints": array(TEXT),
                    "context_length": nullable(COUNT),
                    "capabilities": array(TEXT),
                    "params_b": nullable(NUMBER),
                    "ready": FLAG,
                    "badges": array({"type": "string", "enum": ["free", "lcp", "node", "openclaw"]}),
                },
                {"price_msat": nullable(MSAT), "charge_msat": nullable(MSAT), "dimensions": COUNT, "alias_of": TEXT},
            ),
        }
    ),
    "RankedModel": {"type": "object", "properties": {"model": TEXT, "score": NUMBER, "why": TEXT}},
    "Provider": obj(
        {
            "object": const("lcp.provider"),
            "id": TEXT,
            "name": TEXT,
            "kind": one_of(ProviderSource),
            "badges": array(TEXT),
            "up": FLAG,
            "problem": nullable(TEXT),
            "ready": FLAG,
            "models": array(TEXT),
            "list_price_msat": nullable(MSAT),
            "price_msat": nullable(MSAT),
            "first_byte_s": nullable(NUMBER),
            "tokens_per_s": nullable(NUMBER),
            "in_flight": COUNT,
            **dict.fromkeys(("delivered", "undelivered", "not_paid", "unknown"), nullable(COUNT)),
            **dict.fromkeys(("delivered_msat", "undelivered_msat", "lost_msat", "unknown_msat"), nullable(MSAT)),
            "exposure_msat": MSAT,
            "exposure_limit_msat": nullable(MSAT),
            "breaker": {"type": "string", "enum": ["closed", "open", "trial"]},
            "resting_s": NUMBER,
        }
    ),
    "Overview": obj(
        {
            "object": const("lcp.overview"),
            "auth": {"type": "string", "enum": ["none", "keys", "accounts"]},
            "as_of": TIME,
            "health": obj({"status": TEXT, "reasons": array(TEXT), "tasks": OBJECT, "jobs_in_flight": COUNT}),
            "lnd": nullable(OBJECT),
            "customers": nullable(obj({"accounts": COUNT, "balance_msat": MSAT, "held_msat": MSAT})),
            "solvency": nullable(
                obj(
                    {
                        "known": FLAG,
                        "owed_msat": MSAT,
                        "local_balance_msat": nullable(MSAT),
                        "is_solvent": nullable(FLAG),
                    }
                )
            ),
            "open": nullable(
                obj(
                    {
                        "unknown": COUNT,
                        "unknown_msat": MSAT,
                        "oldest_at": nullable(TIME),
                        "paying": COUNT,
                        "paying_msat": MSAT,
                    }
                )
            ),
            "refunds_withheld": nullable(obj({"count": COUNT, "amount_msat": MSAT})),
            "today": _OVERVIEW_SUMS,
            "month": _OVERVIEW_SUMS,
        }
    ),
    "Node": obj(_NODE),
    "NodeOfAccount": obj({**_NODE, "account_id": TEXT}),
    "Earning": obj(
        {
            "object": const("lcp.earning"),
            "job_id": HASH,
            "model": TEXT,
            "price_msat": MSAT,
            "earned_msat": MSAT,
            "commission_msat": MSAT,
            "delivered_at": TIME,
        }
    ),
    "Audit": obj(
        {
            "object": const("lcp.audit"),
            "ok": FLAG,
            "problems": array(TEXT),
            "accounts": COUNT,
            "balance_msat": MSAT,
            "held_msat": MSAT,
            "books": {"type": "object", "additionalProperties": MSAT},
            "entries": COUNT,
            "purchases": COUNT,
        },
        {"withdrawals": COUNT},
    ),
    "Action": obj({"id": TEXT, "at": TIME, "actor": TEXT, "action": TEXT, "target": TEXT, "detail": OBJECT}),
    "Session": obj(
        {
            "object": const("lcp.session"),
            "role": TEXT,
            "account": nullable(obj({"id": TEXT, "name": TEXT})),
            "key": nullable(OBJECT),
            "scopes": array(one_of(Scope)),
            "created_at": nullable(UNIX),
            "expires_at": nullable(UNIX),
            "idle_expires_at": nullable(UNIX),
        }
    ),
    "SessionEnded": obj({"object": const("lcp.session"), "deleted": {"type": ["boolean", "integer"]}}),
    "SessionsEnded": obj({"object": const("list"), "deleted": COUNT}),
    "Registration": obj(
        {"object": const("lcp.registration"), "account": ACCOUNT, "key": with_more(_PLAIN_KEY, {"key": TEXT})}
    ),
    "Invite": obj(
        {
            "object": const("lcp.invite"),
            "id": TEXT,
            "note": TEXT,
            "created_at": UNIX,
            "expires_at": UNIX,
            "used_at": nullable(UNIX),
            "revoked_at": nullable(UNIX),
            "account_id": nullable(TEXT),
            "status": one_of(InviteStatus),
        },
        {"invite": TEXT},
    ),
    "Console": {
        "type": "object",
        "properties": {"object": const("lcp.console"), "version": TEXT, "auth": TEXT, "signin": TEXT, "base_url": TEXT},
        "required": ["object", "version", "auth", "signin", "base_url"],
    },
    "Health": obj({"status": const("ok")}),
    "Readiness": {
        "type": "object",
        "properties": {"status": {"type": "string", "enum": ["ready", "unavailable"]}, "reasons": array(TEXT)},
        "required": ["status"],
    },
}
"""The schemas by name, as the description has them under ``components``."""
