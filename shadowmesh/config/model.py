"""The configuration as the rest of the program sees it: frozen dataclasses, one per section.

Owns: the types of the values. Does not know: where values come from, their defaults or ranges
(`schema`), nor any socket or device. Names are those of interface.md, "Configuration".
Durations are seconds.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Literal

from shadowmesh.base.constants import MODE_PIN, MODE_PSK

REDACTED = "***"


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
    tap_device: str
    local_ip: Addresses
    mtu: int
    persist_tap: bool
    offload: bool
    #: of the TAP; auto: as many as help on this machine
    queues: int | Literal["auto"]
    #: of the threads that carry frames
    realtime: bool


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
    nat: NatSection
    websocket: WebsocketSection
    monitoring: MonitoringSection

    @property
    def mode(self) -> int:
        """The mode byte: bit 0 pre-shared key, bit 1 pinned peer; 0 means refuse to connect.

        Source: protocol section 2.
        """
        psk = MODE_PSK if self.encryption.key is not None else 0
        pin = MODE_PIN if self.peer.public_key is not None else 0
        return psk | pin


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid configuration and where it came from.

    Attributes:
        sources: for each `section.key`: `default`, `FILE:LINE`, `flag --section.key` or
            `environment NAME`.
        path: the file that was read, None when there was none.
        warnings: what an operator should know although it is allowed; one line each.
    """

    config: Config
    sources: dict[str, str]
    path: Path | None
    warnings: tuple[str, ...]
