"""Whose a socket is, asked of the kernel."""

from __future__ import annotations

import contextlib
import os
import socket
from ipaddress import ip_address

import pytest

from shadowmesh.device import sock_diag
from shadowmesh.device.sock_diag import listeners_on, uid_of_socket


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_ends_of_a_connection_have_a_user_while_their_program_has_them(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, 0), family=family))
        one = stack.enter_context(socket.create_connection(listener.getsockname()[:2]))
        own, other = one.getsockname()[:2], one.getpeername()[:2]
        assert uid_of_socket(own, other) == os.geteuid()
        taken, _ = listener.accept()
        stack.enter_context(taken)
        assert uid_of_socket(other, own) == os.geteuid()
        one.close()
        assert uid_of_socket(own, other) is None


@pytest.mark.parametrize(
    ("own", "other"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "::1"), ("fe80::1%lo", "fe80::2%lo")],
)
def test_a_connection_that_there_is_not_has_no_user(own, other):
    assert uid_of_socket((own, 1), (other, 2)) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_who_listens_is_found_with_the_address(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        (found,) = listeners_on(listener.getsockname()[1])
        assert (found.address, found.uid) == (ip_address(host), os.geteuid())
        assert found.inode == os.fstat(listener.fileno()).st_ino


def test_nobody_on_a_port_is_nobody():
    assert listeners_on(1) == frozenset()


def test_a_kernel_that_does_not_tell_is_an_error_for_who_must_know(monkeypatch):
    monkeypatch.setattr(sock_diag, "_SOCK_DIAG_BY_FAMILY", 999)
    with pytest.raises(OSError, match="sock_diag"):
        listeners_on(1)
    assert uid_of_socket(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
