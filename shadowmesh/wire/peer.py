"""The states of the one peer, who wins when both sides dial, and how long to wait between dials.

Owns: the state table that status shows, the collision rule and the backoff. Does not know: what
carries a transition out (connection does, and undoes it in reverse), links, keys, clocks.

::

    disconnected --connect--> connecting --established--> connected --disconnect--> disconnected
                              connecting --failed-------> error ----retry/connect-> connecting
                              connected --link lost-----> connecting
    an accepted peer leads to connected from everywhere; while connected it replaces the session

Source: interface.md, "State machine"; protocol section 8.
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING, Final

from shadowmesh.base.constants import BACKOFF_FACTOR, BACKOFF_JITTER, BACKOFF_MAX_S, BACKOFF_MIN_S
from shadowmesh.base.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: a session that lived this long was a success, so the next dial starts at BACKOFF_MIN_S again;
#: above KEY_LIFETIME_S would punish peers that restart, below a handshake would reward flapping
BACKOFF_RESET_AFTER_S: Final = 30.0
#: what a shorter session leaves of earlier failures: BACKOFF_MIN_S doubled so often
FAILURES_AFTER_SESSION: Final = 2


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


def resolve_collision(own_key: bytes, peer_key: bytes, *, own_dial_authenticated: bool) -> bool:
    """Decide which of two connections stays when both sides dialled at the same time.

    To be asked by the side that has just authenticated an incoming connection (message 3 is
    verified) while it also dials the same peer. True: keep the own dial and answer the incoming
    connection with REJECT(collision). False: accept it and abort the own dial.

    The connection initiated by the larger key stays, but only once it is known to lead to the
    same peer: a dial that has not authenticated may hang for ever, and the peer has not seen its
    message 3 either, so aborting it cannot take away a session that the peer holds.

    Args:
        own_key, peer_key: the Ed25519 public keys, 32 bytes, compared as byte strings.
        own_dial_authenticated: message 2 of our own dial was verified and names the same peer.
            Stays true after the dial was established for incoming connections whose message 1
            came before that moment: their message 3 was sent before the peer knew of our
            session, so they are the losers of the same collision and not a restarted peer.
    Raises:
        LocalProtocolError: the keys are equal; the handshake refuses our own identity.
    Source: protocol section 8.
    """
    if own_key == peer_key:
        raise LocalProtocolError("a collision with our own identity cannot have authenticated")
    return own_dial_authenticated and own_key > peer_key


class Backoff:
    """Delays between dials: 1, 2, 4 ... 30 s, each up to 20 % shorter or longer.

    Args:
        random: returns a float in [0, 1).
    Attributes:
        failures: delays handed out since the last reset; status shows it.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.failures = 0

    def next_delay(self) -> float:
        """Return how many seconds to wait before the next dial, and count the failure."""
        # The exponent stops growing long before the float overflows.
        delay = min(BACKOFF_MAX_S, BACKOFF_MIN_S * BACKOFF_FACTOR ** min(self.failures, 16))
        self.failures += 1
        return delay * (1 - BACKOFF_JITTER + 2 * BACKOFF_JITTER * self._random())

    def reset(self) -> None:
        """Start again at the shortest delay: the operator asked, or the network changed."""
        self.failures = 0

    def session_ended(self, lifetime_s: float) -> None:
        """Reset if a session lived long enough; after a short one be careful, but not for long.

        Even a session that dies at once proves that the peer is there and is the right one, so
        the next delay is 4 s at most: a peer that restarts twice is not punished for it.
        """
        if lifetime_s >= BACKOFF_RESET_AFTER_S:
            self.reset()
        self.failures = min(self.failures, FAILURES_AFTER_SESSION)
