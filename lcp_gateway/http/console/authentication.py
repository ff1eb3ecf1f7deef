"""The caller that a browser's cookie stands for, on the named routes, under rules that keep the pages of other origins out."""

from functools import partial
from typing import Final

from aiohttp import web

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.sessions import ConsoleSessions
from lcp_gateway.http.authentication import LOCAL, Authenticator
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.console.cookie_routes import CONFIRMED, COOKIE_ROUTES, PASSIVE_ROUTES
from lcp_gateway.http.console.cookies import Cookies
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.gateway.api_limits import ApiLimits, anonymous_caller
from lcp_gateway.http.permissions import RANKING, check_permission
from lcp_gateway.http.server.proxies import display_address

CONFIRMATION: Final = "X-Lcp-Confirm"
"""The header with the confirmation that a person typed: the last characters of the id in the path."""
CONFIRMATION_CHARS: Final = 6
BACKGROUND: Final = "X-Lcp-Background"
"""The header of a request that no person caused: it does not keep the session."""

_READS = frozenset({"GET", "HEAD"})


class LocalConsole:
    """Where no authentication is configured: the user of this machine needs no sign-in, the pages of other origins stay out.

    They may use the other routes where ``cors_origins`` names them, and ask which model would be chosen.
    """

    def __init__(self, inner: Authenticator, guard: BrowserGuard) -> None:
        self._inner = inner
        self._guard = guard

    async def admit(self, request: web.Request) -> Caller:
        """Return the caller."""
        caller = await self._inner.admit(request)
        context = request[CONTEXT]
        if caller is LOCAL and context.endpoint in COOKIE_ROUTES and context.endpoint != RANKING:
            context.is_shareable = False
            self.check_near(request)
            self._guard.check_own(request, needs_origin=False)
        return caller

    def check_near(self, request: web.BaseRequest) -> None:
        """Check that a request comes from this machine, also behind a trusted proxy, and names the gateway as its own.

        Raises:
            ApiError: 403, 421.
        """
        if display_address(request.remote):
            raise ApiError(
                403,
                "without authentication the console is for the user of this machine, and this request came from another "
                "through a proxy: set api_keys, or auth",
                code="signin_off",
                reason="sign_in",
            )
        self._guard.check_host(request)


class HeaderAuthenticator:
    """Authenticates by the header alone: where the console is off."""

    def __init__(self, inner: Authenticator, *, unavailable: tuple[type[Exception], ...] = ()) -> None:
        """``unavailable`` are errors of a database that cannot be reached."""
        self._inner = inner
        self._unavailable = unavailable

    async def admit(self, request: web.Request) -> Caller:
        """Return the caller."""
        caller = await self._inner.admit(request)
        if request[CONTEXT].endpoint in COOKIE_ROUTES:
            request[CONTEXT].recheck = partial(self._again, request, caller)
        return caller

    async def _again(self, request: web.Request, caller: Caller) -> bool:
        """Return whether a request that is answered for long would still be admitted, with the same rules."""
        try:
            return await self._inner.admit(request) == caller
        except ApiError:
            return False
        except self._unavailable:
            return False


class SessionAuthenticator(HeaderAuthenticator):
    """Reads the cookie on the named routes, where a request has no ``Authorization``; all else is the header's."""

    def __init__(
        self,
        inner: Authenticator,
        sessions: ConsoleSessions,
        cookies: Cookies,
        guard: BrowserGuard,
        api_limits: ApiLimits,
        *,
        unavailable: tuple[type[Exception], ...] = (),
    ) -> None:
        """``api_limits`` bounds the look-ups of sessions; ``unavailable`` are errors of a database that cannot be reached."""
        super().__init__(inner, unavailable=unavailable)
        self._sessions = sessions
        self._cookies = cookies
        self._guard = guard
        self._api_limits = api_limits

    async def admit(self, request: web.Request) -> Caller:
        """Return the caller of a session or of a key.

        Raises:
            ApiError: besides those for keys: 401 for a session that is over, 403 and 415 for a request that a page of
                another origin may have caused, 428 for one that needs a confirmation.
        """
        context = request[CONTEXT]
        if context.endpoint not in COOKIE_ROUTES:
            return await self._inner.admit(request)
        if "Authorization" in request.headers:
            return await super().admit(request)
        form = self._cookies.form(request)
        token = None if form is None else form.token(request)
        if token is None:
            return await super().admit(request)
        context.is_shareable = False
        check_browser(self._guard, request)
        extend = BACKGROUND not in request.headers and context.endpoint not in PASSIVE_ROUTES
        async with self._api_limits.place(anonymous_caller(request.remote)):
            found = await self._sessions.find(token, extend=extend)
        if found is None:
            raise session_over()
        check_permission(found.caller, request)
        if (request.method, context.endpoint) in CONFIRMED:
            _check_confirmed(request, found.caller)
        context.session = found.session
        context.recheck = partial(self._lives, token, found.caller)
        return found.caller

    async def _lives(self, token: str, caller: Caller) -> bool:
        try:
            found = await self._sessions.find(token, extend=False)
        except self._unavailable:
            return False
        return found is not None and found.caller == caller


def check_browser(guard: BrowserGuard, request: web.Request, *, needs_origin: bool = True) -> None:
    """Check that a request which the browser adds the cookie to was caused by the console's own page.

    ``SameSite=Strict`` is not enough: a server at another port of the same host is of the same site. A request that changes
    something has to name the gateway's own origin, and a type of body that no form can send.

    Raises:
        ApiError: 403, 415.
    """
    if request.method in _READS:
        guard.check_own(request, needs_origin=False)
        return
    guard.check_own(request, needs_origin=needs_origin)
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415,
            "this request needs Content-Type: application/json",
            code="unsupported_media_type",
            reason="bad_request",
        )


def session_over() -> ApiError:
    """Return the error for a session that never was or is over; the same for all."""
    return ApiError(401, "the session is over: sign in again", code="session_expired", reason="auth")


def _check_confirmed(request: web.Request, caller: Caller) -> None:
    target = next(reversed([*request.match_info.values()]), caller.account_id or "")
    typed = request.headers.get(CONFIRMATION, "").strip().lower()
    if typed and typed == target[-CONFIRMATION_CHARS:].lower():
        return
    raise ApiError(
        428,
        f"this cannot be undone: type the last {CONFIRMATION_CHARS} characters of the id ({CONFIRMATION}) to confirm it",
        code="confirmation_required",
        param=CONFIRMATION,
        reason="bad_request",
    )
