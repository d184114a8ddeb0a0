"""What a network makes of the configuration of a machine that is in it.

Owns: which keys the network sets, and which settings cannot stand beside it. Does not know: how a
machine comes into a network, its files, certificates.

::

    network.local_ip          the certificate's addresses; ignored when it is the default, however
                              set; without a TAP device there is nothing to have them
    peers                     the other members; no peer of the file stands beside them
    encryption.key            not used: members have the secret of the network
    websocket.listen_address  the port that the network was made with, where these two are left
    nat.udp_port              as they are shipped

Source: mesh section 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from shadowmesh.base.errors import ConfigError, Problem
from shadowmesh.config.loader import ANYBODY, DEFAULT_SOURCE, NOBODY
from shadowmesh.config.model import Addresses, Config, LoadedConfig, PeerEntry
from shadowmesh.config.schema import KEYS, PEERS

_LOCAL_IP: Final = KEYS["network.local_ip"]
_SHIPPED: Final = _LOCAL_IP.parse(_LOCAL_IP.default or "")


def joined(
    loaded: LoadedConfig,
    network: str,
    addresses: Addresses,
    members: Sequence[PeerEntry],
    port: int | None = None,
) -> LoadedConfig:
    """Return what is in force on a machine that is in a network.

    Args:
        network: its name.
        addresses: of our certificate, each with the prefix of its subnet.
        members: all but this machine.
        port: by which others were told to reach this machine; None: by none.
    Raises:
        ConfigError: a setting that cannot stand beside a network.
    """
    config = loaded.config
    problems = list(_problems(loaded, network, addresses))
    if problems:
        raise ConfigError(problems)
    source = f"joined {network}"
    headless = config.network.headless
    warnings = [warning for warning in loaded.warnings if warning not in (NOBODY, ANYBODY)]
    if config.encryption.key is not None:
        warnings.append(
            f"encryption.key ({loaded.sources['encryption.key']}) is not used while this machine is"
            f" in the network {network}, which has a secret of its own; remove it"
        )
    listens, port_sources = _ports(loaded, port, source)
    return replace(
        loaded,
        config=replace(
            listens,
            network=config.network if headless else replace(config.network, local_ip=addresses),
            encryption=replace(config.encryption, key=None),
            peer_list=tuple(members),
            in_network=True,
        ),
        sources={
            **loaded.sources,
            **port_sources,
            **({} if headless else {_LOCAL_IP.name: source}),
            PEERS: source,
            **{f"{PEERS}.{entry.name}": source for entry in members},
        },
        warnings=tuple(warnings),
    )


def check_beside_network(loaded: LoadedConfig) -> None:
    """Refuse what cannot stand beside any network, on a machine that is in none yet.

    Raises:
        ConfigError: a setting that names peers.
    """
    message = "cannot stand beside a network, which names the peers; remove it, then reload"
    problems = [Problem(source, None, name, message) for name, source in _of_peers(loaded)]
    if problems:
        raise ConfigError(problems)


def _of_peers(loaded: LoadedConfig) -> Iterator[tuple[str, str]]:
    """Give name and source of each setting that names peers."""
    config = loaded.config
    given = {
        PEERS: config.listed,
        "peer.address": config.peer.address is not None,
        "peer.public_key": config.peer.public_key is not None,
    }
    for name in (name for name, is_given in given.items() if is_given):
        yield name, loaded.sources[name]


def _ports(loaded: LoadedConfig, port: int | None, source: str) -> tuple[Config, dict[str, str]]:
    """Return the configuration with the port of the network where nobody has said another."""
    config = loaded.config
    shipped = {
        name
        for name in ("websocket.listen_address", "nat.udp_port")
        if loaded.sources[name] == DEFAULT_SOURCE
    }
    listen = config.websocket.listen_address
    if port is None or len(shipped) < 2 or listen is None:
        return config, {}
    websocket = replace(config.websocket, listen_address=replace(listen, port=port))
    nat = replace(config.nat, udp_port=port)
    return replace(config, websocket=websocket, nat=nat), dict.fromkeys(shipped, source)


def _problems(loaded: LoadedConfig, network: str, addresses: Addresses) -> Iterator[Problem]:
    """Give what of the settings contradicts the network."""
    config, sources = loaded.config, loaded.sources
    way_out = "remove it, or `shadowmesh leave` the network"
    for name, source in _of_peers(loaded):
        message = f"cannot stand beside the network {network}, which names the peers; {way_out}"
        yield Problem(source, None, name, message)
    local_ip = config.network.local_ip
    if not config.network.headless and local_ip not in (_SHIPPED, addresses):
        message = (
            f"is not {addresses}, which this machine has by its certificate in the network"
            f" {network}; {way_out}"
        )
        yield Problem(sources[_LOCAL_IP.name], None, _LOCAL_IP.name, message)
