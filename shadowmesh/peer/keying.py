"""The keys of one session: drives `wire.session`, and does in the data plane what that asks for.

Owns: the machine of the session, when its keys are installed, used and erased. Does not know: what
brings the bytes, who the peer may be, when the session is to end.

::

    messages, records, clock --> SessionMachine --events--> data plane: keys, records
                                                     '----> `do`: everything else

All methods belong to the hub's thread.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from shadowmesh.base.constants import (
    JOIN_MODE,
    KEY_BYTES,
    MEMBER_MODE,
    WS_HANDSHAKE_FAILED,
    CloseReason,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire.handshake.messages import wants_to_join
from shadowmesh.wire.session import events
from shadowmesh.wire.session.machine import SessionMachine

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh._fastpath import Pipe, Session
    from shadowmesh.base.constants import Inner, RejectReason
    from shadowmesh.peer.hellos import Hellos
    from shadowmesh.peer.terms import Terms
    from shadowmesh.wire.handshake.agreement import HandshakeResult
    from shadowmesh.wire.mesh.joining import Answer, JoiningMachine, Question

#: one for all: each would have the state of another generator in it, 2.5 KiB
_JITTER: Final = random.SystemRandom()
DIALLED_ITSELF: Final = events.Failed(
    "this daemon has dialled itself",
    WS_HANDSHAKE_FAILED,
    local=False,
    reason=CloseReason.POLICY,
)


def _ignore(_what: object) -> None:
    """The session is over: nobody is told any more."""


class Keying:
    """The machine and the keys of one session."""

    def __init__(
        self,
        session: Session,
        pipe: Pipe,
        terms: Terms,
        *,
        initiator: bool,
        hellos: Hellos,
        do: Callable[[events.Event | events.JoiningEvent], None],
        on_stuck: Callable[[LocalProtocolError], None],
        on_turn: Callable[[], None],
    ) -> None:
        """Nothing happens before start().

        Args:
            session, pipe: the seat and the link in the data plane; stay the caller's.
            hellos: the first messages of all dials of this daemon.
            do: carries out an event that is not about keys, messages or records; may call methods
                of this object, which then take effect behind what is queued.
            on_stuck: the link takes no more, or keys ran out meanwhile; what is left in the queue
                goes with the session.
            on_turn: something has happened, so next_timeout() may be another.
        """
        self._session = session
        self._pipe = pipe
        self._initiator = initiator
        self._hellos = hellos
        #: the first message, ours or the peer's; None before, empty once there are keys
        self._hello: bytes | None = None
        self._do_else = do
        self._on_stuck = on_stuck
        self._on_turn = on_turn
        self._terms = terms
        self._machine: SessionMachine | JoiningMachine = (
            SessionMachine(
                initiator,
                terms.policy,
                terms.offer,
                rotation_interval_s=terms.rotation_interval_s,
                reserve_key_id=session.reserve_key_id,
                release_key_id=session.retire,
                jitter=_JITTER.random,
                certificate=terms.certificate,
            )
            if terms.asking is None
            else self._conversation()
        )
        #: keys that are used from the next record on, which may be one that the machine sends
        self._switching: int | None = None
        self._bound = False
        self._carrying_out = False
        #: records that came before the peer was judged, as far as they are counted
        self._unjudged = 0

    @property
    def keys_expire_at(self) -> float | None:
        """When the keys that frames are sealed under end, boot-time seconds; None without any."""
        return self._session_machine.keys_expire_at

    @property
    def dialled_itself(self) -> bool:
        """Whether both ends of the session are this daemon."""
        return self._hello is not None and self._hellos.came_back(self._hello)

    @property
    def rekey_at(self) -> float | None:
        """When this side begins a rekey or asks for one, boot-time seconds; None: not planned."""
        return self._session_machine.rekey_at

    @property
    def _session_machine(self) -> SessionMachine:
        """The machine, where only that of a session can be meant."""
        assert isinstance(self._machine, SessionMachine)
        return self._machine

    def _conversation(self) -> JoiningMachine:
        """Return what speaks in place of a session's machine with who joins, or is joined."""
        # Not at the top: a pair needs neither it nor the library behind its messages.
        from shadowmesh.wire.mesh.joining import JoiningMachine

        return JoiningMachine(
            self._initiator,
            self._terms.to_join,
            self._terms.offer,
            reserve_key_id=self._session.reserve_key_id,
            release_key_id=self._session.retire,
        )

    # --- what happens to a session; `now` is boot-time seconds --------------------------------

    def start(self, now: float) -> None:
        """Begin the handshake.

        Raises:
            LocalProtocolError: the terms cannot be kept; nothing was sent.
        """
        self._machine.start(now)
        self._carry_out()

    def accept(self, now: float) -> None:
        """Take the authenticated peer in."""
        self._session_machine.accept(now)
        self._carry_out()

    def reject(self, reason: RejectReason, now: float) -> None:
        """Refuse the authenticated peer, telling it why."""
        self._session_machine.reject(reason, now)
        self._carry_out()

    def ask(self, question: Question, now: float) -> None:
        """Ask the relay that was reached to be let in."""
        assert not isinstance(self._machine, SessionMachine)
        self._machine.ask(question, now)
        self._carry_out()

    def answer(self, answer: Answer, now: float) -> None:
        """Answer who asked to be let in."""
        assert not isinstance(self._machine, SessionMachine)
        self._machine.answer(answer, now)
        self._carry_out()

    def close(self, reason: CloseReason, now: float) -> None:
        """Tell the peer that the session ends."""
        self._machine.close(reason, "", now)
        self._carry_out()

    def link_lost(self, now: float) -> None:
        """There is no link any more, and so no rekey."""
        self._machine.link_lost(now)
        self._carry_out()

    def receive_message(self, data: bytes, now: float) -> None:
        """Take a message from before the keys.

        Raises:
            RemoteProtocolError: it breaks a rule; what the machine says to that has been sent.
        """
        if self._hello is None:
            self._hello = data
            if self._hellos.is_own(data):
                self._do_else(DIALLED_ITSELF)
                return
            desk = self._terms.desk
            if desk is not None and wants_to_join(data) and desk.open:
                self._converse(now)
        try:
            self._machine.receive_message(data, now)
        except RemoteProtocolError:
            self._carry_out()
            raise
        self._carry_out()

    def _converse(self, now: float) -> None:
        """Whoever came wants to join, and there will be no session."""
        self._machine.close(CloseReason.DISCONNECT, "", now)
        while self._machine.next_event() is not None:
            pass
        self._machine = self._conversation()
        self._machine.start(now)

    def receive_record(self, key_id: int, inner_type: int, body: bytes, now: float) -> None:
        """Take a record that is not a frame.

        Raises:
            RemoteProtocolError: it breaks a rule; what the machine says to that has been sent.
        """
        try:
            self._machine.receive_record(key_id, inner_type, body, now)
        except RemoteProtocolError:
            self._carry_out()
            raise
        self._count_unjudged()
        self._carry_out()

    def _count_unjudged(self) -> None:
        if isinstance(self._machine, SessionMachine):
            fresh = self._machine.dropped_unjudged - self._unjudged
            if fresh:
                self._unjudged += fresh
                self._terms.dropped["unjudged"] += fresh

    def next_timeout(self) -> float | None:
        """When handle_timeout() is to be called, boot-time seconds."""
        return self._machine.next_timeout()

    def handle_timeout(self, now: float) -> None:
        """Rekey, give up or erase what is due."""
        if isinstance(self._machine, SessionMachine):
            self._machine.records_sealed(self._session.records_sealed(), now)
            self._machine.note_open_failures(self._session.open_failures(), now)
        self._machine.handle_timeout(now)
        self._carry_out()

    def end(self, reason: CloseReason, now: float) -> None:
        """Erase all keys; whatever is called from now on does nothing."""
        self._machine.close(reason, "", now)
        while self._machine.next_event() is not None:
            pass
        self._session.close()
        # They lead back here, and what is over must not wait for the collector.
        self._do_else = self._on_stuck = _ignore

    # --- what the machine wants done ----------------------------------------------------------

    def _carry_out(self) -> None:
        """Do what the machine has queued, in its order.

        Who is told something from here may call accept() or close(), which lead back here: the
        outer call then does what they queued, in turn.
        """
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            while (event := self._machine.next_event()) is not None:
                self._do(event)
            self._finish_switch()
        except LocalProtocolError as error:
            self._on_stuck(error)
        finally:
            self._carrying_out = False
        self._on_turn()

    def _do(self, event: events.Event | events.JoiningEvent) -> None:
        if self._switching is not None and not isinstance(event, events.SendRecord):
            self._finish_switch()
        match event:
            case events.SendMessage(data):
                if self._initiator and self._hello is None:
                    self._hello = data
                    self._hellos.sent(data)
                self._pipe.send_message(data)
            case events.SendRecord(inner_type, body):
                self._send(inner_type, body)
            case events.InstallKeys(result):
                self._install(result)
            case events.SendUnder(key_id):
                # The record that may follow has to be the first under the new keys.
                self._switching = key_id
            case events.RetireKeys(key_id):
                self._session.retire(key_id)
            case events.Established(result) if result.mode == MEMBER_MODE:
                self._session.hear_udp(result.local_key_id)
                self._do_else(event)
            case _:
                self._do_else(event)

    def _send(self, inner_type: Inner, body: bytes) -> None:
        if self._switching is not None:
            key_id, self._switching = self._switching, None
            self._session.send_under(key_id, inner_type, body)
        elif not self._pipe.closed:
            self._session.send_record(inner_type, body)

    def _finish_switch(self) -> None:
        if self._switching is not None:
            key_id, self._switching = self._switching, None
            self._session.send_under(key_id)

    def _install(self, result: HandshakeResult) -> None:
        keys = result.keys
        wss, udp = (keys.wss_i2r, keys.wss_r2i), (keys.udp_i2r, keys.udp_r2i)
        wss_tx, wss_rx = wss if result.initiator else wss[::-1]
        udp_tx, udp_rx = udp if result.initiator else udp[::-1]
        joins = result.mode == JOIN_MODE
        self._session.install(
            result.local_key_id,
            result.remote_key_id,
            result.cipher,
            wss_tx=wss_tx,
            wss_rx=wss_rx,
            # Who joins has no keys for UDP.
            udp_tx=bytes(KEY_BYTES) if joins else udp_tx,
            udp_rx=bytes(KEY_BYTES) if joins else udp_rx,
            peer_mtu_bytes=result.peer.tap_mtu,
            peer_caps=result.peer_caps,
            # A member is not heard over UDP before it is judged (mesh-rules A3).
            udp=not joins and (result.mode != MEMBER_MODE or self._session_machine.established),
        )
        if not self._bound:
            self._bound = True
            self._hello = b""
            self._session.bind(self._pipe)
