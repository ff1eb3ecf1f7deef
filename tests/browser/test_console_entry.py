"""Into the console and out of it: registration, sign-in, the cookie, sign-out, a key that is revoked elsewhere."""

import asyncio
import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from playwright.async_api import expect

from tests.browser.console_fixtures import SELLING_ENV
from tests.support.certificates import certificate
from tests.support.console import ADMIN_KEY, Api, make_customer, rows_of, visit
from tests.support.gateway import RunningGateway, gateway, run_command

pytestmark = pytest.mark.xdist_group("browser")

WIDER = {"LCP_GATEWAY_HTTP_ADDR": "0.0.0.0:0", "LCP_GATEWAY_ALLOW_OPEN": "true"}
EVERYTHING = """async () => JSON.stringify([
  document.documentElement.outerHTML, location.href, Object.entries(localStorage), Object.entries(sessionStorage),
  (await indexedDB.databases()).length, document.cookie, history.state, (await caches.keys()).length,
  [...document.querySelectorAll('input')].map((input) => input.value)])"""


@pytest.fixture(scope="module")
def wider() -> Iterator[Api]:
    """A gateway without keys that other machines can reach, as its operator allowed."""
    with gateway(env=WIDER) as running:
        yield Api(running.base_url, None)


async def register(visiting, name: str, invite: str | None = None) -> str:
    """Register and return the sign-in key, which is still shown."""
    page = visiting.page
    await page.get_by_role("button", name="Register").click()
    await page.get_by_label("Name").fill(name)
    if invite is not None:
        await page.get_by_label("Invite").fill(invite)
    await page.get_by_role("button", name="Register").first.click()
    shown = page.get_by_role("textbox", name="Sign-in key", exact=True)
    await expect(shown).to_be_visible()
    return (await shown.text_content()).strip()


async def test_the_sign_in_key_is_shown_once_after_registration(seller, visits):
    """Gone after "go on" and after a reload: from the page, from all storage, and from the address."""
    visiting = await visits(seller)
    page = visiting.page
    await page.goto(f"{visiting.url}/console/")
    key = await register(visiting, "newcomer")
    assert re.fullmatch("lcpg_[A-Za-z0-9_-]{43}", key)
    assert await page.locator("input[autocomplete=username]").input_value() == "newcomer"
    await page.get_by_role("button", name="I have kept it").click()
    await expect(visiting.heading("Overview")).to_be_visible()
    await expect(page.get_by_text("newcomer", exact=True)).to_be_visible()
    assert key not in await page.evaluate(EVERYTHING)
    await page.reload()
    await expect(visiting.heading("Overview")).to_be_visible()
    assert key not in await page.evaluate(EVERYTHING)
    await visiting.open("keys")
    await expect(rows_of(page, "Keys")).not_to_have_count(0)
    assert key not in await page.evaluate(EVERYTHING)
    # The key is the way back in.
    again = await visits(seller)
    await again.sign_in(key)


