"""A person opens an account by itself: closed, by invite, or freely; the account and its key are theirs from then on."""

from datetime import UTC, datetime, timedelta

import pytest

from lcp_gateway.http.console.limits import REGISTRATIONS
from lcp_gateway.store.database.engines import DatabaseUnavailable
from tests.http.console.browsers import console
from tests.http.front import ADMIN_KEY

CHAT = "/v1/chat/completions"


async def register(one, name="alice", **more):
    return await one.send("POST", "/api/register", json={"name": name, **more})


async def invite(gateway, **body):
    found = await gateway.ask("POST", "/api/admin/invites", ADMIN_KEY, json=body)
    assert found.status == 201
    return found.document


async def test_registration_is_closed_unless_the_operator_opens_it(bank):
    async with console(bank) as (gateway, browser):
        one = browser()
        made = await invite(gateway)
        for more in ({}, {"invite": made["invite"]}):
            found = await register(one, **more)
            assert (found.status, found.code) == (403, "registration_closed")
        assert not one.signed_in and (await bank.accounts.page()).items == []


async def test_a_name_is_enough_the_key_is_shown_once_and_the_browser_is_signed_in(bank):
    async with console(bank, registration="open") as (gateway, browser):
        one = browser()
        found = await register(one, " alice ")
        assert found.status == 201
        account, key = found.document["account"], found.document["key"]
        assert (account["name"], account["balance_msat"], account["deleted"]) == ("alice", 0, False)
        assert (key["key"][:5], key["scopes"], key["account_id"]) == (
            "lcpg_",
            ["account", "wallet", "withdraw"],
            account["id"],
        )
        assert (await one.send("GET", "/api/account")).document == account
        for path in ("/api/session", "/api/account", f"/api/admin/keys/{key['id']}"):
            again = await gateway.ask("GET", path, key["key"] if "admin" not in path else ADMIN_KEY)
            assert again.status == 200 and key["key"] not in again.body.decode()
        another = browser()
        assert (await another.sign_in(key["key"])).document["account"]["id"] == account["id"]


async def test_the_key_is_shown_even_if_the_database_goes_away_right_after(bank, monkeypatch):
    """It is in one response only: an error in its place would lose the account, and use up the invite."""
    async with console(bank, registration="open") as (gateway, browser):
        write, writes = bank.database.write, []

        async def away(*_arguments):
            raise DatabaseUnavailable("away")

        async def first_write_only(work):
            writes.append(work)
            return await (write(work) if len(writes) == 1 else away())

        monkeypatch.setattr(bank.database, "read_reserved", away)
        monkeypatch.setattr(bank.database, "write", first_write_only)
        one = browser()
        found = await register(one)
        assert found.status == 201 and not one.signed_in
        monkeypatch.undo()
        await gateway.refresh()
        assert (await browser().sign_in(found.document["key"]["key"])).status == 201


async def test_a_sign_in_key_manages_the_account_and_buys_nothing(bank):
    async with console(bank, registration="open") as (gateway, browser):
        one = browser()
        key = (await register(one)).document["key"]["key"]
        assert (await gateway.ask("POST", CHAT, key)).code == "missing_scope"
        assert (await gateway.ask("GET", "/api/wallet", key)).status == 200
        assert (await gateway.ask("GET", "/api/admin/accounts", key)).code == "missing_scope"


async def test_an_invite_opens_one_account_and_is_shown_once(bank):
    async with console(bank, registration="invite") as (gateway, browser):
        made = await invite(gateway, note="bob")
        assert made["status"] == "open" and made["invite"].startswith("lcpi_")
        assert 6 < (made["expires_at"] - made["created_at"]) / 86_400 <= 7
        listed = await gateway.ask("GET", "/api/admin/invites", ADMIN_KEY)
        assert listed.document["data"][0]["note"] == "bob" and made["invite"] not in listed.body.decode()
        one = browser()
        found = await register(one, invite=f" {made['invite']} ")
        assert found.status == 201
        refused = await register(browser(), invite=made["invite"])
        assert (refused.status, refused.code) == (403, "invalid_invite")
        used = (await gateway.ask("GET", f"/api/admin/invites/{made['id']}", ADMIN_KEY)).document
        assert (used["status"], used["account_id"]) == ("used", found.document["account"]["id"])


