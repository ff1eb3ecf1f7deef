"""The providers that a command can ask, the daemon's peers and the nodes, and routing over them with nothing measured."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from lcp_gateway.cli.gateway_client import RunningGateway, find_gateway
from lcp_gateway.cli.output import CommandFailed, report
from lcp_gateway.config import Settings, all_nodes, specs
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.ports import Upstream
from lcp_gateway.routing.auto import AutoChoice, AutoPolicy
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.measurements import Measurements
from lcp_gateway.routing.model_registry import ModelRegistry, kinds_for
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream

if TYPE_CHECKING:
    from lcp_gateway.app.wiring.routing import NodeParts
    from lcp_gateway.routing.selection import Selector
    from lcp_gateway.upstreams.openai.connections import VirtualNode


_POLL_S = 0.1
_T = TypeVar("_T")


@contextlib.asynccontextmanager
async def opened_daemon(settings: Settings) -> AsyncIterator[LcpdUpstream]:
    """Open the daemon that the settings name, and close it after the block."""
    from lcp_gateway.app.wiring.routing import lcpd_address, peer_models  # noqa: PLC0415 - imports the whole gateway

    upstream = LcpdUpstream(lcpd_address(settings), models=peer_models(settings))
    try:
        yield upstream
    finally:
        await upstream.close()


async def retry_until_up(settings: Settings, ask: Callable[[float], Awaitable[_T]]) -> _T:
    """Ask within ``preflight_timeout_s``. An embedded node, which was only just started, is asked until it is up.

    Raises:
        UpstreamError: it did not answer.
    """
    deadline = time.monotonic() + settings.preflight_timeout_s
    while True:
        left_s = max(deadline - time.monotonic(), _POLL_S)
        try:
            return await ask(left_s)
        except UpstreamError as error:
            starting = settings.embedded and error.status == UpstreamStatus.UNAVAILABLE
            if not starting or time.monotonic() + _POLL_S >= deadline:
                raise
        await asyncio.sleep(_POLL_S)


def describe_daemon_error(error: UpstreamError, settings: Settings) -> str:
    """Describe an error of the daemon; where there was no answer, without gRPC's own lengthy words."""
    if error.status.is_unanswered:
        return f"the daemon at {settings.lcpd_grpc_addr} does not answer ({error.status})"
    return f"{error.message} ({error.status})"


def daemon_advice(error: UpstreamError, settings: Settings) -> str:
    """Return the advice for an error of the daemon."""
    match error.status:
        case UpstreamStatus.UNAVAILABLE | UpstreamStatus.DEADLINE_EXCEEDED if settings.embedded:
            return "the embedded node did not start; its own message should stand above"
        case UpstreamStatus.UNAVAILABLE | UpstreamStatus.DEADLINE_EXCEEDED:
            return (
                "is lcpd-grpcd running there, with TLS as lcpd_tls says? "
                "Set lcpd_grpc_addr to its address, or try --embedded"
            )
        case UpstreamStatus.UNAUTHENTICATED | UpstreamStatus.PERMISSION_DENIED:
            return "set the credentials that the daemon asks for in lcpd_metadata"
        case UpstreamStatus.UNIMPLEMENTED:
            return "another server than lcpd-grpcd listens there: check lcpd_grpc_addr"
        case _:
            return "see the daemon's own log"


NOTHING_MEASURED = "nothing measured yet: scores are those of untried providers"


DirectOption = Annotated[
    bool,
    typer.Option(
        "--direct", help="Ask daemon and nodes, also where a gateway runs; any other flag for them does so too."
    ),
]


@dataclass(frozen=True, slots=True)
class ReachableProviders:
    """The providers that answered, and the upstream by which they are asked."""

    upstream: Upstream
    catalog: Catalog


@dataclass(frozen=True, slots=True)
class UnmeasuredRouting:
    """Routing as in a gateway that has just started: nothing is measured, and the best score is always chosen."""

    registry: ModelRegistry
    auto: AutoChoice
    selector: "Selector"


def gateway_to_ask(settings: Settings, flags: Mapping[str, object], *, direct: bool) -> RunningGateway | None:
    """Return the running gateway, which has measured; None where daemon and nodes are to be asked.

    Those are asked where no gateway runs, with ``direct``, and where flags describe them and name no gateway.
    """
    describing = [specs()[name].flag for name, value in flags.items() if value is not None and name != "http_addr"]
    if direct or (describing and flags.get("http_addr") is None):
        return None
    gateway = find_gateway(settings)
    if gateway is not None and describing:
        names = ", ".join(describing)
        report(f"the running gateway has settings of its own: not used here: {names} (see --direct)")
    return gateway


