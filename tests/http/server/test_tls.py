"""HTTPS: which files are accepted, which certificate clients get, and how it is renewed."""

import asyncio
import ssl
from contextlib import AsyncExitStack, suppress

import pytest
from aiohttp import ClientSession, TCPConnector, web

from lcp_gateway.app.serving import server_options
from lcp_gateway.config import Settings
from lcp_gateway.http.server.listener import listen
from lcp_gateway.http.server.tls import BadCertificate, Tls, server_context
from tests.support.certificates import DAY, certificate

# -- which files are accepted ------------------------------------------------------------------------


def test_a_certificate_with_its_key_is_taken_from_two_files_and_from_one(tmp_path):
    pair = certificate(tmp_path)
    server_context(pair.certificate, pair.key)
    both = tmp_path / "both.pem"
    both.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    server_context(both, None)


def test_only_tls_of_today_is_spoken(tmp_path):
    pair = certificate(tmp_path)
    context = server_context(pair.certificate, pair.key)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE, "clients need no certificate"


def problem_of(certificate_file, key_file) -> str:
    with pytest.raises(BadCertificate) as caught:
        server_context(certificate_file, key_file)
    message = str(caught.value)
    assert str(certificate_file) in message or str(key_file) in message
    return message


def test_a_key_of_another_certificate_is_said(tmp_path):
    one, other = certificate(tmp_path, "one"), certificate(tmp_path, "other")
    assert "is not that of the first certificate" in problem_of(one.certificate, other.key)


@pytest.mark.parametrize(
    ("times", "word"),
    [
        ({"begins": -3 * DAY, "ends": -DAY}, "has expired"),
        ({"begins": DAY, "ends": 3 * DAY}, "is not valid yet"),
        ({"client_only": True}, "would be refused by every client"),
    ],
)
def test_a_certificate_that_every_client_would_refuse_is_refused_here(tmp_path, times, word):
    pair = certificate(tmp_path, **times)
    assert word in problem_of(pair.certificate, pair.key)


def test_an_encrypted_key_is_an_error_and_no_password_is_asked_for(tmp_path):
    pair = certificate(tmp_path, password=b"hush")
    message = problem_of(pair.certificate, pair.key)
    assert "is encrypted" in message and "hush" not in message


@pytest.mark.parametrize("content", [b"", b"no PEM at all", b"\x00\xff" * 100])
def test_files_that_are_none_are_said(tmp_path, content):
    pair = certificate(tmp_path)
    good = pair.certificate.read_bytes()
    for broken in (pair.certificate, pair.key):
        broken.write_bytes(content)
        assert "must hold a certificate" in problem_of(pair.certificate, pair.key)
        pair.certificate.write_bytes(good)


def test_a_certificate_without_a_key_is_said(tmp_path):
    assert "and its key" in problem_of(certificate(tmp_path).certificate, None)


def test_a_missing_file_is_reported(tmp_path):
    pair = certificate(tmp_path)
    pair.key.unlink()
    assert "No such file" in problem_of(pair.certificate, pair.key)


# -- over the wire --------------------------------------------------------------------------------


async def hello(request: web.Request) -> web.Response:
    return web.json_response({"scheme": request.scheme, "secure": request.secure})


@pytest.fixture
async def serve(monkeypatch):
    """Return a server with a certificate on a free port."""
    monkeypatch.setattr("lcp_gateway.http.server.listener._HANDSHAKE_S", 60.0)
    async with AsyncExitStack() as stack:

        async def start(tls: Tls) -> int:
            app = web.Application()
            app.router.add_get("/", hello)
            where = listen(app, "127.0.0.1", 0, server_options(Settings()), tls.context)
            return (await stack.enter_async_context(where)).port

        yield start


async def shown_at(port: int) -> bytes:
    """Return the certificate that a new connection gets."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


async def test_a_client_that_trusts_the_certificate_is_served_and_sees_the_scheme(tmp_path, serve):
    pair = certificate(tmp_path)
    port = await serve(Tls(pair.certificate, pair.key))
    async with ClientSession() as session, session.get(f"https://localhost:{port}/", ssl=pair.trusting) as answer:
        assert await answer.json() == {"scheme": "https", "secure": True}


async def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on(tmp_path, serve):
    pair, renewed = certificate(tmp_path, "one"), certificate(tmp_path, "two")
    tls = Tls(pair.certificate, pair.key)
    port = await serve(tls)
    before, trusting = pair.der, pair.trusting
    # A client's default is to give an idle connection up within 15 s, which the handshakes in between may take.
    async with ClientSession(connector=TCPConnector(keepalive_timeout=75)) as session:
        async with session.get(f"https://localhost:{port}/", ssl=trusting) as answer:
            assert answer.status == 200
        pair.replace_by(renewed)
        assert await shown_at(port) == before, "it is taken when that is asked for"
        assert tls.use(pair.certificate, pair.key) is True
        assert await shown_at(port) == renewed.der
        # The same connection, which has the previous certificate.
        async with session.get(f"https://localhost:{port}/", ssl=trusting) as answer:
            assert answer.status == 200
    assert tls.use(pair.certificate, pair.key) is False, "it is the same now"


async def test_a_renewal_that_cannot_be_used_leaves_the_certificate_of_before(tmp_path, serve):
    pair, other = certificate(tmp_path, "one"), certificate(tmp_path, "other")
    expired = certificate(tmp_path, "expired", begins=-3 * DAY, ends=-DAY)
    before = pair.der
    tls = Tls(pair.certificate, pair.key)
    port = await serve(tls)
    for bad in ((other.certificate, pair.key), (expired.certificate, expired.key)):
        with pytest.raises(BadCertificate):
            tls.use(*bad)
        assert await shown_at(port) == before


async def test_a_client_that_speaks_something_else_or_nothing_does_no_harm(tmp_path, serve, monkeypatch):
    monkeypatch.setattr("lcp_gateway.http.server.listener._HANDSHAKE_S", 0.3)
    pair = certificate(tmp_path)
    port = await serve(Tls(pair.certificate, pair.key))
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))

    async def left_alone(said: bytes) -> float:
        clock = asyncio.get_running_loop().time
        started = clock()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        try:
            async with asyncio.timeout(60):
                while await reader.read(1_000):
                    pass
        except ConnectionError:
            pass
        writer.close()
        return clock() - started

    plain = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    half_a_hello = b"\x16\x03\x01\x02\x00\x01\x00"
    said = [b"", plain, b"\x00" * 2_000, half_a_hello] * 10
    took = await asyncio.gather(*map(left_alone, said))
    assert max(took) < 45
    # That time is short for a good client, too, on a busy machine.
    async with asyncio.timeout(60):
        while True:
            with suppress(OSError):
                assert await shown_at(port) == pair.der
                break
    assert errors == []
