"""Providers and the choice among them as the settings say: the daemon, the nodes, models, trust and weights."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from structlog.typing import FilteringBoundLogger

from lcp_gateway.adapters.completions import NotAdaptable, to_chat
from lcp_gateway.adapters.json_bytes import parse_json
from lcp_gateway.adapters.splice import add_fields, replace_model
from lcp_gateway.config import DialinNodeConfig, ModelConfig, NodeConfig, Settings, may_use_proxy, reachable_nodes
from lcp_gateway.constants import MSAT_PER_SAT
from lcp_gateway.purchase.order import Order, TaskKind
from lcp_gateway.purchase.ports import StartTask
from lcp_gateway.purchase.tracing import Tracing
from lcp_gateway.responses.token_estimate import clearly_exceeds
from lcp_gateway.routing.adaptation import BodyAdapters
from lcp_gateway.routing.auto import AutoChoice, AutoPolicy, Decision
from lcp_gateway.routing.explicit import RoutingRules
from lcp_gateway.routing.measurements import Measurements
from lcp_gateway.routing.model_registry import ModelCard, ModelRegistry, kinds_for
from lcp_gateway.routing.peer_models import PeerModels
from lcp_gateway.routing.peer_trust import PeerTrust, TrustRules
from lcp_gateway.routing.preferences import Weights
from lcp_gateway.routing.route_query import ENDPOINT_NAMES
from lcp_gateway.routing.scoring import Scored
from lcp_gateway.routing.selection import Selector
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.lcpd.transport import LcpdAddress, TlsFiles, TransportKind
from lcp_gateway.upstreams.openai.adapter import OpenAIHttpUpstream
from lcp_gateway.upstreams.openai.connections import VirtualNode
from lcp_gateway.upstreams.openai.input_tokens import TokenCounter
from lcp_gateway.upstreams.openai.node_watch import NodeWatch
from lcp_gateway.upstreams.openai.price import NodePrice
from lcp_gateway.upstreams.sources import MergedCatalog

BODY_ADAPTERS = BodyAdapters(
    parse=parse_json,
    replace_model=replace_model,
    add_fields=add_fields,
    to_chat=lambda body: to_chat(body).body,
    not_adaptable=NotAdaptable,
    clearly_exceeds=clearly_exceeds,
)
"""The functions over bodies that a choice needs."""

_KIND_OF = {word: kind for kind, word in ENDPOINT_NAMES.items()}


@dataclass(frozen=True, slots=True)
class NodeParts:
    """The virtual nodes: their upstream, the watch over them, and their counting of tokens."""

    upstream: OpenAIHttpUpstream
    watch: NodeWatch
    counter: TokenCounter

    def use(self, settings: Settings, registry: ModelRegistry) -> None:
        """Use the nodes of other settings; nodes that have not changed keep their connections."""
        nodes = http_nodes(settings)
        self.upstream.use(nodes)
        self.counter.use(nodes)
        self.watch.use(
            nodes, refresh_s=settings.nodes_refresh_s, timeout_s=settings.timeout_quote_s, describe=_describe(registry)
        )


@dataclass(frozen=True, slots=True)
class RoutingParts:
    """The choice of providers by one configuration."""

    rules: RoutingRules
    registry: ModelRegistry
    auto: AutoChoice
    selector: Selector


def lcpd_address(settings: Settings) -> LcpdAddress:
    """Return the daemon's address."""
    tls = None
    if settings.lcpd_tls:
        tls = TlsFiles(
            ca=settings.lcpd_tls_ca,
            certificate=settings.lcpd_tls_cert,
            key=settings.lcpd_tls_key,
            server_name=settings.lcpd_tls_server_name or None,
        )
    return LcpdAddress(
        target=settings.lcpd_grpc_addr,
        tls=tls,
        metadata=tuple(settings.lcpd_metadata.items()),
        proxy=may_use_proxy(settings, settings.lcpd_grpc_addr),
        transport=TransportKind(settings.lcpd_transport),
    )


def routing_rules(settings: Settings) -> RoutingRules:
    """Return the rules for the choice of a provider."""
    return RoutingRules(
        model_peers=settings.model_map,
        default_peer_id=settings.default_peer_id or None,
        allowlist=frozenset(settings.model_allowlist),
        allow_unlisted=settings.allow_unlisted_models,
        by_score=settings.explicit_choice == "score",
    )


def peer_models(settings: Settings) -> PeerModels:
    """Return the operator's lists of the models of peers that list none."""
    return PeerModels(settings.peer_models, settings.model_map)


def model_registry(settings: Settings) -> ModelRegistry:
    """Return the operator's models."""
    return ModelRegistry({name: _card(config) for name, config in settings.models.items()})


