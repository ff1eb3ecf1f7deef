"""Keeps the Lightning node connected with the peers that the operator names: it does so by itself only where it has channels."""

import asyncio
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from lcp_gateway.node.ports import LightningAway, Transport
from lcp_gateway.node.runtime.log import NodeLog
from lcp_gateway.node.runtime.tasks import Backoff, Tasks

_BACKOFF: Final = Backoff(first_s=1.0, most_s=60.0)
_LEAST_OF_PAUSE: Final = 0.5
"""A pause is this part of the back-off's, plus a random part of it: nodes that lost the same peer do not all call it at once."""


class Connector:
    """Connects with each of ``wanted`` (id: address) at the start and whenever it is missing.

    ``is_missing`` says whether a peer is known not to be connected: while the Lightning node is away it is not. ``chance``
    returns a number from 0 to 1.
    """

    def __init__(
        self,
        wanted: Mapping[str, str],
        *,
        transport: Transport,
        tasks: Tasks,
        log: NodeLog,
        is_missing: Callable[[str], bool],
        chance: Callable[[], float] = random.random,  # noqa: S311 - spreads load, and hides nothing
    ) -> None:
        self._wanted = dict(wanted)
        self._transport = transport
        self._tasks = tasks
        self._log = log
        self._is_missing = is_missing
        self._chance = chance

    def start(self) -> None:
        """Begin to look after each of the peers."""
        for peer_id, address in self._wanted.items():
            self._tasks.keep("connect", partial(self._keep_connected, peer_id, address))

    async def _keep_connected(self, peer_id: str, address: str) -> None:
        tries = 0
        while True:
            await asyncio.sleep(_BACKOFF.pause_s(tries + 1) * (_LEAST_OF_PAUSE + self._chance()))
            if not self._is_missing(peer_id):
                tries = 0
                continue
            # One that the Lightning node takes for connected, and that stays missing here, is a failure too.
            tries += 1
            try:
                await self._transport.connect(peer_id, address)
            except LightningAway as error:
                self._log.not_connected(peer_id, str(error))
