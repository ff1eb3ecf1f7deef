"""Short helpers that build catalogs for tests of routing: providers, models and their metadata."""

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.routing.auto import AutoChoice, AutoPolicy
from lcp_gateway.routing.averages import ORDINARY_SIZE
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.measurements import Measurements, Mode
from lcp_gateway.routing.model_registry import ModelCard, ModelRegistry
from lcp_gateway.routing.offers import Offers
from lcp_gateway.routing.preferences import parse_preferences
from lcp_gateway.routing.requirements import Requirements

CHAT = TaskKind.CHAT_COMPLETIONS


def provider(peer_id, *models, kind=CHAT, **more) -> Provider:
    """A provider of some models; an id that begins with ``node:`` is a node."""
    source = ProviderSource.NODE if peer_id.startswith("node:") else ProviderSource.LCP
    return Provider(peer_id, "addr", 2, {kind: tuple(models)}, source=source, **more)


class Bench:
    """A choice among some providers, with a clock that the test sets."""

    def __init__(self, *providers, cards=None, policy=None, half_life_s=300.0, **rules) -> None:
        self.now = 0.0
        self.ready: dict[str, float] = {}
        self.registry = ModelRegistry({k: ModelCard(**v) for k, v in (cards or {}).items()})
        self.records = Measurements(half_life_s=half_life_s, clock=lambda: self.now)
        self.auto = AutoChoice(
            policy or AutoPolicy(),
            self.records,
            lambda provider_id: self.ready.get(provider_id, 1.0),
            clock=lambda: self.now,
        )
        self.offers = Offers.of(Catalog(tuple(providers), 0.0), self.registry, **rules)

    def decide(self, model="auto", *, draw=0.0, kind=CHAT, mode=Mode.WHOLE, tokens=0, needs=(), size=ORDINARY_SIZE):
        wish = parse_preferences(model, self.offers.capabilities)
        return self.auto.decide(self.offers, kind, mode, wish, Requirements(frozenset(needs), tokens), draw, size=size)

    def chosen(self, model="auto", **more) -> str:
        return self.decide(model, **more).chosen.entry.provider.peer_id

    def measured(self, provider_id, model, seconds, *, price_msat=None, tokens=100) -> None:
        """Record an answer of a hundred tokens that took so long."""
        self.records.delivered(provider_id, model, Mode.WHOLE, first_byte_s=None, tokens_per_s=tokens / seconds)
        if price_msat is not None:
            self.records.quoted(provider_id, model, price_msat)
