"""/api/admin/invites: codes with which persons may open an account by themselves."""

from datetime import UTC, datetime

from aiohttp import web

from lcp_gateway.accounts.documents import invite_document
from lcp_gateway.accounts.invites import USUAL_LIFETIME, Invite
from lcp_gateway.accounts.repositories import RegistrationRepository
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import actor_of, json_response, list_response, read_fields, read_id, read_page, unix_time


class InviteRoutes:
    """Serves the administrator."""

    def __init__(self, registrations: RegistrationRepository, *, read_timeout_s: float) -> None:
        self._registrations = registrations
        self._read_timeout_s = read_timeout_s

    async def create(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/invites. The code is in this response and nowhere else."""
        now = datetime.now(UTC)
        fields = await read_fields(request, self._read_timeout_s)
        note, expires_at = fields.text("note"), fields.time("expires_at") or now + USUAL_LIFETIME
        fields.done()
        if expires_at <= now:
            raise bad_request("expires_at is over", "expires_at", "invalid_value")
        made = await self._registrations.create_invite(
            note=note, expires_at=expires_at, actor=actor_of(request), at=now
        )
        return json_response({**_invite(made.record), "invite": made.code}, status=201)

    async def list(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/invites."""
        limit, after = read_page(request)
        page = await self._registrations.invites(limit=limit, after=after or None)
        return list_response(map(_invite, page.items), page.after)

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/invites/{id}."""
        return json_response(_invite(_found(await self._registrations.get_invite(read_id(request)))))

    async def revoke(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/admin/invites/{id}."""
        revoked = await self._registrations.revoke_invite(
            read_id(request), actor=actor_of(request), at=datetime.now(UTC)
        )
        return json_response(_invite(_found(revoked)))


def _found(invite: Invite | None) -> Invite:
    if invite is None:
        raise ApiError(404, "there is no such invite", code="invite_not_found", param="id")
    return invite


def _invite(invite: Invite) -> dict[str, object]:
    return {"object": "lcp.invite", **invite_document(invite, unix_time)}
