"""One peer, as others see it: frozen values and their JSON form.

Owns: what is said of a peer, of its session, its link and the ways to it. Does not know: who fills
them in, the daemon as a whole (`status`), HTTP, gevent.

As in `status`, names in the JSON form are only ever added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shadowmesh.insight.form import SCHEMA, PathName, TlsPath, format_time, rounded
from shadowmesh.insight.table import Entry


@dataclass(frozen=True, slots=True)
class Peer:
    """The other side.

    Attributes:
        address: ``host:port`` as dialled, or as it came in; None when not known.
        public_key: base64 of the Ed25519 key; the authenticated one while connected.
        name: what to call the peer in a sentence; None without one.
        pinned: the key was compared with `peer.public_key`.
        tap_mtu: of its TAP device, as it told in the handshake; None when not connected.
        last_seen_at: when the last session with it ended, also one of an earlier run of the
            daemon; None while connected, and when none is known.
    """

    address: str | None = None
    public_key: str | None = None
    name: str | None = None
    pinned: bool = False
    tap_mtu: int | None = None
    last_seen_at: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "public_key": self.public_key,
            "name": self.name,
            "pinned": self.pinned,
            "tap_mtu": self.tap_mtu,
            "last_seen_at": format_time(self.last_seen_at),
        }


@dataclass(frozen=True, slots=True)
class Path:
    """One way to the peer.

    Attributes:
        path: ``wss`` or ``udp``.
        address: the peer's ``host:port`` there.
        kind: how the address became known: ``host``, ``reflexive``, ``learned``; None for WSS.
        active: it carries the data.
        proven: the peer answered from there.
        rtt_ms: smoothed round trip in milliseconds.
        loss: share of the last probes that were not answered, 0.0 to 1.0; None when not known.
        payload_bytes: largest UDP datagram that it carries.
        seen_as: our own ``host:port`` as the peer saw it there.
        unanswered: probes since its last answer, or in this round of trying, without any.
        hindrance: why it is not probed, one sentence; None when it is.
    """

    path: PathName
    address: str
    kind: str | None = None
    active: bool = False
    proven: bool = False
    rtt_ms: float | None = None
    loss: float | None = None
    payload_bytes: int | None = None
    seen_as: str | None = None
    unanswered: int = 0
    hindrance: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "address": self.address,
            "kind": self.kind,
            "active": self.active,
            "proven": self.proven,
            "rtt_ms": rounded(self.rtt_ms, 3),
            "loss": rounded(self.loss, 3),
            "payload_bytes": self.payload_bytes,
            "seen_as": self.seen_as,
            "unanswered": self.unanswered,
            "hindrance": self.hindrance,
        }


@dataclass(frozen=True, slots=True)
class Session:
    """The live session; times are wall-clock seconds, `rekeys` counts since it was established.

    Attributes:
        next_rekey_at: when this side begins a rekey or, as the side that was dialled, asks for
            one because the other side has not; None when none is planned.
        keys_expire_at: when the keys end, if no rekey succeeds before.
    """

    established_at: float | None = None
    rekeys: int = 0
    last_rekey_at: float | None = None
    initiator: bool | None = None
    next_rekey_at: float | None = None
    keys_expire_at: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "established_at": format_time(self.established_at),
            "rekeys": self.rekeys,
            "last_rekey_at": format_time(self.last_rekey_at),
            "initiator": self.initiator,
            "next_rekey_at": format_time(self.next_rekey_at),
            "keys_expire_at": format_time(self.keys_expire_at),
        }


@dataclass(frozen=True, slots=True)
class Link:
    """The live WebSocket link: the socket's remote ``host:port`` and since when it is up."""

    remote_address: str | None = None
    since: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"remote_address": self.remote_address, "since": format_time(self.since)}


@dataclass(frozen=True, slots=True)
class Pong:
    """What became of one ping.

    Attributes:
        path: what carried it.
        address: the peer's ``host:port`` there.
        rtt_ms: round trip in milliseconds; None when no answer came in time.
    """

    path: PathName
    address: str
    rtt_ms: float | None

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "address": self.address, "rtt_ms": rounded(self.rtt_ms, 3)}


@dataclass(frozen=True, slots=True)
class Known:
    """How many peers there are, and how they are reached.

    Attributes:
        known: of the configuration.
        sessions: of them with a session.
        direct: of those whose frames go over UDP.
        relayed: of those whose frames a third machine carries.
    """

    known: int = 1
    sessions: int = 0
    direct: int = 0
    relayed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "known": self.known,
            "sessions": self.sessions,
            "direct": self.direct,
            "relayed": self.relayed,
        }


