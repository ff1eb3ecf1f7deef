"""Pages that are not the gateway's own, in a real browser: they buy nothing and read nothing, unless they are allowed."""

import asyncio
import json

import pytest

from tests.browser.conftest import FRIEND, REBOUND, STRANGER

pytestmark = pytest.mark.xdist_group("browser")

BODY = json.dumps({"model": "echo-1", "messages": [{"role": "user", "content": "spend"}]})
CHAT = "/v1/chat/completions"
REFUSED = {403, 421}

# Each is a function of the gateway's URL and a body, and returns the part of the answer that the page could read, or nothing.
FORM = """(kind) => ([url, body]) => new Promise((done) => {
  const form = document.createElement('form');
  form.method = 'POST'; form.action = url + '/v1/chat/completions'; form.enctype = kind; form.target = 'sink' + Math.random();
  const field = document.createElement('input');
  // With text/plain a browser writes name=value: the usual trick makes it JSON.
  field.name = body.slice(0, -1) + ', "user": "'; field.value = '"}';
  const sink = document.createElement('iframe'); sink.name = form.target;
  form.append(field); document.body.append(sink, form);
  sink.onload = () => { let text = ''; try { text = sink.contentDocument.body.innerText } catch {} done(text) };
  form.submit();
})"""
FETCH = """(options) => async ([url, body]) => {
  const sent = {method: 'POST', body, ...options};
  try { return await (await fetch(url + '/v1/chat/completions', sent)).text() } catch { return '' }
}"""
SPENDING = {
    "a form of plain text": (FORM, "text/plain"),
    "a form": (FORM, "application/x-www-form-urlencoded"),
    "a form of parts": (FORM, "multipart/form-data"),
    "fetch without cors": (FETCH, {"mode": "no-cors"}),
    "fetch of plain text": (FETCH, {"headers": {"Content-Type": "text/plain"}}),
    "fetch of JSON": (FETCH, {"headers": {"Content-Type": "application/json"}}),
    "fetch with a made-up key": (FETCH, {"headers": {"Authorization": "Bearer x"}}),
    "fetch without a referrer": (FETCH, {"mode": "no-cors", "referrerPolicy": "no-referrer"}),
    "fetch that outlives its page": (FETCH, {"mode": "no-cors", "keepalive": True}),
    "a beacon": (
        """() => async ([url, body]) => {
             navigator.sendBeacon(url + '/v1/chat/completions', body); return '' }""",
        None,
    ),
    "an XMLHttpRequest": (
        """() => ([url, body]) => new Promise((done) => {
             const asked = new XMLHttpRequest(); asked.open('POST', url + '/v1/chat/completions');
             asked.onloadend = () => done(asked.responseText); asked.send(body) })""",
        None,
    ),
}
READING = {
    "fetch": """async ([url]) => { try { return await (await fetch(url)).text() } catch { return '' } }""",
    "fetch without cors": """async ([url]) => {
        try { return await (await fetch(url, {mode: 'no-cors'})).text() } catch { return '' } }""",
    "an image": """([url]) => new Promise((done) => {
        const image = new Image(); image.onload = () => done('loaded'); image.onerror = () => done('');
        image.src = url; document.body.append(image) })""",
    "a script": """([url]) => new Promise((done) => {
        const script = document.createElement('script'); script.onload = () => done('loaded');
        script.onerror = () => done(''); script.src = url; document.body.append(script) })""",
    "a style sheet": """([url]) => new Promise((done) => {
        const link = document.createElement('link'); link.rel = 'stylesheet'; link.href = url;
        link.onload = () => done('loaded'); link.onerror = () => done(''); document.head.append(link) })""",
    "a frame": """([url]) => new Promise((done) => {
        const frame = document.createElement('iframe');
        frame.onload = () => { try { done(frame.contentDocument.body.innerText) } catch { done('') } };
        frame.src = url; document.body.append(frame) })""",
    "an object": """([url]) => new Promise((done) => {
        const found = document.createElement('object'); found.onload = () => done('loaded');
        found.onerror = () => done(''); found.data = url; document.body.append(found) })""",
    "an EventSource": """([url]) => new Promise((done) => {
        const source = new EventSource(url); source.onmessage = (event) => done(event.data);
        source.onerror = () => { source.close(); done('') } })""",
}


async def is_at(page, host: str, port: int) -> None:
    await page.goto(f"http://{host}:{port}/")


