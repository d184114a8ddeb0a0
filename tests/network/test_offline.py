"""Certificates and keys that go by hand: requests, bundles, the authority in a file, another CA."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest

from shadowmesh.base.errors import BadCertificate, BadList, IssuerRefused
from shadowmesh.config import HostPort
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import adoption, bundle, certificate, joining, offline, pem, trust
from shadowmesh.network.membership import Membership
from shadowmesh.network.registrar import Registrar
from shadowmesh.wire.mesh.messages import Renew, encode
from tests.network.disks import DAY, HUB, NOW, SUBNETS, Disk, invite
from tests.network.openssl import Openssl

PASSPHRASE = "correct horse battery"


@pytest.fixture
def hub(tmp_path):
    return Disk(tmp_path / "hub").found()


def requested(disk, name="laptop"):
    """The key of a request that a machine makes."""
    return certificate.requested_key(disk.store.request(name))


def signed_for(hub, disk, name="laptop", **wanted):
    """The bundle of a machine's request."""
    made = hub.registrar.sign(requested(disk), name, NOW, **wanted)
    return bundle.seal(bundle.answer(hub.membership, made), made.public_key).encode()


def judged(disk, told, fingerprint, **more):
    return joining.judge(
        joining.Answer(told.certificate, told.trust_list, told.revocation_lists, told.subnets),
        network_id=b"",
        fingerprint=fingerprint,
        public_key=disk.store.identity().public_key,
        local=NOW,
        own_networks=(),
        **more,
    )


def installed(disk, data, fingerprint, **more):
    told = bundle.unseal(data, disk.store.identity())
    found = judged(disk, told, fingerprint, **more)
    disk.membership = Membership.take_in(disk.store, disk.store.identity(), told, found, None, NOW)
    return disk.membership


def fingerprint(hub):
    return hub.membership.trust_list.authorities[0].fingerprint


# --- requests and bundles -----------------------------------------------------------------------


def test_a_machine_becomes_a_member_without_a_relay(tmp_path, hub):
    laptop = Disk(tmp_path / "laptop")
    data = signed_for(hub, laptop, tags=("x",))
    member = installed(laptop, data, fingerprint(hub))
    assert (member.certificate.name, member.certificate.tags) == ("laptop", {"x"})
    assert member.psks == hub.membership.psks
    assert [one.address for one in member.facts.relays] == [HUB]
    assert Membership.load(laptop.store, NOW).named("hub") is not None
    assert hub.membership.named("laptop") is not None


def test_a_request_is_repeated_with_its_key_and_an_invitation_has_its_own(tmp_path, hub):
    laptop = Disk(tmp_path / "laptop")
    first = requested(laptop)
    assert requested(laptop, "another") == first
    laptop.begin(invite(hub, "laptop"))
    assert laptop.identity.public_key != first
    data = signed_for(hub, laptop)
    installed(laptop, data, fingerprint(hub))
    # A member asks for its key of today.
    assert requested(laptop) == laptop.membership.identity.public_key


def test_only_the_machine_that_asked_can_read_a_bundle(tmp_path, hub):
    data = signed_for(hub, Disk(tmp_path / "laptop"))
    assert hub.membership.newest_secret.value not in pem.content(data, bundle.LABEL)
    with pytest.raises(BadCertificate) as refused:
        bundle.unseal(data, Identity.from_seed(bytes(range(32))))
    assert refused.value.kind == "other_key"


def test_a_bundle_of_another_network_than_the_one_that_is_meant_is_refused(tmp_path, hub):
    laptop = Disk(tmp_path / "laptop")
    told = bundle.unseal(signed_for(hub, laptop), laptop.store.identity())
    with pytest.raises(BadList, match="does not vouch"):
        judged(laptop, told, b"x" * 16)
    other = Disk(tmp_path / "other").found(name="other")
    forged = bundle.answer(other.membership, other.membership.certificate)
    with pytest.raises(BadCertificate, match="key of another"):
        judged(laptop, forged, fingerprint(other))
    assert not laptop.store.joined


@pytest.mark.parametrize(
    "content",
    [b"", b"SMCB", b"SMCB\x02" + bytes(80), b"SMCB\x01" + bytes(80), b"SMCB\x01",
     b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
     b"-----BEGIN SHADOWMESH BUNDLE-----\nA\n-----END SHADOWMESH BUNDLE-----\n"],
)  # fmt: skip
def test_what_is_no_bundle_is_refused_in_words(tmp_path, content):
    disk = Disk(tmp_path / "laptop")
    requested(disk)
    with pytest.raises(BadCertificate):
        bundle.unseal(content, disk.store.identity())


def test_a_sealed_message_that_is_no_answer_is_refused(tmp_path, hub):
    disk = Disk(tmp_path / "laptop")
    key = requested(disk)
    for inside in (b"", b"\xc1", encode(Renew(certificate=hub.membership.certificate.der))):
        with pytest.raises(BadCertificate, match="cannot be read"):
            bundle.unseal(b"SMCB\x01" + sodium.seal(key, inside), disk.store.identity())


