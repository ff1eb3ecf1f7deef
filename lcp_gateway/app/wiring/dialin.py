"""Nodes that dial in as the settings say: the hub that keeps them, their tokens, and their upstream."""

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from structlog.typing import FilteringBoundLogger

from lcp_gateway.app.background_tasks import BackgroundTask
from lcp_gateway.app.wiring.routing import node_price
from lcp_gateway.config import DialinNodeConfig, Settings, all_nodes
from lcp_gateway.http.gateway.node_connect import NodeConnectRoutes
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.model_registry import ModelRegistry, kinds_for
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.dialin.adapter import DialinUpstream
from lcp_gateway.upstreams.dialin.connection import ConnectionRules
from lcp_gateway.upstreams.dialin.grants import (
    AccountNodes,
    AccountRules,
    AccountTokens,
    NodeTerms,
    NodeTokens,
    OperatorNode,
    OperatorTokens,
    SeveralTokens,
    token_digest,
)
from lcp_gateway.upstreams.dialin.hub import HubRules, NodeHub
from lcp_gateway.upstreams.dialin.offers import DescribeModel
from lcp_gateway.upstreams.dialin.probe import ProbeRules


@dataclass(frozen=True, slots=True)
class DialinParts:
    """The nodes that dial in; they outlive a change of settings."""

    hub: NodeHub
    upstream: DialinUpstream
    operator_tokens: OperatorTokens
    account_tokens: AccountTokens
    tokens: NodeTokens
    place: tuple[int, int]
    """The number of this worker, and how many there are."""

    def use(self, settings: Settings, registry: ModelRegistry) -> None:
        """Use other settings; nodes whose token or terms have changed are disconnected, and dial in again."""
        self.operator_tokens.use(operator_nodes(settings))
        self.account_tokens.use(_account_rules(settings))
        self.hub.use(_hub_rules(settings, registry, self.place))

    def task(self) -> BackgroundTask:
        """Return the task that keeps the connections."""
        return BackgroundTask("dialin", self.hub.run)

    def routes(self) -> NodeConnectRoutes:
        """Return the route at which nodes dial in."""
        return NodeConnectRoutes(self.tokens.find, self.hub.serve, self.hub.has_place)


def dialin_parts(
    settings: Settings,
    registry: ModelRegistry,
    *,
    accounts: AccountNodes | None,
    place: tuple[int, int] = (0, 1),
    metrics: Metrics,
    start: Callable[[Coroutine[Any, Any, None]], None],
    on_refuted: Callable[[str], None] = lambda _provider_id: None,
    log: FilteringBoundLogger,
) -> DialinParts:
    """Make the parts; opens nothing.

    ``accounts`` has the nodes of accounts, None where no accounts are kept. ``on_refuted`` gets the id of a provider whose stated
    usage was not believed.
    """

    def changed(terms: NodeTerms, up: bool, reason: str) -> None:
        name = terms.node_id
        if terms.account_id is None:
            # That a node of an account leaves is no problem of the operator's.
            metrics.node_up(name, up)
        if up:
            log.info("a node has dialled in", node=name)
        else:
            metrics.node_disconnected(reason)
            log.warning("a node that had dialled in is gone", node=name, reason=reason)

    def refuted(provider_id: str) -> None:
        metrics.usage_refuted()
        on_refuted(provider_id)
        log.warning("the usage that a node states was not believed", provider=provider_id)

    hub = NodeHub(_hub_rules(settings, registry, place), start=start, on_change=changed)
    metrics.watch_dialled_in(lambda: hub.connected)
    operator_tokens = OperatorTokens(operator_nodes(settings))
    account_tokens = AccountTokens(accounts, _account_rules(settings))
    max_result_bytes = ConnectionRules().max_result_bytes
    upstream = DialinUpstream(hub, max_result_bytes=max_result_bytes, on_refuted=refuted)
    return DialinParts(
        hub, upstream, operator_tokens, account_tokens, SeveralTokens(operator_tokens, account_tokens), place
    )


def operator_nodes(settings: Settings) -> Iterator[OperatorNode]:
    """Yield the operator's own nodes that can dial in."""
    for config in settings.dialin_nodes:
        if config.token:
            yield OperatorNode(token_digest(config.token), _terms(config))


def _account_rules(settings: Settings) -> AccountRules:
    return AccountRules(
        is_on=settings.dialin_accounts, models=frozenset(settings.dialin_models), timeout_s=settings.dialin_timeout_s
    )


def _terms(config: DialinNodeConfig) -> NodeTerms:
    return NodeTerms(
        node_id=config.name,
        models=frozenset(config.models),
        price=node_price(config),
        owned_by=config.owned_by,
        timeout_s=config.timeout_s,
        concurrent=config.max_concurrent,
    )


def _hub_rules(settings: Settings, registry: ModelRegistry, place: tuple[int, int]) -> HubRules:
    worker, workers = place
    return HubRules(
        connection=ConnectionRules(
            heartbeat_s=settings.dialin_heartbeat_s,
            window_bytes=settings.dialin_window_bytes,
            worker=worker,
            workers=workers,
        ),
        probe=ProbeRules(
            is_on=settings.dialin_probe,
            prompt=settings.dialin_probe_prompt,
            answer=settings.dialin_probe_answer,
            interval_s=settings.dialin_probe_interval_s,
        ),
        max_nodes=settings.dialin_max_nodes,
        taken_names=frozenset(node.name for node in all_nodes(settings)),
        describe=_describe(registry),
    )


def _describe(registry: ModelRegistry) -> DescribeModel:
    def describe(model: str, kinds: frozenset[TaskKind]) -> frozenset[TaskKind]:
        return kinds_for(registry.traits(model), kinds)

    return describe
