"""The forms of values that only the settings of the program's life have."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from lcp_gateway.config.forms import (
    Form,
    parse_file,
    parse_list,
    parse_number,
    parse_text,
    read_by,
)

_HOST_NAME = re.compile(r"(\*\.)?[^\s:/\\@,*\[\]]+")


def _parse_networks(value: object) -> tuple[str, ...]:
    """Take addresses and networks; an address is the network of it alone."""
    found = []
    for text in parse_list(value):
        try:
            found.append(str(ipaddress.ip_network(text)))
        except ValueError as error:
            raise ValueError(
                f'must be addresses or networks such as "10.0.0.7" or "10.0.0.0/8": {error}'
            ) from None
    return tuple(dict.fromkeys(found))


def _parse_optional_http_url(value: object) -> str:
    text = parse_text(value)
    if not text:
        return ""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError('must be a base URL such as "http://127.0.0.1:4318"')
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must be a base URL alone; a key belongs into otlp_headers")
    return text.rstrip("/")


def _parse_hosts(value: object) -> tuple[str, ...]:
    """Take names, without scheme and port; in lower case and without the dot of the root."""
    found = []
    for text in parse_list(value):
        if text != "*" and not _HOST_NAME.fullmatch(text):
            raise ValueError(
                'must be names such as "gateway" or "*.example.com", without a scheme and a port, or "*"'
            )
        found.append(text.lower().removesuffix("."))
    return tuple(dict.fromkeys(found))


def _parse_ratio(value: object) -> float:
    if (ratio := parse_number(value)) > 1:
        raise ValueError("must be from 0 to 1")
    return ratio


Hosts = Annotated[tuple[str, ...], Form("list", "A,B"), read_by(_parse_hosts)]
Networks = Annotated[tuple[str, ...], Form("list", "A,B"), read_by(_parse_networks)]
OptionalFolder = Annotated[Path | None, Form("folder", "FOLDER"), read_by(parse_file)]
OptionalHttpUrl = Annotated[str, Form("URL", "URL"), read_by(_parse_optional_http_url)]
Ratio = Annotated[float, Form("number from 0 to 1", "N"), read_by(_parse_ratio)]
