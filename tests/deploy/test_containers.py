"""The container files, checked as data: every path, variable, port and command in them exists."""

import re
import tomllib

import pytest
import yaml

from lcp_gateway.config.settings import specs
from tests.support.compose import COMPOSE, DOCKERFILE, resolved, services
from tests.support.huge_pages import documented
from tests.support.promql import ROOT

GATEWAYS = {name for name, service in services().items() if "build" in service}
OPERATORS = ("gateway-operator-1", "gateway-operator-2")


@pytest.fixture(scope="module")
def known_variables():
    return {spec.environment for spec in specs().values()}


def test_there_is_a_gateway_for_each_profile():
    assert {name: tuple(services()[name]["profiles"]) for name in GATEWAYS} == {
        "gateway-embedded": ("embedded",),
        "gateway-lcpd": ("lcpd",),
        "gateway-operator-1": ("operator",),
        "gateway-operator-2": ("operator",),
    }


@pytest.mark.parametrize("name", services())
def test_ports_are_published_on_loopback_only(name):
    for port in services()[name].get("ports", ()):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", services())
def test_what_is_mounted_exists(name):
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]
    for mount in services()[name].get("volumes", ()):
        source, target, *flags = mount.split(":")
        assert target.startswith("/")
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert flags == ["ro"], f"{source} could be changed from inside"
        else:
            assert source in volumes


def test_every_named_volume_is_used():
    used = {m.split(":")[0] for s in services().values() for m in s.get("volumes", ())}
    assert set(yaml.safe_load(COMPOSE.read_text())["volumes"]) <= used


@pytest.mark.parametrize("name", sorted(GATEWAYS))
def test_a_gateway_is_given_only_settings_that_exist(name, known_variables):
    assert set(services()[name]["environment"]) <= known_variables


@pytest.mark.parametrize("name", sorted(GATEWAYS))
def test_a_gateway_starts_with_the_settings_it_is_given(name, tmp_path):
    from lcp_gateway.config import load

    for secret in services()[name].get("secrets", ()):
        (tmp_path / secret).write_text("a secret")
    environment = {
        key: resolved(str(value)).replace("/run/secrets", str(tmp_path))
        for key, value in services()[name]["environment"].items()
    }
    flags = {"embedded": True} if "--embedded" in services()[name]["command"] else {}
    loaded = load(flags=flags, environ=environment, config_path=None)
    assert loaded.settings.http_addr
    assert loaded.settings.log_format == "json"


@pytest.mark.parametrize("name", sorted(GATEWAYS))
@pytest.mark.parametrize("file", ["prometheus.yml", "operator.yml"])
def test_prometheus_reaches_a_gateway_by_a_name_that_it_answers_to(name, file):
    jobs = yaml.safe_load((ROOT / "deploy/prometheus" / file).read_text())["scrape_configs"]
    (job,) = [job for job in jobs if job["job_name"] == "lcp-gateway"]
    targets = [target for static in job["static_configs"] for target in static["targets"]]
    answered = resolved(services()[name]["environment"]["LCP_GATEWAY_ALLOWED_HOSTS"]).split(",")
    assert {target.rpartition(":")[0] for target in targets} <= set(answered)


