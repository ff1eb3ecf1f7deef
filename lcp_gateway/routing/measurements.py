"""Measurements of the providers: speed, delivery and price, as averages that fade."""

import enum
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.routing.averages import (
    ORDINARY_SIZE,
    UNKNOWN_PRICE,
    FadingAverage,
    Price,
    PriceRates,
    RequestSize,
    SizeClass,
)

_MAX_PAIRS = 10_000
_PRIOR_DELIVERIES = 2.0
_VIEW_S = 1.0
_LEAST_S = 0.001
_LEAST_PER_S = 0.001
# The result by whose time providers are compared has as many tokens as most lately had; at first so many.
_USUAL_TOKENS = 256.0
_USUAL_SHARE = 0.05


class Mode(enum.StrEnum):
    """The ways of answering that take different times, and are measured apart."""

    STREAM = "stream"
    WHOLE = "whole"
    EMBEDDING = "embedding"


# Named here: see purchase/execution.py.
_EMBEDDINGS: Final = TaskKind.EMBEDDINGS
_WHOLE: Final = Mode.WHOLE


def answer_mode(task: Task) -> Mode:
    """Return the mode in which a task is answered."""
    if task.kind is _EMBEDDINGS:
        return Mode.EMBEDDING
    return Mode.STREAM if task.stream else _WHOLE


@dataclass(slots=True)
class _Speed:
    first_byte: FadingAverage
    rate: FadingAverage


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
    rates: PriceRates
    asked: FadingAverage
    views: "dict[Mode, tuple[float, View]]" = field(default_factory=dict)


class View(NamedTuple):
    """The estimate of a model at a provider now; None where nothing like it was measured.

    ``expected_s`` is the time that a result of usual length would take, ``tokens_per_s`` is estimated from bytes.
    ``delivery`` is the share of purchases that came, from 0 to 1. ``was_measured``: this very model at this
    very provider was, rather than others that it is taken to be like. ``is_untried``: no model of the provider was.
    ``has_delivered``: the provider ever did.
    """

    expected_s: float | None
    first_byte_s: float | None
    tokens_per_s: float | None
    delivery: float
    was_measured: bool = False
    is_untried: bool = True
    has_delivered: bool = False

    def measured(self) -> "Measured":
        """Return the measured values, without those that are only estimated."""
        return Measured(
            self.first_byte_s if self.was_measured else None, self.tokens_per_s if self.was_measured else None
        )


class Measured(NamedTuple):
    """The measurements of a model at a provider, for display; None where there are none."""

    first_byte_s: float | None
    tokens_per_s: float | None


class _Estimate(NamedTuple):
    """The estimate of a provider over all its models; the times as logarithms."""

    first_byte: float | None
    rate: float | None
    delivery: float
    is_untried: bool
    has_delivered: bool


MeasuredEvent = Sequence[Any]
"""A measurement: the name of the method, then what it was called with, as plain values."""


