"""Two path machines behind simulated NATs, with traffic between them, in virtual time.

Owns: the shell around a PathMachine that the daemon has in earnest: it sends what the machine
asks for, carries candidates over a signalling channel that is always there, and moves frames the
way the machine says. A datagram is a tuple; whatever arrives counts as authenticated.
"""

from __future__ import annotations

import random
from ipaddress import ip_network

from shadowmesh.wire.control import PROBE_MIN_BYTES, Candidate
from shadowmesh.wire.path.candidates import choose_candidates
from shadowmesh.wire.path.events import (
    AskPunch,
    PathChanged,
    SeenAs,
    SendProbe,
    SendProbeAnswer,
    UsePath,
)
from shadowmesh.wire.path.machine import PathMachine
from tests.twins.nat_box import Host, NatBox, Network, endpoint, make_box

STUN = endpoint("198.51.100.10:3478")
OVERHEAD = 49
FRAME_BYTES = 1000
WSS_DELAY_S = 0.02
TUNNEL = ip_network("10.0.0.0/24")


def behind_tunnel(address):
    """What the routes say: the tunnel's own subnet lies behind it."""
    return f"{address} leads into the tunnel itself (tap0)" if address in TUNNEL else None


class Node:
    """One end."""

    def __init__(self, lab: Lab, name: str, inside: str, box: NatBox | None, seed: int):
        self.lab = lab
        self.name = name
        self.network = lab.network
        self.peer: Node
        self.host = self.network.add(Host(endpoint(inside), box, self._receive))
        self.machine = PathMachine(
            0.0,
            random=random.Random(seed).randbytes,
            inside=behind_tunnel,
            overhead=OVERHEAD,
        )
        self.use = UsePath("wss", None, None, "")
        self.log: list[tuple[float, PathChanged]] = []
        self.uses: list[tuple[float, UsePath]] = []
        self.seen_as: list[SeenAs] = []
        self.probes: list[tuple[float, SendProbe]] = []
        self.asked = 0
        self.sent = 0
        self.arrived: list[int] = []
        self.arrivals: list[tuple[float, str]] = []
        self.stun_lies: Candidate | None = None
        self.wss_delay_s = WSS_DELAY_S
        self._timer: float | None = None
        self._traffic_until = 0.0

    # --- what the daemon does -------------------------------------------------------------------

    def candidates(self):
        box = self.host.box
        seen = self.host.endpoint
        if box is not None:
            seen = box.outbound(self.host.endpoint, STUN, self.network.now)
        chosen = choose_candidates(
            [self.host.endpoint.address], self.host.endpoint.port, [seen] if seen else []
        )
        return (*chosen, self.stun_lies) if self.stun_lies else chosen

    def punch(self):
        """Tell the peer our addresses and start."""
        candidates = self.candidates()
        self.network.at(
            self.network.now + self.wss_delay_s, lambda: self.peer.on_punch_now(candidates)
        )
        self.machine.punch(self.network.now)
        self.pump()

    def on_punch_now(self, candidates):
        self.machine.set_candidates(candidates, self.network.now)
        self.machine.punch(self.network.now)
        self.pump()

    def pump(self):
        now = self.network.now
        while (event := self.machine.next_event()) is not None:
            if isinstance(event, SendProbe):
                assert event.size >= PROBE_MIN_BYTES
                self.probes.append((now, event))
                size = event.size + OVERHEAD
                self.network.send(
                    self.host, ("probe", event.token, event.size), size, event.endpoint
                )
            elif isinstance(event, SendProbeAnswer):
                token, size = event.probe.token, PROBE_MIN_BYTES + OVERHEAD
                answer = ("answer", token, event.endpoint)
                self.network.send(self.host, answer, size, event.endpoint)
            elif isinstance(event, UsePath):
                self.use = event
                self.uses.append((now, event))
            elif isinstance(event, PathChanged):
                self.log.append((now, event))
            elif isinstance(event, SeenAs):
                self.seen_as.append(event)
            elif isinstance(event, AskPunch):
                self.asked += 1
                self.punch()
        self._arm()

    def _arm(self):
        timeout = self.machine.next_timeout()
        if timeout is None:
            return
        timeout = max(timeout, self.network.now)
        if self._timer is None or timeout < self._timer:
            self._timer = timeout
            self.network.at(timeout, lambda: self._ring(timeout))

    def _ring(self, timeout: float):
        if self._timer != timeout:
            return  # another one was armed for earlier
        self._timer = None
        self.machine.handle_timeout(self.network.now)
        self.pump()

    def _receive(self, payload, size, source, now, local):
        kind, *rest = payload
        if kind == "probe":
            self.machine.probe_received(source, rest[0], rest[1], now)
        elif kind == "answer":
            self.machine.answer_received(source, rest[0], rest[1], now)
        else:
            self.machine.data_heard(now, source)
            self.take_frame(rest[0], "udp")
        self.pump()

    # --- frames ---------------------------------------------------------------------------------

    def take_frame(self, number: int, path: str):
        self.arrived.append(number)
        self.arrivals.append((self.network.now, path))

    def talk(self, until: float, every: float = 0.01):
        """Send a frame now and then one after each interval."""
        if self.network.now > until:
            return
        number = self.sent
        self.sent += 1
        if self.use.endpoint is not None:
            self.network.send(self.host, ("frame", number), FRAME_BYTES, self.use.endpoint)
            self.machine.data_sent(self.network.now)
            self.pump()
        else:
            self.network.at(
                self.network.now + WSS_DELAY_S, lambda: self.peer.take_frame(number, "wss")
            )
        self.network.at(self.network.now + every, lambda: self.talk(until, every))

    def missing(self) -> int:
        """Frames of the peer that never arrived here."""
        assert len(set(self.arrived)) == len(self.arrived), "a frame was delivered twice"
        return self.peer.sent - len(self.arrived)


class Lab:
    """Nodes a and b, connected over WSS at time 0."""

    def __init__(
        self,
        kind_a: str = "port-restr",
        kind_b: str = "port-restr",
        *,
        seed: int = 1,
        delay_s: float = 0.01,
        **options,
    ):
        self.network = Network(delay_s)
        self.a = self._node("a", kind_a, 1, seed, options)
        self.b = self._node("b", kind_b, 2, seed + 1000, options)
        self.a.peer, self.b.peer = self.b, self.a

    def _node(self, name: str, kind: str, number: int, seed: int, options) -> Node:
        public = f"198.51.100.{number}"
        if kind == "open":
            return Node(self, name, f"{public}:9001", None, seed)
        box = make_box("full" if kind == "blocked" else kind, public, **options)
        box.blocked = kind == "blocked"
        return Node(self, name, f"192.168.{number}.2:9001", box, seed)

    def connect(self):
        """Both ends punch, as after ACCEPT."""
        for node in (self.a, self.b):
            self.network.at(self.network.now, node.punch)

    def run(self, seconds: float):
        self.network.run_until(self.network.now + seconds)

    def paths(self) -> tuple[str, str]:
        return self.a.machine.path, self.b.machine.path

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.a, self.b
