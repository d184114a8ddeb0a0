"""The handshake: two machines that take and give the bytes of three messages.

Owns: the order of tokens and of checks, both policies (ours and what the peer may ask for), and
the erasure of what a handshake leaves. Does not know: links, timers, rate limits, records.

::

    Initiator                                            Responder
    first_message()        --- msg1: psk, e, e1 --->     receive_msg1(msg1)
    receive_msg2(msg2)     <-- e, ee, ekem1, s, sig ---
    .result                ------- msg3: s, sig ---->    receive_msg3(msg3) -> result
                           <---- ACCEPT (a record) ---   the initiator is connected after this

A rekey is the same with prev_h, the h of the live session; that the peer is still the same
identity is for the caller to compare (``result.peer_public_key``).

Error contract. Whatever the peer sends wrong raises RemoteProtocolError with close code 4400; its
text is for the local log, the wire never tells one refusal from another. After any error, and
after the last message, a machine is dead: its secrets are erased and every call raises
LocalProtocolError. A call out of turn raises LocalProtocolError and changes nothing.
Source: protocol sections 2, 3, 4 and 7; Noise XXhfs+sig+psk0.
"""

from __future__ import annotations

from base64 import b64encode
from contextlib import contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from shadowmesh.base.constants import (
    HASH_BYTES,
    HEADER_BYTES,
    IDENTITY_BYTES,
    JOIN_MODE,
    MAX_NETWORK_SECRETS,
    MEMBER_MODE,
    MODE_OFFSET,
    MODE_PIN,
    MODE_PSK,
    MSG1_BYTES,
    MSG2_BYTES,
    MSG3_BYTES,
    PSK_BYTES,
    Caps,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.keys import sodium
from shadowmesh.wire.handshake import messages
from shadowmesh.wire.handshake.agreement import (
    AEGIS_256,
    CHACHA20_POLY1305,
    Entropy,
    HandshakeResult,
    Offer,
    Policy,
    SystemEntropy,
    TrafficKeys,
)
from shadowmesh.wire.handshake.messages import P1, P2, P3
from shadowmesh.wire.handshake.symmetric import SymmetricState

if TYPE_CHECKING:
    from collections.abc import Iterator

LABEL: Final = b"ShadowMesh1_XXhfs+sig+psk0_25519+MLKEM768+Ed25519_ChaChaPoly_SHA256"
_PROLOGUE: Final = b"ShadowMesh/1 prologue"
_SIGNATURE_PAD: Final = b"\x20" * 64  # RFC 8446 section 4.4.3
_KEY_NAMES: Final = tuple(
    b"ShadowMesh/1 key " + name
    for name in (b"wss i2r", b"wss r2i", b"udp i2r", b"udp r2i", b"exporter")
)
_ZEROS: Final = bytes(32)
#: every other mode byte is refused (mesh-rules A1)
_NETWORK_MODES: Final = (MEMBER_MODE, JOIN_MODE)
_KNOWN_MODES: Final = (MODE_PSK, MODE_PIN, MODE_PSK | MODE_PIN, *_NETWORK_MODES)


class _Step(Enum):
    START = auto()
    SENT = auto()
    FINISHED = auto()
    FAILED = auto()


class _Machine:
    """What both sides share: turn-taking, erasure, and the checks of an identity."""

    def __init__(
        self, policy: Policy, offer: Offer, prev_h: bytes, entropy: Entropy | None
    ) -> None:
        _check_local(policy, offer, prev_h)
        self._policy = policy
        self._offer = offer
        self._prev_h = prev_h
        self._entropy: Entropy = SystemEntropy() if entropy is None else entropy
        self._state = SymmetricState(LABEL)
        self._mode = policy.mode
        self._step = _Step.START

    @contextmanager
    def _turn(self, expected: _Step, then: _Step) -> Iterator[None]:
        """Run one message; whatever is raised in it leaves a dead machine without secrets."""
        if self._step is not expected:
            raise LocalProtocolError(
                f"handshake called out of turn: it is {self._step.name}, not {expected.name}"
            )
        self._step = _Step.FAILED
        try:
            yield
            self._step = then
        finally:
            if self._step is not _Step.SENT:
                self._erase()

    def _erase(self) -> None:
        self._state.wipe()

    def _begin(self, responder_id: bytes, psk: bytes) -> None:
        """Mix the prologue and the pre-shared key, or zeros. Source: protocol section 3."""
        state = self._state
        state.mix_hash(_PROLOGUE + messages.header(self._mode, 1) + responder_id + self._prev_h)
        state.mix_key_and_hash(psk)

    def _mix_public(self, ephemeral: bytes) -> None:
        # MixKey of a public value is what Noise adds for PSK patterns (section 9.2).
        self._state.mix_hash(ephemeral)
        self._state.mix_key(ephemeral)

    def _mix_x25519(self, ours: X25519PrivateKey, theirs: bytes) -> None:
        try:
            secret = ours.exchange(X25519PublicKey.from_public_bytes(theirs))
        except ValueError:
            # cryptography refuses an all-zero result, which every small-order key gives.
            raise RemoteProtocolError("the X25519 result is all zero") from None
        self._mix_secret(secret)

    def _mix_secret(self, secret: bytes) -> None:
        copy = bytearray(secret)
        self._state.mix_key(copy)
        sodium.wipe(copy)

    def _seal_identity(self, role: bytes, peer_id: bytes) -> bytes:
        """Return our identity and signature, sealed: tokens s, sig."""
        identity = self._policy.identity
        own = identity.public_key
        sealed_id = self._state.encrypt_and_hash(own)
        signature = identity.sign(_signed_text(role, self._state.h, own, peer_id))
        return sealed_id + self._state.encrypt_and_hash(signature)

    def _check_identity(self, role: bytes, public: bytes, signature: bytes, h: bytes) -> None:
        """Check who the peer is; own is what it signed as the other side (zeros or us)."""
        policy = self._policy
        own = policy.identity.public_key
        if not sodium.is_valid_public_key(public):
            raise RemoteProtocolError("the peer's identity is not a valid Ed25519 key")
        if sodium.equal(public, own):
            raise RemoteProtocolError(
                "the peer is this daemon itself, or has a copy of its identity.key; check"
                " peer.address, and give each machine its own identity"
            )
        if policy.peer_public_key is not None and not sodium.equal(public, policy.peer_public_key):
            raise RemoteProtocolError(
                f"the peer's identity {b64encode(public).decode()} is not the pinned"
                " peer.public_key"
            )
        if policy.trusted is not None and public not in policy.trusted:
            raise RemoteProtocolError(
                f"the peer's identity {b64encode(public).decode()} is none of those in peers"
            )
        other = _ZEROS if role == b"responder" else own
        if not sodium.verify(public, _signed_text(role, h, public, other), signature):
            raise RemoteProtocolError("the peer's signature does not verify")

    def _check_key_id(self, key_id: int) -> None:
        if key_id == 0:
            raise RemoteProtocolError("the peer's key id is 0")
        if self._policy.key_id_in_use(key_id):
            raise RemoteProtocolError(f"the peer's key id {key_id:#010x} is in use")

    def _choose_cipher(self, peer_caps: int) -> str:
        cipher = AEGIS_256 if self._offer.caps & peer_caps & Caps.AEGIS256 else CHACHA20_POLY1305
        if self._policy.require_cipher not in (None, cipher):
            raise RemoteProtocolError(
                f"encryption.cipher wants {self._policy.require_cipher}, with this peer it would"
                f" be {cipher}"
            )
        return cipher

    def _finish(self, *, initiator: bool, peer_public_key: bytes, peer: Offer) -> HandshakeResult:
        cipher = self._choose_cipher(peer.caps)
        h = self._state.h
        return HandshakeResult(
            initiator=initiator,
            mode=self._mode,
            peer_public_key=peer_public_key,
            peer=peer,
            h=h,
            keys=TrafficKeys(*self._state.export(_KEY_NAMES)),
            local_key_id=self._offer.key_id,
            remote_key_id=peer.key_id,
            local_caps=self._offer.caps,
            peer_caps=peer.caps,
            cipher=cipher,
            tls_matches=self._offer.tls_cert_sha256 == peer.tls_cert_sha256,
        )


class Initiator(_Machine):
    """The side that dials. Calls in order: first_message, receive_msg2, result.

    Raises LocalProtocolError when policy or offer cannot be used (no key and no pin included).
    """

    def __init__(
        self,
        policy: Policy,
        offer: Offer,
        prev_h: bytes = _ZEROS,
        *,
        entropy: Entropy | None = None,
    ) -> None:
        super().__init__(policy, offer, prev_h, entropy)
        if policy.trusted is not None:
            raise LocalProtocolError("who dials knows one peer, not a list of them")
        if policy.network:
            _check_dialled_network(policy)
        self._ephemeral: X25519PrivateKey | None = None
        self._kem: MLKEM768PrivateKey | None = None
        self._result: HandshakeResult | None = None

    @property
    def result(self) -> HandshakeResult:
        """What was agreed, once receive_msg2 returned; the peer has not confirmed it yet."""
        if self._result is None:
            raise LocalProtocolError("the handshake has no result yet, or failed")
        return self._result

    def first_message(self) -> bytes:
        """Return msg1, 1272 bytes: tokens psk, e, e1, then p1."""
        with self._turn(_Step.START, _Step.SENT):
            self._begin(self._policy.peer_public_key or _ZEROS, self._policy.psk or _ZEROS)
            self._ephemeral = self._entropy.x25519_private()
            self._kem = self._entropy.mlkem_private()
            ephemeral = self._ephemeral.public_key().public_bytes_raw()
            self._mix_public(ephemeral)
            kem_key = self._state.encrypt_and_hash(self._kem.public_key().public_bytes_raw())
            payload = self._state.encrypt_and_hash(P1(self._offer.caps).pack())
            return messages.header(self._mode, 1) + ephemeral + kem_key + payload

    def receive_msg2(self, message: bytes) -> bytes:
        """Check msg2 and return msg3, 200 bytes: tokens s, sig, then p3.

        Raises:
            RemoteProtocolError: message is refused; the machine is dead.
        """
        with self._turn(_Step.SENT, _Step.FINISHED):
            state = self._state
            ephemeral, kem = self._ephemeral, self._kem
            if ephemeral is None or kem is None:
                raise LocalProtocolError("msg2 needs the ephemeral keys of msg1")
            _check_size(message, MSG2_BYTES, 2)
            _check_header(message, self._mode, 2)

            theirs = message[HEADER_BYTES : messages.E_END]
            self._mix_public(theirs)
            self._mix_x25519(ephemeral, theirs)
            ciphertext = state.decrypt_and_hash(
                message[messages.E_END : messages.MSG2_KEM_END], "the ML-KEM ciphertext"
            )
            # Never fails: a ciphertext made for another key gives another secret (FIPS 203).
            self._mix_secret(kem.decapsulate(ciphertext))

            public = state.decrypt_and_hash(
                message[messages.MSG2_KEM_END : messages.MSG2_ID_END], "the responder's identity"
            )
            h = state.h
            signature = state.decrypt_and_hash(
                message[messages.MSG2_ID_END : messages.MSG2_SIGNATURE_END],
                "the responder's signature",
            )
            payload = state.decrypt_and_hash(message[messages.MSG2_SIGNATURE_END :], "p2")
            self._check_identity(b"responder", public, signature, h)
            p2 = P2.unpack(payload)
            self._check_key_id(p2.key_id)
            self._choose_cipher(p2.caps)

            offer = self._offer
            identity = self._seal_identity(b"initiator", public)
            p3 = P3(offer.key_id, offer.tap_mtu, offer.caps, offer.tls_cert_sha256)
            reply = messages.header(self._mode, 3) + identity + state.encrypt_and_hash(p3.pack())
            self._result = self._finish(
                initiator=True,
                peer_public_key=public,
                peer=Offer(p2.caps, p2.tap_mtu, p2.tls_cert_sha256, p2.key_id),
            )
            return reply

    def _erase(self) -> None:
        super()._erase()
        self._ephemeral = None
        self._kem = None


class Responder(_Machine):
    """The side that listens. Calls in order: receive_msg1, receive_msg3.

    Rate limits come before it: on a 2-core test machine a msg1 costs about 50 us when it fails at
    the gate and 250 us when it passes; with two secrets of a network the gate costs twice as much.
    Raises LocalProtocolError when policy or offer cannot be used (no key and no pin included).

    Args:
        mode: of a rekey: that of its session, the only one that is taken (mesh-rules A1).
    """

    def __init__(
        self,
        policy: Policy,
        offer: Offer,
        prev_h: bytes = _ZEROS,
        *,
        mode: int | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        super().__init__(policy, offer, prev_h, entropy)
        if policy.network:
            _check_served_network(policy)
        self._only_mode = mode
        self._initiator_caps = 0

    def receive_msg1(self, message: bytes) -> bytes:
        """Check msg1 and return msg2, 1336 bytes: tokens e, ee, ekem1, s, sig, then p2.

        Raises:
            RemoteProtocolError: message is refused; the machine is dead.
        """
        with self._turn(_Step.START, _Step.SENT):
            _check_size(message, MSG1_BYTES, 1)
            _check_header(message, message[MODE_OFFSET], 1)
            self._mode = self._accept_mode(message[MODE_OFFSET])

            theirs = message[HEADER_BYTES : messages.E_END]
            kem_bytes = self._pass_gate(theirs, message[messages.E_END : messages.MSG1_KEM_END])
            state = self._state
            p1 = P1.unpack(state.decrypt_and_hash(message[messages.MSG1_KEM_END :], "p1"))
            self._choose_cipher(p1.caps)
            self._initiator_caps = p1.caps
            try:
                # Includes the modulus check of FIPS 203 section 7.2 (a test holds it to that).
                kem_key = MLKEM768PublicKey.from_public_bytes(kem_bytes)
            except ValueError:
                raise RemoteProtocolError("the ML-KEM key is not valid") from None

            ours = self._entropy.x25519_private()
            ephemeral = ours.public_key().public_bytes_raw()
            self._mix_public(ephemeral)
            self._mix_x25519(ours, theirs)
            secret, ciphertext = self._entropy.encapsulate(kem_key)
            sealed_ciphertext = state.encrypt_and_hash(ciphertext)
            self._mix_secret(secret)

            offer = self._offer
            identity = self._seal_identity(b"responder", _ZEROS)
            p2 = P2(offer.key_id, offer.tap_mtu, offer.caps, offer.tls_cert_sha256)
            return (
                messages.header(self._mode, 2)
                + ephemeral
                + sealed_ciphertext
                + identity
                + state.encrypt_and_hash(p2.pack())
            )

    def receive_msg3(self, message: bytes) -> HandshakeResult:
        """Check msg3 and return what was agreed.

        Raises:
            RemoteProtocolError: message is refused; the machine is dead.
        """
        with self._turn(_Step.SENT, _Step.FINISHED):
            state = self._state
            _check_size(message, MSG3_BYTES, 3)
            _check_header(message, self._mode, 3)
            public = state.decrypt_and_hash(
                message[HEADER_BYTES : messages.MSG3_ID_END], "the initiator's identity"
            )
            h = state.h
            signature = state.decrypt_and_hash(
                message[messages.MSG3_ID_END : messages.MSG3_SIGNATURE_END],
                "the initiator's signature",
            )
            payload = state.decrypt_and_hash(message[messages.MSG3_SIGNATURE_END :], "p3")
            self._check_identity(b"initiator", public, signature, h)
            p3 = P3.unpack(payload)
            if p3.caps != self._initiator_caps:
                raise RemoteProtocolError(
                    f"p3 has capabilities {p3.caps:#06x}, p1 had {self._initiator_caps:#06x}"
                )
            self._check_key_id(p3.key_id)
            return self._finish(
                initiator=False,
                peer_public_key=public,
                peer=Offer(p3.caps, p3.tap_mtu, p3.tls_cert_sha256, p3.key_id),
            )

    def _pass_gate(self, ephemeral: bytes, sealed_kem_key: bytes) -> bytes:
        """Return the ML-KEM key of message 1; the state is then that of the key that opened it.

        Only who knows a PSK or our key gets past it, and nothing costly happens before it.
        """
        policy, mode = self._policy, self._mode
        responder_id = policy.identity.public_key if mode & MODE_PIN else _ZEROS
        psks = policy.gate if mode & MODE_PSK else (_ZEROS,)
        refusal: RemoteProtocolError | None = None
        for psk in psks:
            if refusal is not None:
                self._state.wipe()
                self._state = SymmetricState(LABEL)
            self._begin(responder_id, psk)
            self._mix_public(ephemeral)
            try:
                return self._state.decrypt_and_hash(sealed_kem_key, "the ML-KEM key")
            except RemoteProtocolError as error:
                refusal = error
        raise RemoteProtocolError(f"{refusal}: {_GATE_REASON[mode]}") from None

    def _accept_mode(self, mode: int) -> int:
        """Return mode if it agrees with our configuration.

        Source: protocol section 2, mesh-rules A1.
        """
        policy = self._policy
        if mode not in (0, *_KNOWN_MODES):
            raise RemoteProtocolError(f"mode {mode:#04x} is none of this version")
        if self._only_mode not in (None, mode):
            raise RemoteProtocolError(f"a rekey in mode {mode} of a session in {self._only_mode}")
        if policy.network or mode in _NETWORK_MODES:
            _check_network_mode(policy, mode)
            return mode
        if (mode ^ policy.mode) & MODE_PSK:
            who = "we do" if policy.mode & MODE_PSK else "the peer does"
            raise RemoteProtocolError(f"only one side uses encryption.key: {who}")
        if mode == 0:
            raise RemoteProtocolError("the peer uses neither a key nor a pinned identity")
        if policy.trusted is not None and not mode & MODE_PIN:
            raise RemoteProtocolError(
                "the peer dials whoever holds encryption.key; with a list of peers here it has to"
                " set peer.public_key to the key of this side"
            )
        return mode


_PAIR_GATE_REASON: Final = (
    "the peer has another encryption.key, or dials with a peer.public_key that is not ours"
)
#: what a message 1 means that no key of ours opens, by its mode
_GATE_REASON: Final = {
    MODE_PSK: _PAIR_GATE_REASON,
    MODE_PIN: _PAIR_GATE_REASON,
    MODE_PSK | MODE_PIN: _PAIR_GATE_REASON,
    MEMBER_MODE: "the peer has another network's secret or an old one, or takes us for another",
    JOIN_MODE: "the peer's invitation is for a relay with another key",
}


def _check_network_mode(policy: Policy, mode: int) -> None:
    """Refuse members where there is no network, and pairs where there is one."""
    if not policy.network:
        raise RemoteProtocolError(f"mode {mode}: the peer dials a network, we are in none")
    if mode == JOIN_MODE and not policy.join:
        raise RemoteProtocolError(f"mode {mode}: the peer wants to join, no invitation is open")
    if mode == MEMBER_MODE and not policy.member:
        raise RemoteProtocolError(f"mode {mode}: members are not taken here")
    if mode not in _NETWORK_MODES:
        raise RemoteProtocolError(f"mode {mode}: the peer dials a pair, we are in a network")


def _signed_text(role: bytes, h: bytes, own: bytes, other: bytes) -> bytes:
    """Return S(role, h, own, other), what a side signs. Source: protocol section 4."""
    return _SIGNATURE_PAD + b"ShadowMesh/1 " + role + b" signature\x00" + h + own + other


def _check_size(message: bytes, size: int, number: int) -> None:
    if len(message) != size:
        raise RemoteProtocolError(f"msg{number} has {len(message)} bytes, not {size}")


def _check_header(message: bytes, mode: int, number: int) -> None:
    got = bytes(message[:HEADER_BYTES])
    wanted = messages.header(mode, number)
    if got != wanted:
        raise RemoteProtocolError(f"msg{number} begins {got.hex()}, not {wanted.hex()}")


def _check_local(policy: Policy, offer: Offer, prev_h: bytes) -> None:
    """Refuse at once what could only come from our own mistake."""
    if policy.mode == 0:
        raise LocalProtocolError("neither encryption.key nor peer.public_key is set")
    for value, size, name in (
        *((psk, PSK_BYTES, "the pre-shared key") for psk in (policy.psk, *policy.psks)),
        (policy.peer_public_key, IDENTITY_BYTES, "the pinned key"),
        (prev_h, HASH_BYTES, "prev_h"),
    ):
        if value is not None and len(value) != size:
            raise LocalProtocolError(f"{name} is {size} bytes, not {len(value)}")
    if policy.require_cipher not in (None, AEGIS_256, CHACHA20_POLY1305):
        raise LocalProtocolError(f"unknown cipher {policy.require_cipher!r}")
    if offer.caps & ~messages.KNOWN_CAPS:
        raise LocalProtocolError(f"capabilities {offer.caps:#06x} are not of this version")
    offers_aegis = bool(offer.caps & Caps.AEGIS256)
    if policy.require_cipher is not None and offers_aegis != (policy.require_cipher == AEGIS_256):
        raise LocalProtocolError(
            f"capabilities {offer.caps:#06x} do not fit encryption.cipher {policy.require_cipher}"
        )
    if policy.psks and not policy.member:
        raise LocalProtocolError("several pre-shared keys are for members of a network")
    # Packing checks the ranges of the rest, before the peer has had a turn.
    P2(offer.key_id, offer.tap_mtu, offer.caps, offer.tls_cert_sha256).pack()


def _check_dialled_network(policy: Policy) -> None:
    """Refuse what mesh section 4 does not know of who dials."""
    if policy.member and policy.join:
        raise LocalProtocolError("who dials is a member or joins, not both")
    if policy.peer_public_key is None:
        raise LocalProtocolError("members and joiners know the key of whom they dial")
    if policy.psks or (policy.psk is not None) != policy.member:
        raise LocalProtocolError(
            "a member dials with one secret of the network, a joiner with none"
        )


def _check_served_network(policy: Policy) -> None:
    """Refuse what mesh section 4 does not know of who is dialled."""
    if policy.peer_public_key is not None or policy.trusted is not None:
        raise LocalProtocolError("in a network the certificate decides, not a pin or a list")
    if not policy.member and policy.gate:
        raise LocalProtocolError("a pre-shared key, and no members that use it")
    if policy.member and not 1 <= len(policy.gate) <= MAX_NETWORK_SECRETS:
        raise LocalProtocolError(
            f"{len(policy.gate)} secrets of the network, 1 to {MAX_NETWORK_SECRETS} are wanted"
        )
