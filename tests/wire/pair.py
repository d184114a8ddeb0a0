"""Two session machines in one process, in virtual time, with a slow obvious data plane each.

    Side "i"  --wires["i"]-->  Side "r"        one ordered wire per direction, as WSS is
              <--wires["r"]--

A record on a wire names the key it was sealed with; opening compares that with what the receiver
has installed, so that both sides agree on keys is checked with every record. The plane keeps the
rule of WSS: with the first record under new keys the older ones are gone. A record that cannot
be opened, a record after a gap and an unexpected RemoteProtocolError are failures of the test.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from shadowmesh.base.constants import KEY_LIFETIME_S, CloseReason, Inner
from shadowmesh.keys.identity import Identity
from shadowmesh.wire.handshake.agreement import HandshakeResult, Offer, Policy
from shadowmesh.wire.session import events
from shadowmesh.wire.session.machine import SessionMachine

PSK = bytes(range(32))
IDENTITIES = {"i": Identity.from_seed(b"i" * 32), "r": Identity.from_seed(b"r" * 32)}
OTHER = {"i": "r", "r": "i"}


def policy_of(name: str, *, pinned: bool = True) -> Policy:
    """Return the policy of side "i" or "r", which expects the other one."""
    peer = IDENTITIES[OTHER[name]].public_key if pinned else None
    return Policy(identity=IDENTITIES[name], psk=PSK, peer_public_key=peer)


#: sides "i" and "r" as members of one network, and what they show of themselves
MEMBERS = {
    "i": Policy(IDENTITIES["i"], PSK, IDENTITIES["r"].public_key, member=True),
    "r": Policy(IDENTITIES["r"], PSK, None, member=True),
}
CERTIFICATES = {"i": b"certificate of i", "r": b"certificate of r"}


@dataclass(frozen=True)
class Message:
    """A bare binary message."""

    data: bytes


@dataclass(frozen=True)
class Record:
    """A sealed record: its key and counter stand for the AEAD."""

    key_id: int
    key: bytes
    counter: int
    inner_type: int
    body: bytes


class EndOfLink:
    """The other side closed the connection."""


@dataclass
class Installed:
    """One set of keys inside the plane."""

    result: HandshakeResult
    at: float
    sent: int = 0
    received: int = 0


@dataclass
class Side:
    """A machine, its plane, and everything that it said."""

    name: str
    machine: SessionMachine
    reserved: set[int]
    installed: dict[int, Installed] = field(default_factory=dict)
    sending: int = 0
    #: keys that WSS no longer opens, because a record came under newer ones
    dropped: set[int] = field(default_factory=set)
    events: list[events.Event] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    accepts: bool = True

    def said(self, kind: type) -> list[events.Event]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def current(self) -> Installed:
        return self.installed[self.sending]


class Pair:
    """Both sides and the wires between them.

    Args:
        rotation_s: rotation_interval of both sides.
        policies: replaces the policy of a side.
        certificates: what the sides show, as members.
    """

    def __init__(
        self,
        rotation_s: float = 120.0,
        policies: dict[str, Policy] | None = None,
        certificates: dict[str, bytes] | None = None,
    ) -> None:
        self.now = 5000.0
        self.start_at = self.now
        self.wires: dict[str, deque[Message | Record | EndOfLink]] = {"i": deque(), "r": deque()}
        self.link_up = True
        self._ids = 0
        self._certificates = certificates or {}
        self.i = self._side("i", rotation_s, policies or {})
        self.r = self._side("r", rotation_s, policies or {})
        self.sides = {"i": self.i, "r": self.r}

    def _side(self, name: str, rotation_s: float, policies: dict[str, Policy]) -> Side:
        reserved: set[int] = set()

        def reserve() -> int:
            self._ids += 1
            reserved.add(self._ids)
            return self._ids

        machine = SessionMachine(
            name == "i",
            policies.get(name, policy_of(name)),
            Offer(caps=0, tap_mtu=1500, tls_cert_sha256=bytes(32), key_id=0),
            rotation_interval_s=rotation_s,
            reserve_key_id=reserve,
            release_key_id=reserved.remove,
            jitter=lambda: 0.5,
            certificate=self._certificates.get(name, b""),
        )
        return Side(name, machine, reserved)

    # --- the plane ----------------------------------------------------------------------------

    def _key(self, sender: str, result: HandshakeResult) -> bytes:
        return result.keys.wss_i2r if sender == "i" else result.keys.wss_r2i

    def seal(self, name: str, inner_type: int, body: bytes) -> Record:
        """Return a record under the keys that a side sends under; checks their age."""
        keys = self.sides[name].current
        assert self.now - keys.at < KEY_LIFETIME_S, "sealed under expired keys"
        record = Record(
            keys.result.remote_key_id, self._key(name, keys.result), keys.sent, inner_type, body
        )
        keys.sent += 1
        return record

    def can_open(self, name: str, record: Record) -> bool:
        """Tell whether a side has the key of a record, whatever the path."""
        keys = self.sides[name].installed.get(record.key_id)
        return (
            keys is not None
            and self.now - keys.at < KEY_LIFETIME_S
            and self._key(OTHER[name], keys.result) == record.key
        )

    @staticmethod
    def _bare(side: Side) -> bool:
        """Tell whether the handshake on its way holds no reserved key id: none yet, or installed."""
        attempt = side.machine._attempts.current
        return attempt is not None and attempt.key_id == 0

    def drain(self, name: str) -> None:
        """Carry out what a machine wants, as the docstring of SessionMachine asks."""
        side = self.sides[name]
        wire = self.wires[name]
        while (event := side.machine.next_event()) is not None:
            assert not (side.events and isinstance(side.events[-1], events.Failed)), "not the last"
            side.events.append(event)
            match event:
                case events.SendMessage(data):
                    assert not side.installed
                    wire.append(Message(data))
                case events.SendRecord(inner_type, body):
                    assert self.link_up
                    wire.append(self.seal(name, inner_type, body))
                case events.InstallKeys(result):
                    side.reserved.remove(result.local_key_id)
                    # Who takes a key id twice seals on under the first keys.
                    side.installed.setdefault(result.local_key_id, Installed(result, self.now))
                case events.SendUnder(key_id):
                    assert key_id in side.installed
                    side.sending = key_id
                case events.RetireKeys(key_id):
                    del side.installed[key_id]
                case events.Authenticated(_, shown) if side.accepts and (name == "r" or shown):
                    side.machine.accept(self.now)
                case events.Failed():
                    wire.append(EndOfLink())
        assert set(side.installed) == set(side.machine.key_ids)
        assert len(side.installed) <= 3
        assert len(side.reserved) == (
            side.machine._attempts.current is not None and not self._bare(side)
        )
        if side.machine.over:
            assert not side.installed
            assert not side.reserved
            assert side.machine.next_timeout() is None

    # --- the world ----------------------------------------------------------------------------

    def start(self) -> None:
        for name in ("r", "i"):
            self.sides[name].machine.start(self.now)
            self.drain(name)

    def send_frame(self, name: str, frame: bytes) -> None:
        self.wires[name].append(self.seal(name, Inner.FRAME, frame))

    def deliver(self, sender: str, *, lose: bool = False) -> None:
        """Hand the oldest item on a wire to the other side, or lose it if asked."""
        item = self.wires[sender].popleft()
        side = self.sides[OTHER[sender]]
        if isinstance(item, EndOfLink):
            side.machine.link_lost(self.now)
        elif isinstance(item, Message):
            side.machine.receive_message(item.data, self.now)
        elif not side.machine.over:
            self._open(side, item, lose)
        self.drain(side.name)

    def _open(self, side: Side, record: Record, lose: bool) -> None:
        keys = side.installed.get(record.key_id)
        age = None if keys is None else self.now - keys.at
        assert self.can_open(side.name, record), (side.name, record, age)
        assert keys is not None
        assert record.key_id not in side.dropped, "under keys that WSS has left behind"
        assert record.counter == keys.received
        keys.received += 1
        side.dropped |= {key_id for key_id in side.installed if key_id < record.key_id}
        if record.inner_type == Inner.FRAME:
            side.frames.append(record.body)
        elif not lose:
            side.machine.receive_record(record.key_id, record.inner_type, record.body, self.now)

    def deliver_all(self) -> None:
        """Deliver until both wires are empty."""
        while self.wires["i"] or self.wires["r"]:
            for name in ("i", "r"):
                if self.wires[name]:
                    self.deliver(name)

    def advance(self, seconds: float, *, flowing: bool = False) -> None:
        """Let time pass, waking each machine when it asks for it.

        Args:
            flowing: deliver everything at once; otherwise the wires stand still.
        """
        end = self.now + seconds
        for _ in range(10_000):
            if flowing:
                self.deliver_all()
            due = [
                (when, name)
                for name, side in self.sides.items()
                if (when := side.machine.next_timeout()) is not None
            ]
            when, name = min(due, default=(end + 1, ""))
            if when > end:
                self.now = end
                return
            self.now = max(self.now, when)
            self.sides[name].machine.handle_timeout(self.now)
            self.drain(name)
        raise AssertionError("timers that are always due")

    def connect(self) -> None:
        """Start both and deliver until the session is up."""
        self.start()
        self.deliver_all()
        assert self.i.machine.established
        assert self.r.machine.established

    def lose_link(self) -> None:
        """Both sides lose WSS, with all that was on the way."""
        self.link_up = False
        for name, side in self.sides.items():
            self.wires[name].clear()
            side.machine.link_lost(self.now)
            self.drain(name)
            self.wires[name].clear()

    def close(self, name: str) -> None:
        self.sides[name].machine.close(CloseReason.DISCONNECT, "bye", self.now)
        self.drain(name)

    def give(self, name: str, inner_type: int, body: bytes, key_id: int | None = None) -> None:
        """Give a side a record that its peer's machine would not send."""
        side = self.sides[name]
        try:
            side.machine.receive_record(key_id or side.sending, inner_type, body, self.now)
        finally:
            self.drain(name)

    def give_message(self, name: str, data: bytes) -> None:
        """Give a side a bare message that its peer's machine would not send."""
        try:
            self.sides[name].machine.receive_message(data, self.now)
        finally:
            self.drain(name)
