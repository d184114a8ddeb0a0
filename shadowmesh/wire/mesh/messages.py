"""The messages of a network: MessagePack maps, in records of inner type 11.

Owns: the structures, the limits of every list, text and byte string in them, what is refused.
Does not know: who may send which message (mesh-rules D3), whether a certificate is any good, when
a message is sent.

::

    joining      Join or Renew -->            <-- Joined or Refused      (mode 10, one each way)
    both         Hello, Trust, Lists, Renewed
    to a relay   Attach, Where
    from one     Members, Here, Gone, Busy, Error
    any          Part: a piece of a message that is too large for one record (`chunks`)

The map has the tag of the message under "t" and its fields under their names. Fields that this
version does not know are ignored; a message that it does not know is refused, and its sender finds
out from our Hello that it should not have sent it. Text is printable, so that it may stand in a log.
Source: mesh section 6, mesh-rules B, C, D, E.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from shadowmesh.base.constants import CERTIFICATE_MAX_BYTES, IDENTITY_BYTES
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire.mesh.identifiers import (
    INVITATION_ID_BYTES,
    NETWORK_SECRET_BYTES,
    NODE_ID_BYTES,
    PROOF_BYTES,
)

#: what one record may hold; as all that is no frame, so that a link keeps little room for it
RECORD_MAX_BYTES: Final = 2048
#: of all but those in LARGE
MESSAGE_MAX_BYTES: Final = 64 * 1024
#: of a revocation list (mesh-rules C3)
LIST_MAX_BYTES: Final = 256 * 1024
#: what a piece of a larger message may hold, its envelope apart; mesh-rules C3 has up to 32 KiB
PART_MAX_BYTES: Final = RECORD_MAX_BYTES - 64
#: a full list and a few hundred certificates; less than the queue of a link holds
LARGE_MESSAGE_MAX_BYTES: Final = 384 * 1024
MAX_MEMBERS: Final = 1024
MAX_AUTHORITIES: Final = 8
MAX_LISTS: Final = 16
MAX_RELAYS: Final = 64
MAX_ADDRESSES: Final = 8
#: roles and tags of a certificate
MAX_WORDS: Final = 32
MAX_WAIT_S: Final = 24 * 3600
BOOT_ID_BYTES: Final = 16

_U63: Final = (1 << 63) - 1

Certificate = Annotated[bytes, Meta(min_length=1, max_length=CERTIFICATE_MAX_BYTES)]
RevocationList = Annotated[bytes, Meta(min_length=1, max_length=LIST_MAX_BYTES)]
TrustList = Annotated[bytes, Meta(max_length=32 * 1024)]
#: Ed25519 has 64 bytes, ECDSA P-384 in DER at most 104
Signature = Annotated[bytes, Meta(max_length=128)]
Secret = Annotated[bytes, Meta(min_length=NETWORK_SECRET_BYTES, max_length=NETWORK_SECRET_BYTES)]
KeyId = Annotated[bytes, Meta(min_length=32, max_length=32)]
PublicKey = Annotated[bytes, Meta(min_length=IDENTITY_BYTES, max_length=IDENTITY_BYTES)]
NodeId = Annotated[bytes, Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)]
BootId = Annotated[bytes, Meta(min_length=BOOT_ID_BYTES, max_length=BOOT_ID_BYTES)]
Count = Annotated[int, Meta(ge=0, le=_U63)]
WaitS = Annotated[int, Meta(ge=0, le=MAX_WAIT_S)]
#: a DNS label; empty where the issuer is to choose. \Z: $ would take a line break at the end
Name = Annotated[str, Meta(pattern=r"\A(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)?\Z")]
#: a code, for programs; of a role or tag 64 characters are what X.520 has
Word = Annotated[str, Meta(max_length=64, pattern=r"\A[a-z0-9_:.-]+\Z")]
#: host:port
Address = Annotated[
    str, Meta(max_length=255, pattern=r"\A(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}\Z")
]
Addresses = Annotated[tuple[Address, ...], Meta(max_length=MAX_ADDRESSES)]
#: an IPv4 or IPv6 network: address and length of its prefix
Subnet = Annotated[str, Meta(max_length=43, pattern=r"\A[0-9a-f:.]+/[0-9]{1,3}\Z")]
Words = Annotated[tuple[Word, ...], Meta(max_length=MAX_WORDS)]
Certificates = Annotated[tuple[Certificate, ...], Meta(max_length=MAX_MEMBERS)]
Authorities = Annotated[tuple[Certificate, ...], Meta(min_length=1, max_length=MAX_AUTHORITIES)]
RevocationLists = Annotated[tuple[RevocationList, ...], Meta(max_length=MAX_LISTS)]
#: for people
Text = Annotated[str, Meta(max_length=200)]


class _Said(Struct, frozen=True, kw_only=True, tag_field="t"):
    """What all messages share."""

    def __post_init__(self) -> None:
        for name in ("detail", "software"):
            text = getattr(self, name, "")
            if not text.isprintable():
                raise ValueError(f"{name} is not printable")


# --- Joining (mode 10) ------------------------------------------------------------------------


class Join(_Said, frozen=True, kw_only=True, tag="join"):
    """The joiner shows its invitation; `proof` is for this handshake alone (mesh-rules B2)."""

    invitation_id: Annotated[
        bytes, Meta(min_length=INVITATION_ID_BYTES, max_length=INVITATION_ID_BYTES)
    ]
    proof: Annotated[bytes, Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]
    name: Name = ""


class Renew(_Said, frozen=True, kw_only=True, tag="renew"):
    """A member whose certificate is superseded or expired asks for its new one (mesh-rules C5)."""

    certificate: Certificate


class RelayInfo(Struct, frozen=True, kw_only=True):
    """A relay: its certificate says that it is one, its addresses are a hint."""

    certificate: Certificate
    addresses: Addresses = ()


class Joined(_Said, frozen=True, kw_only=True, tag="joined"):
    """All that a member has to know; nothing of it is believed before it is verified.

    Attributes:
        certificate: for the joiner's key.
        authorities: their certificates.
        trust_list: signed by the recovery key (mesh-rules C1).
        revocation_lists: of each authority and revoker the newest.
        network_secret, secret_epoch, secret_signature: the newest, signed by the issuer (C6).
        members: certificates; as many as fit, the directory has them all.
        subnets: of the network, one of IPv4 and one of IPv6: certificates have addresses only.
    """

    certificate: Certificate
    authorities: Authorities
    trust_list: TrustList
    revocation_lists: RevocationLists
    network_secret: Secret
    secret_epoch: Count
    secret_signature: Signature = b""
    relays: Annotated[tuple[RelayInfo, ...], Meta(max_length=MAX_RELAYS)] = ()
    members: Certificates = ()
    subnets: Annotated[tuple[Subnet, ...], Meta(max_length=2)] = ()

    def __repr__(self) -> str:
        """Say nothing of what it holds: a secret is part of it."""
        return f"Joined({len(self.members)} members, secret hidden)"


class Refused(_Said, frozen=True, kw_only=True, tag="refused"):
    """The answer is no.

    Attributes:
        reason: a code; one that is not known is as good as any other no.
        retry_after: seconds after which it may be another; None: it will not.
        detail: for the person who joins.
    """

    reason: Word
    retry_after: WaitS | None = None
    detail: Text = ""


# --- Both ways --------------------------------------------------------------------------------


class ListNumber(Struct, frozen=True, kw_only=True):
    """The newest revocation list of one key: SHA-256 of its SubjectPublicKeyInfo, and a number."""

    key_id: KeyId
    number: Count


class Version(Struct, frozen=True, kw_only=True):
    """A state of the directory; those of another relay or boot cannot be compared with it."""

    relay: PublicKey
    boot_id: BootId
    number: Count


class Hello(_Said, frozen=True, kw_only=True, tag="hello"):
    """The first message of each side, once both are judged.

    Attributes:
        boot_id: random, new with each start of the daemon (mesh-rules D2).
        lists: numbers of the revocation lists that it has.
        directory: what it knows of the directory; None: nothing.
        trust_epoch, secret_epoch: of its trust list and of its newest network secret.
        relayed: "allow", "only" or "never": whether it wants to be carried.
    """

    software: Annotated[str, Meta(max_length=64)]
    boot_id: BootId
    roles: Words = ()
    lists: Annotated[tuple[ListNumber, ...], Meta(max_length=MAX_LISTS)] = ()
    directory: Version | None = None
    relayed: Literal["allow", "only", "never"] = "allow"
    trust_epoch: Count = 0
    secret_epoch: Count = 0


class Trust(_Said, frozen=True, kw_only=True, tag="trust"):
    """A trust list that may be newer than what the other side has; its signature decides.

    Attributes:
        certificate: of who says it: the one that an authority of this list has issued.
    """

    trust_list: TrustList
    certificate: Certificate | None = None


class Lists(_Said, frozen=True, kw_only=True, tag="lists"):
    """Revocation lists that may be newer than what the other side has."""

    lists: RevocationLists


class Renewed(_Said, frozen=True, kw_only=True, tag="renewed"):
    """A new certificate for the receiver's key, a new secret of the network, or both."""

    certificate: Certificate | None = None
    network_secret: Secret | None = None
    secret_epoch: Count = 0
    secret_signature: Signature = b""

    def __repr__(self) -> str:
        """Say nothing of what it holds: a secret may be part of it."""
        return f"Renewed(epoch {self.secret_epoch}, secret hidden)"


