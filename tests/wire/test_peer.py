"""The state table walked, the collision rule searched through, the backoff."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise, product

import pytest

from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.wire.peer.backoff import BACKOFF_RESET_AFTER_S, Backoff
from shadowmesh.wire.peer.collision import resolve_collision
from shadowmesh.wire.peer.states import TRANSITIONS, Event, PeerMachine, Phase, State

# Written out a second time on purpose: state, event, state. Everything else is illegal.
LEGAL = {
    ("disconnected", "CONNECT"): "connecting",
    ("disconnected", "ACCEPTED"): "connected",
    ("connecting", "ESTABLISHED"): "connected",
    ("connecting", "ACCEPTED"): "connected",
    ("connecting", "FAILED"): "error",
    ("connecting", "DEVICE_FAILED"): "error",
    ("connecting", "DISCONNECT"): "disconnected",
    ("connected", "LINK_LOST"): "connecting",
    ("connected", "DISCONNECT"): "disconnected",
    ("connected", "REPLACED"): "connected",
    ("connected", "DEVICE_FAILED"): "error",
    ("error", "CONNECT"): "connecting",
    ("error", "RETRY"): "connecting",
    ("error", "ACCEPTED"): "connected",
    ("error", "DISCONNECT"): "disconnected",
}

ROUTES = {
    State.DISCONNECTED: [],
    State.CONNECTING: [Event.CONNECT],
    State.CONNECTED: [Event.ACCEPTED],
    State.ERROR: [Event.CONNECT, Event.FAILED],
}


def machine_in(state: State) -> PeerMachine:
    machine = PeerMachine(now=1.0)
    for event in ROUTES[state]:
        machine.fire(event, now=2.0)
    assert machine.state is state
    return machine


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_every_event_in_every_state_does_what_the_table_says(state: State, event: Event) -> None:
    machine = machine_in(state)
    if state is State.CONNECTING:
        machine.enter(Phase.HANDSHAKE)
    before = (machine.state, machine.phase, machine.since)
    wanted = LEGAL.get((state.value, event.name))
    assert machine.allows(event) == (wanted is not None)
    if wanted is None:
        with pytest.raises(LocalProtocolError, match=event.name):
            machine.fire(event, now=9.0)
        assert (machine.state, machine.phase, machine.since) == before
    else:
        assert machine.fire(event, now=9.0) == wanted
        assert (machine.state, machine.phase, machine.since) == (wanted, None, 9.0)


def test_the_table_names_every_state() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {"disconnected", "connecting", "connected", "error"} == {str(state) for state in State}


@pytest.mark.parametrize("state", [s for s in State if s is not State.CONNECTING])
def test_only_connecting_has_phases(state: State) -> None:
    machine = machine_in(state)
    with pytest.raises(LocalProtocolError):
        machine.enter(Phase.TLS)
    assert machine.phase is None


def test_the_phase_ends_with_connecting() -> None:
    machine = machine_in(State.CONNECTING)
    machine.enter(Phase.WAITING_FOR_PEER)
    assert machine.phase == "waiting_for_peer"
    machine.fire(Event.ACCEPTED, now=3.0)
    assert machine.phase is None


SMALL, LARGE = bytes(31) + b"\x01", b"\x01" + bytes(31)


@pytest.mark.parametrize(
    ("own", "peer", "authenticated", "keep_own"),
    [
        (LARGE, SMALL, True, True),
        (LARGE, SMALL, False, False),
        (SMALL, LARGE, True, False),
        (SMALL, LARGE, False, False),
    ],
)
def test_only_an_authenticated_dial_of_the_larger_key_wins(
    own: bytes, peer: bytes, authenticated: bool, keep_own: bool
) -> None:
    assert resolve_collision(own, peer, own_dial_authenticated=authenticated) is keep_own


def test_a_collision_with_ourselves_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError):
        resolve_collision(LARGE, LARGE, own_dial_authenticated=True)


@dataclass(frozen=True)
class Node:
    """One side of the model below. A dial is idle, asked, authenticated, established or gone."""

    dial: str = "idle"
    session: str | None = None  # "L" or "S": whose dial carries the session
    answered_before: bool = False  # message 1 of the peer came before our dial was established


@dataclass(frozen=True)
class World:
    """Both sides and the messages on the way, one ordered wire per connection and direction."""

    nodes: tuple[tuple[str, Node], ...]
    wires: tuple[tuple[tuple[str, str], tuple[str, ...]], ...]

    def node(self, name: str) -> Node:
        return dict(self.nodes)[name]

    def with_node(self, name: str, node: Node) -> World:
        return replace(self, nodes=tuple(sorted({**dict(self.nodes), name: node}.items())))

    def send(self, dial: str, to: str, *what: str) -> World:
        wires = dict(self.wires)
        wires[dial, to] = (*wires.get((dial, to), ()), *what)
        return replace(self, wires=tuple(sorted(wires.items())))

    def take(self, dial: str, to: str) -> tuple[str, World]:
        wires = dict(self.wires)
        first, *rest = wires[dial, to]
        wires[dial, to] = tuple(rest)
        return first, replace(self, wires=tuple(sorted(wires.items())))


KEYS = {"L": LARGE, "S": SMALL}
OTHER = {"L": "S", "S": "L"}


def deliver(world: World, dial: str, to: str) -> World:
    """One message of the connection that `dial` opened arrives at `to`."""
    what, world = world.take(dial, to)
    node = world.node(to)
    sender = OTHER[to]
    if dial == to:  # answers to our own dial
        if node.dial not in {"asked", "authenticated", "established"}:
            return world  # aborted: the socket is closed
        if what == "msg2":
            return world.with_node(to, replace(node, dial="authenticated")).send(
                dial, sender, "msg3"
            )
        if what == "accept":
            return world.with_node(to, replace(node, dial="established", session=to))
        if what == "reject":
            return world.with_node(to, replace(node, dial="gone"))
        session = None if node.session == to else node.session  # eof
        return world.with_node(to, replace(node, dial="gone", session=session))
    if what == "msg1":
        early = node.dial != "established"
        return world.with_node(to, replace(node, answered_before=early)).send(dial, sender, "msg2")
    if what == "msg3":
        dialling = node.dial in {"asked", "authenticated"}
        overlapping = node.dial == "established" and node.answered_before
        if (dialling or overlapping) and resolve_collision(
            KEYS[to], KEYS[sender], own_dial_authenticated=node.dial != "asked"
        ):
            return world.send(dial, sender, "reject", "eof")
        if node.dial in {"asked", "authenticated", "established"}:
            world = world.send(to, sender, "eof")  # abort our own
        world = world.with_node(to, replace(node, dial="gone", session=sender))
        return world.send(dial, sender, "accept")
    if what == "eof" and node.session == sender:
        return world.with_node(to, replace(node, session=None))
    return world


def test_two_dials_at_once_end_in_exactly_one_session_in_every_order_of_arrival() -> None:
    start = World((("L", Node()), ("S", Node())), ())
    seen, todo, ends = {start}, [start], 0
    while todo:
        world = todo.pop()
        following = [deliver(world, dial, to) for (dial, to), queue in world.wires if queue]
        following += [
            world.with_node(name, replace(node, dial="asked")).send(name, OTHER[name], "msg1")
            for name, node in world.nodes
            if node.dial == "idle" and node.session is None
        ]
        if not following:
            ends += 1
            sessions = {node.session for _, node in world.nodes}
            assert len(sessions) == 1, world
            assert sessions != {None}, world
        for state in following:
            if state not in seen:
                seen.add(state)
                todo.append(state)
    assert ends > 2


def test_backoff_doubles_from_one_to_thirty_seconds() -> None:
    backoff = Backoff(lambda: 0.5)
    assert [backoff.next_delay() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff.failures == 7


def test_backoff_stays_within_its_jitter_for_ever() -> None:
    backoff = Backoff(random.Random(1).random)
    delays = [backoff.next_delay() for _ in range(2000)]
    assert 0.8 <= delays[0] <= 1.2
    assert all(24 <= delay <= 36 for delay in delays[5:])
    assert len({round(delay, 6) for delay in delays[5:]}) > 1900
    assert all(a < b * 1.01 for a, b in pairwise(delays[:5]))


def test_only_a_session_that_lived_resets_the_backoff() -> None:
    backoff = Backoff(lambda: 0.5)
    for _ in range(4):
        backoff.next_delay()
    backoff.session_ended(BACKOFF_RESET_AFTER_S - 1)
    assert backoff.next_delay() == 4
    backoff.session_ended(BACKOFF_RESET_AFTER_S)
    assert backoff.next_delay() == 1
    backoff.reset()
    assert backoff.failures == 0


def test_a_peer_that_returns_waits_at_most_three_times_its_absence() -> None:
    choice = random.Random(3)
    for _ in range(3000):
        backoff = Backoff(choice.random)
        for _ in range(choice.randrange(6)):
            backoff.next_delay()
        backoff.session_ended(choice.choice([0.0, BACKOFF_RESET_AFTER_S]))
        # One that comes back just after a dial has failed waits for all of the next pause.
        absence = 0.0
        while absence < 30:
            pause = backoff.next_delay()
            assert pause <= max(4.8, 3 * absence)
            absence += pause
