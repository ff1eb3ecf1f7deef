"""``purchases`` and ``spend``: queries of the journal, and the few changes that an operator may make."""

import csv
import io
import json
import os
import sys
from datetime import UTC, datetime, timedelta

import pytest

from lcp_gateway.cli.books import purchases
from lcp_gateway.purchase.states import State
from tests.support.postgres import RunningPostgres, postgres  # noqa: F401 - a fixture
from tests.support.written_purchases import NOW, PEER, Bought, written

DAY = timedelta(days=1)
ONE = Bought(1, fee_msat=3, key_id="key_a")
TWO = Bought(2, State.UNKNOWN, price_msat=2_000, at=NOW + DAY)
THREE = Bought(3, State.UNDELIVERED, price_msat=4_000, model="n", at=NOW + 2 * DAY)
FOUR = Bought(4, State.NOT_PAID, price_msat=8_000, at=NOW + 40 * DAY)


@pytest.fixture
def journal(tmp_path):
    path = tmp_path / "state" / "lcp-gateway" / "journal.db"
    written(path, ONE, TWO, THREE, FOUR)
    return path


def listed(outcome):
    assert outcome.code == 0, outcome.err
    return [entry["job_id"] for entry in json.loads(outcome.out)]


def jobs(*bought):
    return [one.job_id.hex() for one in bought]


@pytest.mark.usefixtures("journal")
def test_purchases_are_listed_newest_first_one_to_a_line(run):
    outcome = run("purchases", "list")
    _, *rows = [line.split() for line in outcome.out.splitlines()]
    assert [row[-1] for row in rows] == jobs(FOUR, THREE, TWO, ONE)
    assert rows[0] == ["2026-12-31T12:00:00Z", "not_paid", "8000", "(10)", "m", PEER[:12], "-",
                       FOUR.job_id.hex()]  # fmt: skip
    assert rows[3][2:5] == ["1000", "3", "m"]


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["--state", "unknown"], [TWO]),
        (["--state", "unknown", "--state", "not_paid"], [FOUR, TWO]),
        (["--model", "n"], [THREE]),
        (["--peer", PEER.upper()], [FOUR, THREE, TWO, ONE]),
        (["--peer", "03" + "00" * 32], []),
        (["--key", "key_a"], [ONE]),
        (["--since", "2026-11-22", "--until", "2026-12-01"], [THREE, TWO]),
        (["--since", "2026-11-23T13:00:00+01:00"], [FOUR, THREE]),
        (["--until", "2026-11-22T12:00:00Z"], [ONE]),
    ],
)
def test_a_list_can_be_narrowed(filters, found, run):
    assert listed(run("purchases", "list", "--json", *filters)) == jobs(*found)


def test_an_age_counts_back_from_now(run, tmp_path):
    now = datetime.now(UTC)
    recent, old = Bought(1, at=now - timedelta(hours=1)), Bought(2, at=now - 3 * DAY)
    written(tmp_path / "j.db", recent, old)
    outcome = run("purchases", "list", "--json", "--since", "2d", "--journal-url", f"{tmp_path}/j.db")
    assert listed(outcome) == jobs(recent)


@pytest.mark.usefixtures("journal")
def test_a_list_says_when_there_is_more(run):
    outcome = run("purchases", "list", "--json", "--limit", "2")
    assert listed(outcome) == jobs(FOUR, THREE)
    assert outcome.err == "lcp-gateway: there are more; these are the newest 2 (see --limit)\n"
    assert run("purchases", "list", "--limit", "4").err == ""


