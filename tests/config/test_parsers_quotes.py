"""A secret in quotes or as JSON is refused at the start: no client's key would ever match it."""

import codecs
import itertools
import json

import pytest

from lcp_gateway.config import ConfigError, load, specs

KEY = "sk-0123456789"
WRONGLY_WRITTEN = {
    "double quotes": f'"{KEY}"',
    "single quotes": f"'{KEY}'",
    "a quote at its begin": f'"{KEY}',
    "a quote at its end": f"{KEY}'",
    "a JSON array": f'["{KEY}"]',
    "a JSON array without quotes": f"[{KEY}]",
    "a JSON object": f'{{"key":"{KEY}"}}',
}
# An example of each kind of secret.
WRITTEN = {"map": "authorization={}", "text": "{}", "list": "{}"}
SECRETS = [spec for spec in specs().values() if spec.secret]
URLS = ["journal_url", "redis_url"]


def loaded(environ, tmp_path):
    return load(flags={}, environ={"XDG_CONFIG_HOME": str(tmp_path), **environ})


def problems_of(environ, tmp_path):
    with pytest.raises(ConfigError) as caught:
        loaded(environ, tmp_path)
    return caught.value.problems


def test_no_secret_is_taken_in_quotes_or_brackets(tmp_path, subtests):
    """Regression: every client got 401 without a warning."""
    for spec, (kind, written) in itertools.product(SECRETS, WRONGLY_WRITTEN.items()):
        with subtests.test(spec.name, kind=kind):
            value = WRITTEN[spec.form.name].format(written)
            (problem,) = problems_of({spec.environment: value}, tmp_path)
            assert problem.startswith(f"{spec.environment}: ")
            assert "quote" in problem or "brackets" in problem or "JSON" in problem
            assert KEY not in problem


def test_blanks_and_line_ends_around_a_secret_are_no_part_of_it(tmp_path, subtests):
    for spec, around in itertools.product(SECRETS, [" {} ", "{}\r", "\t{}\r\n", "{}\n"]):
        with subtests.test(spec.name, around=around):
            environ = {spec.environment: around.format(WRITTEN[spec.form.name].format(KEY))}
            if spec.name in {"admin_key", "l402_secret"}:
                environ["LCP_GATEWAY_AUTH"] = "accounts"
            found = getattr(loaded(environ, tmp_path).settings, spec.name)
            assert found in (KEY, (KEY,), {"authorization": KEY})


def test_no_secret_holds_a_character_that_no_header_can_carry(tmp_path, subtests):
    for spec, inside in itertools.product(SECRETS, ["sk-\r1", "sk-\n1", "sk-“1”"]):
        with subtests.test(spec.name, inside=inside):
            value = WRITTEN[spec.form.name].format(inside)
            (problem,) = problems_of({spec.environment: value}, tmp_path)
            assert "no header can carry" in problem


def test_a_list_of_keys_in_another_notation_is_refused(tmp_path, subtests):
    for list_of_keys in ('["k1","k2"]', '["k1", "k2"]', '"k1","k2"', '"k1,k2"'):
        for variable in ("LCP_GATEWAY_API_KEYS", "OPENAI_SERVE_API_KEYS"):
            with subtests.test(variable, value=list_of_keys):
                (problem,) = problems_of({variable: list_of_keys}, tmp_path)
                assert problem.startswith(f"{variable}: ")
                assert "k1" not in problem


def test_a_list_of_the_file_is_no_json_in_a_text(tmp_path):
    (tmp_path / "lcp-gateway").mkdir()
    file = tmp_path / "lcp-gateway" / "config.toml"
    file.write_text('api_keys = ["k1", "k2"]\n')
    assert loaded({}, tmp_path).settings.api_keys == ("k1", "k2")
    file.write_text("api_keys = ['\"k1\"']\n")
    assert "key number 1" in problems_of({}, tmp_path)[0]


@pytest.mark.parametrize("name", URLS)
def test_an_address_with_a_password_is_not_taken_in_quotes(name, tmp_path):
    scheme = "redis" if name == "redis_url" else "postgresql"
    written = f'"{scheme}://gateway:{KEY}@db/gateway"'
    (problem,) = problems_of({f"LCP_GATEWAY_{name.upper()}": written}, tmp_path)
    assert "quote" in problem
    assert KEY not in problem


def test_the_key_of_a_node_is_refused_in_quotes(tmp_path, subtests):
    node = {"name": "box", "base_url": "http://127.0.0.1:1"}
    key_file = tmp_path / "key"
    for kind, written in WRONGLY_WRITTEN.items():
        with subtests.test(kind):
            (problem,) = problems_of({"LCP_GATEWAY_NODES": json.dumps([node | {"api_key": written}])}, tmp_path)
            assert "nodes[0].api_key" in problem
            key_file.write_text(written + "\r\n")
            (problem,) = problems_of(
                {"LCP_GATEWAY_NODES": json.dumps([node | {"api_key_file": str(key_file)}])}, tmp_path
            )
            assert "nodes[0]" in problem
            assert KEY not in problem


def test_a_byte_order_mark_is_no_part_of_the_configuration(tmp_path):
    """Regression: the file of an editor that writes one was refused as "Invalid statement"."""
    key_file = tmp_path / "key"
    key_file.write_bytes(codecs.BOM_UTF8 + f"{KEY}\r\n".encode())
    (tmp_path / "lcp-gateway").mkdir()
    (tmp_path / "lcp-gateway" / "config.toml").write_bytes(
        codecs.BOM_UTF8
        + b'http_addr = "127.0.0.1:9"\r\n'
        + b'[[nodes]]\r\nname = "box"\r\nbase_url = "http://127.0.0.1:1"\r\n'
        + f'api_key_file = "{key_file}"\r\n'.encode()
    )
    settings = loaded({}, tmp_path).settings
    assert settings.http_addr == "127.0.0.1:9"
    assert settings.nodes[0].api_key == KEY
