"""The decision chain of one frame: what happens to it between the host and the far TAP, and why.

Owns: the steps of the chain, the verdict on each, its words and its remedy. Does not know: where
the facts come from (`service.view` and `device.facts` gather them), HTTP. `explain` is a pure
function.

::

    tap -> target -> connection -> session -> path -> mtu -> queue -> drops -> daemon

With several peers the chain is that of the peer whom the switch would send the frame to; where that
is not known, or is all of them, it ends at the connection.

A step fails when a frame would not get past it; a warning says that it would, but that something
there is not well or not known. What only follows from an earlier cause is a warning, so that the
first step that fails names the cause.

Without a device, which `network.tap_device` may say, the chain fails at its first step, and what is
said of the host's side alone is left out: the rest tells how the session is.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from shadowmesh.base.constants import (
    ETHERNET_HEADER_BYTES,
    FRAGMENT_HEADER_BYTES,
    KEY_LIFETIME_S,
    RECORD_OVERHEAD_BYTES,
    SILENT_PROBES,
)
from shadowmesh.base.units import count, duration, percent, size
from shadowmesh.device.facts import HostFacts, Target, Whereabouts, format_mac
from shadowmesh.insight import surroundings
from shadowmesh.insight.form import SCHEMA
from shadowmesh.insight.peers import Path, Peer, Session
from shadowmesh.insight.reasons import DROPPED, REFUSED, Reason
from shadowmesh.insight.status import Check, Counters, Snapshot
from shadowmesh.insight.table import Entry, learned
from shadowmesh.keys.mac import stable_mac

Verdict = Literal["ok", "warn", "fail"]
StepName = Literal[
    "tap", "target", "connection", "session", "path", "mtu", "queue", "drops", "daemon"
]

#: a rekey is 55 s overdue then
_KEYS_END_SOON_S: Final = 30.0
#: health checks that have a step of their own
_OWN_STEP: Final = ("tap", "peer", "path", "queue", "refused")
_LOOP: Final = "tunnel_loop"
#: of a peer that is not reached
_NO_RELAY: Final = "no peer passes frames on for another: one side has to have the address of the other and reach it"
#: drops that say nothing about a tunnel that is up now
_HARMLESS_DROPS: Final = ("not_connected", "link_lost", "unjudged")
#: all that comes where there is no device
_NO_DEVICE: Final = "tap_gone"


@dataclass(frozen=True, slots=True)
class Step:
    """One decision.

    Attributes:
        name: which.
        verdict: ``ok``; ``warn``: the frame passes, or it is not known; ``fail``: it does not.
        text: what was found, one line.
        remedy: what the operator can do; empty when there is nothing to do.
        details: further lines, such as one for each path that was tried.
    """

    name: StepName
    verdict: Verdict
    text: str
    remedy: str = ""
    details: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "verdict": self.verdict,
            "text": self.text,
            "remedy": self.remedy,
            "details": list(self.details),
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole chain.

    Attributes:
        target: that was asked about; None for any frame.
        delivered: a frame would reach the far TAP: no step fails.
        summary: one sentence.
        steps: in the order in which a frame meets them.
    """

    target: str | None
    delivered: bool
    summary: str
    steps: Sequence[Step]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; names are only ever added."""
        return {
            "schema": SCHEMA,
            "target": self.target,
            "delivered": self.delivered,
            "summary": self.summary,
            "steps": [step.to_dict() for step in self.steps],
        }


@dataclass(frozen=True, slots=True)
class Place:
    """What the switch of a daemon with several peers knows about a target.

    Attributes:
        peer: name of the peer that the frame is for; None: of none in particular, or not known.
        entries: of the target in the table, the one that was heard last first.
        configured: it is that peer's by its `tunnel_ips`.
    """

    peer: str | None = None
    entries: Sequence[Entry] = ()
    configured: bool = False


def explain(
    snapshot: Snapshot,
    facts: HostFacts,
    target: Target | None,
    now: float,
    place: Place | None = None,
) -> Explanation:
    """Return what happens to a frame for target.

    Args:
        snapshot: with the one peer that the frame is for, or with none where it is for several.
        facts: looked up for the same target.
        now: wall-clock seconds.
        place: looked up for the same target; None of a pair, whose frames have one way to go.
    """
    headless = not facts.name
    if headless:
        steps = [_headless()]
    else:
        steps = [_tap(snapshot, facts), _target(snapshot, facts, target, place)]
    if place is not None and place.peer is None:
        steps.append(_connections(snapshot))
    else:
        steps.append(_connection(snapshot, now, "" if place is None else place.peer or ""))
        if _is_connected(snapshot):
            steps += [_session(snapshot, now), _path(snapshot)]
            steps += [] if headless else [_mtu(snapshot, facts)]
    steps += [_queue(snapshot), _drops(snapshot, facts), *_daemon(snapshot)]
    named = None if target is None else _named(target)
    failed = [step for step in steps if step.verdict == "fail"]
    if failed:
        crosses = "crosses the tunnel" if failed[0].name == "target" else "is delivered"
        summary = f"no frame {crosses}: {failed[0].text}"
    else:
        warnings = sum(step.verdict == "warn" for step in steps)
        summary = f"a frame is delivered {_whither(snapshot, place)}"
        summary += f", {count(warnings, 'warning')}" if warnings else ""
    return Explanation(named, not failed, summary, tuple(steps))


def _whither(snapshot: Snapshot, place: Place | None) -> str:
    if place is None:
        return f"over {snapshot.path}"
    if place.peer is None:
        return f"to {snapshot.peers.sessions} of {count(snapshot.peers.known, 'peer')}"
    return f"to {place.peer} over {snapshot.path}"


def _named(target: Target) -> str:
    return format_mac(target) if isinstance(target, bytes) else str(target)


def _is_connected(snapshot: Snapshot) -> bool:
    return str(snapshot.state) == "connected"


def _check(snapshot: Snapshot, name: str) -> Check | None:
    return next((check for check in snapshot.health if check.name == name), None)


# --- The device ---------------------------------------------------------------------------------


def _headless() -> Step:
    return Step(
        "tap", "fail",
        "network.tap_device is empty: this daemon runs without a device, and no frame of this host"
        " goes to a peer",
        "none is needed where it only serves others; else name a device and restart the daemon",
    )  # fmt: skip


def _tap(snapshot: Snapshot, facts: HostFacts) -> Step:
    name, device, ours = facts.name, facts.device, snapshot.tap
    if facts.problem is not None:
        return Step("tap", "warn", f"the kernel cannot be asked about {name}: {facts.problem}")
    if ours is None:
        return _tap_unopened(snapshot, facts)
    if device is None:
        return Step(
            "tap", "fail", f"{name} was deleted; the daemon makes it again within a second",
            "if it stays away: `shadowmesh logs` says why",
        )  # fmt: skip
    if not device.up:
        return Step("tap", "fail", f"{name} is down", f"ip link set {name} up")
    wanted = () if ours.address is None else (ours.address,)
    changed = surroundings.device(device, facts.others, wanted, ours.mtu or device.mtu)
    if changed is not None:
        return Step("tap", "warn", changed.text, changed.remedy)
    address = ours.address or "without an address"
    bridge = "" if device.bridge is None else f", a port of the bridge {device.bridge}"
    return Step("tap", "ok", f"{name} is up, {address}, MTU {device.mtu}{bridge}")


def _tap_unopened(snapshot: Snapshot, facts: HostFacts) -> Step:
    name, device, check = facts.name, facts.device, _check(snapshot, "tap")
    if device is not None and device.kind != "tun":
        kind = f", a {device.kind} device" if device.kind else ""
        return Step(
            "tap", "fail", f"{name} is another interface{kind}: the daemon cannot make its own",
            f"remove it (`ip link delete {name}`) or set network.tap_device",
        )  # fmt: skip
    if check is not None and not check.ok:
        return Step("tap", "fail", check.text, check.remedy)
    if _is_connected(snapshot):
        return Step("tap", "fail", f"{name} is gone", "`shadowmesh disconnect`, then connect again")
    return Step("tap", "warn", f"{name} is not there; it is made when the tunnel connects")


# --- The target -------------------------------------------------------------------------------


def _target(
    snapshot: Snapshot, facts: HostFacts, target: Target | None, place: Place | None
) -> Step:
    found = facts.target
    if target is None:
        of = "" if place is None or place.peer is None else f" for {place.peer}"
        text = f"every frame{of} that leaves through {facts.name}"
        return Step("target", "ok", text if of else f"none was given: {text}")
    if found is None:
        return Step("target", "warn", f"where {_named(target)} is cannot be asked")
    if isinstance(target, bytes):
        return _mac(snapshot, facts, target, found, place)
    if target.is_multicast:
        who = "the peer's side gets" if place is None else "the sides of all peers get"
        return Step("target", "ok", f"{target} is a group: {who} what is sent to it")
    connected = _is_connected(snapshot)
    step = _address(None if place else _peer_mac(snapshot), facts, str(target), found, connected)
    return step if place is None or step.verdict == "fail" else _behind(step, place)


def _behind(step: Step, place: Place) -> Step:
    """Add to what the kernel knows of an address what the switch knows of it."""
    if not place.entries:
        if not place.configured:
            return replace(step, text=f"{step.text}; behind which peer is not known yet")
        return replace(step, text=f"{step.text}; it is {place.peer}'s by tunnel_ips")
    return _known(step.text + ", ", place)


def _known(begin: str, place: Place) -> Step:
    """Say of an address that is in the table where the switch sends what is for it."""
    entry = place.entries[0]
    if entry.peer is None:
        return Step(
            "target", "fail",
            f"{begin}on this side of the tunnel, {learned(entry)}: no frame for it goes to a peer",
            "none is needed, unless it should stand on the other side",
        )  # fmt: skip
    own = "" if entry.static or not any(one.static for one in place.entries) else "its own device, "
    text = f"{begin}behind {entry.peer}, {own}{learned(entry)}"
    if entry.moves:
        text += f", moved {count(entry.moves, 'time')}"
    others = [
        f"behind {other.peer or 'this host'}, {learned(other)}"
        for other in place.entries[1:]
        if not other.static
    ]
    return Step("target", "ok", text, details=others)


def _mac(
    snapshot: Snapshot, facts: HostFacts, mac: bytes, found: Whereabouts, place: Place | None
) -> Step:
    name, bridge = format_mac(mac), _bridge(facts)
    if mac[0] & 1:
        return Step("target", "ok", f"{name} is a group address: every host of the segment gets it")
    if found.ours is not None:
        return Step(
            "target", "fail",
            f"{name} is {found.ours} of this host: nothing for it leaves the host",
            "ask for the MAC of a host on the other side",
        )  # fmt: skip
    if mac == _peer_mac(snapshot):
        whose = "the peer" if place is None or place.peer is None else place.peer
        return Step("target", "ok", f"{name} is {whose}'s own TAP device")
    if found.port is not None and found.port != facts.name:
        return Step(
            "target", "fail",
            f"{name} is on this side of the tunnel: the bridge {bridge} has seen it behind"
            f" {found.port}",
            "none is needed, unless it should stand on the other side",
        )  # fmt: skip
    if place is not None and place.entries:
        return _known(f"{name} is ", place)
    if found.port is not None:
        return Step("target", "ok", f"the bridge {bridge} has seen {name} behind the tunnel")
    if found.address is not None:
        return Step("target", "ok", f"{name} is {found.address}, as it answered on {facts.name}")
    if place is None:
        text = "the peer gets the frame, and its kernel or bridge decides"
    elif place.peer is None:
        text = f"the frame is sent to every peer with a session, now {snapshot.peers.sessions}"
    else:
        text = f"a frame for it is sent to every peer with a session, {place.peer} among them"
    return Step("target", "warn", f"{name} has not been seen here; {text}")


def _address(
    of_peer: bytes | None, facts: HostFacts, name: str, found: Whereabouts, connected: bool
) -> Step:
    """Judge an address. of_peer: MAC of the peer's own device; None: not known, or of which peer."""
    tunnel = _bridge(facts) or facts.name
    if found.ours is not None:
        return Step(
            "target", "fail",
            f"{name} is an address of this host ({found.ours}): packets to it never leave",
            "ask for the address that the peer has in its network.local_ip",
        )  # fmt: skip
    if facts.device is None and (found.no_route is not None or not found.into_tunnel):
        return Step(
            "target", "warn", f"the way to {name} is not known before {facts.name} is there"
        )
    if found.no_route is not None:
        return Step(
            "target", "fail", f"this host has no route to {name}: {found.no_route}",
            f"ip route add {name} dev {tunnel}; or use an address of the tunnel's network",
        )  # fmt: skip
    if not found.into_tunnel:
        via = "" if found.gateway is None else f" to {found.gateway}"
        return Step(
            "target", "fail",
            f"the routes of this host send {name} out of {found.out}{via}, not into the tunnel",
            f"ip route add {name} dev {tunnel}, if it is behind the tunnel",
        )  # fmt: skip
    hop = name if found.gateway is None else f"the gateway {found.gateway}"
    way = f"{name} is reached through {tunnel}"
    way += "" if found.gateway is None else f" by {hop}"
    if found.answered is False:
        return Step(
            # Without a tunnel that is no wonder, and not the cause.
            "target", "fail" if connected else "warn",
            f"{way}, but nobody there answers when the kernel asks who has {hop}",
            "compare network.local_ip on the other side, or look whether that host is up;"
            f" `ip neighbour flush dev {tunnel}` makes the kernel ask again",
        )  # fmt: skip
    if found.answered is None:
        return Step("target", "ok", f"{way}; the first frame asks who has it (ARP or ND)")
    if found.port is not None and found.port != facts.name:
        return Step(
            "target", "fail",
            f"{hop} is on this side of the tunnel: it answered behind {found.port}, which is in the"
            f" bridge {tunnel} too",
            "none is needed, unless it should stand on the other side",
        )  # fmt: skip
    who = "" if found.mac is None else f" with {format_mac(found.mac)}"
    own = ", the peer's own TAP device" if found.mac and found.mac == of_peer else ""
    return Step("target", "ok", f"{way} and answered{who}{own}")