# --- Member and relay -------------------------------------------------------------------------


class Attach(_Said, frozen=True, kw_only=True, tag="attach"):
    """A member wants to be found through this relay.

    Attributes:
        kind: what this relay is to it.
        addresses: those of `mesh.announce` and no others (mesh-rules E3).
        wants: "broadcasts", "relay"; other words are ignored.
    """

    kind: Literal["home", "reserve"]
    addresses: Addresses = ()
    wants: Words = ()


class Member(Struct, frozen=True, kw_only=True):
    """What a relay says of a member: a hint, apart from its certificate, which proves itself.

    Attributes:
        certificate: the first time that it is told, and when it has changed.
        relays: through which it can be reached.
    """

    node_id: NodeId
    certificate: Certificate | None = None
    online: bool = False
    addresses: Addresses = ()
    relays: Annotated[tuple[NodeId, ...], Meta(max_length=MAX_ADDRESSES)] = ()


class Members(_Said, frozen=True, kw_only=True, tag="members"):
    """The directory, or what has changed in it.

    Attributes:
        version: of the directory when all of this is known.
        snapshot: who is not in it is not known any more.
        more: the next message goes on with it, and has the same version.
    """

    version: Version
    snapshot: bool = False
    more: bool = False
    entries: Annotated[tuple[Member, ...], Meta(max_length=MAX_MEMBERS)] = ()


