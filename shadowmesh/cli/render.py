"""The status of the daemon as text for people.

Owns: which lines there are, their order and words. Does not know: HTTP, options, terminals;
colours are ANSI codes that the caller's output leaves out where they are not wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from shadowmesh.base.constants import SILENT_PROBES
from shadowmesh.base.units import count, duration, percent, size
from shadowmesh.cli.output import parse_time, text

#: width of the first column and the space behind it
_LABEL_WIDTH = 10
_STATE_COLOURS = {"connected": "green", "connecting": "yellow", "error": "red"}

#: a snapshot as the API answers it
Snapshot = dict[str, Any]


def render(snapshot: Snapshot, now: float, previous: tuple[float, Snapshot] | None = None) -> str:
    """Return the text of a snapshot, without a final line break.

    Args:
        now: wall-clock seconds by the clock of the daemon, for relative times.
        previous: the snapshot before and how many seconds before, for rates; None: no rates.
    """
    return "\n".join(lines_of(_rows(snapshot, now, previous)))


def lines_of(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Give pairs of label and text as lines; an empty label continues the line above."""
    for label, value in rows:
        yield f"{label:<{_LABEL_WIDTH}}{value}".rstrip()


def _rows(
    snapshot: Snapshot, now: float, previous: tuple[float, Snapshot] | None
) -> Iterator[tuple[str, str]]:
    peers = part(snapshot, "peers")
    if snapshot.get("peer") is None and peers.get("known") not in (None, 1):
        yield from _standing_rows(snapshot, now, held="connect", whom="all peers are")
        yield "peers", _peers(peers)
    else:
        one = [("peer", _peer(part(snapshot, "peer")))]
        yield from connection_rows(snapshot, now, one)
    if part(snapshot, "network"):
        yield from _network(part(snapshot, "network"), now)
    if part(snapshot, "nat").get("type") is not None:
        yield "nat", _nat(part(snapshot, "nat"), now)
    if part(snapshot, "tap").get("device") is not None:
        yield "tap", _tap(part(snapshot, "tap"))
    elif snapshot.get("state") == "connected":
        # One that is missed is told with what to do, among the failed checks.
        for check in _passed(snapshot, "tap"):
            yield "tap", text(check.get("text")) + _realtime(part(snapshot, "tap"))
    if part(snapshot, "capture").get("since") is not None:
        yield "capture", _capture(part(snapshot, "capture"), now)
    yield from traffic_rows(snapshot, previous)
    yield "daemon", _daemon(snapshot)
    if snapshot.get("public_key"):
        yield "", f"public key {text(snapshot['public_key'])}"
    yield from _health(snapshot)


def connection_rows(
    one: dict[str, Any],
    now: float,
    who: Sequence[tuple[str, str]] = (),
    *,
    held: str = "connect",
) -> Iterator[tuple[str, str]]:
    """Rows about the connection to one peer.

    Args:
        one: a snapshot of a pair, or one peer of several, which have the same names.
        who: rows about the peer itself.
        held: the command that lets it in again.
    """
    yield from _standing_rows(one, now, held=held, whom="the peer is")
    yield from who
    if one.get("state") == "connected":
        yield "path", _path(one)
        yield from _other_paths(one)
        yield "security", _security(one)
        yield "session", _session(one, now)
    if part(one, "link").get("remote_address") is not None:
        yield "link", _link(one, now)


def _standing_rows(
    one: dict[str, Any], now: float, *, held: str, whom: str
) -> Iterator[tuple[str, str]]:
    yield "state", _state(one, now)
    if one.get("held"):
        yield "", f"{whom} refused until `shadowmesh {held}`"
    yield from _failure(one, now)


def traffic_rows(
    one: dict[str, Any], previous: tuple[float, dict[str, Any]] | None
) -> Iterator[tuple[str, str]]:
    """Rows about what was carried and dropped; as `connection_rows`."""
    yield from _traffic(one, previous)
    yield "drops", _drops(part(part(one, "counters"), "dropped"))


