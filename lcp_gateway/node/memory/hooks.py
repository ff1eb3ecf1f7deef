"""What a script may change in a simulated network: messages, payments, fees."""

from collections.abc import Sequence

from lcp_gateway.lightning.bolt11 import Invoice
from lcp_gateway.values import value


@value
class PassingMessage:
    """A custom message between two connected nodes, by their ids."""

    sender: str
    receiver: str
    message_type: int
    payload: bytes


class Hooks:
    """The faults of a network; this class has none. A script overrides the methods that it needs."""

    def deliveries(self, message: PassingMessage) -> Sequence[float]:
        """Return the seconds after which each copy of a message arrives: none drops it, two deliver it twice.

        Copies that arrive after 0 s keep the order in which they were sent.
        """
        return (0.0,)

    async def before_payment(self, payer: str, invoice: Invoice) -> str | None:
        """Return when a payment may reach its payee; a text fails it with that reason ("FAILURE_REASON_NO_ROUTE" for instance)."""
        return None

    async def after_payment(self, payer: str, invoice: Invoice) -> None:
        """Return when the payer may learn that its payment has settled."""

    def payment_failed(self, payer: str, invoice: Invoice, reason: str) -> None:
        """Take it that a payment has failed; it may have left the payer before, if ``before_payment`` let it."""

    def fee_msat(self, payer: str, invoice: Invoice) -> int:
        """Return the routing fee of a payment."""
        return 0
