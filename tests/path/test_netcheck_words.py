"""What `shadowmesh netcheck` says of servers that have no address."""

from __future__ import annotations

import socket

import pytest

from shadowmesh.config import HostPort
from shadowmesh.path import netcheck


@pytest.mark.parametrize(
    ("servers", "detail"),
    [
        ([], "no STUN server is configured"),
        (
            [HostPort("stun.example", 3478)],
            "none of the STUN servers has an address; look at the name resolution",
        ),
    ],
)
def test_a_server_without_an_address_is_not_called_none_configured(monkeypatch, servers, detail):
    def refuse(*_args, **_kwargs):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(netcheck.socket, "getaddrinfo", refuse)
    assert netcheck.check(servers, 0, 0.5, None).result.detail.startswith(detail)
