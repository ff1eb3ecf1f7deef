"""Runs a node as a program: starts it, says so, and stops it on a signal or when its parent is gone."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable

from lcp_gateway.node.config import NodeConfig
from lcp_gateway.node.server import Node

_GRACE_S = 1.0
_STDIN = 0


async def run(
    config: NodeConfig,
    *,
    ready: Callable[[str], None] | None = None,
    exit_with_stdin: bool = False,
) -> None:
    """Run a node until SIGTERM, SIGINT or, if asked for, the end of standard input.

    ``ready`` is called once with the address.

    Raises:
        ConfigError, BackendUnavailable: as ``Node.start``.
    """
    node = Node(config)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    watching = exit_with_stdin and _watch_stdin(loop, stopped)
    try:
        address = await node.start()
        (ready or _announce)(address)
        await stopped.wait()
    finally:
        if watching:
            loop.remove_reader(_STDIN)
        await node.stop(_GRACE_S)


def run_forever(config: NodeConfig, exit_with_stdin: bool = False) -> None:
    """Run a node on a loop of its own, on uvloop where there is one; returns when the node has stopped.

    Raises:
        ConfigError, BackendUnavailable: as ``Node.start``.
    """
    main = run(config, exit_with_stdin=exit_with_stdin)
    if sys.platform == "win32":
        asyncio.run(main)
    else:
        import uvloop  # noqa: PLC0415 - not there on Windows

        uvloop.run(main)


def _announce(address: str) -> None:
    sys.stdout.write(
        f"node ready on {address} - Lightning is simulated here, no real money moves\n"
    )
    sys.stdout.flush()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> bool:
    """Set ``stopped`` when standard input ends, and tell whether it can be watched at all."""

    def read() -> None:
        try:
            ended = not os.read(_STDIN, 4096)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            loop.remove_reader(_STDIN)
            stopped.set()

    try:
        os.set_blocking(_STDIN, False)
        loop.add_reader(_STDIN, read)
    except OSError:
        # A file or nothing at all: there is no parent at the other end that could go away.
        return False
    return True
