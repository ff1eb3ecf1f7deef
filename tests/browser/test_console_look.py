"""Every page for every user: axe in light and dark, the keyboard alone, a phone, 200 % zoom, reduced motion."""

import pytest
from playwright.async_api import expect

from tests.support.console import ADMIN_KEY, make_customer, rows_of
from tests.support.tools import require_js_package

pytestmark = pytest.mark.xdist_group("browser")

CUSTOMER = ("overview", "wallet", "router", "keys", "keys/{key}", "activity", "activity/{job}", "usage", "account")
OPERATOR = (
    "overview",
    "providers",
    "nodes",
    "keys",
    "activity",
    "activity/{job}",
    "usage",
    "customers",
    "customers/{account}",
    "money",
    "withdrawals",
    "log",
    "system",
)
# Once what fades in is there: half of the way its contrast is too low.
VIOLATIONS = """async () => {
  await Promise.allSettled(document.getAnimations().map(({finished}) => finished));
  return (await axe.run(document, {resultTypes: ['violations']})).violations
  .map(({id, help, nodes}) => `${id}: ${help}: ${nodes.slice(0, 3).map((node) => node.target).join(' | ')}`);
}"""
TOO_WIDE = "() => document.documentElement.scrollWidth > innerWidth"


@pytest.fixture(scope="module")
def buyer(seller):
    """A customer with something on every page."""
    customer = make_customer(seller, "buyer", budget_day_msat=30_000)
    for number in range(3):
        assert customer.api.buy(text=f"request {number}").status_code == 200
    customer.api.buy("fault/wrong-hash")
    customer.api.post("/api/wallet/topups", {"amount_sat": 12})
    return customer


def addresses(pages, customer) -> list[str]:
    job = customer.api.get("/api/purchases")["data"][0]["job_id"]
    return [path.format(key=customer.key_id, job=job, account=customer.id) for path in pages]


async def ready(visiting, path: str) -> None:
    await visiting.go(path)
    await expect(visiting.page.locator("main h1")).to_be_visible()
    await expect(visiting.page.get_by_text("Loading…")).to_have_count(0)


