"""The gateway over HTTPS: for clients, the command line and attackers."""

import json
import socket
import ssl
import urllib.request
from contextlib import suppress

import pytest

from lcp_gateway.cli import gateway_client
from lcp_gateway.cli.gateway_client import find_gateway
from lcp_gateway.config import Settings
from tests.support.certificates import DAY, certificate
from tests.support.gateway import run_command
from tests.support.ports import free_address
from tests.support.reloading import NOT_RELOADED, reloadable
from tests.support.wire import get

BODY = {"model": "echo-1", "messages": [{"role": "user", "content": "one two three"}]}


def settings_of(pair, more=""):
    return f'http_tls_cert = "{pair.certificate}"\nhttp_tls_key = "{pair.key}"\n{more}'


def ask(port, context, path="/v1/models", body=None):
    request = urllib.request.Request(
        f"https://127.0.0.1:{port}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, context=context, timeout=60) as answer:
        return json.load(answer)


def shown_at(port) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 60) as raw, context.wrap_socket(raw) as wrapped:
        return wrapped.getpeercert(binary_form=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("https")
    pair = certificate(folder)
    with reloadable(folder, settings_of(pair)) as it:
        yield it, pair


def test_clients_that_trust_the_certificate_are_served(served):
    it, pair = served
    assert any("listening on https://127.0.0.1:" in line for line in it.running.output)
    assert any("base URL for OpenAI clients: https://127.0.0.1:" in line for line in it.running.output)
    said = ask(it.port, pair.trusting, "/v1/chat/completions", BODY)
    assert said["choices"][0]["message"]["content"]


def test_clients_that_do_not_are_not(served):
    it, _ = served
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(it.port, ssl.create_default_context())


def test_a_stream_goes_through_openais_client(served):
    import httpx
    import openai

    it, pair = served
    client = openai.OpenAI(
        base_url=f"https://127.0.0.1:{it.port}/v1", api_key="x", http_client=httpx.Client(verify=pair.trusting)
    )
    with client, client.chat.completions.create(**BODY, stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_only_versions_of_today_and_one_protocol_are_spoken(served, version):
    it, pair = served
    context = pair.trusting
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", it.port), 60) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as wrapped,
    ):
        assert wrapped.selected_alpn_protocol() == "http/1.1"


def test_a_renewed_certificate_is_shown_after_a_reload_and_a_wrong_one_is_not(tmp_path):
    pair, renewed = certificate(tmp_path, "one"), certificate(tmp_path, "two")
    expired = certificate(tmp_path, "expired", begins=-3 * DAY, ends=-DAY)
    with reloadable(tmp_path, settings_of(pair), args=["--node-tokens-per-second", "10"]) as it:
        stream = open_stream(it.port, pair.trusting)
        pair.replace_by(renewed)
        assert it.take(settings_of(pair))["changed"] == ["http_tls_cert"]
        assert shown_at(it.port) == renewed.der
        assert it.take(settings_of(pair))["changed"] == []
        pair.replace_by(expired)
        line = it.read(settings_of(pair, "max_price_msat = 1"))
        assert line["event"] == NOT_RELOADED and "has expired" in line["problems"][0]
        assert shown_at(it.port) == renewed.der
        # The new limit is in a file whose certificate is invalid: neither is taken.
        assert ask(it.port, renewed.trusting, "/v1/chat/completions", BODY)["choices"]
        assert stream.read().rstrip().endswith(b"data: [DONE]"), "it goes on as it began"
        pair.replace_by(renewed)
        line = it.take("max_price_msat = 0")
        assert line["needs_restart"] == ["http_tls_cert", "http_tls_key"]


def open_stream(port, context):
    fields = {**BODY, "stream": True}
    request = urllib.request.Request(
        f"https://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(fields).encode(),
        {"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, context=context, timeout=60)


def test_many_clients_that_never_finish_their_handshake_hold_up_no_other(served):
    it, pair = served
    idle = [socket.create_connection(("127.0.0.1", it.port), 5) for _ in range(200)]
    try:
        for number, connection in enumerate(idle):
            connection.sendall(b"\x16\x03\x01\x02\x00\x01" if number % 2 else b"GET / HTTP/1.1\r\n\r\n")
        assert ask(it.port, pair.trusting)["data"]
        # A client that speaks plain HTTP is disconnected at once.
        with suppress(ConnectionResetError):
            assert not idle[0].recv(1_000).startswith(b"HTTP")
    finally:
        for connection in idle:
            connection.close()
    assert "error" not in {line["level"] for line in it.running.json_logs()}


def test_the_metrics_address_is_plain(tmp_path):
    pair, address = certificate(tmp_path), free_address()
    with reloadable(tmp_path, settings_of(pair, f'metrics_addr = "{address}"')) as it:
        assert get(int(address.rpartition(":")[2]), "/metrics").status == 200
        it.take(settings_of(pair, f'metrics_addr = "{address}"\nmax_concurrent_requests = 77'))
        reported = get(int(address.rpartition(":")[2]), "/metrics").body.decode()
        assert "lcpgateway_jobs_limit 77.0" in reported


def lcp_gateway(*arguments, **environment):
    return run_command(*arguments, env=environment)


def test_the_command_line_finds_a_gateway_that_speaks_https(served, monkeypatch):
    it, pair = served
    # It is asked in this process: on a busy machine an answer may take longer than a command waits.
    monkeypatch.setattr(gateway_client, "_READY_TIMEOUT_S", 60.0)
    monkeypatch.setitem(gateway_client.call.__kwdefaults__, "timeout_s", 60.0)
    settings = Settings(http_addr=f":{it.port}", http_tls_cert=pair.certificate, http_tls_key=pair.key)
    found = find_gateway(settings)
    assert found.url == f"https://127.0.0.1:{it.port}"
    assert "echo-1" in {model["id"] for model in found.models()}
    assert find_gateway(Settings(http_addr=f":{it.port}")) is None, "no gateway speaks http there"


@pytest.mark.parametrize(
    ("wrong", "status", "word"),
    [
        ("mismatched", 1, "is not that of the first certificate"),
        ("expired", 1, "has expired"),
        ("encrypted", 1, "is encrypted"),
        ("garbage", 1, "must hold a certificate"),
        ("missing", 2, "no such file"),
        ("key alone", 2, "a key without a certificate"),
    ],
)
def test_invalid_files_are_a_clear_error_at_the_start(tmp_path, wrong, status, word):
    pair = certificate(tmp_path)
    cert, key = pair.certificate, pair.key
    match wrong:
        case "mismatched":
            key = certificate(tmp_path, "other").key
        case "expired":
            pair = certificate(tmp_path, "old", begins=-3 * DAY, ends=-DAY)
            cert, key = pair.certificate, pair.key
        case "encrypted":
            pair = certificate(tmp_path, "sealed", password=b"hush")
            cert, key = pair.certificate, pair.key
        case "garbage":
            cert.write_bytes(b"\x00nonsense")
        case "missing":
            cert.unlink()
        case "key alone":
            cert = None
    given = {"LCP_GATEWAY_HTTP_TLS_KEY": str(key)}
    if cert is not None:
        given["LCP_GATEWAY_HTTP_TLS_CERT"] = str(cert)
    reported = lcp_gateway(
        "serve",
        "--embedded",
        "--http-addr",
        "127.0.0.1:0",
        XDG_STATE_HOME=str(tmp_path),
        XDG_CONFIG_HOME=str(tmp_path),
        **given,
    )
    assert reported.returncode == status
    assert word in reported.stderr and "Traceback" not in reported.stderr
    assert len([line for line in reported.stderr.splitlines() if line.startswith("lcp-gateway:")]) == 1
