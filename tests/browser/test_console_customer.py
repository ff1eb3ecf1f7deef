"""A customer in the console: top-ups, keys, limits, models, the router, activity, usage, receipts, and nothing of others."""

import asyncio
import json
import re

import pytest
from playwright.async_api import expect

from tests.browser.console_fixtures import FORMULA, HOSTILE
from tests.support.console import Api, make_customer, rows_of, sats
from tests.support.gateway import gateway, run_command
from tests.support.node_thread import eventually
from tests.support.ports import free_address
from tests.support.tools import require_js_package

pytestmark = pytest.mark.xdist_group("browser")

READ_QR = """async (image) => {
  await image.decode();
  const canvas = new OffscreenCanvas(600, 600), at = canvas.getContext('2d');
  at.drawImage(image, 0, 0, 600, 600);
  const {data} = at.getImageData(0, 0, 600, 600);
  return jsQR(data, 600, 600)?.data ?? null;
}"""


async def make_invoice(visiting, amount: str = "250") -> str:
    """Make an invoice in the wallet and return its text."""
    await visiting.open("wallet")
    await visiting.page.get_by_label("Amount in sat").fill(amount)
    await visiting.page.get_by_role("button", name="Make an invoice").click()
    shown = visiting.page.get_by_role("textbox", name="Invoice")
    await expect(shown).to_be_visible()
    return (await shown.text_content()).strip()


# -- the wallet -----------------------------------------------------------------------------------


async def test_an_invoice_is_scanned_copied_or_opened_and_its_payment_is_seen(at_alice, alice):
    page = at_alice.page
    await at_alice.context.grant_permissions(["clipboard-read", "clipboard-write"])
    invoice = await make_invoice(at_alice)
    before = sats(await at_alice.figure("Available").text_content())
    await page.evaluate((require_js_package("jsqr") / "dist" / "jsQR.js").read_text())
    image = page.get_by_role("img", name="QR code of the invoice")
    scanned = await image.evaluate(READ_QR)
    assert scanned.lower() == f"lightning:{invoice}"
    await page.get_by_role("button", name="Copy the invoice").click()
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == invoice
    assert await page.get_by_role("link", name="Open in a wallet").get_attribute("href") == f"lightning:{invoice}"
    # Paid from elsewhere: the page that is open shows it by itself.
    topup = page.url.rpartition("/")[2]
    alice.api.post(f"/api/wallet/topups/{topup}/demo-payment")
    await expect(page.get_by_text("Paid.")).to_be_visible()
    await expect(at_alice.figure("Available")).to_have_text(re.compile(f"^{(before + 250_000) / 1000:,.0f}"))
    await expect(rows_of(page, "Movements of the balance").first).to_contain_text("top-up")


async def test_a_demonstration_pays_with_play_money_by_a_click(at_alice):
    await make_invoice(at_alice, "30")
    await at_alice.page.get_by_role("button", name="Pay with play money").click()
    await expect(at_alice.page.get_by_text("Paid.")).to_be_visible()


async def test_an_invoice_that_was_paid_while_the_tab_was_closed_is_credited(people, alice):
    async with people.visit(alice.sign_in_key) as visiting:
        await make_invoice(visiting, "40")
        address = visiting.page.url
        await visiting.page.close()
        alice.api.post(f"/api/wallet/topups/{address.rpartition('/')[2]}/demo-payment")
        visiting.page = await visiting.tab()
        await visiting.page.goto(address)
        await expect(visiting.page.get_by_text("Paid.")).to_be_visible()


async def test_an_open_invoice_is_found_again(at_alice):
    invoice = await make_invoice(at_alice, "77")
    await at_alice.open("wallet")
    await rows_of(at_alice.page, "Open invoices").filter(has_text="77.000").get_by_role("link", name="Show").click()
    await expect(at_alice.page.get_by_role("textbox", name="Invoice")).to_have_text(invoice)


async def test_an_expired_invoice_cannot_be_paid_and_counts_down_only_near_its_end(seller, at_alice):
    """The browser's clock is moved, not waited for."""
    await at_alice.page.clock.install()
    await make_invoice(at_alice, "55")
    waiting = at_alice.page.get_by_text("Waiting for the payment.")
    await expect(waiting).not_to_contain_text("expires in")
    (row,) = [one for one in await topups_of(at_alice) if one["amount_msat"] == 55_000]
    life_s = row["expires_at"] - row["created_at"]
    await at_alice.page.clock.fast_forward(int(life_s * 0.8) * 1000)
    await expect(waiting).to_contain_text("expires in")
    await at_alice.page.clock.fast_forward(int(life_s * 0.25) * 1000)
    await expect(at_alice.page.get_by_text("This invoice has expired")).to_be_visible()
    await expect(at_alice.page.get_by_role("link", name="Open in a wallet")).to_have_count(0)


