"""HTTPS: a certificate that clients can use, and that can be renewed while the gateway runs."""

import ssl
from pathlib import Path

from lcp_gateway.http.server.connection import HTTP_VERSION

_EXPIRED = 10
_NOT_YET_VALID = 9
"""OpenSSL's numbers of the faults of a certificate."""
_STEPS = 10


class BadCertificate(Exception):
    """A certificate and its key cannot be used; the message names the file and says why."""


class Tls:
    """The context that connections are made with. A renewed certificate is shown to later connections.

    Raises:
        BadCertificate: the files cannot be used.
    """

    def __init__(self, certificate: Path, key: Path | None) -> None:
        self.context = server_context(certificate, key)
        self._shown = certificate.read_bytes()

    def use(self, certificate: Path, key: Path | None) -> bool:
        """Show this certificate to later connections; return whether it is another one.

        Raises:
            BadCertificate: the files cannot be used; the one before stays.
        """
        server_context(certificate, key)
        _load(self.context, certificate, key)
        before, self._shown = self._shown, certificate.read_bytes()
        return self._shown != before


def server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return a context with a certificate that was checked as a client would.

    Raises:
        BadCertificate: the files cannot be used.
    """
    # TLS 1.2 and later, and ciphers, as Python's makers recommend them for servers.
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([HTTP_VERSION])
    _load(context, certificate, key)
    try:
        _shake_hands(context, certificate)
    except ssl.SSLCertVerificationError as error:
        match error.verify_code:
            case code if code == _EXPIRED:
                problem = "has expired"
            case code if code == _NOT_YET_VALID:
                problem = "is not valid yet; is the clock right?"
            case _:
                problem = f"would be refused by every client: {error.verify_message}"
        raise BadCertificate(f"the certificate in {certificate} {problem}") from None
    except ssl.SSLError as error:
        raise BadCertificate(
            f"no client could connect with the certificate in {certificate}: {_reason(error)}"
        ) from None
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    where = f"{certificate} and {key}" if key else str(certificate)
    try:
        # Without a callback OpenSSL would ask for a password at the terminal.
        context.load_cert_chain(certificate, key, password=_refuse)
    except _Encrypted:
        raise BadCertificate(
            f"the key in {key or certificate} is encrypted: write it out without a password, with "
            "`openssl pkey -in FILE -out FILE`, readable by the gateway alone"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadCertificate(
                f"the key in {key or certificate} is not that of the first certificate in {certificate}"
            ) from None
        raise BadCertificate(
            f"{where} must hold a certificate, its chain and its key, in PEM form: {_reason(error)}"
        ) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadCertificate(f"{where} cannot be read: {reason}") from None


def _shake_hands(context: ssl.SSLContext, certificate: Path) -> None:
    """Connect to this certificate in memory, as a client that trusts this certificate under any name.

    Raises:
        ssl.SSLError: a client would refuse it.
    """
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_context.load_verify_locations(certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(_STEPS):
        steps = [_step(client), _step(server)]
        if all(steps):
            return


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _refuse() -> str:
    raise _Encrypted


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "the file holds none").replace("_", " ").lower()


class _Encrypted(Exception):
    """A key needs a password."""
