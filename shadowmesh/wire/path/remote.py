"""What is known of one address of the peer, and the book of all of them.

Owns: round trip, loss and proof of each address; which addresses are kept. Does not know: when
probes are sent and which address carries the frames (`machine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from shadowmesh.base.constants import MAX_CANDIDATES, PROBE_TOKEN_BYTES
from shadowmesh.wire.control import Address, Candidate, CandidateKind, Endpoint, is_usable
from shadowmesh.wire.path.events import Kind, PathReport
from shadowmesh.wire.path.pmtu import MtuProber

#: learned addresses that are kept beside the candidates
MAX_LEARNED: Final = 8
#: loss is that of the last so many probes
LOSS_WINDOW: Final = 20
#: weight of a new round trip, as TCP has it (RFC 6298)
RTT_GAIN: Final = 0.125
#: but what was measured so long ago weighs less, and so does more than was measured now: a
#: reading is taken by a busy process, so it may be too high and never too low
RTT_STALE_S: Final = 10.0
RTT_FAST_GAIN: Final = 0.5
#: an answer counts this long, however late; afterwards the probe is forgotten
PROBE_LIFE_S: Final = 5.0
#: an interface address of the peer beats one behind a NAT unless that is this much faster: the
#: way through the NAT and back may be as fast today, and depends on one thing more
DETOUR_S: Final = 0.005


@dataclass(slots=True, eq=False)
class Remote:
    """One address of the peer. Times are monotonic seconds.

    Attributes:
        tries: probes of this round of punching, or since an answer.
        good: probes answered in a row since UDP was last given up.
        asked_at: when the last probe went there.
        answered_at: when one was last answered from there.
        used_at: when it was last heard of in any way.
        seen_as: where the peer saw us.
        narrow: it answered, but a datagram of the base size did not get through; it is probed
            with that size until one does, and carries no frames.
        prober: of the path MTU, once it carried frames.
        hindrance: why the last probe was not sent; None when it was.
    """

    endpoint: Endpoint
    kind: Kind
    tries: int = 0
    good: int = 0
    asked_at: float | None = None
    answered_at: float | None = None
    used_at: float = 0.0
    rtt_s: float | None = None
    seen_as: Endpoint | None = None
    narrow: bool = False
    prober: MtuProber | None = None
    hindrance: str | None = None
    #: of the last LOSS_WINDOW probes, a bit for each that was lost; the newest is the lowest
    _lost: int = 0
    _judged: int = 0

    @property
    def proven(self) -> bool:
        """True when a probe of ours was answered from there."""
        return self.answered_at is not None

    @property
    def waiting(self) -> bool:
        """True when the last probe has not been answered."""
        return self.asked_at is not None and (
            self.answered_at is None or self.answered_at < self.asked_at
        )

    @property
    def score(self) -> float:
        """Seconds; less is better. Only for what is proven."""
        rtt_s = 1e9 if self.rtt_s is None else self.rtt_s
        return rtt_s if self.kind is Kind.HOST else rtt_s + DETOUR_S

    @property
    def loss(self) -> float | None:
        return self._lost.bit_count() / self._judged if self._judged else None

    def report(self, *, active: bool) -> PathReport:
        """Return what is known of it."""
        return PathReport(
            endpoint=self.endpoint,
            kind=self.kind,
            proven=self.proven,
            active=active,
            rtt_ms=None if self.rtt_s is None else self.rtt_s * 1000.0,
            loss=self.loss,
            mtu=None if self.prober is None else self.prober.mtu,
            seen_as=self.seen_as,
            unanswered=self.tries,
            hindrance=self.hindrance,
        )

    def answered(self, rtt_s: float, now: float, *, padded: bool) -> None:
        """A probe sent rtt_s ago was answered from this address.

        A padded one counts as proof and not for the loss: it may be lost for its size.
        """
        if self.rtt_s is None or self.answered_at is None:
            self.rtt_s = rtt_s
        else:
            slowly = rtt_s > self.rtt_s and now < self.answered_at + RTT_STALE_S
            gain = RTT_GAIN if slowly else RTT_FAST_GAIN
            self.rtt_s += gain * (rtt_s - self.rtt_s)
        self.answered_at = self.used_at = now
        self.tries = 0
        self.good += 1
        if not padded:
            self._judge(lost=False)

    def lost(self) -> None:
        """A probe was given up. Before the first answer that says nothing about loss."""
        if self.proven:
            self._judge(lost=True)

    def _judge(self, *, lost: bool) -> None:
        self._lost = (self._lost << 1 | lost) & (1 << LOSS_WINDOW) - 1
        self._judged = min(self._judged + 1, LOSS_WINDOW)


class Book:
    """The addresses of the peer: at most 8 candidates, the link's, and 8 learned ones."""

    def __init__(self, inside: Callable[[Address], str | None]) -> None:
        """Args: inside: as for `PathMachine`."""
        self._inside = inside
        self._remotes: dict[Endpoint, Remote] = {}

    def __iter__(self) -> Iterator[Remote]:
        return iter(list(self._remotes.values()))

    def __len__(self) -> int:
        return len(self._remotes)

    def find(self, endpoint: Endpoint) -> Remote | None:
        return self._remotes.get(endpoint)

    def hinders(self, remote: Remote) -> bool:
        """Tell whether datagrams to an address would go into the tunnel itself; notes why."""
        why = self._inside(remote.endpoint.address)
        if why is not None:
            remote.hindrance = why
        return why is not None

    def proven(self) -> list[Remote]:
        """Return those that ever answered, the one that did so last first."""
        found = [remote for remote in self if remote.answered_at is not None]
        return sorted(found, key=lambda remote: remote.answered_at or 0.0, reverse=True)

    def best(self, *, since: float) -> Remote | None:
        """Return the best of those that answered since then and can carry frames."""
        fresh = [
            remote
            for remote in self
            if remote.answered_at is not None and remote.answered_at >= since and not remote.narrow
            if not self.hinders(remote)
        ]
        return min(fresh, key=lambda remote: remote.score, default=None)

    def report(self, active: Remote | None) -> tuple[PathReport, ...]:
        """Return what is known of each address, the active one first."""
        reports = [remote.report(active=remote is active) for remote in self]
        return tuple(sorted(reports, key=lambda report: not report.active))

    def replace_candidates(
        self, candidates: Iterable[Candidate], now: float, keep: Remote | None
    ) -> None:
        """Take the peer's new list; what is no longer in it stays only as learned, if proven.

        `keep` is never thrown out. More than 8 and the link's, and what `control.is_usable`
        refuses, are left out. Source: protocol section 8.
        """
        usable = [c for c in candidates if is_usable(c)][: MAX_CANDIDATES + 1]
        named = {candidate.endpoint for candidate in usable}
        for remote in self:
            if remote.endpoint not in named and remote.kind is not Kind.LEARNED:
                remote.kind = Kind.LEARNED
                if not remote.proven:
                    del self._remotes[remote.endpoint]
        for candidate in usable:
            kind = Kind.HOST if candidate.kind is CandidateKind.HOST else Kind.REFLEXIVE
            known = self._remotes.get(candidate.endpoint)
            if known is None:
                self._remotes[candidate.endpoint] = Remote(candidate.endpoint, kind, used_at=now)
            else:
                known.kind = kind
        self._trim(keep)

    def learn(self, endpoint: Endpoint, now: float, keep: Remote | None) -> Remote | None:
        """Return the remote of an address that something authenticated came from.

        Returns None for an address that must not be used. `keep` is never thrown out.
        """
        remote = self._remotes.get(endpoint)
        if remote is None:
            # Reflexive and host are judged alike; the kind only fills the place.
            if not is_usable(Candidate(CandidateKind.REFLEXIVE, endpoint)):
                return None
            remote = self._remotes[endpoint] = Remote(endpoint, Kind.LEARNED)
        remote.used_at = now
        self._trim(keep, remote)
        return remote

    def _trim(self, *keep: Remote | None) -> None:
        learned = [remote for remote in self if remote.kind is Kind.LEARNED]
        # Unproven ones go first: they are what a stranger's copies of our packets make.
        learned.sort(key=lambda remote: (remote in keep, remote.proven, remote.used_at))
        for remote in learned[: max(0, len(learned) - MAX_LEARNED)]:
            del self._remotes[remote.endpoint]


