"""The operator in the console: customers, adjustments, the audit, the log, unknown payments, and parts that are away."""

import asyncio
import json
import re

import pytest
from playwright.async_api import expect

from tests.browser.console_fixtures import HOSTILE, SELLING_ENV
from tests.support.console import ADMIN_KEY, Api, make_customer, rows_of, sats
from tests.support.daemon import Daemon
from tests.support.gateway import gateway, run_command
from tests.support.node_thread import eventually
from tests.support.ports import free_address

pytestmark = pytest.mark.xdist_group("browser")


async def confirm(dialog, word: str) -> None:
    await dialog.get_by_label(re.compile("^Type")).fill(word)


async def test_a_customer_is_made_adjusted_once_and_found_in_statement_audit_and_log(at_operator, operator):
    page = at_operator.page
    await at_operator.open("customers")
    await page.get_by_role("button", name="+ New customer").click()
    await page.get_by_role("dialog").get_by_label("Name").fill("carol")
    await page.get_by_role("button", name="Make the account").click()
    await expect(at_operator.heading("carol")).to_be_visible()
    account = page.url.rpartition("/")[2]

    await page.get_by_role("button", name="Adjust…").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Amount in sat").fill("1,234.5")
    await dialog.get_by_label("Reason").fill("a gift")
    send = dialog.get_by_role("button", name="Adjust", exact=True)
    await expect(send).to_be_disabled()
    await confirm(dialog, account[-6:])
    # The answer is lost on the way: the operator sends it again, and it is made once.
    path = f"**/api/admin/accounts/{account}/adjustments"
    keys = []

    async def lose(route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        answer = await route.fetch()
        assert answer.status == 201, await answer.text()
        await route.abort()

    await page.route(path, lose)
    await send.click()
    await expect(dialog.get_by_role("alert")).to_be_visible()
    await page.unroute(path)
    async with page.expect_request(path) as sent:
        await send.click()
    assert (await sent.value).headers["idempotency-key"] == keys[0]
    await expect(dialog).to_have_count(0)
    await expect(rows_of(page, "Statement")).to_have_count(1)
    await expect(rows_of(page, "Statement")).to_contain_text("+1,234.500")
    # The balance is read beside the statement.
    await expect(at_operator.figure("Available")).to_have_text(re.compile(r"^1,234\.5"))
    assert sats(await at_operator.figure("Available").text_content()) == 1_234_500
    csv = await at_operator.context.request.get(f"{at_operator.url}/api/admin/accounts/{account}/statement?format=csv")
    assert "1234500" in await csv.text()

    await at_operator.go("money")
    await page.get_by_role("button", name="Audit the books").click()
    await expect(page.get_by_text("The books are right")).to_be_visible()
    await at_operator.go("log")
    await expect(rows_of(page, "Operators' log").filter(has_text="a gift")).to_have_count(1)
    assert operator.get(f"/api/admin/accounts/{account}")["balance_msat"] == 1_234_500


async def test_a_wrong_adjustment_is_refused_in_words(at_operator, seller):
    customer = make_customer(seller, "dave", sats=5)
    page = at_operator.page
    await at_operator.open(f"customers/{customer.id}")
    await page.get_by_role("button", name="Adjust…").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Amount in sat").fill("10")
    await dialog.get_by_label("Direction").select_option("take")
    await dialog.get_by_label("Reason").fill("too much")
    await confirm(dialog, customer.id[-6:])
    await dialog.get_by_role("button", name="Adjust", exact=True).click()
    await expect(dialog.locator(".field-error")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    assert sats(await at_operator.figure("Available").text_content()) == 5_000


async def test_an_unknown_payment_is_resolved_with_a_reason_and_a_confirmation(at_operator, seller):
    customer = make_customer(seller, "erin")
    page = at_operator.page
    await at_operator.open("money")
    await expect(page.get_by_text("None: every payment is known")).to_be_visible()
    assert customer.api.buy("fault/execute-code-internal").headers["x-lcp-payment"] == "unknown"
    row = rows_of(page, "Unknown payments")
    # It came without a reload.
    await expect(row).to_have_count(1)
    await row.get_by_role("button", name="Resolve…").click()
    dialog = page.get_by_role("dialog")
    job = customer.api.get("/api/purchases?state=unknown")["data"][0]["job_id"]
    await dialog.get_by_label("The payment is").select_option("not_paid")
    await dialog.get_by_label("Reason").fill("lnd shows no such payment")
    await confirm(dialog, job[-6:])
    await dialog.get_by_role("button", name="Resolve", exact=True).click()
    await expect(page.get_by_text("None: every payment is known")).to_be_visible()
    wallet = customer.api.get("/api/wallet")
    assert (wallet["held_msat"], wallet["available_msat"]) == (0, 1_000_000)


async def test_hostile_names_of_customers_and_providers_are_text_for_the_operator(at_operator, operator, seller):
    customer = make_customer(seller, HOSTILE)
    customer.api.buy(HOSTILE)
    at_operator.page.on("dialog", lambda dialog: at_operator.problems.append(dialog.message))
    for path in (
        "overview",
        "router",
        "keys",
        "activity",
        "usage",
        "providers",
        "nodes",
        "withdrawals",
        "customers",
        f"customers/{customer.id}",
        "money",
        "log",
        "system",
    ):
        await at_operator.open(path)
        await expect(at_operator.page.get_by_text("Loading…")).to_have_count(0)
        assert await at_operator.page.locator("img[src=x], script:not([src])").count() == 0, path
    await at_operator.open("customers")
    await expect(rows_of(at_operator.page, "Customers").filter(has_text=HOSTILE).first).to_be_visible()


async def test_usage_of_the_gateway_is_what_the_spend_command_says(visits, tmp_path):
    journal = str(tmp_path / "journal.db")
    with gateway(env={"LCP_GATEWAY_JOURNAL_URL": journal, "LCP_GATEWAY_NODE_FAULTS": "true"}) as running:
        api = Api(running.base_url, None)
        for model in ("echo-1", "echo-1", "fault/wrong-hash", "fault/execute-code-internal"):
            api.buy(model, f"for {model}")
        # Ends are recorded a moment after the answers.
        ends = ["delivered", "delivered", "undelivered", "unknown"]
        await asyncio.to_thread(
            eventually, lambda: sorted(one["state"] for one in api.get("/api/purchases")["data"]) == ends
        )
        visiting = await visits(running)
        await visiting.open("usage")
        await expect(rows_of(visiting.page, "Sums")).to_have_count(3)
        spent = await asyncio.to_thread(run_command, "spend", "--json", "--period", "month", "--journal-url", journal)
        sums = json.loads(spent.stdout)
        (sums,) = sums if isinstance(sums, list) else sums["data"]
        shown = sats(await visiting.figure("Spend").locator(".amount").first.text_content())
        assert shown == sums["settled_msat"] + sums["unknown_msat"] > 0
        cells = await rows_of(visiting.page, "Sums").locator("td:last-child").all_text_contents()
        assert sum(map(sats, cells)) == shown
        lost = await rows_of(visiting.page, "Sums").locator("td:nth-child(5)").all_text_contents()
        assert sum(map(sats, lost)) == sums["undelivered_msat"] > 0


async def test_without_lnd_the_solvency_is_not_known_rather_than_zero(at_operator):
    await at_operator.open("money")
    await expect(at_operator.figure("In the node's channels")).to_contain_text("not known")
    await expect(at_operator.figure("Covered")).to_contain_text("not known")


async def test_a_daemon_that_is_away_is_said_and_its_return_is_seen_without_a_reload(visits):
    daemon = Daemon(free_address())
    daemon.start()
    try:
        with gateway(embedded=False, args=["--lcpd-grpc-addr", daemon.address], env=SELLING_ENV) as running:
            visiting = await visits(running)
            await visiting.sign_in(ADMIN_KEY)
            alarm = visiting.page.get_by_text("Requests cannot be bought right now.")
            await expect(alarm).to_have_count(0)
            daemon.kill()
            await expect(alarm).to_be_visible()
            await visiting.go("providers")
            await expect(visiting.page.get_by_text("The daemon is away.")).to_be_visible()
            daemon.start()
            await expect(alarm).to_have_count(0)
            await expect(visiting.page.get_by_text("The daemon is away.")).to_have_count(0)
    finally:
        daemon.kill()


async def test_a_gateway_that_is_away_is_said_and_the_pages_go_on_when_it_is_back(visits, tmp_path):
    """Restarted at the same address with the same books: the session goes on without a reload."""
    settings = {
        **SELLING_ENV,
        "LCP_GATEWAY_JOURNAL_URL": str(tmp_path / "journal.db"),
        "LCP_GATEWAY_HTTP_ADDR": free_address(),
    }
    with gateway(env=settings) as running:
        visiting = await visits(running)
        await visiting.sign_in(ADMIN_KEY)
        await visiting.go("customers")
        await expect(visiting.page.get_by_text("No customers yet")).to_be_visible()
    await expect(visiting.page.get_by_text("Reconnecting…")).to_be_visible()
    await visiting.page.get_by_role("link", name="Money", exact=True).click()
    await expect(visiting.page.get_by_text("The gateway does not answer").first).to_be_visible()
    with gateway(env=settings) as running:
        await expect(visiting.figure("Owed to customers")).to_be_visible()
        await expect(visiting.page.get_by_text("The gateway does not answer")).to_have_count(0)
        await expect(visiting.page.get_by_text("Live", exact=True)).to_be_visible()
        make_customer(running, "after")
