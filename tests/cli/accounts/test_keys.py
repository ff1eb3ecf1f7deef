"""``keys``: create, show once, and revoke."""

import hashlib
import json
import os
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest

from lcp_gateway.cli.output import format_time
from tests.cli.accounts_on_books import new_account, said


def test_a_key_is_printed_once_and_kept_as_a_hash(run, journal):
    account_id = new_account(run)
    made = run("keys", "create", account_id, "--name", "laptop")
    assert made.code == 0
    shown = dict(line.split(None, 1) for line in made.out.splitlines())
    key, key_id = shown["key"], shown["id"]
    assert key.startswith("lcpg_") and len(key) == 48
    assert "is shown now and never again" in made.out
    later = [
        run("keys", "show", key_id), run("keys", "show", key_id, "--json"), run("keys", "list"),
        run("keys", "list", account_id, "--json"), run("keys", "revoke", key_id, "--json"),
        run("accounts", "log"),
    ]  # fmt: skip
    digest = hashlib.sha256(key.encode())
    for outcome in later:
        assert outcome.code == 0
        assert key not in outcome.out + outcome.err
        assert digest.hexdigest() not in outcome.out
    with sqlite3.connect(journal) as database:
        assert database.execute("SELECT hash FROM keys").fetchall() == [(digest.digest(),)]


def test_json_has_the_new_key_in_a_field_and_nothing_else_on_the_screen(run, journal):
    made = run("keys", "create", new_account(run), "--json")
    document = said(made)
    assert document["key"].startswith(document["prefix"])
    assert document["kind"] == "api"
    assert document["scopes"] == ["inference", "wallet"]
    assert document["expires_at"] is None
    assert made.err == ""


def test_a_key_has_the_permissions_that_it_was_made_with(run, journal):
    options = [
        *("--scope", "inference", "--scope", "admin", "--model", "m", "--model", "n"),
        *("--max-price-msat", "1000", "--requests-per-minute", "60", "--tokens-per-minute", "9000"),
        *("--budget-hour-msat", "1", "--budget-day-msat", "2", "--budget-month-msat", "3"),
        *("--concurrent-jobs", "4", "--expires", "2999-01-31T13:00+01:00"),
    ]
    made = said(run("keys", "create", new_account(run), *options, "--json"))
    key_id = made["id"]
    rules = {
        "scopes": ["admin", "inference"],
        "models": ["m", "n"],
        "max_price_msat": 1000,
        "requests_per_minute": 60,
        "tokens_per_minute": 9000,
        "budget_hour_msat": 1,
        "budget_day_msat": 2,
        "budget_month_msat": 3,
        "concurrent_jobs": 4,
        "expires_at": "2999-01-31T12:00:00Z",
    }
    assert made.items() >= rules.items()
    assert said(run("keys", "show", key_id, "--json")).items() >= rules.items()
    shown = run("keys", "show", key_id).out
    assert "1000 msat (1.000 sat)" in shown
    assert "admin, inference" in shown


def test_an_age_counts_on_from_now(run, journal):
    expires_at = said(run("keys", "create", new_account(run), "--expires", "30d", "--json"))["expires_at"]
    left = datetime.fromisoformat(expires_at) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)


def test_a_key_for_an_agent_comes_with_the_path_to_use(run, journal):
    made = said(run("keys", "create", new_account(run), "--agent", "--json"))
    assert made["kind"] == "agent"
    assert made["agent_path"] == f"/api/agent/{made['key']}/v1"


@pytest.mark.parametrize(
    "arguments",
    [
        ["create"],
        ["create", "acct_x", "--scope", "root"],
        ["create", "acct_x", "--max-price-msat", "-1"],
        ["create", "acct_x", "--budget-day-msat", "9" * 20],
        ["create", "acct_x", "--name", "a\nb"],
        ["create", "acct_x", "--model", " "],
        ["create", "acct_x", "--expires", "soon"],
        ["create", "acct_x", "--expires", "0d"],
        ["create", "acct_x", "--expires", "2020-01-31"],
        ["create", "acct_x", "--expires", "999999w"],
        ["create", "acct_x", "--expires", "0001-01-01T00:00+01:00"],
        ["revoke"],
        ["show", "\udcff"],
        ["list", "--limit", "0"],
    ],
)
def test_wrong_use_is_one_line_and_makes_no_key(arguments, run, journal):
    outcome = run("keys", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert said(run("keys", "list", "--json")) == []


def test_keys_are_listed_newest_first_of_one_account_or_of_all(run, journal):
    ada, grace = new_account(run, "Ada"), new_account(run, "Grace")
    first, second, third = (said(run("keys", "create", account_id, "--json"))["id"] for account_id in (ada, grace, ada))
    assert [key["id"] for key in said(run("keys", "list", "--json"))] == [third, second, first]
    assert [key["id"] for key in said(run("keys", "list", ada, "--json"))] == [third, first]
    page = run("keys", "list", "--json", "--limit", "2")
    assert [key["id"] for key in said(page)] == [third, second]
    rest = run("keys", "list", "--json", "--after", page.err.split()[-1])
    assert [key["id"] for key in said(rest)] == [first]


def test_a_list_says_which_keys_are_good(run, journal):
    account_id = new_account(run)
    revoked = said(run("keys", "create", account_id, "--json"))["id"]
    run("keys", "revoke", revoked)
    until = said(run("keys", "create", account_id, "--expires", "1d", "--json"))
    expired = said(run("keys", "create", account_id, "--expires", "1d", "--json"))["id"]
    yesterday = datetime.now(UTC) - timedelta(days=1)
    with sqlite3.connect(journal) as database:
        database.execute(
            "UPDATE keys SET expires_at = ? WHERE id = ?", (int(yesterday.timestamp()) * 1_000_000, expired)
        )
    good = said(run("keys", "create", account_id, "--json"))["id"]
    _, *rows = run("keys", "list").out.splitlines()
    states = {row.split()[0]: row for row in rows}
    assert states[good].rstrip().endswith(" good")
    assert f"good until {until['expires_at']}" in states[until["id"]]
    assert f"expired {format_time(yesterday)}" in states[expired]
    assert " revoked 20" in states[revoked]


def test_a_key_is_revoked_once_and_twice_is_no_error(run, journal):
    key_id = said(run("keys", "create", new_account(run), "--json"))["id"]
    revoked = said(run("keys", "revoke", key_id, "--json"))
    assert revoked["revoked_at"]
    assert said(run("keys", "revoke", key_id, "--json")) == revoked
    acts = [act["action"] for act in said(run("accounts", "log", "--json"))]
    assert acts.count("key.revoke") == 1


@pytest.mark.parametrize("command", ["show", "revoke"])
def test_a_missing_key_is_reported(command, run, journal):
    outcome = run("keys", command, "key_no")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "lcp-gateway: there is no such key\n"


def test_the_program_in_a_process_of_its_own_prints_the_key_for_a_script(start, run, journal):
    process = start("keys", "create", new_account(run), "--json", **os.environ)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["key"].startswith("lcpg_")
    assert err == ""
