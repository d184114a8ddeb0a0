"""One session with the peer: the shell around `wire.session`.

Owns: the seat and the keys in the data plane, the pipe, the link, the paths and the timers of one
session, from the upgraded socket to its end. Does not know: whether the session is wanted
(`manager` decides), the TAP, other sessions.

::

    link --events--> machine (wire.session) --events--> data plane: keys; link: records
                     probes, liveness                   owner: on_authenticated, on_established,
                                                               on_link_lost, on_ended

The session outlives its link while UDP carries the frames: it goes on under the keys it has until
they expire, UDP falls silent, or the owner replaces it by one over a new link (protocol section 7).

All methods belong to the hub's thread. The call-backs of the owner must not wait.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import gevent
from gevent.event import Event as Wakeup

from shadowmesh._fastpath import Pipe, Session
from shadowmesh.base import log
from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import (
    WS_ABNORMAL,
    WS_GOING_AWAY,
    WS_HANDSHAKE_FAILED,
    WS_NORMAL,
    WS_POLICY,
    Caps,
    CloseReason,
    Inner,
    RejectReason,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.insight.events import NOBODY
from shadowmesh.insight.status import Pong
from shadowmesh.link.link import Link, plain_address
from shadowmesh.path.paths import Paths
from shadowmesh.peer.probes import Probes, try_to_send
from shadowmesh.wire import control
from shadowmesh.wire.liveness import Dead, Liveness, SendKeepalive, SendProbe
from shadowmesh.wire.session import events
from shadowmesh.wire.session.machine import SessionMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from shadowmesh._fastpath import DataPlane
    from shadowmesh.insight.events import Recorder
    from shadowmesh.link.link import LinkEvent, Upgraded
    from shadowmesh.path.traversal import Traversal
    from shadowmesh.peer.terms import Terms
    from shadowmesh.wire.control import Address
    from shadowmesh.wire.handshake.agreement import HandshakeResult

#: a session on UDP that was replaced goes on receiving for so long: many round trips
LINGER_S: Final = 2.0
#: ends of a link that say nothing against the session
_LINK_ONLY: Final = (WS_ABNORMAL, WS_GOING_AWAY, WS_NORMAL)

_log = log.get("tunnel")


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a tunnel ended.

    Attributes:
        detail: one line for log and status.
        kind: one word for the counter of handshakes: `refused` (one side would not talk to the
            other), `rejected` (it said why), `timeout`, `link_lost`, `closed` (by us),
            `closed_by_peer`.
        rejected: the byte of REJECT, the peer's or our own; None without one.
        peer_reason: the CloseReason of the peer's close record; None without one.
    """

    detail: str
    kind: str
    rejected: int | None = None
    peer_reason: int | None = None


