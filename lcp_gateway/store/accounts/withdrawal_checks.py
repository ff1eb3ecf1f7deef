"""What keeps a withdrawal from being made or paid: a freeze, a revoked key, limits, and what the node owes to all customers.

Every check reads inside the transaction that it guards.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, and_, bindparam, func, select

from lcp_gateway.accounts.withdrawal_states import COUNTED_STATES, OPEN_STATES
from lcp_gateway.accounts.withdrawal_states import WithdrawalState as State
from lcp_gateway.accounts.withdrawals import (
    DayLimitReached,
    KeyMayNotWithdraw,
    Liquidity,
    NewWithdrawal,
    NodeCannotCover,
    TooManyOpenWithdrawals,
    WithdrawalRules,
    WithdrawalsFrozen,
)
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import VERDICTS, Verdict
from lcp_gateway.purchase.states import State as PurchaseState
from lcp_gateway.store.accounts.keys import ALLOW_WITHDRAWALS
from lcp_gateway.store.database.schema import accounts, admin_log, balances, keys, purchases, withdrawals
from lcp_gateway.store.database.times import from_micros, to_micros

OPEN: Final = tuple(state.value for state in OPEN_STATES)
_COUNTED = tuple(state.value for state in COUNTED_STATES)
_PAID_PURCHASES = tuple(state.value for state in PurchaseState if VERDICTS[state] is Verdict.SETTLED)
# A purchase that is paid later than this after its intent is found in the node's next reading.
_LONGEST_PURCHASE = timedelta(hours=1)

_IS_FROZEN = select(accounts.c.withdrawals_frozen_at).where(accounts.c.id == bindparam("of_account"))
_MAY_WITHDRAW = keys.c.scopes.contains('"withdraw"')
_NEWEST_KEY = select(func.max(keys.c.created_at)).where(keys.c.account_id == bindparam("of_account"), _MAY_WITHDRAW)
_NEWEST_GRANT = (
    select(func.max(admin_log.c.at))
    .join_from(admin_log, keys, keys.c.id == admin_log.c.target)
    .where(
        admin_log.c.at > bindparam("since"),
        admin_log.c.action == ALLOW_WITHDRAWALS,
        keys.c.account_id == bindparam("of_account"),
    )
)
# Locked, so that no revocation comes between this look and the commit.
_KEY_STANDS = (
    select(and_(keys.c.revoked_at.is_(None), _MAY_WITHDRAW))
    .where(keys.c.id == bindparam("of_key"))
    .with_for_update(read=True)
)
_OUTGOING_MSAT = func.coalesce(
    func.sum(withdrawals.c.amount_msat + func.coalesce(withdrawals.c.fee_msat, withdrawals.c.fee_limit_msat)), 0
)
_OF_DAY = select(_OUTGOING_MSAT).where(
    withdrawals.c.created_at >= bindparam("since"), withdrawals.c.state.in_(_COUNTED)
)
_OPEN_COUNT = select(func.count()).where(
    withdrawals.c.account_id == bindparam("of_account"), withdrawals.c.state.in_(OPEN)
)
_OWED = select(func.coalesce(func.sum(balances.c.balance_msat), 0))
# Those that settled since the node's balance was read have left the balances, and not that reading.
_WITHDRAWN_SINCE = select(_OUTGOING_MSAT).where(
    withdrawals.c.state == State.SETTLED.value,
    withdrawals.c.topup_id.is_(None),
    withdrawals.c.ended_at >= bindparam("since"),
)
_BOUGHT_SINCE = select(
    func.coalesce(func.sum(purchases.c.price_msat + func.coalesce(purchases.c.fee_msat, purchases.c.fee_cap_msat)), 0)
).where(
    purchases.c.paying_at >= bindparam("paying_since"),
    purchases.c.updated_at >= bindparam("since"),
    purchases.c.kind == ProviderSource.LCP.value,
    purchases.c.state.in_(_PAID_PURCHASES),
)


def check_key(connection: Connection, new: NewWithdrawal) -> None:
    """Check that the key still may withdraw.

    Raises:
        KeyMayNotWithdraw: it was revoked meanwhile, or lost its scope.
    """
    stands = connection.execute(_KEY_STANDS, {"of_key": new.key_id}).scalar()
    if stands is not None and not stands:
        raise KeyMayNotWithdraw


def is_frozen(connection: Connection, account_id: str) -> bool:
    """Return whether the operator froze the account's withdrawals; it stays so until the transaction ends."""
    frozen = connection.execute(_IS_FROZEN.with_for_update(read=True), {"of_account": account_id}).scalar()
    return frozen is not None