def _bridge(facts: HostFacts) -> str | None:
    return None if facts.device is None else facts.device.bridge


def _peer_mac(snapshot: Snapshot) -> bytes | None:
    """Return the MAC that the peer's daemon gives its device, unless it is a port of a bridge."""
    key = None if snapshot.peer is None else snapshot.peer.public_key
    return None if key is None else stable_mac(base64.b64decode(key))


# --- Connection and session -------------------------------------------------------------------


def _connections(snapshot: Snapshot) -> Step:
    """Judge the connection of a frame that is for no peer in particular."""
    of_all, of_each = _check(snapshot, "peer"), _check(snapshot, "peers")
    details = [of_each.text] if of_each is not None and not of_each.ok else []
    if _is_connected(snapshot):
        peers = snapshot.peers
        text = f"connected to {peers.sessions} of {count(peers.known, 'peer')}"
        return Step("connection", "ok", text, details=details)
    text = _situation(snapshot) if of_all is None else of_all.text
    remedy = "" if of_all is None else of_all.remedy
    return Step("connection", "fail", text, remedy or "`shadowmesh connect`", details)


def _connection(snapshot: Snapshot, now: float, who: str) -> Step:
    """Judge the connection to the one peer that the frame is for; who: its name among several."""
    step = _connection_of(snapshot, now, who)
    if who and step.verdict == "fail":
        step = replace(step, details=[*step.details, _NO_RELAY])
    return replace(step, text=f"{who}: {step.text}" if who else step.text)


