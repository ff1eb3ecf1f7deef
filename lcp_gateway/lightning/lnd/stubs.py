"""The generated stubs of lnd's own interface. They come with lnd-grpc-client, an optional extra, and load on demand.

Its client is not used: it swallows errors. The stubs are those of lnd 0.16; a value that a later lnd adds to an enumeration
arrives as a number, and is read as a number.
"""

import os
from dataclasses import dataclass
from typing import Any


class LndNotInstalled(RuntimeError):
    """lnd is configured, and the extra with its stubs is not installed."""


@dataclass(frozen=True, slots=True)
class Stubs:
    """The generated modules, which have no types."""

    lightning: Any
    lightning_grpc: Any
    router: Any
    router_grpc: Any
    invoices: Any
    invoices_grpc: Any


def load_stubs() -> Stubs:
    """Import the stubs, once; the process's environment stays as it is.

    Raises:
        LndNotInstalled: the extra is missing.
    """
    name = "GRPC_SSL_CIPHER_SUITES"
    before = os.environ.get(name)
    try:
        from lndgrpc.compiled import (  # type: ignore[import-untyped]  # noqa: PLC0415 - heavy, and optional
            invoices_pb2,
            invoices_pb2_grpc,
            lightning_pb2,
            lightning_pb2_grpc,
            router_pb2,
            router_pb2_grpc,
        )
    except ImportError as error:
        raise LndNotInstalled("to ask lnd, install lcp-gateway[lnd]") from error
    finally:
        # The package narrows the ciphers of every gRPC channel in the process; lnd no longer needs that.
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
    return Stubs(lightning_pb2, lightning_pb2_grpc, router_pb2, router_pb2_grpc, invoices_pb2, invoices_pb2_grpc)
