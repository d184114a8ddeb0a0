"""Tunnels between members: certificates judged in the middle of what the peer sends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from shadowmesh.base.constants import Abilities, CloseReason, RejectReason
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.peer.terms import Unfit
from tests.peer.machines import wait_for
from tests.peer.test_tunnel import contexts, cross, make, patience, terms, up  # noqa: F401
from tests.wire.pair import CERTIFICATES, MEMBERS


def member(name, judge=lambda _result, _certificate: None):
    return {"policy": MEMBERS[name], "certificate": CERTIFICATES[name], "judge": judge}


@pytest.fixture
def join(make):  # noqa: F811
    """Makes two members, (dialling, listening), with what each says of the other's certificate."""

    def build(dialling=lambda *_: None, listening=lambda *_: None):
        return make(dialling=member("i", dialling), listening=member("r", listening))

    return build


def test_members_judge_each_other_and_talk(join):
    told = {}

    def judge(name):
        return lambda result, certificate: told.update({name: (result, certificate)})

    sides = dict(zip("ir", join(judge("i"), judge("r")), strict=True))
    for side in sides.values():
        side.established()
    for name, other in (("i", "r"), ("r", "i")):
        result, certificate = told[name]
        assert certificate == sides[name].tunnel.peer_certificate == CERTIFICATES[other]
        assert result.peer_public_key == MEMBERS[other].identity.public_key
        assert result.keys.wss_i2r == b""
    assert sides["i"].heard == ["authenticated", "established"]
    assert sides["r"].heard == ["authenticated"]
    cross(sides["i"], sides["r"])
    cross(sides["r"], sides["i"])


def test_what_follows_accept_at_once_is_heard(join):
    """The responder says what it takes right behind ACCEPT, before the dialler's owner hears."""
    for side in join():
        wait_for(lambda side=side: side.tunnel.peer_abilities, "abilities")
        assert side.tunnel.peer_abilities == Abilities.PACKED


def test_keys_of_members_change_without_another_certificate(join):
    judged = []
    dialling, listening = join(lambda *args: judged.append(args))
    for side in (dialling, listening):
        side.established()
    dialling.tunnel._keying._machine._rekey.due = 0.0
    dialling.tunnel._wakeup.set()
    for side in (dialling, listening):
        wait_for(lambda side=side: side.tunnel.rekeys == 1, "other keys")
    assert len(judged) == 1
    cross(dialling, listening)


def test_who_comes_with_a_certificate_that_is_not_taken_is_rejected(join):
    unfit = Unfit("its certificate expired yesterday", RejectReason.RENEW)
    dialling, listening = join(listening=lambda *_: unfit)
    ended = dialling.ended()
    assert (ended.kind, ended.rejected) == ("rejected", RejectReason.RENEW)
    assert "yesterday" not in ended.detail
    ended = listening.ended()
    assert (ended.kind, ended.rejected) == ("rejected", RejectReason.RENEW)
    assert ended.detail == "its certificate expired yesterday"
    assert "authenticated" not in dialling.heard + listening.heard
    assert listening.tunnel.peer_certificate == b""
    events = [one for one in listening.recorder.recent() if one.kind == "network"]
    assert [one.message for one in events] == ["a member was refused by its certificate"]
    assert events[0].fields["cause"] == "its certificate expired yesterday"


def test_a_dialler_leaves_whose_certificate_it_does_not_take(join):
    dialling, listening = join(lambda *_: Unfit("that is not the relay"))
    ended = dialling.ended()
    assert (ended.kind, ended.detail) == ("refused", "that is not the relay")
    ended = listening.ended()
    assert (ended.kind, ended.peer_reason) == ("closed_by_peer", CloseReason.POLICY)
    assert "authenticated" not in dialling.heard
    assert "established" not in dialling.heard


def test_messages_of_the_network_reach_who_listens_to_them(join):
    dialling, listening = join()
    for side in (dialling, listening):
        side.established()
    heard = []
    assert dialling.tunnel.send_mesh(b"nobody listens")
    listening.tunnel._met = SimpleNamespace(receive=heard.append, left=lambda: heard.append("left"))
    assert dialling.tunnel.send_mesh(bytes(2048))
    wait_for(lambda: bytes(2048) in heard, "a message")

    def refuse(_body):
        raise RemoteProtocolError("no message")

    listening.tunnel._met.receive = refuse
    assert dialling.tunnel.send_mesh(b"junk")
    assert "no message" in listening.ended().detail
    assert heard[-1] == "left"
    dialling.ended()
    assert not dialling.tunnel.send_mesh(b"too late")


def test_records_that_came_before_the_judgement_are_counted_once(join):
    dialling, listening = join()
    for side in (dialling, listening):
        side.established()
    heard = []
    listening.tunnel._met = SimpleNamespace(receive=heard.append, left=lambda: None)
    listening.tunnel._keying._machine.dropped_unjudged = 2
    for number in (1, 2):
        assert dialling.tunnel.send_mesh(b"x")
        wait_for(lambda number=number: len(heard) == number, "a message")
    assert listening.tunnel._terms.dropped == {"unjudged": 2}
    assert dialling.tunnel._terms.dropped == {}


def test_a_pair_ends_with_who_speaks_of_a_network(up):  # noqa: F811
    dialling, listening = up()
    dialling.tunnel.send_mesh(b"hello")
    assert "in a pair" in listening.ended().detail


def test_members_without_a_judge_are_our_own_error():
    with pytest.raises(LocalProtocolError, match="judges"):
        terms(b"", policy=MEMBERS["i"], certificate=b"x")
