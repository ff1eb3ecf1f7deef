"""Where the direct transport connects to, read from a target as gRPC writes it."""

import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from lcp_gateway.upstreams.lcpd.transport import LcpdAddress, TlsFiles

_SCHEMES: Final = frozenset({"dns", "ipv4", "ipv6"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect: ``host`` and ``port``, or ``path`` of a unix socket; ``tls`` with ALPN ``h2``."""

    host: str = ""
    port: int = 0
    path: str = ""
    tls: ssl.SSLContext | None = None
    server_name: str | None = None

    @property
    def authority(self) -> str:
        """The ``:authority`` of requests."""
        if self.path:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.server_name or host}:{self.port}"

    @classmethod
    def of(cls, address: LcpdAddress) -> "Endpoint":
        """Return where an address is: ``host:port`` (also after ``dns:``, ``ipv4:``, ``ipv6:``) or ``unix:path``.

        Raises:
            OSError: a TLS file cannot be read or understood.
            ValueError: the target has another form.
        """
        tls = None if address.tls is None else _tls(address.tls)
        name = None if address.tls is None else address.tls.server_name
        scheme, colon, rest = address.target.partition(":")
        if scheme == "unix" and colon:
            return cls(path=rest.removeprefix("//"), tls=tls, server_name=name)
        # A host may be called as a scheme is: then only its port follows.
        named = rest.removeprefix("///") if scheme in _SCHEMES and not rest.isdigit() else address.target
        host, _, port = named.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or "/" in host or not (port.isascii() and port.isdigit()):
            raise ValueError(f"the target of gRPC must be host:port or unix:/path, not {address.target!r}")
        return cls(host=host, port=int(port), tls=tls, server_name=name)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return bool(self.path) or self.host == "localhost" or _is_loopback(self.host)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(files: TlsFiles) -> ssl.SSLContext:
    # OpenSSL takes no byte order mark.
    roots = None if files.ca is None else files.ca.read_text(encoding="utf-8-sig")
    context = ssl.create_default_context(cadata=roots)
    context.set_alpn_protocols(["h2"])
    if files.certificate is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context