async def topups_of(visiting) -> list[dict[str, object]]:
    answer = await visiting.context.request.get(f"{visiting.url}/api/wallet/topups")
    return (await answer.json())["data"]


async def test_a_wallet_in_the_browser_pays_through_webln(people, alice):
    async with people.visit(alice.sign_in_key) as visiting:
        await visiting.page.add_init_script(
            "window.webln = {enable: async () => {}, sendPayment: async (invoice) => { window.sentInvoice = invoice }}"
        )
        invoice = await make_invoice(visiting, "33")
        await visiting.page.get_by_role("button", name="Pay with the browser's wallet").click()
        await expect(visiting.page.get_by_role("button", name="Pay with the browser's wallet")).to_be_enabled()
        assert await visiting.page.evaluate("window.sentInvoice") == invoice


@pytest.mark.parametrize("amount", ["0", "-5", "abc", "1.2345", "999999999999"])
async def test_a_wrong_amount_is_marked_at_its_input(at_alice, amount):
    await at_alice.open("wallet")
    await at_alice.page.get_by_label("Amount in sat").fill(amount)
    await at_alice.page.get_by_role("button", name="Make an invoice").click()
    await expect(at_alice.page.locator(".field-error")).to_be_visible()
    await expect(at_alice.page.get_by_label("Amount in sat")).to_have_attribute("aria-invalid", "true")


async def test_where_top_ups_are_off_the_wallet_says_why(visits):
    settings = {"LCP_GATEWAY_AUTH": "accounts", "LCP_GATEWAY_ADMIN_KEY": "admin-key-of-the-tests"}
    with gateway(embedded=False, args=["--lcpd-grpc-addr", free_address(), "--no-preflight"], env=settings) as running:
        customer = make_customer(running)
        visiting = await visits(running)
        await visiting.sign_in(customer.sign_in_key)
        await visiting.go("wallet")
        await expect(visiting.page.get_by_text("Top-ups are off")).to_be_visible()
        await expect(visiting.page.get_by_text("no lnd")).to_be_visible()


# -- keys and requests ----------------------------------------------------------------------------


async def new_key(visiting, name: str, kind: str = "api", **limits: str) -> str:
    """Make a key in the Model Router and return what is shown once."""
    page = visiting.page
    await visiting.open("router")
    await page.get_by_role("button", name="+ New Key").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Name").fill(name)
    await dialog.get_by_label("Kind").select_option(kind)
    if limits:
        await dialog.get_by_text("Limits", exact=True).click()
    for label, value in limits.items():
        await dialog.get_by_label(label.replace("_", " ")).fill(value)
    await dialog.get_by_role("button", name="Make the key").click()
    shown = dialog.locator("[data-copy]").first
    await expect(dialog.get_by_role("button", name="Done")).to_be_visible()
    text = (await shown.text_content()).strip()
    # It stays until "Done".
    await page.keyboard.press("Escape")
    await page.keyboard.press("Escape")
    await expect(shown).to_be_visible()
    await dialog.get_by_role("button", name="Done").click()
    await expect(dialog).to_have_count(0)
    return text


async def test_a_new_key_buys_with_the_openai_sdk_and_the_purchase_is_seen_at_once(at_alice, people, alice):
    from openai import AsyncOpenAI

    key = await new_key(at_alice, "sdk")
    assert re.fullmatch("lcpg_[A-Za-z0-9_-]{43}", key)
    assert key not in await at_alice.page.content()
    await at_alice.go("activity?state=delivered")
    await expect(at_alice.heading("Activity")).to_be_visible()
    async with AsyncOpenAI(base_url=f"{at_alice.url}/v1", api_key=key) as client:
        chat = await client.chat.completions.create(
            model="echo-1", messages=[{"role": "user", "content": "hello"}], max_tokens=20
        )
    assert chat.choices[0].message.content
    row = rows_of(at_alice.page, "Purchases").filter(has_text="sdk")
    await expect(row).to_have_count(1)
    await expect(row).to_contain_text("delivered")


