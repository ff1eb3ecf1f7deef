"""The settings that concern money: what may be spent, whom to trust with it, and where it is written down."""

from pydantic_settings import BaseSettings

from lcp_gateway.config import forms, money_forms
from lcp_gateway.config.declare import Group, setting


class MoneySettings(BaseSettings):
    """One part of ``Settings``, which see."""

    journal_url: money_forms.Journal = setting(
        "",
        "Where every purchase is written down before it is paid: the path of a SQLite file, a `postgresql://` URL "
        "(needs lcp-gateway[postgres]), or `off`. When empty: `lcp-gateway/journal.db` in `$XDG_STATE_HOME` "
        "(`~/.local/state`), and `embedded.db` beside it with `embedded`, so that play money never mixes with real. "
        "A password in the URL is never shown, and is refused on the command line.",
        Group.MONEY,
        may_hold_password=True,
    )
    network: money_forms.Network = setting(
        "",
        "The network whose invoices are paid: mainnet, testnet, testnet4, signet, regtest or simnet, or the prefix of "
        "its invoices, as which it is kept. When empty, what lnd says; without lnd, any.",
        Group.MONEY,
    )
    max_price_msat: forms.Count = setting(
        0,
        "The most that one request may be priced at, in millisatoshi and without the routing fee; 0 sets no limit.",
        Group.MONEY,
        openai_serve="MAX_PRICE_MSAT",
    )
    max_total_msat: forms.Count = setting(
        0,
        "The most that one request may cost, price and reckoned routing fee together; 0 sets no limit.",
        Group.MONEY,
    )
    model_max_total_msat: money_forms.ModelLimits = setting(
        {},
        'The same by model: a table, or "model=msat;model=msat". The lowest limit holds.',
        Group.MONEY,
    )
    fee_ppm: money_forms.PartsPerMillion = setting(
        10_000,
        "The routing fee that is reckoned with: this share of the price (10000 is 1%) and `fee_base_msat`. It counts "
        "against limits and budgets until lnd tells the real fee. The daemon does not keep to it: it pays fees of up "
        "to 10,000 sat a payment, a limit of its own that nothing here can change.",
        Group.MONEY,
    )
    fee_base_msat: forms.Count = setting(
        1_000, "The fixed part of the routing fee that is reckoned with.", Group.MONEY
    )
    budget_hour_msat: forms.Count = setting(
        0,
        "What may be spent in a calendar hour (UTC), fees and unknown payments counted; 0 sets no limit.",
        Group.MONEY,
    )
    budget_day_msat: forms.Count = setting(0, "The same for a day (UTC).", Group.MONEY)
    budget_month_msat: forms.Count = setting(0, "The same for a month (UTC).", Group.MONEY)
    key_budget_hour_msat: forms.Count = setting(
        0,
        "What each of `api_keys` may spend in a calendar hour (UTC); 0 sets no limit.",
        Group.MONEY,
    )
    key_budget_day_msat: forms.Count = setting(0, "The same for a day (UTC).", Group.MONEY)
    key_budget_month_msat: forms.Count = setting(0, "The same for a month (UTC).", Group.MONEY)
    loop_brake_per_minute: forms.Count = setting(
        0,
        "How often the same body may come from the same key within a minute; past it the answer is 429. 0 is off.",
        Group.MONEY,
    )

    quote_attempts: forms.Count = setting(
        3, "How many peers are asked for a quote of one request at most.", Group.TRUST, gt=0
    )
    quote_fanout: forms.Count = setting(
        1,
        "How many of them are asked at the same time; the cheapest quote is taken.",
        Group.TRUST,
        gt=0,
    )
    exposure_base_msat: forms.Count = setting(
        20_000_000,
        "How much may be paid to a peer and not yet delivered, before it has delivered anything. 0 sets no limit.",
        Group.TRUST,
    )
    exposure_unproven_msat: forms.Count = setting(
        50_000_000,
        "How much of that may be out with all peers together that have not delivered `exposure_base_msat` yet, what was "
        "lost to them counted in; a day forgives as much. 0 sets no limit.",
        Group.TRUST,
    )
    exposure_share_ppm: money_forms.PartsPerMillion = setting(
        500_000,
        "How much more of that a peer earns: this share of what it has delivered (500000 is half).",
        Group.TRUST,
    )
    breaker_failures: forms.Count = setting(
        5, "Failures in a row after which a peer is left out for a while; 0 is off.", Group.TRUST
    )
    breaker_pause_s: forms.Duration = setting(
        30.0, "How long a peer is left out before it is tried again.", Group.TRUST, gt=0
    )

    retry_window_s: forms.Duration = setting(
        120.0,
        "How long after a request the same bytes from the same key, marked as a retry by the client's SDK, get its "
        "answer instead of buying again; 0 is off.",
        Group.ANSWERS,
    )
    join_grace_s: forms.Duration = setting(
        10.0,
        "How long a paid answer is awaited after its client has gone, so that a retry can join.",
        Group.ANSWERS,
    )
    answers_keep_s: forms.Duration = setting(
        600.0,
        "How long an answer is kept for requests with the same Idempotency-Key.",
        Group.ANSWERS,
    )
    answers_max_bytes: forms.Size = setting(
        64 * 2**20,
        "Memory for kept answers; past it the oldest are let go.",
        Group.ANSWERS,
    )
    lnd_grpc_addr: money_forms.OptionalGrpcTarget = setting(
        "",
        'lnd\'s gRPC address, "host:port", to learn what came of a payment (needs lcp-gateway[lnd]). It is only read '
        "from. Off when empty.",
        Group.LND,
    )
    lnd_tls_cert: forms.OptionalFile = setting(None, "lnd's `tls.cert`.", Group.LND)
    lnd_macaroon_file: forms.OptionalFile = setting(
        None,
        "A macaroon that may read: `lncli bakemacaroon info:read offchain:read`.",
        Group.LND,
    )
    reconcile_interval_s: forms.Duration = setting(
        30.0, "How often lnd is asked about payments whose end is unknown.", Group.LND, gt=0
    )
