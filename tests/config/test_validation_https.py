"""HTTPS and proxy settings: contradictions are errors, and likely mistakes are warnings."""

import pytest

from lcp_gateway.config import ConfigError, load


@pytest.fixture
def read(tmp_path):
    def read(**given):
        environ = {f"LCP_GATEWAY_{name.upper()}": str(value) for name, value in given.items()}
        return load(flags={}, environ={"XDG_CONFIG_HOME": str(tmp_path), **environ})

    return read


@pytest.fixture
def files(tmp_path):
    """Two files that only their owner may read."""
    found = tmp_path / "a.pem", tmp_path / "a.key"
    for file in found:
        file.touch(mode=0o600)
    return found


def problems_of(read, **given):
    with pytest.raises(ConfigError) as caught:
        read(**given)
    return caught.value.problems


def test_a_key_without_a_certificate_is_refused(read, files):
    (problem,) = problems_of(read, http_tls_key=files[1])
    assert problem.startswith("LCP_GATEWAY_HTTP_TLS_KEY: a key without a certificate")


def test_missing_files_are_refused(read, tmp_path):
    problems = problems_of(read, http_tls_cert=tmp_path / "no", http_tls_key=tmp_path / "none")
    assert [problem.partition(": ")[2][:12] for problem in problems] == ["no such file"] * 2


def test_a_certificate_alone_may_hold_its_key(read, files):
    assert read(http_tls_cert=files[0]).warnings == ()


@pytest.mark.parametrize("held_apart", [True, False])
def test_a_key_that_others_may_read_is_a_warning(read, files, held_apart):
    certificate, key = files
    given = {"http_tls_cert": certificate} | ({"http_tls_key": key} if held_apart else {})
    holder = key if held_apart else certificate
    holder.chmod(0o644)
    (warning,) = read(**given).warnings
    assert warning.startswith(str(holder)) and "chmod 600" in warning


OPEN = {"http_addr": ":8443", "api_keys": "k"}


def test_keys_that_travel_unencrypted_are_a_warning(read):
    (warning,) = read(**OPEN).warnings
    assert "unencrypted" in warning and "http_tls_cert" in warning and "trusted_proxies" in warning


def test_with_a_certificate_or_a_proxy_they_do_not(read, files):
    assert read(**OPEN, http_tls_cert=files[0]).warnings == ()
    assert read(**OPEN, trusted_proxies="10.0.0.7").warnings == ()
    assert read(api_keys="k").warnings == (), "loopback needs no encryption"
