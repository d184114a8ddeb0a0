"""Tests of certificates and of the keys that sign them. Source: mesh section 3, mesh-rules A4, B5."""

from __future__ import annotations

import pickle
import subprocess
import warnings
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.errors import BadCertificate, IssuerRefused
from shadowmesh.keys import sodium
from shadowmesh.keys.mac import stable_mac
from shadowmesh.network import authority as authorities
from shadowmesh.network import certificate as certificates
from shadowmesh.network.certificate import USAGE, Profile, Usage
from shadowmesh.wire.mesh import identifiers
from tests.words import faults

NOW = datetime(2026, 12, 1, tzinfo=UTC)
YEAR = timedelta(days=365)
SEED = bytes(range(32))
KEY = sodium.public_key(SEED)
LAPTOP = Profile(
    "laptop",
    "home",
    roles=("relay",),
    tags=("factory",),
    addresses=(ip_address("10.77.0.2"), ip_address("fd00::2")),
)
HOME = authorities.make_authority("home", NOW)


def issued(profile: Profile = LAPTOP, by=HOME, until: datetime = NOW + YEAR):
    return by.issue(profile, KEY, NOW, until)


@pytest.mark.parametrize("algorithm", authorities.ALGORITHMS)
def test_what_an_authority_issues_is_read_and_verified(algorithm):
    by = authorities.make_authority("home", NOW, algorithm)
    made = issued(by=by)
    assert made == certificates.verify(certificates.parse(made.der), [by.authority], NOW)
    assert (made.name, made.network_name, made.public_key) == ("laptop", "home", KEY)
    assert (made.roles, made.tags) == ({"relay"}, {"factory"})
    assert made.addresses == LAPTOP.addresses
    assert made.node_id == identifiers.node_id(KEY)
    assert made.mac == stable_mac(KEY)
    assert made.issuer_key_id == identifiers.network_id(by.authority.spki)
    assert len(made.der) < 512


def test_a_certificate_lives_no_longer_than_its_authority():
    assert issued(until=NOW + 100 * YEAR).not_after == HOME.authority.not_after


def test_no_altered_byte_of_a_certificate_is_taken():
    der = issued().der
    for place in range(len(der)):
        for bit in (0x01, 0x80):
            forged = der[:place] + bytes([der[place] ^ bit]) + der[place + 1 :]
            with pytest.raises(BadCertificate):
                certificates.verify(certificates.parse(forged), [HOME.authority], NOW)


@given(st.binary(max_size=300))
def test_random_bytes_are_no_certificate(data):
    for read in (certificates.parse, certificates.parse_authority, certificates.requested_key):
        with pytest.raises(BadCertificate):
            read(data)


@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_a_certificate_with_other_bytes_inside_is_refused_or_read_as_something(place, data):
    der = issued().der
    try:
        certificates.parse(der[:place] + data + der[place + len(data) :])
    except BadCertificate as refused:
        assert "\n" not in str(refused)


def test_the_same_name_and_network_under_another_authority_are_foreign():
    other = authorities.make_authority("home", NOW)
    with pytest.raises(BadCertificate) as refused:
        certificates.verify(issued(by=other), [HOME.authority], NOW)
    assert refused.value.kind == "foreign"
    assert not faults(str(refused.value))
    assert certificates.verify(issued(by=other), [HOME.authority, other.authority], NOW)


def test_the_network_name_in_a_certificate_decides_nothing():
    work = issued(Profile("laptop", "work"))
    assert certificates.verify(work, [HOME.authority], NOW).network_name == "work"


def test_an_expired_certificate_says_both_times():
    with pytest.raises(BadCertificate, match=r"2027-12-01 .* 2028-12-01") as refused:
        certificates.verify(issued(), [HOME.authority], NOW + YEAR + timedelta(days=366))
    assert refused.value.kind == "expired"
    assert not faults(str(refused.value))


def test_a_certificate_that_is_not_yet_valid_is_taken():
    assert certificates.verify(issued(), [HOME.authority], datetime(1970, 1, 1, tzinfo=UTC))


def test_a_member_is_no_authority_and_an_authority_no_member():
    with pytest.raises(BadCertificate, match="CA:true"):
        certificates.parse_authority(issued().der)
    with pytest.raises(BadCertificate, match="authority"):
        certificates.parse(HOME.authority.der)


def test_a_huge_certificate_is_not_even_read():
    with pytest.raises(BadCertificate, match="2045"):
        certificates.parse(issued().der + bytes(2048))
    words = tuple(f"tag-{n}" * 4 for n in range(60))
    with pytest.raises(BadCertificate):
        issued(Profile("laptop", "home", tags=words))


