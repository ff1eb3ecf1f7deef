"""The one error map: every failure of an order becomes an HTTP error."""

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from aiohttp import web

from lcp_gateway.accounts.invites import InvalidInvite
from lcp_gateway.accounts.limits.concurrency import TooManyConcurrentJobs
from lcp_gateway.accounts.limits.rates import RateLimited
from lcp_gateway.accounts.models import (
    AccountError,
    AccountNotFound,
    AdjustmentExceedsBalance,
    AdjustmentIdReused,
    BalanceLeft,
    KeyIsRevoked,
    PurchaseNotFound,
    RefundNotWithheld,
    TooManyOpenTopups,
)
from lcp_gateway.accounts.nodes import NodeNotFound
from lcp_gateway.accounts.repositories import InvoiceServiceUnavailable
from lcp_gateway.accounts.shared.outage import LimitsUnavailable
from lcp_gateway.accounts.wallet import AmountOutOfRange, TopupsDisabled
from lcp_gateway.accounts.withdrawals import (
    AmountRefused,
    DayLimitReached,
    InsufficientFunds,
    InvalidInvoice,
    InvoiceUsed,
    KeyMayNotWithdraw,
    NodeCannotCover,
    PayoutsUnavailable,
    TooManyOpenWithdrawals,
    WithdrawalNotFound,
    WithdrawalsDisabled,
    WithdrawalsFrozen,
    WrongWithdrawalState,
)
from lcp_gateway.adapters.completions import NotAdaptable
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.purchase.errors import (
    ChargeLimitExceeded,
    PaymentFailed,
    PeerNotTrusted,
    PriceLimitExceeded,
    PurchaseError,
    QuoteExpired,
    Refused,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.held_quotes import QuoteForAnotherBody, UnknownQuote, quote_id
from lcp_gateway.purchase.idempotency import KeyReused, ResultLost
from lcp_gateway.purchase.journal import BudgetExceeded, InsufficientBalance, JournalUnavailable, KeyRevoked
from lcp_gateway.purchase.limits import LoopDetected
from lcp_gateway.purchase.payment_evidence import MIN_HTLC_MSAT, EvidenceRow, evidence_of_failure
from lcp_gateway.purchase.purchase import Interrupted, InterruptReason
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.result_buffer import ResultGone
from lcp_gateway.purchase.shared_purchases import LostElsewhere
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.responses.request_options import InvalidOption
from lcp_gateway.responses.stored_items import StoreUnavailable
from lcp_gateway.routing.explicit import ContextTooLong, ModelNotFound, NoProvider, RoutingError
from lcp_gateway.routing.route_query import BadQuery
from lcp_gateway.upstream_status import UpstreamStatus

_Refusal = tuple[int, str, bool, dict[str, object]]
"""Status, reason for the metric, whether another try may help, and details."""


def map_refusal(error: Refused) -> ApiError:
    """Return the error for a refusal; one that may pass later names the quote that can still be taken."""
    status, reason, retry, details = _refusal(error)
    if error.may_pass_later and error.quote is not None:
        details["quote_id"] = quote_id(error.quote)
    answer = ApiError(
        status,
        error.message,
        error.code,
        retry=retry,
        verdict=error.verdict,
        quote=error.quote,
        details=details,
        reason=reason,
    )
    if isinstance(error, RateLimited):
        answer.headers = error.headers
        if error.retry_after_s is not None:
            answer.retry_after_s = math.ceil(error.retry_after_s)
    elif isinstance(error, KeyRevoked):
        answer.headers = {"WWW-Authenticate": "Bearer"}
    elif isinstance(error, LimitsUnavailable):
        answer.retry_after_s = max(1, math.ceil(error.retry_after_s))
    elif isinstance(error, LoopDetected):
        answer.retry_after_s = math.ceil(error.wait_s)
    return answer


def _refusal(error: Refused) -> _Refusal:
    for kind in type(error).__mro__:
        if found := _REFUSALS.get(kind):
            return found(error)
    # A quote that does not match its own terms. Another try may find another peer.
    return 502, "quote_mismatch", False, {}


_REFUSALS: Mapping[type, Callable[[Any], _Refusal]] = MappingProxyType(
    {
        QuoteExpired: lambda error: (410, "quote_expired", not error.was_named, {}),
        PriceLimitExceeded: lambda error: (402, "price_limit", False, {"limit_msat": error.limit_msat}),
        ChargeLimitExceeded: lambda error: (
            402,
            "price_limit",
            False,
            {"limit_msat": error.limit_msat, "charge_msat": error.price_msat},
        ),
        InsufficientBalance: lambda error: (
            402,
            "balance",
            False,
            {"required_msat": error.required_msat, "balance_msat": error.available_msat},
        ),
        BudgetExceeded: lambda error: (
            402,
            "budget",
            False,
            {"limit_msat": error.budget.limit_msat, "spent_msat": error.spent_msat},
        ),
        KeyRevoked: lambda _error: (401, "auth", False, {}),
        RateLimited: lambda error: (429, "rate_limit", error.may_pass_later, {}),
        TooManyConcurrentJobs: lambda _error: (429, "concurrency", True, {}),
        LimitsUnavailable: lambda _error: (503, "rate_limit", True, {}),
        JournalUnavailable: lambda _error: (503, "journal", True, {}),
        LoopDetected: lambda _error: (429, "loop", True, {}),
        StoreUnavailable: lambda _error: (503, "store", True, {}),
        PeerNotTrusted: lambda _error: (503, "peer_not_trusted", True, {}),
    }
)


# As openai-serve maps them, so that clients written for it see no change.
STATUS_OF_GRPC: Mapping[UpstreamStatus, int] = {
    UpstreamStatus.CANCELLED: 408,
    UpstreamStatus.UNKNOWN: 500,
    UpstreamStatus.INTERNAL: 500,
    UpstreamStatus.DATA_LOSS: 500,
    UpstreamStatus.INVALID_ARGUMENT: 400,
    UpstreamStatus.NOT_FOUND: 400,
    UpstreamStatus.FAILED_PRECONDITION: 400,
    UpstreamStatus.OUT_OF_RANGE: 400,
    UpstreamStatus.ALREADY_EXISTS: 409,
    UpstreamStatus.ABORTED: 409,
    UpstreamStatus.PERMISSION_DENIED: 403,
    UpstreamStatus.UNAUTHENTICATED: 401,
    UpstreamStatus.RESOURCE_EXHAUSTED: 429,
    UpstreamStatus.UNIMPLEMENTED: 501,
    UpstreamStatus.UNAVAILABLE: 502,
    UpstreamStatus.DEADLINE_EXCEEDED: 504,
}

_CODES_OF_GRPC = {
    UpstreamStatus.RESOURCE_EXHAUSTED: "rate_limit_exceeded",
    UpstreamStatus.DEADLINE_EXCEEDED: "upstream_timeout",
    UpstreamStatus.UNAVAILABLE: "upstream_unavailable",
}


def map_routing_error(error: RoutingError) -> ApiError:
    """Return the error for a task without a provider."""
    if isinstance(error, ModelNotFound):
        return ApiError(404, error.message, code="model_not_available", param="model", reason="model_not_found")
    if isinstance(error, ContextTooLong):
        return ApiError(
            400,
            f"{error.message}; nothing was paid",
            code="context_length_exceeded",
            param=error.param,
            reason="too_large",
        )
    assert isinstance(error, NoProvider)  # noqa: S101 - the tree has these three leaves
    return ApiError(503, error.message, code="no_provider", retry=True, reason="no_peer")


def map_error(error: Exception) -> ApiError | None:
    """Return the error for a failure of an order, or None for an unexpected one."""
    match error:
        case RoutingError():
            return map_routing_error(error)
        case NotAdaptable():
            return bad_request(error.message, error.param, error.code)
        case PurchaseError():
            return map_purchase_error(error)
        case ResultGone():
            return ApiError(
                409,
                "this was bought before and its answer is no longer held",
                code="answer_gone",
                verdict=Verdict.SETTLED,
            )
        case _:
            return None


def map_purchase_error(error: PurchaseError) -> ApiError:
    """Return the error for a purchase that failed."""
    match error:
        case UpstreamError():
            return _of_quote_failure(error)
        case PaymentFailed():
            return _of_payment_failure(error)
        case Refused():
            return map_refusal(error)
        case Undelivered():
            return _of(error, 502, "undelivered")
        case ResultLost():
            return _of(error, 409, "answer_gone")
        case KeyReused():
            return _of(error, 422, "idempotency_key_reused", reason="idempotency")
        case QuoteForAnotherBody():
            return _of(error, 409, "quote_for_another_request", reason="quote_unknown")
        case UnknownQuote():
            return _of(error, 404, "quote_not_found", reason="quote_unknown")
        case Interrupted():
            status = 504 if error.code == InterruptReason.TIMED_OUT.value else 503
            # A cancelled request must not be retried: an SDK that retries by itself would buy it after all.
            is_worth_it = error.verdict is Verdict.NONE and error.code != InterruptReason.CANCELLED.value
            return _of(error, status, error.code, retry=is_worth_it)
        case _:
            return _of(error, 500, "internal_error")


def _of(error: PurchaseError, status: int, code: str, *, retry: bool = False, reason: str = "") -> ApiError:
    request_id = error.request_id if isinstance(error, LostElsewhere) else ""
    return ApiError(
        status,
        error.message,
        code,
        retry=retry,
        verdict=error.verdict,
        quote=error.quote,
        details={"request_id": request_id} if request_id else {},
        reason=reason,
    )


def _of_quote_failure(error: UpstreamError) -> ApiError:
    if error.is_away:
        return _no_provider_reached(error)
    return ApiError(
        STATUS_OF_GRPC.get(error.status, 500),
        error.message,
        code=error.code or _CODES_OF_GRPC.get(error.status, "quote_failed"),
        retry=error.retryable,
        quote=error.quote,
    )


def _no_provider_reached(error: UpstreamError | PaymentFailed) -> ApiError:
    """Return the error where every candidate failed and the last could not be reached: the same as no provider at all."""
    return ApiError(
        503,
        f"no provider can be reached: {error.message}; nothing was paid",
        code="no_provider",
        retry=True,
        verdict=Verdict.NONE,
        quote=error.quote,
        reason="no_peer",
    )


def _of_payment_failure(error: PaymentFailed) -> ApiError:
    if error.quote is not None and error.quote.source is ProviderSource.NODE:
        return _of_node_failure(error)
    match error.verdict:
        case Verdict.NONE:
            code = "payment_failed"
        case Verdict.UNKNOWN:
            code = "payment_unknown"
        case Verdict.SETTLED:
            code = "undelivered"
    row = evidence_of_failure(error.status, error.message)
    if row is not None and row.verdict is not error.verdict:
        # The node that pays reported the payment, which its text alone would not tell.
        row = None
    worth_a_retry = row is None or (row.worth_a_retry and not _is_below_min_htlc(error, row))
    return ApiError(
        STATUS_OF_GRPC.get(error.status, 500),
        _sentence(error, row),
        code=code,
        # A request that may have been paid is never tried again.
        retry=error.verdict is Verdict.NONE and worth_a_retry,
        verdict=error.verdict,
        quote=error.quote,
        details={} if row is None else {"payment_failure": row.name},
    )


def _sentence(error: PaymentFailed, row: EvidenceRow | None) -> str:
    """Return the message about the payment; the daemon's own text may hold addresses, so it stays in its log."""
    if error.verdict is Verdict.UNKNOWN:
        return (
            f"the call that pays ended ({error.status}), and whether it paid is not known; "
            "the price counts as spent until lnd shows the payment's state"
        )
    if row is None:
        return error.message
    if row.verdict is Verdict.SETTLED:
        # An error of this call that comes from the peer is the peer's own text, without addresses of the gateway.
        return f"{row.says}: {error.message}" if row.name == "peer_error" else row.says
    if _is_below_min_htlc(error, row):
        return (
            f"{row.says}: the price is {_price_msat(error)} msat, and most channels carry nothing below "
            f"{MIN_HTLC_MSAT:,} msat; ask for more output (max_tokens, max_output_tokens) so that the price is "
            f"{MIN_HTLC_MSAT:,} msat or more; nothing was paid"
        )
    return f"{row.says} ({_price_msat(error)} msat); nothing was paid"


def _is_below_min_htlc(error: PaymentFailed, row: EvidenceRow) -> bool:
    """Return whether the payment was too small for a channel of default policy, as the next one would be."""
    return row.name == "no_route" and _price_msat(error) < MIN_HTLC_MSAT


def _price_msat(error: PaymentFailed) -> int:
    return error.quote.price_msat if error.quote is not None else 0


def _of_node_failure(error: PaymentFailed) -> ApiError:
    """Return the error of a node that failed, with the node's own code where it sent one."""
    if error.is_away and error.verdict is Verdict.NONE:
        return _no_provider_reached(error)
    answer = ApiError(
        STATUS_OF_GRPC.get(error.status, 500),
        error.message,
        code=error.code or _CODES_OF_GRPC.get(error.status, "node_failed"),
        retry=error.verdict is Verdict.NONE and error.status.is_upstreams_fault,
        verdict=error.verdict,
        quote=error.quote,
    )
    if answer.retry and error.retry_after_s is not None:
        answer.retry_after_s = math.ceil(error.retry_after_s)
    return answer


# Status, code, param, and whether another try may help.
_ACCOUNT_ERRORS: Mapping[type[Exception], tuple[int, str, str | None, bool]] = MappingProxyType(
    {
        TopupsDisabled: (503, "topups_unavailable", None, False),
        InvoiceServiceUnavailable: (503, "topups_unavailable", None, True),
        TooManyOpenTopups: (429, "too_many_open_topups", None, False),
        AmountOutOfRange: (400, "invalid_value", "amount_msat", False),
        InvalidInvite: (403, "invalid_invite", "invite", False),
        BalanceLeft: (409, "balance_not_empty", "forfeit_msat", False),
        AccountNotFound: (404, "account_not_found", None, False),
        AdjustmentExceedsBalance: (409, "insufficient_balance", None, False),
        AdjustmentIdReused: (409, "id_reused", None, False),
        PurchaseNotFound: (404, "purchase_not_found", "id", False),
        KeyIsRevoked: (409, "key_revoked", "id", False),
        RefundNotWithheld: (409, "refund_not_withheld", "id", False),
        NodeNotFound: (404, "node_not_found", "id", False),
        WithdrawalsDisabled: (403, "withdrawals_disabled", None, False),
        InvalidInvoice: (400, "invalid_invoice", "payment_request", False),
        InvoiceUsed: (409, "invoice_used", "payment_request", False),
        AmountRefused: (400, "invalid_value", "amount_msat", False),
        DayLimitReached: (429, "withdrawal_limit_reached", None, False),
        TooManyOpenWithdrawals: (429, "too_many_open_withdrawals", None, False),
        WithdrawalsFrozen: (403, "withdrawals_frozen", None, False),
        KeyMayNotWithdraw: (403, "missing_scope", None, False),
        InsufficientFunds: (402, "insufficient_balance", "amount_msat", False),
        NodeCannotCover: (503, "withdrawals_unavailable", None, True),
        PayoutsUnavailable: (503, "withdrawals_unavailable", None, True),
        WithdrawalNotFound: (404, "withdrawal_not_found", "id", False),
        WrongWithdrawalState: (409, "withdrawal_state", "id", False),
    }
)


def map_handler_error(error: Exception) -> ApiError | None:
    """Return the error for a request that cannot be read or a change of accounts that cannot be made; None for others."""
    match error:
        case BadQuery() | InvalidOption():
            return bad_request(error.message, error.param, error.code)
        case AccountError() | TopupsDisabled() | InvoiceServiceUnavailable():
            found = _ACCOUNT_ERRORS.get(type(error), (400, "invalid_value", None, False))
            status, code, param, retry = found
            reason = "bad_request" if status == HTTPStatus.BAD_REQUEST else ""
            return ApiError(status, str(error), code, param, retry, reason=reason)
        case _:
            return None


def map_http_exception(error: web.HTTPException) -> ApiError:
    """Return the error for aiohttp's own refusal: an unknown route, a wrong method, a body that is too large."""
    match error:
        case web.HTTPNotFound():
            return ApiError(404, "there is no such route", code="not_found", reason="not_found")
        case web.HTTPMethodNotAllowed():
            allow = ", ".join(sorted(error.allowed_methods))
            return ApiError(
                405,
                f"this route does not take {error.method}; it takes {allow}",
                code="method_not_allowed",
                headers={"Allow": allow},
            )
        case web.HTTPExpectationFailed():
            return ApiError(417, "only 100-continue can be expected", code="expectation_failed")
        case _:
            return ApiError(error.status, error.reason)
