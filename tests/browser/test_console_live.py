"""Many tabs of one browser: one stream of events, all of them live, also when the tab that reads it is closed."""

import pytest
from playwright.async_api import expect

from tests.support.console import make_customer, rows_of

pytestmark = pytest.mark.xdist_group("browser")


async def test_eight_tabs_are_live_over_one_stream(seller, people):
    """A browser has six connections to a host: with a stream a tab the seventh would hang."""
    customer = make_customer(seller, "tabs")
    async with people.visit(customer.sign_in_key) as visiting:
        asked = []
        visiting.context.on(
            "request", lambda request: asked.append(request.url) if "/api/events" in request.url else None
        )
        tabs = [visiting.page, *[await visiting.tab() for _ in range(7)]]
        for tab in tabs:
            await tab.goto(f"{visiting.url}/console/#/activity")
            await expect(tab.get_by_text("Nothing bought yet")).to_be_visible()
            await expect(tab.get_by_text("Live", exact=True)).to_be_visible()
        assert len(asked) == 1
        assert customer.api.buy().status_code == 200
        for tab in tabs:
            await tab.bring_to_front()
            await expect(rows_of(tab, "Purchases")).to_have_count(1)
        # The first tab leads. Another takes over.
        await tabs[0].close()
        await tabs[1].bring_to_front()
        await expect(tabs[1].get_by_text("Live", exact=True)).to_be_visible()
        assert customer.api.buy(text="again").status_code == 200
        for tab in tabs[1:]:
            await tab.bring_to_front()
            await expect(rows_of(tab, "Purchases")).to_have_count(2)
        assert len(asked) == 2


async def test_signing_out_in_one_tab_ends_the_others(seller, visits):
    customer = make_customer(seller, "two tabs")
    visiting = await visits(seller)
    await visiting.sign_in(customer.sign_in_key)
    other = await visiting.tab()
    await other.goto(f"{visiting.url}/console/#/wallet")
    await expect(other.get_by_role("heading", name="Wallet", level=1)).to_be_visible()
    await visiting.page.bring_to_front()
    await visiting.page.get_by_role("button", name="Sign out").click()
    await expect(visiting.heading("Sign in")).to_be_visible()
    await other.bring_to_front()
    await expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
    # Nothing of the account is left in the page.
    assert "two tabs" not in await other.content()
