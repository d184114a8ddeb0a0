"""Keys and certificates in files, as a daemon is asked for them: without a wire and a device."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from types import SimpleNamespace

import gevent
import pytest

from shadowmesh.base import clock, errors
from shadowmesh.config import HostPort, load
from shadowmesh.insight.events import FlightRecorder
from shadowmesh.network import registrar, trust
from shadowmesh.network.membership import Membership
from shadowmesh.network.registrar import Registrar
from shadowmesh.network.store import Store
from shadowmesh.service import networks, received
from shadowmesh.service.custody import Custody
from shadowmesh.service.networks import Networks
from shadowmesh.wire.mesh.messages import Busy, Joined, Refused
from tests.network.disks import SUBNETS
from tests.words import faults

PASSPHRASE = "correct horse battery staple"
HUB = HostPort("relay.example.org", 443)


class Machine:
    """What a daemon is to those who ask it, each time as after a start."""

    def __init__(self, directory):
        directory.mkdir(mode=0o700)
        settings = {"daemon.state_dir": str(directory)}
        self.loaded = load(None, settings, {"HOME": "/nonexistent"})
        self.store = Store(directory)
        self.member = None
        self.answer = None
        self.asked = []
        self.began = 0
        self.taken = False
        self.start()

    def start(self):
        membership = Membership.load(self.store, clock.utc_now())
        if membership is not None:
            ledger = (self.store.path / "issuer.db").exists()
            found = Registrar(self.store, membership) if ledger else None
            desk = SimpleNamespace(look=lambda: None)
            self.member = SimpleNamespace(
                membership=membership,
                registrar=found,
                desk=desk,
                issuing=lambda: self.issuing(found),
            )
        self.custody = Custody(
            Networks(
                lambda: self.loaded,
                self.member,
                "tap9",
                self.ask,
                self.check_port,
                self.begin_again,
                FlightRecorder(),
            )
        )
        return self

    @staticmethod
    def issuing(found):
        if found is None:
            raise errors.IssuerRefused("this machine does not have the ledger of the network")
        return found

    def begin_again(self):
        self.began += 1

    def ask(self, address, identity, relay_key, question, timeout_s):
        self.asked.append(str(address))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def check_port(self, config):
        if self.taken:
            raise errors.NotPermitted("port 443 is taken")

    def send(self, data: bytes) -> str:
        self.custody.receive(0, data)
        return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub(tmp_path):
    machine = Machine(tmp_path / "hub")
    _, machine.recovery = registrar.found(
        machine.store, "home", "hub", SUBNETS, HUB, clock.utc_now()
    )
    return machine.start()


@pytest.fixture
def laptop(tmp_path):
    return Machine(tmp_path / "laptop")


def signed(hub, machine, name="laptop", **wanted):
    request = machine.custody.request(name).request.encode()
    rest = {"roles": None, "tags": None, "addresses": (), "expires_s": None, **wanted}
    return hub.custody.sign(request, name, **rest)


def authority(hub):
    return networks.fingerprint(hub.member.membership.trust_list.authorities[0].fingerprint)


def installed(hub, machine, **wanted):
    bundle = signed(hub, machine, **wanted).bundle.encode()
    found = machine.custody.install(machine.send(bundle), authority(hub), True)
    machine.start()
    return found


# --- a file in pieces ---------------------------------------------------------------------------


def test_a_file_comes_in_pieces_and_is_used_once():
    file = received.ReceivedFile()
    assert file.receive(0, b"one").bytes == 3
    assert file.receive(3, b"two").bytes == 6
    digest = hashlib.sha256(b"onetwo").hexdigest()
    with pytest.raises(errors.FileNotSent, match="not sent"):
        file.taken(hashlib.sha256(b"one").hexdigest())
    assert file.taken(digest) == b"onetwo"
    with pytest.raises(errors.FileNotSent):
        file.taken(digest)


def test_a_piece_that_does_not_follow_and_one_too_many_are_refused(monkeypatch):
    monkeypatch.setattr(received, "MAX_FILE_BYTES", 4)
    file = received.ReceivedFile()
    file.receive(0, b"abc")
    for offset in (1, 4):
        with pytest.raises(errors.FileNotSent, match="3 bytes are here"):
            file.receive(offset, b"x")
    with pytest.raises(errors.BadRequest, match="at most"):
        file.receive(3, b"xy")
    assert file.receive(0, b"z").bytes == 1


def test_a_file_that_nobody_asks_for_is_forgotten(monkeypatch):
    monkeypatch.setattr(received, "FILE_AGE_S", 0.01)
    file = received.ReceivedFile()
    file.receive(0, b"abc")
    gevent.sleep(0.05)
    with pytest.raises(errors.FileNotSent):
        file.taken(hashlib.sha256(b"abc").hexdigest())


# --- backup -------------------------------------------------------------------------------------


def test_a_backup_is_restored_on_another_machine(hub, laptop):
    made = hub.custody.back_up(PASSPHRASE, hub.recovery)
    assert made.lacking == ()
    data = base64.b64decode(made.backup)
    with pytest.raises(errors.IssuerRefused, match="does not open") as refused:
        laptop.custody.restore(laptop.send(data), "another passphrase")
    assert not faults(str(refused.value))
    restored = laptop.custody.restore(laptop.send(data), PASSPHRASE)
    assert (restored.network.own, restored.cancelled, laptop.began) == ("hub", 0, 1)
    with pytest.raises(errors.AlreadyInNetwork):
        hub.custody.restore(hub.send(data), PASSPHRASE)


def test_what_the_daemon_could_not_live_with_is_not_restored(hub, laptop):
    data = base64.b64decode(hub.custody.back_up(PASSPHRASE, None).backup)
    laptop.taken = True
    with pytest.raises(errors.ConfigurationWrong, match="443 is taken"):
        laptop.custody.restore(laptop.send(data), PASSPHRASE)
    bundle = signed(hub, laptop).bundle.encode()
    with pytest.raises(errors.ConfigurationWrong, match="443 is taken"):
        laptop.custody.install(laptop.send(bundle), authority(hub), True)
    assert (laptop.store.joined, laptop.began) == (False, 0)


@pytest.mark.parametrize(
    ("passphrase", "recovery", "error"),
    [("short", None, errors.IssuerRefused), (PASSPHRASE, "smr1-abcd", errors.IssuerRefused),
     (PASSPHRASE, trust.recovery_text(bytes(range(32))), errors.IssuerRefused)],
)  # fmt: skip
def test_a_backup_that_would_be_wrong_is_not_made(hub, passphrase, recovery, error):
    with pytest.raises(error) as refused:
        hub.custody.back_up(passphrase, recovery)
    assert passphrase not in str(refused.value)
    assert recovery is None or recovery not in str(refused.value)


def test_who_has_no_ledger_makes_no_backup(hub, laptop):
    with pytest.raises(errors.NotInNetwork):
        laptop.custody.back_up(PASSPHRASE, None)
    installed(hub, laptop)
    with pytest.raises(errors.IssuerRefused, match="ledger"):
        laptop.custody.back_up(PASSPHRASE, None)


def test_a_backup_that_could_not_be_sent_back_is_refused(hub, monkeypatch):
    monkeypatch.setattr("shadowmesh.service.custody.MAX_FILE_BYTES", 1000)
    with pytest.raises(errors.BadRequest, match="could not be restored"):
        hub.custody.back_up(PASSPHRASE, None)


# --- the authority's key ------------------------------------------------------------------------


def test_the_key_leaves_in_two_steps_and_comes_back(hub):
    told = hub.custody.export_authority(PASSPHRASE)
    assert told.authority == authority(hub)
    with pytest.raises(errors.IssuerRefused):
        hub.custody.release_authority(told.key, "another passphrase")
    assert hub.store.authority() is not None
    assert hub.custody.release_authority(told.key, PASSPHRASE).issuer
    assert (hub.store.authority(), hub.began) == (None, 1)
    hub.start()
    for refused in (lambda: hub.custody.export_authority(PASSPHRASE),
                    lambda: hub.custody.release_authority(told.key, PASSPHRASE)):  # fmt: skip
        with pytest.raises(errors.IssuerRefused, match="elsewhere"):
            refused()
    hub.custody.import_authority(told.key, PASSPHRASE)
    assert hub.store.authority() is not None
    assert hub.began == 2


# --- certificates by hand -----------------------------------------------------------------------


def test_a_bundle_is_told_before_it_is_taken(hub, laptop):
    bundle = signed(hub, laptop, tags=("x",)).bundle.encode()
    offer = laptop.custody.install(laptop.send(bundle), None, False)
    assert (offer.network, offer.name, offer.taken) == ("home", "laptop", False)
    assert offer.authority == authority(hub)
    assert not laptop.store.joined
    with pytest.raises(errors.BadRequest, match="compared first"):
        laptop.custody.install(laptop.send(bundle), None, True)
    typed = authority(hub).upper().replace("-", ":")
    assert laptop.custody.install(laptop.send(bundle), typed, True).taken
    assert (laptop.store.joined, laptop.began) == (True, 1)
    own = laptop.start().custody.certificate()
    assert (own.name, own.tags, own.problem) == ("laptop", ("x",), None)


@pytest.mark.parametrize("wrong", ["", "abcd", "zz" * 16, "ab" * 17])
def test_a_fingerprint_that_is_none_is_said(hub, laptop, wrong):
    bundle = signed(hub, laptop).bundle.encode()
    with pytest.raises(errors.BadRequest, match="32 digits"):
        laptop.custody.install(laptop.send(bundle), wrong, False)


def test_a_bundle_of_another_authority_is_refused(hub, laptop):
    bundle = signed(hub, laptop).bundle.encode()
    with pytest.raises(errors.FileRefused, match="does not vouch"):
        laptop.custody.install(laptop.send(bundle), "ab" * 16, True)
    assert not laptop.store.joined


def test_a_member_takes_bundles_of_its_own_network_only(tmp_path, hub, laptop):
    installed(hub, laptop)
    other = Machine(tmp_path / "other")
    registrar.found(other.store, "other", "other", SUBNETS, HUB, clock.utc_now())
    other.start()
    foreign = signed(other, laptop).bundle.encode()
    with pytest.raises(errors.AlreadyInNetwork, match="home"):
        laptop.custody.install(laptop.send(foreign), None, True)
    bundle = signed(hub, laptop, "desk").bundle.encode()
    assert laptop.custody.install(laptop.send(bundle), None, False).name == "desk"
    assert laptop.custody.certificate().name == "laptop"
    assert laptop.custody.install(laptop.send(bundle), None, True).member
    assert laptop.custody.certificate().name == "desk"
    began = laptop.began
    moved = signed(hub, laptop, "desk", addresses=("10.77.0.99",)).bundle.encode()
    laptop.custody.install(laptop.send(moved), None, True)
    # The device has to have the new address.
    assert laptop.began == began + 1


@pytest.mark.parametrize(
    ("wanted", "error"),
    [({"addresses": ("nowhere",)}, errors.BadRequest), ({"addresses": ("192.0.2.1",)}, errors.IssuerRefused),
     ({"roles": ("issuer",)}, errors.IssuerRefused), ({"name": "hub"}, errors.IssuerRefused)],
)  # fmt: skip
def test_what_is_not_signed_is_said(hub, laptop, wanted, error):
    with pytest.raises(error):
        signed(hub, laptop, **wanted)


@pytest.mark.parametrize("request_", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----"])
def test_what_is_no_request_is_said(hub, request_):
    with pytest.raises(errors.FileRefused):
        hub.custody.sign(request_, "x", None, None, (), None)


def test_a_certificate_of_nobody_has_no_bundle(hub, laptop):
    made = signed(hub, laptop)
    assert hub.custody.bundle(made.certificate.pem.encode()).certificate.name == "laptop"
    with pytest.raises(errors.FileRefused):
        hub.custody.bundle(b"nothing")
    assert laptop.custody.certificate() is None


# --- renewing -----------------------------------------------------------------------------------


def test_a_member_asks_the_relays_one_after_the_other(hub, laptop):
    installed(hub, laptop)
    laptop.answer = errors.PeerUnreachable("nobody answers")
    with pytest.raises(errors.PeerUnreachable, match="nobody answers"):
        laptop.custody.renew()
    for answer in (Busy(retry_after=3), Refused(reason="removed", detail="this key is out")):
        laptop.answer = answer
        with pytest.raises(errors.PeerRefused, match="gives no certificate"):
            laptop.custody.renew()
    assert laptop.asked == [str(HUB)] * 3
    made = hub.custody.reissue("laptop", "desk", (), (), at_once=False)
    assert made.certificate.name == "desk"
    laptop.answer = hub.member.registrar.answer(
        SimpleNamespace(certificate=laptop.member.membership.certificate.der),
        SimpleNamespace(peer_public_key=laptop.member.membership.identity.public_key),
        "192.0.2.1",
        clock.utc_now(),
    )
    assert isinstance(laptop.answer, Joined)
    renewal = laptop.custody.renew()
    assert (renewal.renewed, renewal.certificate.name) == (True, "desk")
    assert not laptop.custody.renew().renewed


def test_the_issuer_renews_itself_and_nobody_is_asked(hub):
    assert hub.custody.renew().renewed is False
    assert hub.asked == []


def test_without_a_relay_nobody_can_be_asked(tmp_path, laptop):
    lone = Machine(tmp_path / "lone")
    registrar.found(lone.store, "home", "hub", SUBNETS, None, clock.utc_now())
    installed(lone.start(), laptop)
    with pytest.raises(errors.PeerUnreachable, match="no relay"):
        laptop.custody.renew()


def test_a_member_has_to_come_back_with_a_new_key(hub, laptop):
    installed(hub, laptop)
    invited = hub.custody.rekey("laptop")
    assert invited.invitation.name == "laptop"
    assert invited.token.startswith("sm1-")
    assert hub.member.membership.named("laptop") is None
    with contextlib.suppress(errors.IssuerRefused):
        hub.custody.rekey("nobody")
