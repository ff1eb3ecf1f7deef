"""/api/session and /api/sessions: sign-in, the signed-in person, sign-out here and everywhere."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.keys import KeysStale
from lcp_gateway.accounts.repositories import AccountRepository, KeyRepository
from lcp_gateway.accounts.sessions import ConsoleSessions, NewSession, Role, Session
from lcp_gateway.http.authentication import keys_unavailable, unauthorized
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.console.authentication import check_browser
from lcp_gateway.http.console.cookies import CookieForm, Cookies
from lcp_gateway.http.console.limits import SignInLimits
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.fields import json_response, read_fields, unix_time
from lcp_gateway.http.gateway.api_limits import ApiLimits, anonymous_caller
from lcp_gateway.http.server.proxies import display_address

_LONGEST_KEY = 4_096


@dataclass(frozen=True, slots=True)
class SignInDesk:
    """What sign-in and registration share: where a browser may sign in, how often, and its cookie."""

    sessions: ConsoleSessions
    cookies: Cookies
    guard: BrowserGuard
    limits: SignInLimits
    api_limits: ApiLimits
    read_timeout_s: float

    def check(self, request: web.Request, *, needs_origin: bool) -> CookieForm:
        """Check that a browser may sign in from where it is, and that no page of another origin makes it.

        Raises:
            ApiError: 403, 415.
        """
        request[CONTEXT].is_shareable = False
        form = self.cookies.form(request)
        if form is None:
            raise ApiError(
                403,
                "keys are not taken over plain http from another machine: use https (http_tls_cert, or a proxy that is named in "
                "trusted_proxies), or set console_insecure",
                code="signin_off",
                reason="sign_in",
            )
        check_browser(self.guard, request, needs_origin=needs_origin)
        return form

    async def hand_over(self, request: web.Request, response: web.Response, form: CookieForm, made: NewSession) -> None:
        """Give a new session to the browser, and end the one that it had."""
        if earlier := form.token(request):
            await self.sessions.end(earlier)
        session = made.signed_in.session
        form.set(response, made.token, round((session.ends_at - session.created_at).total_seconds()))


@dataclass(frozen=True, slots=True)
class SessionRoutes:
    """Serves sign-in and sign-out.

    ``desk`` is None where no sign-in is needed; ``accounts`` and ``keys`` where there are no customers.
    """

    desk: SignInDesk | None
    _: KW_ONLY
    role_of: Callable[[Caller], Role]
    accounts: AccountRepository | None
    keys: KeyRepository | None
    log: FilteringBoundLogger

    async def sign_in(self, request: web.Request) -> web.Response:
        """Serve POST /api/session."""
        desk = self.desk
        if desk is None:
            raise ApiError(
                403, "this gateway asks for no key: there is no sign-in", code="signin_off", reason="sign_in"
            )
        form = desk.check(request, needs_origin=True)
        await desk.limits.attempt(request.remote)
        fields = await read_fields(request, desk.read_timeout_s)
        key = fields.text("key", required=True, longest=_LONGEST_KEY).strip()
        fields.done()
        async with desk.api_limits.place(anonymous_caller(request.remote)):
            try:
                made = await desk.sessions.sign_in(key)
            except KeysStale as stale:
                raise keys_unavailable(stale) from stale
            client = display_address(request.remote)
            if made is None:
                self.log.warning("sign-in refused", client=client)
                raise unauthorized("this key is not valid: check that it was pasted whole, and that it was not revoked")
            signed_in = made.signed_in
            self.log.info("signed in", role=signed_in.session.role, key_id=signed_in.caller.key_id, client=client)
            response = await self._describe(signed_in.caller, signed_in.session, status=201)
            await desk.hand_over(request, response, form, made)
        return response

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /api/session: the caller, whether by its session or by its key."""
        context = request[CONTEXT]
        return await self._describe(context.caller, context.session)

    async def sign_out(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/session."""
        ended, desk = False, self.desk
        form = None if desk is None else desk.cookies.form(request)
        if desk is not None and form is not None and request[CONTEXT].session is not None:
            ended = await desk.sessions.end(form.token(request) or "")
        return self._without_cookie(request, json_response({"object": "lcp.session", "deleted": ended}))

    async def sign_out_everywhere(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/sessions: of the whole account for a sign-in key, else of the caller's key."""
        ended = 0 if self.desk is None else await self.desk.sessions.end_all(request[CONTEXT].caller)
        return self._without_cookie(request, json_response({"object": "list", "deleted": ended}))

    def _without_cookie(self, request: web.Request, response: web.Response) -> web.Response:
        form = None if self.desk is None else self.desk.cookies.form(request)
        if form is not None and request[CONTEXT].session is not None:
            form.clear(response)
        return response

    async def _describe(self, caller: Caller, session: Session | None, *, status: int = 200) -> web.Response:
        account = key = None
        if caller.account_id is not None and self.accounts is not None and self.keys is not None:
            found = await self.accounts.get(caller.account_id)
            record = await self.keys.get(caller.key_id)
            account = {"id": caller.account_id, "name": "" if found is None else found.name}
            key = {"id": caller.key_id, "name": "" if record is None else record.name}
            key["prefix"] = "" if record is None else record.prefix
        elif caller.key_id:
            key = {"id": caller.key_id, "name": "", "prefix": ""}
        scopes = sorted(scope.value for scope in caller.rules.scopes)
        return json_response(
            {
                "object": "lcp.session",
                "role": self.role_of(caller).value,
                "account": account,
                "key": None if key is None else {**key, "scopes": scopes},
                "scopes": scopes,
                "created_at": None if session is None else unix_time(session.created_at),
                "expires_at": None if session is None else unix_time(session.ends_at),
                "idle_expires_at": None if session is None else unix_time(session.idle_ends_at),
            },
            status=status,
        )