def http_nodes(settings: Settings) -> tuple[VirtualNode, ...]:
    """Return the virtual nodes of the settings."""
    return tuple(_node(config, settings) for config in reachable_nodes(settings))


def trust_rules(settings: Settings) -> TrustRules:
    """Return the rules for trust in peers."""
    return TrustRules(
        exposure_base_msat=settings.exposure_base_msat,
        exposure_share_ppm=settings.exposure_share_ppm,
        exposure_unproven_msat=settings.exposure_unproven_msat,
        breaker_failures=settings.breaker_failures,
        breaker_pause_s=settings.breaker_pause_s,
    )


def node_parts(
    settings: Settings, metrics: Metrics, tracing: Tracing, start_task: StartTask, log: FilteringBoundLogger
) -> NodeParts:
    """Make the parts of the nodes, of which a reload may bring the first. Opens nothing."""
    nodes = http_nodes(settings)

    def changed(name: str, up: bool) -> None:
        metrics.node_up(name, up)
        if up:
            log.info("a node is up", node=name, models=watch.states[name].models)
        else:
            log.warning("a node is down", node=name, problem=watch.states[name].problem)

    def removed(name: str) -> None:
        metrics.node_gone(name)
        log.info("a node was taken out", node=name)

    upstream = OpenAIHttpUpstream(
        nodes,
        on_down=lambda provider_id: watch.down(provider_id),  # noqa: PLW0108 - the watch is made later
        tracing=tracing,
    )
    watch = NodeWatch(
        upstream,
        nodes,
        refresh_s=settings.nodes_refresh_s,
        timeout_s=settings.timeout_quote_s,
        describe=_describe(model_registry(settings)),
        on_change=changed,
        on_gone=removed,
        start_task=start_task,
    )
    return NodeParts(upstream, watch, TokenCounter(nodes))


def routing_parts(
    settings: Settings,
    *,
    catalog: MergedCatalog,
    measurements: Measurements,
    trust: PeerTrust,
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> RoutingParts:
    """Wire the choice of providers."""
    rules, registry = routing_rules(settings), model_registry(settings)
    auto = AutoChoice(
        AutoPolicy(routing_weights(settings), settings.routing_temperature),
        measurements,
        trust.readiness,
        clock=time.monotonic,
    )

    def decided(order: Order, decision: Decision) -> None:
        if log.is_enabled_for(logging.INFO):
            log.info("routing decision", request_id=order.request_id, **decision.as_log())

    def chosen(order: Order, scored: Scored, asked: Mapping[str, int]) -> None:
        provider = scored.entry.provider
        metrics.choice(provider.source.value, provider.peer_id, scored.score)
        if len(asked) > 1:
            log.info(
                "quotes compared",
                request_id=order.request_id,
                provider=provider.peer_id,
                model=scored.entry.model,
                asked=[f"{msat} {provider_id}" for provider_id, msat in asked.items()],
            )

    selector = Selector(
        catalog,
        adapters=BODY_ADAPTERS,
        rules=rules,
        registry=registry,
        auto=auto,
        available=trust.available,
        on_decision=decided,
        on_choice=chosen,
    )
    return RoutingParts(rules, registry, auto, selector)


def routing_weights(settings: Settings) -> Weights:
    """Return the weights of the score."""
    return Weights(
        availability=settings.routing_weight_availability,
        speed=settings.routing_weight_speed,
        delivery=settings.routing_weight_delivery,
        price=settings.routing_weight_price,
        fit=settings.routing_weight_fit,
    )


def _describe(registry: ModelRegistry) -> Callable[[str, VirtualNode], frozenset[TaskKind]]:
    def describe(model: str, node: VirtualNode) -> frozenset[TaskKind]:
        return kinds_for(registry.traits(model), node.kinds)

    return describe


def _card(config: ModelConfig) -> ModelCard:
    return ModelCard(**{item.name: getattr(config, item.name) for item in fields(ModelCard)})


def node_price(config: NodeConfig | DialinNodeConfig) -> NodePrice:
    """Return the price list of a node."""
    return NodePrice(
        per_request_msat=config.price_per_request_msat,
        per_1k_input_msat=config.price_per_1k_input_msat,
        per_1k_output_msat=config.price_per_1k_output_msat,
        per_minute_msat=round(config.price_per_minute_sat * MSAT_PER_SAT),
        max_output_tokens=config.max_output_tokens,
    )


def _node(config: NodeConfig, settings: Settings) -> VirtualNode:
    return VirtualNode(
        name=config.name,
        base_url=config.base_url,
        api_key=config.api_key,
        price=node_price(config),
        timeout_s=config.timeout_s,
        models=config.models,
        owned_by=config.owned_by,
        kinds=frozenset(_KIND_OF[word] for word in config.endpoints),
        max_connections=config.max_connections,
        proxy=may_use_proxy(settings, config.base_url),
    )