async def violations(page) -> list[str]:
    """Return what axe finds on a page that shows all it has."""
    await expect(page.get_by_text("Loading…")).to_have_count(0)
    return await page.evaluate(VIOLATIONS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("role", ["customer", "operator"])
async def test_axe_finds_nothing_on_any_page(people, buyer, role, scheme):
    key, pages = (buyer.sign_in_key, CUSTOMER) if role == "customer" else (ADMIN_KEY, OPERATOR)
    async with people.visit(key, color_scheme=scheme) as visiting:
        await visiting.open()
        await visiting.page.evaluate((require_js_package("axe-core") / "axe.min.js").read_text())
        for path in addresses(pages, buyer):
            await ready(visiting, path)
            assert await violations(visiting.page) == [], path


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_before_the_sign_in_and_in_dialogs(seller, people, buyer, visits, scheme):
    axe = (require_js_package("axe-core") / "axe.min.js").read_text()
    stranger = await visits(seller, color_scheme=scheme)
    await stranger.open()
    await stranger.page.evaluate(axe)
    assert await violations(stranger.page) == []
    await stranger.page.get_by_role("button", name="Register").click()
    assert await violations(stranger.page) == []
    async with people.visit(buyer.sign_in_key, color_scheme=scheme) as visiting:
        await visiting.open("router")
        await visiting.page.evaluate(axe)
        await visiting.page.get_by_role("button", name="+ New Key").click()
        await visiting.page.get_by_role("dialog").get_by_text("Limits", exact=True).click()
        assert await violations(visiting.page) == []
        await visiting.page.get_by_role("button", name="Make the key").click()
        await expect(visiting.page.get_by_role("button", name="Done")).to_be_visible()
        assert await violations(visiting.page) == []
        await visiting.page.get_by_role("button", name="Done").click()
        await visiting.open("wallet")
        await visiting.page.evaluate(axe)
        await rows_of(visiting.page, "Open invoices").first.get_by_role("link", name="Show").click()
        await expect(visiting.page.get_by_role("img", name="QR code of the invoice")).to_be_visible()
        assert await violations(visiting.page) == []


@pytest.mark.parametrize(("width", "height"), [(390, 844), (640, 400)], ids=["a phone", "1280 px at 200 %"])
@pytest.mark.parametrize("role", ["customer", "operator"])
async def test_no_page_is_wider_than_a_small_screen(people, buyer, role, width, height):
    """Zoom of 200 % gives a page of 1280 px the width of 640. Tables scroll by themselves."""
    key, pages = (buyer.sign_in_key, CUSTOMER) if role == "customer" else (ADMIN_KEY, OPERATOR)
    async with people.visit(key, viewport={"width": width, "height": height}) as visiting:
        await visiting.open()
        for path in addresses(pages, buyer):
            await ready(visiting, path)
            assert not await visiting.page.evaluate(TOO_WIDE), path
        menu = visiting.page.get_by_role("button", name="Menu")
        await menu.click()
        await visiting.page.get_by_role("link", name="Usage", exact=True).click()
        await expect(visiting.heading("Usage")).to_be_visible()
        await expect(visiting.page.get_by_role("link", name="Usage", exact=True)).not_to_be_visible()


async def test_a_phone_shows_the_qr_code_in_its_first_screen(people, buyer):
    async with people.visit(buyer.sign_in_key, viewport={"width": 390, "height": 844}) as visiting:
        await visiting.open("wallet")
        await rows_of(visiting.page, "Open invoices").first.get_by_role("link", name="Show").click()
        image = visiting.page.get_by_role("img", name="QR code of the invoice")
        await expect(image).to_be_in_viewport(ratio=1)


async def test_the_keyboard_alone_makes_a_key(people, buyer):
    """From the skip link through a dialog and back to the button that opened it."""
    async with people.visit(buyer.sign_in_key) as visiting:
        page = visiting.page
        await visiting.open("router")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("button", name="Skip to the content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()
        await page.keyboard.press("Tab")
        button = page.get_by_role("button", name="+ New Key")
        await expect(button).to_be_focused()
        await page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        await expect(dialog.get_by_label("Name")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(dialog).to_have_count(0)
        await expect(button).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(dialog.get_by_label("Name")).to_be_focused()
        await page.keyboard.type("typed")
        await page.keyboard.press("Enter")
        await expect(dialog.get_by_role("button", name="Done")).to_be_visible()
        # The focus stays in the dialog however often it goes round.
        for _ in range(12):
            await page.keyboard.press("Tab")
        assert await page.evaluate(
            "() => document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
        await dialog.get_by_role("button", name="Done").focus()
        await page.keyboard.press("Enter")
        await expect(dialog).to_have_count(0)
        await expect(page.get_by_text("The key typed is ready.")).to_be_visible()


async def test_charts_are_read_with_the_keyboard(people, buyer):
    async with people.visit(buyer.sign_in_key) as visiting:
        await visiting.open("usage")
        chart = visiting.page.locator(".chart svg")
        await chart.focus()
        await visiting.page.keyboard.press("End")
        await expect(visiting.page.locator(".told")).to_contain_text("sat")


async def test_times_are_local_with_utc_on_hover_and_amounts_in_sat_with_msat_on_hover(people, buyer):
    async with people.visit(buyer.sign_in_key, timezone_id="Asia/Tokyo") as visiting:
        await visiting.open("activity")
        time = rows_of(visiting.page, "Purchases").first.locator("time")
        utc = await time.get_attribute("title")
        assert utc.endswith(" UTC")
        local = await time.text_content()
        assert int(local[-8:-6]) == (int(utc[11:13]) + 9) % 24
        amount = rows_of(visiting.page, "Purchases").first.locator(".amount").last
        msat = int((await amount.get_attribute("title")).removesuffix(" msat").replace(",", ""))
        assert await amount.text_content() == f"{msat // 1000:,}.{msat % 1000:03}"


async def test_nothing_moves_where_motion_is_not_wanted(people, buyer):
    async with people.visit(buyer.sign_in_key, reduced_motion="reduce") as visiting:
        await visiting.open("wallet")
        assert await visiting.page.evaluate("() => document.getAnimations().length") == 0
