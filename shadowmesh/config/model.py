"""The configuration as the rest of the program sees it: frozen dataclasses, one per section.

`peers:` is the section that is a list: a `PeerEntry` for each of its items.

Owns: the types of the values. Does not know: where values come from, their defaults or ranges
(`schema`), nor any socket or device. Names are those of interface.md, "Configuration".
Durations are seconds.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Final, Literal

from shadowmesh.base.constants import MEMBER_MODE, MODE_PIN, MODE_PSK

REDACTED = "***"
#: of the one peer of `peer:`, which has none of its own
ONLY_PEER: Final = "peer"


class Secret:
    """Bytes that must not be seen: str, repr and format give `***`, pickling is refused."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes. The caller hands them to cryptography and to nothing else."""
        return self._value

    def __repr__(self) -> str:
        return REDACTED

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not copied or pickled")


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host name or IP address, without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Addresses(tuple[IPv4Interface | IPv6Interface, ...]):
    """The addresses of this host in the tunnel, each with its network; may be none.

    None: the TAP is a bridge member, or set up by somebody else.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self))


@dataclass(frozen=True, slots=True)
class DaemonSection:
    listen_address: HostPort
    #: of the control API; None: none
    api_socket: Path | None
    log_level: str
    log_format: str
    #: None: write no pid file
    pid_file: Path | None
    state_dir: Path


@dataclass(frozen=True, slots=True)
class NetworkSection:
    #: empty: none, see `headless`
    tap_device: str
    local_ip: Addresses
    mtu: int
    persist_tap: bool
    offload: bool
    #: of the TAP; auto: as many as help on this machine
    queues: int | Literal["auto"]
    #: of the threads that carry frames
    realtime: bool

    @property
    def headless(self) -> bool:
        """Whether there is to be no TAP: nothing of this host goes into the tunnel, or out of it."""
        return not self.tap_device


@dataclass(frozen=True, slots=True)
class EncryptionSection:
    #: the pre-shared key, 32 bytes
    key: Secret | None
    cipher: str
    rotation_interval: float


@dataclass(frozen=True, slots=True)
class PeerSection:
    address: HostPort | None
    #: Ed25519, 32 bytes, checked
    public_key: bytes | None
    auto_connect: bool


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """One peer: an item of `peers:`, or what `peer:` says."""

    #: a DNS label in lower case; ONLY_PEER from `peer:`
    name: str
    #: Ed25519, 32 bytes, checked; None only from `peer:`
    public_key: bytes | None
    #: None: it is waited for
    address: HostPort | None
    auto_connect: bool
    #: that it has in the tunnel; for people and checks, nothing is set by them
    tunnel_ips: tuple[IPv4Address | IPv6Address, ...] = ()
    #: which source addresses its frames may have, 6 bytes each; own: that of its TAP alone
    allowed_macs: Literal["any", "own"] | tuple[bytes, ...] = "any"


@dataclass(frozen=True, slots=True)
class MeshSection:
    #: entries of the MAC table
    max_macs: int
    #: send broadcast, multicast and unknown unicast to every peer
    broadcast: bool
    #: where members of a network may dial this one
    announce: tuple[HostPort, ...]


@dataclass(frozen=True, slots=True)
class NatSection:
    enabled: bool
    stun_server: tuple[HostPort, ...]
    detection_timeout: float
    hole_punch_timeout: float
    #: 0: any free port
    udp_port: int


@dataclass(frozen=True, slots=True)
class WebsocketSection:
    #: None: do not listen
    listen_address: HostPort | None
    path: str
    tls_cert: Path
    tls_key: Path
    require_direct_tls: bool
    keepalive_interval: float
    read_timeout: float
    write_timeout: float


@dataclass(frozen=True, slots=True)
class MonitoringSection:
    metrics_enabled: bool
    #: 0: no port of its own
    prometheus_port: int


@dataclass(frozen=True, slots=True)
class Config:
    daemon: DaemonSection
    network: NetworkSection
    encryption: EncryptionSection
    peer: PeerSection
    mesh: MeshSection
    nat: NatSection
    websocket: WebsocketSection
    monitoring: MonitoringSection
    #: the items of `peers:`, sorted as in the file; None: `peers:` is not used
    peer_list: tuple[PeerEntry, ...] | None = None
    #: this machine is a member of a network: `peer_list` are the others, and no key says so
    in_network: bool = False

    @property
    def listed(self) -> bool:
        """Whether `peers:` says who the peers are, and not `peer:`."""
        return self.peer_list is not None

    @property
    def peers(self) -> tuple[PeerEntry, ...]:
        """All peers; from `peer:` always one, also when that names nobody."""
        if self.peer_list is not None:
            return self.peer_list
        one = self.peer
        return (PeerEntry(ONLY_PEER, one.public_key, one.address, one.auto_connect),)

    @property
    def mode(self) -> int:
        """The mode byte: bit 0 pre-shared key, bit 1 pinned peer; 0 means refuse to connect.

        Every peer of a list is pinned. Members of a network have a mode of their own. Source:
        protocol section 2, mesh section 4.
        """
        if self.in_network:
            return MEMBER_MODE
        psk = MODE_PSK if self.encryption.key is not None else 0
        pin = MODE_PIN if self.listed or self.peer.public_key is not None else 0
        return psk | pin


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid configuration and where it came from.

    Attributes:
        sources: for each `section.key`: `default`, `FILE:LINE`, `flag --section.key` or
            `environment NAME`; with a list also of `peers` and of each `peers.NAME`.
        path: the file that was read, None when there was none.
        warnings: what an operator should know although it is allowed; one line each.
    """

    config: Config
    sources: dict[str, str]
    path: Path | None
    warnings: tuple[str, ...]
