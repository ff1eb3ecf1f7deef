"""Nodes and withdrawals in the console: an owner brings a node, earns and is paid out; the operator sets terms and decides."""

import asyncio
import re
import subprocess

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.browser.console_fixtures import SELLING_ENV, People
from tests.browser.test_console_look import TOO_WIDE, violations
from tests.support.console import ADMIN_KEY, Api, Customer, make_customer, rows_of, sats
from tests.support.forked import start_module
from tests.support.gateway import clean_environment, gateway
from tests.support.http_node import HttpNodeThread
from tests.support.node_thread import eventually
from tests.support.tools import require_js_package

pytestmark = pytest.mark.xdist_group("browser")

MODEL = "model-of-olga"


@pytest.fixture(scope="module")
def market():
    """A gateway whose customers bring nodes and withdraw play money; above 300 sat the operator decides."""
    settings = {
        **SELLING_ENV,
        "LCP_GATEWAY_DIALIN_ACCOUNTS": "true",
        "LCP_GATEWAY_NODE_COMMISSION_PERCENT": "20",
        "LCP_GATEWAY_WITHDRAWALS": "true",
        "LCP_GATEWAY_WITHDRAWAL_FREEZE_S": "0",
        "LCP_GATEWAY_WITHDRAWAL_APPROVAL_MSAT": "300000",
    }
    with gateway(env=settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guests(browser, market) -> People:
    return People(browser, market)


@pytest.fixture(scope="module")
def olga(market) -> Customer:
    """A customer whose sign-in key may pay out, as one that registered."""
    return registered(market, "olga", 2_000)


def registered(running, name: str, sats_: int) -> Customer:
    made = Api(running.base_url, None).post("/api/register", {"name": name})
    admin = Api(running.base_url)
    account = made["account"]["id"]
    admin.post(f"/api/admin/accounts/{account}/adjustments", {"amount_msat": sats_ * 1000, "reason": "a test"})
    key = admin.post(f"/api/admin/accounts/{account}/keys", {"name": "program"})
    text = made["key"]["key"]
    return Customer(account, text, key["key"], key["id"], Api(running.base_url, text))


def joined(command: str, token: str, backend: str) -> subprocess.Popen[bytes]:
    """Run the command that the page shows, with the token in the environment in place of the file."""
    words = command.split()
    assert words[:2] == ["lcp-gateway", "join"]
    at = words.index("--token-file")
    del words[at : at + 2]
    return start_module(
        *("lcp_gateway", *words[1:], "--backend", backend),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environment({"LCP_GATEWAY_JOIN_TOKEN": token}),
    )


@pytest.fixture(scope="module")
def nora(market) -> Customer:
    """A customer with a node that has been connected."""
    customer = registered(market, "nora", 1)
    key = {"name": "gpu-2", "scopes": ["node"]}
    token = Api(market.base_url).post(f"/api/admin/accounts/{customer.id}/keys", key)["key"]
    command = f"lcp-gateway join ws://127.0.0.1:{market.port} --name gpu-2 --token-file token"
    with HttpNodeThread("backend", ("model-of-nora",)) as backend:
        process = joined(command, token, backend.base_url)
        try:
            eventually(lambda: customer.api.get("/api/nodes")["data"])
        finally:
            process.terminate()
            process.wait(60)
    return customer


# -- nodes ----------------------------------------------------------------------------------------


async def bring(visiting) -> tuple[str, str]:
    """Make a token for a node gpu-1; return it and the command to join, as they are shown once."""
    page = visiting.page
    await visiting.open("nodes")
    await expect(page.get_by_text("No node yet")).to_be_visible()
    await page.get_by_role("button", name="+ New node").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Name").fill("gpu no")
    await dialog.get_by_role("button", name="Make the token").click()
    await expect(dialog.locator(".field-error")).to_be_visible()
    await dialog.get_by_label("Name").fill("gpu-1")
    await dialog.get_by_label("Price of 1,000").fill("900000")
    await dialog.get_by_role("button", name="Make the token").click()
    token = (await dialog.get_by_role("textbox", name="Token", exact=True).text_content()).strip()
    lines = (await dialog.get_by_role("tabpanel").text_content()).splitlines()
    assert len(lines) == 3 and token in lines[1]
    await dialog.get_by_role("button", name="Done").click()
    await expect(dialog).to_have_count(0)
    assert token not in await page.content()
    return token, lines[2]


async def freeze(operator) -> None:
    """Set another commission and keep the node out, with a reason."""
    await operator.open("nodes")
    row = rows_of(operator.page, "Nodes of customers").filter(has_text="gpu-1")
    await expect(row).to_contain_text("20 %")
    await expect(rows_of(operator.page, "Your own nodes")).to_have_count(0)
    await row.get_by_role("button", name="Change").click()
    dialog = operator.page.get_by_role("dialog")
    await dialog.get_by_label("Commission, percent").fill("12.5")
    await dialog.get_by_label("The node").select_option("frozen")
    await dialog.get_by_label("Reason").fill("it lied")
    await dialog.get_by_role("button", name="Change").click()
    await expect(row).to_contain_text("frozen")
    await expect(row).to_contain_text("12.5 %")


async def test_an_owner_brings_a_node_with_the_commands_shown_and_the_operator_freezes_it(market, guests, olga):
    buyer = make_customer(market, "buyer")
    with HttpNodeThread("backend", (MODEL,)) as backend:
        async with guests.visit(olga.sign_in_key) as visiting, guests.visit(ADMIN_KEY) as operator:
            page = visiting.page
            token, command = await bring(visiting)
            assert f"ws://127.0.0.1:{market.port} --name gpu-1" in command
            # The token connects a node and opens nothing else.
            assert Api(market.base_url, token).send("GET", "/api/wallet").status_code == 403
            process = joined(command, token, backend.base_url)
            try:
                row = rows_of(page, "Your nodes")
                await expect(row).to_contain_text("connected")
                await asyncio.to_thread(eventually, lambda: buyer.api.buy(MODEL).status_code == 200)
                await asyncio.to_thread(eventually, lambda: olga.api.get("/api/nodes")["data"][0]["earned_msat"] > 0)
                await expect(visiting.figure("Earned in all")).not_to_have_text(re.compile("^0"))
                (node,) = olga.api.get("/api/nodes")["data"]
                assert sats(await visiting.figure("Earned in all").text_content()) == node["earned_msat"]
                await row.get_by_role("link", name="gpu-1").click()
                await expect(visiting.heading("gpu-1")).to_be_visible()
                earned = rows_of(page, "Earnings")
                await expect(earned).to_have_count(1)
                await expect(earned).to_contain_text(MODEL)
                assert sats(await earned.locator("td").last.text_content()) == node["earned_msat"]
                await visiting.go("wallet")
                line = rows_of(page, "Movements of the balance").filter(has_text="earned by a node")
                # The purchase is another customer's: no link leads to it.
                await expect(line).to_have_count(1)
                await expect(line.get_by_role("link")).to_have_count(0)
                await freeze(operator)
                nodes = Api(market.base_url).get("/api/admin/nodes")["data"]
                assert [one["frozen"] for one in nodes if one["name"] == "gpu-1"] == [True]
                await visiting.go("nodes")
                await expect(rows_of(page, "Your nodes")).to_contain_text("frozen")
                # It is sent away within a second.
                await asyncio.to_thread(eventually, lambda: not buyer.api.buy(MODEL, "again").is_success)
            finally:
                process.terminate()
                await asyncio.to_thread(process.wait, 60)


async def test_a_key_that_may_make_no_keys_is_told_how_to_bring_a_node(market, guests):
    customer = make_customer(market, "reader")
    async with guests.visit(customer.key) as visiting:
        await visiting.open("nodes")
        await expect(visiting.page.get_by_text("Sign in with your sign-in key to make a token")).to_be_visible()
        await expect(visiting.page.get_by_role("button", name="+ New node")).to_have_count(0)


async def test_a_laptop_shows_its_own_nodes_and_how_a_machine_dials_in(laptop, visits):
    visiting = await visits(laptop)
    await visiting.open("nodes")
    await expect(visiting.page.get_by_text("No nodes of your own")).to_be_visible()
    await visiting.page.get_by_text("How to let a machine dial in").click()
    await expect(visiting.page.get_by_role("tabpanel")).to_contain_text("[[dialin_nodes]]")


async def test_own_nodes_of_the_operator_are_listed(at_operator):
    await at_operator.open("nodes")
    await expect(rows_of(at_operator.page, "Your own nodes").filter(has_text="Kralle")).to_have_count(1)
    await expect(at_operator.page.get_by_text("Customers bring no nodes")).to_be_visible()


# -- withdrawals ----------------------------------------------------------------------------------


async def test_a_customer_withdraws_play_money_and_sees_it_paid(guests, olga):
    async with guests.visit(olga.sign_in_key) as visiting:
        page = visiting.page
        await visiting.open("wallet")
        before = sats(await visiting.figure("Available").text_content())
        await page.get_by_role("button", name="An invoice to try, 100 sat").click()
        await expect(page.get_by_label("Invoice to pay")).to_have_value(re.compile("^ln"))
        await expect(page.get_by_label("Withdraw, sat")).to_have_count(0)
        await page.get_by_role("button", name="Withdraw 100 sat").click()
        await expect(page.get_by_text("Sent: 100 sat.")).to_be_visible()
        row = rows_of(page, "Withdrawals").first
        await expect(row.locator(".state")).to_have_text("paid")
        (paid, *_) = olga.api.get("/api/wallet/withdrawals?status=settled")["data"]
        await expect(visiting.figure("Available")).to_have_text(
            re.compile(f"^{(before - 100_000 - paid['fee_msat']) // 1000:,}")
        )
        await expect(rows_of(page, "Movements of the balance").first).to_contain_text("withdrawal")


async def test_a_wrong_invoice_is_marked_at_its_input(guests, olga):
    async with guests.visit(olga.sign_in_key) as visiting:
        await visiting.open("wallet")
        await visiting.page.get_by_label("Invoice to pay").fill("lnbc1nonsense")
        await visiting.page.get_by_role("button", name="Withdraw", exact=True).click()
        await expect(visiting.page.locator(".field-error")).to_be_visible()


async def test_the_operator_approves_denies_and_freezes(market, guests, olga):
    async with guests.visit(olga.sign_in_key) as visiting, guests.visit(ADMIN_KEY) as operator:
        for amount_sat in (400, 500):
            invoice = olga.api.post("/api/wallet/demo-invoice", {"amount_sat": amount_sat})["payment_request"]
            await visiting.open("wallet")
            await visiting.page.get_by_label("Invoice to pay").fill(f"lightning:{invoice}")
            await visiting.page.get_by_role("button", name=f"Withdraw {amount_sat} sat").click()
            await expect(visiting.page.get_by_text("The operator decides on it")).to_be_visible()
        await expect(visiting.figure("Held")).to_contain_text("for 2 withdrawals")
        await operator.open("withdrawals?status=awaiting_approval")
        rows = rows_of(operator.page, "Withdrawals")
        await expect(rows).to_have_count(2)
        for amount, decision in (("400.000", "approve"), ("500.000", "deny")):
            await rows.filter(has_text=amount).get_by_role("button").click()
            dialog = operator.page.get_by_role("dialog")
            await dialog.get_by_label("Decision").select_option(decision)
            await dialog.get_by_label("Reason").fill("looked at it")
            word = await dialog.locator("label strong").text_content()
            await dialog.get_by_label(re.compile("^Type")).fill(word)
            await dialog.get_by_role("button", name="Decide").click()
            await expect(dialog).to_have_count(0)
            await expect(rows.filter(has_text=amount)).to_have_count(0)
        await expect(rows_of(visiting.page, "Withdrawals").filter(has_text="500.000")).to_contain_text("denied")
        await expect(rows_of(visiting.page, "Withdrawals").filter(has_text="400.000").locator(".state")).to_have_text(
            "paid"
        )
        await operator.go(f"customers/{olga.id}")
        await operator.page.get_by_role("button", name="Freeze…").click()
        await operator.page.get_by_role("dialog").get_by_label("Reason").fill("asked by its owner")
        await operator.page.get_by_role("button", name="Freeze", exact=True).click()
        await expect(operator.page.get_by_text("It may not withdraw.")).to_be_visible()
        await visiting.open("wallet")
        await visiting.page.get_by_role("button", name="An invoice to try").click()
        await visiting.page.get_by_role("button", name="Withdraw 100 sat").click()
        await expect(visiting.page.get_by_role("alert")).to_be_visible()
        await operator.page.get_by_role("button", name="Let it withdraw…").click()
        await operator.page.get_by_role("dialog").get_by_label("Reason").fill("it is well")
        await operator.page.get_by_role("button", name="Let it withdraw", exact=True).click()
        await expect(operator.page.get_by_text("It may not withdraw.")).to_have_count(0)
    assert Api(market.base_url).get("/api/admin/audit")["ok"]


async def test_a_key_that_may_not_pay_out_says_what_to_do_and_makes_none_that_may(market, guests):
    """The operator makes one: a key never comes to more than its holder may give."""
    customer = make_customer(market, "saver")
    async with guests.visit(customer.sign_in_key) as visiting, guests.visit(ADMIN_KEY) as operator:
        await visiting.open("wallet")
        await expect(visiting.page.get_by_text("may not pay out")).to_be_visible()
        await expect(visiting.page.get_by_label("Invoice to pay")).to_have_count(0)
        await visiting.open("keys")
        await visiting.page.get_by_role("button", name="+ New Key").click()
        kinds = visiting.page.get_by_role("dialog").get_by_label("Kind").locator("option")
        assert "withdraw" not in " ".join(await kinds.evaluate_all("(all) => all.map((one) => one.value)"))

        await operator.open(f"customers/{customer.id}")
        await operator.page.get_by_role("button", name="+ New Key").click()
        dialog = operator.page.get_by_role("dialog")
        await dialog.get_by_label("Kind").select_option("account-withdraw")
        await dialog.get_by_role("button", name="Make the key").click()
        key = (await dialog.get_by_role("textbox", name="Key").text_content()).strip()
        async with guests.visit(key) as another:
            await another.open("wallet")
            await expect(another.page.get_by_label("Invoice to pay")).to_be_visible()


async def test_pages_of_nodes_and_withdrawals_fit_a_phone(guests, olga):
    for key, pages in ((olga.sign_in_key, ("nodes", "wallet")), (ADMIN_KEY, ("nodes", "withdrawals", "customers"))):
        async with guests.visit(key, viewport={"width": 390, "height": 844}) as visiting:
            for path in pages:
                await visiting.open(path)
                await expect(visiting.page.get_by_text("Loading…")).to_have_count(0)
                assert not await visiting.page.evaluate(TOO_WIDE), path


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_on_pages_of_nodes_and_withdrawals(guests, nora, scheme):
    axe = (require_js_package("axe-core") / "axe.min.js").read_text()
    node = nora.api.get("/api/nodes")["data"][0]["id"]
    of_operator = ("nodes", "withdrawals", f"customers/{nora.id}")
    for key, pages in ((nora.sign_in_key, ("nodes", f"nodes/{node}", "wallet")), (ADMIN_KEY, of_operator)):
        async with guests.visit(key, color_scheme=scheme) as visiting:
            await visiting.open()
            await visiting.page.evaluate(axe)
            for path in pages:
                await visiting.go(path)
                await expect(visiting.page.locator("main h1")).to_be_visible()
                await expect(visiting.page.get_by_text("Loading…")).to_have_count(0)
                assert await violations(visiting.page) == [], path
