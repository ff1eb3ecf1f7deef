"""``receipt``: written from the journal, and verified with nothing but the file."""

import io
import json
import subprocess
import sys
from datetime import timedelta

import pytest

from lcp_gateway.purchase.states import State
from tests.support.written_purchases import NOW, RESULT, Bought, written

PAID = Bought(1, fee_msat=3)
OPEN = Bought(2, State.UNKNOWN, at=NOW + timedelta(hours=1))


@pytest.fixture
def receipt(run, tmp_path):
    """The file with the receipt of a purchase."""
    where = str(tmp_path / "j.db")
    written(where, PAID, OPEN)

    def write(one):
        outcome = run("receipt", "show", one.job_id.hex(), "--journal-url", where)
        assert outcome.code == 0, outcome.err
        path = tmp_path / "receipt.json"
        path.write_text(outcome.out)
        return path

    return write


def outcomes(outcome):
    return {line.split()[1]: line.split()[0] for line in outcome.out.splitlines()[:-1]}


def test_a_receipt_holds_with_its_request_and_result(run, receipt, tmp_path):
    request, result = tmp_path / "request", tmp_path / "result"
    request.write_bytes(PAID.request)
    result.write_bytes(RESULT)
    outcome = run("receipt", "verify", str(receipt(PAID)), "--request", str(request), "--result", str(result))
    assert outcome.code == 0
    assert set(outcomes(outcome).values()) == {"ok"}
    assert {"preimage", "request", "result", "payment_hash"} <= outcomes(outcome).keys()
    assert outcome.out.splitlines()[-1] == "the receipt holds"


def test_the_receipt_of_an_unknown_purchase_claims_no_payment(run, receipt):
    fields = json.loads(receipt(OPEN).read_text())
    assert (fields["state"], fields["verdict"], fields["preimage"]) == ("unknown", "unknown", None)
    assert list(fields["times"]) == ["paying", "unknown"]
    assert run("receipt", "verify", str(receipt(OPEN))).code == 0


@pytest.mark.parametrize(
    ("name", "value", "subject"),
    [
        ("price_msat", 999, "terms_hash"),
        ("preimage", "00" * 32, "preimage"),
        ("verdict", "none", "verdict"),
        ("peer_id", "02" + "ab" * 32, "payee"),
        ("extra", 1, "shape"),
    ],
)
def test_an_altered_receipt_does_not_hold(name, value, subject, run, receipt):
    path = receipt(PAID)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    outcome = run("receipt", "verify", str(path))
    assert outcome.code == 1
    assert outcomes(outcome)[subject] == "failed"
    assert outcome.out.splitlines()[-1] == "the receipt does NOT hold"
    found = json.loads(run("receipt", "verify", "--json", str(path)).out)
    assert found["holds"] is False
    assert subject in {one["subject"] for one in found["findings"] if one["outcome"] == "failed"}


def test_another_request_does_not_hold(run, receipt, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(PAID.request + b" ")
    outcome = run("receipt", "verify", str(receipt(PAID)), "--request", str(other))
    assert (outcome.code, outcomes(outcome)["request"]) == (1, "failed")


def test_a_receipt_may_come_on_standard_input(run, receipt, monkeypatch):
    text = receipt(PAID).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert run("receipt", "verify", "-").code == 0


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{", b"[" * 100_000, b"1" * 5_000])
def test_a_file_that_is_no_receipt_is_one_line(content, run, tmp_path):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    outcome = run("receipt", "verify", str(path))
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"lcp-gateway: {path}: ")


def test_a_missing_file_is_one_line(run, tmp_path):
    outcome = run("receipt", "verify", str(tmp_path / "none"))
    assert outcome.err == f"lcp-gateway: {tmp_path}/none: cannot be read: No such file or directory\n"


def test_checking_needs_neither_configuration_nor_daemon_nor_database(receipt, monkeypatch):
    """It imports none of their modules either."""
    path = receipt(PAID)
    monkeypatch.setenv("LCP_GATEWAY_NONSENSE", "1")
    program = (
        "import sys; from lcp_gateway.cli import main; code = main(sys.argv[1:]);"
        "assert not {'grpc', 'sqlalchemy', 'aiohttp'} & sys.modules.keys(); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "receipt", "verify", str(path)],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
