"""The requests that a web page can make its visitor's browser send: the gateway buys nothing for them and discloses nothing.

tests/browser has the browser itself; here are the raw requests, also those of less strict browsers.
"""

import json

import pytest

from tests.support.gateway import gateway
from tests.support.node_thread import eventually
from tests.support.ports import free_address
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, send_raw

KEY = "sk-a-key"
BEARER = {"Authorization": f"Bearer {KEY}"}
LISTED = "https://app.example"
BODY = json.dumps(document()).encode()


@pytest.fixture(scope="module")
def open_to_all():
    """No keys, as on a laptop; the metrics have an address of their own."""
    settings = {
        "LCP_GATEWAY_METRICS_ADDR": free_address(),
        "LCP_GATEWAY_CORS_ORIGINS": f"{LISTED},vscode-webview://*,file://",
        "LCP_GATEWAY_ALLOWED_HOSTS": "gateway,*.lan",
    }
    with gateway(env=settings) as running:
        running.metrics_port = int(settings["LCP_GATEWAY_METRICS_ADDR"].rpartition(":")[2])
        yield running


@pytest.fixture(scope="module")
def with_keys():
    with gateway(env={"LCP_GATEWAY_API_KEYS": KEY}) as running:
        yield running


def bought(running) -> int:
    return len(running.events("quote")) + len(running.events("accept"))


def is_refused(answer, status, code):
    assert answer.status == status, answer.body
    assert answer.error["code"] == code
    assert answer.verdict == "none"
    assert answer.headers["x-should-retry"] == "false"
    assert "access-control-allow-origin" not in answer.headers


HOSTS_OF_OTHERS = [
    "evil.example",
    "evil.example:8080",
    "EVIL.example.",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "notlocalhost",
    "mygateway",
    "lan",
    "",
    ":8080",
    "[::1",
    "::1",
    "127.0.0.1@evil.example",
    "evil.example/127.0.0.1",
    "127.0.0.1, evil.example",
]


@pytest.mark.parametrize("host", HOSTS_OF_OTHERS)
@pytest.mark.parametrize("path", [CHAT, RESPONSES, "/api/models/route"])
def test_a_name_that_could_have_been_rebound_buys_nothing(open_to_all, host, path):
    """Once a page whose name was rebound to 127.0.0.1, and so of the gateway's origin, could read its answers."""
    before = bought(open_to_all)
    answer = post(open_to_all.port, path, document(path), {"Host": host, "Authorization": "Bearer x"})
    is_refused(answer, 421, "host_not_allowed")
    assert "allowed_hosts" in answer.error["message"]
    assert bought(open_to_all) == before


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/nowhere"])
def test_a_name_that_could_have_been_rebound_reads_nothing(open_to_all, path):
    is_refused(get(open_to_all.port, path, {"Host": "evil.example"}), 421, "host_not_allowed")


def test_a_missing_host_is_refused_from_http_1_1_and_no_browser_speaks_http_1_0(open_to_all):
    raw = b"GET /v1/models HTTP/1.%d\r\n\r\n"
    assert send_raw(open_to_all.port, raw % 1, method="GET").status == 400, "as RFC 9112 asks"
    assert send_raw(open_to_all.port, raw % 0, method="GET").status == 200
    named = b"GET /v1/models HTTP/1.0\r\nHost: evil.example\r\n\r\n"
    is_refused(send_raw(open_to_all.port, named, method="GET"), 421, "host_not_allowed")


def test_a_second_host_or_another_one_in_the_request_line_buys_nothing(open_to_all):
    twice = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert send_raw(open_to_all.port, twice, method="GET").status in {400, 421}
    absolute = b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert send_raw(open_to_all.port, absolute, method="GET").status in {400, 421}


