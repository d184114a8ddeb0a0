"""This daemon as a member of a network, from its start until it begins anew.

Owns: what of a network the other parts of a daemon are made with, that changes of it reach them, and
its timer. Does not know: how a machine comes into a network or leaves it (`networks`), what a list or
a certificate is worth (`network`). Loaded only by a daemon that is in a network.

::

    Store -> Membership -> configuration, identity          Registrar -> Desk  (with the ledger)
                 |--on_change--> reload of the peers              Meeting <-- sessions
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Final

import gevent

from shadowmesh import __version__
from shadowmesh.base import log
from shadowmesh.base.clock import boottime, next_tick, utc_now
from shadowmesh.base.errors import (
    BadCertificate,
    BadList,
    ControlError,
    IssuerRefused,
    KeyFileError,
    NotInNetwork,
    PeerRefused,
)
from shadowmesh.config import Addresses, joined
from shadowmesh.insight.network import MeasuredRelay, Relays
from shadowmesh.keys import sodium
from shadowmesh.network.home import HomeChooser
from shadowmesh.network.ledger import FILE as LEDGER
from shadowmesh.network.meeting import Meeting
from shadowmesh.network.membership import Membership
from shadowmesh.network.registrar import Registrar
from shadowmesh.network.store import Store
from shadowmesh.service.desk import Desk
from shadowmesh.service.member_view import MemberView
from shadowmesh.service.news import News
from shadowmesh.wire.mesh.messages import Joined, Renew

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from shadowmesh.config import Config, HostPort, LoadedConfig, PeerEntry
    from shadowmesh.insight.events import Recorder
    from shadowmesh.keys.identity import Identity
    from shadowmesh.network.certificate import Certificate
    from shadowmesh.network.subnet import Network
    from shadowmesh.wire.handshake.agreement import HandshakeResult
    from shadowmesh.wire.mesh.joining import Answer, Question

#: between two looks at what waits to be said, and at what has changed in the directory
TICK_S: Final = 1.0
#: of one relay, from the dial to its answer
ASK_TIMEOUT_S: Final = 15.0
#: between two questions for a newer certificate
RENEW_PAUSE_S: Final = 60.0
#: so many of them between two looks at the ledger and at lists
LOOK_TICKS: Final = 60

#: asks a relay to be let in: address, our key, the relay's, the question, seconds
Ask = Callable[
    ["HostPort", "Identity", bytes, Callable[["HandshakeResult"], "Question"], float], "Answer"
]

_SEE_PROBLEM: Final = (
    "the cause says what to do; `shadowmesh network show` has it as long as it lasts"
)

_log = log.get("network")


class Member:
    """What a daemon in a network has beside that of others.

    Attributes:
        membership: what this machine is.
        registrar, desk: on the machine with the ledger; None elsewhere.
        meeting: what members tell each other.
        view: what operators see of it.
    """

    def __init__(self, state_dir: Path, membership: Membership) -> None:
        self.membership = membership
        self.registrar: Registrar | None = None
        self.desk: Desk | None = None
        store = Store(state_dir)
        if (store.path / LEDGER).exists():
            self.registrar = Registrar(store, membership)
            self.desk = Desk(self.registrar)
        self.meeting = Meeting(
            membership,
            software=f"shadowmesh {__version__}",
            boot_id=sodium.random_bytes(16),
            now=utc_now,
            seconds=time.monotonic,
        )
        self.view = MemberView(self)
        self._on_members: Callable[[], None] = lambda: None
        self._ask: Ask
        self._round_trips: Callable[[], dict[bytes, float | None]] = dict
        self._homes = HomeChooser()
        self._news: News
        self._renew_at = 0.0
        self._greenlet: gevent.Greenlet | None = None

    @classmethod
    def load(cls, config: Config) -> Member:
        """Return what disk and configuration say this machine is.

        Raises:
            KeyFileError: a file is wrong, or missing.
        """
        state_dir = config.daemon.state_dir
        membership = Membership.load(Store(state_dir), utc_now())
        if membership is None:
            raise KeyFileError(f"{Store(state_dir).path}: there is no certificate any more")
        if config.mesh.announce:
            membership.announce(config.mesh.announce)
        return cls(state_dir, membership)

    def configuration(self, loaded: LoadedConfig) -> LoadedConfig:
        """Return what is in force in this network. Raises ConfigError: something contradicts."""
        return as_member(loaded, self.membership)

    def start(
        self,
        ask: Ask,
        round_trips: Callable[[], dict[bytes, float | None]],
        on_members: Callable[[], None],
        recorder: Recorder,
    ) -> None:
        """Begin to talk.

        Args:
            ask, round_trips: as `ConnectionManager.ask_to_join` and `round_trips`.
            on_members: other members are known, or somebody is out.
            recorder: told what happens.
        """
        self._ask, self._round_trips = ask, round_trips
        facts = self.membership.facts
        _log.info(
            "this machine is a member",
            network=facts.name,
            name=self.membership.certificate.name,
            members=len(self.membership.members),
        )
        if self.membership.problem is not None:
            _log.error(
                "this machine's certificate counts no more",
                cause=self.membership.problem,
                remedy="set the clock if it is wrong, else ask who runs the network; `shadowmesh leave`, then join anew",
            )
        self._on_members = on_members
        self._news = News(self.membership, recorder)
        self.membership.on_change = self._changed
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Stop talking, and close the ledger."""
        if self._greenlet is not None:
            self._greenlet.kill()
        if self.registrar is not None:
            self.registrar.close()

    def may_be_out_of_date(self, peer: PeerEntry, address: HostPort) -> None:
        """A relay refuses us: ask it for our certificate and the secret of today, now and then."""
        known = self.membership.of_key(peer.public_key or b"")
        now = time.monotonic()
        if known is None or "relay" not in known.roles or now < self._renew_at:
            return
        self._renew_at = now + RENEW_PAUSE_S
        gevent.spawn(self._catch_up, address, known.public_key)

    def _catch_up(self, address: HostPort, relay_key: bytes) -> None:
        membership = self.membership
        try:
            answer = self._ask(
                address,
                membership.identity,
                relay_key,
                lambda _result: Renew(certificate=membership.certificate.der),
                ASK_TIMEOUT_S,
            )
            if not isinstance(answer, Joined):
                raise PeerRefused(getattr(answer, "detail", "") or "it is busy")
            membership.catch_up(answer, utc_now())
        except (ControlError, BadCertificate, BadList) as error:
            _log.limited(3600).warning(
                "a relay refuses this member, and gives it no newer certificate or secret",
                relay=str(address),
                cause=error,
                remedy="ask who runs the network: this machine may have been removed",
            )
            return
        _log.info("certificate and secret were renewed", relay=str(address))

    def issuing(self) -> Registrar:
        """Return who invites and removes.

        Raises:
            IssuerRefused: that is another machine.
        """
        if self.registrar is None and "issuer" in self.membership.certificate.roles:
            raise IssuerRefused(
                "the certificates of this network are made by a CA that is not ours: let it sign or"
                " revoke, then `shadowmesh cert bundle` or `shadowmesh cert crl`",
                "not_issuer",
            )
        if self.registrar is None:
            issuers = sorted(one.name for one in self.membership.members if "issuer" in one.roles)
            where = f"; run it on {', '.join(issuers)}" if issuers else ""
            raise IssuerRefused(
                f"this machine does not have the ledger of the network{where}", "not_issuer"
            )
        return self.registrar

    def _changed(self) -> None:
        self._news.look()
        self.meeting.look()
        self._on_members()

    def _run(self) -> None:
        """Talk for ever; ends when killed by stop()."""
        ticks, told = 0, None
        while True:
            now = boottime()
            gevent.sleep(next_tick(now, TICK_S) - now)
            ticks += 1
            try:
                self._look_for_home()
                self.meeting.tick()
                problem = self.meeting.problem
                if problem is not None and problem != told:
                    _log.warning(
                        "something is wrong with a member", cause=problem, remedy=_SEE_PROBLEM
                    )
                    self._news.trouble(problem)
                told = problem
                if ticks % LOOK_TICKS == 0:
                    self.membership.look_at_own(utc_now())
                    if self.desk is not None:
                        self.desk.look()
            except Exception:  # noqa: BLE001 - the network must go on talking
                _log.limited(60).exception("a turn of the network failed by a bug")

    def _look_for_home(self) -> None:
        sessions = self._round_trips()
        relays = {
            one.public_key: sessions[one.public_key]
            for one in self.membership.relays
            if one.public_key in sessions
        }
        if self._homes.look(relays, time.monotonic()):
            choice = self._homes.choice
            known = None if choice.home is None else self.membership.of_key(choice.home)
            _log.info(
                "another relay is home",
                relay=None if known is None else known.name,
                reason=choice.reason,
            )
            self.meeting.live_at(choice.home)

    def relays(self) -> Relays:
        """Tell of the relays of the network, and which one is home."""
        sessions = self._round_trips()
        addresses = {one.public_key: one.address for one in self.membership.facts.relays}
        choice = self._homes.choice
        found = []
        for one in sorted(self.membership.relays, key=lambda one: one.name):
            key = one.public_key
            best_s = self._homes.best_s(key)
            address = addresses.get(key)
            found.append(
                MeasuredRelay(
                    name=one.name,
                    address=None if address is None else str(address),
                    session=key in sessions,
                    rtt_ms=None if best_s is None else best_s * 1000,
                    home=key == choice.home,
                )
            )
        return Relays(tuple(found), choice.reason)


def as_member(loaded: LoadedConfig, membership: Membership) -> LoadedConfig:
    """Return what is in force on a machine with that membership. Raises ConfigError."""
    facts = membership.facts
    own = tunnel_addresses(membership.certificate, facts.subnets)
    return joined(loaded, facts.name, own, membership.peers(), facts.port)


def tunnel_addresses(certificate: Certificate, subnets: Collection[Network]) -> Addresses:
    """Return the addresses of a member, each with the prefix of its subnet."""
    found = []
    for address in certificate.addresses:
        length = next((one.prefixlen for one in subnets if address in one), None)
        found.append(ip_interface(f"{address}/{length}" if length else f"{address}"))
    return Addresses(found)


def need(member: Member | None) -> Member:
    """Return the member.

    Raises:
        NotInNetwork: this machine is none.
    """
    if member is None:
        raise NotInNetwork(
            "this machine is in no network; `shadowmesh join` one, or `shadowmesh network create`"
        )
    return member
