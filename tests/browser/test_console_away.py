"""Parts that are away: the console says so, loses no session, and goes on by itself once they are back."""

import asyncio
import re

import pytest
from playwright.async_api import expect

from lcp_gateway.lightning.lnd.permissions import SELLING
from tests.browser.console_fixtures import SELLING_ENV
from tests.support.console import ADMIN_KEY, make_customer, rows_of, visit
from tests.support.gateway import gateway
from tests.support.journaled import money_node, on_node
from tests.support.lnd_standin import LndStandin, in_a_thread, lnd_settings
from tests.support.node_thread import eventually
from tests.support.postgres import running_postgres

pytestmark = pytest.mark.xdist_group("browser")

# The gateway asks lnd every 5 s, and a page for what no event tells every 10 s.
SEEN_MS = 90_000


async def test_a_database_that_is_away_is_said_and_its_return_is_seen_without_a_reload(visits):
    with running_postgres() as server, gateway(env={**SELLING_ENV, "LCP_GATEWAY_JOURNAL_URL": server.url()}) as running:
        customer = make_customer(running)
        visiting = await visits(running)
        await visiting.sign_in(ADMIN_KEY)
        await visiting.go("customers")
        await expect(visiting.page.get_by_text("alice")).to_be_visible()
        await asyncio.to_thread(server.stop)
        await visiting.go("log")
        problem = visiting.page.locator("main .problem")
        await expect(problem.first).to_contain_text("database cannot be read")
        await expect(problem.first).to_contain_text("This page tries again by itself")
        answer = customer.api.buy()
        assert answer.status_code == 503, answer.text
        await asyncio.to_thread(server.start)
        await expect(visiting.page.get_by_role("region", name="Operators' log, table")).to_be_visible(timeout=SEEN_MS)
        await expect(problem).to_have_count(0)
        await expect(visiting.page.get_by_text("Requests cannot be bought right now.")).to_have_count(0)
        await expect(visiting.page.get_by_text("Live", exact=True)).to_be_visible(timeout=SEEN_MS)
        # Events come again: a purchase is seen on a page that is open.
        await visiting.go("activity")
        await expect(visiting.page.get_by_text("Nothing bought yet")).to_be_visible()
        assert customer.api.buy(text="again").status_code == 200
        await expect(rows_of(visiting.page, "Purchases")).to_have_count(1, timeout=SEEN_MS)


async def test_an_lnd_that_is_away_is_said_and_its_return_is_seen_without_a_reload(browser, visits, tmp_path):
    lnd = LndStandin(tmp_path)
    with in_a_thread(lnd), money_node(tmp_path) as node:
        macaroon = lnd.bake("sells", *(it.call.split(".")[1] for it in SELLING))
        settings = {
            **on_node(node, journal_url=str(tmp_path / "journal.db")),
            **lnd_settings(lnd.address),
            **SELLING_ENV,
            "LCP_GATEWAY_LND_INVOICE_MACAROON_FILE": str(macaroon),
        }
        with gateway(embedded=False, env=settings) as running:
            customer = make_customer(running)
            visiting = await visits(running)
            await visiting.sign_in(ADMIN_KEY)
            await visiting.go("money")
            channels = visiting.figure("In the node's channels")
            await expect(channels).to_contain_text("local balance of lnd")
            async with visit(browser, running) as buyer:
                await buyer.sign_in(customer.sign_in_key)
                await buyer.go("wallet")
                await buyer.page.get_by_label("Amount in sat").fill("20")
                await asyncio.to_thread(lnd.run, lnd.stop())
                await buyer.page.get_by_role("button", name="Make an invoice").click()
                await expect(buyer.page.get_by_role("alert")).to_be_visible(timeout=SEEN_MS)
                await expect(channels).to_contain_text("lnd does not answer", timeout=SEEN_MS)
                await expect(visiting.figure("Covered")).to_contain_text("not known")
                await asyncio.to_thread(lnd.run, lnd.start())
                await expect(channels).to_contain_text("local balance of lnd", timeout=SEEN_MS)
                # Invoices have a connection to lnd of their own, which may be back later.
                await asyncio.to_thread(
                    eventually, lambda: customer.api.send("POST", "/api/wallet/topups", {"amount_sat": 21}).is_success
                )
                await buyer.page.get_by_role("button", name="Make an invoice").click()
                await expect(buyer.page.get_by_role("textbox", name="Invoice")).to_have_text(
                    re.compile("^ln"), timeout=SEEN_MS
                )
