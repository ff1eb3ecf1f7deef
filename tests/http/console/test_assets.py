"""The console's files: named by their content, cached for good, packed, and under a strict policy; the page is never cached."""

import asyncio
import gzip
import re
from contextlib import asynccontextmanager
from importlib.resources import files
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.console.assets import CONSOLE_PATHS, POLICY, PREFIX, AssetFiles, ConsolePages, load_assets
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.gateway.welcome import WelcomeRoutes
from lcp_gateway.http.middleware import RequestMiddleware
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics

PAGE = '<!doctype html><link rel="stylesheet" href="{assets}/console.css"><script type="module" src="{assets}/app.js"></script>'
PLAIN = {"Accept-Encoding": "identity"}
HTML = {"Accept": "text/html,application/xhtml+xml"}


async def refuse(_request):
    raise ApiError(401, "no")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vendor").mkdir()
    (tmp_path / "index.html").write_text(PAGE)
    (tmp_path / "app.js").write_text('import { h } from "./vendor/preact.js";\n' * 40)
    (tmp_path / "vendor" / "preact.js").write_text("export const h = 1;")
    (tmp_path / "console.css").write_text("body { color: red }\n" * 40)
    (tmp_path / "notes.md").write_text("not served")
    return tmp_path


@asynccontextmanager
async def serving(folder, *, guard=None, has_console=True):
    pages = ConsolePages(AssetFiles(folder), check=guard.check_host if guard else lambda _request: None)
    middleware = RequestMiddleware(
        authenticator=SimpleNamespace(admit=refuse),
        cors=Cors(["*"]),
        guard=guard or BrowserGuard(Cors([])),
        metrics=Metrics(),
        log=get_logger("test"),
        open_paths=frozenset({"/", *CONSOLE_PATHS}),
        max_header_bytes=16_384,
    )
    app = web.Application(middlewares=[middleware.handle])
    app.on_response_prepare.append(middleware.on_response_prepare)
    app.router.add_get("/", WelcomeRoutes(asks_for_key=False, has_console=has_console).get)
    app.router.add_get("/console", pages.redirect)
    app.router.add_get("/console/", pages.page)
    app.router.add_get(f"{PREFIX}/{{version}}/{{path:.+}}", pages.asset)
    async with TestClient(TestServer(app), auto_decompress=False, headers=PLAIN) as client:
        yield client


async def test_the_page_names_the_files_of_its_version_and_is_never_cached(folder):
    async with serving(folder) as client:
        found = await client.get("/console/")
        version = load_assets(folder).version
        assert f'src="{PREFIX}/{version}/app.js"' in await found.text()
        assert found.headers["Cache-Control"] == "no-store"
        assert found.headers["Content-Type"] == "text/html; charset=utf-8"


async def test_the_page_runs_only_the_gateways_own_files_and_is_framed_by_no_other_page(folder):
    assert POLICY == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    async with serving(folder) as client:
        headers = (await client.get("/console/", headers={"Origin": "https://evil.example"})).headers
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["Content-Security-Policy"] == POLICY
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_a_file_is_cached_for_good_under_the_hash_of_all_files(folder):
    async with serving(folder) as client:
        version = load_assets(folder).version
        found = await client.get(f"{PREFIX}/{version}/vendor/preact.js")
        assert (found.status, await found.read()) == (200, b"export const h = 1;")
        assert found.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert found.headers["Content-Type"] == "text/javascript; charset=utf-8"
        for path in ("vendor/nothing.js", "index.html", "notes.md"):
            assert (await client.get(f"{PREFIX}/{version}/{path}")).status == 404, path
        assert (await client.get(f"{PREFIX}/0123456789abcdef/app.js")).status == 404
        (folder / "console.css").write_text("body {}")
        assert load_assets(folder).version != version, "another content has another name"


async def test_files_are_packed_for_clients_that_accept_it(folder):
    async with serving(folder) as client:
        path = f"{PREFIX}/{load_assets(folder).version}/app.js"
        packed = await client.get(path, headers={"Accept-Encoding": "gzip, br"})
        assert packed.headers["Content-Encoding"] == "gzip"
        plain = await client.get(path, headers={"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in plain.headers
        body = await plain.read()
        assert gzip.decompress(await packed.read()) == body
        assert int(packed.headers["Content-Length"]) < len(body)
        assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"


async def test_the_files_are_read_once(folder):
    read = AssetFiles(folder)
    first, second = await asyncio.gather(read.get(), read.get())
    assert first is second


async def test_a_browser_at_the_root_is_sent_to_the_console_and_other_clients_are_not(folder):
    async with serving(folder) as client:
        found = await client.get("/", headers=HTML, allow_redirects=False)
        assert (found.status, found.headers["Location"], found.headers["Vary"]) == (303, "/console/", "Accept")
        assert (await client.get("/")).content_type == "application/json"
        assert (await client.get("/console", allow_redirects=False)).headers["Location"] == "/console/"
    async with serving(folder, has_console=False) as client:
        assert (await client.get("/", headers=HTML, allow_redirects=False)).status == 200


async def test_a_page_of_a_rebound_name_does_not_get_the_console(folder):
    async with serving(folder, guard=BrowserGuard(Cors(["*"]))) as client:
        assert (await client.get("/console/", headers={"Host": "evil.example"})).status == 421
        assert (await client.get("/console/", headers={"Host": "localhost:8080"})).status == 200


def test_the_package_holds_a_page_and_every_file_that_it_names():
    assets = load_assets()
    named = re.findall(rf"{PREFIX}/{assets.version}/([^\"'\s>]+)", assets.page.body.decode())
    assert set(named) <= set(assets.by_path)
    assert (files("lcp_gateway.http.console") / "assets" / "index.html").is_file()