@pytest.mark.usefixtures("journal")
def test_a_purchase_is_shown_with_its_steps(run):
    outcome = run("purchases", "show", ONE.job_id.hex(), "--json")
    shown = json.loads(outcome.out)
    assert shown["state"] == "delivered"
    assert shown["verdict"] == "settled"
    assert shown["preimage"] == ONE.preimage.hex()
    assert list(shown["times"]) == ["paying", "settled", "delivered"]
    lines = dict(line.split(None, 1) for line in run("purchases", "show", TWO.job_id.hex()).out.splitlines())
    assert lines["verdict"] == "unknown"
    assert lines["key_id"] == "-"


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize("command", [["purchases", "show"], ["receipt", "show"]])
def test_a_job_that_is_not_in_the_books_is_said_to_be_none(command, run):
    assert "no purchase of this job id" in run(*command, "00" * 32).err
    outcome = run(*command, "nonsense")
    assert outcome.code == 2 and "a job id is 64 hexadecimal digits" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.usefixtures("journal")
def test_everything_can_be_exported(run, monkeypatch):
    # More than one page.
    monkeypatch.setattr(purchases, "_PAGE", 3)
    lines = run("purchases", "export").out.splitlines()
    assert [json.loads(line)["job_id"] for line in lines] == jobs(FOUR, THREE, TWO, ONE)
    table = list(csv.DictReader(io.StringIO(run("purchases", "export", "--format", "csv").out)))
    assert [row["job_id"] for row in table] == jobs(FOUR, THREE, TWO, ONE)
    assert table[3]["fee_msat"] == "3"
    assert table[2]["fee_msat"] == ""
    assert table[0].keys() == json.loads(lines[0]).keys()


def test_a_name_that_a_client_chose_is_no_formula_and_no_terminal_command(run, tmp_path):
    where = str(tmp_path / "j.db")
    written(where, Bought(1, model="=1+1"), Bought(2, model="\x1b[31mred", at=NOW - DAY))
    outcome = run("purchases", "export", "--format", "csv", "--journal-url", where)
    models = [row["model"] for row in csv.DictReader(io.StringIO(outcome.out))]
    assert models == ["'=1+1", "\x1b[31mred"]
    assert "\x1b" not in run("purchases", "list", "--journal-url", where).out
    assert "\x1b" not in run("spend", "--by", "model", "--journal-url", where).out


@pytest.mark.usefixtures("journal")
def test_an_unknown_purchase_is_resolved_for_good_with_its_reason(run, tmp_path):
    job_id = TWO.job_id.hex()
    outcome = run("purchases", "resolve", job_id, "settled", "--why", "lncli listpayments", "--yes")
    assert outcome.code == 0, outcome.err
    assert "recorded as undelivered" in outcome.out
    kept = (tmp_path / "state" / "lcp-gateway" / "resolutions.jsonl").read_text()
    assert json.loads(kept)["why"] == "lncli listpayments"
    assert json.loads(kept)["job_id"] == job_id
    assert json.loads(run("purchases", "show", job_id, "--json").out)["state"] == "undelivered"
    again = run("purchases", "resolve", job_id, "not_paid", "--why", "x", "--yes")
    assert (again.code, again.out) == (1, "")
    assert "the purchase is undelivered, not unknown; nothing was changed" in again.err


@pytest.mark.usefixtures("journal")
def test_nothing_is_resolved_or_forgotten_without_a_word_of_confirmation(run):
    outcome = run("purchases", "resolve", TWO.job_id.hex(), "not_paid", "--why", "x")
    assert outcome.code == 2
    assert "add --yes" in outcome.err
    assert "add --yes" in run("purchases", "forget", "--older-than", "1d").err
    assert len(listed(run("purchases", "list", "--json", "--state", "unknown"))) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(("answer", "code", "state"), [("n\n", 1, "unknown"), ("y\n", 0, "not_paid")])
