"""What the daemon says about itself: frozen snapshots and health checks.

Owns: the shape and the JSON form of a status snapshot, of a health report and of the process's
resources. Does not know: what is said of one peer (`peers`), who fills it in, HTTP, Prometheus,
gevent. It is one module because all of it is one document, which grows in one way.

The names in the JSON form are relied upon by scripts: they are added to, never renamed or
removed while `SCHEMA` stays the same. A snapshot holds no secret, so everything in it may be
printed, logged or sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from shadowmesh.insight.form import SCHEMA, PathName, TlsPath, format_time, rounded
from shadowmesh.insight.network import NetworkStatus
from shadowmesh.insight.peers import Known, Link, Path, Peer, Session

#: a daemon whose checks of these names pass is ready
READY_CHECKS: Final = ("tap", "peer")

STATES: Final = ("disconnected", "connecting", "connected", "error")

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Queue:
    """Frames of one queue of the TAP since the daemon started; "in" is from the peer to the TAP.

    `frames_out` counts what was read from the queue, dropped or not.
    """

    frames_in: int = 0
    frames_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"frames_in": self.frames_in, "frames_out": self.frames_out}


@dataclass(frozen=True, slots=True)
class Tap:
    """The TAP device: its name, MTU in bytes, queues, and addresses with prefix, none in a bridge.

    `address` is the first of `addresses`, for who knows one only. Without a device all is None or
    empty but `realtime`.

    Attributes:
        realtime: its threads, and that of UDP, run before other programs; None: nobody wants it.
        realtime_problem: why not, one sentence.
    """

    device: str | None = None
    mtu: int | None = None
    address: str | None = None
    queues: Sequence[Queue] = ()
    addresses: Sequence[str] = ()
    realtime: bool | None = None
    realtime_problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "mtu": self.mtu,
            "address": self.address,
            "addresses": list(self.addresses),
            "queues": [queue.to_dict() for queue in self.queues],
            "realtime": self.realtime,
            "realtime_problem": self.realtime_problem,
        }


@dataclass(frozen=True, slots=True)
class Nat:
    """What STUN found out; `detected_at` is wall-clock seconds.

    Attributes:
        mapping, filtering: the behaviours of RFC 4787 that the type sums up.
        detail: one sentence for people.
    """

    type: str | None = None
    public_address: str | None = None
    detected_at: float | None = None
    mapping: str | None = None
    filtering: str | None = None
    detail: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "public_address": self.public_address,
            "detected_at": format_time(self.detected_at),
            "mapping": self.mapping,
            "filtering": self.filtering,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True)
class Certificate:
    """The TLS certificate of the peer port: until when it is valid, and its SHA-256 in hex."""

    not_after: float | None = None
    sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"not_after": format_time(self.not_after), "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What reading the configuration again has changed.

    Attributes:
        pid: of the daemon.
        applied: keys that have their new value.
        restart: keys that have another value in the file and wait for a restart.
    """

    pid: int
    applied: Sequence[str]
    restart: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "pid": self.pid,
            "applied": list(self.applied),
            "restart": list(self.restart),
        }


@dataclass(frozen=True, slots=True)
class Refused:
    """The last peer that came and whose handshake failed.

    Attributes:
        address: the ``host:port`` that it came from; None when there was none.
        cause: why, one line.
        failed_at: when.
    """

    address: str | None = None
    cause: str | None = None
    failed_at: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "cause": self.cause,
            "failed_at": format_time(self.failed_at),
        }


@dataclass(frozen=True, slots=True)
class Capture:
    """The capture that is running; nothing but null while there is none.

    Attributes:
        since: its start.
        snaplen: how many bytes of each frame it keeps.
        frames: captured so far.
        dropped: frames for which it had no room; they crossed the tunnel all the same.
    """

    since: float | None = None
    snaplen: int | None = None
    frames: int | None = None
    dropped: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "since": format_time(self.since),
            "snaplen": self.snaplen,
            "frames": self.frames,
            "dropped": self.dropped,
        }


@dataclass(frozen=True, slots=True)
class PeerPort:
    """The port on which peers are accepted.

    Attributes:
        address: where it listens; None while it is closed.
        unauthenticated: connections that have proved nothing yet, by stage.
        connections: what became of connections since the port was opened, by outcome; those of
            the last minute in `lately`. `accepted` are all of them.
    """

    address: str | None = None
    unauthenticated: Mapping[str, int] = field(default_factory=dict)
    connections: Mapping[str, int] = field(default_factory=dict)
    lately: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "unauthenticated": dict(self.unauthenticated),
            "connections": dict(self.connections),
            "lately": dict(self.lately),
        }


