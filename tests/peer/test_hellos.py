"""The first messages of our dials: is one that comes ours?"""

from __future__ import annotations

from shadowmesh.peer.hellos import MAX_HELLOS, Hellos


def test_only_what_was_sent_and_came_is_told_to_have_come_back():
    hellos = Hellos()
    hellos.sent(b"one")
    assert not hellos.came_back(b"one")
    assert not hellos.is_own(b"two")
    assert hellos.is_own(b"one")
    assert hellos.came_back(b"one")
    assert not hellos.came_back(b"two")


def test_the_memory_is_bounded():
    hellos = Hellos()
    for number in range(2 * MAX_HELLOS):
        hellos.sent(b"%d" % number)
        assert hellos.is_own(b"%d" % number)
    assert not hellos.is_own(b"0")
    assert len(hellos._sent) == len(hellos._returned) == MAX_HELLOS


def test_as_many_are_remembered_as_peers_may_be_dialled_at_once():
    hellos = Hellos()
    hellos.dialled_are(100)
    for number in range(100):
        hellos.sent(b"%d" % number)
    assert hellos.is_own(b"0")
    assert hellos.came_back(b"0")
