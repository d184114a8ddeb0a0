"""Which path carries the frames of one session, and why: the shell around `wire.path`.

Owns: the greenlet that drives the path machine with the data plane's time stamps, the sending of
its probes and answers, our candidates and PUNCH_NOW on the WSS link, the switch in the data
plane. Does not know: how bytes are sealed, STUN, whether the session is wanted.

::

    WSS link: CANDIDATES, PUNCH_NOW --> machine (wire.path) --> session.use_udp / use_wss
    UDP port: probes, answers, -------->   |       ^            session.send_udp_record
              "a new source"               v       |
                                  on_change     session.udp_activity

WSS stays open beside UDP, as signalling and as the reserve. A frame is sealed for one path only,
so a switch can neither lose nor double one.

UDP is given up after three unanswered probes, 1.7 s after its last sign of life. TCP repeats itself
0.2, 0.6, 1.4 and 3.0 s after it lost a packet; for its third attempt to arrive, frames already take
WSS while the second probe is out, and go on over UDP if that is answered. Source: protocol section
8, the last paragraph is our own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import gevent

from shadowmesh._fastpath import MIN_UDP_PAYLOAD
from shadowmesh.base import log
from shadowmesh.base.clock import next_tick
from shadowmesh.base.constants import MAX_MTU, RECORD_OVERHEAD_BYTES, Inner
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.device import addresses
from shadowmesh.insight.events import NOBODY
from shadowmesh.path.alarm import Alarm
from shadowmesh.path.pings import Pings
from shadowmesh.path.stopwatch import Stopwatch
from shadowmesh.path.traversal import MOVED_SPACING_S
from shadowmesh.wire import control
from shadowmesh.wire.path import events
from shadowmesh.wire.path.candidates import with_link
from shadowmesh.wire.path.machine import PathMachine
from shadowmesh.wire.path.rules import ACTIVITY_POLL_S, QUIET_AFTER_S, QUIET_POLL_S

if TYPE_CHECKING:
    from shadowmesh._fastpath import Session
    from shadowmesh.insight.events import Recorder
    from shadowmesh.path.traversal import Traversal
    from shadowmesh.path.udp import UdpPort
    from shadowmesh.wire.control import Address, Candidate, Candidates, Endpoint, PunchNow

ETHERNET_MTU: Final = 1500
#: frames that were sealed for the old size still meet their error after a change
SETTLE_S: Final = 0.5

_log = log.get("paths")


class Paths:
    """The paths of one session, from Established to its end.

    All methods belong to the hub's thread.

    Attributes:
        switches: moves between WSS and UDP.
        pings: over UDP, for those who wait for an answer.
    """

    def __init__(
        self,
        session: Session,
        cipher: str,
        port: UdpPort,
        traversal: Traversal,
        *,
        toward: Address,
        peer: str,
        hole_punch_timeout_s: float,
        clock: Callable[[], float],
        send_control: Callable[[Candidates | PunchNow], bool],
        receive_close: Callable[[int, bytes], None],
        on_change: Callable[[], None],
        recorder: Recorder = NOBODY,
    ) -> None:
        """Make the paths; nothing is sent before start().

        Args:
            cipher: of the session, which keeps it over rekeys.
            toward: address of the peer's end of the WSS link, with a zone where it is link-local.
            peer: name of the peer, for the log.
            clock: the one of the data plane's time stamps, seconds.
            send_control: sends a control record over WSS; False when there is no link.
            receive_close: takes key id and body of a close record.
            on_change: called after path or reason changed; must not wait.
        """
        self.switches = 0
        self.pings = Pings()
        self._stopwatch = Stopwatch(clock)
        self._question_came_at = 0.0
        self._session = session
        self._port = port
        self._traversal = traversal
        self._toward = toward
        self._peer = peer
        self._clock = clock
        self._send_control = send_control
        self._receive_close = receive_close
        self._on_change = on_change
        self._recorder = recorder
        self._number = session.number
        self._overhead = RECORD_OVERHEAD_BYTES[cipher]
        self._underlay = traversal.underlay
        self._ways_at = self._underlay.generation
        self._machine = PathMachine(
            clock(),
            random=os.urandom,
            hole_punch_timeout_s=hole_punch_timeout_s,
            link_mtu=ETHERNET_MTU,
            inside=self._underlay.inside,
            overhead=self._overhead,
        )
        self._told: tuple[Candidate, ...] | None = None
        self._used: tuple[Endpoint, int] | None = None
        self._diverted = False
        self._link_up = True
        self._used_at = 0.0
        self._too_long = self._refused_as_too_long()
        self._seen = self._look()
        self._wakeup = Alarm()
        self._wakeup.does(self._work)
        loop = gevent.get_hub().loop
        self._poll = loop.timer(ACTIVITY_POLL_S, ACTIVITY_POLL_S)
        self._slow_poll = loop.timer(QUIET_POLL_S, QUIET_POLL_S)
        self._stopped = False

    # --- what it shows ------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """What carries the frames: "udp" or "wss"."""
        return self._machine.path

    @property
    def reason(self) -> str:
        """Why, as one sentence for status."""
        return self._machine.reason

    @property
    def active(self) -> events.PathReport | None:
        """The UDP path that carries the frames, None on WSS."""
        return self._machine.active_report

    def report(self) -> tuple[events.PathReport, ...]:
        """Return what is known of each address of the peer, the active one first."""
        return self._machine.report()

    # --- inputs -------------------------------------------------------------------------------

    def start(self) -> None:
        """Tell the peer our addresses and begin to look for a path."""
        self._port.listen(self._number, self._on_signal)
        self._underlay.listen(self._wakeup.set)
        self._traversal.refresh("a peer is connected")
        self._announce()

    def stop(self) -> None:
        """The session ends: send nothing more. Idempotent."""
        if not self._stopped:
            self._stopped = True
            self._port.forget(self._number, self._on_signal)
            self._underlay.forget(self._wakeup.set)
            self._wakeup.stop()
            self._poll.close()
            self._slow_poll.close()
            # The session holds us and these lead back to it: in a cycle its keys, its descriptors
            # and what it has read would wait for the garbage collector.
            self._send_control, self._receive_close, self._on_change = _no_link, _ignore, _ignore

    def receive_control(self, message: Candidates | PunchNow) -> None:
        """Take a control record of the peer."""
        now = self._clock()
        if isinstance(message, control.Candidates):
            self._machine.set_candidates(with_link(message.candidates, self._toward), now)
        else:
            self._machine.punch(now)
        self._carry_out(now)

    def candidates_changed(self) -> None:
        """Tell the peer our addresses if they are others than it knows."""
        if not self._stopped and self._candidates() != self._told:
            self._announce()

    def network_changed(self) -> None:
        """Our addresses or routes changed."""
        if not self._stopped:
            now = self._clock()
            self._machine.network_changed(now)
            if self._used is not None:
                self._machine.set_link_mtu(self._link_mtu(self._used[0]), now)
            self._carry_out(now)

    def wss_lost(self) -> None:
        """The link is gone; UDP has to answer soon, or the session is over."""
        self._link_up = False
        now = self._clock()
        self._machine.wss_lost(now)
        self._carry_out(now)

    def disable(self, reason: str) -> None:
        """Use WSS for good."""
        now = self._clock()
        self._machine.disable(reason, now)
        self._carry_out(now)

    def ping(self, token: bytes) -> bool:
        """Send a probe along the UDP path that carries the frames; False when it cannot be."""
        to = self._machine.active
        if to is None:
            return False
        self._stopwatch.departs(token)
        return self._send(Inner.PROBE, control.encode_probe(token), to) == 0

    def send_close(self, body: bytes) -> None:
        """Say goodbye over UDP, for want of a link. It may be lost, so it is said twice."""
        to = self._machine.active
        if to is not None:
            for _ in range(2):
                self._send(Inner.CLOSE, body, to)

    # --- time and signals -----------------------------------------------------------------------

    def _work(self) -> None:
        """Do what is due, or what the data plane has to tell, and set the next time."""
        if self._stopped:
            return  # woken before that
        try:
            now = self._clock()
            self._look_at_ways(now)
            self._read_data_plane(now)
            self._machine.handle_timeout(now)
            self._carry_out(now)
            self._plan()
        except Exception:  # noqa: BLE001 - a path nobody watches is worse than none
            _log.exception("UDP is given up because of a bug", peer=self._peer)
            self._poll.stop()
            self._slow_poll.stop()
            self._session.use_wss()
            self._machine.disable(
                "UDP was given up because of a bug, the log has it", self._clock()
            )
            self._on_change()

    def _plan(self) -> None:
        """Look at the data plane as often as is right now, and do in time what the machine wants."""
        self._poll_as_the_path_wants()
        due = self._machine.next_timeout()
        self._wakeup.ring_in(None if due is None else due - self._clock())

    def _poll_as_the_path_wants(self) -> None:
        now = self._clock()
        quiet = now >= self._seen[0] + QUIET_AFTER_S
        if quiet or self.path != "udp":
            self._poll.stop()
        if not quiet or self.path != "udp":
            self._slow_poll.stop()
        if self.path == "udp" and not (self._poll.active or self._slow_poll.active):
            if quiet:  # at the ticks at which others look, too
                self._slow_poll.close()
                first_s = next_tick(now, QUIET_POLL_S) - now
                self._slow_poll = gevent.get_hub().loop.timer(first_s, QUIET_POLL_S)
            (self._slow_poll if quiet else self._poll).start(self._wake_on_activity)

    def _wake_on_activity(self) -> None:
        """Wake the greenlet if the data plane has something new to tell. Called by the loop.

        Most of the cost of an idle tunnel is here: waking the greenlet each time just to look
        is four times as much.
        """
        try:
            # What was only heard makes nothing due any earlier: it is looked at in time.
            (sent_at, _, too_long), before = self._look(), self._seen
            if (sent_at, too_long) == (before[0], before[2]):
                self._poll_as_the_path_wants()
                return
        except Exception:  # noqa: BLE001 - the greenlet meets it as well, and can do something
            self._poll.stop()
            self._slow_poll.stop()
        self._wakeup.set()

    def _look_at_ways(self, now: float) -> None:
        before, self._ways_at = self._ways_at, self._underlay.generation
        if before != self._ways_at:
            self._machine.ways_changed(now)

    def _look(self) -> tuple[float, float, int]:
        """Return when frames were last sent and heard over UDP, and how many were too long."""
        sent_at, heard_at = self._session.udp_activity()
        quiet = self._clock() >= sent_at + QUIET_AFTER_S
        # What was not sent was not too long; counting is the dearer half of a look.
        return sent_at, heard_at, self._too_long if quiet else self._refused_as_too_long()

    def _read_data_plane(self, now: float) -> None:
        if self.path != "udp":
            return
        self._seen = self._look()
        sent_at, heard_at, too_long = self._seen
        self._machine.data_sent(sent_at)
        self._machine.data_heard(heard_at)
        before, self._too_long = self._too_long, too_long
        if too_long == before or now < self._used_at + SETTLE_S:
            return
        active = self.active
        if active is not None and active.mtu is not None and active.mtu > MIN_UDP_PAYLOAD:
            self._machine.datagram_too_big(active.mtu, now)

    def _refused_as_too_long(self) -> int:
        """Trains of frames that our own kernel refused, perhaps for their length."""
        errors = self._session.plane.udp_errors()
        # EINVAL is what older kernels say of a segment that is longer than the interface's MTU.
        return errors["EMSGSIZE"] + errors["other"]

    def _on_signal(
        self,
        inner_type: int,
        body: bytes,
        size: int,
        source: Endpoint,
        key_id: int,
        came_at: float,
    ) -> None:
        """Something authenticated that is not a frame came over UDP, at `came_at`."""
        now = self._clock()
        try:
            match inner_type:
                case Inner.PROBE:
                    probe = control.decode_probe(body)
                    self._question_came_at = came_at
                    self._machine.probe_received(source, probe.token, size, now, timed=probe.timed)
                case Inner.PROBE_ANSWER:
                    answer = control.decode_probe_answer(body)
                    taken_s = self._stopwatch.stop(answer.token, came_at, answer.held_s)
                    self.pings.answered(answer.token, taken_s)
                    rtt_s = self._machine.answer_received(
                        source, answer.token, answer.seen, now, rtt_s=taken_s
                    )
                    if rtt_s is not None:
                        self._recorder.round_trip("udp", rtt_s)
                case Inner.CLOSE:
                    self._receive_close(key_id, body)
                case _:
                    self._machine.data_heard(now, source)
        except RemoteProtocolError as error:
            # Authenticated nonsense: the peer's bug. UDP has no connection that could be closed.
            _log.limited(60).warning(
                "a record over UDP was not understood",
                peer=self._peer,
                cause=error,
                remedy="bring both sides to the same version",
            )
        if not self._stopped:
            self._carry_out(now)

    # --- what the machine wants done --------------------------------------------------------------

    def _carry_out(self, now: float) -> None:
        while (event := self._machine.next_event()) is not None:
            match event:
                case events.SendProbe(endpoint, token, size):
                    self._probe(endpoint, token, size, now)
                case events.SendProbeAnswer(endpoint, probe):
                    # Asked and answered within one call: the question is the last one that came.
                    held_s = self._clock() - self._question_came_at
                    answer = control.answer_probe(probe, endpoint, held_s)
                    if answer is not None:
                        self._send(Inner.PROBE_ANSWER, answer, endpoint)
                case events.Refused(endpoint, what, why):
                    self._underlay.refused[what] += 1
                    _log.limited(60).warning(
                        "not sent", what=what, to=endpoint, peer=self._peer, cause=why,
                        remedy="none is needed while another path works; see `shadowmesh status`",
                    )  # fmt: skip
                case events.UsePath(path, endpoint, mtu):
                    self._use(path, endpoint, mtu, now)
                case events.PathChanged(before, after, reason):
                    self._tell(before, after, reason)
                case events.AskPunch(reason):
                    _log.debug("asking for a round of punching", peer=self._peer, reason=reason)
                    self._traversal.refresh(reason)
                    self._announce()
                case events.SeenAs(before, after):
                    _log.info("our address moved", peer=self._peer, before=before, after=after)
                    self._traversal.refresh("our address moved", older_than_s=MOVED_SPACING_S)
        self._divert()
        self._wakeup.set()

    def _announce(self) -> None:
        """Send our candidates and PUNCH_NOW, and begin a round ourselves."""
        self._told = self._candidates()
        if self._send_control(control.Candidates(self._told)):
            self._send_control(control.PunchNow())
        now = self._clock()
        self._machine.punch(now)
        self._carry_out(now)

    def _candidates(self) -> tuple[Candidate, ...]:
        return self._traversal.candidates(self._toward)

    def _probe(self, to: Endpoint, token: bytes, size: int, now: float) -> None:
        if not self._port.reaches(to):
            number = errno.EAFNOSUPPORT
        else:
            self._stopwatch.departs(token)
            number = self._send(Inner.PROBE, control.encode_probe(token, size), to)
        if number == errno.EMSGSIZE:
            self._machine.datagram_too_big(size + self._overhead, now)
        if number > 0:
            cause = os.strerror(number)
            self._machine.probe_not_sent(token, f"{to} cannot be probed: {cause}")

    def _send(self, inner_type: Inner, body: bytes, to: Endpoint) -> int:
        """Send one record over UDP; return 0, an errno, or -1 when it cannot be sealed."""
        try:
            number = self._session.send_udp_record(inner_type, body, str(to.address), to.port)
        except LocalProtocolError as error:
            _log.debug("record not sent", kind=inner_type.name, cause=error)
            return -1
        if number:
            cause = os.strerror(number)
            _log.debug("record not sent", kind=inner_type.name, to=to, cause=cause)
        return number

    def _use(self, path: str, to: Endpoint | None, mtu: int | None, now: float) -> None:
        before, self._used = self._used, None
        self._diverted = False
        if path == "wss" or to is None or mtu is None:
            self._session.use_wss()
            return
        self._used = to, max(mtu, MIN_UDP_PAYLOAD)
        self._used_at = now
        self._use_udp()
        if before is None or to != before[0]:
            self._machine.set_link_mtu(self._link_mtu(to), now)

    def _use_udp(self) -> None:
        assert self._used is not None
        to, payload_bytes = self._used
        self._session.use_udp(str(to.address), to.port, payload_bytes)

    def _divert(self) -> None:
        """Let frames take WSS while UDP is in serious doubt, and UDP again when it is not."""
        wanted = self._link_up and self._machine.suspect
        if wanted and not self._diverted:
            self._diverted = True
            self._session.use_wss()
        elif self._diverted and not wanted:
            self._diverted = False
            self._use_udp()

    def _link_mtu(self, to: Endpoint) -> int:
        """Return the MTU of the interface on the way to `to`, as far as frames may be long."""
        source = addresses.source_address(to.address)
        found = None if source is None else self._traversal.host().mtu_of(source)
        return min(found or ETHERNET_MTU, MAX_MTU)

    def _tell(self, before: str, after: str, reason: str) -> None:
        if before == after:
            _log.debug("path stays", peer=self._peer, path=after, reason=reason)
        else:
            if "wss" in (before, after):
                self.switches += 1
            self._recorder.record("path", "path changed", before=before, after=after, reason=reason)
            _log.info("path changed", peer=self._peer, before=before, after=after, reason=reason)
        self._on_change()


def _no_link(_message: Candidates | PunchNow) -> bool:
    """Send nothing: the session has ended."""
    return False


def _ignore(*what: object) -> None:
    """The call-back of an owner whose session has ended."""