def test_a_person_at_a_terminal_is_asked(answer, code, state, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    outcome = run("purchases", "resolve", TWO.job_id.hex(), "not_paid", "--why", "x")
    assert outcome.code == code
    assert "Record it as not_paid, for good?" in outcome.out
    assert json.loads(run("purchases", "show", TWO.job_id.hex(), "--json").out)["state"] == state


def test_the_books_may_be_on_postgresql(run, postgres: RunningPostgres, monkeypatch):  # noqa: F811 - the fixture
    with postgres.fresh_database() as url:
        written(url, ONE, TWO)
        monkeypatch.setenv("LCP_GATEWAY_JOURNAL_URL", url)
        assert listed(run("purchases", "list", "--json")) == jobs(TWO, ONE)
        (spent,) = sums(run("spend", "--json", "--period", "month"))
        assert (spent["settled_msat"], spent["unknown_msat"]) == (1003, 2010)
        outcome = run("purchases", "resolve", TWO.job_id.hex(), "settled", "--why", "x", "--yes")
        assert outcome.code == 0, outcome.err
        assert listed(run("purchases", "list", "--json", "--state", "unknown")) == []


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(
    "arguments",
    [
        ["resolve", "00" * 32, "settled", "--yes"],
        ["resolve", "00" * 32, "settled", "--why", " ", "--yes"],
        ["resolve", "00" * 32, "delivered", "--why", "x"],
        ["forget", "--yes"],
        ["forget", "--older-than", "0d", "--yes"],
        ["forget", "--older-than", "soon", "--yes"],
        ["forget", "--older-than", "999999w", "--yes"],
        ["list", "--since", "tomorrow"],
        ["list", "--since", "999999w"],
        ["list", "--since", "0001-01-01T00:00+14:00"],
        ["list", "--state", "paid"],
        ["list", "--limit", "0"],
    ],
)
def test_wrong_use_is_one_line_and_changes_nothing(arguments, run):
    outcome = run("purchases", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert len(listed(run("purchases", "list", "--json"))) == 4


@pytest.mark.parametrize(
    "arguments", [["resolve", "00" * 32, "settled", "--why", " ", "--yes"], ["forget", "--older-than", "soon", "--yes"]]
)
def test_wrong_use_is_told_as_such_where_no_journal_is_either(arguments, run):
    assert run("purchases", *arguments).code == 2


def test_purchases_that_ended_long_ago_are_deleted_and_open_ones_are_not(run, tmp_path):
    where = str(tmp_path / "j.db")
    long_ago = datetime.now(UTC) - 100 * DAY
    kept = Bought(2, State.UNKNOWN, at=long_ago)
    recent = Bought(3, at=datetime.now(UTC))
    written(where, Bought(1, at=long_ago), kept, recent)
    outcome = run("purchases", "forget", "--older-than", "90d", "--yes", "--journal-url", where)
    assert outcome.code == 0, outcome.err
    assert "deleted 1 purchases" in outcome.out
    assert listed(run("purchases", "list", "--json", "--journal-url", where)) == jobs(recent, kept)


def sums(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


@pytest.mark.usefixtures("journal")
def test_spending_is_added_up_by_day_unless_told_otherwise(run):
    assert sums(run("spend", "--json")) == [
        {"day": "2026-11-21", "purchases": 1, "settled_msat": 1003, "unknown_msat": 0, "undelivered_msat": 0},
        {"day": "2026-11-22", "purchases": 1, "settled_msat": 0, "unknown_msat": 2010, "undelivered_msat": 0},
        {"day": "2026-11-23", "purchases": 1, "settled_msat": 4010, "unknown_msat": 0, "undelivered_msat": 4010},
    ]  # fmt: skip


@pytest.mark.usefixtures("journal")
def test_spending_is_added_up_by_the_headings_asked_for(run):
    by_model = sums(run("spend", "--json", "--by", "model"))
    assert [(entry["model"], entry["settled_msat"]) for entry in by_model] == [("m", 1003), ("n", 4010)]
    by_key = sums(run("spend", "--json", "--by", "key", "--period", "month"))
    assert [(entry["month"], entry["key"], entry["purchases"]) for entry in by_key] == [
        ("2026-11", "-", 2),
        ("2026-11", "key_a", 1),
    ]
    (by_peer,) = sums(run("spend", "--json", "--by", "peer"))
    assert by_peer["peer"] == PEER
    assert sums(run("spend", "--json", "--by", "hour"))[0]["hour"] == "2026-11-21T12:00Z"
    (later,) = sums(run("spend", "--json", "--since", "2026-11-23"))
    assert later["settled_msat"] == 4010


@pytest.mark.usefixtures("journal")
def test_a_table_of_spending_ends_with_the_whole(run):
    *_, last = run("spend", "--by", "model", "--by", "key").out.splitlines()
    assert last.split() == ["all", "3", "5013", "2010", "4010", "5.013", "sat"]


@pytest.mark.usefixtures("journal")
def test_two_lengths_of_time_are_one_too_many(run):
    outcome = run("spend", "--by", "day", "--period", "month")
    assert outcome.code == 2
    assert "only one of hour, day and month" in outcome.err


COMMANDS = [
    ["purchases", "list"],
    ["purchases", "show", "00" * 32],
    ["purchases", "export"],
    ["purchases", "resolve", "00" * 32, "settled", "--why", "x", "--yes"],
    ["purchases", "forget", "--older-than", "1d", "--yes"],
    ["receipt", "show", "00" * 32],
    ["spend"],
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_journal_that_is_off_or_missing_is_said_to_be(command, run, tmp_path):
    outcome = run(*command, "--journal-url", "off")
    assert outcome.code == 1
    assert "the journal is off" in outcome.err
    outcome = run(*command)
    assert outcome.code == 1
    assert f"there is no journal at {tmp_path}/state/lcp-gateway/journal.db" in outcome.err
    assert f"{tmp_path}/state/lcp-gateway/embedded.db" in run(*command, "--embedded").err
    assert not (tmp_path / "state").exists()


def test_a_file_that_is_no_journal_is_an_error_in_one_line(run, tmp_path):
    path = tmp_path / "j.db"
    path.write_text("not a database " * 100)
    outcome = run("purchases", "list", "--journal-url", str(path))
    assert outcome.code == 1
    assert f"the journal {path} cannot be used" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_journal_of_another_user_is_left_alone(run, journal):
    os.chown(journal, 12345, 12345)
    before = sorted(journal.parent.iterdir())
    outcome = run("purchases", "list")
    assert outcome.code == 1
    assert "belongs to the user with the number 12345: run this as that user" in outcome.err
    assert sorted(journal.parent.iterdir()) == before


def test_a_server_that_cannot_be_reached_is_named_without_its_password(run, monkeypatch):
    monkeypatch.setenv("LCP_GATEWAY_JOURNAL_URL", "postgresql://u:hush@127.0.0.1:1/db")
    outcome = run("purchases", "list")
    assert outcome.code == 1
    assert "postgresql://u:***@127.0.0.1:1/db cannot be used" in outcome.err
    assert "hush" not in outcome.err + outcome.out


READING = [
    ["purchases", "list"], ["purchases", "export"], ["purchases", "show", ONE.job_id.hex()],
    ["receipt", "show", ONE.job_id.hex()], ["spend"],
]  # fmt: skip


@pytest.mark.parametrize("command", READING)
def test_where_only_the_embedded_node_has_run_its_journal_is_read(command, run, tmp_path):
    """Regression: after ``./scripts/serve`` the command reported "no journal"."""
    folder = tmp_path / "state" / "lcp-gateway"
    written(folder / "embedded.db", ONE)
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    assert outcome.out == run(*command, "--embedded").out
    assert "only the embedded node has run here" in outcome.err and "play money" in outcome.err
    written(folder / "journal.db", TWO)
    assert "only the embedded node" not in run(*command).err


def test_commands_that_change_the_books_never_guess_which(run, tmp_path):
    written(tmp_path / "state" / "lcp-gateway" / "embedded.db", TWO)
    outcome = run("purchases", "resolve", TWO.job_id.hex(), "settled", "--why", "x", "--yes")
    assert outcome.code == 1 and "with --embedded, as ./scripts/serve has it" in outcome.err
