"""A gateway that sells, used over HTTP only, by its administrator and its customers."""

import asyncio
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lcp_gateway.lightning.lnd.demo import DemoPayment, pay
from lcp_gateway.purchase.money import Markup
from tests.support.gateway import RunningGateway, gateway
from tests.support.node_thread import eventually
from tests.support.ports import free_address
from tests.support.wire import CHAT, Answer, document, get, post, request_bytes, send_raw

ADMIN_KEY = "the-administrators-key-of-the-test"
STATIC_KEY = "sk-the-operators-own-key"
MARKUP = Markup(ppm=100_000)
MARKUP_PERCENT = "10"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def selling(**more: object) -> dict[str, str]:
    """The settings of a gateway that sells; ``more`` are settings by their lower-case names."""
    settings = {
        "auth": "accounts",
        "admin_key": ADMIN_KEY,
        "api_keys": STATIC_KEY,
        "markup_percent": MARKUP_PERCENT,
        # The losses of these tests would use up the trust in the peer.
        "exposure_base_msat": 0,
        **more,
    }
    return {f"LCP_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}


def is_401(answer: Answer) -> bool:
    return answer.status == 401 and answer.error["code"] == "invalid_api_key"


@dataclass(frozen=True)
class Office:
    """The administrator at one gateway."""

    port: int

    def get(self, path: str) -> Answer:
        return get(self.port, f"/api/admin/{path}", bearer(ADMIN_KEY))

    def post(self, path: str, fields: Mapping[str, object]) -> Answer:
        return post(self.port, f"/api/admin/{path}", dict(fields), bearer(ADMIN_KEY))

    def delete(self, path: str) -> Answer:
        raw = request_bytes("DELETE", f"/api/admin/{path}", None, bearer(ADMIN_KEY))
        return send_raw(self.port, raw, method="DELETE")

    def account(self, amount_msat: int = 0) -> str:
        """Create an account with a balance; return its id."""
        made = self.post("accounts", {"name": f"customer {secrets.token_hex(3)}"})
        assert made.status == 201, made.body
        account_id = made.json["id"]
        if amount_msat:
            self.adjust(account_id, amount_msat)
        return account_id

    def adjust(self, account_id: str, amount_msat: int) -> None:
        fields = {"amount_msat": amount_msat, "reason": "of a test"}
        made = self.post(f"accounts/{account_id}/adjustments", fields)
        assert made.status == 201, made.body

    def key(self, account_id: str, **fields: object) -> dict:
        """Create a key; return the document that is shown once."""
        made = self.post(f"accounts/{account_id}/keys", {"name": "of a test", **fields})
        assert made.status == 201, made.body
        return made.json

    def customer(self, amount_msat: int = 0, **fields: object) -> "Customer":
        account_id = self.account(amount_msat)
        return Customer(self.port, account_id, self.key(account_id, **fields)["key"])

    def balance(self, account_id: str) -> dict[str, int]:
        reported = self.get(f"accounts/{account_id}").json
        return {name: reported[name] for name in ("balance_msat", "held_msat", "available_msat")}

    def lines(self, account_id: str) -> list[dict]:
        """Everything that moved a balance, the newest first."""
        found, after = [], ""
        while True:
            asked = f"accounts/{account_id}/statement?limit=100{after}"
            page = self.get(asked).json
            found += page["data"]
            if page["after"] is None:
                return found
            after = f"&after={page['after']}"

    def is_in_order(self) -> dict:
        """Check the books; return the audit's document."""
        reported = self.get("audit").json
        assert reported["ok"], reported["problems"]
        assert sum(reported["books"].values()) == 0
        return reported


@dataclass(frozen=True)
class Customer:
    """A customer with a key, at one gateway."""

    port: int
    account_id: str
    key: str

    @property
    def office(self) -> Office:
        return Office(self.port)

    @property
    def headers(self) -> dict[str, str]:
        return bearer(self.key)

    def get(self, path: str) -> Answer:
        return get(self.port, path, self.headers)

    def post(self, path: str, fields: Mapping[str, object]) -> Answer:
        return post(self.port, path, dict(fields), self.headers)

    def ask(self, model: str = "echo-1", text: str = "hello", *, headers=None, **more) -> Answer:
        more = {"max_tokens": 8, **more}
        body = document(CHAT, model, text, **more)
        return post(self.port, CHAT, body, {**self.headers, **(headers or {})}, 120)

    def quote(self, model: str = "echo-1", **more) -> dict:
        answer = self.ask(model, headers={"X-Lcp-Quote-Only": "true"}, **more)
        assert answer.status == 200, answer.body
        return answer.json

    def balance(self) -> dict[str, int]:
        reported = self.get("/api/wallet").json
        return {name: reported[name] for name in ("balance_msat", "held_msat", "available_msat")}

    def top_up(self, amount_msat: int) -> dict:
        made = self.post("/api/wallet/topups", {"amount_msat": amount_msat})
        assert made.status == 201, made.body
        return made.json

    def moved(self) -> list[tuple[str, int]]:
        """The movements of the balance, as cause and amount, the oldest first."""
        lines = self.office.lines(self.account_id)
        return [(line["cause"], line["amount_msat"]) for line in reversed(lines)]

    def eventually_has(self, timeout_s: float = 60.0, **amounts: int) -> None:
        eventually(lambda: self.balance().items() >= amounts.items(), timeout_s)


def charged(answer: Answer) -> int:
    return int(answer.headers["x-lcp-charged-msat"])


def price(answer: Answer) -> int:
    return int(answer.headers["x-lcp-price-msat"])


@dataclass(frozen=True)
class Seller:
    """A gateway that sells, on an embedded node at ``node``."""

    running: RunningGateway
    node: str

    @property
    def port(self) -> int:
        return self.running.port

    @property
    def office(self) -> Office:
        return Office(self.port)

    def pay(self, payment_request: str) -> DemoPayment:
        return asyncio.run(pay(self.node, payment_request))

    def paid_msat(self, since: int = 0) -> int:
        """The sum of the payments to the node for work."""
        return sum(event["price_msat"] for event in self.running.events("paid")[since:])

    def settled(self) -> list[dict]:
        return self.running.events("paid")


@contextmanager
def running_seller(**settings: object) -> Iterator[Seller]:
    """Run a gateway that sells, with a node of its own."""
    node = free_address()
    with gateway(env=selling(node_listen=node, **settings)) as running:
        yield Seller(running, node)


def dumped(answer: Answer) -> str:
    """Head and body of an answer, to be searched."""
    return json.dumps(answer.fields) + answer.body.decode("utf-8", "replace")
