"""Which scopes open which routes, and what a caller sees."""

import pytest
from aiohttp.test_utils import make_mocked_request

from lcp_gateway.accounts.callers import WHOLE_VIEW, Caller, KeyRules, Scope, View, view_of
from lcp_gateway.http.authentication import ANONYMOUS, LOCAL
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.permissions import check_may_buy, check_permission, scopes_for
from tests.support.cases import each_case

INFERENCE, WALLET, ACCOUNT, ADMIN = Scope.INFERENCE, Scope.WALLET, Scope.ACCOUNT, Scope.ADMIN
EVERY = set(Scope) - {Scope.NODE, Scope.WITHDRAW}


def caller(*scopes, account_id="acct_1", key_id="key_1"):
    return Caller(key_id, account_id, KeyRules(scopes=frozenset(scopes)))


@each_case(
    "method, path, scopes",
    [
        ("POST", "/v1/chat/completions", {INFERENCE}),
        ("GET", "/v1/responses/resp_1", {INFERENCE}),
        ("GET", "/v1/models", {INFERENCE, ACCOUNT, ADMIN}),
        ("GET", "/v1/models/a/b", {INFERENCE, ACCOUNT, ADMIN}),
        ("GET", "/v1/modelsx", {INFERENCE}),
        ("POST", "/api/models/route", {INFERENCE, ACCOUNT, ADMIN}),
        ("GET", "/api/models", EVERY),
        ("GET", "/v1/receipts/00", EVERY),
        ("GET", "/api/wallet", {WALLET, ACCOUNT}),
        ("POST", "/api/wallet/topups", {WALLET, ACCOUNT}),
        ("GET", "/api/account/keys", {WALLET, ACCOUNT}),
        ("POST", "/api/account/keys", {ACCOUNT}),
        ("DELETE", "/api/account/keys/key_1", {ACCOUNT}),
        ("PATCH", "/api/account", {ACCOUNT}),
        ("GET", "/api/purchases", EVERY),
        ("HEAD", "/api/purchases/00", EVERY),
        ("GET", "/api/usage", EVERY),
        ("GET", "/api/budgets", EVERY),
        ("GET", "/api/events", EVERY),
        ("GET", "/api/session", set(Scope)),
        ("DELETE", "/api/sessions", set(Scope)),
        ("GET", "/api/wallet/withdrawals", {WALLET, ACCOUNT}),
        ("POST", "/api/wallet/withdrawals", {Scope.WITHDRAW}),
        ("GET", "/api/providers", {ADMIN}),
        ("GET", "/api/admin/overview", {ADMIN}),
        ("POST", "/api/admin/purchases/00/resolution", {ADMIN}),
    ],
)
def test_a_route_needs_one_of_its_scopes(method, path, scopes):
    assert scopes_for(method, path) == scopes
    request = make_mocked_request(method, path)
    for scope in Scope:
        if scope in scopes:
            check_permission(caller(scope), request)
        else:
            with pytest.raises(ApiError) as caught:
                check_permission(caller(scope), request)
            assert (caught.value.status, caught.value.code) == (403, "missing_scope")
    with pytest.raises(ApiError):
        check_permission(caller(), request)


@pytest.mark.parametrize("path", ["/api/purchases", "/api/purchases/00", "/api/usage", "/api/budgets", "/api/events"])
def test_without_keys_only_the_user_of_this_machine_reads_records(path):
    """On a network all clients without a key are one caller, and each would see what the others bought."""
    request = make_mocked_request("GET", path)
    check_permission(LOCAL, request)
    with pytest.raises(ApiError) as caught:
        check_permission(ANONYMOUS, request)
    assert caught.value.status == 403 and "loopback" in caught.value.message
    check_permission(ANONYMOUS, make_mocked_request("GET", "/api/models"))


def test_a_key_that_manages_or_administers_reads_offers_and_does_not_buy():
    route_only = make_mocked_request("POST", "/v1/responses", headers={"X-Lcp-Route-Only": "true"})
    for scope in (ACCOUNT, ADMIN):
        check_permission(caller(scope), route_only)
        with pytest.raises(ApiError):
            check_may_buy(caller(scope))
    check_may_buy(caller(INFERENCE))


@pytest.mark.parametrize(
    ("one", "view"),
    [
        (caller(ADMIN, account_id=None, key_id="admin"), WHOLE_VIEW),
        (caller(INFERENCE, ADMIN, account_id=None, key_id=""), WHOLE_VIEW),
        (caller(INFERENCE, account_id=None), View(None, "key_1", sees_cost=True)),
        (caller(INFERENCE), View("acct_1", "key_1", sees_cost=False)),
        (caller(INFERENCE, WALLET), View("acct_1", None, sees_cost=False)),
        (caller(ACCOUNT), View("acct_1", None, sees_cost=False)),
    ],
)
def test_a_caller_sees_the_purchases_of_its_key_its_account_or_all(one, view):
    assert view_of(one) == view
    assert view.is_whole is (view is WHOLE_VIEW)
