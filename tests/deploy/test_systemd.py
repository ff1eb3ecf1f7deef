"""The systemd unit, checked as data and by systemd's own tools: it runs a real command and is confined."""

import re
import shlex
import shutil
import subprocess
from collections import defaultdict

import pytest

from lcp_gateway.config import Settings, specs
from lcp_gateway.config.paths import default_file, journal_place
from tests.support.huge_pages import documented
from tests.support.promql import ROOT

UNIT = ROOT / "deploy" / "systemd" / "lcp-gateway.service"
TIMEOUT_S = 60
NEEDS_ANALYZE = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")


@pytest.fixture(scope="module")
def unit():
    """Each key's values by section, in order: a key may stand there more than once."""
    sections, found = defaultdict(lambda: defaultdict(list)), None
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            found = sections[line.strip("[]")]
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key].append(value)
    return sections


@pytest.fixture(scope="module")
def service(unit):
    return unit["Service"]


@pytest.fixture(scope="module")
def environment(service):
    return dict(each.split("=", 1) for each in service["Environment"])


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


def test_it_runs_a_command_of_the_program(service):
    from lcp_gateway.cli.program import _COMMAND_MODULES

    program, command, *rest = shlex.split(service["ExecStart"][0])
    assert program.endswith("/bin/lcp-gateway") and command in _COMMAND_MODULES and not rest
    assert service["Type"] == ["notify"] and service["NotifyAccess"] == ["main"]
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_it_is_found_where_the_package_is_installed(service):
    # The same folder as in the container's image.
    assert service["ExecStart"][0].split("/bin/")[0] in (ROOT / "Dockerfile").read_text()


def test_jobs_that_are_paid_for_may_end(service):
    stop = seconds(service["TimeoutStopSec"][0])
    assert stop > specs()["shutdown_grace_s"].default
    # The embedded node is in the same control group and must not be told to stop before its gateway.
    assert service["KillMode"] == ["mixed"]


def test_a_gateway_that_hangs_or_dies_is_started_again_and_a_wrong_configuration_is_not(service):
    from lcp_gateway.cli.output import USAGE_ERROR

    assert 10 <= seconds(service["WatchdogSec"][0]) <= 60
    assert service["Restart"] == ["on-failure"]
    assert service["RestartPreventExitStatus"] == [str(USAGE_ERROR)]


def test_the_journal_is_kept_where_the_service_may_write(service, environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = f"/var/lib/{service['StateDirectory'][0]}"
    assert str(journal_place(Settings()).parent) == folder
    assert service["WorkingDirectory"] == [folder]
    assert service["StateDirectoryMode"] == ["0700"]


def test_the_configuration_is_read_from_the_folder_that_is_made_for_it(service, environment):
    assert str(default_file(environment)) == (f"/etc/{service['ConfigurationDirectory'][0]}/config.toml")


def test_secrets_are_on_no_command_line_and_not_in_the_unit(service, environment):
    assert not any(name.startswith("LCP_GATEWAY_") for name in environment)
    (file,) = service["EnvironmentFile"]
    assert file.startswith("-/etc/lcp-gateway/"), "a file that need not be there"
    assert "--" not in service["ExecStart"][0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("CapabilityBoundingSet", ""),
        ("UMask", "0077"),
    ],
)
def test_it_has_no_more_rights_than_it_needs(service, key, value):
    assert service[key] == [value]


def test_it_reaches_peers_the_daemons_socket_and_systemd(service):
    assert set(service["RestrictAddressFamilies"][0].split()) == {"AF_INET", "AF_INET6", "AF_UNIX"}


def test_the_heap_is_on_huge_pages(environment):
    assert documented().items() <= environment.items()


def test_no_comment_is_parsed_as_a_value():
    for line in UNIT.read_text().splitlines():
        assert line.startswith("#") or "#" not in line


@NEEDS_ANALYZE
def test_systemd_finds_nothing_wrong(tmp_path):
    program = tmp_path / "lcp-gateway"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/lcp-gateway/bin/lcp-gateway", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    # It also checks other units of the machine, which are ignored.
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert not ours


@NEEDS_ANALYZE
def test_systemd_analyze_rates_it_as_protected():
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(UNIT)],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        pytest.skip("an older systemd cannot say it")
    assert done.returncode == 0, done.stdout.splitlines()[-1]