async def test_an_agent_url_works_as_the_base_url_of_a_tool(at_alice):
    from openai import AsyncOpenAI

    url = await new_key(at_alice, "tool", kind="agent")
    assert re.search("/api/agent/lcpg_[A-Za-z0-9_-]{43}/v1$", url)
    async with AsyncOpenAI(base_url=url, api_key="unused") as client:
        chat = await client.chat.completions.create(
            model="echo-1", messages=[{"role": "user", "content": "hello"}], max_tokens=20
        )
    assert chat.choices[0].message.content


async def test_changed_limits_hold_at_once_and_are_said_in_words(seller, people):
    customer = make_customer(seller, "limited")
    async with people.visit(customer.sign_in_key) as visiting:
        page = visiting.page
        assert customer.api.buy().status_code == 200
        await visiting.open(f"keys/{customer.key_id}")
        await page.get_by_label("Models").fill("no-such-model")
        await page.get_by_label("A day, sat").fill("0.001")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_text("Saved.")).to_be_visible()
        refused = customer.api.buy()
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
        await page.get_by_label("Models").fill("")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_text("Saved.")).to_be_visible()
        refused = customer.api.buy(text="another")
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded")
        assert "budget" in refused.json()["error"]["message"]
        # The budget shows as used up, with the time at which it begins anew.
        meter = page.locator(".meter")
        await expect(meter).to_contain_text("used up")
        await expect(meter).to_contain_text("resets in")
        await page.get_by_label("A day, sat").fill("lots")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_label("A day, sat")).to_have_attribute("aria-invalid", "true")


async def test_revoking_a_key_needs_the_typed_confirmation(seller, people):
    customer = make_customer(seller, "revoker")
    async with people.visit(customer.sign_in_key) as visiting:
        page = visiting.page
        await visiting.open(f"keys/{customer.key_id}")
        await page.get_by_role("button", name="Revoke…").click()
        revoke = page.get_by_role("dialog").get_by_role("button", name="Revoke the key")
        await expect(revoke).to_be_disabled()
        await page.get_by_role("dialog").get_by_role("textbox").fill("wrong")
        await expect(revoke).to_be_disabled()
        # Neither does the route do it without the confirmation.
        answer = await visiting.context.request.delete(
            f"{visiting.url}/api/account/keys/{customer.key_id}",
            headers={"Origin": visiting.url, "Content-Type": "application/json"},
        )
        assert answer.status == 428
        assert customer.api.buy().status_code == 200
        await page.get_by_role("dialog").get_by_role("textbox").fill(customer.key_id[-6:])
        await revoke.click()
        await expect(page.locator("p.strip", has_text="Revoked")).to_be_visible()
        assert customer.api.buy(text="again").status_code == 401
        await expect(page.get_by_role("button", name="Save")).to_have_count(0)


# -- models and the router ------------------------------------------------------------------------


async def test_models_of_an_openclaw_node_have_its_mark_whatever_the_node_is_called(at_alice):
    await at_alice.open("router")
    row = rows_of(at_alice.page, "Models").filter(has_text="claw-1")
    await expect(row).to_contain_text("🐾")
    await expect(rows_of(at_alice.page, "Models").filter(has_text="echo-1")).not_to_contain_text("🐾")
    await at_alice.page.get_by_label("Search").fill("openclaw")
    await expect(rows_of(at_alice.page, "Models").filter(has_text="echo-1")).to_have_count(0)
    await row.get_by_role("button").click()
    await expect(at_alice.page.get_by_role("tabpanel", name="curl")).to_contain_text('"model":"claw-1"')


async def test_the_router_answers_a_query_with_reasons_and_marks_a_wrong_field(at_alice):
    page = at_alice.page
    await at_alice.open("router")
    await page.get_by_role("button", name="Ask the router").click()
    ranked = rows_of(page, "Models that fit, the best first")
    await expect(ranked.first).to_contain_text("delivery")
    fields = {"Providers": "lcp", "Capabilities": "", "At least": "0", "At most": "1000", "Results": "1"}
    for label, value in fields.items():
        await page.get_by_label(label).fill(value)
    await page.get_by_label("Preferred size").select_option("small")
    async with page.expect_request("**/api/models/route") as sent:
        await page.get_by_role("button", name="Ask the router").click()
    query = {"providers": ["lcp"], "min_params_b": 0, "max_params_b": 1000, "prefer_size": "small", "limit": 1}
    assert (await sent.value).post_data_json == query
    for label, name in {"Results": "limit", "At least": "min_params_b", "At most": "max_params_b"}.items():
        was = await page.get_by_label(label).input_value()
        await page.get_by_label(label).fill("many")
        await page.get_by_role("button", name="Ask the router").click()
        await expect(page.locator(f"[name={name}][aria-invalid=true]")).to_be_visible()
        await page.get_by_label(label).fill(was)
    await page.get_by_label("Capabilities").fill("teleportation")
    await page.get_by_role("button", name="Ask the router").click()
    await expect(page.get_by_text("No model fits")).to_be_visible()
    await expect(page.get_by_text("capabilities (teleportation)")).to_be_visible()