def test_a_refusal_does_not_wait_for_the_body(open_to_all):
    head = request_bytes("POST", CHAT, b"", {"Host": "evil.example", "Content-Length": "1000"})
    # Had it waited, it would be 408 after half a minute.
    is_refused(send_raw(open_to_all.port, head), 421, "host_not_allowed")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8080", "10.1.2.3:80", "[::1]:8080", "[fe80::1%25eth0]:8080"),
        *("localhost", "LocalHost:1", "localhost.", "gateway.localhost:8080"),
        *("gateway", "GATEWAY.:8080", "box.lan", "a.b.lan:1"),
    ],
)
def test_an_address_this_machine_and_the_names_of_the_settings_are_answered(open_to_all, host):
    assert post(open_to_all.port, CHAT, document(), {"Host": host}).status == 200


ORIGINS_OF_OTHERS = [
    *("https://evil.example", "http://evil.example", "null", "file:///x", "", "*"),
    *("http://127.0.0.1:3000", "https://localhost", "http://localhost", "https://app.example:444"),
    *("http://app.example", "https://app.example.evil", "chrome-extension://abcdef", "app://x"),
    "https://app.example, https://evil.example",
]


@pytest.mark.parametrize("origin", ORIGINS_OF_OTHERS)
@pytest.mark.parametrize("kind", ["text/plain", "application/json", "multipart/form-data"])
def test_a_page_of_another_origin_buys_nothing(open_to_all, origin, kind):
    """Once a form and ``fetch(no-cors)`` could buy, whatever their content type."""
    before = bought(open_to_all)
    headers = {"Host": "localhost:8080", "Origin": origin, "Content-Type": kind}
    answer = post(open_to_all.port, CHAT, BODY, headers)
    is_refused(answer, 403, "origin_not_allowed")
    assert "cors_origins" in answer.error["message"]
    assert bought(open_to_all) == before


@pytest.mark.parametrize("origin", ORIGINS_OF_OTHERS)
def test_a_page_of_another_origin_reads_nothing(open_to_all, origin):
    is_refused(
        get(open_to_all.port, "/v1/models", {"Host": "localhost:8080", "Origin": origin}), 403, "origin_not_allowed"
    )


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8080", "http://localhost:8080"),
        ("LOCALHOST:8080", "http://localhost:8080"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("box.lan:8080", "http://box.lan:8080"),
        ("localhost", LISTED),
        ("localhost", "vscode-webview://1a2b3c"),
        ("localhost", "file://"),
    ],
)
def test_our_own_pages_and_those_of_the_settings_are_served(open_to_all, host, origin):
    site = "same-origin" if host in origin else "cross-site"
    headers = {"Host": host, "Origin": origin, "Sec-Fetch-Site": site}
    assert post(open_to_all.port, CHAT, document(), headers).status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Mode": "websocket", "Upgrade": "websocket", "Connection": "Upgrade"},
    ],
)
def test_cross_site_requests_without_an_origin_are_refused(open_to_all, site, more):
    for method, path in (("GET", "/v1/models"), ("POST", CHAT)):
        raw = request_bytes(method, path, BODY, {"Host": "localhost", "Sec-Fetch-Site": site, **more})
        is_refused(send_raw(open_to_all.port, raw), 403, "cross_site_request")