@pytest.mark.parametrize(
    "profile",
    [
        Profile("Laptop", "home"),
        Profile("", "home"),
        Profile("a" * 64, "home"),
        Profile("laptop", "my home"),
        Profile("laptop", "home", roles=("relay,OU=role:issuer",)),
        Profile("laptop", "home", tags=("x" * 33,)),
        Profile("laptop", "home", addresses=(ip_address("224.0.0.1"),)),
        Profile("laptop", "home", addresses=(ip_address("127.0.0.1"),)),
        Profile("laptop", "home", addresses=(ip_address("fe80::1"),)),
        Profile("laptop", "home", addresses=(ip_address("10.0.0.1"),) * 2),
        Profile("laptop", "home", addresses=tuple(ip_address(n + (10 << 24)) for n in range(9))),
        Profile("laptop", "home", roles=("revoker",)),
    ],
)
def test_the_issuer_makes_no_certificate_that_others_would_refuse(profile):
    with pytest.raises(BadCertificate):
        issued(profile)


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32])
def test_a_key_of_small_order_or_in_a_second_spelling_is_refused(key):
    with pytest.raises(BadCertificate):
        HOME.issue(LAPTOP, key, NOW, NOW + YEAR)


def forge(change, *, subject=None) -> bytes:
    """A certificate signed by the authority, but not made by our rules."""
    names = [x509.NameAttribute(NameOID.COMMON_NAME, "laptop"),
             x509.NameAttribute(NameOID.ORGANIZATION_NAME, "home")] if subject is None else subject  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(x509.load_der_x509_certificate(HOME.authority.der).subject)
        .public_key(ed25519.Ed25519PublicKey.from_public_bytes(KEY))
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + YEAR)
    )
    return change(builder).sign(HOME._key, None).public_bytes(Encoding.DER)


def with_usage(builder, **bits):
    return builder.add_extension(certificates.key_usage(**(bits or {"digital_signature": True})), True)  # fmt: skip


def for_members(builder):
    return builder.add_extension(x509.ExtendedKeyUsage([USAGE]), False)


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_usage, "something else"),
        (for_members, "key usage"),
        (lambda b: for_members(with_usage(b, digital_signature=True, crl_sign=True)), "key usage"),
        (lambda b: for_members(with_usage(b, key_cert_sign=True)), "key usage"),
        (lambda b: for_members(with_usage(b)).add_extension(UNKNOWN, True), "1.2.3.4"),
    ],
)
def test_a_certificate_of_our_authority_for_another_purpose_is_refused(change, words):
    with pytest.raises(BadCertificate, match=words) as refused:
        certificates.parse(forge(change))
    assert not faults(str(refused.value))


def test_what_the_library_only_warns_of_is_refused_and_not_logged():
    country = bytearray(forge(lambda b: for_members(with_usage(b)), subject=[
        x509.NameAttribute(NameOID.COMMON_NAME, "laptop"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "home"),
        x509.NameAttribute(NameOID.LOCALITY_NAME, "Bern"),
    ]))  # fmt: skip
    place = country.index(b"\x06\x03\x55\x04\x07")
    country[place + 4] = 6  # the attribute is a country now, of two letters in X.520
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(BadCertificate, match="can be read"):
            certificates.parse(bytes(country))
    assert told == []


def test_an_unknown_extension_that_is_not_critical_and_unknown_units_mean_nothing():
    names = [
        x509.NameAttribute(NameOID.COMMON_NAME, "laptop"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "home"),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Accounting"),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "role:new-one"),
    ]
    der = forge(lambda b: for_members(with_usage(b)).add_extension(UNKNOWN, False), subject=names)
    assert certificates.parse(der).roles == {"new-one"}


def test_a_certificate_with_two_names_is_refused():
    names = [x509.NameAttribute(NameOID.COMMON_NAME, n) for n in ("laptop", "server")]
    names.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, "home"))
    with pytest.raises(BadCertificate, match="one CN"):
        certificates.parse(forge(lambda b: for_members(with_usage(b)), subject=names))


def test_a_revoker_is_no_member_and_a_member_no_revoker():
    revoker = HOME.make_revoker("home", NOW)
    assert certificates.parse(revoker.certificate.der, Usage.REVOKER).roles == {"revoker"}
    with pytest.raises(BadCertificate):
        certificates.parse(revoker.certificate.der)
    with pytest.raises(BadCertificate):
        certificates.parse(issued().der, Usage.REVOKER)


# --- keys on the disk -------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", authorities.ALGORITHMS)
@pytest.mark.parametrize("passphrase", [None, "correct horse battery"])
def test_an_authority_comes_back_from_its_files(algorithm, passphrase):
    made = authorities.make_authority("home", NOW, algorithm)
    pem = made.pem(passphrase)
    assert authorities.needs_passphrase(pem) is (passphrase is not None)
    again = authorities.load_authority(pem, made.authority.der, passphrase)
    assert certificates.verify(issued(by=again), [made.authority], NOW)


