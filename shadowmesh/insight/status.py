"""What the daemon says about itself: frozen snapshots and health checks.

Owns: the shape and the JSON form of a status snapshot, of a health report and of the process's
resources. Does not know: who fills them in, HTTP, Prometheus, gevent. It is one module because
all of it is one document, which grows in one way.

The names in the JSON form are relied upon by scripts: they are added to, never renamed or
removed while `SCHEMA` stays the same. A snapshot holds no secret, so everything in it may be
printed, logged or sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

#: grows only when a name in the JSON form changes its meaning or goes away
SCHEMA: Final = 1

#: a daemon whose checks of these names pass is ready
READY_CHECKS: Final = ("tap", "peer")


STATES: Final = ("disconnected", "connecting", "connected", "error")
PATHS: Final = ("wss", "udp")

Severity = Literal["error", "warning"]
PathName = Literal["wss", "udp"]
TlsPath = Literal["direct", "proxied-or-intercepted"]


def format_time(unix_s: float | None) -> str | None:
    """Return unix_s (seconds since 1970, wall clock) as RFC 3339 in UTC, to the millisecond."""
    if unix_s is None:
        return None
    moment = datetime.fromtimestamp(unix_s, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


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

    `address` is the first of `addresses`, for who knows one only.

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
            "rtt_ms": _rounded(self.rtt_ms, 3),
            "loss": _rounded(self.loss, 3),
            "payload_bytes": self.payload_bytes,
            "seen_as": self.seen_as,
            "unanswered": self.unanswered,
            "hindrance": self.hindrance,
        }


@dataclass(frozen=True, slots=True)
class Certificate:
    """The TLS certificate of the peer port: until when it is valid, and its SHA-256 in hex."""

    not_after: float | None = None
    sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"not_after": format_time(self.not_after), "sha256": self.sha256}


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
        return {"path": self.path, "address": self.address, "rtt_ms": _rounded(self.rtt_ms, 3)}


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
class Link:
    """The live WebSocket link: the socket's remote ``host:port`` and since when it is up."""

    remote_address: str | None = None
    since: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"remote_address": self.remote_address, "since": format_time(self.since)}


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

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: only str, int, float, bool, None, dict and list.

        Every object is there in every state, with null members where nothing is known, so that
        a script may write ``status["session"]["rekeys"]`` without a test.
        """
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
            "peer": (self.peer or Peer()).to_dict(),
            "path": self.path,
            "path_reason": self.path_reason,
            "paths": [path.to_dict() for path in self.paths],
            "cipher": self.cipher,
            "post_quantum": self.post_quantum,
            "tls_path": self.tls_path,
            "rtt_ms": _rounded(self.rtt_ms, 3),
            "mtu": self.mtu,
            "tap": (self.tap or Tap()).to_dict(),
            "nat": (self.nat or Nat()).to_dict(),
            "session": (self.session or Session()).to_dict(),
            "link": (self.link or Link()).to_dict(),
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
        }
