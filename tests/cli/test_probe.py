"""A container's health check finds the gateway's configured address, and accepts nothing but a 200."""

import http.server
import ssl
import subprocess
import sys
import threading

import pytest

from lcp_gateway.cli.probe import main
from tests.support.gateway import gateway
from tests.support.lnd_standin import make_certificate
from tests.support.workers import until


@pytest.fixture
def server():
    """A server whose status can be changed."""

    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self):
            self.send_response(self.status if self.path == "/healthz" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.handler = Handler
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.mark.parametrize("host", ["", "0.0.0.0", "127.0.0.1", "localhost"])
def test_an_answer_is_told_from_an_error(server, host, capsys):
    environ = {"LCP_GATEWAY_HTTP_ADDR": f"{host}:{server.server_port}"}
    assert main(environ) == 0
    server.handler.status = 503
    assert main(environ) == 1
    assert capsys.readouterr().err == "status 503\n"


def test_the_address_comes_from_where_the_gateway_has_it(server, tmp_path):
    address = f"127.0.0.1:{server.server_port}"
    file = tmp_path / "config.toml"
    file.write_text(f'http_addr = "{address}"\n')
    in_the_way = {"OPENAI_SERVE_HTTP_ADDR": "127.0.0.1:1"}
    assert main({"OPENAI_SERVE_HTTP_ADDR": address}) == 0
    assert main({"LCP_GATEWAY_HTTP_ADDR": address, **in_the_way}) == 0
    assert main({"LCP_GATEWAY_CONFIG": str(file)}) == 0
    assert main({"LCP_GATEWAY_CONFIG": str(file), **in_the_way}) == 1
    assert main({"LCP_GATEWAY_CONFIG": str(tmp_path / "none"), "LCP_GATEWAY_HTTP_ADDR": address}) == 0


def test_with_a_certificate_it_is_asked_over_tls(server, tmp_path):
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    environ = {"LCP_GATEWAY_HTTP_ADDR": f"127.0.0.1:{server.server_port}"}
    assert main(environ | {"LCP_GATEWAY_HTTP_TLS_CERT": str(certificate)}) == 0
    # It does not answer plain HTTP.
    assert main(environ) == 1
    file = tmp_path / "config.toml"
    file.write_text(f'http_tls_cert = "{certificate}"\n')
    assert main(environ | {"LCP_GATEWAY_CONFIG": str(file)}) == 0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", ":", "[::1]:1", "127.0.0.1:x"])
def test_where_no_server_answers_it_reports_so_in_a_line(address, capsys):
    assert main({"LCP_GATEWAY_HTTP_ADDR": address}) == 1
    said = capsys.readouterr().err
    assert said.startswith("no answer: ") and said.count("\n") == 1


def test_the_gateway_answers_and_then_does_not():
    with gateway() as running:
        command = [sys.executable, "-m", "lcp_gateway.cli.probe"]
        environ = {"LCP_GATEWAY_HTTP_ADDR": f"127.0.0.1:{running.port}"}
        # It waits two seconds, as it is run again and again.
        until(
            lambda: subprocess.run(command, env=environ, timeout=120, check=False).returncode == 0, "no probe went well"
        )
        running.stop()
        done = subprocess.run(command, env=environ, stderr=subprocess.DEVNULL, timeout=120, check=False)
        assert done.returncode == 1


def test_it_loads_nothing_of_the_program():
    python = (
        "import sys, lcp_gateway.cli.probe as probe\nprobe.main({'LCP_GATEWAY_HTTP_ADDR': ':1'})\n"
        "print(*(name for name in sys.modules if name.partition('.')[0] in"
        " {'lcp_gateway', 'typer', 'pydantic', 'aiohttp', 'grpc'}))"
    )
    done = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["lcp_gateway", "lcp_gateway.cli", "lcp_gateway.cli.probe"]
