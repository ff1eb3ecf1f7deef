"""A stand-in for a forward proxy: accepts connections, records the received bytes, and refuses every request."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

NAMES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "ftp_proxy")


@dataclass
class SeenByProxy:
    """The requests that reached the proxy; ``connections`` also counts those that sent nothing."""

    port: int
    connections: int = 0
    received: list[bytes] = field(default_factory=list)

    @property
    def variables(self) -> Mapping[str, str]:
        """An environment that names this proxy in every way, and exempts nothing from it."""
        url = f"http://127.0.0.1:{self.port}"
        named = dict.fromkeys(NAMES, url)
        named |= {name.upper(): url for name in NAMES}
        return {**named, "no_proxy": "", "NO_PROXY": "", "no_grpc_proxy": ""}


@contextmanager
def listening_proxy() -> Iterator[SeenByProxy]:
    """Run a proxy on loopback that refuses and records every request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen = SeenByProxy(server.getsockname()[1])
        ended = threading.Event()

        def take() -> None:
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                seen.connections += 1
                with connection:
                    connection.settimeout(0.5)
                    try:
                        # One that was late for its own time-out sends nothing, and leaves.
                        if data := connection.recv(65536):
                            seen.received.append(data)
                        connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                    except OSError:
                        pass

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join(60)
