"""What a member remembers of its network beside certificates, lists and secrets.

Owns: those values, and how they stand in `network.json`. Does not know: the file, whether they are
true: addresses are hints of a relay. Nothing of it is secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from shadowmesh.config import HostPort
from shadowmesh.keys.identity import format_public_key, parse_public_key
from shadowmesh.network.subnet import Network


@dataclass(frozen=True, slots=True)
class KnownRelay:
    """A relay as a member remembers it: where it is, and the key that has to answer there.

    Also a member that is none and announces an address.
    """

    address: HostPort
    public_key: bytes

    def to_json(self) -> dict[str, Any]:
        return {
            "host": self.address.host,
            "port": self.address.port,
            "public_key": format_public_key(self.public_key),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> KnownRelay:
        """Raises ValueError, TypeError, KeyError: somebody has changed it."""
        address = HostPort(str(found["host"]), int(found["port"]))
        return cls(address, parse_public_key(found["public_key"]))


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the network beside certificates and lists; nothing of it is secret.

    Attributes:
        announced: members that can be dialled although they are no relays.
        announce: addresses, host:port, by which others may reach this machine.
        port: on which this machine listens beside what its configuration says; None: on none.
    """

    name: str
    network_id: bytes
    subnets: tuple[Network, ...]
    relays: tuple[KnownRelay, ...]
    announced: tuple[KnownRelay, ...] = ()
    announce: tuple[str, ...] = ()
    port: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "network_id": self.network_id.hex(),
            "subnets": [str(one) for one in self.subnets],
            "relays": [one.to_json() for one in self.relays],
            "announced": [one.to_json() for one in self.announced],
            "announce": list(self.announce),
            "port": self.port,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Facts:
        """Raises ValueError, TypeError, KeyError: somebody has changed it."""
        return cls(
            name=str(found["name"]),
            network_id=bytes.fromhex(found["network_id"]),
            subnets=tuple(ip_network(one) for one in found["subnets"]),
            relays=tuple(KnownRelay.from_json(one) for one in found["relays"]),
            announced=tuple(KnownRelay.from_json(one) for one in found.get("announced", ())),
            announce=tuple(str(one) for one in found.get("announce", ())),
            port=None if found.get("port") is None else int(found["port"]),
        )