class Measurements:
    """Keeps the measurements. No I/O, one thread; ``clock`` is a monotonic clock in seconds.

    A pair that was never measured is taken to be like its provider, and a provider that never was like all others.
    Its measurements fade towards the average of all, so that a provider that was slow once is tried again some time.
    """

    def __init__(self, *, half_life_s: float, clock: Callable[[], float]) -> None:
        self._half_life_s = half_life_s
        self._clock = clock
        self._pairs: OrderedDict[tuple[str, str], _Pair] = OrderedDict()
        self._providers: dict[str, _Provider] = {}
        self._all_providers: dict[Mode, _Speed] = {}
        self._usual: dict[Mode, float] = {}
        # Prices of peers only; nodes have price lists, and a free one is no measure for others.
        self._rates = PriceRates(half_life_s)
        self.on_event: Callable[[MeasuredEvent], None] | None = None
        """Gets what this process measures, where several are one gateway; ``learn`` takes it at the others."""

    def learn(self, event: "MeasuredEvent") -> None:
        """Take in a measurement of another process."""
        tell, self.on_event = self.on_event, None
        try:
            match event:
                case ["quoted", str(provider_id), str(model), int(price_msat), int(input_bytes), int(output_tokens)]:
                    self.quoted(provider_id, model, price_msat, RequestSize(input_bytes, output_tokens))
                case ["failed", str(provider_id)]:
                    self.failed(provider_id)
                case ["delivered", str(provider_id), str(model), str(mode), first_byte_s, tokens_per_s, tokens]:
                    self.delivered(
                        provider_id,
                        model,
                        Mode(mode),
                        first_byte_s=first_byte_s,
                        tokens_per_s=tokens_per_s,
                        tokens=tokens,
                    )
        finally:
            self.on_event = tell

    # -- measurements ---------------------------------------------------------------------------

    def quoted(self, provider_id: str, model: str, price_msat: int, size: RequestSize = ORDINARY_SIZE) -> None:
        """Record the price asked for a request of a size."""
        if self.on_event is not None:
            self.on_event(["quoted", provider_id, model, price_msat, size.input_bytes, size.output_tokens])
        now, sized = self._clock(), SizeClass.of(size)
        pair = self._pair(provider_id, model)
        pair.rates.add(sized, price_msat, now)
        pair.asked.add(max(float(price_msat), 1.0), now)
        if not provider_id.startswith(NODE_PREFIX):
            self._rates.add(sized, price_msat, now)

    def started(self, provider_id: str) -> None:
        """Record that a provider has one more job; ``finished`` has to follow."""
        self._provider(provider_id).in_flight += 1

    def finished(self, provider_id: str) -> None:
        """Record that a provider has one job less."""
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
        """Record a whole result: the time to its first byte, the pace after that, and its length."""
        if self.on_event is not None:
            self.on_event(["delivered", provider_id, model, mode.value, first_byte_s, tokens_per_s, tokens])
        now = self._clock()
        if tokens is not None:
            length = math.log(max(tokens, 1.0))
            usual = self._usual.setdefault(mode, length)
            self._usual[mode] = usual + _USUAL_SHARE * (length - usual)
        provider = self._provider(provider_id)
        self._fade(provider, now)
        provider.delivered += 1
        all_providers = self._all_providers.get(mode)
        if all_providers is None:
            all_providers = self._all_providers[mode] = self._speed()
        of_provider = provider.speeds.get(mode)
        if of_provider is None:
            of_provider = provider.speeds[mode] = self._speed()
        pair = self._pair(provider_id, model)
        of_pair = pair.speeds.get(mode)
        if of_pair is None:
            of_pair = pair.speeds[mode] = self._speed()
            # It was taken to be like others until now.
            pair.views.pop(mode, None)
        rate = None if tokens_per_s is None else max(tokens_per_s, _LEAST_PER_S)
        wait_s = None if first_byte_s is None else max(first_byte_s, _LEAST_S)
        for speed in (all_providers, of_provider, of_pair):
            if rate is not None:
                speed.rate.add(rate, now)
            if wait_s is not None:
                speed.first_byte.add(wait_s, now)

    def failed(self, provider_id: str) -> None:
        """Record a job that the provider failed."""
        if self.on_event is not None:
            self.on_event(["failed", provider_id])
        provider = self._provider(provider_id)
        self._fade(provider, self._clock())
        provider.failed += 1

    # -- estimates ---------------------------------------------------------------------------

    def in_flight(self, provider_id: str) -> int:
        """Return how many jobs a provider has from this gateway."""
        provider = self._providers.get(provider_id)
        return provider.in_flight if provider else 0

    def view(self, provider_id: str, model: str, mode: Mode) -> View:
        """Return the estimate of a model at a provider; up to a second old."""
        return self.views(((provider_id, model),), mode)[0]

    def has_seen(self, provider_id: str, model: str) -> bool:
        """Return whether anything was measured of this model at this provider."""
        return (provider_id, model) in self._pairs

    def views(self, pairs: Iterable[tuple[str, str]], mode: Mode) -> list[View]:
        """Return the estimate of each pair of a provider's id and a model, in their order; up to a second old."""
        now = self._clock()
        # A provider is estimated once for all its models.
        beliefs: dict[str, _Estimate] = {}
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

    def price(self, provider_id: str, model: str, size: RequestSize = ORDINARY_SIZE) -> Price:
        """Return the expected price of a request of a size."""
        return self.prices(((provider_id, model),), size)[0]

    def prices(self, pairs: Iterable[tuple[str, str]], size: RequestSize) -> list[Price]:
        """Return the expected price of a request of a size for each pair of a provider's id and a model."""
        sized = SizeClass.of(size)
        guess = self._rates.expected(sized)
        unpriced = UNKNOWN_PRICE if guess is None else Price(guess)
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
        """Return the lowest price that was lately asked for a model by any of these providers, for any size."""
        least: float | None = None
        for provider_id in provider_ids:
            pair = self._pairs.get((provider_id, model))
            if pair is not None and pair.asked.weight:
                price = pair.asked.total / pair.asked.weight
                if least is None or price < least:
                    least = price
        return None if least is None else round(math.exp(least))

    def _believe(self, provider_id: str, mode: Mode, now: float) -> _Estimate:
        first_byte: float | None = None
        rate: float | None = None
        delivery = 1.0
        provider = self._providers.get(provider_id)
        of_provider = provider.speeds.get(mode) if provider else None
        for speed in (self._all_providers.get(mode), of_provider):
            if speed is not None:
                first_byte = speed.first_byte.blend(first_byte, now)
                rate = speed.rate.blend(rate, now)
        if provider is not None:
            faded = self._fading(provider, now)
            came = provider.delivered * faded + _PRIOR_DELIVERIES
            delivery = came / (came + provider.failed * faded)
        has_delivered = provider is not None and provider.delivered > 0
        return _Estimate(first_byte, rate, delivery, of_provider is None, has_delivered)

    def _look(self, pair: _Pair | None, belief: _Estimate, mode: Mode, now: float) -> View:
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
        provider = self._providers.get(provider_id)
        if provider is None:
            provider = self._providers[provider_id] = _Provider()
        return provider

    def _pair(self, provider_id: str, model: str) -> _Pair:
        key = (provider_id, model)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = _Pair({}, PriceRates(self._half_life_s), self._faded())
            while len(self._pairs) > _MAX_PAIRS:
                self._pairs.popitem(last=False)
        return pair

    def _speed(self) -> _Speed:
        return _Speed(self._faded(), self._faded())

    def _faded(self) -> FadingAverage:
        return FadingAverage(self._half_life_s)
