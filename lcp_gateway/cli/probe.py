"""``python -m lcp_gateway.cli.probe``: ends with 0 when the gateway beside it is alive, for a container's health check.

It runs every few seconds, so it loads none of the program and reads only the address, from the environment and from the
file that the environment names; it cannot see a flag. It asks for /healthz only: a daemon that is down is no reason to
restart the gateway.
"""

import http.client
import os
import ssl
import sys
import tomllib
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

_TIMEOUT_S: Final = 2.0
_USUAL_ADDRESS: Final = "127.0.0.1:8080"
# An address to listen on that cannot be called.
_CALLED_AS: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing listens here


def main(environ: Mapping[str, str]) -> int:
    """Ask once; a line on standard error says why when the answer is not 200."""
    try:
        file = _file(environ)
        address = (
            environ.get("LCP_GATEWAY_HTTP_ADDR")
            or environ.get("OPENAI_SERVE_HTTP_ADDR")
            or str(file.get("http_addr", _USUAL_ADDRESS))
        )
        secure = environ.get("LCP_GATEWAY_HTTP_TLS_CERT") or file.get("http_tls_cert")
        status = _status(address.strip(), secure=bool(secure))
    except (OSError, ValueError, http.client.HTTPException) as error:
        sys.stderr.write(f"no answer: {type(error).__name__}\n")
        return 1
    if status != HTTPStatus.OK:
        sys.stderr.write(f"status {status}\n")
        return 1
    return 0


def _file(environ: Mapping[str, str]) -> Mapping[str, object]:
    named = environ.get("LCP_GATEWAY_CONFIG")
    if not named:
        return {}
    # The running gateway may have read an older file than one that is being written.
    try:
        return tomllib.loads(Path(named).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}


def _status(address: str, *, secure: bool) -> int:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    host = _CALLED_AS.get(host, host)
    if secure:
        # It is reached on this machine by an address that its certificate does not name.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, int(port), timeout=_TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(os.environ))
