"""The places of unauthenticated connections, without any network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.link.admission import (
    KNOWN_FACTOR,
    MAX_SOURCES,
    SITE_FACTOR,
    Admission,
    Limits,
    Source,
    Stage,
    source_of,
)
from shadowmesh.link.known import MAX_REMEMBERED, REMEMBERED_S, KnownAddresses


class Door:
    """An admission and who lost a place in it, in order."""

    def __init__(self, **limits):
        self.limits = Limits(**limits)
        self.admission = Admission(self.limits)
        self.evicted = []

    def enter(self, name, *stages, now=0.0, known=False, site=""):
        source = Source(name.rstrip("0123456789"), site, known)
        place = self.admission.admit(source, now, lambda stage: self.evicted.append((name, stage)))
        for stage in stages:
            place.advance(stage)
        return place


def test_a_source_is_an_ipv4_address_or_an_ipv6_56():
    def name(ip):
        return source_of(ip, known=False).name

    assert name("192.0.2.1") == name("::ffff:192.0.2.1") == "192.0.2.1"
    assert name("2001:db8:1:2:3:4:5:6") == name("2001:db8:1:ff::") != name("2001:db8:1:100::")
    assert name("fe80::1%eth0") == "fe80::/56"
    assert source_of("2001:db8:1:2::3", known=False).site == "2001:db8:1::/48"
    assert source_of("192.0.2.1", known=False).site == ""


def test_a_known_address_is_a_source_of_its_own():
    assert source_of("2001:db8::0005", known=True) == Source("2001:db8::5", "", True)


def test_a_full_source_gives_up_its_oldest_and_the_newcomer_stays():
    door = Door(per_source=2)
    for name in ("a1", "b1", "a2", "a3"):
        door.enter(name, Stage.TLS)
    assert door.evicted == [("a1", Stage.TLS)]
    assert door.admission.held(Stage.TLS) == 3


def test_a_site_may_have_more_than_a_source_but_not_without_end():
    door = Door(per_source=1)
    for number in range(SITE_FACTOR + 1):
        door.enter(f"{chr(97 + number)}1", Stage.TLS, site="site")
    assert door.evicted == [("a1", Stage.TLS)]


def test_a_full_stage_gives_up_the_oldest_of_a_source_that_holds_more_than_one():
    door = Door(tls=5, kept=1, per_source=3)
    for name in ("a1", "b1", "b2", "c1", "d1"):
        door.enter(name, Stage.TLS)
    assert door.evicted == [("b1", Stage.TLS)]


def test_a_full_stage_of_single_ones_gives_up_the_oldest():
    door = Door(handshake=4, kept=1)
    for name in ("a1", "b1", "c1", "d1"):
        door.enter(name, Stage.TLS, Stage.HANDSHAKE)
    assert door.evicted == [("a1", Stage.HANDSHAKE)]


def test_silent_connections_of_one_source_are_many():
    door = Door(accepted=30, kept=4, new_per_second=99)
    for number in range(28):
        door.enter(f"a{number}")
    assert door.evicted == [("a0", Stage.ACCEPTED), ("a1", Stage.ACCEPTED)]


def test_strangers_never_take_a_kept_place_and_known_addresses_take_any():
    door = Door(tls=6, kept=2, per_source=9)
    for number in range(2):
        door.enter(f"peer{number}", Stage.TLS, known=True)
    for number in range(9):
        door.enter(f"{chr(97 + number)}", Stage.TLS)
    assert [name for name, _ in door.evicted] == ["a", "b", "c", "d", "e"]
    for number in range(2, 7):
        door.enter(f"peer{number}", Stage.TLS, known=True)
    assert [name for name, _ in door.evicted[5:]] == ["f", "g", "h", "i", "peer0"]


def test_a_known_address_has_limits_of_its_own():
    door = Door(per_source=1, new_per_second=2)
    for number in range(KNOWN_FACTOR + 1):
        door.enter(f"peer{number}", Stage.TLS, known=True)
    assert door.evicted == [("peer0", Stage.TLS)]
    entered = [door.enter("peer", known=True) for _ in range(9)]
    assert entered.count(None) == 9 - (2 * KNOWN_FACTOR - KNOWN_FACTOR - 1)


def test_only_so_many_new_ones_of_a_source_are_admitted_in_any_second():
    door = Door(new_per_second=3)
    times = [0.0, 0.5, 0.9, 0.95, 1.0, 1.2, 1.5, 1.85, 1.95]
    assert [door.enter("a", now=now) is None for now in times] == [
        False, False, False, True, False, True, False, True, False,
    ]  # fmt: skip


def test_a_site_may_not_multiply_the_rate_by_its_networks():
    door = Door(new_per_second=2)
    entered = [door.enter(f"{chr(97 + n % 20)}", site="site") for n in range(40)]
    assert sum(place is not None for place in entered) == 2 * SITE_FACTOR


def test_a_place_leaves_once_and_a_lost_place_neither_moves_nor_leaves():
    door = Door(tls=2, kept=1)
    first = door.enter("a", Stage.TLS)
    second = door.enter("b", Stage.TLS)
    assert door.evicted == [("a", Stage.TLS)]
    first.advance(Stage.HANDSHAKE)
    first.release()
    second.release()
    second.release()
    assert [door.admission.held(stage) for stage in Stage] == [0, 0, 0]


def test_the_memory_for_sources_is_bounded_and_given_back():
    door = Door()
    for number in range(2 * MAX_SOURCES):
        place = door.admission.admit(Source(str(number), "", False), 0.0, lambda stage: None)
        place.release()
    assert len(door.admission._recent) == MAX_SOURCES
    room = door.admission._rooms[Stage.ACCEPTED]
    assert len(room.of_source) == len(room.of_site) == room.known == 0
    door.enter("later", now=2.0)
    assert len(door.admission._recent) == 1


def test_a_busy_source_does_not_keep_quiet_ones_in_memory():
    door = Door()
    for source, now in (("busy", 0.0), ("quiet", 0.5), ("busy", 0.9), ("late", 1.6)):
        door.enter(source, now=now)
    assert list(door.admission._recent) == ["busy", "late"]


@pytest.mark.parametrize("limits", [Limits(accepted=6, tls=5, handshake=4, kept=2, per_source=2)])
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdKL"), st.sampled_from(["in", "on", "out"]), st.integers(0)),
        max_size=120,
    )
)
def test_no_order_of_events_exceeds_a_limit_or_turns_a_newcomer_away(limits, events):
    admission = Admission(limits)
    inside, now = [], 0.0
    for name, what, pick in events:
        now += 0.2
        if what == "in":
            lost = []
            place = admission.admit(Source(name, "", name.isupper()), now, lost.append)
            if place is None:
                continue
            assert not lost
            inside.append(place)
        elif inside:
            place = inside[pick % len(inside)]
            if what == "out":
                place.release()
            elif place.stage is not None and place.stage is not Stage.HANDSHAKE:
                place.advance(Stage.TLS if place.stage is Stage.ACCEPTED else Stage.HANDSHAKE)
                assert place.stage is not None
        inside = [place for place in inside if place.stage is not None]
        for stage in Stage:
            here = [place for place in inside if place.stage is stage]
            strangers = [place for place in here if not place.source.known]
            assert admission.held(stage) == len(here) <= limits.of(stage)
            assert len(strangers) <= limits.of(stage) - limits.kept
            if stage is not Stage.ACCEPTED:
                for place in strangers:
                    assert [p.source for p in here].count(place.source) <= limits.per_source


def test_an_address_is_known_for_a_day_after_a_peer_was_behind_it():
    known = KnownAddresses()
    known.authenticated("192.0.2.1", 100.0)
    assert known.holds("192.0.2.1", 100.0 + REMEMBERED_S)
    assert not known.holds("192.0.2.1", 101.0 + REMEMBERED_S)
    assert not known.holds("192.0.2.2", 100.0)


def test_the_configured_address_is_known_until_another_is_configured():
    known = KnownAddresses()
    known.name({"192.0.2.1"})
    assert known.holds("192.0.2.1", 1e9)
    known.name(())
    assert not known.holds("192.0.2.1", 1.0)


def test_the_address_heard_of_longest_ago_is_forgotten_first():
    known = KnownAddresses()
    for number in range(MAX_REMEMBERED):
        known.authenticated(str(number), 1.0)
    known.authenticated("0", 2.0)
    known.authenticated("new", 2.0)
    assert known.holds("0", 2.0)
    assert not known.holds("1", 2.0)


def test_peers_behind_one_address_are_counted_and_forgotten_one_by_one():
    known = KnownAddresses()
    for number in range(3):
        for _ in range(2):
            known.authenticated("192.0.2.1", float(number), b"%d" % number)
    assert known.peers("192.0.2.1", 2.0) == 3
    assert known.peers("192.0.2.1", REMEMBERED_S + 0.5) == 2
    assert known.peers("192.0.2.1", REMEMBERED_S + 2.5) == 0
    known.name(["192.0.2.2", "192.0.2.2"])
    assert known.peers("192.0.2.2", 0.0) == 2


def test_all_peers_behind_one_address_may_come_at_once():
    door = Door()
    source = source_of("192.0.2.1", known=True, peers=60)
    places = [door.admission.admit(source, 0.0, door.evicted.append) for _ in range(60)]
    for stage in (Stage.TLS, Stage.HANDSHAKE):
        for place in places:
            place.advance(stage)
            assert place.stage is stage
    assert door.evicted == []
