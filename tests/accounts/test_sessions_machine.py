"""Sessions against a plain model: any order of sign-ins, uses, sign-outs, revocations, changed settings and time."""

import asyncio
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lcp_gateway.accounts.callers import Caller, KeyRules, Scope
from lcp_gateway.accounts.sessions import LIFETIMES, MOST_SESSIONS, ConsoleSessions, Role, SettingsKeys

START = datetime(2026, 11, 30, tzinfo=UTC)
ACCOUNTS = {"a1": "acct_a", "a2": "acct_a", "b1": "acct_b"}
SCOPES = {"a1": {Scope.ACCOUNT}, "a2": {Scope.INFERENCE}, "b1": {Scope.ADMIN}}
KEYS = (*ACCOUNTS, "own", "admin")


class Rows:
    """A repository in memory, as plain as it gets; its keys are those of the model."""

    def __init__(self, valid) -> None:
        self.rows = {}
        self.valid = valid

    async def create(self, session, *, most):
        self.rows[session.token_hash] = session
        of_key = sorted(
            (row for row in self.rows.values() if row.key_id == session.key_id),
            key=lambda row: row.seen_at,
            reverse=True,
        )
        for row in of_key[most:]:
            del self.rows[row.token_hash]

    async def find(self, token_hash, now):
        row = self.rows.get(token_hash)
        if row is None or now >= min(row.idle_ends_at, row.ends_at):
            return None
        return row, caller_of(row.key_id) if row.account_id and row.key_id in self.valid else None

    async def extend(self, token_hash, *, seen_at, idle_ends_at):
        from dataclasses import replace

        self.rows[token_hash] = replace(self.rows[token_hash], seen_at=seen_at, idle_ends_at=idle_ends_at)

    async def end(self, token_hash):
        return self.rows.pop(token_hash, None) is not None

    async def end_all(self, *, account_id, key_id=None):
        gone = [
            row.token_hash
            for row in self.rows.values()
            if row.account_id == account_id and (row.key_id == key_id if key_id else account_id is not None)
        ]
        for token_hash in gone:
            del self.rows[token_hash]
        return len(gone)


def caller_of(name):
    return Caller(name, ACCOUNTS[name], KeyRules(scopes=frozenset(SCOPES[name])))


class SessionsMachine(RuleBasedStateMachine):
    """The model knows of each token: its key, when it began, when it was last used, and whether it was ended."""

    @initialize()
    def start(self):
        self.now = START
        self.valid = set(ACCOUNTS)
        self.texts = {"own": "own text", "admin": "admin text"}
        self.rows = Rows(self.valid)
        self.model = {}
        self.use_settings()

    def use_settings(self):
        scopes = {"own": {Scope.INFERENCE}, "admin": {Scope.ADMIN}}
        roles = {"own": Role.KEY, "admin": Role.OPERATOR}
        self.sessions = ConsoleSessions(
            self.rows,
            settings_keys=SettingsKeys(
                (text, roles[name], Caller(name, None, KeyRules(scopes=frozenset(scopes[name]))))
                for name, text in self.texts.items()
            ),
            find_key=lambda text: caller_of(text) if text in self.valid else None,
            now=lambda: self.now,
        )

    def role(self, name):
        return {"own": Role.KEY, "admin": Role.OPERATOR, "b1": Role.OPERATOR}.get(name, Role.CUSTOMER)

    def lives(self, it):
        lifetime = LIFETIMES[self.role(it["key"])]
        if it["ended"] or self.now >= min(it["used"] + lifetime.idle, it["began"] + lifetime.most):
            return False
        return it["key"] in self.valid if it["key"] in ACCOUNTS else self.texts[it["key"]] == it["text"]

    @rule(name=st.sampled_from(KEYS))
    def sign_in(self, name):
        text = self.texts.get(name, name)
        made = asyncio.run(self.sessions.sign_in(text))
        assert (made is not None) is (name in self.texts or name in self.valid)
        if made is None:
            return
        assert made.token not in self.model
        self.model[made.token] = {"key": name, "text": text, "began": self.now, "used": self.now, "ended": False}
        of_key = [it for it in self.model.values() if it["key"] == name and not it["ended"]]
        assert len(of_key) <= MOST_SESSIONS

    @rule(data=st.data(), extend=st.booleans())
    def use(self, data, extend):
        if not self.model:
            return
        token = data.draw(st.sampled_from(sorted(self.model)))
        it = self.model[token]
        found = asyncio.run(self.sessions.find(token, extend=extend))
        assert (found is not None) is self.lives(it)
        if found is not None:
            assert (found.caller.key_id, found.session.role) == (it["key"], self.role(it["key"]))
            if extend and self.now - it["used"] >= timedelta(minutes=1):
                it["used"] = self.now

    @rule(minutes=st.sampled_from([0, 1, 30, 59, 60, 600, 7 * 1440, 30 * 1440]))
    def wait(self, minutes):
        self.now += timedelta(minutes=minutes)

    @rule(data=st.data())
    def sign_out(self, data):
        if self.model:
            token = data.draw(st.sampled_from(sorted(self.model)))
            asyncio.run(self.sessions.end(token))
            self.model[token]["ended"] = True

    @rule(name=st.sampled_from(sorted(ACCOUNTS)))
    def sign_out_everywhere(self, name):
        asyncio.run(self.sessions.end_all(caller_of(name)))
        for it in self.model.values():
            same_account = ACCOUNTS.get(it["key"]) == ACCOUNTS[name]
            if it["key"] == name or (same_account and Scope.ACCOUNT in SCOPES[name]):
                it["ended"] = True

    @rule(name=st.sampled_from(sorted(ACCOUNTS)))
    def revoke(self, name):
        self.valid.discard(name)

    @rule(name=st.sampled_from(["own", "admin"]), number=st.integers(0, 2))
    def change_setting(self, name, number):
        self.texts[name] = f"{name} text {number}"
        self.use_settings()

    @invariant()
    def no_other_token_opens_anything(self):
        assert asyncio.run(self.sessions.find("never made", extend=True)) is None


SessionsMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
test_sessions_do_what_the_model_does = SessionsMachine.TestCase
