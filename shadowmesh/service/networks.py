"""How this machine comes into a network and out of it, and what an operator asks of it there.

Owns: the operations of the API that are about networks: create, invite, join, leave, remove. Does
not know: HTTP, sessions; how an answer of a relay is judged (`network`). Loaded by the first who
asks for one of them.

What changes who this machine is takes effect when the daemon begins anew, which `begin_again` asks
for; until then it goes on as it was.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

from shadowmesh.base import log
from shadowmesh.base.clock import utc_now
from shadowmesh.base.errors import (
    AlreadyConnecting,
    AlreadyInNetwork,
    BadCertificate,
    BadList,
    BadRequest,
    BadToken,
    ConfigError,
    ConfigurationWrong,
    ConnectTimeout,
    ControlError,
    IssuerRefused,
    KeyFileError,
    PeerRefused,
    PeerUnreachable,
    ShadowMeshError,
)
from shadowmesh.config import Addresses, check_beside_network, joined, values
from shadowmesh.device import addresses
from shadowmesh.insight.network import (
    Admission,
    Founded,
    InvitationReport,
    Invited,
    NetworkReport,
    RelayReport,
    Relays,
)
from shadowmesh.keys import sodium
from shadowmesh.network import joining, registrar, subnet
from shadowmesh.network.facts import KnownRelay
from shadowmesh.network.ledger import Invitation, Terms
from shadowmesh.network.membership import Membership
from shadowmesh.network.store import Store
from shadowmesh.service.member import ASK_TIMEOUT_S, Ask, Member, need, tunnel_addresses
from shadowmesh.service.member_view import list_reports
from shadowmesh.wire.mesh import identifiers
from shadowmesh.wire.mesh.messages import Busy, Join, Joined, Refused
from shadowmesh.wire.mesh.token import Token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shadowmesh.config import Config, HostPort, LoadedConfig
    from shadowmesh.insight.events import Recorder
    from shadowmesh.keys.identity import Identity
    from shadowmesh.network.facts import Facts
    from shadowmesh.network.registrar import Registrar
    from shadowmesh.wire.handshake.agreement import HandshakeResult

_log = log.get("network")


@dataclass(frozen=True, slots=True)
class Place:
    """What the operations work with, for those that stand elsewhere (`custody`).

    Attributes:
        file, ask, begin_again, recorder: as for `Networks`.
        changing: a context in which nobody else changes who this machine is, and every failure comes
            out as one of the API.
        own_networks: (interface, network) of this machine.
        check_listens: raises ConfigurationWrong: with it the daemon could not listen.
    """

    file: Callable[[], LoadedConfig]
    member: Member | None
    store: Store
    ask: Ask
    changing: Callable[[], AbstractContextManager[None]]
    own_networks: Callable[[], list[tuple[str, subnet.Network]]]
    check_listens: Callable[[Config], None]
    begin_again: Callable[[], None]
    recorder: Recorder


class Networks:
    """The operations.

    Args:
        file: returns the configuration of now, without a network.
        tunnel_device: name of our TAP device.
        ask: as `ConnectionManager.ask_to_join`.
        check_port: as `PeerPort.check`.
        begin_again: lets the daemon begin anew, soon.
        recorder: told when this machine comes into a network, and out of it.
    """

    def __init__(
        self,
        file: Callable[[], LoadedConfig],
        member: Member | None,
        tunnel_device: str,
        ask: Ask,
        check_port: Callable[[Config], None],
        begin_again: Callable[[], None],
        recorder: Recorder,
    ) -> None:
        self._file = file
        self._member = member
        self._store = Store(file().config.daemon.state_dir)
        self._tunnel_device = tunnel_device
        self._ask = ask
        self._check_port = check_port
        self._begin_again = begin_again
        self._recorder = recorder
        #: somebody is making, joining or leaving a network
        self._busy = False

    @property
    def place(self) -> Place:
        """What these operations work with."""
        return Place(
            self._file,
            self._member,
            self._store,
            self._ask,
            self._changing,
            lambda: addresses.networks(self._tunnel_device),
            self._check_listens,
            self._begin_again,
            self._recorder,
        )

    # --- into a network, and out --------------------------------------------------------------

    def create(
        self, name: str, own_name: str | None, subnets: Sequence[str], address: str | None
    ) -> Founded:
        """Make a network with this machine as its relay and issuer.

        Raises:
            ControlError: it cannot be, and nothing has changed.
        """
        with self._changing():
            self._check_free()
            check_beside_network(self._file())
            chosen = self._subnets(subnets)
            target = None if address is None else _address(address)
            port = None if target is None else target.port
            planned = joined(self._file(), name, _first_addresses(chosen), (), port)
            self._check_listens(planned.config)
            membership, recovery_key = registrar.found(
                self._store, name, own_name or host_label(), chosen, target, utc_now()
            )
            _log.info(
                "made, with this machine as its relay", network=name, subnets=list(map(str, chosen))
            )
            own = membership.certificate.name
            self._recorder.record("network", "made a network", network=name, name=own)
            self._begin_again()
            return Founded(report(membership, issuer=True), recovery_key)

    def join(
        self, token: str, name: str | None, accept: bool, announce: Sequence[str]
    ) -> Admission:
        """Ask the relays of an invitation to be let in, and become a member if it is accepted.

        Args:
            announce: host:port by which other members may dial this machine.
        Raises:
            ControlError: it cannot be; a member of the same network is `AlreadyInNetwork`.
        """
        try:
            invitation = Token.parse(token)
        except BadToken as error:
            raise BadRequest(str(error)) from None
        announced = tuple(map(_address, announce))
        with self._changing():
            self._check_free(invitation)
            # Before anybody is asked: an answer makes this machine a member in the eyes of others.
            check_beside_network(self._file())
            self._check_listens(self._file().config)
            identity = self._store.begin_joining(invitation.invitation_id)
            answer, reached = self._asked(invitation, identity, name or host_label())
            judged = joining.judge(
                joining.Answer(
                    answer.certificate, answer.trust_list, answer.revocation_lists, answer.subnets
                ),
                network_id=invitation.network_id,
                fingerprint=invitation.authority_fingerprint,
                public_key=identity.public_key,
                local=utc_now(),
                own_networks=addresses.networks(self._tunnel_device),
            )
            if accept:
                self._become(identity, answer, judged, reached, announced)
            certificate = judged.certificate
            return Admission(
                network=certificate.network_name,
                authority=fingerprint(invitation.authority_fingerprint),
                relay=str(reached.address),
                name=certificate.name,
                addresses=tuple(map(str, certificate.addresses)),
                subnets=tuple(map(str, judged.subnets)),
                doubts=judged.doubts,
                taken=accept,
            )

    def _become(
        self,
        identity: Identity,
        answer: Joined,
        judged: joining.Membership,
        reached: KnownRelay,
        announce: tuple[HostPort, ...],
    ) -> None:
        name, own = judged.certificate.network_name, judged.certificate
        joined(self._file(), name, tunnel_addresses(own, judged.subnets), ())
        membership = Membership.take_in(
            self._store, identity, answer, judged, reached, utc_now(), announce
        )
        _log.info(
            "this machine has joined",
            network=membership.facts.name,
            name=membership.certificate.name,
        )
        self._recorder.record("network", "joined a network", network=name, name=own.name)
        self._begin_again()

    def leave(self) -> None:
        """Forget the network. Raises NotInNetwork."""
        with self._changing():
            facts = need(self._member).membership.facts
            self._store.leave()
            _log.info("this machine has left", network=facts.name)
            self._recorder.record("network", "left the network", network=facts.name)
            self._begin_again()

    # --- within one ---------------------------------------------------------------------------

    def network(self) -> NetworkReport | None:
        """Tell which network this machine is in."""
        member = self._member
        if member is None:
            return None
        return report(
            member.membership,
            issuer=member.registrar is not None,
            problem=member.meeting.problem,
        )

    def relays(self) -> Relays:
        """Tell of the relays of the network."""
        return need(self._member).relays()

    def invite(
        self,
        name: str | None,
        expires_s: int,
        uses: int,
        roles: Sequence[str],
        tags: Sequence[str],
        addresses: Sequence[str],
    ) -> Invited:
        """Make an invitation."""
        member = need(self._member)
        try:
            given = tuple(ip_address(one) for one in addresses)
        except ValueError as error:
            raise BadRequest(f"addresses: {error}") from None
        terms = Terms(name, tuple(roles), tuple(tags), given)
        with told():
            issuing = member.issuing()
            token = issuing.invite(terms, utc_now(), timedelta(seconds=expires_s), uses)
            if member.desk is not None:
                member.desk.look()
            return invited(issuing, token)

    def invitations(self) -> Sequence[InvitationReport]:
        """Tell of all invitations, the newest first."""
        with told():
            return [_invitation(one) for one in need(self._member).issuing().invitations()]

    def cancel(self, id_: str | None) -> int:
        """Cancel an invitation, or all; return how many were open."""
        member = need(self._member)
        with told():
            count = member.issuing().cancel(None if id_ is None else _id(id_), utc_now())
            if member.desk is not None:
                member.desk.look()
        if count == 0 and id_ is not None:
            raise BadRequest(f"no open invitation has the id {id_}; `shadowmesh invite list`")
        return count

    def remove(self, name: str) -> Sequence[str]:
        """Put a member out; return the names of all that are out with it."""
        with told():
            _, out = need(self._member).issuing().remove(name, utc_now())
        _log.info("a member was removed", name=name)
        return [one.name for one in out]

    # --- inside -------------------------------------------------------------------------------

    def _check_listens(self, config: Config) -> None:
        """Raises ConfigurationWrong: the daemon would begin anew, and then could not listen."""
        try:
            self._check_port(config)
        except ShadowMeshError as error:
            raise ConfigurationWrong(str(error)) from None

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One after the other, and every failure as one of the API."""
        if self._busy:
            raise AlreadyConnecting("somebody else is making, joining or leaving a network")
        self._busy = True
        try:
            with told():
                yield
        finally:
            self._busy = False

    def _check_free(self, invitation: Token | None = None) -> None:
        """Raises AlreadyInNetwork."""
        if self._member is None:
            return
        facts = self._member.membership.facts
        own = self._member.membership.certificate.name
        if invitation is not None and facts.network_id.startswith(invitation.network_id):
            raise AlreadyInNetwork(f"this machine is in the network {facts.name} already, as {own}")
        raise AlreadyInNetwork(
            f"this machine is in the network {facts.name}; `shadowmesh leave` comes first"
        )

    def _subnets(self, texts: Sequence[str]) -> tuple[subnet.Network, ...]:
        """Return the subnets that were named, or one of each kind that overlaps nothing here."""
        own = addresses.networks(self._tunnel_device)
        try:
            given = tuple(ip_network(one) for one in texts)
        except ValueError as error:
            raise BadRequest(f"subnet: {error}") from None
        for one in given:
            doubt = subnet.overlapping(one, own)
            if doubt is not None:
                raise BadRequest(f"{doubt}; name another with --subnet")
        kinds = {one.version for one in given}
        if len(kinds) != len(given):
            raise BadRequest("at most one subnet of IPv4 and one of IPv6")
        chosen = list(given)
        if 4 not in kinds:
            taken = [one for _, one in own]
            chosen.insert(0, subnet.choose(taken, sodium.random_bytes(2)))
        if 6 not in kinds:
            chosen.append(subnet.local_prefix(sodium.random_bytes(5)))
        return tuple(chosen)

    def _asked(self, invitation: Token, identity: Identity, name: str) -> tuple[Joined, KnownRelay]:
        """Ask the relays of an invitation one after the other, until one answers."""
        failure: ControlError = PeerUnreachable("the invitation names no relay")
        for relay in invitation.relays:
            where = KnownRelay(_address(relay.address), relay.public_key)

            def question(result: HandshakeResult, relay_key: bytes = relay.public_key) -> Join:
                proof = identifiers.join_proof(
                    identifiers.invitation_key(invitation.secret),
                    invitation.network_id,
                    invitation.invitation_id,
                    identity.public_key,
                    relay_key,
                    result.h,
                    name,
                )
                return Join(invitation_id=invitation.invitation_id, proof=proof, name=name)

            try:
                answer = self._ask(
                    where.address, identity, where.public_key, question, ASK_TIMEOUT_S
                )
            except (PeerUnreachable, ConnectTimeout, PeerRefused) as error:
                failure = error
                continue
            match answer:
                case Joined():
                    return answer, where
                case Refused(reason=reason, detail=detail):
                    raise PeerRefused(
                        f"{where.address} did not let this machine join: {detail or reason}"
                    )
                case Busy(retry_after=seconds):
                    failure = PeerRefused(f"{where.address} is busy; try again in {seconds} s")
        raise failure


