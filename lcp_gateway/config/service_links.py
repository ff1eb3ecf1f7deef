"""Service links: environment variables that Kubernetes and ``docker --link`` make for a service, and that set nothing.

Kubernetes adds them to every container of a namespace for each Service there; one called ``lcp-gateway`` gets variables
that begin like the gateway's own.
"""

import re
from collections.abc import Mapping
from typing import Final

_HOST: Final = re.compile(r"[0-9A-Za-z.:\[\]_-]+")
_URL: Final = re.compile(r"(?:tcp|udp|sctp)://\S+")
_NUMBER: Final = re.compile(r"[0-9]{1,5}")
_PROTOCOL: Final = re.compile(r"tcp|udp|sctp")
_LINK_NAME: Final = re.compile(r"/[^/\s]+/[^/\s]+")
# What may stand between the prefix and the ending: the rest of a service's name, as in lcp-gateway-metrics.
_NAME: Final = r"(?:[A-Z0-9_]+_)?"
_ENDINGS: Final = tuple(
    (re.compile(_NAME + ending), value)
    for ending, value in (
        (r"SERVICE_HOST", _HOST),
        (r"SERVICE_PORT(?:_[A-Z0-9_]+)?", _NUMBER),
        (r"PORT", _URL),
        (r"PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_START|_END)?", _URL),
        (r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_PROTO", _PROTOCOL),
        (r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_PORT(?:_START|_END)?", _NUMBER),
        (r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_ADDR", _HOST),
    )
)
_DOCKER_NAME: Final = re.compile(_NAME + r"NAME")
_DOCKER_VARIABLE: Final = re.compile(r"((?:[A-Z0-9_]+_)?)ENV_.+")


def is_service_link(variable: str, environ: Mapping[str, str], prefix: str) -> bool:
    """Tell whether a variable that begins with ``prefix`` was made for a service: by its name and by its value.

    ``docker --link`` also copies the variables of the other container (``…_ENV_PATH``); these count where the link's own
    ``…_NAME`` is there.
    """
    rest, value = variable.removeprefix(prefix), environ[variable].strip()
    if any(name.fullmatch(rest) and form.fullmatch(value) for name, form in _ENDINGS):
        return True
    if _DOCKER_NAME.fullmatch(rest):
        return _LINK_NAME.fullmatch(value) is not None
    copied = _DOCKER_VARIABLE.fullmatch(rest)
    return (
        copied is not None
        and _LINK_NAME.fullmatch(environ.get(f"{prefix}{copied[1]}NAME", "").strip()) is not None
    )
