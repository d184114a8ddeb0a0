"""What `status` of 0.1 told of a pair it tells still: the same names, types and meaning.

The stored answers are those of a real pair before a daemon could have several peers. They are never
made anew; scripts were written for them.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from shadowmesh.netlab import wait_until
from tests.lab.pair import Pair, running_pair

pytestmark = pytest.mark.netns

STORED = json.loads((Path(__file__).parents[1] / "vectors" / "status_of_a_pair.json").read_text())
#: objects whose names are data: what they count may differ from run to run
COUNTS = {
    "handshakes", "peer_port.unauthenticated", "peer_port.connections", "peer_port.lately",
    "counters.dropped", "counters.dropped_lately", "counters.udp_refused", "counters.udp_errors",
    "counters.loops_refused",
}  # fmt: skip


@dataclass
class Told:
    """One answer, and what is known of the pair otherwise."""

    pair: Pair
    path: str | None
    was_connected: bool
    answer: dict[str, Any]

    def moment(self, text: str) -> float:
        return datetime.fromisoformat(text).timestamp()

    @property
    def now(self) -> float:
        return self.moment(self.answer["now"])

    def lately(self, text: object) -> bool:
        """A moment of this test, not after the answer."""
        return isinstance(text, str) and self.now - 120 < self.moment(text) <= self.now

    def soon(self, text: object, within_s: float) -> bool:
        return isinstance(text, str) and self.now < self.moment(text) <= self.now + within_s


def key(value: object) -> bool:
    return isinstance(value, str) and len(base64.b64decode(value, validate=True)) == 32


def while_connected(found: Callable[[Told, Any], bool]) -> Callable[[Told, Any], bool]:
    """Null without a session."""
    return lambda told, value: value is None if told.path is None else found(told, value)


def over_udp(found: Callable[[Told, Any], bool]) -> Callable[[Told, Any], bool]:
    """Null on any other path."""
    return lambda told, value: found(told, value) if told.path == "udp" else value is None


def number(_told: Told, value: object) -> bool:
    return type(value) is int and value >= 0


def nothing(_told: Told, value: object) -> bool:
    return value is None


def right(told: Told, value: object) -> bool:
    """The address of the peer, as it is dialled."""
    return value == told.pair.right.host.peer_endpoint


#: what each field means: of the left, which dials
MEANS: dict[str, Callable[[Told, Any], bool]] = {
    "schema": lambda _, value: value == 1,
    "version": lambda _, value: re.fullmatch(r"\d+\.\d+\.\d+\S*", value) is not None,
    "host": lambda _, value: value == os.uname().nodename,
    "pid": lambda told, value: value == told.pair.left.pid,
    "state": lambda told, value: value == ("connected" if told.path else "disconnected"),
    "phase": nothing,
    "wanted": lambda told, value: value is (told.path is not None),
    "held": lambda told, value: value is (told.path is None and told.was_connected),
    "since": Told.lately,
    "now": Told.lately,
    "last_error": nothing,
    "last_error_at": nothing,
    "next_retry_at": nothing,
    "refused.address": nothing,
    "refused.cause": nothing,
    "refused.failed_at": nothing,
    "public_key": lambda told, value: value == told.pair.left.public_key,
    "peer.address": right,
    "peer.public_key": lambda told, value: key(value) and value == told.pair.right.public_key,
    "peer.name": right,
    "peer.pinned": lambda _, value: value is True,
    "peer.tap_mtu": while_connected(lambda _, value: value == 1500),
    "peer.last_seen_at": lambda told, value: (
        told.lately(value) if told.was_connected and told.path is None else value is None
    ),
    "path": lambda told, value: value == told.path,
    "path_reason": while_connected(
        lambda told, value: ("answers" if told.path == "udp" else "UDP is switched off") in value
    ),
    "paths[].path": lambda told, value: (
        value in ({"udp", "wss"} if told.path == "udp" else {"wss"})
    ),
    "paths[].address": lambda _, value: value.endswith(":9001"),
    "paths[].kind": lambda _, value: value in {None, "host", "reflexive", "learned"},
    "paths[].active": lambda _, value: isinstance(value, bool),
    "paths[].proven": lambda _, value: isinstance(value, bool),
    "paths[].rtt_ms": lambda _, value: value is None or 0 < value < 5000,
    "paths[].loss": lambda _, value: value is None or 0 <= value <= 1,
    "paths[].payload_bytes": lambda _, value: value is None or 1200 <= value <= 1500,
    "paths[].seen_as": lambda _, value: value is None or value.endswith(":9001"),
    "paths[].unanswered": number,
    "paths[].hindrance": lambda _, value: value is None or isinstance(value, str),
    "cipher": while_connected(lambda _, value: value in {"aegis-256", "chacha20-poly1305"}),
    "post_quantum": while_connected(lambda _, value: value is True),
    "tls_path": while_connected(lambda _, value: value == "direct"),
    "rtt_ms": while_connected(lambda _, value: 0 < value < 5000),
    "mtu": while_connected(lambda _, value: value == 1500),
    "tap.device": while_connected(lambda told, value: value == told.pair.left.tap),
    "tap.mtu": while_connected(lambda _, value: value == 1500),
    "tap.address": while_connected(lambda _, value: value == "10.0.0.1/24"),
    "tap.addresses[]": lambda _, value: value == "10.0.0.1/24",
    "tap.queues[].frames_in": number,
    "tap.queues[].frames_out": number,
    "tap.realtime": nothing,
    "tap.realtime_problem": nothing,
    "nat.type": over_udp(lambda _, value: value == "unknown"),
    "nat.public_address": nothing,
    "nat.detected_at": over_udp(Told.lately),
    "nat.mapping": over_udp(lambda _, value: value == "unknown"),
    "nat.filtering": over_udp(lambda _, value: value == "unknown"),
    "nat.detail": over_udp(lambda _, value: value == "no STUN server is configured"),
    "session.established_at": while_connected(Told.lately),
    "session.rekeys": lambda _, value: value == 0,
    "session.last_rekey_at": nothing,
    "session.initiator": while_connected(lambda _, value: value is True),
    "session.next_rekey_at": while_connected(lambda told, value: told.soon(value, 130)),
    "session.keys_expire_at": while_connected(lambda told, value: told.soon(value, 181)),
    "link.remote_address": while_connected(right),
    "link.since": while_connected(Told.lately),
    "certificate.not_after": lambda told, value: told.moment(value) > told.now,
    "certificate.sha256": lambda _, value: len(bytes.fromhex(value)) == 32,
    "capture.since": nothing,
    "capture.snaplen": nothing,
    "capture.frames": nothing,
    "capture.dropped": nothing,
    "reconnects": lambda _, value: value == 0,
    "path_switches": lambda told, value: value >= 1 if told.path == "udp" else value >= 0,
    "handshakes.*": lambda told, value: value >= 1,
    "peer_port.address": lambda _, value: value == "[::]:9001",
    "peer_port.unauthenticated.*": number,
    "peer_port.connections.*": number,
    "peer_port.lately.*": number,
    "queue_bytes": number,
    "counters.frames_in": lambda told, value: value > 0 if told.path else value >= 0,
    "counters.frames_out": lambda told, value: value > 0 if told.path else value >= 0,
    "counters.bytes_in": lambda told, value: value > 0 if told.path else value >= 0,
    "counters.bytes_out": lambda told, value: value > 0 if told.path else value >= 0,
    "counters.dropped.*": number,
    "counters.dropped_lately.*": number,
    "counters.udp_refused.*": number,
    "counters.udp_errors.*": number,
    "counters.loops_refused.*": number,
    "resources.cpu_percent": lambda _, value: value >= 0,
    "resources.cpu_seconds": lambda _, value: value > 0,
    "resources.rss_bytes": lambda _, value: value > 1 << 20,
    "resources.threads": lambda _, value: value > 1,
    "resources.open_fds": lambda _, value: value > 3,
    "health[].name": lambda _, value: re.fullmatch(r"[a-z_]+", value) is not None,
    "health[].ok": lambda _, value: isinstance(value, bool),
    "health[].severity": lambda _, value: value in {"error", "warning"},
    "health[].text": lambda _, value: value != "",
    "health[].remedy": lambda _, value: isinstance(value, str),
    "health[].code": lambda _, value: re.fullmatch(r"[a-z_0-9]+", value) is not None,
}


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Name and value of everything that holds no more names; an empty object or list has none."""
    if isinstance(value, dict):
        for member, inner in value.items():
            yield from leaves(inner, f"{name}.{'*' if name in COUNTS else member}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{name}[]")
    else:
        yield name, value


