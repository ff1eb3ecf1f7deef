"""What was measured of the providers: speed, delivery and price, as averages that fade."""

import enum
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

_MAX_PAIRS = 10_000
# An average listens to about the last two or three measurements: a provider that becomes slow is soon known for it.
_MOST_WEIGHT = 1.5
# What is not measured counts as half a measurement that came out like everybody's.
_PRIOR_WEIGHT = 0.5
_PRIOR_DELIVERIES = 2.0
# A provider that was never measured passes for twice as fast as everybody, so that it is soon tried.
_BENEFIT_OF_DOUBT = math.log(2.0)
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


@dataclass(slots=True)
class Faded:
    """An average of logarithms: times and prices differ by factors. Its weight halves every ``half_life_s``."""

    half_life_s: float
    total: float = 0.0
    weight: float = 0.0
    at: float = 0.0

    def add(self, value: float, now: float) -> None:
        """Take in a measurement, which must be positive."""
        kept = min(self.weight_at(now), _MOST_WEIGHT)
        mean = self.total / self.weight if self.weight else 0.0
        self.total = mean * kept + math.log(value)
        self.weight = kept + 1.0
        self.at = now

    def weight_at(self, now: float) -> float:
        """Give how much it still counts."""
        if not self.weight:
            return 0.0
        return self.weight * math.exp2(-max(0.0, now - self.at) / self.half_life_s)

    def blend(self, prior: float | None, now: float) -> float | None:
        """Give the mean logarithm, drawn towards ``prior`` as it fades; None where nothing is known at all."""
        if not self.weight:
            return prior
        mean = self.total / self.weight
        if prior is None:
            return mean
        weight = self.weight_at(now)
        return (mean * weight + prior * _PRIOR_WEIGHT) / (weight + _PRIOR_WEIGHT)


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
    price: Faded
    views: "dict[Mode, tuple[float, View]]" = field(default_factory=dict)


class View(NamedTuple):
    """What is believed of a model at a provider now; None where nobody has measured anything like it.

    ``expected_s`` is the time that an answer of usual length would take, ``tokens_per_s`` is reckoned from bytes.
    ``delivery`` is the share of purchases that came, from 0 to 1. ``was_measured`` and ``was_priced`` tell whether this
    very model at this very provider was, rather than others that it is taken to be like.
    """

    expected_s: float | None
    first_byte_s: float | None
    tokens_per_s: float | None
    delivery: float
    price_msat: float | None
    was_measured: bool = False
    was_priced: bool = False

    def told(self) -> "Told":
        """Give what is known and not only believed."""
        return Told(
            None if self.price_msat is None or not self.was_priced else round(self.price_msat),
            self.first_byte_s if self.was_measured else None,
            self.tokens_per_s if self.was_measured else None,
        )


class Told(NamedTuple):
    """What was measured and asked of a model at a provider, for those who look; None where nothing was."""

    price_msat: int | None
    first_byte_s: float | None
    tokens_per_s: float | None


class _Belief(NamedTuple):
    """What is believed of a provider, whatever the model; the times as logarithms."""

    first_byte: float | None
    rate: float | None
    delivery: float


class Records:
    """Keeps the measurements. No I/O, one thread; ``clock`` is a monotonic clock in seconds.

    A pair that was never measured is believed to be like its provider, and a provider that never was like everybody, but
    twice as fast. What is known of one fades back to what is known of everybody, so that who was slow once is tried
    again some time.
    """

    def __init__(self, *, half_life_s: float, clock: Callable[[], float]) -> None:
        self._half_life_s = half_life_s
        self._clock = clock
        self._pairs: OrderedDict[tuple[str, str], _Pair] = OrderedDict()
        self._providers: dict[str, _Provider] = {}
        self._everybody: dict[Mode, _Speed] = {}
        self._usual: dict[Mode, float] = {}
        self._prices = self._faded()

    # -- what is told ---------------------------------------------------------------------------

    def quoted(self, provider_id: str, model: str, price_msat: int) -> None:
        """Note what was asked; nothing counts as a thousandth of a satoshi."""
        now = self._clock()
        price = max(float(price_msat), 1.0)
        self._pair(provider_id, model).price.add(price, now)
        self._prices.add(price, now)

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

    def last_price_msat(self, model: str, provider_ids: "tuple[str, ...]") -> int | None:
        """Give the lowest price that was lately asked for a model by any of some providers."""
        least: float | None = None
        for provider_id in provider_ids:
            pair = self._pairs.get((provider_id, model))
            if pair is not None and pair.price.weight:
                price = pair.price.total / pair.price.weight
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
        if of_provider is None:
            first_byte = None if first_byte is None else first_byte - _BENEFIT_OF_DOUBT
            rate = None if rate is None else rate + _BENEFIT_OF_DOUBT
        if provider is not None:
            faded = self._fading(provider, now)
            came = provider.delivered * faded + _PRIOR_DELIVERIES
            delivery = came / (came + provider.failed * faded)
        return _Belief(first_byte, rate, delivery)

    def _look(self, pair: _Pair | None, belief: _Belief, mode: Mode, now: float) -> View:
        first_byte, rate, delivery = belief
        price = self._prices.blend(None, now)
        was_measured = was_priced = False
        if pair is not None:
            price = pair.price.blend(price, now)
            was_priced = pair.price.weight > 0
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
        price_msat = None if price is None else math.exp(price)
        return View(
            expected_s, first_byte_s, tokens_per_s, delivery, price_msat, was_measured, was_priced
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
            pair = self._pairs[key] = _Pair({}, self._faded())
            while len(self._pairs) > _MAX_PAIRS:
                self._pairs.popitem(last=False)
        return pair

    def _speed(self) -> _Speed:
        return _Speed(self._faded(), self._faded())

    def _faded(self) -> Faded:
        return Faded(self._half_life_s)
