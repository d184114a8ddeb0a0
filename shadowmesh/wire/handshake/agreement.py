"""What goes into a handshake and what comes out of it.

Owns: the types that a caller fills (`Policy`, `Offer`) and gets (`HandshakeResult`), and the
source of randomness. Does not know: messages, their order, the checks.
Source: protocol sections 2 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shadowmesh.base.constants import JOIN_MODE, MEMBER_MODE, MODE_PIN, MODE_PSK

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

CHACHA20_POLY1305: Final = "chacha20-poly1305"
AEGIS_256: Final = "aegis-256"


class Signer(Protocol):
    """Our own identity; `keys.identity.Identity` is one."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """Return a 64-byte Ed25519 signature."""


class Entropy(Protocol):
    """Where a handshake's secrets come from, so that a test can repeat one."""

    def x25519_private(self) -> X25519PrivateKey:
        """Return a new key."""

    def mlkem_private(self) -> MLKEM768PrivateKey:
        """Return a new key."""

    def encapsulate(self, public_key: MLKEM768PublicKey) -> tuple[bytes, bytes]:
        """Return (shared secret 32 bytes, ciphertext 1088 bytes)."""


class SystemEntropy:
    """Fresh keys from the system's generator; what everybody but a test uses."""

    def x25519_private(self) -> X25519PrivateKey:
        return X25519PrivateKey.generate()

    def mlkem_private(self) -> MLKEM768PrivateKey:
        return MLKEM768PrivateKey.generate()

    def encapsulate(self, public_key: MLKEM768PublicKey) -> tuple[bytes, bytes]:
        return public_key.encapsulate()


@dataclass(frozen=True, slots=True)
class Offer:
    """What one side announces of itself.

    Attributes:
        caps: bits of `constants.Caps`.
        tap_mtu: MTU of its TAP device in bytes.
        tls_cert_sha256: hash of the server's certificate: served (responder), seen (initiator).
        key_id: the number, not 0, that it wants to see on records sent to it.
    """

    caps: int
    tap_mtu: int
    tls_cert_sha256: bytes
    key_id: int


def _never_in_use(_key_id: int) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Policy:
    """Who we are and whom we accept.

    Attributes:
        identity: our Ed25519 identity.
        psk: 32 bytes, or None.
        peer_public_key: the pinned 32 bytes, or None.
        trusted: of a responder that has a list of peers: the keys of which the peer must have one,
            whatever it is pinned to. None without a list, and for who dials: it knows whom.
        require_cipher: "aegis-256" refuses a peer that cannot or may not use it; None takes both.
        key_id_in_use: whether the peer already has this key id in a live session.
        member: mode 7: `psk` is psk(7) of the network. A responder has no pin: it takes whoever
            proves an identity, and the certificate that follows decides (mesh-rules A3).
        psks: of a responder in mode 7, in place of `psk`: those of the network's secrets, newest
            first, at most two.
        join: mode 10: who dials has a pin and nothing else; a responder takes it besides mode 7
            while an invitation is open (mesh-rules B).
    """

    identity: Signer
    psk: bytes | None = field(repr=False)
    peer_public_key: bytes | None
    trusted: Collection[bytes] | None = None
    require_cipher: str | None = None
    key_id_in_use: Callable[[int], bool] = field(default=_never_in_use, repr=False)
    member: bool = False
    psks: tuple[bytes, ...] = field(default=(), repr=False)
    join: bool = False

    @property
    def network(self) -> bool:
        """Whether this is about a network, and not about a pair or a list of peers."""
        return self.member or self.join

    @property
    def gate(self) -> tuple[bytes, ...]:
        """The pre-shared keys that a responder tries on message 1, in this order."""
        return self.psks or (() if self.psk is None else (self.psk,))

    @property
    def mode(self) -> int:
        """The mode byte: bit 0 PSK, bit 1 pinned key; 0 means that nobody can be accepted.

        With `member` it is 7, with `join` alone 10. Source: protocol section 2, mesh section 4.
        """
        if self.network:
            return MEMBER_MODE if self.member else JOIN_MODE
        psk = 0 if self.psk is None else MODE_PSK
        pinned = self.peer_public_key is not None or self.trusted is not None
        return psk | (MODE_PIN if pinned else 0)


@dataclass(frozen=True, slots=True)
class TrafficKeys:
    """Five keys of 32 bytes: by path and direction (i2r: sent by the initiator), and one spare."""

    wss_i2r: bytes = field(repr=False)
    wss_r2i: bytes = field(repr=False)
    udp_i2r: bytes = field(repr=False)
    udp_r2i: bytes = field(repr=False)
    exporter: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """What both sides know after a handshake.

    Attributes:
        initiator: whether we sent msg1.
        mode: the mode byte that was used.
        peer_public_key: the peer's verified identity.
        peer: what the peer announced.
        h: hash of the whole handshake, prev_h of the next.
        keys: the traffic keys.
        local_key_id: on records sent to us.
        remote_key_id: on records that we send.
        cipher: of the records: "aegis-256" or "chacha20-poly1305".
        tls_matches: whether the certificate served is the certificate seen.
    """

    initiator: bool
    mode: int
    peer_public_key: bytes
    peer: Offer
    h: bytes = field(repr=False)
    keys: TrafficKeys
    local_key_id: int
    remote_key_id: int
    local_caps: int
    peer_caps: int
    cipher: str
    tls_matches: bool