class Tunnel:
    """One session, over one link and perhaps over UDP.

    Attributes:
        initiator: we dialled.
        local_address: IP address of our end of the link.
        started_at: when the handshake began, boot-time seconds.
        established_at: wall-clock seconds, None before.
        result: of the last handshake, without its keys; None before the first.
        probes: of the link, with its round trip.
        paths: of the session; None before it is established, and without UDP.
        link_error: why the link ended although the session goes on over UDP; None while it is up.
    """

    def __init__(
        self,
        plane: DataPlane,
        upgraded: Upgraded,
        terms: Terms,
        *,
        on_authenticated: Callable[[Tunnel, HandshakeResult], None],
        on_established: Callable[[Tunnel], None],
        on_link_lost: Callable[[Tunnel], None],
        on_ended: Callable[[Tunnel, Ended], None],
        traversal: Traversal | None = None,
        recorder: Recorder = NOBODY,
    ) -> None:
        """Take over the socket; nothing happens before start().

        Args:
            on_authenticated: the responder's owner answers with accept() or reject(), at once or
                later; the initiator's owner may close().
            on_established: the peer has accepted us; a responder's owner knows it from accept().
            on_link_lost: the session goes on over UDP, but wants another link soon.
            on_ended: called exactly once, after the link is closed and the keys are erased.
            traversal: the UDP side of this host, None to stay on WSS.
        Raises:
            LocalProtocolError, OSError: no seat in the data plane, or no file descriptor is
                left; the socket is still the caller's.
        """
        self.initiator = not upgraded.server
        self.remote_address = upgraded.remote_address
        self.local_address = plain_address(upgraded.sock.getsockname())[0]
        self.started_at = boottime()
        self.established_at: float | None = None
        self.established_boottime: float | None = None
        self.result: HandshakeResult | None = None
        self.rekeys = 0
        self.last_rekey_at: float | None = None
        self.paths: Paths | None = None
        self.link_error: str | None = None
        self._traversal = traversal
        self._recorder = recorder
        self._on_authenticated = on_authenticated
        self._on_established = on_established
        self._on_link_lost = on_link_lost
        self._on_ended = on_ended
        self._release = upgraded.release
        self._authenticate_by = boottime() + upgraded.authenticate_by - time.monotonic()
        self._ended: Ended | None = None
        self._switching: int | None = None
        self._carrying_out = False
        self._concluding: gevent.Greenlet | None = None
        self._liveness: Liveness | None = None
        self._wakeup = Wakeup()
        self._terms = terms
        self.session = Session(plane)
        self.probes = Probes(self.session, recorder)
        try:
            self.pipe = Pipe(plane, client=self.initiator)
        except BaseException:
            self.session.close()
            raise
        self._machine = SessionMachine(
            self.initiator,
            terms.policy,
            terms.offer,
            rotation_interval_s=terms.rotation_interval_s,
            reserve_key_id=self.session.reserve_key_id,
            release_key_id=self.session.retire,
            jitter=random.SystemRandom().random,
        )
        self.link = Link(
            upgraded,
            self.pipe,
            on_events=self._on_link_events,
            on_closed=self._on_link_closed,
            write_timeout_s=terms.write_timeout_s,
        )
        self._timers = gevent.Greenlet(self._run_timers)

    @property
    def peer_public_key(self) -> bytes | None:
        """The authenticated identity of the peer; None before message 2 or 3."""
        return None if self.result is None else self.result.peer_public_key

    @property
    def peer_name(self) -> str:
        """Address and port of the other end of the link, for people."""
        host, port = self.remote_address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def keys_expire_at(self) -> float | None:
        """When the keys that frames are sealed under end, boot-time seconds; None without any."""
        return self._machine.keys_expire_at

    @property
    def rekey_at(self) -> float | None:
        """When this side begins a rekey or asks for one, boot-time seconds; None: not planned."""
        return self._machine.rekey_at

    @property
    def over(self) -> bool:
        """The session is ending or has ended."""
        return self._ended is not None

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip over WSS, None before the first answer."""
        return self.probes.rtt_s

    @property
    def path(self) -> str:
        """What carries the frames: "udp" or "wss"."""
        return "wss" if self.paths is None else self.paths.path

    def start(self) -> None:
        """Begin the handshake.

        Raises:
            LocalProtocolError: the terms cannot be kept; the socket is still the caller's.
        """
        try:
            self._machine.start(boottime())
        except BaseException:
            self.session.close()
            self.pipe.close()
            raise
        self._carry_out()
        self.link.start()
        self._timers.start()

    def accept(self) -> bool:
        """Take the authenticated peer in; False when it is too late for that."""
        self._machine.accept(boottime())
        self._carry_out()
        return self.established_at is not None and not self.over

    def reject(self, reason: RejectReason) -> None:
        """Refuse the authenticated peer, telling it why."""
        self._machine.reject(reason, boottime())
        self._carry_out()

    def close(self, reason: CloseReason, detail: str, *, wait: bool = True) -> None:
        """End the session, telling the peer; returns when all is closed if `wait`.

        At most about 3 s; `detail` is for our own log and status.
        """
        first = not self.over
        self._finish(Ended(detail, "closed"))
        if first and self.link_error is not None and reason is not CloseReason.REPLACED:
            assert self.paths is not None
            self.paths.send_close(control.encode_close(reason))
        self._machine.close(reason, "", boottime())
        self._carry_out()
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
        rtt_s = self.probes.ping()
        return Pong("wss", self.peer_name, rtt_s and rtt_s * 1000)

    def replace(self) -> None:
        """A newer session carries the frames: end this one.

        On UDP not at once: the peer sends under the old keys until it knows of the new session.
        """
        detail = "replaced by a newer session"
        if self.path == "wss":
            self.close(CloseReason.REPLACED, detail, wait=False)
        else:
            gevent.spawn_later(LINGER_S, self.close, CloseReason.REPLACED, detail, wait=False)

    def network_changed(self, held: Collection[Address]) -> None:
        """Our addresses or routes changed; these are the addresses that this host has now."""
        if self.link_error is None and held and ip_address(self.local_address) not in held:
            # TCP would take many minutes to notice that nothing can come to that address.
            gevent.spawn(self.link.close, WS_GOING_AWAY, f"{self.local_address} is gone")
        if self.paths is not None:
            self.paths.network_changed()

    # --- from the link and the clock ----------------------------------------------------------

    def _on_link_events(self, link_events: Sequence[LinkEvent]) -> None:
        now = boottime()
        for event in link_events:
            try:
                if event[0] == "message":
                    self._machine.receive_message(event[1], now)
                else:
                    _, key_id, inner_type, body = event
                    if inner_type in (Inner.PROBE, Inner.PROBE_ANSWER):
                        self._take_probe(inner_type, body, now)
                        inner_type, body = Inner.PADDING, b""
                    self._machine.receive_record(key_id, inner_type, body, now)
            except RemoteProtocolError:
                # What the machine wants to say before the end, and why in its own words.
                self._carry_out()
                raise
            self._carry_out()

    def _on_link_closed(self, reason: str, code: int) -> None:
        if not self.over and self.path == "udp" and code in _LINK_ONLY:
            self._go_on_without_link(reason)
            return
        self._finish(_ended_with_link(reason, code, established=self.established_at is not None))
        self._conclude()

    def _go_on_without_link(self, reason: str) -> None:
        assert self.paths is not None
        self.link_error = reason
        self._liveness = None
        self._machine.link_lost(boottime())
        self._carry_out()
        if not self.over:
            self._on_link_lost(self)
            # The peer may be gone altogether: then UDP falls silent within 2 s.
            self.paths.wss_lost()

    def _on_path_change(self) -> None:
        if self.link_error is not None and self.path == "wss":
            detail = f"{self.link_error}; UDP is silent, too"
            self._end(Ended(detail, "link_lost"), WS_GOING_AWAY)

    def _conclude(self) -> None:
        """The end of everything; the link is closed."""
        self._timers.kill()
        if self.paths is not None:
            self.paths.stop()
        # Who calls close() or accept() from now on is too late, and must not reach the session.
        self._machine.close(CloseReason.SHUTDOWN, "", boottime())
        while self._machine.next_event() is not None:
            pass
        self.session.close()
        assert self._ended is not None
        self._on_ended(self, self._ended)

    def _run_timers(self) -> None:
        """Drive the deadlines of the session and of the link; ends with either."""
        try:
            while not self.over:
                due = self._next_deadline()
                self._wakeup.clear()
                self._wakeup.wait(None if due is None else max(0.0, due - boottime()))
                if not self.over:
                    self._check_deadlines(boottime())
        except gevent.GreenletExit:
            return  # as the greenlet's value it would hold this stack, and with it the session
        except Exception as error:  # noqa: BLE001 - without its timers a session is not safe
            _log.exception("session ended by a bug", peer=self.peer_name)
            self._end(Ended(f"internal error: {error!r}", "closed"), WS_GOING_AWAY)

    def _next_deadline(self) -> float | None:
        deadlines = [self._machine.next_timeout()]
        if self._liveness is not None:
            deadlines.append(self._liveness.next_timeout())
        elif self.established_at is None:
            deadlines.append(self._authenticate_by)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _check_deadlines(self, now: float) -> None:
        self._machine.records_sealed(self.session.records_sealed(), now)
        self._machine.handle_timeout(now)
        self._carry_out()
        if self.over:
            return
        if self._liveness is not None:
            self._check_liveness(self._liveness, now)
        elif self.established_at is None and now >= self._authenticate_by:
            self._end(Ended("the peer did not authenticate in time", "timeout"), WS_POLICY)

    def _check_liveness(self, liveness: Liveness, now: float) -> None:
        data_sent_at, heard_at = self.session.activity()
        for action in liveness.check(now, data_sent_at=data_sent_at, heard_at=heard_at):
            match action:
                case SendKeepalive() | SendProbe():
                    # A probe keeps alive as well as padding does, and measures the round trip.
                    self.probes.send(now)
                case Dead(reason) if self.path == "udp":
                    self._liveness = None
                    gevent.spawn(self.link.close, WS_GOING_AWAY, reason)
                case Dead(reason):
                    self._finish(Ended(reason, "link_lost"))
                    self._machine.close(CloseReason.TIMEOUT, "", now)
                    self._carry_out()
                    self._end(Ended(reason, "link_lost"), WS_GOING_AWAY)

    # --- what the machine wants done ----------------------------------------------------------

    def _carry_out(self) -> None:
        """Do what the machine has queued, in its order.

        An owner called from here may call accept() or close(), which lead back here: the outer
        call then does what they queued, in turn.
        """
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            while (event := self._machine.next_event()) is not None:
                self._do(event)
            self._finish_switch()
        except LocalProtocolError as error:
            # The ring is full of frames that the peer does not take, or keys ran out meanwhile.
            # What is left in the queue goes with the session.
            self._end(Ended(f"cannot send to the peer: {error}", "link_lost"), WS_GOING_AWAY)
        finally:
            self._carrying_out = False
        self._wakeup.set()

    def _do(self, event: events.Event) -> None:
        if self._switching is not None and not isinstance(event, events.SendRecord):
            self._finish_switch()
        match event:
            case events.SendMessage(data):
                self.pipe.send_message(data)
            case events.SendRecord(inner_type, body):
                if self._switching is not None:
                    key_id, self._switching = self._switching, None
                    self.session.send_under(key_id, inner_type, body)
                elif not self.pipe.closed:
                    self.session.send_record(inner_type, body)
            case events.InstallKeys(result):
                self._install(result)
            case events.SendUnder(key_id):
                # The record that may follow has to be the first under the new keys.
                self._switching = key_id
            case events.RetireKeys(key_id):
                self.session.retire(key_id)
            case events.Authenticated(result):
                self.result = result
                self._on_authenticated(self, result)
            case events.Established(result):
                self._establish(result)
            case events.Rekeyed(result):
                self.result = result
                self.rekeys += 1
                self.last_rekey_at = time.time()
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
            case events.Control(message):
                if self.paths is not None:
                    self.paths.receive_control(message)
            case events.PeerClosed(reason, text):
                self._end_by_peer(reason, text)
            case events.Failed(detail=detail, close_code=code, local=local, rejected=rejected):
                kind = "rejected" if rejected is not None else "timeout" if local else "refused"
                self._end(Ended(detail, kind, rejected=rejected), code)

    def _finish_switch(self) -> None:
        if self._switching is not None:
            key_id, self._switching = self._switching, None
            self.session.send_under(key_id)

    def _install(self, result: HandshakeResult) -> None:
        keys = result.keys
        send, receive = (keys.wss_i2r, keys.wss_r2i), (keys.udp_i2r, keys.udp_r2i)
        wss_tx, wss_rx = send if result.initiator else send[::-1]
        udp_tx, udp_rx = receive if result.initiator else receive[::-1]
        self.session.install(
            result.local_key_id,
            result.remote_key_id,
            result.cipher,
            wss_tx=wss_tx,
            wss_rx=wss_rx,
            udp_tx=udp_tx,
            udp_rx=udp_rx,
            peer_mtu_bytes=result.peer.tap_mtu,
            peer_caps=result.peer_caps,
        )
        if self.established_at is None:
            self.session.bind(self.pipe)

    def _establish(self, result: HandshakeResult) -> None:
        now = boottime()
        self._release()
        self.result = result
        self.established_at = time.time()
        self.established_boottime = now
        self._liveness = Liveness(self._terms.keepalive_interval_s, self._terms.read_timeout_s, now)
        self._make_paths(result)
        if self.initiator:
            self._on_established(self)
        self.probes.send(now)

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
            toward=ip_address(self.remote_address[0].partition("%")[0]),
            peer=self.peer_name,
            hole_punch_timeout_s=self._terms.hole_punch_timeout_s,
            clock=boottime,
            send_control=self._send_control,
            receive_close=self._receive_close,
            on_change=self._on_path_change,
            recorder=self._recorder,
        )
        self.paths.start()

    def _send_control(self, message: control.Candidates | control.PunchNow) -> bool:
        if self.over or self.link_error is not None:
            return False
        return try_to_send(self.session, Inner.CONTROL, control.encode_control(message))

    def _receive_close(self, key_id: int, body: bytes) -> None:
        """The peer, having no link, ends the session over UDP."""
        self._machine.receive_record(key_id, Inner.CLOSE, body, boottime())
        self._carry_out()

    def _end_by_peer(self, reason: int, text: str) -> None:
        name = CloseReason(reason).name.lower() if reason in list(CloseReason) else str(reason)
        detail = f"the peer ended the session: {name}" + (f" ({text})" if text else "")
        self._end(Ended(detail, "closed_by_peer", peer_reason=reason), WS_NORMAL)

    def _finish(self, ended: Ended) -> None:
        """Note why; the first reason counts."""
        if self._ended is None:
            self._ended = ended

    def _end(self, ended: Ended, code: int) -> None:
        """Note why, and close the link; its end is ours."""
        self._finish(ended)
        self._wakeup.set()
        self._close_link(code)

    def _close_link(self, code: int) -> gevent.Greenlet:
        """Close the link, or end at once without one.

        In a greenlet of its own: closing waits, and the caller may be what it waits for.
        """
        assert self._ended is not None
        if self.link_error is None:
            return gevent.spawn(self.link.close, code, self._ended.detail)
        if self._concluding is None:
            self._concluding = gevent.spawn(self._conclude)
        return self._concluding

    def _take_probe(self, inner_type: int, body: bytes, now: float) -> None:
        if inner_type == Inner.PROBE_ANSWER:
            self.probes.answered(body, now)
        elif not self.over:
            host, port = self.remote_address
            self.probes.answer(body, control.Endpoint(ip_address(host.partition("%")[0]), port))


def _ended_with_link(reason: str, code: int, *, established: bool) -> Ended:
    """Say why a tunnel ended that did not end itself."""
    if code == WS_HANDSHAKE_FAILED and not established:
        return Ended("the peer refused the handshake", "refused")
    if code in (WS_ABNORMAL, WS_GOING_AWAY, WS_NORMAL) or established:
        return Ended(reason, "link_lost")
    return Ended(reason, "refused")
