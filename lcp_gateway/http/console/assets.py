"""The console's files as they are served: read once from the package, under a path that names their content."""

import asyncio
import gzip
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Final

from aiohttp import web

from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError

PREFIX: Final = "/console/assets"
CONSOLE_PATHS: Final = frozenset({"/console", "/console/", f"{PREFIX}/{{version}}/{{path}}"})
"""The paths of the page and its files, as the route table writes them."""
PLACEHOLDER: Final = "{assets}"
"""The text of the page that becomes the path of the files."""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The content security policy of the page: only the gateway's own files, and no text becomes a script."""

_PAGE = "index.html"
_TYPES = MappingProxyType(
    {
        "css": "text/css",
        "html": "text/html",
        "ico": "image/x-icon",
        "js": "text/javascript",
        "json": "application/json",
        "png": "image/png",
        "svg": "image/svg+xml",
        "txt": "text/plain",
        "woff2": "font/woff2",
    }
)
_WITH_CHARSET = frozenset({"css", "html", "js", "svg", "txt"})
# Of 64 hexadecimal digits: enough to tell versions apart.
_HASH_CHARS = 16
_IMMUTABLE = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file with its media type; ``packed`` are its bytes in gzip, None where that saves nothing."""

    body: bytes
    packed: bytes | None
    content_type: str

    def response(self, request: web.Request, headers: Mapping[str, str]) -> web.Response:
        """Return the file as the response, packed where the client accepts it."""
        found = {"Content-Type": self.content_type, "Vary": "Accept-Encoding", **headers}
        if self.packed is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=self.packed, headers={"Content-Encoding": "gzip", **found})
        return web.Response(body=self.body, headers=found)


@dataclass(frozen=True, slots=True)
class Assets:
    """The page, and the other files by their paths; ``version`` is the hash of all of them."""

    page: Asset
    by_path: Mapping[str, Asset]
    version: str


def load_assets(folder: Traversable | None = None) -> Assets:
    """Read all files, by default those of the package, and pack them."""
    found = dict(sorted(_read(folder or files("lcp_gateway.http.console") / "assets")))
    digest = hashlib.sha256()
    for path, body in found.items():
        digest.update(b"%s\0%d\0" % (path.encode(), len(body)))
        digest.update(body)
    version = digest.hexdigest()[:_HASH_CHARS]
    page = found.pop(_PAGE).replace(PLACEHOLDER.encode(), f"{PREFIX}/{version}".encode())
    return Assets(_asset(_PAGE, page), {path: _asset(path, body) for path, body in found.items()}, version)


class AssetFiles:
    """The files, read at the first request for one of them."""

    def __init__(self, folder: Traversable | None = None) -> None:
        """``folder`` holds the files; None for those of the package."""
        self._folder = folder
        self._loading = asyncio.Lock()
        self._assets: Assets | None = None

    async def get(self) -> Assets:
        """Return the files."""
        async with self._loading:
            if self._assets is None:
                # In a thread: packing takes longer than the streams under way should wait.
                self._assets = await asyncio.to_thread(load_assets, self._folder)
            return self._assets


class ConsolePages:
    """Serves the page and its files. They need no credential and hold nothing confidential."""

    def __init__(self, files: AssetFiles, *, check: Callable[[web.BaseRequest], None] = lambda _request: None) -> None:
        """``check`` raises ``ApiError`` for a request that must not see the page."""
        self._files = files
        self._check = check

    async def page(self, request: web.Request) -> web.Response:
        """Serve GET /console/: the page, which is never cached, so that it always names the files of this version."""
        request[CONTEXT].is_shareable = False
        self._check(request)
        page = (await self._files.get()).page
        headers = {
            "Cache-Control": "no-store",
            "Content-Security-Policy": POLICY,
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
        }
        return page.response(request, headers)

    async def asset(self, request: web.Request) -> web.Response:
        """Serve GET /console/assets/{version}/{path}, which never changes."""
        request[CONTEXT].is_shareable = False
        assets = await self._files.get()
        found = assets.by_path.get(request.match_info["path"])
        if found is None or request.match_info["version"] != assets.version:
            raise ApiError(404, "there is no such file in this version of the console", code="not_found")
        return found.response(request, {"Cache-Control": _IMMUTABLE, "Referrer-Policy": "no-referrer"})

    async def redirect(self, _request: web.Request) -> web.Response:
        """Serve GET /console."""
        return web.Response(status=308, headers={"Location": "/console/", "Cache-Control": "no-store"})


def _read(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for item in folder.iterdir():
        path = f"{prefix}{item.name}"
        if item.is_dir():
            yield from _read(item, f"{path}/")
        elif item.name.rpartition(".")[2] in _TYPES:
            yield path, item.read_bytes()


def _asset(path: str, body: bytes) -> Asset:
    suffix = path.rpartition(".")[2]
    content_type = _TYPES[suffix] + ("; charset=utf-8" if suffix in _WITH_CHARSET else "")
    # Without a time of packing: the same bytes in every process.
    packed = gzip.compress(body, 9, mtime=0)
    return Asset(body, packed if len(packed) < len(body) else None, content_type)
