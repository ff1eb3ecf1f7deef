"""The built packages can be installed in any environment, are complete, and run."""

import http.client
import json
import posixpath
import re
import signal
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

import pytest

from lcp_gateway.__about__ import __version__
from tests.support.installed import Installed, post_json, uv
from tests.support.promql import ROOT

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# The settings that require each extra, and the files that are read before.
NEEDS_EXTRA = {
    "lnd": {
        "LCP_GATEWAY_LND_GRPC_ADDR": "127.0.0.1:9",
        "LCP_GATEWAY_LND_TLS_CERT": "file",
        "LCP_GATEWAY_LND_MACAROON_FILE": "file",
    },
    "postgres": {"LCP_GATEWAY_JOURNAL_URL": "postgresql://user@127.0.0.1:9/nothing"},
    "redis": {"LCP_GATEWAY_REDIS_URL": "redis://127.0.0.1:9"},
    "tracing": {"LCP_GATEWAY_OTLP_ENDPOINT": "http://127.0.0.1:9"},
}


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path
    requirements: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel that was built of it."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--out-dir", folder, ROOT)
    requirements = folder / "requirements.txt"
    uv("export", "--frozen", "--no-dev", "--no-emit-project", "--no-hashes", "-o", requirements)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(sdist, wheel, requirements)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The wheel in a new environment with its dependencies, in the versions of the lock file, without extras."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "venv"
    uv("venv", "--python", sys.executable, environment)
    uv("pip", "install", "--python", environment, "-r", built.requirements, built.wheel)
    (folder / "home").mkdir()
    (folder / "home" / "file").write_text("a file")
    return Installed(environment, folder / "home")


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_whole_package_and_nothing_else(built):
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "lcp_gateway"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tracked.returncode:
        pytest.skip("this is no git checkout")
    ours = {name for name in contents(built.wheel) if ".dist-info/" not in name}
    assert ours == {name for name in tracked.stdout.split() if (ROOT / name).exists()}
    assert {"lcp_gateway/py.typed", "lcp_gateway/store/database/migrations/script.py.mako"} <= ours
    assert "lcp_gateway/_gen/lcpd/lcpd_pb2.py" in ours


def test_the_wheel_says_what_the_project_says(built):
    (metadata,) = [text for name, text in contents(built.wheel).items() if "/METADATA" in name]
    said = HeaderParser().parsestr(metadata.decode())
    assert (said["Name"], said["Version"]) == (PROJECT["project"]["name"], __version__)
    assert said["License-Expression"] == PROJECT["project"]["license"]
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["project"]["optional-dependencies"])
    assert metadata.decode().count("# lcp-gateway") >= 1
    assert any("/licenses/LICENSE" in name for name in contents(built.wheel))


def test_a_wheel_of_the_checkout_is_that_of_the_source_distribution(built, tmp_path):
    uv("build", "--wheel", "--out-dir", tmp_path, ROOT)
    (direct,) = tmp_path.glob("*.whl")
    assert contents(direct) == contents(built.wheel)


def test_the_source_distribution_holds_no_more_than_it_should(built):
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tops = {name.partition("/")[0] for name in names}
    assert tops == {
        "lcp_gateway", "protos", "docs", "deploy", "README.md", "CHANGELOG.md", "LICENSE",
        "pyproject.toml", ".gitignore", "PKG-INFO",
    }  # fmt: skip
    # An operator's folder may hold secrets, which a git ignore file of its own keeps out of git alone.
    assert {name for name in names if name.startswith("deploy/")} == {
        "deploy/systemd/lcp-gateway.service",
        "deploy/systemd/lcp-gateway-node.service",
        "deploy/systemd/lcp-gateway-lnd-node.service",
    }


def test_it_runs_as_a_program_and_as_a_module(installed):
    for command in ([installed.program], [installed.python, "-m", "lcp_gateway"]):
        done = installed.run(*command, "--version")
        assert (done.returncode, done.stdout) == (0, f"lcp-gateway {__version__}\n"), done.stderr
    where = installed.run(installed.python, "-c", "import lcp_gateway; print(lcp_gateway.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed.environment)


def test_it_runs_without_being_installed(built):
    printed = uv(
        "tool", "run", "--no-config", "--from", built.wheel, "--constraints", built.requirements,
        "lcp-gateway", "--version", cwd=built.wheel.parent,
    )  # fmt: skip
    assert printed == f"lcp-gateway {__version__}\n"


def test_it_answers_keeps_its_books_and_ends(installed):
    with installed.serving("--embedded") as (process, port):
        question = {"model": "echo-1", "messages": [{"role": "user", "content": "Say hello."}]}
        status, answer = post_json(port, "/v1/chat/completions", question)
        assert status == 200 and "Say hello." in answer["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    listed = installed.run(installed.program, "purchases", "list", "--embedded", "--json")
    assert '"state": "delivered"' in listed.stdout, listed.stderr


def test_its_console_is_whole_without_a_build_step(installed):
    """Nothing of node and no registry: the page, and every file that the modules import, come from the wheel."""
    with installed.serving("--embedded") as (_process, port):

        def read(path):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200, path
            return answer.read().decode()

        wanted = re.findall(r'(?:src|href)="(/console/[^"]+)"', read("/console/"))
        for path in wanted:
            named = re.findall(r'"(\.\.?/[\w./-]+\.js)"', read(path)) if path.endswith(".js") else []
            wanted += [found for name in named if (found := posixpath.normpath(f"{path}/../{name}")) not in wanted]
        assert len(wanted) > 20


def test_it_makes_a_configuration_that_it_takes(installed):
    assert installed.run(installed.program, "config", "generate").returncode == 0
    checked = installed.run(installed.program, "config", "check")
    assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, "it can be used")


def test_each_extra_is_tested():
    assert set(NEEDS_EXTRA) == set(PROJECT["project"]["optional-dependencies"])


SERVE_WITH_EACH = """
import json, os, sys
from lcp_gateway.cli import main
for settings in json.loads(sys.argv[1]):
    os.environ.update(settings)
    print("ended with", main(["serve", "--embedded"]), file=sys.stderr)
    for name in settings:
        del os.environ[name]
"""


def test_a_setting_whose_extra_is_missing_says_so_at_the_start(installed):
    # One process for all. A gateway that starts all the same would run on until the time-out.
    given = json.dumps([*NEEDS_EXTRA.values()])
    done = installed.run(installed.python, "-c", SERVE_WITH_EACH, given)
    assert "Traceback" not in done.stderr
    ends = [line for line in done.stderr.splitlines() if line.startswith(("lcp-gateway: ", "ended with"))]
    assert len(ends) == 2 * len(NEEDS_EXTRA), done.stderr
    for extra, said, code in zip(NEEDS_EXTRA, ends[::2], ends[1::2], strict=True):
        assert f"lcp-gateway[{extra}]" in said
        assert code in {"ended with 1", "ended with 2"}