async def spend(page, gateway_url: str, how: str) -> str:
    script, argument = SPENDING[how]
    async with asyncio.timeout(60):
        return await page.evaluate(
            f"([argument, ...rest]) => ({script})(argument)(rest)", [argument, gateway_url, BODY]
        )


async def read(page, how: str, url: str) -> str:
    async with asyncio.timeout(60):
        return await page.evaluate(READING[how], [url])


@pytest.mark.parametrize("host", [STRANGER, "127.0.0.1", "localhost"])
async def test_a_page_of_another_origin_buys_nothing_and_reads_nothing(page, closed, pages_port, host):
    """Once a form and ``fetch(no-cors)`` bought. Another port of this machine is another origin too."""
    before = closed.bought()
    await is_at(page, host, pages_port)
    for how in SPENDING:
        closed.begin()
        assert await spend(page, closed.url, how) == "", how
        assert set(await closed.answered()) <= REFUSED, how
    assert closed.bought() == before


@pytest.mark.parametrize("how", ["a form of plain text", "fetch without cors", "a beacon"])
async def test_the_same_pages_buy_where_the_guard_is_turned_off(page, wide_open, pages_port, how):
    """A control: without the guard these requests are bought."""
    wide_open.begin()
    before = wide_open.bought()
    await is_at(page, STRANGER, pages_port)
    await spend(page, wide_open.url, how)
    assert await wide_open.answered() == [200]
    assert wide_open.bought() > before


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/api/wallet"])
async def test_a_page_of_another_origin_reads_nothing_in_any_way(page, closed, pages_port, path):
    await is_at(page, STRANGER, pages_port)
    for how in READING:
        closed.begin()
        assert await read(page, how, closed.url + path) == "", how
        assert set(await closed.answered()) <= REFUSED, how


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_not_even_an_open_answer_is_read_or_framed_by_a_page_of_another_origin(page, closed, pages_port, path):
    await is_at(page, STRANGER, pages_port)
    for how in READING:
        assert await read(page, how, closed.url + path) == "", how


async def test_a_web_socket_is_refused(page, closed, pages_port):
    closed.begin()
    await is_at(page, STRANGER, pages_port)
    script = """(url) => new Promise((done) => {
      const socket = new WebSocket(url); socket.onopen = () => done('open'); socket.onerror = () => done('') })"""
    assert await page.evaluate(script, f"ws://127.0.0.1:{closed.port}/v1/models") == ""
    assert set(await closed.answered()) <= REFUSED


async def test_a_page_without_an_origin_buys_nothing(page, closed, pages_port):
    """A sandboxed frame, which every page can have, sends ``Origin: null``."""
    before = closed.bought()
    await is_at(page, STRANGER, pages_port)
    await page.set_content('<iframe sandbox="allow-scripts allow-forms" srcdoc="<body></body>"></iframe>')
    (frame,) = page.main_frame.child_frames
    await frame.wait_for_load_state()
    assert await frame.evaluate("origin") == "null"
    for how in SPENDING:
        closed.begin()
        assert await spend(frame, closed.url, how) == "", how
        assert set(await closed.answered()) <= REFUSED, how
    assert closed.bought() == before


async def test_a_page_from_a_file_buys_nothing(page, closed, tmp_path):
    closed.begin()
    before = closed.bought()
    file = tmp_path / "page.html"
    file.write_text("<!doctype html><body></body>")
    await page.goto(file.as_uri())
    assert await spend(page, closed.url, "fetch without cors") == ""
    assert set(await closed.answered()) <= REFUSED
    assert closed.bought() == before


async def test_a_followed_link_shows_the_state_and_no_data(page, closed, pages_port):
    await is_at(page, STRANGER, pages_port)
    for path, status in (("/readyz", 200), ("/metrics", 200), ("/v1/models", 403)):
        await page.goto(f"http://{STRANGER}:{pages_port}/")
        link = "(url) => { const a = document.createElement('a'); a.href = url; document.body.append(a); a.click() }"
        async with page.expect_navigation() as arrived:
            await page.evaluate(link, closed.url + path)
        assert (await arrived.value).status == status


# -- a name that was rebound ----------------------------------------------------------------------


async def is_rebound(page, port: int) -> None:
    """Show a page whose own name leads to the gateway by now: for the browser they are one origin."""
    address = f"http://{REBOUND}:{port}/page-of-the-attacker"
    html = "<!doctype html><body></body>"
    await page.route(address, lambda route: route.fulfill(body=html, content_type="text/html"))
    await page.goto(address)