def test_a_wrong_passphrase_is_named_and_never_quoted():
    pem = HOME.pem("correct horse battery")
    for wrong in (None, "", "wrong horse battery"):
        with pytest.raises(IssuerRefused) as refused:
            authorities.load_authority(pem, HOME.authority.der, wrong)
        assert refused.value.reason == "passphrase"
        assert "wrong horse" not in str(refused.value)
    with pytest.raises(IssuerRefused, match="12"):
        HOME.pem("short")


def test_the_key_of_another_authority_is_refused():
    other = authorities.make_authority("home", NOW)
    with pytest.raises(IssuerRefused, match="one backup"):
        authorities.load_authority(other.pem(), HOME.authority.der, None)
    with pytest.raises(IssuerRefused, match="backup"):
        authorities.load_authority(b"garbage", HOME.authority.der, None)


def test_a_revoker_comes_back_from_its_files():
    revoker = HOME.make_revoker("home", NOW)
    assert authorities.load_revoker(revoker.pem(), revoker.certificate.der, HOME.authority)
    with pytest.raises(IssuerRefused):
        authorities.load_revoker(
            HOME.make_revoker("home", NOW).pem(), revoker.certificate.der, HOME.authority
        )


def test_keys_are_not_shown_and_not_pickled():
    for key in (HOME, HOME.make_revoker("home", NOW)):
        assert "PRIVATE" not in repr(key)
        with pytest.raises(TypeError):
            pickle.dumps(key)


# --- another CA, and other eyes ---------------------------------------------------------------


def openssl(*arguments: str, given: bytes = b"") -> bytes:
    return subprocess.run(
        ["openssl", *arguments], input=given, capture_output=True, check=True, timeout=60
    ).stdout


def test_openssl_reads_a_certificate():
    text = openssl("x509", "-inform", "DER", "-noout", "-text", given=issued().der).decode()
    for shown in ("CN = laptop", "OU = role:relay", "IP Address:10.77.0.2", "CA:FALSE",
                  "Digital Signature", USAGE.dotted_string):  # fmt: skip
        assert shown in text


@pytest.mark.parametrize("curve", ["ED25519", "P-256", "P-384"])
def test_openssl_can_be_the_authority(tmp_path: Path, curve):
    """The way of docs: request here, sign with the openssl program, install here."""
    key, ca = tmp_path / "ca.key", tmp_path / "ca.pem"
    kind = ["ED25519"] if curve == "ED25519" else ["EC", "-pkeyopt", f"ec_paramgen_curve:{curve}"]
    openssl("genpkey", "-algorithm", *kind, "-out", str(key))
    openssl(
        "req", "-x509", "-new", "-key", str(key), "-out", str(ca), "-days", "3650",
        "-subj", "/O=home/CN=our CA", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    wanted = tmp_path / "laptop.csr"
    wanted.write_bytes(certificates.request(SEED, "laptop"))
    assert certificates.requested_key(wanted.read_bytes()) == KEY
    rules = tmp_path / "rules"
    rules.write_text(
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        f"extendedKeyUsage={USAGE.dotted_string}\nsubjectAltName=IP:10.77.0.2\n"
    )
    der = openssl(
        "x509", "-req", "-inform", "DER", "-in", str(wanted), "-CA", str(ca), "-CAkey", str(key),
        "-set_serial", "77", "-days", "365", "-extfile", str(rules), "-outform", "DER",
    )  # fmt: skip
    # `openssl x509 -req` takes the subject of the request, which has no O: refused with words.
    with pytest.raises(BadCertificate, match="one O"):
        certificates.parse(der)
    signed = openssl(
        "x509", "-new", "-force_pubkey", str(_public(tmp_path)), "-subj",
        "/CN=laptop/O=home/OU=role:relay", "-CA", str(ca), "-CAkey", str(key), "-set_serial", "78",
        "-days", "365", "-extfile", str(rules), "-outform", "DER",
    )  # fmt: skip
    authority = certificates.parse_authority(openssl("x509", "-in", str(ca), "-outform", "DER"))
    made = certificates.verify(certificates.parse(signed), [authority], datetime.now(UTC))
    assert (made.name, made.roles, made.public_key) == ("laptop", {"relay"}, KEY)


def _public(folder: Path) -> Path:
    path = folder / "laptop.pub"
    csr = openssl("req", "-inform", "DER", "-in", str(folder / "laptop.csr"), "-noout", "-pubkey")
    path.write_bytes(csr)
    return path


def test_of_a_request_nothing_but_the_key_is_believed_and_it_must_sign():
    der = certificates.request(SEED, "laptop")
    assert certificates.requested_key(der) == KEY
    forged = der[:-1] + bytes([der[-1] ^ 1])
    with pytest.raises(BadCertificate, match="not signed"):
        certificates.requested_key(forged)
