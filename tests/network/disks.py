"""Machines of a network without its wire: a disk each, and what one says to another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from types import SimpleNamespace

from shadowmesh.config import HostPort
from shadowmesh.keys import sodium
from shadowmesh.network import joining, registrar
from shadowmesh.network.facts import KnownRelay
from shadowmesh.network.ledger import Terms
from shadowmesh.network.membership import Membership
from shadowmesh.network.registrar import Registrar
from shadowmesh.network.store import Store
from shadowmesh.wire.mesh import identifiers
from shadowmesh.wire.mesh.messages import Join, Joined, decode, encode
from shadowmesh.wire.mesh.token import Token

NOW = datetime(2026, 12, 1, tzinfo=UTC)
DAY = timedelta(days=1)
HUB = HostPort("relay.example.org", 443)
SUBNETS = (ip_network("10.77.0.0/24"),)


class Disk:
    """A machine, in no network yet."""

    def __init__(self, directory):
        directory.mkdir(mode=0o700)
        self.store = Store(directory)
        self.membership = None

    def found(self, address: HostPort | None = HUB, name: str = "hub"):
        self.membership, self.recovery = registrar.found(
            self.store, "home", name, SUBNETS, address, NOW
        )
        self.registrar = Registrar(self.store, self.membership)
        return self

    def ledger_member(self, name: str):
        """What the ledger of this machine has of a member."""
        return self.registrar._ledger.named(name)

    def begin(self, token: Token):
        """Have the key to join with."""
        self.identity = self.store.begin_joining(token.invitation_id)

    def question(self, token: Token, h: bytes, name: str) -> Join:
        """What is asked of the relay after a handshake with the hash h."""
        key = identifiers.invitation_key(token.secret)
        relay = token.relays[0].public_key
        proof = identifiers.join_proof(
            key, token.network_id, token.invitation_id, self.identity.public_key, relay, h, name
        )
        return Join(invitation_id=token.invitation_id, proof=proof, name=name)

    def ask(self, hub, token: Token, name="", *, change=lambda said: said):
        """What the hub says to a joiner; as if over a session."""
        self.begin(token)
        h = sodium.random_bytes(32)
        said = change(self.question(token, h, name))
        proved = SimpleNamespace(peer_public_key=self.identity.public_key, h=h)
        answer = hub.registrar.answer(said, proved, "192.0.2.1", NOW)
        return decode(encode(answer), 1 << 20)

    def join(self, hub, token: Token, name=""):
        return self.take(self.ask(hub, token, name), token)

    def take(self, answer, token: Token):
        """Become what an answer says."""
        assert isinstance(answer, Joined), answer
        self.membership = Membership.take_in(
            self.store, self.identity, answer, self.judged(answer, token), reached(token), NOW
        )
        return self.membership

    def judged(self, answer: Joined, token: Token):
        return joining.judge(
            joining.Answer(
                answer.certificate, answer.trust_list, answer.revocation_lists, answer.subnets
            ),
            network_id=token.network_id,
            fingerprint=token.authority_fingerprint,
            public_key=self.identity.public_key,
            local=NOW,
            own_networks=(),
        )


def reached(token: Token) -> KnownRelay:
    """What a joiner remembers of the relay of its invitation."""
    host, _, port = token.relays[0].address.rpartition(":")
    return KnownRelay(HostPort(host, int(port)), token.relays[0].public_key)


def invite(hub, name=None, uses=1, **terms) -> Token:
    # An invitation of a relay is for an hour at most.
    expires_in = DAY / 24 if "relay" in terms.get("roles", ()) else DAY
    return Token.parse(hub.registrar.invite(Terms(name, **terms), NOW, expires_in, uses).text())