class Where(_Said, frozen=True, kw_only=True, tag="where"):
    """Who has this node id, IP address (4 or 16 bytes) or MAC? Exactly one of them."""

    node_id: NodeId | None = None
    ip: Annotated[bytes, Meta(min_length=4, max_length=16)] | None = None
    mac: Annotated[bytes, Meta(min_length=6, max_length=6)] | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.node_id, self.ip, self.mac)) != 1:
            raise ValueError("one of node_id, ip and mac is wanted")
        if self.ip is not None and len(self.ip) not in (4, 16):
            raise ValueError(f"an IP address of {len(self.ip)} bytes")


class Here(_Said, frozen=True, kw_only=True, tag="here"):
    """The answer to `asked`; nobody when it is empty. Entries have their certificates."""

    asked: Where
    entries: Annotated[tuple[Member, ...], Meta(max_length=MAX_ADDRESSES)] = ()


class Gone(_Said, frozen=True, kw_only=True, tag="gone"):
    """The path to a member through this relay has ended, and only that (mesh-rules E2)."""

    node_id: NodeId
    reason: Word


class Busy(_Said, frozen=True, kw_only=True, tag="busy"):
    """Not now, but in so many seconds."""

    retry_after: WaitS
    reason: Word = "busy"


class Error(_Said, frozen=True, kw_only=True, tag="error"):
    """What the receiver has asked for is not to be had."""

    reason: Word
    detail: Text = ""


# --- Pieces -----------------------------------------------------------------------------------


class Part(_Said, frozen=True, kw_only=True, tag="part"):
    """A piece of an encoded message of `size` bytes; pieces come in order, without gaps."""

    size: Annotated[int, Meta(ge=1, le=LARGE_MESSAGE_MAX_BYTES)]
    offset: Annotated[int, Meta(ge=0, le=LARGE_MESSAGE_MAX_BYTES)]
    data: Annotated[bytes, Meta(min_length=1, max_length=PART_MAX_BYTES)]


Message = (
    Join
    | Renew
    | Joined
    | Refused
    | Hello
    | Trust
    | Lists
    | Renewed
    | Attach
    | Members
    | Where
    | Here
    | Gone
    | Busy
    | Error
    | Part
)
#: what may be larger than 64 KiB
LARGE: Final = (Joined, Lists)

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return a message as bytes: at most 64 KiB, or 384 KiB for those in LARGE.

    Raises:
        LocalProtocolError: the other side would refuse it.
    """
    data = _encoder.encode(message)
    limit = LARGE_MESSAGE_MAX_BYTES if isinstance(message, LARGE) else MESSAGE_MAX_BYTES
    try:
        # msgspec looks at limits when it reads, and they are the other side's as well.
        decode(data, limit)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"{type(message).__name__} cannot be sent: {error}") from None
    return data


def decode(data: bytes, max_bytes: int = MESSAGE_MAX_BYTES) -> Message:
    """Return the message in these bytes.

    Args:
        data: of a record without its inner type, or put together from parts; of any length.
        max_bytes: more than 64 KiB counts for those in LARGE only.
    Raises:
        RemoteProtocolError: too long, not MessagePack, not a message of these, or beyond a limit.
    """
    if len(data) > max_bytes:
        raise RemoteProtocolError(f"mesh message of {len(data)} bytes, at most {max_bytes}")
    try:
        message = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        # RecursionError: a field that we do not know is skipped, however deep it is.
        raise RemoteProtocolError(f"mesh message refused: {error}") from None
    if len(data) > MESSAGE_MAX_BYTES and not isinstance(message, LARGE):
        raise RemoteProtocolError(f"{type(message).__name__} of {len(data)} bytes")
    return message
