"""Tests of revocation lists. Source: mesh-rules C2 to C5."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.errors import BadCertificate, BadList
from shadowmesh.keys import sodium
from shadowmesh.network import revocation
from shadowmesh.network.authority import ALGORITHMS, make_authority
from shadowmesh.network.certificate import Profile
from shadowmesh.network.revocation import Reason, Revocations, Taken
from tests.words import faults

NOW = datetime(2026, 12, 1, tzinfo=UTC)
END = NOW + timedelta(days=3650)
HOME = make_authority("home", NOW)
OTHER = make_authority("home", NOW)
LAPTOP = HOME.issue(Profile("laptop", "home"), sodium.public_key(bytes(range(32))), NOW, END)
GONE = {LAPTOP.serial: Reason.REMOVED}


def made(number: int, entries=None, by=HOME, now=NOW):
    data = revocation.make(by, number, now, entries or {})
    return revocation.read(data, [HOME.authority, OTHER.authority])


def knows(*lists) -> Revocations:
    known = Revocations()
    for one in lists:
        known.take(one)
    return known


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_list_is_read_as_it_was_made(algorithm):
    by = make_authority("home", NOW, algorithm)
    entries = {5: Reason.REMOVED, 6: Reason.SUPERSEDED}
    found = revocation.read(revocation.make(by, 7, NOW, entries), [HOME.authority, by.authority])
    assert (found.number, found.entries, found.made_at) == (7, entries, NOW)
    assert found.signer == found.issuer_key_id == by.authority.key_id


def test_openssl_reads_a_list():
    text = subprocess.run(
        ["openssl", "crl", "-inform", "DER", "-noout", "-text"],
        input=made(7, GONE).data, capture_output=True, check=True, timeout=60,
    ).stdout.decode()  # fmt: skip
    assert f"{LAPTOP.serial:X}" in text
    assert "9999" in text


def test_no_altered_byte_of_a_list_is_taken():
    data = made(7, {5: Reason.REMOVED, 6: Reason.SUPERSEDED}).data
    content = made(7, {5: Reason.REMOVED, 6: Reason.SUPERSEDED}).content
    for place in range(len(data)):
        for bit in (0x01, 0x80):
            forged = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
            try:
                found = revocation.read(forged, [HOME.authority])
            except BadList:
                continue
            # Only the count of unused bits of the signature, which changes nothing.
            assert found.content == content


@given(st.binary(max_size=200))
def test_random_bytes_are_no_list(data):
    with pytest.raises(BadList):
        revocation.read(data, [HOME.authority])


def test_a_list_of_another_authority_is_foreign():
    with pytest.raises(BadList) as refused:
        revocation.read(revocation.make(OTHER, 9, NOW, GONE), [HOME.authority])
    assert refused.value.kind == "foreign"
    assert not faults(str(refused.value))


def test_a_huge_list_is_not_even_read_and_never_made():
    with pytest.raises(BadList, match="262144"):
        revocation.read(bytes(revocation.MAX_BYTES + 1), [HOME.authority])
    many = {(1 << 158) + n: Reason.REMOVED for n in range(7000)}
    with pytest.raises(BadList, match="network compact"):
        revocation.make(HOME, 1, NOW, many)


def test_a_list_without_a_number_or_with_an_unknown_critical_extension_is_refused():
    def build(*extensions):
        builder = x509.CertificateRevocationListBuilder().last_update(NOW).next_update(END)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=True)
        return HOME.sign_list(builder)

    delta = x509.DeltaCRLIndicator(1)
    for data in (build(), build(delta), build(x509.CRLNumber(1))):
        with pytest.raises(BadList):
            revocation.read(data, [HOME.authority])


def test_nobody_is_admitted_by_an_authority_without_a_list():
    with pytest.raises(BadCertificate) as refused:
        knows(made(9, by=OTHER)).check(LAPTOP)
    assert refused.value.kind == "unlisted"
    knows(made(0)).check(LAPTOP)


@pytest.mark.parametrize(
    ("reason", "kind"), [(Reason.REMOVED, "revoked"), (Reason.SUPERSEDED, "superseded")]
)
def test_what_is_on_a_list_does_not_count(reason, kind):
    with pytest.raises(BadCertificate) as refused:
        knows(made(1, {LAPTOP.serial: reason})).check(LAPTOP)
    assert refused.value.kind == kind
    assert not faults(str(refused.value))


def test_the_same_serial_of_another_authority_is_another_certificate():
    knows(made(0), made(1, GONE, OTHER)).check(LAPTOP)


def test_once_revoked_is_revoked_whatever_later_lists_say():
    known = knows(made(1, GONE))
    assert known.take(made(2)) is Taken.NEWER
    assert known.take(made(3, {LAPTOP.serial: Reason.SUPERSEDED})) is Taken.NEWER
    with pytest.raises(BadCertificate) as refused:
        known.check(LAPTOP)
    assert refused.value.kind == "revoked"


def test_superseded_becomes_removed():
    known = knows(made(1, {LAPTOP.serial: Reason.SUPERSEDED}), made(2, GONE))
    assert known.of(HOME.authority.key_id) == GONE


def test_an_older_list_is_not_taken_and_the_date_decides_nothing():
    known = knows(made(5, now=NOW))
    assert known.take(made(4, GONE, now=END)) is Taken.OLDER
    known.check(LAPTOP)
    assert known.take(made(6, GONE, now=datetime(1990, 1, 1, tzinfo=UTC))) is Taken.NEWER


def test_of_two_lists_with_one_number_the_entries_of_both_count():
    known = knows(made(5, {1: Reason.REMOVED}))
    assert known.take(made(5, {1: Reason.REMOVED})) is Taken.KNOWN
    assert known.take(made(5, GONE)) is Taken.FORK
    assert known.of(HOME.authority.key_id) == {1: Reason.REMOVED} | GONE


def test_a_signature_in_other_bytes_is_no_fork():
    by = make_authority("home", NOW, "p256")
    one, other = (
        revocation.read(revocation.make(by, 3, NOW, {}), [by.authority]) for _ in range(2)
    )
    assert one.data != other.data
    assert knows(one).take(other) is Taken.KNOWN


def test_a_restart_forgets_no_serial():
    again = Revocations(knows(made(1, GONE)).remembered)
    again.take(made(2))
    with pytest.raises(BadCertificate):
        again.check(LAPTOP)


@given(st.permutations(range(6)))
def test_members_that_hear_lists_in_any_order_never_lose_the_newest_entries(order):
    lists = [made(n, {k + 1: Reason.REMOVED for k in range(n)}) for n in range(6)]
    known = knows(*(lists[n] for n in order))
    assert known.numbers == {HOME.authority.key_id: 5}
    assert set(known.of(HOME.authority.key_id)) == {1, 2, 3, 4, 5}


# --- revokers ---------------------------------------------------------------------------------


def test_a_revoker_adds_and_has_numbers_of_its_own():
    revoker = HOME.make_revoker("home", NOW)
    known = knows(made(9))
    assert known.take(made(0, GONE, revoker)) is Taken.NEWER
    with pytest.raises(BadCertificate):
        known.check(LAPTOP)
    assert sorted(known.numbers.values()) == [0, 9]


def test_a_list_of_a_revoker_alone_admits_nobody():
    with pytest.raises(BadCertificate, match="no revocation list"):
        knows(made(1, {}, HOME.make_revoker("home", NOW))).check(LAPTOP)


def test_a_revoker_of_another_network_is_foreign():
    data = revocation.make(OTHER.make_revoker("home", NOW), 1, NOW, GONE)
    with pytest.raises(BadList) as refused:
        revocation.read(data, [HOME.authority])
    assert refused.value.kind == "foreign"


def test_a_member_signs_no_list():
    revoker = HOME.make_revoker("home", NOW)
    signed = revocation.make(revoker, 1, NOW, GONE)[len(revoker.certificate.der) :]
    for data in (LAPTOP.der + signed, HOME.authority.der + signed, signed):
        with pytest.raises(BadList):
            revocation.read(data, [HOME.authority])


def test_what_another_signed_is_not_the_revokers():
    revoker = HOME.make_revoker("home", NOW)
    with pytest.raises(BadList):
        revocation.read(revoker.certificate.der + made(1, GONE).data, [HOME.authority])


def test_without_the_authority_its_lists_and_serials_go():
    known = knows(made(1, GONE), made(1, GONE, OTHER))
    known.keep([OTHER.authority])
    assert list(known.numbers) == [OTHER.authority.key_id]
    assert known.of(HOME.authority.key_id) == {}


def test_a_list_in_the_name_of_our_ca_but_with_its_own_key_is_refused():
    builder = x509.CertificateRevocationListBuilder().last_update(NOW).next_update(END)
    builder = builder.issuer_name(x509.load_der_x509_certificate(HOME.authority.der).subject)
    builder = builder.add_extension(x509.CRLNumber(99), critical=False)
    data = builder.sign(OTHER._key, None).public_bytes(Encoding.DER)
    with pytest.raises(BadList, match="no authority"):
        revocation.read(data, [HOME.authority])