async def test_wrong_expired_used_and_revoked_invites_get_the_same_answer(bank):
    async with console(bank, registration="invite") as (gateway, browser):
        revoked = await invite(gateway)
        assert (await gateway.ask("DELETE", f"/api/admin/invites/{revoked['id']}", ADMIN_KEY)).document[
            "status"
        ] == "revoked"
        over = await bank_invite(bank, timedelta(seconds=-1))
        answers = {(await register(browser(), invite=code)).body for code in (revoked["invite"], over, "lcpi_x", "")}
        assert len(answers) == 1
        assert (await bank.accounts.page()).items == []


async def bank_invite(bank, lasts):
    from lcp_gateway.store.accounts.registrations import Registrations

    now = datetime.now(UTC)
    made = await Registrations(bank.database).create_invite(note="", expires_at=now + lasts, actor="test", at=now)
    return made.code


async def test_invites_are_the_administrators(bank):
    async with console(bank, registration="invite") as (gateway, _browser):
        key = await gateway.key(await bank.customer())
        for method, path in (
            ("POST", "/api/admin/invites"),
            ("GET", "/api/admin/invites"),
            ("DELETE", "/api/admin/invites/inv_x"),
        ):
            assert (await gateway.ask(method, path, key)).code == "missing_scope"
        assert (await gateway.ask("DELETE", "/api/admin/invites/inv_x", ADMIN_KEY)).code == "invite_not_found"
        for body in ({"expires_at": 1}, {"note": "x" * 200}, {"what": 1}):
            assert (await gateway.ask("POST", "/api/admin/invites", ADMIN_KEY, json=body)).status == 400


async def test_five_accounts_an_hour_from_one_address(bank):
    async with console(bank, registration="open") as (gateway, browser):
        statuses = [(await register(browser(), f"n{number}")).status for number in range(REGISTRATIONS.limit + 1)]
        assert statuses == [201] * 5 + [429]
        made = await invite(gateway)
        assert (await register(browser(), invite=made["invite"])).status == 201, "an invite is not counted among them"


@pytest.mark.parametrize("name", ["", " ", "x" * 129, "a\nb", None, 5])
async def test_a_name_that_cannot_be_one_is_refused(bank, name):
    async with console(bank, registration="open") as (_gateway, browser):
        assert (await register(browser(), name)).status == 400


async def test_a_program_registers_without_a_cookie(bank):
    async with console(bank, registration="open") as (gateway, _browser):
        found = await gateway.ask("POST", "/api/register", None, json={"name": "robot"})
        assert found.status == 201 and "Set-Cookie" not in found.headers
        assert (await gateway.ask("GET", "/api/account", found.document["key"]["key"])).status == 200


async def test_a_holder_renames_the_account_and_deletes_it_with_what_it_holds(bank):
    async with console(bank, registration="open") as (gateway, browser):
        one = browser()
        account_id = (await register(one)).document["account"]["id"]
        assert (await one.send("PATCH", "/api/account", json={"name": "bob"})).document["name"] == "bob"
        await gateway.ask(
            "POST",
            f"/api/admin/accounts/{account_id}/adjustments",
            ADMIN_KEY,
            json={"amount_msat": 7, "reason": "gift"},
        )
        unconfirmed = await one.send("DELETE", "/api/account", json={"forfeit_msat": 7})
        assert unconfirmed.code == "confirmation_required"
        typed = account_id[-6:]
        for body in ({}, {"forfeit_msat": 6}):
            found = await one.send("DELETE", "/api/account", json=body, confirm=typed)
            assert (found.status, found.code) == (409, "balance_not_empty")
            assert "7 msat" in found.document["error"]["message"]
        found = await one.send("DELETE", "/api/account", json={"forfeit_msat": 7}, confirm=typed)
        assert found.document == {"id": account_id, "deleted": True}
        assert (await one.send("GET", "/api/account")).code == "session_expired"
        actors = {act.actor.partition(":")[0] for act in (await bank.acts.page()).items if act.target == account_id}
        assert {"registration", "customer", "api"} <= actors


async def test_an_ordinary_key_reads_the_account_and_changes_nothing_of_it(bank):
    account_id = await bank.customer()
    async with console(bank) as (gateway, browser):
        one = browser()
        await one.sign_in(await gateway.key(account_id))
        assert (await one.send("GET", "/api/account")).document["id"] == account_id
        for method in ("PATCH", "DELETE"):
            found = await one.send(method, "/api/account", json={"name": "x"}, confirm=account_id[-6:])
            assert found.code == "missing_scope"
        assert (await gateway.ask("GET", "/api/account", ADMIN_KEY)).code in {"missing_scope", "no_account"}
