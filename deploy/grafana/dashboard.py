"""The Grafana dashboard as code: run it to write dashboards/lcp-gateway.json again.

Written for the operator on call: the first row shows whether requests fail and whether money is involved, the rows
below show the cause.
"""

import sys
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

OUTPUT = Path(__file__).parent / "dashboards" / "lcp-gateway.json"
UID = "lcp-gateway"

SCOPE = 'job="$job", instance=~"$instance"'
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
SAT = "suffix: sat"
SAT_PER_MINUTE = "suffix: sat/min"

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
Steps = tuple[tuple[float | None, str], ...]
CALM: Steps = ((None, BLUE),)
ANY_IS_BAD: Steps = ((None, GREEN), (1, RED))
ZERO_IS_BAD: Steps = ((None, RED), (1, GREEN))
Query = tuple[str, str]
# Scrapes and probes are no work, and a readiness probe's 503 is no client's error.
WORK = 'endpoint!~"/(metrics|healthz|readyz)"'
# Requests for which a provider is chosen.
BOUGHT = 'endpoint=~"/v1/(chat/completions|responses|completions|embeddings)"'
ON_NODE, BY_AUTO = 'source="node"', 'model="auto"'
NODES, PEERS = 'peer=~"node:.*"', 'peer!~"node:.*"'
SETTLED, UNKNOWN = 'outcome="settled"', 'outcome="unknown"'


# -- queries ------------------------------------------------------------------------------------


def own(name: str, extra: str = "") -> str:
    """One of the gateway's own metrics, of the chosen instances."""
    return scoped(f"lcpgateway_{name}", extra)


def scoped(name: str, extra: str = "") -> str:
    return f"{name}{{{SCOPE}{', ' + extra if extra else ''}}}"


def rate(name: str, by: str = "", extra: str = "") -> str:
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({own(name, extra)}[$__rate_interval]))"


def total(name: str, by: str = "", extra: str = "") -> str:
    """How much a counter grew in the time shown."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (increase({own(name, extra)}[$__range]))"


def quantile(q: float, name: str, by: str = "", extra: str = "") -> str:
    grouping = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{name}_bucket', grouping, extra)})"


def quantiles(name: str, extra: str = "") -> list[Query]:
    return [(quantile(q, name, extra=extra), f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)]


def short_peer(expr: str) -> str:
    """Add the label ``short``: a node's name, or the first digits of a peer's id, which are enough to tell them apart."""
    return f'label_replace({expr}, "short", "$1", "peer", "(node:.+|.{{1,12}}).*")'


def shared(name: str, by: str = "", pick: str = "max") -> str:
    """A gauge read from the journal, which is the same for all gateways on one database: picked, never summed."""
    grouping = f" by ({by})" if by else ""
    return f"{pick}{grouping} ({own(name)})"


def left_share() -> str:
    return f"{shared('budget_left_msat', 'period', 'min')} / {shared('budget_limit_msat', 'period')}"


# -- panels -------------------------------------------------------------------------------------


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def _targets(queries: list[Query], *, instant: bool) -> list[prometheus.Dataquery]:
    targets = []
    for index, (expr, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + index))
        targets.append((query.instant() if instant else query.range()).datasource(DATASOURCE))
    return targets


def number(
    title: str,
    description: str,
    query: str,
    *,
    unit: str = "short",
    steps: Steps = CALM,
    decimals: int | None = None,
    words: dict[str, str] | None = None,
    width: int = 4,
) -> stat.Panel:
    """One figure: what is true now, or what happened in the time shown."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets([(query, "")], instant=True))
        .unit(unit)
        .thresholds(_thresholds(steps))
        .color_mode(common_models.BigValueColorMode.BACKGROUND)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("no data")
        .height(4)
        .span(width)
    )
    if decimals is not None:
        panel.decimals(decimals)
    if words:
        options = {
            value: models.ValueMappingResult(text=text, index=index)
            for index, (value, text) in enumerate(words.items())
        }
        panel.mappings([models.ValueMap(options=options)])
    return panel