@contextlib.asynccontextmanager
async def reachable_providers(settings: Settings) -> AsyncIterator[ReachableProviders]:
    """Ask all providers, and keep the connections for the block. Those that do not answer are reported on standard error."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            peers = await stack.enter_async_context(opened_daemon(settings))
        except OSError as error:
            raise CommandFailed(f"{error.filename or 'lcpd_tls_*'}: {error.strerror}") from None
        nodes = await stack.enter_async_context(opened_nodes(settings))
        if nodes is None:
            found = await _peers(peers, settings, nodes)
            yield ReachableProviders(peers, Catalog(found, time.monotonic()))
            return
        from lcp_gateway.upstreams.sources import UpstreamBySource  # noqa: PLC0415 - only where there are nodes

        found, _ = await asyncio.gather(_peers(peers, settings, nodes), nodes.watch.refresh())
        states = nodes.watch.states
        report(*(f"node {name}: {s.problem}" for name, s in states.items() if not s.up))
        yield ReachableProviders(
            UpstreamBySource(peers, nodes.upstream), Catalog((*found, *nodes.watch.providers), time.monotonic())
        )


@contextlib.asynccontextmanager
async def opened_nodes(settings: Settings) -> "AsyncIterator[NodeParts | None]":
    """Yield the parts by which the nodes of the settings are asked, for the block; None where there are none."""
    if not all_nodes(settings):
        yield None
        return
    from lcp_gateway.app.wiring.routing import NodeParts, http_nodes, model_registry  # noqa: PLC0415 - imports the whole gateway
    from lcp_gateway.upstreams.openai.adapter import OpenAIHttpUpstream  # noqa: PLC0415 - as above
    from lcp_gateway.upstreams.openai.input_tokens import TokenCounter  # noqa: PLC0415 - as above
    from lcp_gateway.upstreams.openai.node_watch import NodeWatch  # noqa: PLC0415 - as above

    nodes, registry = http_nodes(settings), model_registry(settings)

    def describe_model(model: str, node: "VirtualNode") -> frozenset[TaskKind]:
        return kinds_for(registry.traits(model), node.kinds)

    upstream = OpenAIHttpUpstream(nodes)
    watch = NodeWatch(
        upstream, nodes, refresh_s=settings.nodes_refresh_s, timeout_s=settings.timeout_quote_s, describe=describe_model
    )
    try:
        yield NodeParts(upstream, watch, TokenCounter())
    finally:
        await upstream.close()


def unmeasured_routing(settings: Settings, catalog: Catalog) -> UnmeasuredRouting:
    """Build the parts that choose a provider, over a catalog that does not change."""
    from lcp_gateway.app.wiring.routing import BODY_ADAPTERS, model_registry, routing_rules, routing_weights  # noqa: PLC0415 - as above
    from lcp_gateway.routing.selection import Selector  # noqa: PLC0415 - imports the whole gateway

    registry = model_registry(settings)
    auto = AutoChoice(
        AutoPolicy(routing_weights(settings), settings.routing_temperature),
        Measurements(half_life_s=settings.routing_half_life_s, clock=time.monotonic),
        lambda _provider_id: 1.0,
        clock=time.monotonic,
    )
    selector = Selector(
        _FixedCatalog(catalog),
        adapters=BODY_ADAPTERS,
        rules=routing_rules(settings),
        registry=registry,
        auto=auto,
        available=lambda _provider_id: True,
        draw=lambda: 0.0,
    )
    return UnmeasuredRouting(registry, auto, selector)


class _FixedCatalog:
    """A source whose catalog does not change."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    @property
    def catalog(self) -> Catalog:
        """The only snapshot."""
        return self._catalog

    async def refresh_if_stale(self) -> Catalog:
        """Return the only snapshot."""
        return self._catalog


async def _peers(upstream: LcpdUpstream, settings: Settings, nodes: "NodeParts | None") -> tuple[Provider, ...]:
    try:
        return await retry_until_up(settings, upstream.list_peers)
    except UpstreamError as error:
        words = f"{describe_daemon_error(error, settings)}: {daemon_advice(error, settings)}"
        if nodes is None:
            raise CommandFailed(words) from None
        report(words)
        return ()
