"""Evidence of a payment: one table of what a failed call that may pay proves, with the message for the client.

A failed ``AcceptAndExecute*`` is judged by the name of its gRPC status and its text. A row is in the table for one of two
reasons, and names which:

- *observed*: seen with a real daemon, lnd and payment network, and compared with what lnd said was paid;
- *by the daemon's code*: the text is written in one place of lcpd-grpcd only, which is reached before the payment, or with
  the payment's final result in hand.

Everything else is unknown: a deadline, a broken connection and a text that is in no row say nothing, since lnd goes on
paying after its caller is gone.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.values import value

MIN_HTLC_MSAT: Final = 1_000
"""The smallest payment that a channel with lnd's default policy carries."""

_ANY: Final[frozenset[str]] = frozenset()
_FINAL_FAILURE: Final = frozenset({UpstreamStatus.FAILED_PRECONDITION})
_REFUSED: Final = frozenset({UpstreamStatus.FAILED_PRECONDITION, UpstreamStatus.NOT_FOUND})
_LND_AWAY: Final = frozenset({UpstreamStatus.UNAVAILABLE})

# A text that speaks of paying does not prove that paying had not begun, whatever else it says of quote or invoice.
_SPEAKS_OF_PAYING = r"(?!.*\bpa(?:y|id|ying|yment|yments)\b)"


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """The evidence in one text of the daemon, where it comes with one of ``statuses`` (empty: with any).

    ``says`` is the sentence for the client, without the daemon's own text. ``worth_a_retry``: a new quote may
    end better. ``source`` is how it is known.
    """

    name: str
    pattern: re.Pattern[str]
    statuses: frozenset[str]
    verdict: Verdict
    says: str
    worth_a_retry: bool
    source: str

    def holds(self, status: str, message: str) -> bool:
        """Return whether this row applies to a failure."""
        return (not self.statuses or status in self.statuses) and bool(self.pattern.search(message))


def _final(name: str, says: str, source: str, *, worth_a_retry: bool) -> EvidenceRow:
    """Make the row of one of lnd's reasons for a payment that failed for good.

    The daemon writes this text with lnd's final result of the payment in hand. lnd calls a payment FAILED only where no
    HTLC of it is pending and none was settled, whatever the reason is.
    """
    return EvidenceRow(
        name,
        re.compile(rf"\Apayment failed: FAILURE_REASON_{name.upper()}(?![A-Z_])"),
        _FINAL_FAILURE,
        Verdict.NONE,
        says,
        worth_a_retry,
        source,
    )


def _refused(name: str, pattern: str, says: str, *, worth_a_retry: bool) -> EvidenceRow:
    """Make the row of a quote that the daemon refused before it asked lnd to pay."""
    return EvidenceRow(
        name,
        re.compile(rf"\A{_SPEAKS_OF_PAYING}.*(?:{pattern})", re.IGNORECASE | re.DOTALL),
        _REFUSED,
        Verdict.NONE,
        says,
        worth_a_retry,
        "observed",
    )


@value
class PaymentReport:
    """The payment of a purchase as the program that pays it reports it; lcpd-grpcd reports none, and is judged by its texts.

    ``fee_msat`` and ``preimage`` are those of a payment that settled. They are recorded where the preimage is that of the
    invoice which was read here.
    """

    verdict: Verdict
    fee_msat: Msat | None = None
    preimage: bytes | None = field(default=None, repr=False)


EVIDENCE: Final = (
    # Rows that prove a payment come first: they hold in spite of any other text.
    EvidenceRow(
        "peer_error",
        re.compile(r"\blcp_error code=\d+"),
        _ANY,
        Verdict.SETTLED,
        "the peer was paid and answered with an error",
        worth_a_retry=False,
        source="observed: out of this call a peer speaks only after it was paid",
    ),
    EvidenceRow(
        "paid_before",
        re.compile(r"invoice is already paid"),
        _ANY,
        Verdict.SETTLED,
        "this job was paid before; the daemon does not pay for it twice",
        worth_a_retry=False,
        source="observed",
    ),
    _final("no_route", "lnd found no route to the peer", "observed", worth_a_retry=True),
    _final(
        "insufficient_balance",
        "the channels of the node that pays hold too little for this price",
        "observed",
        # A new quote asks as much, and channels are not filled within seconds.
        worth_a_retry=False,
    ),
    _final(
        "timeout",
        "lnd found no way to pay the peer in time",
        "observed: a hop held the payment for longer than the daemon gives lnd, and then failed it",
        worth_a_retry=True,
    ),
    _final("error", "lnd gave the payment up", "by the daemon's code", worth_a_retry=True),
    _final(
        "incorrect_payment_details",
        "the peer turned its own invoice down",
        "observed: the peer had cancelled it",
        worth_a_retry=True,
    ),
    EvidenceRow(
        "lnd_away",
        re.compile(r"\ADecodePayReq: "),
        _LND_AWAY,
        Verdict.NONE,
        "the daemon got no answer from its lnd when it checked the invoice",
        worth_a_retry=True,
        source="observed with an lnd that was stopped (connection refused) and one that was starting; by the daemon's code "
        "for the other texts: it has lnd read the invoice before it has lnd pay it",
    ),
    _refused("quote_expired", r"\bquote\b.*\bexpired\b", "the quote has expired", worth_a_retry=True),
    _refused(
        "unknown_job",
        r"\bjob\b.*\bnot found\b|\bunknown job\b",
        "the daemon does not know this job; it may have been restarted since the quote",
        worth_a_retry=True,
    ),
    _refused(
        "invoice_refused",
        r"\bdecode invoice\b|\binvoice\b.*\b(?:mismatch|does not match|invalid|expire[sd])\b"
        # by the daemon's code, where it allows clocks to differ by less than the gateway does
        r"|\binvoice expiry (?:exceeds quote_expiry|overflows)\b",
        "the daemon refused the peer's invoice",
        # An invoice that does not fit its quote will be no better the next time.
        worth_a_retry=False,
    ),
)
"""Read from above; the first row that holds is the evidence."""


def evidence_of_failure(status: str, message: str) -> EvidenceRow | None:
    """Return the evidence in a failed ``AcceptAndExecute*``, by its gRPC status name and text; None where there is none."""
    return next((row for row in EVIDENCE if row.holds(status, message)), None)


def verdict_of_failure(status: str, message: str) -> Verdict:
    """Judge a failed ``AcceptAndExecute*``: ``NONE`` and ``SETTLED`` on evidence, ``UNKNOWN_PRICE`` without."""
    row = evidence_of_failure(status, message)
    return Verdict.UNKNOWN if row is None else row.verdict
