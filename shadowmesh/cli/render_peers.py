"""Peers and the switch's table as text for people.

Owns: the columns of the tables, the lines of one peer. Does not know: HTTP, options, terminals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from shadowmesh.base.units import count, duration, size
from shadowmesh.cli.output import parse_time, text
from shadowmesh.cli.render import connection_rows, lines_of, part, traffic_rows

#: of the addresses behind a peer so many are shown; `fdb` shows all
SHOWN_MACS = 10

#: as the API answers it
Peer = dict[str, Any]

_COLUMNS = ("NAME", "ADDRESS", "PATH", "RTT", "IN", "OUT", "CIPHER", "SEEN")
_RIGHT = ("RTT", "IN", "OUT", "AGE", "MOVES", "VLAN")
_COLOURS = {"connected": "green", "connecting": "yellow", "error": "red"}


def render_peers(peers: Sequence[Any], now: float) -> str:
    """Return a line for each peer, and one that sums up; without a final line break."""
    known = [peer for peer in peers if isinstance(peer, dict)]
    rows = [[_plain(column, peer, now) for column in _COLUMNS] for peer in known]
    colours = [_COLOURS.get(str(peer.get("state"))) for peer in known]
    connected = sum(peer.get("state") == "connected" for peer in known)
    direct = sum(peer.get("path") == "udp" for peer in known)
    end = f"{connected} of {count(len(known), 'peer')} connected, {direct} over UDP"
    return "\n".join([*table(_COLUMNS, rows, colours), end])


def _plain(column: str, peer: Peer, now: float) -> str:
    counters = part(peer, "counters")
    match column:
        case "NAME":
            return text(peer.get("name"))
        case "ADDRESS":
            inside = peer.get("tunnel_ips")
            return text(inside[0] if isinstance(inside, list) and inside else peer.get("address"))
        case "PATH":
            return _path(peer)
        case "RTT":
            return rtt(peer)
        case "IN" | "OUT":
            return size(counters.get(f"bytes_{column.lower()}") or 0)
        case "CIPHER":
            return text(peer.get("cipher"))
        case _:
            return _seen(peer, now)


def rtt(measured: dict[str, Any]) -> str:
    """Return the round trip to somebody, such as a peer."""
    rtt_ms = measured.get("rtt_ms")
    return f"{rtt_ms:.2f} ms" if isinstance(rtt_ms, int | float) else "-"


def _path(peer: Peer) -> str:
    """How it is reached, or what is done so that it will be."""
    if peer.get("path"):
        return f"{text(peer['path'])} {text(peer.get('endpoint'))}"
    if peer.get("held"):
        return "disconnected"
    if peer.get("phase") == "waiting_for_peer":
        return "waiting"
    return text(peer.get("state"))


def _seen(peer: Peer, now: float) -> str:
    if peer.get("path"):
        return "now"
    moment = parse_time(peer.get("last_seen_at"))
    return "never" if moment is None else f"{duration(now - moment)} ago"


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[str | None] = ()
) -> Iterator[str]:
    """Give the lines of a table; colours are those of the cells under PATH."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for number, row in enumerate([columns, *rows]):
        cells = []
        for column, cell, width in zip(columns, row, widths, strict=True):
            padded = f"{cell:>{width}}" if column in _RIGHT else f"{cell:<{width}}"
            # Padded before it is coloured: codes have a length, and no width.
            if number and column == "PATH":
                padded = click.style(padded, fg=colours[number - 1])
            cells.append(padded)
        yield "  ".join(cells).rstrip()


def render_peer(peer: Peer, now: float) -> str:
    """Return the lines of one peer, without a final line break."""
    return "\n".join(lines_of(_rows(peer, now)))


def _rows(peer: Peer, now: float) -> Iterator[tuple[str, str]]:
    yield "peer", text(peer.get("name"))
    if peer.get("public_key"):
        yield "", f"public key {text(peer['public_key'])}"
    yield from connection_rows(peer, now, held=f"connect {text(peer.get('name'))}")
    if peer.get("path") is None:
        yield "seen", _seen(peer, now)
    yield "address", _addresses(peer)
    yield from traffic_rows(peer, None)
    macs = peer.get("macs")
    yield from _macs([entry for entry in macs if isinstance(entry, dict)] if macs else [])


def _addresses(peer: Peer) -> str:
    dialled = peer.get("address")
    words = ["it has to dial" if dialled is None else f"dialled at {text(dialled)}"]
    inside = peer.get("tunnel_ips")
    if isinstance(inside, list) and inside:
        words.append(f"in the tunnel {', '.join(map(text, inside))}")
    return ", ".join(words)


def _macs(entries: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    label = "behind it"
    for entry in entries[:SHOWN_MACS]:
        vlan = f", VLAN {text(entry['vlan'])}" if entry.get("vlan") else ""
        yield label, f"{text(entry.get('mac'))} {_age(entry)}{vlan}"
        label = ""
    if len(entries) > SHOWN_MACS:
        yield "", f"and {len(entries) - SHOWN_MACS} more, see `shadowmesh fdb`"


def _age(entry: dict[str, Any]) -> str:
    if entry.get("static"):
        return "its own device"
    age_s = entry.get("age_s")
    return f"heard {duration(age_s)} ago" if isinstance(age_s, int | float) else "not heard yet"


_TABLE_COLUMNS = ("MAC", "VLAN", "PEER", "AGE", "KIND", "MOVES")


def render_table(entries: Sequence[Any]) -> str:
    """Return a line for each address of the switch's table, without a final line break."""
    rows = [
        [
            text(entry.get("mac")),
            "all" if entry.get("vlan") is None else text(entry["vlan"] or "-"),
            text(entry.get("peer") or "this host"),
            "-" if entry.get("age_s") is None else duration(entry["age_s"]),
            "static" if entry.get("static") else "learned",
            text(entry.get("moves")),
        ]
        for entry in entries
        if isinstance(entry, dict)
    ]
    return "\n".join([*table(_TABLE_COLUMNS, rows), count(len(rows), "address")])