def _connection_of(snapshot: Snapshot, now: float, who: str) -> Step:
    peer = snapshot.peer or Peer()
    if _is_connected(snapshot):
        since = duration(now - snapshot.since)
        return Step("connection", "ok", f"connected to {peer.address} for {since}")
    check, refused = _check(snapshot, "peer"), _check(snapshot, "refused")
    if check is not None and check.code == "not_configured":
        return Step("connection", "fail", check.text, check.remedy)
    retry = _until(snapshot.next_retry_at, now)
    details = [] if retry is None else [f"the next attempt starts in {retry}"]
    if snapshot.last_error is not None and not _refused_since(snapshot):
        # A refusal beside it is of another attempt, and the operator may know which.
        if refused is not None and not refused.ok:
            details.append(refused.text)
        return Step(
            "connection", "fail", f"{_situation(snapshot)}: {snapshot.last_error}",
            "" if check is None else check.remedy, details,
        )  # fmt: skip
    if refused is not None and not refused.ok:
        return Step(
            "connection", "fail", f"{_situation(snapshot)}: {refused.text}", refused.remedy,
            details,
        )  # fmt: skip
    if check is not None and check.code == "waiting_for_peer":
        if snapshot.network is not None:
            return _not_come(peer, now, details)
        return Step("connection", "fail", check.text, check.remedy, details)
    if str(snapshot.state) == "disconnected":
        why = "nobody has asked for a tunnel" if check is None else check.text
        nobody = peer.address is None and not snapshot.held
        words = ["shadowmesh connect", *([who] if who else []), *(["HOST:PORT"] if nobody else [])]
        return Step("connection", "fail", f"disconnected: {why}", f"`{' '.join(words)}`", details)
    return Step(
        "connection", "fail", _situation(snapshot), "" if check is None else check.remedy,
        details,
    )  # fmt: skip


