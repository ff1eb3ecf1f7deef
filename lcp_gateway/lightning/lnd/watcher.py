"""Watches an lnd: whether it answers, whether it follows the chain, and whether it is the one that pays."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from structlog.typing import FilteringBoundLogger

from lcp_gateway.lightning.lnd.records import LndError

if TYPE_CHECKING:
    # The client needs gRPC, which a reader of the state does without.
    from lcp_gateway.lightning.lnd.client import LndClient

INTERVAL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class LndState:
    """An lnd at its last answer. While it is not ``reachable``, ``problem`` names why and all else is empty.

    ``pays`` says that it is the lnd that the daemon pays with, ``invoice_prefix`` is that of its network's invoices.
    """

    reachable: bool = False
    problem: str = ""
    network: str = ""
    invoice_prefix: str | None = None
    synced_to_chain: bool = False
    synced_to_graph: bool = False
    local_msat: int = 0
    channels_active: int = 0
    channels_inactive: int = 0
    pays: bool = False

    def report(self) -> Mapping[str, object]:
        """Return the state as ``/readyz`` shows it."""
        if not self.reachable:
            problem = {"problem": self.problem} if self.problem else {}
            return {"reachable": False, **problem}
        return {
            "reachable": True,
            "synced_to_chain": self.synced_to_chain,
            "network": self.network,
            "local_msat": self.local_msat,
            "channels_active": self.channels_active,
            "channels_inactive": self.channels_inactive,
            "pays": self.pays,
        }


class LndWatcher:
    """Asks an lnd for its state every ``interval_s``."""

    def __init__(
        self,
        lnd: "LndClient",
        *,
        daemon_node_id: Callable[[], str],
        log: FilteringBoundLogger,
        on_state: Callable[[LndState], None] = lambda _state: None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """``daemon_node_id`` returns the id of the node that pays, empty while it is not known."""
        self._lnd = lnd
        self._daemon_node_id = daemon_node_id
        self._log = log
        self._on_state = on_state
        self._interval_s = interval_s
        self._is_warned = False
        self.state = LndState()
        # Stays unchanged while lnd is unreachable: it is the same lnd when it is back.
        self.pays = False

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                info = await self._lnd.info()
                balance = await self._lnd.balance()
            except LndError as error:
                self._set(LndState(problem=error.status))
            except Exception as error:
                # The answer cannot be read: the state before it is no longer valid.
                self._set(LndState(problem=type(error).__name__))
                raise
            else:
                self._compare(info.identity, self._daemon_node_id())
                self._set(
                    LndState(
                        reachable=True,
                        network=info.network,
                        invoice_prefix=info.invoice_prefix,
                        synced_to_chain=info.synced_to_chain,
                        synced_to_graph=info.synced_to_graph,
                        local_msat=balance.local_msat,
                        channels_active=info.channels_active,
                        channels_inactive=info.channels_inactive,
                        pays=self.pays,
                    )
                )
            await asyncio.sleep(self._interval_s)

    def _set(self, state: LndState) -> None:
        self.state = state
        self._on_state(state)

    def _compare(self, node_id: str, daemon_node_id: str) -> None:
        """Record whether this is the lnd that pays, and warn once of one that is not."""
        self.pays = node_id == daemon_node_id
        if not self.pays and daemon_node_id and not self._is_warned:
            self._log.warning(
                "lnd_grpc_addr is not the lnd that the daemon pays with: no fee can be read there, "
                "and no unknown payment proven not to be paid",
                lnd_node_id=node_id,
                daemon_node_id=daemon_node_id,
            )
        self._is_warned = not self.pays and bool(daemon_node_id)
