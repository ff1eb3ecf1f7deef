"""gRPC channels that a busy machine may take long to connect."""

from collections.abc import Sequence

_CONNECT_MS = "grpc.min_reconnect_backoff_ms"
Options = Sequence[tuple[str, object]]


def connects_within_a_minute(options: Options) -> Options:
    """Return these options with a minute for an attempt to connect: for gRPC that is what the least pause says."""
    return tuple((name, 60_000 if name == _CONNECT_MS else value) for name, value in options)