def _first_addresses(subnets: Sequence[subnet.Network]) -> Addresses:
    """Return those that whoever makes a network gets in it."""
    return Addresses(
        ip_interface(f"{subnet.next_address(one, ())}/{one.prefixlen}") for one in subnets
    )


def host_label() -> str:
    """Return the name of this host as a DNS label: what a member is called by itself."""
    label = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower().partition(".")[0])
    return label[:63].strip("-") or "member"


def fingerprint(data: bytes) -> str:
    """Return a fingerprint, or its beginning, in groups that people compare."""
    text = data[:16].hex()
    return "-".join(text[at : at + 4] for at in range(0, len(text), 4))


def report(membership: Membership, *, issuer: bool, problem: str | None = None) -> NetworkReport:
    """Return what operators are told of a network. `problem`: among its members."""
    facts, own = membership.facts, membership.certificate
    return NetworkReport(
        name=facts.name,
        network_id=facts.network_id.hex(),
        authorities=tuple(
            fingerprint(one.fingerprint) for one in membership.trust_list.authorities
        ),
        subnets=tuple(map(str, facts.subnets)),
        own=own.name,
        addresses=tuple(map(str, own.addresses)),
        roles=tuple(sorted(own.roles)),
        tags=tuple(sorted(own.tags)),
        expires_at=own.not_after.timestamp(),
        issuer=issuer,
        members=tuple(sorted(one.name for one in membership.members)),
        relays=tuple(_relays(membership, facts)),
        lists=list_reports(membership),
        problem=membership.problem or problem or membership.disk_problem,
    )


