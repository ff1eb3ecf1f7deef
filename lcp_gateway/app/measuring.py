"""What the purchases tell the router: who is at work, who delivered, how fast, at what price."""

from collections.abc import Sequence

from lcp_gateway.constants import BYTES_PER_TOKEN
from lcp_gateway.purchase.errors import PaymentFailed
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.purchase.service import Observer
from lcp_gateway.purchase.states import State
from lcp_gateway.routing.measurements import Measurements, Mode, answer_mode
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.telemetry.metrics import Metrics

# A stream's event carries about a token in about so many bytes of JSON; a whole answer's token has about four.
_STREAM_BYTES_PER_TOKEN = 150.0
_LEAST_S = 0.001
_FAILED = frozenset({State.UNDELIVERED, State.UNKNOWN, State.NOT_PAID})


class Measuring(Observer):
    """Keeps the records of speed and delivery, and the nodes' standing."""

    def __init__(self, records: Measurements, standings: PeerTrust, metrics: Metrics) -> None:
        self._records = records
        self._standings = standings
        self._metrics = metrics

    def quote_taken(self, answer: ResultBuffer) -> None:
        """Note that a provider gets something to do."""
        if answer.purchase is not None:
            self._records.started(answer.purchase.quote.peer_id)

    def quote_released(self, purchase: Purchase) -> None:
        """Note that a provider has nothing to do after all."""
        self._records.finished(purchase.quote.peer_id)

    def node_failed(self, purchase: Purchase, error: PaymentFailed, *, fails_over: bool) -> None:
        """Note that a node did not do it."""
        provider_id = purchase.quote.peer_id
        if fails_over:
            self._records.finished(provider_id)
            self._metrics.failover("failed", purchase.quote.source.value)
        if error.status.is_upstreams_fault:
            self._standings.failed_to_quote(provider_id)
            if fails_over:
                self._records.failed(provider_id)

    def ended(self, answer: ResultBuffer) -> None:
        """Note how it went."""
        purchase = answer.purchase
        if purchase is None:
            return
        quote, task = purchase.quote, purchase.order.task
        self._records.finished(quote.peer_id)
        if purchase.state is State.DELIVERED:
            mode = answer_mode(task)
            first_byte_s, tokens_per_s, tokens = _speed(answer, mode)
            self._records.delivered(
                quote.peer_id,
                task.model,
                mode,
                first_byte_s=first_byte_s,
                tokens_per_s=tokens_per_s,
                tokens=tokens,
            )
            view = self._records.view(quote.peer_id, task.model, mode)
            self._metrics.provider_speed(
                quote.peer_id, quote.source.value, view.first_byte_s, view.tokens_per_s
            )
        elif (
            purchase.state in _FAILED
            and purchase.blames_provider
            and not _is_requests_fault(answer, purchase)
        ):
            self._records.failed(quote.peer_id)


class Observers(Observer):
    """Tells several."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def quote_taken(self, answer: ResultBuffer) -> None:
        """A quote was taken for it."""
        for observer in self._observers:
            observer.quote_taken(answer)

    def quote_released(self, purchase: Purchase) -> None:
        """Its quote is not taken after all."""
        for observer in self._observers:
            observer.quote_released(purchase)

    def node_failed(self, purchase: Purchase, error: PaymentFailed, *, fails_over: bool) -> None:
        """A node did not do it."""
        for observer in self._observers:
            observer.node_failed(purchase, error, fails_over=fails_over)

    def ended(self, answer: ResultBuffer) -> None:
        """Nothing more will come of it."""
        for observer in self._observers:
            observer.ended(answer)


def _speed(answer: ResultBuffer, mode: Mode) -> tuple[float | None, float | None, float | None]:
    """Give the time of the first byte, the pace of what followed in tokens a second, and the tokens."""
    took_s = max((answer.execute_s or 0.0) - answer.waited_s, _LEAST_S)
    match mode:
        case Mode.EMBEDDING:
            return took_s, None, None
        case Mode.WHOLE:
            tokens = answer.size / BYTES_PER_TOKEN
            return None, tokens / took_s, tokens
        case Mode.STREAM:
            tokens = answer.size / _STREAM_BYTES_PER_TOKEN
            rest_s = max(took_s - (answer.first_byte_s or 0.0), _LEAST_S)
            return answer.first_byte_s, tokens / rest_s, tokens


def _is_requests_fault(answer: ResultBuffer, purchase: Purchase) -> bool:
    error = answer.error
    return (
        purchase.quote.source is ProviderSource.NODE
        and isinstance(error, PaymentFailed)
        and not error.status.is_upstreams_fault
    )
