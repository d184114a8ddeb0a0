"""The named health checks: what is looked at, what counts as well, and what to do if it is not.

Owns: the judgement of each check, its code, text and remedy. Does not know: where the facts come
from (`service.view` gathers them), HTTP. Every function is pure and returns one `Check`.

A failing check of severity error makes `GET /health` a 503: the tunnel does not do its work, and
somebody has to act. A warning says that it does, or will by itself, but not well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from shadowmesh.base.units import count, listed, percent, size
from shadowmesh.insight.form import format_time
from shadowmesh.insight.status import Check
from shadowmesh.wire.peer.states import Phase, State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from shadowmesh.insight.vitals import ClockStep

#: the hub answered late: links and timers are delayed, the frames of the UDP path are not
HUB_LAG_LIMIT_S: Final = 0.25
#: no program of this version ran before 2026
EARLIEST_TIME: Final = 1_767_225_600.0
EXPIRES_SOON_S: Final = 30 * 86400.0
#: the state directory and the log live on; what is left below this is as good as nothing
DISK_MARK_BYTES: Final = 1 << 20
#: who was refused longer ago is no news
REFUSED_MEMORY_S: Final = 600.0
#: An open port on the internet meets a scanner now and then; more than one a second is a flood.
STRANGERS_LIMIT: Final = 60
#: STUN, candidates and punching have had their time
PATH_GRACE_S: Final = 15.0
#: share of lost probes above which TCP through the tunnel crawls
LOSS_LIMIT: Final = 0.1
#: of fifty peers in trouble so many are named; `shadowmesh peers` shows the rest
NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """How the peers of a daemon that has not one of them stand.

    Attributes:
        known: how many there are.
        connected: of them with a session.
        awaited: of them without one that only they can begin.
        held: of them that an operator has disconnected.
        troubles: name and cause of each that is dialled and not reached.
        network: they are the other members of a network, and whoever becomes one is among them.
    """

    known: int
    connected: int = 0
    awaited: int = 0
    held: int = 0
    troubles: Sequence[tuple[str, str]] = ()
    network: bool = False


def tap(
    device: str,
    *,
    is_up: bool | None,
    needed: bool,
    problem: str | None,
) -> Check:
    """Judge the TAP device.

    Args:
        device: its name; empty: none is wanted.
        is_up: of the open device; None without one.
        needed: we are connected.
        problem: why it cannot be looked at or made; None when it can.
    """
    if not device:
        return Check("tap", True, text="none is wanted: network.tap_device is empty")
    if problem is not None:
        return Check("tap", False, "error", problem, "see the daemon's log", "tap_unavailable")
    if is_up is None:
        if needed:
            return Check(
                "tap", False, "error", f"{device} is gone",
                "`shadowmesh disconnect`, then connect again", "tap_gone",
            )  # fmt: skip
        return Check("tap", True, text=f"{device} can be made when it is needed")
    if not is_up:
        return Check(
            "tap", False, "error", f"{device} is down, frames are dropped",
            f"ip link set {device} up", "tap_down",
        )  # fmt: skip
    return Check("tap", True, text=f"{device} is up")


def peer(
    state: State,
    phase: Phase | None,
    *,
    configured: bool,
    last_error: str | None,
    retries: bool,
    held: bool = False,
    awaited: bool = False,
    last_seen_at: float | None = None,
    port: int | None = None,
) -> Check:
    """Judge the connection.

    Args:
        configured: there is a key by which somebody could be accepted.
        retries: another attempt is planned.
        held: an operator has disconnected, the peer is refused.
        awaited: disconnected, and only the peer can dial.
        last_seen_at: until when the peer was here, wall-clock seconds; None when it never was.
        port: at which it has to reach us.
    """
    if not configured:
        return Check(
            "peer", False, "warning", "no key is configured, nobody is accepted",
            "`shadowmesh join` a network, or set peer.public_key or encryption.key and `shadowmesh reload`",
            "not_configured",
        )  # fmt: skip
    if state is State.CONNECTED:
        return Check("peer", True, text="connected")
    if awaited or phase is Phase.WAITING_FOR_PEER:
        seen = "never seen" if last_seen_at is None else f"last seen {_minute(last_seen_at)}"
        cause = "" if last_error is None else f": {last_error}"
        return Check(
            "peer", False, "warning", f"waiting for the peer, {seen}{cause}",
            "on the other machine: start the daemon, `shadowmesh connect`, or look at its log"
            + ("" if port is None else f"; it has to reach this one on TCP port {port}"),
            "waiting_for_peer",
        )  # fmt: skip
    if held:
        return Check("peer", True, text="an operator has disconnected, the peer is refused")
    if state is State.DISCONNECTED:
        return Check("peer", True, text="nobody has asked for a tunnel")
    if last_error is None:
        return Check(
            "peer", False, "warning", f"connecting, at the step {phase}", "wait", "connecting"
        )
    remedy = "the daemon keeps trying" if retries else "`shadowmesh connect` tries again"
    return Check("peer", False, "warning", last_error, remedy, "cannot_connect")


def mesh(state: State, standing: Standing, *, port: int | None) -> Check:
    """Judge the connection of a daemon that has not one peer: some session makes it well.

    Args:
        state: of the daemon, derived from those of its peers.
        port: at which peers have to reach us.
    """
    known = count(standing.known, "peer")
    if not standing.known and standing.network:
        return Check("peer", True, text="no other member of the network is known yet")
    if not standing.known:
        return Check(
            "peer", False, "warning", "no peer is configured, nobody is accepted",
            "add one to peers and `shadowmesh reload`", "not_configured",
        )  # fmt: skip
    if standing.connected:
        return Check("peer", True, text=f"connected to {standing.connected} of {known}")
    if standing.troubles:
        first, cause = standing.troubles[0]
        return Check(
            "peer", False, "warning", f"no session with any of {known}; {first}: {cause}",
            "`shadowmesh peers` shows each of them, and the daemon keeps trying", "cannot_connect",
        )  # fmt: skip
    if standing.held == standing.known:
        return Check("peer", True, text="an operator has disconnected, the peers are refused")
    if standing.awaited and state is not State.CONNECTING:
        return Check(
            "peer", False, "warning", f"waiting for {known}, and none is here",
            "on the other machines: start the daemon, `shadowmesh connect`, or look at its log"
            + ("" if port is None else f"; they have to reach this one on TCP port {port}"),
            "waiting_for_peer",
        )  # fmt: skip
    if state is State.DISCONNECTED:
        return Check("peer", True, text="nobody has asked for a tunnel")
    return Check("peer", False, "warning", f"connecting to {known}", "wait", "connecting")


def peers(standing: Standing) -> Check:
    """Judge whether every peer that we dial is reached.

    A check of its own, and no part of readiness: one of fifty that is away stops no frame of the
    others. Those that have to come by themselves come and go.
    """
    if standing.troubles:
        told = [f"{name}: {cause}" for name, cause in standing.troubles[:NAMED]]
        more = len(standing.troubles) - len(told)
        told += [f"and {more} more"] if more else []
        return Check(
            "peers", False, "warning",
            f"{len(standing.troubles)} of {count(standing.known, 'peer')} cannot be reached;"
            f" {'; '.join(told)}",
            "`shadowmesh peers` shows each of them, and the daemon keeps trying", "peers_missing",
        )  # fmt: skip
    awaited = f", {standing.awaited} may come by themselves" if standing.awaited else ""
    return Check(
        "peers", True,
        text=f"{standing.connected} of {count(standing.known, 'peer')} are connected{awaited}",
    )  # fmt: skip


def together(found: Sequence[tuple[str, Check]]) -> Check:
    """Return one check for one of each peer: the worst, with the names of those it is true of.

    Args:
        found: name and check of each peer, at least one.
    """
    _, worst = min(found, key=lambda one: (one[1].ok, one[1].severity == "warning"))
    if worst.ok:
        return replace(
            worst, text=f"nothing is wrong with the paths to {count(len(found), 'peer')}"
        )
    names = [name for name, check in found if check.code == worst.code]
    return replace(worst, text=f"{few(names)}: {worst.text}")


def few(names: Sequence[str]) -> str:
    """Return names as a list that does not grow beyond a line."""
    if len(names) <= NAMED:
        return listed(names)
    return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"


def refused(address: str | None, cause: str | None, age_s: float) -> Check:
    """Judge the last peer that was not let in; of no matter while somebody is.

    A check of its own, and no part of readiness: strangers can make it fail.

    Args:
        address, cause: where it came from and why the handshake failed; None when none did.
        age_s: how long ago that was.
    """
    if address is not None and age_s < REFUSED_MEMORY_S:
        return Check(
            "refused", False, "warning", f"the handshake with {address} failed: {cause}",
            "compare encryption.key and peer.public_key on both sides; if that was not your"
            " peer, do nothing", "peer_refused",
        )  # fmt: skip
    return Check("refused", True, text="nobody was refused lately")


def strangers(turned_away: Mapping[str, int]) -> Check:
    """Judge who came to the peer port and was turned away.

    A check of its own, and no part of readiness: strangers can make it fail.

    Args:
        turned_away: connections of the last minute that were refused or had to make room, or that
            made work for nothing, by outcome.
    """
    count = sum(turned_away.values())
    if count > STRANGERS_LIMIT:
        kinds = ", ".join(f"{name} {number}" for name, number in sorted(turned_away.items()))
        return Check(
            "strangers", False, "warning",
            f"{count} connections to the peer port were turned away in the last minute ({kinds})",
            "peers still get in; to be left alone, let the firewall pass only their addresses to"
            " websocket.listen_address", "strangers",
        )  # fmt: skip
    return Check("strangers", True, text="the peer port is not being flooded")


def hub_lag(worst_s: float) -> Check:
    """Judge the longest delay of the event loop in the last minute."""
    if worst_s > HUB_LAG_LIMIT_S:
        return Check(
            "hub_lag", False, "warning", f"the daemon was held up for {worst_s * 1000:.0f} ms",
            "the machine is short of processor time", "hub_late",
        )  # fmt: skip
    return Check("hub_lag", True, text="the daemon is not held up")


def clock(now: float, step: ClockStep | None) -> Check:
    """Judge the wall clock. The tunnel does not need it; logs and certificates do."""
    if now < EARLIEST_TIME:
        return Check(
            "clock", False, "warning", f"the clock says {format_time(now)}, which is long past",
            "set the clock, for instance with systemd-timesyncd", "clock_wrong",
        )  # fmt: skip
    if step is not None:
        return Check(
            "clock", False, "warning", f"the clock was set by {step.by_s:+.1f} s",
            "times in the log jump there; nothing else to do", "clock_set",
        )  # fmt: skip
    return Check("clock", True, text="the clock has not been set lately")


def queue(full_drops: int, queue_bytes: int) -> Check:
    """Judge the queues.

    Args:
        full_drops: frames that found no room in the last minute.
        queue_bytes: bytes that wait for the WebSocket link, sealed and not yet sealed.
    """
    if full_drops:
        return Check(
            "queue", False, "warning", f"{full_drops} frames found no room in the last minute",
            "more is sent than the path carries; shape it before the tunnel", "queue_full",
        )  # fmt: skip
    return Check("queue", True, text=f"{size(queue_bytes)} wait for the link")


def certificate(path: Path, not_before: float, not_after: float, now: float) -> Check:
    """Judge the TLS certificate of the peer port.

    Peers do not check it, but proxies and firewalls between may.
    """
    remedy = f"renew {path}, or remove it and its key for a new one, and restart"
    if now < not_before:
        text = f"{path} is not valid before {_day(not_before)}"
        return Check(
            "certificate", False, "warning", text, "set the clock", "certificate_not_yet_valid"
        )
    if now > not_after:
        text = f"{path} expired on {_day(not_after)}"
        return Check("certificate", False, "warning", text, remedy, "certificate_expired")
    if now > not_after - EXPIRES_SOON_S:
        text = f"{path} expires on {_day(not_after)}"
        return Check("certificate", False, "warning", text, remedy, "certificate_expires_soon")
    return Check("certificate", True, text=f"{path} is valid until {_day(not_after)}")


def _minute(unix_s: float) -> str:
    return f"{str(format_time(unix_s))[:16].replace('T', ' ')} UTC"


def _day(unix_s: float) -> str:
    return str(format_time(unix_s))[:10]


def path(
    carries: str | None,
    reason: str | None,
    *,
    udp_wanted: bool,
    connected_s: float,
    loss: float | None,
    fallen: bool = False,
    forbidden: int = 0,
) -> Check:
    """Judge the path that carries the frames.

    Args:
        carries: ``wss`` or ``udp``; None when not connected.
        reason: why it is this path.
        udp_wanted: `nat.enabled`.
        connected_s: since when there is a session.
        loss: of the UDP path's last probes, 0.0 to 1.0.
        fallen: UDP has carried this session's frames before, so that nothing is to be awaited.
        forbidden: UDP sends that our own kernel did not permit in the last minute.
    """
    if carries is None:
        return Check("path", True, text="not connected")
    if udp_wanted and forbidden:
        return Check(
            "path", False, "warning", "a firewall on this host forbids it to send UDP to the peer",
            "look for the rule in `nft list ruleset` or `iptables -S OUTPUT`, or set nat.enabled:"
            " false", "udp_forbidden_here",
        )  # fmt: skip
    if loss is not None and loss > LOSS_LIMIT:
        return Check(
            "path", False, "warning", f"{percent(loss)} of the probes over UDP are lost",
            "look for an overloaded link; the tunnel moves to WSS if it gets worse", "path_lossy",
        )  # fmt: skip
    if carries == "wss" and udp_wanted and (fallen or connected_s > PATH_GRACE_S):
        return Check(
            "path", False, "warning", f"frames go over WSS: {reason}",
            "let UDP pass between the two machines, see `shadowmesh netcheck`; or set"
            " nat.enabled: false",
            "udp_unavailable",
        )  # fmt: skip
    return Check("path", True, text=reason or f"on {carries.upper()}")


def disk(directory: Path, free_bytes: int | None) -> Check:
    """Judge the file system of the state directory; free_bytes None: it cannot be asked."""
    if free_bytes is None:
        text = f"{directory} cannot be read"
        return Check("disk", False, "warning", text, "look at its file system", "disk_unreadable")
    if free_bytes < DISK_MARK_BYTES:
        text = f"{directory} has {size(free_bytes)} left; the tunnel goes on, logs are lost"
        return Check("disk", False, "warning", text, "make room", "disk_full")
    return Check("disk", True, text=f"{directory} has {size(free_bytes)} left")


def metrics_port(problem: str | None) -> Check:
    """Judge monitoring.prometheus_port; problem None: it is open, or none is wanted."""
    if problem is not None:
        return Check(
            "metrics_port", False, "warning", problem,
            "metrics are on the control API meanwhile; the port opens when it is free",
            "metrics_port_taken",
        )  # fmt: skip
    return Check("metrics_port", True, text="open, or none is wanted")
