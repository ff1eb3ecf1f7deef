"""Keys, agents' tokens, macaroons and preimages are in no log, answer, metric or file, however they are used."""

import base64
import re
import secrets

import pytest

from tests.support.gateway import run_command
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, send_raw
from tests.system.selling.seller import ADMIN_KEY, STATIC_KEY, Customer, bearer, dumped, running_seller, selling

PROMPT = "zanzibar-quokka-prompt"
WRONG = "lcpg_" + "periwinkle-okapi-" * 2 + "123456789"
NO_SUCH = ("/v1/nothing", "/nothing", "", "/", "/v1/models/../../admin", "/v1/%zz")


class Told:
    """All answers to clients, except secrets that are shown once on purpose."""

    def __init__(self) -> None:
        self.answers: list[str] = []

    def __call__(self, answer):
        self.answers.append(dumped(answer))
        return answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def reported():
    return Told()


@pytest.fixture(scope="module")
def served(folder):
    journal = folder / "journal.db"
    settings = {
        "journal_url": journal,
        "log_level": "debug",
        "l402": "true",
        "l402_msat": 20_000,
        "node_faults": "true",
        "timeout_execute_s": 1,
        "cors_origins": "https://app.example",
    }
    with running_seller(**settings) as running:
        yield running


@pytest.fixture(scope="module")
def after_everything(served, reported):
    """Use each kind of secret in every way; return the secrets."""
    office = served.office
    account = office.account(1_000_000)
    key, other = (office.key(account)["key"] for _ in range(2))
    agent = office.key(account, kind="agent")["key"]
    admin = office.key(account, scopes=["admin"])["key"]
    revoked = office.key(account)
    office.delete(f"keys/{revoked['id']}")
    customer = Customer(served.port, account, key)

    topup = customer.top_up(5_000)
    paid = served.pay(topup["payment_request"])
    eventually(lambda: reported(customer.get(f"/api/wallet/topups/{topup['id']}")).json["status"] == "settled")
    challenge = post(served.port, CHAT, document(text=PROMPT))
    macaroon, invoice = re.match(
        r'L402 macaroon="([^"]+)", invoice="([^"]+)"', challenge.headers["www-authenticate"]
    ).groups()
    proof = served.pay(invoice)
    l402 = {"Authorization": f"L402 {macaroon}:{proof.preimage.hex()}"}

    for headers in (
        bearer(key),
        bearer(other),
        bearer(admin),
        bearer(revoked["key"]),
        bearer(WRONG),
        bearer(ADMIN_KEY),
        bearer(STATIC_KEY),
        l402,
        {"Authorization": l402["Authorization"][:-1]},
        {"Authorization": f"L402 {macaroon[:-8]}AAAAAAA=:{proof.preimage.hex()}"},
        {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"},
        {"Authorization": key},
        {"X-Api-Key": key, "Cookie": f"key={key}", "Referer": f"http://x/api/agent/{agent}/v1"},
    ):
        for path in ("/v1/models", "/api/wallet", "/api/admin/audit", "/metrics", "/nothing"):
            reported(get(served.port, path, headers))
        for model in ("echo-1", "fault/wrong-hash", "fault/quote-refused", "no-such-model"):
            reported(post(served.port, CHAT, document(CHAT, model, PROMPT), headers))
        reported(post(served.port, RESPONSES, b"{", headers))
        reported(post(served.port, CHAT, document(CHAT, text=PROMPT, stream=True), headers))
    for token in (agent, key, revoked["key"], WRONG):
        at = f"/api/agent/{token}"
        spelt = f"/api/agent/{token.replace('_', '%5F', 1)}"
        for base in (at, spelt):
            reported(get(served.port, f"{base}/v1/models"))
            reported(post(served.port, base + CHAT, document(CHAT, text=PROMPT)))
            reported(post(served.port, f"{base}/chat/completions", b"{"))
            reported(post(served.port, base + CHAT, document(CHAT, "fault/execute-code-internal")))
            for path in NO_SUCH:
                reported(get(served.port, base + path))
        origin = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        raw = request_bytes("OPTIONS", at + CHAT, None, origin)
        reported(send_raw(served.port, raw, method="OPTIONS"))
        reported(send_raw(served.port, request_bytes("DELETE", at + CHAT), method="DELETE"))
        reported(get(served.port, f"/v1/models?key={token}", {"Origin": "https://app.example"}))
        # Bytes that are not HTTP, with a secret in them.
        reported(send_raw(served.port, f"GET {at}/v1 models HTTP/9.9\r\n\r\n".encode()))
        reported(send_raw(served.port, f"GET {at}/v1/models HTTP/1.1\r\nA{chr(1)}: b\r\n\r\n".encode()))
        long = {"X-Long": "x" * 20_000, "Authorization": f"Bearer {token}"}
        reported(get(served.port, f"{at}/v1/models", long))
    for path in (f"accounts/{account}/keys", "keys", "log?limit=100", "audit", "accounts"):
        reported(office.get(path))
    reported(office.get(f"keys/{key}"))
    reported(office.delete(f"keys/{key}"))
    reported(office.post(f"accounts/{account}/keys", {"name": 1}))
    reported(office.get(f"accounts/{account}/statement"))
    office.is_in_order()
    return {
        "key": key,
        "another key": other,
        "agent's token": agent,
        "key of an administrator": admin,
        "revoked key": revoked["key"],
        "wrong key": WRONG,
        "administrator's key": ADMIN_KEY,
        "static key": STATIC_KEY,
        "macaroon": macaroon,
        "macaroon's signature": base64.b64decode(macaroon)[-32:].hex(),
        "L402 preimage": proof.preimage.hex(),
        "top-up's preimage": paid.preimage.hex(),
    }


def parts(secret: str) -> list[str]:
    """The parts of a secret that must not be found: its beginning may be shown, to distinguish keys."""
    return [secret[10:], secret[10:30]]


def search(text: str, found: dict[str, str]) -> list[str]:
    return [name for name, secret in found.items() if any(it in text for it in parts(secret))]


def test_nothing_of_them_is_in_the_logs(served, after_everything):
    last = f"after-{secrets.token_hex(4)}"
    get(served.port, "/healthz", {"x-request-id": last})
    served.running.wait_for_log(last)
    said = served.running.logs + "\n".join(served.running.output)
    assert served.running.logs.count("\n") > 200, "it is to be talkative"
    assert search(said, after_everything) == []
    assert PROMPT not in said
    assert "Traceback" not in said


def test_nothing_of_them_is_in_an_answer(after_everything, reported):
    assert len(reported.answers) > 200
    # A challenge shows a macaroon to the client that is to pay for it: each is a new one.
    found = [name for answer in reported.answers for name in search(answer, after_everything)]
    assert found == []


def test_nothing_of_them_is_in_the_metrics(served, after_everything):
    text = get(served.port, "/metrics", bearer(ADMIN_KEY)).body.decode()
    assert "lcpgateway_requests_total" in text
    assert search(text, after_everything) == []
    assert "lcpg_" not in text and "/api/agent/l" not in text


def test_nothing_of_them_is_in_the_files(served, after_everything, folder):
    served.running.stop()
    files = [file for file in folder.rglob("*") if file.is_file()]
    made_at_the_start = folder / "journal.l402"
    assert {folder / "journal.db", made_at_the_start} <= set(files)
    secret = made_at_the_start.read_bytes()
    assert len(secret) == 32
    for file in files:
        data = file.read_bytes()
        text = data.decode("latin-1")
        assert search(text, after_everything) == [], file.name
        assert PROMPT not in text, file.name
        assert file == made_at_the_start or secret not in data, file.name
        for name in ("macaroon's signature", "L402 preimage", "top-up's preimage"):
            assert bytes.fromhex(after_everything[name]) not in data, (file.name, name)
        # No other user of the machine reads the books.
        assert not file.stat().st_mode & 0o077, file.name


def test_the_settings_that_are_shown_are_hidden(tmp_path):
    settings = selling(journal_url=tmp_path / "j.db", l402_secret="s" * 40)
    shown = run_command("config", "show", env=settings)
    assert shown.returncode == 0, shown.stderr
    said = shown.stdout + shown.stderr
    assert "accounts" in said
    for secret in (ADMIN_KEY, STATIC_KEY, "s" * 40):
        assert secret not in said