async def test_a_gateway_that_is_closed_for_registration_offers_none(visits):
    with gateway(env={**SELLING_ENV, "LCP_GATEWAY_REGISTRATION": "closed"}) as running:
        visiting = await visits(running)
        page = visiting.page
        await page.goto(f"{running.base_url}/console/")
        await expect(page.get_by_text("not open for registration")).to_be_visible()
        await expect(page.get_by_role("button", name="Register")).to_have_count(0)
        answer = Api(running.base_url, None).send("POST", "/api/register", {"name": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "registration_closed")


async def test_an_invite_lets_one_person_register(visits):
    """The operator makes it in the console; a wrong code and a used one are refused at their input."""
    with gateway(env={**SELLING_ENV, "LCP_GATEWAY_REGISTRATION": "invite"}) as running:
        operator = await visits(running)
        await operator.sign_in(ADMIN_KEY)
        await operator.go("customers")
        await operator.page.get_by_role("button", name="+ New invite").click()
        code = (await operator.page.get_by_role("textbox", name="Invite code").text_content()).strip()
        await operator.page.get_by_role("button", name="Done").click()
        await expect(rows_of(operator.page, "Invites")).to_have_count(1)
        assert code not in await operator.page.evaluate(EVERYTHING)

        visiting = await visits(running)
        page = visiting.page
        await page.goto(f"{running.base_url}/console/")
        await page.get_by_role("button", name="Register").click()
        await page.get_by_label("Name").fill("guest")
        await page.get_by_label("Invite").fill("lcpi_wrong")
        await page.get_by_role("button", name="Register").first.click()
        await expect(page.locator(".field-error")).to_be_visible()
        await page.get_by_label("Invite").fill(code)
        await page.get_by_role("button", name="Register").first.click()
        await page.get_by_role("button", name="I have kept it").click()
        await expect(visiting.heading("Overview")).to_be_visible()
        await operator.page.reload()
        await expect(rows_of(operator.page, "Invites")).to_contain_text("used")

        another = await visits(running)
        await another.page.goto(f"{running.base_url}/console/")
        await another.page.get_by_role("button", name="Register").click()
        await another.page.get_by_label("Name").fill("second")
        await another.page.get_by_label("Invite").fill(code)
        await another.page.get_by_role("button", name="Register").first.click()
        await expect(another.page.locator(".field-error")).to_be_visible()


def wrong_key(running: RunningGateway) -> int:
    """Return the status of an attempt to sign in with a wrong key, over HTTP."""
    headers = {"Origin": running.base_url}
    return Api(running.base_url, None).send("POST", "/api/session", {"key": "nonsense"}, **headers).status_code


async def test_every_wrong_key_is_refused_in_the_same_words_and_too_many_are_held_back(visits):
    with gateway(env=SELLING_ENV) as running:
        customer = make_customer(running)
        revoked = Api(running.base_url).post(
            f"/api/admin/accounts/{customer.id}/keys", {"name": "old", "scopes": ["account"]}
        )
        assert Api(running.base_url).send("DELETE", f"/api/admin/keys/{revoked['id']}").status_code == 200
        visiting = await visits(running)
        page = visiting.page
        await page.goto(f"{running.base_url}/console/")
        words = set()
        for key in ("nonsense", "lcpg_" + "x" * 43, revoked["key"], ADMIN_KEY + "x", "🔑" * 10):
            await page.get_by_label("Key").fill(key)
            await page.get_by_role("button", name="Sign in").click()
            error = page.locator(".field-error")
            await expect(error).to_be_visible()
            await expect(page.get_by_role("button", name="Sign in")).to_be_enabled()
            words.add(await error.text_content())
        assert len(words) == 1
        status = 401
        # One attempt more is allowed every six seconds.
        while status == 401:
            while wrong_key(running) != 429:
                pass
            await page.get_by_label("Key").fill("nonsense")
            async with page.expect_response("**/api/session") as answered:
                await page.get_by_role("button", name="Sign in").click()
            status = (await answered.value).status
        assert status == 429
        await expect(page.locator(".field-error")).not_to_have_text(words.pop())


async def test_the_cookie_is_for_this_host_alone_and_no_script_reads_it(seller, people, alice):
    async with people.visit(alice.sign_in_key) as visiting:
        await visiting.open()
        (cookie,) = await visiting.context.cookies()
        assert cookie["name"] == f"lcpg_{seller.port}"
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"], cookie["secure"]) == (
            True,
            "Strict",
            "/api",
            False,
        )
        assert cookie["domain"] == "127.0.0.1" and cookie["value"] not in await visiting.page.evaluate(EVERYTHING)


