"""The rate limit of one address is independent of all others."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.accounts.limits.addresses import SITE_FACTOR, AddressLimits


@pytest.fixture
def now():
    return [1_000.0]


@pytest.fixture
def limits(now):
    return AddressLimits(clock=lambda: now[0])


def test_an_address_has_its_bound_at_once_and_then_as_the_minute_passes(limits, now):
    assert [limits.take("192.0.2.1", 3) for _ in range(3)] == [0.0] * 3
    assert limits.take("192.0.2.1", 3) == pytest.approx(20.0)
    now[0] += 19.9
    assert limits.take("192.0.2.1", 3) == pytest.approx(0.1)
    now[0] += 0.11
    assert limits.take("192.0.2.1", 3) == 0.0
    now[0] += 3_600
    assert [limits.take("192.0.2.1", 3) > 0 for _ in range(4)] == [False] * 3 + [True]


def test_asking_while_one_has_to_wait_makes_the_wait_no_longer(limits, now):
    while limits.take("192.0.2.1", 3) == 0:
        pass
    waits = [limits.take("192.0.2.1", 3) for _ in range(50)]
    assert waits == [pytest.approx(20.0)] * 50


@given(st.lists(st.ip_addresses(v=4), unique=True, min_size=2, max_size=20))
def test_no_address_of_ipv4_waits_for_another(addresses):
    limits = AddressLimits(clock=lambda: 0.0)
    while limits.take(str(addresses[0]), 5) == 0:
        pass
    assert all(limits.take(str(address), 5) == 0 for address in addresses[1:])


@given(st.ip_addresses(v=6), st.lists(st.integers(0, 2**64 - 1), min_size=5, max_size=20))
def test_all_addresses_of_a_64_are_one_client(address, hosts):
    limits = AddressLimits(clock=lambda: 0.0)
    network = int(address) >> 64 << 64
    if ipaddress.IPv6Address(network).ipv4_mapped is not None or not network:
        return
    taken = [limits.take(str(ipaddress.IPv6Address(network + host)), 4) for host in hosts]
    assert taken.count(0.0) == 4


def test_a_whole_site_of_ipv6_has_a_few_times_the_bound_and_its_neighbour_its_own(limits):
    taken = [limits.take(f"2001:db8:1:{number:x}::1", 4) for number in range(200)]
    assert taken.count(0.0) == 4 * SITE_FACTOR
    assert limits.take("2001:db8:2::1", 4) == 0.0


def test_an_ipv4_address_in_the_form_of_ipv6_is_the_same_address(limits):
    while limits.take("192.0.2.1", 2) == 0:
        pass
    assert limits.take("::ffff:192.0.2.1", 2) > 0
    assert limits.take("::ffff:192.0.2.2", 2) == 0


@pytest.mark.parametrize("address", [None, "", "unix", "fe80::1%eth0"])
def test_what_has_no_address_is_bounded_too(limits, address):
    taken = [limits.take(address, 2) for _ in range(5)]
    assert taken.count(0.0) == 2


def test_many_addresses_take_bounded_memory_and_the_latest_are_remembered():
    limits = AddressLimits(max_buckets=100, clock=lambda: 0.0)
    for number in range(1_000):
        limits.take(f"10.0.{number // 250}.{number % 250}", 1)
    assert len(limits) == 100
    assert limits.take("10.0.3.249", 1) > 0