# -- what was bought ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spender(seller):
    """A customer who bought with two keys, some of it not delivered."""
    customer = make_customer(seller, "spender")
    second = Api(seller.base_url).post(f"/api/admin/accounts/{customer.id}/keys", {"name": FORMULA})
    for number in range(3):
        assert customer.api.buy(text=f"request {number}").status_code == 200
    assert customer.api.buy("fault/wrong-hash").status_code == 502
    assert Api(seller.base_url, second["key"]).buy(FORMULA, "hostile").status_code == 200
    assert Api(seller.base_url, second["key"]).buy(HOSTILE, "hostile").status_code == 200
    # Deliveries are recorded a moment after the answers.
    eventually(lambda: customer.api.get("/api/wallet")["held_msat"] == 0)
    return customer


async def test_usage_equals_the_statement_and_what_the_command_line_says(seller, people, spender):
    lines = spender.api.get("/api/wallet/transactions?limit=500")["data"]
    bought = -sum(line["amount_msat"] for line in lines if line["cause"] in {"purchase", "refund"})
    async with people.visit(spender.sign_in_key) as visiting:
        await visiting.open("usage")
        figure = visiting.figure("Spend").locator(".amount").first
        await expect(figure).to_be_visible()
        async with asyncio.timeout(60):
            # A purchase that has just ended is counted a moment later.
            while sats(await figure.text_content()) != bought:
                await asyncio.sleep(0.05)
        for by in ("Models", "Keys"):
            await visiting.page.get_by_role("button", name=by, exact=True).click()
            # The rows of another grouping go before the new ones come.
            cells = rows_of(visiting.page, "Sums").locator("td:last-child")
            async with asyncio.timeout(60):
                while sum(map(sats, await cells.all_text_contents())) != bought:
                    await asyncio.sleep(0.05)


async def test_filters_are_part_of_the_address_and_survive_reload_and_back(people, spender):
    async with people.visit(spender.sign_in_key) as visiting:
        page = visiting.page
        await visiting.open("activity")
        await expect(rows_of(page, "Purchases")).to_have_count(6)
        await page.get_by_label("State").select_option("undelivered")
        await expect(rows_of(page, "Purchases")).to_have_count(1)
        await page.get_by_label("State").select_option("")
        await page.get_by_label("Model").select_option("echo-1")
        await expect(rows_of(page, "Purchases")).to_have_count(3)
        assert page.url.endswith("#/activity?model=echo-1")
        await page.reload()
        await expect(rows_of(page, "Purchases")).to_have_count(3)
        await page.go_back()
        await expect(rows_of(page, "Purchases")).to_have_count(6)
        await page.go_back()
        await expect(rows_of(page, "Purchases")).to_have_count(1)
        await page.get_by_label("From").fill("2001-01-01")
        await page.get_by_label("To").fill("2001-01-02")
        await expect(page.get_by_text("No purchase matches these filters")).to_be_visible()
        await page.get_by_role("button", name="Clear the filters").first.click()
        await expect(rows_of(page, "Purchases")).to_have_count(6)


async def test_a_downloaded_receipt_is_verified(people, spender, tmp_path):
    async with people.visit(spender.sign_in_key) as visiting:
        await visiting.open("activity?model=echo-1")
        await rows_of(visiting.page, "Purchases").first.get_by_role("link").first.click()
        async with visiting.page.expect_download() as downloading:
            await visiting.page.get_by_role("link", name="Download").click()
        file = tmp_path / "receipt.json"
        await (await downloading.value).save_as(file)
    done = await asyncio.to_thread(run_command, "receipt", "verify", str(file))
    assert done.returncode == 0, done
    assert json.loads(file.read_text())["fee_msat"] is None


