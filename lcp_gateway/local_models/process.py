"""The process of local models: serves the socket that it was handed, and ends with the process that started it."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys

import aiohttp
from aiohttp import web

from lcp_gateway.local_models.options import KEY_VARIABLE, LocalModelOptions
from lcp_gateway.local_models.pool import ModelPool
from lcp_gateway.local_models.server import ModelRoutes


async def serve(options: LocalModelOptions, listening: socket.socket, key: str) -> None:
    """Serve until standard input ends or SIGTERM comes."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)

    def read_input() -> None:
        if not os.read(0, 1024):
            ended.set()

    loop.add_reader(0, read_input)
    # An answer may take as long as it takes; the gateway has limits of its own.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        pool = ModelPool(options, session)
        routes = ModelRoutes(options, pool, session, key)
        runner = web.AppRunner(routes.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        ticking = asyncio.create_task(pool.run(), name="local_models")
        try:
            await ended.wait()
        finally:
            loop.remove_reader(0)
            ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking
            await runner.cleanup()
            await pool.close()


def main() -> int:
    """Serve the models of the first argument on the socket whose descriptor is the second."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="local models: %(message)s")
    options = LocalModelOptions.from_json(sys.argv[1])
    key = os.environ.pop(KEY_VARIABLE)
    with socket.socket(fileno=int(sys.argv[2])) as listening:
        asyncio.run(serve(options, listening, key))
    return 0


if __name__ == "__main__":
    sys.exit(main())
