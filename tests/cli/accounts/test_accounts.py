"""``accounts``: customers, their balances and movements, and the audit."""

import csv
import io
import os
import pwd
import sqlite3
import sys

import pytest

from lcp_gateway.cli.accounts import documents
from lcp_gateway.purchase.states import State
from tests.cli.accounts_on_books import bought, new_account, said
from tests.store.journals import job
from tests.support.postgres import RunningPostgres, postgres  # noqa: F401 - a fixture

ME = f"cli:{pwd.getpwuid(os.geteuid()).pw_name}"


def test_an_account_is_made_with_nothing_on_it(run, journal):
    made = said(run("accounts", "create", " Ada Lovelace ", "--json"))
    assert made["id"].startswith("acct_")
    assert made["name"] == "Ada Lovelace"
    assert (made["balance_msat"], made["held_msat"], made["available_msat"]) == (0, 0, 0)
    assert said(run("accounts", "show", made["id"], "--json")) == made


@pytest.mark.parametrize("name", ["", "  ", "x" * 129, "a\nb", "a\x1b[31m"])
def test_a_name_that_is_none_is_refused(name, run, journal):
    outcome = run("accounts", "create", name)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert said(run("accounts", "list", "--json")) == []


def test_tables_show_amounts_in_sat_as_well(run, journal):
    account_id = new_account(run, balance_msat=57_372)
    shown = dict(line.split(None, 1) for line in run("accounts", "show", account_id).out.splitlines())
    assert shown["balance_msat"] == "57372 msat (57.372 sat)"
    assert shown["deleted_at"] == "-"
    _, row = run("accounts", "list").out.splitlines()
    assert row.split()[:6] == [account_id, "Ada", "57372", "0", "57.372", "sat"]


def test_accounts_are_listed_newest_first_and_page_by_page(run, journal):
    first, second, third = (new_account(run, name) for name in "abc")
    assert [one["id"] for one in said(run("accounts", "list", "--json"))] == [third, second, first]
    outcome = run("accounts", "list", "--json", "--limit", "2")
    assert [one["id"] for one in said(outcome)] == [third, second]
    assert outcome.err == f"lcp-gateway: there are more: see --limit, or continue with --after {second}\n"
    outcome = run("accounts", "list", "--json", "--limit", "2", "--after", second)
    assert [one["id"] for one in said(outcome)] == [first]
    assert outcome.err == ""


def test_an_account_is_renamed(run, journal):
    account_id = new_account(run)
    assert said(run("accounts", "rename", account_id, "Grace", "--json"))["name"] == "Grace"
    assert said(run("accounts", "show", account_id, "--json"))["name"] == "Grace"


@pytest.mark.parametrize(
    "command",
    [
        ["accounts", "show", "acct_no"],
        ["accounts", "rename", "acct_no", "x"],
        ["accounts", "delete", "acct_no", "--yes"],
        ["accounts", "adjust", "acct_no", "5", "--reason", "x"],
        ["accounts", "statement", "acct_no"],
        ["accounts", "statement", "acct_no", "--csv"],
        ["keys", "create", "acct_no"],
        ["keys", "list", "acct_no"],
        ["wallet", "show", "acct_no"],
        ["wallet", "topups", "acct_no"],
        ["wallet", "transactions", "acct_no"],
        ["wallet", "topup", "acct_no", "5"],
    ],
)
def test_a_missing_account_is_reported(command, run, journal):
    outcome = run(*command)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "lcp-gateway: there is no such account\n"


def test_a_deleted_account_loses_its_name_and_its_keys_and_keeps_its_books(run, journal):
    account_id = new_account(run, balance_msat=500)
    key_id = said(run("keys", "create", account_id, "--name", "Ada's", "--json"))["id"]
    outcome = run("accounts", "delete", account_id)
    assert outcome.code == 2
    assert "add --yes" in outcome.err
    gone = said(run("accounts", "delete", account_id, "--yes", "--json"))
    assert (gone["name"], gone["balance_msat"]) == ("", 500)
    assert gone["deleted_at"]
    key = said(run("keys", "show", key_id, "--json"))
    assert key["revoked_at"] and key["name"] == ""
    assert said(run("accounts", "list", "--json")) == []
    assert [one["id"] for one in said(run("accounts", "list", "--json", "--deleted"))] == [account_id]
    again = run("accounts", "delete", account_id, "--yes")
    assert (again.code, again.out) == (1, "")
    assert "was deleted before" in again.err
    assert run("accounts", "rename", account_id, "x").code == 1
    assert said(run("accounts", "adjust", account_id, "-500", "--reason", "paid out", "--json"))[
        "balance_msat"
    ] == 0  # fmt: skip
    assert run("accounts", "audit").code == 0


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 1, 1), ("y\n", 0, 0)])
def test_deleting_asks_at_the_terminal_and_shows_the_balance(answer, code, left, run, journal, monkeypatch):
    account_id = new_account(run, balance_msat=500)
    typed = io.StringIO(answer)
    typed.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", typed)
    outcome = run("accounts", "delete", account_id)
    assert outcome.code == code
    assert f"Delete {account_id} (Ada) with 500 msat (0.500 sat), for good?" in outcome.out
    assert len(said(run("accounts", "list", "--json"))) == left


