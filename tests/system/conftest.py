"""Which tests of the gateway a run over the real node leaves out, and why. See ``tests/support/lcp_world.py``."""

import pytest

from tests.support.gateway import node_in_use

_RESULT = "the node finds it itself, as lcpd-grpcd does: an error of the call, and no result for the gateway to check"
_SILENCE = "between nodes, a peer that stops in mid-stream is silent until the deadline"
_QUOTE = "the node refuses such a quote itself, as lcpd-grpcd does"
_FAILURES = "tests.system.test_failures::"
_CHECKS = "tests.system.money.test_checks::"
OTHERWISE = (
    (f"{_FAILURES}test_a_failed_quote_costs_nothing", "[expired-", _QUOTE),
    (f"{_FAILURES}test_a_failed_execution", "[already-paid-", "the node tracks the earlier payment, and delivers"),
    (f"{_FAILURES}test_a_result_that_is_not_whole", "[wrong-", _RESULT),
    (f"{_FAILURES}test_a_result_that_is_not_whole", "[no-result-", _SILENCE),
    (f"{_FAILURES}test_a_result_that_is_not_whole", "[stream-cut", _SILENCE),
    (f"{_FAILURES}test_a_stream_that_ends_before_it_begins", "[", _SILENCE),
    ("tests.system.test_drop_in::test_a_client_that_goes_away", "stream-floods", "the node ends a result above 4 MiB"),
    (f"{_CHECKS}test_it_is_refused_unpaid", "-wrong-terms-hash-", _QUOTE),
    (f"{_CHECKS}test_it_is_not_shown_as_a_quote", "", _QUOTE),
    (f"{_CHECKS}test_a_quote_that_has_expired_is_refused", "", _QUOTE),
    ("tests.system.money.test_quotes::test_a_quote_that_has_expired_cannot_be_taken", "", _QUOTE),
)
"""The beginning of a test's name, a part of its case, and why its answer differs where peers are reached by LCP's messages."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if _answers_otherwise(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _answers_otherwise(item: pytest.Item) -> bool:
    # Modules in system/node say which node they have, and run tests of other modules over it.
    if not isinstance(item, pytest.Function) or not (getattr(item.module, "NODE", "") or node_in_use()):
        return False
    name = f"{item.function.__module__}::{item.name}"
    return any(name.startswith(start) and case in name for start, case, _reason in OTHERWISE)