def lines(
    title: str,
    description: str,
    queries: list[Query],
    *,
    unit: str = "short",
    steps: Steps | None = None,
    stacked: bool = False,
    width: int = 8,
) -> timeseries.Panel:
    """Lines over time; steps, where given, are drawn as dashed lines."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets(queries, instant=False))
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(25 if stacked else 8)
        .show_points(common_models.VisibilityMode.AUTO)
        .span_nulls(False)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
        .height(8)
        .span(width)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if steps:
        panel.thresholds(_thresholds(steps)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.DASHED)
        )
    return panel


def states(
    title: str, description: str, query: Query, *, words: dict[str, str], steps: Steps, width: int = 8
) -> statetimeline.Panel:
    """A bar over time for each series, in the color of what was true; ``words`` are for its values."""
    options = {
        value: models.ValueMappingResult(text=text, index=index) for index, (value, text) in enumerate(words.items())
    }
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets([query], instant=False))
        .unit("short")
        .mappings([models.ValueMap(options=options)])
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .merge_values(True)
        .show_value(common_models.VisibilityMode.AUTO)
        .height(8)
        .span(width)
    )


# -- rows ---------------------------------------------------------------------------------------


def at_a_glance() -> list[stat.Panel]:
    failed = rate("requests_total", extra=f'{WORK}, status=~"5.."')
    return [
        number("Gateways up", "Instances that Prometheus can scrape. 0: no client is served.", f"sum({scoped('up')})", steps=ZERO_IS_BAD),
        number("Daemon", "Whether every gateway's last call to lcpd-grpcd was answered. Down: nothing can be bought from peers, and nothing is spent there.", f"min({own('daemon_up')})", steps=ZERO_IS_BAD, words={"0": "down", "1": "up"}),
        number("Peers ready", "Lightning peers to buy from. 0: every request is answered 503, but for what virtual nodes serve.", f"min({own('peers')})", steps=ZERO_IS_BAD),
        number("Snapshot age", "How old the list of peers is. It is refreshed every few seconds; a growing age means that the daemon does not answer.", f"max({own('snapshot_age_seconds')})", unit="s", decimals=0, steps=((None, GREEN), (15, YELLOW), (60, RED))),
        number("Server errors", "Share of requests answered with a 5xx status, now.", f"({failed} or vector(0)) / clamp_min({rate('requests_total', extra=WORK)}, 1e-9)", unit="percentunit", decimals=1, steps=((None, GREEN), (0.02, YELLOW), (0.1, RED))),
        number("Jobs in flight", "Jobs running now.", f"sum({own('jobs_in_flight')})"),
        number("Spent", "Settled payments in the time shown, without routing fees.", f"{total('payment_msat_total', extra=SETTLED)} / 1000", unit=SAT, decimals=0),
        number("Unknown", "Payments without evidence whether they were made, in the time shown. Look them up in lnd by payment hash.", total("payments_total", extra=UNKNOWN), decimals=0, steps=ANY_IS_BAD),
        number("Unknown amount", "What those payments cost if they were made.", f"{total('payment_msat_total', extra=UNKNOWN)} / 1000", unit=SAT, decimals=0, steps=ANY_IS_BAD),
        number("Paid, not delivered", "Purchases that were paid and not delivered complete and correct, in the time shown. The provider keeps the money.", total("undelivered_total"), decimals=0, steps=ANY_IS_BAD),
        number("Lost to it", "The price of purchases that were paid and not delivered.", f"{total('undelivered_msat_total')} / 1000", unit=SAT, decimals=0, steps=ANY_IS_BAD),
        number("Requests", "Requests answered in the time shown.", total("requests_total", extra=WORK), decimals=0),
        number("Open now", "What all unknown payments cost if they were made, by the journal: the sum that still waits for evidence.", f"max({own('outstanding_unknown_msat')}) / 1000", unit=SAT, decimals=0, steps=ANY_IS_BAD),
        number("Oldest unknown", "How long the oldest unknown payment has waited for evidence. Above an hour the operator has to look it up.", f"max({own('oldest_unknown_age_seconds')})", unit="s", decimals=0, steps=((None, GREEN), (600, YELLOW), (3600, RED))),
        number("Least budget left", "What is left of the budget that is nearest to its end, in its present period. No data: no budget is set.", f"min({left_share()})", unit="percentunit", decimals=0, steps=((None, RED), (0.1, YELLOW), (0.25, GREEN))),
        number("Journal", "Whether the journal can be written. Trouble: nothing is paid, and requests are answered 503.", f"max({own('journal_trouble')})", steps=ANY_IS_BAD, words={"0": "writes", "1": "trouble"}),
        number("lnd answers", "Whether lnd answers. Down: unknown payments are not looked up. No data: none is configured.", f"min({own('lnd_up')})", steps=ZERO_IS_BAD, words={"0": "down", "1": "up"}),
        number("Saved", "By how much the quotes that were taken were below the next best, in the time shown.", f"{total('runner_up_saving_msat_total')} / 1000", unit=SAT, decimals=0),
    ]  # fmt: skip


def money() -> list[timeseries.Panel]:
    return [
        lines("Spending by outcome", "What payments cost, by what is known of them: settled (paid), unknown (perhaps paid), not_paid (nothing left the wallet).", [(f"{rate('payment_msat_total', 'outcome')} * 60 / 1000", "{{outcome}}")], unit=SAT_PER_MINUTE),
        lines("Spending by model", "Settled payments by model.", [(f"{rate('model_payment_msat_total', 'model', SETTLED)} * 60 / 1000", "{{model}}")], unit=SAT_PER_MINUTE, stacked=True),
        lines("Prices asked", "Distribution of the prices that peers quote, bought or not.", [(f"{quantile(q, 'quote_price_msat')} / 1000", f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)], unit=SAT),
        lines("Payments by outcome", "Payments a second.", [(rate("payments_total", "outcome"), "{{outcome}}")], unit="reqps"),
        lines("Unknown and undelivered", "Events per minute that may have lost money. Look into any line above zero.", [(f"{rate('payments_total', extra=UNKNOWN)} * 60", "unknown payments"), (f"{rate('undelivered_total')} * 60", "paid, not delivered")], unit="cpm"),
        lines("Refusals", "Requests refused before anything was paid, by reason. price_limit: peers ask more than the cap. concurrency: the gateway is full.", [(rate("refusals_total", "reason"), "{{reason}}")], unit="reqps", stacked=True),
    ]  # fmt: skip


def open_money() -> list[timeseries.Panel]:
    return [
        lines("Unknown outstanding", "What all unknown payments cost if they were made, by the journal. It falls when lnd reports, or the operator records, how they ended.", [(f"{shared('outstanding_unknown_msat')} / 1000", "unknown")], unit=SAT, width=6),
        lines("Unknown purchases", "How many purchases wait for evidence.", [(shared("outstanding_unknown_purchases"), "unknown")], width=6),
        lines("Age of the oldest unknown", "A straight climb: nothing resolves it. The dashed line is an hour.", [(shared("oldest_unknown_age_seconds"), "oldest")], unit="s", steps=((None, GREEN), (3600, RED)), width=6),
        lines("Looking up unknown payments", "lnd's results, a second: still_unknown and error are looked up again. No data: no lnd is configured.", [(rate("reconciled_total", "result"), "{{result}}")], unit="reqps", width=6),
        lines("Lost to each peer", "The price of purchases that each peer was paid for and did not deliver, over the whole journal.", [(short_peer(f"{shared('peer_undelivered_msat', 'peer')} / 1000"), "{{short}}")], unit=SAT, width=6),
        lines("Budget left", "What is left of each budget in its present period (calendar, UTC). Unknown payments count as spent.", [(f"{shared('budget_left_msat', 'period', 'min')} / 1000", "{{period}}"), (f"{shared('budget_limit_msat', 'period')} / 1000", "limit of the {{period}}")], unit=SAT, width=6),
        lines("Share of the budget left", "At zero, requests are answered 402 until the period ends.", [(left_share(), "{{period}}")], unit="percentunit", steps=((None, RED), (0.1, GREEN)), width=6),
        lines("Saved by asking around", "By how much the quotes that were taken were below the next best ones.", [(f"{rate('runner_up_saving_msat_total')} * 60 / 1000", "saved")], unit=SAT_PER_MINUTE, width=6),
        lines("Repeats not bought again", "running: joined a running purchase. replayed: got the stored answer again. lost: the answer is no longer held, so the repeat was refused rather than paid twice.", [(rate("joined_total", "how"), "{{how}}")], unit="reqps", width=12),
        lines("False quotes by peer", "Quotes that failed their checks, per minute, by the check. A correct peer has none.", [(short_peer(f"{rate('quote_mismatches_total', 'peer, mismatch')} * 60 > 0"), "{{short}} {{mismatch}}")], unit="cpm", width=12),
    ]  # fmt: skip


def journal() -> list[timeseries.Panel]:
    return [
        lines("Commit time", "How long the journal takes to make a batch durable. Each purchase waits for one commit before it pays.", quantiles("journal_commit_duration_seconds"), unit="s", width=6),
        lines("Entries and commits", "Entries a second, and the commits that they share.", [(rate("journal_entries_total"), "entries"), (rate("journal_commit_duration_seconds_count"), "commits")], unit="ops", width=6),
        lines("Trouble", "1 while the journal cannot be written. Nothing may be paid then.", [(own("journal_trouble"), "{{instance}}")], steps=((None, GREEN), (1, RED)), width=6),
        lines("Answers held", "Memory used by answers that are held for repeats.", [(own("answers_held_bytes"), "{{instance}}")], unit="bytes", width=6),
    ]  # fmt: skip


def lightning() -> list[timeseries.Panel]:
    return [
        lines("lnd", "1: it answers, and is synced to chain and graph.", [(own("lnd_up"), "up {{instance}}"), (own("lnd_synced"), "synced {{instance}}")]),
        lines("Balance", "On our side of the open channels, reserves included. A line that breaks off: lnd does not answer.", [(f"{own('lnd_local_balance_msat')} / 1000", "{{instance}}")], unit=SAT),
        lines("Channels", "Nothing can be paid through an inactive one.", [(own("lnd_channels"), "{{state}} {{instance}}")]),
        lines("Fees missing", "Purchases of the last ten minutes whose fee and preimage lnd has not reported yet. Zero within seconds of each purchase, unless lnd is away, is another node's, or its macaroon does not allow it.", [(own("lnd_fees_missing"), "{{instance}}")]),
    ]  # fmt: skip


def customers() -> list[stat.Panel | timeseries.Panel]:
    balances, funds = shared("customers_balance_msat"), shared("lnd_local_balance_msat")
    charged, paid = "charged_msat_total", "payment_msat_total"
    return [
        number("Customers", "Accounts that are not deleted. No data: this gateway keeps no accounts.", shared("customers")),
        number("Customers have", "The balances of all customers, held amounts included: you owe this to them.", f"{balances} / 1000", unit=SAT, decimals=0),
        number("Covered", "The funds on lnd's side of the channels, as a share of customers' balances. Below 100 % the balances are not covered. No data: no lnd is configured.", f"{funds} / clamp_min({balances}, 1)", unit="percentunit", decimals=0, steps=((None, RED), (1, YELLOW), (1.25, GREEN))),
        number("Paid in", "Top-ups that were credited in the time shown.", f"{total('topups_msat_total')} / 1000", unit=SAT, decimals=0),
        number("Margin", "What customers were charged, less what all settled payments cost, in the time shown; routing fees and the operator's own requests are not taken out.", f"({total(charged)} - {total(paid, extra=SETTLED)}) / 1000", unit=SAT, decimals=0),
        number("Settlements followed", "How many gateways follow the settlement of top-ups: exactly one should. 0: top-ups are not credited by themselves.", f"sum({own('settlements_leader')})", steps=((None, RED), (1, GREEN), (2, YELLOW))),
        lines("Balances and funds", "Customers' balances, the part that is held for open purchases, and the funds on lnd's side of the channels.", [(f"{balances} / 1000", "balances"), (f"{shared('customers_held_msat')} / 1000", "held"), (f"{funds} / 1000", "funds")], unit=SAT),
        lines("Paid in by customers", "Credited amounts and the number of top-ups, a minute.", [(f"{rate('topups_msat_total')} * 60 / 1000", "paid in"), (f"{rate('topups_total')} * 60", "top-ups")], unit=SAT_PER_MINUTE),
        lines("Charged and paid", "What customers are charged, and what settled payments cost. Where the lines meet, nothing is earned.", [(f"{rate(charged)} * 60 / 1000", "charged"), (f"{rate(paid, extra=SETTLED)} * 60 / 1000", "paid")], unit=SAT_PER_MINUTE),
        lines("Refused customers", "balance: 402, with an invoice for what is missing. rate_limit: 429, too many requests or tokens a minute. concurrency: 429, too many at once. api: 429, too many at once of /api, receipts and L402. keys: 503, the list of keys is too old. auth: no key, or none that allows the request.", [(rate("refusals_total", "reason", 'reason=~"balance|rate_limit|concurrency|api|keys|auth"'), "{{reason}}")], unit="reqps", width=12),
        lines("Age of the keys", "How long ago the keys of accounts were read. Past keys_stale_s (5 s by default) none is accepted, and customers are answered 503.", [(own("keys_age_seconds"), "{{instance}}"), (f"{own('keys_stale')} > 0", "stale on {{instance}}")], unit="s", width=12, steps=((None, GREEN), (5, RED))),
        lines("Refunds", "Charges for undelivered purchases, a minute, by result: given back at once, withheld over a limit, granted or denied by you.", [(f"{rate('refunds_msat_total', 'refund')} * 60 / 1000", "{{refund}}"), (f"{rate('refunds_total', 'refund')} * 60", "{{refund}}, purchases")], unit=SAT_PER_MINUTE, width=12),
        lines("Refunds withheld", "Charges that wait for your decision (`lcp-gateway purchases refund`), and how many they are.", [(f"{shared('refunds_withheld_msat')} / 1000", "withheld"), (shared("refunds_withheld"), "purchases")], unit=SAT, width=12),
        lines("Withdrawn by customers", "Amounts of the withdrawals that ended, a minute, by how; and the routing fees of the settled ones, which the customers paid.", [(f"{rate('withdrawals_msat_total', 'ended')} * 60 / 1000", "{{ended}}"), (f"{rate('withdrawals_total', 'ended')} * 60", "{{ended}}, withdrawals"), (f"{rate('withdrawal_fees_msat_total')} * 60 / 1000", "fees")], unit=SAT_PER_MINUTE, width=12),
        lines("Open withdrawals", "What they hold of balances, by state, and how many they are. awaiting_approval: for you (`lcp-gateway withdrawals approve`). unknown: until lnd tells.", [(f"{shared('withdrawals_open_msat', 'stage')} / 1000", "{{stage}}"), (shared("withdrawals_open", "stage"), "{{stage}}, withdrawals")], unit=SAT, width=12),
        lines("Earned by nodes", "What the owners of nodes earned by delivered answers, and your commissions, a minute.", [(f"{rate('node_earnings_msat_total')} * 60 / 1000", "earned"), (f"{rate('node_commissions_msat_total')} * 60 / 1000", "commissions")], unit=SAT_PER_MINUTE, width=12),
        lines("Oldest unknown withdrawal", "How long it has not been known whether it was paid. A payee that holds the payment can make it a day or two.", [(shared("withdrawal_oldest_unknown_seconds"), "oldest")], unit="s", width=12, steps=((None, GREEN), (3600, RED))),
        lines("Settlements leader", "1 on the gateway that follows the settlements. Another gateway takes over when that one ends.", [(own("settlements_leader"), "{{instance}}")], width=12),
    ]  # fmt: skip


def latency() -> list[timeseries.Panel]:
    quote_limit: Steps = ((None, GREEN), (5, RED))
    work_limit: Steps = ((None, GREEN), (120, RED))
    return [
        lines("Quote", "How long peers take to name a price. The dashed line is the default time-out.", quantiles("quote_duration_seconds"), unit="s", steps=quote_limit, width=6),
        lines("Pay and execute", "From the call that pays to the end of the result. The dashed line is the default time-out.", quantiles("execute_duration_seconds"), unit="s", steps=work_limit, width=6),
        lines("First byte", "From the request to the first byte of its answer: the wait that a user notices.", quantiles("first_byte_duration_seconds"), unit="s", width=6),
        lines("Whole request", "From the request to the last byte of its answer, streams included.", quantiles("request_duration_seconds", WORK), unit="s", width=6),
        lines("First byte by model", "The 95th percentile by model: is one model slow, or all?", [(quantile(0.95, "first_byte_duration_seconds", "model"), "{{model}}")], unit="s", width=12),
        lines("Whole request by route", "The 95th percentile by route, streams apart.", [(quantile(0.95, "request_duration_seconds", "endpoint, stream", WORK), "{{endpoint}} stream={{stream}}")], unit="s", width=12),
    ]  # fmt: skip


def peers() -> list[timeseries.Panel]:
    return [
        lines("Peers and models", "What the last snapshot of the daemon's list holds.", [(f"max({own('peers')})", "peers"), (f"max({own('models')})", "models")]),
        lines("Snapshot age", "Age of the list of peers. A straight climb: the daemon does not answer.", [(own("snapshot_age_seconds"), "{{instance}}")], unit="s", steps=((None, GREEN), (60, RED))),
        lines("Snapshots", "Refreshes of the list of peers.", [(rate("snapshots_total", "instance"), "{{instance}}")], unit="ops"),
        lines("Settled payments by peer", "A peer that vanishes from here is no longer chosen, or no longer ready.", [(short_peer(rate("payments_total", "peer", SETTLED)), "{{short}}")], unit="reqps", stacked=True),
        lines("Quote time by peer", "The 95th percentile by peer: is one peer slow, or all?", [(short_peer(quantile(0.95, "quote_duration_seconds", "peer")), "{{short}}")], unit="s"),
        lines("Not delivered by peer", "Purchases that were paid and not delivered complete and correct, by peer, per minute.", [(short_peer(f"{rate('undelivered_total', 'peer')} * 60"), "{{short}}")], unit="cpm"),
    ]  # fmt: skip


def routing() -> list[stat.Panel | timeseries.Panel | statetimeline.Panel]:
    choices = "routing_choices_total"
    nodes_share = f"{rate(choices, extra=ON_NODE)} / clamp_min({rate(choices)}, 1e-9)"
    spent = "payment_msat_total"
    return [
        number("Nodes up", "Virtual nodes that answer and can be chosen, on the gateway that sees the fewest. No data: none is configured.", f"min(sum by (instance) ({own('node_up')}))", steps=ZERO_IS_BAD),
        number("Nodes down", "Virtual nodes that do not answer, on the gateway that sees the most. They come back by themselves.", f"max(count by (instance) ({own('node_up')}) - sum by (instance) ({own('node_up')}))", steps=((None, GREEN), (1, YELLOW))),
        number("Left to the gateway", "Share of the requests that name auto rather than a model, in the time shown.", f"{total('requests_total', extra=BY_AUTO)} / clamp_min({total('requests_total', extra=BOUGHT)}, 1e-9)", unit="percentunit", decimals=0),
        number("Chosen nodes", "Share of the choices of auto that fell on a virtual node, in the time shown.", f"{total(choices, extra=ON_NODE)} / clamp_min({total(choices)}, 1e-9)", unit="percentunit", decimals=0),
        number("Spent on nodes", "What settled purchases from virtual nodes cost, in the time shown.", f"{total(spent, extra=f'{SETTLED}, {NODES}')} / 1000", unit=SAT, decimals=0),
        number("Spent on peers", "What settled purchases from Lightning peers cost, in the time shown, without routing fees.", f"{total(spent, extra=f'{SETTLED}, {PEERS}')} / 1000", unit=SAT, decimals=0),
        lines("Choices by provider", "The provider that auto ranked first, a second. A provider that vanishes from here has become slow, dear or unreliable, or does not answer.", [(short_peer(f"{rate(choices, 'peer')} > 0"), "{{short}}")], unit="reqps", stacked=True),
        lines("Choices by source", "lcp: Lightning peers. node: virtual nodes.", [(rate(choices, "source"), "{{source}}")], unit="reqps", stacked=True),
        lines("Share of nodes", "Share of the choices of auto that fell on virtual nodes.", [(nodes_share, "nodes")], unit="percentunit"),
        lines("Score of the choices", "The median by source; 1 is the maximum. Falling scores: the providers have become worse, or the better ones no longer answer.", [(quantile(0.5, "routing_score", "source"), "{{source}}")], unit="none"),
        lines("Failovers", "Providers that failed before anything was paid, so that the next was asked. refused: a check, a cap or the limit on trust refused the quote. failed: no quote came or, from a node, no answer.", [(rate("failovers_total", "cause, source"), "{{source}} {{cause}}")], unit="reqps"),
        lines("Spending by source", "What settled purchases cost, peers without their routing fees.", [(f"{rate(spent, extra=f'{SETTLED}, {PEERS}')} * 60 / 1000", "lcp"), (f"{rate(spent, extra=f'{SETTLED}, {NODES}')} * 60 / 1000", "node")], unit=SAT_PER_MINUTE, stacked=True),
        lines("First byte by provider", "Decayed average of the time to the first byte, as routing uses it: a slow provider is chosen less.", [(short_peer(f"max by (source, peer) ({own('provider_first_byte_seconds')})"), "{{short}}")], unit="s", width=12),
        lines("Tokens a second by provider", "Decayed average, estimated from bytes, as routing uses it.", [(short_peer(f"min by (source, peer) ({own('provider_tokens_per_second')})"), "{{short}}")], unit="none", width=12),
        states("Health of the nodes", "Whether each virtual node answers. One that is down is not chosen, and is checked until it answers again.", (f"min by (node) ({own('node_up')})", "{{node}}"), words={"0": "down", "1": "up"}, steps=ZERO_IS_BAD, width=12),
        lines("Nodes that come and go", "Changes per hour. Each time a node goes down, its requests break off.", [(f"{rate('node_changes_total', 'node, to')} * 3600", "{{node}} {{to}}")], width=12),
        lines("Nodes that dialled in", "Nodes that opened the connection themselves and are here now.", [(own("nodes_dialled_in"), "{{instance}}")], width=8),
        lines("Nodes that dialled in and left", "Per hour, by reason. lost: the connection broke; dead: silent for three heartbeats; all others are said goodbye to.", [(f"{rate('node_disconnects_total', 'why_gone')} * 3600", "{{why_gone}}")], width=8),
        lines("Usage that was not believed", "Results per hour whose stated tokens went far beyond their bytes.", [(f"{rate('usage_refuted_total')} * 3600", "refuted")], width=8),
    ]  # fmt: skip


def errors() -> list[timeseries.Panel]:
    return [
        lines("Answers by status", "429: full, or a peer is. 402: a price over the cap. 502 to 504: the daemon or the network behind it.", [(rate("requests_total", "status", WORK), "{{status}}")], unit="reqps", stacked=True),
        lines("Answers that are errors, by money", "Errors by the state of the payment. Errors with settled or unknown must not be retried.", [(rate("requests_total", "payment", f'{WORK}, status=~"[45]..|other"'), "{{payment}}")], unit="reqps"),
        lines("gRPC errors", "Failed calls to the daemon.", [(f"{rate('grpc_errors_total', 'method, code')} > 0", "{{method}} {{code}}")], unit="reqps"),
        lines("Clients that went away", "Clients that disconnected before their answer was complete, by phase. After execute has begun the job is paid.", [(rate("client_disconnects_total", "phase"), "{{phase}}")], unit="reqps", width=12),
        lines("Streamed bytes", "Bytes of results written to clients as streams.", [(rate("streamed_bytes_total", "instance"), "{{instance}}")], unit="Bps", width=12),
    ]  # fmt: skip


def stored() -> list[timeseries.Panel]:
    return [
        lines("Stored for clients", "Responses and chat completions that clients can retrieve.", [(own("stored_items"), "{{instance}}")]),
        lines("Memory of what is stored", "At most max_stored_bytes; the oldest go first.", [(own("stored_bytes"), "{{instance}}")], unit="bytes"),
        lines("Stored items that went", "Evicted items: too many of a credential, too many bytes in all, or too old; and answers that could not be stored.", [(rate("stored_removed_total", "why"), "{{why}}"), (rate("not_stored_total"), "not stored")], unit="cps"),
        lines("Background jobs", "Those that run, and those that ended, by how. A failed one may have been paid: see its payment in the log.", [(own("background_jobs_running"), "running on {{instance}}"), (rate("background_jobs_total", "ended_as"), "{{ended_as}} a second")]),
        lines("Spans", "Spans of traces that the collector took, and that were lost: it did not take them, or too many waited.", [(rate("trace_spans_exported_total"), "exported"), (rate("trace_spans_lost_total"), "lost")], unit="cps"),
    ]  # fmt: skip


def process() -> list[timeseries.Panel]:
    return [
        lines("Jobs in flight", "Against the limit, where there is one. At the limit new requests are answered 429.", [(own("jobs_in_flight"), "{{instance}}"), (f"{own('jobs_limit')} > 0", "limit of {{instance}}")]),
        lines("CPU", "One process uses at most one core for its event loop.", [(f"rate({scoped('process_cpu_seconds_total')}[$__rate_interval])", "{{instance}}")], unit="percentunit", steps=((None, GREEN), (0.9, RED))),
        lines("Memory", "Resident memory. It must not follow the length of streams.", [(scoped("process_resident_memory_bytes"), "{{instance}}")], unit="bytes"),
        lines("Event loop lag", "How late the event loop runs due tasks. Above 100 ms all requests are delayed.", [(quantile(q, "event_loop_lag_seconds"), f"p{q * 100:.0f}") for q in (0.5, 0.99)], unit="s", steps=((None, GREEN), (0.1, RED))),
        lines("Background tasks restarted", "Tasks that ended by an error and were started again: each has its cause in the log, and is named in /readyz while it is down.", [(rate("task_restarts_total", "task"), "{{task}}")], unit="cps", steps=((None, GREEN), (0.0001, RED))),
        lines("Log lines lost", "Lines that were dropped because standard output or error was not read, or could not be written.", [(rate("log_lines_lost_total", "instance"), "{{instance}}")], unit="cps", steps=((None, GREEN), (0.0001, RED))),
        lines("Open files", "Sockets and files, against the limit of the process.", [(scoped("process_open_fds"), "{{instance}}"), (scoped("process_max_fds"), "limit of {{instance}}")]),
        lines("Versions", "Versions by instance, over time: did the problem begin with a new version?", [(f"sum by (version, python, protocol) ({own('build_info')})", "{{version}} · Python {{python}} · protocol {{protocol}}"), (f"sum by (transport) ({own('lcpd_transport')})", "transport {{transport}}"), (f"count_values(\"protocol\", {own('lcpd_protocol_version')})", "daemon of protocol {{protocol}}")], stacked=True),
    ]  # fmt: skip


def lightning_node() -> list[stat.Panel | timeseries.Panel]:
    seller, buyer, ready = 'role="seller"', 'role="buyer"', 'link_state="ready"'
    jobs, open_jobs = "lcp_jobs_total", "lcp_jobs_open"
    delivered = f'{seller}, job_end="delivered"'
    worked = f'{seller}, job_end=~"delivered|failed|lost"'
    for_nothing = f'{buyer}, job_end=~"failed|lost"'
    share = f"{total(jobs, extra=delivered)} / clamp_min({total(jobs, extra=worked)}, 1e-9)"
    return [
        number("lnd, for the node", "Whether lnd delivers peers and messages to every node. Down: nothing is bought or sold until it is back. No data: no node over lnd is scraped.", f"min({own('lcp_lnd_up')})", steps=ZERO_IS_BAD, words={"0": "down", "1": "up"}),
        number("Invoices followed", "Whether lnd reports settled invoices to every node that sells. Down: paid jobs wait, and run once it is back. No data: nothing is sold.", f"min({own('lcp_invoices_up')})", steps=ZERO_IS_BAD, words={"0": "down", "1": "up"}),
        number("Peers ready to trade", "Peers whose manifest and ours were exchanged, in either version. A peer of both versions counts twice.", f"sum({own('lcp_links', ready)})"),
        number("Earned by the node", "Paid invoices of jobs that ended in the time shown.", f"{total('lcp_earned_msat_total')} / 1000", unit=SAT, decimals=0),
        number("Paid by the node", "Settled payments of jobs that ended in the time shown, routing fees not included.", f"{total('lcp_spent_msat_total')} / 1000", unit=SAT, decimals=0),
        number("Sold jobs delivered", "Of the paid jobs that ran to an end in the time shown, the share that was delivered; those that a buyer cancelled do not count.", share, unit="percentunit", decimals=1, steps=((None, RED), (0.95, YELLOW), (0.99, GREEN))),
        lines("Earnings by model", "Paid invoices of jobs that ended, a minute.", [(f"{rate('lcp_earned_msat_total', 'model')} * 60 / 1000", "{{model}}")], unit=SAT_PER_MINUTE, stacked=True),
        lines("Spent by the node", "Payments and their routing fees, a minute.", [(f"{rate('lcp_spent_msat_total')} * 60 / 1000", "prices"), (f"{rate('lcp_fees_msat_total')} * 60 / 1000", "routing fees")], unit=SAT_PER_MINUTE),
        lines("Earned without a result", "The part of the earnings whose buyer got no whole result: backends that failed, and buyers that cancelled. With hold_invoices a job that fails before its first byte is not paid.", [(f"{rate('lcp_undelivered_msat_total')} * 60 / 1000", "earned, not delivered")], unit=SAT_PER_MINUTE),
        lines("Jobs sold, by how they ended", "Jobs a minute. expired: quotes that were not paid. refused: requests for what is not sold, or beyond a limit. failed: the backend had no result.", [(f"{rate(jobs, 'job_end', seller)} * 60", "{{job_end}}")], unit="cpm", stacked=True),
        lines("Jobs bought, by how they ended", "Jobs a minute. expired: quotes that were not taken. unpaid: the payment failed. failed and lost: paid, without a whole result.", [(f"{rate(jobs, 'job_end', buyer)} * 60", "{{job_end}}")], unit="cpm", stacked=True),
        lines("Paid for nothing", "Bought jobs a minute that were paid and brought no whole result.", [(f"{rate(jobs, 'job_end', for_nothing)} * 60", "{{job_end}}")], unit="cpm", steps=((None, GREEN), (0.0001, RED))),
        lines("Open jobs", "quoted: neither paid nor expired, they raise the price where a surcharge is set. running: paid.", [(f"sum by (role, job_state) ({own(open_jobs)})", "{{role}} {{job_state}}")]),
        lines("Requests refused", "Requests for a quote a minute that got an error: unsupported_task for what is not sold, rate_limited beyond a limit.", [(f"{rate('lcp_refused_total', 'lcp_error')} * 60 > 0", "{{lcp_error}}")], unit="cpm"),
        lines("Links", "Peers by version and state. connected: the peer's manifest has not come, as of a peer that does not speak that version.", [(f"sum by (link_state, protocol) ({own('lcp_links')})", "{{link_state}} {{protocol}}")]),
        lines("Messages", "Custom messages a second.", [(rate("lcp_messages_total", "direction, protocol"), "{{direction}} {{protocol}}")], unit="ops", width=6),
        lines("Message bytes", "Payloads of the custom messages, a second.", [(rate("lcp_message_bytes_total", "direction"), "{{direction}}")], unit="Bps", width=6),
        lines("Messages dropped", "Messages of peers that were not taken, a minute. expired: a peer's clock is behind.", [(f"{rate('lcp_messages_dropped_total', 'why_dropped')} * 60", "{{why_dropped}}")], unit="cpm", width=6),
        lines("Problems", "Errors a minute of parts of the node that go on. The log has their causes.", [(f"{rate('lcp_problems_total', 'part')} * 60 > 0", "{{part}}")], unit="cpm", width=6),
        lines("Queue", "Messages that wait to be handed to lnd: over all peers, and for the peer for which most do.", [(own("lcp_queue_messages"), "all of {{instance}}"), (own("lcp_deepest_queue_messages"), "deepest of {{instance}}")], width=12),
        lines("Bytes in the queue", "Bytes of the messages that wait.", [(own("lcp_queue_bytes"), "{{instance}}")], unit="bytes", width=12),
    ]  # fmt: skip


# -- the dashboard ------------------------------------------------------------------------------


def _variables() -> list[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        dashboard.QueryVariable("job")
        .label("Job")
        .datasource(DATASOURCE)
        .query("label_values(lcpgateway_build_info, job)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC),
        dashboard.QueryVariable("instance")
        .label("Instance")
        .datasource(DATASOURCE)
        .query('label_values(lcpgateway_build_info{job="$job"}, instance)')
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(models.VariableOption(selected=True, text="All", value="$__all")),
    ]


def build() -> str:
    """Return the dashboard's JSON."""
    board = (
        dashboard.Dashboard("lcp-gateway")
        .uid(UID)
        .description("Purchases of the gateway by provider, their cost, latency and failures.")
        .tags(["lcp-gateway", "lightning", "openai"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("15s")
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .variables(_variables())
        .annotation(
            dashboard.AnnotationQuery()
            .name("Restarts")
            .datasource(DATASOURCE)
            .expr(f"changes({scoped('process_start_time_seconds')}[$__rate_interval]) > 0")
            .enable(True)
            .icon_color("orange")
        )
    )
    ids = count(1)
    for title, panels in (
        ("At a glance", at_a_glance()),
        ("Money", money()),
        ("Open money, budgets and choice", open_money()),
        ("Journal and memory", journal()),
        ("lnd", lightning()),
        ("Latency", latency()),
        ("Peers", peers()),
        ("Routing and nodes", routing()),
        ("Errors", errors()),
        ("Process", process()),
        # Last, so that the ids of the rows above do not change.
        ("Customers", customers()),
        ("Stored items, background and traces", stored()),
        ("Node over lnd", lightning_node()),
    ):
        # Fixed ids, so that a link to a panel goes on working.
        board.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            board.with_panel(panel.id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(board.build()) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(build(), encoding="utf-8")
    print(f"wrote {OUTPUT}", file=sys.stderr)
