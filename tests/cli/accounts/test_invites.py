"""``invites``: create, show once, list and revoke; and the sign-in key of an account."""

from datetime import UTC, datetime, timedelta

from tests.cli.accounts_on_books import said


def test_an_invite_is_printed_once(run, journal):
    made = run("invites", "create", "--note", "for bob")
    assert made.code == 0 and "is shown now and never again" in made.out
    code = dict(line.split(None, 1) for line in made.out.splitlines())["invite"]
    assert code.startswith("lcpi_")
    for later in (run("invites", "list"), run("invites", "list", "--json"), run("accounts", "log")):
        assert later.code == 0 and code not in later.out
    (listed,) = said(run("invites", "list", "--json"))
    assert (listed["note"], listed["status"], listed["account_id"]) == ("for bob", "open", None)
    lasts = datetime.fromisoformat(listed["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=6, hours=23) < lasts <= timedelta(days=7)


def test_an_invite_is_revoked(run, journal):
    made = said(run("invites", "create", "--expires", "1d", "--json"))
    assert said(run("invites", "revoke", made["id"], "--json"))["status"] == "revoked"
    assert run("invites", "revoke", "inv_none").code == 1
    assert run("invites", "create", "--expires", "2001-01-01").code == 2


def test_an_account_is_made_with_its_sign_in_key(run, journal):
    made = said(run("accounts", "create", "Ada", "--sign-in-key", "--json"))
    (key,) = said(run("keys", "list", made["id"], "--json"))
    assert made["key"].startswith(key["prefix"]) and key["scopes"] == ["account", "wallet", "withdraw"]
    shown = run("accounts", "create", "Bob", "--sign-in-key")
    assert shown.code == 0 and "is shown now and never again" in shown.out
