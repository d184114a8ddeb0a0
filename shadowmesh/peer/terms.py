"""What the configuration means for one session.

Owns: how configuration keys become the policy and the offer of a handshake and the times of a
session. Does not know: handshakes, links, states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol

from shadowmesh._fastpath import build_info
from shadowmesh.base.clock import utc_now
from shadowmesh.base.constants import Caps, RejectReason
from shadowmesh.base.errors import BadCertificate, LocalProtocolError
from shadowmesh.wire.handshake.agreement import AEGIS_256, CHACHA20_POLY1305, Offer, Policy

if TYPE_CHECKING:
    from collections.abc import Collection

    from shadowmesh.config import Config, PeerEntry
    from shadowmesh.keys.identity import Identity
    from shadowmesh.network.membership import Membership
    from shadowmesh.wire.handshake.agreement import HandshakeResult
    from shadowmesh.wire.mesh.joining import Answer, Question


#: whoever shows such a certificate can get one that counts (mesh-rules C5)
_RENEWABLE: Final = ("expired", "superseded")


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a member is not taken: for our own log, and the little that a dialler is told."""

    detail: str
    reason: RejectReason = RejectReason.POLICY


class Desk(Protocol):
    """The relay's side: whoever shows an invitation comes here."""

    @property
    def open(self) -> bool:
        """Whether any invitation may be shown; nobody who wants to join is heard otherwise."""

    def answer(self, question: Question, result: HandshakeResult, source: str) -> Answer:
        """Return what somebody is told who has proved a key. `source`: where it came from."""


@dataclass(frozen=True, slots=True)
class Asking:
    """The joiner's side.

    Attributes:
        identity: our key in that network, which need not be that of this daemon.
        relay_key: the key that has to answer.
        question: what is asked of a relay that has proved its key; None: nothing, and it ends.
        told: gets the answer, of which nothing is verified.
    """

    identity: Identity
    relay_key: bytes
    question: Callable[[HandshakeResult], Question | None]
    told: Callable[[Answer], None]


class Met(Protocol):
    """What hears the other side of a session about the network."""

    def receive(self, body: bytes) -> None:
        """Take a record. Raises RemoteProtocolError: it breaks a rule, and the session ends."""

    def left(self) -> None:
        """The session has ended."""


#: see Terms.meet
Meet = Callable[[bytes, Callable[[bytes], bool], str], Met | None]


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one session; `*_s` are seconds.

    Attributes:
        certificate: what we show to members, DER; empty in a pair.
        judge: between members: told what the handshake has proved and the certificate that the
            peer has shown, says why it is not taken, None when it is. Called in the middle of what
            the peer has sent, because what it sends next may be heard then, and so must not wait.
        asking: this is no session: we ask to be let into a network.
        desk: whoever comes to us and wants to join is answered there; None: nobody is.
        meet: between members: told the certificate that was judged, how to send its owner a record
            about the network and where it is; returns what takes those of the other side, None when
            it is no member any more.
        dropped: records that were dropped beside those of the data plane, by reason: of all sessions
            of this daemon together.
    """

    policy: Policy
    offer: Offer
    rotation_interval_s: float
    keepalive_interval_s: float
    read_timeout_s: float
    write_timeout_s: float
    hole_punch_timeout_s: float
    certificate: bytes = b""
    judge: Callable[[HandshakeResult, bytes], Unfit | None] | None = None
    asking: Asking | None = None
    desk: Desk | None = None
    meet: Meet | None = None
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.policy.member and self.judge is None:
            raise LocalProtocolError("members, and nobody who judges their certificates")

    @property
    def to_join(self) -> Policy:
        """Who we are to somebody who wants to join, or to the relay by which we want to."""
        asking = self.asking
        return replace(
            self.policy,
            identity=self.policy.identity if asking is None else asking.identity,
            psk=None,
            psks=(),
            peer_public_key=None if asking is None else asking.relay_key,
            trusted=None,
            member=False,
            join=True,
        )


def terms_of(
    config: Config,
    identity: Identity,
    certificate_sha256: bytes,
    *,
    udp: bool,
    udp_super_frames: bool,
    dialled: PeerEntry | None = None,
    trusted: Collection[bytes] | None = None,
    membership: Membership | None = None,
    asking: Asking | None = None,
    desk: Desk | None = None,
    meet: Meet | None = None,
    dropped: Counter[str] | None = None,
    older_secret: bool = False,
) -> Terms:
    """Return the terms for a session over a link with this TLS certificate, served or seen.

    Args:
        config: whose `mode` is not 0.
        udp: there is a UDP socket.
        udp_super_frames: our kernel takes super-frames of datagrams, not only of streams.
        dialled: whom we want to reach; None: somebody has come to us.
        trusted: with a list of peers, the keys of which whoever comes to us must have one.
        membership: ours, in a network; None: this is about a pair or a list of peers.
        asking: we want to join a network.
        desk: of a network's relay, when somebody has come to us.
        meet: as in `Terms`.
        dropped: as in `Terms`; None: of this session alone.
        older_secret: dial with the network's secret before the newest, if it is known.
    """
    pin = config.peer.public_key if dialled is None else dialled.public_key
    key = config.encryption.key
    cipher = config.encryption.cipher
    caps = Caps(0)
    if build_info()["aegis256"] and cipher != CHACHA20_POLY1305:
        caps |= Caps.AEGIS256
    if config.network.offload:
        caps |= Caps.OFFLOAD
        if udp_super_frames:
            caps |= Caps.UDP_GSO
    if udp:
        caps |= Caps.UDP
    terms = Terms(
        policy=Policy(
            identity=identity,
            psk=None if key is None else key.reveal(),
            peer_public_key=pin,
            trusted=trusted if dialled is None else None,
            require_cipher=AEGIS_256 if cipher == AEGIS_256 else None,
        ),
        # The session chooses a fresh key id for each handshake.
        offer=Offer(int(caps), config.network.mtu, certificate_sha256, key_id=0),
        rotation_interval_s=config.encryption.rotation_interval,
        keepalive_interval_s=config.websocket.keepalive_interval,
        read_timeout_s=config.websocket.read_timeout,
        write_timeout_s=config.websocket.write_timeout,
        hole_punch_timeout_s=config.nat.hole_punch_timeout,
        asking=asking,
        desk=desk,
        meet=meet,
        dropped=Counter() if dropped is None else dropped,
    )
    return (
        terms
        if membership is None
        else _of_member(terms, membership, dialled, older_secret=older_secret)
    )


def _of_member(
    terms: Terms, membership: Membership, dialled: PeerEntry | None, *, older_secret: bool
) -> Terms:
    """Return the terms between members: the network's secret, and a certificate of each."""
    psks = membership.psks
    key = None if dialled is None else dialled.public_key

    def judge(result: HandshakeResult, certificate: bytes) -> Unfit | None:
        try:
            membership.judge(result.peer_public_key, certificate, utc_now())
        except BadCertificate as error:
            reason = RejectReason.RENEW if error.kind in _RENEWABLE else RejectReason.POLICY
            return Unfit(str(error), reason)
        return None

    return replace(
        terms,
        policy=replace(
            terms.policy,
            psk=None if key is None else psks[-1 if older_secret else 0],
            psks=psks if key is None else (),
            peer_public_key=key,
            trusted=None,
            member=True,
        ),
        certificate=membership.certificate.der,
        judge=judge,
    )
