"""A buyer and a seller in processes of their own, each over its own small lnd, and a client of the buyer."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from lcp_gateway._gen.lcpd import extensions_pb2 as pb
from lcp_gateway._gen.lcpd import lcpd_pb2, lcpd_pb2_grpc
from lcp_gateway.lightning import bolt11
from tests.support.daemon import Daemon
from tests.support.gated_backend import GatedBackend
from tests.support.lnd_network import LndNetwork, LndNode, in_a_thread
from tests.support.node_client import chat_task
from tests.support.node_thread import eventually
from tests.support.ports import free_address

MODEL = "m"
CALL_S = 120.0
SELLER_SETTINGS = """\
[sell]
hold_invoices = {hold}
[[sell.models]]
name = "m"
input_msat_per_mtok = 1_000_000
output_msat_per_mtok = 10_000_000
[[sell.backends]]
kind = "openai"
url = "{url}"
"""
BUYER_SETTINGS = """\
[buy]
quote_timeout_s = {quote_timeout_s}
first_byte_timeout_s = 120
"""


@dataclass
class Purchase:
    """A purchase by the client, in a thread: its bytes as they come, and its end."""

    terms: lcpd_pb2.Terms
    body: bytearray = field(default_factory=bytearray)
    result: lcpd_pb2.Result | None = None
    error: grpc.RpcError | None = None
    thread: threading.Thread | None = None

    @property
    def payment_hash(self) -> bytes:
        return bolt11.decode(self.terms.payment_request).payment_hash

    @property
    def delivered(self) -> bool:
        return self.result is not None and self.result.status == lcpd_pb2.Result.STATUS_OK

    @property
    def is_cut_off(self) -> bool:
        """Whether the connection with the buyer broke: the end of the purchase is not known."""
        return self.error is not None and self.error.code() == grpc.StatusCode.UNAVAILABLE

    @property
    def payment_state(self) -> str:
        """Return what the buyer said of the payment in the end: NONE, SETTLED, UNKNOWN, or UNSPECIFIED for nothing."""
        report = pb.PaymentReport()
        if self.result is not None:
            report = self.result.payment
        elif self.error is not None:
            report.ParseFromString(dict(self.error.trailing_metadata() or ()).get("x-lcp-payment-bin", b""))
        return pb.PaymentReport.State.Name(report.state).removeprefix("STATE_")

    def wait(self) -> "Purchase":
        self.thread.join(CALL_S + 60)
        assert not self.thread.is_alive()
        return self


@dataclass
class LcpWorld:
    """The processes ``buyer`` and ``seller``, their lnds, and what the seller runs."""

    network: LndNetwork
    backend: GatedBackend
    buyer: Daemon
    seller: Daemon

    @property
    def buyer_lnd(self) -> LndNode:
        return self._lnd("buyer")

    @property
    def seller_lnd(self) -> LndNode:
        return self._lnd("seller")

    def _lnd(self, name: str) -> LndNode:
        return next(it for it in self.network.by_identity.values() if it.info.alias == name)

    @contextmanager
    def client(self) -> Iterator[lcpd_pb2_grpc.LCPDServiceStub]:
        """Connect with the buyer, anew after each of its restarts."""
        with grpc.insecure_channel(self.buyer.address) as channel:
            yield lcpd_pb2_grpc.LCPDServiceStub(channel)

    def is_ready(self) -> bool:
        """Return whether the buyer can ask the seller for a quote."""
        try:
            with self.client() as stub:
                peers = stub.ListLCPPeers(lcpd_pb2.ListLCPPeersRequest(), timeout=60).peers
        except grpc.RpcError:
            return False
        return self.seller_lnd.identity in [it.peer_id for it in peers]

    def until_ready(self) -> None:
        eventually(self.is_ready)

    def ask(self, *, stream: bool = True) -> lcpd_pb2.Terms:
        """Ask for a quote, once."""
        request = lcpd_pb2.RequestQuoteRequest(
            peer_id=self.seller_lnd.identity, task=chat_task(MODEL, stream=stream, max_tokens=10)
        )
        with self.client() as stub:
            return stub.RequestQuote(request, timeout=CALL_S).terms

    def quote(self, *, stream: bool = True) -> lcpd_pb2.Terms:
        """Ask for a quote until there is one: a seller that has just started may have missed the first request."""
        quotes = []

        def asked() -> bool:
            with suppress(grpc.RpcError):
                quotes.append(self.ask(stream=stream))
            return bool(quotes)

        eventually(asked)
        return quotes[0]

    def cancel(self, terms: lcpd_pb2.Terms) -> None:
        request = lcpd_pb2.CancelJobRequest(peer_id=self.seller_lnd.identity, job_id=terms.job_id)
        with self.client() as stub:
            stub.CancelJob(request, timeout=CALL_S)

    def accept(self, terms: lcpd_pb2.Terms) -> Purchase:
        """Begin a purchase in a thread."""
        purchase = Purchase(terms)
        purchase.thread = threading.Thread(target=self._accept, args=(purchase,), daemon=True)
        purchase.thread.start()
        return purchase

    def _accept(self, purchase: Purchase) -> None:
        request = lcpd_pb2.AcceptAndExecuteRequest(
            peer_id=self.seller_lnd.identity, job_id=purchase.terms.job_id, pay_invoice=True
        )
        try:
            with self.client() as stub:
                for event in stub.AcceptAndExecuteStream(request, timeout=CALL_S):
                    match event.WhichOneof("event"):
                        case "result_chunk":
                            purchase.body += event.result_chunk.data
                        case "result":
                            purchase.result = event.result
                            purchase.body += event.result.result
        except grpc.RpcError as error:
            purchase.error = error


@contextmanager
def lcp_world(folder: Path, *, hold: bool = False, quote_timeout_s: float = 5.0) -> Iterator[LcpWorld]:
    """Run both nodes for the block; ``hold`` makes the seller's invoices hold invoices."""
    with ExitStack() as stack:
        backend = stack.enter_context(GatedBackend().running())
        network = stack.enter_context(in_a_thread(folder, "buyer", "seller"))
        settings = {
            "buyer": BUYER_SETTINGS.format(quote_timeout_s=quote_timeout_s),
            "seller": SELLER_SETTINGS.format(url=backend.base_url, hold=json.dumps(hold)),
        }
        daemons = []
        for node in network.by_identity.values():
            name = node.info.alias
            file = folder / f"{name}.toml"
            file.write_text(f'{settings[name]}[store]\npath = "{folder / name}.db"\n')
            address = node.address
            flags = ("--lnd", address.target, "--tls-cert", str(address.tls_cert), "--macaroon", str(address.macaroon))
            daemons.append(Daemon(free_address(), (*flags, "--config", str(file))))
            stack.callback(daemons[-1].kill)
            daemons[-1].start()
        yield LcpWorld(network, backend, *daemons)