def objects(value: object, name: str = "") -> Iterator[tuple[str, type]]:
    """Name and type of everything that holds names."""
    if isinstance(value, dict | list):
        yield name, type(value)
    if isinstance(value, dict):
        for member, inner in value.items():
            yield from objects(inner, f"{name}.{member}".lstrip("."))


def types() -> dict[str, set[type]]:
    found: dict[str, set[type]] = {}
    for answer in STORED.values():
        for name, value in leaves(answer):
            found.setdefault(name, set()).add(type(value))
    return found


TYPES = types()


def test_the_meaning_of_every_stored_field_is_known():
    assert set(TYPES) - set(MEANS) == set()


def judge(told: Told, stored: str) -> None:
    """Compare an answer with the stored one of the same situation, field by field."""
    before, now = STORED[stored], told.answer
    kept = dict(objects(now))
    assert {name: kind for name, kind in objects(before) if kept.get(name) is not kind} == {}
    found: dict[str, list[object]] = {}
    for name, value in leaves(now):
        found.setdefault(name, []).append(value)
    in_lists = {name for name in TYPES if "[]" in name or name.endswith(".*")}
    assert {name for name, _ in leaves(before)} - in_lists - found.keys() == set()
    # null and true may become a value where they were null or true in every stored answer
    wrong = {
        name: value
        for name, values in found.items()
        if name in TYPES
        for value in values
        if value is not None
        and TYPES[name] != {type(None)}
        and type(value) not in TYPES[name]
        and not (type(value) in (int, float) and TYPES[name] & {int, float})
    }
    assert wrong == {}
    untrue = {
        name: value
        for name, values in found.items()
        if name in MEANS
        for value in values
        if not MEANS[name](told, value)
    }
    assert untrue == {}
    assert [check["name"] for check in now["health"]] == [
        check["name"] for check in before["health"]
    ]
    assert sum(path["active"] for path in now["paths"]) == (1 if told.path else 0)


@pytest.mark.parametrize(
    ("path", "both"),
    [("udp", {"nat.enabled": True, "nat.stun_server": []}), ("wss", {"nat.enabled": False})],
)
def test_a_pair_is_told_as_it_always_was(tmp_path, path, both):
    with running_pair(tmp_path, both) as pair:
        left = pair.left
        judge_of = left.status()
        if path == "wss":
            judge(Told(pair, None, False, judge_of), "never connected")
        pair.connect()
        wait_until(lambda: left.status()["path"] == path, 15, f"frames go over {path}")
        wait_until(lambda: left.status()["rtt_ms"] is not None, 5, "a round trip is known")
        pair.await_pings(5)
        judge(Told(pair, path, True, left.status()), f"connected over {path}")
        left.api("POST", "/disconnect")
        if path == "wss":
            judge(Told(pair, None, True, left.status()), "disconnected")