async def test_the_cookie_over_https_is_secure_and_bound_to_the_host(visits, tmp_path):
    pair = certificate(tmp_path)
    settings = {
        **SELLING_ENV,
        "LCP_GATEWAY_HTTP_TLS_CERT": str(pair.certificate),
        "LCP_GATEWAY_HTTP_TLS_KEY": str(pair.key),
    }
    with gateway(env=settings) as running:
        url = f"https://127.0.0.1:{running.port}"
        visiting = await visits(running, url=url, ignore_https_errors=True)
        await visiting.sign_in(ADMIN_KEY)
        (cookie,) = await visiting.context.cookies()
        assert cookie["name"] == "__Host-lcpg"
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"], cookie["secure"]) == (True, "Strict", "/", True)


async def test_signing_out_ends_the_session_and_not_that_of_another_browser(seller, visits):
    customer = make_customer(seller, "leaver")
    first, second = await visits(seller), await visits(seller)
    await first.sign_in(customer.sign_in_key)
    await second.sign_in(customer.sign_in_key)
    kept = await first.context.cookies()
    await first.page.get_by_role("button", name="Sign out").click()
    await expect(first.heading("Sign in")).to_be_visible()
    assert await first.context.cookies() == []
    # The old cookie opens nothing any more.
    await first.context.add_cookies(kept)
    await first.page.reload()
    await expect(first.heading("Sign in")).to_be_visible()
    await second.page.reload()
    await expect(second.heading("Overview")).to_be_visible()


async def test_a_key_that_is_revoked_elsewhere_ends_its_sessions_while_the_page_is_open(seller, visits):
    customer = make_customer(seller, "revoked")
    visiting = await visits(seller)
    await visiting.sign_in(customer.sign_in_key)
    keys = Api(seller.base_url).get(f"/api/admin/accounts/{customer.id}/keys")["data"]
    (sign_in,) = [key["id"] for key in keys if key["name"] == "sign-in"]
    Api(seller.base_url).send("DELETE", f"/api/admin/keys/{sign_in}")
    await visiting.go("wallet")
    await expect(visiting.heading("Sign in")).to_be_visible()


async def test_a_laptop_needs_no_sign_in_and_shows_a_snippet_that_works(laptop, visits):
    visiting = await visits(laptop)
    await visiting.open()
    await expect(visiting.page.get_by_text("Nothing bought yet")).to_be_visible()
    snippet = await visiting.page.get_by_role("tabpanel", name="curl").text_content()
    done = await asyncio.create_subprocess_exec(
        *("sh", "-c", snippet.replace("curl ", "curl -sS ", 1)), stdout=asyncio.subprocess.PIPE
    )
    answer, _ = await asyncio.wait_for(done.communicate(), 60)
    assert b'"chat.completion"' in answer
    # The purchase is seen without a reload.
    await expect(rows_of(visiting.page, "Purchases")).to_have_count(1)


async def test_a_console_that_is_off_is_not_there():
    with gateway(env={"LCP_GATEWAY_CONSOLE": "off"}) as running:
        api = Api(running.base_url, None)
        for path in ("/console", "/console/", "/api/console", "/api/session"):
            assert api.send("GET", path).status_code == 404, path


@pytest.mark.parametrize("path", ["purchases", "usage", "budgets", "events", "providers", "admin/overview", "session"])
async def test_a_wider_gateway_without_keys_shows_no_records(wider, path):
    """Any client on its network is the same caller there: once each saw what all others had bought."""
    wider.buy()
    answer = wider.send("GET", f"/api/{path}")
    assert answer.status_code in {403, 404}, answer.text


async def test_a_wider_gateway_without_keys_has_no_console(browser, wider):
    async with visit(browser, SimpleNamespace(base_url=wider.base_url)) as visiting:
        assert (await visiting.page.goto(f"{wider.base_url}/")).status == 200
        assert visiting.page.url == f"{wider.base_url}/"
        assert (await visiting.page.goto(f"{wider.base_url}/console/")).status == 404


async def test_a_wider_gateway_without_keys_says_why_it_serves_no_console():
    ended = await asyncio.to_thread(run_command, "serve", "--embedded", env={**WIDER, "LCP_GATEWAY_CONSOLE": "on"})
    assert ended.returncode == 2
    assert "without keys any client there would see your purchases" in ended.stderr
