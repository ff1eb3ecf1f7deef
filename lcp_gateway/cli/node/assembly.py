"""A node over lnd, put together from its settings: lnd's ports, the store, the backends."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.lightning.lnd.channel import LndAddress
from lcp_gateway.lightning.lnd.stubs import LndNotInstalled
from lcp_gateway.node.compute.routes import ComputeRoutes
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.lnd.invoices import LndJobInvoices
from lcp_gateway.node.lnd.payments import LndJobPayments
from lcp_gateway.node.lnd.permissions import NotPermitted, check_permissions
from lcp_gateway.node.lnd.transport import LndTransport
from lcp_gateway.node.ports import Compute, LightningAway
from lcp_gateway.node.rpc.server import CannotServe, ServerOptions
from lcp_gateway.node.runtime.log import NodeLog
from lcp_gateway.node.runtime.node import LcpNode
from lcp_gateway.node.runtime.observer import NodeObserver
from lcp_gateway.node.settings.loading import read_api_key
from lcp_gateway.node.settings.model import BackendSettings, GrpcSettings, LndSettings, NodeSettings, SellSettings
from lcp_gateway.node.storage.store import SqliteStore

_LND_PAUSE_S: Final = 0.2


@contextlib.asynccontextmanager
async def running_node(
    settings: NodeSettings, store: Path, *, observer: NodeObserver, log: NodeLog
) -> AsyncIterator[LcpNode]:
    """Run a node for the block. lnd may be away: the node takes it up when it is back.

    Raises:
        CommandFailed: a file of lnd or of a backend cannot be read, or the store cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        address, sell = lnd_address(settings.lnd), settings.sell
        try:
            transport = await stack.enter_async_context(LndTransport(address))
            payments = await stack.enter_async_context(LndJobPayments(address))
            invoices = await stack.enter_async_context(LndJobInvoices(address, route_hints=settings.sell.route_hints))
        except (LndNotInstalled, OSError) as error:
            raise CommandFailed(f"lnd cannot be used: {error}", exit_code=USAGE_ERROR) from None
        compute = open_backends(sell) if sell.active else None
        if compute is not None:
            stack.push_async_callback(compute.close)
        kept = settings.store
        try:
            opened = await SqliteStore.open(
                store,
                key_file=kept.key_file,
                at_rest=kept.at_rest,
                history_days=kept.history_days,
                history_lines=kept.history_lines,
            )
        except OSError as error:
            raise CommandFailed(f"the node's store: {error}") from None
        stack.push_async_callback(opened.close)
        node = LcpNode(
            transport=transport,
            payments=payments,
            invoices=invoices,
            store=opened,
            compute=compute,
            observer=observer,
            log=log,
            models=sell.sold,
            terms=sell.terms,
            allowed=sell.allow or None,
            denied=sell.deny,
            connect_with=settings.peer_addresses,
            limits=settings.limits,
            bounds=sell.bounds,
            buys=settings.buy.enabled,
            payment_limits=settings.buy.payment_limits,
            delays=settings.delays,
        )
        try:
            await node.start()
        except OSError as error:
            raise CommandFailed(f"the node's store: {error}") from None
        stack.push_async_callback(node.stop)
        yield node


def open_backends(sell: SellSettings) -> Compute:
    """Return what runs the models that are sold.

    Raises:
        CommandFailed: the file of an API key cannot be read.
    """
    opened = {backend.name: _open_backend(backend) for backend in sell.backends}
    return ComputeRoutes({model.name: opened[sell.backend_of(model).name] for model in sell.models})


def _open_backend(backend: BackendSettings) -> Compute:
    # Each is imported where it is used: a buyer needs none of them.
    if backend.kind == "echo":
        from lcp_gateway.node.compute.echo import EchoBackend  # noqa: PLC0415 - as above

        return EchoBackend(backend.tokens_per_second)
    if backend.kind == "deterministic":
        from lcp_gateway.node.compute.deterministic import DeterministicBackend  # noqa: PLC0415 - as above

        return DeterministicBackend(backend.output)
    from lcp_gateway.node.compute.http import BackendLimits, HttpBackend  # noqa: PLC0415 - as above

    return HttpBackend(
        backend.url,
        read_api_key(backend),
        limits=BackendLimits(
            stream_begin_s=backend.stream_begin_timeout_s,
            whole_begin_s=backend.whole_begin_timeout_s,
            idle_s=backend.idle_timeout_s,
            max_result_bytes=backend.max_result_bytes,
        ),
    )


def lnd_address(lnd: LndSettings) -> LndAddress:
    """Return lnd's address.

    Raises:
        CommandFailed: a macaroon without a certificate.
    """
    try:
        return LndAddress(lnd.grpc_addr, lnd.tls_cert, lnd.macaroon_file)
    except ValueError as error:
        raise CommandFailed(f"lnd: {error}", exit_code=USAGE_ERROR) from None


async def wait_for_lnd(settings: NodeSettings) -> None:
    """Wait until lnd answers, and check that the macaroon allows what the node does.

    Raises:
        CommandFailed: lnd did not answer within ``startup_timeout_s``, or the macaroon allows too little.
    """
    address, sell = lnd_address(settings.lnd), settings.sell
    roles = {
        "buys": settings.buy.enabled,
        "sells": sell.active,
        "holds": sell.active and sell.hold_invoices,
        "connects": bool(settings.peers),
    }
    deadline = time.monotonic() + settings.startup_timeout_s
    while True:
        try:
            await check_permissions(address, **roles)
        except NotPermitted as error:
            raise CommandFailed(f"lnd: {error}", exit_code=USAGE_ERROR) from None
        except (LndNotInstalled, OSError) as error:
            raise CommandFailed(f"lnd cannot be used: {error}", exit_code=USAGE_ERROR) from None
        except LightningAway as error:
            if time.monotonic() + _LND_PAUSE_S >= deadline:
                raise CommandFailed(
                    f"lnd at {settings.lnd.grpc_addr} did not answer within {settings.startup_timeout_s:g} s ({error}): "
                    "start it, unlock its wallet, or name another address"
                ) from None
            await asyncio.sleep(_LND_PAUSE_S)
        else:
            return


def server_options(grpc: GrpcSettings) -> ServerOptions:
    """Return how the node's port is served.

    Raises:
        CommandFailed: a file cannot be read, or the address needs TLS and a token.
    """
    options = ServerOptions(
        listen=grpc.listen,
        protocol=Protocol(grpc.protocol_version),
        certificate=_read(grpc.tls_cert),
        key=_read(grpc.tls_key),
        token=read_secret(grpc.token_file),
        allow_insecure=grpc.allow_insecure,
    )
    if grpc.token_file is not None and not options.token:
        raise CommandFailed(f"{grpc.token_file}: holds no token", exit_code=USAGE_ERROR)
    try:
        options.check()
    except CannotServe as error:
        raise CommandFailed(f"node: {error}", exit_code=USAGE_ERROR) from None
    return options


def read_secret(path: Path | None) -> str:
    """Return the text of a file without the blanks around it; empty for None.

    Raises:
        CommandFailed: it cannot be read.
    """
    try:
        return _read(path).decode("ascii").strip()
    except UnicodeDecodeError:
        raise CommandFailed(f"{path}: holds bytes that are no ASCII text", exit_code=USAGE_ERROR) from None


def _read(path: Path | None) -> bytes:
    try:
        return b"" if path is None else path.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{path}: cannot be read: {error.strerror}", exit_code=USAGE_ERROR) from None
