"""The routes that the console's cookie opens: the named ones of /api, and no other.

None of them buys: a route of OpenAI's API never reads the cookie, nor does an agent's address.
"""

from typing import Final

COOKIE_ROUTES: Final = frozenset(
    {
        "/api/session",
        "/api/sessions",
        "/api/account",
        "/api/account/keys",
        "/api/account/keys/{id}",
        "/api/wallet",
        "/api/wallet/topups",
        "/api/wallet/topups/{id}",
        "/api/wallet/topups/{id}/demo-payment",
        "/api/wallet/topups/{id}/qr.{form}",
        "/api/wallet/transactions",
        "/api/wallet/withdrawals",
        "/api/wallet/withdrawals/{id}",
        "/api/wallet/demo-invoice",
        "/api/wallet/refunds",
        "/api/nodes",
        "/api/nodes/{id}/earnings",
        "/api/purchases",
        "/api/purchases/{job_id}",
        "/api/usage",
        "/api/budgets",
        "/api/models",
        "/api/models/route",
        "/api/providers",
        "/api/events",
        "/api/admin/accounts",
        "/api/admin/accounts/{id}",
        "/api/admin/accounts/{id}/adjustments",
        "/api/admin/accounts/{id}/statement",
        "/api/admin/accounts/{id}/withdrawals",
        "/api/admin/withdrawals",
        "/api/admin/withdrawals/{id}",
        "/api/admin/accounts/{id}/keys",
        "/api/admin/keys",
        "/api/admin/keys/{id}",
        "/api/admin/invites",
        "/api/admin/invites/{id}",
        "/api/admin/nodes",
        "/api/admin/nodes/{id}",
        "/api/admin/refunds",
        "/api/admin/refunds/{id}",
        "/api/admin/purchases/{job_id}/resolution",
        "/api/admin/overview",
        "/api/admin/audit",
        "/api/admin/log",
    }
)
"""Their paths, as the route table writes them."""

PASSIVE_ROUTES: Final = frozenset({"/api/events"})
"""The routes that a page opens by itself again and again: that keeps no session."""

OPEN_ROUTES: Final = frozenset({"/api/console", "POST /api/session", "/api/register"})
"""The routes that need no credential: they are how a browser gets one."""

CONFIRMED: Final = frozenset(
    {
        ("DELETE", "/api/account"),
        ("DELETE", "/api/account/keys/{id}"),
        ("DELETE", "/api/admin/accounts/{id}"),
        ("DELETE", "/api/admin/keys/{id}"),
        ("POST", "/api/admin/accounts/{id}/adjustments"),
        ("POST", "/api/admin/refunds/{id}"),
        ("POST", "/api/admin/withdrawals/{id}"),
        ("POST", "/api/admin/purchases/{job_id}/resolution"),
    }
)
"""What cannot be undone: with the cookie it needs a confirmation that the person typed."""
