"""The gateway with the embedded node in its own process, as with ``serve --lnd``: there is no gRPC between them.

As a program it is run with the gateway's command line: ``python -m tests.support.gateway_with_node serve …``.
"""

import contextlib
import os
import sys
import traceback

import lcp_gateway.app
from lcp_gateway.cli import main
from lcp_gateway.cli.serve.embedded import node_options
from lcp_gateway.cli.serve.in_process import InProcessTransport
from lcp_gateway.config import load
from lcp_gateway.node.config import NodeConfig
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.rpc.service import RpcService
from lcp_gateway.node.server import Node


class NodeInProcess:
    """A node in place of a daemon. Unlike the embedded one behind its port it reports payments."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config

    @contextlib.asynccontextmanager
    async def running(self, metrics):
        node = Node(self._config)
        transport = None
        try:
            calls = await node.start_calls(reports_payments=True)
            transport = InProcessTransport(RpcService(calls, Protocol.V02), on_bug=_print_bug)
            yield transport
        finally:
            if transport is not None:
                await transport.close()
            await node.stop()


def _print_bug(name, error) -> None:
    sys.stderr.write(f"bug in {name}: {''.join(traceback.format_exception(error))}\n")


def run_gateway() -> int:
    config = node_options(load(flags={}, environ=os.environ).settings, listen="127.0.0.1:0").node_config()
    run, daemon = lcp_gateway.app.run, NodeInProcess(config)
    lcp_gateway.app.run = lambda *settings, **more: run(*settings, **(more | {"local_daemon": daemon}))
    return main()


if __name__ == "__main__":
    sys.exit(run_gateway())
