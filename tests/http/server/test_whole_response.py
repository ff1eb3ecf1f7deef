import asyncio
import re
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from lcp_gateway.http.server.whole_response import WholeResponse

HEADERS = {"Content-Type": "application/json; charset=utf-8", "X-Lcp-Payment": "settled", "X-Name": "naïve\tvalue"}


@asynccontextmanager
async def serving(respond):
    async def handler(_request):
        return respond()

    async def prepare(_request, response):
        response.headers["X-Prepared"] = "yes"

    app = web.Application()
    app.router.add_post("/", handler)
    app.on_response_prepare.append(prepare)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def answers(respond, version="1.1", headers="", times=1):
    """Return the bytes that a client gets before the server closes, or all of ``times`` requests on one connection."""
    async with serving(respond) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(times):
            writer.write(f"POST / HTTP/{version}\r\nHost: localhost\r\nContent-Length: 2\r\n{headers}\r\n{{}}".encode())
        if version == "1.1" and "close" not in headers:
            found = b""
            for _ in range(times):
                head = await reader.readuntil(b"\r\n\r\n")
                found += head + await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", head)[1]))
        else:
            found = await reader.read()
        writer.close()
        return re.sub(rb"Date: [^\r]+", b"Date: now", found)


def fields_of(answer: bytes):
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    return status, sorted(field for field in fields if not field.startswith(b"Server:")), body


@pytest.mark.parametrize("body", [b"", b'{"a": 1}', b"x" * 100_000])
@pytest.mark.parametrize(("version", "headers"), [("1.1", ""), ("1.1", "Connection: close\r\n"), ("1.0", "")])
async def test_it_is_what_aiohttp_sends(body, version, headers):
    own, theirs = [
        await answers(lambda kind=kind: kind(body=body, headers=HEADERS), version, headers)
        for kind in (WholeResponse, web.Response)
    ]
    assert fields_of(own) == fields_of(theirs)
    assert b"X-Prepared: yes" in own


async def test_a_connection_is_kept():
    once = await answers(lambda: WholeResponse(body=b"{}", headers=HEADERS))
    assert await answers(lambda: WholeResponse(body=b"{}", headers=HEADERS), times=3) == 3 * once


async def test_one_that_is_to_close_closes():
    def respond():
        response = WholeResponse(body=b"{}", headers=HEADERS)
        response.force_close()
        return response

    status, fields, body = fields_of(await answers(respond))
    assert status == b"HTTP/1.1 200 OK" and b"Connection: close" in fields and body == b"{}"


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b", "a\x7fb"])
async def test_no_header_makes_another(value):
    answer = await answers(
        lambda: WholeResponse(body=b"{}", headers={"X-Name": value}), headers="Connection: close\r\n"
    )
    own = await answers_or_nothing(lambda: WholeResponse(body=b"{}", headers={"X-Name": value}))
    assert b"Set-Cookie" not in answer + own and b"X-Name" not in answer + own


async def answers_or_nothing(respond):
    async with serving(respond) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        found = await reader.read()
        writer.close()
        return found