@dataclass(frozen=True, slots=True)
class Counters:
    """Totals since the daemon started; "in" is from the peer to the TAP.

    A super-frame counts as one frame with all its bytes. `dropped` counts both directions, by
    reason; a reason that was never met may be missing. `dropped_lately` is the part of it of the
    last minute. `udp_refused` counts datagrams that were no record of ours, by reason;
    `udp_errors` what the UDP socket refused, by errno; `loops_refused` what was not sent or not
    dialled because it would have gone into the tunnel itself, by kind.
    """

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    dropped_lately: Mapping[str, int] = field(default_factory=dict)
    udp_refused: Mapping[str, int] = field(default_factory=dict)
    udp_errors: Mapping[str, int] = field(default_factory=dict)
    loops_refused: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "frames_in": self.frames_in,
            "frames_out": self.frames_out,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "dropped": dict(sorted(self.dropped.items())),
            "dropped_lately": dict(sorted(self.dropped_lately.items())),
            "udp_refused": dict(sorted(self.udp_refused.items())),
            "udp_errors": dict(sorted(self.udp_errors.items())),
            "loops_refused": dict(sorted(self.loops_refused.items())),
        }


@dataclass(frozen=True, slots=True)
class Resources:
    """What the process uses.

    `cpu_percent` is of one core, since the reading before; `cpu_seconds` since the start.
    """

    cpu_percent: float = 0.0
    cpu_seconds: float = 0.0
    rss_bytes: int = 0
    threads: int = 0
    open_fds: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "cpu_percent": round(self.cpu_percent, 1),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "rss_bytes": self.rss_bytes,
            "threads": self.threads,
            "open_fds": self.open_fds,
        }


@dataclass(frozen=True, slots=True)
class Check:
    """One health check.

    Attributes:
        name: stable, lower case with underscores, such as ``tap`` or ``hub_lag``.
        ok: whether it passed.
        severity: what a failure means: "error" makes the daemon unhealthy, "warning" does not.
        text: what was found, one line.
        remedy: what the operator can do; empty when there is nothing to do.
        code: what was found, for programs: ``ok``, or why it failed, such as ``tap_down``.
    """

    name: str
    ok: bool
    severity: Severity = "error"
    text: str = ""
    remedy: str = ""
    code: str = "ok"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ok": self.ok,
            "severity": self.severity,
            "text": self.text,
            "remedy": self.remedy,
            "code": self.code,
        }


