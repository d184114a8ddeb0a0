"""Tests of the time that counts. Source: mesh-rules C7."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.errors import IssuerRefused
from shadowmesh.network.clock import BUILD_DATE, check_issuer_clock, checking_time
from tests.words import faults

DAY = timedelta(days=1)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
moments = st.integers(0, 4_100_000_000).map(lambda s: datetime.fromtimestamp(s, UTC))


def test_a_clock_that_may_be_right_is_believed_whatever_lists_say():
    local = BUILD_DATE + DAY
    assert checking_time(local, newest_list=local + 5000 * DAY) == local


def test_without_a_battery_the_build_date_counts():
    assert checking_time(BEGINNING) == BUILD_DATE


def test_the_newest_list_helps_only_a_clock_before_the_build():
    newest = BUILD_DATE + 100 * DAY
    assert checking_time(BEGINNING, newest_list=newest) == newest


def test_a_list_from_the_far_future_ends_no_authority():
    end = BUILD_DATE + 7300 * DAY
    found = checking_time(BEGINNING, newest_list=end + 9 * DAY, authority_not_after=end)
    assert found == end - 30 * DAY


def test_our_own_certificate_has_begun():
    begun = BUILD_DATE + 10 * DAY
    assert checking_time(BUILD_DATE + DAY, own_not_before=begun) == begun


def test_a_clock_behind_the_end_of_our_own_certificate_is_not_believed():
    end = BUILD_DATE + 30 * DAY
    assert checking_time(BUILD_DATE + 9000 * DAY, own_not_after=end) == end
    assert checking_time(BUILD_DATE + DAY, own_not_after=end) == BUILD_DATE + DAY


@given(moments, moments, moments, moments)
def test_the_time_is_never_before_the_local_clock_and_lists_never_end_an_authority(
    local, newest, begun, end
):
    found = checking_time(local, newest_list=newest, own_not_before=begun, authority_not_after=end)
    assert found >= local
    assert found == local or found <= end - 30 * DAY


@pytest.mark.parametrize("away", [-timedelta(seconds=1), 400 * DAY + timedelta(seconds=1)])
def test_the_issuer_does_not_sign_by_a_clock_that_its_ledger_contradicts(away):
    last = BUILD_DATE
    with pytest.raises(IssuerRefused, match="clock-is-right") as refused:
        check_issuer_clock(last + away, last)
    assert refused.value.reason == "clock"
    assert not faults(str(refused.value))
    check_issuer_clock(last + away, last, trusted=True)


@pytest.mark.parametrize("away", [0 * DAY, DAY, 400 * DAY])
def test_the_issuer_signs_by_a_plausible_clock(away):
    check_issuer_clock(BUILD_DATE + away, BUILD_DATE)
    check_issuer_clock(BUILD_DATE + away, None)