@pytest.mark.parametrize("name", sorted(GATEWAYS))
def test_a_gateway_cannot_write_or_gain_rights(name):
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", ["gateway-embedded", "gateway-lcpd"])
def test_what_was_paid_outlives_the_container(name):
    from lcp_gateway.config.paths import journal_place
    from lcp_gateway.config.settings import Settings

    (mount,) = services()[name]["volumes"]
    place = mount.split(":")[1]
    image = DOCKERFILE.read_text()
    (state_home,) = re.findall(r"XDG_STATE_HOME=(\S+)", image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", state_home)
        assert str(journal_place(Settings()).parent) == place
    # A new volume takes its owner from the image.
    (user,) = re.findall(r"^USER (\d+):", image, re.MULTILINE)
    assert re.search(rf"install -d .*-o {user} .*{place}$", image, re.MULTILINE)


def test_an_image_without_settings_serves_no_client(dockerfile):
    assert "ALLOW_OPEN" not in "\n".join(dockerfile)
    for name in GATEWAYS:
        environment = services()[name]["environment"]
        is_open = environment.get("LCP_GATEWAY_ALLOW_OPEN") == "true"
        assert is_open is (environment.get("LCP_GATEWAY_AUTH") != "accounts")


def test_both_gateways_of_an_operator_have_the_same_settings_except_ports():
    first, second = (services()[name]["environment"] for name in OPERATORS)
    differ = {name for name in first | second if first.get(name) != second.get(name)}
    assert differ == {"LCP_GATEWAY_HTTP_ADDR", "LCP_GATEWAY_METRICS_ADDR"}


def test_an_operators_secrets_are_in_no_file_that_is_committed():
    for name in OPERATORS:
        environment = services()[name]["environment"]
        assert environment["LCP_GATEWAY_ADMIN_KEY"] == "${LCP_GATEWAY_ADMIN_KEY:-}"
        assert ":${POSTGRES_PASSWORD:-}@postgres/" in environment["LCP_GATEWAY_JOURNAL_URL"]
        assert ":${REDIS_PASSWORD:-}@redis:" in environment["LCP_GATEWAY_REDIS_URL"]
    secrets = yaml.safe_load(COMPOSE.read_text())["secrets"]
    assert set(secrets) == set(services()[OPERATORS[0]]["secrets"])
    ignored = (ROOT / "deploy/operator/.gitignore").read_text().splitlines()
    assert "*" in ignored
    assert all(secret["file"].startswith("./deploy/operator/") for secret in secrets.values())


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_postgres_and_redis_are_not_published(name):
    assert "ports" not in services()[name]
    for gateway in OPERATORS:
        assert services()[gateway]["depends_on"][name] == {"condition": "service_healthy"}


def test_a_redis_without_a_password_does_not_start(tmp_path):
    """The command of the compose file."""
    import os
    import subprocess

    program = services()["redis"]["command"]
    assert program[:2] == ["sh", "-c"]
    script = program[2].replace("$$", "$").replace("redis-server -", "cat")
    for password, code in (("", 2), ("s3cret", 0)):
        done = subprocess.run(
            ["sh", "-c", script],
            env={"PATH": os.environ["PATH"], "REDIS_PASSWORD": password},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode != 0) is (code != 0), done.stderr
        assert (f"requirepass {password}\n" in done.stdout) is (code == 0)


def test_a_gateway_has_more_time_to_stop_than_its_jobs():
    grace_s = specs()["shutdown_grace_s"].default
    for name in GATEWAYS:
        assert int(services()[name]["stop_grace_period"].removesuffix("s")) > grace_s


def test_the_daemon_without_authentication_listens_on_loopback_only():
    for name in ("gateway-lcpd", *OPERATORS):
        gateway = services()[name]
        assert gateway["network_mode"] == "service:lcpd"
        assert gateway["environment"]["LCP_GATEWAY_LCPD_GRPC_ADDR"].startswith("127.0.0.1:")
        assert "ports" not in gateway
    assert all("50051" not in port for port in services()["lcpd"]["ports"])


def test_prometheus_scrapes_the_name_that_both_gateways_answer_to():
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "lcp-gateway"]
    (target,) = job["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    for name in ("gateway-embedded", "lcpd"):
        service = services()[name]
        assert host in service["networks"]["default"]["aliases"]
        assert f"127.0.0.1:{port}:{port}" in service["ports"]
    for name in GATEWAYS - {"gateway-operator-2"}:
        assert services()[name]["environment"]["LCP_GATEWAY_HTTP_ADDR"] == f":{port}"


def test_an_operators_prometheus_scrapes_both_gateways_where_no_key_is_asked_for():
    config = yaml.safe_load((ROOT / "deploy/prometheus/operator.yml").read_text())
    usual = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "lcp-gateway"]
    ((*targets,),) = [targets["targets"] for targets in job["static_configs"]]
    environments = [services()[name]["environment"] for name in OPERATORS]
    assert targets == [f"gateway{given['LCP_GATEWAY_METRICS_ADDR']}" for given in environments]
    published = services()["lcpd"]["ports"]
    for given in environments:
        port = given["LCP_GATEWAY_HTTP_ADDR"].removeprefix(":")
        assert f"127.0.0.1:{port}:{port}" in published
        assert not any(given["LCP_GATEWAY_METRICS_ADDR"] in mapping for mapping in published)
    assert {**config, "scrape_configs": 0} == {**usual, "scrape_configs": 0}
    mounts = [mount.split(":")[0] for mount in services()["prometheus-operator"]["volumes"]]
    assert "./deploy/prometheus/operator.yml" in mounts


def test_each_profile_has_one_prometheus_of_the_name_that_grafana_asks():
    for profile in ("embedded", "lcpd", "operator"):
        found = [
            name
            for name, service in services().items()
            if "/prom/" in f"/{resolved(service['image'])}" and profile in service["profiles"]
        ]
        (name,) = found
        aliases = services()[name].get("networks", {}).get("default", {}).get("aliases", [])
        assert "prometheus" in {name, *aliases}


