"""One session with a peer, from the upgraded socket to its end.

Owns: the seat in the data plane, the order in which the parts of a session begin and end, its
timers. Does not know: whether the session is wanted (its owner decides), the TAP, other sessions.

::

    link --bytes--> WssSide --> Keying --events--> Tunnel --> owner: authenticated, established,
                                  |                   |                 link_lost, ended
                                  '--> data plane     '--> Paths (UDP)

The session outlives its link while UDP carries the frames: it goes on under the keys it has until
they expire, UDP falls silent, or the owner replaces it by one over a new link (protocol section 7).

All methods belong to the hub's thread. The owner's methods are called through its post().
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import gevent

from shadowmesh._fastpath import Pipe, Session
from shadowmesh.base import log
from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import (
    WS_GOING_AWAY,
    WS_NORMAL,
    WS_POLICY,
    Abilities,
    Caps,
    CloseReason,
    Inner,
    RejectReason,
)
from shadowmesh.base.errors import REPORT_BUG
from shadowmesh.insight.events import NOBODY, Named
from shadowmesh.insight.peers import Pong
from shadowmesh.path.alarm import Alarm
from shadowmesh.path.paths import Paths
from shadowmesh.peer import endings
from shadowmesh.peer.endings import Ended
from shadowmesh.peer.hellos import Hellos
from shadowmesh.peer.keying import Keying
from shadowmesh.peer.probes import try_to_send
from shadowmesh.peer.wss import WssSide
from shadowmesh.wire import control
from shadowmesh.wire.session import events

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from shadowmesh._fastpath import DataPlane
    from shadowmesh.base.errors import LocalProtocolError
    from shadowmesh.insight.events import Recorder
    from shadowmesh.link.link import Upgraded
    from shadowmesh.path.traversal import Traversal
    from shadowmesh.peer.terms import Met, Terms
    from shadowmesh.wire.control import Address
    from shadowmesh.wire.handshake.agreement import HandshakeResult

#: a session that was replaced goes on receiving for so long: many round trips
LINGER_S: Final = 2.0
#: what we take
ABLE: Final = control.Able(Abilities.PACKED)

_log = log.get("tunnel")


class Owner(Protocol):
    """Whose session it is."""

    def post(self, message: Callable[[], None]) -> None:
        """Call `message` soon, in the order of the calls; the session does not wait for it."""

    def link_lost(self, tunnel: Tunnel) -> None:
        """The session goes on over UDP, but wants another link soon."""

    def link_stands(self, tunnel: Tunnel, stands: bool) -> None:
        """The link of an established session gets nowhere, or goes on after all."""

    def ended(self, tunnel: Tunnel, ended: Ended) -> None:
        """The link is closed and the keys are erased; told exactly once."""


class HandshakeOwner(Owner, Protocol):
    """Whose it is until the handshake is through; who takes it over makes itself the `owner`."""

    def authenticated(self, tunnel: Tunnel, result: HandshakeResult) -> None:
        """The peer has proved who it is. Who took the connection in says accept() or reject()."""


class DiallingOwner(HandshakeOwner, Protocol):
    """Who has dialled."""

    def established(self, tunnel: Tunnel) -> None:
        """The peer has accepted us; who has accepted it knows from accept()."""


class Tunnel:
    """One session, over one link and perhaps over UDP.

    Attributes:
        owner: whom the session tells; replaced by the peer that takes it in.
        initiator: we dialled.
        session: the seat and the keys in the data plane.
        wss: the link under it.
        paths: the UDP side; None before the session is established, and without UDP.
        started_at: when the handshake began, boot-time seconds.
        established_boottime: when the peer was taken in, or took us in; boot-time seconds, None
            before.
        result: of the last handshake, without its keys; None before the first.
        peer_certificate: what the peer has shown as a member, and was judged; empty in a pair.
        peer_abilities: Abilities of the peer, and bits that we do not know; 0 before it has told.
        rekeys, last_rekey_at: how many, and when; boot-time seconds.
    """

    def __init__(
        self,
        plane: DataPlane,
        upgraded: Upgraded,
        terms: Terms,
        owner: HandshakeOwner,
        *,
        hellos: Hellos | None = None,
        interface_mtu: Callable[[Address], int | None] = lambda _address: None,
        traversal: Traversal | None = None,
        recorder: Recorder = NOBODY,
    ) -> None:
        """Take over the socket; nothing happens before start().

        Args:
            owner: a DiallingOwner if we dialled.
            hellos: shared by all sessions of this daemon; None to be alone.
            interface_mtu: tells that of the interface that has an address of ours, if it knows.
            traversal: the UDP side of this host, None to stay on WSS.
        Raises:
            LocalProtocolError, OSError, MemoryError: no seat in the data plane, or no file
                descriptor or memory is left; the socket is still the caller's.
        """
        self.owner: Owner = owner
        self._met_by: Any = owner
        self.initiator = not upgraded.server
        self.started_at = boottime()
        self.established_boottime: float | None = None
        self.result: HandshakeResult | None = None
        self.peer_certificate = b""
        #: who hears what a judged member says about the network; None drops it
        self._met: Met | None = None
        self.peer_abilities = 0
        self.rekeys = 0
        self.last_rekey_at: float | None = None
        self.paths: Paths | None = None
        self._terms = terms
        self._traversal = traversal
        self._recorder = recorder
        self._ended: Ended | None = None
        self._concluding: gevent.Greenlet | None = None
        self._wakeup = Alarm()
        self.session = Session(plane)
        try:
            pipe = Pipe(plane, client=self.initiator)
            keying = Keying(
                self.session,
                pipe,
                terms,
                initiator=self.initiator,
                hellos=Hellos() if hellos is None else hellos,
                do=self._do,
                on_stuck=self._on_stuck,
                on_turn=self._wakeup.set,
            )
            self.wss = WssSide(
                upgraded,
                self.session,
                pipe,
                keying,
                terms,
                recorder,
                self._on_link_closed,
                interface_mtu,
            )
        except BaseException:
            self.session.close()
            raise
        # Not before: what they refer to refers back, and a failure must not wait for the collector.
        self._keying = keying
        self._wakeup.does(self._look_after, self._nothing_is_new)

    @property
    def peer_public_key(self) -> bytes | None:
        """The authenticated identity of the peer; None before message 2 or 3."""
        return None if self.result is None else self.result.peer_public_key

    @property
    def peer_name(self) -> str:
        """Address and port of the other end of the link, for people."""
        return self.wss.peer_name

    @property
    def link_error(self) -> str | None:
        """Why the link ended although the session goes on over UDP; None while it is up."""
        return self.wss.error

    @property
    def dialled_itself(self) -> bool:
        """Whether what we dialled is this daemon."""
        return self._keying.dialled_itself

    @property
    def judges(self) -> bool:
        """Whether the peer has to show a certificate: its frames are not wanted before that."""
        return self._terms.judge is not None

    @property
    def keys_expire_at(self) -> float | None:
        """When the keys that frames are sealed under end, boot-time seconds; None without any."""
        return self._keying.keys_expire_at

    @property
    def rekey_at(self) -> float | None:
        """When this side begins a rekey or asks for one, boot-time seconds; None: not planned."""
        return self._keying.rekey_at

    @property
    def over(self) -> bool:
        """The session is ending or has ended."""
        return self._ended is not None

    @property
    def age_s(self) -> float:
        """Seconds since the session was established; 0 before."""
        began = self.established_boottime
        return 0.0 if began is None else boottime() - began

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip over WSS, None before the first answer."""
        return self.wss.probes.rtt_s

    @property
    def path(self) -> str:
        """What carries the frames: "udp" or "wss"."""
        return "wss" if self.paths is None else self.paths.path

    # --- what its owner may ask ---------------------------------------------------------------

    def start(self) -> None:
        """Begin the handshake.

        Raises:
            LocalProtocolError: the terms cannot be kept; the socket is still the caller's.
        """
        try:
            self._keying.start(boottime())
        except BaseException:
            self.session.close()
            self.wss.pipe.close()
            raise
        self.wss.start()
        self._set_alarm()

    def called(self, name: str) -> None:
        """Name the one of several peers in the events to come; before it is established."""
        self._recorder = Named(self._recorder, name)

    def accept(self) -> bool:
        """Take the authenticated peer in; False when it is too late for that."""
        self._keying.accept(boottime())
        return self.established_boottime is not None and not self.over

    def reject(self, reason: RejectReason) -> None:
        """Refuse the authenticated peer, telling it why."""
        self._keying.reject(reason, boottime())

    def close(self, reason: CloseReason, detail: str, *, wait: bool = True) -> None:
        """End the session, telling the peer; returns when all is closed if `wait`.

        At most about 3 s; `detail` is for our own log and status.
        """
        first = not self.over
        self._finish(Ended(detail, "closed"))
        if first and self.link_error is not None and reason is not CloseReason.REPLACED:
            assert self.paths is not None
            self.paths.send_close(control.encode_close(reason))
        self._keying.close(reason, boottime())
        closing = self._close_link(WS_NORMAL)
        if wait:
            closing.join()

    def ping(self) -> Pong:
        """Measure one round trip over the path that carries the frames; waits for the answer."""
        paths = self.paths
        active = None if paths is None else paths.active
        if paths is not None and active is not None:
            rtt_s = paths.pings.round_trip(paths.ping)
            return Pong("udp", str(active.endpoint), rtt_s and rtt_s * 1000)
        rtt_s = self.wss.probes.ping()
        return Pong("wss", self.peer_name, rtt_s and rtt_s * 1000)

    def replace(self) -> None:
        """A newer session carries the frames: end this one.

        Not at once: the peer sends under the old keys until it knows of the new session.
        """
        detail = "replaced by a newer session"
        gevent.spawn_later(LINGER_S, self.close, CloseReason.REPLACED, detail, wait=False)

    def network_changed(self, held: Collection[Address]) -> None:
        """Our addresses or routes changed; these are the addresses that this host has now."""
        self.wss.network_changed(held)
        if self.paths is not None:
            self.paths.network_changed()

    # --- what the keys have to say ------------------------------------------------------------

    def _do(self, event: events.Event | events.JoiningEvent) -> None:
        match event:
            case events.Authenticated(result, certificate):
                self.result = result
                if self._judge(result, certificate):
                    self.owner.post(lambda: self._met_by.authenticated(self, result))
            case events.Established(result):
                self._establish(result)
            case events.Rekeyed(result):
                self.result = result
                self.rekeys += 1
                self.last_rekey_at = boottime()
                _log.debug("keys changed", peer=self.peer_name, rekeys=self.rekeys)
                self._recorder.record("rekey", "keys changed", rekeys=self.rekeys)
            case events.RekeyAborted(detail):
                _log.warning(
                    "rekey did not finish, trying again",
                    peer=self.peer_name,
                    cause=detail,
                    remedy="none is needed if the next one does; else look at the way to the peer",
                )
                self._recorder.record("rekey", "rekey did not finish", cause=detail)
            case events.Control(control.Able(bits)):
                self.peer_abilities = bits
                self.session.peer_takes(bits)
            case events.Control(message):
                if self.paths is not None:
                    self.paths.receive_control(message)
            case events.MeshMessage(body):
                if self._met is not None:
                    self._met.receive(body)
            case events.Reached(result):
                self._reached(result)
            case events.Asked(result, question):
                self.result = result
                assert self._terms.desk is not None
                answer = self._terms.desk.answer(question, result, self.wss.remote_address[0])
                self._keying.answer(answer, boottime())
            case events.Answered(answer):
                assert self._terms.asking is not None
                self._terms.asking.told(answer)
            case events.Finished(code):
                self._end(Ended("the machine that wants to join has its answer", "joined"), code)
            case events.PeerClosed(reason, text):
                self._end(endings.by_peer(reason, text), WS_NORMAL)
            case events.Failed(detail=detail, close_code=code, local=local, rejected=rejected):
                kind = "rejected" if rejected is not None else "timeout" if local else "refused"
                self._end(Ended(detail, kind, rejected=rejected), code)

    def _reached(self, result: HandshakeResult) -> None:
        """The relay by which we want to join has proved its key."""
        self.result = result
        assert self._terms.asking is not None
        question = self._terms.asking.question(result)
        if question is None:
            self.close(CloseReason.POLICY, "the relay is not asked", wait=False)
        else:
            self._keying.ask(question, boottime())

    def _judge(self, result: HandshakeResult, certificate: bytes) -> bool:
        """Look at the certificate of a member; False: it is refused, and the session ends.

        A responder that is taken may send before our owner hears of it, so the machine gets its
        answer here; who comes to us waits until the owner says accept().
        """
        judge = self._terms.judge
        if judge is None:
            return True
        unfit = judge(result, certificate)
        if unfit is None:
            self.peer_certificate = certificate
            if self.initiator:
                self._keying.accept(boottime())
            return True
        # No field `name`: the rate of a message is kept by that, and anybody may write one there.
        self._recorder.record(
            "network",
            "a member was refused by its certificate",
            peer=self.peer_name,
            cause=unfit.detail,
        )
        if self.initiator:
            self._finish(Ended(unfit.detail, "refused"))
            self._keying.close(CloseReason.POLICY, boottime())
            self._end(Ended(unfit.detail, "refused"), WS_POLICY)
        else:
            self._finish(Ended(unfit.detail, "rejected", rejected=unfit.reason))
            self._keying.reject(unfit.reason, boottime())
        return False

    def _on_stuck(self, error: LocalProtocolError) -> None:
        self._end(Ended(f"cannot send to the peer: {error}", "link_lost"), WS_GOING_AWAY)

    def _establish(self, result: HandshakeResult) -> None:
        now = boottime()
        self.result = result
        self.established_boottime = now
        self.wss.established(now)
        try_to_send(self.session, Inner.CONTROL, control.encode_control(ABLE))
        self._make_paths(result)
        if self._terms.meet is not None:
            self._met = self._terms.meet(self.peer_certificate, self.send_mesh, self.peer_name)
        if self.initiator:
            self.owner.post(lambda: self._met_by.established(self))
        self.wss.probes.send(now)

    # --- UDP ----------------------------------------------------------------------------------

    def _make_paths(self, result: HandshakeResult) -> None:
        traversal = self._traversal
        if traversal is None or traversal.port is None:
            return
        if not result.peer_caps & result.local_caps & Caps.UDP:
            return
        self.paths = Paths(
            self.session,
            result.cipher,
            traversal.port,
            traversal,
            toward=self.wss.far_end,
            peer=self.peer_name,
            hole_punch_timeout_s=self._terms.hole_punch_timeout_s,
            clock=boottime,
            send_control=self._send_control,
            receive_close=self._receive_close,
            on_change=self._on_path_change,
            recorder=self._recorder,
        )
        self.paths.start()

    def send_mesh(self, body: bytes) -> bool:
        """Send a record about the network, at most 2 KiB; False: there is no room or no link."""
        if self.over or self.link_error is not None:
            return False
        return try_to_send(self.session, Inner.MESH, body)

    def _send_control(self, message: control.Candidates | control.PunchNow) -> bool:
        if self.over or self.link_error is not None:
            return False
        return try_to_send(self.session, Inner.CONTROL, control.encode_control(message))

    def _receive_close(self, key_id: int, body: bytes) -> None:
        """The peer, having no link, ends the session over UDP."""
        self._keying.receive_record(key_id, Inner.CLOSE, body, boottime())

    def _on_path_change(self) -> None:
        if self.link_error is not None and self.path == "wss":
            detail = f"{self.link_error}; UDP is silent, too"
            self._end(Ended(detail, "link_lost"), WS_GOING_AWAY)

    # --- the end of the link, and of the session ----------------------------------------------

    def _on_link_closed(self, reason: str, code: int) -> None:
        if not self.over and self.path == "udp" and code in endings.LINK_ONLY:
            self._go_on_without_link(reason)
            return
        established = self.established_boottime is not None
        self._finish(endings.with_link(reason, code, established=established))
        self._conclude()

    def _go_on_without_link(self, reason: str) -> None:
        assert self.paths is not None
        self.wss.lost(reason)
        self._keying.link_lost(boottime())
        if not self.over:
            self.owner.post(lambda: self.owner.link_lost(self))
            # The peer may be gone altogether: then UDP falls silent within 2 s.
            self.paths.wss_lost()

    def _finish(self, ended: Ended) -> None:
        """Note why; the first reason counts."""
        if self._ended is None:
            self._ended = ended
            self.wss.ending = True

    def _end(self, ended: Ended, code: int) -> None:
        """Note why, and close the link; its end is ours."""
        self._finish(ended)
        self._wakeup.set()
        self._close_link(code)

    def _close_link(self, code: int) -> gevent.Greenlet:
        """Close the link, or end at once without one."""
        assert self._ended is not None
        if self.link_error is None:
            return self.wss.close(code, self._ended.detail)
        if self._concluding is None:
            self._concluding = gevent.spawn(self._conclude)
        return self._concluding

    def _conclude(self) -> None:
        """The end of everything; the link is closed."""
        self._wakeup.stop()
        if self.paths is not None:
            self.paths.stop()
        met, self._met = self._met, None
        if met is not None:
            met.left()
        # Who calls close() or accept() from now on is too late, and must not reach the session.
        self._keying.end(CloseReason.SHUTDOWN, boottime())
        ended = self._ended
        assert ended is not None
        self.owner.post(lambda: self.owner.ended(self, ended))

    # --- timers -------------------------------------------------------------------------------

    def _look_after(self) -> None:
        """Do what is due for the session and for the link, and set the next time."""
        try:
            if not self.over:
                self._check_deadlines(boottime())
                self._set_alarm()
        except Exception:  # noqa: BLE001 - without its timers a session is not safe
            _log.exception("session ended by a bug", peer=self.peer_name)
            self._end(Ended(f"internal error; {REPORT_BUG}", "closed"), WS_GOING_AWAY)

    def _set_alarm(self) -> None:
        deadlines = (self._keying.next_timeout(), self.wss.next_timeout())
        due = min((deadline for deadline in deadlines if deadline is not None), default=None)
        self._wakeup.ring_in(None if due is None else due - boottime())

    def _nothing_is_new(self) -> bool:
        """Whether what is due is a look that finds nothing new; sets the time of the next.

        Called by the loop, for with many sessions making a greenlet for each look is what an idle
        daemon would be busy with.
        """
        try:
            now = boottime()
            due = self._keying.next_timeout()
            if (due is not None and now >= due) or not self.wss.quiet(now):
                return False
            self._set_alarm()
        except Exception:  # noqa: BLE001 - the greenlet meets it as well, and can do something
            return False
        return True

    def _check_deadlines(self, now: float) -> None:
        self._keying.handle_timeout(now)
        if self.over:
            return
        if self.wss.overdue(now):
            self._end(Ended("the peer did not authenticate in time", "timeout"), WS_POLICY)
            return
        stands = self.wss.stands(now)
        if stands is not None:
            self.owner.post(lambda: self.owner.link_stands(self, stands))
        dead = self.wss.check(now)
        if dead is None:
            return
        if self.path == "udp":
            self.wss.cut(dead)
        else:
            self._finish(Ended(dead, "link_lost"))
            self._keying.close(CloseReason.TIMEOUT, now)
            self._end(Ended(dead, "link_lost"), WS_GOING_AWAY)
