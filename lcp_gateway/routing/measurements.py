"""Measurements of the providers: speed, delivery and price by size of request, as averages that fade."""

import enum
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.values import value

# An average follows about the last two or three measurements, so that a provider that becomes slow is soon rated so.
_MOST_WEIGHT = 1.5
# The prior (the average of all providers) counts as half a measurement.
_PRIOR_WEIGHT = 0.5


@dataclass(slots=True)
class FadingAverage:
    """An average of logarithms: times and prices differ by factors. Its weight halves every ``half_life_s``."""

    half_life_s: float
    total: float = 0.0
    weight: float = 0.0
    at: float = 0.0

    def add(self, value: float, now: float) -> None:
        """Add a measurement, which must be positive."""
        weight = self.weight
        if weight:
            age_s = now - self.at
            kept = weight * math.exp2(-age_s / self.half_life_s) if age_s > 0 else weight
            kept = min(kept, _MOST_WEIGHT)
            self.total = self.total / weight * kept + math.log(value)
            self.weight = kept + 1.0
        else:
            self.total, self.weight = math.log(value), 1.0
        self.at = now

    def weight_at(self, now: float) -> float:
        """Return how much it still counts."""
        if not self.weight:
            return 0.0
        return self.weight * math.exp2(-max(0.0, now - self.at) / self.half_life_s)

    def blend(self, prior: float | None, now: float) -> float | None:
        """Return the mean logarithm, drawn towards ``prior`` as it fades; None without any measurement."""
        if not self.weight:
            return prior
        mean = self.total / self.weight
        if prior is None:
            return mean
        weight = self.weight_at(now)
        return (mean * weight + prior * _PRIOR_WEIGHT) / (weight + _PRIOR_WEIGHT)


_LEAST_MSAT = 1.0
# A token of input costs about a quarter of a token of output, and has about four bytes.
_INPUT_BYTES_PER_UNIT = 16.0
# The output that providers assume where a request sets no limit.
_UNLIMITED_OUTPUT = 4_096.0
# Sizes are distinguished by factors of four: within one, a price by the token is a good guess.
_BITS_PER_CLASS = 2
_MAX_CLASSES = 16


class RequestSize(NamedTuple):
    """How large a request is: the bytes of its body, and the output tokens that it allows (0 where it sets no limit)."""

    input_bytes: int
    output_tokens: int = 0

    @property
    def units(self) -> float:
        """The size as one number, in tokens of output; at least one."""
        output = self.output_tokens or _UNLIMITED_OUTPUT
        return max(1.0, output + self.input_bytes / _INPUT_BYTES_PER_UNIT)


def request_size(task: Task) -> RequestSize:
    """Return the size of a task."""
    return RequestSize(len(task.body), task.output_tokens)


ORDINARY_SIZE = RequestSize(2_000, 500)
"""The size by which prices are shown and compared where there is no request."""


class Price(NamedTuple):
    """The expected price of a request. ``is_known``: from a quote or a price list, not a guess; None is unknown.

    ``asked`` is the logarithm of the price lately asked, for requests of any size.
    """

    msat: float | None = None
    is_known: bool = False
    asked: float | None = None

    @property
    def asked_msat(self) -> float | None:
        """The price lately asked; None without a quote."""
        return None if self.asked is None else math.exp(self.asked)


UNKNOWN_PRICE = Price()


@dataclass(slots=True)
class PriceRates:
    """Averages of prices per unit of size that fade, one for each class of sizes."""

    half_life_s: float
    by_class: dict[int, FadingAverage] = field(default_factory=dict)

    def add(self, sized: "SizeClass", price_msat: int, now: float) -> None:
        """Add a quote; a price of nothing counts as a thousandth of a satoshi."""
        faded = self.by_class.get(sized.size_class)
        if faded is None:
            faded = self.by_class[sized.size_class] = FadingAverage(self.half_life_s)
        faded.add(max(float(price_msat), _LEAST_MSAT) / sized.units, now)

    def expected(self, sized: "SizeClass") -> float | None:
        """Return the price by the quotes for the nearest size; None without any.

        It does not fade: a price holds until another is asked, and the quote shows it before anything is paid.
        """
        by_class = self.by_class
        if not by_class:
            return None
        faded = by_class.get(sized.size_class)
        if faded is None:
            faded = by_class[min(by_class, key=lambda one: abs(one - sized.size_class))]
        return math.exp(faded.total / faded.weight) * sized.units


@value
class SizeClass:
    """A size as it is looked up, worked out once for all candidates of a request."""

    size_class: int
    units: float

    @classmethod
    def of(cls, size: RequestSize) -> "SizeClass":
        """Return it for a size."""
        units = size.units
        return cls(min(int(units).bit_length() // _BITS_PER_CLASS, _MAX_CLASSES), units)


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