@dataclass(frozen=True, slots=True)
class Health:
    """The health checks of one moment; names are unique."""

    checks: Sequence[Check] = ()

    @property
    def failing(self) -> tuple[Check, ...]:
        """The checks that make the daemon unhealthy; failed warnings are not among them."""
        return tuple(c for c in self.checks if not c.ok and c.severity == "error")

    @property
    def not_ready(self) -> tuple[Check, ...]:
        """The failed checks of what has to work before frames can pass."""
        return tuple(c for c in self.checks if not c.ok and c.name in READY_CHECKS)

    @property
    def ok(self) -> bool:
        return not self.failing

    def to_dict(self, details: bool = True) -> dict[str, Any]:
        """Return the JSON form.

        Args:
            details: include texts and remedies, which may name addresses and files; False for
                a caller who has not shown the token.
        """
        checks: dict[str, Any] = {}
        for check in self.checks:
            entry = check.to_dict()
            del entry["name"]
            if not details:
                del entry["text"], entry["remedy"]
            checks[check.name] = entry
        return {
            "schema": SCHEMA,
            "status": "ok" if self.ok else "failing",
            "failing": [check.name for check in self.failing],
            "checks": checks,
        }


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that `GET /status` tells, at one moment.

    All times are wall-clock seconds since 1970; `to_dict` writes them as RFC 3339.

    With one peer it tells all about it. With several, or none, what is of one peer is null (`peer`,
    `path`, `path_reason`, `paths`, `cipher`, `post_quantum`, `tls_path`, `rtt_ms`, `mtu`, `session`,
    `link`), `GET /peers` tells it of each, and the state is derived: connected when any peer is,
    connecting while none is and some is wanted, else disconnected.

    Attributes:
        version: of the daemon.
        host: name of the machine that it runs on.
        pid: of its process.
        state: of the connection.
        since: when the state was entered.
        now: when the snapshot was taken: what ages are counted from, whatever the reader's clock.
        public_key: base64 of this daemon's own identity, for the peer's `peer.public_key`.
        phase: the step of connecting, such as ``handshake``; ``waiting_for_peer`` also while
            disconnected, when only the peer can dial; None otherwise.
        wanted: there is a tunnel, or shall be one: somebody connects, or the peer is waited for.
            False once an operator has disconnected, and before one connects.
        held: an operator has disconnected: the peer is refused until somebody connects.
        last_error: the cause of the last failure, one line; kept until the next success.
        last_error_at: when it happened.
        next_retry_at: when the next automatic attempt starts; None when none is planned.
        refused: the last peer that came and was not let in, until the next success.
        path: what carries data now; None when not connected.
        path_reason: why it is this path, in words.
        paths: every way to the peer that is known, the one that carries data first.
        cipher: ``chacha20-poly1305`` or ``aegis-256``; None without a session.
        post_quantum: the live keys come from a handshake with ML-KEM-768; None without one.
        tls_path: whether both sides saw the same TLS certificate (protocol section 5).
        rtt_ms: round trip to the peer in milliseconds, on the path that carries data.
        mtu: of the path that carries data, in bytes with IP headers; on WSS that of the tunnel.
        reconnects: sessions that were established after a loss that neither side had announced,
            since the daemon started; a disconnect or a stop of a daemon announces it.
        path_switches: moves between WSS and UDP.
        handshakes: handshakes by result, such as ``ok`` or ``refused``.
        peer_port: who came to the peer port, and what became of them.
        queue_bytes: bytes that wait for the WebSocket link, sealed and not yet sealed.
        peers: how many peers there are, and how they are reached.
        network: that this machine is a member of; None outside of one.
    """

    version: str
    state: str
    since: float
    now: float | None = None
    host: str | None = None
    pid: int | None = None
    public_key: str | None = None
    phase: str | None = None
    wanted: bool = True
    held: bool = False
    last_error: str | None = None
    last_error_at: float | None = None
    next_retry_at: float | None = None
    refused: Refused | None = None
    peer: Peer | None = None
    path: PathName | None = None
    path_reason: str | None = None
    paths: Sequence[Path] = ()
    cipher: str | None = None
    post_quantum: bool | None = None
    tls_path: TlsPath | None = None
    rtt_ms: float | None = None
    mtu: int | None = None
    tap: Tap | None = None
    nat: Nat | None = None
    session: Session | None = None
    link: Link | None = None
    certificate: Certificate | None = None
    capture: Capture | None = None
    reconnects: int = 0
    path_switches: int = 0
    handshakes: Mapping[str, int] = field(default_factory=dict)
    peer_port: PeerPort | None = None
    queue_bytes: int = 0
    counters: Counters = field(default_factory=Counters)
    resources: Resources | None = None
    health: Sequence[Check] = ()
    peers: Known = field(default_factory=Known)
    network: NetworkStatus | None = None

    @property
    def one_peer(self) -> bool:
        """What is of one peer is told here."""
        return self.peers.known == 1

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: only str, int, float, bool, None, dict and list.

        Every object is there in every state, with null members where nothing is known, so that
        a script may write ``status["session"]["rekeys"]`` without a test. What is of one peer is
        null as a whole where there is not one.
        """
        one = self.one_peer
        return {
            "schema": SCHEMA,
            "version": self.version,
            "host": self.host,
            "pid": self.pid,
            # str(): the state may be a StrEnum of the state machine
            "state": str(self.state),
            "phase": None if self.phase is None else str(self.phase),
            "wanted": self.wanted,
            "held": self.held,
            "since": format_time(self.since),
            "now": format_time(self.now),
            "last_error": self.last_error,
            "last_error_at": format_time(self.last_error_at),
            "next_retry_at": format_time(self.next_retry_at),
            "refused": (self.refused or Refused()).to_dict(),
            "public_key": self.public_key,
            "peer": (self.peer or Peer()).to_dict() if one else None,
            "path": self.path,
            "path_reason": self.path_reason,
            "paths": [path.to_dict() for path in self.paths] if one else None,
            "cipher": self.cipher,
            "post_quantum": self.post_quantum,
            "tls_path": self.tls_path,
            "rtt_ms": rounded(self.rtt_ms, 3),
            "mtu": self.mtu,
            "tap": (self.tap or Tap()).to_dict(),
            "nat": (self.nat or Nat()).to_dict(),
            "session": (self.session or Session()).to_dict() if one else None,
            "link": (self.link or Link()).to_dict() if one else None,
            "certificate": (self.certificate or Certificate()).to_dict(),
            "capture": (self.capture or Capture()).to_dict(),
            "reconnects": self.reconnects,
            "path_switches": self.path_switches,
            "handshakes": dict(sorted(self.handshakes.items())),
            "peer_port": (self.peer_port or PeerPort()).to_dict(),
            "queue_bytes": self.queue_bytes,
            "counters": self.counters.to_dict(),
            "resources": (self.resources or Resources()).to_dict(),
            "health": [check.to_dict() for check in self.health],
            "peers": self.peers.to_dict(),
            "network": None if self.network is None else self.network.to_dict(),
        }
