"""``config generate`` writes a file that only its owner may read, and overwrites none unless told to."""

import os
import stat
import threading

import pytest

from lcp_gateway.config.docs import sample_file


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def usual(tmp_path):
    return tmp_path / "xdg" / "lcp-gateway" / "config.toml"


def test_it_goes_where_serve_looks_for_it(run, usual):
    outcome = run("config", "generate")
    assert (outcome.code, outcome.out) == (0, f"written: {usual}\n")
    assert usual.read_text() == sample_file()
    assert run("config", "check").out.startswith(f"file: {usual}\n")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_other_users_can_read_neither_the_file_nor_its_new_folders(run, tmp_path, usual, umask):
    before = os.umask(umask)
    try:
        assert run("config", "generate").code == 0
    finally:
        os.umask(before)
    assert mode(usual) == 0o600
    assert mode(usual.parent) == mode(tmp_path / "xdg") == 0o700
    assert list(usual.parent.iterdir()) == [usual]


def test_an_existing_folder_is_left_unchanged(run, tmp_path, usual):
    (tmp_path / "xdg").mkdir(mode=0o755)
    assert run("config", "generate").code == 0
    assert mode(tmp_path / "xdg") == 0o755


def test_the_place_can_be_named(run, tmp_path, usual, monkeypatch):
    monkeypatch.setenv("LCP_GATEWAY_CONFIG", str(tmp_path / "named.toml"))
    assert run("config", "generate").out == f"written: {tmp_path}/named.toml\n"
    assert run("config", "generate", "--config", str(tmp_path / "a/b.toml")).code == 0
    assert (tmp_path / "a/b.toml").exists() and not usual.exists()


def test_it_can_be_printed_instead(run, usual):
    outcome = run("config", "generate", "--stdout")
    assert (outcome.code, outcome.out) == (0, sample_file())
    assert not usual.exists()
    for flags in (["--force"], ["--config", "x"]):
        assert run("config", "generate", "--stdout", *flags).code == 2


def test_an_existing_file_is_kept_unless_overwriting_is_requested(run, usual):
    usual.parent.mkdir(parents=True)
    usual.write_text("heartbeat_s = 15\n")
    usual.chmod(0o644)
    outcome = run("config", "generate")
    assert outcome.code == 1 and "--force" in outcome.err
    assert usual.read_text() == "heartbeat_s = 15\n"
    assert run("config", "generate", "--force").code == 0
    assert usual.read_text() == sample_file() and mode(usual) == 0o600


def test_a_link_stays_a_link(run, tmp_path, usual):
    usual.parent.mkdir(parents=True)
    real = tmp_path / "dotfiles.toml"
    usual.symlink_to(real)
    assert run("config", "generate").out == f"written: {real}\n"
    assert run("config", "generate").code == 1
    real.write_text("")
    assert run("config", "generate", "--force").code == 0
    assert usual.is_symlink() and real.read_text() == sample_file()


def test_a_device_or_folder_is_not_replaced(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in ("/dev/null", str(tmp_path), str(tmp_path / "pipe")):
        outcome = run("config", "generate", "--force", "--config", place)
        assert outcome.code == 1 and "it is not a regular file" in outcome.err
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_place_that_cannot_be_written_is_said_in_a_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "x.toml", tmp_path / ("n" * 300), "/proc/nope/\udcff.toml"):
        outcome = run("config", "generate", "--config", str(place))
        assert outcome.code == 1
        assert outcome.err.count("\n") == 1 and "Traceback" not in outcome.err


def test_of_many_at_once_one_writes_it(tmp_path):
    from lcp_gateway.cli.config import _write

    path, outcomes = tmp_path / "a" / "config.toml", []

    def write():
        try:
            _write(path, "x" * 100_000, force=False)
            outcomes.append("written")
        except FileExistsError:
            outcomes.append("there")

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["there"] * 7 + ["written"]
    assert path.read_text() == "x" * 100_000
    assert list(path.parent.iterdir()) == [path]
