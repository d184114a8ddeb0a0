"""Which path carries the frames, and why.

Owns: punching, the proof of an address, the choice among proven ones, liveness of UDP, the way
back to WSS and from there to UDP again, roaming, the path's MTU. Does not know: how probes are
sealed and sent, sockets, clocks, what STUN found. Whatever it is told of came in a record that
authenticated; the replay window makes sure that it is told once.

It is one module because nearly every input may move the path, and the order in which it does is the
protocol; what needs no such judgement stands beside it (`remote`, `punch`, `timers`, `pmtu`).

::

               punch, probes answered              silence, idle, a new source
      WSS ------------------------------> UDP <-----------------------------> CHECKING
                                           ^            answered                  |
                                           |                                      | three probes
                                           +------------ FALLEN <-----------------+ unanswered
                                            two good probes      (frames on WSS)

Rules that everything here serves: frames go only where an own probe was answered from; an
address that something merely came from (it may be a copy sent by a stranger) gets a probe and
nothing else; nothing is sent to, and nothing taken from, an address that the routes of this host
have behind the tunnel itself; WSS is always there, so giving UDP up is cheap and taking it up is
careful.

Driving it: after each input and each `handle_timeout` take all of `next_event`. While the path
is "udp" call `data_sent` and `data_heard` with the data plane's time stamps before each
`handle_timeout`, and at least every ACTIVITY_POLL_S while frames are sent, every QUIET_POLL_S when
none were for QUIET_AFTER_S. Source: protocol section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from shadowmesh.base.constants import (
    PUNCH_INTERVAL_S,
    PUNCH_RETRY_S,
    ROAM_MIN_INTERVAL_S,
    UDP_IDLE_PROBE_S,
    UDP_PROBE_INTERVAL_S,
    UDP_PROBES_GOOD,
    UDP_PROBES_LOST,
)
from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.base.units import count
from shadowmesh.wire.control import PROBE_MIN_BYTES, Address, Candidate, Endpoint, Probe
from shadowmesh.wire.path import events, rules
from shadowmesh.wire.path.pmtu import BASE_BYTES, CONFIRM_S, MtuProber
from shadowmesh.wire.path.punch import Punching
from shadowmesh.wire.path.remote import PROBE_LIFE_S, Book, Remote, SentProbes
from shadowmesh.wire.path.rules import TRANSITIONS, Cause, Transport
from shadowmesh.wire.path.timers import Check, Recovery

_CARRYING: Final = (Transport.UDP, Transport.CHECKING)
#: addresses that cannot be probed are named up to so many
_NAMED: Final = 2


def _outside(_address: Address) -> None:
    """No address is behind the tunnel."""


class PathMachine:
    """The paths of one session. Times are monotonic seconds."""

    def __init__(
        self,
        now: float,
        *,
        random: Callable[[int], bytes],
        hole_punch_timeout_s: float = 0.5,
        link_mtu: int = 1500,
        inside: Callable[[Address], str | None] = _outside,
        overhead: int = rules.DEFAULT_OVERHEAD_BYTES,
    ) -> None:
        """Make a machine that sends on WSS and knows no candidates.

        Args:
            random: gives that many random bytes.
            hole_punch_timeout_s: how long a round of punching lasts.
            link_mtu: of the outgoing interface, IP headers included.
            inside: says why packets to an address would go into the tunnel itself, None when they
                do not; asked anew each time, since routes change.
            overhead: what sealing adds to the body of a record, bytes.
        """
        self._link_mtu = link_mtu
        self._overhead = overhead
        #: a list: few at a time, and an empty deque has half a KiB
        self._events: list[events.Event] = []
        self._inside = inside
        self._book = Book(inside)
        self._probes = SentProbes(random)

        self._transport = Transport.WSS
        self._active: Remote | None = None
        self._reason = "UDP is not tried yet, as the peer has named no address"
        self._sent_at = now  # frames, by the data plane
        self._heard_at = now  # anything that authenticated, over UDP
        self._heard_from: Endpoint | None = None
        self._carrying_since = now
        self._moved_at = -ROAM_MIN_INTERVAL_S

        self._punching = Punching(hole_punch_timeout_s)
        self._check = Check("", now)
        self._recovery = Recovery(now)
        self._refresh_due = now
        self._better_due: float | None = None
        self._told_mtu = 0

    # --- What it shows -------------------------------------------------------------------------

    @property
    def transport(self) -> Transport:
        """Where the machine is in its diagram."""
        return self._transport

    @property
    def path(self) -> str:
        """What carries the frames: "udp" or "wss"."""
        return "udp" if self._transport in _CARRYING else "wss"

    @property
    def suspect(self) -> bool:
        """True while UDP still carries the frames but a probe has gone unanswered for 500 ms."""
        return self._transport is Transport.CHECKING and self._check.unanswered > 1

    @property
    def reason(self) -> str:
        """Why, as one sentence for status."""
        return self._reason

    @property
    def active(self) -> Endpoint | None:
        """Where the frames go; None on WSS."""
        return self._active.endpoint if self._active is not None else None

    @property
    def active_report(self) -> events.PathReport | None:
        """What is known of that address; None on WSS."""
        return None if self._active is None else self._active.report(active=True)

    def report(self) -> tuple[events.PathReport, ...]:
        """Return what is known of each address of the peer, the active one first."""
        return self._book.report(self._active)

    def next_event(self) -> events.Event | None:
        """Return what is to be done or told, oldest first; None when there is nothing."""
        return self._events.pop(0) if self._events else None

    # --- Inputs --------------------------------------------------------------------------------

    def set_candidates(self, candidates: Iterable[Candidate], now: float) -> None:
        """Take the peer's CANDIDATES; they are probed by the next `punch`."""
        self._book.replace_candidates(candidates, now, self._active)
        if self._transport is Transport.WSS and not self._punching.running:
            self._say(
                f"UDP is not tried yet, {count(len(self._book), 'address')} of the peer known"
            )

    def punch(self, now: float) -> None:
        """Start a round: PUNCH_NOW was sent or came. One that runs goes on."""
        if self._transport is Transport.OFF:
            return
        ways = self._ways_out()
        for remote in self._book:
            if remote not in ways:
                self._refuse(remote.endpoint, "probe", remote.hindrance or "")
        if self._punching.start(ways, now) and self._transport is Transport.WSS:
            self._say(f"UDP is being tried to {count(len(ways), 'address')} of the peer")
        elif not ways and len(self._book) and self._transport is Transport.WSS:
            self._say(self._no_path())
        self._punch_tick(now)

    def network_changed(self, now: float) -> None:
        """Our own addresses or routes changed: whatever was proven has to be proven again."""
        if self._transport is Transport.OFF:
            return
        if self._transport is Transport.UDP:
            self._doubt("our network changed", now)
        elif self._transport is Transport.FALLEN:
            self._recovery.hurry(now)
        self._events.append(events.AskPunch("our network changed"))
        self.punch(now)

    def ways_changed(self, now: float) -> None:
        """Routes may lead into the tunnel now, or no longer; nothing else changed."""
        active = self._active
        if self._transport is Transport.OFF or self._leaves_tunnel(now):
            return
        hindered = [remote for remote in self._book if remote.hindrance is not None]
        if active is None and any(not self._book.hinders(remote) for remote in hindered):
            if self._transport is Transport.FALLEN:
                self._recovery.hurry(now)
            self._events.append(events.AskPunch("routes changed"))
            self.punch(now)

    def probe_not_sent(self, token: bytes, why: str) -> None:
        """The probe with this token could not be sent, so nobody can answer it."""
        if self._probes.not_sent(token, why):
            self._punching.spare()

    def wss_lost(self, now: float) -> None:
        """The WSS link broke; whether the peer is gone, too, is for UDP to tell, and soon."""
        if self._transport is Transport.UDP:
            self._doubt("the WSS link is lost", now)

    def set_link_mtu(self, link_mtu: int, now: float) -> None:
        """The outgoing interface has another MTU; the search begins anew."""
        if link_mtu != self._link_mtu:
            self._link_mtu = link_mtu
            if self._active is not None:
                self._search_mtu(self._active, now)
                self._tell_mtu()

    def datagram_too_big(self, size: int, now: float) -> None:
        """Our own kernel refused a UDP payload of this size (EMSGSIZE)."""
        if self._active is not None and self._active.prober is not None:
            self._active.prober.too_big(size, now)
            self._leave_if_narrow(self._active, now)
            self._tell_mtu()

    def probe_received(
        self, source: Endpoint, token: bytes, size: int, now: float, *, timed: bool = False
    ) -> None:
        """A probe of the peer came; `size` is that of its body. Answers it, and asks back."""
        if self._transport is Transport.OFF:
            return
        remote = self._learn(source, now)
        if remote is None:
            return
        self._heard_at = now
        self._events.append(events.SendProbeAnswer(source, Probe(token, size, timed)))
        self._ask_back(remote, now)

    def answer_received(
        self,
        source: Endpoint,
        token: bytes,
        seen: Endpoint | None,
        now: float,
        *,
        rtt_s: float | None = None,
    ) -> float | None:
        """An answer came; `seen` is where the peer saw our probe come from, if it says.

        `rtt_s` is how long both were on the way; None: for all the time since the probe was sent.
        Return the round trip in seconds; None when it proves none.
        """
        sent = self._probes.take(token)
        if sent is None or self._transport is Transport.OFF or self._is_inside(source):
            return None
        self._heard_at = now
        if sent.remote.endpoint != source:
            # The peer is there, but not at the address that was asked: no proof of either.
            remote = self._learn(source, now)
            if remote is not None:
                self._ask_back(remote, now)
            return None
        remote = sent.remote
        rtt_s = now - sent.at if rtt_s is None else rtt_s
        remote.answered(rtt_s, now, padded=sent.padded is not None)
        if sent.padded is not None:
            remote.narrow = False
            if remote.prober is not None:
                remote.prober.answered(sent.padded, now)
                self._tell_mtu()
        if seen is not None:
            if remote.seen_as is not None and seen != remote.seen_as:
                self._events.append(events.SeenAs(remote.seen_as, seen))
            remote.seen_as = seen
        self._on_proof(remote, now)
        return rtt_s

    def data_sent(self, at: float) -> None:
        """Frames were sent over UDP, last at this time."""
        self._sent_at = max(self._sent_at, at)

    def data_heard(self, at: float, source: Endpoint | None = None) -> None:
        """Records came over UDP, last at this time and, if told, from this address."""
        self._heard_at = max(self._heard_at, at)
        if source is None or self._transport is Transport.OFF or source == self._heard_from:
            return
        self._heard_from = source
        active = self._active
        if active is None or source == active.endpoint:
            return
        remote = self._learn(source, at)
        if remote is None:
            return
        self._ask_back(remote, at)
        fresh = active.answered_at is not None and at < active.answered_at + UDP_PROBE_INTERVAL_S
        if self._transport is Transport.UDP and not fresh:
            self._doubt(f"records come from {source}", at)

    def disable(self, reason: str, now: float) -> None:
        """Use WSS for good: the peer does not want UDP, or there is no socket."""
        if self._transport is Transport.OFF:
            return
        before = self._name()
        self._become(Cause.DISABLED)
        self._active = None
        self._punching.stop()
        self._use(reason, before)

    def enable(self, now: float) -> None:
        """Undo `disable`; nothing is proven."""
        self._become(Cause.ENABLED)
        self._heard_at = self._sent_at = now
        self._say("UDP is not tried yet")

    # --- Time ----------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """Return when `handle_timeout` wants to be called; None when it is waiting for inputs."""
        if self._transport is Transport.OFF:
            return None
        times = [self._punching.next_timeout(on_wss=self.path == "wss")]
        if self._transport is Transport.UDP:
            active = self._carrier()
            times += [self._doubt_at(active), self._refresh_due, self._better_due]
            times.append(None if active.prober is None else active.prober.due)
        elif self._transport is Transport.CHECKING:
            times.append(self._check.due)
        elif self._transport is Transport.FALLEN:
            times.append(self._recovery.due)
        return min((time for time in times if time is not None), default=None)

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Does nothing when called early."""
        if self._transport is Transport.OFF:
            return
        self._probes.forget(now)
        self._leaves_tunnel(now)
        self._punch_tick(now)
        if self._punching.deferred_is_due(now):
            self.punch(now)
        if self.path == "wss" and self._punching.ask_is_due(now):
            self._events.append(events.AskPunch("UDP is tried again"))
        # In this order: a check may end on another address, whose MTU is then looked for.
        if self._transport is Transport.CHECKING:
            self._checking_tick(self._carrier(), now)
        if self._transport is Transport.UDP:
            self._udp_tick(self._carrier(), now)
        elif self._transport is Transport.FALLEN:
            self._fallen_tick(now)

    # --- Probes --------------------------------------------------------------------------------

    def _probe(self, remote: Remote, now: float, padded: int | None = None) -> None:
        if self._book.hinders(remote):
            self._refuse(remote.endpoint, "probe", remote.hindrance or "")
            return
        if remote.narrow:
            padded = BASE_BYTES
        size = PROBE_MIN_BYTES if padded is None else padded - self._overhead
        token = self._probes.add(remote, now, padded)
        self._events.append(events.SendProbe(remote.endpoint, token, size))

    def _ask_back(self, remote: Remote, now: float) -> None:
        """Probe where something came from, unless that was done just now."""
        if remote.answered_at is not None and now < remote.answered_at + UDP_PROBE_INTERVAL_S:
            return
        spacing = UDP_PROBE_INTERVAL_S if remote.proven else PUNCH_INTERVAL_S
        if not remote.proven and not self._punching.may_probe(remote):
            # Whoever copies our packets from somewhere gets a few probes, then hardly any.
            spacing = ROAM_MIN_INTERVAL_S
        if remote.asked_at is not None and now < remote.asked_at + spacing:
            return
        if self._transport is Transport.UDP and remote is self._active:
            # The peer asks, so it may be in doubt: its answers may not reach it.
            self._doubt("the peer sent a probe", now)
        elif self._transport is not Transport.CHECKING or remote is not self._active:
            self._punching.spend()
            self._probe(remote, now)

    def _punch_tick(self, now: float) -> None:
        if not self._punching.is_over(now):
            for remote in self._punching.due_remotes(self._ways_out(), now):
                self._probe(remote, now)
            return
        if self._transport is Transport.WSS:
            self._say(self._no_path())
        self._punching.end()

    def _no_path(self) -> str:
        """Say what became of a round of punching that nobody answered."""
        hindered = [remote for remote in self._book if remote.hindrance is not None]
        words = []
        if self._punching.sent or not hindered:
            asked = len(self._book) - len(hindered)
            words.append(
                f"{count(self._punching.sent, 'probe')} to {count(asked, 'address')} of the peer"
                " unanswered"
            )
        words += [remote.hindrance or "" for remote in hindered[:_NAMED]]
        if len(hindered) > _NAMED:
            words.append(f"{len(hindered) - _NAMED} more cannot be probed")
        return f"no UDP path: {', '.join(words)}; tried again every {PUNCH_RETRY_S:g} s"

    # --- The tunnel itself ---------------------------------------------------------------------

    def _ways_out(self) -> list[Remote]:
        """Return the addresses that may be probed; those behind the tunnel are refused."""
        return [remote for remote in self._book if not self._book.hinders(remote)]

    def _is_inside(self, source: Endpoint) -> bool:
        """Tell whether what came from there can only have come through the tunnel; it is refused."""
        why = self._inside(source.address)
        if why is not None:
            self._refuse(source, "answer", why)
        return why is not None

    def _learn(self, source: Endpoint, now: float) -> Remote | None:
        """Return the remote of an address that something authenticated came from, if it may be used."""
        return None if self._is_inside(source) else self._book.learn(source, now, self._active)

    def _refuse(self, endpoint: Endpoint, what: str, why: str) -> None:
        self._events.append(events.Refused(endpoint, what, why))

    def _leaves_tunnel(self, now: float) -> bool:
        """Give up the address in use if packets to it go into the tunnel by now."""
        active = self._active
        if active is None or not self._book.hinders(active):
            return False
        if self._transport is Transport.UDP:
            self._become(Cause.DOUBTED)
        self._fall(f"UDP is given up: {active.hindrance}", now)
        return True

    # --- The transport -------------------------------------------------------------------------

    def _become(self, cause: Cause) -> None:
        after = TRANSITIONS[self._transport].get(cause)
        if after is None:
            raise LocalProtocolError(f"path: {cause} cannot happen while {self._transport}")
        self._transport = after

    def _on_proof(self, remote: Remote, now: float) -> None:
        """A probe of ours was answered from where it was sent to."""
        if remote.narrow:
            return
        if self._transport is Transport.WSS:
            self._take(remote, Cause.PROVED, _answered(remote), now)
        elif self._transport is Transport.FALLEN:
            if remote.good >= UDP_PROBES_GOOD:
                good = f"UDP is back, {remote.endpoint} answered {UDP_PROBES_GOOD} probes"
                self._take(remote, Cause.PROVED, good, now)
            else:
                self._recovery.answered(now)
        elif remote is self._active:
            if self._transport is Transport.CHECKING:
                self._become(Cause.ANSWERED)
                if remote.prober is not None and self._busy(now):
                    # What is small passes. Was it what is long that nobody answered?
                    remote.prober.confirm(now)
        elif self._transport is Transport.UDP:
            self._consider_better(now)

    def _take(self, remote: Remote, cause: Cause, reason: str, now: float) -> None:
        """Send frames to a proven address from now on."""
        before = self._name()
        if self.path == "wss":
            self._carrying_since = now
            self._refresh_due = now + rules.REFRESH_S
        self._become(cause)
        self._active = remote
        self._heard_from = None
        self._moved_at = now
        self._better_due = now + ROAM_MIN_INTERVAL_S
        self._search_mtu(remote, now)
        self._use(reason, before)

    def _carrier(self) -> Remote:
        if self._active is None:
            raise LocalProtocolError(f"path: {self._transport} without an address")
        return self._active

    def _doubt_at(self, active: Remote) -> float:
        """Return when UDP is due for a probe: sent and heard nothing, or idle."""
        last_out = max(self._sent_at, active.asked_at or self._sent_at)
        idle = min(last_out, self._heard_at) + UDP_IDLE_PROBE_S
        if self._sent_at > self._heard_at:
            return min(idle, self._heard_at + UDP_PROBE_INTERVAL_S)
        return idle

    def _doubt(self, reason: str | None, now: float) -> None:
        """Probe the active address until it answers or three probes are lost.

        Args: reason: what happened, as far as that is news; None: nothing came for a while.
        """
        self._become(Cause.DOUBTED)
        self._check = Check(reason, now)
        self._check_probe(self._carrier(), now)

    def _check_probe(self, active: Remote, now: float) -> None:
        self._probe(active, now)
        self._check.probe_sent(active.rtt_s, now)

    def _udp_tick(self, active: Remote, now: float) -> None:
        if now >= self._doubt_at(active):
            self._doubt(None, now)
            return
        if now >= self._refresh_due:
            self._refresh_due = now + rules.REFRESH_S
            for remote in self._book:
                if remote is not active:
                    self._probe(remote, now)
        if self._better_due is not None and now >= self._better_due:
            self._better_due = None
            self._consider_better(now)
        self._mtu_tick(now)

    def _checking_tick(self, active: Remote, now: float) -> None:
        if now < self._check.due:
            return
        other = self._book.best(since=self._check.began)
        if other is not None and other is not active and self._may_move(now):
            reason = f"{active.endpoint} is silent, {_answered(other)}"
            self._take(other, Cause.ANSWERED, reason, now)
        elif self._check.lost:
            self._fall(
                f"UDP to {active.endpoint} is silent: {UDP_PROBES_LOST} probes unanswered"
                f"{self._check.since}",
                now,
            )
        else:
            if self._check.unanswered == 1:
                for remote in self._book.proven():
                    if remote is not active:
                        self._probe(remote, now)
            self._check_probe(active, now)

    def _fall(self, reason: str, now: float) -> None:
        before = self._name()
        self._become(Cause.LOST)
        self._active = None
        for remote in self._book:
            remote.good = 0
        self._recovery.fell(now - self._carrying_since, now)
        self._punching.ask_after_fall(now)
        self._use(reason, before)

    def _fallen_tick(self, now: float) -> None:
        if now < self._recovery.due:
            return
        hopeful = False
        for remote in self._book.proven():
            if remote.waiting:
                remote.good = 0
            hopeful = hopeful or remote.good > 0
            self._probe(remote, now)
        self._recovery.probe_sent(now, hopeful=hopeful)

    def _may_move(self, now: float) -> bool:
        return now >= self._moved_at + ROAM_MIN_INTERVAL_S

    def _consider_better(self, now: float) -> None:
        """Move to a clearly better address that answered just now; probe it when not just now."""
        active = self._active
        other = self._book.best(since=now - rules.REFRESH_S - PROBE_LIFE_S)
        if active is None or other is None or other is active:
            return
        gain = active.score - other.score
        if gain < rules.BETTER_BY_S or gain < rules.BETTER_BY_SHARE * active.score:
            return
        if not self._may_move(now):
            self._better_due = self._moved_at + ROAM_MIN_INTERVAL_S
        elif other.answered_at is not None and now < other.answered_at + rules.FRESH_S:
            reason = f"{_answered(other)}, better than {active.endpoint}"
            self._become(Cause.DOUBTED)
            self._take(other, Cause.ANSWERED, reason, now)
        elif not other.waiting:
            self._probe(other, now)

    # --- The path's MTU ------------------------------------------------------------------------

    def _search_mtu(self, remote: Remote, now: float) -> None:
        remote.prober = MtuProber(self._link_mtu, remote.endpoint.address.version, now)

    def _mtu_tick(self, now: float) -> None:
        active = self._active
        if active is None or active.prober is None or now < active.prober.due:
            return
        step = active.prober.tick(
            now, active.answered_at, active.rtt_s or 0.0, busy=self._busy(now)
        )
        if step.size is not None:
            self._probe(active, now, padded=step.size)
            self._probe(active, now)
        self._leave_if_narrow(active, now)
        self._tell_mtu()
        if step.doubt and self._transport is Transport.UDP:
            self._doubt("probes are unanswered", now)

    def _busy(self, now: float) -> bool:
        """Whether frames were sent lately: what nobody uses is not confirmed."""
        return self._sent_at >= now - CONFIRM_S

    def _leave_if_narrow(self, active: Remote, now: float) -> None:
        """Give up an address that answers but does not carry datagrams of the base size."""
        if active.prober is None or not active.prober.narrow or active.narrow:
            return
        active.narrow = True
        reason = f"{active.endpoint} answers, but not to datagrams of {BASE_BYTES} bytes"
        if self._transport is Transport.UDP:
            self._become(Cause.DOUBTED)
        self._fall(reason, now)

    def _tell_mtu(self) -> None:
        prober = None if self._active is None else self._active.prober
        if prober is not None and prober.mtu != self._told_mtu:
            self._use(self._reason)

    # --- Telling -------------------------------------------------------------------------------

    def _name(self) -> str:
        return "wss" if self._active is None else f"udp {self._active.endpoint}"

    def _use(self, reason: str, before: str | None = None) -> None:
        """Tell the path in use; `before` is the one that it takes over from."""
        self._reason = reason
        use = events.UsePath("wss", None, None, reason)
        if self._active is not None and self._active.prober is not None:
            self._told_mtu = self._active.prober.mtu
            use = events.UsePath("udp", self._active.endpoint, self._told_mtu, reason)
        self._events.append(use)
        if before is not None:
            self._events.append(events.PathChanged(before, self._name(), reason))

    def _say(self, reason: str) -> None:
        """The reason changed and the path did not."""
        if reason != self._reason:
            self._reason = reason
            self._events.append(events.PathChanged(self._name(), self._name(), reason))


def _answered(remote: Remote) -> str:
    # Without the round trip, which changes while this sentence stays.
    return f"{remote.endpoint} ({remote.kind}) answers"