def test_a_link_on_another_site_may_lead_to_a_get_page(open_to_all):
    by_link = {
        "Host": "localhost",
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    for path in ("/", "/healthz", "/readyz"):
        assert get(open_to_all.port, path, by_link).status not in {403, 421}, path
    framed = {**by_link, "Sec-Fetch-Dest": "iframe"}
    assert get(open_to_all.port, "/", framed).headers["x-frame-options"] == "DENY"
    is_refused(get(open_to_all.port, "/metrics", by_link), 404, "not_found")
    is_refused(get(open_to_all.port, "/v1/models", by_link), 403, "cross_site_request")


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_same_origin_and_typed_requests_are_served(open_to_all, site):
    assert get(open_to_all.port, "/v1/models", {"Sec-Fetch-Site": site}).status == 200


def test_probes_are_answered_under_any_name_and_tell_strangers_no_details(open_to_all):
    for path in ("/healthz", "/readyz"):
        assert get(open_to_all.port, path, {"Host": "10.2.3.4:8080"}).status == 200
        named = get(open_to_all.port, path, {"Host": "lb.example"})
        assert named.status == 200
        assert set(named.json) == {"status"}
    assert "peers" in get(open_to_all.port, "/readyz", {"Host": "localhost"}).json
    assert set(get(open_to_all.port, "/readyz", {"Origin": "https://evil.example"}).json) == {"status"}


@pytest.mark.parametrize("path", ["/", "/v1"])
def test_the_welcome_repeats_no_name_that_leads_here_from_another_site(open_to_all, path):
    named = get(open_to_all.port, path, {"Host": "evil.example"})
    assert named.status == 200
    assert b"evil.example" not in named.body and b"127.0.0.1" not in named.body


def test_the_metrics_on_an_address_of_their_own_are_guarded_too(open_to_all):
    port = open_to_all.metrics_port
    assert get(port, "/metrics", {"Host": "gateway:9464"}).status == 200
    is_refused(get(port, "/metrics", {"Host": "evil.example"}), 421, "host_not_allowed")
    is_refused(get(port, "/metrics", {"Origin": LISTED + ".evil"}), 403, "origin_not_allowed")
    assert get(port, "/healthz", {"Host": "lb.example"}).status == 200


def test_refusals_are_counted_and_logged_with_their_reason(open_to_all):
    for headers in (
        {"Host": "counted.example"},
        {"Origin": "https://counted.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        get(open_to_all.port, "/v1/models", headers)
    text = get(open_to_all.metrics_port, "/metrics", {"Host": "localhost"}).body.decode()
    for reason in ("host", "origin", "cross_site"):
        line = next(i for i in text.splitlines() if f'refusals_total{{reason="{reason}"}}' in i)
        assert float(line.rpartition(" ")[2]) >= 1

    def hints():
        return [line for line in open_to_all.json_logs() if "setting" in line]

    # The gateway writes its log, and this process reads it, a moment after the answers.
    eventually(lambda: len({line["setting"] for line in hints()}) == 2)
    assert {line["setting"] for line in hints()} == {"allowed_hosts", "cors_origins"}
    assert len(hints()) < 10, "a flood of refusals is no flood in the log"


def test_with_a_key_host_and_origin_are_not_checked(with_keys):
    """A page cannot know the key, and customers use the name of the proxy in front."""
    for headers in (
        {"Host": "ai.example"},
        {"Host": "ai.example", "Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"},
    ):
        answer = post(with_keys.port, CHAT, document(), {**headers, **BEARER})
        assert answer.status == 200
        assert "access-control-allow-origin" not in answer.headers


def test_without_the_key_the_answer_is_401(with_keys):
    for headers in ({"Host": "ai.example"}, {"Origin": "https://evil.example"}):
        assert post(with_keys.port, CHAT, document(), headers).status == 401
    assert set(get(with_keys.port, "/readyz", {"Host": "ai.example"}).json) == {"status"}


@pytest.mark.parametrize("path", ["/api/models/route", "/api/nothing", "/api/agent/x/v1/models"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
def test_api_answers_are_not_cached_and_not_sniffed(with_keys, path, method):
    for headers in ({}, BEARER):
        answer = send_raw(with_keys.port, request_bytes(method, path, b"{}", headers), method=method)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/v1/models", "/healthz", "/readyz", "/nowhere", CHAT])
def test_no_page_may_frame_an_answer_or_take_it_for_something_else(with_keys, path):
    for answer in (get(with_keys.port, path), post(with_keys.port, path, document(stream=True), BEARER)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_unparsable_requests_are_answered_with_the_same_headers(with_keys):
    answer = send_raw(with_keys.port, b"nonsense\r\n\r\n")
    assert answer.status == 400
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
