"""The pid file: one daemon at a time, and nothing of anybody else is touched."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from shadowmesh.base.errors import ConfigError, NotPermitted, ShadowMeshError
from shadowmesh.service import pid_file as module
from shadowmesh.service.pid_file import pid_file


def names(directory):
    return sorted(entry.name for entry in directory.iterdir())


def test_it_holds_the_pid_while_the_daemon_runs_and_is_gone_afterwards(tmp_path):
    path = tmp_path / "daemon.pid"
    with pid_file(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert path.stat().st_nlink == 1
        assert names(tmp_path) == ["daemon.pid"]
    assert names(tmp_path) == []


def test_without_a_path_there_is_none():
    with pid_file(None):
        pass


def test_a_second_daemon_is_told_who_holds_it_and_changes_nothing(tmp_path):
    path = tmp_path / "daemon.pid"
    with pid_file(path):
        with (
            pytest.raises(ShadowMeshError, match=rf"another daemon \(pid {os.getpid()}\) holds"),
            pid_file(path),
        ):
            pass
        assert path.read_text() == f"{os.getpid()}\n"
        assert names(tmp_path) == ["daemon.pid"]


@pytest.mark.parametrize("content", ["", "1\n", "4194304", "0000000001\n"])
def test_what_a_daemon_left_that_is_gone_is_replaced(tmp_path, content):
    path = tmp_path / "daemon.pid"
    path.write_text(content)
    with pid_file(path):
        assert path.read_text() == f"{os.getpid()}\n"


def make(path, kind):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "link to a pid file":
        path.with_name("other").write_text("1\n")
        path.symlink_to("other")
    elif kind == "text":
        path.write_text("root:x:0:0:root:/root:/bin/bash\n")
    else:
        path.with_name("other").write_text("precious: 1\n")
        path.hardlink_to(path.with_name("other"))


@pytest.mark.parametrize(
    "kind", ["fifo", "directory", "device", "link to a pid file", "text", "hard link"]
)
def test_what_is_no_pid_file_is_refused_in_a_sentence_and_stays(tmp_path, kind):
    path = tmp_path / "daemon.pid"
    make(path, kind)
    before = [(name, (tmp_path / name).lstat()[:3]) for name in names(tmp_path)]
    with (
        pytest.raises(ConfigError, match=r'daemon\.pid_file: .*; set daemon\.pid_file to .*""'),
        pid_file(path),
    ):
        pass
    assert [(name, (tmp_path / name).lstat()[:3]) for name in names(tmp_path)] == before
    if kind == "hard link":
        assert path.with_name("other").read_text() == "precious: 1\n"


def test_a_pid_file_with_a_second_name_is_not_written_to(tmp_path):
    path, other = tmp_path / "daemon.pid", tmp_path / "other"
    other.write_text("17\n")
    path.hardlink_to(other)
    with pid_file(path):
        assert other.read_text() == "17\n"
    assert other.read_text() == "17\n"


def test_a_full_file_system_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "write", full)
    with (
        pytest.raises(ShadowMeshError, match=r"pid file .*: No space left on device; set daemon"),
        pid_file(tmp_path / "daemon.pid"),
    ):
        pass
    assert names(tmp_path) == []


def test_a_directory_that_is_missing_or_closed_is_one_sentence(shared_directory, as_user):
    with (
        pytest.raises(ShadowMeshError, match="No such file"),
        pid_file(shared_directory / "missing" / "daemon.pid"),
    ):
        pass
    with (
        as_user(4321, 4321),
        pytest.raises(NotPermitted, match="Permission denied"),
        pid_file(shared_directory / "daemon.pid"),
    ):
        pass


def test_the_pid_file_of_another_daemon_is_not_removed_at_the_end(tmp_path):
    path = tmp_path / "daemon.pid"
    with pid_file(path):
        path.unlink()
        path.write_text("1\n")
    assert path.read_text() == "1\n"


def test_two_that_find_a_left_file_at_once_do_not_both_start(tmp_path, monkeypatch):
    path = tmp_path / "daemon.pid"
    path.write_text("1\n")
    real = module._clear

    def late(at):
        # Between the look and the lock the other one has removed the file and made its own.
        at.unlink()
        monkeypatch.setattr(module, "_clear", real)
        with pid_file(at), pytest.raises(ShadowMeshError, match="another daemon"):
            real(at)

    monkeypatch.setattr(module, "_clear", late)
    with pid_file(path):
        assert path.read_text() == f"{os.getpid()}\n"