def test_a_member_takes_a_certificate_that_was_signed_by_hand(tmp_path, hub):
    laptop = Disk(tmp_path / "laptop")
    installed(laptop, signed_for(hub, laptop), fingerprint(hub))
    data = signed_for(hub, laptop, "desk")
    laptop.membership.catch_up(bundle.unseal(data, laptop.membership.identity), NOW)
    assert laptop.membership.certificate.name == "desk"


@pytest.mark.parametrize(
    "text",
    [
        b"no pem at all",
        b"-----BEGIN X-----\n-----END Y-----",
        b"-----BEGIN CERTIFICATE REQUEST-----",
    ],
)
def test_of_files_without_what_is_wanted_nothing_is_read(text):
    assert pem.find(text, *pem.REQUESTS) is None


def test_pem_is_found_among_other_text():
    block = pem.armor(pem.CERTIFICATE, bytes(range(100)))
    data = ("subject=CN = x\n" + pem.armor("EC PARAMETERS", b"1") + block + "rest").encode()
    assert pem.content(data, pem.CERTIFICATE) == bytes(range(100))
    assert pem.find(data.replace(b"\n", b"\r\n"), pem.CERTIFICATE)
    assert pem.content(b"\x30\x03", pem.CERTIFICATE) == b"\x30\x03"


# --- members change -----------------------------------------------------------------------------


def test_a_renamed_member_is_known_by_its_new_name(tmp_path, hub):
    laptop = Disk(tmp_path / "laptop").join(hub, invite(hub, "laptop", tags=("a", "b")))
    made = hub.registrar.reissue("laptop", NOW, new_name="desk", add_tags=("c",), drop_tags=("a",))
    assert (made.name, made.tags) == ("desk", {"b", "c"})
    assert hub.membership.named("desk").der == made.der
    assert hub.membership.named("laptop") is None
    hub.membership.revocations.check(laptop.certificate)
    hub.registrar.reissue("desk", NOW, drop_tags=("b",), at_once=True)
    with pytest.raises(BadCertificate):
        hub.membership.judge(laptop.certificate.public_key, laptop.certificate.der, NOW)
    assert hub.registrar.reissue("hub", NOW, new_name="base").der == hub.membership.certificate.der


def test_a_new_key_takes_the_place_of_one_that_is_out(tmp_path, hub):
    old = Disk(tmp_path / "laptop").join(hub, invite(hub, "laptop", tags=("a",)))
    out, token = hub.registrar.rekey("laptop", NOW, timedelta(hours=1))
    assert [one.name for one in out] == ["laptop"]
    new = Disk(tmp_path / "again").join(hub, type(token).parse(token.text()))
    assert new.certificate.addresses == old.certificate.addresses
    assert (new.certificate.name, new.certificate.tags) == ("laptop", {"a"})
    assert new.certificate.public_key != old.certificate.public_key
    with pytest.raises(IssuerRefused, match="stays a member"):
        hub.registrar.remove("hub", NOW)


@pytest.mark.parametrize("name", ["hub", "nobody"])
def test_who_cannot_get_a_new_key_is_not_put_out(hub, name):
    with pytest.raises(IssuerRefused):
        hub.registrar.rekey(name, NOW, timedelta(hours=1))
    assert hub.membership.named("hub") is not None


def test_certificates_that_end_are_renewed_by_themselves(tmp_path, hub):
    laptop = Disk(tmp_path / "laptop")
    installed(laptop, signed_for(hub, laptop, lifetime=30 * DAY), fingerprint(hub))
    old = hub.membership.named("laptop")
    hub.registrar.look(NOW + 20 * DAY)
    assert hub.membership.named("laptop").not_after > old.not_after
    assert hub.registrar.renew_own(NOW + 20 * DAY).der == hub.membership.certificate.der


# --- the authority in a file --------------------------------------------------------------------


def test_a_released_authority_leaves_a_machine_that_removes_and_does_not_issue(tmp_path, hub):
    Disk(tmp_path / "laptop").join(hub, invite(hub, "laptop"))
    key = hub.registrar.issuer.authority(NOW)
    kept = offline.exported(key, PASSPHRASE).encode()
    assert b"ENCRYPTED" in kept
    for wrong, reason in ((kept, "passphrase"), (b"nothing", "key")):
        with pytest.raises(IssuerRefused) as refused:
            offline.release(hub.store, key, "home", wrong, "another passphrase", NOW)
        assert refused.value.reason == reason
        assert hub.store.authority() is not None
    offline.release(hub.store, key, "home", kept, PASSPHRASE, NOW)
    assert hub.store.authority() is None
    hub.registrar = Registrar(hub.store, hub.membership)
    with pytest.raises(IssuerRefused) as refused:
        invite(hub, "nas")
    assert refused.value.reason == "no_authority"
    list_, out = hub.registrar.remove("laptop", NOW)
    assert [one.name for one in out] == ["laptop"]
    assert hub.membership.read_list(list_).signer != key.authority.key_id
    offline.bring_back(hub.store, key.authority, kept, PASSPHRASE)
    hub.registrar = Registrar(hub.store, hub.membership)
    assert invite(hub, "nas")
    revoker = hub.store.revoker(key.authority).certificate
    offline.release(hub.store, key, "home", kept, PASSPHRASE, NOW)
    assert hub.store.revoker(key.authority).certificate == revoker


