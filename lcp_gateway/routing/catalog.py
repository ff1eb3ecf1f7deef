"""The catalog: a snapshot of the providers and the models they advertise."""

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from types import MappingProxyType

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.quote import ProviderSource


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts about a model in a provider's list; 0 and empty where it has none. ``created`` is Unix seconds."""

    context_length: int = 0
    created: int = 0
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PriceList:
    """The highest price of a node's work, by the size of a request, in msat."""

    per_request: float = 0.0
    per_input_byte: float = 0.0
    per_output_token: float = 0.0
    usual_output_tokens: int = 0

    def most_msat(self, input_bytes: int, output_tokens: int) -> float:
        """Return the price of a request; one that sets no limit to its output has the usual one."""
        output = output_tokens or self.usual_output_tokens
        return self.per_request + self.per_input_byte * input_bytes + self.per_output_token * output


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """The price of one model of a node: that of an ordinary request in msat, and that of others."""

    list_price_msat: int
    price_list: PriceList


@dataclass(frozen=True, slots=True)
class Provider:
    """A peer that is connected and ready, or a node that answers, with the models it offers for each kind of task.

    ``peer_id`` is a peer's public key or a node's ``node:<name>``. ``max_payload_bytes`` and the other limits are the
    provider's own, 0 where it stated none. ``facts`` are those of a node's own list of models. ``list_price_msat`` is
    the price of an ordinary request, where that is known before any quote, and ``price_list`` that of others;
    ``model_prices`` are those of single models, where they differ. ``open_kinds`` are the kinds of task that it takes with
    models which its list does not name: peers of protocol version 3 list no models.
    """

    peer_id: str
    address: str
    protocol_version: int
    models: Mapping[TaskKind, tuple[str, ...]]
    max_payload_bytes: int = 0
    max_stream_bytes: int = 0
    max_job_bytes: int = 0
    max_inflight_jobs: int = 0
    source: ProviderSource = ProviderSource.LCP
    owned_by: str = "lcp"
    facts: Mapping[str, ModelFacts] = field(default_factory=dict)
    list_price_msat: int | None = None
    price_list: PriceList | None = None
    model_prices: Mapping[str, ModelPrice] = field(default_factory=dict)
    open_kinds: frozenset[TaskKind] = frozenset()

    def listed_msat(self, model: str) -> int | None:
        """Return the price of an ordinary request to a model, None where it is not known before a quote."""
        price = self.model_prices.get(model)
        return self.list_price_msat if price is None else price.list_price_msat

    def price_list_of(self, model: str) -> PriceList | None:
        """Return the price of other requests to a model, None where it is not known before a quote."""
        price = self.model_prices.get(model)
        return self.price_list if price is None else price.price_list

    @property
    def node_name(self) -> str:
        """The node's name as the operator gave it; empty for a peer."""
        return self.peer_id.removeprefix(NODE_PREFIX) if self.source is ProviderSource.NODE else ""

    def offers(self, kind: TaskKind, model: str) -> bool:
        """Return whether the peer advertises ``model`` for tasks of ``kind``."""
        return model in self.models.get(kind, ())


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything known of the providers at one moment (``taken_at`` is a reading of a monotonic clock, in seconds)."""

    providers: tuple[Provider, ...]
    taken_at: float
    _by_peer: Mapping[str, Provider] = field(init=False, repr=False, compare=False)
    _by_model: Mapping[tuple[TaskKind, str], tuple[Provider, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the providers once, so that a request looks one up instead of searching."""
        by_model: dict[tuple[TaskKind, str], list[Provider]] = {}
        for provider in self.providers:
            for kind, models in provider.models.items():
                for model in models:
                    by_model.setdefault((kind, model), []).append(provider)
        object.__setattr__(self, "_by_peer", MappingProxyType({p.peer_id: p for p in self.providers}))
        object.__setattr__(self, "_by_model", MappingProxyType({key: tuple(found) for key, found in by_model.items()}))

    def seen_again(self, now: float) -> "Catalog":
        """Return the same providers with a later time, without indexing them again."""
        same = copy(self)
        object.__setattr__(same, "taken_at", now)
        return same

    def peer(self, peer_id: str) -> Provider | None:
        """Return the provider with that id, if it is ready."""
        return self._by_peer.get(peer_id)

    def offering(self, kind: TaskKind, model: str) -> tuple[Provider, ...]:
        """Return the providers that advertise ``model`` for ``kind``, in the daemon's order."""
        return self._by_model.get((kind, model), ())

    def advertises(self, kind: TaskKind) -> bool:
        """Return whether any provider advertises any model for ``kind``."""
        return any(known is kind for known, _ in self._by_model)

    def models_for(self, kind: TaskKind) -> tuple[str, ...]:
        """Return the names of the models that are offered for ``kind``, sorted."""
        return tuple(sorted(model for known, model in self._by_model if known is kind))

    def models(self) -> dict[str, tuple[Provider, ...]]:
        """Return every advertised model once, with the providers that offer it for any kind, in the daemon's order."""
        found: dict[str, dict[str, Provider]] = {}
        for (_, model), providers in self._by_model.items():
            found.setdefault(model, {}).update((p.peer_id, p) for p in providers)
        return {model: tuple(by_id.values()) for model, by_id in found.items()}


def merge_kinds(offers: Iterable[tuple[TaskKind, str]]) -> Mapping[TaskKind, tuple[str, ...]]:
    """Group (kind, model) pairs by kind, keeping the order and dropping repeats."""
    found: dict[TaskKind, dict[str, None]] = {}
    for kind, model in offers:
        found.setdefault(kind, {})[model] = None
    return MappingProxyType({kind: tuple(models) for kind, models in found.items()})
