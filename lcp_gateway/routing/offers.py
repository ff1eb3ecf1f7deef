"""Everything that is on offer at one moment: each model at each provider, with its properties."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.model_registry import ModelRegistry, Traits, is_auto


@dataclass(frozen=True, slots=True)
class Entry:
    """A model at a provider."""

    provider: Provider
    model: str
    traits: Traits


@dataclass(frozen=True, slots=True, eq=False)
class Offers:
    """The entries by kind of task, in the catalog's order; and every model with its providers, kinds and traits."""

    by_kind: Mapping[TaskKind, tuple[Entry, ...]]
    providers: Mapping[str, tuple[Provider, ...]]
    kinds: Mapping[str, tuple[TaskKind, ...]]
    traits: Mapping[str, Traits]
    capabilities: frozenset[str]

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        registry: ModelRegistry,
        *,
        allowlist: frozenset[str] = frozenset(),
        model_peers: Mapping[str, str] = MappingProxyType({}),
        default_peer_id: str | None = None,
    ) -> "Offers":
        """Read a catalog.

        Where there is an allowlist only its models count. A mapped model counts at its provider only, and where there
        is a default peer no other peer counts. Models that only chat count for completions too: an adapter can help.
        """
        offering = dict(sorted(catalog.models().items()))
        traits = {
            name: registry.traits(name, [p.facts[name] for p in providers if name in p.facts])
            for name, providers in offering.items()
        }
        by_kind: dict[TaskKind, list[Entry]] = {kind: [] for kind in TaskKind}
        for provider in catalog.providers:
            for kind, models in provider.models.items():
                for model in models:
                    only = model_peers.get(model) or _default(provider, default_peer_id)
                    if (only and only != provider.peer_id) or is_auto(model):
                        continue
                    if allowlist and model not in allowlist:
                        continue
                    entry = Entry(provider, model, traits[model])
                    by_kind[kind].append(entry)
                    if kind is TaskKind.CHAT_COMPLETIONS and not provider.offers(TaskKind.COMPLETIONS, model):
                        by_kind[TaskKind.COMPLETIONS].append(entry)
        kinds: dict[str, list[TaskKind]] = {}
        for kind, entries in by_kind.items():
            for name in dict.fromkeys(entry.model for entry in entries):
                kinds.setdefault(name, []).append(kind)
        return cls(
            MappingProxyType({kind: tuple(entries) for kind, entries in by_kind.items()}),
            MappingProxyType(offering),
            MappingProxyType({name: tuple(found) for name, found in kinds.items()}),
            MappingProxyType(traits),
            frozenset().union(*(found.capabilities for found in traits.values())),
        )


def _default(provider: Provider, default_peer_id: str | None) -> str | None:
    """Return the default peer where it stands in for this provider: nodes were named by the operator too."""
    return None if provider.source is ProviderSource.NODE else default_peer_id
