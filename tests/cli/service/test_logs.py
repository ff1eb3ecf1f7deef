"""Following a log that is written and rotated meanwhile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.cli.service.logs import LogFollower, last_lines

LINES = st.lists(st.text(st.characters(codec="ascii", exclude_characters="\r\n\v\f\x1c\x1d\x1e"), max_size=40))


@given(LINES, st.integers(0, 50), st.data())
def test_the_last_lines_are_those_of_all_files_together(tmp_path_factory, lines, count, data):
    folder = tmp_path_factory.mktemp("logs")
    cut = data.draw(st.integers(0, len(lines)))
    whole = [f"{line}\n".encode() for line in lines]
    (folder / "x.log.1").write_bytes(b"".join(whole[:cut]))
    (folder / "x.log").write_bytes(b"".join(whole[cut:]))
    assert (
        last_lines(folder / "x.log", count)
        == b"".join(whole[len(whole) - count :] if count < len(whole) else whole)[: None if count else 0]
    )


def test_lines_longer_than_a_block_are_whole(tmp_path):
    path = tmp_path / "x.log"
    long = [letter * 200_000 + b"\n" for letter in (b"a", b"b", b"c")]
    path.write_bytes(b"".join(long) + b"unfinished")
    assert last_lines(path, 1) == b"unfinished"
    assert last_lines(path, 3) == long[1] + long[2] + b"unfinished"


def test_a_missing_log_is_an_error_unless_it_is_being_rotated(tmp_path):
    with pytest.raises(FileNotFoundError):
        last_lines(tmp_path / "x.log", 5)
    (tmp_path / "x.log.1").write_bytes(b"one\n")
    assert last_lines(tmp_path / "x.log", 5) == b"one\n"


def test_following_begins_at_the_end_and_goes_through_rotations(tmp_path):
    path = tmp_path / "x.log"
    path.write_bytes(b"before\n")
    with LogFollower(path) as follower:
        assert follower.read() == b""
        with path.open("ab") as old:
            old.write(b"one\n")
            old.flush()
            assert follower.read() == b"one\n"
            old.write(b"two\n")
            old.flush()
            path.rename(tmp_path / "x.log.1")
            path.write_bytes(b"four\n")
            assert follower.read() == b"two\n"
            # The writer wrote this just after the file was renamed.
            old.write(b"three\n")
        assert follower.read() == b"three\nfour\n"
        assert follower.read() == b""


def test_files_in_between_are_not_left_out(tmp_path):
    path = tmp_path / "x.log"
    path.write_bytes(b"")
    with LogFollower(path) as follower:
        path.write_bytes(b"one\n")
        path.rename(tmp_path / "x.log.3")
        (tmp_path / "x.log.2").write_bytes(b"two\n")
        (tmp_path / "x.log.1").write_bytes(b"three\n")
        path.write_bytes(b"four\n")
        assert follower.read() + follower.read() == b"one\ntwo\nthree\nfour\n"


def test_a_log_may_come_later_and_be_cut_short(tmp_path):
    path = tmp_path / "x.log"
    with LogFollower(path) as follower:
        assert follower.read() == b""
        path.write_bytes(b"first\n")
        assert follower.read() == b"first\n"
        path.write_bytes(b"")
        assert follower.read() == b""
        path.write_bytes(b"again\n")
        assert follower.read() == b"again\n"
