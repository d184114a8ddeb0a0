"""What the path machine asks for and tells: the values that cross its border.

Owns: the events of `machine` and the report of a path. Does not know: anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from shadowmesh.wire.control import Endpoint, Probe


class Kind(StrEnum):
    """How an address of the peer became known."""

    HOST = "host"
    REFLEXIVE = "reflexive"
    LEARNED = "learned"  # an authenticated record came from it


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Seal a probe and send it over UDP.

    Attributes:
        endpoint: where to.
        token: 8 random bytes.
        size: of the record's body in bytes, for `control.encode_probe`.
    """

    endpoint: Endpoint
    token: bytes = field(repr=False)
    size: int


@dataclass(frozen=True, slots=True)
class SendProbeAnswer:
    """Answer a probe to where it came from: `control.answer_probe(probe, seen=endpoint)`."""

    endpoint: Endpoint
    probe: Probe


@dataclass(frozen=True, slots=True)
class Refused:
    """Something was not sent because it would go into the tunnel itself.

    Attributes:
        what: "probe" or "answer".
        why: a sentence.
    """

    endpoint: Endpoint
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class UsePath:
    """Send frames this way from now on; what arrives the other way stays welcome.

    Attributes:
        path: "udp" or "wss".
        endpoint: of the peer; None on WSS.
        mtu: the largest UDP payload in bytes, a sealed record with its header; None on WSS. The
            event also comes when nothing but this changed.
        reason: for `path_reason`.
    """

    path: str
    endpoint: Endpoint | None
    mtu: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class PathChanged:
    """A line for the log: the path changed, or the reason why it did not.

    `before` and `after` are "wss" or "udp HOST:PORT".
    """

    before: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True)
class AskPunch:
    """Gather candidates afresh, send CANDIDATES and PUNCH_NOW, then call `punch`."""

    reason: str


@dataclass(frozen=True, slots=True)
class SeenAs:
    """The peer sees us at another address than before: a mapping moved."""

    before: Endpoint
    after: Endpoint


Event = SendProbe | SendProbeAnswer | Refused | UsePath | PathChanged | AskPunch | SeenAs


@dataclass(frozen=True, slots=True)
class PathReport:
    """One address of the peer, for status.

    Attributes:
        endpoint, kind: which, and how it became known.
        proven: a probe of ours was answered from it.
        active: it carries the frames.
        rtt_ms: smoothed round trip of the probes; None before the first answer.
        loss: share of the last probes that were not answered, 0.0 to 1.0; None before the first
            answer.
        mtu: largest UDP payload in bytes; None unless it carries, or carried, frames.
        seen_as: where the peer saw us at the last probe; None before the first answer.
        unanswered: probes of this round of punching, or since an answer, that none came to.
        hindrance: why the last probe was not sent; None when it was.
    """

    endpoint: Endpoint
    kind: Kind
    proven: bool
    active: bool
    rtt_ms: float | None
    loss: float | None
    mtu: int | None
    seen_as: Endpoint | None
    unanswered: int = 0
    hindrance: str | None = None
