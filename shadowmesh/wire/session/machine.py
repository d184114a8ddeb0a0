"""One session: its first handshake, its rekeys, and how long each set of keys lives.

Owns: what follows from what, over one WSS link, and in which order: a message of the peer, a
deadline, a wish of the owner. Its parts know one thing each: `attempts` the handshake on its way,
`key_table` the keys that are installed, `rekey_timer` when the next rekey is due. Does not know:
sockets, sealing, frames, paths, clocks (`now` is CLOCK_BOOTTIME in seconds) or whom to accept (its
owner does). It is one module because every input may switch keys or end the session, and all of
them say so in one queue. Source: protocol sections 4 and 7.

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
    InstallKeys SendRecord(msg3)    ----------->   InstallKeys SendUnder
                                    <===========   SendRecord(ACCEPT) Rekeyed
    SendUnder SendRecord(padding) Rekeyed
                                    ===========>   hears the new keys
    10 s later: RetireKeys                         10 s later: RetireKeys     ==== new keys

    members (mode 7), after message 2: each side shows its certificate, and both owners judge
    SendMessage(msg3) InstallKeys   ----------->   InstallKeys
    SendUnder SendRecord(CERTIFICATE)
                                    ===========>   Authenticated; the owner says accept():
                                                   SendUnder
                                                   SendRecord(CERTIFICATE) SendRecord(ACCEPT)
                                    <===========   Established
    Authenticated; the owner says accept(): Established, whichever comes later, that or ACCEPT

Until then such a session is *unjudged* (mesh-rules A3): it reads ACCEPT, REJECT, CERTIFICATE and
close, and drops and counts everything else. A rekey shows no certificate again.

A session knows previous, current and next keys, never more. The link keeps order and loses
nothing, so a lost answer is only a late one: whoever gave up on a rekey may still see its
messages, and takes them for what they are instead of ending a session that a stopped process or
a full queue only delayed. The one rule behind it: keys that the peer may already send under stay
installed until the peer is known not to use them.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from shadowmesh.base.constants import (
    CLOSE_AFTER_FAILED,
    KEY_LIFETIME_S,
    MEMBER_MODE,
    UDP_OLD_KEY_S,
    WS_GOING_AWAY,
    WS_HANDSHAKE_FAILED,
    WS_NORMAL,
    WS_POLICY,
    CloseReason,
    ControlCode,
    Inner,
    RejectReason,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.base.rate import TokenBucket
from shadowmesh.wire import control
from shadowmesh.wire.session.attempts import Attempts
from shadowmesh.wire.session.events import (
    Authenticated,
    Control,
    Established,
    Failed,
    MeshMessage,
    PeerClosed,
    RekeyAborted,
    Rekeyed,
    SendMessage,
    SendRecord,
)
from shadowmesh.wire.session.key_table import KeyTable, without_secrets
from shadowmesh.wire.session.rekey_timer import RekeyTimer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shadowmesh.wire.handshake.agreement import Entropy, HandshakeResult, Offer, Policy
    from shadowmesh.wire.session.attempts import Attempt
    from shadowmesh.wire.session.events import Event
    from shadowmesh.wire.session.key_table import Keys

#: place of the message number in a handshake header (protocol section 3)
_NUMBER_OFFSET: Final = 6
#: handshake messages of a rekey that the peer may send, a second and at once: each costs us
#: operations with public keys
HANDSHAKE_RATE: Final = (1.0, 10)
#: control records that are read before the peer is judged
_BEFORE_JUDGED: Final = (ControlCode.ACCEPT, ControlCode.REJECT, ControlCode.CERTIFICATE)


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
        certificate: what we show to members, DER, at most 2,045 bytes; empty in a pair.
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
        certificate: bytes = b"",
    ) -> None:
        def in_use(key_id: int) -> bool:
            # Previous and next keys are retired before new ones are installed.
            current = self._keys.current
            taken = current is not None and current.result.remote_key_id == key_id
            return taken or policy.key_id_in_use(key_id)

        if policy.join:
            raise LocalProtocolError("who joins has a machine of its own, and never a session")
        self.initiator = initiator
        #: records that were dropped because they came before the peer was judged
        self.dropped_unjudged = 0
        self._member = policy.member
        self._certificate = certificate
        #: what the peer has shown
        self._peer_certificate = b""
        #: initiator, between members: its owner has said accept()
        self._accepts = False
        self._attempts = Attempts(
            replace(policy, key_id_in_use=in_use),
            offer,
            reserve_key_id=reserve_key_id,
            release_key_id=release_key_id,
            entropy=entropy,
        )
        self._rekey = RekeyTimer(initiator, rotation_interval_s, jitter)
        self._handshakes = TokenBucket(*HANDSHAKE_RATE)
        #: a list: few at a time, and an empty deque has half a KiB
        self._events: list[Event] = []
        self._started = False
        self._over = False
        self._link_up = True
        #: the next keys exist at the initiator only, and outlive the attempt that made them
        self._keys = KeyTable(self._emit)

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
        return self._rekey.due

    @property
    def key_ids(self) -> tuple[int, ...]:
        """Local ids of the installed keys, at most three."""
        return tuple(keys.local_key_id for keys in self._keys.live())

    def next_event(self) -> Event | None:
        """Return what to do or know next, None when there is nothing."""
        return self._events.pop(0) if self._events else None

    def next_timeout(self) -> float | None:
        """Return when handle_timeout() is due, None once the session is over."""
        if self._over:
            return None
        due = self._keys.deadlines()
        if self._attempts.current is not None:
            due.append(self._attempts.current.deadline)
        elif self._rekey.due is not None:
            due.append(self._rekey.due)
        return min(due, default=None)

    # --- the owner's wishes -------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin: the initiator sends message 1, the responder waits for it."""
        if self._started:
            raise LocalProtocolError("the session was started before")
        if self._member:
            control.encode_control(control.Certificate(self._certificate))  # can it be shown?
        self._started = True
        if self.initiator:
            self._send_msg1(now)
        else:
            self._attempts.wait_for_msg1(now)

    def accept(self, now: float) -> None:
        """Take the authenticated peer in: the answer to Authenticated.

        The responder's, and between members the initiator's as well, which is then established
        once the responder has accepted it too.
        """
        if self.initiator and self._peer_certificate:
            self._accept_responder(now)
        elif self._install_first(now):
            if self._peer_certificate:
                self._send_control(control.Certificate(self._certificate))
            self._send_control(control.Accept())
            self._emit_result(Established)
            self._schedule()

    def reject(self, reason: RejectReason, now: float) -> None:
        """Refuse the authenticated initiator, telling it why; the session is over.

        An initiator that refuses a responder says close().
        """
        if self._install_first(now):
            self._send_control(control.Reject(reason))
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
        self._attempts.forget()
        self._rekey.stop()

    def records_sealed(self, count: int, now: float) -> None:
        """Note how many records were sealed under the current keys; 2^60 ask for a rekey."""
        self._rekey.records_sealed(count, now)

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
        else:
            self._rekey.opens_failed(count, now)

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
            inner_type: HANDSHAKE, CONTROL, MESH and CLOSE are read; others only tell that the
                peer uses these keys, so hand over padding too (probes may be).
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
            elif self._unjudged:
                self._receive_unjudged(inner_type, body, now)
            elif inner_type == Inner.HANDSHAKE:
                self._receive_handshake_record(keys, body, now)
            elif inner_type == Inner.CONTROL:
                self._receive_control(keys, control.decode_control(body), now)
            elif inner_type == Inner.MESH:
                if not self._member:
                    raise RemoteProtocolError("a message of a network in a pair")
                self._emit(MeshMessage(body))

    def handle_timeout(self, now: float) -> None:
        """Do what is due; harmless when called early or late."""
        self._expire(now)
        if self._over:
            return
        if (attempt := self._attempts.current) is not None:
            if now >= attempt.deadline:
                self._give_up(attempt, now)
        elif self._rekey.due is not None and now >= self._rekey.due:
            if self.initiator:
                self._send_msg1(now)
            else:
                self._rekey.request_sent(now)
                self._send_control(control.RekeyRequest())

    # --- handshake ----------------------------------------------------------------------------

    def _send_msg1(self, now: float) -> None:
        self._send_handshake(self._attempts.first_message(self._base(), now))

    def _receive_handshake_record(self, keys: Keys, body: bytes, now: float) -> None:
        if not self._handshakes.take(now):
            raise RemoteProtocolError("handshake messages without end")
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
        self._send_handshake(self._attempts.receive_msg1(data, self._base(), now))

    def _receive_msg2(self, data: bytes, now: float) -> None:
        answer = self._attempts.receive_msg2(data, self._base(), now)
        if answer is None:
            return
        reply, result = answer
        if self._keys.current is None:
            self._send_handshake(reply)
            self._keys.offer(result, now)
            if self._unjudged:
                self._keys.use_next()
                self._send_control(control.Certificate(self._certificate))
            else:
                self._emit(Authenticated(without_secrets(result)))
            return
        # The responder began anew from the current keys, so it has neither finished the rekey
        # that made older next keys, nor does it use the previous ones. Before the answer: it may
        # send under these keys before we come to what follows, and not we open what it sends.
        self._keys.offer(result, now)
        self._send_handshake(reply)

    def _receive_msg3(self, data: bytes, now: float) -> None:
        result = self._attempts.receive_msg3(data, self._base(), now)
        if result is None:
            return
        if self._keys.current is None:
            if result.mode == MEMBER_MODE:
                self._keys.offer(result, now)
            else:
                self._emit(Authenticated(without_secrets(result)))
            return
        self._keys.offer(result, now)
        self._keys.confirm()
        self._send_control(control.Accept())
        self._emit_result(Rekeyed)
        self._schedule()

    def _receive_accept(self, now: float) -> None:
        """Move to the next keys: the responder uses them."""
        # Before it sent this, the responder had answered every older attempt that it ever will;
        # an attempt begun since, because this came late, it ignores.
        self._attempts.forget()
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
        if isinstance(message, control.Certificate):
            self._check_certificate(message)
        elif keys is self._keys.next:
            if isinstance(message, control.Accept):
                self._receive_accept(now)
            elif isinstance(message, control.Reject):
                self._receive_reject(message)
            else:
                raise RemoteProtocolError("another control record before ACCEPT")
        elif isinstance(message, control.Candidates | control.PunchNow | control.Able):
            self._emit(Control(message))
        elif isinstance(message, control.RekeyRequest) and self.initiator:
            current = self._keys.current
            if current is not None:
                self._rekey.peer_asked(current.created_at, now)
        else:
            raise RemoteProtocolError(f"unsolicited {type(message).__name__}")

    def _receive_reject(self, message: control.Reject) -> None:
        self._fail(
            f"peer rejected us: {_reject_name(message.reason)}",
            WS_NORMAL,
            local=False,
            reason=CloseReason.POLICY,
            rejected=message.reason,
        )

    # --- between members ----------------------------------------------------------------------

    @property
    def _unjudged(self) -> bool:
        """Whether there are keys with a peer whose certificate was not taken yet."""
        agreed = self._keys.next
        return (
            self._keys.current is None and agreed is not None and agreed.result.mode == MEMBER_MODE
        )

    def _receive_unjudged(self, inner_type: int, body: bytes, now: float) -> None:
        """Take what may be read before the peer is judged; drop everything else unread."""
        readable = inner_type == Inner.CONTROL and body[:1] != b"" and body[0] in _BEFORE_JUDGED
        message = control.decode_control(body) if readable else None
        match message:
            case control.Certificate():
                self._receive_certificate(message, now)
            case control.Accept() if self.initiator:
                self._attempts.receive_accept(now)
                self._establish_if_judged(now)
            case control.Reject() if self.initiator:
                self._receive_reject(message)
            case _:
                self.dropped_unjudged += 1

    def _receive_certificate(self, message: control.Certificate, now: float) -> None:
        agreed = self._keys.next
        if self._peer_certificate or agreed is None:
            self._check_certificate(message)
            return
        self._peer_certificate = message.der
        self._attempts.receive_certificate(self.initiator, now)
        self._emit(Authenticated(agreed.result, message.der))

    def _check_certificate(self, message: control.Certificate) -> None:
        """Take a certificate that comes again; one is all that a session ever shows."""
        if self._peer_certificate and message.der != self._peer_certificate:
            raise RemoteProtocolError("another certificate in the same session")

    def _accept_responder(self, now: float) -> None:
        self._expire(now)
        attempt = self._attempts.current
        if self._over or not self._unjudged or attempt is None:
            return
        if now >= attempt.deadline:
            self._give_up(attempt, now)
            return
        self._accepts = True
        self._establish_if_judged(now)

    def _establish_if_judged(self, now: float) -> None:
        attempt = self._attempts.current
        if self._accepts and attempt is not None and attempt.accepted:
            self._receive_accept(now)

    # --- the end of handshakes ----------------------------------------------------------------

    def _give_up(self, attempt: Attempt, now: float) -> None:
        """End a handshake that is past its deadline; the keys in use stay."""
        wanted = attempt.due.name.lower()
        if self._keys.current is None:
            self._fail(
                f"handshake timed out, {wanted} did not come",
                WS_HANDSHAKE_FAILED,
                reason=CloseReason.TIMEOUT,
            )
            return
        self._attempts.give_up()
        if self.initiator:
            self._rekey.aborted(now)
        self._emit(RekeyAborted(f"rekey timed out, {wanted} did not come"))

    # --- keys ---------------------------------------------------------------------------------

    def _base(self) -> HandshakeResult | None:
        """What the current keys were made from; a handshake without them is the first."""
        return None if self._keys.current is None else self._keys.current.result

    def _install_first(self, now: float) -> bool:
        """Install and use what the first handshake agreed; False when it is too late for that."""
        self._expire(now)
        if self._over:
            return False
        attempt, result = self._attempts.agreed()
        if now >= attempt.deadline:
            self._give_up(attempt, now)
            return False
        self._attempts.settle()
        if self._keys.next is None:  # between members they are there: the certificate used them
            self._keys.offer(result, attempt.step_at)
        self._keys.confirm()
        return True

    def _emit_result(self, event: type[Established | Rekeyed]) -> None:
        if self._keys.current is not None:
            self._emit(event(self._keys.current.result))

    def _schedule(self) -> None:
        """Plan the next rekey after a switch of keys."""
        if self._keys.current is not None:
            self._rekey.keys_switched(self._keys.current.created_at)

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
        used = self._keys.current or self._keys.next
        if used is not None and used.used and self._link_up:
            self._emit(SendRecord(Inner.CLOSE, control.encode_close(reason, text)))
        self._clear()

    def _clear(self) -> None:
        """Retire everything; only events are left of the session."""
        self._attempts.forget()
        self._keys.retire_all()
        self._rekey.stop()
        self._over = True

    def _send_handshake(self, data: bytes) -> None:
        if self._keys.current is None:
            self._emit(SendMessage(data))
        else:
            self._emit(SendRecord(Inner.HANDSHAKE, data))

    def _send_control(self, message: control.ControlMessage) -> None:
        self._emit(SendRecord(Inner.CONTROL, control.encode_control(message)))

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
