"""The web console's settings: where it is served, and what goes together with them."""

import pytest

from lcp_gateway.config import ConfigError, load, serves_console

ACCOUNTS = {"LCP_GATEWAY_AUTH": "accounts"}
KEYS = {"LCP_GATEWAY_API_KEYS": "one"}
WIDE = {"LCP_GATEWAY_HTTP_ADDR": ":8080"}
OPEN = {**WIDE, "LCP_GATEWAY_ALLOW_OPEN": "true"}
OFF = {"LCP_GATEWAY_JOURNAL_URL": "off"}


def loaded(tmp_path, environ):
    return load(flags={}, environ={"XDG_CONFIG_HOME": str(tmp_path), **environ})


@pytest.mark.parametrize(
    ("environ", "served"),
    [
        ({}, True),
        (OFF, True),
        ({"LCP_GATEWAY_HTTP_ADDR": "[::1]:8080"}, True),
        (OPEN, False),
        (KEYS, True),
        ({**KEYS, **WIDE}, True),
        ({**KEYS, **OFF}, False),
        ({**ACCOUNTS, **WIDE}, True),
        ({"LCP_GATEWAY_CONSOLE": "off"}, False),
        ({**KEYS, "LCP_GATEWAY_CONSOLE": "on"}, True),
    ],
)
def test_the_console_is_served_on_loopback_and_where_sign_in_is_possible(tmp_path, environ, served):
    assert serves_console(loaded(tmp_path, environ).settings) is served


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({**OPEN, "LCP_GATEWAY_CONSOLE": "on"}, "any client there would see your purchases"),
        ({**KEYS, **OFF, "LCP_GATEWAY_CONSOLE": "on"}, "in the journal's database, which is off"),
        ({"LCP_GATEWAY_REGISTRATION": "open"}, "has no effect unless auth is accounts"),
        ({**ACCOUNTS, "LCP_GATEWAY_REGISTRATION": "invite", "LCP_GATEWAY_CONSOLE": "off"}, "while console is off"),
        ({"LCP_GATEWAY_CONSOLE": "maybe"}, "'auto', 'on' or 'off'"),
        ({"LCP_GATEWAY_REGISTRATION": "friends"}, "'closed', 'invite' or 'open'"),
    ],
)
def test_contradictions_are_named(tmp_path, environ, words):
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, environ)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({**KEYS, "LCP_GATEWAY_CONSOLE_INSECURE": "true"}, "travel unencrypted"),
        ({**ACCOUNTS, "LCP_GATEWAY_REGISTRATION": "open"}, "share 5 new accounts an hour"),
        ({**ACCOUNTS, "LCP_GATEWAY_ADMIN_KEY": "change-me"}, "fewer than 16 characters and could be guessed"),
    ],
)
def test_a_caution_says_what_is_risked(tmp_path, environ, words):
    assert any(words in warning for warning in loaded(tmp_path, environ).warnings)