def test_a_balance_is_adjusted_both_ways_but_never_below_the_held_amount(run, journal):
    account_id = new_account(run)
    adjusted = said(run("accounts", "adjust", account_id, "3000", "--reason", "gift", "--json"))
    assert adjusted == {
        "id": account_id, "balance_msat": 3000, "held_msat": 0, "available_msat": 3000,
    }  # fmt: skip
    bought(journal, account_id, 1)
    assert said(run("wallet", "show", account_id, "--json"))["held_msat"] == 1050
    outcome = run("accounts", "adjust", account_id, "-1951", "--reason", "too much")
    assert (outcome.code, outcome.out) == (1, "")
    assert "only 1950 msat of the balance are available" in outcome.err
    for order in (["-1000", "--reason", "back"], ["--reason", "back", "--", "-950"]):
        assert run("accounts", "adjust", account_id, *order).code == 0
    assert said(run("accounts", "show", account_id, "--json"))["available_msat"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["adjust", "acct_x", "5"],
        ["adjust", "acct_x", "0", "--reason", "x"],
        ["adjust", "acct_x", "5", "--reason", " "],
        ["adjust", "acct_x", "5.5", "--reason", "x"],
        ["adjust", "acct_x", "9" * 20, "--reason", "x"],
        ["adjust", "acct_x", "5", "--reson", "x"],
        ["adjust", "acct_x", "--jsn", "--reason", "x"],
        ["create"],
        ["show", "\udcff"],
        ["list", "--after", "\udcff"],
        ["list", "--limit", "0"],
        ["log", "--after", "yesterday"],
        ["log", "--after", "9" * 20],
        ["statement", "acct_x", "--csv", "--json"],
    ],
)
def test_wrong_use_is_one_line_and_changes_nothing(arguments, run, journal):
    outcome = run("accounts", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert said(run("accounts", "log", "--json")) == []


def test_a_statement_lists_the_movements_of_a_balance_and_their_causes(run, journal):
    account_id = new_account(run, balance_msat=10_000)
    bought(journal, account_id, 1, State.SETTLED, State.DELIVERED)
    bought(journal, account_id, 2)
    lines = said(run("accounts", "statement", account_id, "--json"))
    assert [(line["amount_msat"], line["balance_msat"], line["cause"]) for line in lines] == [
        (-1050, 8950, "purchase"),
        (10_000, 10_000, "adjustment"),
    ]
    assert lines[0]["cause_id"] == job(1).hex()
    assert said(run("wallet", "transactions", account_id, "--json")) == lines
    _, newest, _ = run("accounts", "statement", account_id).out.splitlines()
    assert newest.split()[2:] == [
        "-1050", "-1.050", "sat", "8950", "8.950", "sat", "purchase", job(1).hex(),
    ]  # fmt: skip


def test_a_statement_comes_in_pages_and_as_csv_whole(run, journal, monkeypatch):
    # More than one page.
    monkeypatch.setattr(documents, "_PAGE", 2)
    account_id = new_account(run)
    for amount in (1, 2, 3, 4, 5):
        assert run("accounts", "adjust", account_id, str(amount), "--reason", "x").code == 0

    def amounts(*options):
        outcome = run("accounts", "statement", account_id, "--csv", *options)
        assert outcome.code == 0
        return [row["amount_msat"] for row in csv.DictReader(io.StringIO(outcome.out))], outcome.err

    assert amounts() == (["5", "4", "3", "2", "1"], "")
    found, told = amounts("--limit", "3")
    assert found == ["5", "4", "3"]
    after = told.split()[-1]
    assert amounts("--after", after) == (["2", "1"], "")
    lines = said(run("accounts", "statement", account_id, "--json", "--after", after))
    assert [line["amount_msat"] for line in lines] == [2, 1]
    assert [line["balance_msat"] for line in lines] == [3, 1]


def test_the_audit_of_books_that_agree_says_so(run, journal):
    account_id = new_account(run, balance_msat=10_000)
    bought(journal, account_id, 1, State.SETTLED, State.DELIVERED)
    bought(journal, account_id, 2)
    assert said(run("accounts", "audit", "--json")) == {
        "ok": True,
        "problems": [],
        "accounts": 1,
        "balance_msat": 8950,
        "held_msat": 1050,
        "books": {"adjustments": -10_000, "customers": 8950, "revenue": 1050},
        "entries": 4,
        "purchases": 2,
    }
    printed = run("accounts", "audit")
    assert printed.code == 0
    assert "balance_msat      8950 msat (8.950 sat)" in printed.out
    assert "book revenue      1050 msat (1.050 sat)" in printed.out
    assert printed.out.endswith("the books agree\n")


def test_the_audit_names_each_problem_and_ends_with_1(run, journal):
    account_id = new_account(run, balance_msat=10_000)
    with sqlite3.connect(journal) as database:
        database.execute("UPDATE balances SET balance_msat = balance_msat + 1, held_msat = 7")
    outcome = run("accounts", "audit")
    assert outcome.code == 1
    assert f"wrong: {account_id} has 10001 msat, its entries sum to 10000 msat" in outcome.out
    assert f"wrong: of {account_id} 7 msat are held" in outcome.out
    assert outcome.out.endswith("the books do NOT agree\n")
    assert run("accounts", "audit", "--json").code == 1


def test_every_act_is_in_the_log_with_its_actor(run, journal):
    account_id = new_account(run, "Ada", 500)
    key = said(run("keys", "create", account_id, "--name", "laptop", "--json"))
    run("keys", "revoke", key["id"])
    run("accounts", "rename", account_id, "Grace")
    run("accounts", "delete", account_id, "--yes")
    acts = said(run("accounts", "log", "--json"))
    assert [(act["actor"], act["action"], act["target"]) for act in reversed(acts)] == [
        (ME, "account.create", account_id),
        (ME, "account.adjust", account_id),
        (ME, "key.create", key["id"]),
        (ME, "key.revoke", key["id"]),
        (ME, "account.rename", account_id),
        (ME, "account.delete", account_id),
    ]
    printed = run("accounts", "log").out
    assert "amount_msat: 500 msat (0.500 sat); reason: start" in printed
    assert not any(word in printed for word in ("Ada", "Grace", "laptop", key["key"]))
    two = run("accounts", "log", "--json", "--limit", "2")
    assert said(two) == acts[:2]
    assert said(run("accounts", "log", "--json", "--after", two.err.split()[-1])) == acts[2:]


COMMANDS = [
    ["accounts", "create", "x"],
    ["accounts", "list"],
    ["accounts", "audit"],
    ["accounts", "log"],
    ["keys", "create", "acct_x"],
    ["keys", "list"],
    ["keys", "revoke", "key_x"],
    ["wallet", "show", "acct_x"],
    ["wallet", "topup", "acct_x", "5"],
]


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_journal_there_are_no_accounts(command, run, tmp_path):
    outcome = run(*command, "--journal-url", "off")
    assert outcome.code == 1
    assert "the journal is off" in outcome.err
    outcome = run(*command)
    assert (outcome.code, outcome.out) == (1, "")
    assert f"there is no journal at {tmp_path}/state/lcp-gateway/journal.db" in outcome.err
    assert not (tmp_path / "state").exists()


def test_accounts_may_be_on_postgresql(run, postgres: RunningPostgres, monkeypatch):  # noqa: F811 - the fixture
    with postgres.fresh_database() as url:
        monkeypatch.setenv("LCP_GATEWAY_JOURNAL_URL", url)
        account_id = new_account(run, balance_msat=10_000)
        bought(url, account_id, 1, State.SETTLED, State.DELIVERED)
        lines = said(run("accounts", "statement", account_id, "--json"))
        assert [line["amount_msat"] for line in lines] == [-1050, 10_000]
        key_id = said(run("keys", "create", account_id, "--expires", "1d", "--json"))["id"]
        assert said(run("keys", "revoke", key_id, "--json"))["revoked_at"]
        assert said(run("accounts", "audit", "--json"))["ok"] is True
        assert len(said(run("accounts", "log", "--json"))) == 4
