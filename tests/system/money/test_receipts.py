"""A receipt for each purchase: only its buyer gets it, and anyone can verify it offline."""

import json

import pytest

from tests.support.gateway import gateway, run_command
from tests.support.money import ask
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, RESPONSES, document, get, post

ALICE = {"Authorization": "Bearer alice-key"}
BOB = {"Authorization": "Bearer bob-key"}
SECRET = "a prompt that stands in no receipt"


@pytest.fixture(scope="module")
def served():
    settings = {"LCP_GATEWAY_NODE_FAULTS": "true", "LCP_GATEWAY_API_KEYS": "alice-key,bob-key"}
    with gateway(env=settings) as running:
        yield running


def receipt(served, job_id, headers=ALICE):
    return get(served.port, f"/v1/receipts/{job_id}", headers)


def receipt_in(served, job_id, verdict):
    """The receipt, once the last record has been written."""
    eventually(lambda: verdict in receipt(served, job_id).body.decode())
    return receipt(served, job_id)


def verify(folder, answer, *more):
    file = folder / "receipt.json"
    file.write_bytes(answer if isinstance(answer, bytes) else answer.body)
    done = run_command("receipt", "verify", str(file), *more)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [False, True])
def test_a_purchase_has_a_receipt_that_verifies_offline(served, tmp_path, path, stream):
    asked = json.dumps(document(path, text=SECRET, stream=stream)).encode()
    bought = post(served.port, path, asked, ALICE)
    job_id = bought.headers["x-lcp-job-id"]
    answer = receipt_in(served, job_id, "delivered")
    assert answer.status == 200 and answer.headers["content-type"].startswith("application/json")
    text = answer.body.decode()
    assert job_id in text and SECRET not in text
    assert bought.headers["x-lcp-terms-hash"] in text
    code, said = verify(tmp_path, answer)
    assert code == 0, said
    request, result = tmp_path / "request", tmp_path / "result"
    request.write_bytes(asked)
    result.write_bytes(bought.body)
    code, said = verify(tmp_path, answer, "--request", str(request), "--result", str(result))
    assert code == 0, said
    request.write_bytes(asked + b" ")
    code, said = verify(tmp_path, answer, "--request", str(request))
    assert code != 0, said


def test_a_receipt_that_was_altered_does_not_verify(served, tmp_path):
    bought = ask(served, "x", headers=ALICE)
    price = bought.headers["x-lcp-price-msat"]
    answer = receipt_in(served, bought.headers["x-lcp-job-id"], "delivered")
    assert price.encode() in answer.body
    altered = answer.body.replace(price.encode(), str(int(price) + 1).encode())
    code, said = verify(tmp_path, altered)
    assert code != 0, said


def test_a_client_does_not_get_the_receipt_of_another(served):
    job_id = ask(served, "x", headers=ALICE).headers["x-lcp-job-id"]
    assert receipt_in(served, job_id, "delivered").status == 200
    answer = receipt(served, job_id, BOB)
    assert answer.status == 404 and answer.error["code"] == "receipt_not_found"
    assert get(served.port, f"/v1/receipts/{job_id}").status == 401


@pytest.mark.parametrize("job_id", ["00" * 32, "abc", "zz" * 32, "..%2f..", "00" * 33])
def test_there_is_no_receipt_of_what_was_not_bought(served, job_id):
    answer = receipt(served, job_id)
    assert answer.status == 404 and answer.error["code"] in {"receipt_not_found", "not_found"}


@pytest.mark.parametrize(
    ("model", "state"),
    [
        ("fault/wrong-hash", "undelivered"),
        ("fault/no-route", "not_paid"),
        ("fault/execute-code-unavailable", "unknown"),
    ],
)
def test_a_receipt_says_how_it_ended(served, model, state):
    bought = ask(served, "x", model=model, headers=ALICE)
    answer = receipt_in(served, bought.headers["x-lcp-job-id"], state)
    assert answer.status == 200 and state in json.dumps(answer.json)


def test_a_quote_that_was_not_taken_has_no_receipt(served):
    answer = ask(served, "x", headers={**ALICE, "X-Lcp-Quote-Only": "true"})
    assert receipt(served, answer.json["job_id"]).status == 404
