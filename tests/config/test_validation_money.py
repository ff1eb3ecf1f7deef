"""Settings about money: the journal's path, warnings about limits, and passwords that stay hidden."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.config import (
    ConfigError,
    Settings,
    fee_warnings,
    journal_place,
    load,
    specs,
    spending_warnings,
    without_password,
)

PASSWORD = "hush-hush"
URL = f"postgresql://gateway:{PASSWORD}@db.lan/lcp?sslmode=require"


@pytest.fixture
def loaded(tmp_path):
    """Load from an environment alone."""

    def attempt(**environ):
        own = {f"LCP_GATEWAY_{name.upper()}": value for name, value in environ.items()}
        return load(flags={}, environ={"XDG_CONFIG_HOME": str(tmp_path)} | own)

    return attempt


def test_the_journal_is_in_the_state_folder_of_the_user():
    environ = {"XDG_STATE_HOME": "/state", "HOME": "/home/me"}
    assert journal_place(Settings(), environ) == Path("/state/lcp-gateway/journal.db")


def test_play_money_has_a_journal_of_its_own():
    place = journal_place(Settings(embedded=True), {"XDG_STATE_HOME": "/state"})
    assert place == Path("/state/lcp-gateway/embedded.db")


def test_a_relative_state_folder_is_ignored():
    place = journal_place(Settings(), {"XDG_STATE_HOME": "here"})
    assert isinstance(place, Path)
    assert place.is_absolute()


def test_the_journal_is_where_it_is_said_to_be(subtests):
    for written, place in [
        ("off", None),
        ("OFF", None),
        ("/var/lib/lcp/j.db", Path("/var/lib/lcp/j.db")),
        ("sqlite:////var/j.db", "sqlite:////var/j.db"),
        (URL, URL),
        ("~/j.db", Path("~/j.db").expanduser()),
    ]:
        with subtests.test(str(written)):
            assert journal_place(Settings(journal_url=written)) == place


def test_a_network_is_named_or_given_by_its_prefix(subtests):
    for written, prefix in [
        ("mainnet", "bc"),
        ("TESTNET", "tb"),
        ("testnet4", "tb"),
        ("signet", "tbs"),
        ("regtest", "bcrt"),
        ("simnet", "sb"),
        ("bc", "bc"),
        ("tbs", "tbs"),
        ("", ""),
    ]:
        with subtests.test(str(written)):
            assert Settings(network=written).network == prefix


def test_limits_of_models_may_stand_in_a_table(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[model_max_total_msat]\n"gpt-5" = 100\nllama = "200"\n')
    settings = load(flags={}, environ={}, config_path=path).settings
    assert settings.model_max_total_msat == {"gpt-5": 100, "llama": 200}


def test_no_password_is_shown(subtests):
    for url in [
        URL,
        f"postgresql://u:{PASSWORD}@h/db",
        f"postgresql://u:a@{PASSWORD}@h/db",
        f"postgresql://u:a/{PASSWORD}@h/db",
        f"postgresql://u:a?{PASSWORD}#@h/db",
        f"postgresql://h/db?user=u&password={PASSWORD}",
        f"postgresql://h/db?sslpassword={PASSWORD}&x=1",
        f"postgres://:{PASSWORD}@h/db",
    ]:
        with subtests.test(str(url)):
            assert PASSWORD not in without_password(url)
            assert PASSWORD not in repr(Settings(journal_url=url))
            assert PASSWORD not in str(specs()["journal_url"].shown(url))


@given(st.text(st.characters(exclude_characters="@", exclude_categories=["Cs"]), min_size=1))
def test_no_password_is_shown_whatever_it_is(password):
    marked = f"<{password}>"
    assert marked not in without_password(f"postgresql://user:{marked}@host/db")


def test_a_text_without_a_password_is_shown_as_it_is(subtests):
    for text in ["/var/j.db", "off", "", "postgresql://u@h/db", "/odd:name@x"]:
        with subtests.test(str(text)):
            assert without_password(text) == text


def test_a_bad_address_with_a_password_is_not_repeated(loaded):
    with pytest.raises(ConfigError) as caught:
        loaded(journal_url=f"mysql://u:{PASSWORD}@h/db")
    assert "LCP_GATEWAY_JOURNAL_URL" in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_password_on_the_command_line_is_refused_and_not_repeated():
    with pytest.raises(ConfigError) as caught:
        load(flags={"journal_url": URL}, environ={})
    assert "--journal-url: other users can read" in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_an_address_without_a_password_may_stand_on_the_command_line(tmp_path):
    found = load(flags={"journal_url": "postgresql://u@h/db"}, environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert found.settings.journal_url == "postgresql://u@h/db"


def test_a_file_with_a_password_should_not_be_readable_by_all(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(f'journal_url = "{URL}"\n')
    for mode, expected in ((0o644, 1), (0o600, 0)):
        path.chmod(mode)
        assert len(load(flags={}, environ={}, config_path=path).warnings) == expected
    path.write_text('journal_url = "/var/j.db"\n')
    path.chmod(0o644)
    assert load(flags={}, environ={}, config_path=path).warnings == ()


def test_a_journal_that_is_off_is_warned_about(loaded):
    (warning,) = loaded(journal_url="off").warnings
    assert warning.startswith("LCP_GATEWAY_JOURNAL_URL: no journal is kept")


def test_play_money_in_a_journal_that_was_named_is_warned_about(loaded):
    (warning,) = loaded(embedded="1", journal_url="/var/j.db").warnings
    assert "play money" in warning


def test_a_start_without_any_limit_is_warned_about():
    (found,) = spending_warnings(Settings())
    assert "no limit on spending is set" in found


def test_a_daemon_that_limits_no_fees_is_warned_about():
    (found,) = fee_warnings(Settings(), limits_fees=False)
    assert "10,000 sat a payment" in found
    assert fee_warnings(Settings(), limits_fees=True) == ()
    assert fee_warnings(Settings(embedded=True), limits_fees=False) == ()


def test_any_cap_is_a_limit(subtests):
    for cap in ["max_price_msat", "max_total_msat", "budget_hour_msat", "budget_month_msat"]:
        with subtests.test(str(cap)):
            assert spending_warnings(Settings(**{cap: 1})) == ()


def test_a_budget_of_each_key_is_no_limit_without_keys():
    assert len(spending_warnings(Settings(key_budget_day_msat=1))) == 1
    assert spending_warnings(Settings(key_budget_day_msat=1, api_keys=("k",))) == ()


def test_play_money_needs_no_caution():
    assert spending_warnings(Settings(embedded=True)) == ()


def test_lnd_needs_its_certificate_and_a_macaroon(loaded, tmp_path):
    with pytest.raises(ConfigError) as caught:
        loaded(lnd_grpc_addr="lnd:10009")
    assert len(caught.value.problems) == 2
    there = tmp_path / "there"
    there.touch()
    with pytest.raises(ConfigError) as caught:
        loaded(lnd_tls_cert=str(there), lnd_macaroon_file=str(there))
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["has no effect without lnd_grpc_addr"] * 2
    with pytest.raises(ConfigError) as caught:
        loaded(lnd_grpc_addr="lnd:1", lnd_tls_cert=str(there), lnd_macaroon_file="/nowhere")
    assert caught.value.problems == ["LCP_GATEWAY_LND_MACAROON_FILE: no such file: /nowhere"]


def test_lnd_beside_the_embedded_node_is_odd(loaded, tmp_path):
    there = tmp_path / "there"
    there.touch()
    (warning,) = loaded(
        lnd_grpc_addr="lnd:1", lnd_tls_cert=str(there), lnd_macaroon_file=str(there), embedded="1"
    ).warnings
    assert "knows nothing of the embedded node" in warning


def test_no_more_peers_are_asked_at_once_than_in_all(loaded):
    with pytest.raises(ConfigError) as caught:
        loaded(quote_fanout="4")
    assert "quote_fanout (4) must not be more than quote_attempts (3)" in str(caught.value)
    assert loaded(quote_fanout="4", quote_attempts="4").settings.quote_fanout == 4


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"LCP_GATEWAY_WITHDRAWALS": "true"}, "has no effect unless auth is accounts"),
        (
            {"LCP_GATEWAY_WITHDRAWALS": "true", "LCP_GATEWAY_AUTH": "accounts"},
            "withdrawals are paid by lnd with lnd_withdrawal_macaroon_file, which is not set",
        ),
        (
            {
                "LCP_GATEWAY_WITHDRAWAL_MIN_MSAT": "5",
                "LCP_GATEWAY_WITHDRAWAL_MAX_MSAT": "4",
                "LCP_GATEWAY_AUTH": "accounts",
            },
            "withdrawal_min_msat must not be more than withdrawal_max_msat",
        ),
        ({"LCP_GATEWAY_LND_WITHDRAWAL_MACAROON_FILE": "/dev/null"}, "has no effect without lnd_grpc_addr"),
    ],
)
def test_withdrawals_that_nothing_could_pay_are_contradictions(tmp_path, settings, problem):
    with pytest.raises(ConfigError) as failed:
        load(flags={}, environ={"XDG_CONFIG_HOME": str(tmp_path), **settings})
    assert any(problem in line for line in failed.value.problems)


def test_a_macaroon_that_can_spend_and_that_others_may_read_is_warned_of(tmp_path):
    macaroon = tmp_path / "withdrawals.macaroon"
    macaroon.touch(mode=0o644)
    environ = {
        "XDG_CONFIG_HOME": str(tmp_path),
        "LCP_GATEWAY_LND_GRPC_ADDR": "lnd:10009",
        "LCP_GATEWAY_LND_WITHDRAWAL_MACAROON_FILE": str(macaroon),
        **{f"LCP_GATEWAY_{name}": str(macaroon) for name in ("LND_TLS_CERT", "LND_MACAROON_FILE")},
    }
    warnings = load(flags={}, environ=environ).warnings
    assert f"{macaroon} can spend and other users may read it: chmod 600" in warnings
