"""The label values that the gateway uses are those that the metric table lists."""

import ast
from pathlib import Path

import grpc

import lcp_gateway
from lcp_gateway._gen.lcpd import extensions_pb2, lcpd_pb2
from lcp_gateway.lightning.checks import Mismatch
from lcp_gateway.purchase.money import Period
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import VERDICTS as VERDICT_OF_STATE
from lcp_gateway.purchase.states import State
from lcp_gateway.routing import model_registry
from lcp_gateway.telemetry.metric_table import (
    AUTO,
    GRPC_CODES,
    GRPC_METHODS,
    MISMATCHES,
    OUTCOMES,
    PERIODS,
    PHASES,
    REASONS,
    SOURCES,
    VERDICTS,
)
from tests.support.sources import parsed

PACKAGE = Path(lcp_gateway.__file__).parent


def nodes():
    for file in (PACKAGE / "http").rglob("*.py"):
        yield from ast.walk(parsed(file))


def literals_of(keyword):
    """Return the strings passed as this keyword anywhere in lcp_gateway/http."""
    passed = [node.value for node in nodes() if isinstance(node, ast.keyword) and node.arg == keyword]
    return {value.value for value in passed if isinstance(value, ast.Constant) and value.value}


def assigned_to(name):
    """Return the strings assigned to variables of this name anywhere in lcp_gateway/http."""
    return {
        node.value.value
        for node in nodes()
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    }


def test_reasons_of_refusals_are_listed():
    used = literals_of("reason")
    assert used, "the keyword has another name now"
    assert used <= set(REASONS)


def test_phases_of_disconnects_are_listed():
    used = assigned_to("phase")
    assert used, "the variable has another name now"
    assert used <= set(PHASES)


def test_verdicts_and_outcomes_are_those_of_the_purchase():
    assert {verdict.value for verdict in VERDICT_OF_STATE.values()} == set(VERDICTS)
    assert set(OUTCOMES) <= {state.value for state in State}


def test_mismatches_are_those_of_the_check():
    assert set(MISMATCHES) == {mismatch.value for mismatch in Mismatch}


def test_periods_are_those_of_the_budgets():
    assert set(PERIODS) == {period.value for period in Period}


def test_sources_and_names_are_those_of_the_router():
    assert set(SOURCES) == {source.value for source in ProviderSource}
    assert model_registry.AUTO == AUTO


def test_methods_are_those_of_the_two_services():
    services = (
        lcpd_pb2.DESCRIPTOR.services_by_name["LCPDService"],
        extensions_pb2.DESCRIPTOR.services_by_name["NodeService"],
    )
    assert set(GRPC_METHODS) == {method.name for service in services for method in service.methods}


def test_codes_are_those_of_grpc_that_are_errors():
    assert set(GRPC_CODES) == {code.name for code in grpc.StatusCode} - {"OK"}