def _not_come(peer: Peer, now: float, details: Sequence[str]) -> Step:
    """Say of a member that it has to come, and why we do not go."""
    seen = peer.last_seen_at
    return Step(
        "connection", "fail",
        "it announces no address where it could be dialled, and has not come to this machine,"
        f" {'never seen' if seen is None else f'last seen {duration(now - seen)} ago'}",
        "set mesh.announce, on either side, to an address where the other reaches that machine",
        details,
    )  # fmt: skip


def _situation(snapshot: Snapshot) -> str:
    """Return what the connection is doing, where it is not up."""
    if str(snapshot.state) == "error":
        return "the last attempt failed"
    phase = "" if snapshot.phase is None else f" ({snapshot.phase})"
    return f"{snapshot.state}{phase}"


def _refused_since(snapshot: Snapshot) -> bool:
    """Whether a peer was refused after the last failure of our own: then that is the news."""
    refused, failed_at = snapshot.refused, snapshot.last_error_at
    return (
        refused is not None
        and refused.failed_at is not None
        and failed_at is not None
        and refused.failed_at > failed_at
    )


def _until(moment: float | None, now: float) -> str | None:
    return None if moment is None else duration(moment - now)


def _session(snapshot: Snapshot, now: float) -> Step:
    session = snapshot.session or Session()
    strength = "post-quantum" if snapshot.post_quantum else "not post-quantum"
    text = f"{snapshot.cipher}, {strength}"
    end = session.keys_expire_at
    if end is None:
        return Step("session", "fail", f"{text}, but there are no keys", "`shadowmesh logs`")
    left_s = end - now
    text += f"; keys {duration(KEY_LIFETIME_S - left_s)} old"
    rekey = _until(session.next_rekey_at, now)
    if rekey is not None:
        asks = "next rekey" if session.initiator else "the peer rekeys, else we ask for it"
        text += f", {asks} in {rekey}"
    text += f", they end in {duration(left_s)} without one"
    if left_s <= 0:
        return Step(
            "session", "fail", f"the keys ended {duration(-left_s)} ago and no rekey succeeded",
            "`shadowmesh disconnect`, then connect again",
        )  # fmt: skip
    if left_s < _KEYS_END_SOON_S:
        return Step(
            "session", "warn", f"{text}; no rekey has succeeded in time",
            "look for `rekey` in the logs of both sides",
        )  # fmt: skip
    return Step("session", "ok", text)


