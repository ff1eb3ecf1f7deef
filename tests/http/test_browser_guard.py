"""Which requests may have been caused by a web page; tests/system/test_web_pages.py checks the same over sockets."""

import ipaddress

import pytest
from aiohttp import HttpVersion10, HttpVersion11
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.server.proxies import TrustedProxies
from tests.support.cases import each_case

PROXIES = TrustedProxies(["10.0.0.7"])


class Log:
    def __init__(self) -> None:
        self.lines: list[dict] = []

    def warning(self, _text: str, **fields: object) -> None:
        self.lines.append(fields)


def asked(*headers, path="/v1/models", method="GET", version=HttpVersion11, peer=None, scheme=None):
    request = make_mocked_request(method, path, headers=CIMultiDict(headers), version=version)
    if scheme is not None:
        request = request.clone(scheme=scheme)
    return request if peer is None else PROXIES.seen_through(request.clone(remote=peer))


def refusal(request, *hosts, origins=()) -> str:
    """Return the error code of a refused request, or None."""
    guard = BrowserGuard(Cors(origins), hosts)
    code = ""
    try:
        guard.check(request)
    except ApiError as error:
        code = error.code or ""
    assert guard.passes(request) is (code in {"", "cross_site_request"})
    return code


names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,8}){0,3}", fullmatch=True)


@given(names, st.sampled_from(["", ":80", ":8080"]), st.sampled_from(["", "."]), st.booleans())
def test_a_name_is_answered_to_only_if_it_is_listed(name, port, root, upper):
    host = (name.upper() if upper else name) + root + port
    ours = name == "localhost" or name.endswith(".localhost")
    assert refusal(asked(("Host", host))) == ("" if ours else "host_not_allowed")
    assert refusal(asked(("Host", host)), name) == ""
    assert refusal(asked(("Host", host)), "*") == ""
    assert refusal(asked(("Host", f"x.{host}")), f"*.{name}") == ""
    if not ours:
        assert refusal(asked(("Host", f"x.{host}")), name) == "host_not_allowed"
        assert refusal(asked(("Host", f"x{host}")), f"*.{name}") == "host_not_allowed"


@given(st.ip_addresses(), st.sampled_from(["", ":1", ":65535"]))
def test_every_address_is_answered_to(address, port):
    text = f"[{address}]" if isinstance(address, ipaddress.IPv6Address) else str(address)
    assert refusal(asked(("Host", text + port))) == ""


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_in_a_host_is_judged_and_shown_safely(text):
    guard = BrowserGuard(Cors([]))
    # Values that are neither a host name nor an address.
    with pytest.raises(ApiError) as caught:
        guard.check_host(asked(("Host", f"{text}/")))
    assert caught.value.status == 421
    assert caught.value.message.isprintable()


def test_all_hosts_of_a_request_must_be_answered_to():
    both = asked(("Host", "localhost"), ("Host", "evil.example"))
    assert refusal(both) == "host_not_allowed"


def test_only_http_1_0_may_come_without_a_host():
    assert refusal(asked(version=HttpVersion11)) == "host_not_allowed"
    assert refusal(asked(version=HttpVersion10)) == ""
    assert refusal(asked(("Host", ""), version=HttpVersion10)) == "host_not_allowed"


def test_behind_a_proxy_both_names_must_be_answered_to_and_either_is_our_origin():
    """A proxy that forwards a client's X-Forwarded-Host unchanged must not make a page trusted."""
    through = [("Host", "inside"), ("X-Forwarded-Host", "ai.example"), ("X-Forwarded-Proto", "https")]
    page = [*through, ("Origin", "https://ai.example")]
    assert refusal(asked(*page, peer="10.0.0.7"), "inside", "ai.example") == ""
    assert refusal(asked(*page, peer="10.0.0.7"), "inside") == "host_not_allowed"
    assert refusal(asked(*page, peer="10.0.0.7"), "ai.example") == "host_not_allowed"
    rebound = [("Host", "evil.example"), ("X-Forwarded-Host", "localhost")]
    assert refusal(asked(*rebound, peer="10.0.0.7")) == "host_not_allowed"
    # From an address that is no trusted proxy the header is ignored.
    assert refusal(asked(*page, peer="10.0.0.8"), "inside", "ai.example") == "origin_not_allowed"


@each_case(
    "scheme, host, origin, own",
    [
        ("http", "localhost:8080", "http://localhost:8080", True),
        ("http", "localhost:8080", "HTTP://LOCALHOST:8080", True),
        ("http", "localhost:8080", "https://localhost:8080", False),
        ("http", "localhost:8080", "http://localhost:8081", False),
        ("http", "localhost:8080", "http://localhost", False),
        ("http", "localhost:8080", "http://127.0.0.1:8080", False),
        ("http", "localhost", "http://localhost:80", True),
        ("https", "localhost", "https://localhost:443", True),
        ("https", "localhost:443", "https://localhost", True),
        ("https", "localhost:80", "https://localhost", False),
        ("http", "[::1]:8080", "http://[::1]:8080", True),
        ("http", "localhost:8080", "null", False),
        ("http", "localhost:8080", "", False),
        ("http", "localhost:8080", "http://localhost:8080/", False),
    ],
)
def test_an_origin_is_our_own_with_scheme_host_and_port(scheme, host, origin, own):
    request = asked(("Host", host), ("Origin", origin), scheme=scheme, method="POST")
    assert refusal(request) == ("" if own else "origin_not_allowed")


def test_a_listed_origin_may_call_from_any_site_but_not_to_a_rebound_name():
    headers = (("Origin", "https://a.example"), ("Sec-Fetch-Site", "cross-site"))
    origins = ["https://a.example"]
    assert refusal(asked(("Host", "localhost"), *headers), origins=origins) == ""
    assert refusal(asked(("Host", "b.example"), *headers), origins=["*"]) == "host_not_allowed"


@pytest.mark.parametrize("path", ["/v1/models", "/api/wallet", "/console/x"])
def test_a_link_leads_to_no_data(path):
    link = (
        ("Host", "localhost"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-Dest", "document"),
    )
    assert refusal(asked(*link, path=path)) == "cross_site_request"
    assert refusal(asked(*link, path="/")) == ""
    assert refusal(asked(*link, path="/", method="POST")) == "cross_site_request"


def test_a_refusal_is_logged_once_a_minute_for_each_reason_with_the_setting_that_helps():
    now = [0.0]
    log = Log()
    guard = BrowserGuard(Cors([]), log=log, clock=lambda: now[0])
    for second in range(0, 120, 10):
        now[0] = second
        for headers in ([("Host", f"h{second}.example")], [("Host", "localhost"), ("Origin", "https://o.example")]):
            with pytest.raises(ApiError):
                guard.check(asked(*headers))
    assert [(line["reason"], line["setting"]) for line in log.lines] == [
        ("host", "allowed_hosts"),
        ("origin", "cors_origins"),
    ] * 2
    assert log.lines[0]["value"] == "h0.example"