def _relays(membership: Membership, facts: Facts) -> Iterator[RelayReport]:
    for one in facts.relays:
        known = membership.of_key(one.public_key)
        yield RelayReport(None if known is None else known.name, str(one.address))


def invited(issuing: Registrar, token: Token) -> Invited:
    """Return what operators are told of a new invitation."""
    made = next(one for one in issuing.invitations() if one.id == token.invitation_id)
    return Invited(_invitation(made), token.text())


def _invitation(one: Invitation) -> InvitationReport:
    if one.cancelled:
        state = "cancelled"
    elif one.used >= one.uses:
        state = "used"
    elif one.expires_at <= utc_now():
        state = "expired"
    else:
        state = "open"
    return InvitationReport(
        id=one.id.hex(),
        name=one.terms.name,
        roles=one.terms.roles,
        tags=one.terms.tags,
        addresses=tuple(map(str, one.terms.addresses)),
        uses=one.uses,
        used=one.used,
        made_at=one.made_at.timestamp(),
        expires_at=one.expires_at.timestamp(),
        state=state,
    )


def _id(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise BadRequest("an invitation's id has 16 hexadecimal digits") from None


def _address(text: str) -> HostPort:
    try:
        return values.peer(text)
    except ValueError as error:
        raise BadRequest(f"address: {error}") from None


@contextmanager
def told() -> Iterator[None]:
    """Let what files and answers are worth come out as what the API tells."""
    try:
        yield
    except (BadCertificate, BadList) as error:
        raise PeerRefused(str(error)) from None
    except KeyFileError as error:
        raise IssuerRefused(str(error), "disk") from None
    except ConfigError as error:
        raise ConfigurationWrong(str(error.problems[0])) from None