async def test_csv_files_run_nothing_in_a_spreadsheet(people, spender):
    async with people.visit(spender.sign_in_key) as visiting:
        for path, link in (("activity", "CSV"), ("usage?by=model", "CSV"), ("usage?by=key", "CSV")):
            await visiting.open(path)
            href = await visiting.page.get_by_role("link", name=link, exact=True).first.get_attribute("href")
            text = await (await visiting.context.request.get(f"{visiting.url}{href}")).text()
            cells = [cell.strip('"') for line in text.splitlines() for cell in line.split(",")]
            assert not [cell for cell in cells if cell[:1] in {"=", "+", "@"}], text
            assert "HYPERLINK" in text, path
        await visiting.open("wallet")
        async with visiting.page.expect_download() as downloading:
            await visiting.page.get_by_role("link", name="CSV", exact=True).click()
        lines = (await (await downloading.value).path()).read_text().splitlines()
        assert lines[0] == "id,at,amount_msat,balance_msat,cause,cause_id"
        # An adjustment, five purchases, and a refund beside its purchase.
        assert len(lines) >= 1 + 7


async def test_hostile_names_are_shown_as_text_everywhere(seller, people, spender):
    """Names of models, keys and accounts are chosen by others. A dialog, a request elsewhere or a script fails the visit."""
    Api(seller.base_url).send("PATCH", f"/api/admin/accounts/{spender.id}", {"name": HOSTILE})
    Api(seller.base_url).post(f"/api/admin/accounts/{spender.id}/keys", {"name": HOSTILE})
    async with people.visit(spender.sign_in_key) as visiting:
        visiting.page.on("dialog", lambda dialog: visiting.problems.append(dialog.message))
        for path in ("overview", "wallet", "router", "keys", "activity", "usage", "account"):
            await visiting.open(path)
            await expect(visiting.page.get_by_text("Loading…")).to_have_count(0)
            assert await visiting.page.locator("img[src=x], script:not([src])").count() == 0, path
        await visiting.open("router")
        row = rows_of(visiting.page, "Models").filter(has_text="onerror")
        await expect(row).to_contain_text(HOSTILE)
        await row.get_by_role("button").click()
        await expect(visiting.page.get_by_role("tabpanel", name="curl")).to_contain_text("onerror")
        await visiting.open("keys")
        await expect(rows_of(visiting.page, "Keys").filter(has_text=HOSTILE)).to_have_count(1)


async def test_a_customer_sees_nothing_of_another(people, bob, spender, alice):
    """Every route of a customer, with the ids of another one."""
    job = spender.api.get("/api/purchases?model=echo-1")["data"][0]["job_id"]
    topup = alice.api.post("/api/wallet/topups", {"amount_sat": 5})["id"]
    async with people.visit(bob.sign_in_key) as visiting:
        for path in (
            f"/api/purchases/{job}",
            f"/api/purchases/{job}?format=receipt",
            f"/v1/receipts/{job}",
            f"/api/account/keys/{spender.key_id}",
            f"/api/wallet/topups/{topup}",
            f"/api/wallet/topups/{topup}/qr.svg",
        ):
            assert (await visiting.context.request.get(visiting.url + path)).status in {401, 403, 404}, path
        for path in (
            "/api/purchases",
            f"/api/purchases?key={spender.key_id}",
            "/api/purchases?format=csv",
            "/api/usage",
            "/api/usage?by=key",
            "/api/usage?format=csv",
            "/api/budgets",
            "/api/account",
            "/api/account/keys",
            "/api/wallet",
            "/api/wallet/topups",
            "/api/wallet/transactions",
        ):
            answer = await visiting.context.request.get(visiting.url + path)
            assert answer.status == 200, (path, answer.status)
            text = await answer.text()
            for secret in (spender.id, spender.key_id, alice.id, job, topup):
                assert secret not in text.replace(path, ""), path
        for path in (
            "/api/admin/accounts",
            "/api/admin/overview",
            "/api/providers",
            "/api/admin/log",
            "/api/admin/audit",
            "/metrics",
        ):
            assert (await visiting.context.request.get(visiting.url + path)).status in {401, 403, 404}, path
        await visiting.open(f"activity/{job}")
        await expect(visiting.page.get_by_role("alert")).to_be_visible()
        await visiting.open("customers")
        await expect(visiting.heading("There is no such page here")).to_be_visible()
