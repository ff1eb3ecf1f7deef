"""The cookie's name and flags by how a browser reached the gateway."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from lcp_gateway.http.console.cookies import Cookies, is_loopback_name


def asked(host, *, scheme="http", cookies=()):
    from multidict import CIMultiDict

    headers = CIMultiDict({"Host": host})
    for cookie in cookies:
        headers.add("Cookie", cookie)
    return make_mocked_request("GET", "/api/session", headers=headers).clone(scheme=scheme)


def written(form):
    response = web.Response()
    form.set(response, "token", 60)
    return response.cookies[form.name].OutputString()


def test_over_https_the_cookie_is_bound_to_the_host_and_secure():
    form = Cookies(allow_insecure=False).form(asked("gateway.example", scheme="https"))
    text = written(form)
    assert text.startswith("__Host-lcpg=token;")
    parts = {part.strip() for part in text.split(";")}
    assert {"HttpOnly", "Secure", "SameSite=Strict", "Path=/", "Max-Age=60"} <= parts
    assert "Domain" not in text


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:8080", "lcpg_8080"),
        ("localhost:9000", "lcpg_9000"),
        ("[::1]:8080", "lcpg_8080"),
        ("console.localhost", "lcpg_80"),
        ("127.8.8.8", "lcpg_80"),
    ],
)
def test_over_http_on_loopback_the_cookie_is_named_after_the_port_and_goes_to_the_api_alone(host, name):
    text = written(Cookies(allow_insecure=False).form(asked(host)))
    parts = {part.strip() for part in text.split(";")}
    assert f"{name}=token" in parts
    assert {"HttpOnly", "SameSite=Strict", "Path=/api"} <= parts
    assert "Secure" not in parts and "Domain" not in text


@pytest.mark.parametrize(
    "host",
    ["gateway.example", "192.168.1.5:8080", "127.0.0.1.example", "localhost.example:8080", "0.0.0.0:8080", "", "a b"],
)
def test_over_http_elsewhere_there_is_no_sign_in_unless_the_settings_say_so(host):
    assert Cookies(allow_insecure=False).form(asked(host)) is None
    if host not in {"", "a b"}:
        port = host.partition(":")[2] or "80"
        assert Cookies(allow_insecure=True).form(asked(host)).name == f"lcpg_{port}"


def test_only_the_cookie_of_this_port_is_read():
    form = Cookies(allow_insecure=False).form(asked("127.0.0.1:8080"))
    assert form.token(asked("127.0.0.1:8080", cookies=["a=b; lcpg_9000=x; lcpg_8080=mine"])) == "mine"
    assert form.token(asked("127.0.0.1:8080", cookies=["lcpg_9000=x; __Host-lcpg=y"])) is None
    assert form.token(asked("127.0.0.1:8080")) is None


def test_two_cookies_of_one_name_are_none_that_counts():
    """Another server on this host can add a cookie of the same name with a longer path."""
    form = Cookies(allow_insecure=False).form(asked("127.0.0.1:8080"))
    assert form.token(asked("127.0.0.1:8080", cookies=["lcpg_8080=planted; lcpg_8080=mine"])) == ""
    assert form.token(asked("127.0.0.1:8080", cookies=["lcpg_8080=planted", "lcpg_8080=mine"])) == ""
    assert form.token(asked("127.0.0.1:8080", cookies=["lcpg_8080=mine; lcpg_8080=mine"])) == "mine"


def test_a_sign_out_removes_the_cookie_with_the_same_flags():
    response = web.Response()
    form = Cookies(allow_insecure=False).form(asked("127.0.0.1:8080"))
    form.clear(response)
    text = response.cookies["lcpg_8080"].OutputString()
    assert "Max-Age=0" in text and "Path=/api" in text and "HttpOnly" in text


@pytest.mark.parametrize("name", ["LOCALHOST", "localhost.", "[::1]", "127.0.0.1", "a.localhost"])
def test_loopback_names(name):
    assert is_loopback_name(name)


@pytest.mark.parametrize("name", ["localhost.evil.example", "127.0.0.1.nip.example", "::2", "[::ffff:1.2.3.4]", "evil"])
def test_other_names(name):
    assert not is_loopback_name(name)
