"""POST /api/register: a person opens an account without the operator, with a key that is shown once."""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.documents import key_document
from lcp_gateway.accounts.keys import SIGN_IN_RULES
from lcp_gateway.accounts.repositories import RegistrationRepository
from lcp_gateway.http.console.sessions import SignInDesk
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.fields import json_response, read_fields, unix_time
from lcp_gateway.http.gateway.admin import account_fields
from lcp_gateway.http.gateway.api_limits import anonymous_caller
from lcp_gateway.http.server.proxies import display_address

_ACTOR = "registration"
CLOSED, OPEN = "closed", "open"


@dataclass(frozen=True, slots=True)
class RegistrationRoutes:
    """Opens accounts, as ``mode`` says: ``closed``, ``invite`` or ``open``.

    ``on_key_change`` makes this process read the new key at once.

    ``unavailable`` are errors of a database that cannot be reached.
    """

    desk: SignInDesk
    registrations: RegistrationRepository
    _: KW_ONLY
    mode: str
    on_key_change: Callable[[], Awaitable[None]]
    unavailable: tuple[type[Exception], ...]
    log: FilteringBoundLogger

    async def register(self, request: web.Request) -> web.Response:
        """Serve POST /api/register. A browser is signed in as well; a program, which sends no origin, is not."""
        desk = self.desk
        form = desk.check(request, needs_origin=False)
        if self.mode == CLOSED:
            raise ApiError(
                403, "the operator opens accounts here: ask for a key", code="registration_closed", reason="sign_in"
            )
        await desk.limits.attempt(request.remote)
        fields = await read_fields(request, desk.read_timeout_s)
        name, code = fields.text("name", required=True), fields.text("invite")
        fields.done()
        if self.mode == OPEN and not code:
            await desk.limits.open_account(request.remote)
        async with desk.api_limits.place(anonymous_caller(request.remote)):
            account, key = await self.registrations.register(
                name,
                actor=_ACTOR,
                at=datetime.now(UTC),
                rules=SIGN_IN_RULES,
                invite=None if self.mode == OPEN and not code else code,
            )
            self.log.info("an account was opened", account_id=account.id, client=display_address(request.remote))
            response = json_response(
                {
                    "object": "lcp.registration",
                    "account": account_fields(account),
                    "key": {"object": "lcp.key", **key_document(key.record, unix_time), "key": key.text},
                },
                status=201,
            )
            await self.on_key_change()
            if "Origin" in request.headers:
                # The key is shown in this response and never again: it goes out, whatever happens to the database now.
                with contextlib.suppress(*self.unavailable):
                    made = await desk.sessions.begin(key.record.caller)
                    await desk.hand_over(request, response, form, made)
        return response
