"""What an operator reads when the peer has ended a session."""

from __future__ import annotations

import pytest

from shadowmesh.base.constants import CloseReason
from shadowmesh.peer.endings import by_peer


@pytest.mark.parametrize("reason", CloseReason)
def test_every_reason_of_the_peer_has_a_sentence_of_its_own(reason):
    ended = by_peer(reason, "")
    assert ended.detail.startswith("the ")
    assert "reason" not in ended.detail
    assert (ended.kind, ended.peer_reason) == ("closed_by_peer", reason)


def test_a_disconnect_of_the_other_operator_says_what_lets_this_side_in():
    assert by_peer(CloseReason.DISCONNECT, "").detail == (
        "the peer's operator has disconnected; `shadowmesh connect` there lets this side in"
    )


def test_a_reason_of_a_later_version_is_told_by_its_number():
    assert by_peer(99, "moved").detail == "the peer ended the session (reason 99) (moved)"
