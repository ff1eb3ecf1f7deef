"""Variables that Kubernetes and docker --link create for a service with the gateway's name are ignored."""

import pytest

from lcp_gateway.config import ConfigError, load

KUBERNETES = {
    "SERVICE_HOST": "10.96.12.7",
    "SERVICE_PORT": "8080",
    "SERVICE_PORT_HTTP": "8080",
    "SERVICE_PORT_HTTP_METRICS": "9464",
    "PORT": "tcp://10.96.12.7:8080",
    "PORT_8080_TCP": "tcp://10.96.12.7:8080",
    "PORT_8080_TCP_PROTO": "tcp",
    "PORT_8080_TCP_PORT": "8080",
    "PORT_8080_TCP_ADDR": "10.96.12.7",
    "PORT_53_UDP": "udp://[fd00::7]:53",
    "PORT_53_UDP_PROTO": "udp",
    "PORT_53_UDP_PORT": "53",
    "PORT_53_UDP_ADDR": "fd00::7",
}
DOCKER = {
    "NAME": "/chat-ui/lcp_gateway",
    "PORT": "tcp://172.17.0.5:8080",
    "PORT_8080_TCP": "tcp://172.17.0.5:8080",
    "PORT_8080_TCP_ADDR": "172.17.0.5",
    "PORT_8080_TCP_PORT": "8080",
    "PORT_8080_TCP_PROTO": "tcp",
    "PORT_8080_TCP_START": "tcp://172.17.0.5:8080",
    "PORT_8080_TCP_END": "tcp://172.17.0.5:8081",
    "PORT_8080_TCP_PORT_START": "8080",
    "PORT_8080_TCP_PORT_END": "8081",
    "ENV_PATH": "/usr/bin",
    "ENV_LCP_GATEWAY_HTTP_ADDR": ":8080",
}
PREFIXES = ["LCP_GATEWAY_", "LCP_GATEWAY_METRICS_", "OPENAI_SERVE_"]


def loaded(environ, tmp_path):
    return load(flags={}, environ={"XDG_CONFIG_HOME": str(tmp_path), **environ})


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("links", [KUBERNETES, DOCKER], ids=["kubernetes", "docker"])
def test_links_to_a_service_of_our_name_are_passed_over(links, prefix, tmp_path):
    """Regression: each made the start fail with exit code 2 and a misleading hint."""
    environ = {prefix + name: value for name, value in links.items()}
    found = loaded(environ, tmp_path)
    assert found.settings == loaded({}, tmp_path).settings
    assert not [warning for warning in found.warnings if prefix in warning]


def test_settings_beside_the_links_are_read(tmp_path):
    environ = {"LCP_GATEWAY_" + name: value for name, value in (KUBERNETES | DOCKER).items()}
    environ["LCP_GATEWAY_HTTP_ADDR"] = "127.0.0.1:9999"
    assert loaded(environ, tmp_path).settings.http_addr == "127.0.0.1:9999"


def test_a_variable_that_no_link_makes_is_still_reported(tmp_path, subtests):
    for variable, value in [
        ("LCP_GATEWAY_SERVICE_PRT", "8080"),
        ("LCP_GATEWAY_SERVICE_PORT", "http"),
        ("LCP_GATEWAY_PORT_8080_TCP_ADR", "10.0.0.1"),
        ("LCP_GATEWAY_NODE_LISTN", "tcp://10.0.0.1:1"),
        ("LCP_GATEWAY_NAME", "my gateway"),
        ("LCP_GATEWAY_ENV_HTTP_ADDR", ":8080"),
        ("OPENAI_SERVE_HTTP_PORT", "8080"),
    ]:
        with subtests.test(str(variable)):
            with pytest.raises(ConfigError) as caught:
                loaded({variable: value}, tmp_path)
            assert [problem for problem in caught.value.problems if problem.startswith(variable)]
