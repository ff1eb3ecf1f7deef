"""Accounts for tests: the real ledger in a SQLite file, and invoices that are paid by calling a method."""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lcp_gateway.accounts.models import Credit, Topup
from lcp_gateway.accounts.repositories import InvoiceServiceUnavailable
from lcp_gateway.accounts.wallet import TopupRules, Wallet
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.accounts import Accounts
from lcp_gateway.store.accounts.admin_log import AdminLog
from lcp_gateway.store.accounts.keys import Keys
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.accounts.topups import Topups
from lcp_gateway.store.database.engines import Database, open_database

NODE = "03" + "cd" * 32


@dataclass(frozen=True)
class Invoice:
    payment_request: str
    payment_hash: bytes
    expires_at: datetime
    preimage: bytes
    amount_msat: int
    memo: str


@dataclass(frozen=True)
class Payment:
    payment_hash: bytes
    amount_paid_msat: int
    settle_index: int
    settled_at: datetime


@dataclass
class StandInInvoiceService:
    """An invoice service without lnd; ``pay`` pays an invoice. ``is_away`` makes every call fail."""

    made: dict[bytes, Invoice] = field(default_factory=dict)
    payments: list[Payment] = field(default_factory=list)
    is_away: bool = False
    asked: list[str] = field(default_factory=list)
    followed_from: list[int] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def create(self, amount_msat: int, memo: str, expiry_s: int) -> Invoice:
        self._call("create")
        number = len(self.made)
        preimage = hashlib.sha256(b"preimage %d" % number).digest()
        made = Invoice(
            f"lnbcrt1test{number}",
            hashlib.sha256(preimage).digest(),
            datetime.now(UTC) + timedelta(seconds=expiry_s),
            preimage,
            amount_msat,
            memo,
        )
        self.made[made.payment_hash] = made
        return made

    async def paid(self, payment_hash: bytes) -> Payment | None:
        self._call("paid")
        return next((p for p in self.payments if p.payment_hash == payment_hash), None)

    async def node_id(self) -> str:
        self._call("node_id")
        return NODE

    async def follow(self, settle_index: int) -> AsyncGenerator[Payment, None]:
        self._call("follow")
        self.followed_from.append(settle_index)
        while True:
            self.news.clear()
            for payment in [p for p in self.payments if p.settle_index > settle_index]:
                settle_index = payment.settle_index
                yield payment
            await self.news.wait()
            if self.is_away:
                raise InvoiceServiceUnavailable("lnd went away")

    def pay(self, payment_hash: bytes, amount_msat: int | None = None) -> bytes:
        """Pay an invoice, by default with its amount; return the preimage."""
        invoice = self.made[payment_hash]
        self.payments.append(
            Payment(payment_hash, amount_msat or invoice.amount_msat, len(self.payments) + 1, datetime.now(UTC))
        )
        self.news.set()
        return invoice.preimage

    def go_away(self) -> None:
        self.is_away = True
        self.news.set()

    def _call(self, name: str) -> None:
        self.asked.append(name)
        if self.is_away:
            raise InvoiceServiceUnavailable("lnd cannot be reached")


@dataclass
class Bank:
    """The repositories on one database, the invoice service, and the credits so far."""

    database: Database
    invoices: StandInInvoiceService = field(default_factory=StandInInvoiceService)
    rules: TopupRules = field(default_factory=TopupRules)
    credits: list[Credit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.accounts = Accounts(self.database)
        self.keys = Keys(self.database)
        self.ledger = Ledger(self.database)
        self.topups = Topups(self.database)
        self.acts = AdminLog(self.database)

    def wallet(self, **rules) -> Wallet:
        return Wallet(self.ledger, self.topups, self.invoices, TopupRules(**rules), on_credit=self.credits.append)

    def wallet_without_invoices(self) -> Wallet:
        return Wallet(self.ledger, self.topups, None, TopupRules())

    async def customer(self, balance_msat: int = 0, name: str = "a customer") -> str:
        """Make an account and return its id."""
        now = datetime.now(UTC)
        account = await self.accounts.create(name, actor="test", at=now)
        if balance_msat:
            await self.ledger.adjust(account.id, Msat(balance_msat), reason="to begin with", actor="test", at=now)
        return account.id

    async def available(self, account_id: str) -> int:
        found = await self.ledger.balance(account_id)
        return 0 if found is None else found.available_msat

    async def aged(self, topup: Topup, by: timedelta) -> Topup:
        """Make an invoice whose creation and expiry are this much earlier."""
        from sqlalchemy import update

        from lcp_gateway.store.database.schema import topups
        from lcp_gateway.store.database.times import to_micros

        change = (
            update(topups)
            .where(topups.c.id == topup.id)
            .values(created_at=to_micros(topup.created_at - by), expires_at=to_micros(topup.expires_at - by))
        )
        await self.database.write(lambda connection: connection.execute(change))
        found = await self.topups.get(topup.id)
        assert found is not None
        return found


@pytest.fixture(scope="session")
def migrated(tmp_path_factory) -> Path:
    """A migrated SQLite file without rows, to be copied."""
    path = tmp_path_factory.mktemp("bank") / "journal.db"

    async def make() -> None:
        await (await open_database(str(path))).close()

    asyncio.run(make())
    return path


@pytest.fixture
async def bank(tmp_path: Path, migrated: Path) -> AsyncIterator[Bank]:
    database = await open_database(str(shutil.copy(migrated, tmp_path / "journal.db")))
    yield Bank(database)
    await database.close()
