"""Which connections may go through the environment's proxy."""

from lcp_gateway.config import Settings, may_use_proxy

ASKED, NOT_ASKED = Settings(proxy_from_environment=True), Settings()
LOCAL = [
    "127.0.0.1:50051",
    "127.9.9.9:1",
    "localhost:50051",
    "lnd.localhost:1",
    "[::1]:50051",
    "dns:///localhost:1",
    "ipv4:127.0.0.1:1",
    "ipv6:[::1]:1",
    "unix:/run/lcpd.sock",
    "unix:///run/lcpd.sock",
    "http://127.0.0.1:11434/v1",
    "http://[::1]/v1",
    "https://localhost:8443/v1",
    "http://0.0.0.0:8000/v1",
]
ELSEWHERE = [
    "10.0.0.7:10009",
    "lnd.example.com:10009",
    "dns:///lnd.example.com:10009",
    "ipv4:10.0.0.7:1",
    "https://api.example.com/v1",
    "http://localhost.example.com/v1",
]


def test_nothing_on_this_machine(subtests):
    for target in LOCAL:
        with subtests.test(str(target)):
            assert not may_use_proxy(ASKED, target)


def test_elsewhere_if_that_is_asked_for(subtests):
    for target in ELSEWHERE:
        with subtests.test(str(target)):
            assert may_use_proxy(ASKED, target)
            assert not may_use_proxy(NOT_ASKED, target)
