"""The app package only wires and runs: rules about money, routing and access belong to their packages.

Checked in three ways: import-linter lets only the command line import the app, and the app no database, no gRPC and no
request bodies; no code here compares or calculates amounts, prices, states or credentials; and every other comparison
is listed below, so that a new one needs a reason.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lcp_gateway.app
from tests.support.sources import parsed

APP = Path(lcp_gateway.app.__file__).parent

# Mechanisms, with tests of their own: the supervisor's restarts, and the protocol of the service manager.
MECHANISMS = {"background_tasks.py"}

ALLOWED = {
    # How the gateway listens, and its address.
    "main.py": ["':' in host"],
    # Which settings have changed, and which of them need a restart.
    "reload.py": [
        "getattr(before, name) != getattr(after, name)",
        "(before.http_tls_cert is None) is not (after.http_tls_cert is None)",
        "name in changed",
        "name not in restart",
    ],
    # How long the gateway waits for the daemon.
    "startup.py": ["time.monotonic() + _PREFLIGHT_PAUSE_S < deadline"],
    # Which authentication the settings choose.
    "gateway.py": ["auth_mode(settings) != 'none'"],
    "wiring/accounts.py": [
        "auth_mode(settings) == 'none'",
        "auth_mode(settings) == 'accounts'",
        "auth_mode(settings) != 'accounts'",
        "gateway == account == key == Rates()",
        "len(secret) < _SECRET_BYTES",
    ],
    # Models are counted again when the catalog has changed.
    "wiring/books.py": ["counted[0] is not found.providers"],
    # Where a sign-in is needed.
    "wiring/console.py": ["auth_mode(settings) == 'accounts'", "auth_mode(settings) == 'none'", "mode == 'none'"],
    "wiring/shared_results.py": ["len(one) >= MIN_SECRET_BYTES"],
    "wiring/routing.py": ["settings.explicit_choice == 'score'", "len(asked) > 1"],
}
"""Every comparison of the app, but those with None."""

ABOUT_MONEY = ("msat", "price", "balance", "budget", "fee", "markup", "limit")
CALCULATED = {"wiring/routing.py": ["config.price_per_minute_sat * MSAT_PER_SAT"]}
"""The units of one price."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(APP.rglob("*.py")):
        if path.name not in MECHANISMS:
            yield path.relative_to(APP).as_posix(), parsed(path)


def is_with_none(node: ast.Compare) -> bool:
    return all(isinstance(side, ast.Constant) and side.value is None for side in node.comparators) and all(
        isinstance(op, ast.Is | ast.IsNot) for op in node.ops
    )


def is_about_money(node: ast.AST) -> bool:
    names = {
        getattr(part, "id", "") or getattr(part, "attr", "")
        for part in ast.walk(node)
        if isinstance(part, ast.Name | ast.Attribute)
    }
    return any(word in name.lower() for name in names for word in ABOUT_MONEY)


def test_every_comparison_of_the_app_is_listed():
    found: dict[str, list[str]] = {}
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and not is_with_none(node):
                found.setdefault(name, []).append(ast.unparse(node))
    assert {name: sorted(listed) for name, listed in found.items()} == {
        name: sorted(listed) for name, listed in ALLOWED.items()
    }


def test_the_app_calculates_no_amount():
    found = {
        (name, ast.unparse(node))
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and is_about_money(node)
        if not isinstance(node.op, ast.BitOr)
    }
    assert found == {(name, text) for name, texts in CALCULATED.items() for text in texts}


def test_the_app_chooses_by_no_case():
    """A ``match`` or a conditional on a state or a kind is a rule, which belongs to another package."""
    for name, tree in modules():
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Match)], name


@pytest.mark.parametrize("source", ["price_msat > limit", "a.price_msat == 0", "fee_msat + 1"])
def test_the_check_recognises_amounts(source):
    (expression,) = ast.parse(source).body
    assert is_about_money(expression)
