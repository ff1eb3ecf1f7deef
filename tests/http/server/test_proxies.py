"""The client's address and scheme behind proxies: which forwarding headers are trusted, and how far."""

import ipaddress

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from lcp_gateway.http.server.proxies import TrustedProxies, display_address, read_address
from tests.support.cases import each_case

PROXIES = TrustedProxies(["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"])


def asked(peer: str, *forwarded: str, proto: str | None = None) -> web.BaseRequest:
    """Return a request as the application sees it."""
    headers = CIMultiDict([("X-Forwarded-For", text) for text in forwarded])
    if proto is not None:
        headers.add("X-Forwarded-Proto", proto)
    request = make_mocked_request("GET", "/", headers=headers)
    return PROXIES.seen_through(request.clone(remote=peer))


@each_case(
    "peer, forwarded, client",
    [
        # Headers from other addresses are ignored.
        ("203.0.113.5", ["198.51.100.1"], "203.0.113.5"),
        ("127.0.0.1", ["198.51.100.1"], "127.0.0.1"),
        # One proxy, and several, each of which appends the address that it got the request from.
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1", "192.0.2.7, 10.0.0.2"], "198.51.100.1"),
        ("fd00::1", ["2001:db8::5"], "2001:db8::5"),
        # Everything left of an untrusted address was written by that client.
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.9, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        # All of them are trusted: the first is the client.
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        # No header.
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        # An invalid address ends the search.
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1,"], "10.0.0.1"),
        ("10.0.0.1", ["fe80::1%\x1b[31m"], "10.0.0.1"),
        # Spellings of some proxies.
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::5]:4711"], "2001:db8::5"),
        ("10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        # A dual-stack socket shows IPv4 peers like this.
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
    ],
)
def test_the_nearest_untrusted_address_is_the_clients(peer, forwarded, client):
    assert asked(peer, *forwarded).remote == client


@pytest.mark.parametrize(
    ("peer", "proto", "scheme"),
    [
        ("10.0.0.1", "https", "https"),
        ("10.0.0.1", " HTTPS ", "https"),
        ("10.0.0.1", "http, https", "https"),
        ("10.0.0.1", "https, http", "http"),
        ("10.0.0.1", "gopher", "http"),
        ("10.0.0.1", "", "http"),
        ("10.0.0.1", None, "http"),
        ("203.0.113.5", "https", "http"),
    ],
)
def test_the_scheme_is_the_nearest_proxys(peer, proto, scheme):
    request = asked(peer, "198.51.100.1", proto=proto)
    assert (request.scheme, request.secure) == (scheme, scheme == "https")


def test_without_proxies_the_request_stays_as_it_is():
    request = make_mocked_request("GET", "/", headers={"X-Forwarded-For": "1.1.1.1"})
    assert TrustedProxies(()).seen_through(request) is request


def test_a_request_over_a_socket_that_has_no_address_stays_as_it_is():
    request = make_mocked_request("GET", "/", headers={"X-Forwarded-For": "198.51.100.1"})
    assert request.remote is None
    assert PROXIES.seen_through(request) is request


def test_a_header_of_thousands_of_addresses_is_not_walked_through():
    long = ", ".join(["10.0.0.2"] * 50_000)
    client = PROXIES.client(ipaddress.ip_address("10.0.0.1"), [long])
    assert str(client) == "10.0.0.2"


@given(st.lists(st.text()), st.sampled_from(["10.0.0.1", "203.0.113.5"]))
def test_any_header_yields_an_address_and_an_untrusted_peer_its_own(written, peer):
    found = PROXIES.client(ipaddress.ip_address("10.0.0.1"), written)
    assert display_address(str(found)) == str(found)
    assert str(found).isprintable()


@given(st.text())
def test_any_text_is_read_as_an_address_or_as_none(text):
    address = read_address(text)
    assert address is None or ipaddress.ip_address(str(address)) == address


@pytest.mark.parametrize(
    ("remote", "in_the_log"),
    [
        ("127.0.0.1", ""),
        ("127.8.8.8", ""),
        ("::1", ""),
        ("::ffff:127.0.0.1", ""),
        (None, ""),
        ("", ""),
        ("198.51.100.1", "198.51.100.1"),
        ("2001:DB8::5", "2001:db8::5"),
    ],
)
def test_an_address_of_this_machine_is_not_in_the_log(remote, in_the_log):
    assert display_address(remote) == in_the_log


@pytest.mark.parametrize(
    ("peer", "said", "host"),
    [
        ("10.0.0.1", ["ai.example"], "ai.example"),
        ("10.0.0.1", ["evil.example, ai.example:8443"], "ai.example:8443"),
        ("10.0.0.1", ["evil.example", "ai.example"], "ai.example"),
        ("10.0.0.1", [], "inside"),
        ("10.0.0.1", [""], "inside"),
        ("203.0.113.5", ["evil.example"], "inside"),
    ],
)
def test_the_host_that_the_client_saw_is_set_by_the_nearest_proxy(peer, said, host):
    headers = CIMultiDict([("Host", "inside"), *(("X-Forwarded-Host", text) for text in said)])
    request = make_mocked_request("GET", "/", headers=headers)
    assert PROXIES.seen_through(request.clone(remote=peer)).host == host
