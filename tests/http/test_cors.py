import pytest
from aiohttp.test_utils import make_mocked_request

from lcp_gateway.http.cors import Cors


def test_cors_is_off_unless_origins_are_named():
    assert Cors([]).headers_for("https://page.example") == {}


def test_an_origin_that_is_not_named_gets_no_leave():
    assert "Access-Control-Allow-Origin" not in Cors(["https://a.example"]).headers_for("https://b.example")


def test_an_answer_to_a_named_origin_varies_by_origin():
    headers = Cors(["https://a.example"]).headers_for("https://a.example")
    assert headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert headers["Vary"] == "Origin"


def test_a_preflight_is_answered_for_a_named_origin_only():
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    request = make_mocked_request("OPTIONS", "/v1/responses", headers=asked)
    assert Cors(["https://a.example"]).preflight(request).status == 204
    assert Cors(["https://b.example"]).preflight(request) is None


def test_a_preflight_that_asks_for_a_private_network_is_answered_for_a_named_origin_only():
    asked = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    request = make_mocked_request("OPTIONS", "/v1/responses", headers=asked)
    answer = Cors(["https://a.example"]).preflight(request)
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
    del asked["Access-Control-Request-Private-Network"]
    request = make_mocked_request("OPTIONS", "/v1/responses", headers=asked)
    answer = Cors(["https://a.example"]).preflight(request)
    assert "Access-Control-Allow-Private-Network" not in answer.headers


@pytest.mark.parametrize(
    ("named", "origin", "allowed"),
    [
        ("*", "https://any.example", True),
        ("*", "null", True),
        ("https://Chat.Example", "https://chat.example", True),
        ("vscode-webview://*", "vscode-webview://1a2b", True),
        ("vscode-webview://*", "vscode-webviewer://1a2b", False),
        ("app://a", "app://b", False),
        ("null", "null", True),
        ("https://a.example", "null", False),
        ("https://a.example", "", False),
    ],
)
def test_an_origin_is_allowed_as_a_whole_or_by_the_scheme_of_a_program(named, origin, allowed):
    cors = Cors([named])
    assert cors.allows(origin) is allowed
    assert ("Access-Control-Allow-Origin" in cors.headers_for(origin)) is allowed
