"""What a network makes of a configuration, and what cannot stand beside one."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from shadowmesh import config
from shadowmesh.base.constants import MEMBER_MODE
from shadowmesh.base.errors import ConfigError
from shadowmesh.config import HostPort, values
from shadowmesh.config.joined import joined as joined_config
from shadowmesh.config.model import PeerEntry
from shadowmesh.keys.identity import Identity, format_public_key

ADDRESSES = values.interface_addresses("10.77.0.2/24, fd12:3456:789a::2/64")
SERVER_KEY = Identity.from_seed(bytes(31) + b"\x01").public_key
SERVER = PeerEntry(
    "server", SERVER_KEY, HostPort("vpn.example.com", 443), auto_connect=True,
    tunnel_ips=(ip_address("10.77.0.1"),), allowed_macs="own",
)  # fmt: skip
PSK = "5f1d0c9e8b7a6f5e4d3c2b1a09f8e7d6c5b4a39281706f5e4d3c2b1a0f1e2d3c"


def joined(loaded):
    return joined_config(loaded, "home", ADDRESSES, [SERVER])


def refused(loaded):
    with pytest.raises(ConfigError) as caught:
        joined(loaded)
    return caught.value.problems


def test_a_network_gives_the_addresses_and_the_peers_and_is_their_source(load):
    found = joined(load("network:\n  mtu: 1400\n"))
    assert found.config.network.local_ip == ADDRESSES
    assert found.config.network.mtu == 1400
    assert found.config.peers == (SERVER,)
    assert found.config.mode == MEMBER_MODE
    for name in ("network.local_ip", "peers", "peers.server"):
        assert found.sources[name] == "joined home"


def test_the_source_of_what_a_network_gives_is_printed(load):
    text = config.redacted(joined(load("")))
    assert 'local_ip: ["10.77.0.2/24", "fd12:3456:789a::2/64"]  # joined home' in text
    assert '- name: "server"  # joined home' in text


def test_a_member_alone_in_its_network_is_warned_of_nothing(load):
    loaded = load("")
    assert loaded.warnings
    assert joined_config(loaded, "home", ADDRESSES, []).warnings == ()


def test_a_member_without_a_device_has_its_addresses_by_certificate_alone(load):
    loaded = load('network:\n  tap_device: ""\n')
    found = joined(loaded)
    assert found.config.network == loaded.config.network
    assert found.config.network.local_ip == ()
    assert found.sources["network.local_ip"] == f"{loaded.path}:2"
    assert found.config.peers == (SERVER,)


@pytest.mark.parametrize("address", ["10.0.0.1/24", str(ADDRESSES)])
def test_an_address_that_says_nothing_else_may_stand_beside_a_network(load, address):
    loaded = load(f'network:\n  local_ip: "{address}"\n')
    assert joined(loaded).config.network.local_ip == ADDRESSES


@pytest.mark.parametrize("address", ["10.0.0.2/24", "10.77.0.3/24", ""])
def test_another_address_is_refused_with_that_of_the_certificate(load, address):
    loaded = load(f'network:\n  local_ip: "{address}"\n')
    (problem,) = refused(loaded)
    assert str(problem) == (
        f"{loaded.path}:2: network.local_ip: is not {ADDRESSES}, which this machine has by its"
        " certificate in the network home; remove it, or `shadowmesh leave` the network"
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("peer:\n  address: nas.example\n", "peer.address"),
        (f"peer:\n  public_key: {format_public_key(SERVER_KEY)}\n", "peer.public_key"),
        (f"peers:\n  - name: nas\n    public_key: {format_public_key(SERVER_KEY)}\n", "peers"),
        ("peers: []\n", "peers"),
    ],
)
def test_a_peer_of_the_file_cannot_stand_beside_a_network(load, text, key):
    (problem,) = refused(load(text))
    assert problem.key == key
    assert "the network home" in problem.message
    assert "`shadowmesh leave`" in problem.message


def test_everything_that_contradicts_a_network_is_told_at_once(load):
    text = "peer:\n  address: nas.example\nnetwork:\n  local_ip: 10.0.0.9/24\n"
    assert [one.key for one in refused(load(text))] == ["peer.address", "network.local_ip"]


def test_a_key_of_the_file_is_not_used_and_that_is_told_without_it(load):
    found = joined(load(f"encryption:\n  key: {PSK}\n"))
    assert found.config.encryption.key is None
    (warning,) = found.warnings
    assert warning.startswith(f"encryption.key ({found.path}:2) is not used")
    assert PSK not in warning
