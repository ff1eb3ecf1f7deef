"""``lcp-gateway models``: the models that peers and nodes offer now, with the scores by which `auto` chooses."""

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lcp_gateway.cli.gateway_client import RunningGateway
from lcp_gateway.cli.market.providers import (
    NOTHING_MEASURED,
    DirectOption,
    ReachableProviders,
    gateway_to_ask,
    reachable_providers,
    unmeasured_routing,
)
from lcp_gateway.cli.options import JsonOption, command_app, load_settings, setting_flags
from lcp_gateway.cli.output import Columns, print_list, report
from lcp_gateway.cli.serve.embedded import daemon_for
from lcp_gateway.config import Group, Settings, all_nodes
from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.routing.auto import AutoChoice
from lcp_gateway.routing.measurements import Mode
from lcp_gateway.routing.model_registry import EMBEDDING, Traits, is_auto, kinds_for
from lcp_gateway.routing.offers import Offers
from lcp_gateway.routing.preferences import Preferences
from lcp_gateway.routing.route_query import ENDPOINT_NAMES, MAX_RESULTS

_UNKNOWN = "?"

app = command_app()


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model at one provider; None and empty fields are not known.

    ``kinds`` are words for endpoints; from a running gateway, those of the model at all its providers. A provider that
    only ``model_map`` names has none. ``score`` is also None where no request would be sent there.
    """

    model: str
    provider_id: str
    ready: bool
    kinds: tuple[str, ...] = ()
    params_b: float | None = None
    context_length: int | None = None
    capabilities: tuple[str, ...] = ()
    price_msat: int | None = None
    score: float | None = None


def _source(row: ModelRow) -> str:
    return ProviderSource.of(row.provider_id).value


_COLUMNS: Columns[ModelRow] = {
    "model": lambda row: row.model,
    "kinds": lambda row: ", ".join(row.kinds) or _UNKNOWN,
    "provider": lambda row: row.provider_id,
    "source": _source,
    "params": lambda row: _UNKNOWN if row.params_b is None else f"{row.params_b:g}B",
    "context": lambda row: _UNKNOWN if row.context_length is None else str(row.context_length),
    "capabilities": lambda row: ", ".join(row.capabilities) or "-",
    "price_msat": lambda row: _UNKNOWN if row.price_msat is None else str(row.price_msat),
    "score": lambda row: _UNKNOWN if row.score is None else f"{row.score:.4f}",
    "ready": lambda row: "yes" if row.ready else "no",
}


@app.command()
@setting_flags((Group.DAEMON, Group.ROUTING, Group.NODE), also=("http_addr", "timeout_quote_s"))
def models(
    config: Path | None, flags: Mapping[str, object], *, direct: DirectOption = False, json: JsonOption = False
) -> int:
    """Print the models of peers and nodes. Scores are as the running gateway measured; without one, daemon and nodes are asked."""
    loaded = load_settings(flags, config)
    gateway = gateway_to_ask(loaded.settings, flags, direct=direct)
    if gateway is not None:
        rows = _rows_of_running(gateway, loaded.settings)
    else:
        with daemon_for(loaded.settings) as settings:
            rows = asyncio.run(_rows_asked(settings))
    print_list(rows, _COLUMNS, _as_json, json=json, omitted=("source",))
    return 0


def _rows_of_running(gateway: RunningGateway, settings: Settings) -> Sequence[ModelRow]:
    # Models for embeddings are ranked apart from those for texts.
    ranking = [*gateway.ranking(MAX_RESULTS), *gateway.ranking(MAX_RESULTS, EMBEDDING)]
    rows = rows_of_gateway(gateway.models(), ranking)
    there = {row.provider_id for row in rows}
    down = [name for name, up in gateway.nodes_up.items() if not up]
    report(f"as measured by the gateway at {gateway.url}", *(f"node {n}: down" for n in down))
    return _in_order([*rows, *_missing(rows, settings, there)])


def rows_of_gateway(listed: Iterable[Mapping[str, Any]], ranking: Iterable[Mapping[str, Any]]) -> Sequence[ModelRow]:
    """Join the gateway's list of models with its ranking, which has the most about each model's best provider."""
    best = {entry["model"]: entry for entry in ranking}
    return [row for model in listed if not is_auto(model["id"]) for row in _rows_of_model(model, best.get(model["id"]))]


def _rows_of_model(model: Mapping[str, Any], best: Mapping[str, Any] | None) -> Iterator[ModelRow]:
    lcp = model["lcp"]
    ranked = best["providers"] if best else ()
    for provider_id in dict.fromkeys([*ranked, *lcp["providers"]]):
        ranked_best = best if best is not None and provider_id == best["provider"] else None
        # A provider that the breaker keeps from requests is listed, and not ready.
        is_paused = ranked_best is not None and not ranked_best["features"]["availability"]
        yield ModelRow(
            model["id"],
            provider_id,
            ready=bool(lcp["ready"]) and not is_paused,
            kinds=tuple(lcp["endpoints"]),
            params_b=lcp["params_b"],
            context_length=lcp["context_length"],
            capabilities=tuple(lcp["capabilities"]),
            price_msat=ranked_best["price_msat"] if ranked_best else None,
            score=best["scores"].get(provider_id) if best else None,
        )


async def _rows_asked(settings: Settings) -> Sequence[ModelRow]:
    async with reachable_providers(settings) as reachable:
        rows = rows_of_providers(reachable, settings)
    report(NOTHING_MEASURED)
    there = {provider.peer_id for provider in reachable.catalog.providers}
    return _in_order([*rows, *_missing(rows, settings, there)])


def rows_of_providers(reachable: ReachableProviders, settings: Settings) -> Sequence[ModelRow]:
    """List every model at every provider, with the scores that they have before anything is measured."""
    routing = unmeasured_routing(settings, reachable.catalog)
    offers = routing.selector.offers()
    scores = _scores(offers, routing.auto)
    return [
        _row(
            model,
            provider.peer_id,
            offers.traits[model],
            ready=True,
            kinds=_words(kind for kind in TaskKind if provider.offers(kind, model)),
            price_msat=provider.list_price_msat,
            score=scores.get((provider.peer_id, model)),
        )
        for provider in reachable.catalog.providers
        for model in dict.fromkeys(name for names in provider.models.values() for name in names)
    ]


def _scores(offers: Offers, auto: AutoChoice) -> Mapping[tuple[str, str], float]:
    """Return the score of each model at each provider, by the provider's id and the model's name."""
    entries = {(entry.provider.peer_id, entry.model): entry for offered in offers.by_kind.values() for entry in offered}
    scores = {}
    for embeds in (False, True):
        alike = [e for e in entries.values() if (e.traits.type == EMBEDDING) is embeds]
        for one in auto.rank(alike, Mode.WHOLE, Preferences(), len(alike)):
            scores[one.entry.provider.peer_id, one.entry.model] = round(one.score, 4)
    return scores


def _missing(rows: Iterable[ModelRow], settings: Settings, there: set[str]) -> Iterator[ModelRow]:
    """Return rows for models that the settings name and no provider offers now: those of nodes that are down, and mapped ones."""
    known = {(row.model, row.provider_id) for row in rows}
    if any((model, NODE_PREFIX + node.name) not in known for node in all_nodes(settings) for model in node.models):
        from lcp_gateway.app.wiring.routing import http_nodes, model_registry  # noqa: PLC0415 - imports the whole gateway

        registry = model_registry(settings)
        for node in http_nodes(settings):
            for model in node.models:
                if (model, node.provider_id) in known:
                    continue
                known.add((model, node.provider_id))
                traits = registry.traits(model)
                yield _row(
                    model,
                    node.provider_id,
                    traits,
                    ready=False,
                    kinds=_words(kinds_for(traits, node.kinds)),
                    price_msat=node.price.list_price_msat(),
                )
    for model, provider_id in settings.model_map.items():
        if (model, provider_id) not in known:
            # A peer is asked for a model that is mapped to it whether it lists it or not.
            yield ModelRow(model, provider_id, ready=provider_id in there)


def _row(model: str, provider_id: str, traits: Traits, **known: Any) -> ModelRow:
    return ModelRow(
        model,
        provider_id,
        params_b=traits.params_b,
        context_length=traits.context_length or None,
        capabilities=tuple(sorted(traits.capabilities)),
        **known,
    )


def _words(kinds: Iterable[TaskKind]) -> tuple[str, ...]:
    found = set(kinds)
    if TaskKind.CHAT_COMPLETIONS in found:
        # An adapter serves them as a chat.
        found.add(TaskKind.COMPLETIONS)
    return tuple(word for kind, word in ENDPOINT_NAMES.items() if kind in found)


def _in_order(rows: Iterable[ModelRow]) -> Sequence[ModelRow]:
    """Sort by model, the best provider first; equals stay as they came."""
    return sorted(rows, key=lambda row: (row.model, math.inf if row.score is None else -row.score))


def _as_json(row: ModelRow) -> object:
    fields = asdict(row)
    return {"model": row.model, "peer_id": fields.pop("provider_id"), "source": _source(row), **fields}
