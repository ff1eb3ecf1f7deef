"""Keys of accounts as tokens of nodes: which may dial in, on what terms, and when a connection ends."""

from dataclasses import replace

import pytest

from lcp_gateway.accounts.callers import Caller, KeyRules, Scope
from lcp_gateway.upstreams.dialin.grants import (
    MOST_HELLOS,
    AccountNodes,
    AccountRules,
    AccountTokens,
    NotAdmitted,
    OwnerTerms,
    account_node_id,
)

NODE = Caller("key_1", "acct_1", KeyRules(scopes=frozenset({Scope.NODE})))
BUYER = Caller("key_2", "acct_1", KeyRules(scopes=frozenset({Scope.INFERENCE, Scope.WALLET})))
OPERATOR = Caller("key_3", None, KeyRules(scopes=frozenset({Scope.NODE})))


class Stale(Exception):
    pass


class Owners:
    """The accounts' nodes; ``now`` is what the store says of every one."""

    def __init__(self):
        self.now = OwnerTerms(commission_ppm=100_000)
        self.recorded = []
        self.error = None

    async def terms(self, account_id, key_id, name, node_id):
        if self.error:
            raise self.error
        self.recorded.append((account_id, key_id, name, node_id))
        return self.now

    def current(self, node_id):
        return self.now


class Selling:
    def __init__(self, **rules):
        self.keys = {"node": NODE, "buyer": BUYER, "operator": OPERATOR}
        self.owners = Owners()
        self.error = None
        accounts = AccountNodes(self.find, self.owners, stale=(Stale,))
        self.clock_s = 0.0
        self.tokens = AccountTokens(accounts, AccountRules(is_on=True, **rules), clock=lambda: self.clock_s)

    def find(self, token):
        if self.error:
            raise self.error
        return self.keys.get(token)


async def test_a_node_is_named_for_its_account_and_has_the_terms_of_the_store():
    selling = Selling(timeout_s=9.0)
    grant = selling.tokens.find("node")
    terms = await grant.terms("gpu")
    assert terms.node_id == account_node_id("acct_1", "gpu") != account_node_id("acct_2", "gpu")
    assert (terms.account_id, terms.commission_ppm, terms.owned_by, terms.timeout_s) == ("acct_1", 100_000, "gpu", 9.0)
    assert terms.price is None
    assert selling.owners.recorded == [("acct_1", "key_1", "gpu", terms.node_id)]
    assert grant.holds() and not grant.is_revoked()


@pytest.mark.parametrize("token", ["buyer", "operator", "unknown", ""])
def test_other_keys_are_no_tokens_of_nodes(token):
    assert Selling().tokens.find(token) is None


def test_nothing_dials_in_where_it_is_off_or_where_no_accounts_are_kept():
    selling = Selling()
    selling.tokens.use(AccountRules(is_on=False))
    assert selling.tokens.find("node") is None
    assert AccountTokens(None, AccountRules(is_on=True)).find("node") is None


async def test_a_connection_ends_when_its_key_its_terms_or_its_node_change():
    for change in (
        lambda selling: selling.keys.pop("node"),
        lambda selling: selling.keys.update(node=replace(NODE, account_id="acct_2")),
        lambda selling: setattr(selling.owners, "now", OwnerTerms(commission_ppm=1)),
        lambda selling: setattr(selling.owners, "now", replace(selling.owners.now, frozen=True)),
        lambda selling: selling.tokens.use(AccountRules(is_on=True, models=frozenset({"m"}))),
        lambda selling: selling.tokens.use(AccountRules(is_on=False)),
    ):
        selling = Selling()
        grant = selling.tokens.find("node")
        await grant.terms("gpu")
        change(selling)
        assert grant.is_revoked() and not grant.holds()


async def test_while_the_keys_are_not_known_nothing_new_is_sent_and_the_connection_stays():
    selling = Selling()
    grant = selling.tokens.find("node")
    await grant.terms("gpu")
    selling.error = Stale()
    assert not grant.holds() and not grant.is_revoked()


async def test_a_frozen_node_is_sent_away_for_good_and_one_without_a_database_is_not():
    selling = Selling()
    selling.owners.now = OwnerTerms(frozen=True)
    with pytest.raises(NotAdmitted) as caught:
        await selling.tokens.find("node").terms("gpu")
    assert (caught.value.reason, caught.value.is_final) == ("frozen", True)
    selling.owners.error = Stale()
    with pytest.raises(NotAdmitted) as caught:
        await selling.tokens.find("node").terms("gpu")
    assert (caught.value.reason, caught.value.is_final) == ("unavailable", False)


async def test_a_node_may_offer_the_models_of_the_settings():
    selling = Selling(models=frozenset({"a"}))
    assert (await selling.tokens.find("node").terms("gpu")).models == frozenset({"a"})


async def test_an_account_that_says_hello_too_often_is_not_written_down_and_no_other_account_waits_for_it():
    selling = Selling()
    selling.keys["other"] = replace(NODE, key_id="key_9", account_id="acct_9")
    for number in range(MOST_HELLOS):
        # A new connection and another name each time count all the same.
        await selling.tokens.find("node").terms(f"gpu-{number % 7}")
    with pytest.raises(NotAdmitted) as caught:
        await selling.tokens.find("node").terms("gpu")
    assert (caught.value.reason, caught.value.is_final) == ("too_many_hellos", False)
    assert len(selling.owners.recorded) == MOST_HELLOS
    await selling.tokens.find("other").terms("gpu")
    selling.clock_s = 60.0 / MOST_HELLOS
    await selling.tokens.find("node").terms("gpu")
    assert len(selling.owners.recorded) == MOST_HELLOS + 2