def part(whole: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object of a snapshot; empty where there is none."""
    found = whole.get(name)
    return found if isinstance(found, dict) else {}


def _ago(value: object, now: float) -> str:
    """Return ``13s ago``; a dash when the time is not known."""
    moment = parse_time(value)
    return "-" if moment is None else f"{duration(now - moment)} ago"


def _state(snapshot: Snapshot, now: float) -> str:
    state = text(snapshot.get("state"))
    line = click.style(state, fg=_STATE_COLOURS.get(state), bold=True)
    if snapshot.get("phase"):
        line += f" ({text(snapshot['phase'])})"
    since = parse_time(snapshot.get("since"))
    return line if since is None else f"{line} for {duration(now - since)}"


def _failure(snapshot: Snapshot, now: float) -> Iterator[tuple[str, str]]:
    if snapshot.get("last_error"):
        when = parse_time(snapshot.get("last_error_at"))
        tail = "" if when is None else f" ({duration(now - when)} ago)"
        yield "error", click.style(text(snapshot["last_error"]), fg="red") + tail
    refused = part(snapshot, "refused")
    if refused.get("address") and snapshot.get("state") != "connected":
        ago = _ago(refused.get("failed_at"), now)
        yield "refused", f"{text(refused['address'])} {ago}: {text(refused.get('cause'))}"
    retry = parse_time(snapshot.get("next_retry_at"))
    if retry is not None:
        yield "retry", f"in {duration(retry - now)}"


def _peer(peer: dict[str, Any]) -> str:
    if peer.get("address") is None and peer.get("public_key") is None:
        return "none"
    # a peer without a name of its own is called by its address: say it once
    names = dict.fromkeys(peer.get(name) for name in ("name", "address", "public_key"))
    words = [text(name) for name in names if name]
    if peer.get("public_key"):
        words.append("(pinned)" if peer.get("pinned") else "(not pinned)")
    return "  ".join(words)


def _peers(peers: dict[str, Any]) -> str:
    """Say in one line how several peers are; `shadowmesh peers` has a line for each."""
    sessions, direct = peers.get("sessions") or 0, peers.get("direct") or 0
    line = f"{sessions} of {peers.get('known') or 0} connected, {direct} over UDP"
    return f"{line}; `shadowmesh peers` shows each"


def _path(snapshot: Snapshot) -> str:
    parts = [text(snapshot.get("path"))]
    if snapshot.get("rtt_ms") is not None:
        parts.append(f"{snapshot['rtt_ms']:.2f} ms round trip")
    if snapshot.get("mtu") is not None:
        parts.append(f"MTU {text(snapshot['mtu'])}")
    reason = snapshot.get("path_reason")
    return ", ".join(parts) + (f": {text(reason)}" if reason else "")


def _other_paths(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """The ways to the peer that work or have worked; the first of them carries the data."""
    paths = snapshot.get("paths")
    for path in paths if isinstance(paths, list) else []:
        if not isinstance(path, dict) or not (path.get("proven") or path.get("active")):
            continue
        parts = [f"{text(path.get('path'))} {text(path.get('address'))}"]
        if path.get("kind"):
            parts.append(text(path["kind"]))
        unanswered = path.get("unanswered")
        silent = isinstance(unanswered, int) and unanswered >= SILENT_PROBES
        if silent:
            parts.append(f"silent now, {unanswered} probes without an answer")
        if path.get("rtt_ms") is not None and not silent:
            parts.append(f"{path['rtt_ms']:.2f} ms")
        if path.get("loss") is not None and not silent:
            parts.append(f"{percent(path['loss'])} lost")
        if path.get("payload_bytes") is not None:
            parts.append(f"datagrams of {path['payload_bytes']} bytes")
        yield "", f"{'*' if path.get('active') else ' '} {', '.join(parts)}"


def _security(snapshot: Snapshot) -> str:
    quantum = (
        "post-quantum yes" if snapshot.get("post_quantum")
        else click.style("post-quantum no", fg="yellow")
    )  # fmt: skip
    parts = [text(snapshot.get("cipher")), quantum]
    tls_path = snapshot.get("tls_path")
    if tls_path is not None:
        colour = None if tls_path == "direct" else "yellow"
        parts.append(f"TLS {click.style(text(tls_path), fg=colour)}")
    return ", ".join(parts)


def _session(snapshot: Snapshot, now: float) -> str:
    session = part(snapshot, "session")
    line = f"established {_ago(session.get('established_at'), now)}"
    line += f", {count(session.get('rekeys') or 0, 'rekey')}"
    if session.get("last_rekey_at") is not None:
        line += f", last {_ago(session['last_rekey_at'], now)}"
    return line


def _link(snapshot: Snapshot, now: float) -> str:
    link = part(snapshot, "link")
    line = text(link.get("remote_address"))
    since = parse_time(link.get("since"))
    if since is not None:
        line += f" up for {duration(now - since)}"
    return f"{line}, {count(snapshot.get('reconnects') or 0, 'reconnect')}"


def _network(network: dict[str, Any], now: float) -> Iterator[tuple[str, str]]:
    """Say in two lines who we are in the network, and what holds it together."""
    parts = [f"{text(network.get('name'))} as {text(network.get('own'))}"]
    parts += [text(one) for name in ("addresses", "roles") for one in network.get(name) or ()]
    parts.append(f"{count(network.get('members_known') or 0, 'member')} known")
    yield "network", ", ".join(parts)
    parts = []
    for relay in network.get("relays") or ():
        state = "connected" if relay.get("session") else "no session"
        home = "home " if relay.get("home") else ""
        at = f" at {text(relay['address'])}" if relay.get("address") else ""
        parts.append(f"{home}relay {text(relay.get('name'))}{at} ({state})")
    newest = max(network.get("lists") or (), key=lambda one: one["issued_at"], default=None)
    if newest is not None:
        parts.append(f"list {text(newest['number'])} made {_ago(newest['issued_at'], now)}")
    parts.append(f"certificate until {text(network.get('expires_at'))[:10]}")
    yield "", ", ".join(parts)


def _nat(nat: dict[str, Any], now: float) -> str:
    line = text(nat.get("type"))
    if nat.get("public_address") is not None:
        line += f", seen as {text(nat['public_address'])}"
    if nat.get("detected_at") is not None:
        line += f", {_ago(nat['detected_at'], now)}"
    if nat.get("detail"):
        line += f": {text(nat['detail'])}"
    return line


def _tap(tap: dict[str, Any]) -> str:
    # A daemon of another version may know one address only.
    addresses = tap.get("addresses") or [address for address in (tap.get("address"),) if address]
    address = ", ".join(map(text, addresses)) or "no address"
    line = f"{text(tap.get('device'))}, {address}, MTU {text(tap.get('mtu'))}"
    queues = len(tap.get("queues") or ())
    return (f"{line}, {queues} queues" if queues > 1 else line) + _realtime(tap)


def _realtime(tap: dict[str, Any]) -> str:
    if tap.get("realtime"):
        return ", real-time priority"
    problem = tap.get("realtime_problem")
    return f", no real-time priority: {text(problem)}" if problem else ""


def _capture(capture: dict[str, Any], now: float) -> str:
    line = f"somebody has been reading the frames since {_ago(capture['since'], now)}"
    return click.style(f"{line}, {count(capture.get('frames') or 0, 'frame')}", fg="yellow")


def _traffic(
    snapshot: Snapshot, previous: tuple[float, Snapshot] | None
) -> Iterator[tuple[str, str]]:
    counters = part(snapshot, "counters")
    before, elapsed_s = {}, 0.0
    if previous is not None:
        before, elapsed_s = part(previous[1], "counters"), previous[0]
    rows = []
    for direction in ("in", "out"):
        frames = counters.get(f"frames_{direction}") or 0
        octets = counters.get(f"bytes_{direction}") or 0
        row = [direction, count(frames, "frame"), size(octets)]
        if elapsed_s > 0:
            # below zero after a restart of the daemon: nothing is known yet
            frame_rate = (frames - (before.get(f"frames_{direction}") or 0)) / elapsed_s
            byte_rate = (octets - (before.get(f"bytes_{direction}") or 0)) / elapsed_s
            row += [f"{max(0.0, frame_rate):,.0f} frames/s", f"{size(max(0.0, byte_rate))}/s"]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for label, row in zip(("traffic", ""), rows, strict=True):
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield label, "  ".join(cells)


def _drops(dropped: dict[str, Any]) -> str:
    reasons = [(text(name), number) for name, number in dropped.items() if number]
    if not reasons:
        return "none"
    reasons.sort(key=lambda reason: (-reason[1], reason[0]))
    return ", ".join(f"{name} {number:,}" for name, number in reasons)


def _daemon(snapshot: Snapshot) -> str:
    resources = part(snapshot, "resources")
    parts = [f"version {text(snapshot.get('version'))}"]
    if resources.get("rss_bytes"):
        parts += [
            f"{resources.get('cpu_percent') or 0:.1f} % CPU",
            size(resources["rss_bytes"]),
            count(resources.get("threads") or 0, "thread"),
            count(resources.get("open_fds") or 0, "open file"),
        ]
    return ", ".join(parts)


def _checks(snapshot: Snapshot) -> list[dict[str, Any]]:
    checks = snapshot.get("health")
    return [c for c in checks if isinstance(c, dict)] if isinstance(checks, list) else []


def _passed(snapshot: Snapshot, name: str) -> list[dict[str, Any]]:
    return [c for c in _checks(snapshot) if c.get("name") == name and c.get("ok")]


def _health(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    checks = _checks(snapshot)
    failed = [check for check in checks if not check.get("ok")]
    if not failed:
        yield "health", f"{click.style('ok', fg='green')}, {count(len(checks), 'check')} passed"
    label = "health"
    for check in failed:
        warning = check.get("severity") == "warning"
        mark = click.style("warn", fg="yellow") if warning else click.style("FAIL", fg="red")
        yield label, f"{mark} {text(check.get('name'))}: {text(check.get('text'))}"
        label = ""
        if check.get("remedy"):
            yield "", f"     do: {text(check['remedy'])}"


def warnings(snapshot: Snapshot) -> list[str]:
    """Return what is wrong with the device and the routes of this host, with what to do."""
    checks = snapshot.get("health") or ()
    failed = [c for c in checks if c.get("name") in ("tap", "underlay") and not c.get("ok")]
    return [f"{text(check.get('text'))}; {text(check.get('remedy'))}" for check in failed]
