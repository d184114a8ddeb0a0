"""Tests of what a joiner refuses. Source: mesh-rules B4, C1, C2, C7."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import pytest

from shadowmesh.base.errors import BadCertificate, BadList
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import joining, revocation, trust
from shadowmesh.network.authority import make_authority
from shadowmesh.network.certificate import Profile
from shadowmesh.network.joining import Answer
from shadowmesh.network.revocation import Reason
from tests.words import faults

NOW = datetime(2026, 12, 1, tzinfo=UTC)
END = NOW + timedelta(days=7000)
KEY = sodium.public_key(bytes(range(32)))
RECOVERY = Identity.from_seed(bytes(range(1, 33)))
HOME = make_authority("home", NOW)
EVIL = make_authority("home", NOW)
PROFILE = Profile("laptop", "home", addresses=(ip_address("10.77.0.2"), ip_address("fd01::2")))
MADE = HOME.issue(PROFILE, KEY, NOW, END)
ANSWER = Answer(
    certificate=MADE.der,
    trust_list=trust.make(RECOVERY, HOME.authority.key_id, 1, (HOME.authority,), HOME).data,
    revocation_lists=(revocation.make(HOME, 0, NOW, {}),),
    subnets=("10.77.0.0/24", "fd01::/64"),
)


def judge(answer=ANSWER, local=NOW, own=(), **changes):
    return joining.judge(
        replace(answer, **changes),
        network_id=HOME.authority.key_id[:16],
        fingerprint=HOME.authority.fingerprint,
        public_key=KEY,
        local=local,
        own_networks=own,
    )


def test_a_good_answer_makes_a_member():
    made = judge()
    assert made.certificate == MADE
    assert made.trust_list.authorities == (HOME.authority,)
    assert made.subnets == (ip_network("10.77.0.0/24"), ip_network("fd01::/64"))
    assert made.doubts == ()


def test_a_joiner_whose_clock_is_at_the_beginning_joins():
    assert judge(local=datetime(1970, 1, 1, tzinfo=UTC)).certificate == MADE


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"certificate": EVIL.issue(PROFILE, KEY, NOW, END).der}, "foreign"),
        ({"certificate": HOME.issue(PROFILE, RECOVERY.public_key, NOW, END).der}, "other_key"),
        ({"certificate": b""}, "malformed"),
        ({"trust_list": trust.make(RECOVERY, EVIL.authority.key_id, 1, (EVIL.authority,), EVIL).data}, "foreign"),
        ({"trust_list": trust.make(RECOVERY, HOME.authority.key_id, 1, (EVIL.authority,), EVIL).data}, "foreign"),
        ({"trust_list": b""}, "malformed"),
        ({"revocation_lists": ()}, "unlisted"),
        ({"revocation_lists": (revocation.make(EVIL, 0, NOW, {}),)}, "foreign"),
        ({"revocation_lists": (revocation.make(HOME, 1, NOW, {MADE.serial: Reason.REMOVED}),)}, "revoked"),
        ({"subnets": ()}, "malformed"),
        ({"subnets": ("10.78.0.0/24", "fd01::/64")}, "malformed"),
        ({"subnets": ("10.77.0.0/25", "10.77.0.0/24", "fd01::/64")}, "malformed"),
        ({"subnets": ("10.77.0.0/24", "10.78.0.0/24")}, "malformed"),
        ({"subnets": ("10.77.0.5/24", "fd01::/64")}, "malformed"),
        ({"subnets": ("nonsense",)}, "malformed"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_what_the_invitation_promised_is_refused(changes, kind):
    with pytest.raises((BadCertificate, BadList)) as refused:
        judge(**changes)
    assert refused.value.kind == kind
    assert not faults(str(refused.value))


def test_an_answer_under_a_second_authority_of_the_list_is_refused():
    both = (HOME.authority, EVIL.authority)
    with pytest.raises(BadCertificate, match="another authority than the invitation"):
        judge(
            certificate=EVIL.issue(PROFILE, KEY, NOW, END).der,
            trust_list=trust.make(RECOVERY, HOME.authority.key_id, 2, both, HOME).data,
            revocation_lists=tuple(revocation.make(one, 0, NOW, {}) for one in (HOME, EVIL)),
        )


@pytest.mark.parametrize("text", ["0.0.0.0/0", "8.0.0.0/5"])
def test_a_subnet_that_would_take_other_traffic_is_doubted(text):
    (doubt,) = judge(subnets=(text, "fd01::/64")).doubts
    assert text in doubt


def test_a_subnet_that_this_machine_has_is_doubted_and_both_are_named():
    (doubt,) = judge(own=[("eth0", ip_network("10.0.0.0/8"))]).doubts
    assert "10.77.0.0/24" in doubt
    assert "eth0" in doubt


@pytest.mark.parametrize("years", [-100, -20, 20, 100])
def test_a_joiner_whose_clock_is_wrong_joins(years):
    assert judge(local=NOW + timedelta(days=365 * years)).certificate == MADE


def test_a_certificate_that_has_expired_by_the_clock_of_the_issuer_joins_nothing():
    late = revocation.make(HOME, 1, END + timedelta(days=1), {})
    with pytest.raises(BadCertificate) as refused:
        judge(revocation_lists=(late,))
    assert refused.value.kind == "expired"
