"""The systemd units, checked as data and by systemd's own tools: they run real commands and are confined."""

import os
import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from unittest import mock

import pytest

from lcp_gateway.cli import main
from lcp_gateway.cli.node import program as node_program
from lcp_gateway.cli.node.options import store_path
from lcp_gateway.cli.output import USAGE_ERROR
from lcp_gateway.cli.program import _COMMAND_MODULES
from lcp_gateway.config import Settings, specs
from lcp_gateway.config.paths import default_file, journal_place
from lcp_gateway.node.settings.model import NodeSettings
from tests.support.huge_pages import documented
from tests.support.promql import ROOT

FOLDER = ROOT / "deploy" / "systemd"
GATEWAY = "lcp-gateway"
LND_NODE = "lcp-gateway-lnd-node"
UNITS = sorted(path.stem for path in FOLDER.glob("*.service"))
TIMEOUT_S = 60
NEEDS_ANALYZE = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")


def file_of(name):
    return FOLDER / f"{name}.service"


def service_of(name):
    """Each key's values in the unit's section, in order: a key may stand there more than once."""
    sections, found = defaultdict(lambda: defaultdict(list)), None
    for line in file_of(name).read_text().splitlines():
        if line.startswith("["):
            found = sections[line.strip("[]")]
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key].append(value)
    return sections["Service"]


def environment_of(service):
    return dict(each.split("=", 1) for each in service["Environment"])


@pytest.fixture(params=UNITS)
def name(request):
    return request.param


@pytest.fixture
def service(name):
    return service_of(name)


@pytest.fixture
def gateway():
    return service_of(GATEWAY)


@pytest.fixture
def lnd_node():
    return service_of(LND_NODE)


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


def test_all_units_are_looked_at():
    assert {GATEWAY, LND_NODE} < set(UNITS)


def test_it_runs_a_command_of_the_program(service, capfd):
    program, command, *rest = shlex.split(service["ExecStart"][0])
    assert program.endswith("/bin/lcp-gateway") and command in _COMMAND_MODULES
    main((command, *(["run"] if command == "join" else []), "--help"))
    assert {each for each in rest if each.startswith("--")} <= set(re.findall(r"--[a-z-]+", capfd.readouterr().out))
    assert service["Type"] == ["notify"] and service["NotifyAccess"] == ["main"]


def test_the_gateway_reloads_its_configuration(gateway):
    assert gateway["ExecStart"][0].endswith("/lcp-gateway serve")
    assert gateway["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_it_is_found_where_the_package_is_installed(service):
    # The same folder as in the container's image.
    assert service["ExecStart"][0].split("/bin/")[0] in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("name", "grace_s"), [(GATEWAY, specs()["shutdown_grace_s"].default), (LND_NODE, node_program.GRACE_S)]
)
def test_jobs_that_are_paid_for_may_end(name, grace_s):
    service = service_of(name)
    assert seconds(service["TimeoutStopSec"][0]) > grace_s
    # Children (an embedded node, servers of local models) must not be told to stop before the process that uses them.
    assert service["KillMode"] == ["mixed"]


def test_a_node_may_wait_for_its_lnd(lnd_node):
    assert seconds(lnd_node["TimeoutStartSec"][0]) > NodeSettings().startup_timeout_s


@pytest.mark.parametrize("name", [GATEWAY, LND_NODE])
def test_a_process_that_hangs_is_started_again(name):
    assert 10 <= seconds(service_of(name)["WatchdogSec"][0]) <= 60


def test_a_process_that_dies_is_started_again_and_a_wrong_configuration_is_not(service):
    assert service["Restart"] == ["on-failure"]
    assert service["RestartPreventExitStatus"] == [str(USAGE_ERROR)]


def test_the_journal_is_kept_where_the_service_may_write(gateway):
    with mock.patch.dict(os.environ, environment_of(gateway)):
        folder = f"/var/lib/{gateway['StateDirectory'][0]}"
        assert str(journal_place(Settings()).parent) == folder
    assert gateway["WorkingDirectory"] == [folder]


def test_the_nodes_database_is_kept_where_it_alone_may_write(gateway, lnd_node):
    (folder,) = lnd_node["StateDirectory"]
    with mock.patch.dict(os.environ, environment_of(lnd_node)):
        assert store_path(NodeSettings()).is_relative_to(f"/var/lib/{folder}")
    # Two users of their own cannot share one.
    assert folder not in gateway["StateDirectory"] and lnd_node["User"] != gateway["User"]


def test_the_state_is_read_by_no_other_user(service):
    assert service["StateDirectoryMode"] == ["0700"]


def test_the_configuration_is_read_from_the_folder_that_is_made_for_it(service):
    folder = f"/etc/{service['ConfigurationDirectory'][0]}"
    assert str(default_file(environment_of(service))) == f"{folder}/config.toml"
    named = [Path(word) for word in shlex.split(service["ExecStart"][0]) if word.endswith(".toml")]
    assert all(str(path.parent) == folder for path in named)


def test_secrets_are_on_no_command_line_and_not_in_the_unit(name, service):
    assert not any(variable.startswith(("LCP_GATEWAY_", "LCPD_")) for variable in environment_of(service))
    (file,) = service["EnvironmentFile"]
    assert file.startswith("-/etc/lcp-gateway/"), "a file that need not be there"
    # Files that only root can read are named as systemd's copies of them.
    given = {entry.split(":")[0] for entry in service["LoadCredential"]}
    words = shlex.split(service["ExecStart"][0])
    assert {Path(word).name for word in words if word.startswith("/run/credentials/")} == given
    assert all(f"/run/credentials/{name}.service/" in word for word in words if "/credentials/" in word)


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


def test_it_reaches_peers_sockets_and_systemd(service):
    assert set(service["RestrictAddressFamilies"][0].split()) == {"AF_INET", "AF_INET6", "AF_UNIX"}


def test_the_gateways_heap_is_on_huge_pages(gateway):
    assert documented().items() <= environment_of(gateway).items()


def test_no_comment_is_parsed_as_a_value(name):
    for line in file_of(name).read_text().splitlines():
        assert line.startswith("#") or "#" not in line


@NEEDS_ANALYZE
def test_systemd_finds_nothing_wrong(name, tmp_path):
    program = tmp_path / "lcp-gateway"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / f"{name}.service"
    copy.write_text(file_of(name).read_text().replace("/opt/lcp-gateway/bin/lcp-gateway", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    # It also checks other units of the machine, which are ignored.
    ours = [line for line in done.stderr.splitlines() if copy.name in line]
    assert not ours


@NEEDS_ANALYZE
def test_systemd_analyze_rates_it_as_protected(name):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(file_of(name))],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        pytest.skip("an older systemd cannot say it")
    assert done.returncode == 0, done.stdout.splitlines()[-1]