@dataclass(frozen=True, slots=True)
class SentProbe:
    """A probe that may still be answered.

    `padded` is the UDP payload in bytes of a probe that asks for the path's MTU, else None.
    """

    remote: Remote
    at: float
    padded: int | None


class SentProbes:
    """The probes that may still be answered, by token."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._sent: dict[bytes, SentProbe] = {}

    def add(self, remote: Remote, now: float, padded: int | None) -> bytes:
        """Note a probe that is about to be sent; return its token of 8 random bytes."""
        token = self._random(PROBE_TOKEN_BYTES)
        self._sent[token] = SentProbe(remote, now, padded)
        if padded is None or remote.narrow:
            remote.asked_at = now
            remote.tries += 1
        remote.hindrance = None
        return token

    def take(self, token: bytes) -> SentProbe | None:
        """Return the probe that has this token, once; None for an unknown or old one."""
        return self._sent.pop(token, None)

    def not_sent(self, token: bytes, why: str) -> bool:
        """Undo `add`; False for an unknown or old token."""
        sent = self.take(token)
        if sent is None:
            return False
        if sent.padded is None or sent.remote.narrow:
            sent.remote.tries = max(0, sent.remote.tries - 1)
        sent.remote.hindrance = why
        return True

    def forget(self, now: float) -> None:
        """Give up what is older than PROBE_LIFE_S."""
        for token, sent in list(self._sent.items()):
            if sent.at > now - PROBE_LIFE_S:
                break  # in the order in which they were sent
            del self._sent[token]
            if sent.padded is None:
                sent.remote.lost()