# --- Path, MTU, queue -------------------------------------------------------------------------


def _path(snapshot: Snapshot) -> Step:
    check = _check(snapshot, "path")
    text = f"frames go over {snapshot.path}: {snapshot.path_reason}"
    details = [_tried(path) for path in snapshot.paths]
    if snapshot.nat is not None and snapshot.nat.type is not None:
        seen = snapshot.nat.public_address
        details.append(
            f"this side's NAT: {snapshot.nat.type}" + (f", seen as {seen}" if seen else "")
        )
    loop = _check(snapshot, "underlay")
    if loop is not None and loop.code == _LOOP and loop.severity == "error":
        return Step("path", "fail", loop.text, loop.remedy, details)
    if check is not None and not check.ok:
        if check.code == "path_lossy":
            text += f"; {check.text}"
        elif check.code == "udp_forbidden_here":
            text = f"frames go over {snapshot.path}: {check.text}"
        return Step("path", "warn", text, check.remedy, details)
    return Step("path", "ok", text, details=details)


def _tried(path: Path) -> str:
    """Return what is known of one way to the peer."""
    kind = "" if path.kind is None else f" ({path.kind})"
    words = [f"{path.path} {path.address}{kind}"]
    if path.active:
        words.append("carries the frames")
    elif path.path == "wss":
        words.append("open, in reserve")
    if path.proven and path.rtt_ms is not None and path.unanswered < SILENT_PROBES:
        words.append(f"answers in {path.rtt_ms:.1f} ms")
    if path.loss:
        words.append(f"{percent(path.loss)} of the last probes lost")
    if path.hindrance is not None:
        words.append(f"not probed: {path.hindrance}")
    elif path.path == "udp" and path.unanswered and not path.active:
        words.append(f"{count(path.unanswered, 'probe')} without an answer")
    elif path.path == "udp" and not path.proven:
        words.append("not tried yet")
    return ", ".join(words)


