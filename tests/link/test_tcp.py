"""What the kernel tells of a connection."""

from __future__ import annotations

import socket

import gevent.socket as gsocket
import pytest

from shadowmesh.link.tcp import is_own_address, limit_segments, progress


@pytest.fixture(params=["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def connection(request):
    """(client, accepted), their segments kept to 1,000 bytes; the last one is dual-stack."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server(
        ("::" if family == socket.AF_INET6 else "127.0.0.1", 0),
        family=family,
        dualstack_ipv6=family == socket.AF_INET6,
    ) as listening:
        client = gsocket.socket(family)
        limit_segments(client, 1000)
        client.connect((request.param, listening.getsockname()[1]))
        accepted, _ = listening.accept()
    with client, accepted:
        yield client, accepted


def test_progress_counts_what_the_peer_has_taken_and_how_long_segments_are(connection):
    client, accepted = connection
    before = progress(client)
    client.sendall(bytes(500))
    assert accepted.recv(500)
    after = progress(client)
    assert after.acked_bytes - before.acked_bytes == 500
    assert after.in_flight == 0
    assert before.segment_bytes == progress(accepted).segment_bytes == 1000 - 12
    assert after.room_bytes > 32_000, "loopback takes long packets"


def test_a_connection_that_was_reset_has_no_way_and_is_no_error(connection):
    client, accepted = connection
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    accepted.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert progress(client).room_bytes is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::", "192.0.2.1", "fe80::1%lo"])
def test_loopback_and_what_others_have_is_no_address_of_this_host(host):
    assert not is_own_address(host)