@pytest.mark.parametrize("name", services())
def test_a_service_waits_only_for_services_that_run_in_its_profile(name):
    known = services()
    mine = set(known[name].get("profiles", ()))
    waited_for = list(known[name].get("depends_on", ()))
    waited_for += [m.removeprefix("service:") for m in [known[name].get("network_mode", "")] if m]
    for other in waited_for:
        assert mine <= set(known[other].get("profiles", mine))


@pytest.mark.parametrize("name", [n for n in services() if n != "lcpd"])
def test_health_is_checked(name):
    assert services()[name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("image", [service["image"] for service in services().values()], ids=resolved)
def test_images_can_be_replaced_and_are_never_the_latest(image):
    assert image.startswith("${")
    assert re.search(r":[\w.-]+$", resolved(image)) and not resolved(image).endswith(":latest")


def test_grafana_finds_the_dashboard_where_it_is_mounted():
    mounts = dict(mount.split(":")[:2] for mount in services()["grafana"]["volumes"])
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/lcp-gateway.yml").read_text())[
        "providers"
    ][0]
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    inside = mounts["./deploy/grafana/dashboards"]
    assert provider["options"]["path"] == inside
    assert home == f"{inside}/lcp-gateway.json"
    assert (ROOT / "deploy/grafana/dashboards/lcp-gateway.json").exists()


def test_the_data_source_is_the_prometheus_of_the_same_file():
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ][0]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services()


@pytest.fixture(scope="module")
def dockerfile():
    joined = DOCKERFILE.read_text().replace("\\\n", " ")
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def test_what_the_image_copies_is_in_the_build_context(dockerfile):
    allowed = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = set()
    for line in dockerfile:
        if line.startswith("COPY") and "--from" not in line:
            copied |= {source.removeprefix("./") for source in line.split()[1:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_has_all_that_the_package_is_built_from(dockerfile):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"], "uv.lock"}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    text = "\n".join(line for line in dockerfile if line.startswith("COPY"))
    assert all(name in text for name in needed)


def test_the_image_installs_what_the_lock_file_says(dockerfile):
    syncs = [line for line in dockerfile if "uv sync" in line]
    assert syncs and all("--locked" in line and "--no-dev" in line for line in syncs)


def test_the_image_does_not_run_as_root(dockerfile):
    last_stage = dockerfile[max(i for i, line in enumerate(dockerfile) if line.startswith("FROM")) :]
    (user,) = [line.split()[1] for line in last_stage if line.startswith("USER")]
    assert user.split(":")[0] not in {"0", "root"}


def test_the_image_sets_only_settings_that_exist(dockerfile, known_variables):
    named = set(re.findall(r"\b(LCP_GATEWAY_\w+)=", "\n".join(dockerfile)))
    assert named and named <= known_variables


def test_the_heap_is_on_huge_pages(dockerfile):
    set_to = dict(re.findall(r'\b([A-Z_]+)="?([^"\s]+)"?', "\n".join(dockerfile)))
    assert documented().items() <= set_to.items()


def test_the_image_runs_a_command_that_the_project_installs(dockerfile):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (entry,) = [line for line in dockerfile if line.startswith("ENTRYPOINT")]
    assert entry.split('"')[1] in project["project"]["scripts"]


def test_the_commands_and_flags_of_the_containers_are_real_ones():
    import subprocess
    import sys

    for name in GATEWAYS:
        done = subprocess.run(
            [sys.executable, "-m", "lcp_gateway", *services()[name]["command"], "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_health_check_asks_the_gateway_that_the_container_runs():
    """The health check is the program's own, and reads the address from the container's variables."""
    (check,) = {tuple(services()[name]["healthcheck"]["test"]) for name in GATEWAYS}
    assert check == ("CMD", "python", "-m", "lcp_gateway.cli.probe")
    written = ", ".join(f'"{word}"' for word in check[1:])
    assert f"CMD [{written}]" in DOCKERFILE.read_text()
    for name in GATEWAYS:
        service = services()[name]
        assert "LCP_GATEWAY_HTTP_ADDR" in service["environment"]
        assert not any(word.startswith("--http") for word in service["command"])


def test_the_image_writes_only_to_the_journals_folder(dockerfile):
    assert "PYTHONDONTWRITEBYTECODE=1" in "\n".join(dockerfile)
    assert all(services()[name]["tmpfs"] == ["/tmp"] for name in GATEWAYS)


def test_the_image_has_all_extras(dockerfile):
    assert all("--all-extras" in line for line in dockerfile if "uv sync" in line)
