"""The states of one peer.

Owns: the state table that status shows. Does not know: what carries a transition out (`peer.peer`
does, and undoes it in reverse), links, keys, clocks.

::

    disconnected --connect--> connecting --established--> connected --disconnect--> disconnected
                              connecting --failed-------> error ----retry/connect-> connecting
                              connected --link lost-----> connecting
    an accepted peer leads to connected from everywhere; while connected it replaces the session

A side that cannot dial waits for its peer in `disconnected`, and in `connecting` once there was a
session. After a disconnect by an operator a peer that comes is refused (`peer.peer`) until somebody
connects, on a side that cannot dial, too: then it waits in `connecting`.

Source: interface.md, "State machine".
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING, Final

from shadowmesh.base.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(StrEnum):
    """What status and the control API call the state of the tunnel."""

    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    ERROR = "error"


class Phase(StrEnum):
    """Step of connecting, in the order in which they are taken."""

    TAP = "tap"
    DATA_PLANE = "data_plane"
    DIALLING = "dialling"
    TLS = "tls"
    UPGRADE = "upgrade"
    HANDSHAKE = "handshake"
    ACCEPT = "accept"
    ROUTER = "router"
    #: not a step: between two dials
    BACKOFF = "backoff"
    #: not a step: we do not dial, the peer must come back
    WAITING_FOR_PEER = "waiting_for_peer"


class Event(Enum):
    """What moves the state."""

    #: the operator, or peer.auto_connect, wants the tunnel
    CONNECT = auto()
    #: our listener took a peer in: its session is established
    ACCEPTED = auto()
    #: our own dial is established: ACCEPT arrived
    ESTABLISHED = auto()
    #: a step of connecting failed
    FAILED = auto()
    #: the session ended and is wanted back
    LINK_LOST = auto()
    #: a newer authenticated session of the peer took the place of the old one
    REPLACED = auto()
    #: the backoff after a failure is over
    RETRY = auto()
    #: the operator wants no tunnel
    DISCONNECT = auto()
    #: the TAP device is gone and could not be made again
    DEVICE_FAILED = auto()


TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    State.DISCONNECTED: {
        Event.CONNECT: State.CONNECTING,
        Event.ACCEPTED: State.CONNECTED,
    },
    State.CONNECTING: {
        Event.ESTABLISHED: State.CONNECTED,
        Event.ACCEPTED: State.CONNECTED,
        Event.FAILED: State.ERROR,
        Event.DEVICE_FAILED: State.ERROR,
        Event.DISCONNECT: State.DISCONNECTED,
    },
    State.CONNECTED: {
        Event.LINK_LOST: State.CONNECTING,
        Event.REPLACED: State.CONNECTED,
        Event.DEVICE_FAILED: State.ERROR,
        Event.DISCONNECT: State.DISCONNECTED,
    },
    State.ERROR: {
        Event.CONNECT: State.CONNECTING,
        Event.RETRY: State.CONNECTING,
        Event.ACCEPTED: State.CONNECTED,
        Event.DISCONNECT: State.DISCONNECTED,
    },
}


class PeerMachine:
    """State, phase and since when, for one peer. Not for more than one thread.

    Attributes:
        state: the current state.
        phase: the step of connecting; None in every other state, and until the first step.
        since: `now` of the last event that changed the state, in the caller's clock.
    """

    def __init__(self, now: float) -> None:
        self.state = State.DISCONNECTED
        self.phase: Phase | None = None
        self.since = now

    def allows(self, event: Event) -> bool:
        """Tell whether fire(event) would be legal."""
        return event in TRANSITIONS[self.state]

    def fire(self, event: Event, now: float) -> State:
        """Take an event and return the new state.

        Raises:
            LocalProtocolError: the table has no such event in this state; nothing changed.
        """
        if not self.allows(event):
            raise LocalProtocolError(f"event {event.name} is illegal in state {self.state}")
        state = TRANSITIONS[self.state][event]
        self.phase = None
        # A replaced session is a new one: its age counts from here although the name stays.
        self.since = now
        self.state = state
        return state

    def enter(self, phase: Phase) -> None:
        """Name the step of connecting that runs now.

        Raises:
            LocalProtocolError: the state is not connecting.
        """
        if self.state is not State.CONNECTING:
            raise LocalProtocolError(f"phase {phase} is illegal in state {self.state}")
        self.phase = phase
