"""What was measured of the providers: speed, delivery and price, as averages that fade."""

import enum
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from lcp_gateway.purchase.task import Task, TaskKind
from lcp_gateway.routing.averages import Faded
from lcp_gateway.routing.catalog import NODE_PREFIX
from lcp_gateway.routing.prices import ORDINARY, UNKNOWN, Price, Rates, Size, Sized

_MAX_PAIRS = 10_000
_PRIOR_DELIVERIES = 2.0
_VIEW_S = 1.0
_LEAST_S = 0.001
_LEAST_PER_S = 0.001
# The answer by whose time providers are compared has as many tokens as most lately had; at first so many.
_USUAL_TOKENS = 256.0
_USUAL_SHARE = 0.05


class Mode(enum.StrEnum):
    """The ways of answering that take different times, and are measured apart."""

    STREAM = "stream"
    WHOLE = "whole"
    EMBEDDING = "embedding"


def mode_of(task: Task) -> Mode:
    """Give the way in which a task is answered."""
    if task.kind is TaskKind.EMBEDDINGS:
        return Mode.EMBEDDING
    return Mode.STREAM if task.stream else Mode.WHOLE


@dataclass(slots=True)
class _Speed:
    first_byte: Faded
    rate: Faded


@dataclass(slots=True)
class _Provider:
    delivered: float = 0.0
    failed: float = 0.0
    at: float = 0.0
    in_flight: int = 0
    speeds: dict[Mode, _Speed] = field(default_factory=dict)


@dataclass(slots=True)
class _Pair:
    speeds: dict[Mode, _Speed]
    rates: Rates
    asked: Faded
    views: "dict[Mode, tuple[float, View]]" = field(default_factory=dict)


class View(NamedTuple):
    """What is believed of a model at a provider now; None where nothing like it was measured.

    ``expected_s`` is the time that an answer of usual length would take, ``tokens_per_s`` is estimated from bytes.
    ``delivery`` is the share of purchases that came, from 0 to 1. ``was_measured`` tells whether this very model at this
    very provider was, rather than others that it is taken to be like; ``is_untried`` that no model of the provider was,
    and ``has_delivered`` that the provider ever did.
    """

    expected_s: float | None
    first_byte_s: float | None
    tokens_per_s: float | None
    delivery: float
    was_measured: bool = False
    is_untried: bool = True
    has_delivered: bool = False

    def told(self) -> "Told":
        """Return what was measured and is not only believed."""
        return Told(
            self.first_byte_s if self.was_measured else None,
            self.tokens_per_s if self.was_measured else None,
        )


class Told(NamedTuple):
    """What was measured of a model at a provider, for display; None where nothing was."""

    first_byte_s: float | None
    tokens_per_s: float | None


class _Belief(NamedTuple):
    """What is believed of a provider, whatever the model; the times as logarithms."""

    first_byte: float | None
    rate: float | None
    delivery: float
    is_untried: bool
    has_delivered: bool


