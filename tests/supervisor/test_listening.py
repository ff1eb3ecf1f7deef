"""The sockets of several workers: one port, spread by the system, and no second gateway on it."""

import selectors
import socket
from collections import Counter

import pytest

from lcp_gateway.supervisor.listening import CannotListen, open_sockets


def test_each_worker_gets_connections_of_its_own():
    opened = open_sockets("127.0.0.1", 0, 4)
    try:
        assert {one.getsockname()[1] for sockets in opened.by_worker for one in sockets} == {opened.port}
        clients = [socket.create_connection(("127.0.0.1", opened.port)) for _ in range(64)]
        taken = Counter()
        with selectors.DefaultSelector() as selector:
            for place, (one,) in enumerate(opened.by_worker):
                selector.register(one, selectors.EVENT_READ, place)
            while taken.total() < 64:
                # A connection may be there a moment after its client has it.
                ready = selector.select(60)
                assert ready, taken
                for key, _ in ready:
                    connection, _ = key.fileobj.accept()
                    connection.close()
                    taken[key.data] += 1
        assert len(taken) == 4
    finally:
        opened.close()
        for client in clients:
            client.close()


def test_a_port_that_is_listened_on_is_refused_to_a_second_gateway():
    first = open_sockets("127.0.0.1", 0, 2)
    try:
        for workers in (1, 2):
            with pytest.raises(CannotListen, match=f"cannot listen on 127.0.0.1:{first.port}: Address already in use"):
                open_sockets("127.0.0.1", first.port, workers)
    finally:
        first.close()


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(CannotListen, match=r"cannot listen on 203\.0\.113\.7:0"):
        open_sockets("203.0.113.7", 0, 2)


def test_all_interfaces_are_one_port_for_both_families():
    opened = open_sockets("", 0, 2)
    try:
        assert {one.getsockname()[1] for sockets in opened.by_worker for one in sockets} == {opened.port}
    finally:
        opened.close()
