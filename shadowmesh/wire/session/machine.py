"""One session: its first handshake, its rekeys, and how long each set of keys lives.

Owns: which handshake message is due, every deadline of protocol sections 4 and 7, and the names
(local key ids) of the keys of one session over one WSS link. Does not know: sockets, sealing,
frames, paths, clocks (`now` is CLOCK_BOOTTIME in seconds) or whom to accept (its owner does).

::

    initiator                                      responder
    start        SendMessage(msg1)  ----------->
                                    <-----------   SendMessage(msg2)
    SendMessage(msg3) InstallKeys Authenticated
                                    ----------->   Authenticated; the owner says accept():
                                                   InstallKeys SendUnder
                                    <-----------   SendRecord(ACCEPT) Established
    SendUnder Established

    a rekey: the same messages as records (inner type 6) under the current keys, no Authenticated
    SendRecord(msg3) InstallKeys    ----------->   InstallKeys SendUnder
                                    <===========   SendRecord(ACCEPT) Rekeyed
    SendUnder SendRecord(padding) Rekeyed
                                    ===========>   hears the new keys
    10 s later: RetireKeys                         10 s later: RetireKeys     ==== new keys

A session knows previous, current and next keys, never more. The link keeps order and loses
nothing, so a lost answer is only a late one: whoever gave up on a rekey may still see its
messages, and takes them for what they are instead of ending a session that a stopped process or
a full queue only delayed. The one rule behind it: keys that the peer may already send under stay
installed until the peer is known not to use them.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from shadowmesh.base.constants import (
    CLOSE_AFTER_FAILED,
    HANDSHAKE_MESSAGE_TIMEOUT_S,
    HANDSHAKE_TIMEOUT_S,
    KEY_LIFETIME_S,
    REKEY_AFTER_FAILED,
    REKEY_AFTER_RECORDS,
    REKEY_JITTER_S,
    REKEY_REQUEST_DELAY_S,
    UDP_OLD_KEY_S,
    WS_GOING_AWAY,
    WS_HANDSHAKE_FAILED,
    WS_NORMAL,
    WS_POLICY,
    CloseReason,
    Inner,
    RejectReason,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire import control
from shadowmesh.wire.handshake.machines import Initiator, Responder
from shadowmesh.wire.session.events import (
    Authenticated,
    Control,
    Established,
    Failed,
    PeerClosed,
    RekeyAborted,
    Rekeyed,
    SendMessage,
    SendRecord,
)
from shadowmesh.wire.session.key_table import KeyTable, without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shadowmesh.wire.handshake.agreement import Entropy, HandshakeResult, Offer, Policy
    from shadowmesh.wire.session.events import Event
    from shadowmesh.wire.session.key_table import Keys

#: pause after an aborted rekey; three attempts of 5 s still fit between a rotation_interval of
#: 120 s and the end of the keys at 180 s
REKEY_RETRY_S: Final = 10.0
#: a REKEY_REQUEST is ignored while the keys are younger, so that no peer keeps us rekeying
REKEY_REQUEST_MIN_AGE_S: Final = 10.0
#: place of the message number in a handshake header (protocol section 3)
_NUMBER_OFFSET: Final = 6


class _Due(Enum):
    """What a handshake waits for."""

    MSG1 = auto()
    MSG2 = auto()
    MSG3 = auto()
    OWNER = auto()
    ACCEPT = auto()


@dataclass(slots=True)
class _Attempt:
    """One handshake on its way."""

    due: _Due
    started_at: float
    step_at: float
    machine: Initiator | Responder | None = None
    #: reserved and not installed; 0 when there is none
    key_id: int = 0
    #: agreed, while the owner is asked
    result: HandshakeResult | None = None

    @property
    def deadline(self) -> float:
        """5 s per message, 10 s in all. Source: protocol section 4."""
        whole = self.started_at + HANDSHAKE_TIMEOUT_S
        if self.due is _Due.OWNER:
            return whole
        return min(whole, self.step_at + HANDSHAKE_MESSAGE_TIMEOUT_S)


class SessionMachine:
    """One session, either role. Bytes, records and `now` in; one ordered queue of events out.

    Carry out the events of next_event() one after another until it returns None, after every
    call, also after one that raised. There is one queue because order is what keeps frames: a
    handshake message goes out under the keys before SendUnder, what follows under those after
    it, and keys must be installed before the peer can have learned to use them. Local key ids
    name keys in both directions; records to the peer carry result.remote_key_id.

    A call that takes the peer's bytes raises RemoteProtocolError when they break the protocol;
    the queue then holds what is left to do and ends with Failed. Once the session is over every
    call is ignored.

    Args:
        initiator: whether we dialled.
        policy: handshake policy; its key_id_in_use is asked besides our own.
        offer: what we announce; its key_id is replaced in every handshake.
        rotation_interval_s: encryption.rotation_interval.
        reserve_key_id: returns a local key id, not 0, that nobody uses.
        release_key_id: takes back one that was reserved and never installed.
        entropy: where handshakes take their secrets; None is the system.
        jitter: returns a float in [0, 1).
    """

    def __init__(
        self,
        initiator: bool,
        policy: Policy,
        offer: Offer,
        *,
        rotation_interval_s: float,
        reserve_key_id: Callable[[], int],
        release_key_id: Callable[[int], None],
        jitter: Callable[[], float],
        entropy: Entropy | None = None,
    ) -> None:
        def in_use(key_id: int) -> bool:
            # Previous and next keys are retired before new ones are installed.
            current = self._keys.current
            taken = current is not None and current.result.remote_key_id == key_id
            return taken or policy.key_id_in_use(key_id)

        self.initiator = initiator
        self._policy = replace(policy, key_id_in_use=in_use)
        self._offer = offer
        self._rotation_interval_s = rotation_interval_s
        self._reserve_key_id = reserve_key_id
        self._release_key_id = release_key_id
        self._jitter = jitter
        self._entropy = entropy

        self._events: deque[Event] = deque()
        self._started = False
        self._over = False
        self._link_up = True
        self._attempt: _Attempt | None = None
        #: the next keys exist at the initiator only, and outlive the attempt that made them
        self._keys = KeyTable(self._emit)
        #: initiator: handshakes given up before their message 2 came, oldest first
        self._abandoned: deque[Initiator] = deque()
        #: responder: a message 3 may still come for a rekey that was given up
        self._late_msg3 = False
        #: initiator: when to start a rekey; responder: when to ask for one
        self._rekey_at: float | None = None
        #: these keys already reached a limit that asks for a rekey
        self._worn = False

    # --- what the owner sees ------------------------------------------------------------------

    @property
    def established(self) -> bool:
        """Whether frames may pass now."""
        return self._keys.current is not None

    @property
    def over(self) -> bool:
        """Whether the session has ended; what is left in the queue still has to be done."""
        return self._over

    @property
    def keys_expire_at(self) -> float | None:
        """When the keys that frames are sealed under end; None without any."""
        current = self._keys.current
        return None if current is None else current.expires_at

    @property
    def rekey_at(self) -> float | None:
        """When we start a rekey or, as the responder, ask for one; None when none is planned."""
        return self._rekey_at

    @property
    def key_ids(self) -> tuple[int, ...]:
        """Local ids of the installed keys, at most three."""
        return tuple(keys.local_key_id for keys in self._keys.live())

    def next_event(self) -> Event | None:
        """Return what to do or know next, None when there is nothing."""
        return self._events.popleft() if self._events else None

    def next_timeout(self) -> float | None:
        """Return when handle_timeout() is due, None once the session is over."""
        if self._over:
            return None
        due = self._keys.deadlines()
        if self._attempt is not None:
            due.append(self._attempt.deadline)
        elif self._rekey_at is not None:
            due.append(self._rekey_at)
        return min(due, default=None)

    # --- the owner's wishes -------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin: the initiator sends message 1, the responder waits for it."""
        if self._started:
            raise LocalProtocolError("the session was started before")
        self._started = True
        if self.initiator:
            self._send_msg1(now)
        else:
            self._attempt = _Attempt(_Due.MSG1, now, now)

    def accept(self, now: float) -> None:
        """Take the authenticated initiator in; the responder's answer to Authenticated."""
        if self._install_first(now):
            self._emit(SendRecord(Inner.CONTROL, control.encode_control(control.Accept())))
            self._emit_result(Established)
            self._schedule()

    def reject(self, reason: RejectReason, now: float) -> None:
        """Refuse the authenticated initiator, telling it why; the session is over."""
        if self._install_first(now):
            self._emit(SendRecord(Inner.CONTROL, control.encode_control(control.Reject(reason))))
            self._fail(
                f"peer rejected: {reason.name.lower()}",
                WS_POLICY,
                reason=CloseReason.POLICY,
                rejected=reason,
            )

    def close(self, reason: CloseReason, text: str, now: float) -> None:
        """End the session, telling the peer if it can be told. No Failed event follows."""
        self._expire(now)
        if not self._over:
            self._end(reason, text)

    def link_lost(self, now: float) -> None:
        """Go on without WSS: no more rekeys and records, but keys still expire (UDP goes on).

        Before Established it is the end. Source: protocol section 7, last sentence.
        """
        self._expire(now)
        if self._over:
            return
        self._link_up = False
        if self._keys.current is None:
            self._fail("link lost during the handshake", WS_GOING_AWAY, reason=CloseReason.TIMEOUT)
            return
        self._drop_attempt()
        self._abandoned.clear()
        self._rekey_at = None

    def records_sealed(self, count: int, now: float) -> None:
        """Note how many records were sealed under the current keys; 2^60 ask for a rekey."""
        if count >= REKEY_AFTER_RECORDS:
            self._wear_out(now)

    def note_open_failures(self, count: int, now: float) -> None:
        """Note how many AEADs failed under one key: 2^20 ask for a rekey, 2^36 end the session."""
        if count >= CLOSE_AFTER_FAILED:
            self._expire(now)
            if not self._over:
                self._fail(
                    f"{count} records failed to open under one key",
                    WS_POLICY,
                    reason=CloseReason.POLICY,
                    tell=True,
                )
        elif count >= REKEY_AFTER_FAILED:
            self._wear_out(now)

    # --- input from the peer and the clock ----------------------------------------------------

    def receive_message(self, data: bytes, now: float) -> None:
        """Take a binary WebSocket message, which can only be a handshake's.

        Raises:
            RemoteProtocolError: refused or unsolicited; the session is over.
            LocalProtocolError: called before start().
        """
        if not self._started:
            raise LocalProtocolError("a message came before start()")
        self._expire(now)
        if self._over:
            return
        with self._judging():
            if self._keys.live():
                raise RemoteProtocolError("a bare message after keys were agreed")
            self._receive_handshake(data, now)

    def receive_record(self, key_id: int, inner_type: int, body: bytes, now: float) -> None:
        """Take an opened record that is not a frame.

        Args:
            key_id: the local key id under which it was opened. One that is no longer live is
                ignored: it was retired after the record had been opened.
            inner_type: HANDSHAKE, CONTROL and CLOSE are read; others only tell that the peer
                uses these keys, so hand over padding too (probes may be).
            body: the record without its inner type.
        Raises:
            RemoteProtocolError: refused or unsolicited; the session is over.
        """
        self._expire(now)
        keys = self._keys.find(key_id)
        if self._over or keys is None:
            return
        if keys is self._keys.current:
            self._keys.retire_previous_at(now + UDP_OLD_KEY_S)
        with self._judging():
            if inner_type == Inner.CLOSE:
                close = control.decode_close(body)
                self._clear()
                self._emit(PeerClosed(close.reason, close.text))
            elif not self._link_up:
                return  # read before the link broke; an answer could not be sent
            elif inner_type == Inner.HANDSHAKE:
                self._receive_handshake_record(keys, body, now)
            elif inner_type == Inner.CONTROL:
                self._receive_control(keys, control.decode_control(body), now)

    def handle_timeout(self, now: float) -> None:
        """Do what is due; harmless when called early or late."""
        self._expire(now)
        if self._over:
            return
        if self._attempt is not None:
            if now >= self._attempt.deadline:
                self._give_up(self._attempt, now)
        elif self._rekey_at is not None and now >= self._rekey_at:
            if self.initiator:
                self._send_msg1(now)
            else:
                self._rekey_at = now + REKEY_REQUEST_DELAY_S
                request = control.encode_control(control.RekeyRequest())
                self._emit(SendRecord(Inner.CONTROL, request))

    # --- handshake ----------------------------------------------------------------------------

    def _send_msg1(self, now: float) -> None:
        key_id = self._reserve_key_id()
        machine = Initiator(
            self._policy,
            replace(self._offer, key_id=key_id),
            self._prev_h(),
            entropy=self._entropy,
        )
        self._attempt = _Attempt(_Due.MSG2, now, now, machine, key_id)
        self._send_handshake(machine.first_message())

    def _receive_handshake_record(self, keys: Keys, body: bytes, now: float) -> None:
        if keys is self._keys.current:
            self._receive_handshake(body, now)
        elif keys is self._keys.previous and not self.initiator and _number(body) == 1:
            # The initiator gave up on the rekey that we have just finished, and began another
            # before our ACCEPT reached it. It will see that ACCEPT and take these keys.
            return
        else:
            raise RemoteProtocolError("handshake message under keys that are not the current ones")

    def _receive_handshake(self, data: bytes, now: float) -> None:
        number = _number(data)
        if self.initiator and number == 2:
            self._receive_msg2(data, now)
        elif not self.initiator and number == 1:
            self._receive_msg1(data, now)
        elif not self.initiator and number == 3:
            self._receive_msg3(data, now)
        else:
            role = "initiator" if self.initiator else "responder"
            raise RemoteProtocolError(f"handshake message {number} to the {role}")

    def _receive_msg1(self, data: bytes, now: float) -> None:
        attempt = self._attempt
        if self._keys.current is None:
            if attempt is None or attempt.due is not _Due.MSG1:
                raise RemoteProtocolError("a second message 1 in one handshake")
            started_at = attempt.started_at
        else:
            # A rekey that the initiator gave up on before our message 2 came is forgotten.
            self._drop_attempt()
            started_at = now
        self._late_msg3 = False
        key_id = self._reserve_key_id()
        machine = Responder(
            self._policy,
            replace(self._offer, key_id=key_id),
            self._prev_h(),
            entropy=self._entropy,
        )
        self._attempt = _Attempt(_Due.MSG3, started_at, now, machine, key_id)
        self._send_handshake(machine.receive_msg1(data))

    def _receive_msg2(self, data: bytes, now: float) -> None:
        # The link keeps order, so an answer to a handshake that was given up comes before the
        # answer to a later one. Which of them an answer is for, only its AEAD can tell.
        while self._abandoned:
            try:
                self._abandoned.popleft().receive_msg2(data)
            except RemoteProtocolError:
                continue  # that one was never answered
            return
        attempt = self._attempt
        if attempt is None or not isinstance(attempt.machine, Initiator):
            raise RemoteProtocolError("message 2 without a message 1")
        reply = attempt.machine.receive_msg2(data)
        result = attempt.machine.result
        self._check_same_peer(result)
        self._send_handshake(reply)
        # The responder began anew from the current keys, so it has neither finished the rekey
        # that made older next keys, nor does it use the previous ones.
        self._keys.offer(result, now)
        self._attempt = _Attempt(_Due.ACCEPT, attempt.started_at, now)
        if self._keys.current is None:
            self._emit(Authenticated(without_secrets(result)))

    def _receive_msg3(self, data: bytes, now: float) -> None:
        attempt = self._attempt
        if attempt is None or not isinstance(attempt.machine, Responder):
            if self._late_msg3:
                self._late_msg3 = False
                return
            raise RemoteProtocolError("message 3 without a message 2")
        result = attempt.machine.receive_msg3(data)
        self._check_same_peer(result)
        if self._keys.current is None:
            attempt.due, attempt.step_at = _Due.OWNER, now
            attempt.machine, attempt.result = None, result
            self._emit(Authenticated(without_secrets(result)))
            return
        self._attempt = None
        self._keys.offer(result, now)
        self._keys.confirm()
        self._emit(SendRecord(Inner.CONTROL, control.encode_control(control.Accept())))
        self._emit_result(Rekeyed)
        self._schedule()

    def _receive_accept(self, now: float) -> None:
        """Move to the next keys: the responder uses them."""
        # Before it sent this, the responder had answered every older attempt that it ever will;
        # an attempt begun since, because this came late, it ignores.
        self._drop_attempt()
        self._abandoned.clear()
        first = self._keys.current is None
        self._keys.confirm()
        if first:
            self._emit_result(Established)
        else:
            # Tells the responder that nothing more comes under the old keys.
            self._emit(SendRecord(Inner.PADDING, b""))
            self._emit_result(Rekeyed)
            self._keys.retire_previous_at(now + UDP_OLD_KEY_S)
        self._schedule()

    def _receive_control(
        self, keys: Keys, message: control.ControlMessage | None, now: float
    ) -> None:
        if message is None:
            return
        if keys is self._keys.next:
            if isinstance(message, control.Accept):
                self._receive_accept(now)
            elif isinstance(message, control.Reject):
                name = _reject_name(message.reason)
                self._fail(
                    f"peer rejected us: {name}",
                    WS_NORMAL,
                    local=False,
                    reason=CloseReason.POLICY,
                    rejected=message.reason,
                )
            else:
                raise RemoteProtocolError("another control record before ACCEPT")
        elif isinstance(message, control.Candidates | control.PunchNow):
            self._emit(Control(message))
        elif isinstance(message, control.RekeyRequest) and self.initiator:
            current = self._keys.current
            if current is not None and now - current.created_at >= REKEY_REQUEST_MIN_AGE_S:
                self._wear_out(now)
        else:
            raise RemoteProtocolError(f"unsolicited {type(message).__name__}")

    def _check_same_peer(self, result: HandshakeResult) -> None:
        current = self._keys.current
        if current is not None and current.result.peer_public_key != result.peer_public_key:
            raise RemoteProtocolError("a rekey came from another identity")

    def _give_up(self, attempt: _Attempt, now: float) -> None:
        """End a handshake that is past its deadline; the keys in use stay."""
        wanted = attempt.due.name.lower()
        if self._keys.current is None:
            self._fail(
                f"handshake timed out, {wanted} did not come",
                WS_HANDSHAKE_FAILED,
                reason=CloseReason.TIMEOUT,
            )
            return
        self._drop_attempt()
        if self.initiator:
            self._rekey_at = now + REKEY_RETRY_S
        else:
            self._late_msg3 = True
        self._emit(RekeyAborted(f"rekey timed out, {wanted} did not come"))

    def _drop_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        if attempt.key_id:
            self._release_key_id(attempt.key_id)
        if isinstance(attempt.machine, Initiator):
            self._abandoned.append(attempt.machine)

    # --- keys ---------------------------------------------------------------------------------

    def _prev_h(self) -> bytes:
        return bytes(32) if self._keys.current is None else self._keys.current.result.h

    def _install_first(self, now: float) -> bool:
        """Install and use what the first handshake agreed; False when it is too late for that."""
        self._expire(now)
        if self._over:
            return False
        attempt = self._attempt
        if attempt is None or attempt.result is None:
            raise LocalProtocolError("there is no authenticated peer to accept or reject")
        if now >= attempt.deadline:
            self._give_up(attempt, now)
            return False
        self._attempt = None
        self._keys.offer(attempt.result, attempt.step_at)
        self._keys.confirm()
        return True

    def _emit_result(self, event: type[Established | Rekeyed]) -> None:
        if self._keys.current is not None:
            self._emit(event(self._keys.current.result))

    def _schedule(self) -> None:
        """Plan the next rekey after a switch of keys."""
        current = self._keys.current
        if current is None:
            return
        self._worn = False
        due = current.created_at + self._rotation_interval_s
        if self.initiator:
            self._rekey_at = due + REKEY_JITTER_S * self._jitter()
        else:
            self._rekey_at = due + REKEY_REQUEST_DELAY_S

    def _wear_out(self, now: float) -> None:
        """Make the next rekey, or the request for one, due at once; once for each set of keys."""
        if self._rekey_at is not None and not self._worn:
            self._worn = True
            self._rekey_at = min(self._rekey_at, now)

    def _expire(self, now: float) -> None:
        """Retire what is 180 s old, before anything else looks at it."""
        if self._keys.current is not None and now >= self._keys.current.expires_at:
            self._fail(
                f"keys expired: no rekey within {KEY_LIFETIME_S:.0f} s",
                WS_GOING_AWAY,
                reason=CloseReason.KEYS_EXPIRED,
            )
        self._keys.retire_due(now)

    # --- the end ------------------------------------------------------------------------------

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """Run what reads the peer's bytes; a refusal ends the session."""
        try:
            yield
        except RemoteProtocolError as error:
            self._fail(
                str(error), error.close_code, local=False, reason=CloseReason.PROTOCOL, tell=True
            )
            raise

    def _fail(
        self,
        detail: str,
        close_code: int,
        *,
        reason: CloseReason,
        local: bool = True,
        rejected: int | None = None,
        tell: bool = False,
    ) -> None:
        if tell:
            self._end(reason, "")  # no detail: refusals look alike on the wire
        else:
            self._clear()
        self._emit(Failed(detail, close_code, local, reason, rejected))

    def _end(self, reason: CloseReason, text: str) -> None:
        if self._keys.current is not None and self._link_up:
            self._emit(SendRecord(Inner.CLOSE, control.encode_close(reason, text)))
        self._clear()

    def _clear(self) -> None:
        """Retire everything; only events are left of the session."""
        self._drop_attempt()
        self._keys.retire_all()
        self._abandoned.clear()
        self._rekey_at = None
        self._over = True

    def _send_handshake(self, data: bytes) -> None:
        if self._keys.current is None:
            self._emit(SendMessage(data))
        else:
            self._emit(SendRecord(Inner.HANDSHAKE, data))

    def _emit(self, event: Event) -> None:
        self._events.append(event)


def _number(message: bytes) -> int:
    """Return the number that a handshake message claims to have; 0 when it is too short."""
    return message[_NUMBER_OFFSET] if len(message) > _NUMBER_OFFSET else 0


def _reject_name(reason: int) -> str:
    try:
        return RejectReason(reason).name.lower()
    except ValueError:
        return f"reason {reason}"
