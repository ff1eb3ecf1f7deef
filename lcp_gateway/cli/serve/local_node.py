"""The node over lnd in the gateway's own process: ``serve --lnd``."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

from lcp_gateway.cli.node.assembly import running_node, wait_for_lnd
from lcp_gateway.cli.node.local_models import local_models_for
from lcp_gateway.cli.node.logs import NodeEvents, bug_logger
from lcp_gateway.cli.node.options import load_node_settings, store_path
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.cli.serve.in_process import InProcessTransport
from lcp_gateway.config import Settings
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.rpc.service import RpcService
from lcp_gateway.node.settings.model import NodeSettings
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.telemetry.node_metrics import NodeMetrics
from lcp_gateway.upstreams.lcpd.transport import Transport

_DRAIN_S: Final = 20.0
"""How long the node's own sales may take to end, after the gateway's requests."""


class LocalNode:
    """A node that runs in the gateway's process, on its event loop."""

    def __init__(self, settings: NodeSettings, store: Path) -> None:
        self._settings = settings
        self._store = store

    @classmethod
    @contextlib.contextmanager
    def of(cls, settings: Settings) -> Iterator["LocalNode"]:
        """Yield the node that the gateway's settings describe; the local models that it sells run for the block.

        Raises:
            CommandFailed: a setting cannot be used.
        """
        lnd = {
            "grpc_addr": settings.lnd,
            "tls_cert": settings.lnd_tls_cert,
            "macaroon_file": settings.lnd_node_macaroon_file,
        }
        given: dict[str, Any] = {name: str(value) for name, value in lnd.items() if value}
        node = load_node_settings(settings.node_config, {"lnd": given})
        if not node.buy.enabled:
            raise CommandFailed(
                f"{settings.node_config}: buy.enabled is false, and the gateway buys with this node: remove it, or start "
                "`lcp-gateway node` without the gateway",
                exit_code=USAGE_ERROR,
            )
        with local_models_for(node, tell=get_logger("node").warning) as using_models:
            yield cls(using_models, store_path(node))

    @contextlib.asynccontextmanager
    async def running(self, metrics: Metrics) -> AsyncIterator[Transport]:
        """Run the node for the block, and yield the transport to it.

        Raises:
            CommandFailed: lnd does not answer, its macaroon allows too little, or the store cannot be used.
        """
        settings, log = self._settings, get_logger("node")
        await wait_for_lnd(settings)
        counted = NodeMetrics(metrics.registry, models=settings.sell.sold)
        async with running_node(settings, self._store, observer=counted, log=NodeEvents(counted, log)) as node:
            transport = InProcessTransport(
                RpcService(node, Protocol(settings.grpc.protocol_version)), on_bug=bug_logger(log)
            )
            metrics.before_scrape = lambda: counted.set_figures(node.figures())
            try:
                yield transport
            finally:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(node.drain(), _DRAIN_S)
                node.fail_callers()
                await transport.close()
