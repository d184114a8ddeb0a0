"""The network that this machine is in, and the invitations to it, as operators are told.

Owns: what is said, and its JSON form. Does not know: where it comes from (`network`), HTTP. Nothing
of it is secret but the text of a new invitation and the recovery key, which are told once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shadowmesh.insight.form import SCHEMA, format_time, rounded


@dataclass(frozen=True, slots=True)
class RelayReport:
    """A relay of the network. `name` None: its certificate is not known yet."""

    name: str | None
    address: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "address": self.address}


@dataclass(frozen=True, slots=True)
class MeasuredRelay:
    """A relay as it is seen from here.

    Attributes:
        address: host:port where it is dialled; None: it is not known.
        session: whether there is one.
        rtt_ms: the best round trip of the last minutes over its session, None before the first.
        home: whether it is the one by which others find this machine.
    """

    name: str
    address: str | None
    session: bool
    rtt_ms: float | None
    home: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "address": self.address,
            "session": self.session,
            "rtt_ms": rounded(self.rtt_ms, 3),
            "home": self.home,
        }


@dataclass(frozen=True, slots=True)
class Relays:
    """The other relays of the network.

    Attributes:
        reason: why the one that is home is it, or why none is.
    """

    relays: tuple[MeasuredRelay, ...]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "relays": [relay.to_dict() for relay in self.relays],
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class ListReport:
    """The newest revocation list of one signer; `issued_at` is unix time."""

    number: int
    issued_at: float
    entries: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "issued_at": format_time(self.issued_at),
            "entries": self.entries,
        }


@dataclass(frozen=True, slots=True)
class NetworkReport:
    """What is known of the network; moments are unix time.

    Attributes:
        network_id: 64 hexadecimal digits.
        authorities: their fingerprints, as many digits each.
        name, own: of the network, and of this machine in it.
        addresses: of this machine in the tunnel.
        members: their names, this machine's too.
        expires_at: end of our certificate.
        issuer: whether this machine makes invitations and removes members.
        problem: why our certificate counts no more, or what cannot be written; None: all is well.
    """

    name: str
    network_id: str
    authorities: tuple[str, ...]
    subnets: tuple[str, ...]
    own: str
    addresses: tuple[str, ...]
    roles: tuple[str, ...]
    tags: tuple[str, ...]
    expires_at: float
    issuer: bool
    members: tuple[str, ...]
    relays: tuple[RelayReport, ...]
    lists: tuple[ListReport, ...]
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "network_id": self.network_id,
            "authorities": list(self.authorities),
            "subnets": list(self.subnets),
            "own": self.own,
            "addresses": list(self.addresses),
            "roles": list(self.roles),
            "tags": list(self.tags),
            "expires_at": format_time(self.expires_at),
            "issuer": self.issuer,
            "members": list(self.members),
            "relays": [relay.to_dict() for relay in self.relays],
            "lists": [one.to_dict() for one in self.lists],
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    """What a snapshot tells of the network; moments are unix time. `NetworkReport` has the names.

    Attributes:
        name, own: of the network, and of this machine in it.
        addresses: of this machine in the tunnel.
        issuer: whether this machine makes invitations and removes members.
        members_known: how many, this machine too.
        attached: sessions with members that get the directory from here.
        directory_version: counts the changes of the directory since the start; None: this machine
            is no relay, and keeps none.
        relays: the others of the network, and in `home_reason` why the one that is home is it, or
            why none is.
        expires_at: end of our certificate.
        lists: the newest revocation list of each signer.
        refused: what members have said and what did not count, by one word.
        join_answers: what those were told who wanted to join, `joined` or the reason of a refusal.
        problem: why our certificate counts no more, or what cannot be written; None: all is well.
    """

    name: str
    own: str
    addresses: tuple[str, ...]
    roles: tuple[str, ...]
    issuer: bool
    members_known: int
    attached: int
    directory_version: int | None
    relays: tuple[MeasuredRelay, ...]
    home_reason: str
    expires_at: float
    lists: tuple[ListReport, ...]
    refused: Mapping[str, int]
    join_answers: Mapping[str, int]
    problem: str | None

    @property
    def newest_list(self) -> ListReport | None:
        """The list that was made last: when one was, somebody still signs them."""
        return max(self.lists, key=lambda one: one.issued_at, default=None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "own": self.own,
            "addresses": list(self.addresses),
            "roles": list(self.roles),
            "issuer": self.issuer,
            "members_known": self.members_known,
            "attached": self.attached,
            "directory_version": self.directory_version,
            "relays": [relay.to_dict() for relay in self.relays],
            "home_reason": self.home_reason,
            "expires_at": format_time(self.expires_at),
            "lists": [one.to_dict() for one in self.lists],
            "refused": dict(sorted(self.refused.items())),
            "join_answers": dict(sorted(self.join_answers.items())),
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class Founded:
    """A network that was made just now. `recovery_key` is kept nowhere: it is shown this once."""

    network: NetworkReport
    recovery_key: str = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "network": self.network.to_dict(),
            "recovery_key": self.recovery_key,
        }


@dataclass(frozen=True, slots=True)
class Admission:
    """What came of an invitation.

    Attributes:
        taken: this machine is a member now; else it would be, and nothing was changed but that the
            invitation is bound to its key.
        relay: host:port of the relay that answered.
        doubts: sentences to think about before it is taken.
    """

    network: str
    authority: str
    relay: str
    name: str
    addresses: tuple[str, ...]
    subnets: tuple[str, ...]
    doubts: tuple[str, ...]
    taken: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "network": self.network,
            "authority": self.authority,
            "relay": self.relay,
            "name": self.name,
            "addresses": list(self.addresses),
            "subnets": list(self.subnets),
            "doubts": list(self.doubts),
            "taken": self.taken,
        }


@dataclass(frozen=True, slots=True)
class InvitationReport:
    """One invitation; moments are unix time.

    Attributes:
        id: 16 hexadecimal digits.
        name: of the member that it makes; None: the joiner chooses.
        state: "open", "used", "expired" or "cancelled".
    """

    id: str
    name: str | None
    roles: tuple[str, ...]
    tags: tuple[str, ...]
    addresses: tuple[str, ...]
    uses: int
    used: int
    made_at: float
    expires_at: float
    state: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "roles": list(self.roles),
            "tags": list(self.tags),
            "addresses": list(self.addresses),
            "uses": self.uses,
            "used": self.used,
            "made_at": format_time(self.made_at),
            "expires_at": format_time(self.expires_at),
            "state": self.state,
        }


@dataclass(frozen=True, slots=True)
class Invited:
    """A new invitation. `token` is the secret, told this once."""

    invitation: InvitationReport
    token: str = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "invitation": self.invitation.to_dict(),
            "token": self.token,
        }
