"""A stand-in for lnd in a process of its own: TLS, and the calls that a gateway makes to read fees and preimages.

``python -m bench.lnd_standin CERTIFICATE KEY PAID PORT`` serves until standard input ends. It knows the payments whose preimages the
stand-in daemon wrote to the file ``PAID``, 32 bytes each, with a route of three hops each in lnd's format.
"""

import asyncio
import hashlib
import sys
import time
from pathlib import Path

import grpc.aio
import uvloop

from bench.standin import PEER_ID, PRICE_MSAT
from lcp_gateway.lightning.lnd.stubs import load_stubs

_STUBS = load_stubs()
_LN = _STUBS.lightning
_SUCCEEDED = 2
_BYTES = 32
_HOPS = 3


def _payment(index: int, preimage: bytes):
    hop = _LN.Hop(chan_id=1 << 50, amt_to_forward_msat=PRICE_MSAT, pub_key=PEER_ID, tlv_payload=True)
    attempt = _LN.HTLCAttempt(
        attempt_id=index,
        status=_LN.HTLCAttempt.SUCCEEDED,
        preimage=preimage,
        route=_LN.Route(total_amt_msat=PRICE_MSAT + 1_000, hops=[hop] * _HOPS),
    )
    return _LN.Payment(
        payment_hash=hashlib.sha256(preimage).hexdigest(),
        payment_preimage=preimage.hex(),
        payment_request="lnbcrt1" + "x" * 400,
        value_msat=PRICE_MSAT,
        fee_msat=1_000,
        status=_SUCCEEDED,
        creation_time_ns=time.time_ns(),
        payment_index=index,
        htlcs=[attempt],
    )


class Lightning(_STUBS.lightning_grpc.LightningServicer):
    """The calls of the service Lightning that the gateway makes."""

    def __init__(self, paid: Path) -> None:
        self._paid = paid

    def preimages(self) -> list[bytes]:
        content = self._paid.read_bytes() if self._paid.exists() else b""
        return [content[at : at + _BYTES] for at in range(0, len(content) - _BYTES + 1, _BYTES)]

    async def GetInfo(self, _request, _context):  # noqa: N802 - lnd's name
        return _LN.GetInfoResponse(
            identity_pubkey=PEER_ID,
            chains=[_LN.Chain(chain="bitcoin", network="regtest")],
            synced_to_chain=True,
            synced_to_graph=True,
            num_active_channels=1,
        )

    async def ChannelBalance(self, _request, _context):  # noqa: N802 - lnd's name
        return _LN.ChannelBalanceResponse(local_balance=_LN.Amount(msat=1_000_000_000))

    async def ListPayments(self, request, _context):  # noqa: N802 - lnd's name
        known = list(enumerate(self.preimages(), 1))
        offset, limit = request.index_offset, request.max_payments
        if request.reversed:
            page = [it for it in known if not offset or it[0] < offset][-limit:]
        else:
            page = known[offset : offset + limit]
        return _LN.ListPaymentsResponse(
            payments=[_payment(index, preimage) for index, preimage in page],
            first_index_offset=page[0][0] if page else 0,
            last_index_offset=page[-1][0] if page else 0,
        )


class Router(_STUBS.router_grpc.RouterServicer):
    """A payment looked up by its hash."""

    def __init__(self, lightning: Lightning) -> None:
        self._lightning = lightning

    async def TrackPaymentV2(self, request, context):  # noqa: N802 - lnd's name
        # The newest first: it is asked for right after it was paid.
        for preimage in reversed(self._lightning.preimages()):
            if hashlib.sha256(preimage).digest() == request.payment_hash:
                yield _payment(1, preimage)
                return
        await context.abort(grpc.StatusCode.NOT_FOUND, "payment isn't initiated")


async def serve(certificate: bytes, key: bytes, paid: Path, port: int) -> None:
    """Serve until standard input ends."""
    lightning = Lightning(paid)
    server = grpc.aio.server()
    _STUBS.lightning_grpc.add_LightningServicer_to_server(lightning, server)
    _STUBS.router_grpc.add_RouterServicer_to_server(Router(lightning), server)
    shown = grpc.ssl_server_credentials([(key, certificate)])
    server.add_secure_port(f"127.0.0.1:{port}", shown)
    await server.start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    certificate, key, paid = [Path(argument) for argument in sys.argv[1:4]]
    uvloop.run(serve(certificate.read_bytes(), key.read_bytes(), paid, int(sys.argv[4])))