async def test_a_rebound_name_buys_nothing(page, closed):
    """Once such a request bought an answer, and the page could read it."""
    before = closed.bought()
    await is_rebound(page, closed.port)
    for how in SPENDING:
        closed.begin()
        text = await spend(page, f"http://{REBOUND}:{closed.port}", how)
        assert "chat.completion" not in text, how
        assert set(await closed.answered()) == {421}, how
    assert closed.bought() == before


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/responses/resp_1"])
async def test_a_rebound_name_reads_nothing(page, closed, path):
    await is_rebound(page, closed.port)
    for how in READING:
        closed.begin()
        text = await read(page, how, f"http://{REBOUND}:{closed.port}{path}")
        assert "echo" not in text and "lcpgateway_" not in text, how
        assert set(await closed.answered()) == {421}, how


async def test_a_rebound_name_reads_only_the_status_of_readyz(page, closed):
    await is_rebound(page, closed.port)
    text = await page.evaluate(READING["fetch"], [f"http://{REBOUND}:{closed.port}/readyz"])
    assert json.loads(text) == {"status": "ready"}


async def test_a_rebound_name_buys_and_reads_where_every_name_is_allowed(page, wide_open):
    before = wide_open.bought()
    await is_rebound(page, wide_open.port)
    text = await spend(page, f"http://{REBOUND}:{wide_open.port}", "fetch of JSON")
    assert json.loads(text)["object"] == "chat.completion"
    assert wide_open.bought() > before


# -- pages that may call --------------------------------------------------------------------------

ASK = """async ([url, body]) => {
  const answer = await fetch(url + '/v1/chat/completions', {
    method: 'POST', body, headers: {'Content-Type': 'application/json', 'X-Stainless-Lang': 'js'}});
  return [answer.status, await answer.json(), answer.headers.get('x-lcp-payment')];
}"""
STREAM = """async ([url, body]) => {
  const answer = await fetch(url + '/v1/chat/completions', {
    method: 'POST', body: JSON.stringify({...JSON.parse(body), stream: true}),
    headers: {'Content-Type': 'application/json'}});
  const reader = answer.body.getReader(), pieces = [], text = new TextDecoder();
  for (;;) { const {done, value} = await reader.read(); if (done) break; pieces.push(text.decode(value)) }
  return [answer.status, pieces.join('')];
}"""


async def may_call(page, url: str) -> None:
    """Check all that a chat page does."""
    status, document, payment = await page.evaluate(ASK, [url, BODY])
    assert (status, payment) == (200, "settled")
    assert document["choices"][0]["message"]["content"]
    status, text = await page.evaluate(STREAM, [url, BODY])
    assert status == 200 and text.rstrip().endswith("data: [DONE]")
    unknown = BODY.replace("echo-1", "unheard-of")
    status, document, payment = await page.evaluate(ASK, [url, unknown])
    assert (status, payment) == (404, "none") and document["error"]["message"]
    assert "echo-1" in await page.evaluate(READING["fetch"], [url + "/v1/models"])
    gone = """async ([url]) => (await fetch(url + '/v1/responses/resp_1', {method: 'DELETE'})).status"""
    assert await page.evaluate(gone, [url]) == 404


async def test_a_page_of_an_allowed_origin_asks_streams_and_reads_errors(page, closed, pages_port):
    await is_at(page, FRIEND, pages_port)
    await may_call(page, closed.url)
    await may_call(page, f"http://localhost:{closed.port}")


async def test_an_allowed_origin_still_frames_nothing(page, closed, pages_port):
    await is_at(page, FRIEND, pages_port)
    assert await page.evaluate(READING["a frame"], [closed.url + "/healthz"]) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "gateway.localhost"])
async def test_a_page_of_the_gateways_own_origin_may_call(page, closed, host):
    address = f"http://{host}:{closed.port}/own-page"
    html = "<!doctype html><body></body>"
    await page.route(address, lambda route: route.fulfill(body=html, content_type="text/html"))
    await page.goto(address)
    await may_call(page, f"http://{host}:{closed.port}")


async def test_a_typed_address_is_served(page, closed):
    answer = await page.goto(f"{closed.url}/v1/models")
    assert answer.status == 200
    assert "echo-1" in await page.inner_text("body")
