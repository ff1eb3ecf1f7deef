"""lnd's stand-in beside a node with a wallet of its own: it reports each payment of the wallet, a moment later."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lcp_gateway.node.config import NodeConfig, derive_key
from tests.support.lnd_standin import FAILED, LndStandin, in_a_thread, settled, unfinished

FAILURE_REASON_NO_ROUTE = 2
POLL_S = 0.05


class Follower:
    """Reads the node's events and adds the payments to the stand-in."""

    def __init__(self, events_file: Path, lnd: LndStandin) -> None:
        self._events_file = events_file
        self._lnd = lnd
        self._read_bytes = 0
        self._preimages: dict[str, bytes] = {}

    def catch_up(self) -> None:
        """Read the events since the last call."""
        if not self._events_file.exists():
            return
        with self._events_file.open("rb") as file:
            file.seek(self._read_bytes)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self._read_bytes += len(whole) + 1
            for line in whole.split(b"\n"):
                self._take(json.loads(line))

    def _take(self, event: dict) -> None:
        payment_hash, value_msat = event["payment_hash"], event["price_msat"]
        match event["kind"]:
            case "paid":
                self._preimages[payment_hash] = bytes.fromhex(event["detail"])
                payment = unfinished(bytes.fromhex(payment_hash), value_msat=value_msat)
            case "settled":
                preimage, fee_msat = self._preimages[payment_hash], event["fee_msat"]
                payment = settled(preimage, value_msat=value_msat, fee_msat=fee_msat)
            case "unpaid":
                payment = unfinished(
                    bytes.fromhex(payment_hash),
                    status=FAILED,
                    failure_reason=FAILURE_REASON_NO_ROUTE,
                    value_msat=value_msat,
                )
            case _:
                return
        self._lnd.knows(payment)


@contextmanager
def lnd_beside(events_file: Path, folder: Path) -> Iterator[LndStandin]:
    """Run an lnd that has the node's identity and knows its wallet's payments."""
    lnd = LndStandin(folder, key=derive_key(NodeConfig().seed, "node"))
    follower = Follower(events_file, lnd)
    over = threading.Event()

    def follow() -> None:
        while not over.wait(POLL_S):
            follower.catch_up()

    with in_a_thread(lnd):
        thread = threading.Thread(target=follow, name="follows the wallet", daemon=True)
        thread.start()
        try:
            yield lnd
        finally:
            over.set()
            thread.join(5)