def test_the_key_of_another_authority_is_not_taken(tmp_path, hub):
    other = Disk(tmp_path / "other").found(name="other")
    kept = offline.exported(other.registrar.issuer.authority(NOW), PASSPHRASE).encode()
    key = hub.registrar.issuer.authority(NOW)
    with pytest.raises(IssuerRefused, match="do not belong together"):
        offline.release(hub.store, key, "home", kept, PASSPHRASE, NOW)
    with pytest.raises(IssuerRefused, match="do not belong together"):
        offline.bring_back(hub.store, key.authority, kept, PASSPHRASE)


# --- another CA ---------------------------------------------------------------------------------


@pytest.fixture
def ca(tmp_path):
    return Openssl(tmp_path / "ca")


def csr(der):
    return pem.armor(pem.REQUESTS[0], der).encode()


def adopted(
    disk, ca, subject="/CN=server/O=home/OU=role:issuer/OU=role:relay", address="10.77.0.1"
):
    crt = ca.certificate(csr(disk.store.request("server")), subject, address, 7)
    disk.membership, disk.recovery = adoption.adopt(
        disk.store,
        pem.content(ca.read("ca.pem"), pem.CERTIFICATE),
        pem.content(crt, pem.CERTIFICATE),
        pem.content(ca.list(), pem.LIST),
        SUBNETS,
        HUB,
        datetime.now(UTC),
    )
    return disk


def test_a_network_lives_under_the_ca_of_the_openssl_program(tmp_path, ca):
    server = adopted(Disk(tmp_path / "server"), ca)
    assert trust.recovery_seed(server.recovery)
    assert Membership.load(server.store, datetime.now(UTC)).problem is None
    laptop = Disk(tmp_path / "laptop")
    request = laptop.store.request("laptop")
    crt = ca.certificate(csr(request), "/CN=laptop/O=home/OU=tag:x", "10.77.0.2", 8)
    shown = certificate.parse(pem.content(crt, pem.CERTIFICATE))
    now = datetime.now(UTC)
    found = server.membership.learn(shown, now)
    data = bundle.seal(bundle.answer(server.membership, found), found.public_key).encode()
    told = bundle.unseal(data, laptop.store.identity())
    authority = fingerprint(server)
    with pytest.raises(BadList, match="does not vouch"):
        judged(laptop, told, authority)
    found = judged(laptop, told, authority, alone=True)
    recovery = server.membership.trust_list.recovery_key.hex()[:32]
    assert any(recovery in doubt for doubt in found.doubts)
    member = installed(laptop, data, authority, alone=True)
    assert member.psks == server.membership.psks
    # And out again, by the list that the CA makes.
    revoked = pem.content(ca.list(crt), pem.LIST)
    server.membership.take_list(server.membership.read_list(revoked), now)
    assert server.membership.named("laptop") is None
    with pytest.raises(BadCertificate, match="removed"):
        server.membership.judge(shown.public_key, shown.der, now)


@pytest.mark.parametrize(
    ("subject", "address", "words"),
    [("/CN=server/O=home", "10.77.0.1", "role:issuer"),
     ("/CN=server/O=home/OU=role:issuer", "10.77.0.1", "role:relay"),
     ("/CN=server/O=home/OU=role:issuer/OU=role:relay", "10.78.0.1", "not in the network")],
)  # fmt: skip
def test_the_first_machine_has_what_a_network_needs(tmp_path, ca, subject, address, words):
    disk = Disk(tmp_path / "server")
    with pytest.raises((BadCertificate, IssuerRefused), match=words):
        adopted(disk, ca, subject, address)
    assert not disk.store.joined


def test_a_certificate_for_another_key_and_a_public_subnet_are_refused(tmp_path, ca):
    disk = Disk(tmp_path / "server")
    other = Disk(tmp_path / "other")
    crt = ca.certificate(
        csr(other.store.request("x")), "/CN=x/O=home/OU=role:issuer", "10.77.0.1", 3
    )
    disk.store.request("server")
    given = (pem.content(ca.read("ca.pem"), pem.CERTIFICATE), pem.content(crt, pem.CERTIFICATE),
             pem.content(ca.list(), pem.LIST))  # fmt: skip
    with pytest.raises(BadCertificate, match="another key"):
        adoption.adopt(disk.store, *given, SUBNETS, None, datetime.now(UTC))
    with pytest.raises(IssuerRefused, match="not private"):
        adoption.adopt(
            disk.store, *given, (ip_network("192.0.2.0/24"),), HostPort("h", 1), datetime.now(UTC)
        )