def check_frozen(connection: Connection, account_id: str, rules: WithdrawalRules, at: datetime) -> None:
    """Check that withdrawals of the account are not frozen, by the operator or since a key was made a short time ago.

    Raises:
        WithdrawalsFrozen: they are.
    """
    of_account = {"of_account": account_id}
    if connection.execute(_IS_FROZEN, of_account).scalar() is not None:
        raise WithdrawalsFrozen("withdrawals of this account are frozen by the operator")
    if not rules.frozen_for:
        return
    since = {"since": to_micros(at - rules.frozen_for)}
    made = connection.execute(_NEWEST_KEY, of_account).scalar()
    given = connection.execute(_NEWEST_GRANT, of_account | since).scalar()
    newest = max(filter(None, (made, given)), default=None)
    if newest is not None and (until := from_micros(newest) + rules.frozen_for) > at:
        raise WithdrawalsFrozen(
            f"a key that may withdraw was made or changed a short time ago: withdrawals are possible from {until:%Y-%m-%d %H:%M} UTC on"
        )


def check_limits(connection: Connection, new: NewWithdrawal, rules: WithdrawalRules, at: datetime) -> None:
    """Check the number of open withdrawals and the amounts of a day.

    Raises:
        TooManyOpenWithdrawals, DayLimitReached: by the rules.
    """
    if connection.execute(_OPEN_COUNT, {"of_account": new.account_id}).scalar_one() >= rules.most_open:
        raise TooManyOpenWithdrawals(rules.most_open)
    begun = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    more_msat = new.amount_msat + new.fee_limit_msat
    of_account = _OF_DAY.where(withdrawals.c.account_id == new.account_id)
    for query, limit_msat, whose in (
        (of_account, rules.account_day_msat, "this account"),
        (_OF_DAY, rules.day_msat, "all accounts together"),
    ):
        if limit_msat:
            spent_msat = int(connection.execute(query, {"since": to_micros(begun)}).scalar_one())
            if spent_msat + more_msat > limit_msat:
                raise DayLimitReached(f"the limit of withdrawals a day (UTC) for {whose} is reached; nothing was paid")


def check_solvency(connection: Connection, rules: WithdrawalRules, liquidity: Liquidity | None) -> None:
    """Check that the node holds what all customers are owed: paying one of them then takes nothing from the others.

    The amount that is about to be paid is on both sides. What is in flight counts as owed until it settles, and has left
    the node's balance already, so that the check errs towards refusing. What settled since the reading is taken off it.

    Raises:
        NodeCannotCover: it holds less, or its balance is not known.
    """
    if liquidity is None:
        raise NodeCannotCover
    since = {"since": to_micros(liquidity.read_at)}
    paying_since = {"paying_since": to_micros(liquidity.read_at - _LONGEST_PURCHASE)}
    left_msat = (
        liquidity.spendable_msat
        - rules.reserve_msat
        - int(connection.execute(_WITHDRAWN_SINCE, since).scalar_one())
        - int(connection.execute(_BOUGHT_SINCE, since | paying_since).scalar_one())
    )
    if left_msat < int(connection.execute(_OWED).scalar_one()):
        raise NodeCannotCover