class Records:
    """Keeps the measurements. No I/O, one thread; ``clock`` is a monotonic clock in seconds.

    A pair that was never measured is believed to be like its provider, and a provider that never was like all others.
    What is known of one fades back to what is known of all, so that one that was slow once is tried again some time.
    """

    def __init__(self, *, half_life_s: float, clock: Callable[[], float]) -> None:
        self._half_life_s = half_life_s
        self._clock = clock
        self._pairs: OrderedDict[tuple[str, str], _Pair] = OrderedDict()
        self._providers: dict[str, _Provider] = {}
        self._everybody: dict[Mode, _Speed] = {}
        self._usual: dict[Mode, float] = {}
        # What peers ask; nodes have price lists, and a free one says nothing about the others.
        self._rates = Rates.empty(half_life_s)

    # -- what is told ---------------------------------------------------------------------------

    def quoted(self, provider_id: str, model: str, price_msat: int, size: Size = ORDINARY) -> None:
        """Record what was asked for a request of a size."""
        now, sized = self._clock(), Sized.of(size)
        pair = self._pair(provider_id, model)
        pair.rates.add(sized, price_msat, now)
        pair.asked.add(max(float(price_msat), 1.0), now)
        if not provider_id.startswith(NODE_PREFIX):
            self._rates.add(sized, price_msat, now)

    def started(self, provider_id: str) -> None:
        """Note that a provider has got something to do; ``finished`` has to follow."""
        self._provider(provider_id).in_flight += 1

    def finished(self, provider_id: str) -> None:
        """Note that it has one thing less to do."""
        provider = self._provider(provider_id)
        provider.in_flight = max(0, provider.in_flight - 1)

    def delivered(
        self,
        provider_id: str,
        model: str,
        mode: Mode,
        *,
        first_byte_s: float | None,
        tokens_per_s: float | None,
        tokens: float | None = None,
    ) -> None:
        """Note an answer that came whole: how long its first byte took, the pace of what followed, and its length."""
        now = self._clock()
        if tokens is not None:
            length = math.log(max(tokens, 1.0))
            usual = self._usual.setdefault(mode, length)
            self._usual[mode] = usual + _USUAL_SHARE * (length - usual)
        provider = self._provider(provider_id)
        self._fade(provider, now)
        provider.delivered += 1
        everybody = self._everybody.setdefault(mode, self._speed())
        of_provider = provider.speeds.setdefault(mode, self._speed())
        pair = self._pair(provider_id, model)
        of_pair = pair.speeds.setdefault(mode, self._speed())
        for speed in (everybody, of_provider, of_pair):
            if tokens_per_s is not None:
                speed.rate.add(max(tokens_per_s, _LEAST_PER_S), now)
            if first_byte_s is not None:
                speed.first_byte.add(max(first_byte_s, _LEAST_S), now)
        pair.views.clear()

    def failed(self, provider_id: str) -> None:
        """Note work that did not come to its end, by the provider's doing."""
        provider = self._provider(provider_id)
        self._fade(provider, self._clock())
        provider.failed += 1

    # -- what is asked --------------------------------------------------------------------------

    def in_flight(self, provider_id: str) -> int:
        """Give how much a provider has to do for this gateway."""
        provider = self._providers.get(provider_id)
        return provider.in_flight if provider else 0

    def view(self, provider_id: str, model: str, mode: Mode) -> View:
        """Give what is believed of a model at a provider; up to a second old."""
        return self.views(((provider_id, model),), mode)[0]

    def has_seen(self, provider_id: str, model: str) -> bool:
        """Return whether anything was measured of this model at this provider."""
        return (provider_id, model) in self._pairs

    def views(self, pairs: Iterable[tuple[str, str]], mode: Mode) -> list[View]:
        """Give what is believed of each pair of a provider's id and a model, in their order; up to a second old."""
        now = self._clock()
        # What is believed of a provider is reckoned once for all its models.
        beliefs: dict[str, _Belief] = {}
        found = []
        for key in pairs:
            pair = self._pairs.get(key)
            held = pair.views.get(mode) if pair is not None else None
            if held is not None and now - held[0] <= _VIEW_S:
                found.append(held[1])
                continue
            provider_id = key[0]
            belief = beliefs.get(provider_id)
            if belief is None:
                belief = beliefs[provider_id] = self._believe(provider_id, mode, now)
            view = self._look(pair, belief, mode, now)
            if pair is not None:
                pair.views[mode] = (now, view)
            found.append(view)
        return found

    def price(self, provider_id: str, model: str, size: Size = ORDINARY) -> Price:
        """Return what a request of a size is expected to cost."""
        return self.prices(((provider_id, model),), size)[0]

    def prices(self, pairs: Iterable[tuple[str, str]], size: Size) -> list[Price]:
        """Return what each pair of a provider's id and a model is expected to ask for a request of a size."""
        sized = Sized.of(size)
        guess = self._rates.expected(sized)
        unpriced = UNKNOWN if guess is None else Price(guess)
        found = []
        for key in pairs:
            pair = self._pairs.get(key)
            if pair is None or not pair.rates.by_class:
                found.append(unpriced)
            else:
                asked = pair.asked.total / pair.asked.weight
                found.append(Price(pair.rates.expected(sized), True, asked))
        return found

    def last_price_msat(self, model: str, provider_ids: Iterable[str]) -> int | None:
        """Return the lowest price that was lately asked for a model by any of some providers, whatever the size was."""
        least: float | None = None
        for provider_id in provider_ids:
            pair = self._pairs.get((provider_id, model))
            if pair is not None and pair.asked.weight:
                price = pair.asked.total / pair.asked.weight
                if least is None or price < least:
                    least = price
        return None if least is None else round(math.exp(least))

    def _believe(self, provider_id: str, mode: Mode, now: float) -> _Belief:
        first_byte: float | None = None
        rate: float | None = None
        delivery = 1.0
        provider = self._providers.get(provider_id)
        of_provider = provider.speeds.get(mode) if provider else None
        for speed in (self._everybody.get(mode), of_provider):
            if speed is not None:
                first_byte = speed.first_byte.blend(first_byte, now)
                rate = speed.rate.blend(rate, now)
        if provider is not None:
            faded = self._fading(provider, now)
            came = provider.delivered * faded + _PRIOR_DELIVERIES
            delivery = came / (came + provider.failed * faded)
        has_delivered = provider is not None and provider.delivered > 0
        return _Belief(first_byte, rate, delivery, of_provider is None, has_delivered)

    def _look(self, pair: _Pair | None, belief: _Belief, mode: Mode, now: float) -> View:
        first_byte, rate = belief.first_byte, belief.rate
        was_measured = False
        if pair is not None:
            speed = pair.speeds.get(mode)
            if speed is not None:
                was_measured = True
                first_byte = speed.first_byte.blend(first_byte, now)
                rate = speed.rate.blend(rate, now)
        first_byte_s = None if first_byte is None else math.exp(first_byte)
        tokens_per_s = None if rate is None else math.exp(rate)
        expected_s = first_byte_s
        if tokens_per_s is not None:
            usual = self._usual.get(mode)
            tokens = _USUAL_TOKENS if usual is None else math.exp(usual)
            expected_s = (first_byte_s or 0.0) + tokens / tokens_per_s
        return View(
            expected_s,
            first_byte_s,
            tokens_per_s,
            belief.delivery,
            was_measured,
            belief.is_untried,
            belief.has_delivered,
        )

    def _fade(self, provider: _Provider, now: float) -> None:
        faded = self._fading(provider, now)
        provider.delivered *= faded
        provider.failed *= faded
        provider.at = now

    def _fading(self, provider: _Provider, now: float) -> float:
        return math.exp2(-max(0.0, now - provider.at) / self._half_life_s)

    def _provider(self, provider_id: str) -> _Provider:
        return self._providers.setdefault(provider_id, _Provider())

    def _pair(self, provider_id: str, model: str) -> _Pair:
        key = (provider_id, model)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = _Pair({}, Rates.empty(self._half_life_s), self._faded())
            while len(self._pairs) > _MAX_PAIRS:
                self._pairs.popitem(last=False)
        return pair

    def _speed(self) -> _Speed:
        return _Speed(self._faded(), self._faded())

    def _faded(self) -> Faded:
        return Faded(self._half_life_s)