@dataclass(frozen=True, slots=True)
class PeerCounters:
    """Totals of one peer since it was configured; "in" is from the peer to the TAP.

    Attributes:
        frames_queued, bytes_queued: that wait for its link now.
        dropped: both directions, by reason.
        macs: addresses that are behind it now.
    """

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    frames_queued: int = 0
    bytes_queued: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    macs: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "frames_in": self.frames_in,
            "frames_out": self.frames_out,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "frames_queued": self.frames_queued,
            "bytes_queued": self.bytes_queued,
            "dropped": {name: count for name, count in sorted(self.dropped.items()) if count},
            "macs": self.macs,
        }


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What `GET /peers` tells of one peer, at one moment.

    Attributes:
        name: of the configuration; ``peer`` where the configuration names only one.
        state: of the connection to it.
        since: when the state was entered.
        public_key: base64 of its Ed25519 key; the authenticated one while connected.
        address: ``host:port`` that is dialled; None: it has to dial us.
        tunnel_ips: its addresses in the tunnel, as configured.
        phase: the step of connecting; ``waiting_for_peer`` when only it can dial; else None.
        wanted: there is a session, or shall be one.
        held: an operator has disconnected: it is refused until somebody connects.
        path: what carries its frames now; None without a session.
        endpoint: its ``host:port`` on that path.
        path_reason: why it is this path, in words.
        cipher: as in `Snapshot`.
        post_quantum: as in `Snapshot`.
        tls_path: as in `Snapshot`.
        rtt_ms: round trip in milliseconds, on the path that carries its frames.
        last_seen_at: when the last session with it ended, also one of an earlier run of the
            daemon; None while connected, and when none is known.
        last_error: the cause of the last failure, one line; kept until the next success.
        last_error_at: when it happened.
        next_retry_at: when the next automatic attempt starts; None when none is planned.
        reconnects: sessions after a loss that neither side had announced.
        path_switches: moves between WSS and UDP.
        mac: that its daemon gives its TAP device; None while its key is not known.
    """

    name: str
    state: str
    since: float
    public_key: str | None = None
    address: str | None = None
    tunnel_ips: Sequence[str] = ()
    phase: str | None = None
    wanted: bool = False
    held: bool = False
    path: PathName | None = None
    endpoint: str | None = None
    path_reason: str | None = None
    cipher: str | None = None
    post_quantum: bool | None = None
    tls_path: TlsPath | None = None
    rtt_ms: float | None = None
    last_seen_at: float | None = None
    last_error: str | None = None
    last_error_at: float | None = None
    next_retry_at: float | None = None
    reconnects: int = 0
    path_switches: int = 0
    session: Session | None = None
    link: Link | None = None
    counters: PeerCounters = field(default_factory=PeerCounters)
    mac: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; every object is there in every state, as in a snapshot."""
        return {
            "name": self.name,
            # str(): the state may be a StrEnum of the state machine
            "state": str(self.state),
            "since": format_time(self.since),
            "public_key": self.public_key,
            "address": self.address,
            "tunnel_ips": list(self.tunnel_ips),
            "phase": None if self.phase is None else str(self.phase),
            "wanted": self.wanted,
            "held": self.held,
            "path": self.path,
            "endpoint": self.endpoint,
            "path_reason": self.path_reason,
            "cipher": self.cipher,
            "post_quantum": self.post_quantum,
            "tls_path": self.tls_path,
            "rtt_ms": rounded(self.rtt_ms, 3),
            "last_seen_at": format_time(self.last_seen_at),
            "last_error": self.last_error,
            "last_error_at": format_time(self.last_error_at),
            "next_retry_at": format_time(self.next_retry_at),
            "reconnects": self.reconnects,
            "path_switches": self.path_switches,
            "session": (self.session or Session()).to_dict(),
            "link": (self.link or Link()).to_dict(),
            "counters": self.counters.to_dict(),
            "mac": self.mac,
        }


@dataclass(frozen=True, slots=True)
class PeerReport(PeerStatus):
    """What `GET /peers/{name}` tells: one peer in full.

    Attributes:
        paths: every way to it that is known, the one that carries its frames first.
        macs: the addresses that are behind it.
    """

    paths: Sequence[Path] = ()
    macs: Sequence[Entry] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            # Not super(): dataclass makes another class for the slots, which it does not know.
            **PeerStatus.to_dict(self),
            "paths": [path.to_dict() for path in self.paths],
            "macs": [entry.to_dict() for entry in self.macs],
        }


@dataclass(frozen=True, slots=True)
class Peers:
    """What `GET /peers` answers; `now`, by the daemon's clock, is what ages are counted from."""

    now: float
    peers: Sequence[PeerStatus] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "now": format_time(self.now),
            "peers": [peer.to_dict() for peer in self.peers],
        }


@dataclass(frozen=True, slots=True)
class OnePeer:
    """What `GET /peers/{name}` answers."""

    now: float
    peer: PeerReport

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "now": format_time(self.now), "peer": self.peer.to_dict()}
