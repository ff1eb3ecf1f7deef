"""``config check`` lists every problem and its sources, and its exit code says whether a gateway would start."""

import pytest

SECRET = "sk-do-not-print"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "config.toml"


def test_a_good_file_is_good(run, file):
    file.write_text('http_addr = "127.0.0.1:9000"\n')
    outcome = run("config", "check", str(file))
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [f"file: {file}", "it can be used"]


def test_every_problem_is_a_line(run, file):
    file.write_text('heartbeat = 1\nmax_body_bytes = "much"\nlcpd_tls_cert = "/nowhere"\n')
    outcome = run("config", "check", str(file))
    assert outcome.code == 1
    _, *problems = outcome.out.splitlines()
    assert len(problems) == 2 and all(line.startswith(f"wrong: {file}: ") for line in problems)
    file.write_text("lcpd_tls_cert = '/nowhere'\nquote_fanout = 9\n")
    assert run("config", "check", str(file)).out.count("wrong: ") == 4


def test_a_file_that_is_no_toml_is_wrong(run, file):
    file.write_text("what is this\n")
    outcome = run("config", "check", str(file))
    assert outcome.code == 1 and "not valid TOML" in outcome.out


def test_a_file_that_cannot_be_read_is_something_else(run, file, tmp_path):
    for place in (file, tmp_path):
        outcome = run("config", "check", str(place))
        assert outcome.code == 2 and "cannot be read" in outcome.err and not outcome.out
    file.write_bytes(b"\xff\xfe")
    assert run("config", "check", str(file)).code == 2


def test_warnings_are_printed_and_are_no_failure(run, file):
    file.write_text(f'api_keys = ["{SECRET}"]\njournal_url = "off"\n')
    file.chmod(0o644)
    outcome = run("config", "check", str(file))
    assert outcome.code == 0
    assert outcome.out.count("warning: ") == 2 and "chmod 600" in outcome.out
    assert SECRET not in outcome.out


def test_the_environment_counts_as_it_does_for_serve(run, file, monkeypatch):
    file.write_text('auth = "keys"\nhttp_addr = "nowhere"\n')
    assert run("config", "check", str(file)).code == 1
    monkeypatch.setenv("LCP_GATEWAY_API_KEYS", SECRET)
    monkeypatch.setenv("OPENAI_SERVE_HTTP_ADDR", "127.0.0.1:1")
    outcome = run("config", "check", str(file))
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        f"file: {file}",
        "environment: LCP_GATEWAY_API_KEYS, OPENAI_SERVE_HTTP_ADDR",
        "not used: http_addr of the file, since OPENAI_SERVE_HTTP_ADDR takes precedence",
        "it can be used",
    ]


def test_the_environment_can_be_left_out(run, file, monkeypatch):
    file.write_text("heartbeat_s = 15\n")
    monkeypatch.setenv("LCP_GATEWAY_TYPO", "1")
    assert run("config", "check", str(file)).code == 1
    outcome = run("config", "check", str(file), "--no-environment")
    assert (outcome.code, outcome.out.splitlines()[-1]) == (0, "it can be used")


def test_without_a_name_it_is_the_usual_file(run, tmp_path, file, monkeypatch):
    usual = tmp_path / "xdg" / "lcp-gateway" / "config.toml"
    outcome = run("config", "check")
    assert outcome.code == 0 and outcome.out.startswith(f"file: none, there is none at {usual}\n")
    assert run("config", "check", "--no-environment").code == 2
    usual.parent.mkdir(parents=True)
    usual.write_text("heartbeat_s = 15\n")
    assert run("config", "check").out.startswith(f"file: {usual}\n")
    monkeypatch.setenv("LCP_GATEWAY_CONFIG", str(file))
    assert run("config", "check").code == 2
    file.write_text("")
    assert run("config", "check").out.startswith(f"file: {file}\n")


def test_no_secret_is_repeated(run, file):
    file.write_text(
        f'api_keys = "{SECRET}\\u0001"\njournal_url = "postgresql://a:{SECRET}@/x"\nbad = "{SECRET}"\n'
        f'[[nodes]]\nname = "a"\nbase_url = "http://u:{SECRET}@h"\napi_key = "{SECRET}"\n'
    )
    outcome = run("config", "check", str(file))
    assert outcome.code == 1 and SECRET not in outcome.out + outcome.err


def test_the_file_may_be_named_as_for_every_other_command(run, tmp_path):
    """Regression: ``--config`` was no option."""
    file, other = tmp_path / "a.toml", tmp_path / "b.toml"
    file.write_text("http_addr = ':x'\n")
    other.write_text("")
    assert run("config", "check", "--config", str(file)).out == run("config", "check", str(file)).out
    assert run("config", "check", "--config", str(file)).code == 1
    outcome = run("config", "check", str(other), "--config", str(file))
    assert outcome.code == 2 and "name one file" in outcome.err
