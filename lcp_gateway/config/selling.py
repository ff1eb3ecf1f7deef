"""The settings of a gateway that sells access: who may use it, what it charges, how customers pay in, how much they may ask."""

from typing import Annotated, Literal

from pydantic_settings import BaseSettings

from lcp_gateway.config import forms, money_forms
from lcp_gateway.config.declare import Group, setting
from lcp_gateway.config.forms import Form, parse_text, read_by

Auth = Annotated[
    Literal["", "none", "keys", "accounts"],
    Form("none, keys or accounts", "MODE"),
    read_by(lambda value: parse_text(value).lower()),
]


class SellingSettings(BaseSettings):
    """One part of ``Settings``, which see."""

    auth: Auth = setting(
        "",
        "Who is served: everyone (`none`), who has one of `api_keys` (`keys`), or who has a key of an account, and is "
        "charged for it (`accounts`). When empty: `keys` where `api_keys` are set, else `none`.",
        Group.ACCOUNTS,
    )
    allow_open: forms.Switch = setting(
        False,
        "Serve everyone on an address that other machines can reach. Without it the gateway does not start there "
        "unless it asks for keys.",
        Group.ACCOUNTS,
    )
    admin_key: forms.BearerKey = setting(
        "",
        "The key to `/api/admin/…`. Off when empty.",
        Group.ACCOUNTS,
        secret=True,
    )
    keys_stale_s: forms.Duration = setting(
        5.0,
        "How long the keys of accounts are accepted after they were last read from the database, which happens every "
        "second. Past it they are answered 503 and buy nothing: one may have been revoked.",
        Group.ACCOUNTS,
        gt=2,
    )
    api_concurrent: forms.Count = setting(
        32,
        "Requests at one time that ask the database and buy nothing (`/api/wallet`, `/api/admin`, receipts, L402 invoices "
        "and tokens), of all customers; strangers and the operator have as many each. Some more wait a moment, the rest is "
        "answered 429.",
        Group.RATES,
        gt=0,
    )
    api_concurrent_per_caller: forms.Count = setting(
        8,
        "Such requests of one account, one key of the operator, or one client address without a key.",
        Group.RATES,
        gt=0,
    )
    markup_percent: forms.Number = setting(
        0.0,
        "What customers are charged on top of a price, as a share of it; rounded up. Routing fees are yours.",
        Group.ACCOUNTS,
    )
    markup_msat: forms.Count = setting(
        0,
        "What they are charged besides for each request, also for one that is free.",
        Group.ACCOUNTS,
    )
    refund_undelivered: forms.Switch = setting(
        True,
        "Give customers back what they were charged for an answer that was paid and did not come. The loss is yours.",
        Group.ACCOUNTS,
    )
    refund_account_day_msat: forms.Count = setting(
        10_000_000,
        "What is given back so to one account in a day (UTC) at most; what is over it is withheld until you decide "
        "(`purchases refund`). 0 sets no limit.",
        Group.ACCOUNTS,
    )
    refund_day_msat: forms.Count = setting(
        50_000_000,
        "What is given back so to all accounts together in a day at most. 0 sets no limit.",
        Group.ACCOUNTS,
    )
    topup_min_msat: forms.Count = setting(
        1_000, "The least that a customer can pay in at once.", Group.ACCOUNTS, gt=0
    )
    topup_max_msat: forms.Count = setting(1_000_000_000, "The most.", Group.ACCOUNTS, gt=0)
    topup_expiry_s: forms.Duration = setting(
        3_600.0, "How long an invoice for it can be paid.", Group.ACCOUNTS, gt=0
    )
    topups_open_max: forms.Count = setting(
        20, "How many invoices of one account may be open.", Group.ACCOUNTS, gt=0
    )
    l402: forms.Switch = setting(
        False,
        "Let whoever has no key pay for one at the door (L402): the invoice of a 402 answer buys a token with a balance.",
        Group.ACCOUNTS,
    )
    l402_msat: forms.Count = setting(
        100_000,
        "The balance of such a token; it can be filled up like any other.",
        Group.ACCOUNTS,
        gt=0,
    )
    l402_expiry_s: forms.Duration = setting(
        30 * 86_400.0, "How long such a token is good.", Group.ACCOUNTS, gt=0
    )
    l402_invoices_per_minute: forms.Count = setting(
        10,
        "How many invoices clients without a key may ask for from one address (of IPv6: one /64).",
        Group.ACCOUNTS,
        gt=0,
    )
    l402_secret: forms.BearerKey = setting(
        "",
        "The secret that tokens are made with, the same for all replicas. When empty: made once, and kept in a file "
        "beside the journal.",
        Group.ACCOUNTS,
        secret=True,
    )
    lnd_invoice_macaroon_file: forms.OptionalFile = setting(
        None,
        "A macaroon that may make invoices: `lncli bakemacaroon info:read invoices:read invoices:write`. When empty "
        "`lnd_macaroon_file` is used.",
        Group.ACCOUNTS,
    )

    max_requests_per_minute: forms.Count = setting(
        0,
        "Requests a minute of everybody together; past it the answer is 429. 0 sets no limit.",
        Group.RATES,
    )
    max_tokens_per_minute: forms.Count = setting(
        0,
        "Tokens a minute of everybody together, as reckoned from the requests; 0 sets no limit.",
        Group.RATES,
    )
    account_requests_per_minute: forms.Count = setting(
        0, "The same for each account, whatever its keys say.", Group.RATES
    )
    account_tokens_per_minute: forms.Count = setting(0, "The same for its tokens.", Group.RATES)
    key_requests_per_minute: forms.Count = setting(
        0, "The same for each key that has no limit of its own.", Group.RATES
    )
    key_tokens_per_minute: forms.Count = setting(0, "The same for its tokens.", Group.RATES)
    key_concurrent_jobs: forms.Count = setting(
        0, "Jobs at one time of each key that has no limit of its own; 0 sets none.", Group.RATES
    )
    redis_url: money_forms.OptionalRedis = setting(
        "",
        "`redis://` URL of the memory that several gateways share, for rate limits and repeated requests (needs "
        "lcp-gateway[redis]). When empty each gateway counts for itself.",
        Group.RATES,
        may_hold_password=True,
    )
