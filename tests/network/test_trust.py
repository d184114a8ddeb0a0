"""Tests of the trust list, the recovery key and the epochs of secrets. Source: mesh-rules C1, C6."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.errors import BadList
from shadowmesh.keys.identity import Identity
from shadowmesh.network import trust
from shadowmesh.network.authority import ALGORITHMS, make_authority
from shadowmesh.network.certificate import Profile
from tests.words import faults

NOW = datetime(2026, 12, 1, tzinfo=UTC)
RECOVERY = Identity.from_seed(bytes(range(32)))
THIEF = Identity.from_seed(bytes(range(1, 33)))
HOME = make_authority("home", NOW)
NEXT = make_authority("home", NOW, "p256")
NETWORK = HOME.authority.key_id


def made(epoch=1, authorities=(HOME.authority,), by=RECOVERY, voucher=HOME, network=NETWORK):
    return trust.make(by, network, epoch, tuple(authorities), voucher)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_list_is_read_as_it_was_made(algorithm):
    by = make_authority("home", NOW, algorithm)
    found = made(7, (HOME.authority, by.authority), voucher=by)
    assert trust.read(found.data) == found
    assert (found.network_id, found.epoch, found.recovery_key) == (NETWORK, 7, RECOVERY.public_key)
    assert found.authorities == (HOME.authority, by.authority)
    assert found.vouched_by == by.authority


def test_no_altered_byte_is_taken():
    data = made(1, (HOME.authority, NEXT.authority)).data
    for place in range(len(data)):
        forged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(BadList):
            trust.read(forged)


def test_no_cut_or_longer_list_is_taken():
    data = made().data
    for wrong in (*(data[:n] for n in range(len(data))), data + b"\0", bytes(trust.MAX_BYTES + 1)):
        with pytest.raises(BadList):
            trust.read(wrong)


def test_a_joiner_takes_what_the_authority_of_its_invitation_vouches_for():
    assert trust.first(made().data, NETWORK[:16], HOME.authority.fingerprint) == made()


def test_a_relay_cannot_add_an_authority_of_its_own_to_what_a_joiner_gets():
    evil = make_authority("home", NOW)
    both = (HOME.authority, evil.authority)
    for forged in (made(1, both, THIEF, evil), made(1, both, THIEF, None)):
        with pytest.raises(BadList) as refused:
            trust.first(forged.data, NETWORK[:16], HOME.authority.fingerprint)
        assert refused.value.kind == "foreign"
        assert not faults(str(refused.value))


def test_a_joiner_refuses_the_list_of_another_network():
    with pytest.raises(BadList, match="another network"):
        trust.first(made().data, bytes(16), HOME.authority.fingerprint)


def test_an_authority_is_replaced_and_the_network_stays():
    current = made()
    newer = made(2, (HOME.authority, NEXT.authority), voucher=NEXT)
    assert trust.follow(current, newer.data) == newer
    dropped = made(3, (NEXT.authority,), voucher=NEXT)
    found = trust.follow(newer, dropped.data)
    assert (found.network_id, found.authorities) == (NETWORK, (NEXT.authority,))


def test_a_replacement_without_the_recovery_key_is_refused_whoever_sends_it():
    with pytest.raises(BadList) as refused:
        trust.follow(made(), made(2, by=THIEF).data)
    assert refused.value.kind == "foreign"


def test_the_epoch_only_rises():
    current = made(5)
    assert trust.follow(current, made(5).data) is current
    for old in (made(4), made(5, (NEXT.authority,), voucher=NEXT)):
        with pytest.raises(BadList) as refused:
            trust.follow(current, old.data)
        assert refused.value.kind == "old"


# --- the recovery key -------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32))
def test_a_recovery_key_is_read_as_it_was_shown_and_as_people_write_it(seed):
    text = trust.recovery_text(seed)
    assert text.startswith("smr1-")
    for written in (text, text.upper(), text.replace("-", " ") + "\n", text.replace("0", "o")):
        assert trust.recovery_seed(written) == seed


def test_a_mistyped_recovery_key_is_refused_and_never_quoted():
    text = trust.recovery_text(bytes(range(32)))
    for place in range(5, len(text)):
        for other in "2z":
            wrong = text[:place] + other + text[place + 1 :]
            if wrong != text:
                with pytest.raises(ValueError) as refused:
                    trust.recovery_seed(wrong)
                assert text[5:13] not in str(refused.value)


# --- secrets ----------------------------------------------------------------------------------


def test_only_the_issuer_vouches_for_a_secret():
    end = NOW + timedelta(days=1)
    issuer = HOME.issue(Profile("s", "home", roles=("issuer",)), RECOVERY.public_key, NOW, end)
    relay = HOME.issue(Profile("r", "home", roles=("relay",)), THIEF.public_key, NOW, end)
    secret = bytes(range(32))
    good = trust.vouch_for_secret(RECOVERY.sign, NETWORK, 2, secret)
    trust.check_secret(issuer, NETWORK, 2, secret, good)
    stolen = trust.vouch_for_secret(THIEF.sign, NETWORK, 2, secret)
    for who, network, epoch, value, signature in (
        (relay, NETWORK, 2, secret, stolen),
        (issuer, NETWORK, 2, secret, stolen),
        (issuer, bytes(32), 2, secret, good),
        (issuer, NETWORK, 3, secret, good),
        (issuer, NETWORK, 2, bytes(32), good),
        (issuer, NETWORK, 2, secret, good[:63]),
    ):
        with pytest.raises(BadList):
            trust.check_secret(who, network, epoch, value, signature)