def _mtu(snapshot: Snapshot, facts: HostFacts) -> Step:
    mtu = facts.device.mtu if facts.device is not None else (snapshot.tap and snapshot.tap.mtu) or 0
    peer_mtu = None if snapshot.peer is None else snapshot.peer.tap_mtu
    frame = mtu + ETHERNET_HEADER_BYTES
    fit = f"a full frame of {frame} bytes {_fit(snapshot, frame)}"
    if peer_mtu is not None and peer_mtu < mtu:
        return Step(
            "mtu", "warn",
            f"{fit}; but the peer's TAP takes {peer_mtu} bytes of payload and this one sends up to"
            f" {mtu}: what is longer is dropped",
            "set network.mtu alike on both sides",
        )  # fmt: skip
    return Step("mtu", "ok", fit)


def _fit(snapshot: Snapshot, frame: int) -> str:
    if snapshot.path == "wss":
        return "goes through whole: WSS is a stream"
    payload = next((path.payload_bytes for path in snapshot.paths if path.active), None)
    overhead = RECORD_OVERHEAD_BYTES.get(snapshot.cipher or "")
    if payload is None or overhead is None:
        return "may be cut: what the path carries is not known yet"
    if frame + overhead <= payload:
        return f"fits one datagram: the path carries {payload} bytes"
    # As the data plane cuts: each part has the record's overhead and a header of its own.
    part = payload - (overhead - 1) - FRAGMENT_HEADER_BYTES
    parts = -(-(frame + 1) // part)
    return (
        f"is cut into {parts} fragments: the path carries datagrams of {payload} bytes;"
        " TCP does not pay for that, its segments are cut to fit"
    )


def _queue(snapshot: Snapshot) -> Step:
    check = _check(snapshot, "queue")
    waiting = f"{size(snapshot.queue_bytes)} wait for the WSS link"
    if check is not None and not check.ok:
        return Step("queue", "warn", f"{check.text}; {waiting} now", check.remedy)
    return Step("queue", "ok", waiting)


# --- Drops and the rest -----------------------------------------------------------------------


def _drops(snapshot: Snapshot, facts: HostFacts) -> Step:
    counters: Counters = snapshot.counters
    lately = {name: number for name, number in counters.dropped_lately.items() if number}
    before = {
        name: number - lately.get(name, 0)
        for name, number in counters.dropped.items()
        if number > lately.get(name, 0)
    }
    details = [f"in the last minute: {line}" for line in _reasons(lately, DROPPED, "frame")]
    details += [f"before: {line}" for line in _reasons(before, DROPPED, "frame")]
    details += [
        f"since the start: {line}" for line in _reasons(counters.udp_refused, REFUSED, "datagram")
    ]
    if facts.device is not None and facts.device.tx_dropped:
        details.append(
            f"by the kernel, since {facts.name} was made:"
            f" {count(facts.device.tx_dropped, 'frame')}, as the queue of the device was full"
        )
    harmless = _HARMLESS_DROPS if facts.name else (*_HARMLESS_DROPS, _NO_DEVICE)
    bad = {name: number for name, number in lately.items() if name not in harmless}
    if bad:
        worst = max(bad, key=lambda name: bad[name])
        reason = DROPPED.get(worst, Reason(worst))
        return Step(
            "drops", "warn",
            f"{count(sum(bad.values()), 'frame')} dropped in the last minute, most as {worst}:"
            f" {reason.meaning}",
            reason.remedy.replace("DEVICE", facts.name), details,
        )  # fmt: skip
    total = count(sum(counters.dropped.values()), "frame")
    return Step(
        "drops", "ok", f"none in the last minute that matters, {total} since the start",
        details=details,
    )  # fmt: skip


def _reasons(
    numbers: Mapping[str, int], meanings: Mapping[str, Reason], noun: str
) -> Iterator[str]:
    for name, number in sorted(numbers.items(), key=lambda item: (-item[1], item[0])):
        if number:
            meaning = meanings.get(name, Reason("of a newer data plane")).meaning
            yield f"{name} {count(number, noun)}: {meaning}"


def _daemon(snapshot: Snapshot) -> Iterator[Step]:
    """What else is wrong with the daemon; frames pass nevertheless."""
    others = [check for check in snapshot.health if check.name not in _OWN_STEP]
    failed = [check for check in others if not check.ok]
    for check in failed:
        yield Step("daemon", "warn", check.text, check.remedy)
    if not failed:
        yield Step("daemon", "ok", "nothing else is wrong" if others else "nothing was looked at")
