"""Who may connect to the peer port before having proved anything.

Owns: how many connections there may be in each stage, in all and per source, which one goes when a
stage or a source is full, and the rate of new ones per source. Does not know: sockets, clocks (the
caller passes `now`), what a connection is used for.

::

    admit --> ACCEPTED (a descriptor) --> TLS (TLS and upgrade) --> HANDSHAKE --> release
                    '-- full: the oldest goes, never the newcomer --'

Nobody holds a place by being silent: a full stage gives up its oldest member, first among sources
that hold more than one. Some places of each stage only known addresses (`known`) can have, and
what strangers do does not take them away. Source: protocol section 9.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from itertools import islice
from typing import TYPE_CHECKING, Final

from shadowmesh.base.constants import (
    MAX_ACCEPTED,
    MAX_IN_HANDSHAKE,
    MAX_IN_TLS,
    MAX_NEW_PER_SECOND,
    MAX_PER_SOURCE,
    PLACES_FOR_KNOWN,
)

if TYPE_CHECKING:
    from collections.abc import Callable

#: Sources remembered for the rate. A source is forgotten after a second; a flood from more
#: sources than this within one second makes the oldest be forgotten sooner.
MAX_SOURCES: Final = 4096
#: A known address, and a /48 (what a provider gives to a customer with many networks), may have so
#: many times what one source may.
KNOWN_FACTOR: Final = 4
#: A known address behind which there are many peers may have so many for each: they all come at once
#: when their way to us is back, and each may have a connection that it has given up.
PER_KNOWN_PEER: Final = 2
SITE_FACTOR: Final = 4
_WINDOW_S: Final = 1.0
#: The search for somebody to go looks at so many of the oldest, so that a full stage stays cheap.
_SEARCHED: Final = 64


class Stage(enum.Enum):
    """How far a connection has come."""

    ACCEPTED = "accepted"
    TLS = "tls"
    HANDSHAKE = "handshake"


@dataclass(frozen=True, slots=True)
class Limits:
    """How many unauthenticated connections there may be.

    Attributes:
        accepted, tls, handshake: at the same time in that stage.
        kept: of those places, how many only known addresses can have.
        per_source: at the same time in TLS, and again in HANDSHAKE, per source.
        new_per_second: in any second, per source.
    """

    accepted: int = MAX_ACCEPTED
    tls: int = MAX_IN_TLS
    handshake: int = MAX_IN_HANDSHAKE
    kept: int = PLACES_FOR_KNOWN
    per_source: int = MAX_PER_SOURCE
    new_per_second: int = MAX_NEW_PER_SECOND

    def of(self, stage: Stage) -> int:
        """Places of a stage."""
        match stage:
            case Stage.ACCEPTED:
                return self.accepted
            case Stage.TLS:
                return self.tls
            case Stage.HANDSHAKE:
                return self.handshake


@dataclass(frozen=True, slots=True)
class Source:
    """What counts as one origin of connections.

    Attributes:
        name: an IPv4 address, or the /56 of an IPv6 address: what one household or one rented
            server gets, so its addresses cost an attacker nothing. The whole address if known.
        site: the /48 of an IPv6 address that is not known; else "".
        known: a peer was behind this very address.
        peers: how many were.
    """

    name: str
    site: str
    known: bool
    peers: int = 1

    def allowed(self, limit: int) -> int:
        """Return how many this source may have where an unknown one may have `limit`."""
        return max(limit * KNOWN_FACTOR, PER_KNOWN_PEER * self.peers) if self.known else limit


def source_of(ip: str, *, known: bool, peers: int = 1) -> Source:
    """Return the source of an address as people write them.

    Args:
        peers: of a known one, how many are behind it.
    """
    address = IPv6Address(ip.partition("%")[0]) if ":" in ip else IPv4Address(ip)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if known or isinstance(address, IPv4Address):
        return Source(str(address), "", known, peers)
    household = IPv6Network((address, 56), strict=False)
    return Source(str(household), str(household.supernet(new_prefix=48)), known)


class Place:
    """One counted connection. Leaves once, by release() or because another needed its place."""

    def __init__(
        self, admission: Admission, source: Source, evict: Callable[[Stage], None]
    ) -> None:
        self.source = source
        self.stage: Stage | None = None
        self.evict = evict
        self._admission = admission

    def advance(self, stage: Stage) -> None:
        """Move to the next stage; nothing when this place was lost already."""
        if self.stage is not None:
            self._admission.enter(self, stage)

    def release(self) -> None:
        """The connection is authenticated or closed; harmless when repeated."""
        self._admission.leave(self)


class Admission:
    """Counts connections against `Limits`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rooms = {stage: _Room() for stage in Stage}
        self._recent: OrderedDict[str, deque[float]] = OrderedDict()

    def held(self, stage: Stage) -> int:
        """Connections in this stage now."""
        return len(self._rooms[stage].places)

    def admit(self, source: Source, now: float, evict: Callable[[Stage], None]) -> Place | None:
        """Count one new connection, or return None: too many new ones from there in a second.

        Args:
            now: monotonic seconds, never less than in the call before.
            evict: called at most once, with the stage: the connection has lost its place and is
                to be closed. It may not call this object.
        """
        allowed = self._limits.new_per_second
        if not self._within_rate(source.name, source.allowed(allowed), now):
            return None
        if source.site and not self._within_rate(source.site, allowed * SITE_FACTOR, now):
            return None
        place = Place(self, source, evict)
        self.enter(place, Stage.ACCEPTED)
        return place

    def enter(self, place: Place, stage: Stage) -> None:
        """Put a place into a stage; for `Place`."""
        self.leave(place)
        if stage is not Stage.ACCEPTED:
            self._make_room_in_source(place.source, stage)
        self._make_room(place.source, stage)
        self._rooms[stage].add(place)
        place.stage = stage

    def leave(self, place: Place) -> None:
        """Take a place out of its stage, if it is in one; for `Place`."""
        if place.stage is not None:
            self._rooms[place.stage].remove(place)
            place.stage = None

    def _make_room_in_source(self, source: Source, stage: Stage) -> None:
        room, limit = self._rooms[stage], self._limits.per_source
        if room.of_source[source.name] >= source.allowed(limit):
            self._evict(next(p for p in room.places if p.source.name == source.name))
        if source.site and room.of_site[source.site] >= limit * SITE_FACTOR:
            self._evict(next(p for p in room.places if p.source.site == source.site))

    def _make_room(self, source: Source, stage: Stage) -> None:
        room, limit = self._rooms[stage], self._limits.of(stage)
        strangers = len(room.places) - room.known
        if not source.known and strangers >= limit - self._limits.kept:
            self._evict(room.oldest(known=False))
        elif len(room.places) >= limit:
            self._evict(room.oldest(known=strangers == 0))

    def _evict(self, place: Place) -> None:
        stage = place.stage
        if stage is None:
            raise ValueError("a place that is left cannot be lost")
        self.leave(place)
        place.evict(stage)

    def _within_rate(self, name: str, allowed: int, now: float) -> bool:
        recent = self._recent
        while recent and next(iter(recent.values()))[-1] <= now - _WINDOW_S:
            recent.popitem(last=False)
        starts = recent.get(name)
        if starts is None or starts.maxlen != allowed:
            starts = recent[name] = deque(starts or (), maxlen=allowed)
        if len(starts) == allowed and starts[0] > now - _WINDOW_S:
            return False
        starts.append(now)
        recent.move_to_end(name)
        if len(recent) > MAX_SOURCES:
            recent.popitem(last=False)
        return True


class _Room:
    """The members of one stage, oldest first."""

    def __init__(self) -> None:
        self.places: OrderedDict[Place, None] = OrderedDict()
        self.of_source: Counter[str] = Counter()
        self.of_site: Counter[str] = Counter()
        self.known = 0

    def add(self, place: Place) -> None:
        self.places[place] = None
        self._count(place.source, 1)

    def remove(self, place: Place) -> None:
        del self.places[place]
        self._count(place.source, -1)

    def oldest(self, *, known: bool) -> Place:
        """The one to go: the oldest of a source that holds more than one, else the oldest."""
        members = (place for place in self.places if place.source.known == known)
        candidates = list(islice(members, _SEARCHED))
        crowded = (place for place in candidates if self.of_source[place.source.name] > 1)
        return next(crowded, candidates[0])

    def _count(self, source: Source, change: int) -> None:
        self.known += change * source.known
        for counter, name in ((self.of_source, source.name), (self.of_site, source.site)):
            counter[name] += change
            if not counter[name]:
                del counter[name]
